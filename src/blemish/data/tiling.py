"""How big pictures are cut into tiles: overlapping squares of their own pixels.

A picture of which a defect covers 12 pixels in 5,000 shows nothing of it once it is resized to what
a backbone takes. Its tiles do. They lie evenly from border to border, so that none is partly empty,
and neighbours overlap at least as far as is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from blemish.config import Range, check

OVERLAP = 0.25
AUTO = "auto"  # in place of a number: whether there are tiles, and how large, is to be chosen


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How pictures are cut.

    Attributes:
        side: of a tile, in pixels of the picture.
        overlap: the share of its side that a tile has at least in common with the next one.

    Example:
        >>> Tiling(side=448).starts(1000), Tiling(side=500, overlap=0.0).starts(1000)
        ((0, 276, 552), (0, 500))
    """

    side: Annotated[int, Range(16, 2**15)]
    overlap: Annotated[float, Range(0, 0.9)] = OVERLAP

    def __post_init__(self) -> None:
        check(self)

    def starts(self, length: int) -> tuple[int, ...]:
        """Where the tiles begin along a side of so many pixels (at least those of a tile)."""
        if length == self.side:
            return (0,)
        step = max(1, math.floor(self.side * (1 - self.overlap)))
        gaps = -(-(length - self.side) // step)
        return tuple(round(gap * (length - self.side) / gaps) for gap in range(gaps + 1))


@dataclass(frozen=True, slots=True)
class Window:
    """Part of a picture: its rows and columns, and the (H, W) of the whole."""

    rows: slice
    columns: slice
    size: tuple[int, int]
