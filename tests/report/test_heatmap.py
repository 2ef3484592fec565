from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image

from blemish.errors import ConfigError, NonFiniteError, OutputError
from blemish.files import write_whole
from blemish.report.heatmap import (
    attention_overlay,
    colour_bar,
    contours,
    encode_jpeg,
    encode_mask,
    encode_png,
    outline,
    overlay,
    save_png,
    thumbnail,
)

SCALE = (2.0, 6.0)


def random_picture(height: int = 5, width: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def naive_overlay(
    picture: np.ndarray, heatmap: np.ndarray, low: float, high: float, opacity: float
) -> np.ndarray:
    """Pixel by pixel, with matplotlib's plasma as the independent table of colours."""
    result = np.zeros(picture.shape)
    for row, column in np.ndindex(heatmap.shape):
        level = min(max((float(heatmap[row, column]) - low) / (high - low), 0.0), 1.0)
        step = round(level * 255)
        alpha = opacity * min(2.0 * step / 255, 1.0)
        for channel in range(3):
            colour = 255 * colormaps["plasma"](step)[channel]
            result[row, column, channel] = (1 - alpha) * picture[
                row, column, channel
            ] + alpha * colour
    return result


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), opacity=st.floats(0, 1))
def test_an_overlay_is_the_naive_blend(seed: int, opacity: float) -> None:
    picture = random_picture(seed=seed)
    heatmap = np.random.default_rng(seed).uniform(0, 8, picture.shape[:2]).astype(np.float32)
    expected = naive_overlay(picture, heatmap, *SCALE, opacity)
    kept = picture.copy(), heatmap.copy()
    drawn = overlay(picture, heatmap, SCALE, opacity=opacity)
    assert np.abs(drawn - expected).max() <= 1.0
    assert np.array_equal(drawn[heatmap <= 2], picture[heatmap <= 2])  # normal areas, exactly
    assert np.array_equal(picture, kept[0])
    assert np.array_equal(heatmap, kept[1])


def test_attention_is_shown_in_multiples_of_its_mean() -> None:
    picture = random_picture(8, 8)
    assert np.array_equal(attention_overlay(picture, np.full((2, 4), 0.125)), picture)
    peak = np.zeros((8, 8))
    peak[3, 5] = 1.0  # 64 times the mean
    shown = attention_overlay(picture, peak)
    assert np.array_equal(shown, overlay(picture, 64 * peak, (1.0, 8.0)))
    assert np.argwhere((shown != picture).any(2)).tolist() == [[3, 5]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_an_error(value: float) -> None:
    heatmap = np.zeros((5, 7), np.float32)
    heatmap[3, 3] = value
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        overlay(random_picture(), heatmap, SCALE)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.0, 1.0), (np.nan, 1.0), (0.0, np.inf)])
def test_an_empty_scale_is_an_error(scale: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="scale"):
        overlay(random_picture(), np.zeros((5, 7), np.float32), scale)
    with pytest.raises(ConfigError, match="scale"):
        colour_bar(scale)


def test_sizes_types_and_opacity_are_checked() -> None:
    picture, heatmap = random_picture(), np.zeros((5, 7), np.float32)
    with pytest.raises(ConfigError, match=r"\(7, 5\) does not fit"):
        overlay(picture, heatmap.T, SCALE)
    with pytest.raises(ConfigError, match="float64"):
        overlay(picture.astype(np.float64), heatmap, SCALE)
    with pytest.raises(ConfigError, match="opacity"):
        overlay(picture, heatmap, SCALE, opacity=1.5)
    with pytest.raises(ConfigError, match="uint8 H W 3"):
        encode_png(picture[..., 0])


def test_a_colour_bar_runs_from_no_tint_to_the_full_colour() -> None:
    bar = colour_bar((-3.0, 9.0), width=64, height=4)
    assert bar.shape == (4, 64, 3)
    assert (bar == bar[:1]).all()
    assert bar[0, 0].tolist() == [224, 224, 224]
    assert bar[0, -1].tolist() == [round(255 * value) for value in colormaps["plasma"](255)[:3]]


def naive_outline(picture: np.ndarray, sides: tuple[int, int, int, int], line: int) -> np.ndarray:
    """Pixel by pixel, by how deep a pixel lies in the rectangle of these outer sides (left, top,
    right, bottom).
    """
    left, top, right, bottom = sides
    result = picture.copy()
    for row, column in np.ndindex(picture.shape[:2]):
        depth = min(column - left, right - 1 - column, row - top, bottom - 1 - row)
        if 0 <= depth < 2 * line:
            result[row, column] = 0 if depth < line else 255
    return result


@pytest.mark.parametrize(
    ("size", "box", "sides", "line"),
    [
        ((20, 40), (0.25, 0.2, 0.5, 0.6), (9, 3, 31, 17), 1),
        ((20, 40), (0.0, 0.0, 1.0, 1.0), (0, 0, 40, 20), 1),  # where all is active
        ((20, 40), (0.5, 0.5, 0.0, 0.0), (19, 9, 22, 12), 1),  # a single pixel
        ((20, 40), (0.975, 0.95, 0.025, 0.05), (38, 18, 40, 20), 1),  # in the corner
        ((20, 40), (0.75, -0.5, 0.75, 1.0), (29, 0, 40, 11), 1),  # partly outside
        ((300, 600), (0.1, 0.1, 0.5, 0.5), (57, 27, 363, 183), 3),
        ((1, 1), (0.0, 0.0, 1.0, 1.0), (0, 0, 1, 1), 1),
    ],
)
def test_a_rectangle_is_a_light_line_in_a_dark_one(
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    sides: tuple[int, int, int, int],
    line: int,
) -> None:
    picture = random_picture(*size)
    kept = picture.copy()
    assert np.array_equal(outline(picture, box), naive_outline(picture, sides, line))
    assert np.array_equal(picture, kept)


