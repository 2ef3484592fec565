"""placeholder"""

from __future__ import annotations

from typing import Any

from blemish.images.decoder import Picture, decode
from blemish.images.limits import LIMITS, Limits


class Windows:
    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self.size, self.source, self.notes = picture.size, picture.source, picture.notes
        self.whole = picture.pixels

    @property
    def digest(self) -> str:
        return self._picture.digest

    def read(self, rows: slice, columns: slice) -> Any:
        return self._picture.pixels[rows, columns]


def open_windows(
    source: Any,
    *,
    window: tuple[float, float] | None = None,
    limits: Limits = LIMITS,
    name: str | None = None,
) -> Windows:
    return Windows(decode(source, window=window, limits=limits, name=name))
