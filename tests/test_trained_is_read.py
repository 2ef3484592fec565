"""What is trained is read: a change of any trained tensor changes the score or the map.

A method can train for hours what nothing reads, and no other test would notice: it scores as well
as what it reads does. What serves training alone a learner names (`Learner.training_only`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import blemish
from blemish.backbones import build
from blemish.data.stream import PictureStream
from blemish.data.transforms import Preprocessing
from blemish.detector.fit import configure
from blemish.methods import METHODS, Method, method_class
from blemish.methods.heads import ClassHead
from blemish.methods.learner import Learner
from blemish.methods.objectives import OBJECTIVES
from blemish.methods.selfsupervised import SelfSupervised
from blemish.training import train

Part = Callable[..., np.ndarray]
TINY: dict[str, Any] = {
    "image_size": (32,),
    "epochs": 1,
    "min_steps": 3,
    "train_batch_size": 4,
    # Of guided: its layers, sizes and pre-training are for real backbones.
    "bank_size": 20,
    "zoom": 1.0,
    "scales": (32, 48),
    "pretraining": "none",
    # Of AGPNet.
    "width": 32,
    "heads": 4,
    "depth": 1,
    # Of DRA and AHL.
    "levels": 1,
    # Of EfficientAD.
    "teacher_steps": 3,
    "teacher_batch_size": 4,
    "channels": 16,
}
OURS: dict[str, tuple[int, ...]] = {"test_vit": (2, 4), "test_resnet": (1, 2)}


def trained_recipes() -> list[tuple[str, str]]:
    """Every recipe of every method that learns by gradient."""
    named = {name: {*kind.Config.recipes()} for name, kind in METHODS.items()}
    pairs = [(name, recipe) for name, recipes in named.items() for recipe in sorted(recipes)]
    return [
        (name, recipe)
        for name, recipe in pairs
        if configure(name, recipe=recipe).learns_by_gradient
    ]


def config_of(name: str, recipe: str, backbone: str, **settings: Any) -> Any:
    """A recipe, made small; what the recipe leaves out stays out."""
    base = configure(name, recipe=recipe)
    known = {field.name for field in dataclasses.fields(base)}
    small = {key: value for key, value in {**TINY, **settings}.items() if key in known}
    for key in ("bank_size", "scales"):  # a recipe without a bank, or with one size, is to stay so
        if key not in settings and not getattr(base, key, True):
            small.pop(key, None)
    layers = OURS[backbone] if base.layers == () else tuple(range(1, 1 + len(base.layers)))
    return dataclasses.replace(base, backbone=backbone, layers=layers, **small)


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tensors that the optimizer of the next training holds."""
    names: list[str] = []

    def watch(kind: type[Learner]) -> None:
        made = kind.optimizer

        def optimizer(learner: Learner) -> torch.optim.Optimizer:
            found = made(learner)
            held = {id(each) for group in found.param_groups for each in group["params"]}
            names.extend(name for name, each in learner.named_parameters() if id(each) in held)
            return found

        monkeypatch.setattr(kind, "optimizer", optimizer)

    kinds = {kind for kind in METHODS.values() if issubclass(kind, Learner)} | {SelfSupervised}
    for kind in kinds:
        watch(kind)  # type: ignore[type-abstract]
    monkeypatch.setattr(
        "blemish.methods.guided.ClassHead", partial(ClassHead, hidden=32, bottleneck=16)
    )
    return names


def unread(learner: Learner, names: list[str], look: Callable[[], list[Tensor]]) -> list[str]:
    """Those of the trained tensors that can be overwritten and `look` gives the same."""
    parameters = dict(learner.named_parameters())
    before = look()
    inert = []
    for name in names:
        kept = parameters[name].detach().clone()
        with torch.no_grad():
            noise = torch.randn(kept.shape, generator=torch.Generator().manual_seed(0))
            parameters[name].add_(noise * (0.5 + kept.std(correction=0)))
        if all(torch.equal(one, other) for one, other in zip(look(), before, strict=True)):
            inert.append(name)
        with torch.no_grad():
            parameters[name].copy_(kept)
    assert all(torch.equal(one, other) for one, other in zip(look(), before, strict=True))
    return inert


