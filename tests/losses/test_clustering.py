"""Clustering losses against naive loops in float64, alone and in several processes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from blemish.errors import ConfigError
from blemish.losses import (
    centred,
    clustering,
    entropy_missing,
    gathered,
    masked_prediction,
    mean_over_processes,
    multi_view,
    own_share,
    sinkhorn,
    swapped,
)

pytestmark = pytest.mark.usefixtures("seeded")


def balanced(scores: Tensor, epsilon: float, iterations: int) -> np.ndarray:
    """SwAV's algorithm as it is published: scale the sum of each prototype to 1/K, then of each
    picture to 1/B.
    """
    shares = np.exp(scores.double().numpy() / epsilon)
    count, prototypes = shares.shape
    shares /= shares.sum()
    for _ in range(iterations):
        for column in range(prototypes):
            shares[:, column] /= sum(shares[:, column]) * prototypes
        for row in range(count):
            shares[row] /= sum(shares[row]) * count
    return shares * count


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.05, 1), (0.3, 10)])
@pytest.mark.parametrize("shape", [(16, 20), (6, 3), (2, 5)])
def test_sinkhorn_against_loops(shape: tuple[int, int], epsilon: float, iterations: int) -> None:
    scores = torch.rand(shape) * 2 - 1
    found = sinkhorn(scores, epsilon=epsilon, iterations=iterations)
    np.testing.assert_allclose(
        found.numpy(), balanced(scores, epsilon, iterations), rtol=2e-4, atol=1e-7
    )
    assert found.std(1).min() > 0.05  # the pictures do prefer some prototypes


def test_sinkhorn_takes_scores_of_any_size() -> None:
    scores = torch.rand(8, 5) * 2e4 - 1e4
    found = sinkhorn(scores)
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(1), torch.ones(8))


@pytest.mark.parametrize("changes", [{"epsilon": 0.0}, {"epsilon": math.nan}, {"iterations": 0}])
def test_sinkhorn_refuses(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="epsilon above 0 and at least 1 iteration"):
        sinkhorn(torch.zeros(2, 2), **changes)


def test_targets_are_float32_and_carry_no_gradient() -> None:
    scores = torch.rand(4, 6, dtype=torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for targets in (sinkhorn(scores), centred(scores, torch.zeros(6))):
            assert targets.dtype == torch.float32
            assert not targets.requires_grad


def test_centred_against_loops() -> None:
    scores, centre = torch.rand(5, 7), torch.rand(7)
    found = centred(scores, centre, temperature=0.2)
    for row, got in zip(scores.double().numpy(), found, strict=True):
        powers = np.exp((row - centre.numpy()) / 0.2)
        np.testing.assert_allclose(got.numpy(), powers / sum(powers), rtol=1e-4)


def test_multi_view_and_its_gradient_against_loops() -> None:
    targets = torch.rand(4, 5).softmax(1)
    logits = torch.randn(3, 4, 5, requires_grad=True)
    loss = multi_view(targets, [each.log_softmax(1) for each in logits])
    loss.backward()  # type: ignore[no-untyped-call]
    total, slopes = 0.0, np.empty((3, 4, 5))
    for view, picture in np.ndindex(3, 4):
        powers = np.exp(logits[view, picture].detach().double().numpy())
        wanted = targets[picture].double().numpy()
        for prototype in range(5):
            share = powers[prototype] / sum(powers)
            total -= wanted[prototype] * math.log(share) / 12
            slopes[view, picture, prototype] = (share - wanted[prototype]) / 12
    assert loss.item() == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(logits.grad, slopes, rtol=1e-4, atol=1e-7)


def test_swapped_and_its_gradient_against_loops() -> None:
    targets = torch.rand(2, 4, 5).softmax(2)
    logits = torch.randn(3, 4, 5, requires_grad=True)
    loss = swapped(list(targets), [each.log_softmax(1) for each in logits])
    loss.backward()  # type: ignore[no-untyped-call]
    total, slopes = 0.0, np.zeros((3, 4, 5))
    for wanted_view, view, picture in np.ndindex(2, 3, 4):
        if view == wanted_view:
            continue
        powers = np.exp(logits[view, picture].detach().double().numpy())
        wanted = targets[wanted_view, picture].double().numpy()
        for prototype in range(5):
            share = powers[prototype] / sum(powers)
            total -= wanted[prototype] * math.log(share) / 4 / 4  # pairs of views, pictures
            slopes[view, picture, prototype] += (share - wanted[prototype]) / 4 / 4
    assert loss.item() == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(logits.grad, slopes, rtol=1e-4, atol=1e-7)


def test_the_missing_entropy_and_its_gradient_against_loops() -> None:
    logits = torch.randn(3, 4, 5, requires_grad=True)
    loss = entropy_missing([each.log_softmax(1) for each in logits])
    loss.backward()  # type: ignore[no-untyped-call]
    powers = np.exp(logits.detach().double().numpy())
    shares = powers / powers.sum(2, keepdims=True)
    mean = [sum(shares[view, row, k] for view, row in np.ndindex(3, 4)) / 12 for k in range(5)]
    total = math.log(5) + sum(share * math.log(share) for share in mean)
    slopes = np.empty((3, 4, 5))
    for view, row, prototype in np.ndindex(3, 4, 5):
        own = shares[view, row]
        steepness = [math.log(share) + 1 for share in mean]
        middle = sum(own[k] * steepness[k] for k in range(5))
        slopes[view, row, prototype] = own[prototype] * (steepness[prototype] - middle) / 12
    assert loss.item() == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(logits.grad, slopes, rtol=1e-3, atol=1e-7)
    assert entropy_missing([torch.full((2, 5), 0.2).log()]).item() == pytest.approx(0, abs=1e-6)


def test_masked_prediction_and_its_gradient_against_loops() -> None:
    hidden = torch.zeros(4, 6, dtype=torch.bool)
    hidden[0, [1, 4]] = hidden[2, [0, 2, 5]] = hidden[3, 3] = True  # of the second picture none
    targets = torch.rand(6, 5).softmax(1)
    logits = torch.randn(6, 5, requires_grad=True)
    loss = masked_prediction(targets, logits.log_softmax(1), hidden)
    loss.backward()  # type: ignore[no-untyped-call]
    total, row, slopes = 0.0, 0, np.empty((6, 5))
    for count in (2, 0, 3, 1):
        for _ in range(count):
            powers = np.exp(logits[row].detach().double().numpy())
            for prototype in range(5):
                share, wanted = powers[prototype] / sum(powers), targets[row, prototype].item()
                total -= wanted * math.log(share) / count / 4
                slopes[row, prototype] = (share - wanted) / count / 4
            row += 1
    assert loss.item() == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(logits.grad, slopes, rtol=1e-4, atol=1e-7)
    nothing = masked_prediction(targets[:0], logits[:0], hidden & False)
    assert nothing.item() == 0


class Group:
    """What `torch.distributed` is to the functions: sums and maxima over threads, which stand for
    processes; each has to ask as often as the others, in the same order.
    """

    ReduceOp = torch.distributed.ReduceOp

    def __init__(self, processes: int) -> None:
        self.barrier = threading.Barrier(processes, timeout=20)
        self.given = [torch.empty(0)] * processes
        self.rank = threading.local()

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def get_world_size(self) -> int:
        return len(self.given)

    def get_rank(self) -> int:
        return int(self.rank.number)

    def all_gather(self, parts: list[Tensor], tensor: Tensor) -> None:
        self.given[self.rank.number] = tensor.clone()
        self.barrier.wait()
        for part, given in zip(parts, self.given, strict=True):
            part.copy_(given)
        self.barrier.wait()

    def all_reduce(self, tensor: Tensor, op: Any = ReduceOp.SUM) -> None:
        self.given[self.rank.number] = tensor.clone()
        self.barrier.wait()
        stack = torch.stack(self.given)
        tensor.copy_(stack.sum(0) if op == self.ReduceOp.SUM else stack.amax(0))
        self.barrier.wait()


def together(
    work: Callable[[Tensor], Tensor], shares: tuple[Tensor, ...], patch: pytest.MonkeyPatch
) -> list[Tensor]:
    """What each process gets of its own share."""
    group = Group(len(shares))
    patch.setattr(clustering, "dist", group)

    def one(number: int) -> Tensor:
        group.rank.number = number
        return work(shares[number])

    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(one, range(len(shares))))


def test_sinkhorn_balances_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.rand(12, 5) * 2 - 1
    expected = sinkhorn(scores)
    found = torch.cat(together(sinkhorn, scores.split(4), monkeypatch))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    monkeypatch.undo()
    alone = torch.cat([sinkhorn(part) for part in scores.split(4)])  # type: ignore[no-untyped-call]
    assert (alone - expected).abs().max() > 0.05


def test_the_mean_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 8.0]), torch.tensor([5.0, 2.0]))
    for mean in together(mean_over_processes, shares, monkeypatch):
        assert mean.tolist() == [3, 4]
    assert [share.tolist() for share in shares] == [[1, 2], [3, 8], [5, 2]]  # as they were
    monkeypatch.undo()
    assert mean_over_processes(shares[1]).tolist() == [3, 8]


def test_the_missing_entropy_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has the value of all, and the mean of the gradients is that of all."""
    rows = torch.randn(12, 5)
    whole = rows.clone().requires_grad_()
    expected = entropy_missing([whole.log_softmax(1)])
    expected.backward()  # type: ignore[no-untyped-call]
    shares = tuple(part.clone().requires_grad_() for part in rows.split(4))  # type: ignore[no-untyped-call]

    def work(own: Tensor) -> Tensor:
        loss = entropy_missing([own.log_softmax(1)])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    for value in together(work, shares, monkeypatch):
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    found = torch.cat([share.grad / 3 for share in shares if share.grad is not None])
    torch.testing.assert_close(found, whole.grad, rtol=1e-4, atol=1e-7)


def test_rows_of_all_processes_and_the_share_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.arange(12.0).reshape(6, 2)
    for got in together(gathered, rows.split(2), monkeypatch):  # type: ignore[no-untyped-call]
        assert torch.equal(got, rows)
    monkeypatch.undo()
    found = together(own_share, (rows, rows, rows), monkeypatch)
    assert sorted(torch.cat(found).tolist()) == rows.tolist()
    assert [len(part) for part in found] == [2, 2, 2]
    monkeypatch.undo()
    assert torch.equal(gathered(rows), rows)
    assert torch.equal(own_share(rows), rows)
