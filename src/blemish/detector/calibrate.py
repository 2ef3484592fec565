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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
from PIL.Image import Image

from blemish.data.ahead import load_picture
from blemish.data.pictures import Pictures, good_pictures, labelled_defects
from blemish.detector.grouping import checked, grouped
from blemish.detector.parts import part_thresholds
from blemish.detector.predict import Detector
from blemish.detector.thresholds import Method as CalibrationMethod
from blemish.detector.thresholds import (
    Of,
    PartThresholds,
    RegionThresholds,
    Threshold,
    calibrate,
    for_misses,
    pictures_needed,
)
from blemish.errors import DataError
from blemish.regions import region_level
from blemish.text import pluralize
from blemish.types import Failure, Progress, silent

DEFAULT_RATE = 0.05
_SPLIT: CalibrationMethod = "split conformal"


@dataclass(frozen=True)
class Plan:
    """How the threshold comes about: the share held out, and the method (None: no threshold)."""

    fraction: float
    method: CalibrationMethod | None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The evidence for a threshold.

    Attributes:
        scale: (low, high) of the heatmaps' colours, from the maps of normal pictures.
        scores, levels, categories: of each picture that counts: its score, the level above which
            its map shows a region (`blemish.regions.region_level`), and what it shows.
        smallest_region: the share of a picture that a region has at least.
        copies: how many pictures do not count because another of the same content does, or was
            learned from.
        nearly_same: how many of those that count look nearly like another one of them.
        alike: whether all pictures are copies of a single one.
    """

    scale: tuple[float, float]
    scores: Sequence[float]
    levels: Sequence[float]
    categories: Sequence[str]
    copies: int
    smallest_region: float = 0.0
    nearly_same: int = 0
    alike: bool = False

    def fields(
        self, plan: Plan, rate: float, names: Iterable[str], *, required: bool
    ) -> dict[str, Any]:
        """What the manifest says of the thresholds: the common one and that of each category,
        without a value where its pictures are too few for that, and the scores that they are from;
        of the image score, and in the same way of the regions.

        Raises: CalibrationError where the common one is required and cannot be had.
        """
        names = list(names)
        of_scores, of_levels = (
            {
                name: tuple(
                    value
                    for category, value in zip(self.categories, values, strict=True)
                    if category == name
                )
                for name in names
            }
            for values in (self.scores, self.levels)
        )
        common, own = self._thresholds(plan, rate, self.scores, of_scores, "alarm", required)
        of_regions = self._thresholds(plan, rate, self.levels, of_levels, "region", required)
        return {
            "threshold": common,
            "thresholds": own,
            "calibration_scores": tuple(self.scores),
            "calibration_scores_by_category": of_scores,
            "regions": RegionThresholds(
                smallest=self.smallest_region,
                threshold=of_regions[0],
                thresholds=of_regions[1],
                levels=tuple(self.levels),
                levels_by_category=of_levels,
            ),
        }

    def _thresholds(
        self,
        plan: Plan,
        rate: float,
        values: Sequence[float],
        by_category: Mapping[str, Sequence[float]],
        of: Of,
        required: bool,
    ) -> tuple[Threshold | None, dict[str, Threshold]]:
        """The common threshold of what the pictures gave, and that of each category."""
        if plan.method is None:
            return None, {}
        remark = ""
        if self.alike:
            remark = f"all {self.copies + 1} pictures have the same content"
        else:
            remark = _remark(self.copies)
        common = calibrate(
            values, rate, method=plan.method, required=required, remark=remark, of=of
        )
        thresholds: dict[str, Threshold] = {}
        for name, own in by_category.items():
            threshold = calibrate(own, rate, method=plan.method, required=False, of=of)
            if threshold.value is None and common.value is not None:
                reason = f"{threshold.reason}; the common threshold is used"
                threshold = dataclasses.replace(threshold, reason=reason)
            thresholds[name] = threshold
        return common, thresholds


def _remark(copies: int) -> str:
    return f"{copies} more are copies, which count once" if copies else ""


def recalibrate(
    detector: Detector,
    good: Any,
    *,
    false_alarm_rate: float | None = None,
    smallest_region: float | None = None,
    group_by: str | None = None,
    progress: Progress = silent,
) -> tuple[Detector, list[Failure], int]:
    """The detector with thresholds from other normal pictures (split conformal).

    Pictures that it was fitted on are recognised by content and left out, as are copies: a picture
    counts once (`data.copies`). A detector for several categories gets a threshold for each and a
    common one, for which alone pictures count whose category is not known to it, or not given.

    Args:
        smallest_region: as of `fit`; None = as it was.
        group_by: of parts of several views a threshold, too, in which whole parts count: the
            regular expression that finds a part's name in the paths, or more, as of `parts.judge`.
    Returns: the detector, the pictures that could not be decoded, and how many were left out.
    Raises: DataError where no picture is left, or none of a category; CalibrationError; ConfigError
        as `parts.judge`.
    """
    pictures = good_pictures(good)
    paths = [str(sample.path) for sample in pictures.samples]
    by = checked(group_by, paths)
    names = detector.categories
    rate = DEFAULT_RATE if false_alarm_rate is None else false_alarm_rate
    if by is None:
        categories = check_enough(detector, pictures, rate)
    else:
        categories = _categories(pictures, names)
        whole, _ = grouped(paths, by)
        few = len(whole) < pictures_needed(rate)
        if few and not _looked_at(detector, pictures.sources).known:
            calibrate(np.zeros(len(whole)), rate, method=_SPLIT, required=True, of="part")
    if smallest_region is None:
        smallest_region = detector.smallest_region
    pass_ = new_scores(detector, pictures.sources, categories, smallest_region, progress)
    _check_left(len(pass_.counted))
    scores, levels, of_each = zip(*pass_.counted.values(), strict=True)
    calibration = Calibration(
        scale=detector.map_scale, scores=scores, levels=levels, categories=of_each,
        smallest_region=smallest_region, copies=pass_.copies,
    )  # fmt: skip
    parts = None
    if by is not None:
        scored = {digest: (score, name) for digest, (score, _, name) in pass_.counted.items()}
        parts = part_thresholds(by, paths, pass_.contents, scored, rate, names)
    plan = Plan(1.0, _SPLIT)
    fields = _of_views(calibration.fields(plan, rate, names, required=True), parts)
    data = dataclasses.replace(
        detector.record.data,
        calibrated=tuple(pass_.counted),
        copies=pass_.copies,
        nearly_same=0,  # which is not looked for
    )
    fields |= {"parts": parts, "precision": detector.precision}
    record = dataclasses.replace(detector.record, data=data, **fields)
    return detector.with_record(record), pass_.failures, pass_.left_out


def check_enough(detector: Detector, pictures: Pictures, rate: float) -> list[str]:
    """Make sure, before any is scored, that so many good pictures have not been learned from as the
    rate needs; of no more than these is it looked at.

    Returns: the category of each picture, "" for what is none of the detector's.
    Raises: DataError where none is left, or none of a category; CalibrationError where they are too
        few.
    """
    categories = _categories(pictures, detector.categories)
    seen = _looked_at(detector, pictures.sources, pictures_needed(rate))
    _check_left(seen.new)
    remark = _remark(seen.copies)
    calibrate(np.zeros(seen.new), rate, method=_SPLIT, required=True, remark=remark)
    return categories


def _check_left(pictures: int) -> None:
    if not pictures:
        raise DataError(
            "no picture is left to calibrate on: all were used for fitting or could not be read"
        )


@dataclass(frozen=True)
class _Looked:
    """What of some pictures is told without scoring them: how many are `new`, how many `copies`
    there are of these, and how many are `known`, as they were learned from.
    """

    new: int
    copies: int
    known: int


def _looked_at(detector: Detector, sources: Sequence[Any], enough: int | None = None) -> _Looked:
    """At all that there are, or until `enough` new ones are found.

    Not at what is read once alone (streams), nor at what is cut into tiles, which may be too large
    to be decoded at once: these are new.
    """
    preprocessing, learned = detector.preprocessing, detector.learned
    window, cut = preprocessing.decode_window(), preprocessing.tiling is not None
    found: set[str] = set()
    copies = known = 0
    for index, source in enumerate(sources):
        if len(found) == enough:
            break
        if cut or not isinstance(source, (str, PathLike, np.ndarray, Image)):
            found.add(f"source {index}")
            continue
        picture = load_picture(source, index, window)
        if isinstance(picture, Failure):
            continue
        known += picture.digest in learned
        copies += picture.digest in found
        found |= {picture.digest} - learned
    return _Looked(len(found), copies, known)


def _categories(pictures: Pictures, names: Sequence[str]) -> list[str]:
    """The category of each, "" for what is none of `names`. Raises: DataError where one lacks."""
    categories = [name if name in names else "" for name in pictures.categories]
    missing = sorted(set(names) - set(categories))
    if missing and any(categories):
        raise DataError(
            f"no picture of {', '.join(missing)} is among those to calibrate on, and the common "
            "threshold is of all categories together; give pictures of every category"
        )
    return categories


def _of_views(fields: dict[str, Any], parts: PartThresholds | None) -> dict[str, Any]:
    """The fields of `Calibration.fields`, which say of pictures that these are views of parts."""
    if parts is None:
        return fields
    number = pluralize(len(parts.scores), "part")
    remark = (
        f" The pictures are views of {number}, not drawn each by itself: for "
        "single pictures this holds nearly, the better the more parts there are."
    )

    def said(one: Threshold | None) -> Threshold | None:
        if one is None or one.value is None:
            return one
        return dataclasses.replace(one, guarantee=one.guarantee + remark)

    def of(thresholds: Mapping[str, Threshold]) -> dict[str, Threshold | None]:
        return {name: said(one) for name, one in thresholds.items()}

    regions = fields["regions"]
    told = {"threshold": said(regions.threshold), "thresholds": of(regions.thresholds)}
    return {
        **fields,
        "threshold": said(fields["threshold"]),
        "thresholds": of(fields["thresholds"]),
        "regions": dataclasses.replace(regions, **told),
    }


def recalibrate_on_defects(
    detector: Detector, anomalies: Any, *, miss_rate: float, progress: Progress = silent
) -> tuple[Detector, list[Failure], int]:
    """The detector with one threshold for all categories that misses at most a share of defects.

    Those that it has learned from are recognised by content and left out, as are copies. Its
    regions, and its calibration scores, stay as they are.

    Args:
        anomalies: labelled defects, named as for `blemish.fit`.
        miss_rate: the share of new defects like these that may be missed, in (0, 1).
    Returns: the detector, the pictures that could not be decoded, and how many were left out.
    Raises: DataError where no picture is left; CalibrationError where they are too few.
    """
    defects = labelled_defects(anomalies)
    none = [""] * len(defects.sources)
    seen = _looked_at(detector, defects.sources, pictures_needed(miss_rate))
    if seen.new:
        for_misses(np.zeros(seen.new), miss_rate)  # too few are told before they are scored
    pass_ = new_scores(detector, defects.sources, none, 0.0, progress)
    if not pass_.counted:
        raise DataError("no labelled defect is left: all were learned from or could not be read")
    threshold = for_misses([score for score, *_ in pass_.counted.values()], miss_rate)
    detector = detector.with_threshold(threshold)
    record = dataclasses.replace(detector.record, precision=detector.precision)
    return detector.with_record(record), pass_.failures, pass_.left_out


@dataclass
class _Pass:
    """What a pass over new pictures gave.

    Attributes:
        counted: by content: the score, the level of the regions, and the category.
        contents: of each picture in turn its content; None for those not read.
        failures: those not read. left_out: how many are known. copies: how many come again.
    """

    counted: dict[str, tuple[float, float, str]] = field(default_factory=dict)
    contents: list[str | None] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    left_out: int = 0
    copies: int = 0


def new_scores(
    detector: Detector,
    sources: Sequence[Any],
    categories: Sequence[str],
    smallest_region: float,
    progress: Progress,
) -> _Pass:
    """The scores of pictures that the detector has not learned from, each content once."""
    detector.check_whole("calibrate")
    known, made = detector.learned, _Pass()
    results = zip(categories, detector.predict_many(sources), strict=True)
    for done, (category, result) in enumerate(results, start=1):
        progress("scoring", done, len(sources))
        made.contents.append(None if isinstance(result, Failure) else result.digest)
        if isinstance(result, Failure):
            made.failures.append(result)
        elif result.digest in known:
            made.left_out += 1
        elif result.digest in made.counted:
            made.copies += 1
        else:
            level = region_level(result.anomaly_map, smallest_region)
            made.counted[result.digest] = result.score, level, category
    return made
