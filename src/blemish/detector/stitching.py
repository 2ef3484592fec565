"""What the tiles of a picture score, put together to what the picture scores.

The map of a picture is the maps of its tiles side by side; where tiles overlap each counts the less
the nearer its own border is, so that no seam shows, nor what a backbone makes of a border that is
none. The score of a picture is that of its most anomalous tile: a defect counts as much in
a large picture as in a small one, where the mean of so many of the highest places would drown it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blemish.area import Area
from blemish.data.geometry import Placement, put_back
from blemish.data.tiles import Tile, TiledPicture
from blemish.data.tiling import Tiling, Window
from blemish.detector.scoring import top_mean
from blemish.engines.base import Engine, Outputs
from blemish.errors import NonFiniteError

Map = NDArray[np.float32]
_LEAST = 1e-6  # of a weight: a place on the very border of two tiles belongs to both


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found of a picture: a row of `Outputs`.

    Attributes:
        score, votes, box: as a row of `Outputs`.
        anomaly_map, saliency: float32 h w.
        foreground: bool h w, the places that count; None where all do. is_untold: whether they all
            do because no background could be told.
        features: what tells categories apart, D; None where nothing is to be told.
        descriptor: where it lies among others, D, as of `Outputs`; of tiles their mean.
    """

    score: float
    anomaly_map: Map
    votes: float | None = None
    saliency: Map | None = None
    box: tuple[float, float, float, float] | None = None
    foreground: NDArray[np.bool_] | None = None
    is_untold: bool = False
    features: NDArray[np.float32] | None = None
    descriptor: NDArray[np.float32] | None = None

    def check(self, name: str) -> None:
        """Raises: NonFiniteError where anything of the picture of this name is not finite."""
        told: dict[str, Any] = {"score": self.score, "map": self.anomaly_map}
        told |= {"saliency": self.saliency, "crop": self.box, "descriptor": self.descriptor}
        for what, values in told.items():
            if values is not None and not np.isfinite(values).all():
                raise NonFiniteError(
                    f"{name}: the {what} is not finite; the detector or the picture is damaged"
                )


def rows_of(found: Outputs, placements: Sequence[Placement]) -> list[Found]:
    """What each row of the outputs of a batch says of its picture, or tile: maps and crops are
    those of the whole of it, wherever it lies in the input.

    Args: placements: where each lies.
    """

    def column(values: NDArray[Any] | None) -> Sequence[Any]:
        return [None] * len(found.score) if values is None else list(values)

    columns = zip(
        found.score.tolist(),
        put_back(found.map, placements),
        column(found.votes),
        column(found.saliency),
        column(found.box),
        column(found.foreground),
        column(found.category),
        column(found.descriptor),
        placements,
        strict=True,
    )
    return [
        Found(
            score=score,
            anomaly_map=anomaly_map,
            votes=None if votes is None else float(votes),
            saliency=None if saliency is None else placement.to_picture(saliency),
            box=None if box is None else placement.box_to_picture(box.tolist()),
            foreground=None if inside is None or inside.all() else inside,
            is_untold=inside is not None and bool(inside.all()),
            features=features,
            descriptor=descriptor,
        )
        for score, anomaly_map, votes, saliency, box, inside, features, descriptor, placement in (
            columns
        )
    ]


class Stitching:
    """Puts together the tiles of one picture after the other, which come in order.

    Args:
        area: outside it nothing counts; None = everything counts.
        fraction: of the highest places of a tile that are its score; None where the method's score
            is not that of its map.
    """

    def __init__(self, area: Area | None, fraction: float | None) -> None:
        self._area, self._fraction = area, fraction
        self._begun: _Begun | None = None
        self._dropped: TiledPicture | None = None

    @classmethod
    def of(cls, engine: Engine, area: Area | None) -> Stitching:
        """That of what an engine scores."""
        return cls(area, engine.top_fraction if engine.scores_by_map else None)

    def add(self, tile: Tile, found: Found) -> Found | None:
        """What was found of the picture, with its last tile; None before it.

        Tiles of a picture of which the first did not come are passed over.
        """
        if tile.is_first and tile.picture is not self._dropped:
            self._begun = _Begun(tile.picture)
        begun = self._begun
        if begun is None or begun.picture is not tile.picture:
            return None
        begun.add(tile, found)
        if not tile.is_last:
            return None
        self._begun = None
        return begun.whole(self._area, self._fraction)

    @property
    def under_way(self) -> tuple[str, int, int] | None:
        """The picture of which not all tiles have come, how many have, and how many there are."""
        if self._begun is None:
            return None
        picture = self._begun.picture
        return picture.name, self._begun.count, len(picture.tiles)

    def drop(self, tile: Tile) -> bool:
        """Give up a picture, one tile of which has failed; False where it was given up before."""
        is_new = self._dropped is not tile.picture
        self._dropped = tile.picture
        if self._begun is not None and self._begun.picture is tile.picture:
            self._begun = None
        return is_new


