"""How good a detector is on labelled pictures."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from blemish.data import layouts
from blemish.data.layouts import Dataset
from blemish.data.marks import fault_of, is_placed, is_too_coarse, marked, read_mask
from blemish.detector.grouping import Grouping, checked
from blemish.detector.parts import measured
from blemish.detector.predict import Detector
from blemish.errors import BlemishError, DataError, ImageError
from blemish.images import within_memory
from blemish.metrics.detections import DetectionMetrics
from blemish.metrics.ranking import auroc, average_precision, best_f1, confusion
from blemish.metrics.regions import PixelMetrics, PixelResult, StreamingPixelMetrics
from blemish.types import (
    ANOMALOUS,
    GOOD,
    NORMAL,
    RESOLUTION,
    Evaluation,
    Failure,
    Mode,
    Prediction,
    Progress,
    Sample,
    silent,
)

# Beyond this the constant-memory mode is used: exact metrics would need more than 2 GB.
_EXACT_PIXELS = 400_000_000
_LEVELS = 32  # of the curve of found defects against false regions


def evaluate(
    detector: Detector,
    data: str | Path | Dataset,
    *,
    resolution: int | None = RESOLUTION,
    adapt: Mode | None = None,
    group_by: str | None = None,
    predict: Callable[..., Iterable[Prediction | Failure]] | None = None,
    progress: Progress = silent,
    on_prediction: Callable[[Sample, Prediction], None] = lambda sample, prediction: None,
) -> Evaluation:
    """Image and pixel metrics on the labelled test pictures of a data set.

    Pictures that it was fitted or calibrated on are recognised by content and left out. Each is
    judged by its category's threshold, if any. Pixels outside the area are in no pixel metric.

    Args:
        data: a path in any layout with labels, or a Dataset; without a test split all of it counts.
        resolution: side of the square at which maps and masks are compared (a pixel of a mask is
            what lies under its centre); None = each picture's own size. A box is a mask there: the
            pixels whose centres lie in it, at least one. A mask of another shape than its picture
            is stretched (`Evaluation.mask_faults`); one with a pixel for more than 32 × 32 fails.
        adapt: as of `Detector.predict_many`. Each category's pictures then come in an order drawn
            once and for all: in that of the files whole batches are of one kind of defect.
        group_by: how parts of several views are told, as of `parts.judge`, to measure them, too.
        predict: called with the samples and `adapt=`, in place of `detector.predict_many`.
        on_prediction: called for every picture scored, in order.
    Raises: DataError when there is no labelled picture, or only ones the detector already knows.
    """
    dataset, samples, by = asked(data, adapt, group_by)
    found = Judged.of(detector, samples, resolution)
    judge(
        *(detector, samples, found),
        resolution=resolution,
        adapt=adapt,
        predict=predict,
        progress=progress,
        on_prediction=on_prediction,
    )
    return summed(detector, dataset, samples, by, found)


@dataclass
class Judged:
    """What is known of labelled pictures once a detector has scored them. Such of several parts of
    a data set merge into that of all of them.

    Attributes:
        exact: whether pixel metrics are exact; else in constant memory, within a bound.
        rows: as of `Evaluation`, and so the next three. pixels: None where no defect is placed.
    """

    exact: bool
    pixels: _PixelGroups | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    mask_faults: list[Failure] = field(default_factory=list)

    @classmethod
    def of(cls, detector: Detector, samples: Sequence[Sample], resolution: int | None) -> Judged:
        """Of nothing yet, for all of these pictures."""
        exact = len(samples) * (resolution or 1024) ** 2 <= _EXACT_PIXELS
        placed = any(map(is_placed, samples))
        return cls(exact, _PixelGroups(detector, exact=exact) if placed else None)

    def empty(self, detector: Detector) -> Judged:
        """Another of nothing yet, for a part of the same pictures."""
        pixels = None if self.pixels is None else _PixelGroups(detector, exact=self.exact)
        return Judged(self.exact, pixels)

    def merge(self, other: Judged) -> None:
        """Adds what is known of other pictures, which come after those here."""
        for name in ("rows", "failures", "left_out", "mask_faults"):
            getattr(self, name).extend(getattr(other, name))
        if self.pixels is not None and other.pixels is not None:
            self.pixels.merge(other.pixels)


def judge(
    detector: Detector,
    samples: Sequence[Sample],
    found: Judged,
    *,
    resolution: int | None = RESOLUTION,
    adapt: Mode | None = None,
    predict: Callable[..., Iterable[Prediction | Failure]] | None = None,
    progress: Progress = silent,
    on_prediction: Callable[[Sample, Prediction], None] = lambda sample, prediction: None,
) -> None:
    """Score labelled pictures and add what is found of them; as `evaluate`."""
    known = known_pictures(detector)
    results = (predict or detector.predict_many)(samples, adapt=adapt)
    for done, (sample, result) in enumerate(zip(samples, results, strict=True), start=1):
        progress("scoring", done, len(samples))
        if isinstance(result, Failure):
            found.failures.append(result)
        elif result.digest in known:
            found.left_out.append(result.source)
        else:
            if found.pixels is not None:
                found.failures += found.pixels.compare(
                    sample, result, resolution, found.mask_faults
                )
            found.rows.append(_row(sample, result))
            on_prediction(sample, result)


def summed(
    detector: Detector,
    dataset: Dataset,
    samples: Sequence[Sample],
    by: Grouping | None,
    found: Judged,
) -> Evaluation:
    """The metrics of all that was judged. Raises: DataError where that is nothing."""
    if not found.rows:
        why = "no picture is left to evaluate: all are known to the detector or unreadable"
        raise DataError(f"{dataset.root}: {why}")
    counts = len(found.failures), len(found.left_out)
    return replace(
        _summary(detector, found.rows, found.pixels, *counts),
        left_out=tuple(found.left_out),
        failures=tuple(found.failures),
        mask_faults=tuple(found.mask_faults),
        parts=None if by is None else _parts(detector, found.rows, samples, by),
        problems=(*dataset.left_out, *dataset.mask_problems),
    )


def asked(
    data: str | Path | Dataset, adapt: Mode | None, group_by: str | None
) -> tuple[Dataset, list[Sample], Grouping | None]:
    """The data set, its labelled pictures in the order in which they are scored, and how parts are
    told. Raises: as `labelled` and `grouping.checked`."""
    dataset, samples = labelled(data)
    by = checked(group_by, [str(sample.path) for sample in samples])
    if adapt is not None:
        random.Random(0).shuffle(samples)
        samples.sort(key=lambda sample: sample.category)
    return dataset, samples, by


def _parts(
    detector: Detector, rows: Sequence[Mapping[str, Any]], samples: Iterable[Sample], by: Grouping
) -> dict[str, Any]:
    """As `Evaluation.parts`."""
    scored = {row["path"] for row in rows}
    missing = [str(sample.path) for sample in samples if str(sample.path) not in scored]
    return measured(detector, rows, missing, by)


def labelled(data: str | Path | Dataset) -> tuple[Dataset, list[Sample]]:
    """A data set, and the pictures of its test split whose label is known; of everything where it
    has no test split.

    Raises: DataError when there is none.
    """
    dataset = data if isinstance(data, Dataset) else layouts.read(data)
    samples = [sample for sample in dataset.test() or dataset.samples if sample.label is not None]
    if not samples or dataset.layout == "flat":
        raise DataError(
            f"{dataset.root}: evaluation needs pictures labelled good and defective; "
            f"{dataset.description}"
        )
    return dataset, samples


def known_pictures(detector: Detector) -> set[str]:
    """The digests of the pictures that it learned from or was calibrated on, which say nothing of
    how good it is."""
    return {*detector.learned, *detector.record.data.calibrated}


class _PixelGroups:
    """Pixel metrics by (kind, name, defect):

    all: of everything. category and group: of what has that name. defect: of one type against all
    normal pictures of the category. anomalous: of the anomalous pictures alone, of the group of
    that name or, where it is "", of all.

    Attributes:
        unmasked: how many anomalous pictures are in none, for nobody says where their defect is.
    """

    def __init__(self, detector: Detector, *, exact: bool) -> None:
        self.unmasked = 0
        self._exact = exact
        low, high = detector.map_scale
        self._range = (low - 10 * (high - low), high + 30 * (high - low))
        unit = (high - low) / 2  # from the middle of a normal map to its highest
        levels = low + unit * np.geomspace(0.25, 16, _LEVELS)
        self.detections = DetectionMetrics(levels)
        self._normals: list[tuple[np.ndarray, np.ndarray | None, str]] = []
        self._groups: dict[tuple[str, str, str], PixelMetrics | StreamingPixelMetrics] = {}

    def compare(
        self, sample: Sample, result: Prediction, resolution: int | None, mask_faults: list[Failure]
    ) -> Iterator[Failure]:
        """Add a picture's map and mask. Gives a failure where the mask cannot be used; what is
        wrong with one that can joins `mask_faults`."""
        if sample.label == ANOMALOUS and not is_placed(sample):
            self.unmasked += 1
            return
        try:
            with within_memory(str(sample.mask or sample.path)):
                mask = None if sample.mask is None else read_mask(sample)
                if mask is not None and (fault := fault_of(mask, sample.label, result.size)):
                    if is_too_coarse(mask, result.size):
                        raise ImageError(sample.mask, fault)
                    mask_faults.append(Failure(source=str(sample.mask), reason=fault))
                height, width = result.size if resolution is None else (resolution, resolution)
                size = (width, height)
                heatmap = cv2.resize(result.anomaly_map, size, interpolation=cv2.INTER_LINEAR)
                truth, area = marked(sample, height, width, mask=mask), result.area
                inside = None if area is None else area.mask(height, width)
                self._add(sample, heatmap, truth, inside)
                if result.regions is not None:
                    truth = marked(sample, *result.size, mask=mask)
                    if truth is not None and area is not None:
                        truth = truth & area.mask(*result.size)
                    self.detections.add(
                        result.anomaly_map,
                        truth,
                        [region.mask for region in result.regions],
                        smallest=result.smallest_region,
                    )
        except BlemishError as error:
            self.unmasked += 1
            source = getattr(error, "source", str(sample.mask or sample.path))
            yield Failure(source=source, reason=getattr(error, "reason", str(error)))

    def _add(
        self,
        sample: Sample,
        anomaly_map: np.ndarray,
        mask: np.ndarray | None,
        inside: np.ndarray | None,
    ) -> None:
        keys = {("all", "", ""), ("category", sample.category, "")}
        if sample.group:
            keys.add(("group", sample.group, ""))
        if sample.label == ANOMALOUS:
            keys.add(("defect", sample.category, sample.defect))
            keys |= {("anomalous", "", ""), ("anomalous", sample.group, "")}
        for key in keys:
            self._group(key).add(anomaly_map, mask, inside)
        if sample.label == NORMAL and self._exact:
            self._normals.append((anomaly_map, inside, sample.category))

    def merge(self, other: _PixelGroups) -> None:
        """Adds what is known of other pictures, which come after those here."""
        self.unmasked += other.unmasked
        self.detections.merge(other.detections)
        self._normals += other._normals
        for key, group in other._groups.items():
            # Of one kind, as `exact` says; a copy, for what comes from elsewhere may be read-only.
            mine: Any = self._group(key)
            mine.merge(group)

    def _group(self, key: tuple[str, str, str]) -> PixelMetrics | StreamingPixelMetrics:
        if key not in self._groups:
            exact = self._exact
            self._groups[key] = (
                PixelMetrics() if exact else StreamingPixelMetrics(*self._range, bins=1 << 20)
            )
        return self._groups[key]

    def result(self, kind: str, name: str = "", defect: str = "") -> PixelResult | None:
        group = self._groups.get((kind, name, defect))
        if group is None:
            return None
        if kind == "defect":
            if not self._exact:
                return None  # would need every normal map once more for each defect type
            for anomaly_map, inside, shown in self._normals:
                if shown == name:
                    group.add(anomaly_map, None, inside)
        return group.compute()

    def auroc_of_anomalous(self, group: str = "") -> float | None:
        result = self.result("anomalous", group)
        return None if result is None else result.pixel_auroc


def _row(sample: Sample, result: Prediction) -> dict[str, Any]:
    return {
        "path": result.source,
        "score": result.score,
        "threshold": result.threshold,
        "truth": sample.label,
        "label": result.label,
        "defect": sample.defect or (GOOD if sample.label == NORMAL else ""),
        "category": sample.category,
        "judged_as": result.category,
        "category_assigned": result.category_assigned,
        "group": sample.group,
        "votes": result.votes,
    }


def _summary(
    detector: Detector,
    rows: Sequence[Mapping[str, Any]],
    pixels: _PixelGroups | None,
    failed: int,
    left_out: int,
) -> Evaluation:
    """All metrics of the rows; the counts of what is not in them are given."""
    scores = np.array([row["score"] for row in rows])
    truth = np.array([row["truth"] for row in rows])
    f1 = best_f1(scores, truth)
    whole = pixels.result("all") if pixels else None
    by_category = {
        name: _group(own, pixels, "category", name) for name, own in _split(rows, "category")
    }
    limits = {row["threshold"] for row in rows}  # of one category alone it is that category's own
    common = None if detector.threshold is None else detector.threshold.value
    limit = limits.pop() if len(limits) == 1 else common
    return Evaluation(
        counts={
            "pictures": len(rows),
            "normal": int((truth == NORMAL).sum()),
            "anomalous": int((truth == ANOMALOUS).sum()),
            "left_out": left_out,
            "failed": failed,
            "without_mask": pixels.unmasked if pixels else 0,
        },
        image_auroc=auroc(scores, truth),
        image_ap=average_precision(scores, truth),
        best_f1=None if f1 is None else f1[0],
        best_f1_threshold=None if f1 is None else f1[1],
        pixel_auroc=None if whole is None else whole.pixel_auroc,
        aupro=None if whole is None else whole.aupro,
        pixel_auroc_error=0.0 if whole is None else whole.auroc_error,
        aupro_error=0.0 if whole is None else whole.aupro_error,
        by_defect=_by_defect(rows, pixels),
        by_category=by_category,
        category_mean=_means(by_category.values()) if len(by_category) > 1 else {},
        pixel_auroc_anomalous=pixels.auroc_of_anomalous() if pixels else None,
        by_group={
            name: {
                **_group(own, pixels, "group", name),
                "pixel_auroc_anomalous": pixels.auroc_of_anomalous(name) if pixels else None,
            }
            for name, own in _split(rows, "group")
            if name
        },
        votes=_votes(rows, truth),
        regions=_regions(pixels),
        threshold=limit,
        confusion=None if limit is None else confusion([row["label"] for row in rows], truth),
        rows=tuple(rows),
    )


def _split(
    rows: Sequence[Mapping[str, Any]], key: str
) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The rows by their value of a key, sorted by it."""
    names = sorted({row[key] for row in rows})
    return [(name, [row for row in rows if row[key] == name]) for name in names]


