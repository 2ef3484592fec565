"""ELPV: 2,624 electroluminescence pictures of solar cells, each with a probability of a defect.

A checkout of the set is read as it is; the demo set is made of the package `elpv-dataset`.
Licence: CC BY-NC-SA 4.0 (not for commercial use). When you publish results, cite

- Buerhop et al. 2018, A Benchmark for Visual Identification of Defective Solar Cells in
  Electroluminescence Imagery (EU PVSEC), and
- Deitsch et al. 2019, Automatic Classification of Defective Photovoltaic Module Cells in
  Electroluminescence Images (Solar Energy 185).
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

from blemish.data.dataset import Found
from blemish.data.folder import is_file, is_folder
from blemish.data.layouts.base import (
    QUARTER,
    Official,
    counted,
    divided,
    is_called,
    need,
    sample_of,
    told,
)
from blemish.data.splits import few_shot, hold_out
from blemish.data.tables import first_line, read_text, write_table
from blemish.errors import ConfigError, DataError, MissingExtraError
from blemish.types import ANOMALOUS, NORMAL, Sample

TABLE = "labels.csv"
FOLDERS = ("elpv", "elpv_dataset", "elpv_dataset_master")
_TEST_FRACTION = 0.25


def is_elpv(folder: Path) -> bool:
    """Whether there is the table of ELPV, or its pictures in a folder of that name."""
    place = _place(folder)
    words = first_line(place / TABLE).split()
    if len(words) == 3 and words[0].startswith("images/"):
        return True
    return is_called(folder, FOLDERS) and is_folder(place / "images")


def read_elpv(folder: Path) -> Found:
    """The certain cells of ELPV in a checkout of it.

    Raises: DataError without its table, or for a strange one.
    """
    cells = _cells(need(_place(folder), TABLE, "ELPV").parent)
    absent = [cell.path.name for cell in cells if not is_file(cell.path)]
    here = [cell for cell in cells if is_file(cell.path)]
    return divided(here, told({f"that {TABLE} names not here": absent}))


def write_elpv_table(path: str | Path, seed: int = 0, cells: int | None = None) -> Path:
    """A table of the ELPV solar cells at `path`: functional cells are normal, defective ones not.

    Cells of probability 0 are normal (1,508: 1,131 train and 377 test, drawn by `seed`), those of
    probability 1 anomalous (715, all test); the uncertain ones between are left out. Pictures are
    named by absolute path.

    Args:
        cells: only so many train cells and as many test cells, half of these anomalous, drawn by
            `seed`; None = all.
    Raises: MissingExtraError without the `demo` extra; DataError when the package's table is not
        as expected; ConfigError for a number of cells that cannot be drawn; OutputError when the
        table cannot be written.
    """
    # Located, never imported: only its files are of use.
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise MissingExtraError("elpv-dataset", extra="demo", purpose="read the ELPV solar cells")
    known = _cells(Path(spec.origin).absolute().parent / "data")
    train, good = hold_out([cell for cell in known if cell.label == NORMAL], _TEST_FRACTION, seed)
    defective = [cell for cell in known if cell.label == ANOMALOUS]
    if cells is not None:
        most = min(len(train), 2 * len(good), 2 * len(defective))
        if not 2 <= cells <= most:
            raise ConfigError(
                f"cells: 2 to {most} can be drawn, got {cells}; leave it out for all of them"
            )
        train, good = few_shot(train, cells, seed), few_shot(good, cells - cells // 2, seed)
        defective = few_shot(defective, cells // 2, seed)
    rows = [replace(cell, split="train") for cell in train]
    return write_table(path, rows + [replace(cell, split="test") for cell in good + defective])


def _cells(folder: Path) -> list[Sample]:
    """The cells of probability 0 (normal) and 1 (defective), without a split.

    Raises: DataError when labels.csv (path, probability and kind of cell, between white space) is
        not as expected.
    """
    table = folder / TABLE
    cells: list[Sample] = []
    try:
        for line in read_text(table).splitlines():
            name, probability, _ = line.split()
            if (certain := float(probability)) in (0, 1):
                sample = sample_of(folder / name, "defective" if certain else "")
                cells.append(replace(sample, category="solar"))
    except (DataError, ValueError) as error:
        reason = f"cannot be read as ELPV's labels ({error})"
        raise DataError(
            f"{table}: {reason}; get the table again, or reinstall elpv-dataset"
        ) from error
    return cells


def _place(folder: Path) -> Path:
    """Where its table and its images/ lie: here, or deeper in later checkouts."""
    for inner in ("", "data", "elpv_dataset/data", "src/elpv_dataset/data"):
        place = folder / inner
        if is_file(place / TABLE) or is_folder(place / "images"):
            return place
    return folder


ELPV = Official(
    name="elpv",
    title="ELPV",
    reference="Buerhop-Lux et al. 2018; Deitsch et al. 2019",
    source=(
        "https://github.com/zae-bayern/elpv-dataset, or the package elpv-dataset: "
        "pip install 'blemish[demo]'"
    ),
    licence="CC BY-NC-SA 4.0",
    tree="""\
FOLDER/labels.csv (path, probability, type; or in src/elpv_dataset/data/)
FOLDER/images/*.png (beside labels.csv)""",
    folders=FOLDERS,
    categories=counted("elpv 1131 377 715"),
    split=(
        f"{QUARTER} Good are cells of probability 0, defective those of 1; the others are left out."
    ),
    fits=is_elpv,
    read=read_elpv,
)
