"""The race: its chances are the ones stated, over many seeds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from blemish.errors import ConfigError
from blemish.monitoring.draws import Draw, heaviest, race, uniform, weights

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
    """With two turns, also for one that came in the second, and whatever its sizes were."""
    turn, clock = 0.7, 1.9
    totals = np.zeros(3)
    for seed in range(6000):
        old = race("old", SIZES, seed=seed)
        if old.priority >= turn:
            old = race("old", {**SIZES, "threshold": 1.5}, seed=seed, start=turn, turn=1)
        kept = race("kept", SIZES, seed=seed)  # nobody set its size anew
        new = race("new", {**SIZES, "threshold": 0.05}, seed=seed, turn=1)
        totals += weights([old, kept, new], clock, [turn])
    assert np.allclose(totals / 6000, 1, atol=0.06)


def test_the_random_share_runs_through_all_turns() -> None:
    first = [race(str(at), SIZES, seed=1) for at in range(3000)]
    left = [one for one in first if one.priority >= 0.5]
    sizes = {"random": 0.2, "unseen": 9}
    again = [race(one.picture, sizes, seed=1, start=0.5, turn=1) for one in left]
    assert [one.random for one in again] == [one.random for one in left]
    assert all(one.priority > 0.5 for one in again)
    drawn = next(one for one in first if one.random < 0.5)
    with pytest.raises(ConfigError, match="keeps its place"):
        race(drawn.picture, SIZES, seed=1, start=0.5, turn=1)


def test_weights_at_the_ends() -> None:
    draw = race("a", SIZES, seed=1)
    assert weights([draw], math.inf).tolist() == [1]
    assert weights([draw], math.inf, [0.1]).tolist() == [1]
    assert weights([draw], draw.priority).tolist() == [0]
    late = weights([draw], draw.priority + 1)[0]
    assert late == pytest.approx(1 / -math.expm1(-0.8 * (draw.priority + 1)))
    assert late <= heaviest(0.2, draw.priority + 1)
    assert float(heaviest(0.2, math.inf, [0.5])) == 1


def test_records() -> None:
    draw = race("a", SIZES, seed=1)
    assert Draw.from_dict(json.loads(json.dumps(draw.to_dict()))) == draw
    for change in ({"size": 0.0}, {"priority": -1.0}, {"share": 2.0}, {"other": 1}):
        with pytest.raises(ConfigError, match="not the record of a draw"):
            Draw.from_dict({**draw.to_dict(), **change})
    with pytest.raises(ConfigError, match="needed: 'random' > 0"):
        race("a", {"threshold": 1.0}, seed=1)
