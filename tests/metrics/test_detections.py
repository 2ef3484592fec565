"""The curve of found defects against false regions, by brute force over its levels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from blemish.metrics.detections import FALSE_REGIONS, DetectionMetrics


@pytest.mark.parametrize("smallest", [0.0, 3 / 400])
def test_recall_at_false_regions_is_the_best_level_that_has_no_more(smallest: float) -> None:
    rng = np.random.default_rng(0)
    levels = np.linspace(0, 6, 25)
    metrics = DetectionMetrics(levels)
    found, false, defects = np.zeros(25), np.zeros(25), 0
    for number in range(12):
        values = cv2.GaussianBlur(rng.random((20, 20), dtype=np.float32) * 6, (0, 0), 0.8)
        mask = np.zeros((20, 20), dtype=bool)
        if number % 3:
            mask[2:5, 3:6] = mask[12:15, 12:18] = True
            values[mask] += 1.0
        metrics.add(values, mask if number % 2 else mask.copy(), [], smallest=smallest)
        count, owners = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        defects += count - 1
        for place, level in enumerate(levels):
            above = (values > level).astype(np.uint8)
            parts, labels = cv2.connectedComponents(above, connectivity=8)
            kept = [labels == one for one in range(1, parts)]
            kept = [one for one in kept if one.sum() >= smallest * 400]
            false[place] += sum(not (one & mask).any() for one in kept)
            union = np.logical_or.reduce([*kept, np.zeros_like(mask)])
            found[place] += sum((union & (owners == one)).any() for one in range(1, count))
    expected = {
        f"{most:g}": found[false <= most * 12].max(initial=0) / defects for most in FALSE_REGIONS
    }
    made = metrics.compute()
    assert made.recall_at == pytest.approx(expected)
    assert len({*made.recall_at.values()}) > 1
    assert (made.pictures, made.normal, made.defects) == (12, 4, defects)
    assert (made.precision, made.recall, made.f1) == (None, 0, 0)


def test_a_defect_smaller_than_a_place_of_the_map_counts() -> None:
    mask = np.zeros((400, 400), dtype=bool)
    mask[200:390, 100:390], mask[7, 7] = True, True
    values = np.zeros((10, 10), dtype=np.float32)
    values[0, 0] = 1
    metrics = DetectionMetrics([0.5])
    metrics.add(values, mask, [])
    assert metrics.compute().recall_at == {"0.1": 0.5, "0.5": 0.5, "1": 0.5}


def test_without_defects_there_is_nothing_to_divide_by() -> None:
    metrics = DetectionMetrics([0.5])
    region = np.eye(3, dtype=bool)
    metrics.add(np.eye(3, dtype=np.float32), None, [region])
    metrics.add(np.eye(3, dtype=np.float32), np.zeros((3, 3), dtype=bool), [])
    made = metrics.compute()
    assert (made.normal, made.normal_with_region, made.false_regions) == (2, 1, 1)
    assert (made.iou, made.f1, made.recall, made.region_recall) == (None, None, None, None)
    assert made.precision == 0
    assert made.recall_at == {}
