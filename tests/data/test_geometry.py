"""Where pictures of any shape lie in an input, and maps of the input put back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from blemish.area import SIDE, Area
from blemish.data.geometry import (
    NEAR,
    RESIZES,
    Placement,
    Resize,
    check_resize,
    fitted_size,
    put_back,
)
from blemish.errors import ConfigError

SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
INPUTS = st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda one: (8 * one[0], 8 * one[1]))
SHARES = st.floats(0, 1)
KEPT: tuple[Resize, ...] = ("fit", "pad", "crop")


@given(SIZES, INPUTS, st.sampled_from(RESIZES), SHARES, SHARES)
@example((1, 3000), (8, 320), "pad", 0.5, 0.5)
@example((1, 3000), (320, 8), "crop", 0.5, 0.5)
def test_points_come_back(
    picture: tuple[int, int], size: tuple[int, int], resize: Resize, y: float, x: float
) -> None:
    placement = Placement.of(picture, size, resize)
    for span, own, side, share in zip(
        (placement.down, placement.across), picture, size, (y, x), strict=True
    ):
        # What is shown is within the picture, and within the input.
        assert 0 <= span.start < span.start + span.length <= own
        assert 0 <= span.into < span.into + span.filled <= side
        assert span.picture == own
        assert span.input == side
        place = span.start + share * span.length
        assert span.to_picture(span.to_input(place)) == pytest.approx(place, abs=1e-6)
        assert span.into - 1e-6 <= span.to_input(place) <= span.into + span.filled + 1e-6
        # In the middle, to half a pixel.
        assert abs(2 * span.start + span.length - own) <= 1
        assert abs(2 * span.into + span.filled - side) <= 1


@given(SIZES, INPUTS, st.sampled_from(KEPT))
@example(picture=(720, 77), size=(72, 8), resize="fit")  # whole, as 7.7 pixels round to 8
def test_the_aspect_ratio_is_kept(
    picture: tuple[int, int], size: tuple[int, int], resize: Resize
) -> None:
    placement = Placement.of(picture, size, resize)
    down, across = placement.down, placement.across
    if resize == "crop":
        assert (down.filled, across.filled) == size
        assert down.length == picture[0] or across.length == picture[1]
    else:
        assert (down.length, across.length) == picture
        assert down.filled == size[0] or across.filled == size[1]
    factors = [size[0] / picture[0], size[1] / picture[1]]
    if placement.is_whole and resize == "fit" and min(factors) > (1 - NEAR) * max(factors):
        return
    # To the rounding of one side to whole pixels, one at least.
    scales = [one.filled / one.length for one in (down, across)]
    rounded = min(down.filled, across.filled, down.length, across.length)
    assert abs(math.log(scales[0] / scales[1])) <= 1.2 / rounded + 1e-9 or rounded <= 1


@given(SIZES, INPUTS, st.sampled_from(KEPT))
def test_a_mask_and_its_map_lie_at_the_same_place(
    picture: tuple[int, int], size: tuple[int, int], resize: Resize
) -> None:
    """A slope over the picture, brought into the input and back, is the same slope where it was
    looked at."""
    assume(min(picture) >= 8)
    placement = Placement.of(picture, size, resize)
    down, across = placement.down, placement.across
    assume(min(down.filled, across.filled) >= 16)
    rows = (down.to_picture(np.arange(size[0] // 4) * 4 + 2.0) / picture[0])[:, None]
    columns = across.to_picture(np.arange(size[1] // 4) * 4 + 2.0) / picture[1]
    made = placement.to_picture((rows + 10 * columns).astype(np.float32))
    height, width = made.shape
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    # The last place on either side that shows some of it goes on as it is.
    rows, columns = rows[down.places(size[0] // 4)], columns[across.places(size[1] // 4)]
    inner_y = (y >= rows.min()) & (y <= rows.max())
    inner_x = (x >= columns.min()) & (x <= columns.max())
    wanted = y[:, None] + 10 * x
    np.testing.assert_allclose(
        made[np.ix_(inner_y, inner_x)], wanted[np.ix_(inner_y, inner_x)], atol=1e-3
    )


@given(SIZES, INPUTS, st.sampled_from(RESIZES))
def test_nothing_of_the_padding_reaches_the_map(
    picture: tuple[int, int], size: tuple[int, int], resize: Resize
) -> None:
    placement = Placement.of(picture, size, resize)
    grid = (max(1, size[0] // 4), max(1, size[1] // 4))
    values = np.full(grid, 99, np.float32)
    placement.part(values)[...] = 1
    made = placement.to_picture(values)
    assert made.dtype == np.float32
    assert (made == 1).all()
    assert made.shape[0] <= max(grid[0], picture[0])
    assert made.shape[1] <= max(grid[1], picture[1])


def test_what_is_cut_off_is_lowest() -> None:
    placement = Placement.of((100, 200), (64, 64), "crop")
    assert placement.is_cut
    assert placement.shown == (slice(0, 100), slice(50, 150))
    values = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    made = placement.to_picture(values)
    assert made.shape == (16, 32)
    assert (made[:, 8:24] == values).all()
    assert (made[:, :8] == values.min()).all()
    assert (made[:, 24:] == values.min()).all()


def test_padding_is_cut_off() -> None:
    placement = Placement.of((200, 100), (64, 64), "pad")
    assert placement.filled == (slice(0, 64), slice(16, 48))
    values = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    assert (placement.to_picture(values) == values[:, 4:12]).all()
    assert (placement.part(values) == values[:, 4:12]).all()
    (made,) = put_back(values[None], [placement])
    assert (made == values[:, 4:12]).all()


def test_stretched_maps_stay_what_they_are() -> None:
    values = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    placement = Placement.of((333, 77), (64, 64), "stretch")
    assert placement.is_whole
    assert placement.to_picture(values) is values
    assert placement.box_to_picture([0.1, 0.2, 0.3, 0.4]) == (0.1, 0.2, 0.3, 0.4)


@given(SIZES, INPUTS, st.sampled_from(KEPT), SHARES, SHARES, SHARES, SHARES)
def test_boxes_lie_in_the_picture(
    picture: tuple[int, int],
    size: tuple[int, int],
    resize: Resize,
    x: float,
    y: float,
    across: float,
    down: float,
) -> None:
    placement = Placement.of(picture, size, resize)
    left, top, wide, tall = placement.box_to_picture([x, y, (1 - x) * across, (1 - y) * down])
    assert 0 <= left <= left + wide <= 1 + 1e-9
    assert 0 <= top <= top + tall <= 1 + 1e-9


def test_boxes() -> None:
    pad = Placement.of((100, 200), (64, 64), "pad")
    assert pad.box_to_picture([0, 0, 1, 1]) == (0, 0, 1, 1)
    assert pad.box_to_picture([0.5, 0.5, 0.25, 0.25]) == (0.5, 0.5, 0.25, 0.5)
    crop = Placement.of((100, 200), (64, 64), "crop")
    assert crop.box_to_picture([0, 0, 1, 1]) == (0.25, 0, 0.5, 1)


def test_masks_go_the_same_way() -> None:
    mask = np.zeros((100, 200), np.bool_)
    mask[:50, 100:] = True
    padded = Placement.of(mask.shape, (64, 64), "pad").mask_to_input(mask)
    assert padded[16:32, 32:].all()
    assert padded.sum() == 16 * 32
    cropped = Placement.of(mask.shape, (64, 64), "crop").mask_to_input(mask)
    assert cropped[:32, 32:].all()
    assert cropped.sum() == 32 * 32


def area_of(rows: slice, columns: slice) -> Area:
    grid = np.zeros((SIDE, SIDE), np.bool_)
    grid[rows, columns] = True
    return Area.of(grid)


def test_areas_are_of_the_picture() -> None:
    right = area_of(slice(None), slice(SIDE // 2, None))
    inside = Placement.of((100, 200), (64, 64), "pad").inside(right)
    assert inside[16:48, 32:].all()
    assert inside.sum() == 32 * 32
    inside = Placement.of((100, 200), (64, 64), "crop").inside(right)
    assert inside[:, 32:].all()
    assert inside.sum() == 64 * 32


def test_an_area_smaller_than_a_pixel_is_seen() -> None:
    dot = area_of(slice(600, 602), slice(700, 702))
    for resize in KEPT:
        inside = Placement.of((100, 200), (64, 64), resize).inside(dot)
        assert inside.sum() == 1
    aside = area_of(slice(600, 602), slice(10, 12))
    assert not Placement.of((100, 200), (64, 64), "crop").inside(aside).any()


@given(st.lists(SIZES, min_size=1, max_size=9), INPUTS, st.sampled_from([4, 8, 14, 16, 32]))
def test_fitted_sizes(sizes: list[tuple[int, int]], size: tuple[int, int], step: int) -> None:
    height, width = fitted_size(sizes, size, step)
    assert height % step == width % step == 0
    assert min(height, width) >= 1
    assert max(height, width) <= 8192
    assert height * width <= 4096 * 4096
    wanted = float(np.median([one[1] / one[0] for one in sizes]))
    if 1 / 4 <= wanted <= 4 and size[0] * size[1] >= (16 * step) ** 2:
        assert abs(math.log(width / height / wanted)) < NEAR
        assert abs(math.log(height * width / (size[0] * size[1]))) < 0.2


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown resize 'padd'; did you mean 'pad'"):
        check_resize("padd")
