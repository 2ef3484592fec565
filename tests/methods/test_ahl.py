"""AHL's step against its equations written out in float64, and its two stages."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive import f64
from small_dra import (
    HEIGHT,
    WIDTH,
    Weights,
    backbone_of,
    batch_of,
    deviation,
    features_of,
    heads,
    pictures,
    shaken,
    weights_of,
)
from torch import Tensor

import blemish
from blemish.errors import ConfigError
from blemish.methods.ahl import Ahl
from blemish.methods.ahl_config import AhlConfig
from blemish.methods.dra import divided
from blemish.methods.importance import importances
from blemish.methods.learner import TrainingBatch
from blemish.methods.tasks import LABELLED, Half, halves

TINY: dict[str, Any] = {
    **{"backbone": "test_vit", "image_size": (HEIGHT, WIDTH), "layers": (2,), "hidden": 6},
    **{"references": 2, "smoothing": 0.0, "clusters": 2, "watched": 8, "draws": 40, "history": 2},
}
STAGES: dict[str, Any] = {"base_share": 0.5, "extractor_rate": 1.0}


def ahl(**settings: Any) -> Ahl:
    config = AhlConfig(**(TINY | settings))
    return shaken(Ahl(config, copy.deepcopy(backbone_of(config.backbone))).eval())


def begun(sample: TrainingBatch, **settings: Any) -> Ahl:
    """One that is trained on samples with many defects."""
    method = ahl(**settings)
    method.class_counts = (20, 10)
    torch.manual_seed(5)
    method.start_training(sample)
    return method.train()


# A step of the unified model


def loss_of(
    weights: Weights, sized: list[tuple[Tensor, Tensor]], kinds: Iterable[int], method: Ahl
) -> Tensor:
    """DRA's four losses of pictures of such kinds, in which only batch norm sees all of them."""
    scores, _ = heads(weights, sized, method.config.top_fraction, training=True)
    told, total = list(kinds), torch.zeros((), dtype=torch.float64)
    absent: list[set[int]] = [set(), {1, 2, 3}, {LABELLED}, set()]
    for head, (row, without) in enumerate(zip(scores, absent, strict=True)):
        reference = torch.randn(method.config.draws).double()
        terms = [
            deviation(
                score,
                deviating=(kind == 0) == (head == 0),
                reference=reference,
                margin=method.config.margin,
            )
            for score, kind in zip(row, told, strict=True)
            if kind not in without
        ]
        total = total + sum(terms) / len(terms)
    return total


def parts_of(method: Ahl, batch: TrainingBatch) -> tuple[list[Tensor], list[int], list[Any]]:
    """Features of the pictures of a step in both sizes, float64, their kinds, and the two sets of
    rows of each task."""
    images, plain, normal = divided(batch)
    images, kinds = method.made(images, plain, normal)
    features, known = features_of(method, images), method.known()
    near = known.distances(features[0][:plain].float())
    like = known.resembled(features[0][normal:].float())
    sets = [
        halves(near, kinds, task, learned[like], held[like])
        for task, learned, held in zip(method.tasks, known.learned, known.held, strict=True)
    ]
    return features, kinds.tolist(), sets


def outer_losses(method: Ahl, weights: Weights, batch: TrainingBatch) -> list[Tensor]:
    """The query loss of each base model in a step of seed 11 (eq. 1 and 3)."""
    torch.manual_seed(11)
    features, kinds, sets = parts_of(method, batch)
    known = [each.sum(0) / len(each) for each in features_of(method, method.examples)]

    def on(theta: Weights, half: Half) -> Tensor:
        rows = half.rows.tolist()
        sized = [(each[rows], mean) for each, mean in zip(features, known, strict=True)]
        return loss_of(theta, sized, [kinds[row] for row in rows], method)

    losses = []
    learned = [name for name, each in weights.items() if each.requires_grad]
    for support, query in sets:
        theta = dict(weights)
        for step in range(method.config.inner_steps):
            own = [theta[name] for name in learned]
            gradients = torch.autograd.grad(on(theta, support), own, create_graph=step == 0)
            for name, gradient in zip(learned, gradients, strict=True):
                theta[name] = theta[name] - method.config.inner_rate * gradient
        losses.append(on(theta, query))
    return losses


