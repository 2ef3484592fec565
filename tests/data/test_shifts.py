from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from blemish.data.shifts import SHIFTS


@pytest.fixture(params=["uint8", "float32"])
def pixels(request: pytest.FixtureRequest, picture: Callable[..., np.ndarray]) -> np.ndarray:
    """A picture with black and white in it, 40 × 100."""
    made = picture(3, defect=True, height=40, width=100)
    made[:4, :4], made[-4:, -4:] = 0, 255
    return made if request.param == "uint8" else (made / 255).astype(np.float32)


def in_unit(pixels: np.ndarray) -> np.ndarray:
    return pixels / 255.0 if pixels.dtype == np.uint8 else pixels.astype(np.float64)


def check(given: np.ndarray, wanted: np.ndarray) -> None:
    """Pixels against float64 in [0, 1] to within rounding."""
    error = 0.51 / 255 if given.dtype == np.uint8 else 1e-5
    assert np.abs(in_unit(given) - wanted).max() <= error


@pytest.mark.parametrize("name", SHIFTS)
def test_type_shape_and_range_stay_and_the_picture_is_left_alone(
    name: str, pixels: np.ndarray
) -> None:
    before = pixels.copy()
    first, second = SHIFTS[name](pixels), SHIFTS[name](pixels)
    assert (first.dtype, first.shape) == (pixels.dtype, pixels.shape)
    assert first.flags.c_contiguous
    assert 0 <= first.min() <= first.max() <= (255 if pixels.dtype == np.uint8 else 1)
    assert (first == second).all()
    assert (first != pixels).any()
    assert (pixels == before).all()


def test_light_is_multiplied(pixels: np.ndarray) -> None:
    check(SHIFTS["brightness"](pixels), 0.6 * in_unit(pixels))
    check(SHIFTS["brighter"](pixels), np.minimum(1.4 * in_unit(pixels), 1))


def test_contrast_is_halved_about_the_mean(pixels: np.ndarray) -> None:
    values = in_unit(pixels)
    mean = sum(values.ravel().tolist()) / values.size
    check(SHIFTS["contrast"](pixels), mean + 0.5 * (values - mean))


def test_blur_is_a_gaussian(pixels: np.ndarray) -> None:
    values, sigma = in_unit(pixels), 0.006 * 100
    height, width, channels = values.shape
    weights = [
        [math.exp(-(x * x + y * y) / (2 * sigma**2)) for x in range(-4, 5)] for y in range(-4, 5)
    ]
    total = sum(map(sum, weights))
    padded = np.pad(values, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    wanted = np.zeros((height, width, channels))
    for y in range(9):
        for x in range(9):
            wanted += weights[y][x] / total * padded[y : y + height, x : x + width]
    check(SHIFTS["blur"](pixels), wanted)


def test_noise_has_its_strength_and_belongs_to_the_content() -> None:
    colour = np.random.default_rng(0).uniform(0.4, 0.6, (60, 80, 3)).astype(np.float32)
    added = SHIFTS["noise"](colour) - colour
    assert abs(added.mean()) < 0.003
    assert abs(added.std() - 0.06) < 0.003
    assert abs(np.corrcoef(added[..., 0].ravel(), added[..., 1].ravel())[0, 1]) < 0.1
    other = colour.copy()
    other[0, 0, 0] = 0.5
    assert abs(np.corrcoef((SHIFTS["noise"](other) - other).ravel(), added.ravel())[0, 1]) < 0.1


def test_grey_stays_grey(pixels: np.ndarray) -> None:
    grey = np.repeat(pixels[..., :1], 3, axis=2)
    for name, shift in SHIFTS.items():
        assert np.ptp(shift(grey), axis=2).max() < 1e-6, name


def test_jpeg_is_that_of_quality_15(pixels: np.ndarray) -> None:
    def through(quality: int) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(np.rint(255 * in_unit(pixels)).astype(np.uint8)).save(
            file, "JPEG", quality=quality
        )
        return np.asarray(Image.open(file)) / 255

    pixels[10:30, 40:60] = pixels[10:30, 40:60] * [1, 0, 0]  # red and blue must not be exchanged
    given = in_unit(SHIFTS["jpeg"](pixels))
    errors = {quality: np.abs(given - through(quality)).mean() for quality in (5, 15, 40)}
    assert errors[15] < 0.005
    assert errors[15] < 0.5 * min(errors[5], errors[40])
