"""A small `guided`, and what it does in float64, one picture, place and head at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from naive import f64, gelu, layer_normed
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import Backbone, build
from blemish.methods.guided import Guided
from blemish.methods.guided_config import GuidedConfig
from blemish.methods.learner import TrainingBatch
from blemish.types import Batch, silent

Part = Callable[..., np.ndarray]
SIDE = 32
HALF = torch.full((3, 1, 1), 0.5)  # mean and standard deviation of the test backbone
SMALL: dict[str, Any] = {
    "backbone": "test_vit",
    "image_size": (SIDE,),
    "layers": (2, 4),
    "train_batch_size": 4,
}
TINY = {**SMALL, "guide_layers": (6,), "bank_size": 0, "zoom": 1.0}
WHOLE = GuidedConfig(map_head="features", score="both", trainable_blocks=4)
FIT: dict[str, Any] = {
    **SMALL,
    "weights": "random",
    "device": "cpu",
    "precision": "fp32",
    "epochs": 1,
    "min_steps": 6,
    "zoom": 1.0,
}
WITH_SCALES = {**FIT, "calibration_fraction": 0.2, "scales": (32, 48)}


def sharp(name: str = "test_vit", **options: Any) -> Backbone:
    """One whose [CLS] token looks at some patches more: with random weights it hardly does."""
    backbone = build(name, **{"weights": "random", "seed": 3, **options})
    with torch.no_grad():
        for block in backbone.model.blocks:  # type: ignore[union-attr]
            block.attn.qkv.weight[:128] *= 12
    return backbone


def guided(base: GuidedConfig | None = None, **settings: Any) -> Guided:
    """A small one, with heads that say something, and as if it had been fitted without a bank."""
    method = Guided(replace(base or WHOLE, **(TINY | settings)), sharp()).eval()
    method.normal = torch.tensor([[0.0], [1.0]])
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if not name.startswith("backbone."):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    method.prepare_training()
    return method


def pictures(count: int = 2, seed: int = 0, side: int = SIDE) -> Tensor:
    """Normalised noise, dark to bright."""
    generator = torch.Generator().manual_seed(seed)
    bright = torch.linspace(0.3, 1, count)[:, None, None, None]
    pixels = torch.rand(count, 3, side, side, generator=generator) * bright
    return (pixels - HALF) / HALF


def smaller(images: Tensor) -> Tensor:
    return F.interpolate(
        images, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True
    )


def batch_of(method: Guided, images: Tensor) -> TrainingBatch:
    return TrainingBatch(images, method.encode(images))


def train(method: Guided, batch: TrainingBatch, steps: int) -> list[float]:
    """What the engine does, with the same draws in every step: the losses."""
    method.start_training(batch)
    optimizer = method.optimizer()
    rates = [group["lr"] for group in optimizer.param_groups]
    method.train()
    losses = []
    for step in range(steps):
        torch.manual_seed(0)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * method.learning_rate_factor(step / steps)
        loss = method.training_step(batch, step / steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        method.after_step(step + 1, steps)
        losses.append(loss.item())
    method.eval()
    method.end_training(steps)
    return losses


def naive_odds(logits: np.ndarray) -> np.ndarray:
    return np.array([math.log(sum(map(math.exp, row[1:]))) - row[0] for row in logits])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def attention_of(backbone: Backbone, images: Tensor, layer: int) -> np.ndarray:
    """B L N: the [CLS] row of each head, renormalised over the patches."""
    full = f64(backbone(images, (layer,), full_attention=(layer,)).full_attention[layer])
    rows = np.empty((*full.shape[:2], full.shape[2] - 1))
    for picture, head in np.ndindex(*full.shape[:2]):
        row = full[picture, head, 0, 1:]
        rows[picture, head] = row / sum(row)
    return rows


def looked(method: Guided, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Class logits B K and map logits B h w."""
    depth, norm = method.backbone.depth, method.backbone.model.norm
    seen = method.backbone(images, (*method.map_layers, depth))
    state = {name: f64(tensor) for name, tensor in method.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(state[f"{name}.weight"] @ x + state[f"{name}.bias"])

    logits, maps = [], []
    attention = attention_of(method.backbone, images, depth)
    for picture, heads in enumerate(attention):
        if method.class_head is not None:
            x = layer_normed(f64(seen.cls[-1][picture]), f64(norm.weight), f64(norm.bias), norm.eps)
            x = gelu(linear("class_head.layers.2", gelu(linear("class_head.layers.0", x))))
            x = linear("class_head.layers.4", x)
            logits.append(linear("class_head.last", x / math.sqrt(x @ x)))
        marks = np.zeros(heads.shape[1])
        for place in range(len(marks)):
            if method.attention_mix is not None:
                marks[place] = state["attention_mix.bias"]
                for head, row in enumerate(heads):
                    marks[place] += state["attention_mix.weights"][head] * len(marks) * row[place]
            if method.segmentation_head is not None:
                tokens = [layer_normed(f64(each[picture, place])) for each in seen.tokens[:-1]]
                hidden = gelu(linear("segmentation_head.inward", np.concatenate(tokens)))
                marks[place] += linear("segmentation_head.outward", hidden)[0]
        maps.append(marks.reshape(seen.grids[0]))
    return np.stack(logits) if logits else np.empty(0), np.stack(maps)


def summarised(images: Tensor, **settings: Any) -> Guided:
    method = guided(**settings)
    method.summarise(lambda: batches(images), 0, silent)
    return method


def batches(images: Tensor, size: int = 5) -> list[Batch]:
    """Of `size` pictures at most, each its own."""
    parts = torch.split(images, size), torch.split(torch.arange(len(images)), size)
    return [Batch(*pair) for pair in zip(*parts, strict=True)]


def odds_of(method: Guided, images: Tensor) -> np.ndarray:
    found = method.examine(images).odds
    assert found is not None
    return f64(found)


def entropies_of(method: Guided, images: Tensor) -> np.ndarray:
    found = method.examine(images).entropies
    assert found is not None
    return f64(found)


def taken(few: list[Tensor], images: Tensor) -> list[int]:
    """Which of `images` are among `few`."""
    found = [(images == each).flatten(1).all(1).nonzero() for part in few for each in part]
    return [int(each[0]) for each in found]


def described(method: Guided, images: Tensor) -> np.ndarray:
    """B N D of length 1: the mean of the normalised layers and of the neighbours that there are."""
    seen = method.backbone(images, method.map_layers)
    grid = seen.grids[0]
    result = np.zeros((len(images), *grid, 64))
    for picture, row, column in np.ndindex(*result.shape[:3]):
        near = [
            layer_normed(f64(tokens[picture, y * grid[1] + x]))
            for y, x in np.ndindex(*grid)
            if abs(y - row) <= 1 and abs(x - column) <= 1
            for tokens in seen.tokens
        ]
        result[picture, row, column] = sum(near) / math.sqrt(sum(sum(near) ** 2))
    return result.reshape(len(images), -1, 64)
