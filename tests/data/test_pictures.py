"""The pictures that a user names, good ones and defects, and draws from them.

How they are learned from is tested through `fit`.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blemish.data import layouts
from blemish.data.pictures import Pictures, good_pictures, hold_out_positions, labelled_defects
from blemish.data.splits import draw_anomalies
from blemish.errors import ConfigError, DataError
from blemish.types import ANOMALOUS, Sample

Part = Callable[..., np.ndarray]
Write = Callable[..., Path]


def named(names: Sequence[str], categories: Sequence[str] | None = None) -> Pictures:
    of = categories or [""] * len(names)
    samples = [Sample(path=Path(n), category=c) for n, c in zip(names, of, strict=True)]
    return Pictures(list(names), samples)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.9])
def test_holding_out_is_a_partition(fraction: float) -> None:
    for pictures in (
        named([f"{index}.png" for index in range(20)]),
        good_pictures([np.zeros((2, 2), np.uint8)] * 20),
        named(["same.png"] * 20),
        named(["one.png"]),  # of which nothing is held out
    ):
        number = len(pictures.sources)
        kept, held = hold_out_positions(pictures, fraction, seed=1)
        assert sorted([*kept, *held]) == list(range(number))
        assert len(held) == (round(fraction * 20) if number > 1 else 0)


def test_holding_out_goes_by_path_and_seed() -> None:
    names = [f"{index:02d}.png" for index in range(20)]

    def held(sources: list[str], seed: int) -> set[str]:
        return {sources[index] for index in hold_out_positions(named(sources), 0.3, seed)[1]}

    assert held(names, 1) == held(names[::-1], 1) != held(names, 2)


def test_holding_out_is_by_category() -> None:
    names = [f"{index:02d}.png" for index in range(30)]
    categories = ["nut"] * 10 + ["bolt"] * 15 + ["nut"] * 4 + ["pin"]
    kept, held = hold_out_positions(named(names, categories), 0.4, 1)
    assert sorted([*kept, *held]) == list(range(30))
    assert [categories[index] for index in held] == ["bolt"] * 6 + ["nut"] * 6
    for category in ("bolt", "nut"):  # each as if it were alone
        own = [name for name, its in zip(names, categories, strict=True) if its == category]
        assert [names[i] for i in held if categories[i] == category] == [
            own[i] for i in hold_out_positions(named(own), 0.4, 1)[1]
        ]


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
    names = (f"{place}/{index}.png" for place in ("Bosch", "Conti") for index in range(9))
    paths = _pictures(tmp_path, *names)
    for named, number in (
        (paths, 18),
        (str(tmp_path / "*" / "*.png"), 18),
        ([tmp_path / "**"], 18),
        ([paths[0], tmp_path / "*" / "[1-8].png"], 17),
    ):
        found = good_pictures(named)
        assert (len(found.sources), found.names) == (number, [])
        assert found.note == (
            f"{number} pictures named one by one or by a pattern, all taken as good"
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


@pytest.fixture
def folder(tmp_path: Path, picture: Part, write: Write) -> Path:
    """A flat folder of ten defects."""
    for seed in range(10):
        write(tmp_path / "scratch" / f"{seed}.png", picture(seed, defect=True))
    return tmp_path / "scratch"


def test_all_pictures_of_a_flat_folder_are_defects_of_its_name(folder: Path) -> None:
    for given in (str(folder), [folder]):
        found = labelled_defects(given)
        assert found.sources == sorted(folder.iterdir())
        assert found.samples == [
            Sample(path=path, label=ANOMALOUS, defect="scratch") for path in found.sources
        ]
        assert found.note.startswith("flat layout: 10 pictures")


def test_of_a_data_set_the_defective_ones_are_taken_with_their_masks(mvtec: Path) -> None:
    found = labelled_defects(mvtec)
    assert found.samples == list(layouts.read(mvtec).anomalies())
    assert [path.parent.name for path in found.sources] == ["dark"] * 3 + ["square"] * 4
    assert found.note.startswith("MVTec layout")
    few = labelled_defects(mvtec, count=4, seed=3)
    assert [sample.path for sample in few.samples] == few.sources
    assert set(few.samples) < set(found.samples)  # with what is known of each
    square = labelled_defects(mvtec, kind="square")
    assert [sample.defect for sample in square.samples] == ["square"] * 4
    assert set(labelled_defects(mvtec, kind="square", count=2).samples) < set(square.samples)


def test_a_single_defect_in_any_form(folder: Path, picture: Part) -> None:
    pixels = picture(0, defect=True)
    shown = Image.fromarray(pixels)
    for given in (pixels, [pixels], shown, [shown]):
        found = labelled_defects(given)
        assert [sample.label for sample in found.samples] == [ANOMALOUS]
        assert len(found.sources) == 1
        assert found.note == "1 picture given one by one"
    alone = Sample(path=folder / "3.png", label=None, boxes=((0.0, 0.0, 0.5, 0.5),))
    for one in (alone, [alone]):
        found = labelled_defects(one)
        assert found.sources == [folder / "3.png"]
        assert found.samples == [dataclasses.replace(alone, label=ANOMALOUS)]
    assert labelled_defects(folder / "3.png").sources == [folder / "3.png"]


def test_several_sources_are_joined(folder: Path, mvtec: Path, picture: Part) -> None:
    pixels = picture(0, defect=True)
    found = labelled_defects(iter([folder, mvtec, pixels, Sample(path=folder / "3.png")]))
    assert len(found.sources) == len(found.samples) == 10 + 7 + 1 + 1
    assert found.sources[17] is pixels
    assert found.sources[18] == folder / "3.png"
    first, second = found.note.split("; ")
    assert (first[:4], second[:5]) == ("flat", "MVTec")


@pytest.mark.parametrize("form", ["samples", "arrays"])
def test_draws_are_seeded_nested_and_of_the_sorted_list(form: str, picture: Part) -> None:
    arrays = [picture(seed, defect=True) for seed in range(10)]
    stand_ins = [Sample(path=Path(f"{number}.png"), label=ANOMALOUS) for number in range(10)]
    given: Any = arrays if form == "arrays" else stand_ins[::-1]

    def drawn(count: int | None, seed: int) -> list[int]:
        found = labelled_defects(given, count=count, seed=seed)
        if form == "arrays":
            return [[id(each) for each in arrays].index(id(each)) for each in found.sources]
        return [int(path.stem) for path in found.sources]

    for seed in range(3):
        for count in (0, 1, 4, 10):
            expected, _ = draw_anomalies(stand_ins, count, seed)
            assert drawn(count, seed) == [int(sample.path.stem) for sample in expected]
        assert set(drawn(2, seed)) < set(drawn(3, seed)) < set(drawn(7, seed))
    assert len({tuple(drawn(3, seed)) for seed in range(8)}) > 4
    assert sorted(drawn(None, 5)) == list(range(10))


def test_what_cannot_be_taken_is_said(mvtec: Path, tmp_path: Path, picture: Part) -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (mvtec, {"kind": "squares"}, "no defect is of type 'squares'; .* here are dark, square"),
        ([picture(0)], {"kind": "square"}, "types here are not known"),
        (mvtec, {"count": 8}, "8 anomalies were asked for, but there are only 7"),
        (mvtec, {"kind": "square", "count": 5}, "5 .* asked for, but there are only 4"),
        ([], {}, "there is no picture of a defect"),
        (tmp_path / "nowhere", {}, "nowhere: no such file or folder"),
    ]
    for given, settings, words in cases:
        with pytest.raises(DataError, match=words):
            labelled_defects(given, **settings)
    with pytest.raises(ConfigError, match="cannot be negative"):
        labelled_defects(mvtec, count=-1)


def test_pictures_of_unknown_label_are_no_defects(good_folder: Path) -> None:
    table = good_folder / "table.csv"
    table.write_text("path,label\n000.png,0\n001.png,1\n002.png,\n")
    assert [sample.path.name for sample in labelled_defects(table).samples] == ["001.png"]
    table.write_text("path,label\n000.png,good\n001.png,\n")
    with pytest.raises(DataError, match=r"table\.csv: holds no .* known to be defective"):
        labelled_defects(table)
