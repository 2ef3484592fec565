"""The tiles of a picture, each of them a source that is looked at as a picture by itself."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from blemish.area import Area
from blemish.data.copies import thumbnail
from blemish.data.tiling import Tiling, Window
from blemish.errors import ImageError
from blemish.images import LIMITS, Limits, Picture, Windows, open_windows, within_memory

if TYPE_CHECKING:
    from torch import Tensor

    from blemish.data.transforms import Preprocessing

_AT_HAND = 2**29  # bytes of pictures that are held open, beside the last one
_OF_WINDOWS = 2**28  # of one that is read in windows, at most


class TiledPicture:
    """A picture and its tiles, of which only the pixels that are asked for are kept at hand.

    Attributes:
        name: how messages call it. size: (H, W). digest, notes: as of `Picture`.
        thumbnail: as of `copies.thumbnail`; None for one too big to be held.
        tiles: those in which any of the area lies, row by row.
    Raises: ImageError where it cannot be read, or is smaller than a tile.
    """

    def __init__(
        self,
        source: Any,
        tiling: Tiling,
        *,
        name: str,
        window: tuple[float, float] | None = None,
        area: Area | None = None,
        alter: Callable[[np.ndarray], np.ndarray] | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        self.name, self.tiling = name, tiling
        opened = open_windows(source, window=window, limits=limits, name=name)
        self.digest = opened.digest  # of the picture as it was: it is known by that
        self._source, self._window, self._limits = source, window, limits
        if alter is not None:
            self._source, self._window = alter(opened.read(slice(None), slice(None))), None
            opened = open_windows(self._source, name=name)
        self._opens_as = opened.digest
        self.size, self.notes = opened.size, opened.notes
        if min(self.size) < tiling.side:
            height, width = self.size
            raise ImageError(
                name,
                f"is {width} × {height} pixels, smaller than a tile of {tiling.side} × "
                f"{tiling.side}; it takes a detector that was fitted with smaller tiles, or none",
            )
        whole = opened.read(slice(None), slice(None)) if opened.whole else None
        self.thumbnail = None if whole is None else thumbnail(whole)
        self.tiles = tuple(self._cut(area))
        self._opened: Windows | None = opened
        self._lock = threading.Lock()
        self.nbytes = _OF_WINDOWS if whole is None else whole.nbytes

    def _cut(self, area: Area | None) -> Iterator[Tile]:
        side, (height, width) = self.tiling.side, self.size
        across = self.tiling.starts(width)
        for top in self.tiling.starts(height):
            for left in across:
                window = Window(slice(top, top + side), slice(left, left + side), self.size)
                if area is None or area.mask(height, width, window.rows, window.columns).any():
                    yield Tile(self, window)

    def read(self, window: Window) -> np.ndarray:
        """The pixels of a window, as of `Picture.pixels`. Raises: ImageError."""
        opened = self._opened
        if opened is None:
            with self._lock:  # of several threads one opens it
                opened = self._opened = self._opened or self._open_again()
            _RECENT.note(self)
        pixels: np.ndarray = opened.read(window.rows, window.columns)
        return pixels

    def _open_again(self) -> Windows:
        with within_memory(self.name):
            opened = open_windows(
                self._source, window=self._window, limits=self._limits, name=self.name
            )
            if opened.digest != self._opens_as:
                raise ImageError(self.name, "has changed since it was first read")
            return opened

    def close(self) -> None:
        """Let go of its pixels; it opens again when they are asked for."""
        self._opened = None


def tiled(source: Any, preprocessing: Preprocessing, **settings: Any) -> TiledPicture:
    """A picture as its tiles; see `TiledPicture`."""
    assert preprocessing.tiling is not None
    return TiledPicture(
        source,
        preprocessing.tiling,
        window=preprocessing.decode_window(),
        area=preprocessing.area,
        **settings,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """A tile of a picture, as a source that is looked at by itself.

    Attributes:
        marks: of a labelled defect, the share of each place of it that is marked, as of
            `Batch.masks`: float32 h w.
    """

    picture: TiledPicture = field(repr=False)
    window: Window
    marks: Tensor | None = field(default=None, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether it is the first of its picture."""
        return self.picture.tiles[0].window == self.window

    @property
    def is_last(self) -> bool:
        """Whether it is the last of its picture."""
        return self.picture.tiles[-1].window == self.window

    def cut(self) -> Picture:
        """It as a picture. Raises: ImageError."""
        return Picture(self.picture.read(self.window), self.picture.name, self.picture.notes)


class _Recent:
    """The pictures that were opened again last, so that their tiles need not open them each.

    It keeps none of them alive.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pictures: dict[int, weakref.ref[TiledPicture]] = {}

    def note(self, picture: TiledPicture) -> None:
        """Close those that were opened longest ago, where all together are too many bytes."""
        with self._lock:
            alive = {key: one for key, ref in self._pictures.items() if (one := ref()) is not None}
            alive.pop(id(picture), None)
            alive[id(picture)] = picture
            held = sum(one.nbytes for one in alive.values())
            for key in [*alive][:-1]:
                if held > _AT_HAND:
                    held -= alive[key].nbytes
                    alive.pop(key).close()
            self._pictures = {key: weakref.ref(one) for key, one in alive.items()}


_RECENT = _Recent()
