"""How good a detector is on labelled pictures."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from blemish.data import layouts
from blemish.data.layouts import Dataset
from blemish.data.marks import fault_of, is_placed, is_too_coarse, marked, read_mask
from blemish.detector.predict import Detector
from blemish.errors import BlemishError, DataError, ImageError
from blemish.images import within_memory
from blemish.methods.adaptation import Mode
from blemish.metrics.ranking import auroc, average_precision, best_f1, confusion
from blemish.metrics.regions import PixelMetrics, PixelResult, StreamingPixelMetrics
from blemish.types import (
    ANOMALOUS,
    GOOD,
    NORMAL,
    RESOLUTION,
    Evaluation,
    Failure,
    Prediction,
    Progress,
    Sample,
    silent,
)

_EXACT_PIXELS = (
    400_000_000  # beyond this the constant-memory mode is used (exact would need more than 2 GB)
)


def evaluate(
    detector: Detector,
    data: str | Path | Dataset,
    *,
    resolution: int | None = RESOLUTION,
    adapt: Mode | None = None,
    progress: Progress = silent,
    on_prediction: Callable[[Sample, Prediction], None] = lambda sample, prediction: None,
) -> Evaluation:
    """Image and pixel metrics on the labelled test pictures of a data set.

    Pictures that the detector was fitted or calibrated on are recognised by content and left out. Each is judged by the
    threshold of its category where the detector has one.

    Args:
        data: a path in any layout with labels, or a Dataset. Its test split, or everything where it has none.
        resolution: side of the square at which maps and masks are compared (a pixel of a mask is what
            lies under its centre); None = each picture's own size. A box is drawn there as a mask: the
            pixels whose centres lie in it, and one at least. A mask of another shape than its picture
            is stretched over it, and told (`Evaluation.mask_faults`); one with a pixel for more than
            32 × 32 of its picture is a failure.
        adapt: as of `Detector.predict_many`. The pictures of a category then come in an order drawn once and for all:
            in that of the files whole batches are of one kind of defect, and what they are adapted to tells the label.
        on_prediction: called for every picture scored, in order.
    Raises: DataError when there is no labelled picture, or only ones the detector already knows.
    """
    dataset, samples = labelled(data)
    if adapt is not None:
        random.Random(0).shuffle(samples)
        samples.sort(key=lambda sample: sample.category)
    known = known_pictures(detector)
    placed = any(is_placed(sample) for sample in samples)
    total = len(samples) * (resolution or 1024) ** 2
    pixels = _PixelGroups(detector, exact=total <= _EXACT_PIXELS)
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    left_out: list[str] = []
    mask_faults: list[Failure] = []
    unmasked = 0
    results = detector.predict_many(samples, adapt=adapt)
    for done, (sample, result) in enumerate(zip(samples, results, strict=True), start=1):
        progress("scoring", done, len(samples))
        if isinstance(result, Failure):
            failures.append(result)
            continue
        if result.digest in known:
            left_out.append(result.source)
            continue
        if placed:
            if sample.label == ANOMALOUS and not is_placed(sample):
                unmasked += 1
            else:
                try:
                    with within_memory(str(sample.mask or sample.path)):
                        pixels.add(sample, *_compared(sample, result, resolution, mask_faults))
                except BlemishError as error:
                    source = getattr(error, "source", str(sample.mask or sample.path))
                    failures.append(
                        Failure(source=source, reason=getattr(error, "reason", str(error)))
                    )
                    unmasked += 1
        rows.append(_row(sample, result))
        on_prediction(sample, result)
    if not rows:
        raise DataError(
            f"{dataset.root}: no picture is left to evaluate: all are known to the detector or unreadable"
        )
    found = _summary(detector, rows, pixels if placed else None, failures, left_out, unmasked)
    return replace(
        found, mask_faults=tuple(mask_faults), problems=(*dataset.left_out, *dataset.mask_problems)
    )


def labelled(data: str | Path | Dataset) -> tuple[Dataset, list[Sample]]:
    """A data set, and the pictures of its test split (of everything where it has none) whose label is known.

    Raises: DataError when there is none.
    """
    dataset = data if isinstance(data, Dataset) else layouts.read(data)
    samples = [s for s in dataset.test() or dataset.samples if s.label is not None]
    if not samples or (dataset.layout == "flat"):
        raise DataError(
            f"{dataset.root}: evaluation needs pictures labelled good and defective; {dataset.description}"
        )
    return dataset, samples


def known_pictures(detector: Detector) -> set[str]:
    """The digests of the pictures that it learned from or was calibrated on, which say nothing of how good it is."""
    return {*detector.learned, *detector.manifest["data"]["calibrated"]}


def _compared(
    sample: Sample, result: Prediction, resolution: int | None, mask_faults: list[Failure]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Map and mask at one size; what is wrong with the mask goes into `mask_faults`.

    Raises: ImageError for a mask that cannot be read, or has too few pixels for its picture.
    """
    mask = None if sample.mask is None else read_mask(sample)
    if mask is not None and is_too_coarse(mask, result.size):
        raise ImageError(sample.mask, fault_of(mask, sample.label, result.size))
    if mask is not None and (fault := fault_of(mask, sample.label, result.size)):
        mask_faults.append(Failure(source=str(sample.mask), reason=fault))
    height, width = result.size if resolution is None else (resolution, resolution)
    anomaly_map = cv2.resize(result.anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR)
    return anomaly_map, marked(sample, height, width, mask=mask)


