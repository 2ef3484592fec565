"""AGPNet against its equations written out in loops, in float64; and the two ways in which it goes
wrong unnoticed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from naive import upsampled
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blemish.backbones import Backbone, build
from blemish.errors import ConfigError, NotFittedError
from blemish.methods.agpnet import AGPNet, AGPNetConfig
from blemish.methods.decoder import Decoder, Dropout
from blemish.methods.guidance import normalise
from blemish.methods.learner import TrainingBatch

HEIGHT, WIDTH = 64, 48
GRID = (4, 3)
TINY: dict[str, Any] = {
    "backbone": "test_vit",
    "image_size": (HEIGHT, WIDTH),
    "layers": (2, 4),
    "width": 32,
    "depth": 2,
    "heads": 2,
    "beta": 0.0,
}


@cache
def backbone_of(name: str) -> Backbone:
    return build(name, weights="random", seed=3)


def agpnet(**settings: Any) -> AGPNet:
    """The paper's recipe, small, and with weights of the decoder that make its attention far from
    uniform.
    """
    config = replace(AGPNetConfig.paper(), **(TINY | settings))
    method = AGPNet(config, backbone_of(config.backbone)).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in method.decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return method


def pictures(count: int = 2, seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def batch_of(method: AGPNet, images: Tensor) -> TrainingBatch:
    return TrainingBatch(images if method.needs_images else None, method.encode(images))


def start(method: AGPNet) -> None:
    method.start_training(batch_of(method, pictures(1, 0, *method.config.height_width)))


def train(method: AGPNet, batch: TrainingBatch, steps: int) -> list[float]:
    """What the engine does, without anything around it: the losses."""
    method.start_training(batch)
    optimizer = method.optimizer()
    rates = [group["lr"] for group in optimizer.param_groups]
    method.decoder.train()
    losses = []
    for step in range(1, steps + 1):
        progress = (step - 1) / steps
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * method.learning_rate_factor(progress)
        loss = method.training_step(batch, progress)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.decoder.parameters(), method.clip_norm)
        optimizer.step()
        method.after_step(step, steps)
        losses.append(loss.item())
    method.decoder.eval()
    method.end_training(steps)
    return losses


# Oracles: float64, one image, location and head at a time


def f64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def layer_normed(
    row: np.ndarray, weight: np.ndarray | float = 1.0, bias: np.ndarray | float = 0.0
) -> np.ndarray:
    mean = sum(row) / len(row)
    variance = sum((value - mean) ** 2 for value in row) / len(row)
    return np.asarray((row - mean) / math.sqrt(variance + 1e-5) * weight + bias)


def min_max(row: np.ndarray) -> np.ndarray:
    low, high = min(row), max(row)
    return np.array([0.0 if high == low else (value - low) / (high - low) for value in row])


def attention_of(x: np.ndarray, qkv: np.ndarray, heads: int, *, softmax: bool) -> np.ndarray:
    """The N×N matrix of each head, its rows summing to 1, for q, k, v of N locations side by side."""
    count, width = x.shape
    size = width // heads
    matrices = np.empty((heads, count, count))
    for head in range(heads):
        q = qkv[:, head * size : (head + 1) * size]
        k = qkv[:, width + head * size : width + (head + 1) * size]
        for i in range(count):
            for j in range(count):
                if softmax:
                    matrices[head, i, j] = math.exp(q[i] @ k[j] / math.sqrt(size))
                else:
                    matrices[head, i, j] = (np.maximum(q[i], 0) + 0.01) @ (
                        np.maximum(k[j], 0) + 0.01
                    )
            matrices[head, i] /= matrices[head, i].sum()
    return matrices


def decoded(method: AGPNet, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of features B N D: reconstructions B G N D, attention matrices B M L N N (M of them), the
    last hidden B N W.
    """
    config, state = (
        method.config,
        {name: f64(tensor) for name, tensor in method.decoder.state_dict().items()},
    )

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(x @ state[f"{name}.weight"].T + state[f"{name}.bias"])

    def normed(name: str, x: np.ndarray) -> np.ndarray:
        return np.stack(
            [layer_normed(row, state[f"{name}.weight"], state[f"{name}.bias"]) for row in x]
        )

    outputs, matrices, hidden = [], [], []
    for picture in features:
        x = linear("inward", picture)
        for row in range(method.grid[0]):
            for column in range(method.grid[1]):
                x[row * method.grid[1] + column] += np.concatenate(
                    [state["rows"][row], state["columns"][column]]
                )
        of_picture = []
        for layer in range(config.depth):
            for attention in range(config.attentions):
                name = f"layers.{layer}.attentions.{attention}"
                qkv = linear(f"{name}.qkv", normed(f"layers.{layer}.norms.{attention}", x))
                of_picture.append(attention_of(x, qkv, config.heads, softmax=config.softmax))
                values = np.split(qkv[:, 2 * config.width :], config.heads, axis=1)
                mixed = np.concatenate(
                    [a @ v for a, v in zip(of_picture[-1], values, strict=True)], axis=1
                )
                x = x + linear(f"{name}.out", mixed)
            inside = linear(
                f"layers.{layer}.hidden", normed(f"layers.{layer}.norms.{config.attentions}", x)
            )
            x = x + linear(f"layers.{layer}.out", np.maximum(inside, 0))
        hidden.append(normed("norm", x))
        outputs.append(np.stack(np.split(linear("outward", hidden[-1]), method.groups, axis=1)))
        matrices.append(np.stack(of_picture))
    return np.stack(outputs), np.stack(matrices), np.stack(hidden)


def received(matrices: np.ndarray) -> np.ndarray:
    """B N: the mean over queries, heads, attentions and layers of B M L N N."""
    result = np.zeros((len(matrices), matrices.shape[-1]))
    for picture, of_picture in enumerate(matrices):
        rows = [row for matrix in of_picture for head in matrix for row in head]
        for row in rows:
            result[picture] += row / len(rows)
    return result


