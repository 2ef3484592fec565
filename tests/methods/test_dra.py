"""DRA against its equations written out in float64, and what it makes of its batches."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from naive import f64, upsampled
from small_dra import (
    HEIGHT,
    WIDTH,
    Weights,
    batch_of,
    deviation,
    dra,
    features_of,
    halved,
    heads,
    learned,
    pictures,
    weights_of,
)
from torch import Tensor

import blemish
from blemish.area import SIDE, Area
from blemish.errors import ArtifactError, ConfigError
from blemish.methods.dra import Dra, DraConfig
from blemish.methods.learner import TrainingBatch

# Scores


@pytest.mark.parametrize("share", [0.1, 0.5, 0.001])
@pytest.mark.parametrize(("backbone", "layers"), [("test_vit", (2, 4)), ("test_resnet", (2,))])
def test_scores_and_map_against_loops(backbone: str, layers: tuple[int, ...], share: float) -> None:
    settings = {"backbone": backbone, "layers": layers, "top_fraction": share}
    method = dra(**settings, image_size=(HEIGHT, 128))  # a CNN divides half of it, too
    shown = pictures(5, 9, 128)
    method.start_training(TrainingBatch(shown, {}))
    method.end_training(1)
    images, weights = pictures(width=128), weights_of(method)
    known = [each[:3].sum(0) / 3 for each in features_of(method, shown)]
    sized = list(zip(features_of(method, images), known, strict=True))
    expected, maps = heads(weights, sized, share)
    got = method.score(images)
    wanted = expected[1] + expected[2] + expected[3] - expected[0]
    np.testing.assert_allclose(f64(got.image), f64(wanted), rtol=1e-4, atol=1e-4)
    assert got.image.dtype == got.maps.dtype == torch.float32
    size = HEIGHT // 4, 32
    for picture in range(3):
        large = [
            upsampled(f64(each[picture]), *size, method.backbone.offset(each.shape[1:], own))
            for each, own in zip(maps, (images, halved(images)), strict=True)
        ]
        level = (large[0] + large[1]) / 2 - float(expected[0, picture])
        np.testing.assert_allclose(f64(got.maps[picture]), level, rtol=1e-3, atol=1e-3)
    assert expected.std(1).min() > 0  # every head tells pictures apart


def test_the_reference_is_the_mean_of_normal_pictures_only() -> None:
    method = dra()
    labels = torch.tensor([1, 0, 1, 0, 0, 0])
    images = pictures(6, seed=9)
    method.start_training(TrainingBatch(images, {}, labels))
    assert torch.equal(method.examples, images[[1, 3, 4]])
    method.end_training(4)
    assert (method.steps.tolist(), len(method.examples)) == ([4], 0)
    means = [each[[1, 3, 4]].sum(0) / 3 for each in features_of(method, images)]
    expected = torch.cat([mean.flatten(1) for mean in means], dim=1)
    np.testing.assert_allclose(f64(method.reference), f64(expected), rtol=1e-4, atol=1e-5)
    few = dra()
    few.start_training(TrainingBatch(images[:2], {}))
    assert torch.equal(few.examples, images[[0, 1, 0]])


# Training


def oracle(method: Dra, weights: Weights, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
    """The loss of a step of seed 11, and the heads' scores."""
    torch.manual_seed(11)
    images, plain, normal = method.mixed(batch)
    kinds = ["normal"] * plain + ["pseudo"] * (normal - plain)
    kinds += ["seen"] * (len(images) - normal)
    everything = torch.cat([method.examples, images])
    count = len(method.examples)
    sized = [(each[count:], each[:count].mean(0)) for each in features_of(method, everything)]
    scores, _ = heads(weights, sized, method.config.top_fraction, training=True)
    loss = torch.zeros((), dtype=torch.float64)
    learns_not: list[str | None] = [None, "pseudo", "seen", None]
    for head, (row, absent) in enumerate(zip(scores, learns_not, strict=True)):
        reference = torch.randn(method.config.draws).double()
        terms = [
            deviation(
                score,
                deviating=(kind == "normal") == (head == 0),
                reference=reference,
                margin=method.config.margin,
            )
            for score, kind in zip(row, kinds, strict=True)
            if kind != absent
        ]
        loss = loss + sum(terms) / len(terms)
    return loss, scores


