"""Detectors at work: order, failures, names, laziness; and artifacts that describe something else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import blemish
from blemish import artifact, wording
from blemish.backbones import build
from blemish.errors import ArtifactError, BlemishError, ConfigError, DataError, ImageError, NonFiniteError
from blemish.methods import Method
from blemish.predictor import Detector
from blemish.thresholds import Threshold
from blemish.types import Failure, Prediction, Sample, Scores

Part = Callable[..., np.ndarray]


@pytest.fixture
def folder(tmp_path: Path, picture: Part, write: Callable[..., Path]) -> Path:
    """Seven files, the second, fourth and last broken."""
    for index in range(7):
        write(tmp_path / "in" / f"{index}.png", picture(500 + index))
    (tmp_path / "in" / "1.png").write_text("name,label\n")
    (tmp_path / "in" / "3.png").write_bytes(b"")
    whole = (tmp_path / "in" / "6.png").read_bytes()
    (tmp_path / "in" / "6.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path / "in"


def decoder_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("blemish-decode")]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_broken_pictures_are_named_and_the_rest_is_scored(
    folder: Path, fitted: Callable[..., Detector], batch_size: int
) -> None:
    results = list(fitted().predict_many([folder], batch_size=batch_size))
    assert [Path(result.source).name for result in results] == [f"{index}.png" for index in range(7)]
    broken = {index: result.reason for index, result in enumerate(results) if isinstance(result, Failure)}
    assert set(broken) == {1, 3, 6}
    assert "text" in broken[1]
    assert "0 bytes" in broken[3]
    assert "truncated" in broken[6]
    for index in (0, 2, 4, 5):
        one = fitted().predict(folder / f"{index}.png")
        assert results[index].score == pytest.approx(one.score, rel=1e-4)  # type: ignore[union-attr]


def test_sources_in_any_mixture(folder: Path, picture: Part, fitted: Callable[..., Detector]) -> None:
    sources = [picture(1), folder / "0.png", str(folder / "[24].png"), Image.fromarray(picture(2)), folder]
    results = list(fitted().predict_many(sources))
    names = [Path(result.source).name for result in results]
    expected = ["array 0", "0.png", "2.png", "4.png", "array 4", *[f"{index}.png" for index in range(7)]]
    assert names == expected


def test_arrays_that_are_no_pictures_are_failures(picture: Part, fitted: Callable[..., Detector]) -> None:
    bad = [np.zeros((4, 4, 7), np.uint8), np.full((4, 4), np.nan), np.zeros((0, 3, 3), np.uint8), {"not": "a picture"}]
    results = list(fitted().predict_many([picture(1), *bad, picture(2)]))
    assert [type(result) for result in results] == [Prediction, Failure, Failure, Failure, Failure, Prediction]
    assert [result.source for result in results] == [f"array {index}" for index in range(6)]
    assert all(result.reason for result in results[1:5])  # type: ignore[union-attr]


def test_a_single_picture_raises_what_is_wrong(folder: Path, fitted: Callable[..., Detector]) -> None:
    with pytest.raises(ImageError, match="truncated") as caught:
        fitted().predict(folder / "6.png")
    assert caught.value.source == str(folder / "6.png")
    with pytest.raises(DataError, match=r"nowhere\.png: no such file"):
        fitted().predict(folder / "nowhere.png")


def test_a_folder_is_not_a_single_picture(folder: Path, fitted: Callable[..., Detector]) -> None:
    with pytest.raises(BlemishError):
        fitted().predict(folder)


def test_a_link_that_leads_nowhere_is_a_failure(folder: Path, fitted: Callable[..., Detector]) -> None:
    (folder / "7.png").symlink_to(folder / "nowhere")
    results = list(fitted().predict_many([folder]))
    assert isinstance(results[7], Failure)
    assert "exist" in results[7].reason


def test_nothing_to_predict(fitted: Callable[..., Detector], tmp_path: Path) -> None:
    assert list(fitted().predict_many([])) == []
    with pytest.raises(DataError, match="no pictures found"):
        list(fitted().predict_many([tmp_path]))


def test_predictions_come_as_they_are_asked_for(picture: Part, fitted: Callable[..., Detector]) -> None:
    detector, batches = fitted(), []
    score = detector.method.score

    def counting(images: torch.Tensor) -> Scores:
        batches.append(len(images))
        return score(images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector.method, "score", counting)
        results = detector.predict_many([picture(seed) for seed in range(10)], batch_size=2)
        assert batches == []
        next(results)
        assert batches == [2]
        next(results)
        next(results)
        assert batches == [2, 2]
        assert decoder_threads()
        assert isinstance(results, Iterator)
        results.close()  # type: ignore[attr-defined] # what Ctrl-C in a loop over it comes to
    assert decoder_threads() == []


def test_an_interruption_ends_the_decoding(picture: Part, fitted: Callable[..., Detector]) -> None:
    detector = fitted()

    def interrupt(_images: torch.Tensor) -> Scores:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector.method, "score", interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(detector.predict_many([picture(seed) for seed in range(30)]))
    assert decoder_threads() == []


def test_where_it_looked_comes_with_the_prediction(picture: Part, fitted: Callable[..., Detector]) -> None:
    detector = fitted()
    score = detector.method.score
    boxes = torch.tensor([[0.25, 0.5, 0.125, 0.375], [0.0, 0.0, 1.0, 1.0], [0.5, 0.25, 0.5, 0.75]])

    def looking(images: torch.Tensor) -> Scores:
        scores = score(images)
        saliency = torch.arange(len(images)).reshape(-1, 1, 1).expand(-1, 3, 5) / 10
        return Scores(scores.image, scores.maps, saliency=saliency.bfloat16(), boxes=boxes[: len(images)])

    pictures = [picture(1), np.zeros((4, 4, 7), np.uint8), picture(2), picture(3)]
    plain = [result for result in detector.predict_many(pictures) if isinstance(result, Prediction)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector.method, "score", looking)
        results = list(detector.predict_many(pictures))
    assert isinstance(results.pop(1), Failure)
    for index, (result, before) in enumerate(zip(results, plain, strict=True)):
        assert isinstance(result, Prediction)
        assert result.saliency is not None
        assert result.saliency.dtype == np.float32
        assert np.allclose(result.saliency, np.full((3, 5), index / 10), atol=1e-3)
        assert result.box == tuple(boxes[index].tolist())
        assert result.to_dict() == {**before.to_dict(), "box": boxes[index].tolist()}
        assert (before.saliency, before.box, before.to_dict()["box"]) == (None, None, None)


@pytest.mark.parametrize("where", ["score", "map", "saliency", "crop"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_an_error(
    where: str, value: float, picture: Part, fitted: Callable[..., Detector]
) -> None:
    detector = fitted()
    score = detector.method.score

    def damaged(images: torch.Tensor) -> Scores:
        scores = score(images)
        image, maps = scores.image.clone(), scores.maps.clone()
        if where == "score":
            image[1] = value
        elif where == "map":
            maps[1, 3, 3] = value
        saliency, boxes = torch.zeros(len(images), 2, 2), torch.zeros(len(images), 4)
        if where == "saliency":
            saliency[1, 0, 1] = value
        elif where == "crop":
            boxes[1, 2] = value
        return Scores(image, maps, saliency=saliency, boxes=boxes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector.method, "score", damaged)
        with pytest.raises(NonFiniteError, match=f"array 1: the {where} is not finite"):
            list(detector.predict_many([picture(1), picture(2), picture(3)]))


def test_prediction_computes_no_gradients(picture: Part, fitted: Callable[..., Detector]) -> None:
    detector = fitted()
    seen: list[bool] = []
    score = detector.method.score

    def watching(images: torch.Tensor) -> Scores:
        seen.append(torch.is_inference_mode_enabled())
        return score(images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector.method, "score", watching)
        results = detector.predict_many([picture(seed) for seed in range(4)], batch_size=2)
        for _ in results:
            assert not torch.is_inference_mode_enabled()  # the caller's own code is left alone
    assert seen == [True, True]
    assert not detector.method.training


def test_reduced_precision(picture: Part, fitted: Callable[..., Detector], tmp_path: Path) -> None:
    path = fitted().save(tmp_path / "x.blemish")
    rough = blemish.load(path, device="cpu", precision="bf16")
    assert rough.method.backbone.dtype == torch.bfloat16
    for seed in (1, 50):
        one, other = fitted().predict(picture(seed)), rough.predict(picture(seed))
        assert other.anomaly_map.dtype == np.float32
        assert other.score == pytest.approx(one.score, abs=0.1)
    assert rough.predict(picture(7, defect=True)).score > rough.predict(picture(7)).score


@pytest.mark.parametrize(("option", "value"), [("device", "nowhere"), ("precision", "fp7"), ("precision", "fp16")])
def test_a_device_or_precision_that_is_not_there(
    option: str, value: str, fitted: Callable[..., Detector], tmp_path: Path
) -> None:
    path = fitted().save(tmp_path / "x.blemish")
    with pytest.raises(ConfigError):
        blemish.load(path, **{"device": "cpu", option: value})


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    tensors, manifest = artifact.read(path)
    change(manifest)
    return artifact.write(path, tensors, manifest)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(method="lstm"),
        lambda m: m["config"].update(surplus=1),
        lambda m: m["config"].update(bank_size="many"),
        lambda m: m["config"].update(bank_size=0),
        lambda m: m["backbone"]["spec"].update(timm_name="no_such_model"),
        lambda m: m["backbone"]["spec"].update(kind="rnn"),
        lambda m: m["backbone"].update(spec=None),
        lambda m: m["backbone"]["weights"].pop("sha256"),
        lambda m: m["preprocessing"].pop("height"),
        lambda m: m["threshold"].pop("rate"),
        lambda m: m["threshold"].update(rate=2.0),
        lambda m: m.update(thresholds=[1]),
        lambda m: m.update(thresholds={"nut": {}}),
        lambda m: m.update(categories=7),
        lambda m: m.update(config=7),
        lambda m: m.pop("config"),
        lambda m: m.pop("threshold"),
        lambda m: m.pop("backbone"),
        lambda m: m.pop("map_scale"),
        lambda m: m.update(map_scale="wide"),
        lambda m: m.clear(),
    ],
)
def test_a_manifest_that_describes_something_else(
    change: Callable[[dict[str, Any]], object], fitted: Callable[..., Detector], tmp_path: Path
) -> None:
    path = fitted().save(tmp_path / "x.blemish")
    changed(path, change)
    with pytest.raises(ArtifactError, match=r"x\.blemish"):
        blemish.load(path, device="cpu")


@pytest.mark.parametrize("change", ["missing", "foreign", "shape"])
def test_tensors_that_do_not_fit(change: str, fitted: Callable[..., Detector], tmp_path: Path) -> None:
    path = fitted().save(tmp_path / "x.blemish")
    tensors, manifest = artifact.read(path)
    if change == "missing":
        del tensors["backbone.model.cls_token"]
    elif change == "foreign":
        tensors["surplus"] = torch.ones(1)
    else:
        tensors["backbone.model.cls_token"] = torch.ones(1, 1, 2)
    artifact.write(path, tensors, manifest)
    with pytest.raises(ArtifactError, match="do not fit method 'knn'"):
        blemish.load(path, device="cpu")


# --- Several categories ----------------------------------------------------------------------------------------------


@pytest.fixture
def two(fitted: Callable[..., Detector]) -> Detector:
    """A detector that says it knows nuts and bolts: bolts have a threshold of their own, nuts had too few pictures."""
    plain = fitted()
    assert plain.threshold is not None
    strict = replace(plain.threshold, value=-1.0)
    none = replace(plain.threshold, value=None, reason="too few")
    thresholds = {"bolt": strict.to_dict(), "nut": none.to_dict()}
    manifest = {**plain.manifest, "categories": ["bolt", "nut"], "thresholds": thresholds}
    return Detector(plain.method, plain.preprocessing, plain.threshold, manifest)


def test_the_category_decides_the_threshold(two: Detector, picture: Part, tmp_path: Path) -> None:
    common = two.threshold.value if two.threshold else None
    expected = {"": (common, 0), "bolt": (-1.0, 1), "nut": (common, 0)}
    for detector in (two, blemish.load(two.save(tmp_path / "x.blemish"), device="cpu", precision="fp32")):
        assert detector.categories == ("bolt", "nut")
        for category, (threshold, label) in expected.items():
            for prediction in (
                detector.predict(picture(1), category),
                *detector.predict_many([picture(1)], category=category),
            ):
                assert isinstance(prediction, Prediction)
                assert (prediction.threshold, prediction.label, prediction.category) == (threshold, label, category)
    assert two.with_threshold(two.threshold).predict(picture(1), "bolt").threshold == common
    assert two.with_threshold(None).predict(picture(1), "bolt").label is None


def test_a_sample_says_its_category_itself(
    two: Detector, picture: Part, write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(tmp_path / "0.png", picture(1))
    samples = [Sample(path=path, category=category) for category in ("bolt", "nut", "pin", "")]
    results = list(two.predict_many([*samples, path, picture(1), Sample(path=tmp_path, category="bolt")]))
    assert [result.category for result in results] == ["bolt", "nut", "", "", "", "", "bolt"]  # type: ignore[union-attr]
    assert [result.label for result in results] == [1, 0, 0, 0, 0, 0, 1]  # type: ignore[union-attr]
    assert [result.source for result in results] == [*[str(path)] * 5, "array 5", str(path)]
    results = list(two.predict_many([*samples, path], category="bolt"))
    assert [result.category for result in results] == ["bolt", "nut", "", "bolt", "bolt"]  # type: ignore[union-attr]


def test_a_category_that_it_does_not_know(two: Detector, picture: Part, fitted: Callable[..., Detector]) -> None:
    for ask in (two.predict, two.threshold_for):
        with pytest.raises(ConfigError, match="unknown category 'bold'; did you mean 'bolt'"):
            ask(*([picture(1), "bold"] if ask == two.predict else ["bold"]))
    with pytest.raises(ConfigError, match="knows no categories"):
        fitted().predict(picture(1), "bolt")
    with pytest.raises(ConfigError, match="unknown category"):
        list(two.predict_many([], category="bold"))


def test_an_artifact_from_before_there_were_categories(
    fitted: Callable[..., Detector], tmp_path: Path, picture: Part
) -> None:
    path = fitted().save(tmp_path / "x.blemish")
    changed(path, lambda m: [m.pop(key) for key in ("categories", "thresholds", "shots")])
    detector = blemish.load(path, device="cpu", precision="fp32")
    assert (detector.categories, detector.thresholds) == ((), {})
    assert detector.predict(picture(1)) == fitted().predict(picture(1))
    assert list(wording.manifest(artifact.read(path)[1]).columns)


def test_a_detector_without_a_learned_state_is_not_scored(fitted: Callable[..., Detector], picture: Part) -> None:
    detector = fitted()
    fresh: Method = type(detector.method)(detector.method.config, build("test_vit", weights="random"))
    empty = Detector(fresh, detector.preprocessing, detector.threshold, detector.manifest)
    with pytest.raises(BlemishError, match="not been fitted"):
        empty.predict(picture(1))


def test_save_makes_folders_and_refuses_a_bad_place(fitted: Callable[..., Detector], tmp_path: Path) -> None:
    path = fitted().save(tmp_path / "a" / "b" / "x.blemish")
    assert path.is_file()
    assert [file.name for file in path.parent.iterdir()] == ["x.blemish"]
    with pytest.raises(BlemishError, match="cannot be written"):
        fitted().save(path / "y.blemish")


def test_broken_pictures_take_no_place_in_a_batch(
    picture: Callable[..., np.ndarray], fitted: Callable[..., Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What adapts to a batch is to see a whole one; and each failure stays in its place."""
    detector = fitted("knn")
    whole, sizes = detector.method.score, []

    def noted(images: torch.Tensor) -> Any:
        sizes.append(len(images))
        return whole(images)

    monkeypatch.setattr(detector.method, "score", noted)
    sources = [np.zeros((0, 3)), picture(1), np.zeros((0, 3)), picture(2), picture(3), np.zeros((0, 3)), picture(4)]
    results = list(detector.predict_many(sources, batch_size=2))
    assert sizes == [2, 2]
    assert [isinstance(each, Failure) for each in results] == [True, False, True, False, False, True, False]


def test_other_sizes_have_no_threshold_of_any_category(fitted: Callable[..., Detector]) -> None:
    one = fitted("guided")
    limit = Threshold(value=1.0, rate=0.05, n=19, method="split conformal", guarantee="-", reason="")
    manifest = {**one.manifest, "categories": ["bolt"], "thresholds": {"bolt": limit.to_dict()}}
    detector = Detector(one.method, one.preprocessing, limit, manifest)
    assert detector.threshold_for("bolt") == limit
    larger = detector.with_scales((96,))
    for category in ("", "bolt"):
        threshold = larger.threshold_for(category)
        assert threshold is not None
        assert threshold.value is None
        assert "other sizes" in threshold.reason
