"""The regions of predictions as COCO JSON, which tools that show, correct or train on masks read.

    images       every picture that was judged with a region threshold, also those without a region
    annotations  a region each: bbox and area in pixels, segmentation as run lengths (uncompressed:
                 down the columns, first a run outside), score: the highest of the map in it
    categories   one: "defect", where no others are given

The numbers of images and annotations count from 1. See https://cocodataset.org/#format-data
(Lin et al. 2014, "Microsoft COCO: Common objects in context").
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blemish.files import write_whole
from blemish.report.journal import Row, runs_of


def write_coco(path: Path, rows: Iterable[Row], *, kinds: Sequence[str] = ("defect",)) -> Path:
    """Writes the regions of rows of predictions, whole or not at all.

    Pictures that were named by a relative path are named from the file's folder on, so that both
    can be moved together; others as they were given. Rows without regions (broken pictures, or no
    threshold for them) are left out.

    Args:
        rows: as `journal` has them, of this run or an earlier one. A "file_name" of a row stands
            for its path; a region with a "kind" is of that category, any other of the first.
        kinds: the categories, one at least.
    Raises: OutputError.
    """
    folder = path.parent.resolve()
    judged = [row for row in rows if row.get("regions") is not None]
    images = [
        {
            "id": number,
            "file_name": row.get("file_name") or _named_from(folder, row["path"]),
            "width": row["width"],
            "height": row["height"],
        }
        for number, row in enumerate(judged, start=1)
    ]
    found = (
        (number, row, region)
        for number, row in enumerate(judged, start=1)
        for region in row["regions"]
    )
    # One by one: as numbers of Python run lengths take many times the room that their text does.
    annotations = ",\n".join(
        json.dumps({"id": at, **_annotation(number, row, region, kinds)}, allow_nan=False)
        for at, (number, row, region) in enumerate(found, start=1)
    )
    categories = [
        {"id": at, "name": kind, "supercategory": "defect"}
        for at, kind in enumerate(kinds, start=1)
    ]
    text = (
        f'{{"info": {json.dumps({"description": "regions of defects, by blemish"})},\n'
        f'"licenses": [],\n"categories": {json.dumps(categories)},\n'
        f'"images": {json.dumps(images)},\n"annotations": [{annotations}]}}\n'
    )
    return write_whole(path, text.encode())


def _annotation(
    image: int, row: Row, region: Mapping[str, Any], kinds: Sequence[str]
) -> dict[str, Any]:
    return {
        "image_id": image,
        "category_id": 1 + kinds.index(region.get("kind", kinds[0])),
        "bbox": region["box"],
        "area": region["area"],
        "segmentation": {"size": [row["height"], row["width"]], "counts": runs_of(region)},
        "iscrowd": 0,
        **({"score": region["peak"]} if "peak" in region else {}),  # a label has none
    }


def _named_from(folder: Path, source: str) -> str:
    """A picture's path from a folder on, with slashes; as it is where it is absolute."""
    path = Path(source)
    if path.is_absolute():
        return source
    try:
        # The folders are taken as they are on the disk: `..` after a link leads elsewhere.
        return Path(os.path.relpath(path.parent.resolve() / path.name, folder)).as_posix()
    except ValueError:  # on another drive of Windows
        return str(path.absolute())
