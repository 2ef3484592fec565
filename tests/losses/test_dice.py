"""The Dice loss against its definition, pixel by pixel."""

from __future__ import annotations

import pytest
import torch

from blemish.losses.dice import dice_loss


def test_it_is_the_mean_over_pictures_of_one_less_the_dice_of_each(seeded: None) -> None:
    given, wanted = torch.rand(3, 4, 5), (torch.rand(3, 4, 5) > 0.6).float()
    wanted[2] = 0
    losses = []
    for mask, label in zip(given.double().tolist(), wanted.tolist(), strict=True):
        pairs = [pair for row in zip(mask, label, strict=True) for pair in zip(*row, strict=True)]
        both = sum(p * y for p, y in pairs)
        losses.append(
            1 - (2 * both + 1) / (sum(p for p, _ in pairs) + sum(y for _, y in pairs) + 1)
        )
    assert dice_loss(given, wanted).item() == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert dice_loss(wanted, wanted).item() == pytest.approx(0, abs=1e-6)
