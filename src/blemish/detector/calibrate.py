"""Which normal pictures are evidence for a threshold, what they score, and the thresholds that follow.

A picture counts once, whatever the number of its copies: split conformal and the jackknife rest on pictures drawn each
by itself, and a copy is no new draw. Pictures that are nearly the same (the same part taken twice, or stored again in
another format) are counted and told, but not left out: pixels do not tell them from two parts that look alike, and to
leave out the second of two like parts would bend the sample towards the unusual.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from blemish.data.copies import nearly_same
from blemish.data.good import good_pictures
from blemish.data.stream import PictureStream
from blemish.data.transforms import Preprocessing
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
_SCALE_PICTURES = (
    16  # how many training pictures set the heatmaps' scale where none is scored for the threshold
)


@dataclass(frozen=True)
class Plan:
    """How the threshold comes about: the share held out, and the method's name (None: no threshold)."""

    fraction: float
    method: CalibrationMethod | None


def planned(method: Method, count: int, fraction: float | None, shots: int | None) -> Plan:
    """How the threshold of a method is to come about, from `count` pictures; the others as of `blemish.fit`."""
    if fraction == 0:
        return Plan(0.0, None)
    if fraction is None and isinstance(method, LeavesOneOut) and method.leaves_one_out():
        return Plan(0.0, "leave-one-out")
    share = (HELD_OUT if shots is None else 0.0) if fraction is None else fraction
    return Plan(share if count > 1 else 0.0, "split conformal")


@dataclass
class Calibration:
    """The evidence for a threshold.

    Attributes:
        scale: (low, high) of the heatmaps' colours, from the maps of normal pictures.
        scores, categories: of each picture that counts.
        copies: how many pictures do not count because another of the same content does, or was learned from.
        nearly_same: how many of those that count look nearly like another one of them.
        alike: whether all pictures are copies of a single one.
    """

    scale: list[float]
    scores: list[float] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    copies: int = 0
    nearly_same: int = 0
    alike: bool = False

    def by_category(self, names: Iterable[str]) -> dict[str, tuple[float, ...]]:
        pairs = list(zip(self.categories, self.scores, strict=True))
        return {
            name: tuple(score for category, score in pairs if category == name) for name in names
        }

    def thresholds(
        self, plan: Plan, rate: float, names: Iterable[str], *, required: bool
    ) -> tuple[Threshold | None, dict[str, Threshold]]:
        """The common threshold and that of each category, without a value where its pictures are too few for that.

        Raises: CalibrationError where the common one is required and cannot be had.
        """
        if plan.method is None:
            return None, {}
        remark = ""
        if self.alike:
            remark = f"all {self.copies + 1} pictures have the same content"
        elif self.copies:
            remark = f"{self.copies} more are copies, which count once"
        common = calibrate(self.scores, rate, method=plan.method, required=required, remark=remark)
        thresholds = {}
        for name, own in self.by_category(names).items():
            threshold = calibrate(own, rate, method=plan.method, required=False)
            if threshold.value is None and common.value is not None:
                threshold = dataclasses.replace(
                    threshold, reason=f"{threshold.reason}; the common threshold is used"
                )
            thresholds[name] = threshold
        return common, thresholds


