"""`fit` of several categories, and of few shots of each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import Part, Write

import blemish
from blemish.data.splits import few_shot
from blemish.errors import CalibrationError, ConfigError, DataError
from blemish.images import decode
from blemish.methods.memory import KnnConfig
from blemish.types import Sample


def parts(picture: Part, count: int, first: int = 0) -> list[np.ndarray]:
    return [picture(first + index) for index in range(count)]


def digests(sources: list[Any]) -> list[str]:
    return [decode(source).digest for source in sources]


def quantile(scores: list[float], rate: float) -> float:
    """The k-th smallest, k = ceil((n + 1)(1 - rate)), by hand."""
    return sorted(scores)[math.ceil(round((len(scores) + 1) * (1 - rate), 9)) - 1]


# --- Several categories


@pytest.fixture
def two(tmp_path: Path, picture: Part, write: Write) -> Path:
    """A data-set root with 24 nuts and 20 bolts, which are negatives."""
    root = tmp_path / "two"
    for seed in range(24):
        write(root / "nut" / "train" / "good" / f"{seed:03d}.png", picture(seed))
    for seed in range(20):
        write(root / "bolt" / "train" / "good" / f"{seed:03d}.png", 255 - picture(50 + seed))
    return root


def test_categories_in_every_form(two: Path, small: Any) -> None:
    expected = blemish.fit("knn", two, **small).manifest
    samples = [
        Sample(path=path, label=0, category=path.parents[2].name)
        for path in sorted(two.rglob("*.png"))
    ]
    for good in ([two / "nut", two / "bolt"], samples, [two]):
        manifest = blemish.fit("knn", good, **small).manifest
        assert manifest["categories"] == expected["categories"] == ["bolt", "nut"]
        assert manifest["data"]["fingerprint"] == expected["data"]["fingerprint"]
        for category, scores in expected["calibration_scores_by_category"].items():
            same = manifest["calibration_scores_by_category"][category]
            assert sorted(same) == pytest.approx(sorted(scores), rel=1e-4)


def test_one_category_is_none(two: Path, picture: Part, small: Any) -> None:
    nut = two / "nut" / "train" / "good"
    for good in (two / "nut", [nut], [nut, picture(9)]):
        manifest = blemish.fit("knn", good, **small).manifest
        assert (manifest["categories"], manifest["thresholds"]) == ([], {})
        assert manifest["calibration_scores_by_category"] == {}


@pytest.mark.parametrize(
    ("method", "fraction", "counts"), [("knn", None, (20, 24)), ("padim", 0.25, (5, 6))]
)
def test_every_category_has_its_threshold(
    method: str, fraction: float | None, counts: tuple[int, int], two: Path, small: Any
) -> None:
    asked = {"calibration_fraction": fraction, "false_alarm_rate": 0.2}
    detector = blemish.fit(method, two, **asked, **small)
    manifest = detector.manifest
    scores = manifest["calibration_scores_by_category"]
    assert (len(scores["bolt"]), len(scores["nut"])) == counts
    assert sorted(scores["bolt"] + scores["nut"]) == sorted(manifest["calibration_scores"])
    for category, own in detector.thresholds.items():
        assert own.value == quantile(scores[category], 0.2)
    assert manifest["threshold"]["value"] == quantile(manifest["calibration_scores"], 0.2)
    if held := set(manifest["data"]["calibrated"]):
        for category, count in zip(("bolt", "nut"), counts, strict=True):
            assert len(held & set(digests(list((two / category).rglob("*.png"))))) == count


def test_a_category_with_too_few_falls_back(two: Path, small: Any) -> None:
    for name in ("000.png", "001.png"):
        (two / "bolt" / "train" / "good" / name).unlink()
    # By name: bolt has 18, 19 are needed.
    detector = blemish.fit("knn", two, false_alarm_rate=0.05, **small)
    assert detector.thresholds["nut"].value is not None
    assert detector.thresholds["bolt"].value is None
    assert "there are 18; the common threshold is used" in detector.thresholds["bolt"].reason
    assert detector.threshold_for("bolt") == detector.threshold
    with pytest.raises(CalibrationError):
        blemish.fit("knn", two, false_alarm_rate=0.01, **small)


def test_recalibrate_by_category(
    two: Path, tmp_path: Path, picture: Part, write: Write, small: Any
) -> None:
    detector, folders = blemish.fit("knn", two, **small), []
    drawn = {"nut": parts(picture, 6, 700), "pin": parts(picture, 6, 900)}
    for name, good in {**drawn, "bolt": [255 - one for one in parts(picture, 6, 800)]}.items():
        drawn[name] = good
        folders.append(tmp_path / "new" / name / "good")
        for seed, pixels in enumerate(good):
            write(folders[-1] / f"{seed}.png", pixels)
    again, _, _ = blemish.recalibrate(detector, folders, false_alarm_rate=0.2)
    scores = again.manifest["calibration_scores_by_category"]
    expected = [detector.predict(one).score for one in drawn["bolt"]]
    assert scores["bolt"] == pytest.approx(expected, rel=1e-4)
    assert set(scores) == set(again.thresholds) == {"bolt", "nut"}
    bolt = again.thresholds["bolt"]
    assert (bolt.value, bolt.method) == (quantile(scores["bolt"], 0.2), "split conformal")
    # What it does not know counts for the common one.
    assert again.threshold.n == 18  # type: ignore[union-attr]
    with pytest.raises(DataError, match="no picture of nut is among"):
        blemish.recalibrate(detector, folders[1:], false_alarm_rate=0.2)
    plain, _, _ = blemish.recalibrate(detector, drawn["nut"], false_alarm_rate=0.2)
    assert [(own.value, own.n) for own in plain.thresholds.values()] == [(None, 0)] * 2
    assert plain.threshold_for("nut") == plain.threshold is not None


def test_the_heatmap_scale_is_of_all_categories(two: Path, small: Any) -> None:
    detector = blemish.fit("knn", two, calibration_fraction=0, **small)
    only = blemish.fit("knn", two / "bolt", calibration_fraction=0, **small)
    assert detector.map_scale != pytest.approx(only.map_scale, rel=1e-3)
    assert detector.thresholds == {}


# --- Few shots


def test_shots_are_drawn_by_the_seed(good_folder: Path, small: Any) -> None:
    def data(seed: int, fraction: float | None = None) -> dict[str, Any]:
        asked = {"shots": 4, "seed": seed, "calibration_fraction": fraction}
        manifest = blemish.fit("knn", good_folder, **asked, **small).manifest
        assert (manifest["config"]["rotations"], manifest["config"]["flips"]) == (16, True)
        assert manifest["shots"] == 4
        return dict(manifest["data"])

    expected = few_shot([Sample(path=path) for path in good_folder.iterdir()], 4, 3)
    whole, held = data(3), data(3, 0.5)
    assert whole["fitted"] == digests([sample.path for sample in expected])
    assert whole["calibrated"] == []
    assert data(4)["fitted"] != whole["fitted"]
    assert (len(held["fitted"]), len(held["calibrated"])) == (2, 2)
    assert {*held["fitted"], *held["calibrated"]} == set(whole["fitted"])


def test_one_shot_knows_every_side_of_it(picture: Part, small: Any) -> None:
    nearest = {**small, "neighbours": 1}
    detector = blemish.fit("knn", parts(picture, 1), shots=1, **nearest)
    plain = blemish.fit("knn", parts(picture, 1), **nearest)
    for turned in (np.rot90(picture(0)), picture(0)[:, ::-1], np.rot90(picture(0)[:, ::-1], 3)):
        assert detector.predict(turned.copy()).score == pytest.approx(0, abs=1e-3)
        assert plain.predict(turned.copy()).score > 0.01
    assert detector.threshold is not None
    assert (detector.threshold.value, detector.threshold.n) == (None, 0)


@pytest.mark.parametrize(
    ("given", "kept"), [({"rotations": 2}, (2, True)), ({"flips": False}, (16, False))]
)
def test_the_callers_own_augmentation_wins(given: Any, kept: Any, picture: Part) -> None:
    config = blemish.configure("knn", values=given, shots=2)
    assert (config.rotations, config.flips) == kept
    named = [f"{key}={value}" for key, value in given.items()]
    assert blemish.configure("knn", assignments=named, shots=2) == config
    whole = KnnConfig(backbone="test_vit", image_size=(64,), layers=(2,))
    good = parts(picture, 3)
    taken = blemish.fit("knn", good, shots=2, config=whole, weights="random").method.config
    assert (taken.rotations, taken.flips) == (1, False)


def test_shots_of_each_category(two: Path, small: Any) -> None:
    detector = blemish.fit("knn", two, shots=2, rotations=1, false_alarm_rate=0.2, **small)
    assert detector.manifest["data"]["count"] == 4
    scores = detector.manifest["calibration_scores_by_category"]
    assert {name: len(own) for name, own in scores.items()} == {"bolt": 2, "nut": 2}
    one = blemish.fit("knn", two, shots=1, rotations=1, **small)
    # The only nut, left out, would be judged by bolts.
    assert one.manifest["calibration_scores"] == []
    with pytest.raises(DataError, match="bolt: 21 shots were asked for, but there are only 20"):
        blemish.fit("knn", two, shots=21, **small)
    with pytest.raises(ConfigError, match="at least 1"):
        blemish.fit("knn", two, shots=0, **small)
