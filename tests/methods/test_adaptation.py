"""Test-time adaptation: its formulas in float64, and its rules on a model that is a bias."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from naive import f64
from torch import Tensor, nn

from blemish.errors import ConfigError
from blemish.methods import adapter_of
from blemish.methods.adaptation import (
    AS_USUAL,
    LEAST,
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


class Bias:
    """A picture's entropies are its first pixels plus the bias of a norm; the pixel after them is
    its log-odds. Normal training pictures lie around 0, synthetic ones around 1.
    """

    def __init__(self) -> None:
        statistics, limit = summary([noise(40, 0)[None], 1 + noise(40, 1)[None]])
        self.reference = Reference()
        self.reference.entropies, self.reference.entropy_limit = statistics, limit
        self.reference.pictures = torch.tensor(40.0)
        layers = nn.LayerNorm(HEADS), nn.Linear(HEADS, HEADS)
        self.backbone = nn.Sequential(*layers).requires_grad_(False)
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

    def combine(self, look: Look) -> Scores:
        assert look.odds is not None
        assert look.entropies is not None
        return Scores(look.odds.mean(0) + look.entropies.sum((0, 2)), look.maps[:, 0])

    def score(self, images: Tensor) -> Scores:
        return self.combine(self.examine(images))

    def is_as_it_came(self) -> bool:
        weights = list(self.backbone.parameters())
        free = not any(weight.requires_grad or weight.grad is not None for weight in weights)
        return free and torch.equal(self.bias, torch.zeros(HEADS))


def noise(count: int, seed: int, scale: float = 0.1) -> Tensor:
    return torch.randn(count, HEADS, generator=torch.Generator().manual_seed(seed)) * scale


def adapter_to(model: Bias, mode: Any = "online", **options: Any) -> EntropyAdapter:
    return EntropyAdapter(model, mode, **{"rate": 0.02, "steps": 1, "guarded": True, **options})  # type: ignore[arg-type]


def batch(shift: float = 0.5, *, seed: int = 2, normal: int = 6, anomalous: int = 6) -> Tensor:
    """Normal and anomalous pictures, recognised as what they are, all moved by `shift`."""
    odds = torch.cat([torch.full((normal,), -1.0), torch.full((anomalous,), 1.0)])
    images = torch.zeros(normal + anomalous, 3, 2, 4)
    images[:, 0, 0, :HEADS] = noise(len(odds), seed) + (odds > 0)[:, None] + shift
    images[:, 0, 0, HEADS] = odds
    return images


def same(one: Scores, other: Scores) -> bool:
    return torch.equal(one.image, other.image) and torch.equal(one.maps, other.maps)


# Formulas


def test_attention_entropy() -> None:
    attention = torch.rand(2, 3, 9).softmax(-1)
    attention[0, 0] = 1 / 9
    attention[0, 1] = torch.eye(9)[4]
    got = attention_entropy(attention)
    for picture, head in np.ndindex(2, 3):
        row = f64(attention)[picture, head]
        expected = -sum(share * math.log(share) for share in row if share > 0) / math.log(9)
        assert got[picture, head].item() == pytest.approx(expected, abs=1e-6)
    assert f64(got[0, :2]) == pytest.approx([1, 0], abs=1e-6)


def naive_moments(values: np.ndarray) -> list[float]:
    """Mean, second central moment, and the spread of either over the pictures."""
    squares = (values - values.mean()) ** 2
    return [values.mean(), squares.mean(), values.std(ddof=1), squares.std(ddof=1)]


def test_the_moments_that_are_kept_and_their_spreads() -> None:
    entropies = [torch.rand(3, 7, 4), torch.rand(3, 5, 4) * 0.5]
    entropies[1][2, :, 3] = 0.25  # a head that never moves
    statistics, _ = summary(entropies)
    assert (statistics.shape, statistics.dtype) == ((2, 4, 3, 4), torch.float32)
    for kind, size, head in np.ndindex(2, 3, 4):
        expected = naive_moments(f64(entropies[kind])[size, :, head])
        if (kind, size, head) == (1, 2, 3):
            expected = [0.25, 0.0, 1e-4, 1e-8]
        got = f64(statistics[kind, :, size, head])
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("known", [9, math.inf])
def test_drift(known: float) -> None:
    entropies = torch.rand(3, 6, 4)
    statistics, _ = summary([torch.rand(3, 9, 4), torch.rand(3, 9, 4)])
    mean, _, spread, _ = f64(statistics[0])
    variance = spread**2 / 6 + spread**2 / known  # of the difference of two means
    expected = ((f64(entropies).mean(1) - mean) ** 2 / variance).mean()
    assert drift(entropies, statistics, known).item() == pytest.approx(expected, rel=1e-5)


def test_the_limit_is_seldom_passed_by_training_pictures() -> None:
    normal = torch.rand(2, 50, 3)
    statistics, limit = summary([normal, torch.rand(2, 30, 3)])
    rng = np.random.default_rng(0)
    draws = (rng.integers(50, size=16) for _ in range(1500))
    passed = [bool(drift(normal[:, some], statistics) > limit) for some in draws]
    assert 0.001 < np.mean(passed) < 0.03
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
    [[0, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]],
    ids=["both", "no anomalous", "no normal", "one anomalous"],
)
def test_discrepancy(anomalous: list[int]) -> None:
    statistics, _ = summary([torch.rand(3, 9, 4), torch.rand(3, 9, 4)])
    entropies = torch.rand(3, 5, 4, requires_grad=True)
    expected = 0.0
    for kind, size, head in np.ndindex(2, 3, 4):
        values = f64(entropies)[size, np.array(anomalous) == kind, head]
        mean, moment, mean_spread, moment_spread = f64(statistics[kind, :, size, head])
        if len(values):
            expected += ((values.mean() - mean) / mean_spread) ** 2 / 3
        if len(values) > 1:
            expected += ((values.var() - moment) / moment_spread) ** 2 / 3
    got = discrepancy(entropies, torch.tensor(anomalous) > 0, statistics)
    assert got.item() == pytest.approx(expected, rel=1e-4)
    got.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(entropies.grad).all()  # type: ignore[arg-type]
    # The training pictures themselves lie where they lie.
    own = discrepancy(entropies, torch.zeros(5) > 0, summary([entropies] * 2)[0])
    assert own.item() == pytest.approx(0, abs=1e-6)


# Steps


@pytest.mark.parametrize(("steps", "batches"), [(3, 1), (1, 2)])
def test_the_steps_by_hand(steps: int, batches: int) -> None:
    model = Bias()
    adapter = adapter_to(model, rate=0.05, steps=steps)
    mean, _, spread, _ = f64(model.reference.entropies[:, :, 0].transpose(0, 1))
    bias, momentum = np.zeros(HEADS), np.zeros(HEADS)
    for number in range(batches):
        images = batch(seed=2 + number)
        result = adapter.score(images)
        assert (result.adapted, result.note) == (True, "")
        entropies, odds = f64(images[:, 0, 0, :HEADS]), f64(images[:, 0, 0, HEADS])
        classes = np.stack([entropies[odds < 0].mean(0), entropies[odds > 0].mean(0)])
        for _ in range(steps):  # a bias leaves the second moments as they are
            gradient = (2 * (classes + bias - mean) / spread**2).sum(0)
            size = math.sqrt(gradient @ gradient)
            assert size > 1  # so that it is clipped
            momentum = 0.9 * momentum + gradient / size
            bias = bias - 0.05 * momentum
        expected = odds + (entropies + bias).sum(1)
        np.testing.assert_allclose(f64(result.scores.image), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(bias).max() > 0.03


def test_a_small_gradient_is_not_stretched() -> None:
    model = Bias()
    model.reference.entropy_limit.zero_()
    model.reference.entropies[:, 2:] = 10.0  # wide spreads: a flat discrepancy
    before = model.score(batch()).image
    moved = adapter_to(model, rate=0.05).score(batch()).scores.image - before
    assert 0 < float(moved.abs().max()) < 0.01


# Rules


@pytest.mark.parametrize("mode", ["online", "episodic"])
def test_between_batches_the_weights_are_the_artifacts_bit_for_bit(mode: str) -> None:
    model = Bias()
    start = model.score(batch())
    adapter = adapter_to(model, mode, rate=0.0137, steps=2)
    for seed in range(3):
        assert adapter.score(batch(seed=seed)).adapted
        assert model.is_as_it_came()
        assert same(model.score(batch()), start)


def test_after_a_restoration_it_starts_anew() -> None:
    """Without the momentum of what was before."""
    adapter, fresh = adapter_to(Bias()), adapter_to(Bias())
    adapter.score(batch(seed=3))
    adapter.restore()
    for seed in (4, 5):
        assert same(adapter.score(batch(seed=seed)).scores, fresh.score(batch(seed=seed)).scores)


def test_episodic_results_depend_on_their_own_batch_only() -> None:
    results: dict[str, list[Scores]] = {}
    for mode in ("online", "episodic"):
        adapter = adapter_to(Bias(), mode)
        results[mode] = [adapter.score(batch(seed=seed)).scores for seed in (2, 3, 2)]
    assert same(results["episodic"][0], results["episodic"][2])
    assert same(results["episodic"][0], results["online"][0])
    assert not same(results["online"][0], results["online"][2])


@pytest.mark.parametrize("mode", ["online", "episodic"])
def test_few_pictures_are_scored_by_the_artifacts_own_weights(mode: str) -> None:
    adapter, undisturbed = adapter_to(Bias(), mode), adapter_to(Bias(), mode)
    few = batch(normal=4, anomalous=LEAST - 5)
    expected = Bias().score(few)
    for seed in (3, 4):
        result = adapter.score(few)
        assert same(result.scores, expected)
        note = "not adapted: 7 pictures at once, 8 are needed"
        assert (result.adapted, result.note) == (False, note)
        one, two = adapter.score(batch(seed=seed)), undisturbed.score(batch(seed=seed))
        assert one.adapted
        assert same(one.scores, two.scores)  # it goes on as if there had been no small batch
    assert adapter.score(batch(normal=4, anomalous=LEAST - 4)).adapted


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("mode", ["online", "episodic"])
def test_a_step_that_is_not_finite_restores_the_source(mode: str, guarded: bool) -> None:
    model = Bias()
    adapter = adapter_to(model, mode, guarded=guarded)
    assert adapter.score(batch()).adapted
    endless = batch(seed=3)
    endless[0, 0, 0, 0] = math.inf
    result = adapter.score(endless)
    assert (result.adapted, result.note) == (False, "not adapted: the step was not finite")
    assert model.is_as_it_came()
    fresh = adapter_to(Bias(), mode, guarded=guarded)
    assert same(adapter.score(batch(seed=4)).scores, fresh.score(batch(seed=4)).scores)


@pytest.mark.parametrize(
    ("rate", "note"), [(math.inf, "the step was not finite"), (100.0, "the step did not help")]
)
def test_a_step_that_brings_the_moments_no_nearer_is_not_kept(rate: float, note: str) -> None:
    model = Bias()
    result = adapter_to(model, rate=rate).score(batch())
    assert (result.adapted, result.note) == (False, f"not adapted: {note}")
    assert same(result.scores, model.score(batch()))
    assert model.is_as_it_came()


def test_what_was_learned_before_such_a_step_is_kept() -> None:
    adapter = adapter_to(Bias())
    adapter.score(batch())
    adapter._optimizer.param_groups[0]["lr"] = 100.0
    images = batch(seed=3)
    result = adapter.score(images)
    assert result.note == "not adapted: the step did not help"
    assert result.adapted  # by the first batch
    expected = Bias()
    first = adapter_to(expected)
    first.score(batch())
    with torch.no_grad():
        expected.bias.copy_(first._current[1])
    assert same(result.scores, expected.score(images))
    # And the next step is one of the usual length, without the momentum of that one.
    images = batch(seed=4)
    moved = adapter.score(images).scores.image - expected.score(images).image
    assert 0 < float(moved.abs().max()) < 0.04


def test_pictures_like_those_of_the_training_are_not_adapted_to() -> None:
    model = Bias()
    adapter = adapter_to(model)
    result = adapter.score(batch(0.0))
    assert (result.adapted, result.note) == (False, AS_USUAL)
    assert same(result.scores, model.score(batch(0.0)))
    assert adapter.score(batch(0.5)).adapted
    again = adapter.score(batch(0.0, seed=9, normal=12, anomalous=0))
    assert (again.adapted, again.note) == (True, AS_USUAL)  # what was learned stays


def test_the_guard_looks_at_what_is_taken_for_normal() -> None:
    odd = batch(0.0)
    odd[6:, 0, 0, :HEADS] += 5  # anomalies may be anywhere
    assert adapter_to(Bias()).score(odd).note == AS_USUAL
    # One normal picture says too little: then all of them count.
    assert adapter_to(Bias()).score(batch(0.0, normal=1, anomalous=11)).note != AS_USUAL


@pytest.mark.parametrize(("shift", "rate", "least"), [(0.0, 0.02, 0.0), (0.5, 100.0, 1.0)])
def test_without_the_guard_it_always_adapts(shift: float, rate: float, least: float) -> None:
    """As published: to pictures like those of the training, and whether or not a step helps."""
    model, images = Bias(), batch(shift)
    result = adapter_to(model, rate=rate, guarded=False).score(images)
    assert (result.adapted, result.note) == (True, "")
    assert float((result.scores.image - model.score(images).image).abs().max()) > least
    assert model.is_as_it_came()  # between batches


@pytest.mark.parametrize(
    "look", [0, 1, 2, 3], ids=["before", "the first step", "the second step", "after"]
)
def test_an_exception_leaves_neither_gradients_nor_half_a_step(
    look: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Bias()
    adapter, undisturbed = adapter_to(model, steps=2), adapter_to(Bias(), steps=2)
    for each in (adapter, undisturbed):
        assert each.score(batch()).adapted
    examine = model.examine
    model.looks = 0

    def interrupted(images: Tensor) -> Look:
        if model.looks == look:
            raise KeyboardInterrupt
        return examine(images)

    with monkeypatch.context() as patch:
        patch.setattr(model, "examine", interrupted)
        with pytest.raises(KeyboardInterrupt):
            adapter.score(batch(seed=3))
    assert model.is_as_it_came()
    pairs = zip(adapter._current, undisturbed._current, strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)  # what was learned is still there


# What cannot be


def test_modes_and_models_that_cannot_adapt() -> None:
    with pytest.raises(ConfigError, match="adaptation: online or episodic, got 'sometimes'"):
        adapter_to(Bias(), "sometimes")
    bare = Bias()
    bare.reference.entropies = torch.empty(0)
    with pytest.raises(ConfigError, match="holds no statistics to adapt to"):
        adapter_to(bare)
    with pytest.raises(ConfigError, match=r"knn cannot adapt to.*; guided can"):
        adapter_of(Knn.__new__(Knn), "online")
