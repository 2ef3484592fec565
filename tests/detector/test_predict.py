"""Detectors at work: order, failures, names, laziness; artifacts that describe something else."""

from __future__ import annotations

import io
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
from blemish import artifact
from blemish.backbones import build
from blemish.cli import look
from blemish.detector.predict import Detector
from blemish.detector.thresholds import Threshold
from blemish.errors import (
    ArtifactError,
    BlemishError,
    ConfigError,
    DataError,
    ImageError,
    NonFiniteError,
)
from blemish.methods import Method
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
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith("blemish-decode")
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_broken_pictures_are_named_and_the_rest_is_scored(
    folder: Path, fitted: Callable[..., Detector], batch_size: int
) -> None:
    results = list(fitted().predict_many([folder], batch_size=batch_size))
    assert [Path(result.source).name for result in results] == [
        f"{index}.png" for index in range(7)
    ]
    broken = {
        index: result.reason for index, result in enumerate(results) if isinstance(result, Failure)
    }
    assert set(broken) == {1, 3, 6}
    assert "text" in broken[1]
    assert "0 bytes" in broken[3]
    assert "truncated" in broken[6]
    for index in (0, 2, 4, 5):
        one = fitted().predict(folder / f"{index}.png")
        assert results[index].score == pytest.approx(one.score, rel=1e-4)  # type: ignore[union-attr]


def test_sources_in_any_mixture(
    folder: Path, picture: Part, fitted: Callable[..., Detector]
) -> None:
    sources = [
        picture(1),
        folder / "0.png",
        str(folder / "[24].png"),
        Image.fromarray(picture(2)),
        folder,
    ]
    results = list(fitted().predict_many(sources))
    names = [Path(result.source).name for result in results]
    expected = [
        "array 0",
        "0.png",
        "2.png",
        "4.png",
        "array 4",
        *[f"{index}.png" for index in range(7)],
    ]
    assert names == expected


def test_arrays_that_are_no_pictures_are_failures(
    picture: Part, fitted: Callable[..., Detector]
) -> None:
    bad = [
        np.zeros((4, 4, 7), np.uint8),
        np.full((4, 4), np.nan),
        np.zeros((0, 3, 3), np.uint8),
        {"not": "a picture"},
    ]
    results = list(fitted().predict_many([picture(1), *bad, picture(2)]))
    assert [type(result) for result in results] == [
        Prediction,
        Failure,
        Failure,
        Failure,
        Failure,
        Prediction,
    ]
    assert [result.source for result in results] == [f"array {index}" for index in range(6)]
    assert all(result.reason for result in results[1:5])  # type: ignore[union-attr]


def test_a_single_picture_raises_what_is_wrong(
    folder: Path, fitted: Callable[..., Detector]
) -> None:
    with pytest.raises(ImageError, match="truncated") as caught:
        fitted().predict(folder / "6.png")
    assert caught.value.source == str(folder / "6.png")
    with pytest.raises(DataError, match=r"nowhere\.png: no such file"):
        fitted().predict(folder / "nowhere.png")


def test_a_folder_is_not_a_single_picture(folder: Path, fitted: Callable[..., Detector]) -> None:
    with pytest.raises(BlemishError):
        fitted().predict(folder)


def test_a_link_that_leads_nowhere_is_a_failure(
    folder: Path, fitted: Callable[..., Detector]
) -> None:
    (folder / "7.png").symlink_to(folder / "nowhere")
    results = list(fitted().predict_many([folder]))
    assert isinstance(results[7], Failure)
    assert "exist" in results[7].reason


def test_nothing_to_predict(fitted: Callable[..., Detector], tmp_path: Path) -> None:
    assert list(fitted().predict_many([])) == []
    with pytest.raises(DataError, match="no pictures found"):
        list(fitted().predict_many([tmp_path]))


def test_predictions_come_as_they_are_asked_for(
    picture: Part, fitted: Callable[..., Detector]
) -> None:
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


