"""Cutting, recolouring, turning and pasting, against loops over single pixels."""

from __future__ import annotations

import cmath
import colorsys
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.anomalies.patch import free_place, jittered, lay, put, window


def naive_put(
    pixels: np.ndarray, centre: tuple[int, int], size: tuple[int, int], angle: float, factor: float
) -> tuple[np.ndarray, np.ndarray]:
    """The whole picture and mask: each pixel turned back about the centre, sampled bilinearly."""
    height, width, channels = pixels.shape
    canvas, mask = np.zeros((*size, channels)), np.zeros(size, dtype=bool)
    turn = cmath.exp(1j * math.radians(angle)) / factor  # rows run down
    for row, column in np.ndindex(size):
        place = complex(column - centre[1], row - centre[0]) * turn
        x, y = place.real + width // 2, place.imag + height // 2
        if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
            continue
        mask[row, column] = True
        left, top = math.floor(x), math.floor(y)
        for j, i in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            sampled = pixels[min(max(j, 0), height - 1), min(max(i, 0), width - 1)]
            canvas[row, column] += (1 - abs(x - i)) * (1 - abs(y - j)) * sampled
    return canvas, mask


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 5])),
    centre=st.tuples(st.integers(0, 12), st.integers(0, 14)),
    angle=st.floats(-180, 180).filter(lambda a: abs(a % 45) > 1e-3),
    factor=st.floats(0.5, 2).map(lambda f: f + 1e-4 * math.pi),
)
def test_put(
    shape: tuple[int, int, int], centre: tuple[int, int], angle: float, factor: float
) -> None:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    pixels = (0.03 * rows + 0.05 * columns)[..., None] + np.linspace(0, 0.2, shape[2])
    size = (13, 15)
    patch = put(pixels.astype(np.float32), centre, size, angle=angle, factor=factor)
    canvas, mask = np.zeros((*size, shape[2]), dtype=np.float32), np.zeros(size, dtype=bool)
    lay(canvas, mask, patch)
    expected, where = naive_put(pixels, centre, size, angle, factor)
    assert np.array_equal(mask, where)
    assert mask[centre]
    # OpenCV rounds positions to 1/32 of a pixel.
    np.testing.assert_allclose(canvas, expected, atol=3e-3)
    inside = patch.inside
    assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_a_thin_patch_may_miss_rows() -> None:
    pixels = np.random.default_rng(0).random((30, 1, 2), dtype=np.float32)
    patch = put(pixels, (20, 20), (40, 40), angle=30, factor=0.5)
    assert patch.inside.any(1).sum() < len(patch.inside)
    assert patch.pixels.shape == (*patch.inside.shape, 2)
    lay(np.zeros((40, 40, 2), dtype=np.float32), np.zeros((40, 40), dtype=bool), patch)


@pytest.mark.parametrize("shape", [(4, 5), (5, 4), (1, 1)])
def test_put_without_turning_is_an_exact_copy(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).random((*shape, 3), dtype=np.float32)
    patch = put(pixels, (7, 8), (16, 16))
    assert patch.inside.all()
    assert np.array_equal(patch.pixels, pixels)
    assert (patch.rows.start, patch.columns.start) == (7 - shape[0] // 2, 8 - shape[1] // 2)


def test_a_window_is_shifted_inside() -> None:
    assert window((9, 0), (4, 6), (10, 12)) == (slice(6, 10), slice(0, 6))
    assert window((5, 5), (10, 3), (10, 12)) == (slice(0, 10), slice(4, 7))


def test_free_places_are_even_and_keep_the_rectangle_inside() -> None:
    rng = np.random.default_rng(0)
    drawn = [free_place(rng, (4, 9), (8, 9)) for _ in range(500)]
    rows, counts = np.unique([row for row, _ in drawn], return_counts=True)
    assert rows.tolist() == [2, 3, 4, 5, 6]
    assert counts.min() > 60
    assert {column for _, column in drawn} == {4}
    assert free_place(rng, (20, 20), (8, 9)) == (4, 4)


class TestJitter:
    def test_against_single_pixels(self) -> None:
        # Pixels that stay off 0 and 1.
        pixels = 0.3 + 0.3 * np.random.default_rng(1).random((6, 7, 3), dtype=np.float32)
        for seed in range(5):
            rng = np.random.default_rng(seed)
            brightness, contrast, saturation = rng.uniform(0.8, 1.2, 3)
            shift = rng.uniform(-0.1, 0.1)
            mean = pixels.astype(np.float64).mean() * brightness
            got = jittered(pixels, np.random.default_rng(seed), 0.2, 0.1)
            for pixel, result in zip(pixels.reshape(-1, 3), got.reshape(-1, 3), strict=True):
                mixed = [mean + (float(value) * brightness - mean) * contrast for value in pixel]
                grey = 0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2]
                saturated = (grey + (each - grey) * saturation for each in mixed)
                hue, colour, value = colorsys.rgb_to_hsv(*saturated)
                expected = colorsys.hsv_to_rgb((hue + shift) % 1, colour, value)
                np.testing.assert_allclose(result, expected, atol=1e-4)

    def test_stays_in_range_and_leaves_its_input(self) -> None:
        pixels = np.random.default_rng(2).random((9, 9, 3), dtype=np.float32)
        before = pixels.copy()
        for seed in range(20):
            result = jittered(pixels, np.random.default_rng(seed), 1.0, 0.5)
            assert result.dtype == np.float32
            assert 0 <= result.min() <= result.max() <= 1
        assert np.array_equal(pixels, before)

    @pytest.mark.parametrize("channels", [1, 2, 4])
    def test_other_channel_counts_keep_their_ratios_of_contrast(self, channels: int) -> None:
        pixels = 0.3 + 0.3 * np.random.default_rng(3).random((6, 6, channels), dtype=np.float32)
        result = jittered(pixels, np.random.default_rng(0), 0.1, 0.1)
        slope = np.polyfit(pixels.ravel(), result.ravel(), 1, full=True)
        assert slope[1] < 1e-9  # one straight line for all values