def _by_defect(
    rows: Sequence[Mapping[str, Any]], pixels: _PixelGroups | None
) -> dict[str, dict[str, float | int | None]]:
    """The metrics of each type of defect against the normal pictures of its category."""
    found = {}
    categories = _split(rows, "category")
    for category, own in categories:
        normal = [row for row in own if row["truth"] == NORMAL]
        anomalous = [row for row in own if row["truth"] == ANOMALOUS]
        for defect, shown in _split(anomalous, "defect"):
            name = defect if len(categories) == 1 else f"{category}/{defect}"
            found[name] = _group([*normal, *shown], pixels, "defect", category, defect)
    return found


def _regions(pixels: _PixelGroups | None) -> dict[str, Any] | None:
    """As `Evaluation.regions`."""
    found = None if pixels is None else pixels.detections.compute()
    if found is None or not found.pictures:
        return None
    return {
        **asdict(found),
        "region_recall": found.region_recall,
        "false_per_picture": found.false_regions / found.pictures,
    }


def _votes(rows: Sequence[Mapping[str, Any]], truth: np.ndarray) -> dict[str, float] | None:
    """As `Evaluation.votes`."""
    if any(row["votes"] is None for row in rows):
        return None
    share = np.array([row["votes"] for row in rows])
    ranked = auroc(share, truth)
    if ranked is None:
        return None
    right = (share > 0.5) == (truth == ANOMALOUS)
    balanced = (right[truth == NORMAL].mean() + right[truth == ANOMALOUS].mean()) / 2
    return {"image_auroc": ranked, "balanced_accuracy": float(balanced)}


def _group(
    rows: Sequence[Mapping[str, Any]],
    pixels: _PixelGroups | None,
    kind: str,
    name: str,
    defect: str = "",
) -> dict[str, float | int | None]:
    scores = [row["score"] for row in rows]
    truth = [row["truth"] for row in rows]
    result = pixels.result(kind, name, defect) if pixels else None
    count = sum(value == ANOMALOUS for value in truth) if kind == "defect" else len(rows)
    return {
        "count": count,
        "image_auroc": auroc(scores, truth),
        "image_ap": average_precision(scores, truth),
        "pixel_auroc": None if result is None else result.pixel_auroc,
        "aupro": None if result is None else result.aupro,
    }


def _means(groups: Collection[Mapping[str, float | int | None]]) -> dict[str, float | None]:
    """The mean of each metric over the groups that have it."""
    means: dict[str, float | None] = {}
    for metric in ("image_auroc", "image_ap", "pixel_auroc", "aupro"):
        values = [value for group in groups if (value := group[metric]) is not None]
        means[metric] = sum(values) / len(values) if values else None
    return means
