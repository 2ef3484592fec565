"""From good pictures to a detector: who is held out, when there is a threshold, and what the
manifest keeps.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import blemish
from blemish.backbones import build
from blemish.data.splits import few_shot
from blemish.data.transforms import prepare
from blemish.detector.predict import Detector
from blemish.errors import BlemishError, CalibrationError, ConfigError, DataError
from blemish.images import decode
from blemish.methods.memory import KnnConfig, PatchCoreConfig
from blemish.types import Batch, Failure, Prediction, Sample

Part = Callable[..., np.ndarray]
Write = Callable[..., Path]


def parts(picture: Part, count: int, first: int = 0) -> list[np.ndarray]:
    return [picture(first + index) for index in range(count)]


def digests(sources: list[Any]) -> list[str]:
    return [decode(source).digest for source in sources]


def quantile(scores: list[float], rate: float) -> float:
    """The k-th smallest, k = ceil((n + 1)(1 - rate)), by hand."""
    return sorted(scores)[math.ceil(round((len(scores) + 1) * (1 - rate), 9)) - 1]


# --- Configuration
# --------------------------------------------------------------------------------------------------


def test_configure_takes_the_recipe_then_values_then_assignments() -> None:
    config = blemish.configure(
        "patchcore", recipe="paper", values={"pooling": 5, "seed": None}, assignments=["seed=7"]
    )
    assert isinstance(config, PatchCoreConfig)
    assert (config.backbone, config.pooling, config.seed) == ("wide_resnet50_2", 5, 7)
    assert blemish.configure("knn") == KnnConfig()
    assert blemish.configure("knn", values={"pooling": 3}, assignments=["pooling=5"]) == KnnConfig(
        pooling=5
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "pachcore"}, "did you mean 'patchcore'"),
        ({"method": "knn", "recipe": "paper"}, "unknown recipe of knn 'paper'"),
        ({"method": "patchcore", "recipe": "papers"}, "did you mean 'paper'"),
        ({"method": "knn", "values": {"bank_sise": 3}}, "did you mean 'bank_size'"),
        ({"method": "knn", "values": {"bank_size": "many"}}, "bank_size"),
        ({"method": "knn", "assignments": ["bank_size=0"]}, "bank_size"),
        ({"method": "knn", "assignments": ["bank_size"]}, "key=value"),
    ],
)
def test_configure_says_what_is_wrong(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        blemish.configure(**arguments)


@pytest.mark.parametrize("clash", [{"pooling": 3}, {"recipe": "paper"}, {"backbone": "test_vit"}])
def test_a_whole_config_and_single_settings_clash(clash: dict[str, Any], picture: Part) -> None:
    with pytest.raises(ConfigError, match="not both"):
        blemish.fit("patchcore", [picture(0)], config=PatchCoreConfig(), **clash)


def test_an_unknown_setting_is_an_error_before_any_work(picture: Part) -> None:
    with pytest.raises(
        ConfigError, match="unknown setting 'image_sise'; did you mean 'image_size'"
    ):
        blemish.fit("knn", [picture(0)], image_sise=32)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"calibration_fraction": 1.0}, "calibration_fraction"),
        ({"calibration_fraction": -0.1}, "calibration_fraction"),
        ({"false_alarm_rate": 0.0}, "false-alarm rate"),
        ({"false_alarm_rate": 1.0}, "false-alarm rate"),
        ({"calibration_fraction": 0, "false_alarm_rate": 0.1}, "needs calibration pictures"),
        ({"device": "nowhere"}, "device"),
        ({"precision": "fp7"}, "precision"),
        ({"layers": (99,)}, "layer 99 does not exist"),
        ({"backbone": "test_vitt"}, "unknown backbone"),
        ({"window": (5.0, 1.0)}, "window"),
    ],
)
def test_an_option_out_of_range(
    options: dict[str, Any], says: str, picture: Part, small: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=says):
        blemish.fit("knn", parts(picture, 3), **{**small, **options})


def test_sizes_are_rounded_to_what_the_backbone_divides(
    picture: Part, small: dict[str, Any]
) -> None:
    detector = blemish.fit("knn", parts(picture, 3), **{**small, "image_size": (60, 100)})
    assert detector.method.config.image_size == (64, 96)
    assert (detector.preprocessing.height, detector.preprocessing.width) == (64, 96)
    assert detector.predict(picture(1)).anomaly_map.shape == (16, 24)


def test_layers_that_are_not_named_are_written_down(picture: Part, small: dict[str, Any]) -> None:
    detector = blemish.fit("knn", parts(picture, 3), **{**small, "layers": None})
    layers = build("test_vit", weights="random").check_layers(())
    assert detector.method.config.layers == layers
    assert detector.manifest["config"]["layers"] == list(layers)


@pytest.mark.parametrize("method", list(blemish.METHODS))
def test_the_seed_is_the_one_that_was_given(
    method: str, picture: Part, brief: dict[str, Any]
) -> None:
    named = {key: brief[key] for key in ("device", "precision", "weights")}
    values = {key: value for key, value in brief.items() if key not in named}
    config = blemish.configure(method, values={**values, "seed": 5})
    for detector in (
        blemish.fit(method, parts(picture, 6), seed=5, **brief),
        blemish.fit(method, parts(picture, 6), config=config, **named),
    ):
        assert (
            detector.method.config.seed
            == detector.manifest["seed"]
            == detector.manifest["config"]["seed"]
            == 5
        )


# --- Which pictures
# --------------------------------------------------------------------------------------------------


def test_good_in_every_form(
    mvtec: Path, good_folder: Path, picture: Part, small: dict[str, Any]
) -> None:
    folder = sorted((mvtec / "train" / "good").iterdir())
    expected = digests(folder)
    for good in (
        mvtec,  # of a data set the good training pictures
        mvtec / "train" / "good",
        str(good_folder),
        folder,
        [Sample(path=path, label=0) for path in folder],
        parts(picture, 24),
        [Image.fromarray(pixels) for pixels in parts(picture, 24)],
        [good_folder],
        iter(folder),
        [*folder[:3], *parts(picture, 21, first=3)],
    ):
        assert blemish.fit("knn", good, **small).manifest["data"]["fitted"] == expected
    assert blemish.fit("knn", folder[0], **small).manifest["data"]["fitted"] == expected[:1]


def test_good_beside_defects(
    tmp_path: Path, picture: Part, write: Write, small: dict[str, Any]
) -> None:
    for seed in range(4):
        write(tmp_path / "good" / f"{seed}.png", picture(seed))
        write(tmp_path / "dent" / f"{seed}.png", picture(seed, defect=True))
    detector = blemish.fit("knn", tmp_path, **small)
    assert detector.manifest["data"]["fitted"] == digests(parts(picture, 4))
    assert "good" in detector.manifest["data"]["layout"]


@pytest.mark.parametrize(
    ("good", "says"),
    [
        ([], "no picture"),
        (np.zeros((8, 8), np.uint8), "a list"),
        (7, "a list"),
        ("/nowhere", "no such"),
    ],
)
def test_good_that_is_none(good: object, says: str, small: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=says):
        blemish.fit("knn", good, **small)


def test_an_empty_folder(tmp_path: Path, small: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no pictures found"):
        blemish.fit("knn", tmp_path, **small)


def test_no_good_picture_in_a_data_set(
    tmp_path: Path, picture: Part, write: Write, small: dict[str, Any]
) -> None:
    write(tmp_path / "a.png", picture(0))
    (tmp_path / "table.csv").write_text("path,label\na.png,1\n")
    with pytest.raises(DataError, match="known to be good"):
        blemish.fit("knn", tmp_path / "table.csv", **small)


def test_broken_pictures_are_left_out_and_named(good_folder: Path, small: dict[str, Any]) -> None:
    (good_folder / "005.png").write_text("not a picture")
    whole = (good_folder / "011.png").read_bytes()
    (good_folder / "011.png").write_bytes(whole[:-20])
    (good_folder / "024.png").symlink_to(good_folder / "nowhere.png")
    detector = blemish.fit("knn", good_folder, **small)
    data = detector.manifest["data"]
    assert data["count"] == len(data["fitted"]) == 22
    assert {Path(failure["path"]).name for failure in data["failures"]} == {
        "005.png",
        "011.png",
        "024.png",
    }
    assert all(failure["error"] for failure in data["failures"])
    assert len(detector.manifest["calibration_scores"]) == 22


def test_broken_pictures_that_were_held_out(
    good_folder: Path, picture: Part, small: dict[str, Any]
) -> None:
    small["calibration_fraction"] = 0.2
    whole = blemish.fit("padim", good_folder, **small)
    held = next(
        p
        for p in sorted(good_folder.iterdir())
        if decode(p).digest in whole.manifest["data"]["calibrated"]
    )
    held.write_text("not a picture")
    detector = blemish.fit("padim", good_folder, **small)
    assert detector.manifest["data"]["fitted"] == whole.manifest["data"]["fitted"]
    assert [failure["path"] for failure in detector.manifest["data"]["failures"]] == [str(held)]
    assert detector.threshold is not None
    assert detector.threshold.n == 4


def test_the_window_is_stored_and_used(
    tmp_path: Path, picture: Part, small: dict[str, Any]
) -> None:
    for seed in range(4):
        dim = picture(seed)[..., 0].astype(np.uint16) * 4  # 0…1000 of 65535
        cv2.imwrite(str(tmp_path / f"{seed}.png"), dim)
    detector = blemish.fit("knn", tmp_path, window=(0, 1020), **small)
    assert detector.manifest["preprocessing"]["window"] == [0, 1020]
    loaded = blemish.load(detector.save(tmp_path / "x.blemish"), device="cpu", precision="fp32")
    assert loaded.preprocessing.decode_window() == (0, 1020)
    expected = decode(tmp_path / "0.png", window=(0, 1020))
    assert (
        loaded.predict(tmp_path / "0.png").digest
        == expected.digest
        == detector.manifest["data"]["fitted"][0]
    )
    assert loaded.predict(expected.pixels * 1020).score == pytest.approx(
        loaded.predict(tmp_path / "0.png").score
    )
    plain = blemish.fit("knn", tmp_path, **small)
    assert plain.preprocessing.window is None
    assert plain.predict(tmp_path / "0.png").digest != expected.digest


def test_the_fingerprint_is_of_the_content(
    good_folder: Path, picture: Part, small: dict[str, Any]
) -> None:
    data = blemish.fit("knn", good_folder, **small).manifest["data"]
    joined = "".join(sorted(digests(parts(picture, 24))))
    assert data["fingerprint"] == hashlib.sha256(joined.encode()).hexdigest()
    (good_folder / "000.png").rename(good_folder / "zzz.png")
    assert (
        blemish.fit("padim", good_folder, **small).manifest["data"]["fingerprint"]
        == data["fingerprint"]
    )
    (good_folder / "zzz.png").unlink()
    assert (
        blemish.fit("knn", good_folder, **small).manifest["data"]["fingerprint"]
        != data["fingerprint"]
    )


# --- The threshold
# --------------------------------------------------------------------------------------------------


def test_leave_one_out_holds_nothing_out(picture: Part, fitted: Callable[..., Detector]) -> None:
    detector = fitted("knn")
    data, threshold = detector.manifest["data"], detector.threshold
    assert (len(data["fitted"]), data["calibrated"]) == (24, [])
    assert threshold is not None
    assert (threshold.method, threshold.n, threshold.rate) == ("leave-one-out", 24, 0.05)
    scores = detector.manifest["calibration_scores"]
    for index in range(24):
        batch = Batch(
            prepare(decode(picture(index)), detector.preprocessing)[None], torch.tensor([index])
        )
        assert scores[index] == pytest.approx(
            detector.method.judge_left_out(detector.method.see(batch.images), batch).image.item(),
            rel=1e-4,
        )
    assert threshold.value == quantile(scores, 0.05) == max(scores)
    assert "jackknife" in threshold.guarantee


@pytest.mark.parametrize("method", ["knn", "patchcore"])
@pytest.mark.parametrize("batch_size", [3, 50])
def test_a_picture_that_is_left_out_is_not_judged_by_its_twin(
    method: str, batch_size: int, picture: Part, write: Write, tmp_path: Path, small: dict[str, Any]
) -> None:
    """Copies tell nothing of a new picture: whatever a twin scores, one of the different pictures
    scores so too.
    """
    good = parts(picture, 8)
    alone = blemish.fit(method, good, batch_size=batch_size, **small).manifest["calibration_scores"]
    copy = write(tmp_path / "copy.bmp", picture(2))
    twins = [copy, *good, picture(5), picture(5)]
    scores = blemish.fit(method, twins, batch_size=batch_size, **small).manifest[
        "calibration_scores"
    ]
    assert min(alone) > 0.01
    assert len(scores) >= len(alone)
    for score in scores:
        assert min(abs(score - other) for other in alone) < 1e-3 * score
    for other in alone:
        assert min(abs(score - other) for score in scores) < 1e-3 * other


def test_held_out_pictures_calibrate(picture: Part, small: dict[str, Any]) -> None:
    detector = blemish.fit("padim", parts(picture, 24), calibration_fraction=0.2, **small)
    data, scores = detector.manifest["data"], detector.manifest["calibration_scores"]
    assert (len(data["fitted"]), len(data["calibrated"])) == (19, 5)  # a fifth of 24
    assert set(data["fitted"]).isdisjoint(data["calibrated"])
    assert {*data["fitted"], *data["calibrated"]} == set(digests(parts(picture, 24)))
    by_digest = dict(zip(digests(parts(picture, 24)), parts(picture, 24), strict=True))
    expected = [detector.predict(by_digest[digest]).score for digest in data["calibrated"]]
    assert scores == pytest.approx(expected, rel=1e-4)
    threshold = detector.threshold
    assert threshold is not None
    assert (threshold.value, threshold.n, threshold.guarantee) == (None, 5, "")
    assert "5 % needs at least 19 normal pictures" in threshold.reason
    assert detector.predict(picture(0)).label is None
    assert detector.manifest["threshold"] == threshold.to_dict()


@pytest.mark.parametrize("method", ["knn", "padim"])
def test_a_copy_of_a_training_picture_does_not_calibrate(
    method: str, picture: Part, small: dict[str, Any]
) -> None:
    """Held out or not, it was learned: only what was not is a new normal picture's equal."""
    twice = [each for each in parts(picture, 12) for _ in range(2)]
    detector = blemish.fit(method, twice, calibration_fraction=0.4, **small)
    data = detector.manifest["data"]
    by_digest = dict(zip(digests(twice), twice, strict=True))
    new = {digest for digest in data["calibrated"] if digest not in data["fitted"]}
    expected = sorted(detector.predict(by_digest[digest]).score for digest in new)
    scores = detector.manifest["calibration_scores"]
    assert sorted({round(score, 5) for score in scores}) == pytest.approx(
        expected, rel=1e-3, abs=2e-5
    )