@pytest.mark.parametrize("margin", [5.0, 0.4])
def test_the_parameters_after_one_step(margin: float) -> None:
    """The loss, its gradients (of the loops above, in float64), and Adam by hand: at the first step
    both averages, corrected for their start at 0, are the gradient and its square, so that the step
    is its sign; weight decay is added to the gradient.
    """
    method = dra(margin=margin, draws=40, learning_rate=2e-3, weight_decay=0.01)
    batch = batch_of()
    method.start_training(batch)
    weights = weights_of(method)
    names = [name for name, each in method.named_parameters() if each.requires_grad]
    before = {name: weights[name].requires_grad_() for name in names}
    expected, scores = oracle(method, weights, batch)
    if margin == 0.4:
        assert bool((scores > margin).any())  # that it is bounded is seen
        assert bool((scores < margin).any())
    gradients = torch.autograd.grad(expected, list(before.values()))
    method.train()
    optimizer = method.optimizer()
    torch.manual_seed(11)
    loss = method.training_step(batch, 0.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    optimizer.step()
    after = dict(method.named_parameters())
    held = [each for group in optimizer.param_groups for each in group["params"]]
    assert {id(each) for each in held} == {id(after[name]) for name in names}
    assert len(names) == 13
    for name, gradient in zip(names, gradients, strict=True):
        got = after[name]
        np.testing.assert_allclose(f64(got.grad), f64(gradient), rtol=1e-2, atol=1e-4)  # type: ignore[arg-type]
        decayed = gradient + 0.01 * before[name].detach()
        certain = decayed.abs() > 1e-3  # a sign is not to be told in float32 about 0
        stepped = before[name].detach() - 2e-3 * decayed / (decayed.abs() + 1e-8)
        np.testing.assert_allclose(f64(got)[f64(certain) > 0], f64(stepped[certain]), atol=1e-5)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_everything_that_learns_takes_part(backbone: str) -> None:
    method = dra(backbone=backbone, extractor_rate=1.0)
    for batch in (batch_of(6), TrainingBatch(pictures(3), {})):
        method.start_training(batch)
        held = {id(each) for group in method.optimizer().param_groups for each in group["params"]}
        method.zero_grad(set_to_none=True)
        method.train()
        method.training_step(batch, 0.0).backward()  # type: ignore[no-untyped-call]
        for name, each in method.named_parameters():
            assert (id(each) in held) == (each.grad is not None) == each.requires_grad, name
        grads = [each.grad for each in method.backbone.parameters() if each.grad is not None]
        assert any(float(each.abs().max()) > 0 for each in grads)


# Batches


@pytest.mark.parametrize(("count", "defects"), [(3, 1), (8, 2), (48, 16), (8, 0), (7, 0)])
def test_batches_are_normal_pseudo_and_labelled(count: int, defects: int) -> None:
    assert DraConfig().defects_among(48) == 16
    method = dra()
    grid = torch.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) / HEIGHT / WIDTH
    images = grid + 10.0 * torch.arange(count)[:, None, None, None].expand(-1, 3, 1, 1)
    labels = (torch.arange(count) >= count - defects).long() if defects else None
    given = images.clone()
    made, plain, normal = method.mixed(TrainingBatch(images, {}, labels))
    assert torch.equal(images, given)
    assert labels is None or labels.sum() == defects  # nor are they changed
    assert (plain, normal) == (math.ceil((count - defects) / 2), count - defects)
    rows = [next((n for n in range(count) if torch.equal(one, given[n])), None) for one in made]
    assert None not in rows[:plain] + rows[normal:]
    assert set(rows[normal:]) == set(range(normal, count))
    assert set(rows[plain:normal]) <= {None}
    for one in made[plain:normal]:
        origin = int(one[0].median() // 10)
        changed = (one != given[origin]).any(0)
        assert origin < normal
        assert 0.01 < changed.float().mean() < 0.17
        rows_, columns = changed.any(1), changed.any(0)
        assert changed.sum() >= 0.9 * rows_.sum() * columns.sum()  # a rectangle


@pytest.mark.parametrize("other", [True, False])
def test_a_piece_is_of_the_picture_itself_or_of_the_one_before(
    other: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blemish.methods.dra.recoloured", lambda images, _: images)
    ramp = torch.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) / HEIGHT / WIDTH
    images = (ramp + torch.arange(6)[:, None, None, None]).expand(-1, 3, -1, -1)
    made = dra().pasted(images, 2, 5, other=other)
    for row in range(6):
        changed = (made[row] != images[row]).any(0)
        assert bool(changed.any()) == (2 <= row < 5)
        origins = made[row][:, changed].floor().unique().tolist()  # type: ignore[no-untyped-call]
        assert origins == ([row - other] if 2 <= row < 5 else [])


def test_fewer_rows_than_kinds() -> None:
    with pytest.raises(ConfigError, match="3 at least for each process"):
        dra().mixed(TrainingBatch(pictures(2), {}))
    with pytest.raises(ConfigError, match=r"^train_batch_size: "):
        DraConfig(train_batch_size=2)


def test_pieces_are_pasted_in_the_area_only() -> None:
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    inside[: SIDE // 2, : SIDE // 4] = True
    method = dra()
    method.set_area(Area.of(inside))
    images = pictures(12)
    made, plain, _ = method.mixed(TrainingBatch(images, {}))
    changed = (made != images).any(1)
    assert changed[plain:].flatten(1).any(1).all()
    assert not changed[:plain].any()
    assert not changed[:, HEIGHT // 2 :].any()
    assert not changed[:, :, WIDTH // 4 :].any()


# Whole


def test_it_learns_what_a_defect_looks_like() -> None:
    def stripes(step: int) -> TrainingBatch:
        images = pictures(9, step) * 0.3
        labels = torch.arange(9) // 6
        images[labels == 1] += 2 * (torch.arange(WIDTH) * 1.6).sin().sign()
        return TrainingBatch(images, {}, labels)

    method = dra(learning_rate=1e-2)
    method.start_training(stripes(0))
    method.train()
    optimizer, losses = method.optimizer(), []
    for step in range(80):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = method.training_step(stripes(step), 0.0)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    # Pieces of noise in noise are not to be told from it, so some of the loss stays.
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    method.end_training(80)
    method.eval()
    test = stripes(999)
    assert test.images is not None
    assert test.labels is not None
    scores = method.score(test.images).image
    assert scores[test.labels == 1].min() > 1 + scores[test.labels == 0].max()


def test_what_is_fitted_can_be_restored() -> None:
    method, other = learned(dra()), dra(seed=9)
    state = method.fitted_state()
    assert state["reference"].shape == (64, 4 * 6 + 2 * 3)
    other.check_state(state)
    other.restore_state(state)
    one, two = method.score(pictures()), other.score(pictures())
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.maps, two.maps)
    with pytest.raises(ArtifactError, match="reference: has the shape"):
        other.check_state({**state, "reference": state["reference"][:, :-1]})


def test_a_fit_with_defects_and_the_recipes() -> None:
    paper = DraConfig.paper()
    assert (paper.backbone, paper.image_size, paper.levels) == ("resnet18", (448,), 2)
    assert (paper.learning_rate, paper.weight_decay, paper.extractor_rate) == (2e-4, 1e-5, 1)
    assert (paper.margin, paper.draws, paper.top_fraction, paper.references) == (5, 5000, 0.1, 5)
    assert (paper.min_steps, paper.train_batch_size, paper.hidden) == (600, 48, 256)
    small = {"backbone": "test_resnet", "layers": (2,), "image_size": 64, "min_steps": 3}
    small |= {"weights": "random", "device": "cpu", "precision": "fp32", "train_batch_size": 6}
    pixels = list(np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8))
    method = blemish.fit(
        "dra", pixels[:5], anomalies=pixels[5:], recipe="paper", calibration_fraction=0, **small
    ).method
    assert isinstance(method, Dra)
    assert method.config == replace(
        paper,
        **{"backbone": "test_resnet", "layers": (2,), "image_size": (64, 64)},
        **{"min_steps": 3, "train_batch_size": 6},
    )
    assert method.steps.tolist() == [10]  # 5 pictures, each 8 times, 4 in every batch
    assert not method.decoupled
    assert [method.learning_rate_factor(part / 30) for part in (0, 10, 20)] == pytest.approx(
        [1, 0.1, 0.01]
    )
