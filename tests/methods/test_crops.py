"""ATAC-Net's crops (eq. 4-6) and the maps that are put back, against loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive import box_of, f64, upsampled
from torch import Tensor

from blemish.methods.crops import crop_boxes, cropped, merged


def read(values: np.ndarray, y: float, x: float) -> float:
    """Bilinear at fractions of the sides, pixels being areas; beyond the outermost centres, the
    outermost pixels.
    """
    height, width = values.shape
    row, column = min(max(y * height - 0.5, 0), height - 1), min(max(x * width - 0.5, 0), width - 1)
    top, left = int(row), int(column)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = row - top, column - left
    above = values[top, left] * (1 - across) + values[top, right] * across
    below = values[bottom, left] * (1 - across) + values[bottom, right] * across
    return float(above * (1 - down) + below * down)


def saliencies() -> Tensor:
    """Of 5×7 cells: random, of few cells, one cell in the middle and in each corner, nothing,
    everything.
    """
    few, one = torch.rand(6, 5, 7), torch.zeros(5, 5, 7)
    for row, (y, x) in enumerate(((2, 3), (0, 0), (0, 6), (4, 0), (4, 6))):
        one[row, y, x] = 1
    even = torch.tensor([0.0, 1.0, 0.4])[:, None, None].expand(3, 5, 7)
    return torch.cat([torch.rand(6, 5, 7), torch.where(few > 0.9, few, 0.0), one, even])


@pytest.mark.parametrize("offset", [0.0, -0.48, 0.3])
@pytest.mark.parametrize("padding", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("active", [0.0, 0.4, 0.95])
def test_the_crop_against_loops(active: float, padding: float, offset: float) -> None:
    saliency = saliencies()
    found = crop_boxes(saliency, active=active, padding=padding, offset=offset)
    limit = float(np.float32(active))  # the saliency's own precision
    expected = np.array([box_of(each, limit, padding, offset) for each in f64(saliency)])
    np.testing.assert_allclose(f64(found), expected, atol=1e-6)


def test_the_crop_where_it_degenerates() -> None:
    cell = torch.zeros(4, 10, 10)
    cell[0, 4, 2] = 1  # one cell, in the middle
    cell[1, 9, 0] = 1  # one, in a corner: there is no picture beyond
    cell[2] = 0.4  # at the threshold is not above it
    cell[3] = 1.0
    found = crop_boxes(cell, active=0.4, padding=0.1)
    expected = [[0.19, 0.39, 0.12, 0.12], [0.0, 0.89, 0.11, 0.11], [0, 0, 1, 1], [0, 0, 1, 1]]
    np.testing.assert_allclose(found, np.array(expected), atol=1e-6)


def test_cropping_against_loops() -> None:
    images = torch.rand(3, 2, 12, 10)
    boxes = torch.tensor([[0.25, 0.1, 0.5, 0.3], [0.9, 0.0, 0.1, 1.0], [0.0, 0.0, 1.0, 1.0]])
    found = cropped(images, boxes)
    assert found.shape == images.shape
    expected = np.empty(found.shape)
    for picture, channel, row, column in np.ndindex(*found.shape):
        x, y, width, height = f64(boxes[picture])
        place = y + height * (row + 0.5) / 12, x + width * (column + 0.5) / 10
        expected[picture, channel, row, column] = read(f64(images[picture, channel]), *place)
    np.testing.assert_allclose(f64(found), expected, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cropped(images, boxes), found)


@pytest.mark.parametrize("offset", [0.0, -0.48, 0.3])
def test_a_crop_is_put_back_where_it_was(offset: float) -> None:
    first, second = torch.rand(3, 3, 4), torch.rand(3, 3, 4)
    boxes = torch.tensor([[0.25, 0.125, 0.5, 0.375], [0.9, 0.7, 0.1, 0.3], [0.0, 0.0, 1.0, 1.0]])
    found = f64(merged(first, second, boxes, (16, 24), offset))
    for picture in range(3):
        x, y, width, height = f64(boxes[picture])
        expected = upsampled(f64(first[picture]), 16, 24, offset)
        inside = 0
        for row, column in np.ndindex(16, 24):
            down, across = ((row + 0.5) / 16 - y) / height, ((column + 0.5) / 24 - x) / width
            if 0 <= down <= 1 and 0 <= across <= 1:
                inside += 1
                closer = read(f64(second[picture]), down - offset / 3, across - offset / 4)
                expected[row, column] = (expected[row, column] + closer) / 2
        assert inside >= 10
        np.testing.assert_allclose(found[picture], expected, atol=1e-5)
