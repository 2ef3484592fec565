"""Verdicts on parts of several views: which pictures show the same part, and what its highest score
means.

A part is an alarm if any of its views is above the part's threshold. Where good parts were
calibrated on (`blemish calibrate --group-by`), that is split conformal with the part as its unit:
of n good parts the highest score of each, and of these the k-th smallest, as of `thresholds`; so
the rate is kept for parts, however much their views have in common.

Elsewhere the union bound (Bonferroni) is used on the scores of pictures that the artifact holds:
with k views each judged at rate / k, at most that rate of good parts has any view above, also
however much they have in common. It needs about k times as many pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from blemish.detector.grouping import Grouping, grouped, grouping_of
from blemish.detector.thresholds import (
    Method,
    PartThresholds,
    Threshold,
    calibrate,
    for_each_view,
    pictures_needed,
    verdict,
)
from blemish.errors import DataError
from blemish.text import there_are
from blemish.types import ANOMALOUS, NORMAL, Failure, Prediction

if TYPE_CHECKING:
    from blemish.detector.predict import Detector

Rule = Literal["parts", "Bonferroni", "by hand", "labelled defects", "none"]
_SPLIT: Method = "split conformal"


@dataclass(frozen=True, kw_only=True)
class PartVerdict:
    """The verdict on a part.

    Attributes:
        part: its name, as the pattern found it, or as the table has it.
        views: the paths of all its pictures; failed: of those that could not be scored.
        score: of `worst`, the view that is highest above its threshold, or nearest below; in a
            common category the highest score. None where no view was scored.
        threshold: a view's score above it makes the part an alarm; None where there is none.
        label: 0 normal, 1 anomalous: also if other views failed; None where a view failed that
            might have been an alarm, or there is no threshold, which `reason` says.
        rule: where the threshold comes from: calibrated on "parts"; "Bonferroni" from pictures;
            that of pictures as it is, set "by hand" or from "labelled defects"; or "none".
        category: that of its views; "" where they are of several.
        notes: what weakens the rate that is promised.
    """

    part: str
    views: tuple[str, ...]
    failed: tuple[str, ...]
    score: float | None
    worst: str | None
    threshold: float | None
    label: int | None
    reason: str
    rule: Rule
    category: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready row."""
        lists = ("views", "failed", "notes")
        return {**asdict(self), **{name: list(getattr(self, name)) for name in lists}}


@dataclass(frozen=True)
class Verdicts:
    """The verdicts on parts, in the order in which they first come, and the paths of the pictures
    that are of no part."""

    parts: tuple[PartVerdict, ...]
    ungrouped: tuple[str, ...]

    @property
    def worst_first(self) -> list[PartVerdict]:
        """The parts: alarms, then those without a verdict, then normal ones; of each kind those
        first that are farthest above their threshold."""
        order = {ANOMALOUS: 0, None: 1, NORMAL: 2}
        return sorted(
            self.parts,
            key=lambda one: (order[one.label], (one.threshold or 0.0) - (one.score or 0.0)),
        )


def judge(
    detector: Detector,
    results: Iterable[Prediction | Failure | Mapping[str, Any]],
    group_by: str | Grouping,
) -> Verdicts:
    """A verdict for each part, at the rate chosen for the part.

    Args:
        results: what `Detector.predict_many` gave, or the rows that `blemish predict` writes.
        group_by: the regular expression that finds the part's name in a path: its one group, or
            without a group the whole of it. A picture in which it finds nothing is of no part. Or a
            table of pictures and its column that names the part, as "views.csv:part".
    Raises: ConfigError for an expression that does not compile, has several groups, or finds
        nothing in any path; ConfigError or DataError for a table that cannot be used.

    Example:
        >>> import blemish, numpy as np
        >>> good = [np.full((32, 32, 3), 90 + i, dtype=np.uint8) for i in range(3)]
        >>> tiny = {"backbone": "test_vit", "weights": "random", "image_size": 32}
        >>> detector = blemish.fit("knn", good, **tiny).with_threshold(3.0)
        >>> views = {"nut7_top.png": 1.0, "nut7_side.png": 4.0, "nut8_top.png": 2.0}
        >>> rows = [{"path": path, "score": views[path], "category": ""} for path in views]
        >>> [(one.part, one.worst, one.label) for one in judge(detector, rows, r"nut\\d+").parts]
        [('nut7', 'nut7_side.png', 1), ('nut8', 'nut8_top.png', 0)]
    """
    by = grouping_of(group_by) if isinstance(group_by, str) else group_by
    views = [_View.of(one) for one in results]
    found, others = grouped([view.path for view in views], by)
    limits = _Limits(detector)
    parts = tuple(_verdict(name, [views[at] for at in at_], limits) for name, at_ in found.items())
    return Verdicts(parts, tuple(views[at].path for at in others))


