"""The part told from its background by the features that the method sees anyway.

As AnomalyDINO (Damm et al. 2025, section 3.1) masks the patches of few-shot detectors: the first
principal component of the patch features, a cut, the side of it that reaches the picture's border
is the background, and what is left is dilated and closed. Its authors choose by hand which data
sets are masked: objects, no textures. Deviates: the component and the cut are learned once, from
good pictures (features of unit length; the spread within each picture, which no lighting adds to;
the cut by Otsu 1979), and whether they are used is decided by what these pictures show. Each part
of what is taken is filled up to its convex hull: a defect must not be dropped because it does not
look like the part, nor a place where a piece of the part is missing.

`abstains` says why whole pictures are looked at instead. The limits below were chosen on good
training pictures of five sets alone (docs/log.md), never on defects or labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from blemish import config as configs
from blemish.backbones import Features
from blemish.backbones.cells import resampled
from blemish.config import Fraction, Range
from blemish.errors import ConfigError
from blemish.methods.stored import UNIT

if TYPE_CHECKING:
    from blemish.methods.base import Method
    from blemish.methods.capabilities import Batches
    from blemish.types import Progress

PICTURES = 32  # at most, that it is learned from
SEPARATION = 0.75  # of values that are spread evenly; of two values it is 1, of a Gaussian 0.64
CLEARNESS = 0.7  # separation times the share of the border that is background
AGREEMENT = 0.8
LEAST_SHARE, MOST_SHARE = 0.1, 0.9
_LEAST_GRID = 6  # places of a side: on fewer, a dilated place is a third of the picture
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

    @classmethod
    def of(cls, method: Method, batches: Batches, count: int, progress: Progress) -> Self:
        """What good pictures, as they are scored, tell; it may abstain.

        Args: batches: each of two calls starts a pass over them. count: how many they are.
        """
        with torch.inference_mode():
            scatter, seen = _scatter(method, batches, count, progress)
            if seen < 2:
                return cls(abstains="one picture alone does not tell what all have in common")
            directions = _directions(scatter)
            values = _values(method, batches, directions)
        if min(values.grid) < _LEAST_GRID:
            height, width = values.grid
            reason = f"the encoder sees {height}×{width} places, too few to tell a part by"
            return cls(abstains=f"{reason}; a larger --image-size has more")
        return cls._judged(directions[0], values)

    @classmethod
    def _judged(cls, direction: NDArray[np.float32], values: _Values) -> Self:
        """From the values of the pictures along three directions: of all, and of each half."""
        sides = [values.divided(which) for which in range(3)]
        cut, separation, sign = sides[0][:3]
        taken = [_filled(raw) & values.inside for raw in sides[0][3]]
        shares = [float(one.sum() / values.inside.sum()) for one in taken]
        edge = _edge(values.inside)
        outside = float(np.mean([1 - raw[edge].mean() for raw in sides[0][3]]))
        pairs = zip(sides[1][3], sides[2][3], strict=True)
        agreement = float(np.mean([(a & b).sum() / max(1, (a | b).sum()) for a, b in pairs]))
        measured = {
            # Of shares that are all alike the mean may be off by its last bit.
            "share": min(max(float(np.mean(shares)), min(shares)), max(shares)),
            "separation": min(separation, 1.0),
            "border": outside,
            "agreement": agreement,
        }
        return cls(
            abstains=_reason(**measured),
            direction=tuple(float(f"{sign * number:.8g}") for number in direction.tolist()),
            cut=float(f"{sign * cut:.8g}"),
            least=min(shares),
            most=max(shares),
            **measured,
        )

    @property
    def learned(self) -> bool:
        """Whether there is anything to tell a part by, even where it abstains."""
        return bool(self.direction)

    @cached_property
    def _direction(self) -> Tensor:
        return torch.tensor(self.direction, dtype=torch.float32)

    def told(self, method: Method, features: Features) -> Mask:
        """bool B h w on the backbone's grid: the part, as it is told in each picture; where the
        method looks at an area only, within that.

        Args: features: what `method.see` gave.
        """
        tokens, grid = _layer(method, features)
        values = (tokens @ self._direction.to(tokens.device)).reshape(len(tokens), *grid)
        raw = (values > self.cut).cpu().numpy()
        return np.stack([_filled(one) for one in raw]) & _area(method, grid)

    def plausible(self, told: Mask, method: Method) -> Mask:
        """bool B: whether what was told covers as much as on training pictures: no less than half
        of the least, and no less background than half of the least there.
        """
        size = _area(method, (told.shape[1], told.shape[2])).sum()
        shares = told.sum((1, 2)) / size
        plausible: Mask = (shares >= self.least / 2) & (1 - shares >= (1 - self.most) / 2)
        return plausible & told.any((1, 2))

    def inside(self, method: Method, features: Features, images: Tensor) -> Tensor:
        """bool B h w at the size of the maps: what is looked at of B 3 H W. All of a picture in
        which what was told is not plausible.

        Args: features: what `method.see` gave of the pictures.
        """
        from blemish.methods.base import map_size

        told = self.told(method, features)
        told[~self.plausible(told, method)] = True
        grid = (told.shape[1], told.shape[2])
        values = torch.from_numpy(told)[:, None].float().to(images.device)
        offset = method.backbone.offset(grid, images)
        spread: Tensor = resampled(values, map_size(images), offset=offset)[:, 0] > 0.5
        return spread


def _reason(*, share: float, separation: float, border: float, agreement: float) -> str:
    """Why what was measured is not to be trusted; "" where it is."""
    if separation < SEPARATION:
        return (
            "the encoder sees no two kinds of places, a part and a background, in the training "
            f"pictures (separation {separation:.2f}, {SEPARATION:g} is needed)"
        )
    if separation * border < CLEARNESS:
        return (
            "no background runs along the border of the training pictures "
            f"({100 * border:.0f} % of it; {100 * CLEARNESS / separation:.0f} % are needed)"
        )
    if agreement < AGREEMENT:
        return (
            "two halves of the training pictures tell different parts (agreement "
            f"{agreement:.2f}, {AGREEMENT:g} is needed)"
        )
    if share > MOST_SHARE:
        return f"the part fills {100 * share:.0f} % of the training pictures, which leaves little"
    if share < LEAST_SHARE:
        return (
            f"only {100 * share:.1f} % of the training pictures would be looked at "
            f"({100 * LEAST_SHARE:g} % are needed)"
        )
    return ""


@dataclass(frozen=True)
class _Values:
    """Of some pictures the values along three directions.

    Attributes: along: 3 B h w. grid: (h, w). inside: bool h w, the places that are looked at.
    """

    along: NDArray[np.float32]
    grid: tuple[int, int]
    inside: Mask

    def divided(self, which: int) -> tuple[float, float, int, Mask]:
        """Of one direction the cut, the separation, the sign that turns it towards the part, and
        the places of the part, bool B h w. The halves get their cuts from their own pictures."""
        values = self.along[which]
        own = values if which == 0 else values[which - 1 :: 2]
        cut, separation = otsu(own[:, self.inside])
        above, edge = values > cut, _edge(self.inside)
        # The side that is rarer along the border than elsewhere is the part.
        sign = -1 if above[:, edge].mean() > above[:, self.inside].mean() else 1
        part = (above if sign == 1 else values < cut) & self.inside
        return cut, separation, sign, part


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


def _layer(method: Method, features: Features) -> tuple[Tensor, tuple[int, int]]:
    """Features of unit length of the config's last layer, float32 B N D, and their grid."""
    last = len(method.config.layers) - 1
    return F.normalize(features.tokens[last].float(), dim=-1), features.grids[last]


