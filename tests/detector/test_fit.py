"""From good pictures to a detector: who is held out, when there is a threshold, and what the
manifest keeps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from parts import Fitted, Part, Write, prepared
from PIL import Image

import blemish
from blemish.backbones import build
from blemish.errors import BlemishError, CalibrationError, ConfigError, DataError
from blemish.images import decode
from blemish.methods.memory import KnnConfig, PatchCoreConfig
from blemish.types import Batch, Sample


def parts(picture: Part, count: int, first: int = 0) -> list[np.ndarray]:
    return [picture(first + index) for index in range(count)]


def digests(sources: list[Any]) -> list[str]:
    return [decode(source).digest for source in sources]


def quantile(scores: list[float], rate: float) -> float:
    """The k-th smallest, k = ceil((n + 1)(1 - rate)), by hand."""
    return sorted(scores)[math.ceil(round((len(scores) + 1) * (1 - rate), 9)) - 1]


# --- Configuration


def test_configure_takes_the_recipe_then_values_then_assignments() -> None:
    values = {"pooling": 5, "seed": None}
    config = blemish.configure("patchcore", recipe="paper", values=values, assignments=["seed=7"])
    assert isinstance(config, PatchCoreConfig)
    assert (config.backbone, config.pooling, config.seed) == ("wide_resnet50_2", 5, 7)
    both = blemish.configure("knn", values={"pooling": 3}, assignments=["pooling=5"])
    assert both == KnnConfig(pooling=5, neighbours=4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "pachcore"}, "did you mean 'patchcore'"),
        ({"method": "patchcore", "recipe": "papers"}, "did you mean 'paper'"),
        ({"method": "knn", "values": {"bank_sise": 3}}, "did you mean 'bank_size'"),
        ({"method": "knn", "assignments": ["bank_size=0"]}, "bank_size"),
        ({"method": "knn", "assignments": ["bank_size"]}, "key=value"),
    ],
)
def test_configure_says_what_is_wrong(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        blemish.configure(**arguments)


@pytest.mark.parametrize("clash", [{"pooling": 3}, {"recipe": "paper"}])
def test_a_whole_config_and_single_settings_clash(clash: dict[str, Any], picture: Part) -> None:
    with pytest.raises(ConfigError, match="not both"):
        blemish.fit("patchcore", [picture(0)], config=PatchCoreConfig(), **clash)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"calibration_fraction": 1.0}, "calibration_fraction"),
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
    options: dict[str, Any], says: str, picture: Part, small: Any
) -> None:
    with pytest.raises(ConfigError, match=says):
        blemish.fit("knn", parts(picture, 3), **{**small, **options})


def test_sizes_are_rounded_to_what_the_backbone_divides(picture: Part, small: Any) -> None:
    detector = blemish.fit("knn", parts(picture, 3), **{**small, "image_size": (60, 100)})
    assert detector.method.config.image_size == (64, 96)
    assert (detector.preprocessing.height, detector.preprocessing.width) == (64, 96)
    assert detector.predict(picture(1)).anomaly_map.shape == (16, 24)


def test_layers_that_are_not_named_are_written_down(picture: Part, small: Any) -> None:
    detector = blemish.fit("knn", parts(picture, 3), **{**small, "layers": None})
    layers = build("test_vit", weights="random").check_layers(())
    assert detector.manifest["config"]["layers"] == list(layers)


def test_the_seed_is_the_one_that_was_given(picture: Part, small: Any) -> None:
    named = {key: small.pop(key) for key in ("device", "precision", "weights")}
    config = blemish.configure("padim", values={**small, "seed": 5})
    one = blemish.fit("padim", parts(picture, 6), seed=5, **small, **named).manifest
    other = blemish.fit("padim", parts(picture, 6), config=config, **named).manifest
    assert one["config"] == other["config"]
    assert one["seed"] == other["seed"] == one["config"]["seed"] == 5
    assert other["recipe"] is None


# --- Which pictures


def test_good_in_every_form(mvtec: Path, good_folder: Path, picture: Part, small: Any) -> None:
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


@pytest.mark.parametrize(
    ("good", "says"),
    [
        ([], "no picture"),
        (np.zeros((8, 8), np.uint8), "a list"),
        (7, "a list"),
        ("/nowhere", "no such"),
    ],
)
def test_good_that_is_none(good: object, says: str, small: Any) -> None:
    with pytest.raises(DataError, match=says):
        blemish.fit("knn", good, **small)


def test_broken_pictures_are_left_out_and_named(good_folder: Path, small: Any) -> None:
    (good_folder / "005.png").write_text("not a picture")
    (good_folder / "024.png").symlink_to(good_folder / "nowhere.png")
    manifest = blemish.fit("knn", good_folder, **small).manifest
    data = manifest["data"]
    assert data["count"] == len(data["fitted"]) == len(manifest["calibration_scores"]) == 23
    names = [Path(failure["path"]).name for failure in data["failures"]]
    assert names == ["005.png", "024.png"]
    assert all(failure["error"] for failure in data["failures"])


def test_broken_pictures_that_were_held_out(good_folder: Path, small: Any) -> None:
    small["calibration_fraction"] = 0.2
    whole = blemish.fit("padim", good_folder, **small).manifest["data"]
    held = next(p for p in good_folder.iterdir() if decode(p).digest in whole["calibrated"])
    held.write_text("not a picture")
    detector = blemish.fit("padim", good_folder, **small)
    data = detector.manifest["data"]
    assert data["fitted"] == whole["fitted"]
    assert [failure["path"] for failure in data["failures"]] == [str(held)]
    assert detector.threshold.n == 4  # type: ignore[union-attr]


def test_the_window_is_stored_and_used(tmp_path: Path, picture: Part, small: Any) -> None:
    for seed in range(4):
        dim = picture(seed)[..., 0].astype(np.uint16) * 4  # 0…1000 of 65535
        cv2.imwrite(str(tmp_path / f"{seed}.png"), dim)
    one, detector = tmp_path / "0.png", blemish.fit("knn", tmp_path, window=(0, 1020), **small)
    loaded = blemish.load(detector.save(tmp_path / "x.blemish"), device="cpu", precision="fp32")
    assert loaded.manifest["preprocessing"]["window"] == [0, 1020]
    expected = decode(one, window=(0, 1020))
    digest = detector.manifest["data"]["fitted"][0]
    assert loaded.predict(one).digest == expected.digest == digest
    score = loaded.predict(expected.pixels * 1020).score
    assert score == pytest.approx(loaded.predict(one).score)
    plain = blemish.fit("knn", tmp_path, **small)
    assert plain.predict(one).digest != digest


def test_the_fingerprint_is_of_the_content(good_folder: Path, picture: Part, small: Any) -> None:
    def fingerprint(method: str) -> str:
        return str(blemish.fit(method, good_folder, **small).manifest["data"]["fingerprint"])

    joined = "".join(sorted(digests(parts(picture, 24))))
    expected = hashlib.sha256(joined.encode()).hexdigest()
    small["calibration_fraction"] = 0.2
    assert fingerprint("knn") == expected
    (good_folder / "000.png").rename(good_folder / "zzz.png")
    assert fingerprint("padim") == expected
    (good_folder / "zzz.png").unlink()
    assert fingerprint("knn") != expected


# --- The threshold


def test_leave_one_out_holds_nothing_out(picture: Part, fitted: Fitted) -> None:
    detector = fitted("knn")
    data, threshold = detector.manifest["data"], detector.threshold
    assert (len(data["fitted"]), data["calibrated"]) == (24, [])
    assert threshold is not None
    assert (threshold.method, threshold.n, threshold.rate) == ("leave-one-out", 24, 0.05)
    scores = detector.manifest["calibration_scores"]
    for index in range(24):
        image = prepared(decode(picture(index)), detector.preprocessing)[None]
        found = detector.method.score_left_out(Batch(image, torch.tensor([index])))
        assert scores[index] == pytest.approx(found.image.item(), rel=1e-4)
    assert threshold.value == quantile(scores, 0.05) == max(scores)


@pytest.mark.parametrize("method", ["knn", "patchcore"])
def test_a_picture_that_is_left_out_is_not_judged_by_its_twin(
    method: str, picture: Part, write: Write, tmp_path: Path, small: Any
) -> None:
    """Copies tell nothing of a new picture: whatever a twin scores, one of the different pictures
    scores so too. Of the nearest alone: among several neighbours a copy of another counts twice.
    """

    def scores_of(good: list[Any]) -> list[float]:
        fitted = blemish.fit(method, good, batch_size=3, neighbours=1, **small)
        return list(fitted.manifest["calibration_scores"])

    good = parts(picture, 8)
    copy = write(tmp_path / "copy.bmp", picture(2))
    alone, scores = scores_of(good), scores_of([copy, *good, picture(5), picture(5)])
    assert min(alone) > 0.01
    assert sorted(scores) == pytest.approx(sorted(alone), rel=1e-3)


def test_held_out_pictures_calibrate(picture: Part, small: Any) -> None:
    detector = blemish.fit("padim", parts(picture, 24), calibration_fraction=0.2, **small)
    data, scores = detector.manifest["data"], detector.manifest["calibration_scores"]
    by_digest = dict(zip(digests(parts(picture, 24)), parts(picture, 24), strict=True))
    assert (len(data["fitted"]), len(data["calibrated"])) == (19, 5)  # a fifth of 24
    assert {*data["fitted"], *data["calibrated"]} == set(by_digest)
    expected = [detector.predict(by_digest[digest]).score for digest in data["calibrated"]]
    assert scores == pytest.approx(expected, rel=1e-4)
    threshold = detector.threshold
    assert threshold is not None
    assert (threshold.value, threshold.n, threshold.guarantee) == (None, 5, "")
    assert "5 % needs at least 19 normal pictures" in threshold.reason
    assert detector.predict(picture(0)).label is None


@pytest.mark.parametrize(
    ("method", "fraction", "rate", "n"),
    [("knn", 0.5, 0.25, 12), ("patchcore", 0.2, 0.2, 5), ("padim", 0.9, 0.05, 22)],
)
def test_a_fraction_and_a_rate_by_name(
    method: str, fraction: float, rate: float, n: int, picture: Part, small: Any
) -> None:
    asked = {"calibration_fraction": fraction, "false_alarm_rate": rate}
    detector = blemish.fit(method, parts(picture, 24), **asked, **small)
    threshold = detector.threshold
    assert threshold is not None
    assert (threshold.method, threshold.n, threshold.rate) == ("split conformal", n, rate)
    assert threshold.value == quantile(detector.manifest["calibration_scores"], rate)


@pytest.mark.parametrize("method", ["knn", "padim"])
def test_a_rate_by_name_that_the_pictures_cannot_support(
    method: str, picture: Part, small: Any
) -> None:
    stages: list[str] = []
    options = {**small, "progress": lambda stage, done, total: stages.append(stage)}
    with pytest.raises(CalibrationError, match="1 % needs at least 99 normal pictures"):
        blemish.fit(method, parts(picture, 24), false_alarm_rate=0.01, **options)
    assert set(stages) == {"loading the backbone"}  # it is said before the work, not after it


def test_no_calibration_at_all(picture: Part, small: Any) -> None:
    manifest = blemish.fit("padim", parts(picture, 24), calibration_fraction=0, **small).manifest
    assert (manifest["threshold"], manifest["calibration_scores"]) == (None, [])
    assert (len(manifest["data"]["fitted"]), manifest["data"]["calibrated"]) == (24, [])


@pytest.mark.parametrize(
    ("method", "count", "fraction"),
    [
        ("knn", 2, None),
        ("patchcore", 24, 0),
        ("knn", 24, 0.2),
        ("padim", 2, 0),
        ("padim", 24, None),
    ],
)
def test_the_heatmap_scale_fits_the_maps_of_normal_pictures(
    method: str, count: int, fraction: float | None, picture: Part, small: Any
) -> None:
    """Whether or not there is a threshold: a heatmap without a sensible scale is one colour."""
    detector = blemish.fit(method, parts(picture, count), calibration_fraction=fraction, **small)
    low, high = detector.map_scale
    maps = np.stack([detector.predict(one).anomaly_map for one in parts(picture, 8, 600)])
    assert low < high
    assert (low, high) != (0.0, 1.0)  # what stands for "nothing was measured"
    assert low <= np.quantile(maps, 0.999)
    assert high >= np.quantile(maps, 0.5) or count == 2
    assert high - low < 20 * (maps.max() - maps.min())


@pytest.mark.parametrize("method", ["knn", "patchcore"])
def test_a_bank_that_holds_one_picture_only(method: str, picture: Part, small: Any) -> None:
    """Then that picture has nothing to be compared with; it must not end in an error of another
    kind."""
    try:
        detector = blemish.fit(method, parts(picture, 4), bank_size=1, **small)
    except BlemishError:
        return
    assert np.isfinite(detector.manifest["calibration_scores"]).all()
    assert np.isfinite(detector.predict(picture(9)).score)


def test_one_picture_has_no_leave_one_out(picture: Part, small: Any) -> None:
    detector = blemish.fit("knn", parts(picture, 1), neighbours=1, **small)
    assert detector.manifest["calibration_scores"] == []
    assert detector.threshold is not None
    assert (detector.threshold.value, detector.threshold.n) == (None, 0)
    assert detector.predict(picture(0)).score == pytest.approx(0.0, abs=1e-3)
    asked = blemish.fit("knn", parts(picture, 1), calibration_fraction=0.6, **small)
    assert (len(asked.manifest["data"]["fitted"]), asked.manifest["data"]["calibrated"]) == (1, [])


# --- Calibrating again


def test_recalibrate(tmp_path: Path, picture: Part, write: Write, fitted: Fitted) -> None:
    detector, new = fitted("knn"), parts(picture, 20, 700)
    before = detector.manifest
    for seed, pixels in enumerate(new):
        write(tmp_path / f"{seed:02d}.png", pixels)
    write(tmp_path / "known.bmp", picture(3))  # fitted on, under another name and format
    (tmp_path / "zz.png").write_text("not a picture")
    again, failures, left_out = blemish.recalibrate(detector, tmp_path)
    assert [Path(failure.source).name for failure in failures] == ["zz.png"]
    assert left_out == 1
    scores, threshold = again.manifest["calibration_scores"], again.threshold
    assert scores == pytest.approx([detector.predict(one).score for one in new], rel=1e-4)
    assert threshold is not None
    assert (threshold.method, threshold.n, threshold.rate) == ("split conformal", 20, 0.05)
    assert threshold.value == again.predict(new[0]).threshold == quantile(scores, 0.05)
    assert again.manifest["data"]["calibrated"] == digests(new)
    assert again.manifest["data"]["fitted"] == before["data"]["fitted"]
    assert detector.manifest is before  # the old one is as it was


def test_recalibrate_with_too_few(picture: Part, fitted: Fitted) -> None:
    few = parts(picture, 4, first=700)
    # The default is no less asked for: a calibration without a threshold is none.
    for rate in (None, 0.05):
        with pytest.raises(CalibrationError, match="needs at least 19"):
            blemish.recalibrate(fitted("knn"), few, false_alarm_rate=rate)
    again, _, _ = blemish.recalibrate(fitted("knn"), few, false_alarm_rate=0.2)
    assert again.threshold.value == max(again.manifest["calibration_scores"])  # type: ignore[union-attr]


def test_recalibrate_on_what_it_knows(picture: Part, fitted: Fitted, small: Any) -> None:
    with pytest.raises(DataError, match="no picture is left to calibrate on"):
        blemish.recalibrate(fitted("knn"), parts(picture, 24))
    # What a detector was only calibrated on, it may be calibrated on again.
    detector = blemish.fit("padim", parts(picture, 24), calibration_fraction=0.2, **small)
    calibrated = detector.manifest["data"]["calibrated"]
    held = [pixels for pixels in parts(picture, 24) if decode(pixels).digest in calibrated]
    again, _, left_out = blemish.recalibrate(detector, held, false_alarm_rate=0.2)
    assert (left_out, again.threshold.n) == (0, 5)  # type: ignore[union-attr]


# --- On the way


def test_progress_is_told(picture: Part, small: Any) -> None:
    told: list[tuple[str, int, int]] = []
    progress = lambda *call: told.append(call)  # noqa: E731
    blemish.fit("knn", parts(picture, 20), batch_size=8, progress=progress, **small)
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["loading the backbone", "remembering", "selecting", "calibrating"]
    for stage in ("remembering", "calibrating"):  # in pictures
        counts = [(done, total) for name, done, total in told if name == stage]
        assert counts == [(8, 20), (16, 20), (20, 20)]


@pytest.mark.parametrize("method", ["knn", "padim", "lda"])
def test_progress_ends_with_the_pictures_that_could_be_read(
    method: str, good_folder: Path, small: Any
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
        assert counted["calibrating"][0] == 23
    assert all(done == total for done, total in counted.values())
    assert counted.get("describing", (46, 46)) == (46, 46)


@pytest.mark.parametrize("stage", ["remembering", "calibrating"])
def test_an_interruption_leaves_no_thread_behind(
    stage: str, picture: Part, small: Any, decoder_threads: Callable[[], list[str]]
) -> None:
    def interrupt(now: str, done: int, total: int) -> None:
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blemish.fit("knn", parts(picture, 40), batch_size=4, progress=interrupt, **small)
    assert decoder_threads() == []


@pytest.mark.parametrize("method", list(blemish.METHODS))
def test_the_global_random_state_is_left_alone(method: str, picture: Part, brief: Any) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.random.get_rng_state(), str(np.random.get_state())
    blemish.fit(method, parts(picture, 4), seed=3, **brief)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]
