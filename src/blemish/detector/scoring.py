"""Scores of a batch as a detector gives them: what its engine says, and where there is a foreground
or a part of the picture only of that.

One place for prediction and for calibration, and for all engines: a threshold holds for what was
scored as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from blemish.area import Area
from blemish.data.geometry import Placement
from blemish.engines.base import Engine, Floats, Outputs
from blemish.methods.foreground import Foreground, places_of

UNTOLD = "no background could be told from the part as on the training pictures: looked at whole"
Places = NDArray[np.bool_]


def masked(
    found: Outputs, foreground: Foreground | None, area: Area | None, engine: Engine
) -> Outputs:
    """What is left where the foreground alone counts; it is then in `Outputs.foreground`.

    The image score is the mean of as many highest values as of the whole picture, but of the
    foreground: never above that of the whole picture.

    Args: area: that the method looks at.
    """
    if foreground is None:
        return found
    assert found.part is not None  # an engine with a foreground says it
    size = (found.map.shape[1], found.map.shape[2])
    inside = foreground.inside(found.part, area, size, offset=engine.offset)
    within = None if area is None else places_of(area, size)
    if within is not None:
        of_both = inside & within
        # Where they have nothing in common, all of the area.
        inside = np.asarray(np.where(of_both.any(axis=(1, 2), keepdims=True), of_both, within))
    return foremost(found, inside, within, engine.top_fraction)


def foremost(found: Outputs, inside: Places, area: Places | None, fraction: float) -> Outputs:
    """What is left of scores by map where only some places count.

    The image score is the mean of as many values as the highest `fraction` of the area has, the
    highest inside: never above the one before.

    Args: inside: B h w, some of each map and nothing outside the area; where it is all of the area,
        the score stays, and so does the map. area: h w; None = everywhere.
    """
    size = inside[0].size if area is None else int(area.sum())
    count = max(1, round(fraction * size))
    flat = np.where(inside, found.map, -np.inf).reshape(len(inside), -1)
    values = np.partition(flat, flat.shape[1] - count)[:, -count:]
    there = values > -np.inf  # where fewer places count
    mean = np.where(there, values, 0).sum(1) / there.sum(1)
    whole = inside.sum((1, 2)) == size
    score = np.where(whole, found.score, np.minimum(found.score, mean)).astype(np.float32)
    counted = inside | whole[:, None, None]
    return replace(found, score=score, map=_shown(found.map, inside), foreground=counted)


def narrowed(found: Outputs, inside: Places | None, fraction: float) -> Outputs:
    """What is left of scores by map where only an area counts.

    The image score is the mean of the highest `fraction` in the area, but never above the one of
    the whole picture, as the mean of fewer values may be: no narrowed score is an alarm where the
    whole one is none.

    Args: inside: bool h w, or B h w, one place at least in each; None = everywhere.
    """
    if inside is None:
        return found
    each = np.broadcast_to(inside, found.map.shape)
    pairs = zip(found.map, each, strict=True)
    means = np.array([top_mean(one[own], fraction) for one, own in pairs], dtype=np.float32)
    return replace(found, score=np.minimum(found.score, means), map=_shown(found.map, each))


def places_in(area: Area, placements: Sequence[Placement], size: tuple[int, int]) -> Places | None:
    """The places of maps over the input in which any of an area of the pictures lies: bool h w, or
    B h w where they lie in it differently; None where all are."""
    if not all(one.is_whole for one in placements):
        return np.stack([_reached(one.inside(area), size) for one in placements])
    places: Places = area.places(*size)
    return None if places.all() else places


def top_mean(values: Floats, fraction: float) -> float:
    """Mean of the highest `fraction` of some values, one at least."""
    count = max(1, round(fraction * values.size))
    return float(np.partition(values, values.size - count)[-count:].mean(dtype=np.float32))


def _shown(maps: Floats, inside: Places) -> Floats:
    """Maps B h w, each with its lowest value of the places inside outside them."""
    lowest = np.where(inside, maps, np.inf).min((1, 2), keepdims=True)
    shown: Floats = np.where(inside, maps, lowest).astype(np.float32)
    return shown


def _reached(inside: Places, size: tuple[int, int]) -> Places:
    """bool h w: the places in which any of bool H W is; all where none is."""
    for axis, count in enumerate(size):
        sums = np.cumsum(inside, axis=axis, dtype=np.int64)
        sums = np.pad(sums, [(1, 0) if axis == side else (0, 0) for side in (0, 1)])
        ends, length = np.arange(count + 1), inside.shape[axis]
        first, last = ends[:-1] * length // count, -(-ends[1:] * length // count)
        inside = sums.take(last, axis) > sums.take(first, axis)
    return inside if inside.any() else np.ones_like(inside)


def in_use(foreground: Foreground | None) -> Foreground | None:
    """The foreground that is looked at; None where it abstains, or there is none."""
    return None if foreground is None or foreground.abstains else foreground
