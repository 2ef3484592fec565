"""Dinomaly's parts in float64 loops written from its equations, and its learning."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive import f64, gelu
from parts import Part, settings_of
from plain_vit import (
    backbone_of,
    block,
    distances,
    linear,
    losses_of_learning,
    pictures,
    shaken,
    state_of,
)
from torch import Tensor

import blemish
from blemish import artifact
from blemish.backbones import build
from blemish.errors import ConfigError
from blemish.losses.loose import loose_cosine
from blemish.methods.dinomaly import Dinomaly, DinomalyConfig
from blemish.methods.learner import TrainingBatch
from blemish.training.checkpoint import _check_state

TINY: dict[str, Any] = {
    "backbone": "test_vit",
    "image_size": (64, 48),
    "layers": (1, 2, 4),
    "depth": 3,
}


def dinomaly(**settings: Any) -> Dinomaly:
    config = replace(DinomalyConfig.paper(), **(TINY | settings))
    method = Dinomaly(config, backbone_of(config.backbone)).eval()
    shaken(method.decoder)
    return method


def layers_of(method: Dinomaly, images: Tensor) -> list[np.ndarray]:
    return [f64(layer) for layer in method.backbone(images, method.layers).tokens]


def decoded(method: Dinomaly, layers: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What is given and what is wanted, B G N D, each the mean of its layers."""
    count, depth, heads = len(layers), method.config.depth, method.backbone.heads
    state, given, wanted = state_of(method.decoder), [], []
    sizes = [count // method.groups + (g < count % method.groups) for g in range(method.groups)]
    blocks = [depth // method.groups + (g < depth % method.groups) for g in range(method.groups)]
    for picture in range(len(layers[0])):
        own = [layer[picture] for layer in layers]
        x = sum(own) / count
        inside = np.stack([gelu(row) for row in linear(state, "hidden", x)])
        x = linear(state, "out", inside)
        outputs = []
        for number in range(depth):
            prefix = f"layers.{number}."
            part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            x = block(part, x, heads, "elu", 1e-8)
            outputs.insert(0, x)  # the last one first
        targets, results = list(own), list(outputs)
        wanted.append([np.mean([targets.pop(0) for _ in range(size)], 0) for size in sizes])
        given.append([np.mean([results.pop(0) for _ in range(size)], 0) for size in blocks])
    return np.array(given), np.array(wanted)


def apart(given: np.ndarray, wanted: np.ndarray) -> float:
    """Mean over pictures and groups of one less the cosine of whole maps."""
    total = 0.0
    for place in np.ndindex(*given.shape[:2]):
        a, b = given[place].ravel(), wanted[place].ravel()
        total += 1 - a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)
    return total / (given.shape[0] * given.shape[1])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("groups", "depth"), [(2, 3), (2, 4), (1, 2), (3, 1)])
def test_the_decoder_is_its_equations(groups: int, depth: int, training: bool) -> None:
    method = dinomaly(groups=groups, depth=depth, dropout=0.0)
    assert method.groups == min(groups, depth)
    given, wanted = decoded(method, layers_of(method, pictures()))
    targets = method.encode(pictures())["targets"]
    cosines = [
        abs(np.vdot(f64(one), other)) / np.linalg.norm(f64(one)) / np.linalg.norm(other)
        for one, other in zip(targets, wanted, strict=True)
        for one, other in zip(one, other, strict=True)
    ]
    np.testing.assert_allclose(cosines, 1, rtol=1e-6)  # sums of layers, where means are meant
    method.decoder.train(training)
    got = f64(method.decoder(method._shown(targets)))
    for group in range(method.groups):
        blocks = depth // method.groups + (group < depth % method.groups)
        expected = given[:, group] * blocks
        np.testing.assert_allclose(got[:, group], expected, rtol=1e-3, atol=2e-4)


