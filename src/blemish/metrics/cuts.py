"""Anomaly maps cut at one level, as is usual elsewhere: where the cut is best, and what it marks.

For comparison only. `BestCut` looks at labels: it is an oracle, not a way to set a threshold.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from blemish.errors import ConfigError, NonFiniteError

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]


def parts_above(heatmap: Map, level: float) -> list[Mask]:
    """The 8-connected parts of a map above a level, bool H W each. `heatmap`: float32 H W.

    Example:
        >>> [int(part.sum()) for part in parts_above(np.array([[3, 0, 2], [3, 0, 0]]), 1.0)]
        [2, 1]
    """
    above = (heatmap > level).view(np.uint8)
    count, labels = cv2.connectedComponents(above, connectivity=8, ltype=cv2.CV_32S)
    return [labels == part for part in range(1, count)]


class BestCut:
    """The level at which the pixels above it have the highest F1 against the masks, of the pixels
    of all maps together, in constant memory.

    Levels are the edges of `bins` equal bins of [low, high]; a score outside falls in the end bins.

    Args: low, high: finite, low < high, in the unit of the scores. bins: at least 1.
    Raises: ConfigError for another range or number.

    Example:
        >>> best = BestCut(0, 10, bins=10)
        >>> best.add(np.array([[1, 5, 6]]), np.array([[False, False, True]]))
        >>> f1, level = best.compute()
        >>> f1, 5 < level < 6
        (1.0, True)
    """

    def __init__(self, low: float, high: float, *, bins: int = 1 << 14) -> None:
        if bins < 1 or not (low < high and math.isfinite(high - low)):
            raise ConfigError(f"{bins} bins of {low} to {high}: a range and at least 1 are needed")
        self._edges = np.linspace(low, high, bins + 1)
        self._all = np.zeros(bins, dtype=np.int64)
        self._true = np.zeros(bins, dtype=np.int64)

    def add(self, heatmap: Map, mask: Mask | None) -> None:
        """Adds one picture. `heatmap`: H W. `mask`: bool H W, True on defects; None without any.

        Raises: NonFiniteError for a map with NaN or infinite scores.
        """
        if not np.isfinite(heatmap).all():
            raise NonFiniteError("an anomaly map holds NaN or infinite scores")
        self._all += self._counted(heatmap)
        if mask is not None:
            self._true += self._counted(heatmap[mask])

    def _counted(self, scores: NDArray[np.float32]) -> NDArray[np.int64]:
        low, high = self._edges[0], self._edges[-1]
        counts, _ = np.histogram(
            np.clip(scores, low, high), bins=len(self._all), range=(float(low), float(high))
        )
        return counts.astype(np.int64)

    def compute(self) -> tuple[float, float] | None:
        """(F1, level): what lies above the level is marked; of equally good ones the highest. None
        where there is no defect."""
        true, marked = np.cumsum(self._true[::-1]), np.cumsum(self._all[::-1])
        if not true[-1]:
            return None
        f1 = 2 * true / (marked + true[-1])
        best = int(np.argmax(f1))
        edge = float(self._edges[len(self._all) - 1 - best])
        return float(f1[best]), math.nextafter(edge, -math.inf)
