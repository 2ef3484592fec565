"""CutMix against loops, and what the pieces are like."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from blemish.anomalies.cutmix import AREA, ASPECT, cut_mix, recoloured
from blemish.errors import ConfigError

pytestmark = pytest.mark.usefixtures("seeded")


def numbered(count: int, height: int, width: int) -> Tensor:
    """Pictures of which every pixel says where it is from: picture, row and column, all from 1."""
    return torch.from_numpy(np.indices((count, height, width)).swapaxes(0, 1) + 1).float()


def pasted(images: Tensor, donors: Tensor) -> np.ndarray:
    """What `cut_mix` gives from the generator's present state, pixel by pixel."""
    count, _, height, width = images.shape
    draws = torch.rand(7, count, dtype=torch.float64).tolist()
    result = images.numpy().copy()
    for picture in range(count):
        area, end, between, cut_y, paste_y, cut_x, paste_x = (draw[picture] for draw in draws)
        pixels = (AREA[0] + (AREA[1] - AREA[0]) * area) * height * width
        aspect = 1 + ((ASPECT[0] if end < 0.5 else ASPECT[1]) - 1) * between
        tall = min(max(round(math.sqrt(pixels / aspect)), 1), height)
        wide = min(max(round(math.sqrt(pixels * aspect)), 1), width)
        there = (int(cut_y * (height - tall + 1)), int(cut_x * (width - wide + 1)))
        here = (int(paste_y * (height - tall + 1)), int(paste_x * (width - wide + 1)))
        for y, x in np.ndindex(tall, wide):
            donated = donors[picture, :, there[0] + y, there[1] + x]
            result[picture, :, here[0] + y, here[1] + x] = donated
    return result


@pytest.mark.parametrize("shape", [(12, 24, 24), (12, 40, 16), (6, 3, 50), (3, 1, 1)])
def test_against_loops(shape: tuple[int, int, int]) -> None:
    donors = numbered(*shape)
    images, before = -donors, donors.clone()
    torch.manual_seed(4)
    made = cut_mix(images, donors)
    torch.manual_seed(4)
    np.testing.assert_array_equal(made.numpy(), pasted(images, donors))
    assert torch.equal(donors, before)
    assert torch.equal(images, -before)


def test_the_pieces() -> None:
    count, height, width = 400, 100, 80
    made = cut_mix(torch.zeros(count, 3, height, width), numbered(count, height, width)).numpy()
    found = []
    for picture in range(count):
        rows, columns = np.nonzero(made[picture, 0])
        tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == tall * wide  # a rectangle, whole
        assert (made[picture, 0][rows, columns] == picture + 1).all()  # out of its own donor
        shifts = made[picture, 1:][:, rows, columns] - np.stack([rows, columns])
        assert (shifts == shifts[:, :1]).all()  # in one piece
        moved, top = (shifts[:, 0] != 1).any(), rows.min() / (height - tall)
        found.append((len(rows) / height / width, wide / tall, moved, top))
    areas, aspects, moves, tops = np.transpose(found)
    assert 0.018 < min(areas) < 0.03 < 0.14 < max(areas) < 0.155
    assert np.mean(areas) == pytest.approx(0.085, abs=0.01)
    assert 0.28 < min(aspects) < 0.4 < 2.9 < max(aspects) < 3.5
    assert np.mean(aspects < 1) == pytest.approx(0.5, abs=0.1)
    assert np.mean(moves) > 0.99  # it does not keep its place
    assert min(tops) < 0.02 < 0.98 < max(tops)
    assert np.mean(tops) == pytest.approx(0.5, abs=0.06)


def test_no_pictures_and_wrong_shapes() -> None:
    assert cut_mix(torch.zeros(0, 3, 8, 8), torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)
    for donors in (torch.zeros(2, 3, 8, 9), torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8)):
        with pytest.raises(ConfigError, match=r"one shape B C H W are needed, got \(2, 3, 8, 8\)"):
            cut_mix(torch.zeros(2, 3, 8, 8), donors)


def test_in_an_area_only() -> None:
    area = torch.zeros(300, 40, 30, dtype=torch.bool)
    area[:, 30:37, 3:8] = True  # 3 % of the picture
    area[0] = True
    torch.manual_seed(5)
    made = cut_mix(torch.zeros(300, 3, 40, 30), numbered(300, 40, 30), area)
    changed = (made != 0).any(1)
    assert not changed[~area].any()
    assert changed.flatten(1).any(1).all()
    assert changed[1:].float().mean(0)[area[1]].min() > 0.3  # all of it, some time
    torch.manual_seed(5)
    piece = cut_mix(torch.zeros(300, 3, 40, 30), numbered(300, 40, 30))[0]
    assert (piece != 0).sum() == (made[0] != 0).sum()  # as large as anywhere
    area[7] = False
    with pytest.raises(ConfigError, match="an area holds no pixel"):
        cut_mix(torch.zeros(300, 3, 40, 30), numbered(300, 40, 30), area)


# Other colours


def test_other_colours_against_loops() -> None:
    """The hue's turn by Rodrigues' formula, about (1, 1, 1)."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(4, 3, 5, 6, generator=generator)
    mean, std = torch.rand(2, 3, 1, 1, generator=generator) + 0.5
    images = (pixels - mean) / std
    torch.manual_seed(8)
    got = recoloured(images, (mean, std), strength=0.4)
    torch.manual_seed(8)
    draws = 0.4 * (2 * torch.rand(4, 4).double().numpy() - 1)
    axis, cut = np.ones(3) / math.sqrt(3), 0
    for n, one in enumerate(pixels.double().numpy()):
        bright, contrast, saturation = 1 + draws[:3, n]
        angle = 2 * math.pi * draws[3, n]
        middle = (one * bright).mean()
        expected = np.empty_like(one)
        for y, x in np.ndindex(5, 6):
            colour = middle + (one[:, y, x] * bright - middle) * contrast
            grey = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
            colour = grey + (colour - grey) * saturation
            colour = (
                colour * math.cos(angle)
                + np.cross(axis, colour) * math.sin(angle)
                + axis * (axis @ colour) * (1 - math.cos(angle))
            )
            cut += (colour < 0).any() or (colour > 1).any()
            expected[:, y, x] = np.clip(colour, 0, 1)
        expected = (expected - mean.double().numpy()) / std.double().numpy()
        np.testing.assert_allclose(got[n].double().numpy(), expected, atol=1e-5)
    assert 0 < cut < 4 * 30
    with pytest.raises(ConfigError, match="recoloured: strength in"):
        recoloured(images, (mean, std), strength=0.6)
    torch.testing.assert_close(recoloured(images, (mean, std), strength=0.0), images)