@pytest.mark.parametrize("method", ["knn", "patchcore", "padim"])
@pytest.mark.parametrize(
    ("fraction", "rate", "n"), [(0.5, 0.25, 12), (0.2, 0.2, 5), (0.9, 0.05, 22)]
)
def test_a_fraction_and_a_rate_by_name(
    method: str, fraction: float, rate: float, n: int, picture: Part, small: dict[str, Any]
) -> None:
    detector = blemish.fit(
        method, parts(picture, 24), calibration_fraction=fraction, false_alarm_rate=rate, **small
    )
    threshold = detector.threshold
    assert threshold is not None
    assert (threshold.method, threshold.n, threshold.rate) == ("split conformal", n, rate)
    assert threshold.value == quantile(detector.manifest["calibration_scores"], rate)
    alarms = sum(score > threshold.value for score in detector.manifest["calibration_scores"])
    assert alarms <= rate * n


@pytest.mark.parametrize("method", ["knn", "padim"])
def test_a_rate_by_name_that_the_pictures_cannot_support(
    method: str, picture: Part, small: dict[str, Any]
) -> None:
    stages: list[str] = []
    options = {**small, "progress": lambda stage, done, total: stages.append(stage)}
    with pytest.raises(CalibrationError, match="1 % needs at least 99 normal pictures"):
        blemish.fit(method, parts(picture, 24), false_alarm_rate=0.01, **options)
    assert set(stages) == {"loading the backbone"}  # it is said before the work, not after it


