"""Test-time adaptation: its formulas against naive loops in float64, and its rules on a model that
is a bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from blemish.errors import ConfigError
from blemish.methods import adapter_of
from blemish.methods.adaptation import (
    LEAST,
    Adapted,
    EntropyAdapter,
    Look,
    attention_entropy,
    discrepancy,
    drift,
    summary,
)
from blemish.methods.memory import Knn
from blemish.methods.reference import Reference
from blemish.types import Scores

HEADS = 2
guarded = partial(EntropyAdapter, guarded=True)


class Bias:
    """A picture's entropies are its first pixels plus the bias of a norm; the pixel after them is
    its log-odds.
    """

    def __init__(self, statistics: Tensor, chance: Tensor) -> None:
        self.reference = Reference()
        self.reference.entropies = statistics
        self.reference.entropy_limit, self.reference.pictures = chance.clone()
        self.backbone = nn.Sequential(nn.LayerNorm(HEADS), nn.Linear(HEADS, HEADS)).requires_grad_(
            False
        )
        self.looks = 0

    @property
    def bias(self) -> Tensor:
        bias: Tensor = self.backbone[0].bias  # type: ignore[assignment]
        return bias

    def examine(self, images: Tensor) -> Look:
        self.looks += 1
        odds = images[:, 0, 0, HEADS][None]
        entropies = (images[:, 0, 0, :HEADS] + self.bias)[None]
        return Look(torch.zeros(len(images), 1, 2, 2), odds, entropies)

    def score(self, images: Tensor) -> Scores:
        return self.combine(self.examine(images))

    def combine(self, look: Look) -> Scores:
        assert look.odds is not None
        assert look.entropies is not None
        return Scores(look.odds.mean(0) + look.entropies.sum((0, 2)), look.maps[:, 0])


def images_of(entropies: Tensor, odds: Tensor) -> Tensor:
    """B 3 2 4 from entropies B L and log-odds B."""
    images = torch.zeros(len(entropies), 3, 2, 4)
    images[:, 0, 0, :HEADS] = entropies
    images[:, 0, 0, HEADS] = odds
    return images


def noise(count: int, seed: int, scale: float = 0.1) -> Tensor:
    return torch.randn(count, HEADS, generator=torch.Generator().manual_seed(seed)) * scale


def fitted() -> Bias:
    """Normal pictures lie around 0, synthetic ones around 1."""
    statistics, limit = summary([noise(40, 0)[None], 1 + noise(40, 1)[None]])
    return Bias(statistics, torch.stack([limit, torch.tensor(40.0)]))


def batch(shift: float = 0.5, *, seed: int = 2, normal: int = 6, anomalous: int = 6) -> Tensor:
    """Normal and anomalous pictures, recognised as what they are, all moved by `shift`."""
    odds = torch.cat([torch.full((normal,), -1.0), torch.full((anomalous,), 1.0)])
    return images_of(noise(normal + anomalous, seed) + (odds > 0)[:, None] + shift, odds)


def same(one: Scores, other: Scores) -> bool:
    return torch.equal(one.image, other.image) and torch.equal(one.maps, other.maps)


def f64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


# Formulas


def test_attention_entropy() -> None:
    attention = torch.rand(2, 3, 9).softmax(-1)
    attention[0, 0] = 1 / 9
    attention[0, 1] = torch.eye(9)[4]
    attention[1, 2] = torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0, 0, 0])
    got = attention_entropy(attention)
    for picture, head in np.ndindex(2, 3):
        row = f64(attention)[picture, head]
        expected = -sum(share * math.log(share) for share in row if share > 0) / math.log(9)
        assert got[picture, head].item() == pytest.approx(expected, abs=1e-6)
    assert f64(got[0, :2]) == pytest.approx([1, 0], abs=1e-6)
    assert got[1, 2].item() == pytest.approx(math.log(2) / math.log(9), abs=1e-6)


def naive_moments(values: list[float]) -> tuple[float, float, float, float]:
    """Mean, second central moment, and the spread of either over the pictures."""

    def spread(numbers: list[float]) -> float:
        middle = sum(numbers) / len(numbers)
        return math.sqrt(sum((number - middle) ** 2 for number in numbers) / (len(numbers) - 1))

    mean = sum(values) / len(values)
    squares = [(value - mean) ** 2 for value in values]
    return mean, sum(squares) / len(squares), spread(values), spread(squares)


def test_the_moments_that_are_kept_and_their_spreads() -> None:
    entropies = [torch.rand(3, 7, 4), torch.rand(3, 5, 4) * 0.5]
    entropies[1][2, :, 3] = 0.25  # a head that never moves
    statistics, _ = summary(entropies)
    assert statistics.shape == (2, 4, 3, 4)
    assert statistics.dtype == torch.float32
    for kind, size, head in np.ndindex(2, 3, 4):
        expected = naive_moments(f64(entropies[kind])[size, :, head].tolist())
        if (kind, size, head) == (1, 2, 3):
            expected = (0.25, 0.0, 1e-4, 1e-8)
        np.testing.assert_allclose(
            f64(statistics[kind, :, size, head]), expected, rtol=1e-5, atol=1e-12
        )


@pytest.mark.parametrize("known", [9, math.inf])
def test_drift(known: float) -> None:
    entropies = torch.rand(3, 6, 4)
    statistics, _ = summary([torch.rand(3, 9, 4), torch.rand(3, 9, 4)])
    terms = []
    for size, head in np.ndindex(3, 4):
        mean, _, spread, _ = f64(statistics[0, :, size, head])
        values = f64(entropies[size, :, head])
        variance = spread**2 / 6 + spread**2 / known  # of the difference of two means
        terms.append((sum(values) / 6 - mean) ** 2 / variance)
    assert drift(entropies, statistics, known).item() == pytest.approx(sum(terms) / 12, rel=1e-5)
    if known == math.inf:
        assert torch.equal(drift(entropies, statistics), drift(entropies, statistics, known))


def test_the_limit_is_seldom_passed_by_training_pictures() -> None:
    normal = torch.rand(2, 50, 3)
    statistics, limit = summary([normal, torch.rand(2, 30, 3)])
    rng = np.random.default_rng(0)
    drifts = np.array(
        [float(drift(normal[:, rng.integers(50, size=16)], statistics)) for _ in range(1500)]
    )
    assert 0.001 < (drifts > float(limit)).mean() < 0.03
    assert drift(normal + 0.3, statistics, 50) > limit


def test_the_limit_is_seldom_passed_by_new_pictures_of_the_same_kind() -> None:
    generator = torch.Generator().manual_seed(0)
    passed = []
    for _ in range(10):
        normal = torch.randn(1, 20, 6, generator=generator) * 0.01 + 0.8
        statistics, limit = summary([normal, normal])
        for _ in range(20):
            new = torch.randn(1, 32, 6, generator=generator) * 0.01 + 0.8
            passed.append(bool(drift(new, statistics, 20) > limit))
    assert np.mean(passed) < 0.1


@pytest.mark.parametrize(
    "anomalous",
    [[0, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0], [1, 0, 1, 1, 1]],
    ids=["both", "no anomalous", "no normal", "one anomalous", "one normal"],
)
def test_discrepancy(anomalous: list[int]) -> None:
    statistics, _ = summary([torch.rand(3, 9, 4), torch.rand(3, 9, 4)])
    entropies = torch.rand(3, 5, 4)
    expected = 0.0
    for kind in (0, 1):
        chosen = [index for index, each in enumerate(anomalous) if each == kind]
        if not chosen:
            continue
        for size, head in np.ndindex(3, 4):
            mean, moment, mean_spread, moment_spread = f64(statistics[kind, :, size, head])
            values = [f64(entropies)[size, index, head] for index in chosen]
            found = sum(values) / len(values)
            expected += ((found - mean) / mean_spread) ** 2 / 3
            if len(chosen) > 1:
                square = sum((value - found) ** 2 for value in values) / len(values)
                expected += ((square - moment) / moment_spread) ** 2 / 3
    got = discrepancy(entropies, torch.tensor(anomalous) > 0, statistics)
    assert got.item() == pytest.approx(expected, rel=1e-4)
    # The training pictures themselves lie where they lie.
    assert discrepancy(
        entropies, torch.zeros(5) > 0, summary([entropies] * 2)[0]
    ).item() == pytest.approx(0, abs=1e-6)


def test_one_picture_of_a_class_has_a_gradient_that_is_finite() -> None:
    statistics, _ = summary([torch.rand(1, 9, 2), torch.rand(1, 9, 2)])
    entropies = torch.rand(1, 4, 2, requires_grad=True)
    discrepancy(entropies, torch.tensor([False, True, False, False]), statistics).backward()  # type: ignore[no-untyped-call]
    assert entropies.grad is not None
    assert torch.isfinite(entropies.grad).all()
    assert (entropies.grad != 0).all()


# Steps


@pytest.mark.parametrize(("steps", "batches"), [(1, 1), (3, 1), (1, 2)])
def test_the_steps_by_hand(steps: int, batches: int) -> None:
    model = fitted()
    adapter = guarded(model, "online", rate=0.05, steps=steps)
    statistics = f64(model.reference.entropies)
    bias, momentum = np.zeros(HEADS), np.zeros(HEADS)
    for number in range(batches):
        images = batch(seed=2 + number)
        result = adapter.score(images)
        assert (result.adapted, result.note) == (True, "")
        entropies, odds = f64(images[:, 0, 0, :HEADS]), f64(images[:, 0, 0, HEADS])
        for _ in range(steps):
            gradient = np.zeros(HEADS)
            for kind, head in np.ndindex(2, HEADS):  # a bias leaves the second moments as they are
                mean, _, spread, _ = statistics[kind, :, 0, head]
                found = entropies[(odds > 0) == bool(kind), head].mean() + bias[head]
                gradient[head] += 2 * (found - mean) / spread**2
            size = math.sqrt(gradient @ gradient)
            assert size > 1  # so that it is clipped
            momentum = 0.9 * momentum + gradient / size
            bias = bias - 0.05 * momentum
        expected = odds + (entropies + bias).sum(1)
        np.testing.assert_allclose(f64(result.scores.image), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(bias).max() > 0.03


def test_a_small_gradient_is_not_stretched() -> None:
    model = fitted()
    model.reference.entropy_limit.zero_()
    model.reference.entropies[:, 2:] = 10.0  # wide spreads: a flat discrepancy
    images = batch(0.5)
    start = model.combine(model.examine(images)).image
    moved = guarded(model, "online", rate=0.05, steps=1).score(images).scores.image - start
    assert 0 < float(moved.abs().max()) < 0.01


# Rules


@pytest.mark.parametrize("mode", ["online", "episodic"])
def test_between_batches_the_weights_are_the_artifacts_bit_for_bit(mode: Any) -> None:
    model = fitted()
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    images = batch()
    start = model.combine(model.examine(images))
    adapter = guarded(model, mode, rate=0.0137, steps=2)
    for seed in range(3):
        assert adapter.score(batch(seed=seed)).adapted
        assert all(
            torch.equal(tensor, before[name])
            for name, tensor in model.backbone.state_dict().items()
        )
        assert same(model.combine(model.examine(images)), start)
        assert not any(
            weight.requires_grad or weight.grad is not None
            for weight in model.backbone.parameters()
        )


def test_after_a_restoration_it_starts_anew() -> None:
    """Without the momentum of what was before."""
    first, again = fitted(), fitted()
    adapter = guarded(first, "online", rate=0.02, steps=1)
    adapter.score(batch(seed=3))
    adapter.restore()
    fresh = guarded(again, "online", rate=0.02, steps=1)
    for seed in (4, 5):
        assert same(adapter.score(batch(seed=seed)).scores, fresh.score(batch(seed=seed)).scores)


def test_episodic_results_depend_on_their_own_batch_only() -> None:
    results: dict[str, list[Adapted]] = {}
    for mode in ("online", "episodic"):
        adapter = guarded(fitted(), mode, rate=0.02, steps=1)
        results[mode] = [adapter.score(batch(seed=seed)) for seed in (2, 3, 2)]
    assert all(result.adapted for each in results.values() for result in each)
    assert same(results["episodic"][0].scores, results["episodic"][2].scores)
    assert same(results["episodic"][0].scores, results["online"][0].scores)
    assert not same(results["online"][0].scores, results["online"][2].scores)


@pytest.mark.parametrize("mode", ["online", "episodic"])
def test_few_pictures_are_scored_by_the_artifacts_own_weights(mode: Any) -> None:
    model, other = fitted(), fitted()
    adapter, undisturbed = (guarded(each, mode, rate=0.02, steps=1) for each in (model, other))
    few = batch(normal=4, anomalous=LEAST - 5)
    unadapted = fitted()
    expected = unadapted.combine(unadapted.examine(few))
    for seed in (3, 4):
        result = adapter.score(few)
        assert same(result.scores, expected)
        assert not result.adapted
        assert result.note == "not adapted: 7 pictures at once, 8 are needed"
        one, two = adapter.score(batch(seed=seed)), undisturbed.score(batch(seed=seed))
        assert one.adapted
        assert same(one.scores, two.scores)  # it goes on as if there had been no small batch
    assert adapter.score(batch(normal=4, anomalous=LEAST - 4)).adapted


@pytest.mark.parametrize("mode", ["online", "episodic"])
def test_a_step_that_is_not_finite_restores_the_source(mode: Any) -> None:
    model = fitted()
    adapter = guarded(model, mode, rate=0.02, steps=1)
    assert adapter.score(batch()).adapted
    endless = batch(seed=3)
    endless[0, 0, 0, 0] = math.inf
    result = adapter.score(endless)
    assert (result.adapted, result.note) == (False, "not adapted: the step was not finite")
    assert torch.equal(model.bias, torch.zeros(HEADS))
    fresh = guarded(fitted(), mode, rate=0.02, steps=1)
    assert same(adapter.score(batch(seed=4)).scores, fresh.score(batch(seed=4)).scores)


def test_weights_that_overflow_are_not_kept() -> None:
    model = fitted()
    result = guarded(model, "online", rate=math.inf, steps=1).score(batch())
    assert (result.adapted, result.note) == (False, "not adapted: the step was not finite")
    assert torch.equal(model.bias, torch.zeros(HEADS))
    assert same(result.scores, model.combine(model.examine(batch())))


def test_a_step_that_brings_the_moments_no_nearer_is_not_kept() -> None:
    model = fitted()
    images = batch()
    start = model.combine(model.examine(images))
    result = guarded(model, "online", rate=100.0, steps=1).score(images)
    assert (result.adapted, result.note) == (False, "not adapted: the step did not help")
    assert same(result.scores, start)
    assert torch.equal(model.bias, torch.zeros(HEADS))


def test_what_was_learned_before_such_a_step_is_kept() -> None:
    model = fitted()
    adapter = guarded(model, "online", rate=0.02, steps=1)
    adapter.score(batch())
    adapter._optimizer.param_groups[0]["lr"] = 100.0
    images = batch(seed=3)
    result = adapter.score(images)
    assert result.note == "not adapted: the step did not help"
    assert result.adapted  # by the first batch
    expected = fitted()
    first = guarded(expected, "online", rate=0.02, steps=1)
    first.score(batch())
    with torch.no_grad():
        expected.bias.copy_(first._current[1])
    assert same(result.scores, expected.combine(expected.examine(images)))
    # And the next step is one of the usual length, without the momentum of that one.
    moved = (
        adapter.score(batch(seed=4)).scores.image
        - expected.combine(expected.examine(batch(seed=4))).image
    )
    assert 0 < float(moved.abs().max()) < 0.04


def test_pictures_like_those_of_the_training_are_not_adapted_to() -> None:
    model = fitted()
    adapter = guarded(model, "online", rate=0.02, steps=1)
    images = batch(0.0)
    limit, known = float(model.reference.entropy_limit), float(model.reference.pictures)
    entropies = model.examine(images[:6]).entropies
    assert entropies is not None
    assert drift(entropies, model.reference.entropies, known) < limit
    result = adapter.score(images)
    assert (result.adapted, result.note) == (False, "not adapted: as the training pictures")
    assert same(result.scores, model.combine(model.examine(images)))
    assert torch.equal(model.bias, torch.zeros(HEADS))
    assert adapter.score(batch(0.5)).adapted
    again = adapter.score(images_of(noise(12, 9), -torch.ones(12)))
    assert (again.adapted, again.note) == (
        True,
        "not adapted: as the training pictures",
    )  # what was learned stays


def test_the_guard_looks_at_what_is_taken_for_normal() -> None:
    model = fitted()
    odd = batch(0.0)
    odd[6:, 0, 0, :HEADS] += 5  # anomalies may be anywhere
    assert (
        guarded(model, "online", rate=0.02, steps=1).score(odd).note
        == "not adapted: as the training pictures"
    )
    nearly_all = batch(
        0.0, normal=1, anomalous=11
    )  # one normal picture says too little: then all of them
    assert (
        guarded(model, "online", rate=0.02, steps=1).score(nearly_all).note
        != "not adapted: as the training pictures"
    )


def test_without_the_guard_it_always_adapts() -> None:
    """As published: to pictures like those of the training as well, and whether or not a step
    helps.
    """
    images = batch(0.0)
    steps = {}
    for guard in (True, False):
        model = fitted()
        adapter = EntropyAdapter(model, "online", rate=0.02, steps=1, guarded=guard)
        steps[guard] = (adapter.score(images), model.combine(model.examine(images)))
    assert (steps[True][0].adapted, steps[False][0].adapted) == (False, True)
    assert steps[False][0].note == ""
    assert not same(steps[False][0].scores, steps[False][1])
    model = fitted()
    overshot = EntropyAdapter(model, "online", rate=100.0, steps=1, guarded=False).score(batch())
    assert (overshot.adapted, overshot.note) == (True, "")
    assert (
        float((overshot.scores.image - model.combine(model.examine(batch())).image).abs().max()) > 1
    )
    assert torch.equal(model.bias, torch.zeros(HEADS))  # between batches it is the artifact's


def test_without_the_guard_few_pictures_and_endless_steps_are_still_not_adapted_to() -> None:
    few = EntropyAdapter(fitted(), "online", rate=0.02, steps=1, guarded=False).score(
        batch(normal=4, anomalous=3)
    )
    assert not few.adapted
    endless = EntropyAdapter(fitted(), "online", rate=math.inf, steps=1, guarded=False).score(
        batch()
    )
    assert (endless.adapted, endless.note) == (False, "not adapted: the step was not finite")


@pytest.mark.parametrize(
    "look", [0, 1, 2, 3], ids=["before", "the first step", "the second step", "after"]
)
def test_an_exception_leaves_neither_gradients_nor_half_a_step(
    look: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = fitted(), fitted()
    adapter, undisturbed = (guarded(each, "online", rate=0.02, steps=2) for each in (model, other))
    for each in (adapter, undisturbed):
        assert each.score(batch()).adapted
    examine: Callable[[Tensor], Look] = model.examine
    model.looks = 0

    def interrupted(images: Tensor) -> Look:
        if model.looks == look:
            raise KeyboardInterrupt
        return examine(images)

    with monkeypatch.context() as patch:
        patch.setattr(model, "examine", interrupted)
        with pytest.raises(KeyboardInterrupt):
            adapter.score(batch(seed=3))
    assert torch.equal(model.bias, torch.zeros(HEADS))
    assert not any(
        weight.requires_grad or weight.grad is not None for weight in model.backbone.parameters()
    )
    few = batch(normal=4, anomalous=1)  # and what was learned of the first batch is still there
    assert same(adapter.score(few).scores, undisturbed.score(few).scores)
    assert all(
        torch.equal(one, two)
        for one, two in zip(adapter._current, undisturbed._current, strict=True)
    )


# What cannot be


def test_modes_and_models_that_cannot_adapt() -> None:
    with pytest.raises(ConfigError, match="adaptation: online or episodic, got 'sometimes'"):
        guarded(fitted(), "sometimes", rate=0.1, steps=1)  # type: ignore[arg-type]
    bare = fitted()
    bare.reference.entropies = torch.empty(0)
    with pytest.raises(ConfigError, match="holds no statistics to adapt to"):
        guarded(bare, "online", rate=0.1, steps=1)
    with pytest.raises(
        ConfigError, match="knn cannot adapt to the pictures that it scores; guided can"
    ):
        adapter_of(Knn.__new__(Knn), "online")
