"""Detectors at work: order, failures, names, laziness; artifacts that describe something else."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import Fitted, Part, Run, Write
from PIL import Image

import blemish
from blemish import compute
from blemish.detector.calibrate import recalibrate_on_defects
from blemish.detector.predict import Detector
from blemish.detector.reading import Loaded, Reading
from blemish.errors import (
    BlemishError,
    DataError,
    ImageError,
    NonFiniteError,
)
from blemish.types import Failure, Prediction, Sample, Scores


@contextmanager
def scored_by(
    detector: Detector, change: Callable[[torch.Tensor, Scores], Scores]
) -> Iterator[None]:
    """What the method scores goes through `change`, with the pictures that it scores."""
    judge = detector.method.judge
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            detector.method, "judge", lambda seen, images: change(images, judge(seen, images))
        )
        yield


@pytest.fixture
def folder(tmp_path: Path, picture: Part, write: Write) -> Path:
    """Seven files, the second, fourth and last broken."""
    for index in range(7):
        write(tmp_path / "in" / f"{index}.png", picture(500 + index))
    (tmp_path / "in" / "1.png").write_text("name,label\n")
    (tmp_path / "in" / "3.png").write_bytes(b"")
    whole = (tmp_path / "in" / "6.png").read_bytes()
    (tmp_path / "in" / "6.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path / "in"


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_broken_pictures_are_named_and_the_rest_is_scored(
    folder: Path, fitted: Fitted, batch_size: int
) -> None:
    (folder / "7.png").symlink_to(folder / "nowhere")
    results = list(fitted().predict_many([folder], batch_size=batch_size))
    assert [Path(result.source).name for result in results] == [f"{at}.png" for at in range(8)]
    broken = {at: one.reason for at, one in enumerate(results) if isinstance(one, Failure)}
    assert list(broken) == [1, 3, 6, 7]
    for reason, said in zip(
        broken.values(), ("text", "0 bytes", "truncated", "exist"), strict=True
    ):
        assert said in reason
    (gone,) = fitted().predict_many([folder / "7.png"])  # named by itself it is no less broken
    assert isinstance(gone, Failure)
    (folder / "7.png").unlink()
    (folder / "7.png").symlink_to("/dev/null")
    device = list(fitted().predict_many([folder]))[-1]
    assert isinstance(device, Failure)
    assert "device" in device.reason
    for index in (0, 2, 4, 5):
        one = fitted().predict(folder / f"{index}.png")
        assert results[index].score == pytest.approx(one.score, rel=1e-4)  # type: ignore[union-attr]


def test_sources_in_any_mixture(folder: Path, picture: Part, fitted: Fitted) -> None:
    shown = Image.fromarray(picture(2))
    sources = [picture(1), folder / "0.png", str(folder / "[24].png"), shown, folder]
    names = [Path(result.source).name for result in fitted().predict_many(sources)]
    of_folder = [f"{index}.png" for index in range(7)]
    assert names == ["array 0", "0.png", "2.png", "4.png", "array 4", *of_folder]


def test_arrays_that_are_no_pictures_are_failures(picture: Part, fitted: Fitted) -> None:
    shapes = [np.zeros((4, 4, 7), np.uint8), np.full((4, 4), np.nan), np.zeros((0, 3, 3), np.uint8)]
    sources = [picture(1), *shapes, {"not": "a picture"}, picture(2)]
    results = list(fitted().predict_many(sources))
    assert [isinstance(result, Failure) for result in results] == [False, *[True] * 4, False]
    assert [result.source for result in results] == [f"array {index}" for index in range(6)]
    assert all(result.reason for result in results[1:5])  # type: ignore[union-attr]


def test_a_single_picture_raises_what_is_wrong(folder: Path, fitted: Fitted) -> None:
    with pytest.raises(ImageError, match="truncated") as caught:
        fitted().predict(folder / "6.png")
    assert caught.value.source == str(folder / "6.png")
    with pytest.raises(DataError, match=r"nowhere\.png: no such file"):
        fitted().predict(folder / "nowhere.png")
    with pytest.raises(DataError, match="stands for 7 pictures"):
        fitted().predict(folder)


def test_nothing_to_predict(fitted: Fitted, tmp_path: Path) -> None:
    assert list(fitted().predict_many([])) == []
    with pytest.raises(DataError, match="no pictures found"):
        list(fitted().predict_many([tmp_path]))


def test_predictions_come_as_they_are_asked_for(
    picture: Part, fitted: Fitted, decoder_threads: Callable[[], list[str]]
) -> None:
    detector, batches = fitted(), []

    def counting(images: torch.Tensor, scores: Scores) -> Scores:
        batches.append(len(images))
        return scores

    with scored_by(detector, counting):
        results = detector.predict_many([picture(seed) for seed in range(10)], batch_size=2)
        for done in ([], [2], [2], [2, 2]):
            assert batches == done
            next(results)
        assert decoder_threads()
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
    picture: Part,
    fitted: Fitted,
    decoder_threads: Callable[[], list[str]],
    batch_size: int | None,
    most: int,
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
    picture: Part, fitted: Fitted
) -> None:
    camera = Camera(picture, broken=True)
    assert isinstance(next(fitted().predict_many(camera.frames())), Failure)
    assert camera.taken <= 8


def test_what_came_before_a_failing_source_is_not_lost(picture: Part, fitted: Fitted) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield picture(1)
        yield picture(2)
        raise ConnectionError("the camera is gone")

    results = fitted().predict_many(frames())
    assert [next(results).source, next(results).source] == ["array 0", "array 1"]
    with pytest.raises(ConnectionError, match="the camera is gone"):
        next(results)


def test_a_path_that_is_gone_fails_a_list_before_work_and_a_stream_in_its_place(
    folder: Path, picture: Part, fitted: Fitted
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


def test_a_single_picture_is_a_list_of_one(folder: Path, picture: Part, fitted: Fitted) -> None:
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


def test_the_look_ahead_holds_no_pixels(picture: Part, fitted: Fitted) -> None:
    detector = fitted()
    reading = Reading(
        preprocessing=detector.preprocessing, area=None, categories=(), category="", alter=None
    )
    (loaded,) = reading.loads([picture(1, height=500, width=700)], ahead=1)
    assert isinstance(loaded, Loaded)
    assert loaded.size == (500, 700)
    arrays = [getattr(loaded, name) for name in type(loaded).__slots__]
    held = [value.size for value in arrays if isinstance(value, np.ndarray)]
    assert held == [3 * detector.preprocessing.height * detector.preprocessing.width]
    assert loaded.pixels.shape == (3, 64, 64)


def test_where_it_looked_comes_with_the_prediction(picture: Part, fitted: Fitted) -> None:
    detector = fitted()
    boxes = torch.tensor([[0.25, 0.5, 0.125, 0.375], [0.0, 0.0, 1.0, 1.0], [0.5, 0.25, 0.5, 0.75]])

    def looking(images: torch.Tensor, scores: Scores) -> Scores:
        saliency = torch.arange(len(images)).reshape(-1, 1, 1).expand(-1, 3, 5) / 10
        return replace(scores, saliency=saliency.bfloat16(), boxes=boxes[: len(images)])

    pictures = [picture(1), np.zeros((4, 4, 7), np.uint8), picture(2), picture(3)]
    plain = [result for result in detector.predict_many(pictures) if isinstance(result, Prediction)]
    with scored_by(detector, looking):
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
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_score_that_is_not_finite_is_an_error(
    where: str, value: float, picture: Part, fitted: Fitted
) -> None:
    def damaged(images: torch.Tensor, scores: Scores) -> Scores:
        parts = {"score": scores.image.clone(), "map": scores.maps.clone()}
        parts |= {"saliency": torch.zeros(len(images), 2, 2), "crop": torch.zeros(len(images), 4)}
        parts[where][1].view(-1)[-1] = value
        return Scores(parts["score"], parts["map"], saliency=parts["saliency"], boxes=parts["crop"])

    detector = fitted()
    with (
        scored_by(detector, damaged),
        pytest.raises(NonFiniteError, match=f"array 1: the {where} is not finite"),
    ):
        list(detector.predict_many([picture(1), picture(2), picture(3)]))


def test_prediction_computes_no_gradients(picture: Part, fitted: Fitted) -> None:
    detector, seen = fitted(), []

    def watching(_images: torch.Tensor, scores: Scores) -> Scores:
        seen.append(torch.is_inference_mode_enabled())
        return scores

    with scored_by(detector, watching):
        for _ in detector.predict_many([picture(seed) for seed in range(4)], batch_size=2):
            assert not torch.is_inference_mode_enabled()  # the caller's own code is left alone
    assert seen == [True, True]


def test_reduced_precision(picture: Part, fitted: Fitted, tmp_path: Path) -> None:
    path = fitted().save(tmp_path / "x.blemish")
    rough = blemish.load(path, device="cpu", precision="bf16")
    assert rough.method.backbone.dtype == torch.bfloat16
    for seed in (1, 50):
        one, other = fitted().predict(picture(seed)), rough.predict(picture(seed))
        assert other.anomaly_map.dtype == np.float32
        assert other.score == pytest.approx(one.score, abs=0.1)
    assert rough.predict(picture(7, defect=True)).score > rough.predict(picture(7)).score


@pytest.mark.parametrize("made_in", ["fp32", "bf16"])
@pytest.mark.parametrize("computes", ["fp32", "bf16"])
def test_an_artifact_computes_as_it_was_made_where_it_can(
    made_in: str,
    computes: str,
    picture: Part,
    fitted: Fitted,
    run: Run,
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {"fp32": torch.float32, "bf16": torch.bfloat16}[computes]
    pick = compute.pick_precision
    monkeypatch.setattr(
        compute, "pick_precision", lambda name, on: there if name == "auto" else pick(name, on)
    )
    made = blemish.load(fitted().save(tmp_path / "x"), device="cpu", precision=made_in)
    good = [picture(700 + seed) for seed in range(20)]
    path = blemish.recalibrate(made, good)[0].save(tmp_path / "y.blemish")
    found = blemish.load(path, device="cpu")
    assert found.record.precision == made_in
    assert found.precision == (made_in if made_in == computes else "fp32")
    assert blemish.load(path, device="cpu", precision="bf16").precision == "bf16"
    defects = [picture(900 + seed, defect=True) for seed in range(5)]
    other = blemish.load(path, device="cpu", precision="fp32")
    missed = recalibrate_on_defects(other, defects, miss_rate=0.5)[0]
    assert missed.record.precision == "fp32"
    if made_in == found.precision:
        scores = sorted(found.predict(pixels).score for pixels in good)
        assert scores == pytest.approx(sorted(found.record.calibration_scores), rel=1e-6)
    new = write(tmp_path / "new.png", picture(3))
    said = run("predict", path, new, "--device cpu")[2]
    notice = f"{path} computes in fp32 here, not in bf16 as it was made"
    assert (notice in said) == (made_in != found.precision)
    assert notice not in run("predict", path, new, "--precision fp32")[2]


def test_save_makes_folders_and_refuses_a_bad_place(fitted: Fitted, tmp_path: Path) -> None:
    path = fitted().save(tmp_path / "a" / "b" / "x.blemish")
    assert path.is_file()
    assert [file.name for file in path.parent.iterdir()] == ["x.blemish"]
    with pytest.raises(BlemishError, match="cannot be written"):
        fitted().save(path / "y.blemish")


def test_broken_pictures_take_no_place_in_a_batch(picture: Part, fitted: Fitted) -> None:
    """What adapts to a batch is to see a whole one; and each failure stays in its place."""
    detector, sizes = fitted("knn"), []

    def noted(images: torch.Tensor, scores: Scores) -> Scores:
        sizes.append(len(images))
        return scores

    broken = np.zeros((0, 3))
    sources = [broken, picture(1), broken, picture(2), picture(3), broken, picture(4)]
    with scored_by(detector, noted):
        results = list(detector.predict_many(sources, batch_size=2))
    assert sizes == [2, 2]
    assert [isinstance(each, Failure) for each in results] == [each is broken for each in sources]
