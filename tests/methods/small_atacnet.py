"""A small ATAC-Net, its pictures, and what the engine does with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from blemish.backbones import Backbone, build
from blemish.methods.atacnet import AtacNet, AtacNetConfig, AttentionAugmentation
from blemish.methods.learner import TrainingBatch

HEIGHT, WIDTH = 128, 96
SIZE = HEIGHT // 4, WIDTH // 4  # of the maps
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