def measured(
    detector: Detector, rows: Iterable[Mapping[str, Any]], missing: Iterable[str], by: Grouping
) -> dict[str, Any]:
    """How well parts are judged, as `Evaluation.parts`.

    A part of which a view has no row is no whole part, and is in no figure. A part is defective if
    any of its views is.

    Args:
        rows: as of an `Evaluation`. missing: the paths of the pictures that have none.
    """
    scored = {row["path"]: {**row, "category": row["judged_as"]} for row in rows}
    views = [*scored.values(), *({"path": path, "error": ""} for path in missing)]
    verdicts = judge(detector, views, by)
    whole = [one for one in verdicts.worst_first if not one.failed]
    told = [
        {**one.to_dict(), "truth": max(scored[view]["truth"] for view in one.views)}
        for one in whole
    ]
    defective, good = (
        [one["label"] for one in told if one["truth"] == truth and one["label"] is not None]
        for truth in (ANOMALOUS, NORMAL)
    )
    found, alarms = defective.count(ANOMALOUS), good.count(ANOMALOUS)
    known = detector.record.parts or detector.record
    return {
        "defective": len(defective),
        "found": found,
        "recall": found / len(defective) if defective else None,
        "good": len(good),
        "false_alarms": alarms,
        "false_alarm_rate": alarms / len(good) if good else None,
        "rate": None if known.threshold is None else known.threshold.rate,
        "without_verdict": len(told) - len(defective) - len(good),
        "left_out": len(verdicts.parts) - len(whole),
        "ungrouped": len(verdicts.ungrouped),
        "rows": told,
    }


def part_thresholds(
    group_by: str | Grouping,
    paths: Sequence[str],
    contents: Sequence[str | None],
    scored: Mapping[str, tuple[float, str]],
    rate: float,
    names: Iterable[str],
) -> PartThresholds:
    """The thresholds of good parts, each with all its views.

    A part of which a view could not be read, or was learned from, is no whole part, and does not
    count; nor does one of the same pictures as another.

    Args:
        group_by: as of `judge`.
        paths, contents: of each picture its path and the hash of its content, None if not read.
        scored: by content the score and the category, of pictures that were not learned from.
        rate: false alarms among good parts, in (0, 1).
        names: the categories.
    Raises: ConfigError as `judge`; DataError where no part is whole; CalibrationError where they
        are too few for the rate.
    """
    by = grouping_of(group_by) if isinstance(group_by, str) else group_by
    found, others = grouped(paths, by)
    whole = [[contents[at] for at in views] for views in found.values()]
    whole = [views for views in whole if all(one in scored for one in views)]
    different: dict[frozenset[str | None], list[str | None]] = {}
    for views in whole:
        different.setdefault(frozenset(views), views)
    if not different:
        raise DataError(
            f"none of {len(found)} parts is whole: of each a picture was learned from or could "
            "not be read"
        )
    left_out, copies = len(found) - len(whole), len(whole) - len(different)
    highest: list[tuple[float, str]] = []
    for content in different:
        of_views = [scored[one] for one in content if one is not None]
        highest.append((max(score for score, _ in of_views), _common(name for _, name in of_views)))
    told = [f"{left_out} more are not whole"] if left_out else []
    told += [f"{copies} more are copies, which count once"] if copies else []
    own = {name: tuple(s for s, category in highest if category == name) for name in names}
    scores = tuple(score for score, _ in highest)
    how: dict[str, Any] = {"method": _SPLIT, "of": "part"}
    counts = [len(views) for views in different.values()]
    return PartThresholds(
        pattern=by.pattern,
        threshold=calibrate(scores, rate, required=True, remark="; ".join(told), **how),
        thresholds={
            name: calibrate(each, rate, required=False, **how) for name, each in own.items()
        },
        scores=scores,
        scores_by_category=own,
        fewest=min(counts),
        most=max(counts),
        left_out=left_out,
        copies=copies,
        ungrouped=len(others),
    )


@dataclass(frozen=True, slots=True)
class _View:
    """What counts of a picture; without a score it has failed."""

    path: str
    score: float | None
    category: str = ""
    adapted: bool = False

    @classmethod
    def of(cls, one: Prediction | Failure | Mapping[str, Any]) -> _View:
        if isinstance(one, Prediction):
            return cls(one.source, one.score, one.category, one.adapted)
        if isinstance(one, Failure):
            return cls(one.source, None)
        if "error" in one:
            return cls(one["path"], None)
        return cls(one["path"], one["score"], one["category"], one.get("adapted", False))


