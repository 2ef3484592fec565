"""What parts teach, merged: the tree, the bound of coresets, samples and moments against naive
ones, and whatever the order in which parts are done.
"""

from __future__ import annotations

import random
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from blemish.methods import merging
from blemish.methods.coreset import StreamingCoreset, farthest_points
from blemish.methods.merging import (
    CoresetPart,
    Node,
    PartByPart,
    Reduction,
    SamplePart,
    State,
    folded,
)

# Squared distances are rounded by float32, their roots by its square root.
ROUNDED = 1e-3


def unit_points(n: int, dim: int, seed: int = 0) -> Tensor:
    points = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(points, dim=1)


def reach(points: Tensor, bank: Tensor) -> float:
    """How far any of the points lies from the bank."""
    return float(torch.cdist(points.double(), bank.double()).amin(1).max())


def coreset_of(points: Tensor, first: int, size: int, chunk: int = 7) -> State:
    part = CoresetPart(size, points.shape[1], search_dtype=torch.float32)
    for start in range(0, len(points), chunk):
        some = points[start : start + chunk]
        owners = torch.arange(first + start, first + start + len(some))
        part.add(some, owners, [(int(owner), 1) for owner in owners])
    return part.state()


def bank_of(states: list[State], size: int) -> State:
    """Merged in the tree, and the last selection of it."""

    def merge(left: State, right: State) -> State:
        both = merging.merged_coresets(left, right, size)
        assert not both or len(both["features"]) <= 2 * size  # what is held is bounded
        return both

    merged = folded(states, len(states), merge)
    assert merged is not None
    return merging.selected_coreset(merged, size)


def cut(count: int, parts: int, seed: int) -> list[range]:
    """Numbers cut at random into so many parts, some of them perhaps empty."""
    edges = [0, *sorted(random.Random(seed).choices(range(count + 1), k=parts - 1)), count]
    return [range(low, high) for low, high in pairwise(edges)]


@given(st.integers(1, 40), st.randoms(use_true_random=False))
def test_the_tree_is_the_same_whatever_order_parts_come_in(
    parts: int, shuffle: random.Random
) -> None:
    expected = folded((f"{number} " for number in range(parts)), parts, lambda a, b: f"({a}{b})")
    tree = Reduction[str](parts)
    waiting: list[tuple[Node, str]] = [((0, number), f"{number} ") for number in range(parts)]
    merges = deepest = 0
    while waiting:
        node, value = waiting.pop(shuffle.randrange(len(waiting)))
        due = tree.add(node, value)
        if due is not None:
            waiting.append((due[0], f"({due[1]}{due[2]})"))
            merges, deepest = merges + 1, max(deepest, due[0][0])
    assert tree.result == expected
    assert merges == parts - 1
    assert deepest <= tree.levels == (0 if parts == 1 else int(np.ceil(np.log2(parts))))
    # Every part once, and in their order.
    assert [int(number) for number in expected.replace("(", "").replace(")", "").split()] == [
        *range(parts)
    ]


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 1000))
def test_no_feature_lies_farther_from_the_bank_than_the_bound(
    parts: int, size: int, seed: int
) -> None:
    points = unit_points(180, 3, seed)
    states = [coreset_of(points[part], part.start, size) for part in cut(180, parts, seed)]
    merged = bank_of(states, size)
    bank = merged["features"]
    assert len(bank) == min(size, 180)
    torch.testing.assert_close(bank, points[merged["owners"]])
    assert reach(points, bank) <= float(merged["radius"]) + ROUNDED


def test_the_bound_is_within_the_promised_factor_of_one_selection() -> None:
    points, size = unit_points(256, 3), 24
    states = [coreset_of(points[at : at + 32], at, size) for at in range(0, 256, 32)]
    merged = bank_of(states, size)
    # The smallest radius of any centres is at least half the least distance of k + 1 points that
    # are far apart; and at least half of what one greedy selection reaches.
    chosen, _ = farthest_points(points, size + 1)
    apart = torch.cdist(points[chosen].double(), points[chosen].double())
    least = float((apart + torch.eye(size + 1) * 9).min()) / 2
    assert reach(points, merged["features"]) <= float(merged["radius"]) <= 2 * (1 + 3) * 2 * least
    assert float(merged["radius"]) > 0


def test_the_bound_counts_every_reduction_of_a_stream() -> None:
    points = unit_points(400, 3, 5)
    coreset = StreamingCoreset(12, 3)
    for start in range(0, 400, 5):
        coreset.add(points[start : start + 5], torch.arange(start, start + 5))
    bank, _ = coreset.result()
    single = farthest_points(points, 12)[1]
    assert reach(points, bank) <= coreset.radius + ROUNDED
    assert coreset.radius > single  # several reductions, each with a radius of its own


