"""Guided cut-and-paste: where it cuts and pastes, and how large."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from blemish.anomalies.base import draw_places, place_probability
from blemish.anomalies.guided import GuidedCutPaste, GuidedFine, GuidedPoisson

SIDE = 32
PEAKED = np.array([[1.0, 2, 1, 1], [2, 12, 6, 1], [1, 9, 3, 1], [1, 1, 1, 2]])


TINY: Any = {"sides": (0.01, 0.01), "angle": 0.0, "resize": (1.0, 1.0)}  # one pixel each


def noise(height: int, width: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).random((height, width, channels), dtype=np.float32)


def masks(simulator: GuidedCutPaste, image: np.ndarray, count: int, where: str) -> np.ndarray:
    """N H W, of that many seeds: pasted "anywhere", or in the "middle" of the picture."""
    attention = np.full(image.shape[:2], float(where == "anywhere"))
    attention[len(image) // 2, image.shape[1] // 2] = 1
    seeds = map(np.random.default_rng, range(count))
    return np.stack([simulator(image, rng, attention=attention).mask for rng in seeds])


def naive_bilinear(attention: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = attention.shape
    result = np.zeros((height, width))
    for i, j in np.ndindex(height, width):
        y, x = (i + 0.5) * rows / height - 0.5, (j + 0.5) * columns / width - 0.5
        top, left = int(np.floor(y)), int(np.floor(x))
        for k, m in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            value = attention[min(max(k, 0), rows - 1), min(max(m, 0), columns - 1)]
            result[i, j] += (1 - abs(y - k)) * (1 - abs(x - m)) * value
    return result / result.sum()


def fit(places: list[tuple[int, int]], probability: np.ndarray) -> float:
    """p of the chi-square test of places against a distribution over pixels, on a grid of 4×4
    cells.
    """
    cell = SIDE // 4
    counts = np.zeros((4, 4))
    for row, column in places:
        counts[row // cell, column // cell] += 1
    expected = probability.reshape(4, cell, 4, cell).sum((1, 3)) * len(places)
    return float(chisquare(counts.ravel(), expected.ravel()).pvalue)


def test_probability_is_attention_resized_bilinearly() -> None:
    for size in ((SIDE, SIDE), (9, 31)):
        for attention in (PEAKED, PEAKED * 1e-200):
            probability = place_probability(attention, size)
            np.testing.assert_allclose(probability, naive_bilinear(PEAKED, *size), rtol=1e-4)


def test_a_peak_survives_shrinking() -> None:
    for row in range(50):
        attention = np.zeros((50, 3))
        attention[row, 1] = 1
        probability = place_probability(attention, (8, 12))
        assert probability.sum() == pytest.approx(1)
        assert abs(probability.sum(1).argmax() - row * 8 / 50) <= 1


def test_nothing_is_drawn_where_there_is_no_attention() -> None:
    attention = np.zeros((SIDE, SIDE))
    attention[[0, 5, SIDE - 1], [0, 7, SIDE - 1]] = 1
    drawn = set(draw_places(attention, (SIDE, SIDE), np.random.default_rng(0), 500))
    assert drawn == {(0, 0), (5, 7), (SIDE - 1, SIDE - 1)}


def test_cuts_and_pastes_follow_the_attention_independently() -> None:
    # Patches of one pixel, whose colour says where it was cut.
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32) / (SIDE - 1)
    image = np.dstack([rows, columns])
    tiny = GuidedCutPaste(**TINY, jitter=(0.0, 0.0), patches=(1, 1))

    def places(attention: np.ndarray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        cuts, pastes = [], []
        rng = np.random.default_rng(0)
        for _ in range(600):
            result = tiny(image, rng, attention=attention)
            ((row, column),) = np.argwhere(result.mask)
            pastes.append((int(row), int(column)))
            y, x = np.rint(result.image[row, column] * (SIDE - 1)).astype(int)
            cuts.append((int(y), int(x)))
        return cuts, pastes

    peaked, flat = place_probability(PEAKED, (SIDE, SIDE)), np.full((SIDE, SIDE), 1 / SIDE**2)
    cuts, pastes = places(PEAKED)
    assert fit(cuts, peaked) > 1e-3
    assert fit(pastes, peaked) > 1e-3
    assert abs(np.corrcoef([c[0] for c in cuts], [p[0] for p in pastes])[0, 1]) < 0.15
    cuts, pastes = places(np.ones((4, 4)))
    assert fit(cuts, flat) > 1e-3
    assert fit(cuts, peaked) < 1e-9
    assert fit(pastes, peaked) < 1e-9


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_sides_are_shares_of_the_pictures_own(factor: float) -> None:
    straight = GuidedCutPaste(angle=0.0, resize=(factor, factor), patches=(1, 1))
    made = masks(straight, noise(120, 80), 150, "middle")
    heights, widths = made.any(2).sum(1), made.any(1).sum(1)
    assert (made.sum((1, 2)) == heights * widths).all()
    for sides, whole in ((heights, 120), (widths, 80)):
        low, high = factor * 0.1 * whole, factor * 0.4 * whole
        assert low - 1 <= min(sides) <= low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) <= max(sides) <= high + 1


def test_resizing_is_log_uniform_and_rotation_keeps_the_area() -> None:
    square = GuidedCutPaste(sides=(0.2, 0.2), patches=(1, 1))
    factors = np.sqrt(masks(square, noise(100, 100), 150, "middle").sum((1, 2)) / 400)
    assert 0.48 <= min(factors) <= 0.6 < 1.8 <= max(factors) <= 2.05
    assert abs(np.median(factors) - 1) < 0.15


def test_the_number_of_patches() -> None:
    counts = masks(GuidedCutPaste(**TINY), noise(SIDE, SIDE), 300, "anywhere").sum((1, 2)).tolist()
    assert set(counts) == {1, 2, 3}
    assert min(counts.count(number) for number in (1, 2, 3)) > 70
    fine = masks(GuidedFine(**TINY), noise(100, 100), 100, "anywhere").sum((1, 2))
    assert set(fine.tolist()) == {1, 2, 3, 4}


def test_fine_pieces_are_small() -> None:
    single = masks(GuidedFine(angle=0.0, patches=(1, 1)), noise(100, 100), 150, "middle")
    heights = single.any(2).sum(1)
    assert 1 <= min(heights) <= 3  # from 0.02 · 0.7 of the side
    assert 13 <= max(heights) <= 18  # to 0.12 · 1.4
    fine, coarse = (
        masks(kind(), noise(100, 100), 100, "anywhere").mean((1, 2))
        for kind in (GuidedFine, GuidedCutPaste)
    )
    assert np.median(fine) < 0.02 < 0.05 < np.median(coarse)


def test_the_mask_is_the_turned_patch_not_its_box() -> None:
    square = GuidedCutPaste(sides=(0.3, 0.3), resize=(1.0, 1.0), patches=(1, 1))
    made = masks(square, noise(64, 64), 30, "middle")
    assert made.sum((1, 2)) == pytest.approx(np.full(30, 19 * 19), rel=0.05)
    shares = made.sum((1, 2)) / (made.any(1).sum(1) * made.any(2).sum(1))
    assert min(shares) < 0.6  # at 45° half of the box
    assert max(shares) > 0.85


def test_poisson_changes_nothing_beyond_the_rectangle_and_leaves_no_edge() -> None:
    image = np.linspace(0.3, 0.6, 64, dtype=np.float32)[:, None, None] + noise(64, 64) / 5
    attention = np.random.default_rng(1).random((4, 4))
    for seed in range(20):
        soft, hard = (
            kind(patches=(1, 1))(image, np.random.default_rng(seed), attention=attention)
            for kind in (GuidedPoisson, GuidedCutPaste)
        )
        within = np.outer(hard.mask.any(1), hard.mask.any(0))
        assert np.array_equal(soft.image[~within], image[~within])
        inner = hard.mask.copy()
        inner[[0, -1]] = False
        inner[:, [0, -1]] = False
        assert np.array_equal(soft.mask, inner)
        assert np.abs(soft.image - image).mean() < np.abs(hard.image - image).mean()
