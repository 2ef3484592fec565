"""MSN, SwAV and iBOT: a whole step of each against an oracle, and what is their own; and what all
objectives have to do: learn, and not collapse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import naive_objectives as naive
import numpy as np
import pytest
import torch
from naive_apmask import encoded, sinkhorn, tokens_of, weights_of
from small_objectives import (
    TINY,
    Views,
    batch_of,
    check_a_step,
    learner,
    names,
    pictures,
    sharp,
    started,
    step,
)
from torch import Tensor

from blemish.backbones import build
from blemish.data.stream import PictureStream
from blemish.data.transforms import Preprocessing
from blemish.errors import ConfigError
from blemish.methods.apmask import APMaskConfig
from blemish.methods.ibot import IBOT, IBOTConfig
from blemish.methods.learner import FineTuning
from blemish.methods.msn import MSN, MSNConfig
from blemish.methods.objectives import OBJECTIVES, objective_class, objective_of
from blemish.methods.swav import SwAV, SwAVConfig
from blemish.methods.views import Augmentation
from blemish.training import train

SQUARE = Preprocessing(height=64, width=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
FAST: dict[str, Any] = {"learning_rate": 0.01, "layer_decay": 0.5}


# A whole step


@pytest.mark.parametrize(
    "settings", [{}, {"local_views": 0, "mean_entropy_weight": 3.0}], ids=["views", "weighted"]
)
def test_a_step_of_msn_against_loops(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = started(MSN, momentum=0.9, mask_ratio=0.3, **FAST, **settings)
    kept = torch.tensor([[0, 1, 2, 4, 5, 7, 8], [0, 2, 3, 4, 6, 7, 8]])
    monkeypatch.setattr(method, "kept", lambda views: kept)

    def expected(student: Any, teacher: Any, views: Views) -> Any:
        return naive.msn(student, teacher, views, method.config, kept.tolist())

    check_a_step(method, expected, monkeypatch)


@pytest.mark.parametrize(
    ("settings", "queued"),
    [({"queue": 0}, False), ({"queue": 3, "queue_from": 0.0}, True), ({"local_views": 0}, False)],
    ids=["plain", "queue", "global"],
)
def test_a_step_of_swav_against_loops(
    settings: dict[str, Any], queued: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = started(SwAV, frozen_prototypes=0.0, **FAST, **settings)
    earlier = torch.nn.functional.normalize(torch.randn(2, 3, 16), dim=2)
    if queued:
        method.queue.copy_(earlier)

    def expected(student: Any, teacher: Any, views: Views) -> Any:
        queue = earlier.double().numpy() if queued else None
        return naive.swav(student, views, method.config, queue)

    before = weights_of(method)
    _, views = check_a_step(method, expected, monkeypatch, momentum=0.0)  # it is the student
    if queued:  # the newest first, of the weights before the step
        for view, queue, old in zip(views[:2], method.queue, earlier, strict=True):
            fresh = [naive.projected(before, encoded(before, each)[0]) for each in view]
            np.testing.assert_allclose(queue[:2], torch.stack(fresh), rtol=1e-4, atol=1e-5)
            assert torch.equal(queue[2:], old[:1])


@pytest.mark.parametrize(
    "settings", [{}, {"local_views": 0, "patch_weight": 0.5}], ids=["views", "weighted"]
)
def test_a_step_of_ibot_against_loops(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = started(IBOT, momentum=0.9, frozen_prototypes=0.0, **FAST, **settings)
    centres = np.linspace(-0.1, 0.1, 5), np.linspace(0.2, -0.1, 5)
    for buffer, centre in zip((method.centre, method.patch_centre), centres, strict=True):
        buffer.copy_(torch.as_tensor(centre))
    hidden = [[0, 1, 4], [], [8], [2, 5, 7, 8]]  # of two pictures in two views; of one none
    mask = torch.zeros(4, 9, dtype=torch.bool)
    for row, places in zip(mask, hidden, strict=True):
        row[places] = True
    monkeypatch.setattr(method, "hidden", lambda both: mask)

    def expected(student: Any, teacher: Any, views: Views) -> Any:
        return naive.ibot(student, teacher, views, method.config, hidden, centres)

    teacher, views = check_a_step(method, expected, monkeypatch)
    shown = [
        [naive.projected(teacher, token) for token in tokens_of(teacher, picture)[0]]
        for picture in torch.cat(views[:2])
    ]
    of_cls = naive.scores_of(teacher, [each[0] for each in shown]).mean(0)
    of_patches = naive.scores_of(teacher, [one for each in shown for one in each[1:]]).mean(0)
    np.testing.assert_allclose(method.centre, 0.9 * centres[0] + 0.1 * of_cls, atol=1e-6)
    np.testing.assert_allclose(method.patch_centre, 0.9 * centres[1] + 0.1 * of_patches, atol=1e-6)


# What is their own


def test_msn_masks_its_global_view_alone() -> None:
    method = started(MSN, mask_ratio=0.3)
    counts: list[tuple[int, ...]] = []
    method.backbone.model.blocks[0].register_forward_pre_hook(
        lambda _module, inputs: counts.append(tuple(inputs[0].shape[:2]))
    )
    method.training_step(batch_of(pictures()), 0.0)
    assert counts == [(4, 1 + 7), (8, 1 + 4)]
    assert MSNConfig().masking == "random"


def test_the_momentum_of_msn_rises_on_a_line() -> None:
    method = learner(MSN, momentum=0.5)
    rising = [method.momentum(number, 8) for number in range(1, 9)]
    assert rising == pytest.approx([0.5 + 0.05 * number for number in range(8)])


def test_swav_reads_its_queue_once_it_is_full_and_collects_from_a_share_on() -> None:
    method = started(SwAV, queue=6, queue_from=0.5)
    asked: list[int] = []
    balance = method.head.scores

    def note(features: Tensor, **how: Any) -> Tensor:
        asked.append(len(features))
        return balance(features, **how)

    method.head.scores = note
    rows = []
    for fraction in (0.0, 0.5, 0.6, 0.7):
        asked.clear()
        method.training_step(batch_of(pictures()), fraction)
        rows.append(asked[0])
    assert rows == [4, 4, 4, 10]  # six are there after two batches of four
    assert started(SwAV, queue=0).queue.shape == (2, 0, 16)


def test_swav_keeps_the_student() -> None:
    method = started(SwAV, **FAST)
    step(method, pictures(), method.optimizer(), 3, 10)
    student = weights_of(method.backbone)
    method.end_training(10)
    assert all(
        torch.equal(kept, student[name]) for name, kept in weights_of(method.backbone).items()
    )


@pytest.mark.parametrize("kind", [SwAV, IBOT])
def test_prototypes_learn_only_after_a_share_of_the_run(kind: type[SwAV | IBOT]) -> None:
    method = started(kind, frozen_prototypes=0.15, **FAST)
    optimizer, before = method.optimizer(), method.head.prototypes.detach().clone()
    first = method.head.layers[0].weight.detach().clone()
    for number in (1, 2):
        step(method, pictures(), optimizer, number, 10)
    torch.testing.assert_close(method.head.prototypes.detach(), before, rtol=0, atol=1e-6)
    assert (method.head.layers[0].weight - first).abs().max() > 1e-3
    step(method, pictures(), optimizer, 3, 10)
    assert (method.head.prototypes - before).abs().max() > 1e-3


def test_what_ibot_hides() -> None:
    method = learner(IBOT, image_size=160)
    counts = method.hidden(torch.zeros(2000, 3, 160, 160)).sum(1)
    some = counts[counts > 0].double()
    assert 900 < len(some) < 1100  # with even chance
    assert (some.min(), some.max()) == (10, 49)  # of 100, evenly from a tenth to half
    assert some.mean().item() == pytest.approx(29.5, abs=1)
    assert (learner(IBOT, hidden_chance=0.0).hidden(torch.zeros(9, 3, 48, 48)).sum(1) == 0).all()
    with pytest.raises(ConfigError, match="hidden_least: must not be above hidden_most"):
        IBOTConfig(hidden_least=0.6)


def test_a_batch_of_which_ibot_hides_nothing_teaches_every_parameter() -> None:
    """Several processes rely on it."""
    method = started(IBOT, hidden_chance=0.0)
    method.training_step(batch_of(pictures()), 0.0).backward()
    assert all(parameter.grad is not None for _, parameter in names(method))
    assert method.mask_token.grad.abs().max() == 0


def test_the_temperature_of_ibots_targets() -> None:
    method = learner(IBOT, temperature_rise=0.5)
    found = [method.temperature_at(share) for share in (0, 0.25, 0.5, 0.9)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert learner(IBOT, temperature_rise=0.0).temperature_at(0.0) == 0.07


@pytest.mark.parametrize("place", [0, 5])
def test_a_masked_patch_is_seen_as_the_token(place: int) -> None:
    backbone, images = sharp(), pictures(2, 48)
    hidden = torch.zeros(2, 9, dtype=torch.bool)
    hidden[0, place] = True
    token = torch.randn(backbone.dim)
    found = backbone(images, (6,), masked=(hidden, token)).tokens[-1].detach()
    weights = {f"backbone.{name}": each for name, each in weights_of(backbone).items()}
    weights["mask_token"] = token.double()
    normed = backbone.norm(found).detach()
    for picture, masked, row in zip(images, ([place], []), normed, strict=True):
        expected = tokens_of(weights, picture, None, masked)[0][1:]
        torch.testing.assert_close(row.double(), expected, rtol=1e-3, atol=1e-4)


# What all of them do


def stripes(count: int) -> list[np.ndarray]:
    """Pictures that are told apart by how wide their stripes are, and how they lie, anywhere."""
    y, x = np.mgrid[:64, :64]
    made = []
    for index in range(count):
        angle, pace = 2 * math.pi * (index // 2) / count, (0.15, 0.5)[index % 2]
        wave = np.sin(math.pi * pace * (math.cos(angle) * x + math.sin(angle) * y))
        made.append(np.repeat((127 + 100 * wave)[..., None], 3, axis=2).astype(np.uint8))
    return made


OWN: dict[str, dict[str, Any]] = {"swav": {"momentum": 0.0}, "ibot": {"hidden_chance": 1.0}}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_it_learns_and_does_not_collapse(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On eight pictures and views from which they can still be told apart, the student comes to
    predict more than that all prototypes are as likely; a collapse would be raised.
    """
    kind = OBJECTIVES[objective]
    mild = Augmentation(area=(0.7, 1.0), blur=0.0, colours=(0.2, 0.2, 0.0, 0.0))
    monkeypatch.setattr(kind, "global_views", (mild, mild))
    quick = {"epochs": 1, "min_steps": 150, "train_batch_size": 8, "local_views": 0}
    rates = {"learning_rate": 3e-4, "layer_decay": 0.3, "momentum": 0.99}
    settings = TINY | quick | rates | OWN.get(objective, {})
    method = kind(kind.Config(**settings), build("test_vit", weights="random", seed=3))
    losses: list[float] = []
    training, _ = train(
        method,
        PictureStream(stripes(8), SQUARE, batch_size=8),
        seed=0,
        identity={},
        watch=lambda number, steps, loss: losses.append(loss),
    )
    first, last = float(np.mean(losses[:10])), float(np.mean(losses[-10:]))
    guessing = math.log(5) * (2 if objective == "ibot" else 1)  # of [CLS] and of patches
    assert last < min(first - 0.3, guessing - 0.03), (first, last)
    assert training.findings["prototype_usage"] > 4
    assert training.findings["feature_spread"] > 0.4
    assert training.findings["projection_spread"] > 0.2


