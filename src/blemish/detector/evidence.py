"""What the pictures of a fit score that are evidence for its thresholds: those held out, or the
training pictures each left out in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from blemish.data.ahead import is_tile
from blemish.data.copies import nearly_same
from blemish.data.stream import Found, PictureStream
from blemish.detector.calibrate import Calibration, Plan
from blemish.detector.scoring import masked
from blemish.detector.stitching import Stitching, rows_of
from blemish.engines.pytorch import TorchEngine
from blemish.methods import Method
from blemish.methods.base import reported
from blemish.methods.capabilities import LeavesOneOut
from blemish.methods.foreground import Foreground
from blemish.regions import region_level
from blemish.types import Progress

HELD_OUT = 0.2
_SCALE_PICTURES = 16  # training pictures that set the heatmaps' scale where none is calibrated on


def planned(method: Method, count: int, fraction: float | None, shots: int | None) -> Plan:
    """The plan for a method and `count` pictures; `fraction` and `shots` as of `blemish.fit`."""
    if fraction == 0:
        return Plan(0.0, None)
    if fraction is None and isinstance(method, LeavesOneOut) and method.leaves_one_out():
        return Plan(0.0, "leave-one-out")
    share = (HELD_OUT if shots is None else 0.0) if fraction is None else fraction
    return Plan(share if count > 1 else 0.0, "split conformal")


@dataclass(frozen=True)
class Seen:
    """Pictures as they are scored, the category of each, and what a pass has found of them."""

    stream: PictureStream
    categories: Sequence[str]
    found: Found


@dataclass(frozen=True)
class Scored:
    """What the pictures of a pass score.

    Attributes:
        scored: by position, the score and the level of the regions of each.
        samples: some values of the maps, with the position of the picture that each is of.
        found: what the pass has found.
    """

    scored: Mapping[int, tuple[float, float]]
    samples: Sequence[tuple[int, np.ndarray]]
    found: Found

    @property
    def scale(self) -> tuple[float, float]:
        """That of the heatmaps."""
        if not self.samples:
            return 0.0, 1.0
        values = np.concatenate([each for _, each in self.samples])
        low, high = np.quantile(values, [0.5, 0.999])
        return float(low), float(low) + 2 * max(float(high - low), 1e-6)


# Method, foreground, stream, progress, the smallest region, whether each is left out.
Scoring = Callable[[Method, Foreground | None, PictureStream, Progress, float, bool], Scored]


@torch.inference_mode()
def calibrated(
    method: Method,
    plan: Plan,
    learned: Seen,
    held: Seen,
    progress: Progress,
    *,
    smallest_region: float = 0.0,
    foreground: Foreground | None = None,
    scoring: Scoring | None = None,
) -> tuple[Calibration, Found]:
    """What the held-out pictures score, or the training pictures each left out in turn.

    A training picture that is the only one of its category has nothing to be compared with, and
    is no evidence.

    Args:
        learned: the training pictures. held: those held out, of which nothing is found yet.
        foreground: as of `scoring.scored`. scoring: who scores them; None = this process.
    Returns: the evidence, and what was found of the pictures held out.
    """
    scoring = scoring or scored_here
    if plan.method == "split conformal" and held.stream.sources:
        seen = scoring(method, foreground, held.stream, progress, smallest_region, False)
        scored, found = seen.scored, seen.found.of_pictures(held.stream.sources)
        known = set(learned.found.digests.values())
        counted = [
            at for at in sorted(set(found.originals.values())) if found.digests[at] not in known
        ]
        copies, alike = len(found.digests) - len(counted), False
        categories, thumbnails = held.categories, found.thumbnails
    else:
        learned_from = learned.found.of_pictures(learned.stream.sources)
        different = sorted(set(learned_from.originals.values()))
        categories, thumbnails = learned.categories, learned_from.thumbnails
        able = isinstance(method, LeavesOneOut) and method.leaves_one_out()
        left_out = able and len(different) > method.minimum_images
        one_out = left_out and plan.method == "leave-one-out"
        # Where they only set the scale, some evenly from all: they may be sorted by category.
        every = 1 if one_out else max(1, -(-len(different) // _SCALE_PICTURES))
        some = learned.stream.only_whole(different[::every])
        seen = scoring(method, foreground, some, progress, smallest_region, left_out)
        scored = seen.scored
        if one_out and isinstance(method, LeavesOneOut):
            scored = _as_kept(method, some, scored)
        of_category = Counter(categories[at] for at in different)
        counted = [at for at in different if one_out and of_category[categories[at]] > 1]
        copies = len(learned_from.digests) - len(different)
        alike, found = len(different) == 1 and copies > 0, Found()
    calibration = Calibration(
        scale=seen.scale,
        scores=[scored[at][0] for at in counted],
        levels=[scored[at][1] for at in counted],
        smallest_region=smallest_region,
        categories=[categories[at] for at in counted],
        copies=copies,
        nearly_same=nearly_same([thumbnails[at] for at in counted if at in thumbnails]),
        alike=alike,
    )
    return calibration, found


@torch.inference_mode()
def levels_left_out(
    method: Method,
    foreground: Foreground | None,
    stream: PictureStream,
    first_owner: int,
    progress: Progress,
    *,
    smallest_region: float,
) -> dict[int, float]:
    """The level of the regions of each of some pictures that a method has learned from, left out,
    by its position; copies count once.

    Args: stream: as they are scored. first_owner: the number of the first one, as it was learned.
    """
    seen = scored_here(method, foreground, stream, progress, smallest_region, True, first_owner)
    return {owner - first_owner: level for owner, (_, level) in seen.scored.items()}


def _as_kept(
    method: LeavesOneOut, stream: PictureStream, scored: Mapping[int, tuple[float, float]]
) -> Mapping[int, tuple[float, float]]:
    """With the scores that the method has kept, where it has of whole pictures: these were measured
    as it learned, and are what `refine` goes on from."""
    kept = method.good_scores() if stream.preprocessing.tiling is None else None
    return scored if kept is None else {at: (kept[at], level) for at, (_, level) in scored.items()}


def scored_here(
    method: Method,
    foreground: Foreground | None,
    stream: PictureStream,
    progress: Progress,
    smallest_region: float,
    left_out: bool,
    first: int = 0,
) -> Scored:
    """What the pictures of a stream score; `left_out`: each without what it has taught; `first`:
    added to the numbers of their owners."""
    scored: dict[int, tuple[float, float]] = {}
    samples: list[tuple[int, np.ndarray]] = []
    engine = TorchEngine(method, foreground)
    stitching = Stitching.of(engine, stream.preprocessing.area)
    reading = stream.on(method.backbone.device)
    for batch in reported(reading, "calibrating", stream.rows, progress):
        batch = replace(batch, owners=batch.owners + first)
        said = engine.said(batch.images, left_out=batch if left_out else None)
        found = masked(said, foreground, method.area, engine)
        placements = [stream.preprocessing.placement(size) for size in batch.sizes]
        for at, row in enumerate(rows_of(found, placements)):
            source = stream.sources[batch.positions[at]]
            whole = stitching.add(source, row) if is_tile(source) else row
            if whole is not None:
                level = region_level(whole.anomaly_map, smallest_region)
                scored[int(batch.owners[at])] = whole.score, level
                part = whole.anomaly_map if is_tile(source) else placements[at].part(found.map[at])
                part = part[::4, ::4]
                if row.foreground is not None:  # what does not count has no value of its own
                    part = part[row.foreground[::4, ::4]]
                samples.append((batch.positions[at], part.ravel()))
    return Scored(scored, samples, reading.found)
