"""Learning a score of which the spread of normal pictures is known beforehand: standard normal."""

from __future__ import annotations

import torch
from torch import Tensor

from blemish.errors import ConfigError


def deviation_loss(
    scores: Tensor, labels: Tensor, *, margin: float = 10.0, draws: int = 5000
) -> Tensor:
    """Deviation loss (Pang et al. 2019, DevNet): the mean of (1 − y)·|d| + y·max(0, k − d) over B
    pictures.

    The deviation d = (score − μ) / σ is from the mean and in units of the standard deviation of
    numbers from N(0, 1), which are drawn anew at every call, on the CPU, so that every device gets
    the same. Normal pictures (y = 0) are drawn to 0 from both sides, anomalous ones (y = 1) pushed
    above k; what lies there already is left in peace. Computed in float32.

    Args:
        scores: B, any finite values; higher = more anomalous. labels: B, 0 or 1.
        margin: k, above 0. draws: how many numbers; at least 2.
    Raises: ConfigError for a margin that is not above 0, or too few draws.

    Example:
        >>> scores, labels = torch.tensor([0.0, 0.0, 12.0]), torch.tensor([0, 1, 1])
        >>> loss = deviation_loss(scores, labels, draws=1_000_000)
        >>> loss.round(decimals=1)  # the mean of 0, 10 and 0
        tensor(3.3000)
    """
    if not margin > 0 or draws < 2:
        raise ConfigError(
            "deviation_loss: margin above 0 and at least 2 draws are needed, got "
            f"{margin} and {draws}"
        )
    reference = torch.randn(draws)
    spread, centre = torch.stack(torch.std_mean(reference)).to(scores.device, non_blocking=True)
    deviation = (scores.float() - centre) / spread
    return torch.where(labels == 0, deviation.abs(), (margin - deviation).clamp_min(0)).mean()
