"""Which normal pictures are evidence for a threshold, what they score, and the thresholds that
follow.

A picture counts once, whatever the number of its copies: split conformal and the jackknife rest on
pictures drawn each by itself, and a copy is no new draw. Pictures that are nearly the same (the
same part taken twice, or stored again in another format) are counted and told, but not left out:
pixels do not tell them from two parts that look alike, and to leave out the second of two like
parts would bend the sample towards the unusual.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from blemish.data.copies import nearly_same
from blemish.data.pictures import good_pictures
from blemish.data.stream import Found, PictureStream
from blemish.detector.predict import Detector
from blemish.detector.thresholds import Method as CalibrationMethod
from blemish.detector.thresholds import Threshold, calibrate
from blemish.errors import DataError
from blemish.methods import Method
from blemish.methods.base import reported
from blemish.methods.capabilities import LeavesOneOut
from blemish.types import Failure, Progress, silent

DEFAULT_RATE = 0.05
HELD_OUT = 0.2
_SCALE_PICTURES = 16  # training pictures that set the heatmaps' scale where none is calibrated on


@dataclass(frozen=True)
class Plan:
    """How the threshold comes about: the share held out, and the method (None: no threshold)."""

    fraction: float
    method: CalibrationMethod | None


def planned(method: Method, count: int, fraction: float | None, shots: int | None) -> Plan:
    """The plan for a method and `count` pictures; `fraction` and `shots` as of `blemish.fit`."""
    if fraction == 0:
        return Plan(0.0, None)
    if fraction is None and isinstance(method, LeavesOneOut) and method.leaves_one_out():
        return Plan(0.0, "leave-one-out")
    share = (HELD_OUT if shots is None else 0.0) if fraction is None else fraction
    return Plan(share if count > 1 else 0.0, "split conformal")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The evidence for a threshold.

    Attributes:
        scale: (low, high) of the heatmaps' colours, from the maps of normal pictures.
        scores, categories: of each picture that counts.
        copies: how many pictures do not count because another of the same content does, or was
            learned from.
        nearly_same: how many of those that count look nearly like another one of them.
        alike: whether all pictures are copies of a single one.
    """

    scale: tuple[float, float]
    scores: Sequence[float]
    categories: Sequence[str]
    copies: int
    nearly_same: int = 0
    alike: bool = False

    def by_category(self, names: Iterable[str]) -> dict[str, tuple[float, ...]]:
        """The scores of each category."""
        pairs = list(zip(self.categories, self.scores, strict=True))
        return {
            name: tuple(score for category, score in pairs if category == name) for name in names
        }

    def fields(
        self, plan: Plan, rate: float, names: Iterable[str], *, required: bool
    ) -> dict[str, Any]:
        """What the manifest says of the thresholds: the common one and that of each category,
        without a value where its pictures are too few for that, and the scores that they are from.

        Raises: CalibrationError where the common one is required and cannot be had.
        """
        by_category = self.by_category(names)
        common: Threshold | None = None
        thresholds: dict[str, Threshold] = {}
        if plan.method is not None:
            remark = ""
            if self.alike:
                remark = f"all {self.copies + 1} pictures have the same content"
            elif self.copies:
                remark = f"{self.copies} more are copies, which count once"
            common = calibrate(
                self.scores, rate, method=plan.method, required=required, remark=remark
            )
            for name, own in by_category.items():
                threshold = calibrate(own, rate, method=plan.method, required=False)
                if threshold.value is None and common.value is not None:
                    reason = f"{threshold.reason}; the common threshold is used"
                    threshold = dataclasses.replace(threshold, reason=reason)
                thresholds[name] = threshold
        return {
            "threshold": common,
            "thresholds": thresholds,
            "calibration_scores": tuple(self.scores),
            "calibration_scores_by_category": by_category,
        }


@dataclass(frozen=True)
class Seen:
    """Pictures as they are scored, the category of each, and what a pass has found of them."""

    stream: PictureStream
    categories: Sequence[str]
    found: Found


