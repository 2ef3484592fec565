"""benchmarks/closer.py: defects planted in the background, and what became of them, counted."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from scripts import script_of


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return script_of("closer")


def test_a_piece_of_the_part_is_pasted_into_the_background(script: ModuleType) -> None:
    part = np.zeros((32, 32), dtype=bool)
    part[8:24, 8:24] = True
    pixels = np.full((128, 128, 3), 30, dtype=np.uint8)
    pixels[32:96, 32:96] = 200
    for seed in range(8):
        made, mask = script.plant(pixels, part, 0.08, np.random.default_rng(seed))
        changed = (made != pixels).any(2)
        assert changed.any()
        assert not changed[mask == 0].any()
        assert not changed[44:84, 44:84].any()  # but for its corners, beside the part
        assert 0.5 * 10**2 < mask.sum() <= 1.5 * 10**2
        again, _ = script.plant(pixels, part, 0.08, np.random.default_rng(seed))
        assert np.array_equal(again, made)


def test_what_became_of_planted_defects_is_counted(script: ModuleType) -> None:
    first = [[2.0, True, True], [1.5, True, False], [3.0, True, True], [0.5, True, False]]
    own = [[1.0, False, False], [0.9, True, False], [0.2, False, False], [0.1, False, False]]
    assert script.told_of(first, own) == {
        "defects": 4,
        "raised": 1,
        "looked_at": 1,
        "alarms": 0,
        "dropped_not_raised": 2,
        "lost": 1,
    }
    assert script.told_of(first, first)["lost"] == 0


def test_a_way_names_one_look_or_two(script: ModuleType) -> None:
    assert script.looks_of("448") == {"image_size": 448}
    assert script.looks_of("224+672") == {"image_size": 672, "coarse": 224}
