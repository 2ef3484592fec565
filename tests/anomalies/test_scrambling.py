"""Scrambled pictures: what of a picture stays, and what does not."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from blemish.anomalies.cutmix import LUMA
from blemish.anomalies.scrambling import scrambled

PLAIN = (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))


def pictures(height: int, width: int) -> Tensor:
    """Faint, so that no value is cut."""
    generator = torch.Generator().manual_seed(0)
    return 0.5 + 0.02 * torch.randn(3, 3, height, width, generator=generator)


def test_means_and_spectra_stay_and_phases_do_not() -> None:
    for sides in ((16, 16), (9, 14)):
        torch.manual_seed(1)
        before = pictures(*sides)
        after = scrambled(before, PLAIN, 0.0)
        assert after.shape == before.shape
        one, other = (np.fft.fft2(each.double().numpy()) for each in (before, after))
        np.testing.assert_allclose(np.abs(other), np.abs(one), atol=1e-4)
        turned = np.angle(other) - np.angle(one)
        assert np.abs(np.cos(turned[:, 0, 1:4, 1:4])).mean() < 0.95
        both = np.exp(1j * (turned[:, 0] - turned[:, 1]))  # colours turn alike
        np.testing.assert_allclose(both, 1, atol=5e-2)
        np.testing.assert_allclose(after.mean((2, 3)), before.mean((2, 3)), atol=1e-5)


def test_they_are_normalised_pixels_and_drawn_anew() -> None:
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.full((3, 1, 1), 0.25)
    torch.manual_seed(1)
    strong = torch.rand(4, 3, 16, 16)
    one, other = (scrambled((strong - mean) / std, (mean, std), 0.0) for _ in range(2))
    assert not torch.allclose(one, other)
    pixels = one * std + mean
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


def test_some_are_grey() -> None:
    torch.manual_seed(1)
    many = pictures(8, 8)[:1].expand(200, -1, -1, -1)
    made = scrambled(many, PLAIN, 0.3)
    grey = (made - made.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-6
    assert 0.2 < grey.float().mean() < 0.4
    luma = (many[0].mean((1, 2)) * torch.tensor(LUMA)).sum()
    np.testing.assert_allclose(made[grey][:, 0].mean((1, 2)), luma, atol=1e-4)
