"""Random views and masks against loops in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from blemish.methods import views
from blemish.methods.views import (
    Augmentation,
    block_of,
    blurred,
    cropped,
    far_from_a_place,
    most,
    recoloured,
    view,
)


@pytest.mark.parametrize("ratio", [0.15, 0.29, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("patches", [4, 49, 100, 256])
def test_a_mask_keeps_exactly_the_most_attended(patches: int, ratio: float) -> None:
    worth = torch.rand(5, patches)
    kept = most(worth, ratio)
    assert kept.shape == (5, patches - int(round(ratio * 100) * patches // 100))
    for row, chosen in zip(worth, kept, strict=True):
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        lost = [value for place, value in enumerate(row.tolist()) if place not in chosen.tolist()]
        assert row[chosen].min() > max(lost, default=-1)


@pytest.mark.parametrize("grid", [(3, 3), (7, 7), (16, 16), (5, 9)])
def test_a_block_lies_together(grid: tuple[int, int]) -> None:
    worth = far_from_a_place(30, grid)
    kept = most(worth, 0.3)
    shapes = set()
    for row in kept.tolist():
        lost = {divmod(place, grid[1]) for place in range(grid[0] * grid[1]) if place not in row}
        assert len(lost) == int(0.3 * grid[0] * grid[1])
        reached, border = set(), [min(lost)]
        while border:
            y, x = border.pop()
            reached.add((y, x))
            beside = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)}
            border += sorted(beside & (lost - reached))
        assert reached == lost
        shapes.add(frozenset(lost))
    assert len(shapes) > 5


def test_a_block_of_a_share_is_what_lies_nearest() -> None:
    shares = torch.tensor([0.0, 0.1, 0.29, 0.5, 0.99])
    torch.manual_seed(2)
    far = far_from_a_place(5, (10, 10))
    torch.manual_seed(2)
    found = block_of((10, 10), shares)
    assert found.sum(1).tolist() == [0, 10, 29, 50, 99]
    for distances, hidden in zip(far[1:], found[1:], strict=True):
        assert distances[hidden].max() <= distances[~hidden].min()


@pytest.mark.parametrize(
    ("size", "largest", "fine"),
    [((7, 9), 1.0, 3), ((7, 9), 0.5, 2), ((12, 14), 1.0, 2), ((30, 40), 1.0, 1)],
)
def test_a_crop_against_loops(size: tuple[int, int], largest: float, fine: int) -> None:
    """The mean of as many points of a pixel, along each side, as it covers pixels of the picture at
    most.
    """
    pixels = torch.rand(3, 3, 20, 24)
    draws = torch.rand(5, 3)
    draws[4] = torch.tensor([0.2, 0.8, 0.4])
    draws[0, 2] = draws[1, 2] = 0.99  # would stick out
    found = cropped(pixels, size, (0.3, largest), draws)
    for index, (area, aspect, across, down, mirrored) in enumerate(draws.T.double().tolist()):
        share = 0.3 + (largest - 0.3) * area
        ratio = math.exp(math.log(4 / 3) * (2 * aspect - 1))
        width = 24 * min(1.0, math.sqrt(share * ratio))
        height = 20 * min(1.0, math.sqrt(share / ratio))
        left, top = across * (24 - width), down * (20 - height)
        part = pixels[index].double()
        for y, x in np.ndindex(*size):
            column = size[1] - 1 - x if mirrored < 0.5 else x
            expected = torch.zeros(3, dtype=torch.float64)
            for below, beside in np.ndindex(fine, fine):
                at_y = top + (y + (below + 0.5) / fine) / size[0] * height - 0.5
                at_x = left + (column + (beside + 0.5) / fine) / size[1] * width - 0.5
                expected += bilinear(part, at_y, at_x) / fine**2
            np.testing.assert_allclose(found[index, :, y, x], expected, atol=2e-4)


def bilinear(part: Tensor, y: float, x: float) -> Tensor:
    """The colour of 3 H W at a place, (0, 0) being the centre of the first pixel."""
    y, x = min(max(y, 0), part.shape[1] - 1), min(max(x, 0), part.shape[2] - 1)
    (y0, x0), (wy, wx) = (int(y), int(x)), (y % 1, x % 1)
    y1, x1 = min(y0 + 1, part.shape[1] - 1), min(x0 + 1, part.shape[2] - 1)
    above = part[:, y0, x0] * (1 - wx) + part[:, y0, x1] * wx
    below = part[:, y1, x0] * (1 - wx) + part[:, y1, x1] * wx
    return above * (1 - wy) + below * wy


@pytest.mark.parametrize("most_by", [(0.4, 0.4, 0.2, 0.1), (0.8, 0.6, 0.7, 0.2)])
def test_colours_against_loops(most_by: tuple[float, float, float, float]) -> None:
    bright, contrasty, saturated, turned = most_by
    pixels = torch.rand(4, 3, 5, 6)
    draws = torch.rand(6, 4)
    draws[0] = torch.tensor([0.1, 0.79, 0.81, 0.5])  # whether it changes
    draws[5] = torch.tensor([0.9, 0.5, 0.19, 0.1])  # whether it turns grey
    found = recoloured(pixels, draws, most_by)
    yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    for index, (changes, *by, grey) in enumerate(draws.T.double().tolist()):
        b, c, s, h = (2 * value - 1 if changes < 0.8 else 0.0 for value in by)
        part = pixels[index].double().permute(1, 2, 0).numpy() * (1 + bright * b)
        middle = np.mean([yiq[0] @ part[place] for place in np.ndindex(5, 6)])
        for place in np.ndindex(5, 6):
            colour = (1 + contrasty * c) * part[place] - contrasty * c * middle
            luminance = yiq[0] @ colour
            colour = luminance + (1 + saturated * s) * (colour - luminance)
            y, i, q = yiq @ colour
            angle = 2 * turned * math.pi * h
            cos, sin = math.cos(angle), math.sin(angle)
            colour = np.linalg.solve(yiq, (y, i * cos - q * sin, i * sin + q * cos))
            if grey < 0.2:
                colour = np.full(3, luminance)
            seen = found[index, :, place[0], place[1]]
            np.testing.assert_allclose(seen, colour.clip(0, 1), atol=1e-3)
    same = recoloured(pixels, torch.full((6, 4), 0.9), most_by)
    assert torch.allclose(same, pixels, atol=1e-5)


def test_blur_against_loops() -> None:
    pixels, sigma = torch.rand(2, 3, 8, 10), torch.tensor([0.4, 1.8])
    found = blurred(pixels, sigma)

    def mirrored(place: int, side: int) -> int:
        return abs(place) if place < side else 2 * (side - 1) - place

    weights = [
        [math.exp(-0.5 * (offset / width) ** 2) for offset in range(-6, 7)]
        for width in sigma.tolist()
    ]
    for index, channel, y, x in itertools.product(range(2), (0, 2), range(8), range(10)):
        total = 0.0
        for (dy, down), (dx, across) in itertools.product(enumerate(weights[index], -6), repeat=2):
            place = index, channel, mirrored(y + dy, 8), mirrored(x + dx, 10)
            total += down * across * pixels[place].item()
        expected = total / sum(weights[index]) ** 2
        assert found[index, channel, y, x].item() == pytest.approx(expected, rel=1e-4)


def test_how_often_a_view_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    soft: list[int] = []
    monkeypatch.setattr(views, "blurred", lambda part, _: (part, soft.append(len(part)))[0])
    white = torch.ones(500, 3, 8, 8)
    made = view(white, (8, 8), Augmentation(area=(0.4, 1.0), blur=0.5, solarise=0.2))
    assert 200 < soft[0] < 300
    assert 60 < (made.amax((1, 2, 3)) < 0.45).sum() < 150  # a brightness of 0.6 and above, inverted
    left = torch.zeros(500, 3, 8, 8)
    left[..., :4] = 0.5
    made = view(left, (8, 8), Augmentation(area=(1.0, 1.0), blur=0.0))
    bright = made.mean((1, 2))
    assert 200 < (bright[:, 0] > bright[:, -1]).sum() < 300
    assert len(soft) == 1
