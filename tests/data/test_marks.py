"""Where a defect is marked: the same pixels by hand, from a mask and from boxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest

from blemish.data.marks import is_placed, is_too_coarse, marked
from blemish.errors import ImageError
from blemish.types import Sample

Write = Callable[..., Path]


def found_in(sample: Sample, height: int, width: int) -> np.ndarray:
    found = marked(sample, height, width)
    assert found is not None
    assert (found.dtype, found.shape) == (np.bool_, (height, width))
    return found


@pytest.mark.parametrize("size", [(6, 4), (12, 8), (3, 2), (4, 7), (2, 1)])
def test_a_pixel_is_what_lies_under_its_centre(
    size: tuple[int, int], write: Write, tmp_path: Path
) -> None:
    drawn = (np.random.default_rng(0).random((6, 4)) < 0.5).astype(np.uint8) * 255
    found = found_in(Sample(path=Path("a.png"), mask=write(tmp_path / "mask.png", drawn)), *size)
    for y, x in np.ndindex(*size):
        row, column = (y + 0.5) * 6 / size[0], (x + 0.5) * 4 / size[1]
        # two where it lies between two
        near = ({int(row), math.ceil(row) - 1}, {int(column), math.ceil(column) - 1})
        assert found[y, x] in {bool(drawn[place] > 127) for place in product(*near)}


@pytest.mark.parametrize("sides", [(700, 256), (100, 256), (512, 128), (113, 256)])
@pytest.mark.parametrize("boxed", [False, True])
def test_masks_and_maps_stay_in_one_place(
    sides: tuple[int, int], boxed: bool, write: Write, tmp_path: Path
) -> None:
    """The middle of discs and boxes, of masks and of the same drawn as maps, before and after both
    are resized.
    """
    side, new = sides
    random, missed = np.random.default_rng(0), []
    rows, columns = (np.mgrid[:side, :side] + 0.5) / side
    for number in range(12):
        x, y = random.uniform(0.3, 0.6, 2)
        width, height = random.uniform(0.06, 0.2, 2)
        if boxed:
            across, down = abs(columns - x - width / 2), abs(rows - y - height / 2)
            shape = (down < height / 2) & (across < width / 2)
            sample = Sample(path=Path("a.png"), boxes=((x, y, width, height),))
        else:
            shape = (rows - y) ** 2 + (columns - x) ** 2 < width**2
            mask = write(tmp_path / f"{number}.png", shape.astype(np.uint8) * 255)
            sample = Sample(path=Path("a.png"), mask=mask)
        resized = cv2.resize(shape.astype(np.float32), (new, new), interpolation=cv2.INTER_LINEAR)
        missed.append(middle(found_in(sample, new, new)) - middle(resized))
    # Where a centre lies between two pixels of the mask, the further one counts: half a pixel of
    # the mask.
    between = new / side / 2 if side % (2 * new) == 0 and not boxed else 0
    assert np.abs(np.mean(missed, axis=0) * new).max() < between + 0.1 + 0.2 * boxed * new / side


def middle(shape: np.ndarray) -> np.ndarray:
    """Down and across, as fractions of the sides."""
    weights = shape / shape.sum()
    down, across = ((np.arange(side) + 0.5) / side for side in shape.shape)
    return np.array([weights.sum(1) @ down, weights.sum(0) @ across])


def test_boxes_are_joined_and_a_mask_goes_before_them(write: Write, tmp_path: Path) -> None:
    boxes = ((0.0, 0.0, 0.5, 0.25), (0.5, 0.5, 0.5, 0.5))
    expected = np.zeros((4, 4), bool)
    expected[0, :2] = expected[2:, 2:] = True
    boxed = Sample(path=Path("a.png"), boxes=boxes)
    assert is_placed(boxed)
    assert np.array_equal(found_in(boxed, 4, 4), expected)
    for value in (255, 0):  # an empty one is one, too
        mask = write(tmp_path / "mask.png", np.full((2, 2), value, np.uint8))
        both = Sample(path=Path("a.png"), boxes=boxes, mask=mask)
        assert is_placed(both)
        assert (found_in(both, 4, 4) == (value > 0)).all()


def test_nothing_is_known_where_nothing_is_marked(tmp_path: Path) -> None:
    plain = Sample(path=Path("a.png"), label=1)
    assert marked(plain, 4, 4) is None
    assert not is_placed(plain)
    with pytest.raises(ImageError, match=r"nowhere\.png: does not exist"):
        marked(Sample(path=Path("a.png"), mask=tmp_path / "nowhere.png"), 4, 4)


@pytest.mark.parametrize(
    ("start", "length", "covered"),
    [
        (0.25, 0.5, [1, 2]),
        (0.24, 0.5, [1, 2]),
        (0.125, 0.25, [0]),  # from centre to centre: the first is in, the last is not
        (-1.0, 3.0, [0, 1, 2, 3]),
        (0.4, 0.01, [2]),  # holds no centre
        (0.99, 0.005, [3]),
        (0.999, 5.0, [3]),
        (-3.0, 3.0, [0]),
    ],
)
def test_the_pixels_of_a_box(start: float, length: float, covered: list[int]) -> None:
    across = found_in(Sample(path=Path("a.png"), boxes=((start, 0.0, length, 1.0),)), 3, 4)
    down = found_in(Sample(path=Path("a.png"), boxes=((0.0, start, 1.0, length),)), 4, 3)
    assert [list(np.flatnonzero(row)) for row in across] == [covered] * 3
    assert np.array_equal(across.T, down)


def test_a_pixel_of_a_mask_may_cover_a_coarse_patch_and_no_more() -> None:
    mask = np.zeros((4, 4), bool)
    assert [is_too_coarse(mask, (128, side)) for side in (128, 129)] == [False, True]
