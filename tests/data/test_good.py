"""Draws from the normal pictures that a user names; how they are read is tested through `fit`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.data.good import good_pictures, hold_out_sources
from blemish.errors import DataError


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.9])
def test_holding_out_is_a_partition(fraction: float) -> None:
    for sources in (
        [f"{index}.png" for index in range(20)],
        [np.zeros((2, 2), np.uint8)] * 20,
        [
            Path("a.png"),
            np.zeros((2, 2), np.uint8),
            "b.png",
            *[f"{index}.png" for index in range(17)],
        ],
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


def _pictures(root: Path, *names: str) -> list[Path]:
    paths = [root / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path)
    return paths


def test_pictures_named_one_by_one_or_by_a_pattern(tmp_path: Path) -> None:
    paths = _pictures(
        tmp_path, *(f"{place}/{index}.png" for place in ("Bosch", "Conti") for index in range(9))
    )
    for named in (
        paths,
        str(tmp_path / "*" / "*.png"),
        [tmp_path / "**"],
        [paths[0], tmp_path / "*" / "[1-8].png"],
    ):
        found = good_pictures(named)
        number = 17 if isinstance(named, list) and len(named) == 2 else 18
        assert (len(found.sources), found.names) == (number, [])
        assert (
            found.note == f"{number} pictures named one by one or by a pattern, all taken as good"
        )
    with pytest.raises(DataError, match="nothing matches this pattern"):
        good_pictures(tmp_path / "*.jpg")


@pytest.mark.parametrize(
    "bad", ["NG/0.png", "NG/images/0.png", "masks/0.png", "a/0_ng.png", "a/0_mask.png"]
)
def test_named_pictures_that_are_called_as_defects_are(tmp_path: Path, bad: str) -> None:
    good, other = _pictures(tmp_path, "a/0.png", bad)
    for named in ([good, other], str(tmp_path / "**")):
        with pytest.raises(
            DataError, match=f"{bad.split('/')[0]}.*: called as defects or masks are"
        ):
            good_pictures(named)
    assert good_pictures([other]).sources == [other]  # no name says otherwise


@pytest.mark.parametrize(
    "folder", ["test/good", "Validation/OK", "Gutteile", "i.O./Bilder", "normal_dir"]
)
def test_a_category_is_not_called_after_what_its_pictures_are_for(
    tmp_path: Path, folder: str
) -> None:
    _pictures(tmp_path, f"bottle/{folder}/0.png", f"screw/{folder}/0.png")
    found = good_pictures([tmp_path / "bottle" / folder, tmp_path / "screw" / folder])
    assert found.categories == ["bottle", "screw"]
