"""The Dice loss of soft masks."""

from __future__ import annotations

from torch import Tensor


def dice_loss(given: Tensor, wanted: Tensor) -> Tensor:
    """1 − Dice of soft masks B H W in [0, 1], mean over the pictures (Milletari et al. 2016,
    without squares).
    """
    both = (given * wanted).sum(dim=(1, 2))
    return (1 - (2 * both + 1) / (given.sum(dim=(1, 2)) + wanted.sum(dim=(1, 2)) + 1)).mean()
