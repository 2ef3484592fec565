"""UniAD's parts in float64 loops written from its equations, and its learning."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from naive import f64, layer_normed, upsampled
from plain_vit import (
    GRID,
    HEIGHT,
    WIDTH,
    backbone_of,
    linear,
    losses_of_learning,
    pictures,
    shaken,
    state_of,
)

from blemish.errors import ConfigError
from blemish.methods.learner import TrainingBatch
from blemish.methods.queries import neighbour_mask
from blemish.methods.uniad import UniAD, UniADConfig

TINY: dict[str, Any] = {
    "backbone": "test_vit",
    "image_size": (HEIGHT, WIDTH),
    "layers": (2, 4),
    **{"width": 16, "heads": 4, "hidden": 24, "depth": 2, "dropout": 0.0, "neighbours": 3},
}
State = dict[str, np.ndarray]


def uniad(**settings: Any) -> UniAD:
    config = replace(UniADConfig.paper(), **(TINY | settings))
    method = UniAD(config, backbone_of(config.backbone)).eval()
    shaken(method.decoder)
    return method


def sees(one: int, other: int, side: int) -> bool:
    """Whether a place of `GRID` looks at another: not where that lies in the square around it."""
    (y, x), (v, u) = divmod(one, GRID[1]), divmod(other, GRID[1])
    return max(abs(y - v), abs(x - u)) > side // 2


def attended(state: State, name: str, queries: State, keys: np.ndarray) -> np.ndarray:
    """Masked attention, head by head and place by place; keys are looked at with their places."""
    places, heads = queries["places"], 4
    q = linear(state, f"{name}.query", queries["x"] + places)
    k = (keys + places) @ state[f"{name}.key.weight"].T
    v = linear(state, f"{name}.value", keys)
    wide, mixed = q.shape[1] // heads, np.zeros(q.shape)
    for head, place in np.ndindex(heads, len(q)):
        own = slice(head * wide, (head + 1) * wide)
        seen = [other for other in range(len(k)) if sees(place, other, 3)]
        weights = np.array([math.exp(q[place, own] @ k[at, own] / wide**0.5) for at in seen])
        mixed[place, own] = (weights / weights.sum()) @ v[seen][:, own]
    return linear(state, f"{name}.out", mixed)


def normed(state: State, name: str, x: np.ndarray) -> np.ndarray:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return np.stack([layer_normed(row, weight, bias) for row in x])


def layer_of(
    state: State, name: str, x: np.ndarray, memories: list[np.ndarray], places: Any
) -> Any:
    for number, memory in enumerate(memories):
        given = attended(state, f"{name}.attentions.{number}", {"x": x, "places": places}, memory)
        x = normed(state, f"{name}.norms.{number}", x + given)
    inner = np.maximum(linear(state, f"{name}.hidden", x), 0)
    return normed(state, f"{name}.norms.{len(memories)}", x + linear(state, f"{name}.out", inner))


def reconstructed(method: UniAD, features: np.ndarray) -> np.ndarray:
    """What the transformer gives of one picture's N C."""
    state = state_of(method.decoder)
    pairs = [divmod(place, GRID[1]) for place in range(GRID[0] * GRID[1])]
    places = np.array([[*state["columns"][x], *state["rows"][y]] for y, x in pairs])
    x = linear(state, "inward", features)
    for number in range(2):
        x = layer_of(state, f"encoder.{number}", x, [x], places)
    memory = x
    for number in range(2):
        queries = state[f"queries.{number}"]
        x = layer_of(state, f"decoder.{number}", queries, [memory, x], places)
    return linear(state, "outward", normed(state, "norm", x))


def joined(method: UniAD) -> np.ndarray:
    """The layers of the ViT, normalised and averaged: B N C."""
    layers = [f64(each) for each in method.backbone(pictures(), method.layers).tokens]
    return np.stack(
        [np.mean([[layer_normed(row) for row in own[b]] for own in layers], 0) for b in range(2)]
    )


def test_the_transformer_is_its_equations() -> None:
    method = uniad()
    features = joined(method)
    encoded = method.encode(pictures())["features"]
    np.testing.assert_allclose(f64(encoded), features, rtol=1e-4, atol=1e-5)
    expected = [reconstructed(method, own) for own in features]
    np.testing.assert_allclose(f64(method.decoder(encoded)), expected, rtol=1e-3, atol=1e-3)


def test_dropout_is_on_while_it_learns_alone() -> None:
    method = uniad(dropout=0.5)
    features = method.encode(pictures())["features"]
    assert torch.equal(method.decoder(features), method.decoder(features))
    method.decoder.train()
    assert not torch.allclose(method.decoder(features), method.decoder(features))