@pytest.mark.parametrize("method", ["knn", "patchcore", "padim"])
def test_too_few_for_the_default_rate_leaves_no_threshold(
    method: str, picture: Part, small: dict[str, Any]
) -> None:
    detector = blemish.fit(method, parts(picture, 8), **small)
    assert detector.threshold is not None
    assert detector.threshold.value is None
    assert "needs at least 19" in detector.threshold.reason
    assert detector.predict(picture(1)).label is None


@pytest.mark.parametrize("method", ["knn", "padim"])
def test_no_calibration_at_all(method: str, picture: Part, small: dict[str, Any]) -> None:
    detector = blemish.fit(method, parts(picture, 24), calibration_fraction=0, **small)
    assert detector.threshold is None
    assert detector.manifest["threshold"] is None
    assert detector.manifest["calibration_scores"] == []
    assert (len(detector.manifest["data"]["fitted"]), detector.manifest["data"]["calibrated"]) == (
        24,
        [],
    )
    prediction = detector.predict(picture(1))
    assert (prediction.label, prediction.threshold) == (None, None)


@pytest.mark.parametrize(
    ("method", "count", "options"),
    [
        *[(method, count, {}) for method in ("knn", "patchcore") for count in (2, 3, 24)],
        *[
            (method, 24, {"calibration_fraction": fraction})
            for method in ("knn", "patchcore")
            for fraction in (0, 0.2)
        ],
        ("padim", 24, {}),
    ],
)
def test_the_heatmap_scale_fits_the_maps_of_normal_pictures(
    method: str, count: int, options: dict[str, Any], picture: Part, small: dict[str, Any]
) -> None:
    # Whether or not there is a threshold: a heatmap without a sensible scale is one colour.
    detector = blemish.fit(method, parts(picture, count), **options, **small)
    low, high = detector.map_scale
    results = [
        result
        for result in detector.predict_many(parts(picture, 8, 600))
        if isinstance(result, Prediction)
    ]
    maps = np.stack([result.anomaly_map for result in results])
    assert low < high
    assert low <= np.quantile(maps, 0.999)
    assert high >= np.quantile(maps, 0.5)
    assert high - low < 20 * (maps.max() - maps.min())


