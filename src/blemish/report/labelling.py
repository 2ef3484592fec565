"""Where the labels of a chart's points stand: beside their points, apart from all else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle in pixels; one that is a line or a point has equal sides."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: Box) -> float:
        """The area that both cover; what is a line or a point counts as a pixel wide."""
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return 0.0 if across < 0 or down < 0 else max(across, 1.0) * max(down, 1.0)


def label_places(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    bars: Sequence[Box],
    *,
    height: float,
    gap: float,
    radius: float,
    plot: Box,
) -> list[Box]:
    """Where the label of each point is to stand, in the order of the points.

    One after the other takes the place that costs least: what it covers of other labels costs most,
    then of points, then of bars, then how far from its point it is. So labels stand apart as long
    as the plot has room, and lie on no point that can be avoided.

    Args:
        points: in pixels. widths, height: of the labels. bars: lines that should stay visible.
        gap: between a point and its label. radius: of the points. plot: what labels stay within.
    """
    dots = [Box(x - radius, y - radius, x + radius, y + radius) for x, y in points]
    taken: list[Box] = []
    rows = int((plot.bottom - plot.top) / (0.5 * height)) + 1
    for (x, y), width in zip(points, widths, strict=True):
        best, least = None, float("inf")
        for row in range(-rows, rows + 1):
            top = min(max(y + (0.5 * row - 0.5) * height, plot.top), plot.bottom - height)
            for left in (x + gap, x - gap - width):
                start = min(max(left, plot.left), plot.right - width)
                box = Box(start, top, start + width, top + height)
                cost = (
                    100.0 * sum(map(box.shared, taken))
                    + 20.0 * sum(map(box.shared, dots))
                    + 2.0 * sum(map(box.shared, bars))
                    + abs(top + height / 2 - y)
                    + 0.5 * (left < x)
                )
                if cost < least:
                    best, least = box, cost
        assert best is not None
        taken.append(best)
    return taken
