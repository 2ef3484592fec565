"""Head-CT: slices with a hemorrhage and without, told apart by a table."""

from __future__ import annotations

import re
from pathlib import Path

from blemish.data.dataset import Found
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
from blemish.data.tables import first_line, parse_rows, read_records

TITLE = "Head-CT"
TABLE = "labels.csv"
COLUMNS = ("id", "hemorrhage")
FOLDERS = ("head_ct", "head_ct_hemorrhage")


def is_head_ct(folder: Path) -> bool:
    """Whether there is the table of Head-CT, or its first picture in a folder of that name."""
    if set(COLUMNS) <= set(re.findall(r"\w+", first_line(folder / TABLE))):
        return True
    return is_called(folder, FOLDERS) and 0 in _slices(folder)


def read_head_ct(folder: Path) -> Found:
    """The slices of Head-CT. Raises: DataError without its table, or for rows of it."""
    table = need(folder, TABLE, TITLE)
    seen: set[int] = set()

    def parse(_: int, row: dict[str, str]) -> tuple[int, str]:
        if not row["id"].isdecimal() or row["hemorrhage"] not in ("0", "1"):
            raise ValueError("is not the number of a picture, and 0 or 1")
        number = int(row["id"])
        if number in seen:
            raise ValueError(f"{number:03d}.png is there already")
        seen.add(number)
        return number, "" if row["hemorrhage"] == "0" else "hemorrhage"

    named = parse_rows(table, read_records(table, COLUMNS), parse)
    pictures = _slices(folder)
    samples = [sample_of(pictures[number], what) for number, what in named if number in pictures]
    absent = [f"{number:03d}.png" for number, _ in named if number not in pictures]
    return divided(samples, told({f"that {TABLE} names not here": absent}))


def _slices(folder: Path) -> dict[int, Path]:
    """Number -> picture, in the first place that has some: the folder may hold other sets."""
    for place in (folder / "head_ct/head_ct", folder / "head_ct", folder):
        pictures = (path for path in sorted(place.glob("*.png")) if path.stem.isdecimal())
        if found := {int(path.stem): path for path in pictures}:
            return found
    return {}


HEAD_CT = Official(
    name="head_ct",
    title=TITLE,
    reference="Kitamura 2018",
    source="https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
    licence="as stated at the source",
    tree="""\
FOLDER/labels.csv (columns id, hemorrhage)
FOLDER/head_ct/head_ct/*.png (or FOLDER/head_ct/*.png, or FOLDER/*.png)
or the folders of MVTec AD: FOLDER/train/good and so on""",
    folders=FOLDERS,
    categories=counted("head_ct 75 25 100"),
    split=QUARTER,
    fits=is_head_ct,
    read=read_head_ct,
)
