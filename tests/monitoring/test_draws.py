"""The race: its chances are the ones stated, over many seeds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from blemish.errors import ConfigError
from blemish.monitoring.draws import Draw, race, uniform, weights

SIZES = {"random": 0.2, "threshold": 0.5, "unseen": 0.1}


def test_uniform_numbers() -> None:
    found = np.sort([uniform("a", at) for at in range(20000)])
    assert 0 < found[0] < found[-1] < 1
    apart = np.abs(found - (np.arange(20000) + 0.5) / 20000).max()
    assert apart < 1.63 / math.sqrt(20000)  # Kolmogorov-Smirnov at 1 %
    assert uniform("a", 1, 2) != uniform("a", 12)


def test_chances_and_strata() -> None:
    draws = [race(str(at), SIZES, seed=3) for at in range(20000)]
    for clock in (0.1, 1.0, 3.0):
        come = np.mean([one.priority < clock for one in draws])
        assert abs(come - -math.expm1(-0.8 * clock)) < 4 * math.sqrt(0.25 / 20000)
        chance = np.mean([one.random < clock for one in draws])
        assert abs(chance - -math.expm1(-0.2 * clock)) < 4 * math.sqrt(0.25 / 20000)
    shown = {name: np.mean([one.stratum == name for one in draws]) for name in SIZES}
    assert all(abs(shown[name] - size / 0.8) < 0.015 for name, size in SIZES.items())
    # The chance at which it came is itself uniform: what the store keeps.
    assert abs(np.mean([one.probability for one in draws]) - 0.5) < 0.01


def test_the_next_is_drawn_in_proportion_to_size() -> None:
    """Successive sampling: the first of three, over seeds."""
    sizes = {"a": 0.2, "b": 0.5, "c": 1.3}
    first = [
        min(sizes, key=lambda name: race(name, {"random": sizes[name]}, seed=seed).priority)
        for seed in range(6000)
    ]
    for name, size in sizes.items():
        assert abs(first.count(name) / 6000 - size / 2.0) < 0.025


def test_every_picture_counts_once_on_average() -> None:
    """Whatever its size is."""
    clock, totals = 1.9, np.zeros(3)
    for seed in range(6000):
        for at, more in enumerate((0.5, 1.5, 0.05)):
            draw = race(str(at), {**SIZES, "threshold": more}, seed=seed)
            totals[at] += weights(draw.size, clock) if draw.priority < clock else 0
    assert np.allclose(totals / 6000, 1, atol=0.06)


def test_weights_at_the_ends() -> None:
    assert weights([0.2, 0.8], math.inf).tolist() == [1, 1]
    assert weights([0.2, 0.8], 3.0) == pytest.approx([1 / -math.expm1(-0.6), 1 / -math.expm1(-2.4)])
    assert weights(0.8, 1e-9) == pytest.approx(1.25e9)


def test_records() -> None:
    draw = race("a", SIZES, seed=1)
    assert Draw.from_dict(json.loads(json.dumps(draw.to_dict()))) == draw
    before = {**draw.to_dict(), "start": 0.0, "turn": 0}  # as it was once written
    assert Draw.from_dict(json.loads(json.dumps(before))) == draw
    for change in ({"size": 0.0}, {"priority": -1.0}, {"share": 2.0}, {"other": 1}, {"start": 0.1}):
        with pytest.raises(ConfigError, match="not the record of a draw"):
            Draw.from_dict({**draw.to_dict(), **change})
    with pytest.raises(ConfigError, match="needed: 'random' > 0"):
        race("a", {"threshold": 1.0}, seed=1)
