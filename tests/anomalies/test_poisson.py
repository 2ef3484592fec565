"""Seamless cloning against a dense least-squares solution over all pairs of neighbours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from blemish.anomalies.blending import PII
from blemish.anomalies.patch import put
from blemish.anomalies.poisson import imported, melt, mixed, solve

Wanted = Callable[[float, float], float]


def dense(target: np.ndarray, source: np.ndarray, inside: np.ndarray, wanted: Wanted) -> np.ndarray:
    """float64: every difference of neighbours as close as can be to the wanted one, off the rim."""
    height, width, channels = target.shape
    target, source = target.astype(np.float64), source.astype(np.float64)
    free = {(i, j): k for k, (i, j) in enumerate(np.ndindex(height - 2, width - 2))}
    result = target.copy()
    for c in range(channels):
        equations, values = [], []
        for i, j in np.ndindex(height, width):
            for k, m in ((i + 1, j), (i, j + 1)):
                if k >= height or m >= width:
                    continue
                own, new = (each[k, m, c] - each[i, j, c] for each in (target, source))
                value = wanted(own, new) if inside[i, j] and inside[k, m] else own
                row = np.zeros(len(free))
                for (y, x), sign in (((k, m), 1.0), ((i, j), -1.0)):
                    if (y - 1, x - 1) in free:
                        row[free[y - 1, x - 1]] = sign
                    else:
                        value -= sign * target[y, x, c]
                equations.append(row)
                values.append(value)
        solution = np.linalg.lstsq(np.array(equations), np.array(values), rcond=None)[0]
        result[1:-1, 1:-1, c] = solution.reshape(height - 2, width - 2)
    return result


@pytest.mark.parametrize(("height", "width", "channels"), [(7, 6, 2), (3, 8, 1), (5, 5, 3)])
def test_against_dense_equations(height: int, width: int, channels: int) -> None:
    rng = np.random.default_rng(height)
    target, source = rng.random((2, height, width, channels), dtype=np.float32)
    inside = rng.random((height, width)) < 0.7
    first = dense(target, source, inside, lambda own, new: new)
    second = dense(target, source, inside, lambda own, new: new if abs(new) > abs(own) else own)
    np.testing.assert_allclose(solve(target, source, inside, imported), first, atol=1e-5)
    np.testing.assert_allclose(solve(target, source, inside, mixed), second, atol=1e-5)
    assert np.abs(first - second).max() > 1e-2


def test_pii_mixes_scaled_gradients() -> None:
    pixels = 0.4 + 0.2 * np.random.default_rng(5).random((2, 12, 13, 2))
    image, other = pixels.astype(np.float32)
    for seed in range(6):
        result = PII(sides=(0.4, 0.4))(image, np.random.default_rng(seed), other=other)
        rows, columns = result.mask.any(1).nonzero()[0], result.mask.any(0).nonzero()[0]
        around = (slice(rows[0] - 1, rows[-1] + 2), slice(columns[0] - 1, columns[-1] + 2))
        share = float(result.label.max())

        def wanted(own: float, new: float, share: float = share) -> float:
            return (1 - share) * own if abs((1 - share) * own) >= abs(share * new) else share * new

        expected = image.copy()
        expected[around] = dense(image[around], other[around], result.mask[around], wanted)
        np.testing.assert_allclose(result.image, expected, atol=1e-5)


def test_only_gradients_matter() -> None:
    rng = np.random.default_rng(0)
    target, source = rng.random((2, 20, 17, 3), dtype=np.float32)
    inside = np.zeros((20, 17), dtype=bool)
    inside[3:15, 2:12] = True
    plain = solve(target, source, inside)
    np.testing.assert_allclose(solve(target, source + np.float32(0.5), inside), plain, atol=1e-5)
    np.testing.assert_allclose(solve(target, target + np.float32(0.3), inside), target, atol=1e-5)
    rim = np.ones((20, 17), dtype=bool)
    rim[1:-1, 1:-1] = False
    assert np.array_equal(plain[rim], target[rim])


@pytest.mark.parametrize("shape", [(2, 9, 1), (9, 1, 3)])
def test_where_all_is_rim_nothing_changes(shape: tuple[int, int, int]) -> None:
    target = np.random.default_rng(0).random(shape, dtype=np.float32)
    assert np.array_equal(solve(target, 1 - target, np.ones(shape[:2], dtype=bool)), target)


@pytest.mark.parametrize("centre", [(10, 10), (0, 0), (19, 3), (11, 19)])
def test_melting_stays_within_the_rectangle(centre: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    target = rng.random((20, 20, 2), dtype=np.float32)
    patch = put(rng.random((6, 8, 2), dtype=np.float32), centre, (20, 20), angle=20)
    canvas, mask = target.copy(), np.zeros((20, 20), dtype=bool)
    melt(canvas, mask, patch)
    changed = (canvas != target).any(2)
    allowed = np.zeros((20, 20), dtype=bool)
    allowed[patch.rows, patch.columns] = True
    assert not changed[~allowed].any()
    assert changed[mask].mean() > 0.9
    full = np.zeros((20, 20), dtype=bool)
    full[patch.rows, patch.columns] = patch.inside
    full[[0, -1]] = full[:, [0, -1]] = False  # the picture's border is the rim there
    assert np.array_equal(mask, full)
    assert 0 <= canvas.min() <= canvas.max() <= 1
