"""VisA: good and defective pictures side by side, and a table that says which of them train.

Zou et al. 2022, "SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and
Segmentation" (ECCV). The split is the one-class one of split_csv/1cls.csv, whose paths start at
the folder with all categories. Masks hold class numbers from 1 on, which `images.decode_mask`
knows.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from blemish.data.dataset import Found
from blemish.data.folder import is_file, scan
from blemish.data.layouts.base import Official, category_folders, counted, need, told
from blemish.data.tables import parse_rows, read_records
from blemish.errors import DataError
from blemish.types import ANOMALOUS, GOOD, NORMAL, Sample

TITLE = "VisA"
TABLE = "split_csv/1cls.csv"
DEFECT = "anomaly"  # the table tells no kinds of defects apart
_SIGNS = ("Data/Images/Normal", "Data/Images/Anomaly")
_COLUMNS = ("object", "split", "label", "image", "mask")
_LABELS = {"normal": NORMAL, "anomaly": ANOMALOUS}


def is_visa(folder: Path) -> bool:
    """Whether the folder is a category of VisA or has such in it."""
    return bool(category_folders(folder, _SIGNS))


def read_visa(folder: Path) -> Found:
    """The samples of a category, or of the categories in a folder.

    Raises: DataError without the table of splits, which lies beside the categories, or without the
        folder of masks of a category; for rows of the table that cannot be used.
    """
    categories = category_folders(folder, _SIGNS)
    table = (folder.resolve().parent if folder in categories.values() else folder) / TABLE
    if not is_file(table):
        raise DataError(
            f"{folder}: read as VisA, but there is no {table}; copy {TABLE} there from that set"
        )
    seen: set[Path] = set()

    def parse(_: int, row: dict[str, str]) -> Sample:
        sample = _sample(row, categories[row["object"]])
        if sample.path in seen:
            raise ValueError(f"{row['image']} is there already")
        if is_file(sample.path):
            seen.add(sample.path)
        return sample

    rows = read_records(table, _COLUMNS)
    named = parse_rows(table, [row for row in rows if row[1]["object"] in categories], parse)
    samples = [sample for sample in named if sample.path in seen]
    unnamed: list[Path] = []
    for category, place in categories.items():
        if any(s.category == category and s.label == ANOMALOUS for s in samples):
            need(place, "Data/Masks/", TITLE)
        pictures = scan(place / "Data/Images").pictures
        unnamed += [picture for picture in pictures if picture not in seen]
    strays = {
        "that 1cls.csv names not here": [s.path for s in named if s.path not in seen],
        "that 1cls.csv does not name ignored": unnamed,
    }
    return Found(
        samples=sorted(samples, key=lambda sample: sample.path),
        notes=[f"split by {TABLE}"],
        problems=told(strays),
    )


def _sample(row: dict[str, str], place: Path) -> Sample:
    """The sample of one row. Raises ValueError that says what is wrong with it."""
    if row["split"] not in ("train", "test") or row["label"] not in _LABELS:
        raise ValueError(f"split {row['split']!r} or label {row['label']!r} is none of VisA")
    label = _LABELS[row["label"]]
    category, mask = row["object"], None
    if label == ANOMALOUS and row["mask"]:
        mask = _inside(row["mask"], category, place)
    return Sample(
        path=_inside(row["image"], category, place),
        label=label,
        mask=mask if mask and is_file(mask) else None,
        split=row["split"],
        category=category,
        defect=DEFECT if label == ANOMALOUS else GOOD,
    )


def _inside(path: str, category: str, place: Path) -> Path:
    """Where a path of the table is, which starts with the category's name.

    Raises: ValueError for any other.
    """
    first, *others = PurePosixPath(path).parts or ("",)
    if first != category or not others or ".." in others:
        raise ValueError(f"{path!r} is not in {category}/")
    return place.joinpath(*others)


VISA = Official(
    name="visa",
    title=TITLE,
    reference="Zou, Jeong, Pemula, Zhang, Dabeer 2022",
    source="https://github.com/amazon-science/spot-diff",
    licence="CC BY 4.0",
    tree="""\
FOLDER/split_csv/1cls.csv
FOLDER/<category>/Data/Images/Normal/*.JPG
FOLDER/<category>/Data/Images/Anomaly/*.JPG
FOLDER/<category>/Data/Masks/Anomaly/*.png
or its categories in the folders of MVTec AD""",
    folders=("visa", "visa_20220922"),
    categories=counted("""
        candle      900 100 100
        capsules    542  60 100
        cashew      450  50 100
        chewinggum  453  50 100
        fryum       450  50 100
        macaroni1   900 100 100
        macaroni2   900 100 100
        pcb1        904 100 100
        pcb2        901 100 100
        pcb3        905 101 100
        pcb4        904 101 100
        pipe_fryum  450  50 100
    """),
    split="The authors', for one class, in split_csv/1cls.csv.",
    masks=True,
    fits=is_visa,
    read=read_visa,
)
