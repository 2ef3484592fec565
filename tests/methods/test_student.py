"""The student: its start, its loss against a naive one, what it is shown, how it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import VitBackbone, build, restore
from blemish.backbones.spec import BackboneSpec
from blemish.data.stream import PictureStream
from blemish.data.transforms import Preprocessing
from blemish.errors import ConfigError
from blemish.methods.learner import TrainingBatch
from blemish.methods.student import Student, StudentConfig, blocks_of, half_of, shortened
from blemish.training import train

SIDE = 48  # 9 patches
SQUARE = Preprocessing(height=SIDE, width=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)


def vit() -> VitBackbone:
    """Of six blocks, each of which changes something: those of timm start near the identity."""
    backbone = cast(VitBackbone, build("test_vit", weights="random", seed=3))
    with torch.no_grad():
        for block in backbone.model.blocks:
            block.attn.proj.weight *= 8
            block.mlp.fc2.weight *= 8
    return backbone


def learner(layers: Sequence[int] = (2, 4), **settings: Any) -> Student:
    return Student(StudentConfig(**({"train_batch_size": 4} | settings)), vit(), layers)


def pictures(count: int = 4, seed: int = 0) -> Tensor:
    """Normalised: a gradient with noise, different in each; float32 B 3 H W in [-1, 1]."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.linspace(-0.8, 0.8, SIDE)[None, None, :, None]
    noise = torch.rand(count, 3, SIDE, SIDE, generator=random) - 0.5
    return (rows * torch.linspace(0.3, 1, count)[:, None, None, None] + 0.3 * noise).clamp(-1, 1)


def expected_loss(own: VitBackbone, teacher: VitBackbone, images: Tensor, layers: Any) -> float:
    """By a loop over pictures, layers and patches, in float64, from the equation."""
    total, count = 0.0, 0
    with torch.no_grad():
        seen, taught = own(images, layers).tokens, teacher(images, layers).tokens
    for layer in range(len(layers)):
        for picture in range(len(images)):
            for patch in range(seen[layer].shape[1]):
                one, other = (
                    each[layer][picture, patch].double().numpy() for each in (seen, taught)
                )
                one, other = (
                    (each - each.mean()) / np.sqrt(each.var() + 1e-5) for each in (one, other)
                )
                total += float(((one - other) ** 2).sum())
                count += len(one)
    return total / count


def test_it_starts_as_blocks_of_its_teacher() -> None:
    teacher = vit()
    student = shortened(teacher, (1, 3, 4))
    assert (student.blocks, student.depth, len(student.model.blocks)) == ((1, 3, 4), 4, 3)
    for own, number in zip(student.model.blocks, (0, 2, 3), strict=True):
        theirs = teacher.model.blocks[number].state_dict()
        assert all(torch.equal(it, theirs[name]) for name, it in own.state_dict().items())
    images = pictures()
    assert torch.equal(student(images, (1,)).tokens[0], teacher(images, (1,)).tokens[0])
    assert not torch.allclose(student(images, (4,)).tokens[0], teacher(images, (4,)).tokens[0])
    with torch.no_grad():  # a copy, not the teacher itself
        for parameter in student.parameters():
            parameter.zero_()
    assert float(teacher(images, (1,)).tokens[0].abs().sum()) > 0
    assert len(teacher.model.blocks) == 6


def test_its_layers_go_by_the_numbers_of_its_teacher() -> None:
    student = shortened(vit(), (2, 4))
    found = student(pictures(), (2, 4), attention=(4,))
    assert [tuple(each.shape) for each in found.tokens] == [(4, 9, 64)] * 2
    assert list(found.attention) == [4]
    with pytest.raises(ConfigError, match=r"layer 3 does not exist: .* a student with layers 2, 4"):
        student(pictures(), (3,))
    with pytest.raises(ConfigError, match="layer 6 does not exist: test_vit has layers 1 to 4"):
        student(pictures(), (6,))


def test_an_artifact_fills_the_same_architecture() -> None:
    student = shortened(vit(), (2, 4))
    again = restore(student.spec, student.info)
    again.load_state_dict(student.state_dict())
    assert torch.equal(again(pictures(), (4,)).tokens[0], student(pictures(), (4,)).tokens[0])


