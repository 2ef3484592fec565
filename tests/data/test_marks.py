"""Where a defect is marked: the same pixels by hand, from a mask and from boxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest

from blemish.data import marks
from blemish.data.marks import is_placed, marked
from blemish.errors import ImageError
from blemish.types import Sample

Write = Callable[..., Path]


@pytest.mark.parametrize("size", [(6, 4), (12, 8), (3, 2), (4, 7), (2, 1)])
def test_a_pixel_is_what_lies_under_its_centre(
    size: tuple[int, int], write: Write, tmp_path: Path
) -> None:
    drawn = (np.random.default_rng(0).random((6, 4)) < 0.5).astype(np.uint8) * 255
    sample = Sample(path=Path("a.png"), mask=write(tmp_path / "mask.png", drawn))
    found = marked(sample, *size)
    assert found is not None
    assert (found.dtype, found.shape) == (np.bool_, size)
    for y, x in np.ndindex(*size):
        row, column = (y + 0.5) * 6 / size[0], (x + 0.5) * 4 / size[1]
        near = (
            {int(row), math.ceil(row) - 1},
            {int(column), math.ceil(column) - 1},
        )  # two where it lies between two
        assert found[y, x] in {bool(drawn[place] > 127) for place in product(*near)}


@pytest.mark.parametrize(
    "sides", [(1024, 256), (700, 256), (100, 256), (1024, 448), (300, 299), (113, 256), (64, 64)]
)
@pytest.mark.parametrize("boxed", [False, True])
def test_masks_and_maps_stay_in_one_place(
    sides: tuple[int, int], boxed: bool, write: Write, tmp_path: Path
) -> None:
    """The middle of discs and boxes, of masks and of the same drawn as maps, before and after both
    are resized.
    """
    side, new = sides
    random, missed = np.random.default_rng(0), []
    for number in range(12):
        x, y = random.uniform(0.3, 0.6, 2)
        width, height = random.uniform(0.06, 0.2, 2)
        rows, columns = (np.mgrid[:side, :side] + 0.5) / side
        if boxed:
            shape = (abs(rows - y - height / 2) < height / 2) & (
                abs(columns - x - width / 2) < width / 2
            )
            sample = Sample(path=Path("a.png"), boxes=((x, y, width, height),))
        else:
            shape = (rows - y) ** 2 + (columns - x) ** 2 < width**2
            mask = write(tmp_path / f"{number}.png", shape.astype(np.uint8) * 255)
            sample = Sample(path=Path("a.png"), mask=mask)
        found = marked(sample, new, new)
        assert found is not None
        resized = cv2.resize(shape.astype(np.float32), (new, new), interpolation=cv2.INTER_LINEAR)
        missed.append([a - b for a, b in zip(middle(found), middle(resized), strict=True)])
    # Where a centre lies between two pixels of the mask, the further one counts: half a pixel of
    # the mask.
    between = new / side / 2 if side % (2 * new) == 0 and not boxed else 0
    assert np.abs(np.mean(missed, axis=0) * new).max() < between + 0.1 + 0.2 * boxed * new / side


def middle(shape: np.ndarray) -> tuple[float, float]:
    """Down and across, as fractions of the sides."""
    weights = shape / shape.sum()
    down, across = ((np.arange(side) + 0.5) / side for side in shape.shape)
    return float(weights.sum(1) @ down), float(weights.sum(0) @ across)


def test_boxes_are_joined_and_a_mask_goes_before_them(write: Write, tmp_path: Path) -> None:
    boxes = ((0.0, 0.0, 0.5, 0.25), (0.5, 0.5, 0.5, 0.5))
    expected = np.zeros((4, 4), bool)
    expected[0, :2] = expected[2:, 2:] = True
    boxed = Sample(path=Path("a.png"), boxes=boxes)
    assert np.array_equal(marked(boxed, 4, 4), expected)  # type: ignore[arg-type]
    mask = write(tmp_path / "mask.png", np.full((2, 2), 255, np.uint8))
    both = marked(Sample(path=Path("a.png"), boxes=boxes, mask=mask), 4, 4)
    assert both is not None
    assert both.all()


def test_nothing_is_known_where_nothing_is_marked(write: Write, tmp_path: Path) -> None:
    plain = Sample(path=Path("a.png"), label=1)
    assert marked(plain, 4, 4) is None
    assert not is_placed(plain)
    assert is_placed(Sample(path=Path("a.png"), boxes=((0.0, 0.0, 0.5, 0.5),)))
    empty = Sample(
        path=Path("a.png"), mask=write(tmp_path / "mask.png", np.zeros((4, 4), np.uint8))
    )
    assert is_placed(empty)
    found = marked(empty, 4, 4)
    assert found is not None
    assert not found.any()


def test_a_mask_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png: does not exist"):
        marked(Sample(path=Path("a.png"), mask=tmp_path / "nowhere.png"), 4, 4)


@pytest.mark.parametrize(
    ("start", "length", "pixels", "covered"),
    [
        (0.25, 0.5, 4, [1, 2]),
        (0.24, 0.5, 4, [1, 2]),
        (0.125, 0.25, 4, [0]),  # from centre to centre: the first is in, the last is not
        (0.0, 1.0, 4, [0, 1, 2, 3]),
        (-1.0, 3.0, 4, [0, 1, 2, 3]),
        (0.4, 0.01, 4, [2]),  # holds no centre
        (0.99, 0.005, 4, [3]),
        (0.999, 5.0, 4, [3]),
        (-3.0, 3.0, 4, [0]),
    ],
)
def test_the_pixels_of_a_box(start: float, length: float, pixels: int, covered: list[int]) -> None:
    across = marks._filled([(start, 0.0, length, 1.0)], 3, pixels)
    down = marks._filled([(0.0, start, 1.0, length)], pixels, 3)
    assert [list(np.flatnonzero(row)) for row in across] == [covered] * 3
    assert np.array_equal(across.T, down)
