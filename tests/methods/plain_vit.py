"""A plain ViT's block in float64, one picture, head and place at a time, and pictures for it."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from naive import f64, gelu, layer_normed
from torch import Tensor, nn

from blemish.backbones import Backbone, build
from blemish.methods.learner import TrainingBatch
from blemish.methods.reconstruction import Reconstruction

HEIGHT = 64
WIDTH = 48
GRID = (4, 3)


@cache
def backbone_of(name: str) -> Backbone:
    return build(name, weights="random", seed=3)


def pictures(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def losses_of_learning(method: Reconstruction, steps: int) -> list[float]:
    """Of each step on eight pictures. All of the decoder must be reached, and nothing else."""
    batch = TrainingBatch(None, method.encode(pictures(8)))
    method.start_training(batch)
    optimizer, losses = method.optimizer(), []
    method.decoder.train()
    for step in range(steps):
        loss = method.training_step(batch, step / steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.decoder.parameters(), method.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    for parameter in method.decoder.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) > 0
    assert all(parameter.grad is None for parameter in method.backbone.parameters())
    return losses


def shaken(decoder: nn.Module) -> None:
    """Move all that is learned away from its start, where much is 0 or 1, and attention flat."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def state_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: f64(tensor) for name, tensor in module.state_dict().items()}


def linear(state: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return np.asarray(x @ state[f"{name}.weight"].T + state[f"{name}.bias"])


def elu_plus_1(values: np.ndarray) -> np.ndarray:
    return np.array([value + 1 if value > 0 else math.exp(value) for value in values])


def attended(qkv: np.ndarray, heads: int, kernel: str) -> np.ndarray:
    """What attention makes of q, k, v of N places side by side: N W."""
    count, width = len(qkv), qkv.shape[1] // 3
    size = width // heads
    mixed = np.zeros((count, width))
    for head, i in np.ndindex(heads, count):
        own = slice(head * size, (head + 1) * size)
        weights = []
        for j in range(count):
            q, k = qkv[i, :width][own], qkv[j, width : 2 * width][own]
            if kernel == "softmax":
                weights.append(math.exp(q @ k / math.sqrt(size)))
            else:
                weights.append(elu_plus_1(q) @ elu_plus_1(k))
        for j in range(count):
            mixed[i, own] += weights[j] / sum(weights) * qkv[j, 2 * width :][own]
    return mixed


def block(
    state: dict[str, np.ndarray], x: np.ndarray, heads: int, kernel: str, epsilon: float
) -> np.ndarray:
    """x N W after a block, whose tensors `state` has by name."""

    def normed(name: str, rows: np.ndarray) -> np.ndarray:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return np.stack([layer_normed(row, weight, bias, epsilon) for row in rows])

    mixed = attended(linear(state, "attentions.0.qkv", normed("norms.0", x)), heads, kernel)
    x = x + linear(state, "attentions.0.out", mixed)
    inside = linear(state, "hidden", normed("norms.1", x))
    return np.asarray(x + linear(state, "out", np.stack([gelu(row) for row in inside])))


def distances(given: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The mean over targets of the cosine distance of B T N D: B h w."""
    result = np.zeros((len(given), given.shape[2]))
    for b, t, n in np.ndindex(*given.shape[:3]):
        p, q = given[b, t, n], targets[b, t, n]
        result[b, n] += (1 - p @ q / math.sqrt(p @ p) / math.sqrt(q @ q)) / given.shape[1]
    return result.reshape(len(given), *GRID)
