"""The focal loss against its formula, place by place."""

from __future__ import annotations

import math

import pytest
import torch

from blemish.losses.focal import focal_loss


@pytest.mark.parametrize("gamma", [0.0, 2.0, 3.5])
def test_against_loops(gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 3, 4, 5, generator=generator)
    labels = torch.randint(3, (2, 4, 5), generator=generator)
    terms = []
    for b in range(2):
        for y in range(4):
            for x in range(5):
                row = [math.exp(value) for value in logits[b, :, y, x].double().tolist()]
                p = row[int(labels[b, y, x])] / sum(row)
                terms.append(-((1 - p) ** gamma) * math.log(p))
    found = focal_loss(logits, labels, gamma=gamma)
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_its_gradient_stays_finite_where_all_is_certain() -> None:
    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([1, 1]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(200)  # the mean of 0 and 400
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
