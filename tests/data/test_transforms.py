"""From pixels to the tensor: resizing, rotating, normalising, each against its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from parts import prepared

from blemish.data.transforms import Preprocessing, rotate
from blemish.errors import ConfigError
from blemish.images import decode

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def preprocessing(height: int, width: int, **more: Any) -> Preprocessing:
    return Preprocessing(**{"height": height, "width": width, "mean": MEAN, "std": STD, **more})


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def undone(tensor: torch.Tensor) -> np.ndarray:
    """Back to 0…255, H W 3."""
    values = tensor.double().numpy() * np.array(STD)[:, None, None] + np.array(MEAN)[:, None, None]
    return np.asarray(values.transpose(1, 2, 0) * 255)


def test_normalisation_is_by_channel() -> None:
    image = pixels(12, 10)
    got = prepared(decode(image), preprocessing(12, 10))
    assert got.shape == (3, 12, 10)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    for channel in range(3):
        expected = (image[..., channel].astype(np.float64) / 255 - MEAN[channel]) / STD[channel]
        np.testing.assert_allclose(got[channel].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "tolerance"),
    [((12, 10), 1e-5), ((6, 5), 0.6 / 255 / 0.22)],  # uint8 is rounded after resizing
)
def test_float_pixels_are_the_same_picture(size: tuple[int, int], tolerance: float) -> None:
    image = pixels(12, 10)
    forms = (image, image.astype(np.float32) / 255)
    one, other = (prepared(decode(form), preprocessing(*size)) for form in forms)
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("height", "width"), [(6, 5), (4, 10), (12, 2), (3, 1)])
def test_shrinking_is_the_mean_of_the_area(height: int, width: int) -> None:
    image = pixels(12, 10).astype(np.float32) / 255
    got = undone(prepared(decode(image), preprocessing(height, width)))
    blocks = image.reshape(height, 12 // height, width, 10 // width, 3).astype(np.float64)
    np.testing.assert_allclose(got, blocks.mean(axis=(1, 3)) * 255, atol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(24, 30), (13, 10), (24, 5), (12, 31)])
def test_growing_is_bilinear(height: int, width: int) -> None:
    image = pixels(12, 10).astype(np.float32) / 255
    got = undone(prepared(decode(image), preprocessing(height, width)))
    expected = np.empty((height, width, 3))
    for y in range(height):
        for x in range(width):
            at_y = min(max((y + 0.5) * 12 / height - 0.5, 0), 11)
            at_x = min(max((x + 0.5) * 10 / width - 0.5, 0), 9)
            top, left = int(at_y), int(at_x)
            bottom, right = min(top + 1, 11), min(left + 1, 9)
            upper = image[top, left] * (1 - (at_x - left)) + image[top, right] * (at_x - left)
            lower = image[bottom, left] * (1 - (at_x - left)) + image[bottom, right] * (at_x - left)
            expected[y, x] = upper * (1 - (at_y - top)) + lower * (at_y - top)
    np.testing.assert_allclose(got, expected * 255, atol=0.02)


def test_the_picture_is_not_changed() -> None:
    image = pixels(12, 10)
    before = image.copy()
    for height, width, angle in [(12, 10, 0), (12, 10, 90), (6, 5, 30)]:
        prepared(decode(image), preprocessing(height, width), angle=angle)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, -1])
def test_quarter_turns_of_a_square_are_exact_and_counter_clockwise(turns: int) -> None:
    image = pixels(16, 16)
    assert np.array_equal(rotate(image, 90 * turns), np.rot90(image, turns))
    got = prepared(decode(image), preprocessing(16, 16), angle=90.0 * turns)
    assert torch.equal(got, prepared(decode(np.rot90(image, turns).copy()), preprocessing(16, 16)))


@pytest.mark.parametrize("shape", [(16, 16), (12, 20), (11, 8)])
def test_half_a_turn_is_exact_and_whole_turns_change_nothing(shape: tuple[int, int]) -> None:
    image = pixels(*shape)
    assert np.abs(rotate(image, 180).astype(int) - image[::-1, ::-1]).max() <= 1
    plain, *turned = (
        prepared(decode(image), preprocessing(*shape), angle=angle) for angle in (0, 360.0, -720.0)
    )
    assert all(torch.equal(each, plain) for each in turned)


@pytest.mark.parametrize("angle", [30.0, 45.0, 120.0, 300.0])
def test_any_angle_turns_counter_clockwise_about_the_centre(angle: float) -> None:
    # A bright spot to the right of the centre of a large picture, and where it must have gone.
    image = np.zeros((101, 101, 3), np.uint8)
    image[48:53, 68:73] = 255
    turned = rotate(image, angle)[..., 0].astype(np.float64)
    y, x = (np.indices(turned.shape) * turned).reshape(2, -1).sum(1) / turned.sum()
    radians = np.deg2rad(angle)
    assert (x, y) == pytest.approx((50 + 20 * np.cos(radians), 50 - 20 * np.sin(radians)), abs=0.3)
    assert turned.sum() == pytest.approx(image[..., 0].sum(), rel=0.05)


@pytest.mark.parametrize("angle", [0.0, 90.0, 30.0])
def test_what_was_turned_is_mirrored_left_to_right(angle: float) -> None:
    image = decode(pixels(16, 20))
    plain = prepared(image, preprocessing(16, 20), angle=angle)
    flipped = prepared(image, preprocessing(16, 20), angle=angle, flip=True)
    assert flipped.is_contiguous()
    assert not torch.equal(flipped, plain)
    torch.testing.assert_close(flipped, plain.flip(2), rtol=0, atol=0)


def test_corners_are_filled_by_mirroring() -> None:
    grey = np.full((40, 40, 3), 90, np.uint8)
    assert np.array_equal(rotate(grey, 45), grey)  # nothing black comes in
    assert rotate(pixels(40, 40), 45)[0, 0].any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": (3.0, 3.0)}, "lo < hi are needed"),
        ({"height": 2**13, "width": 2**13}, "at most .* pixels are possible"),
    ],
)
def test_settings_that_go_together_and_do_not(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        preprocessing(**{"height": 8, "width": 8, **settings})