def test_the_loss_of_a_step_is_that_of_the_definition() -> None:
    method = dinomaly(dropout=0.0)
    method.decoder.train()
    batch = TrainingBatch(None, method.encode(pictures()))
    expected = apart(*decoded(method, layers_of(method, pictures())))
    for fraction in (0.0, 0.5):  # what is spared changes the gradient alone
        assert method.training_step(batch, fraction).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("fraction", "easy"), [(0.0, 0.0), (0.05, 0.45), (0.1, 0.9), (0.7, 0.9)])
def test_the_share_that_is_spared_rises_in_the_first_tenth(
    fraction: float, easy: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, asked = dinomaly(), []

    def watched(given: Tensor, wanted: Tensor, *, easy: float) -> Tensor:
        asked.append(easy)
        return loose_cosine(given, wanted, easy=easy)

    monkeypatch.setattr("blemish.methods.dinomaly.loose_cosine", watched)
    method.training_step(TrainingBatch(None, method.encode(pictures())), fraction)
    assert asked == pytest.approx([easy])


def test_the_parameters_after_one_step() -> None:
    """The last matrix of the last block, linear in what the loss sees: its gradient by hand, from
    the loose loss's, then StableAdamW's first step by hand."""
    method = dinomaly(dropout=0.0, groups=1, depth=1, weight_decay=0.1)
    batch = TrainingBatch(None, method.encode(pictures()))
    inner: list[Tensor] = []
    last = method.decoder.layers[0].out  # type: ignore[union-attr]
    assert isinstance(last, torch.nn.Linear)
    last.register_forward_hook(lambda module, given, result: inner.append(given[0]))
    given, wanted = (each[:, 0] for each in decoded(method, layers_of(method, pictures())))
    slope, places = np.empty(given.shape), {}
    for b in range(2):
        a, w = given[b].ravel(), wanted[b].ravel()
        length, other = math.sqrt(a @ a), math.sqrt(w @ w)
        cosine = a @ w / length / other
        slope[b] = (-(w / other - cosine * a / length) / length / 2).reshape(given[b].shape)
        for n in range(given.shape[1]):
            p, q = given[b, n], wanted[b, n]
            places[b, n] = 1 - p @ q / math.sqrt(p @ p) / math.sqrt(q @ q)
    for place in sorted(places, key=lambda each: places[each])[: math.floor(0.9 * len(places))]:
        slope[place] *= 0.1
    before, optimizer = f64(last.weight), method.optimizer()
    method.training_step(batch, 0.5).backward()
    gradient = np.einsum("bnd,bnw->dw", slope, f64(inner[0]))
    assert last.weight.grad is not None
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(f64(last.weight.grad), gradient, rtol=1e-2, atol=1e-4 * scale)
    optimizer.step()
    # At the first step both averages, corrected for their start at 0, are the gradient and its
    # square: a step is its sign, and the clip of the update is 1.
    stepped = before * (1 - 2e-3 * 0.1) - 2e-3 * np.sign(gradient)
    certain = np.abs(gradient) > 1e-2 * scale
    assert certain.mean() > 0.5
    np.testing.assert_allclose(f64(last.weight)[certain], stepped[certain], atol=1e-6)


def test_the_map_and_the_score() -> None:
    method = dinomaly(smoothing=0.0, top_fraction=0.25)
    method.end_training(1)
    got = method.anomaly_map(method.see(pictures(3)), pictures(3))
    expected = distances(*decoded(method, layers_of(method, pictures(3))))
    np.testing.assert_allclose(f64(got), expected, rtol=1e-3)
    scores = method.score(pictures(3))
    flat = np.sort(f64(scores.maps).reshape(3, -1))
    np.testing.assert_allclose(f64(scores.image), flat[:, -48:].mean(1), rtol=1e-5)


def test_the_bottleneck_is_noisy_while_training_and_only_then() -> None:
    method = dinomaly(dropout=0.5)
    features = method._shown(method.encode(pictures())["targets"])
    decoder = method.decoder
    assert torch.equal(decoder.bottleneck(features), decoder.bottleneck(features))
    decoder.train()
    noisy = decoder.bottleneck(features)
    assert 0.4 < float((noisy == 0).float().mean()) < 0.6  # after it
    inner: list[Tensor] = []
    decoder.hidden.register_forward_hook(lambda module, given, result: inner.append(given[0]))
    decoder.out.register_forward_hook(lambda module, given, result: inner.append(given[0]))
    decoder.bottleneck(features)
    for each in inner:  # before it, and within it
        assert 0.4 < float((each == 0).float().mean()) < 0.6


def test_the_schedule_is_the_papers() -> None:
    factor = dinomaly().learning_rate_factor
    points = [factor(step / 10_000) * 2e-3 for step in (0, 50, 100, 5_050, 9_999)]
    assert points == pytest.approx([2e-5, 1.01e-3, 2e-3, 1.1e-3, 2e-4], rel=1e-3)


def test_it_starts_as_the_implementation_does() -> None:
    config = replace(DinomalyConfig.paper(), **TINY)
    before = torch.get_rng_state()
    one, same = (Dinomaly(config, backbone_of("test_vit")).decoder for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = torch.cat([each.detach().flatten() for each in one.parameters() if each.ndim == 2])
    assert float(weights.abs().max()) <= 0.03
    assert float(weights.std()) == pytest.approx(0.00987, rel=0.02)  # of 0.01, cut off at 3 σ
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), same.parameters(), strict=True))