class Camera:
    """Frames without an end; `taken`: how many were asked for, `closed`: whether its generator has
    ended.
    """

    def __init__(self, picture: Part, broken: bool = False) -> None:
        self.taken, self.closed, self._picture, self._broken = 0, False, picture, broken

    def frames(self) -> Iterator[Any]:
        try:
            while True:
                self.taken += 1
                yield np.zeros((4, 4, 7), np.uint8) if self._broken else self._picture(self.taken)
        finally:
            self.closed = True


@pytest.mark.parametrize(("batch_size", "most"), [(1, 1), (2, 3), (None, 15)])
def test_an_endless_source_is_consumed_as_far_as_needed(
    picture: Part, fitted: Callable[..., Detector], batch_size: int | None, most: int
) -> None:
    camera, detector = Camera(picture), fitted()
    frames = camera.frames()
    results = detector.predict_many(frames, batch_size=batch_size)
    assert camera.taken == 0
    first = next(results)
    assert isinstance(first, Prediction)
    assert (first.source, first.digest) == ("array 0", detector.predict(picture(1)).digest)
    assert camera.taken <= most
    for _ in range(20):
        next(results)
    assert camera.taken <= 21 + most + (batch_size or 8)
    results.close()  # type: ignore[attr-defined]
    assert camera.closed
    assert decoder_threads() == []
    with pytest.raises(StopIteration):
        next(frames)


def test_a_camera_whose_frames_are_all_broken_is_told_at_once(
    picture: Part, fitted: Callable[..., Detector]
) -> None:
    camera = Camera(picture, broken=True)
    assert isinstance(next(fitted().predict_many(camera.frames())), Failure)
    assert camera.taken <= 8


def test_what_came_before_a_failing_source_is_not_lost(
    picture: Part, fitted: Callable[..., Detector]
) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield picture(1)
        yield picture(2)
        raise ConnectionError("the camera is gone")

    results = fitted().predict_many(frames())
    assert [next(results).source, next(results).source] == ["array 0", "array 1"]
    with pytest.raises(ConnectionError, match="the camera is gone"):
        next(results)


def test_a_path_that_is_gone_fails_a_list_before_work_and_a_stream_in_its_place(
    folder: Path, picture: Part, fitted: Callable[..., Detector]
) -> None:
    sources = [picture(1), folder / "nowhere.png", str(folder / "x*.png"), folder / "0.png"]
    with pytest.raises(DataError, match=r"nowhere\.png: no such file"):
        next(fitted().predict_many(sources))
    results = list(fitted().predict_many(iter(sources)))
    assert [type(result) for result in results] == [Prediction, Failure, Failure, Prediction]
    assert results[1] == Failure(
        source=str(folder / "nowhere.png"), reason="no such file or folder"
    )
    assert results[2].source == str(folder / "x*.png")


def test_a_single_picture_is_a_list_of_one(
    folder: Path, picture: Part, fitted: Callable[..., Detector]
) -> None:
    one = folder / "0.png"
    expected = fitted().predict(one).score
    tensor = torch.from_numpy(np.array(Image.open(one).convert("RGB")))
    content = one.read_bytes()
    files = [one, str(one), content, io.BytesIO(content), Image.open(one), Sample(path=one)]
    for source in (*files, tensor.numpy(), tensor, tensor.permute(2, 0, 1)):
        (result,) = fitted().predict_many(source)
        assert isinstance(result, Prediction)
        assert result.score == pytest.approx(expected, rel=1e-4)
    stack = torch.stack([tensor, tensor])
    for several in (stack, stack.numpy(), stack.permute(0, 3, 1, 2)):
        assert [type(result) for result in fitted().predict_many(several)] == [Prediction] * 2