@dataclass(frozen=True, slots=True)
class _Limit:
    """The threshold for a view of a part, and why there is none."""

    value: float | None
    rule: Rule
    reason: str = ""


class _Limits:
    """The thresholds of a detector for the views of parts."""

    def __init__(self, detector: Detector) -> None:
        self.parts = detector.record.parts
        self._detector = detector
        self._pictures: dict[tuple[str, int], _Limit] = {}

    def of(self, categories: Sequence[str], views: int) -> list[_Limit]:
        """One for each of the scored views, of these categories, of a part of so many views."""
        known = None if self.parts is None else self.parts.of(_common(categories))
        if known is not None and known.value is not None:
            return [_Limit(known.value, "parts")] * len(categories)
        for category in categories:
            if (category, views) not in self._pictures:
                self._pictures[category, views] = self._from_pictures(category, views)
        return [self._pictures[category, views] for category in categories]

    def _from_pictures(self, category: str, views: int) -> _Limit:
        threshold = self._detector.threshold_for(category)
        if threshold is None:
            return _Limit(None, "none", "the artifact has no threshold")
        if threshold.value is None:
            return _Limit(None, "none", threshold.reason)
        if threshold.method in ("by hand", "labelled defects"):
            rule: Rule = "by hand" if threshold.method == "by hand" else "labelled defects"
            return _Limit(threshold.value, rule)
        if views == 1:
            return _Limit(threshold.value, "Bonferroni")
        return self._bonferroni(threshold, category, views)

    def _bonferroni(self, threshold: Threshold, category: str, views: int) -> _Limit:
        record, rate = self._detector.record, threshold.rate
        assert rate is not None  # as of these two methods of `thresholds`
        own = record.thresholds.get(category)
        scores = record.calibration_scores
        if own is not None and own.value is not None:
            scores = record.calibration_scores_by_category.get(category, ())
        value = for_each_view(scores, rate, views)
        if value is not None:
            return _Limit(value, "Bonferroni")
        reason = (
            f"a rate of {100 * rate:.4g} % for a part of {views} views is "
            f"{100 * rate / views:.4g} % for each: that needs at least "
            f"{pictures_needed(rate, views)} normal pictures to calibrate on, and "
            f"{there_are(len(scores))}; or `blemish calibrate --group-by` with "
            f"{pictures_needed(rate)} good parts or more"
        )
        return _Limit(None, "none", reason)


def _verdict(part: str, views: Sequence[_View], limits: _Limits) -> PartVerdict:
    """Of one part, of at least one view."""
    scored = [view for view in views if view.score is not None]
    failed = tuple(view.path for view in views if view.score is None)
    categories = [view.category for view in scored]
    # Those that failed are views, too: they count in how the rate is divided.
    pairs = list(zip(scored, limits.of(categories, len(views)), strict=True))
    missing = next((limit for _, limit in pairs if limit.value is None), None)
    worst, limit = max(pairs, key=_above, default=(None, None))
    score = None if worst is None else worst.score
    value = None if limit is None else limit.value
    label = None if score is None or value is None else verdict(score, value)
    reason = ""
    if label != ANOMALOUS and (missing is not None or failed):
        label = None
        reason = f"{len(failed)} of its {len(views)} views could not be scored"
        reason = reason if scored else "none of its views could be scored"
        reason = reason if missing is None else missing.reason
    adapted = any(one.adapted for one in scored)
    notes = ["adapted to the pictures, which voids the rate"] if adapted else []
    if limit is not None and limit.rule == "parts" and limits.parts is not None:
        fewest, most = limits.parts.fewest, limits.parts.most
        if len(views) > most:
            notes.append(f"more views ({len(views)}) than the good parts had ({most} at most)")
        if len(views) < fewest:
            notes.append(f"fewer views ({len(views)}) than the good parts had ({fewest} at least)")
    return PartVerdict(
        part=part,
        views=tuple(view.path for view in views),
        failed=failed,
        score=score,
        worst=None if worst is None else worst.path,
        threshold=value,
        label=label,
        reason=reason,
        rule="none" if limit is None else limit.rule,
        category=_common(categories),
        notes=tuple(notes),
    )


def _above(pair: tuple[_View, _Limit]) -> tuple[bool, float]:
    """By how much a view is above its threshold; those with a threshold first."""
    view, limit = pair
    score = 0.0 if view.score is None else view.score
    return limit.value is not None, score - (limit.value or 0.0)


def _common(categories: Iterable[str]) -> str:
    """The category that all have; "" where they have several."""
    different = set(categories)
    return different.pop() if len(different) == 1 else ""
