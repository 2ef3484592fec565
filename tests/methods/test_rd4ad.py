"""RD4AD against its convolutions, distances and sums written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from naive import f64, upsampled
from torch import Tensor

from blemish.backbones import build
from blemish.methods.learner import TrainingBatch
from blemish.methods.mirror import Student
from blemish.methods.rd4ad import RD4AD, RD4ADConfig

Weights = dict[str, np.ndarray]
Stages = list[np.ndarray]
WIDTHS, GRIDS = (2, 3, 4), ((7, 8), (4, 4), (2, 2))  # the first is cut off


def student(**settings: Any) -> Student:
    """A small one, with norms and statistics that are not those of the start."""
    config = RD4ADConfig(**{"embedding_blocks": 2, "decoder_blocks": (2, 1), **settings})
    torch.manual_seed(3)
    made = Student(config, WIDTHS, GRIDS).eval()
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.copy_(torch.rand(len(module.weight)) + 0.5)
                module.bias.copy_(torch.randn(len(module.bias)) * 0.3)
                module.running_mean.copy_(torch.randn(len(module.bias)) * 0.3)
                module.running_var.copy_(torch.rand(len(module.bias)) + 0.5)
    return made


def stages_of(count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(count, width, *grid, generator=generator)
        for width, grid in zip(WIDTHS, GRIDS, strict=True)
    ]


def convolved(x: np.ndarray, weight: np.ndarray, step: int) -> np.ndarray:
    """B C h w, place by place; 0 beyond the border."""
    side = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), *[(side // 2, side // 2)] * 2))
    rows, columns = (-(-length // step) for length in x.shape[2:])
    found = np.empty((len(x), len(weight), rows, columns))
    for row, column in np.ndindex(rows, columns):
        square = padded[:, :, row * step : row * step + side, column * step : column * step + side]
        found[:, :, row, column] = np.einsum("bcyx,dcyx->bd", square, weight)
    return found


def transposed(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Each place of B C h w gives a square of 2×2."""
    height, width = x.shape[2:]
    found = np.empty((len(x), weight.shape[1], 2 * height, 2 * width))
    for row, column in np.ndindex(height, width):
        given = np.einsum("bc,cdyx->bdyx", x[:, :, row, column], weight)
        found[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = given
    return found


class Naive:
    """The student of these weights; `training`: norms by the batch's own statistics."""

    def __init__(self, weights: Weights, *, training: bool, rectified: bool) -> None:
        self.weights, self.training, self.rectified = weights, training, rectified

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        if self.training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
        else:
            mean, variance = (self.weights[f"{name}.running_{each}"] for each in ("mean", "var"))
        scale = self.weights[f"{name}.weight"] / np.sqrt(variance + 1e-5)
        return (
            x * scale[:, None, None] + (self.weights[f"{name}.bias"] - mean * scale)[:, None, None]
        )

    def moved(self, x: np.ndarray, name: str, step: int) -> np.ndarray:
        weight = self.weights[f"{name}.weight"]
        return transposed(x, weight) if step == -2 else convolved(x, weight, step)

    def block(self, x: np.ndarray, name: str, step: int, *, bent: bool) -> np.ndarray:
        inner = np.maximum(self.norm(self.moved(x, f"{name}.inner.0", 1), f"{name}.inner.1"), 0)
        inner = self.norm(self.moved(inner, f"{name}.inner.3", step), f"{name}.inner.4")
        inner = self.moved(np.maximum(inner, 0), f"{name}.inner.6", 1)
        inner = self.norm(inner, f"{name}.inner.7")
        if f"{name}.shortcut.0.weight" in self.weights:
            x = self.norm(self.moved(x, f"{name}.shortcut.0", step), f"{name}.shortcut.1")
        return np.maximum(inner + x, 0) if bent else inner + x

    def __call__(self, stages: Stages) -> Stages:
        fused = []
        for at, x in enumerate(stages[:-1]):
            for number in range(2 - at):
                x = self.moved(x, f"fusing.{at}.{3 * number}", 2)
                x = np.maximum(self.norm(x, f"fusing.{at}.{3 * number + 1}"), 0)
            fused.append(x)
        x = self.block(np.concatenate([*fused, stages[-1]], 1), "embedding.0", 2, bent=True)
        x = self.block(x, "embedding.1", 1, bent=True)
        given = []
        for number, (height, width) in enumerate(GRIDS[::-1]):
            last = self.rectified
            x = self.block(x, f"decoder.{number}.0", -2, bent=last or number == 0)
            if number == 0:  # two blocks
                x = self.block(x, "decoder.0.1", 1, bent=last)
            x = x[:, :, :height, :width]
            given.append(x)
        return given[::-1]


def distances(given: Stages, wanted: Stages) -> Stages:
    """Eq. 1: B h w of each stage."""
    found = []
    for one, other in zip(given, wanted, strict=True):
        apart = np.empty((len(one), *one.shape[2:]))
        for picture, row, column in np.ndindex(apart.shape):
            a, b = one[picture, :, row, column], other[picture, :, row, column]
            apart[picture, row, column] = 1 - (a @ b) / np.sqrt((a @ a) * (b @ b))
        found.append(apart)
    return found


def weights_of(module: torch.nn.Module) -> Weights:
    return {name: f64(each) for name, each in module.state_dict().items()}


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_student(training: bool, rectified: bool) -> None:
    made = student(rectified=rectified)
    naive = Naive(weights_of(made), training=training, rectified=rectified)
    expected = naive([f64(stage) for stage in stages_of()])
    got = made.train(training)(stages_of())
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(f64(one), other, rtol=1e-3, atol=1e-4)
    assert (min(one.min().item() for one in got) >= 0) == rectified


def rd4ad(name: str = "test_resnet", **settings: Any) -> RD4AD:
    layers = (1, 2, 3) if name == "test_resnet" else (2, 4)
    config = RD4ADConfig(backbone=name, image_size=(64,), layers=layers, smoothing=0.0, **settings)
    return RD4AD(config, build(name, weights="random", seed=3)).eval()


def whole_distances(given: Stages, wanted: Stages) -> Stages:
    """B of each stage: one vector a picture."""
    found = []
    for one, other in zip(given, wanted, strict=True):
        pairs = [(a.ravel(), b.ravel()) for a, b in zip(one, other, strict=True)]
        found.append(np.array([1 - (a @ b) / np.sqrt((a @ a) * (b @ b)) for a, b in pairs]))
    return found


@pytest.mark.parametrize(("cosine", "apart"), [("stage", whole_distances), ("place", distances)])
def test_the_loss_and_the_parameters_after_one_step(
    cosine: str, apart: Callable[[Stages, Stages], Stages]
) -> None:
    """Gradients by differences of the loss in float64, then Adam by hand."""
    method = rd4ad(learning_rate=2e-3, weight_decay=0.01, cosine=cosine)
    method.student = student().train()
    batch = TrainingBatch(None, {str(at): stage for at, stage in enumerate(stages_of())})
    wanted, before = [f64(stage) for stage in stages_of()], weights_of(method.student)

    def loss_of(weights: Weights) -> float:
        given = Naive(weights, training=True, rectified=False)(wanted)
        return float(sum(each.mean() for each in apart(given, wanted)))

    optimizer = method.optimizer()
    loss = method.training_step(batch, 0.5)
    assert loss.item() == pytest.approx(loss_of(before), rel=1e-4)
    loss.backward()
    learned = dict(method.student.named_parameters())
    gradients = {name: f64(each.grad) for name, each in learned.items()}  # type: ignore[arg-type]
    optimizer.step()
    after, random, certain = weights_of(method.student), np.random.default_rng(0), 0
    for name, gradient in gradients.items():
        place = tuple(random.integers(0, side) for side in gradient.shape)
        changed = []
        for change in (1e-5, -1e-5):
            other = {**before, name: before[name].copy()}
            other[name][place] += change
            changed.append(loss_of(other))
        slope = (changed[0] - changed[1]) / 2e-5
        assert gradient[place] == pytest.approx(slope, rel=2e-2, abs=2e-5), name
        decayed = slope + 0.01 * before[name][place]
        if abs(decayed) > 1e-3:  # else its sign is not to be told in float32
            # Both averages, corrected for their start at 0, are the gradient and its square.
            stepped = before[name][place] - 2e-3 * np.sign(decayed)
            assert after[name][place] == pytest.approx(stepped, abs=2e-6), name
            certain += 1
    assert certain > len(gradients) / 2


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_map_is_the_sum_over_the_stages(name: str) -> None:
    method = rd4ad(name)
    method.end_training(1)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = method.see(images)
    stages = method.stages(seen)
    apart = distances(
        [f64(each) for each in method.student(stages)], [f64(each) for each in stages]
    )
    got = f64(method.anomaly_map(seen, images))
    for picture in range(2):
        expected = sum(
            upsampled(each[picture], *seen.grids[0], offset, seen.offsets[0])
            for each, offset in zip(apart, seen.offsets, strict=True)
        )
        np.testing.assert_allclose(got[picture], expected, rtol=1e-3, atol=1e-4)


def test_the_paper_recipe() -> None:
    paper = RD4ADConfig.paper()
    assert (paper.backbone, paper.layers, paper.image_size) == (
        "wide_resnet50_2",
        (1, 2, 3),
        (256,),
    )
    assert (paper.epochs, paper.train_batch_size, paper.learning_rate) == (200, 16, 5e-3)
    assert (paper.embedding_blocks, paper.decoder_blocks) == (3, (3, 4, 6))
    assert paper.rectified
    method = RD4AD(
        replace(paper, backbone="test_resnet", image_size=(64,)),
        build("test_resnet", weights="random"),
    )
    assert [len(part) for part in method.student.decoder] == [3, 4, 6]  # type: ignore[arg-type]
    assert len(method.student.embedding) == 3
    (group,) = method.optimizer().param_groups
    assert group["betas"] == (0.5, 0.999)
