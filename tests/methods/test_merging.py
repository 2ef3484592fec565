"""What parts teach, merged: the tree, the bound of coresets, samples and moments against naive
ones, and whatever the order in which parts are done.
"""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blemish.methods import merging
from blemish.methods.coreset import StreamingCoreset, farthest_points
from blemish.methods.merging import CoresetPart, Node, Reduction, SamplePart, State, folded

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
    merged = folded(states, parts, lambda a, b: merging.merged_coresets(a, b, size))
    assert merged is not None
    bank = merged["features"]
    assert len(bank) == min(size, 180)
    torch.testing.assert_close(bank, points[merged["owners"]])
    assert reach(points, bank) <= float(merged["radius"]) + ROUNDED


def test_the_bound_is_within_the_promised_factor_of_one_selection() -> None:
    points, size = unit_points(256, 3), 24
    states = [coreset_of(points[at : at + 32], at, size) for at in range(0, 256, 32)]
    merged = folded(states, 8, lambda a, b: merging.merged_coresets(a, b, size))
    assert merged is not None
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


def test_a_sample_is_uniform() -> None:
    counts = np.zeros(40)
    for seed in range(500):
        counts[sample_of(unit_points(40, 2), range(20), 10, seed, 2)["owners"].numpy() * 2] += 1
    # Of 20 pictures of two features each, ten are drawn: so often is one of a picture.
    drawn = counts[::2]
    assert drawn.sum() > 0
    assert abs(drawn / 500 - 0.5).max() < 0.15


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
