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
from blemish.methods.shortlist import (
    COLUMNS,
    MEASURED,
    ROWS,
    principal_axes,
    shortened,
    shortlisted,
)

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
    products = np.where(excluded, -4, brief(queries) @ brief(bank).T)
    found = []
    for query, likeness in zip(queries.double().numpy(), products, strict=True):
        highest = np.array([max(likeness[row + at] for row in rows) for at in range(width)])
        order = np.argsort(highest)[::-1]
        squares = []
        for place, at in enumerate(order[:MEASURED]):
            more = 0.0
            if place >= COLUMNS and width > MEASURED:
                t, s, f = highest[order[[COLUMNS - 1, place, MEASURED]]]
                more = 2 * (t - s) * (t - f) / (s - f)
            squares += [
                np.sum((query - bank[row + at].double().numpy()) ** 2) + more
                for row in rows
                if not excluded[row + at]
            ]
        found.append(np.sqrt(min(squares)))
    return np.array(found)


@pytest.mark.parametrize("count", [3, 8, 9, 50, 64])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_it_is_the_loop(count: int, share: float) -> None:
    bank, queries = (F.normalize(unit_rows(n, n).double()) for n in (count, 20))
    axes = torch.linalg.qr(principal_axes(bank, 4).double()).Q
    short = shortened(bank, axes)
    excluded = torch.rand(count, generator=torch.Generator().manual_seed(3)) < share
    excluded[-1] = False
    out = excluded if share else None
    found = shortlisted(queries, bank, axes, short, dtype=torch.float64, excluded=out)
    wanted = looked_up(queries, bank, axes, excluded.numpy() & bool(share))
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("leaves_out", [False, True])
def test_columns_that_change_places_move_it_little(seed: int, leaves_out: bool) -> None:
    """Along a line of features columns change places all the time: of the piece over which the
    distance changes most, smaller pieces change less, down to where only rounding could tell which
    column comes first."""
    bank, ends = unit_rows(400, seed), unit_rows(2, 50 + seed).double()
    axes = principal_axes(bank, 3).double()
    short = shortened(bank.double(), axes)
    out = torch.arange(400) % 3 == 0 if leaves_out else None

    def along(low: float, high: float) -> tuple[Tensor, Tensor]:
        at = torch.linspace(low, high, 2001, dtype=torch.float64)
        rows = F.normalize(ends[0] + at[:, None] * (ends[1] - ends[0]), dim=1)
        return at, shortlisted(rows, bank, axes, short, dtype=torch.float64, excluded=out)

    low, high = 0.0, 1.0
    while high - low > 1e-9:
        at, found = along(low, high)
        place = int(found.diff().abs().argmax())
        low, high = float(at[place]), float(at[place + 1])
    assert float(found.diff().abs().max()) < 1e-6
    assert float(along(0, 1)[1].std()) > 1e-3  # it does change


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
    if count <= ROWS * MEASURED:  # all of it is measured
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
