"""The search in few dimensions against loops in float64, and what it promises of any bank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from blemish.methods.coreset import nearest
from blemish.methods.shortlist import COLUMNS, ROWS, principal_axes, shortened, shortlisted

WIDTH = 24
# A busy machine may be slow to draw even numbers.
PATIENT = settings(
    derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60
)


def unit_rows(count: int, seed: int, dims: int = WIDTH) -> Tensor:
    """Features of length 1 that lie about a common mean, as those of patches do."""
    random = torch.Generator().manual_seed(seed)
    spread = 2.0 ** -torch.arange(dims)
    rows = torch.randn(count, dims, generator=random) * spread + F.one_hot(torch.tensor(0), dims)
    turned = torch.linalg.qr(torch.randn(WIDTH, dims, generator=random)).Q
    return F.normalize(rows @ turned.T, dim=1)


def looked_up(queries: Tensor, bank: Tensor, axes: Tensor, excluded: np.ndarray) -> np.ndarray:
    """As the docstring of `shortlist` has it, entry by entry."""

    def brief(rows: Tensor) -> np.ndarray:
        whole, ways = rows.double().numpy(), axes.double().numpy()
        along = whole @ ways
        left = np.linalg.norm(whole - along @ ways.T, axis=1)
        return np.concatenate([along, left[:, None] / np.sqrt(2)], axis=1)

    width = -(-len(bank) // ROWS)
    rows = [min(row * width, len(bank) - width) for row in range(ROWS)]
    products = np.where(excluded, -np.inf, brief(queries) @ brief(bank).T)
    found = []
    for query, likeness in zip(queries.double().numpy(), products, strict=True):
        highest = [max(likeness[row + at] for row in rows) for at in range(width)]
        columns = np.argsort(highest)[::-1][:COLUMNS]
        entries = [row + at for at in columns for row in rows if not excluded[row + at]]
        found.append(min(np.linalg.norm(query - bank[each].double().numpy()) for each in entries))
    return np.array(found)


@pytest.mark.parametrize("count", [3, 8, 9, 50, 64])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_it_is_the_loop(count: int, share: float) -> None:
    bank, queries = unit_rows(count, 1), unit_rows(20, 2)
    axes = principal_axes(bank, 4)
    excluded = torch.rand(count, generator=torch.Generator().manual_seed(3)) < share
    excluded[-1] = False
    how = {"excluded": excluded} if share else {}
    found = shortlisted(queries, bank, axes, shortened(bank, axes), **how)
    wanted = looked_up(queries, bank, axes, excluded.numpy() & bool(share))
    # float32 against float64; where a column is missed for another, the distance is not near this
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


@PATIENT
@given(
    count=st.integers(1, 200),
    dims=st.integers(1, WIDTH - 1),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_it_is_never_nearer_than_the_nearest(
    count: int, dims: int, seed: int, dtype: torch.dtype
) -> None:
    bank, queries = unit_rows(count, seed), unit_rows(16, seed + 1)
    axes = principal_axes(bank, dims)
    found = shortlisted(queries, bank, axes, shortened(bank, axes), dtype=dtype)
    least, _ = nearest(queries, bank)
    farthest = torch.cdist(queries.double(), bank.double()).amax(1)
    assert (found >= least - 1e-6).all()
    assert (found <= farthest + 1e-6).all()
    if count <= ROWS * COLUMNS:  # all of it is measured
        torch.testing.assert_close(found, least, atol=1e-6, rtol=0)


@PATIENT
@given(seed=st.integers(0, 10_000), count=st.integers(20, 300))
def test_of_features_that_have_no_more_dimensions_it_is_exact(seed: int, count: int) -> None:
    rows = unit_rows(count + 16, seed, dims=5)
    bank, queries = rows[:count], rows[count:]
    axes = principal_axes(bank, 5)
    found = shortlisted(queries, bank, axes, shortened(bank, axes))
    # Rounding may choose another column only where both are equally far.
    torch.testing.assert_close(found, nearest(queries, bank)[0], atol=1e-4, rtol=0)


def test_more_dimensions_find_nearer_ones() -> None:
    bank, queries = unit_rows(2000, 5), unit_rows(300, 6)
    least, _ = nearest(queries, bank)
    misses = []
    for dims in (1, 3, 8, 16):
        axes = principal_axes(bank, dims)
        found = shortlisted(queries, bank, axes, shortened(bank, axes))
        misses.append(float((found - least).mean()))
    assert misses == sorted(misses, reverse=True)
    assert misses[0] > 1e-2
    assert misses[-1] < 1e-5


def test_many_queries_are_looked_for_in_parts() -> None:
    bank, queries = unit_rows(100, 1), unit_rows(2500, 2)
    axes = principal_axes(bank, 6)
    whole = shortlisted(queries, bank, axes, shortened(bank, axes))
    each = [shortlisted(one, bank, axes, shortened(bank, axes)) for one in queries.split(500)]
    torch.testing.assert_close(whole, torch.cat(each), atol=1e-6, rtol=0)


def test_the_axes_are_those_of_the_second_moment() -> None:
    bank = unit_rows(300, 7)
    axes = principal_axes(bank, 6).double().numpy()
    np.testing.assert_allclose(axes.T @ axes, np.eye(6), atol=1e-6)
    _, values, ways = np.linalg.svd(bank.double().numpy(), full_matrices=False)
    np.testing.assert_allclose(np.abs((axes * ways[:6].T).sum(0)), 1, atol=1e-4)
    assert values[5] > 1.1 * values[6]  # else the last of them could be another
