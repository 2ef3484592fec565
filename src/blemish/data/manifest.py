"""Tables of pictures: read with whatever the columns are plainly meant to be, and written in one form."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from blemish.data.contents import Contents
from blemish.data.folder import is_file, place_of
from blemish.data.names import meaning
from blemish.data.tables import read_rows, refuse
from blemish.errors import DataError
from blemish.files import write_whole
from blemish.types import ANOMALOUS, GOOD, NORMAL, Sample

TABLES = frozenset({".csv", ".tsv"})
COLUMNS = ("path", "label", "mask", "split", "category", "defect", "group")
SPLITS = ("train", "test", "")
# Columns by other names, the likeliest first; what a table calls by our own name goes before.
_ALSO_CALLED: Mapping[str, Sequence[str]] = {
    "path": (
        *(
            "image_path",
            "img_path",
            "file_path",
            "filepath",
            "image_file",
            "imagefile",
            "image_filename",
        ),
        *(
            "image_file_name",
            "filename",
            "file_name",
            "image_name",
            "file",
            "image",
            "img",
            "picture",
        ),
    ),
    "label": (
        "labels",
        "anomaly",
        "is_anomaly",
        "anomalous",
        "is_anomalous",
        "defective",
        "is_defective",
        "target",
    ),
    "mask": (
        "mask_path",
        "mask_file",
        "mask_filename",
        "mask_name",
        "ground_truth",
        "gt_path",
        "gt",
    ),
    "split": ("subset",),
    "defect": ("defect_type", "anomaly_type", "defect_class"),
}
# A table with gaps turns 0 and 1 into 0.0 and 1.0.
_LABELS: Mapping[str, int | None] = {
    "": None,
    **dict.fromkeys(("0", "0.0", "false"), NORMAL),
    **dict.fromkeys(("1", "1.0", "true"), ANOMALOUS),
}
_BETWEEN = "|"  # several masks of a picture


def read_manifest(path: Path) -> Contents:
    """The pictures of a table, in its order.

    Raises: DataError where no column names the pictures, or for rows that cannot be used, listed
    together.
    """
    rows = read_rows(path)
    columns = _columns(path, next(rows, (1, []))[1])
    samples: list[Sample] = []
    faults: list[str] = []
    lines: dict[str, int] = {}  # place of a picture -> the line that names it
    for line, cells in rows:
        try:
            sample = _read_row(columns, cells, path.parent)
            place = place_of(sample.path)
            if place in lines:
                raise ValueError(f"{sample.path} is listed already on line {lines[place]}")
        except ValueError as error:
            faults.append(f"line {line}: {error}")
        else:
            lines[place] = line
            samples.append(sample)
    refuse(path, faults)
    unknown = sorted(set(columns) - set(COLUMNS) - {""})
    problems = [f"columns not known and not read: {', '.join(unknown)}"] if unknown else []
    return Contents(samples=tuple(samples), problems=tuple(problems))


def _columns(path: Path, header: Iterable[str]) -> list[str]:
    """The columns by our names where these are plain, and otherwise by their own.

    Raises: DataError where none names the pictures, or two have the same name.
    """
    given = [re.sub(r"[\s-]+", "_", cell.lower()) for cell in header]
    columns = list(given)
    for name, others in _ALSO_CALLED.items():
        if name not in given and (
            found := next((other for other in others if other in given), None)
        ):
            columns[given.index(found)] = name
    named = [name for name in columns if name]
    if "path" not in columns or len(set(named)) < len(named):
        there = ", ".join(given) or "nothing"
        raise DataError(
            f"{path}: the first line must name a column path, and no column twice; it has {there}"
        )
    return columns


def _read_row(columns: list[str], cells: list[str], folder: Path) -> Sample:
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
    names = (
        [cell]
        if is_file(_inside(folder, cell))
        else [name.strip() for name in cell.split(_BETWEEN)]
    )
    masks = [_inside(folder, name) for name in names if name]
    if absent := [mask for mask in masks if not is_file(mask)]:
        raise ValueError(f"there is no mask file {absent[0]}")
    return masks


def _inside(folder: Path, name: str) -> Path:
    r"""The file that a table in `folder` names; one written on Windows has \ between the folders."""
    path = folder / name
    return folder / name.replace("\\", "/") if "\\" in name and not is_file(path) else path


def write_manifest(path: str | Path, samples: Iterable[Sample]) -> Path:
    """A manifest table of the samples at `path`, in their order; an existing file is replaced at
    once or not at all.

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
