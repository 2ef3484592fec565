"""FPI, PII and NSA: the published formulas, from what they give back."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import median_filter

from blemish.anomalies.base import Synthetic
from blemish.anomalies.blending import FPI, NSA, PII


def smooth_pair(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Two pictures of waves with some noise."""
    noise = np.random.default_rng(7).normal(0, 0.01, (2, height, width, channels))
    down, across = np.sin(np.linspace(0, 9, height)), np.cos(np.linspace(0, 7, width))
    waves = (down[:, None] + across)[..., None]
    image = 0.1 * waves * np.linspace(0.5, 1, channels)
    other = 0.15 * waves.max() * np.cos(3 * waves) + 0 * image
    return np.clip(0.5 + np.stack([image, other]) + noise, 0, 1).astype(np.float32)


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left, right (both ends inside)."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return rows[0], rows[-1], columns[0], columns[-1]


@pytest.mark.parametrize("kind", [FPI, PII])
def test_interpolation_of_the_published_sizes_and_shares(kind: type[FPI]) -> None:
    image, other = smooth_pair(60, 80)
    factors, heights, places = [], [], []
    for seed in range(120):
        result = kind()(image, np.random.default_rng(seed), other=other)
        top, bottom, left, right = box(result.mask)
        assert result.mask.sum() == (bottom - top + 1) * (right - left + 1)
        values = np.unique(result.label[result.mask])
        assert len(values) == 1
        factors.append(float(values[0]))
        places.append(((top + bottom) / 120, (left + right) / 160))
        if top > 1 and left > 1 and bottom < 58 and right < 78:
            heights.append(bottom - top + 1)
            assert (right - left + 1) == pytest.approx(heights[-1] * 80 / 60, abs=2)
    assert 0.05 <= min(factors) < 0.1 < 0.9 < max(factors) <= 0.95
    assert 6 <= min(heights) <= 8 < 20 <= max(heights) <= 24
    assert np.min(places) < 0.2
    assert np.max(places) > 0.8


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_fpi_is_a_convex_combination_by_its_label(channels: int) -> None:
    image, other = smooth_pair(31, 24, channels)
    for seed in range(10):
        result = FPI()(image, np.random.default_rng(seed), other=other)
        share = result.label[..., None].astype(np.float64)
        np.testing.assert_allclose(result.image, (1 - share) * image + share * other, atol=1e-6)


class TestNSA:
    image, other = smooth_pair(64, 72)

    def made(self, seed: int, simulator: NSA | None = None) -> Synthetic:
        return (simulator or NSA())(self.image, np.random.default_rng(seed), other=self.other)

    def test_label_and_mask_say_how_much_changed(self) -> None:
        spared = 0
        for seed in range(20):
            result = self.made(seed)
            change = 255 * np.abs(result.image.astype(np.float64) - self.image).mean(2)
            visible = median_filter(change > 1, size=5, mode="nearest")
            assert not (result.mask & ~visible).any()
            label = 1 / (1 + np.exp(-(median_filter(change, size=5, mode="nearest") - 7) / 3))
            np.testing.assert_allclose(result.label[result.mask], label[result.mask], atol=1e-4)
            spared += int(((change > 0.01) & ~result.mask).sum())
        assert spared > 100  # changed, but hardly

    def test_sizes_follow_the_truncated_gamma_distribution(self) -> None:
        rng = np.random.default_rng(0)
        shares = np.array([NSA()._side(rng, 1000) for _ in range(4000)]) / 1000
        assert 0.06 <= shares.min() < shares.max() <= 0.8
        # P(Γ(2, 0.1) <= x) = 1 − (1 + x / 0.1) exp(−x / 0.1)
        for share in (0.1, 0.2, 0.3, 0.5):
            x = (share - 0.06) / 0.1
            assert np.mean(shares <= share) == pytest.approx(1 - (1 + x) * np.exp(-x), abs=0.03)

    def test_resizing_keeps_to_its_bounds(self) -> None:
        rng = np.random.default_rng(0)
        for extent in ((100, 200), (60, 60), (800, 700), (800, 60)):
            drawn = np.array([NSA()._resized(rng, extent, (1000, 1000)) for _ in range(200)])
            factors = drawn / extent
            assert 0.69 <= factors.min() <= factors.max() <= 1.31
            assert 60 <= drawn.min() <= drawn.max() <= 800
        assert len({NSA()._resized(rng, (100, 200), (1000, 1000)) for _ in range(50)}) > 10

    def test_one_patch_stays_within_its_size(self) -> None:
        single = NSA(bounds=(0.25, 0.25), resize=(1.0, 1.0), patches=1)
        for seed in range(20):
            result = self.made(seed, single)
            top, bottom, left, right = box((result.image != self.image).any(2))
            assert (bottom - top + 1 <= 16, right - left + 1 <= 18) == (True, True)

    def test_more_patches_reach_farther(self) -> None:
        covered = {}
        for most in (1, 4):
            several = NSA(bounds=(0.2, 0.2), patches=most)
            changed = [self.made(seed, several).image != self.image for seed in range(60)]
            covered[most] = np.mean([each.any(2).mean() for each in changed])
        assert covered[4] > 1.8 * covered[1]

    def test_mixed_gradients_differ(self) -> None:
        assert not np.array_equal(self.made(1).image, self.made(1, NSA(mixed=True)).image)