def distances(given: np.ndarray, targets: np.ndarray, loss: str) -> np.ndarray:
    """B G N: l2 or cosine distance of B G N D."""
    result = np.empty(given.shape[:3])
    for place in np.ndindex(*result.shape):
        a, b = given[place], targets[place]
        if loss == "l2":
            result[place] = math.sqrt(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)))
        else:
            result[place] = 1 - a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)
    return result


def shrunk(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with antialiasing, h w C -> height width C: a triangle as wide as the step, cut at
    the border.
    """

    def taps(place: int, new: int, old: int) -> np.ndarray:
        step = old / new
        weights = np.array(
            [max(0.0, 1 - abs(j + 0.5 - (place + 0.5) * step) / step) for j in range(old)]
        )
        return np.asarray(weights / weights.sum())

    result = np.zeros((height, width, values.shape[2]))
    for y, x in np.ndindex(height, width):
        down, across = taps(y, height, values.shape[0]), taps(x, width, values.shape[1])
        for j, i in np.ndindex(*values.shape[:2]):
            if down[j] * across[i]:
                result[y, x] += down[j] * across[i] * values[j, i]
    return result


# Eq. 1: targets


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        (1, [[1, 2, 3, 4, 5]]),
        (2, [[1, 2, 3], [4, 5]]),
        (3, [[1, 2], [3, 4], [5]]),
        (9, [[1], [2], [3], [4], [5]]),
    ],
)
def test_targets_are_layer_norms_summed(groups: int, members: list[list[int]]) -> None:
    method = agpnet(layers=(1, 2, 3, 4, 5), groups=groups)
    features = method.backbone(pictures(), (1, 2, 3, 4, 5))
    tokens = [f64(layer) * 3 + 1 for layer in features.tokens]
    expected = np.zeros((2, len(members), 12, tokens[0].shape[2]))
    for picture, group, place in np.ndindex(2, len(members), 12):
        for layer in members[group]:
            expected[picture, group, place] += layer_normed(tokens[layer - 1][picture, place])
    got = method.targets([torch.from_numpy(layer).float() for layer in tokens], features.grids)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(f64(got), expected, atol=1e-5)
    total = agpnet(layers=(1, 2, 3, 4, 5), groups=1).encode(pictures())["targets"]
    np.testing.assert_allclose(
        f64(method.encode(pictures())["targets"].sum(1)), f64(total[:, 0]), atol=1e-5
    )


def test_targets_and_prior_of_a_cnn() -> None:
    method = agpnet(backbone="test_resnet", image_size=(64, 96), layers=(1, 2, 3), groups=2)
    images = pictures(2, height=64, width=96)
    features = method.backbone(images, (1, 2, 3))
    assert features.grids == ((16, 24), (8, 12), (4, 6))
    assert method.grid == (4, 6)
    encoded = method.encode(images)
    assert encoded["targets"].shape == (2, 1, 24, 32 + 48 + 192)
    for picture in range(2):
        levels, squares = [], []
        for tokens, grid, offset in zip(
            features.tokens, features.grids, features.offsets, strict=True
        ):
            rows = f64(tokens[picture])
            normed = np.stack([layer_normed(row) for row in rows]).reshape(*grid, -1)
            squared = np.array(
                [sum(value * value for value in row) / len(row) for row in rows]
            ).reshape(*grid, 1)
            at_its_places = grid[0] / 4 * features.offsets[2]  # in its own cells
            normed, squared = (
                upsampled(each, *grid, offset, at_its_places) for each in (normed, squared)
            )
            levels.append(shrunk(normed, 4, 6).reshape(24, -1))
            squares.append(min_max(shrunk(squared, 4, 6).reshape(24)))
        np.testing.assert_allclose(
            f64(encoded["targets"][picture, 0]), np.concatenate(levels, axis=1), atol=2e-5
        )
        np.testing.assert_allclose(f64(encoded["prior"][picture]), sum(squares) / 3, atol=1e-5)


def test_the_prior_is_the_cls_row_averaged_over_heads_and_layers() -> None:
    method = agpnet(layers=(2, 4, 5))
    full = method.backbone(pictures(3), (5,), full_attention=(2, 4, 5)).full_attention
    expected = np.zeros((3, 12))
    for picture in range(3):
        for layer in (2, 4, 5):
            heads = f64(full[layer][picture])
            for head in heads:
                row = head[0, 1:]  # without [CLS] itself
                expected[picture] += row / sum(row) / len(heads) / 3
    np.testing.assert_allclose(f64(method.encode(pictures(3))["prior"]), expected, rtol=1e-5)
    assert np.ptp(expected, axis=1).min() > 1e-3 * expected.mean()  # or any constant would do
    assert "prior" not in agpnet(feature_noise="random", image_noise="random").encode(pictures())


def test_each_picture_is_encoded_by_itself() -> None:
    method = agpnet(groups=2)
    together, alone = method.encode(pictures(3)), method.encode(pictures(3)[1:2])
    for name, tensor in together.items():
        torch.testing.assert_close(tensor[1:2], alone[name], rtol=1e-4, atol=1e-5)
        assert not tensor.requires_grad


# The decoder


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize(("attentions", "dropout", "groups"), [(2, 0.0, 1), (1, 0.3, 2)])
def test_the_decoder_and_its_attention(
    softmax: bool, attentions: int, dropout: float, groups: int
) -> None:
    method = agpnet(softmax=softmax, attentions=attentions, dropout=dropout, groups=groups)
    features = method.encode(pictures())["targets"].sum(1)
    given, matrices, _ = decoded(method, f64(features))
    assert matrices.shape == (2, 2 * attentions, 2, 12, 12)
    np.testing.assert_allclose(f64(method.decoder(features)), given, rtol=1e-3, atol=1e-4)
    looked = received(matrices)
    np.testing.assert_allclose(looked.sum(1), 1)
    assert (
        looked.std(axis=1).min() > 0.05 * looked.mean()
    )  # far enough from uniform to tell readings apart
    np.testing.assert_allclose(f64(method.decoder.attention_received(features)), looked, rtol=1e-4)


def test_dropout_is_on_what_enters_the_decoder_while_training() -> None:
    decoder = agpnet(dropout=0.4).decoder
    features = torch.randn(2, 12, 64)
    decoder.train()
    torch.manual_seed(1)
    given = decoder(features)
    torch.manual_seed(1)
    dropped = decoder.dropout(features)
    assert 0.3 < float((dropped == 0).float().mean()) < 0.5
    assert torch.equal(decoder.eval()(dropped), given)
    assert not torch.equal(decoder(features), given)


def test_nothing_goes_around_the_decoder() -> None:
    decoder = agpnet().decoder
    with torch.no_grad():
        decoder.outward.weight.zero_()
        decoder.outward.bias.zero_()
    assert decoder(torch.randn(2, 12, 64)).abs().max() == 0


@pytest.mark.parametrize("groups", [1, 2])
def test_the_linear_start_is_the_best_linear_autoencoder(groups: int) -> None:
    method = AGPNet(
        replace(AGPNetConfig.paper(), **TINY, groups=groups, start="linear"),
        backbone_of("test_vit"),
    ).eval()
    # 64 directions, of which the first are far stronger; 32 pass.
    shape = (
        (torch.linalg.qr(torch.randn(64, 64)).Q * torch.logspace(1, -1, 64))
        @ torch.randn(64, 64)
        / 8
    )
    common = torch.randn(20, 1, 12, 64) @ shape + 0.5
    targets = common * torch.tensor([1.0, -0.5])[:groups, None, None] + 0.1 * torch.randn(
        20, groups, 12, 64
    )
    method.start_training(TrainingBatch(None, {"targets": targets}))
    features = f64(targets.sum(1)).reshape(-1, 64)
    directions = np.linalg.svd(features)[2][:32]
    weight = f64(method.decoder.inward.weight)
    scale = 1 / math.sqrt(np.square(features @ directions.T).mean())
    np.testing.assert_allclose(
        weight.T @ weight, scale**2 * directions.T @ directions, atol=1e-3 * scale**2
    )
    assert method.decoder.inward.bias.abs().max() == 0
    wanted = f64(targets.transpose(1, 2)).reshape(len(features), -1)
    inner = np.stack([np.append(layer_normed(weight @ row), 1) for row in features])
    best = inner @ np.linalg.lstsq(inner, wanted)[0]
    given = f64(method.decoder(targets.sum(1)).transpose(1, 2)).reshape(wanted.shape)

    def error(of: np.ndarray) -> float:
        return float(np.square(of - wanted).mean())

    # The positions, still small, are in the way of what is given and not of the best.
    assert error(given) < 1.05 * error(best) < 0.2 * wanted.var()


def test_the_seed_decides_the_decoder_and_nothing_else() -> None:
    def fresh(seed: int) -> dict[str, Tensor]:
        config = replace(AGPNetConfig.paper(), **TINY, seed=seed)
        return AGPNet(config, backbone_of("test_vit")).decoder.state_dict()

    before = torch.get_rng_state()
    one, same, other = fresh(1), fresh(1), fresh(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["outward.weight"], other["outward.weight"])


# Eq. 2: what guides the noise


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("attention", ["prior", "learned", "both"])
def test_the_guide(attention: str, softmax: bool) -> None:
    method = agpnet(attention=attention, softmax=softmax, groups=2)
    start(method)
    encoded = method.encode(pictures(3))
    targets = encoded["targets"]
    looked = received(decoded(method, f64(targets.sum(1)))[1])
    expected = np.zeros((3, 12))
    for picture in range(3):
        if attention != "learned":
            expected[picture] += min_max(f64(encoded["prior"][picture]))
        if attention != "prior":
            expected[picture] += min_max(looked[picture])
        expected[picture] = min_max(expected[picture])
    guide = method._guide(targets, encoded.get("prior"))
    np.testing.assert_allclose(f64(guide), expected, atol=2e-3)
    assert guide.amin(1).tolist() == [0, 0, 0]
    assert guide.amax(1).tolist() == [1, 1, 1]


def test_a_constant_row_normalises_to_zero() -> None:
    rows = torch.tensor([[2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [1.0, 3.0, 2.0]])
    assert normalise(rows).tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0.5]]


@pytest.mark.parametrize("mean_teacher", [True, False])
def test_whose_attention_guides(mean_teacher: bool) -> None:
    method = agpnet(attention="learned", mean_teacher=mean_teacher, dropout=0.5)
    start(method)
    method.decoder.train()
    targets = method.encode(pictures())["targets"]
    before = method._guide(targets, None)
    assert torch.equal(before, method._guide(targets, None))  # without dropout, even while training
    assert method.decoder.training
    assert not before.requires_grad
    with torch.no_grad():
        for parameter in method.decoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert torch.equal(before, method._guide(targets, None)) == mean_teacher


# Eq. 3: the teacher


@pytest.mark.parametrize(("ema_decay", "decay"), [(0.9, 0.9), (0.0, 0.0), (None, 1 - 20 * 5 / 250)])
def test_the_teacher_follows_the_decoder(ema_decay: float | None, decay: float) -> None:
    method = agpnet(ema_decay=ema_decay, ema_every=5)
    start(method)
    assert method.teacher is not None
    expected = [f64(parameter) for parameter in method.decoder.parameters()]
    teacher = list(method.teacher.parameters())
    for slow, fast in zip(teacher, expected, strict=True):
        np.testing.assert_array_equal(f64(slow), fast)
    for step in range(1, 17):
        with torch.no_grad():
            for fast in method.decoder.parameters():
                fast.add_(torch.randn_like(fast) * 0.1)
        method.after_step(step, 250)
        if step in (5, 10, 15):
            students = [f64(fast) for fast in method.decoder.parameters()]
            expected = [
                decay * old + (1 - decay) * new for old, new in zip(expected, students, strict=True)
            ]
        for slow, wanted in zip(teacher, expected, strict=True):
            np.testing.assert_allclose(f64(slow), wanted, atol=1e-5)


def test_over_a_very_short_run_the_teacher_is_the_decoder() -> None:
    method = agpnet(ema_decay=None, ema_every=10)
    start(method)
    with torch.no_grad():
        method.decoder.rows.add_(1)
    method.after_step(10, 30)
    assert method.teacher is not None
    torch.testing.assert_close(method.teacher.rows, method.decoder.rows)


def test_there_is_a_teacher_only_where_one_is_asked() -> None:
    without: list[dict[str, Any]] = [
        {"mean_teacher": False},
        {"attention": "prior"},
        {"feature_noise": "random", "image_noise": "random"},
    ]
    for settings in without:
        method = agpnet(**settings)
        start(method)
        assert method.teacher is None
    method = agpnet(feature_noise="none", image_noise="shuffled")
    start(method)
    assert method.teacher is not None


def test_the_gradient_reaches_the_decoder_and_nothing_else() -> None:
    method = agpnet()
    batch = batch_of(method, pictures())
    start(method)
    learned = {
        id(parameter) for group in method.optimizer().param_groups for parameter in group["params"]
    }
    assert learned == {id(parameter) for parameter in method.decoder.parameters()}
    method.training_step(batch, 0.9).backward()
    for parameter in method.decoder.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) > 0
    assert method.teacher is not None
    for parameter in (*method.teacher.parameters(), *method.backbone.parameters()):
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_the_auxiliary_branch_is_gone_after_training() -> None:
    method = agpnet()
    batch = batch_of(method, pictures())
    start(method)
    assert any(name.startswith("teacher.") for name in method.state_dict())  # a checkpoint needs it
    train(method, batch, 2)
    assert method.teacher is None
    assert {name.split(".")[0] for name in method.fitted_state()} == {
        "backbone",
        "decoder",
        "steps",
    }
    assert method.steps.tolist() == [2]
    other = agpnet(seed=9)
    other.restore_state(method.fitted_state())
    assert torch.equal(
        other.anomaly_map(other.see(pictures())), method.anomaly_map(method.see(pictures()))
    )


# Eq. 4 and 5: noise on features


def test_the_intensity_rises_as_published() -> None:
    method = agpnet()
    points = [method.intensity(epoch / 500) for epoch in (0, 100, 200, 400, 450, 499)]
    assert points == pytest.approx([0, 0.25, 0.5, 1, 1, 1])
    constant = agpnet(noise_low=1.5, noise_high=1.5)
    assert {constant.intensity(progress) for progress in (0, 0.3, 0.8, 0.99)} == {1.5}
    assert agpnet(noise_until=0.0).intensity(0) == 1
    assert agpnet(noise_low=0.5, noise_high=1.5, noise_until=0.5).intensity(0.25) == pytest.approx(
        1
    )


def weights_of(method: AGPNet, features: Tensor, guide: Tensor, progress: float) -> np.ndarray:
    """What the noise at each location was multiplied by: B N. Every draw is taken to be 1."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", torch.ones_like)
        added = f64(method._perturbed(features, guide, progress)) - f64(features)
    assert np.ptp(added, axis=2).max() < 1e-5  # alike in every channel
    return np.asarray(added.mean(axis=2))


