"""A small AGPNet, and what it does in float64, one picture, place and head at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from naive import f64, layer_normed
from torch import Tensor

from blemish.backbones import Backbone, build
from blemish.methods.agpnet import AGPNet, AGPNetConfig
from blemish.methods.learner import TrainingBatch

HEIGHT = 64
WIDTH = 48
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
    """The paper's recipe, small, with a decoder whose attention is far from uniform."""
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


def min_max(row: np.ndarray) -> np.ndarray:
    low, high = min(row), max(row)
    return np.array([0.0 if high == low else (value - low) / (high - low) for value in row])


def attention_of(x: np.ndarray, qkv: np.ndarray, heads: int, *, softmax: bool) -> np.ndarray:
    """The N×N matrix of each head, rows of sum 1, for q, k, v of N locations side by side."""
    count, width = x.shape
    size = width // heads
    matrices = np.empty((heads, count, count))
    for head, i, j in np.ndindex(heads, count, count):
        q = qkv[i, head * size : (head + 1) * size]
        k = qkv[j, width + head * size : width + (head + 1) * size]
        if softmax:
            matrices[head, i, j] = math.exp(q @ k / math.sqrt(size))
        else:
            matrices[head, i, j] = (np.maximum(q, 0) + 0.01) @ (np.maximum(k, 0) + 0.01)
    return matrices / matrices.sum(2, keepdims=True)


def decoded(method: AGPNet, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of features B N D: reconstructions B G N D, attention B M L N N (M of them), hidden B N W."""
    config = method.config
    state = {name: f64(tensor) for name, tensor in method.decoder.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(x @ state[f"{name}.weight"].T + state[f"{name}.bias"])

    def normed(name: str, x: np.ndarray) -> np.ndarray:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return np.stack([layer_normed(row, weight, bias) for row in x])

    outputs, matrices, hidden = [], [], []
    for picture in features:
        x = linear("inward", picture)
        for place, (row, column) in enumerate(np.ndindex(*method.grid)):
            x[place] += np.concatenate([state["rows"][row], state["columns"][column]])
        of_picture = []
        for layer in (f"layers.{number}" for number in range(config.depth)):
            for attention in range(config.attentions):
                name = f"{layer}.attentions.{attention}"
                qkv = linear(f"{name}.qkv", normed(f"{layer}.norms.{attention}", x))
                of_picture.append(attention_of(x, qkv, config.heads, softmax=config.softmax))
                values = np.split(qkv[:, 2 * config.width :], config.heads, axis=1)
                mixed = [a @ v for a, v in zip(of_picture[-1], values, strict=True)]
                x = x + linear(f"{name}.out", np.concatenate(mixed, axis=1))
            inside = linear(f"{layer}.hidden", normed(f"{layer}.norms.{config.attentions}", x))
            x = x + linear(f"{layer}.out", np.maximum(inside, 0))
        hidden.append(normed("norm", x))
        outputs.append(np.stack(np.split(linear("outward", hidden[-1]), method.groups, axis=1)))
        matrices.append(np.stack(of_picture))
    return np.stack(outputs), np.stack(matrices), np.stack(hidden)


def received(matrices: np.ndarray) -> np.ndarray:
    """B N: the mean over queries, heads, attentions and layers of B M L N N."""
    return np.asarray(matrices.mean(axis=(1, 2, 3)))


def distances(given: np.ndarray, targets: np.ndarray, loss: str) -> np.ndarray:
    """B G N: l2 or cosine distance of B G N D."""
    result = np.empty(given.shape[:3])
    for place in np.ndindex(*result.shape):
        a, b = given[place], targets[place]
        cosine = a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)
        result[place] = math.sqrt((a - b) @ (a - b)) if loss == "l2" else 1 - cosine
    return result


def shrunk(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with antialiasing, h w C -> height width C: a triangle as wide as the step, cut at
    the border.
    """

    def taps(new: int, old: int) -> np.ndarray:
        step = old / new
        places, olds = (np.arange(new)[:, None] + 0.5) * step, np.arange(old) + 0.5
        weights = np.maximum(0, 1 - abs(olds - places) / step)
        return np.asarray(weights / weights.sum(1, keepdims=True))

    down, across = taps(height, values.shape[0]), taps(width, values.shape[1])
    return np.einsum("yj,xi,jic->yxc", down, across, values)


def fitted(**settings: Any) -> AGPNet:
    method = agpnet(**settings)
    method.end_training(1)
    return method
