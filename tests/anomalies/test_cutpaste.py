"""CutPaste: the published sizes, shapes and classes."""

from __future__ import annotations

import numpy as np
import pytest

from blemish.anomalies.cutpaste import CutPaste, CutPaste3Way, CutPasteScar


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).random((height, width, 3), dtype=np.float32)


def test_a_patch_has_the_published_area_and_aspect() -> None:
    image = noise(200, 160)
    areas, aspects = [], []
    for seed in range(200):
        mask = CutPaste()(image, np.random.default_rng(seed)).mask
        height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
        assert mask.sum() == height * width  # upright, nothing clipped
        areas.append(mask.mean())
        aspects.append(width / height)
    assert 0.019 <= min(areas) < 0.03 < 0.14 < max(areas) <= 0.152
    assert 0.29 <= min(aspects) < 0.35 < 3.0 < max(aspects) <= 3.4
    assert 70 < sum(aspect < 1 for aspect in aspects) < 130


def test_a_patch_is_a_copy_but_for_its_colours() -> None:
    image = np.arange(50 * 40, dtype=np.float32).reshape(50, 40, 1) / 2000
    result = CutPaste(jitter=0.0)(image, np.random.default_rng(4))
    pasted = result.image[np.ix_(result.mask.any(1), result.mask.any(0))]
    row, column = divmod(round(float(pasted[0, 0, 0]) * 2000), 40)
    original = image[row : row + len(pasted), column : column + pasted.shape[1]]
    np.testing.assert_allclose(pasted, original, atol=1e-6)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_scar_has_the_published_size_at_every_scale(scale: int) -> None:
    image = noise(256 * scale, 300 * scale)[..., :1]
    lengths, widths, turned = [], [], []
    for seed in range(120):
        mask = CutPasteScar()(image, np.random.default_rng(seed)).mask
        places = np.argwhere(mask).astype(np.float64)
        spread, axes = np.linalg.eigh(np.cov(places.T) + 1 / 12 * np.eye(2))
        widths.append(np.sqrt(12 * spread[0]) / scale)
        lengths.append(np.sqrt(12 * spread[1]) / scale)
        down, across = axes[:, 1] * np.sign(axes[0, 1] + 1e-12)  # of the long axis, pointing down
        turned.append(np.degrees(np.arctan2(across, down)))
        assert 2 * 10 * 0.8 <= mask.sum() / scale**2 <= 16 * 25 * 1.1
    assert 1.5 <= min(widths) < 4
    assert 23 < max(lengths) <= 26.5
    long = np.array(lengths) > 1.6 * np.array(widths)  # where the long axis is certain
    assert np.abs(np.array(turned)[long]).max() <= 50
    assert np.ptp(np.array(turned)[long]) > 60


def test_three_ways_draws_both_kinds_evenly() -> None:
    image = noise(128, 128)
    results = [CutPaste3Way()(image, np.random.default_rng(seed)) for seed in range(200)]
    kinds = [result.kind for result in results]
    assert set(kinds) == {1, 2}
    assert 70 < kinds.count(1) < 130
    assert min(result.mask.mean() for result in results if result.kind == 1) > 0.018
    assert max(result.mask.mean() for result in results if result.kind == 2) < 0.009