@pytest.mark.parametrize("noise_unit", ["std", "absolute"])
@pytest.mark.parametrize("beta", [0.0, 0.25])
@pytest.mark.parametrize("kind", ["random", "attention", "shuffled"])
def test_where_the_noise_goes(kind: str, beta: float, noise_unit: str) -> None:
    method = agpnet(feature_noise=kind, beta=beta, noise_unit=noise_unit)
    features = torch.randn(4, 12, 64) * torch.tensor([0.5, 1, 2, 4])[:, None, None] + 1
    guide = normalise(torch.rand(4, 12))
    got = weights_of(method, features, guide, 0.6)
    for picture in range(4):
        unit = 1.0 if noise_unit == "absolute" else statistics.stdev(f64(features[picture]).ravel())
        expected = [unit * (0.75 * float(weight) + beta) for weight in guide[picture]]
        if kind == "random":
            expected = [unit * (0.75 + beta)] * 12
        if kind == "shuffled":
            assert not np.allclose(got[picture], expected, rtol=1e-3)
            np.testing.assert_allclose(
                np.sort(got[picture]), np.sort(expected), rtol=1e-4, atol=1e-5
            )
        else:
            np.testing.assert_allclose(got[picture], expected, rtol=1e-4, atol=1e-5)
    if kind == "shuffled":  # each picture in an order of its own
        ranks = [np.argsort(np.argsort(row)) for row in got]
        orders = {tuple(rank[np.argsort(row)]) for rank, row in zip(ranks, f64(guide), strict=True)}
        assert len(orders) == 4