def judged(method: Method, images: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        scores = method.score(images)
    return [scores.image, scores.maps]


def check(learner: Learner, names: list[str], look: Callable[[], list[Tensor]]) -> None:
    read = [name for name in names if not name.startswith(learner.training_only or ("-",))]
    assert read
    inert = unread(learner, read, look)
    assert not inert, f"trained and never read: {inert}"


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
@pytest.mark.parametrize(("name", "recipe"), trained_recipes())
def test_every_trained_tensor_changes_the_score_or_the_map(
    name: str, recipe: str, backbone: str, learned: list[str], picture: Part
) -> None:
    if name in ("guided", "dinomaly", "vitad") and backbone == "test_resnet":
        pytest.skip(f"{name} reads a ViT; of a CNN it says so")
    config = config_of(name, recipe, backbone)
    method = trained(name, config, picture)
    assert learned
    assert isinstance(method, method_class(name))
    images = pictures_for(method, picture)
    assert isinstance(method, Learner)
    check(method, learned, lambda: judged(method, images))


@pytest.mark.parametrize("map_head", ["attention", "patches", "features"])
@pytest.mark.parametrize("score", ["class", "map", "both"])
@pytest.mark.parametrize(("trainable_blocks", "bank_size"), [(0, 20), (2, 20), (None, 0)])
def test_whatever_of_guided_is_read_nothing_else_is_trained(
    map_head: str,
    score: str,
    trainable_blocks: int | None,
    bank_size: int,
    learned: list[str],
    picture: Part,
) -> None:
    settings = {
        "map_head": map_head,
        "score": score,
        "trainable_blocks": trainable_blocks,
        "bank_size": bank_size,
        "scales": (),
    }
    method = trained("guided", config_of("guided", "best", "test_vit", **settings), picture)
    images = pictures_for(method, picture)
    blocks = {
        int(each.split(".")[3]) for each in learned if each.startswith("backbone.model.blocks.")
    }
    last = (
        6 if score != "map" or map_head != "patches" else 4
    )  # of six; the map reads layers 2 and 4
    assert blocks == set(range(0 if trainable_blocks is None else last - trainable_blocks, last))
    assert isinstance(method, Learner)
    check(method, learned, lambda: judged(method, images))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_trained_tensor_of_a_pre_training_changes_the_encoder(
    objective: str, learned: list[str], picture: Part
) -> None:
    kind = OBJECTIVES[objective]
    config = kind.Config(
        backbone="test_vit", image_size=32, local_size=16, picture_size=48, epochs=1, min_steps=3,
        train_batch_size=4, hidden=16, bottleneck=8,
    )  # fmt: skip
    learner = kind(config, build("test_vit", weights="random"))
    mean, std = learner.backbone.mean, learner.backbone.std
    size = Preprocessing(height=48, width=48, mean=mean, std=std)
    stream = PictureStream([picture(seed) for seed in range(8)], size, 4)
    train(learner, stream, seed=0, identity={})
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def look() -> list[Tensor]:
        with torch.no_grad():
            seen = learner.backbone(images, (learner.backbone.depth,))
            return [learner.backbone.norm(seen.cls[-1]), learner.backbone.norm(seen.tokens[-1])]

    assert any(name.startswith("head.") for name in learned)
    check(learner, learned, look)


def trained(name: str, config: Any, picture: Part) -> Method:
    good = [picture(seed) for seed in range(8)]
    options: dict[str, Any] = {"weights": "random", "device": "cpu", "precision": "fp32"}
    detector = blemish.fit(name, good, config=config, calibration_fraction=0, **options)
    return detector.method


def pictures_for(method: Method, picture: Part) -> Tensor:
    """Noise, so that nothing is at rest: B 3 H W as `score` takes it."""
    return torch.randn(2, 3, *method.scoring_size, generator=torch.Generator().manual_seed(1))