def test_few_features_are_all_kept_in_their_order() -> None:
    points = unit_points(30, 4)
    left, right = coreset_of(points[:10], 0, 40), coreset_of(points[10:], 10, 40)
    merged = merging.merged_coresets(left, right, 40)
    assert torch.equal(merged["features"], points)
    assert torch.equal(merged["owners"], torch.arange(30))
    assert float(merged["radius"]) == 0.0
    assert merging.merged_coresets({}, right, 40) is right
    assert merging.merged_coresets(left, {}, 40) is left


def test_what_a_tree_holds_is_one_selection() -> None:
    points, size = unit_points(64, 4), 32
    states = [coreset_of(points[at : at + 16], at, size) for at in range(0, 64, 16)]
    chosen, radius = farthest_points(points, size)
    merged = bank_of(states, size)
    assert torch.equal(merged["owners"], chosen)
    assert float(merged["radius"]) == pytest.approx(radius)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 20), st.integers(0, 1000))
def test_one_after_the_other_is_what_parts_give(
    pictures: int, part_pictures: int, batch: int, seed: int
) -> None:
    size, shuffle = 20, random.Random(seed)
    # Of each picture from none to five features; some pictures cannot be read.
    rows = [(at, shuffle.randrange(6)) for at in range(pictures) if shuffle.random() < 0.9]
    if not rows:
        return
    points = unit_points(sum(count for _, count in rows) or 1, 3, seed)
    owners = torch.tensor([at for at, count in rows for _ in range(count)], dtype=torch.int64)
    edges = np.cumsum([0, *(count for _, count in rows)])
    parts = merging.divided(pictures, part_pictures)
    new = partial(CoresetPart, size, 3, search_dtype=torch.float32)
    whole = PartByPart(parts, new, partial(merging.merged_coresets, size=size))
    for first in range(0, len(rows), batch):
        some = rows[first : first + batch]
        low, high = edges[first], edges[first + len(some)]
        whole.add(points[low:high], owners[low:high], some)
    states: list[State] = []
    for one in parts:
        part, inside = new(), [at for at, (number, _) in enumerate(rows) if number in one]
        for at in inside:
            low, high = edges[at], edges[at + 1]
            part.add(points[low:high], owners[low:high], [rows[at]])
        states.append(part.state() if inside else {})
    expected, found = bank_of(states, size), merging.selected_coreset(whole.state(), size)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@settings(deadline=None)
@given(st.integers(0, 40_000) | st.just(1_000_000))
def test_pictures_are_divided_at_whole_batches(count: int) -> None:
    parts = merging.divided(count)
    assert [at for part in parts for at in part] == [*range(count)]
    assert all(part.stop % merging.BATCH == 0 for part in parts[:-1])
    assert len(parts) == min(-(-count // 64), 256)
    if len(parts) > 1:
        assert max(map(len, parts)) - min(map(len, parts)) <= 2 * merging.BATCH


def sample_of(points: Tensor, rows: range, size: int, seed: int, each: int) -> State:
    """Of pictures of `each` points."""
    part = SamplePart(size, seed)
    for number in rows:
        some = points[number * each : (number + 1) * each]
        part.add(some, torch.full((each,), number), [(number, each)])
    return part.state()


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 80), st.integers(0, 1000))
def test_a_sample_does_not_depend_on_the_parts(parts: int, size: int, seed: int) -> None:
    points, pictures, each = unit_points(60, 2), 20, 3
    whole = sample_of(points, range(pictures), size, seed, each)
    states = [sample_of(points, part, size, seed, each) for part in cut(pictures, parts, seed)]
    merged = folded(states, parts, lambda a, b: merging.merged_samples(a, b, size))
    assert merged is not None
    assert merged.keys() == whole.keys()
    assert all(torch.equal(merged[name], whole[name]) for name in whole)
    assert len(whole["features"]) == min(size, 60)


@pytest.mark.parametrize("turns", [(64,), (1, 900, 17), (5000,)])
def test_a_sample_is_capped_and_aligned(turns: tuple[int, ...]) -> None:
    points, part, start, number = unit_points(5000, 3), SamplePart(400, 2), 0, 0
    while start < len(points):
        some = points[start : start + turns[number % len(turns)]]
        owners = torch.arange(start, start + len(some))
        part.add(some, owners, [(number, len(some))])
        assert len(part.state()["features"]) <= 400
        start, number = start + len(some), number + 1
    kept, owners = part.state()["features"], part.state()["owners"]
    assert len(kept) == len(set(owners.tolist())) == 400
    assert torch.equal(kept, points[owners])


