"""ViTAD's parts in float64 loops written from its equations, and its learning."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from naive import f64, upsampled
from plain_vit import (
    HEIGHT,
    WIDTH,
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

from blemish.errors import ConfigError
from blemish.methods.learner import TrainingBatch
from blemish.methods.vitad import ViTAD, ViTADConfig

TINY: dict[str, Any] = {
    "backbone": "test_vit",
    "image_size": (HEIGHT, WIDTH),
    "layers": (1, 2, 3, 6),
    "depth": 6,
}


def vitad(**settings: Any) -> ViTAD:
    config = replace(ViTADConfig.paper(), **(TINY | settings))
    method = ViTAD(config, backbone_of(config.backbone)).eval()
    shaken(method.decoder)
    return method


def decoded(method: ViTAD, images: Tensor, after: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What is given and what is wanted, B T N D.

    Args: after: layer to be given back -> the number of the block whose output it is.
    """
    layers = {
        layer: f64(tokens)
        for layer, tokens in zip(
            method.layers, method.backbone(images, method.layers).tokens, strict=True
        )
    }
    state, given = state_of(method.decoder), []
    for picture in range(len(images)):
        x = linear(state, "fusion", layers[method.layers[-1]][picture]) + state["positions"]
        outputs = {}
        for number in range(method.config.depth):
            prefix = f"layers.{number}."
            part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            x = outputs[number + 1] = block(part, x, method.backbone.heads, "softmax", 1e-6)
        given.append([outputs[number] for number in after.values()])
    return np.array(given), np.stack([layers[layer] for layer in after], 1)


AFTER = {1: 6, 2: 4, 3: 2}  # of TINY: the deepest layer first


@pytest.mark.parametrize(
    ("settings", "after"),
    [
        ({}, AFTER),
        ({"layers": (2, 4), "depth": 2}, {2: 2}),
        ({"layers": (3,), "depth": 1}, {3: 1}),
        ({"depth": 1}, {1: 1, 2: 1, 3: 1}),
        ({"depth": 4}, {1: 4, 2: 3, 3: 2}),
    ],
)
def test_the_decoder_is_its_equations(settings: dict[str, Any], after: dict[int, int]) -> None:
    method = vitad(**settings)
    given, wanted = decoded(method, pictures(), after)
    encoded = method.encode(pictures())
    np.testing.assert_allclose(f64(encoded["targets"]), wanted, rtol=1e-6)
    np.testing.assert_allclose(f64(method.decoder(encoded["last"])), given, rtol=1e-3, atol=1e-4)


def test_the_published_decoder_is_symmetrical() -> None:
    method = vitad(layers=(1, 2, 4, 6), depth=9)
    assert method.decoder.ends == [9, 6, 3]


def test_the_loss_of_a_step_is_that_of_the_definition() -> None:
    method = vitad()
    given, wanted = decoded(method, pictures(), AFTER)
    expected = 0.0
    for b, t in np.ndindex(*given.shape[:2]):
        one, other = given[b, t].ravel(), wanted[b, t].ravel()
        cosine = one @ other / math.sqrt(one @ one) / math.sqrt(other @ other)
        expected += (1 - cosine) / len(given)  # the sum over the three, the mean over pictures
    batch = TrainingBatch(None, method.encode(pictures()))
    assert method.training_step(batch, 0.3).item() == pytest.approx(expected, rel=1e-4)


