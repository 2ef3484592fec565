"""The part of a picture that is looked at: what lies outside is not learned, scored or shown.

It is kept on a square grid laid over the whole picture, whatever the picture's size and shape: a
border lies where it was drawn to a thousandth of the sides.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from blemish.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

SIDE = 1024  # of the grid
MOST_RUNS = 2**17


@dataclass(frozen=True, kw_only=True)
class Area:
    """Part of a picture.

    Attributes:
        runs: the grid of 1,024 × 1,024 places as run lengths, row by row: how many places lie
            outside, then how many inside, and so on.
    Raises: ConfigError for runs that are no such grid, or have nothing inside.

    Example:
        >>> left_half = Area(runs=(0, *[SIDE // 2] * (2 * SIDE)))
        >>> left_half.mask(1, 4).tolist(), left_half.share
        ([[True, True, False, False]], 0.5)
    """

    runs: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.runs) > MOST_RUNS:
            raise ConfigError(
                f"runs: an area of {len(self.runs):,} runs is too ragged; at most {MOST_RUNS:,} "
                "are possible"
            )
        # Only the first may be empty, where the upper left corner is inside.
        if any(run < 0 for run in self.runs) or any(run == 0 for run in self.runs[1:]):
            raise ConfigError("runs: positive lengths are needed, of which only the first may be 0")
        if sum(self.runs) != SIDE * SIDE:
            raise ConfigError(f"runs: {SIDE * SIDE:,} places are needed, got {sum(self.runs):,}")
        if len(self.runs) < 2:
            raise ConfigError("runs: nothing is inside")

    @classmethod
    def of(cls, grid: Mask) -> Area:
        """That of the places, bool 1,024 × 1,024, that are True. Raises: as the class."""
        import numpy as np

        flat = np.concatenate([[False], grid.ravel()])
        at = np.flatnonzero(flat[1:] != flat[:-1])
        lengths = np.diff(np.concatenate([[0], at, [grid.size]]))
        return cls(runs=tuple(int(length) for length in lengths))

    @property
    def share(self) -> float:
        """Of the picture, in (0, 1]."""
        return sum(self.runs[1::2]) / SIDE**2

    @cached_property
    def _grid(self) -> Mask:
        import numpy as np

        return np.repeat(np.arange(len(self.runs)) % 2 == 1, self.runs).reshape(SIDE, SIDE)

    @cached_property
    def _places(self) -> dict[tuple[int, int], Mask]:
        return {}

    def mask(
        self,
        height: int,
        width: int,
        rows: slice = slice(None),
        columns: slice = slice(None),
    ) -> Mask:
        """bool H W: the pixels of a picture whose centres lie inside; may be none of a tiny one.

        Args: rows, columns: the window of the picture that is asked for, which alone takes room.

        Example:
            >>> left_half = Area(runs=(0, *[SIDE // 2] * (2 * SIDE)))
            >>> left_half.mask(1_000_000, 1_000_000, slice(2), slice(499_999, 500_001)).tolist()
            [[True, False], [True, False]]
        """
        down, across = (
            (2 * _numbers(side, window) + 1) * SIDE // (2 * side)
            for side, window in ((height, rows), (width, columns))
        )
        mask: Mask = self._grid[down[:, None], across]
        return mask

    def places(self, height: int, width: int) -> Mask:
        """bool h w: the places of a map in which any of it lies; one at least."""
        if (height, width) not in self._places:  # asked for with every batch
            places = _any_along(_any_along(self._grid, height).T, width).T
            self._places[height, width] = places
        return self._places[height, width]

    def within(self, other: Area | None) -> Area:
        """What lies in both. Raises: ConfigError where that is nothing."""
        if other is None:
            return self
        both = self._grid & other._grid
        if not both.any():
            raise ConfigError("nothing of the area lies in the one that the artifact looks at")
        return Area.of(both)

    @property
    def digest(self) -> str:
        """32 hex characters that tell areas apart."""
        return hashlib.blake2b(repr(self.runs).encode(), digest_size=16).hexdigest()


def _numbers(side: int, window: slice) -> NDArray[np.int64]:
    """Those of the pixels of a side that lie in a window."""
    import numpy as np

    return np.arange(*window.indices(side), dtype=np.int64)


def _any_along(grid: Mask, count: int) -> Mask:
    """Whether there is any True in each of `count` equal parts of the rows."""
    import numpy as np

    sums = np.zeros((len(grid) + 1, grid.shape[1]), dtype=np.int32)
    np.cumsum(grid, axis=0, out=sums[1:])
    parts = np.arange(count + 1)
    first, last = parts[:-1] * SIDE // count, -(-parts[1:] * SIDE // count)
    reached: Mask = sums[last] > sums[first]
    return reached