@pytest.mark.parametrize(("steps", "ready"), [(1, False), (2, True)])
def test_the_loss_and_the_gradients_of_a_step(steps: int, ready: bool) -> None:
    """Through the base models' first step (of a rate so large that it is seen), in float64; where
    ψ has seen enough, the weights are eq. 7's of its prediction."""
    sample, batch = batch_of(12, seed=4), batch_of(9)
    method = begun(sample, inner_steps=steps, inner_rate=0.01, margin=2.0)
    psi, known = method.importance, method.known()
    assert psi is not None
    if ready:
        with torch.no_grad():
            psi.last.weight *= 8
        for seed in range(2):
            psi.note(2 * torch.randn(8, 2, generator=torch.Generator().manual_seed(seed)))
    psi.sequence.dropout = 0.0
    weights = {name: each for name, each in weights_of(method).items() if name[:6] == "heads."}
    names = [name for name, _ in method.named_parameters() if name.startswith("heads.")]
    for name in names:
        weights[name].requires_grad_()
    losses = torch.stack(outer_losses(method, weights, batch))
    shares = torch.full((2,), 0.5, dtype=torch.float64)
    with torch.no_grad():
        predicted = psi.predicted()
    if ready:
        shares = importances(predicted, known.labels, known.factors).double()
        assert float(shares.max()) > 0.51
    expected = (shares * losses).sum()
    gradients = torch.autograd.grad(expected, [weights[name] for name in names])

    torch.manual_seed(11)
    loss = method.training_step(batch, 0.0)
    noted = psi.history[:, -1]
    own = 1e-3 * float((predicted - noted).square().mean()) if ready else 0.0
    assert loss.item() == pytest.approx(float(expected.detach()) + own, rel=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = dict(method.named_parameters())
    for name, gradient in zip(names, gradients, strict=True):
        got = parameters[name].grad
        assert got is not None
        np.testing.assert_allclose(f64(got), f64(gradient), rtol=2e-2, atol=2e-4)
    assert (psi.last.weight.grad is not None) == ready
    assert all(each.grad is None for each in method.backbone.parameters())


def test_the_scores_that_psi_sees_are_those_of_the_base_models() -> None:
    """Of the watched pictures, by models that are the unified one but for a tiny step, with the
    running statistics that its heads have by then."""
    method = begun(batch_of(12, seed=4), inner_rate=1e-9)
    method.training_step(batch_of(9), 0.0)
    psi, known = method.importance, method.known()
    assert psi is not None
    before = psi.history[:, -1].clone()
    references = [each.sum(0) / len(each) for each in features_of(method, method.examples)]
    sized = list(zip(features_of(method, method.pictures), references, strict=True))
    # The last model has scored with the statistics that there are still.
    scores, _ = heads(weights_of(method), sized, method.config.top_fraction)
    wanted = scores[1] + scores[2] + scores[3] - scores[0]
    np.testing.assert_allclose(f64(before[:, -1]), f64(wanted), rtol=1e-3, atol=1e-3)
    assert known.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert method.heads.training


@pytest.mark.parametrize("labelled", [True, False])
def test_three_kinds_of_anomalies_are_made(labelled: bool) -> None:
    """Each picture has a level of its own, so a piece of another one is told by its value."""
    method, count = ahl(), 16
    ramp = torch.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) / HEIGHT / WIDTH
    levels = 0.1 + 0.03 * ramp + 0.05 * torch.arange(count)[:, None, None, None]
    mean, std = method.backbone.colours(levels)
    images = (levels.expand(-1, 3, -1, -1) - mean) / std
    end = 14 if labelled else count
    torch.manual_seed(2)
    made, kinds = method.made(images, 5, end)
    assert kinds.tolist() == sorted(kinds.tolist())
    counts = [int((kinds == kind).sum()) for kind in range(LABELLED + 1)]
    assert counts[0] == 5
    assert min(counts[1:4]) >= 3
    assert counts[LABELLED] == count - end
    for row, kind in enumerate(kinds.tolist()):
        changed = (made[row] - images[row]).abs().amax(0) > 1e-3
        if kind in (0, LABELLED):
            assert not changed.any()
            continue
        assert 0 < float(changed.float().mean()) < 0.95
        full = changed.any(1).sum() * changed.any(0).sum()
        assert (kind < 3) == (float(changed.sum()) >= 0.9 * float(full))  # rectangles


# The two stages