class _Begun:
    """A picture of which tiles have come."""

    def __init__(self, picture: TiledPicture) -> None:
        self.picture = picture
        self._best: Found | None = None
        self.count = 0
        self._mosaics: dict[str, _Mosaic] = {}
        self._features: list[NDArray[np.float32]] = []
        self._descriptors: list[NDArray[np.float32]] = []

    def add(self, tile: Tile, found: Found) -> None:
        self.count += 1
        best, votes = self._best, found.votes
        if best is not None and best.votes is not None and votes is not None:
            votes = max(votes, best.votes)
        if best is None or found.score > best.score:
            box = None if found.box is None else _of_picture(found.box, tile.window)
            best = replace(found, box=box)
        self._best = replace(best, votes=votes)
        if found.features is not None:
            self._features.append(found.features)
        if found.descriptor is not None:
            self._descriptors.append(found.descriptor)
        for name in ("anomaly_map", "saliency"):
            values = getattr(found, name)
            if values is not None:
                if name not in self._mosaics:
                    self._mosaics[name] = _Mosaic(self.picture, values.shape)
                self._mosaics[name].add(tile.window, values)

    def whole(self, area: Area | None, fraction: float | None) -> Found:
        """What was found of all of it."""
        assert self._best is not None
        mosaic, saliency = self._mosaics["anomaly_map"], self._mosaics.get("saliency")
        score = self._best.score
        if fraction is not None:
            score = max(mosaic.scores(area, fraction))
        return replace(
            self._best,
            score=score,
            anomaly_map=mosaic.whole(area),
            saliency=None if saliency is None else saliency.whole(None),
            features=np.mean(self._features, axis=0) if self._features else None,
            descriptor=np.mean(self._descriptors, axis=0) if self._descriptors else None,
        )


def _of_picture(
    box: tuple[float, float, float, float], window: Window
) -> tuple[float, float, float, float]:
    """A box of a tile, as fractions of its picture."""
    height, width = window.size
    x, y, across, down = box
    side = window.rows.stop - window.rows.start
    return (
        (window.columns.start + x * side) / width,
        (window.rows.start + y * side) / height,
        across * side / width,
        down * side / height,
    )


class _Mosaic:
    """Maps of tiles as one map of the picture, with places of the same size."""

    def __init__(self, picture: TiledPicture, shape: tuple[int, int]) -> None:
        down, across = (
            _Axis(picture.tiling, length, places)
            for length, places in zip(picture.size, shape, strict=True)
        )
        self._down, self._across = down, across
        self._sum = np.zeros((down.places, across.places), dtype=np.float32)
        self._windows: list[tuple[slice, slice]] = []

    def add(self, window: Window, values: Map) -> None:
        rows, down = self._down.of(window.rows.start)
        columns, across = self._across.of(window.columns.start)
        self._sum[rows, columns] += down @ values @ across.T
        self._windows.append((rows, columns))

    def scores(self, area: Area | None, fraction: float) -> Iterator[float]:
        """The mean of the highest fraction of the places of each tile; of those in the area, but
        never above that of all, so that an area adds no alarm."""
        inside = None if area is None else area.places(*self._sum.shape)
        for window in self._windows:
            values = self._sum[window]
            score = top_mean(values.ravel(), fraction)
            if inside is not None:
                within = values[inside[window]]
                if len(within) == 0:  # a corner of the area that its places do not reach
                    continue
                score = min(score, top_mean(within, fraction))
            yield score

    def whole(self, area: Area | None) -> Map:
        """The map, with the lowest value of the area outside it."""
        if area is not None:
            inside = area.places(*self._sum.shape)
            if not inside.all():
                self._sum[~inside] = self._sum[inside].min()
        return self._sum


class _Axis:
    """How the maps of tiles lie along one side of the map of a picture.

    Attributes: places: of the map of the picture.
    """

    def __init__(self, tiling: Tiling, length: int, places: int) -> None:
        self._tiling, self._length, self._own = tiling, length, places
        self.places = max(places, round(length * places / tiling.side))
        self._at = (np.arange(self.places) + 0.5) * (length / self.places)  # centres, in pixels
        self._starts = tiling.starts(length)
        self._known: dict[int, tuple[slice, Map]] = {}

    @cached_property
    def _total(self) -> NDArray[np.float64]:
        return sum((self._weights(number) for number in range(len(self._starts))), np.zeros(1))

    def _weights(self, number: int) -> NDArray[np.float64]:
        """How much a tile counts at each place of the picture, before they add up to 1: nothing in
        the outer quarter of what it has in common with a neighbour, all in the inner one, evenly
        more between. The picture's own border is none."""
        start, side = self._starts[number], self._tiling.side
        inside = (self._at >= start) & (self._at <= start + side)
        weights = np.ones(self.places)
        if number > 0:
            lap = self._starts[number - 1] + side - start
            weights = np.minimum(weights, _ramp((self._at - start) / max(lap, 1)))
        if number + 1 < len(self._starts):
            lap = start + side - self._starts[number + 1]
            weights = np.minimum(weights, _ramp((start + side - self._at) / max(lap, 1)))
        return np.where(inside, np.maximum(weights, _LEAST), 0.0)

    def of(self, start: int) -> tuple[slice, Map]:
        """Where the tile that begins there lies, and what its values are multiplied by: n h."""
        if start not in self._known:
            weights = self._weights(self._starts.index(start))
            (at,) = np.nonzero(weights)
            places = slice(int(at[0]), int(at[-1]) + 1)
            within = (self._at[places] - start) * (self._own / self._tiling.side) - 0.5
            within = np.clip(within, 0, self._own - 1)
            before = np.floor(within + 1e-9).astype(np.intp)
            after, share = np.minimum(before + 1, self._own - 1), within - before
            rows = np.arange(len(within))
            matrix = np.zeros((len(within), self._own))
            np.add.at(matrix, (rows, before), 1 - share)
            np.add.at(matrix, (rows, after), share)
            matrix *= (weights[places] / self._total[places])[:, None]
            self._known[start] = places, matrix.astype(np.float32)
        return self._known[start]


def _ramp(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 up to a quarter, 1 from three quarters on."""
    return np.clip(2 * share - 0.5, 0.0, 1.0)
