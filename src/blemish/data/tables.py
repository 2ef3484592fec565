"""Tables in CSV: their rows, one error for all rows that cannot be used, and tables of pictures.

A table of pictures is read with whatever its columns are plainly meant to be, and written in one
form.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from blemish.data.dataset import SPLITS, Found
from blemish.data.folder import is_file, place_of
from blemish.data.names import meaning
from blemish.errors import ConfigError, DataError
from blemish.files import TABLE_BYTES, open_regular, read_whole, write_whole
from blemish.text import pluralize
from blemish.types import ANOMALOUS, GOOD, NORMAL, Sample

Row = TypeVar("Row")
Made = TypeVar("Made")

_FAULTS_SHOWN = 10
TABLES = frozenset({".csv", ".tsv"})
COLUMNS = ("path", "label", "mask", "split", "category", "defect", "group")
# Columns by other names, the likeliest first; what a table calls by our own name goes before.
_ALSO_CALLED = {
    "path": "image_path img_path file_path filepath image_file imagefile image_filename "
    "image_file_name filename file_name image_name file image img picture",
    "label": "labels anomaly is_anomaly anomalous is_anomalous defective is_defective target",
    "mask": "mask_path mask_file mask_filename mask_name ground_truth gt_path gt",
    "split": "subset",
    "defect": "defect_type anomaly_type defect_class",
}
# A table with gaps turns 0 and 1 into 0.0 and 1.0.
_LABELS: Mapping[str, int | None] = {
    "": None,
    **dict.fromkeys(("0", "0.0", "false"), NORMAL),
    **dict.fromkeys(("1", "1.0", "true"), ANOMALOUS),
}
_BETWEEN = "|"  # several masks of a picture


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells without the space around them): the first line, then all that hold some.

    Cells are divided by whichever of comma, semicolon and tab the first line has most of. A line
    "sep=;" before it, which Excel writes and reads, says so itself.

    Raises: DataError when the file cannot be read or is no CSV in UTF-8.
    """
    text = read_text(path)
    skipped = 0
    if told := re.match(r"sep=([,;\t])\r?\n", text, re.IGNORECASE):
        text, skipped = text[told.end() :], 1
    header = re.split(r"[\r\n]", text, maxsplit=1)[0]
    delimiter = told[1] if told else max(",;\t", key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for cells in rows:
            cells = [cell.strip() for cell in cells]
            if rows.line_num == 1 or any(cells):
                yield rows.line_num + skipped, cells
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num + skipped} is not CSV ({error})") from error


