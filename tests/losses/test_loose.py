"""The loose cosine loss and its gradient, value by value, from its definition in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from blemish.losses.loose import hard_weights, loose_cosine

pytestmark = pytest.mark.usefixtures("seeded")


def naive(given: np.ndarray, wanted: np.ndarray, easy: float) -> tuple[float, np.ndarray]:
    """The loss of B G N D, and what its gradient becomes."""
    B, G, N, _ = given.shape
    value, gradient = 0.0, np.empty(given.shape)
    for group in range(G):
        apart = {}
        for b in range(B):
            a, w = given[b, group].ravel(), wanted[b, group].ravel()
            length, other = math.sqrt(sum(a * a)), math.sqrt(sum(w * w))
            cosine = sum(a * w) / length / other
            value += (1 - cosine) / (B * G)
            slope = -(w / other - cosine * a / length) / length / (B * G)
            gradient[b, group] = slope.reshape(N, -1)
            for n in range(N):
                p, q = given[b, group, n], wanted[b, group, n]
                apart[b, n] = 1 - p @ q / math.sqrt(p @ p) / math.sqrt(q @ q)
        for b, n in sorted(apart, key=lambda place: apart[place])[: math.floor(easy * B * N)]:
            gradient[b, group, n] *= 0.1
    return value, gradient


@pytest.mark.parametrize("easy", [0.0, 0.05, 0.45, 0.9])
def test_it_is_the_definition_and_the_gradient_of_the_easy_weighs_a_tenth(easy: float) -> None:
    given, wanted = torch.randn(3, 2, 7, 5, requires_grad=True), torch.randn(3, 2, 7, 5)
    with torch.no_grad():  # groups of different difficulty, each with a limit of its own
        given[:, 1] += 3 * wanted[:, 1]
    value = loose_cosine(given, wanted, easy=easy)
    value.backward()
    expected, gradient = naive(given.detach().double().numpy(), wanted.double().numpy(), easy)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert given.grad is not None
    np.testing.assert_allclose(given.grad.double().numpy(), gradient, rtol=1e-3, atol=1e-7)


def test_what_else_the_tensor_goes_into_keeps_its_gradient() -> None:
    given, wanted = torch.randn(2, 1, 6, 4, requires_grad=True), torch.randn(2, 1, 6, 4)
    inner = given * 1

    def gradient(*terms: Tensor) -> Tensor:
        return torch.autograd.grad(torch.stack(terms).sum(), inner, retain_graph=True)[0]

    loss, other = loose_cosine(inner, wanted, easy=0.9), inner.square().sum()
    torch.testing.assert_close(gradient(loss, other), gradient(loss) + 2 * given)


def test_without_gradient_it_has_the_same_value() -> None:
    given, wanted = torch.randn(2, 2, 6, 4), torch.randn(2, 2, 6, 4)
    learning = given.clone().requires_grad_()
    assert loose_cosine(given, wanted, easy=0.5) == loose_cosine(learning, wanted, easy=0.5)


@pytest.mark.parametrize(("easy", "light"), [(0.0, 0), (0.24, 2), (0.25, 2), (0.9, 9), (0.99, 9)])
def test_so_many_distances_weigh_a_tenth(easy: float, light: int) -> None:
    distance = torch.rand(2, 5)
    weights = hard_weights(distance, easy)
    order = distance.flatten().argsort()
    expected = torch.tensor([0.1] * light + [1.0] * (10 - light))
    torch.testing.assert_close(weights.flatten()[order], expected)


def test_equal_distances_are_all_hard() -> None:
    assert hard_weights(torch.full((3, 4), 0.5), 0.9).eq(1).all()
