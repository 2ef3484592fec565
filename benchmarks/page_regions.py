"""The tables of docs/results.md on regions of defects and on tiles; `page.py` calls these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from page_texts import REGIONS

from blemish.bench.results import Sheet
from blemish.bench.results.overview import commits, device
from blemish.bench.results.sheets import figure

Row = Mapping[str, Any]


def newest(rows: Iterable[Row], keys: Iterable[str]) -> list[Row]:
    """Of rows of the same measurement the last one of the newest, in the order of the others."""
    keys = list(keys)
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["date"]):
        what = repr([row.get(key) for key in keys] + [row["device"]["type"]])
        found.pop(what, None)
        found[what] = row
    return list(found.values())


def regions(rows: Iterable[Row]) -> Sheet:
    """What cuts of the same maps mark (`regions.py`)."""
    percents = ("iou", "f1", "region_recall")
    found = newest(rows, ("data", "method", "backbone", "resolution", "seed", "cut"))
    found.sort(key=lambda row: (row["data"], row["method"], row["backbone"], row["resolution"]))
    lines = [
        (
            *(row["data"], row["method"], row["cut"]),
            *(figure([row[key]], 100) for key in percents),
            f"{row['found']} of {row['defects']}",
            figure([row["false_per_picture"]], digits=2),
            f"{row['normal_with_region']} of {row['normal']}",
            *("×".join(map(str, row["resolution"])), row["backbone"]),
            *(commits([row]), device(row)),
        )
        for row in found
    ]
    columns = (
        *("Data", "Method", "Cut", "IoU", "F1", "Defects found (%)", "Defects found"),
        *("False regions a picture", "Good pictures with a region"),
        *("Resolution", "Backbone", "Commit", "Device"),
    )
    title = "Regions (`regions.py`)"
    return Sheet(title=title, above=REGIONS, columns=columns, lines=tuple(lines))
