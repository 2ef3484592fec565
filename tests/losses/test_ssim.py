"""The structural similarity against its formula, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from blemish.losses.ssim import ssim


def naive(one: np.ndarray, other: np.ndarray, window: int) -> float:
    """Of float64 B C H W: the means of each pixel's window, one pixel after the other."""
    half = window // 2
    weights = {
        (down, right): math.exp(-(down * down + right * right) / (2 * 1.5**2))
        for down in range(-half, half + 1)
        for right in range(-half, half + 1)
    }
    total = sum(weights.values())
    values = []
    for b, c, y, x in np.ndindex(one.shape):
        sums = np.zeros(5)
        for (down, right), weight in weights.items():
            row, column = y + down, x + right
            if 0 <= row < one.shape[2] and 0 <= column < one.shape[3]:
                p, q = one[b, c, row, column], other[b, c, row, column]
                sums += weight / total * np.array([p, q, p * p, q * q, p * q])
        mean_p, mean_q, squared_p, squared_q, product = sums
        above = (2 * mean_p * mean_q + 1e-4) * (2 * (product - mean_p * mean_q) + 9e-4)
        below = mean_p**2 + mean_q**2 + 1e-4
        below *= squared_p - mean_p**2 + squared_q - mean_q**2 + 9e-4
        values.append(above / below)
    return sum(values) / len(values)


@pytest.mark.parametrize("window", [11, 5])
def test_against_loops(window: int) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 2, 3, 9, 13, generator=generator)
    other = 0.7 * one + 0.3 * other
    expected = naive(one.double().numpy(), other.double().numpy(), window)
    assert ssim(one, other, window=window).item() == pytest.approx(expected, abs=1e-5)
    assert 0.2 < expected < 0.95


def test_it_is_computed_in_float32_also_where_the_training_is_not() -> None:
    one = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = ssim(one, one * 0.9)
    assert torch.equal(mixed, ssim(one, one * 0.9))
    assert mixed < 1
