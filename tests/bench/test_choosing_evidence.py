from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from blemish.bench.choosing.evidence import (
    Evidence,
    _weights,
    aupros,
    aurocs,
    difference,
    estimate,
    share,
)
from blemish.metrics.ranking import auroc

GROUPED = Evidence(
    good=("a", "b", "c", "d"),
    defective=(("a1", "a2"), ("b1",), (), ("d1", "d2")),
    paired=True,
)
SINGLE = Evidence(good=("a", "b", "c", "d"), defective=(("x",), ("y",), ("z",)))


def table(evidence: Evidence, seed: int) -> dict[str, float]:
    """Scores of all its pictures, ties among them."""
    random = np.random.default_rng(seed)
    ids = [*evidence.good, *(one for group in evidence.defective for one in group)]
    return {one: float(round(random.normal(), 1)) for one in ids}


@pytest.mark.parametrize("evidence", [GROUPED, SINGLE], ids=["grouped", "single"])
def test_every_draw_is_the_auroc_of_the_pictures_drawn(evidence: Evidence) -> None:
    scores, draws = table(evidence, 1), 50
    found = aurocs(evidence, [scores], draws=draws, seed=3)
    assert found is not None
    random = np.random.default_rng(3)
    of_good = _weights(random, draws, len(evidence.good))
    groups = len(evidence.defective)
    of_groups = of_good if evidence.paired else _weights(random, draws, groups)
    for row, (goods, bads) in enumerate(zip(of_good, of_groups, strict=True)):
        values, labels = [], []
        for one, times in zip(evidence.good, goods, strict=True):
            values += [scores[one]] * int(times)
            labels += [0] * int(times)
        for group, times in zip(evidence.defective, bads, strict=True):
            values += [scores[one] for one in group] * int(times)
            labels += [1] * (int(times) * len(group))
        expected = auroc(values, labels)
        if expected is not None:
            assert found[0, row] == pytest.approx(expected, abs=1e-12)
    assert np.isfinite(found).all()


def test_every_draw_is_the_aupro_of_the_pictures_drawn() -> None:
    """Of a2 the map had no region left, and d1 has three."""
    first = {"a1": (1, 0.9), "b1": (2, 0.3), "d1": (3, 0.7), "d2": (1, 0.1)}
    tables = [
        {
            one: {"regions": regions, "overlap": value / by}
            for one, (regions, value) in first.items()
        }
        for by in (1, 2)
    ]
    found = aupros(GROUPED, tables, draws=50, seed=3)
    assert found is not None
    drawn = _weights(np.random.default_rng(3), 50, 4)  # as `aurocs` draws pairs
    for row, times in enumerate(drawn):
        values = []
        for group, often in zip(GROUPED.defective, times, strict=True):
            for one in group:
                regions, value = first.get(one, (0, 0.0))
                values += [value] * (regions * int(often))
        if values:
            assert found[0, row] == pytest.approx(np.mean(values), abs=1e-12)
    assert found[0, 0] == pytest.approx((0.9 + 2 * 0.3 + 3 * 0.7 + 0.1) / 7)
    assert found[1] == pytest.approx(found[0] / 2)
    assert np.isfinite(found).all()


def test_without_places_of_all_there_is_no_aupro() -> None:
    one = {"a1": {"regions": 1, "overlap": 0.9}}
    assert aupros(GROUPED, [one, {**one, "b1": {"regions": 2, "overlap": 0.3}}]) is None
    assert aupros(GROUPED, [{}, {}]) is None
    assert aupros(GROUPED, []) is None


def test_draws_are_as_many_pictures_as_there_are() -> None:
    weights = _weights(np.random.default_rng(0), 200, 7)
    assert (weights.sum(1) == 7).all()
    assert (weights[0] == 1).all()
    assert len({tuple(row) for row in weights}) > 100


def test_all_candidates_are_drawn_alike() -> None:
    scores = table(GROUPED, 2)
    shifted = {one: 2 * value + 5 for one, value in scores.items()}  # the same order
    found = aurocs(GROUPED, [scores, shifted], draws=100)
    assert found is not None
    assert (found[0] == found[1]).all()
    assert difference(found[0], found[1]) == (0, 0, 0)


def test_only_what_all_have_scored_counts() -> None:
    one, other = table(GROUPED, 1), table(GROUPED, 2)
    del other["a"], one["d1"]
    known = GROUPED.known_to([one, other])
    assert known.good == ("b", "c", "d")  # with a, what was made of it goes
    assert known.defective == (("b1",), (), ("d2",))
    assert SINGLE.known_to([{"a": 1.0, "y": 2.0}]).defective == (("y",),)


def test_without_one_of_the_classes_there_is_nothing_to_say() -> None:
    assert aurocs(Evidence(good=("a",), defective=()), [{"a": 1.0}]) is None
    assert aurocs(Evidence(good=(), defective=(("x",),)), [{"x": 1.0}]) is None


def test_the_interval_holds_the_middle_of_the_draws() -> None:
    row = np.concatenate([[0.5], np.linspace(0, 1, 1001)])
    assert estimate(row, 10) == pytest.approx((0.5, 0.025, 0.975))
    # All perfect: nothing is known below, but that all of ten were met.
    perfect = estimate(np.ones(50), 10)
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low == pytest.approx(0.025 ** (1 / 10))


@pytest.mark.parametrize(("count", "of"), [(0, 9), (3, 9), (9, 9), (1, 60)])
def test_the_interval_of_a_share_is_that_of_the_binomial(count: int, of: int) -> None:
    def at_least(k: int, p: float) -> float:
        return sum(math.comb(of, i) * p**i * (1 - p) ** (of - i) for i in range(k, of + 1))

    found = share(count, of)
    assert found.value == count / of
    if count:
        assert at_least(count, found.low) == pytest.approx(0.025, abs=1e-9)
    else:
        assert found.low == 0
    if count < of:
        assert 1 - at_least(count + 1, found.high) == pytest.approx(0.025, abs=1e-9)
    else:
        assert found.high == 1


def test_intervals_cover_what_they_are_for() -> None:
    """Of many samples of pictures, about 95 % of the intervals hold the true AUROC."""
    random, hits, trials = np.random.default_rng(0), 0, 150
    truth = 0.5 * (1 + math.erf(1 / 2))  # P(N(1, 1) > N(0, 1))
    for _ in range(trials):
        good, bad = random.normal(size=40), random.normal(1, 1, size=40)
        evidence = Evidence(
            good=tuple(f"g{at}" for at in range(40)),
            defective=tuple((f"d{at}",) for at in range(40)),
        )
        scores = dict(zip((f"g{at}" for at in range(40)), good.tolist(), strict=True))
        scores |= dict(zip((f"d{at}" for at in range(40)), bad.tolist(), strict=True))
        rows = aurocs(evidence, [scores], draws=300)
        assert rows is not None
        found = estimate(rows[0], 40)
        hits += found.low <= truth <= found.high
    assert 0.88 <= hits / trials <= 1.0


def test_ties_count_as_half() -> None:
    scores = {"a": 1.0, "b": 2.0, "x": 1.0, "y": 2.0}
    evidence = Evidence(good=("a", "b"), defective=(("x",), ("y",)))
    won = [
        1.0 if bad > good else 0.5 if bad == good else 0.0
        for good, bad in product((1.0, 2.0), (1.0, 2.0))
    ]
    found = aurocs(evidence, [scores], draws=1)
    assert found is not None
    assert found[0, 0] == sum(won) / 4