@pytest.mark.parametrize("objective", ["msn", "swav", "ibot"])
def test_an_interrupted_training_is_resumed_to_the_bit(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue, the centres and the mask token are kept, too."""
    monkeypatch.setattr("blemish.training.loop.BETWEEN_CHECKPOINTS", 0.0)
    kind, quick = OBJECTIVES[objective], {"epochs": 1, "min_steps": 6, "learning_rate": 1e-3}
    own = {"queue": 8, "queue_from": 0.0} if objective == "swav" else {}

    def run(stop_after: int, resume: bool) -> dict[str, Tensor]:
        def told(stage: str, done: int, total: int) -> None:
            if stage.startswith("training") and stop_after and done == stop_after:
                raise KeyboardInterrupt

        method = kind(kind.Config(**(TINY | quick | own)), sharp())
        stream = PictureStream(stripes(8), SQUARE, batch_size=4)
        place = tmp_path / "x.training" if stop_after or resume else None
        how: dict[str, Any] = {"checkpoint": place, "resume": resume, "progress": told}
        train(method, stream, seed=0, identity={}, **how)
        return dict(method.state_dict())

    whole = run(0, False)
    with pytest.raises(KeyboardInterrupt):
        run(3, False)
    resumed = run(0, True)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_settings_of_the_papers() -> None:
    msn, swav, ibot = (OBJECTIVES[name].Config.paper() for name in ("msn", "swav", "ibot"))
    assert (msn.prototypes, swav.prototypes, ibot.prototypes) == (1024, 3000, 8192)
    assert (msn.local_views, swav.local_views, ibot.local_views) == (10, 6, 10)
    assert isinstance(swav, SwAVConfig)
    assert (swav.queue, swav.bottleneck) == (3840, 128)
    published = APMaskConfig.paper()
    for config in (msn, swav, ibot):  # the schedule is that of APMask
        for name in FineTuning.__dataclass_fields__:
            if name != "cache_gib":
                assert getattr(config, name) == getattr(published, name), name
        assert config.backbone == "dino_vits16"


def test_objectives_by_name_and_by_config() -> None:
    for name, kind in OBJECTIVES.items():
        assert objective_class(name) is kind
        assert objective_of(kind.Config()) is kind
        with pytest.raises(ConfigError, match=f"{name} needs a ViT with a .CLS. token"):
            kind(kind.Config(), build("test_resnet", weights="random"))
    with pytest.raises(ConfigError, match="unknown objective 'mns'; did you mean 'msn'"):
        objective_class("mns")
    with pytest.raises(ConfigError, match="FineTuning is not the config of an objective"):
        objective_of(FineTuning())  # type: ignore[arg-type]


def test_targets_are_balanced_over_the_queue_as_well() -> None:
    """With one prototype nearest to all of a batch, a queue far from it changes what they get."""
    method = started(SwAV, queue=4)
    features = method.head.prototypes.detach()[:1].repeat(3, 1)
    alone = method._assigned(features, 0)
    method.queue[0] = torch.nn.functional.normalize(torch.randn(4, 16), dim=1)
    rows = torch.cat([method.queue[0], features])
    scores = (rows @ method.head.prototypes.detach().T).double().numpy()
    found = method._assigned(features, 0)
    np.testing.assert_allclose(found, sinkhorn(scores)[4:], rtol=1e-3, atol=1e-6)
    assert (found - alone).abs().max() > 0.05
