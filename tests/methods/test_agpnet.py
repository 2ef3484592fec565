"""AGPNet against its equations in float64: what is learned, from what, guided by what."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from naive import f64, layer_normed, upsampled
from small_agpnet import (
    TINY,
    agpnet,
    backbone_of,
    batch_of,
    decoded,
    min_max,
    pictures,
    received,
    shrunk,
    start,
    train,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blemish.backbones import build
from blemish.errors import ConfigError
from blemish.methods.agpnet import AGPNet, AGPNetConfig
from blemish.methods.decoder import Dropout, Kernel, SelfAttention
from blemish.methods.guidance import normalise
from blemish.methods.learner import TrainingBatch

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
    moved = tuple(torch.from_numpy(layer).float() for layer in tokens)
    got = method.targets(replace(features, tokens=moved))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(f64(got), expected, atol=1e-5)


def test_targets_and_prior_of_a_cnn() -> None:
    method = agpnet(backbone="test_resnet", image_size=(64, 96), layers=(1, 2, 3), groups=2)
    images = pictures(2, height=64, width=96)
    features = method.backbone(images, (1, 2, 3))
    assert features.grids == ((16, 24), (8, 12), (4, 6))
    assert method.grid == (4, 6)
    encoded = method.encode(images)
    assert encoded["targets"].shape == (2, 1, 24, 32 + 48 + 192)
    levels = list(zip(features.tokens, features.grids, features.offsets, strict=True))
    for picture in range(2):
        joined, squares = [], []
        for tokens, grid, offset in levels:
            rows = f64(tokens[picture])
            normed = np.stack([layer_normed(row) for row in rows])
            both = np.concatenate([normed, np.square(rows).mean(1, keepdims=True)], axis=1)
            at_its_places = grid[0] / 4 * features.offsets[2]  # in its own cells
            both = upsampled(both.reshape(*grid, -1), *grid, offset, at_its_places)
            both = shrunk(both, 4, 6).reshape(24, -1)
            joined.append(both[:, :-1])
            squares.append(min_max(both[:, -1]))
        got, expected = encoded["targets"][picture, 0], np.concatenate(joined, axis=1)
        np.testing.assert_allclose(f64(got), expected, atol=2e-5)
        np.testing.assert_allclose(f64(encoded["prior"][picture]), sum(squares) / 3, atol=1e-5)


def test_the_prior_is_the_cls_row_averaged_over_heads_and_layers() -> None:
    method = agpnet(layers=(2, 4, 5))
    full = method.backbone(pictures(3), (5,), full_attention=(2, 4, 5)).full_attention
    expected = np.zeros((3, 12))
    for picture, layer in itertools.product(range(3), (2, 4, 5)):
        heads = f64(full[layer][picture])[:, 0, 1:]  # without [CLS] itself
        for row in heads:
            expected[picture] += row / sum(row) / len(heads) / 3
    np.testing.assert_allclose(f64(method.encode(pictures(3))["prior"]), expected, rtol=1e-5)
    assert np.ptp(expected, axis=1).min() > 1e-3 * expected.mean()  # or any constant would do
    assert "prior" not in agpnet(feature_noise="random", image_noise="random").encode(pictures())


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
    expected = received(matrices)
    assert expected.std(axis=1).min() > 0.05 * expected.mean()  # far from uniform, to tell apart
    got = method.decoder.attention_received(features)
    np.testing.assert_allclose(f64(got), expected, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["relu", "elu"])
@pytest.mark.parametrize(("pictures_a_step", "places"), [(2, 5), (1, 5), (1, 1)])
def test_attention_in_training_is_that_of_scoring_with_autograds_gradient(
    pictures_a_step: int, places: int, kernel: Kernel
) -> None:
    torch.manual_seed(3)
    attention = SelfAttention(8, 2, kernel).double()
    x = torch.randn(pictures_a_step, places, 8, dtype=torch.float64, requires_grad=True)
    weights, learned = torch.randn_like(x), (x, *attention.parameters())
    given, _ = attention(x)
    watched, looked = attention(x, watch=True)  # the lines of scoring, by autograd
    assert len(looked) == 1
    torch.testing.assert_close(given, watched, rtol=1e-12, atol=1e-12)
    own = torch.autograd.grad((weights * given).sum(), learned)
    expected = torch.autograd.grad((weights * watched).sum(), learned)
    for got, true in zip(own, expected, strict=True):
        assert bool(true.abs().max() > 0)
        torch.testing.assert_close(got, true, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernel", ["relu", "elu"])
def test_attention_in_training_leaves_what_it_is_given_as_it_is(kernel: Kernel) -> None:
    attention = SelfAttention(8, 1, kernel)
    joined: list[Tensor] = []
    attention.qkv.register_forward_hook(lambda module, args, result: joined.append(result))
    copies: list[Tensor] = []
    attention.qkv.register_forward_hook(
        lambda module, args, result: copies.append(result.detach().clone())
    )
    attention(torch.randn(1, 1, 8, requires_grad=True))
    assert torch.equal(joined[0], copies[0])


@pytest.mark.parametrize("kernel", ["relu", "elu"])
def test_attention_in_training_is_as_exact_in_bf16_as_autograd(kernel: Kernel) -> None:
    torch.manual_seed(4)
    attention, x = SelfAttention(64, 2, kernel), torch.randn(2, 48, 64)
    weights = torch.randn_like(x)

    def gradient(*, halved: bool, by_autograd: bool) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=halved):
            given, _ = attention(x, watch=by_autograd)
        return torch.autograd.grad((weights * given).sum(), attention.qkv.weight)[0]

    exact = gradient(halved=False, by_autograd=True)
    own, autograds = (
        float((gradient(halved=True, by_autograd=by) - exact).norm() / exact.norm())
        for by in (False, True)
    )
    assert 1e-4 < own < 1.1 * autograds < 0.1


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


@pytest.mark.parametrize("groups", [1, 2])
def test_the_linear_start_is_the_best_linear_autoencoder(groups: int) -> None:
    config = replace(AGPNetConfig.paper(), **TINY, groups=groups, start="linear")
    method = AGPNet(config, backbone_of("test_vit")).eval()
    # 64 directions, of which the first are far stronger; 32 pass.
    shape = torch.linalg.qr(torch.randn(64, 64)).Q * torch.logspace(1, -1, 64)
    common = torch.randn(20, 1, 12, 64) @ (shape @ torch.randn(64, 64) / 8) + 0.5
    targets = common * torch.tensor([1.0, -0.5])[:groups, None, None]
    targets = targets + 0.1 * torch.randn(20, groups, 12, 64)
    method.start_training(TrainingBatch(None, {"targets": targets}))
    features = f64(targets.sum(1)).reshape(-1, 64)
    directions = np.linalg.svd(features)[2][:32]
    weight = f64(method.decoder.inward.weight)
    square = 1 / np.square(features @ directions.T).mean()
    expected = square * directions.T @ directions
    np.testing.assert_allclose(weight.T @ weight, expected, atol=1e-3 * square)
    assert method.decoder.inward.bias.abs().max() == 0
    wanted = f64(targets.transpose(1, 2)).reshape(len(features), -1)
    inner = np.stack([np.append(layer_normed(weight @ row), 1) for row in features])
    best = inner @ np.linalg.lstsq(inner, wanted)[0]
    given = f64(method.decoder(targets.sum(1)).transpose(1, 2)).reshape(wanted.shape)
    error, least = (np.square(each - wanted).mean() for each in (given, best))
    # The positions, still small, are in the way of what is given and not of the best.
    assert error < 1.05 * least < 0.2 * wanted.var()


def test_the_seed_decides_the_decoder_and_nothing_else() -> None:
    before = torch.get_rng_state()
    configs = [replace(AGPNetConfig.paper(), **TINY, seed=seed) for seed in (1, 1, 2)]
    one, same, other = (AGPNet(each, backbone_of("test_vit")).decoder for each in configs)
    assert torch.equal(torch.get_rng_state(), before)
    for parameter, again in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(parameter, again)
    assert not torch.equal(one.outward.weight, other.outward.weight)


# Eq. 2: what guides the noise


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("attention", ["prior", "learned", "both"])
def test_the_guide(attention: str, softmax: bool) -> None:
    method = agpnet(attention=attention, softmax=softmax, groups=2)
    start(method)
    encoded = method.encode(pictures(3))
    targets = encoded["targets"]
    looked = received(decoded(method, f64(targets.sum(1)))[1])
    parts = [f64(encoded["prior"])] if attention != "learned" else []
    parts += [looked] if attention != "prior" else []
    guide = method._guide(targets, encoded.get("prior"))
    for picture in range(3):
        expected = min_max(sum(min_max(part[picture]) for part in parts))
        np.testing.assert_allclose(f64(guide[picture]), expected, atol=2e-3)


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
    learned, teacher = list(method.decoder.parameters()), list(method.teacher.parameters())
    expected = [f64(fast) for fast in learned]
    for step in range(1, 12):
        with torch.no_grad():
            for fast in learned:
                fast.add_(torch.randn_like(fast) * 0.1)
        method.after_step(step, 250)
        if step in (5, 10):
            pairs = zip(expected, learned, strict=True)
            expected = [decay * old + (1 - decay) * f64(new) for old, new in pairs]
        for slow, wanted in zip(teacher, expected, strict=True):
            np.testing.assert_allclose(f64(slow), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "taught"),
    [
        ({"mean_teacher": False}, False),
        ({"attention": "prior"}, False),
        ({"feature_noise": "random", "image_noise": "random"}, False),
        ({"feature_noise": "none", "image_noise": "shuffled"}, True),
    ],
)
def test_there_is_a_teacher_only_where_one_is_asked(settings: dict[str, Any], taught: bool) -> None:
    method = agpnet(**settings)
    start(method)
    assert (method.teacher is not None) == taught


def test_the_gradient_reaches_the_decoder_and_nothing_else() -> None:
    method = agpnet()
    batch = batch_of(method, pictures())
    start(method)
    (group,) = method.optimizer().param_groups
    assert list(map(id, group["params"])) == list(map(id, method.decoder.parameters()))
    method.training_step(batch, 0.9).backward()
    for parameter in method.decoder.parameters():
        assert float(parameter.grad.abs().max()) > 0
    for parameter in (*method.teacher.parameters(), *method.backbone.parameters()):
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_the_auxiliary_branch_is_gone_after_training() -> None:
    method = agpnet()
    batch = batch_of(method, pictures())
    start(method)
    assert any(name.startswith("teacher.") for name in method.state_dict())  # a checkpoint needs it
    train(method, batch, 2)
    state = method.fitted_state()
    assert {name.split(".")[0] for name in state} == {"backbone", "decoder", "steps"}
    assert method.steps.tolist() == [2]
    other = agpnet(seed=9)
    other.restore_state(state)
    assert torch.equal(other.score(pictures()).maps, method.score(pictures()).maps)


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


# Dropout from bytes


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_rate_and_the_expectation(rate: float) -> None:
    values = torch.rand(101, 997) + 0.5  # a number of elements that 8 does not divide
    given = Dropout(rate).train()(values)
    kept = given != 0
    exact = 1 - round(256 * rate) / 256
    deviation = math.sqrt(exact * (1 - exact))
    assert abs(float(kept.float().mean()) - exact) < 3 * deviation / math.sqrt(values.numel())
    torch.testing.assert_close(given[kept], values[kept] / exact)
    for axis in (0, 1):  # no row and no column is favoured
        away = float((kept.float().mean(axis) - exact).abs().max())
        assert away < 5 * deviation / math.sqrt(values.shape[axis])


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


def test_the_published_settings() -> None:
    published = {
        "backbone": "dino_vits16",
        "image_size": (224,),
        "epochs": 500,
        "train_batch_size": 32,
        "learning_rate": 1e-4,
        "weight_decay": 1e-4,
        "groups": 1,
        "width": 256,
        "depth": 4,
        "loss": "l2",
        "dropout": 0.0,
        "feature_noise": "attention",
        "image_noise": "attention",
        "attention": "both",
        "noise_low": 0.0,
        "noise_high": 1.0,
        "noise_until": 0.8,
        "beta": 0.5,
        "noise_unit": "std",
        "mean_teacher": True,
        "ema_decay": 0.9999,
        "ema_every": 10,
        "score_window": 16 / 224,
    }
    paper = AGPNetConfig.paper()
    assert {name: getattr(paper, name) for name in published} == published


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
        ({"beta": math.nan}, "beta: a finite number from 0"),
        ({"noise_until": math.nan}, "noise_until: a fraction in"),
        ({"image_share": -1.0}, "image_share: a fraction in"),
        ({"noise_low": 2.0, "noise_high": 1.0}, "0 <= low <= high, got 2.0 and 1.0"),
        ({"noise_high": math.inf}, "noise_low and noise_high"),
        ({"ema_decay": 1.0}, "ema_decay: null or a fraction in"),
        ({"epochs": 0}, "epochs: at least 1"),
        ({"learning_rate": 0.0}, "learning_rate: a positive"),
        ({"layers": (2, 9)}, "layer 9 does not exist"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agpnet(**settings)


@pytest.mark.parametrize(
    ("prior", "entropy", "peak"),
    [
        (torch.full((2, 12), 0.3), 1.0, 1.0),
        (torch.eye(12)[[5, 2]], 0.0, 12.0),
        ((torch.arange(12.0) >= 6).float().expand(2, 12), math.log(6) / math.log(12), 2.0),
    ],
    ids=["flat", "peaked", "half"],
)
def test_findings_of_guidance(prior: Tensor, entropy: float, peak: float) -> None:
    batch = TrainingBatch(None, {"targets": torch.randn(2, 1, 12, 64), "prior": prior})
    found = agpnet(attention="prior").findings(batch)
    expected = {"guidance_entropy": entropy, "guidance_peak_to_mean": peak}
    assert found == pytest.approx(expected, abs=1e-5)
    assert agpnet(feature_noise="none", image_noise="none").findings(batch) == {}
