"""The cosine distance and its gradient against autograd's, from the definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blemish.losses.cosine import cosine_distance


def defined(given: Tensor, wanted: Tensor) -> Tensor:
    return 1 - (given * wanted).sum(-1) / (given.norm(dim=-1) * wanted.norm(dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("swapped", [False, True])  # as the decoder gives it: not contiguous
def test_it_is_the_definition_and_so_is_its_gradient(
    seeded: None, dtype: torch.dtype, swapped: bool
) -> None:
    given, wanted, weights = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5)
    given = (given * torch.logspace(-3, 3, 5)[:, None]).to(dtype)
    if swapped:
        given = given.transpose(1, 2).contiguous().transpose(1, 2)
    given.requires_grad_()
    exact = given.detach().double().requires_grad_()
    found, expected = cosine_distance(given, wanted), defined(exact, wanted.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    (weights * found).sum().backward()
    (weights * expected).sum().backward()
    assert given.grad is not None
    assert exact.grad is not None
    assert given.grad.dtype == dtype
    # The gradient itself is rounded to the precision of what is given.
    tolerance = 1e-4 if dtype == torch.float32 else 2**-8
    for row in range(5):  # each has a length of its own
        got, true = given.grad[:, :, row].double(), exact.grad[:, :, row]
        torch.testing.assert_close(got, true, rtol=tolerance, atol=tolerance * float(true.std()))


def test_nothing_is_at_distance_1_from_everything_with_no_gradient() -> None:
    given = torch.zeros(2, 4, requires_grad=True)
    distance = cosine_distance(given, torch.stack([torch.ones(4), torch.zeros(4)]))
    assert distance.tolist() == [1, 1]
    assert not cosine_distance(torch.ones(1, 4), torch.zeros(1, 4)).isnan().any()
    distance[1].backward()
    assert given.grad is not None
    assert given.grad.isfinite().all()
