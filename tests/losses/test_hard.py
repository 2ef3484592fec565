"""The loss of the hardest values, against quantiles and sums in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from blemish.losses.hard import hardest


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).square()


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 30, 5), (4, 1001)])
def test_it_is_the_mean_from_the_quantile_on(quantile: float, shape: tuple[int, ...]) -> None:
    own = values(*shape)
    ordered = np.sort(own.double().numpy().ravel())
    place = quantile * (len(ordered) - 1)
    low = int(place)
    after = ordered[min(low + 1, len(ordered) - 1)]
    limit = ordered[low] + (place - low) * (after - ordered[low])
    expected = ordered[ordered >= limit - 1e-12].mean()
    assert hardest(own, quantile).item() == pytest.approx(expected, rel=1e-5)


def test_the_others_get_no_gradient() -> None:
    own = values(4, 25).requires_grad_()
    hardest(own, 0.9).backward()
    assert own.grad is not None
    count = int((own.grad > 0).sum())
    assert count == 100 - 90  # ⌈0.9 · 99⌉ = 90
    assert torch.allclose(own.grad[own.grad > 0], torch.tensor(1 / count))
    assert own.detach()[own.grad > 0].min() >= own.detach()[own.grad == 0].max()
