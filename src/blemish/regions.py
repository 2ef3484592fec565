"""Defect regions: the connected parts of an anomaly map that lie above a level, as masks, boxes
and polygons of the original picture.

A map has fewer places than its picture has pixels. Whether there is a region is decided at the
places of the map, as `region_level` does too: so a level that no normal map reached there promises
that a normal picture shows no region. Only its outline is drawn at the size of the picture, where
the map is interpolated as for the heatmap.

A map is smooth, and what lies above the level around a strong defect is much wider than the defect.
So the outline of a region is where the map has fallen to a fraction `outline` of its height over
the normal background, though never below the level: with a fraction of a half that is its full
width at half maximum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from blemish.errors import ConfigError, NonFiniteError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from blemish.area import Area

    Map = NDArray[np.float32]
    Mask = NDArray[np.bool_]

OUTLINE = 0.5


@dataclass(frozen=True, kw_only=True)
class Region:
    """One connected part of a picture that stands out, in pixels of the original picture.

    Attributes:
        box: x, y, width, height of the smallest rectangle around it; x, y its upper left pixel.
        area: its pixels. share: the same as a fraction of the picture, in (0, 1].
        centroid: mean x, y of its pixels; (0, 0) is the middle of the upper left one.
        peak: the highest score of the map in it. mean: the mean score of its pixels.
        polygon: x, y of the corners of its outer border, pixels of the region themselves; fewer
            than three for a region one pixel thin.
        runs: its mask H W as run lengths: down the columns, first a run outside, then one inside,
            and so on (COCO's uncompressed encoding).
        size: (H, W) of the picture.
    """

    box: tuple[int, int, int, int]
    area: int
    share: float
    centroid: tuple[float, float]
    peak: float
    mean: float
    polygon: tuple[tuple[int, int], ...] = field(repr=False)
    runs: tuple[int, ...] = field(repr=False)
    size: tuple[int, int]

    @property
    def mask(self) -> Mask:
        """bool H W, True in the region."""
        import numpy as np

        inside = np.arange(len(self.runs)) % 2 == 1
        height, width = self.size
        return np.repeat(inside, self.runs).reshape(width, height).T

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the mask."""
        return {
            "box": list(self.box),
            "area": self.area,
            "share": self.share,
            "centroid": list(self.centroid),
            "peak": self.peak,
            "mean": self.mean,
            "polygon": [list(point) for point in self.polygon],
        }


def region_level(anomaly_map: Map, smallest: float = 0.0) -> float:
    """The level that a map must be cut at, or above, to show no region.

    Args:
        anomaly_map: float32 h w.
        smallest: the share of the picture that a region has at least, in [0, 1).
    Returns: the highest value v such that the places of at least v hold an (8-)connected part of
        that size: the maximum of the map where any size counts.

    Example:
        >>> import numpy as np
        >>> spots = np.array([[9, 0, 5], [0, 0, 5], [1, 0, 0]], dtype=np.float32)
        >>> region_level(spots), region_level(spots, 2 / 9)
        (9.0, 5.0)
    """
    import numpy as np

    needed = _places(anomaly_map, smallest)
    if needed == 1:
        return float(anomaly_map.max())
    levels = np.unique(anomaly_map)
    # Lower levels only join parts and add to them: the search may halve.
    low, high = 0, len(levels) - 1  # at the lowest level the whole map is one part
    while low < high:
        middle = (low + high + 1) // 2
        if _parts(anomaly_map >= levels[middle], needed).large:
            low = middle
        else:
            high = middle - 1
    return float(levels[low])


def find_regions(
    anomaly_map: Map,
    level: float,
    size: tuple[int, int],
    *,
    background: float | None = None,
    smallest: float = 0.0,
    outline: float = OUTLINE,
    area: Area | None = None,
    places: Mask | None = None,
) -> tuple[Region, ...]:
    """The regions of a map above a level, the highest peak first.

    Args:
        anomaly_map: float32 h w, in the unit of the score.
        level: a connected part of the map above it is a region, or several where its outline parts.
        size: (H, W) of the original picture.
        background: what a normal place scores, from where the height of a region is measured;
            None = the level.
        smallest: the share of the picture that such a part has at least, in [0, 1).
        outline: where the outline of a part lies between the background and its peak, in [0, 1).
        area: outside it no region lies; None = they lie anywhere.
        places: bool h w, those of the map where a region may be; None = anywhere.
    Raises: ConfigError for a share or fraction out of range; NonFiniteError for a level or a
        background that is NaN or infinite.
    """
    background = level if background is None else background
    if not (math.isfinite(level) and math.isfinite(background)):
        raise NonFiniteError(
            f"regions above {level} over a background of {background}; finite numbers are needed"
        )
    if not 0 <= outline < 1:
        raise ConfigError(f"outline: {outline} is not in [0, 1)")
    above = anomaly_map > level
    if area is not None:
        above &= area.places(*anomaly_map.shape)
    if places is not None:
        above &= places
    parts = _parts(above, _places(anomaly_map, smallest))
    found = [
        region
        for label in parts.large
        for region in _outlined(anomaly_map, parts, label, level, (background, outline), size, area)
    ]
    return tuple(sorted(found, key=lambda region: -region.peak))


def _places(anomaly_map: Map, smallest: float) -> int:
    """How many places of the map a region has at least."""
    if not 0 <= smallest < 1:
        raise ConfigError(f"smallest region: {smallest} is not a share in [0, 1) (0.001 for 0.1 %)")
    return max(1, math.ceil(round(smallest * anomaly_map.size, 6)))


@dataclass(frozen=True, slots=True)
class _Parts:
    """Connected parts of a map. Attributes: large: the labels of those of the size that was asked
    for. labels: of every place, h w; 0 = in none. facts: of cv2, a row for each label."""

    large: list[int]
    labels: NDArray[np.int32]
    facts: NDArray[np.int32]


def _parts(above: Mask, needed: int) -> _Parts:
    """The connected parts, of which those of at least `needed` places are large."""
    import cv2
    import numpy as np

    _, labels, facts, _ = cv2.connectedComponentsWithStats(
        above.view(np.uint8), connectivity=8, ltype=cv2.CV_32S
    )
    large = 1 + np.flatnonzero(facts[1:, cv2.CC_STAT_AREA] >= needed)
    return _Parts(large.tolist(), labels, facts)


def _outlined(
    anomaly_map: Map,
    parts: _Parts,
    label: int,
    level: float,
    outline: tuple[float, float],
    size: tuple[int, int],
    area: Area | None,
) -> Iterator[Region]:
    """The regions of the picture that one part of the map makes. `outline`: background and
    fraction. Only its rectangle is looked at: maps and pictures may be large, and parts many."""
    import cv2
    import numpy as np

    left, top, width, height = (int(number) for number in parts.facts[label, :4])
    part = parts.labels[top : top + height, left : left + width] == label
    peak = float(anomaly_map[top : top + height, left : left + width][part].max())
    y = _span(top, top + height - 1, len(anomaly_map), size[0])
    x = _span(left, left + width - 1, anomaly_map.shape[1], size[1])
    values = _interpolated(anomaly_map, y, x, size)
    # Of the neighbouring parts, which reach into its rectangle, nothing is taken.
    own = _interpolated(parts.labels, y, x, size, label) > 0
    if area is not None:
        own &= area.mask(*size, y, x)
        if not own.any():  # a picture smaller than its map has no pixel there
            return
    background, fraction = outline
    inside = (values > max(level, background + fraction * (peak - background))) & own
    if not inside.any():  # a picture smaller than its map has no pixel just at the peak
        inside[np.unravel_index(np.where(own, values, -np.inf).argmax(), values.shape)] = True
    count, labels, facts, centroids = cv2.connectedComponentsWithStats(
        inside.view(np.uint8), connectivity=8, ltype=cv2.CV_32S
    )
    for each in range(1, count):
        left, top, width, height, pixels = (int(number) for number in facts[each])
        box = (slice(top, top + height), slice(left, left + width))
        mask = labels[box] == each
        corner = (x.start + left, y.start + top)
        scores = values[box][mask]
        yield Region(
            box=(*corner, width, height),
            area=pixels,
            share=pixels / (size[0] * size[1]),
            centroid=(x.start + float(centroids[each, 0]), y.start + float(centroids[each, 1])),
            peak=float(scores.max()),
            mean=float(scores.mean(dtype=np.float64)),
            polygon=_polygon(mask, corner),
            runs=_runs(mask, corner, size),
            size=size,
        )


def _span(first: int, last: int, places: int, pixels: int) -> slice:
    """The pixels of a side that the places `first` to `last` of the map reach."""
    scale = pixels / places
    return slice(
        max(math.floor((first - 0.5) * scale), 0), min(math.ceil((last + 1.5) * scale), pixels)
    )


def _interpolated(
    values: Map | NDArray[np.int32],
    y: slice,
    x: slice,
    size: tuple[int, int],
    label: int | None = None,
) -> Map:
    """A part of the map as `Prediction.heatmap` has it (bilinear), without making all of it; with
    a `label` that of 1 where the values are the label, and 0 elsewhere."""
    import numpy as np

    def along(pixels: slice, places: int, total: int) -> tuple[slice, Any, Any, Any]:
        at = (np.arange(pixels.start, pixels.stop) + 0.5) * (places / total) - 0.5
        at = np.clip(at, 0, places - 1)
        before = np.floor(at).astype(np.intp)
        after = np.minimum(before + 1, places - 1)
        reached = slice(int(before[0]), int(after[-1]) + 1)
        return reached, before - before[0], after - before[0], (at - before).astype(np.float32)

    tall, above, below, down = along(y, values.shape[0], size[0])
    wide, left, right, across = along(x, values.shape[1], size[1])
    here = values[tall, wide]
    here = here if label is None else (here == label).astype(np.float32)
    rows = here[above] * (1 - down[:, None]) + here[below] * down[:, None]
    result: Map = rows[:, left] * (1 - across) + rows[:, right] * across
    return result


def _polygon(mask: Mask, corner: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    import cv2
    import numpy as np

    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    (border,) = contours  # it is connected
    return tuple((corner[0] + int(x), corner[1] + int(y)) for x, y in border[:, 0])


def _runs(mask: Mask, corner: tuple[int, int], size: tuple[int, int]) -> tuple[int, ...]:
    """COCO's run lengths of a mask that stands with its upper left at `corner` (x, y)."""
    import numpy as np

    height, width = mask.shape
    columns = np.zeros((width, height + 2), dtype=np.int8)
    columns[:, 1:-1] = mask.T
    column, row = np.nonzero(np.diff(columns, axis=1))  # begins and ends, column by column
    at = (corner[0] + column) * size[0] + corner[1] + row
    # Where a run ends at the foot of a column and the next begins at the head of the following
    # one, they are one run.
    at = at[np.append(np.diff(at) > 0, True) & np.append(True, np.diff(at) > 0)]
    whole = size[0] * size[1]
    lengths = np.diff(np.concatenate([[0], at, [whole]]))
    return tuple(int(length) for length in (lengths if at[-1] < whole else lengths[:-1]))