@torch.inference_mode()
def calibration_scores(
    method: Method,
    plan: Plan,
    scoring: Preprocessing,
    stream: PictureStream,
    held: PictureStream,
    kept_categories: Sequence[str],
    held_categories: Sequence[str],
    progress: Progress,
) -> Calibration:
    """What the held-out pictures score, or the training pictures each left out in turn, and the scale of the heatmaps.

    A training picture that is the only one of its category has nothing to be compared with, and tells nothing.

    Args:
        scoring: how pictures are scored. stream: what was learned, decoded already. held: what was held out.
        kept_categories, held_categories: the category of each of their sources.
    """
    originals = stream.originals
    different = sorted(set(originals.values()))
    of_category = Counter(kept_categories[position] for position in different)
    able = isinstance(method, LeavesOneOut) and method.leaves_one_out()
    left_out = able and len(different) > method.minimum_images
    one_out = left_out and plan.method == "leave-one-out"
    known = method.good_scores() if one_out and isinstance(method, LeavesOneOut) else None
    told = [
        position for position in different if one_out and of_category[kept_categories[position]] > 1
    ]
    result = Calibration([0.0, 1.0])
    if plan.method == "split conformal" and held.sources:
        pictures, positions, categories = held, list(range(len(held.sources))), held_categories
        left_out = False
    else:
        # Where the pictures only set the scale, some evenly from all: they may be sorted by category.
        every = 1 if one_out and known is None else -(-len(different) // _SCALE_PICTURES)
        positions, categories = different[:: max(1, every)], kept_categories
        sources = [stream.sources[position] for position in positions]
        pictures = PictureStream(sources, scoring, stream.batch_size)
    device = next(method.backbone.parameters()).device
    scores: dict[int, float] = {}
    samples: list[np.ndarray] = []
    for batch in reported(pictures.on(device), "calibrating", pictures.rows, progress):
        owners = torch.tensor(positions)[batch.owners]
        if left_out and isinstance(method, LeavesOneOut):
            found = method.score_left_out(dataclasses.replace(batch, owners=owners))
        else:
            found = method.score(batch.images)
        scores |= dict(zip(owners.tolist(), found.image.float().cpu().tolist(), strict=True))
        samples.append(found.maps.float().cpu().numpy()[:, ::4, ::4].ravel())
    if samples:
        low, high = np.quantile(np.concatenate(samples), [0.5, 0.999])
        result.scale = [float(low), float(low) + 2 * max(float(high - low), 1e-6)]
    thumbnails = stream.thumbnails
    result.copies = len(originals) - len(different)
    result.alike = len(different) == 1 < len(originals)
    if pictures is held:
        learned = set(stream.digests.values())
        told = [
            position
            for position in sorted(set(held.originals.values()))
            if held.digests[position] not in learned
        ]
        thumbnails = held.thumbnails
        result.copies, result.alike = len(held.digests) - len(told), False
    scores = known if known is not None else scores
    result.scores = [scores[position] for position in told]
    result.categories = [categories[position] for position in told]
    result.nearly_same = nearly_same(
        [thumbnails[position] for position in told if position in thumbnails]
    )
    return result


def recalibrate(
    detector: Detector,
    good: Any,
    *,
    false_alarm_rate: float | None = None,
    progress: Progress = silent,
) -> tuple[Detector, list[Failure], int]:
    """The detector with thresholds from other normal pictures (split conformal).

    Pictures that it was fitted on are recognised by content and left out, as are copies: a picture counts once, and the
    manifest says how many were copies (`data.copies`). A detector for several categories gets a new threshold for each
    of them and a new common one; pictures whose category is not known to it, or not given, count for the common one
    only.

    Returns: the detector, the pictures that could not be decoded, and how many were left out.
    Raises: DataError when no picture is left, or of some of the categories none is given; CalibrationError when they
        are too few for the rate.
    """
    pictures = good_pictures(good)
    categories = [name if name in detector.categories else "" for name in pictures.categories]
    missing = sorted(set(detector.categories) - set(categories))
    if missing and any(categories):
        raise DataError(
            f"no picture of {', '.join(missing)} is among those to calibrate on, and the common threshold is of all "
            "categories together; give pictures of every category"
        )
    known = detector.learned
    calibration = Calibration(scale=list(detector.map_scale))
    digests: dict[str, None] = {}  # in order
    failures: list[Failure] = []
    left_out = 0
    results = zip(categories, detector.predict_many(pictures.sources), strict=True)
    for done, (category, result) in enumerate(results, start=1):
        progress("scoring", done, len(pictures.sources))
        if isinstance(result, Failure):
            failures.append(result)
        elif result.digest in known:
            left_out += 1
        elif result.digest in digests:
            calibration.copies += 1
        else:
            calibration.scores.append(result.score)
            calibration.categories.append(category)
            digests[result.digest] = None
    if not calibration.scores:
        raise DataError(
            "no picture is left to calibrate on: all were used for fitting or could not be read"
        )
    rate = DEFAULT_RATE if false_alarm_rate is None else false_alarm_rate
    plan = Plan(1.0, "split conformal")
    threshold, thresholds = calibration.thresholds(plan, rate, detector.categories, required=True)
    record = dataclasses.replace(
        detector.record,
        data=dataclasses.replace(
            detector.record.data,
            calibrated=tuple(digests),
            copies=calibration.copies,
            nearly_same=0,  # which is not looked for
        ),
        threshold=threshold,
        thresholds=thresholds,
        calibration_scores=tuple(calibration.scores),
        calibration_scores_by_category=calibration.by_category(detector.categories),
    )
    return Detector(detector.method, record), failures, left_out
