"""The coreset against the plain greedy loop, and the streaming collectors against what they
promise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from blemish.methods import coreset
from blemish.methods.coreset import StreamingCoreset, farthest_points, nearest

Points = Callable[[int, int, int], Tensor]


def random_points(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def unit_points(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(random_points(n, dim, seed), dim=1)


def clustered_points(n: int, dim: int, clusters: int, seed: int = 0) -> Tensor:
    """Tight clusters of very different sizes."""
    random = np.random.default_rng(seed)
    centres = random.normal(0, 1, (clusters, dim))
    weights = 1 / np.arange(1, clusters + 1)
    members = random.choice(clusters, n, p=weights / weights.sum())
    return torch.from_numpy(centres[members] + random.normal(0, 0.01, (n, dim))).float()


def greedy(features: Tensor, count: int) -> tuple[list[int], float]:
    """Algorithm 1 of PatchCore, one point after the other, in float64; from the point nearest to
    the mean.
    """
    points = features.double().numpy()
    chosen = [int(np.linalg.norm(points - points.mean(0), axis=1).argmin())]
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen, float(distance.max())


def shortfall(features: Tensor, chosen: list[int]) -> float:
    """By how much any chosen point was nearer to those before it than the farthest point was; 0 for
    a greedy order.
    """
    points = features.double().numpy()
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    worst = 0.0
    for index in chosen[1:]:
        worst = max(worst, float(distance.max() - distance[index]))
        distance = np.minimum(distance, np.linalg.norm(points - points[index], axis=1))
    return worst


def covering_radius(features: Tensor, kept: Tensor) -> float:
    return float(torch.cdist(features.double(), kept.double()).amin(1).max())


@pytest.mark.parametrize(("n", "dim", "count"), [(50, 3, 20), (1000, 16, 200), (3000, 8, 700)])
def test_the_order_is_that_of_the_greedy_loop(n: int, dim: int, count: int) -> None:
    features = random_points(n, dim, seed=n)
    chosen, radius = farthest_points(features, count)
    expected, expected_radius = greedy(features, count)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == expected
    assert radius == pytest.approx(expected_radius, rel=1e-4)


@pytest.mark.parametrize("make", [random_points, unit_points])
@pytest.mark.parametrize(("n", "dim", "count"), [(2000, 32, 600), (1100, 128, 300)])
def test_every_point_is_the_farthest_but_for_rounding(
    make: Points, n: int, dim: int, count: int
) -> None:
    features = make(n, dim, 8)
    chosen, radius = farthest_points(features, count)
    assert len(set(chosen.tolist())) == count
    assert shortfall(features, chosen.tolist()) < 1e-4
    assert radius == pytest.approx(covering_radius(features, features[chosen]), rel=1e-4)


@pytest.mark.parametrize(("block", "chunk"), [(1, 7), (2, 1000), (16, 64), (64, 3)])
def test_blocks_change_nothing(block: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreset, "_BLOCK", block)
    monkeypatch.setattr(coreset, "_CHUNK", chunk)
    features = random_points(250, 6, seed=4)
    assert farthest_points(features, 120)[0].tolist() == greedy(features, 120)[0]


@pytest.mark.parametrize("block", [8, 1024])
def test_clusters(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Distances inside a cluster are near the rounding of the squared ones, so that the order there
    # may differ.
    monkeypatch.setattr(coreset, "_BLOCK", block)
    features = clustered_points(3000, 12, clusters=40)
    expected, _ = greedy(features, 40)
    chosen, radius = farthest_points(features, 40)
    assert chosen.tolist()[1:] == expected[1:]  # one from each cluster
    assert radius == pytest.approx(covering_radius(features, features[chosen]), rel=1e-3)
    for count in (100, 600):
        chosen, radius = farthest_points(features, count)
        assert len(set(chosen.tolist())) == count
        assert shortfall(features, chosen.tolist()) < 1e-3
        assert radius == pytest.approx(covering_radius(features, features[chosen]), abs=1e-3)


def test_duplicates_are_not_chosen_while_there_is_anything_else() -> None:
    distinct = random_points(60, 5)
    features = distinct.repeat(20, 1)[
        torch.randperm(1200, generator=torch.Generator().manual_seed(1))
    ]
    chosen, radius = farthest_points(features, 60)
    assert len(torch.unique(features[chosen], dim=0)) == 60
    assert radius == pytest.approx(0.0, abs=2e-3)
    chosen, radius = farthest_points(features, 500)
    assert len(set(chosen.tolist())) == 500  # none twice, even when nothing is left to gain
    assert len(torch.unique(features[chosen], dim=0)) == 60
    assert radius == pytest.approx(0.0, abs=2e-3)


@pytest.mark.parametrize("count", [10, 11, 500])
def test_all_are_kept_when_there_are_no_more(count: int) -> None:
    chosen, radius = farthest_points(random_points(10, 3), count)
    assert chosen.tolist() == list(range(10))
    assert radius == 0.0


def test_one_centre_is_the_point_nearest_to_the_mean() -> None:
    features = random_points(300, 4)
    chosen, radius = farthest_points(features, 1)
    assert chosen.tolist() == greedy(features, 1)[0]
    assert radius == pytest.approx(covering_radius(features, features[chosen]), rel=1e-5)


def in_chunks(collector: StreamingCoreset, features: Tensor, sizes: tuple[int, ...]) -> int:
    """Adds everything in chunks of these sizes, in turn, owner = row number; the most that was ever
    held.
    """
    start = turn = largest = 0
    while start < len(features):
        end = min(start + sizes[turn % len(sizes)], len(features))
        collector.add(features[start:end], torch.arange(start, end))
        largest = max(largest, len(collector._features))
        start, turn = end, turn + 1
    return largest


@pytest.mark.parametrize("n", [60, 100, 101, 150, 200])
@pytest.mark.parametrize("sizes", [(200,), (7, 31), (100,)])
def test_a_stream_that_fits_gives_the_greedy_selection(n: int, sizes: tuple[int, ...]) -> None:
    features = unit_points(n, 6, seed=n)
    collector = StreamingCoreset(100, 6)
    in_chunks(collector, features, sizes)
    kept, owners = collector.result()
    expected = list(range(n)) if n <= 100 else greedy(features, 100)[0]
    assert owners.tolist() == expected
    assert torch.equal(kept, features[expected])


@pytest.mark.parametrize("sizes", [(64,), (1, 900, 17), (5000,)])
def test_a_long_stream_stays_under_the_cap_and_covers_well(sizes: tuple[int, ...]) -> None:
    features = unit_points(8000, 8, 3)
    collector = StreamingCoreset(150, 8)
    before = collector._features.data_ptr()
    assert in_chunks(collector, features, sizes) == 300
    assert collector._features.data_ptr() == before  # never another buffer
    kept, owners = collector.result()
    assert len(kept) == len(owners) <= 150
    assert len(set(owners.tolist())) == len(owners)
    assert torch.equal(kept, features[owners])  # still aligned
    # Measured 1.06 to 1.07 here; merge-and-reduce promises less.
    assert covering_radius(features, kept) < 2 * greedy(features, 150)[1]


def test_a_stream_in_order_covers_what_came_last() -> None:
    # Every thousand points lie somewhere else, so that what was kept early covers nothing later.
    corners = torch.eye(6)
    features = torch.cat([random_points(1000, 6, seed=s) * 0.1 + corners[s] for s in range(6)])
    features = torch.nn.functional.normalize(features, dim=1)
    collector = StreamingCoreset(120, 6)
    in_chunks(collector, features, (250,))
    kept, owners = collector.result()
    assert len(kept) <= 120
    assert len(np.unique(owners.numpy() // 1000)) == 6
    assert covering_radius(features, kept) < 2 * greedy(features, 120)[1]


def test_a_result_can_be_taken_in_between_and_is_a_copy() -> None:
    features = unit_points(1000, 4)
    collector = StreamingCoreset(50, 4)
    collector.add(features[:90], torch.arange(90))
    first, _ = collector.result()
    collector.add(features[90:], torch.arange(90, 1000))
    second, owners = collector.result()
    assert len(first) == len(second) == 50
    assert not torch.equal(first, second)
    assert torch.equal(second, features[owners])
    second.zero_()
    assert torch.equal(collector.result()[0], features[owners])


def test_a_search_in_bfloat16_covers_too() -> None:
    features = unit_points(4000, 16, 5)
    collector = StreamingCoreset(150, 16, search_dtype=torch.bfloat16)
    in_chunks(collector, features, (300,))
    kept, owners = collector.result()
    assert kept.dtype == torch.float32
    assert torch.equal(kept, features[owners])
    assert covering_radius(features, kept) < 2 * greedy(features, 150)[1]


def nearest_loop(queries: Tensor, bank: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    points = bank.double().numpy()
    every = [np.linalg.norm(points - query, axis=1) for query in queries.double().numpy()]
    return np.array([d.min() for d in every]), np.array([d.argmin() for d in every])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 1000])
def test_nearest_is_the_loop(size: int) -> None:
    queries, bank = unit_points(200, 12, 1), unit_points(size, 12, 2)
    distance, index = nearest(queries, bank)
    expected, where = nearest_loop(queries, bank)
    assert distance.dtype == torch.float32
    assert index.dtype == torch.int64
    np.testing.assert_allclose(distance.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert index.tolist() == where.tolist()


def test_nearest_in_bfloat16_is_close() -> None:
    queries, bank = unit_points(300, 64, 1), unit_points(3000, 64, 2)
    distance, index = nearest(queries, bank.bfloat16())
    expected, _ = nearest_loop(queries, bank)
    assert distance.dtype == torch.float32
    np.testing.assert_allclose(distance.numpy(), expected, rtol=0.01)
    rounded = (queries - bank.bfloat16().float()[index]).norm(
        dim=1
    )  # what it found is measured in float32
    torch.testing.assert_close(distance, rounded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_excluded_points_are_never_the_nearest(seed: int, share: float) -> None:
    """Even the nearest of all: every query lies beside a point that does not count."""
    bank = unit_points(41, 6, seed)
    excluded = torch.rand(41, generator=torch.Generator().manual_seed(seed)) < share
    excluded[0], excluded[40] = True, False
    queries = torch.nn.functional.normalize(
        bank[excluded] + 0.01 * random_points(int(excluded.sum()), 6, 9), dim=1
    )
    found, index = nearest(queries, bank, excluded=excluded)
    allowed = torch.cdist(queries.double(), bank.double()).masked_fill(excluded, torch.inf)
    assert torch.equal(index, allowed.argmin(1))
    torch.testing.assert_close(found.double(), allowed.amin(1), atol=1e-5, rtol=0)


def test_a_whole_quarter_may_be_excluded() -> None:
    bank = unit_points(16, 4)
    for kept in range(16):
        excluded = torch.arange(16) != kept
        _, index = nearest(bank, bank, excluded=excluded)
        assert index.tolist() == [kept] * 16
