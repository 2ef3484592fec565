from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from blemish.data import layouts
from blemish.data.layouts.elpv import write_elpv_table
from blemish.errors import ConfigError, DataError, MissingExtraError
from blemish.types import NORMAL

installed = pytest.mark.skipif(
    importlib.util.find_spec("elpv_dataset") is None,
    reason="needs elpv-dataset: pip install 'blemish[demo]'",
)


@installed
def test_the_manifest_holds_the_certain_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_elpv_table(tmp_path / "solar.csv")
    dataset = layouts.read(path)
    normal_test = set(dataset.test()) & set(dataset.normals())
    assert [len(each) for each in (dataset.train(), normal_test, dataset.anomalies())] == [
        *(1131, 377, 715)
    ]
    assert {sample.label for sample in dataset.train()} == {NORMAL}
    assert {sample.defect for sample in dataset.anomalies()} == {"defective"}
    assert dataset.categories == ("solar",)
    assert all(sample.path.is_absolute() for sample in dataset.samples)
    assert dataset.problems == ()
    assert capsys.readouterr() == ("", "")
    again, other = (write_elpv_table(tmp_path / f"{seed}.csv", seed) for seed in (0, 1))
    assert path.read_text() == again.read_text() != other.read_text()


@installed
def test_a_part_of_the_cells_is_drawn_by_the_seed(tmp_path: Path) -> None:
    whole = set(layouts.read(write_elpv_table(tmp_path / "all.csv")).samples)
    few, more, odd = (
        layouts.read(write_elpv_table(tmp_path / f"{n}.csv", cells=n)) for n in (20, 200, 7)
    )
    assert (len(more.train()), len(more.normals()), len(more.anomalies())) == (200, 300, 100)
    assert (len(odd.train()), len(odd.normals()), len(odd.anomalies())) == (7, 11, 3)
    assert set(few.samples) < set(more.samples) < whole  # in the same split
    for cells in (1, 755, -3):
        with pytest.raises(ConfigError, match=f"cells: 2 to 754 can be drawn, got {cells}"):
            write_elpv_table(tmp_path / "no.csv", cells=cells)
    assert not (tmp_path / "no.csv").exists()


def pretend_installed(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    spec = folder and ModuleSpec("elpv_dataset", None, origin=str(folder / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_without_the_package_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend_installed(monkeypatch, None)
    with pytest.raises(MissingExtraError, match=r"blemish\[demo\]"):
        write_elpv_table(tmp_path / "solar.csv")


@pytest.mark.parametrize("text", [None, "images/0.png 0.0\n", "images/0.png maybe mono\n"])
def test_a_strange_package_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    (tmp_path / "data").mkdir()
    if text is not None:
        (tmp_path / "data" / "labels.csv").write_text(text)
    pretend_installed(monkeypatch, tmp_path)
    with pytest.raises(DataError, match=r"labels\.csv.*reinstall"):
        write_elpv_table(tmp_path / "solar.csv")
