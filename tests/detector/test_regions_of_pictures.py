"""Region thresholds, p-values and thresholds for missed defects, from fit to evaluation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from parts import Fitted, Part

import blemish
from blemish.detector.calibrate import recalibrate_on_defects
from blemish.detector.thresholds import for_misses, p_value
from blemish.errors import CalibrationError, ConfigError, DataError
from blemish.regions import region_level


def parts(picture: Part, count: int, first: int = 0, **how: Any) -> list[np.ndarray]:
    return [picture(seed, **how) for seed in range(first, first + count)]


@pytest.mark.parametrize("smallest", [0.0, 0.02])
def test_the_region_threshold_is_conformal_on_the_level_of_held_out_maps(
    picture: Part, small: Any, smallest: float
) -> None:
    detector = blemish.fit(
        "knn",
        parts(picture, 20),
        calibration_fraction=0.5,
        false_alarm_rate=0.2,
        smallest_region=smallest,
        **small,
    )
    held = set(detector.record.data.calibrated)
    found = [one for one in map(detector.predict, parts(picture, 20)) if one.digest in held]
    levels = sorted(region_level(one.anomaly_map, smallest) for one in found)
    assert detector.record.regions is not None
    assert sorted(detector.record.regions.levels) == pytest.approx(levels)
    threshold = detector.region_threshold_for()
    assert threshold is not None
    assert threshold.value == pytest.approx(levels[math.ceil(11 * 0.8) - 1])
    assert "shows a region with probability at most 20 %" in threshold.guarantee
    # So at most a fifth of 11 exchangeable pictures, rounded down, shows any region.
    assert sum(bool(one.regions) for one in found) <= 2
    assert {one.smallest_region for one in found} == {smallest}


def test_left_out_pictures_of_lda_are_judged_without_what_they_taught(
    picture: Part, small: Any
) -> None:
    good, bad = parts(picture, 6), parts(picture, 3, first=40, defect=True)
    levels = []
    for anomalies in (None, bad):
        detector = blemish.fit("lda", good, anomalies=anomalies, **small)
        assert detector.record.regions is not None
        assert len(detector.record.regions.levels) == 6
        levels.append(detector.record.regions.levels)
        known = [region_level(detector.predict(one).anomaly_map) for one in good]
        # What a detector has learned from seems more usual to it than what it has not.
        assert np.mean(detector.record.regions.levels) > np.mean(known)
    assert levels[0] != levels[1]


def test_a_defect_has_its_region_and_the_json_tells_of_it(fitted: Fitted, picture: Part) -> None:
    detector = fitted("knn", 24)
    prediction = detector.predict(picture(90, defect=True))
    assert prediction.regions
    plain, shown = picture(90), picture(90, defect=True)
    where = np.argwhere((plain != shown).any(-1))
    x, y, width, height = prediction.regions[0].box
    middle = where.mean(0)
    assert y <= middle[0] <= y + height
    assert x <= middle[1] <= x + width
    assert prediction.mask is not None
    assert prediction.mask.sum() == sum(one.area for one in prediction.regions)
    row = prediction.to_dict()
    assert [one["box"] for one in row["regions"]] == [list(one.box) for one in prediction.regions]
    assert row["region_threshold"] == prediction.region_threshold


def test_p_values_count_the_normal_pictures_that_score_as_high(
    fitted: Fitted, picture: Part
) -> None:
    detector = fitted("knn", 24)
    scores = np.array(detector.record.calibration_scores)
    for one in (picture(3), picture(70), picture(71, defect=True)):
        found = detector.predict(one)
        assert found.p_value == (1 + (scores >= found.score).sum()) / (len(scores) + 1)
    assert found.p_value == 1 / (len(scores) + 1)
    # By the definition of the threshold, an alarm is a p-value of at most the rate.
    assert detector.threshold is not None
    assert found.score > (detector.threshold.value or math.inf)
    assert found.p_value <= (detector.threshold.rate or 0)


def test_a_normal_picture_with_the_same_score_counts_as_one_that_scores_as_high() -> None:
    ordered = np.array([1.0, 2.0, 2.0, 3.0])
    found = [p_value(score, ordered) for score in (0.5, 2.0, 3.0, 3.5)]
    assert found == [1.0, 0.8, 0.4, 0.2]
    assert p_value(2.0, ordered[:0]) is None


def test_artifacts_from_before_there_were_regions_have_none(fitted: Fitted, picture: Part) -> None:
    from dataclasses import replace

    detector = fitted("knn", 24)
    old = detector.with_record(replace(detector.record, regions=None))
    assert "regions" not in old.manifest
    found = old.predict(picture(90, defect=True))
    assert found.regions is found.mask is found.to_dict()["regions"] is None
    by_hand = old.with_region_threshold(0.0, smallest=0.5)
    assert by_hand.predict(picture(90)).region_threshold == 0.0
    assert by_hand.smallest_region == 0.5
    assert old.record.regions is None
    with pytest.raises(ConfigError, match="smallest"):
        old.with_region_threshold(0.0, smallest=1.0)


def test_it_is_kept_in_the_artifact(fitted: Fitted, picture: Part, tmp_path: Path) -> None:
    detector = fitted("knn", 24)
    detector.save(tmp_path / "a")
    again = blemish.load(tmp_path / "a", precision="fp32")
    assert again.record.regions == detector.record.regions
    one = picture(90, defect=True)
    assert again.predict(one).regions == detector.predict(one).regions


def test_a_threshold_that_misses_few_defects() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 20.0))  # 1 to 19
    for rate, missed in ((0.05, 0), (0.1, 1), (0.24, 3), (0.25, 4)):
        threshold = for_misses(scores, rate)
        assert threshold.value is not None
        assert (scores <= threshold.value).sum() == missed
        assert missed + 1 <= (19 + 1) * rate < missed + 2
        assert f"at most {100 * rate:.4g} %" in threshold.guarantee
    with pytest.raises(CalibrationError, match=r"at least 24 labelled defects .* there are 19"):
        for_misses(scores, 0.04)
    with pytest.raises(ConfigError, match="miss rate"):
        for_misses(scores, 1.0)


def test_of_a_rate_of_misses_new_defects_alone_are_evidence(picture: Part, small: Any) -> None:
    learned = parts(picture, 3, first=40, defect=True)
    new = parts(picture, 4, first=60, defect=True)
    detector = blemish.fit("lda", parts(picture, 24), anomalies=learned, **small)
    made, failures, left_out = recalibrate_on_defects(
        detector, [*learned, *new, new[0]], miss_rate=0.2
    )
    scores = [detector.predict(one).score for one in new]
    assert (failures, left_out) == ([], 3)
    assert made.threshold is not None
    assert (made.threshold.n, made.threshold.method) == (4, "labelled defects")
    assert made.threshold.value == math.nextafter(min(scores), -math.inf)
    assert made.record.regions == detector.record.regions
    with pytest.raises(DataError, match="no labelled defect is left"):
        recalibrate_on_defects(detector, learned, miss_rate=0.2)


def test_refined_by_defects_the_regions_wait_for_new_pictures(picture: Part, small: Any) -> None:
    detector = blemish.fit("lda", parts(picture, 24), **small)
    more = blemish.refine(detector, good=parts(picture, 2, first=30)).detector
    assert more.record.regions == detector.record.regions
    taught = blemish.refine(detector, anomalies=parts(picture, 3, first=40, defect=True)).detector
    threshold = taught.region_threshold_for()
    assert threshold is not None
    assert threshold.value is None
    assert "blemish calibrate" in threshold.reason
    again, *_ = blemish.recalibrate(taught, parts(picture, 20, first=200))
    assert again.region_threshold_for() != threshold
    assert again.predict(picture(90)).region_threshold is not None


def test_evaluation_counts_defects_regions_and_pixels_as_by_hand(
    fitted: Fitted, mvtec: Path
) -> None:
    detector = fitted("knn", 24).with_region_threshold(0.0)  # and then at a level that divides
    maps = {path: detector.predict(path) for path in sorted((mvtec / "test").rglob("*.png"))}
    level = float(np.quantile([one.anomaly_map.max() for one in maps.values()], 0.4))
    detector = detector.with_region_threshold(level)
    defects = found = false = normal = shown = both = marked = true = 0
    for path in maps:
        one = detector.predict(path)
        assert one.regions is not None
        mask = np.zeros(one.size, np.uint8)
        if path.parent.name != "good":
            place = mvtec / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            mask = (cv2.imread(str(place), cv2.IMREAD_GRAYSCALE) > 127).astype(np.uint8)
        else:
            normal, shown = normal + 1, shown + bool(one.regions)
        count, labels = cv2.connectedComponents(mask, connectivity=8)
        defects += count - 1
        found += sum((one.mask & (labels == each)).any() for each in range(1, count))
        false += sum(not (each.mask & (mask > 0)).any() for each in one.regions)
        both += (one.mask & (mask > 0)).sum()
        marked, true = marked + one.mask.sum(), true + mask.sum()
    of = blemish.evaluate(detector, mvtec).regions
    assert of is not None
    assert (of["defects"], of["found"], of["false_regions"]) == (defects, found, false)
    assert (of["normal"], of["normal_with_region"]) == (normal, shown)
    assert of["region_recall"] == found / defects
    assert of["precision"] == pytest.approx(both / marked)
    assert of["recall"] == pytest.approx(both / true)
    assert of["f1"] == pytest.approx(2 * both / (marked + true))
    assert of["iou"] == pytest.approx(both / (marked + true - both))
    at = [*of["recall_at"].values()]
    assert at == sorted(at)
    assert max(at) > 0
