"""The energy test: against a naive loop, its false-alarm rate, and what it finds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from blemish.errors import ConfigError, NonFiniteError
from blemish.monitoring.comparing import Look, Looks, compare


def naive(a: np.ndarray, b: np.ndarray) -> float:
    both = np.concatenate([a, b])
    a, b = (a - both.mean(0)) / both.std(0), (b - both.mean(0)) / both.std(0)

    def mean(first: np.ndarray, second: np.ndarray) -> float:
        return sum(float(np.sqrt(((x - y) ** 2).sum())) for x in first for y in second) / (
            len(first) * len(second)
        )

    return 2 * mean(a, b) - mean(a, a) - mean(b, b)


def test_the_distance_against_a_loop() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(12, 3)), random.normal(size=(9, 3)) + 0.5
    assert compare(a, b, permutations=19).distance == pytest.approx(naive(a, b))


def test_p_values_are_uniform_without_a_change() -> None:
    """Also where most values are equal, and for sets of unlike sizes."""
    random = np.random.default_rng(0)
    for draw in (lambda n: random.normal(size=(n, 2)), lambda n: random.integers(0, 2, n)):
        found = np.array(
            [compare(draw(12), draw(30), permutations=39, seed=at).p_value for at in range(300)]
        )
        assert (found <= 0.1).mean() < 0.1 + 3.1 * np.sqrt(0.09 / 300)
    normal = [
        compare(random.normal(size=12), random.normal(size=30), permutations=39, seed=at).p_value
        for at in range(300)
    ]
    assert (np.array(normal) <= 0.1).mean() > 0.1 - 3.1 * np.sqrt(0.09 / 300)


def test_what_it_finds() -> None:
    random = np.random.default_rng(0)
    first = random.normal(size=(150, 8))
    moved = random.normal(size=(150, 8)) + 0.3
    wider = random.normal(size=(150, 8)) * 1.4
    bent = first[::-1] @ np.where(np.eye(8) > 0, 1.0, 0.3)  # other correlations, scaled alike
    for other in (moved, wider, bent):
        assert compare(first, other, permutations=499).p_value <= 0.01
    same = np.full((20, 2), 3.0)
    assert compare(same, same).p_value == 1
    # No unit: neither of the whole nor of single dimensions.
    scaled = first * (10.0 ** np.arange(8))
    there = moved * (10.0 ** np.arange(8))
    assert compare(scaled, there).p_value == compare(first, moved).p_value


def test_looks() -> None:
    random = np.random.default_rng(0)
    looks = Looks(window=40, per=10, seed=1, least=0.02)
    found: list[Look] = []
    for at in range(400):
        again = Looks.from_dict(json.loads(json.dumps(looks.to_dict())))
        row = random.normal(size=4) + (1.0 if at >= 200 else 0.0)
        look, other = looks.add(row), again.add(row)
        assert look == other
        found += [look] if look else []
    assert [look.number for look in found] == list(range(1, 10))
    assert [look.differs for look in found] == [False] * 4 + [True] * 5
    assert looks.since == 240
    assert looks.last == again.last == found[-1]
    assert found[0].comparison.share < 0.02 < found[-1].comparison.share


def test_false_alarms_over_many_looks() -> None:
    """One reference for all looks, so they depend on each other; alpha holds for `per` of them."""
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(40):
        looks = Looks(window=20, per=5, alpha=0.2, reference=random.normal(size=30))
        found = [looks.add(float(value)) for value in random.normal(size=100)]
        alarms += any(look.differs for look in found if look)
    assert alarms / 40 <= 0.2 + 3.1 * np.sqrt(0.16 / 40)


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="rows of 2 numbers with rows of 3"):
        compare(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(ConfigError, match="2 to 2000 rows"):
        compare([1.0], [1.0, 2.0])
    with pytest.raises(ConfigError, match="no numbers"):
        compare(["a", "b"], [1, 2])
    with pytest.raises(NonFiniteError):
        compare([1.0, np.nan], [1.0, 2.0])
    looks = Looks()
    looks.add([1.0, 2.0])
    with pytest.raises(ConfigError, match="begin anew for another backbone"):
        looks.add([1.0])
    with pytest.raises(NonFiniteError):
        looks.add([1.0, np.inf])
    with pytest.raises(ConfigError, match="a reference of 20 to 2000"):
        Looks(window=3)
    with pytest.raises(ConfigError, match="not the state"):
        Looks.from_dict({"alpha": 0.1})


def test_how_much_two_sets_differ() -> None:
    """Nothing, however many pictures there are, and all of it for two points."""
    random = np.random.default_rng(0)
    for size in (30, 300):
        same = [
            compare(random.normal(size=(size, 4)), random.normal(size=(size, 4)), permutations=19)
            for _ in range(5)
        ]
        assert np.mean([one.share for one in same]) < 0.6 / size
    apart = compare(np.full((20, 2), 7.0), np.zeros((20, 2)), permutations=99)
    assert apart.share == 1
    a, b = random.normal(size=(150, 4)), random.normal(size=(150, 4)) + 0.1
    slight = Looks(window=150, least=0.05, reference=a)
    assert not any(look.differs for look in map(slight.add, b) if look)


def test_p_values_hold_where_dividing_ends_early() -> None:
    random = np.random.default_rng(0)
    found = np.array(
        [
            compare(*random.normal(size=(2, 15)), permutations=999, enough=5, seed=at).p_value
            for at in range(300)
        ]
    )
    for level in (0.02, 0.1, 0.5):
        assert (found <= level).mean() <= level + 3.1 * np.sqrt(level * (1 - level) / 300)
    assert (found <= 0.5).mean() > 0.35
    moved = compare(np.zeros(30), np.ones(30), permutations=999, enough=5)
    assert moved.p_value == 1 / 1000
    with pytest.raises(ConfigError, match="at least 5"):
        compare(np.zeros(30), np.ones(30), enough=1)


def test_how_many_pictures_are_missing() -> None:
    looks = Looks(window=20, first=30)
    assert looks.needed == 50
    for at in range(50):
        looks.add(float(at % 5))
        assert looks.needed == max(0, 49 - at)
    assert looks.last is not None