@pytest.mark.parametrize("options", [{}, {"calibration_fraction": 0}])
def test_the_heatmap_scale_is_measured_even_when_nothing_is_held_out(
    options: dict[str, Any], picture: Part, small: dict[str, Any]
) -> None:
    detector = blemish.fit("padim", parts(picture, 2), **options, **small)
    low, high = detector.map_scale
    assert (low, high) != (0.0, 1.0)  # what stands for "nothing was measured"
    middle = np.median(detector.predict(picture(0)).anomaly_map)
    assert low / 3 <= middle <= high * 3


@pytest.mark.parametrize("bank_size", [1, 2, 5])
@pytest.mark.parametrize("method", ["knn", "patchcore"])
def test_a_bank_that_holds_one_picture_only(
    method: str, bank_size: int, picture: Part, small: dict[str, Any]
) -> None:
    # Then that picture has nothing to be compared with; it must not end in an error of another
    # kind.
    try:
        detector = blemish.fit(method, parts(picture, 4), bank_size=bank_size, **small)
    except BlemishError:
        return
    assert np.isfinite(detector.manifest["calibration_scores"]).all()
    assert np.isfinite(detector.predict(picture(9)).score)


def test_one_picture_has_no_leave_one_out(picture: Part, small: dict[str, Any]) -> None:
    detector = blemish.fit("knn", parts(picture, 1), **small)
    assert detector.manifest["calibration_scores"] == []
    assert detector.threshold is not None
    assert (detector.threshold.value, detector.threshold.n) == (None, 0)
    assert detector.predict(picture(0)).score == pytest.approx(0.0, abs=1e-3)
    asked = blemish.fit("knn", parts(picture, 1), calibration_fraction=0.6, **small)
    assert (len(asked.manifest["data"]["fitted"]), asked.manifest["data"]["calibrated"]) == (1, [])


