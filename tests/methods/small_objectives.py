"""Objectives of pre-training on a ViT of toy size, and a whole step of one against an oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from naive_apmask import Weights, unit, weights_of
from torch import Tensor

from blemish.backbones import VitBackbone, build
from blemish.methods.apmask import APMask
from blemish.methods.learner import TrainingBatch
from blemish.methods.selfsupervised import SelfSupervised

TINY: dict[str, Any] = {
    "backbone": "test_vit",
    "image_size": 48,  # 9 patches, of which APMask keeps 7
    "local_size": 32,  # 4 patches, of which it keeps 3
    "picture_size": 64,
    "local_views": 2,
    "prototypes": 5,
    "hidden": 32,
    "bottleneck": 16,
    "train_batch_size": 4,
}


def sharp() -> VitBackbone:
    """A backbone whose [CLS] token looks at some patches more than at others: with random weights
    it hardly does.
    """
    backbone = cast(VitBackbone, build("test_vit", weights="random", seed=3))
    with torch.no_grad():
        for block in backbone.model.blocks:
            block.attn.qkv.weight[:128] *= 12
    return backbone


def learner(kind: type[SelfSupervised] = APMask, **settings: Any) -> Any:
    return kind(kind.Config(**(TINY | settings)), sharp())


def started(kind: type[SelfSupervised] = APMask, **settings: Any) -> Any:
    """In training, the student a little ahead of its teacher."""
    method = learner(kind, **settings)
    method.start_training(batch_of(pictures()))
    method.train()
    with torch.no_grad():
        for _, parameter in names(method):
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    method.head.normalise()
    return method


def pictures(count: int = 4, side: int = 64) -> Tensor:
    """Normalised noise (the test backbone's mean and deviation are 0.5), dark to bright."""
    return torch.rand(count, 3, side, side) * torch.linspace(0.6, 2, count)[:, None, None, None] - 1


def batch_of(images: Tensor) -> TrainingBatch:
    return TrainingBatch(images, {})


def step(
    method: SelfSupervised,
    images: Tensor,
    optimizer: torch.optim.Optimizer,
    number: int = 1,
    steps: int = 10,
) -> float:
    """What the engine does in a step, but for its clipping."""
    loss = method.training_step(batch_of(images), (number - 1) / steps)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    method.after_step(number, steps)
    return loss.item()


def names(method: SelfSupervised) -> list[tuple[str, torch.nn.Parameter]]:
    """What is learned."""
    return [
        (name, parameter)
        for name, parameter in method.named_parameters()
        if not name.startswith("teacher.")
    ]


Views = tuple[Tensor, Tensor, Tensor]


def check_a_step(
    method: SelfSupervised,
    expected: Callable[[Weights, Weights, Views], tuple[Tensor, dict[str, float]]],
    patch: pytest.MonkeyPatch,
    *,
    momentum: float = 0.9,
) -> tuple[Weights, Views]:
    """The first step of a method as `started` gives it, at a learning rate of 0.01 and a layer
    decay of 0.5: its loss, readings, gradients, and the parameters of student and teacher after it.

    Args: expected: the loss and the readings from the weights of the student (of which the gradient
    is taken) and of the teacher, and the views. momentum: of the teacher.
    Returns: the teacher's weights before, and the views.
    """
    assert method.teacher is not None
    views = (pictures(2, 48), pictures(2, 48), pictures(4, 32)[: 2 * method.config.local_views])
    patch.setattr(method, "views", lambda images: views)
    before, teacher = weights_of(method), weights_of(method.teacher)
    student = {name: before[name].requires_grad_() for name, _ in names(method)}
    value, readings = expected(student, teacher, views)
    found = torch.autograd.grad(value, list(student.values()))
    gradients = dict(zip(student, found, strict=True))
    optimizer = method.optimizer()

    assert step(method, pictures(2), optimizer) == pytest.approx(value.item(), rel=1e-5)
    for name, reading in readings.items():
        assert method.readings[name] == pytest.approx(reading, rel=1e-4), name
    after = {}
    for name, parameter in names(method):
        gradient, start = gradients[name], student[name].detach()
        assert parameter.grad is not None, name
        largest = gradient.abs().max().item()
        close = {"rtol": 1e-3, "atol": 2e-4 * largest + 1e-8}
        torch.testing.assert_close(parameter.grad.double(), gradient, **close)
        blocks = name.startswith("backbone.model.blocks.")
        distance = 6 - int(name.split(".")[3]) if blocks else 7 * name.startswith("backbone.model.")
        rate = 0.01 * 0.5 ** (0 if name.startswith("backbone.model.norm.") else distance)
        decay = 0.04 if start.ndim > 1 else 0.0
        # AdamW's first step; the sign of what is nothing but rounding is not known.
        moved = start * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8)
        known = gradient.abs() > 1e-3 * largest + 1e-6
        if name == "head.prototypes":
            moved = torch.stack([unit(row) for row in moved])
        got = parameter.detach().double()
        torch.testing.assert_close(got[known], moved[known], rtol=1e-5, atol=1e-3 * rate)
        # The keys' bias has no effect; and few of the positions lie where such small pictures read
        # them.
        least = {"pos_embed": 0.01, "bias": 0.3}.get(name.rsplit(".", 1)[-1], 0.5)
        assert known.double().mean() > least, name
        after[name] = got
    for name, tensor in method.teacher.state_dict().items():
        mean = momentum * teacher[name] + (1 - momentum) * after[name]
        if name == "head.prototypes":
            mean = torch.stack([unit(row) for row in mean])
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7)
    return teacher, views