@torch.inference_mode()
def calibrated(
    method: Method, plan: Plan, learned: Seen, held: Seen, progress: Progress
) -> tuple[Calibration, Found]:
    """What the held-out pictures score, or the training pictures each left out in turn.

    A training picture that is the only one of its category has nothing to be compared with, and
    is no evidence.

    Args: learned: the training pictures. held: those held out, of which nothing is found yet.
    Returns: the evidence, and what was found of the pictures held out.
    """
    if plan.method == "split conformal" and held.stream.sources:
        scores, scale, found = _scored(method, held.stream, progress)
        known = set(learned.found.digests.values())
        counted = [
            at for at in sorted(set(found.originals.values())) if found.digests[at] not in known
        ]
        copies, alike = len(found.digests) - len(counted), False
        categories, thumbnails = held.categories, found.thumbnails
    else:
        different = sorted(set(learned.found.originals.values()))
        categories, thumbnails = learned.categories, learned.found.thumbnails
        able = isinstance(method, LeavesOneOut) and method.leaves_one_out()
        left_out = able and len(different) > method.minimum_images
        one_out = left_out and plan.method == "leave-one-out"
        kept = method.good_scores() if one_out and isinstance(method, LeavesOneOut) else None
        # Where they only set the scale, some evenly from all: they may be sorted by category.
        every = 1 if one_out and kept is None else max(1, -(-len(different) // _SCALE_PICTURES))
        some = learned.stream.only(different[::every])
        scores, scale, _ = _scored(method, some, progress, left_out=left_out)
        scores = scores if kept is None else kept
        of_category = Counter(categories[at] for at in different)
        counted = [at for at in different if one_out and of_category[categories[at]] > 1]
        copies = len(learned.found.digests) - len(different)
        alike, found = len(different) == 1 and copies > 0, Found()
    calibration = Calibration(
        scale=scale,
        scores=[scores[at] for at in counted],
        categories=[categories[at] for at in counted],
        copies=copies,
        nearly_same=nearly_same([thumbnails[at] for at in counted if at in thumbnails]),
        alike=alike,
    )
    return calibration, found


def _scored(
    method: Method, stream: PictureStream, progress: Progress, *, left_out: bool = False
) -> tuple[Mapping[int, float], tuple[float, float], Found]:
    """The score of each picture of a stream, the scale of their heatmaps, and what was found."""
    scores: dict[int, float] = {}
    samples: list[np.ndarray] = []
    reading = stream.on(method.backbone.device)
    for batch in reported(reading, "calibrating", stream.rows, progress):
        if left_out and isinstance(method, LeavesOneOut):
            found = method.score_left_out(batch)
        else:
            found = method.score(batch.images)
        scores |= dict(zip(batch.owners.tolist(), found.image.float().cpu().tolist(), strict=True))
        samples.append(found.maps.float().cpu().numpy()[:, ::4, ::4].ravel())
    scale = (0.0, 1.0)
    if samples:
        low, high = np.quantile(np.concatenate(samples), [0.5, 0.999])
        scale = (float(low), float(low) + 2 * max(float(high - low), 1e-6))
    return scores, scale, reading.found


def recalibrate(
    detector: Detector,
    good: Any,
    *,
    false_alarm_rate: float | None = None,
    progress: Progress = silent,
) -> tuple[Detector, list[Failure], int]:
    """The detector with thresholds from other normal pictures (split conformal).

    Pictures that it was fitted on are recognised by content and left out, as are copies: a picture
    counts once (`data.copies`). A detector for several categories gets a threshold for each and a
    common one, for which alone pictures count whose category is not known to it, or not given.

    Returns: the detector, the pictures that could not be decoded, and how many were left out.
    Raises: DataError where no picture is left, or none of a category; CalibrationError.
    """
    pictures = good_pictures(good)
    names = detector.categories
    categories = [name if name in names else "" for name in pictures.categories]
    missing = sorted(set(names) - set(categories))
    if missing and any(categories):
        raise DataError(
            f"no picture of {', '.join(missing)} is among those to calibrate on, and the common "
            "threshold is of all categories together; give pictures of every category"
        )
    known = detector.learned
    counted: dict[str, tuple[float, str]] = {}  # by content: score and category
    failures: list[Failure] = []
    left_out = copies = 0
    results = zip(categories, detector.predict_many(pictures.sources), strict=True)
    for done, (category, result) in enumerate(results, start=1):
        progress("scoring", done, len(pictures.sources))
        if isinstance(result, Failure):
            failures.append(result)
        elif result.digest in known:
            left_out += 1
        elif result.digest in counted:
            copies += 1
        else:
            counted[result.digest] = result.score, category
    if not counted:
        raise DataError(
            "no picture is left to calibrate on: all were used for fitting or could not be read"
        )
    scores, of_each = zip(*counted.values(), strict=True)
    calibration = Calibration(
        scale=detector.map_scale, scores=scores, categories=of_each, copies=copies
    )
    rate = DEFAULT_RATE if false_alarm_rate is None else false_alarm_rate
    plan = Plan(1.0, "split conformal")
    fields = calibration.fields(plan, rate, names, required=True)
    data = dataclasses.replace(
        detector.record.data,
        calibrated=tuple(counted),
        copies=copies,
        nearly_same=0,  # which is not looked for
    )
    record = dataclasses.replace(detector.record, data=data, **fields)
    return Detector(detector.method, record), failures, left_out