def test_the_parameters_after_one_step() -> None:
    """The last matrix of the last block, linear in what the loss sees: the cosine's gradient by
    hand, then AdamW's first step by hand."""
    method = vitad(layers=(2, 4), depth=1, learning_rate=3e-3, weight_decay=0.1)
    batch = TrainingBatch(None, method.encode(pictures()))
    last = method.decoder.layers[0].out  # type: ignore[union-attr]
    assert isinstance(last, torch.nn.Linear)
    inner: list[Tensor] = []
    last.register_forward_hook(lambda module, given, result: inner.append(given[0]))
    given, wanted = (each[:, 0] for each in decoded(method, pictures(), {2: 1}))
    slope = np.empty(given.shape)
    for b in range(2):
        one, other = given[b].ravel(), wanted[b].ravel()
        length = math.sqrt(one @ one)
        cosine = one @ other / length / math.sqrt(other @ other)
        across = other / math.sqrt(other @ other) - cosine * one / length
        slope[b] = (-across / length / 2).reshape(given[b].shape)
    before, optimizer = f64(last.weight), method.optimizer()
    method.training_step(batch, 0.5).backward()
    gradient = np.einsum("bnd,bnw->dw", slope, f64(inner[0]))
    assert last.weight.grad is not None
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(f64(last.weight.grad), gradient, rtol=1e-2, atol=1e-4 * scale)
    optimizer.step()
    stepped = before * (1 - 3e-3 * 0.1) - 3e-3 * gradient / (np.abs(gradient) + 1e-8)
    certain = np.abs(gradient) > 1e-2 * scale
    assert certain.mean() > 0.5
    np.testing.assert_allclose(f64(last.weight)[certain], stepped[certain], atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_map_and_the_score(smoothing: float) -> None:
    method = vitad(smoothing=smoothing, score_window=0.25)
    method.end_training(1)
    raw = distances(*decoded(method, pictures(), AFTER))
    np.testing.assert_allclose(
        f64(method.anomaly_map(method.see(pictures()), pictures())), raw, rtol=1e-3
    )
    scores = method.score(pictures())
    for picture in range(2):
        plane = f64(scores.maps[picture])  # smoothed, of which the score is made
        if smoothing == 0:
            expected = upsampled(raw[picture], HEIGHT // 4, WIDTH // 4)
            np.testing.assert_allclose(plane, expected, rtol=1e-3)
        means = np.lib.stride_tricks.sliding_window_view(plane, (4, 4)).mean((2, 3))
        assert scores.image[picture].item() == pytest.approx(means.max(), rel=1e-4)
    assert not method.scores_by_map
    assert vitad(score_window=0.0).scores_by_map


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        ("step", {0.0: 1, 0.79: 1, 0.8: 0.1, 0.99: 0.1}),
        ("cosine", {0.0: 0.03, 0.015: 0.515, 0.03: 1, 0.515: 0.55, 1.0: 0.1}),
    ],
)
def test_the_schedules(schedule: str, points: dict[float, float]) -> None:
    factor = vitad(schedule=schedule).learning_rate_factor
    assert [factor(fraction) for fraction in points] == pytest.approx(list(points.values()))


def test_it_starts_as_the_implementation_does() -> None:
    config = replace(ViTADConfig.paper(), **TINY)
    before = torch.get_rng_state()
    one, same = (ViTAD(config, backbone_of("test_vit")).decoder for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = torch.cat(
        [each.detach().flatten() for each in one.layers.parameters() if each.ndim == 2]
    )
    assert float(weights.std()) == pytest.approx(0.02, rel=0.02)
    assert float(one.positions.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), same.parameters(), strict=True))


def test_learning_brings_good_pictures_closer_and_reaches_all_of_the_decoder() -> None:
    losses = losses_of_learning(vitad(learning_rate=2e-3), 40)
    assert losses[-1] < 0.5 * losses[0]


def test_it_reads_quarters_of_the_depth() -> None:
    backbone = backbone_of("test_vit")
    assert backbone.depth == 6
    assert ViTAD.usual_layers(backbone) == (2, 3, 4, 6)


def test_the_published_settings() -> None:
    published = {
        "backbone": "dino_vits16",
        "image_size": (256,),
        "epochs": 100,
        "min_steps": 0,
        "train_batch_size": 8,
        "learning_rate": 1e-4,
        "weight_decay": 1e-4,
        "depth": 9,
        "schedule": "step",
        "smoothing": 4 / 256,
        "score_window": 16 / 256,
    }
    paper = ViTADConfig.paper()
    assert {name: getattr(paper, name) for name in published} == published


def test_a_cnn_is_refused() -> None:
    config = ViTADConfig(backbone="test_resnet", image_size=(64,))
    with pytest.raises(ConfigError, match="vitad needs a ViT, which test_resnet is not"):
        ViTAD(config, backbone_of("test_resnet"))
