"""EfficientAD's networks, loss, quantiles and maps in float64, from its equations."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from naive import f64, upsampled
from torch import Tensor, nn

from blemish.anomalies.cutmix import recoloured
from blemish.anomalies.scrambling import scrambled
from blemish.backbones import PdnBackbone, build
from blemish.backbones.pdn import OFFSET, description_network, map_side
from blemish.errors import ConfigError
from blemish.methods.autoencoder import Autoencoder
from blemish.methods.efficientad import EfficientAD
from blemish.methods.efficientad_config import EfficientADConfig
from blemish.methods.learner import TrainingBatch
from blemish.methods.patches import Patches, PatchesConfig

SIDE = 64
GRID = (16, 16)
TINY: dict[str, Any] = {
    **{"backbone": "test_vit", "image_size": (SIDE,), "layers": (2, 4)},
    **{"width": 2, "channels": 6, "autoencoder_width": 2, "smoothing": 0.0},
}


def pictures(count: int = 2, seed: int = 0, side: int = SIDE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator) - 0.5


def taught(layers: tuple[int, ...] = (2, 4)) -> PdnBackbone:
    """A teacher that has not learned, but moved: its features are not all alike."""
    config = PatchesConfig(width=2, channels=6, seed=3)
    backbone = Patches(config, build("test_vit", weights="random", seed=3), layers).backbone
    assert isinstance(backbone, PdnBackbone)
    return backbone.requires_grad_(False)


def efficientad(**settings: Any) -> EfficientAD:
    return EfficientAD(EfficientADConfig(**(TINY | settings)), taught()).eval()


def started(**settings: Any) -> tuple[EfficientAD, TrainingBatch]:
    """One that has begun to learn, and a batch."""
    method = efficientad(**settings)
    images = pictures()
    batch = TrainingBatch(images, method.encode(images))
    method.start_training(batch)
    return method, batch


def convolved(x: np.ndarray, layer: Any, step: int = 1) -> np.ndarray:
    """C h w, place by place; 0 beyond the border."""
    weight, bias, pad = f64(layer.weight), f64(layer.bias), layer.padding[0]
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    tall, wide = weight.shape[2:]
    rows, columns = (
        (n - m) // step + 1 for n, m in zip(padded.shape[1:], (tall, wide), strict=True)
    )
    found = np.empty((len(weight), rows, columns))
    for y, x_ in np.ndindex(rows, columns):
        square = padded[:, y * step : y * step + tall, x_ * step : x_ * step + wide]
        found[:, y, x_] = np.einsum("cyx,dcyx->d", square, weight) + bias
    return found


def halved(x: np.ndarray) -> np.ndarray:
    """Means of 2×2, padded by 1, zeros counting."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    rows, columns = (side // 2 for side in padded.shape[1:])
    found = np.empty((len(x), rows, columns))
    for y, x_ in np.ndindex(rows, columns):
        found[:, y, x_] = padded[:, 2 * y : 2 * y + 2, 2 * x_ : 2 * x_ + 2].mean((1, 2))
    return found


def described(network: nn.Sequential, image: np.ndarray) -> np.ndarray:
    """C h w of a picture 3 H W."""
    first, second, third, last = (each for each in network if isinstance(each, nn.Conv2d))
    x = halved(np.maximum(convolved(image, first), 0))
    x = halved(np.maximum(convolved(x, second), 0))
    return convolved(np.maximum(convolved(x, third), 0), last)


def coded(network: Autoencoder, image: np.ndarray, steps: list[tuple[int, int]]) -> np.ndarray:
    """C h w of a picture 3 H W, through maps of these sides."""

    def enlarged(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return upsampled(x.transpose(1, 2, 0), *size).transpose(2, 0, 1)

    x = image
    for layer in network.encoder:
        x = np.maximum(convolved(x, layer, step=2), 0)
    x = convolved(x, network.middle)
    assert x.shape[1:] == (1, 1)
    for layer, size in zip(network.decoder, steps, strict=True):
        x = np.maximum(convolved(enlarged(x, size), layer), 0)
    x = np.maximum(convolved(enlarged(x, network.grid), network.last), 0)
    return convolved(x, network.outward)


def rows_of(maps: np.ndarray) -> np.ndarray:
    """C h w as N C."""
    return maps.reshape(len(maps), -1).T


@pytest.mark.parametrize("side", [64, 50, 33])
def test_the_description_network(side: int) -> None:
    torch.manual_seed(0)
    network, image = description_network(2, 5), pictures(1, side=side)
    with torch.no_grad():
        got = f64(network(image))[0]
    assert got.shape[1:] == (map_side(side), map_side(side))
    np.testing.assert_allclose(got, described(network, f64(image)[0]), atol=1e-5)


def test_where_its_cells_look() -> None:
    torch.manual_seed(0)
    image = pictures(1, side=96).requires_grad_()
    network = description_network(2, 3)
    for module in network:  # no place is dead
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.1)
            nn.init.ones_(module.bias)
    network(image)[0, :, 12, 10].sum().backward()
    assert image.grad is not None
    seen = image.grad[0].abs().sum(0)
    for at, sums in ((12, seen.sum(1)), (10, seen.sum(0))):
        places = sums.nonzero()[:, 0]
        assert (int(places[0]), int(places[-1])) == (4 * at - 16, 4 * at + 16)
        middle = float((sums * torch.arange(96)).sum() / sums.sum())
        assert middle == pytest.approx(4 * (at + 0.5 + OFFSET) - 0.5, abs=1e-3)


