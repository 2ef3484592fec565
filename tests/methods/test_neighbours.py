"""The distance to the mean of the nearest entries against a loop in float64, and that it is
continuous where they change places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from blemish.errors import ConfigError
from blemish.methods.coreset import nearest
from blemish.methods.memory import KnnConfig, PatchCoreConfig
from blemish.methods.neighbours import distance_to_mean

Floats = NDArray[np.float64]


def unit_rows(count: int, seed: int, width: int = 6) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=random), dim=1)


def looped(queries: Tensor, bank: Tensor, count: int) -> Floats:
    """As the docstring of `neighbours` has it, entry by entry."""
    found = []
    entries = [entry.double().numpy() for entry in bank]
    for query in queries.double().numpy():
        apart = sorted(
            (float(np.linalg.norm(query - entry)), at) for at, entry in enumerate(entries)
        )
        total, weighed = 0.0, np.zeros(len(query))
        for length, at in apart[:count]:
            weight = 1 - length**2 / apart[count][0] ** 2 if len(apart) > count else 1.0
            total += weight
            weighed += weight * entries[at]
        found.append(float(np.linalg.norm(query - weighed / total)))
    return np.array(found)


@pytest.mark.parametrize("count", [1, 2, 4, 30])
@pytest.mark.parametrize("size", [1, 3, 5, 200])
def test_it_is_the_loop(count: int, size: int) -> None:
    queries, bank = unit_rows(700, 1), unit_rows(size, 2)  # more than are looked for at once
    found = distance_to_mean(queries, bank, count=count)
    # Where all distances are nearly equal, all weights are nearly 0, and what they hold in common
    # of the least weight shows.
    np.testing.assert_allclose(found.numpy(), looped(queries, bank, count), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("left", [1, 3, 4, 5, 60])
def test_what_is_excluded_might_as_well_not_be_there(count: int, left: int) -> None:
    queries, bank = unit_rows(50, 3), unit_rows(90, 4)
    excluded = torch.ones(90, dtype=torch.bool)
    excluded[torch.randperm(90, generator=torch.Generator().manual_seed(5))[:left]] = False
    found = distance_to_mean(queries, bank, count=count, excluded=excluded)
    expected = looped(queries, bank[~excluded], count)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_of_one_neighbour_it_is_the_distance_to_the_nearest() -> None:
    queries, bank = unit_rows(40, 6), unit_rows(100, 7)
    found = distance_to_mean(queries, bank, count=1)
    torch.testing.assert_close(found, nearest(queries, bank)[0], rtol=1e-4, atol=1e-5)


def test_what_is_in_the_bank_several_times_is_found() -> None:
    bank = unit_rows(3, 8).repeat(6, 1)
    found = distance_to_mean(bank[:3], bank, count=4)
    torch.testing.assert_close(found, torch.zeros(3), rtol=0, atol=1e-5)


def test_it_does_not_jump_where_entries_change_places() -> None:
    """A query on its way past many entries: a plain mean of four would jump."""
    bank = unit_rows(300, 9, width=3)
    ends = unit_rows(2, 10, width=3).double()
    share = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None]
    way = F.normalize(ends[0] + share * (ends[1] - ends[0]), dim=1)
    steps = (way[1:] - way[:-1]).norm(dim=1).max()
    found = distance_to_mean(way.float(), bank, count=4).double()
    assert float((found[1:] - found[:-1]).abs().max()) < 30 * float(steps)
    squares = torch.cdist(way.float(), bank).topk(4, largest=False).indices
    plain = (way.float() - bank[squares].mean(1)).norm(dim=1).double()
    assert float((plain[1:] - plain[:-1]).abs().max()) > 100 * float(steps)


def test_a_search_in_bfloat16_measures_in_float32() -> None:
    queries, bank = unit_rows(300, 11, width=64), unit_rows(2_000, 12, width=64)
    exact = distance_to_mean(queries, bank, count=4)
    rough = distance_to_mean(queries, bank, count=4, dtype=torch.bfloat16)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("config", [PatchCoreConfig, KnnConfig])
def test_best_has_several_and_what_was_saved_before_has_one(
    config: type[PatchCoreConfig | KnnConfig],
) -> None:
    assert config.best().neighbours == {PatchCoreConfig: 7, KnnConfig: 4}[config]
    assert config().neighbours == config.within_lda().neighbours == 1
    with pytest.raises(ConfigError, match=r"neighbours: .* is needed, got 0"):
        config(neighbours=0)
    with pytest.raises(ConfigError, match=r"bank_loss: .* set neighbours=1"):
        config(neighbours=4, bank_loss=0.05)
