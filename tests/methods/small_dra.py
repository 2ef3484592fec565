"""A small DRA, and its network and loss written out in float64."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from blemish.backbones import Backbone, build
from blemish.methods.dra import Dra, DraConfig
from blemish.methods.learner import TrainingBatch
from blemish.methods.openset import OpenSet

HEIGHT, WIDTH = 64, 96
TINY: dict[str, Any] = {
    **{"backbone": "test_vit", "image_size": (HEIGHT, WIDTH), "layers": (2,), "hidden": 6},
    **{"references": 3, "smoothing": 0.0},
}
Weights = dict[str, Tensor]
Made = TypeVar("Made", bound=OpenSet)


@cache
def backbone_of(name: str) -> Backbone:
    return build(name, weights="random", seed=3)


def dra(**settings: Any) -> Dra:
    """A small one; see `shaken`."""
    config = DraConfig(**(TINY | settings))
    return shaken(Dra(config, copy.deepcopy(backbone_of(config.backbone))).eval())


def shaken(method: Made) -> Made:
    """With norms and statistics that are not those of the start."""
    norm, generator = method.heads.residual[1], torch.Generator().manual_seed(5)
    assert isinstance(norm, torch.nn.BatchNorm2d)
    with torch.no_grad():
        for values in (norm.weight, norm.running_var):
            assert values is not None
            values.uniform_(0.5, 1.5, generator=generator)
        for values in (norm.bias, norm.running_mean):
            assert values is not None
            values.normal_(generator=generator)
    return method


def pictures(count: int = 3, seed: int = 0, width: int = WIDTH) -> Tensor:
    return torch.randn(count, 3, HEIGHT, width, generator=torch.Generator().manual_seed(seed))


def learned(method: Dra) -> Dra:
    """After a training of no step, on the pictures of seed 9."""
    method.start_training(TrainingBatch(pictures(5, seed=9), {}))
    method.end_training(1)
    return method


def weights_of(method: OpenSet) -> Weights:
    """In float64, without the extractor's."""
    state = method.state_dict()
    return {name: each.double() for name, each in state.items() if not name.startswith("backbone")}


# The oracle: float64, one picture and one location at a time


def halved(images: Tensor) -> Tensor:
    """Every second pixel."""
    return images[:, :, ::2, ::2]


def perceptron(weights: Weights, feature: Tensor) -> Tensor:
    """Normality of the mean feature D."""
    inner = weights["heads.normality.0.weight"] @ feature + weights["heads.normality.0.bias"]
    inner = torch.where(inner > 0, inner, 0)
    return (
        weights["heads.normality.2.weight"][0] @ inner + weights["heads.normality.2.bias"][0]
    ).abs()


def scored(weights: Weights, name: str, features: Tensor) -> Tensor:
    """|s| of features D h w: h w."""
    weight, bias = weights[f"heads.{name}.weight"][0, :, 0, 0], weights[f"heads.{name}.bias"][0]
    rows = [[(weight @ place + bias).abs() for place in row] for row in features.permute(1, 2, 0)]
    return torch.stack([torch.stack(row) for row in rows])


def convolved(weights: Weights, residuals: Tensor, *, training: bool) -> Tensor:
    """The convolution, batch norm and ReLU on residuals B D h w."""
    kernel, (count, _, height, width) = weights["heads.residual.0.weight"], residuals.shape
    padded = torch.nn.functional.pad(residuals, (1, 1, 1, 1))
    cells = [
        [(kernel * padded[n, None, :, y : y + 3, x : x + 3]).sum((1, 2, 3)) for x in range(width)]
        for n in range(count)
        for y in range(height)
    ]
    found = torch.stack([torch.stack(row) for row in cells]).reshape(count, height, width, -1)
    mean, spread = (weights[f"heads.residual.1.running_{name}"] for name in ("mean", "var"))
    if training:
        rows = found.flatten(0, 2)
        mean = rows.sum(0) / len(rows)
        spread = ((rows - mean) ** 2).sum(0) / len(rows)
    found = (found - mean) / (spread + 1e-5).sqrt()
    found = found * weights["heads.residual.1.weight"] + weights["heads.residual.1.bias"]
    return torch.where(found > 0, found, 0).permute(0, 3, 1, 2)


def top(values: Tensor, share: float) -> Tensor:
    count = max(1, round(share * values.numel()))
    return torch.stack(sorted(values.flatten(), reverse=True)[:count]).sum() / count


def heads(
    weights: Weights, sized: list[tuple[Tensor, Tensor]], share: float, *, training: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Scores 4 B and maps, B h w for each size, of features and reference features in each."""
    scores, maps = [], []
    for features, reference in sized:
        residuals = convolved(weights, reference - features, training=training)
        rows, summed = [], []
        for feature, residual in zip(features, residuals, strict=True):
            mean = feature.sum((1, 2)) / feature[0].numel()
            found = [scored(weights, name, feature) for name in ("seen", "pseudo")]
            found.append(scored(weights, "residual.3", residual))
            tops = [top(each, share) for each in found]
            rows.append(torch.stack([perceptron(weights, mean), *tops]))
            summed.append(found[0] + found[1] + found[2])
        scores.append(torch.stack(rows, dim=1))
        maps.append(torch.stack(summed))
    return (scores[0] + scores[1]) / 2, maps


def features_of(method: OpenSet, images: Tensor) -> list[Tensor]:
    """Of both sizes, float64 B D h w."""
    with torch.no_grad():
        sized = (images, halved(images))
        return [method._extracted(method.see(each)).double() for each in sized]


def batch_of(count: int = 7, seed: int = 1) -> TrainingBatch:
    labels = torch.arange(count) % 3 // 2
    return TrainingBatch(pictures(count, seed), {}, labels)


def deviation(score: Tensor, *, deviating: bool, reference: Tensor, margin: float) -> Tensor:
    mean = reference.sum() / len(reference)
    spread = (((reference - mean) ** 2).sum() / (len(reference) - 1)).sqrt()
    off = (score - mean) / spread
    return torch.where(off < margin, margin - off, 0) if deviating else off.abs()