def test_the_autoencoder() -> None:
    torch.manual_seed(0)
    network = Autoencoder(EfficientADConfig(**TINY), (SIDE, SIDE), GRID).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
        got = f64(network(pictures(1)))[0]
    steps = [(1, 1), (2, 2), (3, 3), (8, 8), (15, 15), (31, 31)]
    expected = coded(network, f64(pictures(1))[0], steps)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_the_autoencoder_has_the_papers_sides_at_its_size() -> None:
    network = Autoencoder(EfficientADConfig(**TINY), (256, 256), (64, 64))
    assert network.sizes == [(side, side) for side in (3, 8, 15, 32, 63, 127)]
    assert network.middle.kernel_size == (8, 8)
    wide = Autoencoder(EfficientADConfig(**TINY), (64, 128), (16, 32)).eval()
    assert wide(torch.zeros(1, 3, 64, 128)).shape == (1, 6, 16, 32)


def test_the_teacher_is_normalised() -> None:
    method, batch = started()
    own = f64(batch.features["taught"]).reshape(-1, 6)
    np.testing.assert_allclose(f64(method.mean), own.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(f64(method.deviation), own.std(0), rtol=1e-4)


def test_the_loss_and_the_student_after_one_step() -> None:
    """The biases of its last layer, in which the loss is quadratic: gradients by hand, then
    Adam's first step."""
    method, batch = started(hard=0.9, penalty=0.7, learning_rate=1e-3, weight_decay=0.01)
    assert batch.images is not None
    colours = method.backbone.colours(batch.images)
    torch.manual_seed(4)
    changed = recoloured(batch.images, colours)
    foreign = scrambled(batch.images, colours, method.config.grey)
    with torch.no_grad():
        seen = [f64(method.student(each)) for each in (batch.images, changed, foreign)]
        code = f64(method.autoencoder(changed))  # no dropout: it is in evaluation mode
        teacher = [f64(method.backbone(each, (2,)).tokens[0]) for each in (batch.images, changed)]
    plain, other, strange = (np.stack([rows_of(one) for one in each]) for each in seen)
    codes = np.stack([rows_of(one) for one in code])
    clean, moved = ((each - f64(method.mean)) / f64(method.deviation) for each in teacher)
    squares = (clean - plain[..., :6]) ** 2
    hard = squares >= np.quantile(squares, 0.9)
    expected = squares[hard].mean() + 0.7 * (strange[..., :6] ** 2).mean()
    expected += ((moved - codes) ** 2).mean() + ((codes - other[..., 6:]) ** 2).mean()
    optimizer, last = method.optimizer(), method.student[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    torch.manual_seed(4)
    loss = method.training_step(batch, 0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    slope = np.zeros(12)
    slope[:6] = np.where(hard, -2 * (clean - plain[..., :6]) / hard.sum(), 0).sum((0, 1))
    slope[:6] += (0.7 * 2 * strange[..., :6] / strange[..., :6].size).sum((0, 1))
    slope[6:] = (-2 * (codes - other[..., 6:]) / codes.size).sum((0, 1))
    assert last.bias.grad is not None
    np.testing.assert_allclose(f64(last.bias.grad), slope, rtol=1e-3, atol=1e-6)
    before = f64(last.bias)
    optimizer.step()
    decayed = slope + 0.01 * before
    np.testing.assert_allclose(f64(last.bias), before - 1e-3 * np.sign(decayed), atol=2e-5)


def maps_of(method: EfficientAD, images: Tensor) -> np.ndarray:
    """The student's and the autoencoder's, 2 B N."""
    with torch.no_grad():
        seen, code = f64(method.student(images)), f64(method.autoencoder(images))
        own = f64(method.backbone(images, (2,)).tokens[0])
    own = (own - f64(method.mean)) / f64(method.deviation)
    rows = [[rows_of(one) for one in each] for each in (seen, code)]
    student, autoencoder = (np.stack(each) for each in rows)
    first = ((own - student[..., :6]) ** 2).mean(2)
    return np.stack([first, ((autoencoder - student[..., 6:]) ** 2).mean(2)])


def test_the_quantiles_are_of_all_that_was_left_out() -> None:
    method, _ = started()
    left = pictures(5, seed=2)
    parts = (left[:3], left[3:])
    method.measure_left_out(TrainingBatch(part, method.encode(part)) for part in parts)
    maps = maps_of(method, left)
    expected = [[np.quantile(each, share) for share in (0.9, 0.995)] for each in maps]
    np.testing.assert_allclose(f64(method.quantiles), expected, rtol=1e-4)


def test_the_map_and_the_score() -> None:
    method, batch = started(top_fraction=0.0)
    method.measure_left_out([batch])
    method.end_training(1)
    images = pictures(2, seed=5)
    limits, expected = f64(method.quantiles), np.zeros((2, 256))
    for found, (start, end) in zip(maps_of(method, images), limits, strict=True):
        expected += 0.5 * 0.1 * (found - start) / (end - start)
    got = f64(method.anomaly_map(method.see(images), images))
    np.testing.assert_allclose(got.reshape(2, -1), expected, rtol=1e-3, atol=1e-4)
    scores = method.score(images)
    for picture in range(2):
        plane = upsampled(expected[picture].reshape(GRID), *GRID, OFFSET)
        np.testing.assert_allclose(f64(scores.maps[picture]), plane, rtol=1e-3, atol=1e-4)
        assert scores.image[picture].item() == pytest.approx(plane.max(), rel=1e-3)


def test_the_teacher_learns_what_the_encoder_sees() -> None:
    """Its target: the layers joined, averaged in equal parts, on its grid; and it comes nearer."""
    config = PatchesConfig(width=8, channels=6, learning_rate=3e-3)
    learner = Patches(config, build("test_vit", weights="random", seed=3), (2, 4))
    images = pictures(4)
    found = learner._taught(images)
    assert found.shape == (4, 1, 256, 6)
    encoder = build("test_vit", weights="random", seed=3)(images, (2, 4))
    for picture in range(4):
        layers = [f64(each[picture]) for each in encoder.tokens]
        rows = [
            (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) for x in layers
        ]
        joined = np.mean(rows, 0).reshape(4, 4, -1)
        means = np.empty(joined.shape)
        for y, x in np.ndindex(4, 4):
            around = joined[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            means[y, x] = around.mean((0, 1))
        width = joined.shape[2]
        cuts = [(math.floor(c * width / 6), math.ceil((c + 1) * width / 6)) for c in range(6)]
        pooled = np.stack([means[..., a:b].mean(2) for a, b in cuts], 2)
        expected = upsampled(pooled, *GRID, 0.0, OFFSET).reshape(-1, 6)
        np.testing.assert_allclose(f64(found[picture, 0]), expected, rtol=2e-3, atol=2e-3)
    batch = TrainingBatch(None, {"shown": images, "taught": found})
    learner.start_training(batch)
    own = f64(found).reshape(-1, 6)
    target = ((own - own.mean(0)) / own.std(0)).reshape(4, 1, 256, 6)
    with torch.no_grad():
        seen = f64(learner.backbone(images, (2,)).tokens[0])[:, None]
    optimizer, losses = learner.optimizer(), []
    for _ in range(40):
        loss = learner.training_step(batch, 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(((seen - target) ** 2).mean(), rel=1e-3)
    assert losses[-1] < 0.9 * losses[0]


def test_it_stands_for_the_layers_that_it_was_taught() -> None:
    backbone = taught((2, 4))
    found = backbone(pictures(), (4, 2))
    assert torch.equal(found.tokens[0], found.tokens[1])
    assert found.grids == (GRID, GRID)
    with pytest.raises(ConfigError, match="layer 3 does not exist: this test_vit is a patch desc"):
        backbone(pictures(), (3,))
    with pytest.raises(ConfigError, match="no attention"):
        backbone(pictures(), (2,), attention=(2,))


def test_the_paper_recipe() -> None:
    paper = EfficientADConfig.paper()
    assert (paper.backbone, paper.image_size) == ("wide_resnet101_2.tv_in1k", (256,))
    assert (paper.min_steps, paper.train_batch_size, paper.learning_rate) == (70_000, 1, 1e-4)
    assert (paper.width, paper.channels, paper.hard, paper.left) == (128, 384, 0.999, 0.1)
    teacher = paper.pretraining_config
    assert (teacher.min_steps, teacher.train_batch_size) == (60_000, 16)
    assert (teacher.width, teacher.channels, teacher.enlarged) == (128, 384, 2)
    method = efficientad()
    factors = [method.learning_rate_factor(at) for at in (0, 0.94, 0.95, 0.99)]
    assert factors == [1, 1, 0.1, 0.1]
    assert replace(paper, left=0.2).left_out == 0.2


def test_a_picture_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="efficientad needs 32 pixels at least"):
        efficientad(image_size=(16,))