def test_learning_brings_good_pictures_closer_and_reaches_all_of_the_decoder() -> None:
    losses = losses_of_learning(dinomaly(dropout=0.1), 60)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(12, (3, 4, 5, 6, 7, 8, 9, 10)), (24, (5, 7, 9, 11, 13, 15, 17, 19)), (6, (2, 3, 4, 5))],
)
def test_it_reads_the_middle(
    depth: int, layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = build("test_vit", weights="random")
    monkeypatch.setattr(backbone, "depth", depth)
    monkeypatch.setattr(backbone, "blocks", tuple(range(1, depth + 1)))
    assert Dinomaly.usual_layers(backbone) == layers


def test_the_published_settings() -> None:
    published = {
        "backbone": "dinov2_vitb14_reg",
        "min_steps": 10_000,
        "train_batch_size": 16,
        "learning_rate": 2e-3,
        "weight_decay": 1e-4,
        "groups": 2,
        "depth": 8,
        "dropout": 0.2,
        "spared": 0.9,
        "top_fraction": 0.01,
    }
    paper = DinomalyConfig.paper()
    assert {name: getattr(paper, name) for name in published} == published


def test_a_cnn_is_refused() -> None:
    config = DinomalyConfig(backbone="test_resnet", image_size=(64,))
    with pytest.raises(ConfigError, match="dinomaly needs a ViT, which test_resnet is not"):
        Dinomaly(config, backbone_of("test_resnet"))


def test_an_interrupted_training_goes_on_to_the_same_weights(
    picture: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second moments' maxima, too, are in the checkpoint."""
    monkeypatch.setattr("blemish.training.loop.BETWEEN_CHECKPOINTS", 0.0)
    options = {**settings_of("dinomaly"), "calibration_fraction": 0, "min_steps": 6}
    good, place = [picture(seed) for seed in range(9)], tmp_path / "x.training"
    whole = blemish.fit("dinomaly", good, **options)

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("training") and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blemish.fit("dinomaly", good, checkpoint=place, progress=stop, **options)
    assert any(name.endswith(".max_exp_avg_sq") for name in artifact.read(place)[0])
    again = blemish.fit("dinomaly", good, checkpoint=place, resume=True, **options)
    assert again.manifest["training"]["resumed_at"] == 4
    for name, tensor in whole.method.state_dict().items():
        assert torch.equal(tensor, again.method.state_dict()[name]), name


def test_a_checkpoint_without_the_maxima_is_refused() -> None:
    optimizer = dinomaly().optimizer()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = {number: dict(each) for number, each in optimizer.state_dict()["state"].items()}
    _check_state(state, optimizer)
    del state[1]["max_exp_avg_sq"]
    with pytest.raises(ValueError, match=r"optimizer\.1 is not the state of a parameter"):
        _check_state(state, optimizer)
