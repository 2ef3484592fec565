"""Draws from the normal pictures that a user names; how they are read is tested through `fit`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from blemish.data.good import good_pictures, hold_out_sources


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.9])
def test_holding_out_is_a_partition(fraction: float) -> None:
    for sources in (
        [f"{index}.png" for index in range(20)],
        [np.zeros((2, 2), np.uint8)] * 20,
        [Path("a.png"), np.zeros((2, 2), np.uint8), "b.png", *[f"{index}.png" for index in range(17)]],
        ["same.png"] * 20,
    ):
        kept, held = hold_out_sources(sources, fraction, seed=1)
        assert sorted([*kept, *held]) == list(range(20))
        assert len(held) == round(fraction * 20)


def test_holding_out_goes_by_path_and_seed() -> None:
    names = [f"{index:02d}.png" for index in range(20)]

    def held(sources: list[str], seed: int) -> set[str]:
        return {sources[index] for index in hold_out_sources(sources, 0.3, seed)[1]}

    assert held(names, 1) == held(names[::-1], 1) != held(names, 2)


def test_holding_out_is_by_category() -> None:
    names = [f"{index:02d}.png" for index in range(30)]
    categories = ["nut"] * 10 + ["bolt"] * 15 + ["nut"] * 4 + ["pin"]
    kept, held = hold_out_sources(names, 0.4, 1, categories=categories)
    assert sorted([*kept, *held]) == list(range(30))
    assert [categories[index] for index in held] == ["bolt"] * 6 + ["nut"] * 6
    for category in ("bolt", "nut"):  # each as if it were alone
        own = [name for name, its in zip(names, categories, strict=True) if its == category]
        assert [names[i] for i in held if categories[i] == category] == [
            own[i] for i in hold_out_sources(own, 0.4, 1)[1]
        ]
    assert hold_out_sources(names, 0.4, 1, categories=[""] * 30) == hold_out_sources(names, 0.4, 1)


def test_open_files_are_read_once_and_for_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    with (tmp_path / "a").open("rb") as file:
        found = good_pictures([file, io.BytesIO(b"more")])
    assert found.sources == [b"content", b"more"]