def read_records(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line number, cell by the column's name in lower case) for each row below the first.

    Args: columns: that must be there; a row that ends early has "" in them.
    Raises: DataError as `read_rows`, and for a column that is missing.
    """
    rows = read_rows(path)
    header = [cell.lower() for cell in next(rows, (1, []))[1]]
    needed = [column.lower() for column in columns]
    if not set(needed) <= set(header):
        there = ", ".join(filter(None, header)) or "none"
        raise DataError(
            f"{path}: the first line must name the columns {', '.join(columns)}; it has {there}"
        )
    blank = dict.fromkeys(needed, "")
    return [(line, {**blank, **dict(zip(header, cells, strict=False))}) for line, cells in rows]


def parse_rows(
    path: Path, rows: Iterable[tuple[int, Row]], parse: Callable[[int, Row], Made]
) -> list[Made]:
    """What `parse` makes of each (line number, row).

    Raises: DataError that lists the first of the rows for which it raised a ValueError.
    """
    made: list[Made] = []
    faults: list[str] = []
    for line, row in rows:
        try:
            made.append(parse(line, row))
        except ValueError as error:
            faults.append(f"line {line}: {error}")
    if faults:
        more = [f"and {len(faults) - _FAULTS_SHOWN} more"] if len(faults) > _FAULTS_SHOWN else []
        head = f"{path}: {pluralize(len(faults), 'row')} cannot be used:"
        raise DataError("\n  ".join([head, *faults[:_FAULTS_SHOWN], *more]))
    return made


def first_line(path: Path) -> str:
    """The first line of a file in lower case, to tell what it is; "" where it cannot be read."""
    try:
        with open_regular(path, limit=TABLE_BYTES, error=DataError) as file:
            return file.readline(4096).decode("utf-8", "replace").lower()
    except (DataError, OSError):
        return ""


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without a byte-order mark, its line ends as they are.

    Raises: DataError.
    """
    content = read_whole(path, limit=TABLE_BYTES, error=DataError)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save the table as CSV in UTF-8") from error


def read_table(path: Path) -> Found:
    """The pictures of a table, in its order.

    Raises: DataError where no column names the pictures, or for rows that cannot be used, listed
    together.
    """
    rows = read_rows(path)
    columns = _columns(path, next(rows, (1, []))[1])
    lines: dict[str, int] = {}  # place of a picture -> the line that names it

    def parse(line: int, cells: list[str]) -> Sample:
        sample = _sample(columns, cells, path.parent)
        if (first := lines.setdefault(place_of(sample.path), line)) != line:
            raise ValueError(f"{sample.path} is listed already on line {first}")
        return sample

    found = Found(samples=parse_rows(path, rows, parse))
    if unknown := sorted(set(columns) - set(COLUMNS) - {""}):
        found.problems.append(f"columns not known and not read: {', '.join(unknown)}")
    return found


def read_column(path: Path, column: str) -> dict[str, str]:
    """What a column of a table of pictures says of each, by the picture's place (`place_of`).

    Whether the pictures are there is not looked at.

    Raises: DataError where no column names the pictures, or for rows that cannot be used, listed
        together; ConfigError where there is no such column.
    """
    rows = read_rows(path)
    given = next(rows, (1, []))[1]
    columns = _columns(path, given)
    plain = re.sub(r"[\s-]+", "_", column.strip().lower())
    known = [re.sub(r"[\s-]+", "_", cell.lower()) for cell in given]
    at = next((names.index(plain) for names in (known, columns) if plain in names), None)
    if at is None or not plain:
        there = ", ".join(filter(None, given))
        raise ConfigError(f"{path}: has no column {column}; there are {there}")
    said: dict[str, str] = {}

    def parse(line: int, cells: list[str]) -> None:
        cells = [*cells, *[""] * (len(columns) - len(cells))]
        name, cell = cells[columns.index("path")], cells[at]
        if not name:
            raise ValueError("the path is empty")
        picture = _inside(path.parent, name)
        if said.setdefault(place_of(picture), cell) != cell:
            raise ValueError(f"{picture} is listed already, with another {column}")

    parse_rows(path, rows, parse)
    return said


def _columns(path: Path, header: Iterable[str]) -> list[str]:
    """The columns by our names where these are plain, and otherwise by their own.

    Raises: DataError where none names the pictures, or two have the same name.
    """
    given = [re.sub(r"[\s-]+", "_", cell.lower()) for cell in header]
    columns = list(given)
    for name, others in _ALSO_CALLED.items():
        found = next((other for other in others.split() if other in given), None)
        if name not in given and found is not None:
            columns[given.index(found)] = name
    named = [name for name in columns if name]
    if "path" not in columns or len(set(named)) < len(named):
        there = ", ".join(given) or "nothing"
        raise DataError(
            f"{path}: the first line must name a column path, and no column twice; it has {there}"
        )
    return columns


def _sample(columns: list[str], cells: list[str], folder: Path) -> Sample:
    """The sample of one row. Raises ValueError that says what is wrong with it."""
    if len(cells) > len(columns) and any(cells[len(columns) :]):
        raise ValueError(f"{len(cells)} cells under {len(columns)} columns")
    row = {**dict.fromkeys(COLUMNS, ""), **dict(zip(columns, cells, strict=False))}
    if not row["path"]:
        raise ValueError("the path is empty")
    picture = _inside(folder, row["path"])
    if not is_file(picture):
        raise ValueError(f"there is no file {picture}")
    masks = _masks(folder, row["mask"])
    label = _label(row["label"])
    if row["split"].lower() not in SPLITS:
        raise ValueError(f"split {row['split']!r} is neither train nor test nor empty")
    defect = row["defect"]
    if meaning(defect) == "good" or (label == NORMAL and not defect):
        defect = GOOD
    if label is not None and (label == NORMAL) != (defect == GOOD):
        raise ValueError(
            f"label {row['label']!r} and defect {row['defect']!r} contradict each other"
        )
    return Sample(
        path=picture,
        label=label,
        mask=masks[0] if masks else None,
        more_masks=tuple(masks[1:]),
        split=row["split"].lower(),
        category=row["category"],
        defect=defect,
        group=row["group"],
    )


def _label(word: str) -> int | None:
    """Raises: ValueError for a word that does not tell good from defective."""
    if word.lower() in _LABELS:
        return _LABELS[word.lower()]
    said = meaning(word)
    if said not in ("good", "bad"):
        known = "0, 1, false, true, good, bad, OK, NG, normal, anomalous and the like, or empty"
        raise ValueError(f"label {word!r} is none of {known}")
    return NORMAL if said == "good" else ANOMALOUS


def _masks(folder: Path, cell: str) -> list[Path]:
    """Raises: ValueError for a mask that is not there."""
    if not cell:
        return []
    whole = is_file(_inside(folder, cell))
    names = [cell] if whole else [name.strip() for name in cell.split(_BETWEEN)]
    masks = [_inside(folder, name) for name in names if name]
    if absent := [mask for mask in masks if not is_file(mask)]:
        raise ValueError(f"there is no mask file {absent[0]}")
    return masks


def _inside(folder: Path, name: str) -> Path:
    r"""The file that a table in `folder` names; one of Windows has \ between folders."""
    path = folder / name
    return folder / name.replace("\\", "/") if "\\" in name and not is_file(path) else path


def write_table(path: str | Path, samples: Iterable[Sample]) -> Path:
    """A table of the samples at `path`, in their order; an existing file is replaced whole.

    Paths are written as they are in the samples: relative ones are later read from the table's
    folder; several masks of a picture stand in one cell with | between. Boxes are not written: a
    row has no place for any number of them.

    Raises: OutputError when it cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for sample in samples:
        label = "" if sample.label is None else sample.label
        masks = _BETWEEN.join(str(mask) for mask in sample.masks)
        known = [sample.split, sample.category, sample.defect, sample.group]
        table.writerow([sample.path, label, masks, *known])
    return write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))