def test_features_as_they_are_without_noise() -> None:
    features = torch.randn(2, 12, 64)
    assert torch.equal(
        agpnet(feature_noise="none")._perturbed(features, torch.ones(2, 12), 0.9), features
    )
    assert torch.equal(agpnet()._perturbed(features, torch.ones(2, 12), 0.0), features)
    assert torch.equal(
        agpnet(feature_noise="none", beta=0.5)._perturbed(features, torch.ones(2, 12), 0.9),
        features,
    )


def test_the_noise_is_gaussian_and_anew_each_time() -> None:
    method = agpnet(feature_noise="random")
    features = torch.randn(8, 48, 64) * 3
    guide = torch.zeros(8, 48)
    first = method._perturbed(features, guide, 0.8) - features
    unit = features.std(dim=(1, 2), keepdim=True)
    drawn = (first / unit).flatten()
    count = len(drawn)
    assert abs(float(drawn.mean())) < 5 / count**0.5
    assert abs(float(drawn.var()) - 1) < 5 * (2 / count) ** 0.5
    assert abs(float(drawn.pow(4).mean()) - 3) < 5 * (96 / count) ** 0.5
    second = method._perturbed(features, guide, 0.8) - features
    assert (
        abs(float(torch.corrcoef(torch.stack([drawn, (second / unit).flatten()]))[0, 1]))
        < 5 / count**0.5
    )


