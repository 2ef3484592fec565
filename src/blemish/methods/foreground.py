"""The part told from its background by the features that the method sees anyway: what is kept of
it, and what it takes of a picture. `telling` learns it, and says whence it comes.

Each part of what is taken is filled up to its convex hull: a defect must not be dropped because it
does not look like the part, nor a place where a piece of the part is missing.

`abstains` says why whole pictures are looked at instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray

from blemish import config as configs
from blemish.area import Area
from blemish.backbones.resampling import resampling
from blemish.config import Fraction, Range
from blemish.errors import ConfigError

UNIT = 1 + 1e-3  # no coordinate of a feature of length 1 is larger, but for rounding
_HALF = 0.5 + 1e-6  # a place that is half in the part does not count, however it is rounded
_PLACES = np.ones((3, 3), dtype=np.uint8)
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=np.uint8)

Mask = NDArray[np.bool_]
Coordinate = Annotated[float, Range(-UNIT, UNIT)]  # of a feature of length 1


@dataclass(frozen=True, kw_only=True)
class Foreground:
    """How the part is told from its background, as the artifact keeps it.

    Attributes:
        abstains: why it is not told, and whole pictures are looked at; "" where it is.
        direction: D numbers of length 1, the principal component; empty where there is none.
        cut: a feature of unit length whose product with `direction` is above it is of the part.
        share: of the picture that was taken of the training pictures, their mean; `least` and
            `most`: of any of them.
        separation: between-class share of the variance along `direction`, in [0, 1].
        border: share of the places along the border that are background, in [0, 1].
        agreement: mean intersection over union of what two halves of the pictures, each by
            itself, tell of all, in [0, 1].
    """

    abstains: str = ""
    direction: tuple[Coordinate, ...] = ()
    cut: Coordinate = 0.0
    share: Fraction = 1.0
    least: Fraction = 1.0
    most: Fraction = 1.0
    separation: Fraction = 0.0
    border: Fraction = 0.0
    agreement: Fraction = 0.0

    def __post_init__(self) -> None:
        configs.check(self)
        if not self.abstains and not self.direction:
            raise ConfigError("direction: is missing, and nothing says why it abstains")
        if self.direction and abs(float(np.linalg.norm(self.direction)) - 1) > 1e-3:
            raise ConfigError("direction: is not of length 1")
        if not self.least <= self.share <= self.most:
            raise ConfigError("least, share, most: do not rise")

    @property
    def learned(self) -> bool:
        """Whether there is anything to tell a part by, even where it abstains."""
        return bool(self.direction)

    def told(self, values: NDArray[np.float32], area: Area | None) -> Mask:
        """bool B h w on the backbone's grid: the part, as it is told in each picture, within what
        is looked at.

        Args: values: B h w, how much each place goes along `direction`.
        """
        raw = values > self.cut
        places = places_of(area, (values.shape[1], values.shape[2]))
        return np.stack([filled(one) for one in raw]) & places

    def plausible(self, told: Mask, area: Area | None) -> Mask:
        """bool B: whether what was told covers as much as on training pictures: no less than half
        of the least, and no less background than half of the least there.
        """
        size = places_of(area, (told.shape[1], told.shape[2])).sum()
        shares = told.sum((1, 2)) / size
        plausible: Mask = (shares >= self.least / 2) & (1 - shares >= (1 - self.most) / 2)
        return plausible & told.any((1, 2))

    def inside(
        self,
        values: NDArray[np.float32],
        area: Area | None,
        size: tuple[int, int],
        *,
        offset: float = 0.0,
    ) -> Mask:
        """bool B h w at the size of the maps: what is looked at. All of a picture in which what was
        told is not plausible.

        Args: values: as of `told`. offset: of their grid, as of `Backbone.offset`.
        """
        told = self.told(values, area)
        told[~self.plausible(told, area)] = True
        down, across = (
            resampling(cells, side, -offset)
            for cells, side in zip(told.shape[1:], size, strict=True)
        )
        return np.asarray(down @ told.astype(np.float32) @ across.T > _HALF)


def otsu(values: NDArray[np.float32]) -> tuple[float, float]:
    """The cut that divides values best into a low and a high class, and the share of their variance
    that lies between these (Otsu 1979).

    Example:
        >>> cut, separation = otsu(np.array([0, 0.1, 0.9, 1], dtype=np.float32))
        >>> round(cut, 3), round(separation, 3)
        (0.5, 0.988)
    """
    ordered = np.sort(values, axis=None).astype(np.float64)
    variance, count = ordered.var(), ordered.size
    if variance == 0:
        return float(ordered[0]), 0.0
    low = np.arange(1, count)
    sums = np.cumsum(ordered)
    apart = sums[:-1] / low - (sums[-1] - sums[:-1]) / (count - low)
    between = low * (count - low) * apart**2 / count**2
    best = int(between.argmax())
    return float((ordered[best] + ordered[best + 1]) / 2), float(between[best] / variance)


def edge_of(inside: Mask) -> Mask:
    """bool h w: the places along the border of what is looked at."""
    padded = np.pad(inside, 1).astype(np.uint8)
    inner: Mask = cv2.erode(padded, _PLACES)[1:-1, 1:-1] > 0
    return inside & ~inner


def filled(raw: Mask) -> Mask:
    """bool h w: each connected part filled up to its convex hull, then all dilated by one place
    and closed."""
    count, labels = cv2.connectedComponents(raw.astype(np.uint8), connectivity=8)
    filled = np.zeros(raw.shape, dtype=np.uint8)
    for label in range(1, count):
        rows, columns = np.nonzero(labels == label)
        points = np.stack([columns, rows], axis=1).astype(np.int32)
        cv2.fillConvexPoly(filled, cv2.convexHull(points), 1)
    dilated = cv2.dilate(filled, _CROSS)
    # Padded: OpenCV erodes nothing at the border, and would fill the corners.
    closed = cv2.morphologyEx(np.pad(dilated, 2), cv2.MORPH_CLOSE, _PLACES)[2:-2, 2:-2]
    return np.asarray(closed > 0)


def places_of(area: Area | None, grid: tuple[int, int]) -> Mask:
    """bool h w: the places of a grid that are looked at."""
    if area is None:
        return np.ones(grid, dtype=np.bool_)
    places: Mask = area.places(*grid)
    return places