def test_the_look_ahead_holds_no_pixels(picture: Part, fitted: Callable[..., Detector]) -> None:
    loaded = fitted()._load(0, picture(1, height=500, width=700), "", None)
    assert not isinstance(loaded, Failure)
    assert loaded.size == (500, 700)
    arrays = [getattr(loaded, name) for name in type(loaded).__slots__]
    assert not any(isinstance(value, np.ndarray) and value.size > 500 for value in arrays)
    assert loaded.tensor.shape == (3, 64, 64)


def test_an_interruption_ends_the_decoding(picture: Part, fitted: Callable[..., Detector]) -> None:
    detector = fitted()

    def interrupt(_images: torch.Tensor) -> Scores:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector.method, "score", interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(detector.predict_many([picture(seed) for seed in range(30)]))
    assert decoder_threads() == []


def test_where_it_looked_comes_with_the_prediction(
    picture: Part, fitted: Callable[..., Detector]
) -> None:
    detector = fitted()
    score = detector.method.score
    boxes = torch.tensor([[0.25, 0.5, 0.125, 0.375], [0.0, 0.0, 1.0, 1.0], [0.5, 0.25, 0.5, 0.75]])

    def looking(images: torch.Tensor) -> Scores:
        scores = score(images)
        saliency = torch.arange(len(images)).reshape(-1, 1, 1).expand(-1, 3, 5) / 10
        return Scores(
            scores.image, scores.maps, saliency=saliency.bfloat16(), boxes=boxes[: len(images)]
        )

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


@pytest.mark.parametrize(
    ("option", "value"), [("device", "nowhere"), ("precision", "fp7"), ("precision", "fp16")]
)
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
def test_tensors_that_do_not_fit(
    change: str, fitted: Callable[..., Detector], tmp_path: Path
) -> None:
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


# --- Several categories
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def two(fitted: Callable[..., Detector]) -> Detector:
    """A detector that says it knows nuts and bolts: bolts have a threshold of their own, nuts had
    too few pictures.
    """
    plain = fitted()
    assert plain.threshold is not None
    strict = replace(plain.threshold, value=-1.0)
    none = replace(plain.threshold, value=None, reason="too few")
    thresholds = {"bolt": strict, "nut": none}
    return Detector(
        plain.method, replace(plain.record, categories=("bolt", "nut"), thresholds=thresholds)
    )


def test_the_category_decides_the_threshold(two: Detector, picture: Part, tmp_path: Path) -> None:
    common = two.threshold.value if two.threshold else None
    expected = {"": (common, 0), "bolt": (-1.0, 1), "nut": (common, 0)}
    for detector in (
        two,
        blemish.load(two.save(tmp_path / "x.blemish"), device="cpu", precision="fp32"),
    ):
        assert detector.categories == ("bolt", "nut")
        for category, (threshold, label) in expected.items():
            for prediction in (
                detector.predict(picture(1), category),
                *detector.predict_many([picture(1)], category=category),
            ):
                assert isinstance(prediction, Prediction)
                assert (prediction.threshold, prediction.label, prediction.category) == (
                    threshold,
                    label,
                    category,
                )
    assert two.with_threshold(two.threshold).predict(picture(1), "bolt").threshold == common
    assert two.with_threshold(None).predict(picture(1), "bolt").label is None