def test_a_spec_holds_only_what_can_be() -> None:
    values: dict[str, Any] = {
        **{"name": "x", "timm_name": "test_vit", "layers": (), "licence": "", "about": ""},
    }
    with pytest.raises(ConfigError, match="blocks: ascending numbers, of a ViT"):
        BackboneSpec(kind="vit", blocks=(4, 2), **values)
    with pytest.raises(ConfigError, match="blocks: ascending numbers, of a ViT"):
        BackboneSpec(kind="cnn", blocks=(2, 4), **values)
    too_deep = BackboneSpec(kind="vit", blocks=(2, 7), **values)
    with pytest.raises(ConfigError, match="blocks: the architecture has 6, got 7"):
        restore(too_deep, vit().info)


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        ((4, 6, 8), (2, 4, 6, 8)),
        ((2, 4), (2, 4)),
        ((4, 2, 4), (2, 4)),
        ((3, 9), (2, 3, 5, 7, 9)),
        ((12,), (2, 4, 6, 8, 10, 12)),
        ((1,), (1,)),
    ],
)
def test_half_of_the_blocks(layers: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    assert half_of(layers) == blocks


def test_which_blocks_can_be() -> None:
    teacher = vit()
    assert blocks_of(teacher, (2, 4), StudentConfig(blocks=(1, 2, 4))) == (1, 2, 4)
    for blocks in ((4, 2), (1, 4)):
        with pytest.raises(ConfigError, match="the layers 2, 4 of the method among them"):
            blocks_of(teacher, (2, 4), StudentConfig(blocks=blocks))
    with pytest.raises(ConfigError, match="layer 9 does not exist"):
        blocks_of(teacher, (2, 4), StudentConfig(blocks=(2, 4, 9)))
    with pytest.raises(ConfigError, match=r"layers 1, 2 of test_vit .* no block can be left out"):
        blocks_of(teacher, (1, 2), StudentConfig())
    with pytest.raises(ConfigError, match="test_resnet is a CNN"):
        blocks_of(build("test_resnet", weights="random"), (2,), StudentConfig())


def test_the_loss_is_that_of_the_equation() -> None:
    method, images = learner(anomalies=0.0), pictures()
    (teacher,) = method._teacher
    shown = images.half().float()
    with torch.no_grad():
        taught = method._taught(shown)
        batch = TrainingBatch(None, {"shown": images.half(), "taught": taught})
        loss = float(method.training_step(batch, 0.0))
    expected = expected_loss(method.backbone, cast(VitBackbone, teacher), shown, (2, 4))
    assert loss == pytest.approx(expected, rel=2e-3)  # what is taught is kept in float16
    assert expected > 0.01


def test_a_step_changes_what_is_learned_and_only_that() -> None:
    method = learner()
    (teacher,) = method._teacher
    before = {name: it.clone() for name, it in teacher.state_dict().items()}
    batch = TrainingBatch(None, method.encode(pictures()))
    method.start_training(batch)
    optimizer = method.optimizer()
    losses = []
    for _ in range(8):
        loss = method.training_step(batch, 0.5)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(it, before[name]) for name, it in teacher.state_dict().items())
    grads = {name: it.grad is not None for name, it in method.backbone.named_parameters()}
    assert grads["model.blocks.0.attn.qkv.weight"]
    assert not any(given for name, given in grads.items() if name.startswith("model.norm."))
    assert not any(name.startswith("_teacher") for name in method.state_dict())


def test_what_it_is_shown_depends_on_the_picture_and_the_seed_alone() -> None:
    method, images = learner(), pictures(6)
    whole, part = method.encode(images), method.encode(images[3:5])
    assert torch.equal(whole["shown"][3:5], part["shown"])
    other = learner(seed=1).encode(images)
    assert not torch.equal(other["shown"], whole["shown"])
    assert whole["shown"].shape == (6, 3, SIDE, SIDE)
    assert whole["taught"].shape == (6, 2, 9, 64)
    # what the teacher says of the very pixels that the student sees
    assert torch.equal(whole["taught"], method._taught(whole["shown"].float()))


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.5, 8, 24), (1.0, 32, 32)])
def test_so_many_have_an_anomaly(
    monkeypatch: pytest.MonkeyPatch, share: float, least: int, most: int
) -> None:
    spoilt: list[int] = []

    def noted(pixels: np.ndarray, _simulators: Any, seed: int) -> np.ndarray:
        spoilt.append(seed)
        return pixels

    monkeypatch.setattr("blemish.methods.student._spoilt", noted)
    method = learner(anomalies=share)
    for image in pictures(32):
        method.changed(image)
    assert least <= len(spoilt) <= most
    assert len(set(spoilt)) == len(spoilt)


def test_agreement_is_that_of_the_equation() -> None:
    method = learner()
    (teacher,) = method._teacher
    method.held = images = pictures(3, seed=9)
    with torch.no_grad():
        own, theirs = method.backbone(images, (2, 4)).tokens, teacher(images, (2, 4)).tokens
    apart = spread = 0.0
    for seen, taught in zip(own, theirs, strict=True):
        one, other = (F.layer_norm(each, (64,)).double() for each in (seen, taught))
        apart += float(((one - other) ** 2).sum())
        spread += float(((other - other.mean((0, 1))) ** 2).sum())
    found = method.findings(TrainingBatch(None, {}))
    assert found["agreement"] == pytest.approx(1 - apart / spread, abs=2e-3)
    assert found["agreement_on_anomalies"] != found["agreement"]


def test_a_copy_of_the_teacher_agrees_wholly() -> None:
    method = learner()
    (teacher,) = method._teacher
    method.backbone = cast(VitBackbone, teacher)
    method.held = pictures(3, seed=9)
    found = method.findings(TrainingBatch(None, {}))
    assert min(found.values()) > 0.9999


def test_it_learns_to_agree_and_forgets_its_teacher() -> None:
    good = [
        np.rint((each.permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8)
        for each in pictures(10)
    ]
    method = learner(min_steps=40, learning_rate=1e-3)
    method.held = pictures(3, seed=9)
    before = method.findings(TrainingBatch(None, {}))
    stream = PictureStream(good, SQUARE, 4, rotations=4, flips=True)
    training, _ = train(method, stream, seed=0, identity={})
    assert training.findings["agreement"] > before["agreement"] + 0.1
    assert training.findings["agreement_on_anomalies"] > before["agreement_on_anomalies"] + 0.1
    assert not method._teacher
    assert not any(each.requires_grad for each in method.parameters())
