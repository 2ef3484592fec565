"""What a detector is given to score, as its method takes it: pictures, or the tiles of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import tee
from typing import Any

import numpy as np

from blemish.area import Area
from blemish.data.ahead import failing, map_ahead, name_of, of_picture
from blemish.data.geometry import check_shown
from blemish.data.tiles import Tile, tiled
from blemish.data.tiling import Window
from blemish.data.transforms import Preprocessing, as_pixels, prepare
from blemish.engines.base import Input
from blemish.images import LIMITS, Limits, Picture
from blemish.types import Failure, Frame, Sample

AUTO = "auto"  # in place of a category's name
Alter = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is kept of a decoded picture or tile: how the engine takes it (float32 3 H W, or
    uint8 H W 3), and the category that it is to be judged as; None = still to be told.

    Attributes: tile: which it is; None = the whole picture.
    """

    source: str
    size: tuple[int, int]
    digest: str
    notes: tuple[str, ...]
    pixels: Input
    category: str | None
    time: float | None = None
    tile: Tile | None = None

    @property
    def ends_picture(self) -> bool:
        """Whether it is the last tile of a picture."""
        return self.tile is not None and self.tile.is_last

    @property
    def shown(self) -> tuple[int, int]:
        """(H, W) of what was brought to the method: the picture or the tile."""
        if self.tile is None:
            return self.size
        rows = self.tile.window.rows
        return rows.stop - rows.start, rows.stop - rows.start


@dataclass(frozen=True, kw_only=True)
class BrokenTile(Failure):
    """A tile that could not be read, of a picture of which others could."""

    tile: Tile


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a detector reads pictures.

    Attributes:
        preprocessing, area: of the detector. categories: those that it knows.
        category, alter: as of `Detector.predict_many`.
        raw: whether the engine takes pixels that are not normalised.
        limits: what a picture may ask for.
    """

    preprocessing: Preprocessing
    area: Area | None
    categories: Sequence[str]
    category: str
    alter: Alter | None
    raw: bool = False
    limits: Limits = LIMITS

    def loads(self, sources: Iterable[Any], *, ahead: int) -> Generator[Loaded | Failure]:
        """Each of the sources in turn, or each of its tiles; `ahead` of them in advance."""
        if self.preprocessing.tiling is None:
            yield from map_ahead(self._numbered, enumerate(sources), ahead=ahead)
            return
        with closing(self._tiles(sources, ahead=min(1, ahead))) as tiles:
            yield from map_ahead(self._load_tile, tiles, ahead=ahead)

    def _numbered(self, one: tuple[int, Any]) -> Loaded | Failure:
        return self.load(one[1], one[0])

    def load(
        self, given: Any, index: int = 0, see: Callable[[Picture], None] | None = None
    ) -> Loaded | Failure:
        """A picture, whole, as the engine takes it.

        Args: index: in its call, for its name. see: called with the decoded picture, before it is
            let go.
        """
        if isinstance(given, Failure):
            return given
        source, category, time = self._known(given)

        # All that is needed is computed here, in the pool: the pixels would fill the memory.
        def needed(picture: Picture) -> Loaded:
            placement = self.preprocessing.placement(picture.size)
            if self.area is not None and placement.is_cut:
                check_shown(picture.source, placement, self.area)
            shown, alter = picture, self.alter
            if see is not None:
                see(picture)
            if alter is not None:
                shown = replace(picture, pixels=alter(picture.pixels))
            return Loaded(
                picture.source,
                picture.size,
                picture.digest,  # of the picture as it was: it is known by that
                self.preprocessing.notes(picture),
                self._prepared(shown),
                category,
                time,
            )

        window = self.preprocessing.decode_window()
        return of_picture(needed, source, index, window, self.limits)

    def _prepared(self, picture: Picture, window: Window | None = None) -> Input:
        if self.raw:
            return as_pixels(picture, self.preprocessing, window=window)
        return prepare(picture, self.preprocessing, window=window)

    def _known(self, given: Any) -> tuple[Any, str | None, float | None]:
        """What is decoded of a source, the category that it is judged as, and its time."""
        known: str | None = self.category
        if known in ("", AUTO) and known not in self.categories:
            known = None if self.categories else ""
        if isinstance(given, Sample):
            if given.category:
                known = given.category if given.category in self.categories else ""
            return given.path, known, None
        return given, known, given.time if isinstance(given, Frame) else None

    def _tiles(
        self, sources: Iterable[Any], *, ahead: int
    ) -> Generator[tuple[Tile, Any] | Failure]:
        """The tiles of each picture, and what it was given as; `ahead` are opened in advance."""
        items, again = tee(sources)

        def opened(numbered: tuple[int, Any]) -> Any:
            index, given = numbered
            if isinstance(given, Failure):
                return given
            source, name = self._known(given)[0], name_of(self._known(given)[0], index)
            how: dict[str, Any] = {"name": name, "alter": self.alter, "limits": self.limits}
            return failing(lambda: tiled(source, self.preprocessing, **how), name)

        with closing(map_ahead(opened, enumerate(items), ahead=ahead)) as pictures:
            for picture, given in zip(pictures, again, strict=False):
                if isinstance(picture, Failure):
                    yield picture
                else:
                    yield from ((tile, given) for tile in picture.tiles)

    def _load_tile(self, one: tuple[Tile, Any] | Failure) -> Loaded | Failure:
        if isinstance(one, Failure):
            return one
        tile, given = one
        _, category, time = self._known(given)
        picture = tile.picture

        def loaded() -> Loaded:
            pixels = self._prepared(tile.cut(), tile.window)
            told = (picture.name, picture.size, picture.digest, picture.notes)
            return Loaded(*told, pixels, category, time, tile)

        found = failing(loaded, picture.name)
        if isinstance(found, Failure):
            return BrokenTile(source=found.source, reason=found.reason, tile=tile)
        return found