@pytest.mark.parametrize(("grid", "side"), [((4, 3), 3), ((9, 8), 7), ((5, 5), 1)])
def test_no_place_sees_its_neighbours(grid: tuple[int, int], side: int) -> None:
    mask = neighbour_mask(grid, side)
    for one, other in np.ndindex(*mask.shape):
        (y, x), (v, u) = divmod(one, grid[1]), divmod(other, grid[1])
        near = max(abs(y - v), abs(x - u)) <= side // 2
        assert float(mask[one, other]) == (-math.inf if near else 0)


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 2), (3, 3), (4, 4), (2, 7), (6, 7)])
def test_every_place_sees_something(grid: tuple[int, int]) -> None:
    assert bool((neighbour_mask(grid, 7) == 0).any(1).all())


def test_the_loss_and_the_parameters_after_one_step() -> None:
    """The last matrix, linear in what is given: its gradient by hand, then AdamW's first step."""
    method = uniad(learning_rate=3e-3, weight_decay=0.1)
    encoded = method.encode(pictures())
    features = f64(encoded["features"])
    last, inner = method.decoder.outward, list[torch.Tensor]()
    last.register_forward_hook(lambda module, given, result: inner.append(given[0]))
    torch.manual_seed(5)
    noise = f64(torch.randn_like(encoded["features"]))
    jittered = features.copy()
    for b, n in np.ndindex(*features.shape[:2]):
        length = math.sqrt(features[b, n] @ features[b, n])
        jittered[b, n] += 20 * length / features.shape[2] * noise[b, n]
    apart = np.array([reconstructed(method, own) for own in jittered]) - features
    before, optimizer = f64(last.weight), method.optimizer()
    torch.manual_seed(5)
    loss = method.training_step(TrainingBatch(None, encoded), 0.5)
    assert loss.item() == pytest.approx((apart**2).mean(), rel=1e-4)
    loss.backward()
    gradient = 2 / apart.size * np.einsum("bnc,bnw->cw", apart, f64(inner[0]))
    assert last.weight.grad is not None
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(f64(last.weight.grad), gradient, rtol=1e-2, atol=1e-4 * scale)
    optimizer.step()
    stepped = before * (1 - 3e-3 * 0.1) - 3e-3 * gradient / (np.abs(gradient) + 1e-8)
    certain = np.abs(gradient) > 1e-2 * scale
    np.testing.assert_allclose(f64(last.weight)[certain], stepped[certain], atol=1e-6)


def test_the_map_and_the_score() -> None:
    method = uniad(score_window=0.25)
    method.end_training(1)
    features = joined(method)
    apart = np.array([reconstructed(method, own) for own in features]) - features
    raw = np.sqrt((apart**2).sum(2)).reshape(2, *GRID)
    got = f64(method.anomaly_map(method.see(pictures()), pictures()))
    np.testing.assert_allclose(got, raw, rtol=1e-3)
    scores = method.score(pictures())
    for picture in range(2):
        plane = upsampled(raw[picture], HEIGHT // 4, WIDTH // 4)
        means = [plane[y : y + 4, x : x + 4].mean() for y, x in np.ndindex(13, 9)]
        assert scores.image[picture].item() == pytest.approx(max(means), rel=1e-3)
    assert not method.scores_by_map


def test_a_cnn_is_read_on_its_coarsest_grid() -> None:
    config = {"backbone": "test_resnet", "image_size": (64, 96), "layers": (1, 2, 3)}
    method = uniad(**config)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    seen = method.see(images)
    found = method.joined(seen)
    assert method.grid == (4, 6) == seen.grids[2]
    assert found.shape[2] == sum(tokens.shape[2] for tokens in seen.tokens)
    assert torch.equal(found[:, :, -seen.tokens[2].shape[2] :], seen.tokens[2])  # as they are


def test_it_learns() -> None:
    method = uniad(learning_rate=3e-3)
    losses = losses_of_learning(method, 30)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_the_paper_recipe() -> None:
    paper = UniADConfig.paper()
    assert (paper.backbone, paper.image_size, paper.epochs) == ("efficientnet_b4", (224,), 1000)
    assert (paper.width, paper.heads, paper.hidden, paper.depth) == (256, 8, 1024, 4)
    assert (paper.neighbours, paper.jitter, paper.dropout) == (7, 20.0, 0.1)
    method = uniad()
    factors = [method.learning_rate_factor(at) for at in (0, 0.5, 0.79, 0.8, 0.99)]
    assert factors == [1, 1, 1, 0.1, 0.1]
    assert method.clip_norm == 0.1


def test_heads_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"width: an even multiple of heads \(8\) is needed"):
        UniADConfig(width=100)
