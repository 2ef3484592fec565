"""How a picture of any shape comes into the input of a network, and how maps of that input come
back to the picture.

    stretch  the picture fills the input, whatever its shape: it is distorted
    pad      it lies whole in the middle, its aspect ratio kept; the rest, of the mean colour, is
             neither learned nor scored nor shown
    crop     its middle fills the input, its aspect ratio kept; what hangs over is not looked at
    fit      the input has the shape of the training pictures (`fitted_size`), which fill it: its
             sides are rounded to what the backbone divides, and they are stretched by as much, at
             most by 1/32; those of another shape are padded into it

Everything that leaves a detector is in the coordinates of the whole picture: anomaly maps, saliency
and boxes are put back here, and an area (`blemish.area.Area`) is one of the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, Self, get_args

import cv2
import numpy as np

from blemish.area import SIDE, Area
from blemish.errors import ImageError, unknown_name

Resize = Literal["stretch", "fit", "pad", "crop"]
RESIZES: tuple[Resize, ...] = get_args(Resize)
CUT = "of another shape than the input (--resize crop): its borders are cut off, not looked at"
NEAR = 1 / 32
_LONGEST = 8192  # side of an input, in pixels
_ROUNDING = 4.0  # how much a wrong shape counts beside a wrong number of pixels, for `fit`
Size = tuple[int, int]


def check_resize(name: str) -> None:
    """Raises: ConfigError for an unknown one that suggests the nearest name."""
    if name not in RESIZES:
        raise unknown_name("resize", name, RESIZES)


@dataclass(frozen=True)
class Span:
    """Along one side: pixels [`start`, `start` + `length`) of the picture's `picture` ones become
    [`into`, `into` + `filled`) of the input's `input` ones, evenly. All are whole numbers.
    """

    picture: int
    input: int
    start: int
    length: int
    into: int
    filled: int

    def to_picture(self, place: Any) -> Any:
        """Of a place in the input, in pixels from its border, that in the picture."""
        return self.start + (place - self.into) * self.length / self.filled

    def to_input(self, place: Any) -> Any:
        """The other way round."""
        return self.into + (place - self.start) * self.filled / self.length

    def places(self, count: int) -> slice:
        """Of so many places of a map over the input, those that show some of the picture."""
        last = -(-(self.into + self.filled) * count // self.input)
        return slice(self.into * count // self.input, last)

    def read(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How a map with `count` places over the input is read for one over the whole picture.

        Returns: of each place of the latter the lower one of the two that it lies between, among
        `places`; how far it is from there to the next, in [0, 1); and whether it was looked at.
        """
        part = self.places(count)
        wanted = max(1, round(count * self.filled / self.input * self.picture / self.length))
        wanted = min(wanted, max(count, self.picture))
        middles = (np.arange(wanted) + 0.5) * self.picture / wanted
        seen = (middles >= self.start) & (middles < self.start + self.length)
        at = self.to_input(middles) * count / self.input - 0.5
        at = np.clip(at, part.start, part.stop - 1) - part.start
        lower = np.floor(at).astype(np.intp)
        return lower, (at - lower).astype(np.float32), seen


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the input, and which part of it the input shows.

    Example:
        >>> placement = Placement.of((100, 200), (64, 64), "pad")
        >>> placement.down.into, placement.down.filled, placement.across.filled
        (16, 32, 64)
        >>> placement.to_picture(np.zeros((16, 16), np.float32)).shape
        (8, 16)
    """

    down: Span
    across: Span

    @classmethod
    def of(cls, picture: Size, size: Size, resize: Resize) -> Self:
        """That of a picture (H, W) in an input (H, W)."""
        factors = [side / own for side, own in zip(size, picture, strict=True)]
        near = resize == "fit" and min(factors) > (1 - NEAR) * max(factors)
        if resize == "stretch" or near:
            pairs = zip(picture, size, strict=True)
            spans = [Span(own, side, 0, own, 0, side) for own, side in pairs]
        elif resize == "crop":
            factor = max(factors)
            spans = []
            for own, side in zip(picture, size, strict=True):
                length = min(own, max(1, round(side / factor)))
                spans.append(Span(own, side, (own - length) // 2, length, 0, side))
        else:
            factor = min(factors)
            spans = []
            for own, side in zip(picture, size, strict=True):
                filled = min(side, max(1, round(own * factor)))
                spans.append(Span(own, side, 0, own, (side - filled) // 2, filled))
        return cls(*spans)

    @property
    def is_whole(self) -> bool:
        """Whether all of the picture fills all of the input."""
        return not self.is_cut and all(one.filled == one.input for one in self._spans)

    @property
    def is_cut(self) -> bool:
        """Whether some of the picture is not looked at."""
        return any(one.length < one.picture for one in self._spans)

    @property
    def _spans(self) -> tuple[Span, Span]:
        return self.down, self.across

    @property
    def shown(self) -> tuple[slice, slice]:
        """The part of the picture's rows and columns that the input shows."""
        down, across = (slice(one.start, one.start + one.length) for one in self._spans)
        return down, across

    @property
    def filled(self) -> tuple[slice, slice]:
        """The part of the input's rows and columns that shows it."""
        down, across = (slice(one.into, one.into + one.filled) for one in self._spans)
        return down, across

    def part(self, values: np.ndarray) -> np.ndarray:
        """Of a map h w over the input, the places that show some of the picture."""
        down, across = (one.places(n) for one, n in zip(self._spans, values.shape, strict=True))
        return values[down, across]

    def to_picture(self, values: np.ndarray) -> np.ndarray:
        """A map h w over the input as one that lies evenly over the whole picture, bilinear.

        Its places are as large as those of `values`. What was not looked at has its lowest value.
        """
        if self.is_whole:
            return values
        part = self.part(values)
        rows, columns = (
            one.read(count) for one, count in zip(self._spans, values.shape, strict=True)
        )
        made = _between(_between(part, *rows[:2]).T, *columns[:2]).T
        if self.is_cut:
            made = np.where(rows[2][:, None] & columns[2], made, part.min())
        return np.ascontiguousarray(made, dtype=values.dtype)

    def box_to_picture(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """x, y, width and height as fractions of the input's sides, as those of the picture's; as
        far as it lies in the picture."""
        if self.is_whole:
            left, top, wide, tall = box
            return left, top, wide, tall
        ends = []
        for one, start, length in zip((self.across, self.down), box[:2], box[2:], strict=True):
            places = (one.to_picture(one.input * at) for at in (start, start + length))
            ends.append([min(max(place / one.picture, 0.0), 1.0) for place in places])
        (left, right), (top, bottom) = ends
        return left, top, right - left, bottom - top

    def mask_to_input(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the picture, bool H W, as one of the input; padding is False."""
        size = self.across.filled, self.down.filled
        part = np.ascontiguousarray(mask[self.shown]).view(np.uint8)
        made = np.zeros((self.down.input, self.across.input), np.bool_)
        made[self.filled] = cv2.resize(part, size, interpolation=cv2.INTER_NEAREST_EXACT)
        return made

    def inside(self, area: Area) -> np.ndarray:
        """bool H W: the pixels of the input in whose middle the area lies; where it is so small
        that it lies in no middle, those that it lies in; none where the input does not show it."""
        grid = area.mask(SIDE, SIDE)
        found = np.zeros((self.down.input, self.across.input), np.bool_)
        cells, pixels = [], []
        for one in self._spans:
            at = one.to_picture(np.arange(one.input) + 0.5) * SIDE / one.picture
            pixels.append(np.flatnonzero((at >= 0) & (at < SIDE)))
            cells.append(np.floor(at[pixels[-1]]).astype(np.intp))
        found[np.ix_(*pixels)] = grid[np.ix_(*cells)]
        if not found.any():
            at = [
                np.floor(one.to_input((each + 0.5) * one.picture / SIDE)).astype(np.intp)
                for one, each in zip(self._spans, np.nonzero(grid), strict=True)
            ]
            held = (at[0] >= 0) & (at[0] < found.shape[0])
            held &= (at[1] >= 0) & (at[1] < found.shape[1])
            found[at[0][held], at[1][held]] = True
        return found


def check_shown(source: str, placement: Placement, area: Area) -> np.ndarray:
    """As `Placement.inside`. Raises: ImageError where nothing of the area is in what is shown."""
    inside = placement.inside(area)
    if not inside.any():
        raise ImageError(
            source,
            "nothing of the area (--roi, --ignore) lies in the part of the picture that is looked "
            "at; fit with --resize pad, which looks at all of it",
        )
    return inside


def put_back(maps: np.ndarray, placements: Sequence[Placement]) -> list[np.ndarray]:
    """Maps B h w over the input, each over the whole of its picture."""
    if all(one.is_whole for one in placements):
        return list(maps)
    return [one.to_picture(each) for one, each in zip(placements, maps, strict=True)]


def fitted_size(sizes: Sequence[Size], size: Size, step: int) -> Size:
    """(H, W) of an input in the shape of the pictures: their median aspect ratio, about as many
    pixels as `size` has, and sides that `step` divides and a backbone may have.

    Args: sizes: (H, W) of the pictures, one at least.

    Example:
        >>> fitted_size([(300, 600), (400, 800), (500, 500)], (448, 448), 14)
        (322, 644)
    """
    wanted = median(width / height for height, width in sizes)
    cells, most = size[0] * size[1] / step**2, _LONGEST // step
    best, least = (1, 1), math.inf
    for rows in range(1, most + 1):
        columns = min(max(1, round(rows * wanted)), most)
        away = _ROUNDING * abs(math.log(columns / rows / wanted))
        away += abs(math.log(rows * columns / cells))
        if away < least:
            best, least = (rows, columns), away
    return best[0] * step, best[1] * step


def _between(values: np.ndarray, lower: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Rows of h w at the places `lower` + `share`."""
    upper = np.minimum(lower + 1, len(values) - 1)
    made: np.ndarray = values[lower]
    if share.any():
        made = made + (values[upper] - made) * share[:, None]  # exact between equal values
    return made
