"""The deviation loss and its gradient against loops in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from blemish.errors import ConfigError
from blemish.losses.deviation import deviation_loss

pytestmark = pytest.mark.usefixtures("seeded")
SCORES = [-3.0, -0.2, 0.4, 7.0, -2.0, 0.1, 4.0, 9.9, 30.0]
LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 1]


def loss_and_slopes(
    scores: list[float], labels: list[int], margin: float, draws: Tensor
) -> tuple[float, list[float]]:
    """DevNet's loss, and its derivative for each score."""
    values = draws.double().tolist()
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    total, slopes = 0.0, []
    for score, label in zip(scores, labels, strict=True):
        away = (score - mean) / deviation
        slope = 0.0
        if label == 0:
            total += abs(away)
            slope = math.copysign(1, away)
        elif away < margin:
            total += margin - away
            slope = -1.0
        slopes.append(slope / deviation / len(scores))
    return total / len(scores), slopes


@pytest.mark.parametrize(("margin", "draws"), [(10.0, 5000), (5.0, 5000), (10.0, 3), (1e-3, 20)])
def test_loss_and_gradient_against_loops(margin: float, draws: int) -> None:
    scores = torch.tensor(SCORES, requires_grad=True)
    torch.manual_seed(5)
    loss = deviation_loss(scores, torch.tensor(LABELS), margin=margin, draws=draws)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.manual_seed(5)
    expected, slopes = loss_and_slopes(SCORES, LABELS, margin, torch.randn(draws))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert scores.grad is not None
    np.testing.assert_allclose(scores.grad.numpy(), np.array(slopes), rtol=1e-5)


def test_it_is_bounded_below_where_the_papers_print_is_not() -> None:
    far = deviation_loss(torch.tensor([1e6]), torch.tensor([1]))
    assert far.item() == 0
    # It pushes upwards only.
    assert deviation_loss(torch.tensor([-1e6]), torch.tensor([1])).item() > 9e5


def test_the_reference_is_drawn_anew_from_the_global_generator() -> None:
    scores, labels = torch.tensor(SCORES), torch.tensor(LABELS)
    one, other = deviation_loss(scores, labels), deviation_loss(scores, labels)
    assert one != other
    torch.manual_seed(0)
    assert deviation_loss(scores, labels) == one


def test_it_is_computed_in_float32() -> None:
    scores = torch.tensor(SCORES, dtype=torch.bfloat16)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = deviation_loss(scores, torch.tensor(LABELS))
    torch.manual_seed(1)
    assert rough.dtype == torch.float32
    assert rough == deviation_loss(scores.float(), torch.tensor(LABELS))


@pytest.mark.parametrize("changes", [{"margin": 0.0}, {"margin": math.nan}, {"draws": 1}])
def test_what_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="margin above 0 and at least 2 draws"):
        deviation_loss(torch.zeros(2), torch.tensor([0, 1]), **changes)
