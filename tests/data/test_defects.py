"""The labelled defects that a user names: which they are, what is known of them, and draws from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blemish.data.defects import NONE, labelled_defects
from blemish.data.layouts import recognition as layouts
from blemish.data.splits import draw_anomalies
from blemish.errors import ConfigError, DataError
from blemish.types import ANOMALOUS, NORMAL, Sample

Part = Callable[..., np.ndarray]
Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, picture: Part, write: Write) -> Path:
    """A flat folder of ten defects."""
    for seed in range(10):
        write(tmp_path / "scratch" / f"{seed}.png", picture(seed, defect=True))
    return tmp_path / "scratch"


def test_all_pictures_of_a_flat_folder_are_defects_of_its_name(folder: Path) -> None:
    for given in (folder, str(folder), [folder]):
        found = labelled_defects(given)
        assert found.sources == sorted(folder.iterdir())
        assert [sample.path for sample in found.samples] == found.sources
        assert {(sample.label, sample.defect, sample.mask) for sample in found.samples} == {
            (1, "scratch", None)
        }
        assert found.note.startswith("flat layout: 10 pictures")


def test_of_a_data_set_the_defective_ones_are_taken_with_their_masks(mvtec: Path) -> None:
    found = labelled_defects(mvtec)
    assert found.samples == [s for s in layouts.read(mvtec).samples if s.label == ANOMALOUS]
    assert [path.parent.name for path in found.sources] == ["dark"] * 3 + ["square"] * 4
    assert all(sample.mask is not None for sample in found.samples)
    assert found.note.startswith("MVTec layout")


def test_a_single_defect_in_any_form(folder: Path, picture: Part) -> None:
    pixels = picture(0, defect=True)
    shown = Image.fromarray(pixels)
    for given in (pixels, [pixels], shown, [shown]):
        found = labelled_defects(given)
        assert len(found.sources) == len(found.samples) == 1
        assert found.samples[0].label == ANOMALOUS
        assert found.note == "1 pictures given one by one"
    alone = Sample(path=folder / "3.png", label=None, boxes=((0.0, 0.0, 0.5, 0.5),))
    for one in (alone, [alone]):
        found = labelled_defects(one)
        assert found.sources == [folder / "3.png"]
        assert found.samples == [
            dataclasses.replace(alone, label=ANOMALOUS)
        ]  # what is known of it stays
    assert labelled_defects(folder / "3.png").sources == [folder / "3.png"]


def test_several_sources_are_joined(folder: Path, mvtec: Path, picture: Part) -> None:
    pixels = picture(0, defect=True)
    sample = Sample(path=folder / "3.png")
    found = labelled_defects(iter([folder, mvtec, pixels, sample]))
    assert len(found.sources) == len(found.samples) == 10 + 7 + 1 + 1
    assert found.sources[17] is pixels
    assert found.sources[18] == folder / "3.png"
    first, second = found.note.split("; ")
    assert (first[:4], second[:5]) == ("flat", "MVTec")


@pytest.mark.parametrize("form", ["folder", "paths backwards", "samples", "arrays"])
def test_draws_are_seeded_nested_and_of_the_sorted_list(
    form: str, folder: Path, picture: Part
) -> None:
    paths = sorted(folder.iterdir())
    given: Any = {
        "folder": folder,
        "paths backwards": paths[::-1],
        "samples": [Sample(path=path) for path in paths[::-1]],
        "arrays": [picture(seed, defect=True) for seed in range(10)],
    }[form]

    def drawn(count: int | None, seed: int) -> list[int]:
        sources = labelled_defects(given, count=count, seed=seed).sources
        if form == "arrays":
            return [
                next(i for i, pixels in enumerate(given) if pixels is source) for source in sources
            ]
        return [paths.index(source) for source in sources]

    stand_ins = [Sample(path=Path(f"{number}.png"), label=ANOMALOUS) for number in range(10)]
    for seed in range(3):
        for count in (0, 1, 4, 10):
            expected = [
                int(sample.path.stem) for sample in draw_anomalies(stand_ins, count, seed)[0]
            ]
            assert drawn(count, seed) == expected == sorted(expected)
        assert set(drawn(2, seed)) < set(drawn(3, seed)) < set(drawn(7, seed))
    assert len({tuple(drawn(3, seed)) for seed in range(8)}) > 4
    assert sorted(drawn(None, 5)) == list(range(10))


def test_what_is_drawn_keeps_its_sample(mvtec: Path) -> None:
    found = labelled_defects(mvtec, count=4, seed=3)
    assert [sample.path for sample in found.samples] == found.sources
    assert all(
        sample.mask is not None and sample.mask.stem.startswith(sample.path.stem)
        for sample in found.samples
    )
    assert [sample.mask.parent.name for sample in found.samples if sample.mask] == [
        s.defect for s in found.samples
    ]


def test_only_one_type(mvtec: Path) -> None:
    found = labelled_defects(mvtec, kind="square")
    assert {sample.defect for sample in found.samples} == {"square"}
    assert len(found.sources) == 4
    few = labelled_defects(mvtec, kind="square", count=2, seed=1)
    assert len(few.sources) == 2
    assert set(few.sources) < set(found.sources)


def test_what_cannot_be_taken_is_said(
    mvtec: Path, folder: Path, good_folder: Path, picture: Part
) -> None:
    with pytest.raises(
        DataError, match="no defect is of type 'squares'; the types here are dark, square"
    ):
        labelled_defects(mvtec, kind="squares")
    with pytest.raises(DataError, match="types here are not known"):
        labelled_defects([picture(0)], kind="square")
    with pytest.raises(DataError, match="8 anomalies were asked for, but there are only 7"):
        labelled_defects(mvtec, count=8)
    with pytest.raises(DataError, match="5 anomalies were asked for, but there are only 4"):
        labelled_defects(mvtec, kind="square", count=5)
    with pytest.raises(ConfigError, match="cannot be negative"):
        labelled_defects(folder, count=-1)
    with pytest.raises(DataError, match="there is no picture of a defect"):
        labelled_defects([])
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        labelled_defects(folder / "nowhere")
    table = good_folder / "table.csv"
    table.write_text("path,label\n000.png,good\n001.png,\n")
    with pytest.raises(
        DataError, match=r"table\.csv: holds no picture that is known to be defective"
    ):
        labelled_defects(table)


def test_pictures_of_unknown_label_are_no_defects(good_folder: Path) -> None:
    table = good_folder / "table.csv"
    table.write_text("path,label,defect\n000.png,0,\n001.png,1,scratch\n002.png,,\n")
    assert NORMAL in {sample.label for sample in layouts.read(table).samples}
    assert [sample.path.name for sample in labelled_defects(table).samples] == ["001.png"]


def test_none_is_none() -> None:
    assert (NONE.sources, NONE.samples, NONE.note) == ([], [], "")