@pytest.mark.parametrize("kind", ["attention", "shuffled"])
def test_the_perturbation_lands_where_attention_is(kind: str) -> None:
    """What guards against decorative attention: the guide of real encodings, and where F' departs
    from F.
    """
    method = agpnet(feature_noise=kind, image_size=(128, 128))
    start(method)
    encoded = method.encode(pictures(16, height=128, width=128))
    guide = method._guide(encoded["targets"], encoded.get("prior"))
    assert guide.std(1).min() > 0.1  # nearly uniform guidance would be a bug
    features = encoded["targets"].sum(1)
    moved = (method._perturbed(features, guide, 0.9) - features).abs().mean(2)
    correlations = [
        float(torch.corrcoef(torch.stack([a, b]))[0, 1]) for a, b in zip(moved, guide, strict=True)
    ]
    if kind == "attention":
        assert min(correlations) > 0.9
    else:
        assert abs(statistics.mean(correlations)) < 5 / math.sqrt(16 * 63)


# Noise on pictures


def test_the_covered_share_rises_as_published() -> None:
    method = agpnet()
    points = [method.covered(epoch / 500) for epoch in (0, 50, 100, 250, 400, 499)]
    assert points == pytest.approx([0.6, 0.6, 0.6, 0.8, 1, 1])
    at_once = agpnet(image_from=0.5, noise_until=0.5)
    assert [at_once.covered(progress) for progress in (0.49, 0.5, 0.9)] == pytest.approx(
        [0.6, 1, 1]
    )


@pytest.mark.parametrize("progress", [0.0, 0.37])
def test_image_noise_covers_the_most_attended_pixels(progress: float) -> None:
    method = agpnet(image_noise="attention")
    images, guide = pictures(3), normalise(torch.rand(3, 12))
    noisy = method._noisy_images(images, guide, progress)
    share = 0.6 if progress == 0 else 0.6 + 0.4 * (0.37 - 0.2) / 0.6
    for picture in range(3):
        changed = f64((noisy[picture] != images[picture]).all(0)) > 0
        touched = f64((noisy[picture] != images[picture]).any(0)) > 0
        np.testing.assert_array_equal(changed, touched)  # every channel of a pixel, or none
        assert changed.sum() == round(share * HEIGHT * WIDTH)
        attended = upsampled(f64(guide[picture]).reshape(GRID), HEIGHT, WIDTH)
        assert attended[changed].min() >= attended[~changed].max() - 1e-6


def test_image_noise_has_unit_deviation_and_ends_everywhere() -> None:
    images = pictures(4)
    added = (
        agpnet(image_noise="attention")._noisy_images(images, normalise(torch.rand(4, 12)), 0.8)
        - images
    )
    assert int((added == 0).any(1).sum()) == 0
    assert abs(float(added.mean())) < 5 / added.numel() ** 0.5
    assert abs(float(added.var()) - 1) < 5 * (2 / added.numel()) ** 0.5
    assert abs(float((added[:, 0] * added[:, 1]).mean())) < 5 / added[:, 0].numel() ** 0.5


@pytest.mark.parametrize("kind", ["random", "shuffled"])
def test_image_noise_elsewhere(kind: str) -> None:
    method = agpnet(image_noise=kind)
    images = pictures(16)
    guide = torch.linspace(0, 1, 12).expand(16, 12)
    changed = (method._noisy_images(images, guide, 0.0) != images).any(1)
    assert changed.flatten(1).sum(1).tolist() == [round(0.6 * HEIGHT * WIDTH)] * 16
    assert (
        len({tuple(row) for row in changed.flatten(1).tolist()}) == 16
    )  # the guide is the same, the places are not
    lower_half = changed[:, HEIGHT // 2 :].float().mean()
    assert 0.4 < float(lower_half) < 0.8  # by attention it would be 1


# Eq. 6 and 7: the loss


def fixed_noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(like.shape[-1]))


def test_the_loss_is_the_mean_of_its_two_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    method = agpnet()
    images, progress = pictures(), 0.4
    batch = batch_of(method, images)
    noisy = pictures(seed=5)
    asked: list[tuple[Tensor, Tensor, float]] = []

    def noisy_images(*given: Any) -> Tensor:
        asked.append(given)
        return noisy

    monkeypatch.setattr(torch, "randn_like", fixed_noise)
    monkeypatch.setattr(method, "_noisy_images", noisy_images)
    start(method)
    loss = method.training_step(batch, progress)

    def summed(of: Tensor) -> np.ndarray:
        tokens = [f64(layer) for layer in method.backbone(of, (2, 4)).tokens]
        return np.stack(
            [[sum(layer_normed(t[b, n]) for t in tokens) for n in range(12)] for b in range(2)]
        )

    clean = summed(images)
    looked = received(decoded(method, clean)[1])
    prior = f64(batch.features["prior"])
    guide = np.stack([min_max(min_max(prior[b]) + min_max(looked[b])) for b in range(2)])
    noise = f64(fixed_noise(torch.empty(2, 12, 64)))
    terms = []
    for seen in (clean, summed(noisy)):
        perturbed = seen.copy()
        for b, n in np.ndindex(2, 12):
            perturbed[b, n] += 0.5 * guide[b, n] * statistics.stdev(seen[b].ravel()) * noise[b, n]
        given = decoded(method, perturbed)[0][:, 0]
        terms.append(
            sum(np.square(given[b, n] - clean[b, n]).sum() for b, n in np.ndindex(2, 12)) / 24
        )
    assert abs(terms[0] - terms[1]) > 1e-3 * terms[0]  # so that either alone would be seen
    assert loss.item() == pytest.approx((terms[0] + terms[1]) / 2, rel=1e-4)
    (given_images, given_guide, given_progress) = asked[0]
    assert given_images is images
    assert given_progress == progress
    np.testing.assert_allclose(f64(given_guide), guide, atol=1e-3)


