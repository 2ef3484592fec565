"""Detectors that look at an area only, from fit to the artifact to the regions they show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from parts import FIT, part, settings_of
from sklearn.metrics import roc_auc_score

import blemish
from blemish import artifact
from blemish.area import SIDE
from blemish.data.areas import read_area
from blemish.data.marks import marked
from blemish.detector.predict import NARROWED, Detector
from blemish.errors import ArtifactError, ConfigError
from blemish.types import Prediction, Sample

ROI = [[[0.25, 0.25], [0.75, 0.25], [0.7, 0.8], [0.3, 0.75]]]
WHOLE = [[[0, 0], [1, 0], [1, 1], [0, 1]]]
METHODS = ["knn", "padim", "patchcore"]
OTHERS = [
    "guided",
    "agpnet",
    "atacnet",
    "lda",
    "simplenet",
    "spade",
    "rd4ad",
    "dinomaly",
    "vitad",
    "uniad",
    "efficientad",
    "dra",
    "ahl",
    "draem",
]


def fitted(method: str, **more: Any) -> Detector:
    good = [part(seed) for seed in range(6)]
    return blemish.fit(method, good, false_alarm_rate=0.5, **{**settings_of(method), **more})


def noisy_outside(pixels: np.ndarray, detector: Detector, seed: int = 0) -> np.ndarray:
    area = detector.record.preprocessing.area
    assert area is not None
    inside = area.mask(*pixels.shape[:2])
    noise = np.random.default_rng(seed).integers(0, 256, pixels.shape, dtype=np.uint8)
    return np.where(inside[..., None], pixels, noise)


@pytest.mark.parametrize("method", [*METHODS, *OTHERS])
def test_what_lies_outside_changes_nothing(method: str) -> None:
    detector = fitted(method, roi=ROI)
    for shape in ({}, {"height": 150, "width": 90}):
        pixels = part(9, defect=True, **shape)
        one, two = (detector.predict(each) for each in (pixels, noisy_outside(pixels, detector)))
        assert one.score == two.score
        assert (one.anomaly_map == two.anomaly_map).all()
        assert (one.heatmap == two.heatmap).all()
        assert one.digest != two.digest


@pytest.mark.parametrize("method", METHODS)
def test_nothing_outside_is_learned(method: str) -> None:
    plain = fitted(method, roi=ROI)
    good = [noisy_outside(part(seed), plain, seed) for seed in range(6)]
    settings = {**settings_of(method), "false_alarm_rate": 0.5}
    other = blemish.fit(method, good, roi=ROI, **settings)
    assert other.record.calibration_scores == plain.record.calibration_scores
    assert other.predict(part(9)).score == plain.predict(part(9)).score


@pytest.mark.parametrize("method", [*METHODS, *OTHERS])
def test_the_whole_picture_is_as_no_area(method: str) -> None:
    plain, whole = fitted(method), fitted(method, roi=WHOLE)
    for seed in (9, 10):
        pixels = part(seed, defect=seed == 10)
        one, two = plain.predict(pixels), whole.predict(pixels)
        assert one.score == two.score
        assert (one.anomaly_map == two.anomaly_map).all()
    assert plain.record.calibration_scores == whole.record.calibration_scores
    assert plain.record.regions == whole.record.regions


@pytest.mark.parametrize("method", METHODS)
def test_regions_and_heatmaps_stay_inside(method: str) -> None:
    detector = fitted(method, roi=ROI)
    area = detector.record.preprocessing.area
    assert area is not None
    pixels = part(9, defect=True)
    pixels[24:44, 8:60] = 255  # on both sides of the border
    found = detector.predict(pixels)
    inside = area.mask(*found.size)
    assert found.regions
    assert found.mask is not None
    assert found.mask.any()
    assert not found.mask[~inside].any()
    assert (found.heatmap[~inside] == found.anomaly_map.min()).all()
    # Not even where all of the area stands out.
    every = detector.with_region_threshold(-1.0).predict(pixels)
    assert every.mask is not None
    assert not every.mask[~inside].any()
    assert every.mask[inside].mean() > 0.9


@pytest.mark.parametrize("method", ["knn", "padim", "lda", "guided"])
def test_the_score_is_the_mean_of_the_highest_inside(method: str) -> None:
    detector = fitted(method, roi=ROI, top_fraction=0.1)
    area = detector.record.preprocessing.area
    assert area is not None
    found = detector.predict(part(9, defect=True))
    values = np.sort(found.anomaly_map[area.places(*found.anomaly_map.shape)])[::-1]
    assert found.score == pytest.approx(values[: max(1, round(0.1 * len(values)))].mean())
    outside = ~area.places(*found.anomaly_map.shape)
    assert (found.anomaly_map[outside] == values.min()).all()


def test_it_is_in_the_artifact(tmp_path: Path) -> None:
    detector = fitted("knn", roi=ROI, ignore=[[[0.4, 0.4], [0.6, 0.4], [0.6, 0.6]]])
    again = blemish.load(detector.save(tmp_path / "part.blemish"), precision="fp32")
    assert again.record.preprocessing == detector.record.preprocessing
    assert again.manifest["preprocessing"]["area"]["runs"][0] > 0
    pixels = part(9, defect=True)
    one, two = detector.predict(pixels), again.predict(noisy_outside(pixels, detector))
    assert one.score == two.score
    assert (one.anomaly_map == two.anomaly_map).all()


def test_artifacts_without_one_say_nothing_of_it(tmp_path: Path) -> None:
    detector = fitted("knn")
    assert "area" not in detector.manifest["preprocessing"]
    assert blemish.load(detector.save(tmp_path / "part.blemish")).record.preprocessing.area is None


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [SIDE * SIDE],
        [SIDE * SIDE - 1],
        [-1, SIDE * SIDE + 1],
        [0, 5, 0, SIDE * SIDE - 5],
        [1, 2**62],
        [0.0, SIDE * SIDE],
        [0, "all"],
        [0, *[1] * (SIDE * SIDE)],
        None,
        "01",
    ],
)
def test_hostile_artifacts(runs: Any, tmp_path: Path) -> None:
    path = fitted("knn", roi=ROI).save(tmp_path / "part.blemish")
    tensors, manifest = artifact.read(path)
    manifest = json.loads(json.dumps(manifest))
    manifest["preprocessing"]["area"] = {"runs": runs}
    artifact.write(path, tensors, manifest)
    with pytest.raises(ArtifactError, match=r"preprocessing\.area\.runs"):
        blemish.load(path)


def test_a_bad_area_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="roi: is empty"):
        blemish.fit("knn", tmp_path / "nowhere", roi=[])


def pixel_auroc_inside(detector: Detector, data: Path, roi: Any) -> tuple[float, float]:
    """What `evaluate` measures, and the same by hand."""
    area, seen = read_area(roi), []
    assert area is not None
    inside = area.mask(64, 64)

    def see(sample: Sample, prediction: Prediction) -> None:
        values = cv2.resize(prediction.anomaly_map, (64, 64))
        truth = marked(sample, 64, 64)
        truth = np.zeros((64, 64), dtype=bool) if truth is None else truth
        seen.append((truth[inside], values[inside]))

    found = blemish.evaluate(detector, data, resolution=64, on_prediction=see)
    truth, values = (np.concatenate(each) for each in zip(*seen, strict=True))
    assert found.pixel_auroc is not None
    return found.pixel_auroc, roc_auc_score(truth, values)


def test_evaluation_ignores_pixels_outside(mvtec: Path) -> None:
    roi = [[[0, 0.3], [0.6, 0.3], [0.6, 1], [0, 1]]]
    settings = {**settings_of("knn"), "roi": roi}
    detector = blemish.fit("knn", mvtec / "train" / "good", **settings)
    measured, by_hand = pixel_auroc_inside(detector, mvtec, roi)
    assert measured == pytest.approx(by_hand)


def test_the_commands(
    run: Callable[..., tuple[int, str, str]],
    refused: Callable[..., str],
    good_folder: Path,
    tmp_path: Path,
) -> None:
    roi, ignore, made = (tmp_path / name for name in ("roi.json", "ignore.png", "part.blemish"))
    roi.write_text(json.dumps([[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]]))
    upper = np.zeros((40, 30), dtype=np.uint8)
    upper[:20] = 255
    cv2.imwrite(str(ignore), upper)
    _, out, _ = run("fit knn", good_folder, "-o", made, FIT, "--roi", roi, "--ignore", ignore)
    assert "Looks at: 25 % of the picture" in out
    assert "25 % of the picture" in run("inspect", made)[1]
    area = blemish.load(made).record.preprocessing.area
    assert area is not None
    assert area.mask(2, 2).tolist() == [[False, False], [True, False]]
    roi.write_text("[[[0, 0]")
    assert "roi.json: is not valid JSON" in refused(
        "fit knn", good_folder, "-o", tmp_path / "b", FIT, "--roi", roi
    )


# What only narrows what is shown.


@pytest.mark.parametrize("method", [*METHODS, "agpnet", "dinomaly", "vitad", "guided", "lda"])
def test_narrowed_afterwards_it_raises_no_new_alarm(method: str) -> None:
    more = {"score_window": 0} if method == "agpnet" else {}
    whole = fitted(method, top_fraction=0.02, **more)
    changed = 0
    for roi in (ROI, [[[0, 0], [0.1, 0], [0.1, 0.1], [0, 0.1]]]):
        narrow = whole.within(roi)
        for seed in range(20, 30):
            pixels = part(seed, defect=seed % 2 == 0)
            one, two = whole.predict(pixels), narrow.predict(pixels)
            inside = narrow.area.places(*two.anomaly_map.shape)  # type: ignore[union-attr]
            assert two.score <= one.score
            assert two.p_value >= one.p_value
            assert two.threshold == one.threshold
            assert (two.anomaly_map[inside] == one.anomaly_map[inside]).all()
            assert (two.anomaly_map[~inside] == one.anomaly_map[inside].min()).all()
            assert not two.mask[~narrow.area.mask(*two.size)].any()  # type: ignore[index,union-attr]
            assert NARROWED in two.notes
            assert NARROWED not in one.notes
            changed += two.score < one.score
    assert changed


def test_a_defect_outside_is_no_alarm() -> None:
    whole = fitted("knn")
    narrow = whole.within(None, [[[0, 0.5], [0.45, 0.5], [0.45, 1], [0, 1]]])
    pixels = part(9, defect=True)
    scores = [each.predict(pixels).score for each in (whole, narrow)]
    middle = sum(scores) / 2
    assert scores[0] > 1.2 * scores[1]
    one, two = (
        each.with_threshold(middle).with_region_threshold(middle).predict(pixels)
        for each in (whole, narrow)
    )
    assert (one.label, two.label) == (1, 0)
    assert one.regions
    assert not two.regions
    assert narrow.with_threshold(-1.0).predict(pixels).area == narrow.area


def test_narrowed_to_the_whole_picture_it_is_as_before() -> None:
    whole = fitted("knn")
    one, two = (each.predict(part(9)) for each in (whole, whole.within(WHOLE)))
    assert one.score == two.score
    assert (one.anomaly_map == two.anomaly_map).all()
    assert whole.within() is whole


def test_it_is_narrowed_within_the_area_of_the_fit() -> None:
    detector = fitted("knn", roi=ROI)
    narrow = detector.within([[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]])
    assert detector.area is not None
    assert narrow.area is not None
    mask = detector.area.mask(64, 64)
    mask[:, 32:] = False
    assert (narrow.area.mask(64, 64) == mask).all()
    with pytest.raises(ConfigError, match="nothing of the area lies in the one that the artifact"):
        detector.within([[[0, 0], [0.2, 0], [0.2, 0.2]]])


@pytest.mark.parametrize(
    "method", ["atacnet", "agpnet", "vitad", "uniad", "guided", "dra", "ahl", "draem"]
)
def test_a_score_of_the_whole_picture_cannot_be_narrowed(method: str) -> None:
    window = {"score_window": 0.1}
    more = {"guided": {"score": "class"}}
    more |= dict.fromkeys(("agpnet", "vitad", "uniad", "draem"), window)
    with pytest.raises(ConfigError, match=r"one of the whole picture, .* name them at fit"):
        fitted(method, **more.get(method, {})).within(ROI)


def test_a_narrowed_detector_is_not_kept(tmp_path: Path) -> None:
    narrow = fitted("knn").within(ROI)
    with pytest.raises(ConfigError, match="save: the detector was narrowed"):
        narrow.save(tmp_path / "part.blemish")
    with pytest.raises(ConfigError, match="calibrate: the detector was narrowed"):
        blemish.recalibrate(narrow, [part(40 + seed) for seed in range(20)])
    with pytest.raises(ConfigError, match="refine: the detector was narrowed"):
        blemish.refine(fitted("lda", normality="knn").within(ROI), good=[part(50)])


def test_evaluation_of_what_was_narrowed_ignores_pixels_outside(mvtec: Path) -> None:
    roi = [[[0, 0.3], [0.6, 0.3], [0.6, 1], [0, 1]]]
    detector = blemish.fit("knn", mvtec / "train" / "good", **settings_of("knn")).within(roi)
    measured, by_hand = pixel_auroc_inside(detector, mvtec, roi)
    assert measured == pytest.approx(by_hand)


def test_predict_and_evaluate_take_an_area(
    run: Callable[..., tuple[int, str, str]],
    answered: Callable[..., Any],
    refused: Callable[..., str],
    mvtec: Path,
    tmp_path: Path,
) -> None:
    made, roi, out = (tmp_path / name for name in ("part.blemish", "roi.json", "out"))
    run("fit knn", mvtec / "train" / "good", "-o", made, FIT)
    roi.write_text(json.dumps(ROI))
    predict = ("predict", made, mvtec / "test", "--precision fp32")
    narrow = blemish.load(made, precision="fp32").within(roi)
    rows = answered(*predict, "--output", out, "--roi", roi)["predictions"]
    for row in rows[:3]:
        assert row["score"] == pytest.approx(narrow.predict(row["path"]).score, rel=1e-5)
        assert NARROWED in row["notes"]
    assert "as many good ones raise an alarm" in run(*predict, "--roi", roi)[1]
    assert len(answered(*predict, "--output", out, "--resume --roi", roi)["predictions"])
    for other in ("", f"--ignore {roi}"):
        told = refused(*predict, "--output", out, "--resume", other)
        assert "made with another --roi or --ignore" in told
    evaluate = ("evaluate", made, mvtec, "--precision fp32")
    whole, part_of_it = answered(*evaluate), answered(*evaluate, "--ignore", roi)
    assert whole["pixel_auroc"] != part_of_it["pixel_auroc"]
    roi.write_text("[]")
    assert "roi.json: is empty" in refused(*evaluate, "--roi", roi)
