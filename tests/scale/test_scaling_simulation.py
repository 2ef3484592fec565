"""The simulation of a cluster (benchmarks/scaling.py) against what can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scaling import Times, simulate

EVEN = Times(decode=0.004, score=0.05, worker=0.01, driver=0.005, spread=0.0)


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_scoring_holds_up_where_it_is_the_slowest(workers: int) -> None:
    found = simulate(EVEN, workers)
    most = EVEN.bounds(workers)
    assert min(most, key=most.__getitem__) == found.holds_up == "scoring"
    assert found.pictures_per_second == pytest.approx(most["scoring"], rel=0.03)
    assert found.busy["scoring"] > 0.96


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("driver", {"driver": 2.0}),
        ("storage", {"megabytes": 50.0, "bandwidth": 100.0}),
        ("decoding", {"latency": 4.0}),
    ],
)
def test_what_saturates_is_found(part: str, changed: dict[str, float]) -> None:
    times = replace(EVEN, **changed)
    found = simulate(times, 8)
    assert found.holds_up == part
    assert found.pictures_per_second == pytest.approx(times.bounds(8)[part], rel=0.03)


def test_no_part_does_more_than_it_can_and_more_workers_never_less() -> None:
    times = replace(EVEN, spread=0.5, driver=0.2)
    rates = []
    for workers in (1, 2, 4, 8, 16, 32, 64, 128):
        found = simulate(times, workers)
        assert found.pictures_per_second <= 1.05 * min(times.bounds(workers).values())
        assert max(found.busy.values()) <= 1 + 1e-9
        rates.append(found.pictures_per_second)
    assert rates == sorted(rates)
    assert rates[-1] < 1.01 * 64 / 0.2  # of the driver: 64 pictures in 0.2 s


def test_larger_blocks_keep_the_driver_from_holding_up() -> None:
    """By the measured times of benchmarks/results/scaling.jsonl, in blocks as they were measured
    and as they are for 64 workers."""
    times = Times(decode=0.0019, score=0.0088, worker=0.017, driver=0.0097, block=24)
    small = simulate(times, 64)
    assert small.holds_up == "driver"
    large = simulate(replace(times, block=104), 64)
    assert large.holds_up == "scoring"
    assert large.pictures_per_second > 2.5 * small.pictures_per_second


def test_the_same_seed_the_same_run() -> None:
    times = replace(EVEN, spread=0.3)
    assert simulate(times, 4, seed=1) == simulate(times, 4, seed=1) != simulate(times, 4, seed=2)
