"""Sides of maps brought to other lengths by a matrix each: where no engine resamples as torch does,
or there is none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def averaging(old: int, new: int) -> Floats:
    """The matrix, new × old, of the means around each place of a coarser side."""
    made = np.zeros((new, old), dtype=np.float32)
    for place in range(new):
        first, end = place * old // new, -(-(place + 1) * old // new)
        made[place, first:end] = 1 / (end - first)
    return made


def resampling(
    old: int, new: int, shift: float = 0.0, *, shrinks: bool = False, antialias: bool = False
) -> Floats:
    """The matrix, new × old, by which `resampled` brings a side of `old` values to `new` ones.

    Args:
        shift: how much further right or down is read, in cells of `old`.
        shrinks: whether either side of the maps has fewer values than before: these are moved
            before they are resampled, others with it.
        antialias: as of `resampled`.

    Example:
        >>> resampling(2, 4)
        array([[1.  , 0.  ],
               [0.75, 0.25],
               [0.25, 0.75],
               [0.  , 1.  ]], dtype=float32)
    """
    if shrinks and shift:
        moved = resampling(old, old, shift).astype(np.float64)
        again = resampling(old, new, shrinks=shrinks, antialias=antialias)
        return (again @ moved).astype(np.float32)
    step, middles = old / new, np.arange(old) + 0.5
    wanted = (np.arange(new) + 0.5) * step + shift
    reach = max(step, 1.0) if antialias else 1.0
    if reach == 1:
        wanted = np.clip(wanted, 0.5, old - 0.5)
    shares = np.maximum(0, 1 - np.abs(middles - wanted[:, None]) / reach)
    return np.asarray(shares / shares.sum(1, keepdims=True), dtype=np.float32)
