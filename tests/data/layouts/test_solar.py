from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from blemish.data import layouts
from blemish.data.layouts.elpv import write_elpv_table
from blemish.errors import ConfigError, DataError, MissingExtraError, OutputError
from blemish.types import ANOMALOUS, NORMAL

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
    assert len(dataset.normals()) == 1508
    assert len(dataset.anomalies()) == 715
    assert len(dataset.train()) == 1131
    assert all(sample.label == NORMAL for sample in dataset.train())
    assert sum(sample.label == NORMAL for sample in dataset.test()) == 377
    assert {sample.defect for sample in dataset.anomalies()} == {"defective"}
    assert dataset.categories == ("solar",)
    assert all(sample.path.is_absolute() for sample in dataset.samples)
    assert dataset.problems == ()
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == [path]


@installed
def test_the_split_goes_by_seed(tmp_path: Path) -> None:
    first, again, other = (
        write_elpv_table(tmp_path / name, seed).read_text()
        for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    )
    assert first == again != other


@installed
def test_a_part_of_the_cells_is_drawn_by_the_seed(tmp_path: Path) -> None:
    whole = {
        sample.path: sample
        for sample in layouts.read(write_elpv_table(tmp_path / "all.csv")).samples
    }
    few, more, odd = (
        layouts.read(write_elpv_table(tmp_path / f"{n}.csv", cells=n)) for n in (20, 200, 7)
    )
    assert (len(more.train()), len(more.normals()), len(more.anomalies())) == (200, 300, 100)
    assert (len(odd.train()), len(odd.normals()), len(odd.anomalies())) == (7, 11, 3)
    assert all(whole[sample.path] == sample for sample in more.samples)  # in the same split
    assert {sample.path for sample in few.samples} < {sample.path for sample in more.samples}
    other = layouts.read(write_elpv_table(tmp_path / "other.csv", seed=1, cells=20))
    assert {sample.path for sample in other.samples} != {sample.path for sample in few.samples}
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


def test_labels_by_probability(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    probabilities = [0.0, 0.0, 0.0, 0.0, 0.3333333333333333, 0.6666666666666666, 1.0]
    lines = [f"images/{index}.png  {value}   mono" for index, value in enumerate(probabilities)]
    for index in range(len(lines)):
        (tmp_path / "data" / "images" / f"{index}.png").touch()
    (tmp_path / "data" / "labels.csv").write_text("\n".join(lines) + "\n")
    pretend_installed(monkeypatch, tmp_path)
    dataset = layouts.read(write_elpv_table(tmp_path / "solar.csv"))
    assert {(sample.path.stem, sample.label) for sample in dataset.samples} == {
        *((str(index), NORMAL) for index in range(4)),
        ("6", ANOMALOUS),
    }
    assert (len(dataset.train()), len(dataset.test())) == (3, 2)


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


@installed
def test_a_manifest_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"solar\.csv: cannot be written"):
        write_elpv_table(tmp_path / "file" / "solar.csv")
