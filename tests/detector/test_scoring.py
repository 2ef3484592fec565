"""What is left of scores where only some places count."""

from __future__ import annotations

import numpy as np
import pytest

from blemish.area import SIDE, Area
from blemish.data.geometry import Placement
from blemish.detector.scoring import foremost, narrowed, places_in, top_mean
from blemish.engines.base import Outputs


@pytest.fixture
def found() -> Outputs:
    maps = np.random.default_rng(0).random((4, 8, 8), dtype=np.float32)
    return Outputs(score=np.array([top_mean(one.ravel(), 0.1) for one in maps], "f4"), map=maps)


def test_the_highest_values_that_count(found: Outputs) -> None:
    inside = np.zeros((4, 8, 8), dtype=np.bool_)
    inside[0, 2:6, 2:6] = True
    inside[1] = True
    inside[2, 0, 0] = True  # fewer places than are averaged
    inside[3, :, :7] = True
    left = foremost(found, inside, None, 0.1)
    for row, places in enumerate(inside):
        values = sorted(found.map[row][places].tolist(), reverse=True)[:6]
        assert left.score[row] == pytest.approx(sum(values) / len(values))
        assert left.score[row] <= found.score[row]
        assert (left.map[row][places] == found.map[row][places]).all()
        assert (left.map[row][~places] == found.map[row][places].min()).all()
    assert left.score[1] == found.score[1]
    assert left.foreground is not None
    assert left.foreground.all((1, 2)).tolist() == [False, True, False, False]
    assert left.map.dtype == left.score.dtype == np.float32


def test_what_an_area_leaves_is_never_above_the_whole(found: Outputs) -> None:
    one = np.zeros((8, 8), dtype=np.bool_)
    one[2:5, 1:7] = True
    each = np.stack([np.roll(one, at, axis=0) for at in range(4)])
    for inside in (one, each):
        left = narrowed(found, inside, 0.1)
        for row, places in enumerate(np.broadcast_to(inside, (4, 8, 8))):
            values = np.sort(found.map[row][places])[-2:]
            assert left.score[row] == pytest.approx(min(values.mean(), found.score[row]))
            assert (left.map[row][~places] == found.map[row][places].min()).all()
    assert narrowed(found, None, 0.1) is found


def test_the_places_of_an_area_in_inputs_of_other_shapes() -> None:
    grid = np.zeros((SIDE, SIDE), dtype=np.bool_)
    grid[: SIDE // 2] = True
    area = Area.of(grid)
    whole = Placement.of((64, 64), (64, 64), "stretch")
    places = places_in(area, [whole, whole], (16, 16))
    assert places is not None
    assert places.tolist() == np.repeat([[True], [False]], 8, axis=0).repeat(16, axis=1).tolist()
    wide = Placement.of((32, 64), (64, 64), "pad")  # rows 16 to 48 of the input
    padded = places_in(area, [wide, whole], (16, 16))
    assert padded is not None
    assert padded[0].all(1).nonzero()[0].tolist() == [4, 5, 6, 7]
    assert (padded[1] == places).all()
    assert places_in(Area.of(np.ones((SIDE, SIDE), dtype=np.bool_)), [whole], (16, 16)) is None