# --- Calibrating again
# -----------------------------------------------------------------------------------------------


def test_recalibrate(
    tmp_path: Path, picture: Part, write: Write, fitted: Callable[..., Detector]
) -> None:
    detector = fitted("knn")
    before = detector.manifest
    for seed in range(20):
        write(tmp_path / "new" / f"{seed:02d}.png", picture(700 + seed))
    write(tmp_path / "new" / "known.bmp", picture(3))  # fitted on, under another name and format
    (tmp_path / "new" / "zz.png").write_text("not a picture")
    again, failures, left_out = blemish.recalibrate(detector, tmp_path / "new")
    assert [Path(failure.source).name for failure in failures] == ["zz.png"]
    assert left_out == 1
    scores = again.manifest["calibration_scores"]
    assert scores == pytest.approx(
        [detector.predict(picture(700 + seed)).score for seed in range(20)], rel=1e-4
    )
    threshold = again.threshold
    assert threshold is not None
    assert (threshold.method, threshold.n, threshold.rate) == ("split conformal", 20, 0.05)
    assert threshold.value == quantile(scores, 0.05)
    assert again.manifest["threshold"] == threshold.to_dict()
    assert again.manifest["data"]["calibrated"] == digests(
        [picture(700 + seed) for seed in range(20)]
    )
    assert again.manifest["data"]["fitted"] == before["data"]["fitted"]
    assert detector.manifest is before  # the old one is as it was
    assert detector.threshold is not None
    assert detector.threshold.method == "leave-one-out"
    assert again.predict(picture(1)).threshold == threshold.value


def test_recalibrate_with_too_few(picture: Part, fitted: Callable[..., Detector]) -> None:
    for rate in (
        None,
        0.05,
    ):  # the default is no less asked for: a calibration without a threshold is none
        with pytest.raises(CalibrationError, match="needs at least 19"):
            blemish.recalibrate(fitted("knn"), parts(picture, 4, first=700), false_alarm_rate=rate)
    again, _, _ = blemish.recalibrate(
        fitted("knn"), parts(picture, 4, first=700), false_alarm_rate=0.2
    )
    assert again.threshold is not None
    assert again.threshold.value == max(again.manifest["calibration_scores"])