def _area(method: Method, grid: tuple[int, int]) -> Mask:
    """bool h w: the places of a grid that the method looks at."""
    if method.area is None:
        return np.ones(grid, dtype=np.bool_)
    places: Mask = method.area.places(*grid)
    return places


def _edge(inside: Mask) -> Mask:
    """bool h w: the places along the border of what is looked at."""
    padded = np.pad(inside, 1).astype(np.uint8)
    inner: Mask = cv2.erode(padded, _PLACES)[1:-1, 1:-1] > 0
    return inside & ~inner


def _filled(raw: Mask) -> Mask:
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


def _seen(method: Method, batches: Batches) -> Iterator[tuple[Tensor, tuple[int, int], Tensor]]:
    """Batch by batch: features B N D, their grid, and bool N, the places looked at."""
    for batch in batches():
        tokens, grid = _layer(method, method.see(batch.images))
        inside = torch.from_numpy(_area(method, grid).ravel()).to(tokens.device)
        yield tokens, grid, inside


def _scatter(
    method: Method, batches: Batches, count: int, progress: Progress
) -> tuple[Tensor, int]:
    """Scatter about each picture's own mean, float64 2 D D: of the first, third, … picture and of
    the others; and how many pictures there were."""
    seen, scatter = 0, torch.zeros(2, 0, 0, dtype=torch.float64)
    for tokens, _, inside in _seen(method, batches):
        if seen == 0:
            scatter = scatter.new_zeros(2, tokens.shape[2], tokens.shape[2])
        for one in tokens[:, inside]:
            centred = one - one.mean(0)
            scatter[seen % 2] += (centred.T @ centred).cpu()  # not every device has float64
            seen += 1
        progress("telling part from background", seen, max(seen, count))
    return scatter, seen


def _directions(scatter: Tensor) -> NDArray[np.float32]:
    """The first principal components, 3 D: of all pictures, and of each half of them."""
    every = torch.stack([scatter.sum(0), *scatter])
    found: NDArray[np.float32] = torch.linalg.eigh(every).eigenvectors[:, :, -1].float().numpy()
    return found


def _values(method: Method, batches: Batches, directions: NDArray[np.float32]) -> _Values:
    along, grid = [], (0, 0)
    for tokens, grid, _ in _seen(method, batches):  # noqa: B007 — all batches have one grid
        turned = tokens @ torch.from_numpy(directions).to(tokens.device).T
        along.append(turned.permute(2, 0, 1).cpu().numpy())
    values = np.concatenate(along, axis=1)
    return _Values(values.reshape(3, -1, *grid), grid, _area(method, grid))