class _PixelGroups:
    """Pixel metrics by (kind, name, defect):

    all: of everything. category and group: of what has that name. defect: of one type against all normal pictures of
    the category. anomalous: of the anomalous pictures alone, of the group of that name or, where it is "", of all.
    """

    def __init__(self, detector: Detector, *, exact: bool) -> None:
        self._exact = exact
        low, high = detector.map_scale
        self._range = (low - 10 * (high - low), high + 30 * (high - low))
        self._normals: list[tuple[np.ndarray, str]] = []
        self._groups: dict[tuple[str, str, str], PixelMetrics | StreamingPixelMetrics] = {}

    def add(self, sample: Sample, anomaly_map: np.ndarray, mask: np.ndarray | None) -> None:
        keys = {("all", "", ""), ("category", sample.category, "")}
        if sample.group:
            keys.add(("group", sample.group, ""))
        if sample.label == ANOMALOUS:
            keys.add(("defect", sample.category, sample.defect))
            keys |= {("anomalous", "", ""), ("anomalous", sample.group, "")}
        for key in keys:
            self._group(key).add(anomaly_map, mask)
        if sample.label == NORMAL and self._exact:
            self._normals.append((anomaly_map, sample.category))

    def result(self, kind: str, name: str = "", defect: str = "") -> PixelResult | None:
        group = self._groups.get((kind, name, defect))
        if group is None:
            return None
        if kind == "defect":
            if not self._exact:
                return None  # would need every normal map once more for each defect type
            for anomaly_map, shown in self._normals:
                if shown == name:
                    group.add(anomaly_map, None)
        return group.compute()

    def auroc_of_anomalous(self, group: str = "") -> float | None:
        result = self.result("anomalous", group)
        return None if result is None else result.pixel_auroc

    def _group(self, key: tuple[str, str, str]) -> PixelMetrics | StreamingPixelMetrics:
        if key not in self._groups:
            self._groups[key] = (
                PixelMetrics() if self._exact else StreamingPixelMetrics(*self._range, bins=1 << 20)
            )
        return self._groups[key]


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
    failures: Sequence[Failure],
    left_out: Sequence[str],
    unmasked: int,
) -> Evaluation:
    scores = np.array([row["score"] for row in rows])
    truth = np.array([row["truth"] for row in rows])
    f1 = best_f1(scores, truth)
    whole = pixels.result("all") if pixels else None
    defects = sorted(
        {(row["category"], row["defect"]) for row in rows if row["truth"] == ANOMALOUS}
    )
    of = {
        name: [row for row in rows if row["category"] == name]
        for name in sorted({row["category"] for row in rows})
    }
    by_category = {name: _group(own, pixels, "category", name) for name, own in of.items()}
    by_group = {
        name: {
            **_group([row for row in rows if row["group"] == name], pixels, "group", name),
            "pixel_auroc_anomalous": pixels.auroc_of_anomalous(name) if pixels else None,
        }
        for name in sorted({row["group"] for row in rows} - {""})
    }
    limits = {row["threshold"] for row in rows}  # of one category alone it is that category's own
    common = None if detector.threshold is None else detector.threshold.value
    limit = limits.pop() if len(limits) == 1 else common
    return Evaluation(
        counts={
            "pictures": len(rows),
            "normal": int((truth == NORMAL).sum()),
            "anomalous": int((truth == ANOMALOUS).sum()),
            "left_out": len(left_out),
            "failed": len(failures),
            "without_mask": unmasked,
        },
        image_auroc=auroc(scores, truth),
        image_ap=average_precision(scores, truth),
        best_f1=None if f1 is None else f1[0],
        best_f1_threshold=None if f1 is None else f1[1],
        pixel_auroc=None if whole is None else whole.pixel_auroc,
        aupro=None if whole is None else whole.aupro,
        pixel_auroc_error=0.0 if whole is None else whole.auroc_error,
        aupro_error=0.0 if whole is None else whole.aupro_error,
        by_defect={
            defect if len(of) == 1 else f"{category}/{defect}": _group(
                [row for row in of[category] if row["truth"] == NORMAL or row["defect"] == defect],
                pixels,
                "defect",
                category,
                defect,
            )
            for category, defect in defects
        },
        by_category=by_category,
        category_mean=_means(by_category.values()) if len(by_category) > 1 else {},
        pixel_auroc_anomalous=pixels.auroc_of_anomalous() if pixels else None,
        by_group=by_group,
        votes=_votes(rows, truth),
        threshold=limit,
        confusion=None if limit is None else confusion([row["label"] for row in rows], truth),
        rows=tuple(rows),
        left_out=tuple(left_out),
        failures=tuple(failures),
    )


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
