"""The loss of the hardest values alone: EfficientAD's (Batzner et al. 2024, section 3.2)."""

from __future__ import annotations

import math

from torch import Tensor


def hardest(squares: Tensor, quantile: float) -> Tensor:
    """The mean of those of n values that are at least their quantile, a scalar: of the highest
    n − ⌈q (n − 1)⌉. The others get no gradient.

    Args: squares: of any shape. quantile: q, in [0, 1).
    """
    count = squares.numel()
    values = squares.flatten().topk(count - math.ceil(quantile * (count - 1))).values
    return values.mean()