def test_recalibrate_on_what_it_knows(
    picture: Part, fitted: Callable[..., Detector], small: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match="no picture is left to calibrate on"):
        blemish.recalibrate(fitted("knn"), parts(picture, 24))
    # What a detector was only calibrated on, it may be calibrated on again.
    detector = blemish.fit("padim", parts(picture, 24), calibration_fraction=0.2, **small)
    calibrated = detector.manifest["data"]["calibrated"]
    held = [pixels for pixels in parts(picture, 24) if decode(pixels).digest in calibrated]
    again, _, left_out = blemish.recalibrate(detector, held, false_alarm_rate=0.2)
    assert left_out == 0
    assert again.threshold is not None
    assert again.threshold.n == 5


def test_recalibrate_with_a_picture_that_is_gone(
    tmp_path: Path, picture: Part, write: Write, fitted: Callable[..., Detector]
) -> None:
    for seed in range(3):
        write(tmp_path / f"{seed}.png", picture(700 + seed))
    (tmp_path / "3.png").symlink_to(tmp_path / "nowhere.png")
    again, failures, _ = blemish.recalibrate(fitted("knn"), tmp_path, false_alarm_rate=0.3)
    assert len(again.manifest["calibration_scores"]) == 3
    assert [Path(failure.source).name for failure in failures] == ["3.png"]


# --- Several categories
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path, picture: Part, write: Write) -> Path:
    """A data-set root with 24 nuts and 20 bolts, which are negatives."""
    root = tmp_path / "two"
    for seed in range(24):
        write(root / "nut" / "train" / "good" / f"{seed:03d}.png", picture(seed))
    for seed in range(20):
        write(root / "bolt" / "train" / "good" / f"{seed:03d}.png", 255 - picture(50 + seed))
    return root


def test_categories_in_every_form(
    two: Path, picture: Part, write: Write, small: dict[str, Any]
) -> None:
    expected = blemish.fit("knn", two, **small).manifest
    assert expected["categories"] == ["bolt", "nut"]
    samples = [
        Sample(path=path, label=0, category=path.parents[2].name)
        for path in sorted(two.rglob("*.png"))
    ]
    (two / "table.csv").write_text(
        "path,label,category\n"
        + "".join(f"{s.path.relative_to(two)},0,{s.category}\n" for s in samples)
    )
    for good in (
        [two / "nut", two / "bolt"],
        [two / "nut" / "train" / "good", two / "bolt" / "train" / "good"],
        samples,
        two / "table.csv",
        [two],
    ):
        manifest = blemish.fit("knn", good, **small).manifest
        assert manifest["categories"] == ["bolt", "nut"]
        assert manifest["data"]["fingerprint"] == expected["data"]["fingerprint"]
        for category, scores in expected["calibration_scores_by_category"].items():
            same = manifest["calibration_scores_by_category"][category]
            assert sorted(same) == pytest.approx(sorted(scores), rel=1e-4)


def test_one_category_is_none(
    two: Path, picture: Part, write: Write, small: dict[str, Any]
) -> None:
    for seed in range(3):
        write(two / "more" / "nut" / "ok" / "images" / f"{seed}.png", picture(400 + seed))
    nut = two / "nut" / "train" / "good"
    for good in (
        two / "nut",
        nut,
        [nut],
        [nut, picture(9)],
        [nut, two / "more" / "nut" / "ok" / "images"],
    ):
        manifest = blemish.fit("knn", good, **small).manifest
        assert (manifest["categories"], manifest["thresholds"]) == ([], {})
        assert manifest["calibration_scores_by_category"] == {}


def test_every_category_has_its_threshold(two: Path, small: dict[str, Any]) -> None:
    for method, options, counts in [
        ("knn", {}, (20, 24)),
        ("padim", {"calibration_fraction": 0.25}, (5, 6)),
    ]:
        detector = blemish.fit(method, two, false_alarm_rate=0.2, **options, **small)
        scores = detector.manifest["calibration_scores_by_category"]
        assert (len(scores["bolt"]), len(scores["nut"])) == counts
        assert sorted(scores["bolt"] + scores["nut"]) == sorted(
            detector.manifest["calibration_scores"]
        )
        for category, own in detector.thresholds.items():
            assert own.value == quantile(scores[category], 0.2)
            assert detector.manifest["thresholds"][category] == own.to_dict()
        assert detector.threshold is not None
        assert detector.threshold.value == quantile(detector.manifest["calibration_scores"], 0.2)
        if held := set(detector.manifest["data"]["calibrated"]):
            for category, count in zip(("bolt", "nut"), counts, strict=True):
                assert len(held & set(digests(list((two / category).rglob("*.png"))))) == count


