"""What every method promises through the detector, whichever it is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import LEARNED, Fitted, Part, Write
from PIL import Image

import blemish
from blemish.backbones import build
from blemish.data.splits import hold_out
from blemish.detector.predict import Detector
from blemish.detector.thresholds import Threshold
from blemish.errors import ConfigError, DataError, NotFittedError
from blemish.methods import METHODS, MethodConfig
from blemish.metrics.ranking import auroc
from blemish.types import Prediction, Sample

pytestmark = pytest.mark.parametrize("method", list(METHODS))


# With eight pictures a step noise of 1e-4 in its first weights turned what ATAC-Net tells of a ViT.
STEADY: dict[str, dict[str, Any]] = {"atacnet": {"min_steps": 60, "train_batch_size": 24}}


def scores_of(detector: Detector, sources: list[Any], **options: Any) -> list[float]:
    results = list(detector.predict_many(sources, **options))
    assert all(isinstance(result, Prediction) for result in results)
    return [result.score for result in results if isinstance(result, Prediction)]


def test_the_same_seed_gives_the_same_detector(method: str, picture: Part, brief: Any) -> None:
    good = [picture(seed) for seed in range(10)]
    one, other = (blemish.fit(method, good, seed=3, **brief) for _ in range(2))
    for name, tensor in one.method.fitted_state().items():
        assert torch.equal(tensor, other.method.fitted_state()[name]), name
    assert one.manifest["calibration_scores"] == other.manifest["calibration_scores"]
    assert one.map_scale == other.map_scale
    asked = [picture(50), picture(51, defect=True)]
    assert scores_of(one, asked) == scores_of(other, asked)


def test_the_batch_size_changes_no_score(method: str, picture: Part, fitted: Fitted) -> None:
    detector = fitted(method)
    asked = [picture(seed, defect=seed % 2 == 0) for seed in range(40, 51)]
    one_by_one = scores_of(detector, asked, batch_size=1)
    for size in (2, 4, 11, 100):
        assert scores_of(detector, asked, batch_size=size) == pytest.approx(
            one_by_one, rel=1e-4, abs=1e-5
        )


def test_the_batch_size_of_the_fit_changes_no_score(method: str, picture: Part, brief: Any) -> None:
    good, asked = [picture(seed) for seed in range(7)], [picture(50), picture(51, defect=True)]
    one, other = (blemish.fit(method, good, batch_size=size, **brief) for size in (1, 4))
    assert scores_of(one, asked) == pytest.approx(scores_of(other, asked), rel=1e-3, abs=1e-4)


def test_saved_and_loaded_it_gives_equal_scores(
    method: str,
    picture: Part,
    fitted: Fitted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = fitted(method)
    path = detector.save(tmp_path / "part.blemish")

    def fetch(*_args: object, **_options: object) -> None:
        raise AssertionError("the artifact carries its backbone: nothing is fetched")

    monkeypatch.setattr("blemish.backbones.building.resolve", fetch)
    loaded = blemish.load(path, device="cpu", precision="fp32")
    assert loaded.manifest == {**detector.manifest, "format": loaded.manifest["format"]}
    assert loaded.threshold == detector.threshold
    assert loaded.preprocessing == detector.preprocessing
    assert loaded.map_scale == detector.map_scale
    assert type(loaded.method.config) is METHODS[method].Config
    assert loaded.method.config == detector.method.config
    for seed in range(60, 64):
        one, other = (d.predict(picture(seed, defect=seed % 2 == 0)) for d in (detector, loaded))
        assert one == other
        assert np.array_equal(one.anomaly_map, other.anomaly_map)
    again = loaded.save(tmp_path / "again.blemish")
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("size", [(64, 64), (50, 91), (7, 130), (1, 1)])
def test_the_heatmap_has_the_original_size(
    method: str, size: tuple[int, int], picture: Part, fitted: Fitted
) -> None:
    prediction = fitted(method).predict(picture(70, height=size[0], width=size[1]))
    assert prediction.size == size
    assert prediction.heatmap.shape == size
    assert prediction.heatmap.dtype == np.float32
    assert prediction.heatmap.flags.c_contiguous
    low, high = prediction.anomaly_map.min(), prediction.anomaly_map.max()
    assert (
        low - 1e-4 <= prediction.heatmap.min() <= prediction.heatmap.max() <= high + 1e-4
    )  # the unit of the score


def test_before_fit_it_is_a_named_error(method: str) -> None:
    kind = METHODS[method]
    fresh = kind(
        kind.Config(backbone="test_vit", image_size=(64,), layers=(2,)),
        build("test_vit", weights="random"),
    )
    with pytest.raises(NotFittedError, match=f"this {method} detector has not been fitted"):
        fresh.score(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_a_planted_defect_scores_above_its_normal_twin(
    method: str, backbone: str, picture: Part, small: Any
) -> None:
    if method in ("guided", "dinomaly", "vitad") and backbone == "test_resnet":
        pytest.skip(f"{method} reads a ViT; of a CNN it says so")
    layers = (2, 4) if backbone == "test_vit" else (1, 2)
    settings = {**small, **LEARNED.get(method, {}), "backbone": backbone, "layers": layers}
    if backbone == "test_vit":
        settings |= STEADY.get(method, {})
    detector = blemish.fit(method, [picture(seed) for seed in range(24)], **settings)
    for seed in range(80, 85):
        normal, defective = picture(seed), picture(seed, defect=True)
        one, other = detector.predict(normal), detector.predict(defective)
        assert other.score > one.score
        inside = (normal != defective).any(axis=2)
        rise = other.heatmap - one.heatmap
        assert rise[inside].mean() > rise[~inside].mean()  # and it rises where the defect is


def test_arrays_pil_images_and_paths_are_one(
    method: str,
    picture: Part,
    write: Write,
    fitted: Fitted,
    tmp_path: Path,
) -> None:
    detector, pixels = fitted(method), picture(90)
    path = write(tmp_path / "part.png", pixels)
    bitmap = write(tmp_path / "part.bmp", pixels)
    forms: list[Any] = [pixels, Image.fromarray(pixels), path, str(path), bitmap, pixels / 255.0]
    results = [detector.predict(form) for form in forms]
    for result in results[:-1]:
        assert result.score == results[0].score
        assert result.digest == results[0].digest
        assert np.array_equal(result.anomaly_map, results[0].anomaly_map)
    assert results[-1].score == pytest.approx(
        results[0].score, rel=1e-3, abs=1e-3
    )  # float pixels round elsewhere
    assert [result.source for result in results] == [
        "array 0",
        "array 0",
        str(path),
        str(path),
        str(bitmap),
        "array 0",
    ]


def test_the_verdict_follows_the_threshold(method: str, picture: Part, fitted: Fitted) -> None:
    detector, pixels = fitted(method), picture(91)
    score = detector.predict(pixels).score
    for value, label in [
        (score, 0),
        (np.nextafter(score, -np.inf), 1),
        (score - 1, 1),
        (score + 1, 0),
    ]:
        threshold = Threshold(
            value=value, rate=0.05, n=24, method="split conformal", guarantee="", reason=""
        )
        prediction = detector.with_threshold(threshold).predict(pixels)
        assert (prediction.label, prediction.threshold, prediction.score) == (label, value, score)
    prediction = detector.with_threshold(None).predict(pixels)
    assert (prediction.label, prediction.threshold) == (None, None)
    assert detector.with_threshold(None).manifest["threshold"] is None


def test_what_a_prediction_is_made_of(method: str, picture: Part, fitted: Fitted) -> None:
    detector = fitted(method)
    rgba = np.dstack([picture(92), np.full((64, 64), 200, np.uint8)])
    prediction = detector.predict(rgba)
    assert type(prediction.score) is float
    assert prediction.label is None or type(prediction.label) is int
    assert prediction.anomaly_map.dtype == np.float32
    assert prediction.anomaly_map.shape == (16, 16)
    assert len(prediction.digest) == 32
    assert prediction.notes == ("transparency composed over white",)
    assert prediction.adapted is False
    row = prediction.to_dict()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["score"] == prediction.score
    assert (row["height"], row["width"], row["path"]) == (64, 64, "array 0")
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.score = 0.0  # type: ignore[misc]


def test_the_manifest_says_everything_and_is_json(method: str, fitted: Fitted) -> None:
    manifest = fitted(method).manifest
    assert json.loads(json.dumps(manifest, allow_nan=False)) == manifest
    assert manifest["method"] == method
    assert manifest["seed"] == 0
    assert manifest["precision"] == "fp32"
    assert manifest["device"] == "cpu"
    assert manifest["seconds"] >= 0
    source = manifest["backbone"]["weights"]["source"]
    assert source == ("pretrained:patches on random" if method == "efficientad" else "random")
    assert manifest["backbone"]["spec"]["timm_name"] == "test_vit"
    assert manifest["config"]["image_size"] == [64, 64]
    assert manifest["config"]["layers"] == [2, 4]
    assert manifest["data"]["count"] == 24
    assert set(manifest["versions"]) >= {"python", "torch", "timm", "numpy"}


def test_too_few_pictures(method: str, picture: Part, brief: Any) -> None:
    minimum = METHODS[method].minimum_images
    good = [picture(seed) for seed in range(minimum)]
    detector = blemish.fit(method, good, **brief)
    assert np.isfinite(detector.predict(picture(50)).score)
    assert detector.predict(picture(50)).label is None
    for source in ([], good[: minimum - 1]):
        with pytest.raises(DataError):
            blemish.fit(method, source, **brief)


@pytest.mark.parametrize("good", [1, 2, 3])
def test_broken_pictures_do_not_count(
    method: str,
    good: int,
    picture: Part,
    write: Write,
    brief: Any,
    tmp_path: Path,
) -> None:
    for seed in range(good):
        write(tmp_path / f"{seed}.png", picture(seed))
    for index in range(3):
        (tmp_path / f"broken{index}.png").write_text("not a picture")
    if good >= METHODS[method].minimum_images:
        detector = blemish.fit(method, tmp_path, calibration_fraction=0, **brief)
        assert detector.manifest["data"]["count"] == good
        assert len(detector.manifest["data"]["failures"]) == 3
    else:
        with pytest.raises(DataError, match=f"{method} needs at least .* got {good}") as caught:
            blemish.fit(method, tmp_path, calibration_fraction=0, **brief)
        assert "broken0.png" in str(caught.value)
        assert "looks like text" in str(caught.value)


def test_a_config_of_another_method(method: str, picture: Part) -> None:
    other = next(kind for name, kind in METHODS.items() if name != method)
    for config in (other.Config(), MethodConfig()):
        with pytest.raises(
            ConfigError, match=f"{method} takes a {METHODS[method].Config.__name__}"
        ):
            blemish.fit(method, [picture(0)], config=config)


def test_rotations_are_learned(method: str, picture: Part, small: Any) -> None:
    good = [picture(seed) for seed in range(10)]
    settings = {**small, **LEARNED.get(method, {}), **STEADY.get(method, {})}
    plain, turned = (blemish.fit(method, good, rotations=n, **settings) for n in (1, 4))
    upright, sideways = picture(50), np.rot90(picture(50)).copy()
    assert plain.predict(sideways).score > plain.predict(upright).score
    assert turned.predict(sideways).score < plain.predict(sideways).score
    assert turned.manifest["data"]["count"] == 10


def test_ranking_is_what_counts(method: str, picture: Part, fitted: Fitted) -> None:
    asked = [picture(seed, defect=seed % 3 == 0) for seed in range(100, 130)]
    labels = [int(seed % 3 == 0) for seed in range(100, 130)]
    scores = np.array(scores_of(fitted(method), asked))
    found = auroc(scores, labels)
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, bad in zip(scores, labels, strict=True)
        for b, other in zip(scores, labels, strict=True)
        if bad and not other
    ]
    assert found == pytest.approx(np.mean(pairs))
    assert found is not None
    assert found > 0.9
    for transformed in (scores * 3 - 7, np.log(scores + 10), scores.argsort().argsort()):
        assert auroc(transformed, labels) == found


def test_held_out_pictures_teach_nothing(method: str, picture: Part, brief: Any) -> None:
    good = [picture(seed) for seed in range(10)]
    held = blemish.fit(method, good, calibration_fraction=0.3, **brief)
    kept, _ = hold_out([Sample(path=Path(f"{index:09d}")) for index in range(10)], 0.3, 0)
    alone = blemish.fit(
        method, [good[int(sample.path.name)] for sample in kept], calibration_fraction=0, **brief
    )
    assert held.predict(picture(50)).score == pytest.approx(
        alone.predict(picture(50)).score, rel=1e-5
    )
    assert held.manifest["data"]["fitted"] == alone.manifest["data"]["fitted"]
    assert len(held.manifest["data"]["calibrated"]) == len(held.manifest["calibration_scores"]) == 3


def test_nothing_but_broken_pictures(method: str, brief: Any, tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"broken{index}.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"broken0\.png"):
        blemish.fit(method, tmp_path, **brief)
