"""ATAC-Net against its equations written out in loops, in float64; the crop where it degenerates;
that it learns.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from naive import upsampled
from torch import Tensor, nn
from torch.nn import functional as F

import blemish
from blemish.backbones import Backbone, build
from blemish.errors import ArtifactError, ConfigError, NotFittedError
from blemish.losses.deviation import deviation_loss
from blemish.methods import atacnet as module
from blemish.methods.atacnet import (
    AtacNet,
    AtacNetConfig,
    AttentionAugmentation,
    crop_boxes,
    cropped,
    merged,
)
from blemish.methods.learner import TrainingBatch

HEIGHT, WIDTH = 128, 96
NETWORKS = ["atacnet", "devnet", "classifier"]
TINY: dict[str, Any] = {
    "backbone": "test_resnet",
    "image_size": (HEIGHT, WIDTH),
    "attention_dim": 16,
}


@cache
def backbone_of(name: str) -> Backbone:
    return build(name, weights="random", seed=3)


def atacnet(*, fitted: bool = True, **settings: Any) -> AtacNet:
    """The paper's setting, small, with weights and statistics that make attention and saliency far
    from flat.
    """
    config = AtacNetConfig(**(TINY | settings))
    method = AtacNet(config, copy.deepcopy(backbone_of(config.backbone))).eval()
    if method.attention is not None:
        shake(method.attention)
    # Random weights let the signal fade from stage to stage; batch norm brings it back.
    with batch_norms(method, momentum=1.0), torch.no_grad():
        method.train()
        method.glance(method.see(pictures(8, seed=50)))
        method.eval()
    if fitted:
        method.end_training(1)
    return method


@contextmanager
def batch_norms(part: nn.Module, momentum: float) -> Iterator[None]:
    """While open, the statistics of batch norms follow so fast."""
    norms = [each for each in part.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = momentum
    yield
    for norm, usual in zip(norms, before, strict=True):
        norm.momentum = usual


@torch.no_grad()
def shake(attention: AttentionAugmentation) -> None:
    """Weights as if it had learned something."""
    generator = torch.Generator().manual_seed(7)
    attention.gain.fill_(0.7)
    for part in (attention.query, attention.key):
        part.weight.normal_(generator=generator)
    for norm in attention.convolutions:
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.uniform_(-0.5, 1, generator=generator)
            norm.bias.uniform_(-0.5, 1, generator=generator)


def pictures(count: int = 2, seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def batch_of(
    count: int = 8, *, labelled: bool = True, seed: int = 0, side: int = 64
) -> TrainingBatch:
    """Normal pictures are dim; labelled defects, half of the rows and mixed among them, have
    stripes.
    """
    images = pictures(count, seed, side, side) * 0.3
    if not labelled:
        return TrainingBatch(images, {})
    labels = torch.arange(count) % 2
    images[labels == 1] += 2 * (torch.arange(side) * 1.6).sin().sign()
    return TrainingBatch(images, {}, labels)


def train(method: AtacNet, steps: int, batch: Callable[[int], TrainingBatch]) -> list[float]:
    """What the engine does, without anything around it: the losses."""
    method.eval()
    method.start_training(batch(0))
    optimizer = method.optimizer()
    rates = [group["lr"] for group in optimizer.param_groups]
    method.train()
    losses = []
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * method.learning_rate_factor(step / steps)
        torch.manual_seed(1000 + step)
        loss = method.training_step(batch(step), step / steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(method.parameters(), method.clip_norm)
        optimizer.step()
        method.after_step(step + 1, steps)
        losses.append(loss.item())
    method.end_training(steps)
    method.eval()
    return losses


# Oracles: float64, one picture and one location at a time


def f64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def min_max(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return np.zeros_like(values) if high == low else (values - low) / (high - low)


def box_of(saliency: np.ndarray, active: float, padding: float, offset: float = 0.0) -> list[float]:
    """x, y, width, height of the crop in one picture, cell by cell."""
    height, width = saliency.shape
    cells = [(y, x) for y in range(height) for x in range(width) if saliency[y, x] > active]
    if not cells:
        return [0.0, 0.0, 1.0, 1.0]
    sides = []
    for axis, count in ((1, width), (0, height)):
        first, last = min(cell[axis] for cell in cells), max(cell[axis] for cell in cells)
        start = 0.0 if first == 0 else (first + offset) / count
        end = 1.0 if last == count - 1 else (last + 1 + offset) / count
        margin = padding * (end - start)
        start, end = max(0.0, start - margin), min(1.0, end + margin)
        sides.append((start, end - start))
    return [sides[0][0], sides[1][0], sides[0][1], sides[1][1]]


def read(values: np.ndarray, y: float, x: float) -> float:
    """Bilinear at fractions of the sides, pixels being areas; beyond the outermost centres, the
    outermost pixels.
    """
    height, width = values.shape
    row, column = min(max(y * height - 0.5, 0), height - 1), min(max(x * width - 0.5, 0), width - 1)
    top, left = int(row), int(column)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = row - top, column - left
    above = values[top, left] * (1 - across) + values[top, right] * across
    below = values[bottom, left] * (1 - across) + values[bottom, right] * across
    return float(above * (1 - down) + below * down)


def top(values: np.ndarray, share: float) -> float:
    count = max(1, round(share * values.size))
    return float(sum(sorted(values.ravel().tolist(), reverse=True)[:count]) / count)


# Eq. 4-6: the crop


def saliencies() -> Tensor:
    """Of 5×7 cells: random, of few cells, one cell in the middle and in each corner, nothing,
    everything.
    """
    rows = list(torch.rand(6, 5, 7))
    for few in torch.rand(6, 5, 7):
        rows.append(torch.where(few > 0.9, few, 0.0))
    for y, x in ((2, 3), (0, 0), (0, 6), (4, 0), (4, 6)):
        one = torch.zeros(5, 7)
        one[y, x] = 1
        rows.append(one)
    return torch.stack([*rows, torch.zeros(5, 7), torch.ones(5, 7), torch.full((5, 7), 0.4)])


@pytest.mark.parametrize("offset", [0.0, -0.48, 0.3])
@pytest.mark.parametrize("padding", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("active", [0.0, 0.4, 0.95])
def test_the_crop_against_loops(active: float, padding: float, offset: float) -> None:
    saliency = saliencies()
    found = crop_boxes(saliency, active=active, padding=padding, offset=offset)
    limit = float(np.float32(active))  # the saliency's own precision
    expected = np.array([box_of(each, limit, padding, offset) for each in f64(saliency)])
    np.testing.assert_allclose(f64(found), expected, atol=1e-6)
    assert found.dtype == torch.float32
    assert (found[:, :2] >= 0).all()
    assert (found[:, :2] + found[:, 2:] <= 1 + 1e-6).all()


def test_the_crop_where_it_degenerates() -> None:
    cell = torch.zeros(4, 10, 10)
    cell[0, 4, 2] = 1  # one cell, in the middle
    cell[1, 9, 0] = 1  # one, in a corner: there is no picture beyond
    cell[2] = 0.4  # at the threshold is not above it
    cell[3] = 1.0
    found = crop_boxes(cell, active=0.4, padding=0.1)
    expected = [[0.19, 0.39, 0.12, 0.12], [0.0, 0.89, 0.11, 0.11], [0, 0, 1, 1], [0, 0, 1, 1]]
    np.testing.assert_allclose(found, np.array(expected), atol=1e-6)


def test_cropping_against_loops() -> None:
    images = torch.rand(3, 2, 12, 10)
    boxes = torch.tensor([[0.25, 0.1, 0.5, 0.3], [0.9, 0.0, 0.1, 1.0], [0.0, 0.0, 1.0, 1.0]])
    found = cropped(images, boxes)
    assert found.shape == images.shape
    expected = np.empty(found.shape)
    for picture, channel, row, column in np.ndindex(*found.shape):
        x, y, width, height = f64(boxes[picture])
        place = y + height * (row + 0.5) / 12, x + width * (column + 0.5) / 10
        expected[picture, channel, row, column] = read(f64(images[picture, channel]), *place)
    np.testing.assert_allclose(f64(found), expected, atol=1e-5)
    torch.testing.assert_close(
        found[2], images[2], rtol=1e-5, atol=1e-5
    )  # the whole picture is the picture
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cropped(images, boxes), found)


@pytest.mark.parametrize("offset", [0.0, -0.48, 0.3])
def test_a_crop_is_put_back_where_it_was(offset: float) -> None:
    first, second = torch.rand(3, 3, 4), torch.rand(3, 3, 4)
    boxes = torch.tensor([[0.25, 0.125, 0.5, 0.375], [0.9, 0.7, 0.1, 0.3], [0.0, 0.0, 1.0, 1.0]])
    found = f64(merged(first, second, boxes, (16, 24), offset))
    for picture in range(3):
        x, y, width, height = f64(boxes[picture])
        expected = upsampled(f64(first[picture]), 16, 24, offset)
        inside = 0
        for row, column in np.ndindex(16, 24):
            down, across = ((row + 0.5) / 16 - y) / height, ((column + 0.5) / 24 - x) / width
            if 0 <= down <= 1 and 0 <= across <= 1:
                inside += 1
                closer = read(f64(second[picture]), down - offset / 3, across - offset / 4)
                expected[row, column] = (expected[row, column] + closer) / 2
        assert inside >= 10
        np.testing.assert_allclose(found[picture], expected, atol=1e-5)


# σ and the looks


@pytest.mark.parametrize(("width", "keys"), [(16, 2), (4, 1)])
def test_the_attention_module_against_loops(width: int, keys: int) -> None:
    attention = AttentionAugmentation(5, width).eval()
    shake(attention)
    for norm in attention.convolutions:
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.1, 0.5)
    assert attention.query.out_channels == attention.key.out_channels == keys
    features = torch.randn(2, 5, 3, 4)
    state = {name: f64(tensor) for name, tensor in attention.state_dict().items()}
    expected, flat = np.empty((2, width, 3, 4)), []
    for picture in range(2):
        x = f64(features[picture])
        for conv, after in ((0, 1), (3, 4)):
            weight, padded = (
                state[f"convolutions.{conv}.weight"],
                np.pad(x, ((0, 0), (1, 1), (1, 1))),
            )
            x = np.empty((width, 3, 4))
            for channel, row, column in np.ndindex(width, 3, 4):
                value = float(
                    (weight[channel] * padded[:, row : row + 3, column : column + 3]).sum()
                )
                mean, variance = (
                    state[f"convolutions.{after}.running_{what}"][channel]
                    for what in ("mean", "var")
                )
                scale, shift = (
                    state[f"convolutions.{after}.{what}"][channel] for what in ("weight", "bias")
                )
                x[channel, row, column] = max(
                    0.0, (value - mean) / math.sqrt(variance + 1e-5) * scale + shift
                )
        places = x.reshape(width, 12).T

        def projected(name: str, rows: np.ndarray) -> np.ndarray:
            return np.asarray(rows @ state[f"{name}.weight"][:, :, 0, 0].T + state[f"{name}.bias"])

        queries, known, values = (projected(name, places) for name in ("query", "key", "value"))
        for place in range(12):
            weights = np.array([math.exp(queries[place] @ key) for key in known])
            weights /= weights.sum()
            flat.append(weights.max() * 12)
            mixed = sum(weight * value for weight, value in zip(weights, values, strict=True))
            expected[picture, :, place // 4, place % 4] = places[place] + 0.7 * mixed
    assert max(flat) > 1.2  # attention is not flat, or any would do
    np.testing.assert_allclose(f64(attention(features)), expected, rtol=1e-4, atol=1e-4)


def test_attention_starts_as_the_convolutions_alone_and_its_weight_learns_first() -> None:
    attention = AttentionAugmentation(6, 16)
    features = torch.randn(2, 6, 3, 3)
    assert torch.equal(attention(features), attention.convolutions(features))
    attention(features).square().sum().backward()
    assert attention.gain.grad is not None
    assert float(attention.gain.grad.abs()) > 0


@pytest.mark.parametrize(
    ("settings", "grid"),
    [
        ({}, (4, 3)),
        ({"backbone": "test_vit", "active": 0.9}, (8, 6)),
        ({"layers": (2, 3), "active": 0.95, "top_fraction": 0.001}, (16, 12)),
        ({"active": 0.9, "padding": 0.0, "top_fraction": 0.4}, (4, 3)),
    ],
)
def test_the_score_against_loops(settings: dict[str, Any], grid: tuple[int, int]) -> None:
    method = atacnet(**settings)
    config, images = method.config, pictures(4)
    look, scores = method.look(images, method.see(images)), method.score(images)
    assert look.first.shape == (4, *grid)
    assert method.mapper.bias is not None
    weight, bias = f64(method.mapper.weight)[0, :, 0, 0], f64(method.mapper.bias)[0]
    smaller, offset = 0, method.backbone.offset(grid, images)
    assert (offset != 0) == (method.config.backbone == "test_resnet")
    for picture in range(4):
        features, _ = method.glance(method.see(images[picture : picture + 1]))
        attended = f64(features[0])
        first = np.array(
            [[attended[:, y, x] @ weight + bias for x in range(grid[1])] for y in range(grid[0])]
        )
        saliency = min_max(sum(attended) / len(attended))
        box = box_of(saliency, config.active, config.padding, offset)
        smaller += box[2] * box[3] < 0.9
        crop = cropped(images[picture : picture + 1], torch.tensor([box]))
        closer, _ = method.glance(method.see(crop))
        second = np.einsum("chw,c->hw", f64(closer[0]), weight) + bias
        expected = (top(first, config.top_fraction) + top(second, config.top_fraction)) / 2
        np.testing.assert_allclose(f64(look.first[picture]), first, rtol=1e-3, atol=1e-4)
        assert scores.boxes is not None
        assert scores.saliency is not None
        np.testing.assert_allclose(f64(scores.boxes[picture]), np.array(box), atol=1e-6)
        assert scores.image[picture].item() == pytest.approx(expected, rel=1e-3, abs=1e-3)
        shown = f64(scores.saliency[picture])
        np.testing.assert_allclose(
            shown, upsampled(saliency, HEIGHT // 4, WIDTH // 4, offset), atol=1e-3
        )
        assert look.second is not None
        map_ = merged(
            look.first, look.second, torch.tensor([box] * 4), (HEIGHT // 4, WIDTH // 4), offset
        )[picture]
        np.testing.assert_allclose(f64(scores.maps[picture]), f64(map_), atol=1e-3)
    assert smaller > 0  # something is cropped, or one look would do
    assert scores.image.dtype == scores.maps.dtype == torch.float32
    assert look.score.std() > 0.01


def test_where_nothing_stands_out_the_crop_is_the_picture() -> None:
    method = atacnet()
    assert method.attention is not None
    with torch.no_grad():
        norm = method.attention.convolutions[4]
        assert isinstance(norm, nn.BatchNorm2d)
        norm.weight.zero_()
        norm.bias.uniform_(0.1, 1)
    look = method.look(pictures(), method.see(pictures()))
    assert look.boxes is not None
    assert look.second is not None
    assert look.saliency is not None
    assert look.boxes.tolist() == [[0, 0, 1, 1]] * 2
    assert look.saliency.max() == 0
    torch.testing.assert_close(look.second, look.first)


def test_the_baselines_look_once() -> None:
    for network in ("devnet", "classifier"):
        method = atacnet(network=network)
        assert method.attention is None
        scores = method.score(pictures())
        assert scores.saliency is None
        assert scores.boxes is None
        first = f64(method.look(pictures(), method.see(pictures())).first)
        if network == "devnet":
            expected = [top(each, 0.1) for each in first]
            np.testing.assert_allclose(f64(scores.image), np.array(expected), rtol=1e-4, atol=1e-5)
        offset = method.backbone.offset(first.shape[1:], pictures())
        shown = upsampled(first[1], HEIGHT // 4, WIDTH // 4, offset)
        np.testing.assert_allclose(f64(scores.maps[1]), shown, atol=1e-4)


def perceptron(method: AtacNet) -> tuple[nn.Linear, nn.Linear]:
    """The layers of the classifier."""
    assert isinstance(method.mapper, nn.Sequential)
    hidden, between, last = method.mapper
    assert isinstance(hidden, nn.Linear)
    assert isinstance(between, nn.ReLU)
    assert isinstance(last, nn.Linear)
    return hidden, last


def test_the_classifier_is_a_perceptron_on_the_mean_feature() -> None:
    method = atacnet(network="classifier", attention_dim=12)
    hidden, last = perceptron(method)
    images = pictures(3)
    features = f64(method._extracted(method.see(images)))
    assert (hidden.in_features, hidden.out_features, last.out_features) == (
        features.shape[1],
        12,
        1,
    )
    scores, off = f64(method.score(images).image), 0
    for picture in range(3):
        mean = [float(channel.mean()) for channel in features[picture]]
        logit = float(f64(last.bias)[0])
        for unit in range(12):
            found = float(f64(hidden.weight)[unit] @ mean + f64(hidden.bias)[unit])
            off += found <= 0
            logit += float(f64(last.weight)[0, unit]) * max(0.0, found)
        assert scores[picture] == pytest.approx(logit, rel=1e-4, abs=1e-5)
    assert 0 < off < 36  # a linear layer would not do


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_the_heatmap_of_the_classifier_is_its_grad_cam(backbone: str) -> None:
    method = atacnet(network="classifier", backbone=backbone)
    images = pictures(3)
    with torch.no_grad():
        features = method._extracted(method.see(images))
    features.requires_grad_(True)
    hidden, last = perceptron(method)
    logits = last(F.relu(hidden(F.adaptive_avg_pool2d(features, 1).flatten(1))))
    (gradient,) = torch.autograd.grad(logits.sum(), features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    locations = features.shape[2] * features.shape[3]
    expected = locations * F.relu((weights * features).sum(1)).detach()
    assert expected.max() > 0
    with torch.inference_mode():  # as a detector scores
        scores = method.score(images)
    torch.testing.assert_close(scores.image, logits[:, 0].detach(), rtol=1e-4, atol=1e-4)
    for picture in range(3):
        offset = method.backbone.offset((features.shape[2], features.shape[3]), images)
        shown = upsampled(f64(expected[picture]), HEIGHT // 4, WIDTH // 4, offset)
        np.testing.assert_allclose(f64(scores.maps[picture]), shown, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_each_picture_is_judged_by_itself(network: str) -> None:
    method = atacnet(network=network)
    images = pictures(4)
    together = method.score(images)
    for index in range(4):
        alone = method.score(images[index : index + 1])
        for name in ("image", "maps", "saliency", "boxes"):
            one, all_ = getattr(alone, name), getattr(together, name)
            assert (one is None) == (all_ is None)
            if one is not None:
                torch.testing.assert_close(one[0], all_[index], rtol=1e-3, atol=1e-4)


def test_bf16_is_for_computing_only() -> None:
    method = atacnet()
    exact = method.score(pictures())
    method.set_precision(torch.bfloat16)
    rough = method.score(pictures())
    assert method.precision == torch.bfloat16
    assert {parameter.dtype for parameter in method.parameters()} == {torch.float32}
    assert rough.image.dtype == rough.maps.dtype == torch.float32
    assert not torch.equal(rough.image, exact.image)
    bits = rough.image.view(torch.int32) & 0xFFFF
    assert bits.any()  # the score itself is not rounded


def test_embeddings() -> None:
    for network, width in (("atacnet", 16), ("devnet", None)):
        method = atacnet(network=network)
        features, _ = method.glance(method.see(pictures(3)))
        found = method.embedding(pictures(3))
        assert found.shape == (3, width or features.shape[1])
        np.testing.assert_allclose(
            f64(found), f64(features).mean(axis=(2, 3)), rtol=1e-4, atol=1e-5
        )
        assert not found.requires_grad


# Training


@pytest.mark.parametrize("count", [2, 7, 16])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_batches_are_balanced(count: int, share: float) -> None:
    method = atacnet(pseudo=share)
    half = count // 2
    labels = torch.tensor([0] * (count - half) + [1] * half)[torch.randperm(count)]
    # Every picture is one number: normal ones below 100, defects from 100 on.
    values = torch.where(labels == 1, 100.0, 0.0) + torch.arange(count)
    images, found = method.mixed(
        TrainingBatch(values[:, None, None, None].expand(-1, 3, 32, 32).clone(), {}, labels)
    )
    assert images.shape == (count, 3, 32, 32)
    assert found.tolist() == [0] * (count - half) + [1] * half
    kinds = [sorted(set(image.flatten().tolist())) for image in images]
    normal, anomalous = kinds[: count - half], kinds[count - half :]
    assert sorted(value for (value,) in normal) == sorted(values[labels == 0].tolist())
    made = [kind for kind in anomalous if len(kind) == 2]
    assert len(made) in {math.floor(share * half), math.ceil(share * half)}
    assert all(low < 100 <= high for low, high in made)  # a piece of a defect in a normal picture
    assert all(len(kind) == 1 and kind[0] >= 100 for kind in anomalous if kind not in made)


def test_without_labelled_defects_half_of_a_batch_is_made() -> None:
    method = atacnet(pseudo=0.5)
    values = torch.arange(7.0)
    images, labels = method.mixed(
        TrainingBatch(values[:, None, None, None].expand(-1, 3, 32, 32).clone(), {})
    )
    assert labels.tolist() == [0] * 4 + [1] * 3
    for index, image in enumerate(images):
        expected = {float(index)} if index < 4 else {float(index - 4), float(index)}
        assert set(image.flatten().tolist()) == expected
    with pytest.raises(ConfigError, match="2 at least for each process"):
        method.mixed(TrainingBatch(torch.zeros(1, 3, 32, 32), {}))


def loss_of(method: AtacNet, batch: TrainingBatch) -> tuple[float, Tensor, Tensor]:
    """The loss of a step, and the scores and labels that it is of."""
    torch.manual_seed(11)
    loss = method.training_step(batch, 0.0)
    torch.manual_seed(11)
    images, labels = method.mixed(batch)
    return loss.item(), method.look(images, method.see(images)).score, labels


@pytest.mark.parametrize("network", ["atacnet", "devnet"])
def test_the_deviation_loss_is_taken(network: str) -> None:
    loss, scores, labels = loss_of(
        atacnet(network=network, image_size=(64,), margin=6.0), batch_of(7)
    )
    assert loss == pytest.approx(deviation_loss(scores, labels, margin=6.0).item(), rel=1e-5)


def cross_entropy(scores: Tensor, labels: Tensor, weights: dict[int, float]) -> float:
    """The mean of −w log p over pictures."""
    terms = [
        weights[label] * math.log1p(math.exp(-score if label else score))
        for score, label in zip(f64(scores).tolist(), labels.tolist(), strict=True)
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("normal", "defects"), [(73, 10), (73, 1), (5, 20)])
def test_the_cross_entropy_weighs_both_classes_by_how_many_there_are(
    normal: int, defects: int
) -> None:
    method = atacnet(network="classifier", image_size=(64,))
    method.class_counts = (normal, defects)
    every = normal + defects
    weights = {0: every / (2 * normal), 1: every / (2 * defects)}
    assert weights[0] * normal == pytest.approx(weights[1] * defects)
    loss, scores, labels = loss_of(method, batch_of(8))
    assert loss == pytest.approx(cross_entropy(scores, labels, weights), rel=1e-4)
    assert (
        abs(loss - cross_entropy(scores, labels, {0: 1.0, 1: 1.0})) > 0.05 * loss
    )  # nor is it without effect


def test_the_cross_entropy_where_no_defects_are_labelled() -> None:
    method = atacnet(network="classifier", image_size=(64,))
    method.class_counts = (73, 0)  # half of every batch is made
    loss, scores, labels = loss_of(method, batch_of(8, labelled=False))
    assert labels.sum() == 4
    assert loss == pytest.approx(cross_entropy(scores, labels, {0: 1.0, 1: 1.0}), rel=1e-4)


@pytest.mark.parametrize("defects", [0, 1, 3, 8])
def test_the_classifier_takes_pictures_as_they_come(defects: int) -> None:
    method = atacnet(network="classifier", pseudo=0.5)
    labels = (torch.arange(8) < defects).long()[torch.randperm(8)]
    values = torch.where(labels == 1, 100.0, 0.0) + torch.arange(8)
    batch = TrainingBatch(values[:, None, None, None].expand(-1, 3, 32, 32).clone(), {}, labels)
    made = []
    for _ in range(40):
        images, found = method.mixed(batch)
        assert images.shape == (8, 3, 32, 32)
        assert found.tolist() == [0] * (8 - defects) + [1] * defects
        kinds = [sorted(set(image.flatten().tolist())) for image in images]
        assert sorted(kinds[: 8 - defects]) == [
            [value] for value in sorted(values[labels == 0].tolist())
        ]
        assert all(kind[-1] >= 100 for kind in kinds[8 - defects :])
        made.append(sum(len(kind) == 2 for kind in kinds))
    assert 0.3 < np.mean(made) / defects < 0.7 if 0 < defects < 8 else not any(made)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_vit"])
@pytest.mark.parametrize("network", NETWORKS)
def test_everything_that_learns_takes_part(network: str, backbone: str) -> None:
    method = atacnet(network=network, backbone=backbone, image_size=(64,), fitted=False)
    batch = batch_of()
    method.start_training(batch)
    learned = {
        id(parameter) for group in method.optimizer().param_groups for parameter in group["params"]
    }
    method.train()
    method.training_step(batch, 0.0).backward()  # type: ignore[no-untyped-call]
    for name, parameter in method.named_parameters():
        assert (
            (id(parameter) in learned) == (parameter.grad is not None) == parameter.requires_grad
        ), name
    frozen = [name for name, parameter in method.named_parameters() if not parameter.requires_grad]
    assert len(frozen) < 0.1 * len(list(method.parameters()))
    assert (frozen != []) == (
        backbone != "test_resnet"
    )  # the last norm of a ViT, the convolution before the classes
    for part in (method.backbone, method.mapper):
        assert any(
            parameter.grad is not None and parameter.grad.abs().max() > 0
            for parameter in part.parameters()
        )


def test_both_looks_carry_gradient_and_the_box_none(monkeypatch: pytest.MonkeyPatch) -> None:
    method = atacnet(image_size=(64,), fitted=False, backbone="test_vit")
    batch = batch_of()
    assert batch.images is not None
    method.start_training(batch)
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]

    def gradients(part: Callable[[Any], Tensor]) -> Tensor:
        look = method.look(batch.images, method.see(batch.images))  # type: ignore[arg-type]
        found = torch.autograd.grad(part(look), parameters, allow_unused=True)
        return torch.cat(
            [
                torch.zeros(p.numel()) if g is None else g.flatten()
                for p, g in zip(parameters, found, strict=True)
            ]
        )

    look = method.look(batch.images, method.see(batch.images))
    assert look.boxes is not None
    assert look.saliency is not None
    assert not look.boxes.requires_grad
    assert not look.saliency.requires_grad
    assert look.boxes[:, 2:].prod(1).min() < 0.9
    whole = gradients(lambda each: each.score.sum())
    first, second = (
        gradients(lambda each: each.first.sum()),
        gradients(lambda each: each.second.sum()),
    )
    assert first.abs().max() > 0
    assert second.abs().max() > 0
    assert not torch.allclose(first, second)
    held = look.boxes.clone()
    monkeypatch.setattr(module, "crop_boxes", lambda *_arguments, **_options: held)
    assert torch.equal(gradients(lambda each: each.score.sum()), whole)


def test_the_schedule_of_the_paper() -> None:
    method = atacnet()
    epochs = [method.learning_rate_factor(epoch / 30) for epoch in (0, 9.99, 10, 19.99, 20, 29.99)]
    assert epochs == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    other = atacnet(drop_every=0.1, drop=0.5)
    assert [other.learning_rate_factor(tenth / 10) for tenth in range(10)] == pytest.approx(
        [0.5**n for n in range(10)]
    )


def test_the_optimiser_is_adam() -> None:
    method = atacnet(fitted=False)
    method.start_training(batch_of())
    optimizer = method.optimizer()
    assert type(optimizer) is torch.optim.Adam
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (1e-3, 0)
    ] * 2


def test_the_extractor_has_a_learning_rate_of_its_own() -> None:
    method = atacnet(fitted=False, extractor_rate=0.1)
    method.start_training(batch_of())
    own, slow = method.optimizer().param_groups
    assert (own["lr"], slow["lr"]) == (1e-3, pytest.approx(1e-4))
    extractor = {id(each) for each in method.backbone.parameters()}
    assert {id(each) for each in slow["params"]} == extractor
    assert {id(each) for each in own["params"]} == {
        id(each) for each in method.parameters()
    } - extractor


@pytest.mark.parametrize("network", NETWORKS)
def test_an_extractor_that_does_not_learn_stays_as_it_is(network: str) -> None:
    pixels = [
        np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        for seed in range(6)
    ]
    quick: dict[str, Any] = {
        "weights": "random",
        "device": "cpu",
        "precision": "fp32",
        "calibration_fraction": 0,
    }
    settings = {
        **TINY,
        "image_size": 64,
        "network": network,
        "train_batch_size": 4,
        "epochs": 1,
        "extractor_rate": 0,
    }
    detector = blemish.fit(
        "atacnet", pixels[:4], recipe="paper", anomalies=pixels[4:], **settings, **quick
    )
    start = AtacNet(detector.method.config, build("test_resnet", weights="random")).state_dict()  # type: ignore[arg-type]
    after = detector.method.state_dict()
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], start[name])}
    # Nor do the statistics of its batch norms change.
    assert changed == {"mapper", "steps", *(["attention"] if network == "atacnet" else [])}


def test_processes_agree_on_batch_norms_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    method = atacnet()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    method.after_step(1, 10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    monkeypatch.setattr(module, "mean_over_processes", lambda tensor: 2 * tensor)
    method.after_step(2, 10)
    for name, tensor in method.state_dict().items():
        factor = 2 if name.endswith(("running_mean", "running_var")) else 1
        assert torch.equal(tensor, before[name] * factor), name
    without = atacnet(network="devnet", backbone="test_vit")
    without.after_step(1, 10)


def test_findings_change_nothing() -> None:
    method = atacnet(image_size=(64,), fitted=False).train()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    with torch.no_grad():
        found = method.findings(batch_of(6))
    assert set(found) == {"normal_score", "anomalous_score", "crop_share"}
    assert all(math.isfinite(value) for value in found.values())
    assert 0 < found["crop_share"] <= 1
    assert method.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    assert method.findings(TrainingBatch(pictures(1), {})) == {}
    with torch.no_grad():
        assert set(
            atacnet(network="devnet", image_size=(64,)).findings(batch_of(labelled=False))
        ) == {
            "normal_score",
            "anomalous_score",
        }


@pytest.mark.parametrize("network", NETWORKS)
def test_it_learns_what_a_defect_looks_like(network: str) -> None:
    settings: dict[str, Any] = {
        **TINY,
        "image_size": (64,),
        "layers": (2,),
        "learning_rate": 1e-2,
        "network": network,
    }
    method = AtacNet(AtacNetConfig(**settings), copy.deepcopy(backbone_of("test_resnet")))
    # The classifier has a layer more that starts at random.
    losses = train(method, 40 if network == "classifier" else 20, lambda step: batch_of(seed=step))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    test = batch_of(20, seed=999)
    assert test.images is not None
    assert test.labels is not None
    scores = method.score(test.images).image
    assert scores[test.labels == 1].min() > 1 + scores[test.labels == 0].max()


def test_the_seed_decides_what_is_learned() -> None:
    def learned(seed: int) -> dict[str, Tensor]:
        settings: dict[str, Any] = {**TINY, "image_size": (64,), "seed": seed}
        method = AtacNet(AtacNetConfig(**settings), copy.deepcopy(backbone_of("test_resnet")))
        train(method, 3, lambda step: batch_of(4, seed=step))
        return method.fitted_state()

    before = torch.get_rng_state()
    AtacNet(AtacNetConfig(**TINY), backbone_of("test_resnet"))
    assert torch.equal(torch.get_rng_state(), before)
    one, same, other = learned(1), learned(1), learned(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["mapper.weight"], other["mapper.weight"])
    start = backbone_of("test_resnet").state_dict()
    for name in ("conv1.weight", "bn1.running_mean"):
        key = next(key for key in start if key.endswith(name))
        assert not torch.equal(
            one[f"backbone.{key}"], start[key]
        )  # the extractor learns, and its statistics follow


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_fitted_can_be_restored(network: str) -> None:
    method = atacnet(network=network, image_size=(64,), fitted=False)
    train(method, 2, lambda step: batch_of(4, seed=step))
    other = atacnet(network=network, image_size=(64,), fitted=False, seed=9)
    state = method.fitted_state()
    assert state["steps"].tolist() == [2]
    other.restore_state(state)
    one, two = method.score(pictures(2, 0, 64, 64)), other.score(pictures(2, 0, 64, 64))
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.maps, two.maps)
    if network != "atacnet":
        with pytest.raises(ArtifactError, match="do not fit method 'atacnet'"):
            atacnet(image_size=(64,)).restore_state(state)


# Settings


def test_recipes() -> None:
    recipes = AtacNetConfig.recipes()
    assert {"paper", "paper-devnet", "paper-classifier"} <= set(recipes)
    paper = recipes["paper"]()
    assert (paper.backbone, paper.image_size, paper.epochs, paper.train_batch_size) == (
        "resnet50",
        (224,),
        30,
        16,
    )
    assert (paper.margin, paper.active, paper.top_fraction, paper.draws) == (10, 0.4, 0.1, 5000)
    assert (paper.learning_rate, paper.weight_decay, paper.attention_dim) == (1e-3, 0, 64)
    assert [
        recipes[name]().network for name in ("paper", "paper-devnet", "paper-classifier")
    ] == NETWORKS


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train_batch_size", 1),
        ("active", 1.0),
        ("active", -0.1),
        ("padding", -0.1),
        ("padding", math.inf),
        ("margin", 0.0),
        ("draws", 1),
        ("attention_dim", 0),
        ("extractor_rate", -0.1),
        ("extractor_rate", math.inf),
        ("pseudo", 1.1),
        ("drop_every", 0.0),
        ("drop", 1.5),
        ("top_fraction", 2.0),
        ("epochs", 0),
    ],
)
def test_settings_out_of_range(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{setting}: "):
        AtacNetConfig(**{setting: value})


def test_before_fit_it_is_a_named_error() -> None:
    method = atacnet(fitted=False)
    for work in (method.score, method.embedding):
        with pytest.raises(NotFittedError, match="this atacnet detector has not been fitted"):
            work(pictures())