def test_a_box_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match="box"):
        outline(random_picture(), (0.0, 0.0, np.nan, 1.0))
    with pytest.raises(ConfigError, match="uint8 H W 3"):
        outline(random_picture()[..., 0], (0.0, 0.0, 1.0, 1.0))


@pytest.mark.parametrize(("size", "line"), [((30, 40), 1), ((600, 1600), 2)])
def test_parts_of_a_mask_are_outlined_by_a_light_line_in_a_dark_one(
    size: tuple[int, int], line: int
) -> None:
    picture = random_picture(*size)
    mask = np.zeros(size, np.bool_)
    mask[10:14, 5:9] = mask[12, 14] = mask[0:3, 37:40] = True  # two near each other, one at a side
    kept = picture.copy(), mask.copy()
    drawn = contours(picture, mask)
    inside = np.argwhere(mask)
    for row, column in np.ndindex(min(size[0], 40), min(size[1], 60)):
        away = np.abs(inside - (row, column)).max(1).min()
        expected = picture[row, column]
        from_border = min(row, column, size[0] - 1 - row, size[1] - 1 - column)
        if 0 < away <= 2 * line:
            expected = np.full(3, 255 if away <= line else 0)
        elif away == 0 and from_border < 2 * line:
            expected = np.full(3, 0 if from_border < line else 255)
        assert drawn[row, column].tolist() == expected.tolist()
    assert (drawn != picture).any(2).sum() == (drawn != picture)[:40, :60].any(2).sum()
    assert np.array_equal(picture, kept[0])
    assert np.array_equal(mask, kept[1])
    assert np.array_equal(contours(picture, np.zeros(size, np.bool_)), picture)
    with pytest.raises(ConfigError, match="mask of shape"):
        contours(picture, mask[1:])


def test_a_mask_becomes_a_grey_picture_of_0_and_255() -> None:
    mask = np.random.default_rng(0).random((5, 9)) > 0.5
    with Image.open(io.BytesIO(encode_mask(mask))) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        assert np.array_equal(np.asarray(image), 255 * mask)
    with pytest.raises(ConfigError, match="bool H W"):
        encode_mask(mask.astype(np.uint8))


def test_a_thumbnail_keeps_the_proportions_and_the_mean_and_never_enlarges() -> None:
    picture = random_picture(40, 120)
    small = thumbnail(picture, 30)
    assert small.shape == (10, 30, 3)
    assert np.abs(small.reshape(-1, 3).mean(0) - picture.reshape(-1, 3).mean(0)).max() < 0.5
    assert thumbnail(picture, 120) is picture
    assert thumbnail(random_picture(1, 500), 10).shape == (1, 10, 3)
    with pytest.raises(ConfigError, match="thumbnail"):
        thumbnail(picture, 0)


def test_png_is_lossless_and_jpeg_is_near() -> None:
    picture = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 72).reshape(24, 24, 3) + np.array(
        [0, 5, 10], np.uint8
    )
    with Image.open(io.BytesIO(encode_png(picture))) as decoded:
        assert decoded.format == "PNG"
        assert np.array_equal(np.asarray(decoded), picture)
    with Image.open(io.BytesIO(encode_jpeg(picture, 95))) as decoded:
        assert decoded.format == "JPEG"
        assert np.abs(np.asarray(decoded).astype(int) - picture).max() <= 8
    assert len(encode_jpeg(picture, 20)) < len(encode_jpeg(picture, 95))
    with pytest.raises(ConfigError, match="quality"):
        encode_jpeg(picture, 100)


def test_a_picture_is_saved_where_asked_with_its_folders(tmp_path: Path) -> None:
    picture = random_picture()
    path = save_png(tmp_path / "a" / "b" / "map.png", picture)
    with Image.open(path) as decoded:
        assert np.array_equal(np.asarray(decoded), picture)
    assert [found.name for found in path.parent.iterdir()] == ["map.png"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_a_saved_file_has_the_permissions_that_the_user_gives_new_files(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = write_whole(tmp_path / "whole", b"x")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), r"cannot be written \(No space left"),
        (KeyboardInterrupt(), ""),
    ],
)
def test_what_fails_while_it_is_written_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, said: str
) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError if said else KeyboardInterrupt, match=said or None):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        save_png(tmp_path / "file" / "map.png", random_picture())
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        save_png(tmp_path / "folder", random_picture())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_large_picture_is_drawn_as_its_parts_are() -> None:
    rng = np.random.default_rng(0)
    picture, heat = (
        rng.integers(0, 256, (700, 40, 3), dtype=np.uint8),
        rng.normal(size=(700, 40)).astype(np.float32),
    )
    whole = overlay(picture, heat, (0.0, 1.0))
    rows = [overlay(picture[row : row + 1], heat[row : row + 1], (0.0, 1.0)) for row in range(700)]
    assert np.array_equal(whole, np.concatenate(rows))