@pytest.mark.parametrize(
    ("feature_noise", "image_noise"), [("none", "none"), ("none", "random"), ("random", "none")]
)
def test_single_terms(
    feature_noise: str, image_noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = agpnet(feature_noise=feature_noise, image_noise=image_noise)
    assert method.needs_images == (image_noise != "none")
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    batch = batch_of(method, pictures())
    assert set(batch.features) == {"targets"}
    start(method)
    clean = f64(batch.features["targets"])
    expected = float(np.mean(np.sum((decoded(method, clean[:, 0])[0] - clean) ** 2, axis=-1)))
    assert method.training_step(batch, 0.9).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("progress", [0.0, 0.05, 0.1, 0.9])
@pytest.mark.parametrize(("loss", "spared"), [("l2", 0.0), ("cosine", 0.0), ("cosine", 0.9)])
def test_the_losses_and_their_gradients(loss: str, spared: float, progress: float) -> None:
    method = agpnet(loss=loss, spared=spared, groups=2)
    given, targets = torch.randn(2, 2, 12, 16, requires_grad=True), torch.randn(2, 2, 12, 16)
    value = method.loss(given, targets, progress)
    value.backward()
    apart = distances(f64(given), f64(targets), loss)
    ordered = np.sort(apart.ravel())
    # 0.45 and 0.9 of 48 distances are 21 and 43 whole ones.
    easy = {0.0: 0, 0.05: 21}.get(progress, 43) if spared else 0
    expected, gradient = 0.0, np.empty(given.shape)
    for place in np.ndindex(2, 2, 12):
        g, t = f64(given)[place], f64(targets)[place]
        if loss == "l2":
            expected += apart[place] ** 2 / 48  # over the places, not the channels
            gradient[place] = 2 * (g - t) / 48
        else:
            weight = 0.1 if easy and apart[place] <= ordered[easy - 1] else 1.0
            expected += weight * apart[place] / 48
            size, cosine = math.sqrt(g @ g), 1 - apart[place]
            gradient[place] = -weight / 48 * (t / math.sqrt(t @ t) - cosine * g / size) / size
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert given.grad is not None
    np.testing.assert_allclose(f64(given.grad), gradient, rtol=1e-3, atol=1e-7)


def test_the_parameters_after_one_step() -> None:
    """The last projection, linear in its weights: the gradient of eq. 7 by hand, then AdamW by
    hand.
    """
    method = agpnet(feature_noise="none", image_noise="none", learning_rate=3e-3, weight_decay=0.1)
    batch = batch_of(method, pictures())
    targets = f64(batch.features["targets"])[:, 0]
    given, _, hidden = decoded(method, targets[:])
    weight, bias = f64(method.decoder.outward.weight), f64(method.decoder.outward.bias)
    by_weight, by_bias = np.zeros_like(weight), np.zeros_like(bias)
    for b, n in np.ndindex(2, 12):
        error = 2 * (given[b, 0, n] - targets[b, n]) / 24
        by_weight += np.outer(error, hidden[b, n])
        by_bias += error
    optimizer = method.optimizer()
    method.training_step(batch, 0.5).backward()
    optimizer.step()

    def stepped(value: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        # At the first step both averages, corrected for their start at 0, are the gradient and its
        # square.
        return np.asarray(value * (1 - 3e-3 * 0.1) - 3e-3 * gradient / (np.abs(gradient) + 1e-8))

    for got, value, gradient in (
        (method.decoder.outward.weight, weight, by_weight),
        (method.decoder.outward.bias, bias, by_bias),
    ):
        assert got.grad is not None
        np.testing.assert_allclose(f64(got.grad), gradient, rtol=1e-3, atol=1e-3)
        certain = (
            np.abs(gradient) > 1e-2
        )  # the step is its sign: not to be told in float32 where it is about 0
        assert certain.mean() > 0.9
        np.testing.assert_allclose(f64(got)[certain], stepped(value, gradient)[certain], atol=1e-6)


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_the_limit_of_the_gradients_grows_with_the_loss(backbone: str) -> None:
    """A loss that adds up the channels has gradients as many times as large as one that averages
    them.
    """
    size: dict[str, Any] = {"backbone": backbone, "image_size": (64, 96), "layers": (2, 3)}
    quiet: dict[str, Any] = {"feature_noise": "none", "image_noise": "none"}
    method, cosine = agpnet(**size, **quiet), agpnet(**size, **quiet, loss="cosine")
    batch = batch_of(method, pictures(2, height=64, width=96))
    targets = batch.features["targets"]
    method.training_step(batch, 0.0).backward()
    added = [parameter.grad for parameter in method.decoder.parameters()]
    method.decoder.zero_grad(set_to_none=True)
    torch.nn.functional.mse_loss(method.decoder(targets.sum(1)), targets).backward()
    averaged = [parameter.grad for parameter in method.decoder.parameters()]

    def clipped(gradients: list[Tensor | None], limit: float) -> Tensor:
        found = torch.cat([g.flatten() for g in gradients if g is not None])
        assert float(found.norm()) > limit  # or the limit would not be seen
        return found * limit / found.norm()

    many = targets.shape[-1]
    torch.testing.assert_close(
        clipped(added, method.clip_norm),
        many * clipped(averaged, cosine.clip_norm),
        rtol=1e-3,
        atol=1e-4,
    )


# Eq. 8: the map and the score


def fitted(**settings: Any) -> AGPNet:
    method = agpnet(**settings)
    method.end_training(1)
    return method


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("loss", ["l2", "cosine"])
def test_the_map_is_what_is_not_given_back(loss: str, groups: int) -> None:
    method = fitted(loss=loss, groups=groups)
    got = method.anomaly_map(method.see(pictures(3)))
    targets = f64(method.encode(pictures(3))["targets"])
    expected = distances(decoded(method, targets.sum(1))[0], targets, loss).mean(axis=1)
    assert got.shape == (3, *GRID)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(f64(got).reshape(3, 12), expected, rtol=1e-4)


@pytest.mark.parametrize(("fraction", "sides"), [(0.25, (4, 4)), (0.9, (14, 12)), (0.01, (1, 1))])
def test_the_score_is_the_maximum_of_the_averaged_map(
    fraction: float, sides: tuple[int, int]
) -> None:
    method = fitted(score_window=fraction)
    scores, raw = method.score(pictures()), f64(method.anomaly_map(method.see(pictures())))
    height, width = HEIGHT // 4, WIDTH // 4  # maps are delivered at a quarter of the sides
    for picture in range(2):
        plane = upsampled(raw[picture], height, width)
        np.testing.assert_allclose(f64(scores.maps[picture]), plane, rtol=1e-4)
        means = [
            plane[y : y + sides[0], x : x + sides[1]].mean()
            for y in range(height - sides[0] + 1)
            for x in range(width - sides[1] + 1)
        ]
        assert scores.image[picture].item() == pytest.approx(max(means), rel=1e-4)


def test_without_a_window_the_highest_values_count() -> None:
    scores = fitted(score_window=0.0, top_fraction=0.05).score(pictures())
    for image, plane in zip(scores.image, scores.maps, strict=True):
        highest = sorted(f64(plane).ravel(), reverse=True)[: round(0.05 * 16 * 12)]
        assert image.item() == pytest.approx(sum(highest) / len(highest), rel=1e-5)


def test_smoothing_changes_the_map_and_not_the_score_of_a_window() -> None:
    plain, smooth = fitted(score_window=0.25), fitted(score_window=0.25, smoothing=0.1)
    assert torch.equal(plain.score(pictures()).image, smooth.score(pictures()).image)
    assert smooth.score(pictures()).maps.std() < 0.9 * plain.score(pictures()).maps.std()


def test_low_precision_changes_little() -> None:
    config = replace(AGPNetConfig.paper(), **TINY)
    method = AGPNet(config, build("test_vit", weights="random", seed=3)).eval()
    method.end_training(1)
    exact = method.anomaly_map(method.see(pictures()))
    method.backbone.to(torch.bfloat16)
    assert method.encode(pictures())["targets"].dtype == torch.bfloat16
    rough = method.anomaly_map(method.see(pictures()))
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0)


def test_before_training() -> None:
    with pytest.raises(NotFittedError, match="this agpnet detector has not been fitted"):
        agpnet().score(pictures())


# The paper's size


def test_the_published_size() -> None:
    config = replace(AGPNetConfig.paper(), backbone="vit_small_patch16_224")
    method = AGPNet(config, build("vit_small_patch16_224", weights="random")).eval()
    learned = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    assert learned == pytest.approx(4.42e6, rel=0.005)
    method.end_training(1)
    assert not any(parameter.requires_grad for parameter in method.parameters())
    # The plain kernel: what fused attention multiplies is not counted on every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        method.score(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() / 2 == pytest.approx(5.63e9, rel=0.005)


# The identity shortcut


def test_without_noise_a_defect_is_given_back() -> None:
    """Each place has a look of its own; the defect is a place that looks like another one. What is
    left of a place under noise as strong as this does not tell, so that a decoder has to learn what
    belongs there.
    """
    looks = torch.randn(12, 64)
    normal = looks + 0.1 * torch.randn(8, 12, 64)
    defect = looks + 0.1 * torch.randn(16, 12, 64)
    defect[:, 5] += looks[2] - looks[5]

    def missed(noise: str) -> float:
        """How much of the defect is not given back: 0 = it passes, 1 = all of it shows."""
        settings: dict[str, Any] = {
            "feature_noise": noise,
            "image_noise": "none",
            "noise_low": 4.0,
            "noise_high": 4.0,
        }
        method = agpnet(**settings, depth=1, learning_rate=5e-3, schedule="cosine")
        losses = train(method, TrainingBatch(None, {"targets": normal[:, None]}), 100)
        assert losses[-1] < 0.5 * losses[0]
        with torch.no_grad():
            apart = (method.decoder(defect)[:, 0] - defect)[:, 5].norm(dim=1)
        return float((apart / (looks[2] - looks[5]).norm()).mean())

    assert missed("random") > 1.8 * missed("none")


# Training as a whole


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("recipe", ["best", "paper"])
def test_every_recipe_learns(
    recipe: str, backbone: str, picture: Callable[..., np.ndarray]
) -> None:
    layers = (2, 4) if backbone == "test_vit" else (2, 3)
    small = {
        **TINY,
        "backbone": backbone,
        "layers": layers,
        "image_size": (64, 96),
        "learning_rate": 3e-3,
    }
    method = AGPNet(
        replace(AGPNetConfig.recipes()[recipe](), **small), backbone_of(backbone)
    ).eval()
    parts = np.stack([picture(seed, height=64, width=96) for seed in range(4)])
    images = torch.from_numpy(parts).permute(0, 3, 1, 2).float() / 127.5 - 1
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    losses = train(method, batch_of(method, images), 15)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("backbone."), name
    scores = method.score(images)
    assert scores.image.shape == (4,)
    assert scores.maps.shape == (4, 16, 24)
    torch.testing.assert_close(method.score(images[2:3]).image, scores.image[2:3])


def test_the_same_generator_state_gives_the_same_loss() -> None:
    method = agpnet(dropout=0.2)
    batch = batch_of(method, pictures())
    start(method)
    method.decoder.train()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(method.training_step(batch, 0.5).item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_the_learning_rate(schedule: str) -> None:
    method = agpnet(schedule=schedule)
    factors = [method.learning_rate_factor(step / 1000) for step in range(1000)]
    assert factors[-1] == pytest.approx(0.1, rel=0.01)
    if schedule == "step":
        assert factors == [1.0] * 400 + [0.1] * 600
    else:
        peak = int(np.argmax(factors))
        assert 0 < factors[0] < 0.1
        assert 0 < peak < 100
        assert factors[peak] > 0.95
        assert factors[:peak] == sorted(factors[:peak])
        assert factors[peak:] == sorted(factors[peak:], reverse=True)


# Dropout from bytes


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_rate_and_the_expectation(rate: float) -> None:
    values = torch.rand(101, 997) + 0.5  # a number of elements that 8 does not divide
    given = Dropout(rate).train()(values)
    kept = given != 0
    exact = 1 - round(256 * rate) / 256
    assert exact == pytest.approx(1 - rate, abs=1 / 512)
    sigma = math.sqrt(exact * (1 - exact) / values.numel())
    assert abs(float(kept.float().mean()) - exact) < 3 * sigma
    torch.testing.assert_close(given[kept], values[kept] / exact)
    spread = float(values.pow(2).mean().sqrt()) * math.sqrt((1 - exact) / exact / values.numel())
    assert abs(float(given.mean() - values.mean())) < 4 * spread
    for axis in (0, 1):  # no row and no column is favoured
        share = kept.float().mean(axis)
        assert float((share - exact).abs().max()) < 5 * math.sqrt(
            exact * (1 - exact) / values.shape[axis]
        )


def test_dropout_is_the_generators_and_off_when_predicting() -> None:
    values = torch.rand(5, 33, requires_grad=True)
    dropout = Dropout(0.4)
    assert dropout.eval()(values) is values
    assert Dropout(0.0).train()(values) is values
    dropout.train()
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(dropout(values))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    masks[0].sum().backward()
    torch.testing.assert_close(values.grad, (masks[0] / values).detach())
    assert dropout(values.bfloat16()).dtype == torch.bfloat16


# Settings


def test_recipes() -> None:
    recipes = AGPNetConfig.recipes()
    assert set(recipes) == {"best", "paper"}
    assert recipes["best"]() == AGPNetConfig()
    paper = recipes["paper"]()
    assert (paper.backbone, paper.image_size, paper.epochs, paper.train_batch_size) == (
        "dino_vits16",
        (224,),
        500,
        32,
    )
    assert (paper.groups, paper.depth, paper.loss, paper.dropout) == (1, 4, "l2", 0.0)
    assert (paper.feature_noise, paper.image_noise, paper.attention) == (
        "attention",
        "attention",
        "both",
    )
    assert (paper.noise_low, paper.noise_high, paper.beta, paper.noise_unit) == (
        0.0,
        1.0,
        0.5,
        "std",
    )
    assert (paper.mean_teacher, paper.ema_decay, paper.ema_every) == (True, 0.9999, 10)
    assert round(paper.score_window * 224) == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 0}, "groups: at least 1"),
        ({"depth": 0}, "depth: at least 1"),
        ({"attentions": 0}, "attentions: at least 1"),
        ({"ema_every": 0}, "ema_every: at least 1"),
        ({"width": 40, "heads": 8}, r"width: a multiple of 2 × heads \(16\) is needed, got 40"),
        ({"dropout": 1.0}, "dropout: a fraction in"),
        ({"spared": -0.1}, "spared: a fraction in"),
        ({"score_window": 1.0}, "score_window: a fraction in"),
        ({"beta": -0.1}, "beta: a finite number from 0"),
        ({"beta": math.nan}, "beta: a finite number from 0"),
        ({"noise_until": math.nan}, "noise_until: a fraction in"),
        ({"image_share": -1.0}, "image_share: a fraction in"),
        ({"noise_low": 2.0, "noise_high": 1.0}, "0 <= low <= high, got 2.0 and 1.0"),
        ({"noise_high": math.inf}, "noise_low and noise_high"),
        ({"ema_decay": 1.0}, "ema_decay: null or a fraction in"),
        ({"epochs": 0}, "epochs: at least 1"),
        ({"learning_rate": 0.0}, "learning_rate: a positive"),
        ({"top_fraction": 2.0}, "top_fraction: a fraction in"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AGPNetConfig(**settings)


# A config as artifacts and rows of before b96f3b2 carry it, all its keys


def test_layers_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="layer 9 does not exist"):
        agpnet(layers=(2, 9))