def test_the_first_stage_is_dra_and_the_extractor_stays_in_the_second() -> None:
    sample = batch_of(12, seed=4)
    method = begun(sample, backbone="test_resnet", image_size=(64, 128), **STAGES)
    method.start_training(TrainingBatch(pictures(12, 4, 128), {}, sample.labels))
    batch = TrainingBatch(pictures(9, 1, 128), {}, batch_of(9).labels)
    method.backbone.eval()  # as after steps that were tried and undone
    torch.manual_seed(11)
    loss = method.training_step(batch, 0.49)
    assert method.backbone.training
    torch.manual_seed(11)
    assert method.base is not None
    other = method.end_to_end(method.base, *method.mixed(batch))
    assert loss.item() == pytest.approx(other.item(), rel=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    found = {
        name.split(".")[0] for name, each in method.named_parameters() if each.grad is not None
    }
    assert found == {"base", "backbone"}
    method.zero_grad(set_to_none=True)
    before = {name: each.clone() for name, each in method.backbone.state_dict().items()}
    method.training_step(batch, 0.5).backward()  # type: ignore[no-untyped-call]
    found = {
        name.split(".")[0] for name, each in method.named_parameters() if each.grad is not None
    }
    assert found == {"heads"}
    assert all(torch.equal(each, before[n]) for n, each in method.backbone.state_dict().items())


def test_rates_and_decay_of_each_part() -> None:
    config = replace(AhlConfig(**TINY), base_share=0.6, extractor_rate=0.5)
    method = begun(batch_of(12), **{**STAGES, "base_share": 0.6, "extractor_rate": 0.5})
    assert method.config == config
    named = {id(each): name.split(".")[0] for name, each in method.named_parameters()}
    groups = {
        named[id(group["params"][0])]: (group["lr"], group["weight_decay"], group["params"])
        for group in method.optimizer().param_groups
    }
    assert {name: group[:2] for name, group in groups.items()} == {
        "importance": (2e-3, 0.0),
        "heads": (2e-3, 1e-4),
        "base": (2e-3, 1e-5),
        "backbone": (1e-3, 1e-5),
    }
    assert not any(isinstance(each, torch.optim.AdamW) for each in [method.optimizer()])
    for name, (_, _, held) in groups.items():
        assert {named[id(each)] for each in held} == {name}
    factors = [method.learning_rate_factor(at) for at in (0, 0.2, 0.4, 0.6, 0.74, 0.88)]
    assert factors == pytest.approx([0.1, 0.01, 1e-3, 1, 0.1, 0.01])


def test_what_a_run_without_a_second_stage_keeps() -> None:
    """The heads of the first stage, not those that nothing has taught."""
    method = begun(batch_of(12), **STAGES)
    assert method.base is not None
    wanted = {name: each.clone() for name, each in method.base.state_dict().items()}
    assert not torch.equal(method.heads.seen.weight, wanted["seen.weight"])
    method.end_training(1)
    for name, each in method.heads.state_dict().items():
        assert torch.equal(each, wanted[name])
    names = {name.split(".")[0] for name in method.fitted_state()}
    assert names == {"backbone", "heads", "reference", "steps"}
    after = begun(batch_of(12), **STAGES)
    own = {name: each.clone() for name, each in after.heads.named_parameters()}
    after.training_step(batch_of(9), 0.9)
    after.end_training(2)
    assert all(torch.equal(each, own[name]) for name, each in after.heads.named_parameters())


def test_settings_that_do_not_fit() -> None:
    for settings in ({"base_share": 0.5}, {"extractor_rate": 1.0}):
        with pytest.raises(ConfigError, match="both are 0, or neither"):
            AhlConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^train_batch_size: "):
        AhlConfig(train_batch_size=3)
    with pytest.raises(ConfigError, match="4 at least for each process"):
        begun(batch_of(12)).training_step(TrainingBatch(pictures(3), {}), 0.0)


def test_the_recipes() -> None:
    paper = AhlConfig.paper()
    assert (paper.backbone, paper.image_size, paper.levels) == ("resnet18", (448,), 2)
    assert (paper.base_rate, paper.base_decay, paper.extractor_rate) == (2e-4, 1e-5, 1)
    assert (paper.learning_rate, paper.weight_decay, paper.inner_rate) == (2e-3, 1e-4, 2e-4)
    assert (paper.clusters, paper.history, paper.inner_steps) == (3, 5, 3)
    assert paper.watched == 64
    assert (paper.margin, paper.draws, paper.top_fraction, paper.references) == (5, 5000, 0.1, 5)
    assert round(paper.min_steps * (1 - paper.base_share)) == 30
    assert round(paper.min_steps * paper.base_share) == 600
    best = AhlConfig()
    assert not best.encoder_learns
    assert (best.base_share, best.train_batch_size, best.rotations) == (0, 12, 1)


# Whole


def pixels(count: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8))


SMALL: dict[str, Any] = {
    **{"backbone": "test_resnet", "layers": (2,), "image_size": 64, "weights": "random"},
    **{"device": "cpu", "precision": "fp32", "train_batch_size": 6, "calibration_fraction": 0},
    **{"watched": 8, "clusters": 2, "history": 2, "hidden": 8},
}


def test_stopped_in_the_second_stage_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of the watched pictures is in no checkpoint: it is made again, to the bit."""
    settings = {**SMALL, "epochs": 1, "min_steps": 10, **STAGES}
    good, bad = pixels(5), pixels(2, 1)
    whole = blemish.fit("ahl", good, anomalies=bad, **settings).method
    step, made = Ahl.training_step, []

    def stopping(self: Ahl, batch: TrainingBatch, fraction: float) -> Tensor:
        made.append(fraction)
        if len(made) == 8:
            import signal

            signal.raise_signal(signal.SIGINT)
        return step(self, batch, fraction)

    monkeypatch.setattr(Ahl, "training_step", stopping)
    path = tmp_path / "part.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        blemish.fit("ahl", good, anomalies=bad, checkpoint=path, **settings)
    assert made[-1] == 0.7
    again = blemish.fit("ahl", good, anomalies=bad, checkpoint=path, resume=True, **settings).method
    assert made[8:] == [0.8, 0.9]
    state = again.fitted_state()
    for name, each in whole.fitted_state().items():
        assert torch.equal(each, state[name]), name


def test_a_fit_without_defects() -> None:
    method = blemish.fit("ahl", pixels(5), **SMALL, min_steps=4).method
    assert isinstance(method, Ahl)
    assert method.steps.tolist() == [4]