def test_a_category_with_too_few_falls_back(two: Path, small: dict[str, Any]) -> None:
    (two / "bolt" / "train" / "good" / "000.png").unlink()
    (two / "bolt" / "train" / "good" / "001.png").unlink()
    detector = blemish.fit(
        "knn", two, false_alarm_rate=0.05, **small
    )  # by name: bolt has 18, 19 are needed
    assert detector.thresholds["nut"].value is not None
    assert detector.thresholds["bolt"].value is None
    assert "there are 18; the common threshold is used" in detector.thresholds["bolt"].reason
    assert detector.threshold_for("bolt") == detector.threshold
    with pytest.raises(CalibrationError):
        blemish.fit("knn", two, false_alarm_rate=0.01, **small)


def test_recalibrate_by_category(
    two: Path, tmp_path: Path, picture: Part, write: Write, small: dict[str, Any]
) -> None:
    detector = blemish.fit("knn", two, **small)
    for seed in range(6):
        write(tmp_path / "new" / "nut" / "good" / f"{seed}.png", picture(700 + seed))
        write(tmp_path / "new" / "bolt" / "good" / f"{seed}.png", 255 - picture(800 + seed))
        write(tmp_path / "new" / "pin" / "good" / f"{seed}.png", picture(900 + seed))
    folders = [tmp_path / "new" / name / "good" for name in ("nut", "bolt", "pin")]
    again, _, _ = blemish.recalibrate(detector, folders, false_alarm_rate=0.2)
    scores = again.manifest["calibration_scores_by_category"]
    expected = [detector.predict(255 - picture(800 + seed)).score for seed in range(6)]
    assert scores["bolt"] == pytest.approx(expected, rel=1e-4)
    assert set(scores) == set(again.thresholds) == {"bolt", "nut"}
    assert again.thresholds["bolt"].value == quantile(scores["bolt"], 0.2)
    assert again.thresholds["bolt"].method == "split conformal"
    assert again.threshold is not None
    assert again.threshold.n == 18  # what it does not know counts for the common one
    with pytest.raises(DataError, match="no picture of nut is among"):
        blemish.recalibrate(detector, folders[1:], false_alarm_rate=0.2)
    plain, _, _ = blemish.recalibrate(detector, parts(picture, 6, 700), false_alarm_rate=0.2)
    assert plain.threshold is not None
    assert [(own.value, own.n) for own in plain.thresholds.values()] == [(None, 0)] * 2
    assert plain.threshold_for("nut") == plain.threshold


def test_the_heatmap_scale_is_of_all_categories(two: Path, small: dict[str, Any]) -> None:
    detector = blemish.fit("knn", two, calibration_fraction=0, **small)
    only = blemish.fit("knn", two / "bolt", calibration_fraction=0, **small)
    assert detector.map_scale != pytest.approx(only.map_scale, rel=1e-3)
    assert detector.thresholds == {}


# --- Few shots
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["knn", "patchcore", "padim"])
def test_shots_are_drawn_by_the_seed(method: str, good_folder: Path, small: dict[str, Any]) -> None:
    expected = few_shot([Sample(path=path) for path in good_folder.iterdir()], 4, 3)
    detector = blemish.fit(method, good_folder, shots=4, seed=3, **small)
    assert detector.manifest["shots"] == 4
    assert detector.manifest["data"]["fitted"] == digests([sample.path for sample in expected])
    assert detector.manifest["data"]["calibrated"] == []
    assert (detector.method.config.rotations, detector.method.config.flips) == (16, True)
    other = blemish.fit(method, good_folder, shots=4, seed=4, **small)
    assert other.manifest["data"]["fitted"] != detector.manifest["data"]["fitted"]
    held = blemish.fit(
        method, good_folder, shots=4, seed=3, calibration_fraction=0.5, **small
    ).manifest["data"]
    assert (len(held["fitted"]), len(held["calibrated"])) == (2, 2)
    assert set(held["fitted"] + held["calibrated"]) == set(detector.manifest["data"]["fitted"])


def test_one_shot_knows_every_side_of_it(picture: Part, small: dict[str, Any]) -> None:
    detector = blemish.fit("knn", parts(picture, 1), shots=1, **small)
    plain = blemish.fit("knn", parts(picture, 1), **small)
    for turned in (np.rot90(picture(0)), picture(0)[:, ::-1], np.rot90(picture(0)[:, ::-1], 3)):
        assert detector.predict(turned.copy()).score == pytest.approx(0, abs=1e-3)
        assert plain.predict(turned.copy()).score > 0.01
    assert detector.threshold is not None
    assert (detector.threshold.value, detector.threshold.n) == (None, 0)