def test_a_sample_of_few_is_all_of_them() -> None:
    points = unit_points(30, 3)
    found = sample_of(points, range(10), 40, 0, 3)
    assert torch.equal(found["features"], points)
    assert found["owners"].tolist() == [number for number in range(10) for _ in range(3)]


def test_a_sample_is_uniform_over_its_owners() -> None:
    # Pictures of very different sizes, early and late: the counts are hypergeometric around
    # size × share.
    sizes = np.random.default_rng(0).integers(50, 800, 40)
    part = SamplePart(2000, 7)
    for owner, size in enumerate(map(int, sizes)):
        part.add(torch.zeros(size, 1), torch.full((size,), owner), [(owner, size)])
    counts = np.bincount(part.state()["owners"].numpy(), minlength=40)
    assert stats.chisquare(counts, 2000 * sizes / sizes.sum()).pvalue > 1e-3


def test_a_sample_takes_each_feature_equally_often() -> None:
    taken = np.zeros(60)
    for seed in range(600):
        part = SamplePart(10, seed)
        for number in range(20):
            owners = torch.arange(number * 3, number * 3 + 3)
            part.add(torch.zeros(3, 1), owners, [(number, 3)])
        taken[part.state()["owners"].numpy()] += 1
    assert taken.sum() == 6000
    assert stats.chisquare(taken).pvalue > 1e-3


def test_a_sample_follows_its_seed() -> None:
    points = unit_points(60, 2)
    drawn = [sample_of(points, range(20), 10, seed, 3)["owners"].tolist() for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_full_sample_goes_on_as_one_of_all_that_was_seen() -> None:
    shares = []
    for seed in range(40):
        part = SamplePart(50, seed)
        part.resume(torch.zeros(50, 1), torch.zeros(50, dtype=torch.int64), seen=800)
        part.add(torch.ones(200, 1), torch.ones(200, dtype=torch.int64), [(0, 120), (1, 80)])
        features, owners = part.state()["features"], part.state()["owners"]
        assert len(features) == 50
        assert torch.equal(features[:, 0].long(), owners)
        shares.append(float(features.mean()))
    # The share of the new ones among all 1,000.
    assert np.mean(shares) == pytest.approx(0.2, abs=0.03)


def test_keys_of_what_was_kept_are_no_pictures_keys() -> None:
    part, points = SamplePart(8, 3), unit_points(4, 2)
    part.resume(points, torch.arange(4), seen=4)
    kept = part.state()["keys"]
    for number, seen in ((0, 0), (0, 1), (1, 0)):
        drawn = np.random.default_rng([3, number, seen]).random(4)
        assert not np.allclose(1 - kept.numpy(), drawn)


def test_a_picture_that_comes_again_gets_other_keys() -> None:
    part, points = SamplePart(8, 3), unit_points(4, 2)
    part.add(points, torch.full((4,), 5), [(5, 4)])
    part.add(points, torch.full((4,), 5), [(5, 4)])
    assert len(part.state()["keys"].unique()) == 8


def moments_of(rows: Tensor, first: int) -> State:
    """By definition, in float64, of pictures B N d."""
    if not len(rows):
        return {}
    mean = rows.mean(0)
    apart = rows - mean
    return {
        "seen": torch.tensor(len(rows)),
        "mean": mean,
        "scatter": torch.einsum("bnd,bne->nde", apart, apart),
        "subset": torch.arange(rows.shape[2]),
        "owners": torch.arange(first, first + len(rows)),
        "rows": torch.ones(len(rows), dtype=torch.int64),
    }


@settings(deadline=None)
@given(st.integers(1, 10), st.integers(0, 1000))
def test_moments_merge_exactly(parts: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = 5 + torch.randn(24, 3, 4, generator=generator, dtype=torch.float64)
    states = [moments_of(rows[part], part.start) for part in cut(24, parts, seed)]
    merged = folded(states, parts, merging.merged_moments)
    expected = moments_of(rows, 0)
    assert merged is not None
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-12, atol=1e-12)


def test_owners_are_named_by_the_first_of_the_same_content() -> None:
    assert merging.renamed(torch.tensor([7, 3, 7, 9]), {7: 2, 9: 3}).tolist() == [2, 3, 2, 3]


def test_nothing_merges_to_nothing() -> None:
    assert merging.merged_moments({}, {}) == {}
    assert merging.merged_samples({}, {}, 4) == {}
    assert merging.merged_coresets({}, {}, 4) == {}
