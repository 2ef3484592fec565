"""DRAEM's anomalies: the noise against its formula, textures, and what is laid over where."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from blemish.anomalies import textures
from blemish.anomalies.noise import perlin_noise, turned
from blemish.anomalies.perlin import PerlinTexture
from blemish.errors import ConfigError, ImageError


def naive(size: tuple[int, int], cells: tuple[int, int], angles: np.ndarray) -> np.ndarray:
    """Perlin noise pixel by pixel."""

    def fade(t: float) -> float:
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    found = np.empty(size)
    for y, x in np.ndindex(size):
        v, u = y * cells[0] / size[0], x * cells[1] / size[1]
        row, column = math.floor(v), math.floor(u)
        total = 0.0
        for below in (0, 1):
            for right in (0, 1):
                angle = angles[row + below, column + right]
                down, across = v - row - below, u - column - right
                weight = (fade(v - row) if below else 1 - fade(v - row)) * (
                    fade(u - column) if right else 1 - fade(u - column)
                )
                total += weight * (math.sin(angle) * down + math.cos(angle) * across)
        found[y, x] = math.sqrt(2) * total
    return found


@pytest.mark.parametrize(
    ("size", "cells"), [((12, 20), (3, 4)), ((15, 10), (4, 1)), ((8, 8), (1, 1))]
)
def test_the_noise_against_loops(size: tuple[int, int], cells: tuple[int, int]) -> None:
    angles = np.random.default_rng(3).uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    found = perlin_noise(size, cells, np.random.default_rng(3))
    np.testing.assert_allclose(found, naive(size, cells, angles), atol=1e-12)
    assert np.abs(found).max() <= 1


def test_a_quarter_turn_is_that_of_numpy() -> None:
    field = np.random.default_rng(0).random((9, 9))
    np.testing.assert_allclose(turned(field, 90, outside=0.0), np.rot90(field), atol=1e-12)
    pixels = np.random.default_rng(1).random((9, 9, 5)).astype(np.float32)
    np.testing.assert_allclose(turned(pixels, -90), np.rot90(pixels, -1), atol=1e-6)
    assert turned(np.ones((9, 9)), 45, outside=0.0)[0, 0] == 0
    assert turned(np.ones((9, 9)), 45).min() == pytest.approx(1)


def test_what_is_laid_over_is_a_texture_by_its_opacity() -> None:
    """In the mask every pixel lies on the line from the picture to the changed texture, all at the
    same share of the way, from 0.2 to 1."""
    image = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    texture = np.full((64, 64, 3), 200, dtype=np.uint8)
    shares, covered = [], []
    for seed in range(60):
        made = PerlinTexture(textures=(texture,))(image, np.random.default_rng(seed))
        assert np.array_equal(made.image[~made.mask], image[~made.mask])
        covered.append(made.mask.mean())
        # A flat texture stays flat: then what is left of the picture's contrast is 1 − β.
        before, after = image[made.mask], made.image[made.mask]
        if len(before) > 50:
            slope = [np.polyfit(before[:, c], after[:, c], 1)[0] for c in range(3)]
            np.testing.assert_allclose(slope, slope[0], atol=1e-3)
            shares.append(1 - slope[0])
    assert min(shares) > 0.19
    assert max(shares) < 1.001
    assert max(shares) - min(shares) > 0.5
    assert 0.02 < np.mean(covered) < 0.4


def test_an_area_bounds_what_is_laid_over() -> None:
    image = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    area = np.zeros((64, 64), dtype=bool)
    area[:, :20] = True
    for seed in range(10):
        made = PerlinTexture()(image, np.random.default_rng(seed), area=area)
        assert made.mask.any()
        assert not made.mask[~area].any()
        assert np.array_equal(made.image[~area], image[~area])


def test_generated_textures_are_of_several_kinds_and_fill_the_range() -> None:
    rng = np.random.default_rng(0)
    made = [textures.generated((40, 56), 3, rng) for _ in range(20)]
    for one in made:
        assert (one.shape, one.dtype) == ((40, 56, 3), np.float32)
        assert 0 <= one.min() < one.max() <= 1
    rough = [float(np.abs(np.diff(one, axis=1)).mean() / one.std()) for one in made]
    assert max(rough) > 4 * min(rough)


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("channels", [1, 3])
def test_each_operation_keeps_shape_and_range(
    number: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texture = np.random.default_rng(0).random((16, 24, channels), dtype=np.float32)
    own = textures._OPERATIONS[number]
    monkeypatch.setattr(textures, "_OPERATIONS", (own,) * 3)
    changed = [textures.altered(texture, np.random.default_rng(seed)) for seed in range(8)]
    for one in changed:
        assert (one.shape, one.dtype) == (texture.shape, np.float32)
        assert 0 <= one.min() <= one.max() <= 1
    assert max(float(np.abs(one - texture).max()) for one in changed) > 0.02


def test_textures_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "banded").mkdir()
    for number in range(7):
        grey = np.full((30, 40, 3), 30 * number, dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "banded" / f"{number}.png"), grey)
    (tmp_path / "notes.txt").write_text("no picture")
    read = textures.read_textures(tmp_path, (16, 24))
    assert [(one.shape, int(one[0, 0, 0])) for one in read] == [
        ((16, 24, 3), 30 * number) for number in range(7)
    ]
    monkeypatch.setattr(textures, "MOST", 3)
    assert [int(one[0, 0, 0]) for one in textures.read_textures(tmp_path, (8, 8))] == [0, 90, 180]
    monkeypatch.undo()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ImageError, match=r"broken\.png"):
        textures.read_textures(tmp_path, (8, 8))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="textures: there is no picture in"):
        textures.read_textures(tmp_path / "empty", (8, 8))
    with pytest.raises(ConfigError, match=r"textures: .*nowhere is no folder; name one"):
        textures.read_textures(tmp_path / "nowhere", (8, 8))