@pytest.mark.parametrize(
    ("given", "kept"), [({"rotations": 2}, (2, True)), ({"flips": False}, (16, False))]
)
def test_the_callers_own_augmentation_wins(
    given: dict[str, Any], kept: tuple[int, bool], picture: Part, small: dict[str, Any]
) -> None:
    config = blemish.fit("knn", parts(picture, 3), shots=2, **given, **small).method.config
    assert (config.rotations, config.flips) == kept
    named = [f"{key}={value}" for key, value in given.items()]
    config = blemish.configure("knn", assignments=named, shots=2)
    assert (config.rotations, config.flips) == kept
    whole = KnnConfig(backbone="test_vit", image_size=(64,), layers=(2,))
    config = blemish.fit(
        "knn", parts(picture, 3), shots=2, config=whole, weights="random"
    ).method.config
    assert (config.rotations, config.flips) == (1, False)


def test_shots_of_each_category(two: Path, small: dict[str, Any]) -> None:
    detector = blemish.fit("knn", two, shots=2, rotations=1, false_alarm_rate=0.2, **small)
    assert detector.manifest["data"]["count"] == 4
    assert [
        len(scores) for scores in detector.manifest["calibration_scores_by_category"].values()
    ] == [2, 2]
    assert [own.value for own in detector.thresholds.values()] == [None, None]
    one = blemish.fit("knn", two, shots=1, rotations=1, **small)
    # The only nut, left out, would be judged by bolts.
    assert one.manifest["calibration_scores"] == []
    with pytest.raises(DataError, match="bolt: 21 shots were asked for, but there are only 20"):
        blemish.fit("knn", two, shots=21, **small)


def test_a_number_of_shots_that_cannot_be_drawn(picture: Part, small: dict[str, Any]) -> None:
    for shots in (0, -1):
        with pytest.raises(ConfigError, match="at least 1"):
            blemish.fit("knn", parts(picture, 3), shots=shots, **small)
    with pytest.raises(DataError, match="4 shots were asked for, but there are only 3"):
        blemish.fit("knn", parts(picture, 3), shots=4, **small)


# --- On the way
# --------------------------------------------------------------------------------------------------


def test_progress_is_told(picture: Part, small: dict[str, Any]) -> None:
    told: list[tuple[str, int, int]] = []
    blemish.fit(
        "knn", parts(picture, 20), batch_size=8, progress=lambda *call: told.append(call), **small
    )
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["loading the backbone", "remembering", "selecting", "calibrating"]
    for stage in ("remembering", "calibrating"):  # in pictures
        assert [call for call in told if call[0] == stage] == [
            (stage, done, 20) for done in (8, 16, 20)
        ]


@pytest.mark.parametrize("method", ["knn", "padim", "lda"])
def test_progress_ends_with_the_pictures_that_could_be_read(
    method: str, good_folder: Path, small: dict[str, Any]
) -> None:
    (good_folder / "005.png").write_text("not a picture")
    told: dict[str, tuple[int, int]] = {}
    progress = lambda stage, *numbers: told.update({stage: numbers})  # noqa: E731
    blemish.fit(method, good_folder, batch_size=5, rotations=2, progress=progress, **small)
    counted = {stage: numbers for stage, numbers in told.items() if numbers != (0, 0)}
    if method == "padim":  # which holds out a fifth of what is turned
        assert counted["measuring"][0] // 2 + counted["calibrating"][0] == 23
    else:
        assert counted["remembering"] == (46, 46)
        assert counted["calibrating"][0] == (23 if method == "knn" else 12)
    assert all(done == total for done, total in counted.values())
    assert counted.get("describing", (46, 46)) == (46, 46)


@pytest.mark.parametrize("stage", ["loading the backbone", "remembering", "calibrating"])
def test_an_interruption_leaves_no_thread_behind(
    stage: str, picture: Part, small: dict[str, Any]
) -> None:
    def interrupt(now: str, done: int, total: int) -> None:
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blemish.fit("knn", parts(picture, 40), batch_size=4, progress=interrupt, **small)
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("blemish-decode")
    ]


@pytest.mark.parametrize("method", list(blemish.METHODS))
def test_the_global_random_state_is_left_alone(
    method: str, picture: Part, brief: dict[str, Any]
) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.random.get_rng_state(), str(np.random.get_state())
    blemish.fit(method, parts(picture, 4), seed=3, **brief)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]


def test_predictions_of_a_fitted_detector_are_plain(
    picture: Part, fitted: Callable[..., Detector]
) -> None:
    results = list(fitted("knn").predict_many(parts(picture, 3)))
    assert not any(isinstance(result, Failure) for result in results)
    assert all(isinstance(result, Prediction) and result.label == 0 for result in results)
