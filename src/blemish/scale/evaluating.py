"""Evaluation in parts: each scores its pictures, and what the parts found merges without loss.

Counts, ranks and regions of all pictures are what they would be in one process. Pixel metrics are
exact up to the number of pixels where `blemish.evaluate` is, and within the same bound beyond it:
histograms of the same bins add up, whoever made them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from blemish.data.layouts import Dataset
from blemish.detector.evaluate import Judged, asked, judge, summed
from blemish.detector.loading import load
from blemish.detector.predict import Detector
from blemish.methods.merging import divided
from blemish.scale.artifacts import Shipped, at_hand, shipped
from blemish.scale.hands import Alone, Hands
from blemish.scale.jobs import Work, work
from blemish.types import RESOLUTION, Evaluation, Progress, Sample, silent


@dataclass
class _Shared:
    """What jobs share: a detector, by its file, and nothing of a part yet."""

    artifact: Shipped
    how: dict[str, Any]
    resolution: int | None
    empty: Judged | None = None
    known: Detector | None = field(default=None, repr=False)

    @cached_property
    def detector(self) -> Detector:
        if self.known is not None:
            return self.known
        with at_hand(self.artifact) as (path, _):
            return load(path, **self.how)


def judge_part(shared: _Shared, samples: Sequence[Sample]) -> Judged:
    """A job: what is found of some labelled pictures."""
    assert shared.empty is not None
    found = shared.empty.empty(shared.detector)
    judge(shared.detector, samples, found, resolution=shared.resolution)
    return found


def evaluate(
    artifact: str | Path,
    data: str | Path | Dataset,
    *,
    hands: Hands | None = None,
    resolution: int | None = RESOLUTION,
    group_by: str | None = None,
    part_pictures: int | None = None,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    progress: Progress = silent,
) -> Evaluation:
    """How good a detector is on labelled pictures, as of `blemish.evaluate`, measured in parts.

    Args:
        artifact: a file of `blemish fit` or `export`. hands: who does the work, as of
            `learning.fit`. part_pictures: of a part; None = as of `learning.fit`.
        engine, device, precision: as of `blemish.load`.
    Raises: as `blemish.load` and `blemish.evaluate`; ClusterError.
    """
    by: Hands = Alone() if hands is None else hands
    how: dict[str, Any] = {"engine": engine, "device": by.device or device, "precision": precision}
    detector = load(artifact, **{**how, "device": device})
    dataset, samples, grouping = asked(data, None, group_by)
    whole = Judged.of(detector, samples, resolution)
    known = detector if by.here else None
    by.hold(_Shared(shipped(artifact), how, resolution, whole.empty(detector), known))
    waiting: dict[int, Judged] = {}
    done = due = 0

    def merge(number: int, found: Judged) -> Iterable[Work]:
        nonlocal done, due
        waiting[number] = found
        done += len(parts[number])
        while due in waiting:  # in their order, so that sums round alike
            whole.merge(waiting.pop(due))
            due += 1
        progress("scoring", done, len(samples))
        return ()

    parts = divided(len(samples), part_pictures)
    jobs = [
        Work(number, judge_part, partial(tuple, ([samples[at] for at in part],)))
        for number, part in enumerate(parts)
    ]
    work(by, jobs, merge)
    return summed(detector, dataset, samples, grouping, whole)
