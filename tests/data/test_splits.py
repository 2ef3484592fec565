from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.data.splits import draw_anomalies, few_shot, hold_out
from blemish.errors import ConfigError, DataError
from blemish.types import Sample


def samples(count: int) -> list[Sample]:
    return [Sample(path=Path(f"set/{index:03d}.png")) for index in range(count)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(count=st.integers(1, 40), fraction=st.floats(0, 0.5), seed=st.integers(0, 2**32))
def test_draws_part_the_samples_whatever_their_order(
    count: int, fraction: float, seed: int
) -> None:
    everything = samples(count)
    shuffled = random.Random(7).sample(everything, count)
    kept, held = hold_out(shuffled, fraction, seed)
    assert len(held) == round(fraction * count)
    assert sorted(kept + held, key=lambda sample: sample.path) == everything
    assert hold_out(everything, fraction, seed) == (kept, held)
    assert draw_anomalies(everything, len(held), seed) == (held, kept)
    assert set(held) <= set(few_shot(everything, max(1, len(held)), seed))


def test_draws_are_fixed_by_the_seed_for_all_time() -> None:
    """The published tables depend on these draws: `PCG64(0)` permutes 10 as 4 6 2 7 3 5 9 0 8 1."""
    drawn = few_shot(samples(10), 3, seed=0)
    assert [sample.path.stem for sample in drawn] == ["002", "004", "006"]
    assert hold_out(samples(10), 0.3, seed=0)[1] == drawn
    assert draw_anomalies(samples(10), 3, seed=0)[0] == drawn
    assert set(drawn) < set(few_shot(samples(10), 5, seed=0))  # a part of a larger one


def test_another_seed_draws_others() -> None:
    assert len({tuple(few_shot(samples(50), 5, seed)) for seed in range(5)}) == 5


def test_nothing_to_hold_out_or_to_draw() -> None:
    assert hold_out(samples(3), 0, seed=0) == (samples(3), [])
    assert hold_out([], 0.2, seed=0) == ([], [])
    assert draw_anomalies(samples(3), 0, seed=2) == ([], samples(3))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_out_of_range_is_an_error(fraction: float) -> None:
    with pytest.raises(ConfigError, match="fraction"):
        hold_out(samples(3), fraction, seed=0)


def test_more_than_there_are_or_fewer_than_none_is_an_error() -> None:
    with pytest.raises(DataError, match="leaves none"):
        hold_out(samples(2), 0.9, seed=0)
    with pytest.raises(DataError, match="only 2"):
        few_shot(samples(2), 3, seed=0)
    with pytest.raises(ConfigError, match="at least 1"):
        few_shot(samples(2), 0, seed=0)
    with pytest.raises(DataError, match="only 2"):
        draw_anomalies(samples(2), 3, seed=0)
    with pytest.raises(ConfigError, match="negative"):
        draw_anomalies(samples(2), -1, seed=0)
    with pytest.raises(ConfigError, match="seed"):
        few_shot(samples(2), 1, seed=-1)