def test_positions_follow_the_rows_of_the_grid() -> None:
    decoder = Decoder(replace(AGPNetConfig.paper(), **TINY), 64, 1, GRID)
    with torch.no_grad():
        decoder.rows.copy_(torch.arange(4.0)[:, None].expand(-1, 16))
        decoder.columns.copy_(10 * torch.arange(3.0)[:, None].expand(-1, 16))
        placed = decoder._enter(torch.zeros(1, 12, 64)) - decoder.inward(torch.zeros(1, 1, 64))
    for place in range(12):
        torch.testing.assert_close(placed[0, place, :16], torch.full((16,), float(place // 3)))
        torch.testing.assert_close(placed[0, place, 16:], torch.full((16,), 10.0 * (place % 3)))


# What it says of its guidance


def test_findings_of_flat_and_of_peaked_guidance() -> None:
    method = agpnet(attention="prior")
    targets = method.encode(pictures())["targets"]
    flat = torch.full((2, targets.shape[2]), 0.3)
    peaked = flat.clone()
    peaked[:, 5] = 1.0
    found = method.findings(TrainingBatch(None, {"targets": targets, "prior": flat}))
    assert found == pytest.approx({"guidance_entropy": 1.0, "guidance_peak_to_mean": 1.0})
    found = method.findings(TrainingBatch(None, {"targets": targets, "prior": peaked}))
    assert found["guidance_entropy"] == pytest.approx(0.0, abs=1e-5)
    assert found["guidance_peak_to_mean"] == pytest.approx(targets.shape[2], rel=1e-3)
    half = torch.cat(
        [
            torch.zeros(2, targets.shape[2] // 2),
            torch.ones(2, targets.shape[2] - targets.shape[2] // 2),
        ],
        1,
    )
    found = method.findings(TrainingBatch(None, {"targets": targets, "prior": half}))
    known = math.log(targets.shape[2] - targets.shape[2] // 2) / math.log(targets.shape[2])
    assert found["guidance_entropy"] == pytest.approx(known, abs=1e-5)
    assert (
        agpnet(feature_noise="none", image_noise="none").findings(
            TrainingBatch(None, {"targets": targets})
        )
        == {}
    )
