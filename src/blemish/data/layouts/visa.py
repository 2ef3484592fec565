"""The layout of VisA: good and defective pictures side by side, and a table that says which of them train.

Zou et al. 2022, "SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and Segmentation" (ECCV). The
split is the one-class one of split_csv/1cls.csv, whose paths start at the folder with all categories. Masks hold
class numbers from 1 on, which `images.decode_mask` knows.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from blemish.data.contents import Contents
from blemish.data.folder import is_file, is_folder, scan
from blemish.data.phrases import counted, listed
from blemish.data.tables import read_rows, refuse
from blemish.errors import DataError
from blemish.types import ANOMALOUS, GOOD, NORMAL, Sample

SPLITS = "split_csv/1cls.csv"
DEFECT = "anomaly"  # the table tells no kinds of defects apart
_SIGNS = ("Data/Images/Normal", "Data/Images/Anomaly")
_COLUMNS = ("object", "split", "label", "image", "mask")
_LABELS = {"normal": NORMAL, "anomaly": ANOMALOUS}


def is_visa(folder: Path) -> bool:
    """Whether the folder is a category of VisA or has such in it."""
    return bool(_categories(folder))


def read_visa(folder: Path) -> Contents:
    """The samples of a category, or of the categories in a folder; the pictures are listed, not decoded.

    Raises: DataError without the table of splits, which lies beside the categories, or without the folder of masks of
        a category; for rows of the table that cannot be used (listed together).
    """
    categories = _categories(folder)
    table = (folder.resolve().parent if folder in categories.values() else folder) / SPLITS
    if not is_file(table):
        raise DataError(
            f"{folder}: read as VisA, but there is no {table}; copy {SPLITS} there from that set"
        )
    samples, absent = _read_rows(table, categories)
    for category, place in categories.items():
        masked = any(
            sample.category == category and sample.label == ANOMALOUS for sample in samples
        )
        if masked and not is_folder(place / "Data/Masks"):
            raise DataError(
                f"{place}: read as VisA, but there is no Data/Masks/ in it; copy it here from that set"
            )
    named = {sample.path for sample in samples}
    found = (path for place in categories.values() for path in scan(place / "Data/Images").pictures)
    unnamed = [path for path in found if path not in named]
    strays = {
        "that 1cls.csv names not here": absent,
        "that 1cls.csv does not name ignored": unnamed,
    }
    return Contents(
        samples=tuple(sorted(samples, key=lambda sample: sample.path)),
        notes=("split by split_csv/1cls.csv",),
        problems=tuple(
            f"{counted(len(paths), 'picture')} {what}: {listed(paths)}"
            for what, paths in strays.items()
            if paths
        ),
    )


def _categories(folder: Path) -> dict[str, Path]:
    """Name -> folder: of the category that it is, or of those that it holds."""
    if any(is_folder(folder / sign) for sign in _SIGNS):
        return {folder.resolve().name: folder}
    places = {found.parents[2] for sign in _SIGNS for found in folder.glob(f"*/{sign}")}
    return {place.name: place for place in sorted(places)}


def _read_rows(table: Path, categories: dict[str, Path]) -> tuple[list[Sample], list[Path]]:
    """The samples that the table names in these categories, and those of its pictures that are not there."""
    rows = read_rows(table)
    columns = [cell.lower() for cell in next(rows, (1, []))[1]]
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise DataError(
            f"{table}: the first line names no column {listed(missing)}; get the table again"
        )
    samples: dict[Path, Sample] = {}
    absent: list[Path] = []
    faults: list[str] = []
    for line, cells in rows:
        row = {**dict.fromkeys(_COLUMNS, ""), **dict(zip(columns, cells, strict=False))}
        place = categories.get(row["object"])
        if place is None:
            continue
        try:
            sample = _sample(row, place)
            if sample.path in samples:
                raise ValueError(f"{row['image']} is there already")
        except ValueError as error:
            faults.append(f"line {line}: {error}")
            continue
        if is_file(sample.path):
            samples[sample.path] = sample
        else:
            absent.append(sample.path)
    refuse(table, faults)
    return list(samples.values()), absent


def _sample(row: dict[str, str], place: Path) -> Sample:
    """The sample of one row. Raises ValueError that says what is wrong with it."""
    if row["split"] not in ("train", "test") or row["label"] not in _LABELS:
        raise ValueError(f"split {row['split']!r} or label {row['label']!r} is none of VisA")
    label = _LABELS[row["label"]]
    mask = (
        _inside(row["mask"], row["object"], place) if label == ANOMALOUS and row["mask"] else None
    )
    return Sample(
        path=_inside(row["image"], row["object"], place),
        label=label,
        mask=mask if mask and is_file(mask) else None,
        split=row["split"],
        category=row["object"],
        defect=DEFECT if label == ANOMALOUS else GOOD,
    )


def _inside(path: str, category: str, place: Path) -> Path:
    """Where a path of the table is, which starts with the category's name. Raises: ValueError for any other."""
    first, *others = PurePosixPath(path).parts or ("",)
    if first != category or not others or ".." in others:
        raise ValueError(f"{path!r} is not in {category}/")
    return place.joinpath(*others)
