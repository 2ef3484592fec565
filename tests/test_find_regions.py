"""Regions against independent ways to find them: brute force over levels, OpenCV on the whole
heatmap, run lengths counted one by one."""

import time
import tracemalloc
from itertools import groupby

import cv2
import numpy as np
import pytest

from blemish.area import SIDE, Area
from blemish.errors import ConfigError, NonFiniteError
from blemish.regions import find_regions, region_level


def some_map(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    noise = rng.random((height, width), dtype=np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 0.1 + 3 * rng.random())


def largest_part(above: np.ndarray) -> int:
    """Places of the largest 8-connected part, by flooding."""
    left, largest = {(int(y), int(x)) for y, x in zip(*np.nonzero(above), strict=True)}, 0
    while left:
        edge, size = [left.pop()], 0
        while edge:
            y, x = edge.pop()
            size += 1
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
        largest = max(largest, size)
    return largest


@pytest.mark.parametrize("seed", range(6))
def test_the_level_is_the_highest_at_which_a_large_part_remains(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = some_map(rng, 9, 13)
    for needed in (1, 2, 5, 40, 116):
        at = [v for v in np.unique(values) if largest_part(values >= v) >= needed]
        # A share just below: what it asks for is rounded up to whole places.
        assert region_level(values, (needed - 0.5) / values.size) == max(at)


def test_a_region_is_found_just_where_the_level_of_the_map_is_higher() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        values = some_map(rng, *rng.integers(1, 15, 2))
        size = tuple(int(side) for side in rng.integers(1, 60, 2))
        smallest = float(rng.random()) * 0.3
        reached = region_level(values, smallest)
        assert find_regions(values, reached, size, smallest=smallest) == ()
        below = float(np.nextafter(np.float32(reached), np.float32(-1)))
        assert find_regions(values, below, size, smallest=smallest)


def test_with_the_outline_at_the_level_the_regions_are_the_parts_of_the_heatmap_above_it() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        values = some_map(rng, 12, 9)
        height, width = (int(side) for side in rng.integers(60, 150, 2))
        level = float(np.quantile(values, 0.8))
        heatmap = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
        found = find_regions(values, level, (height, width), outline=0)
        masks = sum(region.mask.astype(int) for region in found)
        sure = np.abs(heatmap - level) > 1e-5  # elsewhere rounding decides
        assert (masks == (heatmap > level))[sure].mean() > 0.999  # a peak between two pixels
        for region in found:
            assert region.peak == pytest.approx(heatmap[region.mask].max(), abs=1e-5)
            assert region.mean == pytest.approx(heatmap[region.mask].mean(), abs=1e-5)


def test_what_a_region_says_of_itself_is_what_its_mask_says() -> None:
    rng = np.random.default_rng(2)
    for _ in range(40):
        values = some_map(rng, *rng.integers(1, 20, 2))
        size = tuple(int(side) for side in rng.integers(1, 60, 2))
        for region in find_regions(values, float(np.median(values)), size, outline=rng.random()):
            mask = region.mask
            y, x = np.nonzero(mask)
            assert mask.shape == size
            assert region.area == mask.sum() == round(region.share * mask.size)
            assert region.box == (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)
            assert region.centroid == pytest.approx((x.mean(), y.mean()))
            assert cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] == 2
            runs = [(inside, len([*run])) for inside, run in groupby(mask.T.ravel())]
            assert region.runs == (*([0] if runs[0][0] else []), *(length for _, length in runs))
            filled = np.zeros(size, dtype=np.uint8)
            cv2.fillPoly(filled, [np.array(region.polygon, dtype=np.int32)], 1)
            assert filled[mask].all()


def test_the_outline_of_a_bell_is_its_full_width_at_half_maximum() -> None:
    y, x = np.mgrid[-50:51, -50:51]
    values = np.exp(-0.5 * (x**2 + y**2) / 10**2).astype(np.float32)
    (region,) = find_regions(values, 0.3, values.shape, background=0)
    assert region.box[2] == pytest.approx(2.355 * 10, abs=1)  # 2 sqrt(2 ln 2) deviations
    assert region.area == pytest.approx(np.pi * (2.355 * 5) ** 2, rel=0.02)
    wide, same, narrow = (
        find_regions(values, level, values.shape, background=0, outline=at)[0]
        for level, at in ((0.3, 0.4), (0.1, 0.5), (0.3, 0.8))
    )
    assert wide.area > region.area > narrow.area
    assert same == region
    assert narrow.peak == region.peak == 1
    (cut,) = find_regions(values, 0.9, values.shape, background=0)  # never below the level
    assert values[cut.mask].min() > 0.9


def test_the_strongest_region_comes_first_and_a_weak_one_keeps_its_own_outline() -> None:
    values = np.zeros((20, 20), dtype=np.float32)
    values[3:6, 3:6], values[14:17, 12:18] = 2, 9
    first, second = find_regions(values, 1, (20, 20))
    assert (first.peak, first.box) == (9, (12, 14, 6, 3))
    assert (second.peak, second.box) == (2, (3, 3, 3, 3))
    assert first.mean == 9
    assert second.centroid == (4, 4)


def test_a_picture_smaller_than_its_map_shows_its_region_as_a_pixel() -> None:
    values = np.zeros((64, 64), dtype=np.float32)
    values[30, 30] = 1
    (region,) = find_regions(values, 0.5, (4, 4))
    assert region.area == 1


def test_many_regions_of_a_large_map_take_the_time_of_their_own_pixels() -> None:
    values = np.zeros((5000, 5000), dtype=np.float32)
    corners = [(y, x) for y in range(100, 5000, 200) for x in range(60, 5000, 250)]
    for y, x in corners:
        values[y : y + 12, x : x + 9] = 1
    started = time.process_time()
    found = find_regions(values, 0.5, values.shape, background=0)
    assert time.process_time() - started < 8  # 1 s; a look at the whole map for each takes 20
    assert {region.box for region in found} == {(x, y, 9, 12) for y, x in corners}
    assert len(found) == 500


def test_a_region_of_a_huge_picture_takes_the_room_of_its_own_pixels() -> None:
    values = np.zeros((200, 200), dtype=np.float32)
    values[50:52, 10:190:20] = 1
    left_half = Area(runs=(0, *[SIDE // 2] * (2 * SIDE)))
    tracemalloc.start()
    try:
        found = find_regions(values, 0.5, (20_000, 20_000), background=0, area=left_half)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [region.box[0] // 2000 for region in found] == [0, 1, 2, 3, 4]
    assert most < 20e6  # the whole picture has 400 million pixels


def test_windows_of_an_area_are_cut_out_of_the_whole() -> None:
    rng = np.random.default_rng(3)
    area = Area.of(cv2.resize(rng.random((9, 7)), (SIDE, SIDE)) > 0.5)
    for height, width in ((1, 1), (700, 333), (1500, 2111)):
        whole = area.mask(height, width)
        assert whole.shape == (height, width)
        for _ in range(20):
            rows, columns = (
                slice(*np.sort(rng.integers(0, side + 1, 2)).tolist()) for side in (height, width)
            )
            assert (area.mask(height, width, rows, columns) == whole[rows, columns]).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"smallest": 1}, "smallest region"),
        ({"smallest": -0.1}, "smallest region"),
        ({"outline": 1}, "outline"),
    ],
)
def test_shares_out_of_range_are_refused(change: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        find_regions(np.zeros((2, 2), dtype=np.float32), 0, (2, 2), **change)


def test_a_level_that_is_no_number_is_refused() -> None:
    nothing = np.zeros((2, 2), dtype=np.float32)
    with pytest.raises(NonFiniteError):
        find_regions(nothing, float("nan"), (2, 2))
    with pytest.raises(NonFiniteError):
        find_regions(nothing, 0.5, (2, 2), background=-float("inf"))
