"""Areas: from mask pictures and polygons, and what cannot be one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import write_picture

from blemish.area import SIDE, Area
from blemish.data.areas import read_area
from blemish.errors import ConfigError, ImageError

LEFT = [[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]]
WHOLE = [[[0, 0], [1, 0], [1, 1], [0, 1]]]
C = [[0.1, 0.1], [0.9, 0.1], [0.9, 0.3], [0.3, 0.3], [0.3, 0.7], [0.9, 0.7], [0.9, 0.9], [0.1, 0.9]]


def given(path: Path, polygons: Any) -> Path:
    path.write_text(polygons if isinstance(polygons, str) else json.dumps(polygons))
    return path


def area_of(roi: Any, ignore: Any = None) -> Area:
    area = read_area(roi, ignore)
    assert area is not None
    return area


def winding(corners: list[list[float]], x: float, y: float) -> bool:
    """Whether a point lies in a polygon: the sum of the angles at which it sees the sides."""
    around = np.arctan2(*(np.array(corners) - (x, y)).T[::-1])
    steps = (np.roll(around, -1) - around + np.pi) % (2 * np.pi) - np.pi
    return abs(steps.sum()) > np.pi


@pytest.mark.parametrize("corners", [C, C[::-1], [[0.2, 0.1], [0.93, 0.47], [0.05, 0.8]]])
def test_a_polygon_is_filled_as_its_angles_say(corners: list[list[float]]) -> None:
    mask = area_of([corners]).mask(23, 31)
    for row, column in np.ndindex(23, 31):
        x, y = (column + 0.5) / 31, (row + 0.5) / 23
        # The grid has a place for a thousandth of a side: only the borders may differ.
        on_grid = [
            winding(corners, x + dx / SIDE, y + dy / SIDE) for dx in (-1, 0, 1) for dy in (-1, 0, 1)
        ]
        assert all(on_grid) <= mask[row, column] <= any(on_grid)


def test_a_mask_picture_of_another_shape_is_laid_over_the_picture(tmp_path: Path) -> None:
    pixels = np.zeros((10, 40), dtype=np.uint8)
    pixels[:, :20] = 255
    mask = write_picture(tmp_path / "roi.png", pixels)
    assert area_of(mask) == area_of(given(tmp_path / "left.json", LEFT)) == area_of(pixels == 255)
    assert area_of(mask).mask(2, 4).tolist() == [[True, True, False, False]] * 2


def test_what_is_ignored_is_taken_away(tmp_path: Path) -> None:
    upper = [[[0, 0], [1, 0], [1, 0.5], [0, 0.5], [0, 0]]]  # closed by hand
    assert area_of(LEFT, upper).mask(2, 2).tolist() == [[False, False], [True, False]]
    assert area_of(None, upper).mask(2, 2).tolist() == [[False, False], [True, True]]
    assert read_area(None, None) is None
    assert area_of(WHOLE).share == 1
    assert area_of([*LEFT, *upper]).mask(2, 2).tolist() == [[True, True], [True, False]]


def test_a_place_of_a_map_counts_where_any_of_the_area_lies() -> None:
    dot = area_of([[[0.5, 0.5], [0.504, 0.5], [0.504, 0.504], [0.5, 0.504]]])
    assert np.argwhere(dot.places(7, 7)).tolist() == [[3, 3]]
    assert np.argwhere(dot.places(2048, 4)).max() == 1032 - 1
    assert not dot.mask(2, 2).any()
    ones = np.random.default_rng(0).random((SIDE, SIDE)) > 0.95
    rows = [slice(row * SIDE // 5, -(-(row + 1) * SIDE // 5)) for row in range(5)]
    columns = [slice(row * SIDE // 3, -(-(row + 1) * SIDE // 3)) for row in range(3)]
    sparse = ones & (np.arange(SIDE) > 700)
    naive = [[bool(sparse[row, column].any()) for column in columns] for row in rows]
    assert Area.of(sparse).places(5, 3).tolist() == naive
    assert (Area.of(ones)._grid == ones).all()


@pytest.mark.parametrize(
    ("polygons", "reason"),
    [
        ("[[[0, 0]", "not valid JSON"),
        ("", "not valid JSON"),
        ({"roi": LEFT}, "no list of polygons"),
        ([], "is empty"),
        (LEFT[0], "no point"),  # one level too few
        ([[[0, 0], [1, 1]]], "polygon 1: at least 3 points are needed, got 2"),
        ([[[0, 0], [1, 1], [0, 0]]], "got 2"),
        ([*LEFT, [[0, 0], [1.5, 0], [0, 1]]], r"polygon 2: the point \[1.5, 0\] is not in"),
        ([[[0, 0], [-0.1, 0], [0, 1]]], "is not in the picture"),
        ("[[[0, 0], [NaN, 0], [0, 1]]]", "is not in the picture"),
        ("[[[0, 0], [Infinity, 0], [0, 1]]]", "is not in the picture"),
        ([[[0, 0], [1, 0, 1], [0, 1]]], "no point"),
        ([[[0, 0], ["1", 0], [0, 1]]], "no point"),
        ([[[0, 0], [True, 0], [0, 1]]], "no point"),
        ([[[0, 0], [1, 1], [1, 0], [0, 1]]], "crosses itself"),
        ([[[0, 0], [0.5, 0.5], [1, 0], [1, 1], [0.5, 0.5], [0, 1]]], "crosses itself"),  # touches
        ([[[0, 0], [0.5, 0.5], [1, 1]]], "is empty"),  # a line
        ([[[x / 2000, x % 2] for x in range(1001)]], "at most 1000 points"),
        (LEFT * 1001, "at most 1000 polygons"),
        ("[" * 2000 + "]" * 2000, "not valid JSON"),
    ],
)
def test_what_is_no_area(tmp_path: Path, polygons: Any, reason: str) -> None:
    path = given(tmp_path / "roi.json", polygons)
    with pytest.raises(ConfigError, match=reason) as told:
        read_area(path)
    assert str(told.value).startswith(str(path))


def test_what_is_no_mask(tmp_path: Path) -> None:
    grey = write_picture(tmp_path / "grey.png", np.full((8, 8), 128, dtype=np.uint8))
    with pytest.raises(ConfigError, match=r"grey\.png: is not black and white"):
        read_area(grey)
    red = np.zeros((8, 8, 3), dtype=np.uint8)
    red[:4, :, 0] = 255
    with pytest.raises(ConfigError, match="not black and white"):
        read_area(write_picture(tmp_path / "red.png", red))
    black = write_picture(tmp_path / "black.png", np.zeros((8, 8), dtype=np.uint8))
    with pytest.raises(ConfigError, match=r"black\.png: is empty: nothing is left"):
        read_area(black)
    with pytest.raises(ConfigError, match=r"missing\.png"):
        read_area(tmp_path / "missing.png")
    with pytest.raises(ImageError, match=r"note\.txt"):
        read_area(given(tmp_path / "note.txt", "the left half"))
    with pytest.raises(ConfigError, match="roi: a mask is bool H W"):
        read_area(np.zeros((4, 4)))


def test_a_transparent_mask_is_not_taken_for_white(tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "roi.png"
    cv2.imwrite(str(path), np.zeros((8, 8, 4), dtype=np.uint8))
    with pytest.raises(ConfigError, match=r"roi\.png: is no plain mask \(transparency"):
        read_area(path)


def test_nothing_may_be_left(tmp_path: Path) -> None:
    whole = given(tmp_path / "whole.json", WHOLE)
    with pytest.raises(ConfigError, match=r"whole\.json: covers the whole picture: nothing is"):
        read_area(None, whole)
    left = given(tmp_path / "left.json", LEFT)
    with pytest.raises(ConfigError, match=r"whole\.json: covers all of .*left\.json: nothing is"):
        read_area(left, whole)


def test_a_mask_of_noise_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (SIDE, SIDE), dtype=np.uint8) * 255
    with pytest.raises(ConfigError, match=r"noise\.png: runs: .* too ragged; .* smooth borders"):
        read_area(write_picture(tmp_path / "noise.png", noise))
