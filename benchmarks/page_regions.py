"""The tables of docs/results.md on regions of defects and on tiles; `page.py` calls these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from page_texts import REGIONS, TILES

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


def tiles(rows: Iterable[Row]) -> Sheet:
    """Big pictures whole and in tiles (`tiles.py`)."""
    found = newest(rows, ("data", "method", "backbone", "image_size", "tile", "overlap"))
    found.sort(key=lambda row: (row["data"], row["backbone"], row["tile"] or 0, row["image_size"]))
    lines = [
        (
            *(row["data"], "×".join(map(str, row["picture_size"])), looked_at(row)),
            f"{row['fitted']}, {row['good']} + {row['pictures'] - row['good']}",
            *(figure([row[key]], 100) for key in ("image_auroc", "pixel_auroc")),
            f"{row['found']} of {row['defects']}",
            figure([row["false_per_picture"]], digits=2),
            figure([row["iou"]], 100),
            f"{100 * row['rate']:g} %",
            figure([row["seconds_per_picture"]], digits=2),
            figure([row["megapixels_per_second"]], digits=2),
            figure([row["speed"]["ratio"] if "speed" in row else None], digits=2),
            figure([row["peak_memory_mib"]], digits=0),
            *(row["method"], row["backbone"], commits([row]), device(row)),
        )
        for row in found
    ]
    columns = (
        *("Data", "Pictures' size", "Looked at", "Learned from, tested on", "I", "P"),
        *("Defects found", "False regions a picture", "IoU", "Rate", "Seconds a picture"),
        *("Megapixels/s", "Beside plain pictures", "Peak (MiB)"),
        *("Method", "Backbone", "Commit", "Device"),
    )
    title = "Big pictures whole and in tiles (`tiles.py`)"
    return Sheet(title=title, above=TILES, columns=columns, lines=tuple(lines))


def looked_at(row: Row) -> str:
    """Of what, and at which size of the encoder's input."""
    size = f"{row['image_size']}²"
    if row["tile"] is None:
        return f"whole at {size}"
    return f"tiles of {row['tile']}², {100 * row['overlap']:.0f} % in common, at {size}"