def test_a_sample_says_its_category_itself(
    two: Detector, picture: Part, write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(tmp_path / "0.png", picture(1))
    samples = [Sample(path=path, category=category) for category in ("bolt", "nut", "pin", "")]
    results = list(
        two.predict_many([*samples, path, picture(1), Sample(path=tmp_path, category="bolt")])
    )
    assert [result.category for result in results] == ["bolt", "nut", "", "", "", "", "bolt"]  # type: ignore[union-attr]
    assert [result.label for result in results] == [1, 0, 0, 0, 0, 0, 1]  # type: ignore[union-attr]
    assert [result.source for result in results] == [*[str(path)] * 5, "array 5", str(path)]
    results = list(two.predict_many([*samples, path], category="bolt"))
    assert [result.category for result in results] == ["bolt", "nut", "", "bolt", "bolt"]  # type: ignore[union-attr]


def test_a_category_that_it_does_not_know(
    two: Detector, picture: Part, fitted: Callable[..., Detector]
) -> None:
    for ask in (two.predict, two.threshold_for):
        with pytest.raises(ConfigError, match="unknown category 'bold'; did you mean 'bolt'"):
            ask(*([picture(1), "bold"] if ask == two.predict else ["bold"]))
    with pytest.raises(ConfigError, match="knows no categories"):
        fitted().predict(picture(1), "bolt")
    with pytest.raises(ConfigError, match="unknown category"):
        list(two.predict_many([], category="bold"))


def test_a_threshold_by_hand_judges_every_category(
    two: Detector, picture: Part, tmp_path: Path
) -> None:
    strict = two.with_threshold(-2)
    path = strict.save(tmp_path / "x.blemish")
    for detector in (strict, blemish.load(path, device="cpu", precision="fp32")):
        for category in ("", "bolt", "nut"):
            prediction = detector.predict(picture(1), category)
            assert (prediction.threshold, prediction.label) == (-2.0, 1)
        assert detector.threshold is not None
        assert detector.threshold.method == "by hand"
        assert "Set by hand" in detector.manifest["threshold"]["guarantee"]
    with pytest.raises(NonFiniteError, match="the threshold is nan"):
        two.with_threshold(float("nan"))
    with pytest.raises(ConfigError, match="a number is needed"):
        two.with_threshold("high")  # type: ignore[arg-type]


def test_an_artifact_that_cannot_tell_categories_says_so(two: Detector, picture: Part) -> None:
    prediction = two.predict(picture(1))
    assert (prediction.category, prediction.category_assigned) == ("", False)
    assert prediction.notes == (
        "category not known: judged by the common threshold of all categories",
    )
    assert two.predict(picture(1), "bolt").notes == ()
    with pytest.raises(
        ConfigError, match="from before categories were told; name one of bolt, nut"
    ):
        two.predict(picture(1), "auto")


@pytest.fixture
def mixed(small: dict[str, Any], tmp_path: Path, write: Callable[..., Path]) -> Detector:
    """A detector of dark and of light pictures."""
    kinds = {"dark": 40, "light": 200}
    rng = np.random.default_rng(0)

    def shown(level: int) -> np.ndarray:
        return np.clip(rng.normal(level, 8, (64, 64, 3)), 0, 255).astype(np.uint8)

    for name, level in kinds.items():
        for index in range(22):
            write(tmp_path / name / f"{index}.png", shown(level))
    return blemish.fit("knn", [tmp_path / name for name in kinds], **small)


@pytest.mark.parametrize("category", ["", "auto"])
def test_a_category_that_nobody_gave_is_told_by_the_features(
    mixed: Detector, category: str, tmp_path: Path, write: Callable[..., Path]
) -> None:
    rng = np.random.default_rng(1)
    levels = [200, 40, 40, 200, 40]
    pictures = [
        np.clip(rng.normal(level, 8, (50, 70, 3)), 0, 255).astype(np.uint8) for level in levels
    ]
    expected = ["light" if level == 200 else "dark" for level in levels]
    path = mixed.save(tmp_path / "x.blemish")
    for detector in (
        mixed,
        blemish.load(path, device="cpu", precision="fp32"),
        mixed.with_threshold(mixed.threshold),
    ):
        found = list(detector.predict_many(pictures, category=category, batch_size=2))
        assert [prediction.category for prediction in found] == expected  # type: ignore[union-attr]
        assert all(prediction.category_assigned for prediction in found)  # type: ignore[union-attr]
        assert [p.threshold for p in found] == [  # type: ignore[union-attr]
            detector.threshold_for(name).value
            for name in expected  # type: ignore[union-attr]
        ]
        assert found[0].to_dict()["category_assigned"] is True
    file = write(tmp_path / "0.png", pictures[0])
    said = [Sample(path=file, category=name) for name in ("dark", "pin", "")]
    results = list(mixed.predict_many([*said, file], category=category))
    assert [(r.category, r.category_assigned) for r in results] == [  # type: ignore[union-attr]
        ("dark", False), ("", False), ("light", True), ("light", True)
    ]  # fmt: skip
    named = mixed.predict(pictures[0], "dark")
    assert (named.category, named.category_assigned) == ("dark", False)
    assert named.score == pytest.approx(found[0].score, rel=1e-4)  # type: ignore[union-attr]


def test_one_kind_of_part_has_no_category_to_tell(
    fitted: Callable[..., Detector], picture: Part
) -> None:
    assert "category_features" not in fitted().manifest
    prediction = fitted().predict(picture(1))
    assert (prediction.category, prediction.category_assigned, prediction.notes) == ("", False, ())
    with pytest.raises(ConfigError, match="knows no categories"):
        fitted().predict(picture(1), "auto")


def test_an_artifact_from_before_there_were_categories(
    fitted: Callable[..., Detector], tmp_path: Path, picture: Part
) -> None:
    path = fitted().save(tmp_path / "x.blemish")
    changed(path, lambda m: [m.pop(key) for key in ("categories", "thresholds", "shots")])
    detector = blemish.load(path, device="cpu", precision="fp32")
    assert (detector.categories, detector.thresholds) == ((), {})
    assert detector.predict(picture(1)) == fitted().predict(picture(1))
    assert list(look.artifact_facts(artifact.read(path)[1]))


def test_a_detector_without_a_learned_state_is_not_scored(
    fitted: Callable[..., Detector], picture: Part
) -> None:
    detector = fitted()
    fresh: Method = type(detector.method)(
        detector.method.config, build("test_vit", weights="random")
    )
    empty = Detector(fresh, detector.record)
    with pytest.raises(BlemishError, match="not been fitted"):
        empty.predict(picture(1))


def test_save_makes_folders_and_refuses_a_bad_place(
    fitted: Callable[..., Detector], tmp_path: Path
) -> None:
    path = fitted().save(tmp_path / "a" / "b" / "x.blemish")
    assert path.is_file()
    assert [file.name for file in path.parent.iterdir()] == ["x.blemish"]
    with pytest.raises(BlemishError, match="cannot be written"):
        fitted().save(path / "y.blemish")


def test_broken_pictures_take_no_place_in_a_batch(
    picture: Callable[..., np.ndarray],
    fitted: Callable[..., Detector],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What adapts to a batch is to see a whole one; and each failure stays in its place."""
    detector = fitted("knn")
    whole, sizes = detector.method.score, []

    def noted(images: torch.Tensor) -> Any:
        sizes.append(len(images))
        return whole(images)

    monkeypatch.setattr(detector.method, "score", noted)
    sources = [
        np.zeros((0, 3)),
        picture(1),
        np.zeros((0, 3)),
        picture(2),
        picture(3),
        np.zeros((0, 3)),
        picture(4),
    ]
    results = list(detector.predict_many(sources, batch_size=2))
    assert sizes == [2, 2]
    assert [isinstance(each, Failure) for each in results] == [
        True,
        False,
        True,
        False,
        False,
        True,
        False,
    ]


def test_other_sizes_have_no_threshold_of_any_category(fitted: Callable[..., Detector]) -> None:
    one = fitted("guided")
    limit = Threshold(
        value=1.0, rate=0.05, n=19, method="split conformal", guarantee="-", reason=""
    )
    record = replace(one.record, categories=("bolt",), threshold=limit, thresholds={"bolt": limit})
    detector = Detector(one.method, record)
    assert detector.threshold_for("bolt") == limit
    larger = detector.with_scales((96,))
    for category in ("", "bolt"):
        threshold = larger.threshold_for(category)
        assert threshold is not None
        assert threshold.value is None
        assert "other sizes" in threshold.reason
