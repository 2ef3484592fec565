"""Regions at a threshold, and big pictures in tiles."""

from __future__ import annotations

from collections.abc import Sequence

from blemish.bench.results import Sheet
from blemish.bench.results.overview import commits, device
from blemish.bench.results.sheets import figure
from questions.kinds import beside
from questions.question import NOTHING, Measured, Question, Row, latest, section, sections

OURS = "blemish's regions"
CUTS = """\
What is marked in the maps of one detector, by how they are cut; in %, of the pixels of all test
pictures at their own size. A defect (a connected part of a mask) is found where a region shares a
pixel with it; a region is false where it meets none. Thresholds: at a rate of 5 %, from the
training pictures each left out in turn, which also give the quantiles of normal pixels. The best F1
looks at the test labels: it shows what one level can reach at most, and is no way to set it."""
TILES = """\
What is found on pictures that are larger than the encoder's input. Few pictures: no ranking. The
plates are made (`large.py`): textures with three defects of 8 to 40 pixels in each defective
picture. Learned from, tested on: good pictures, and good + defective ones, spread evenly over the
set where that has more. P: at 1,024². Defects and regions: found where a region shares a pixel with
a defect, at the threshold for the rate of false alarms. Megapixels/s: of the encoder's input,
decoding included. Beside plain pictures: the speed of tiles divided by that of the same tiles in
files of their own, the best of three runs in turn."""


def regions_answer(measured: Measured) -> str:
    told = [
        f"{row['normal_with_region']} of {row['normal']} ({row['data']}, where {row['found']} of "
        f"{row['defects']} defects are found)"
        for row in cuts(measured)
        if row["cut"] == OURS
    ]
    if not told:
        return NOTHING
    return (
        "At a threshold for a false-alarm rate of 5 % these good test pictures show a region: "
        f"{', '.join(told)}."
    )


def regions_parts(measured: Measured) -> list[str]:
    verdicts = beside(measured, "verdicts and regions")
    found = section("Verdicts of the methods at their thresholds", verdicts)
    return [*cut_table(measured), *filter(None, [found])]


def cuts(measured: Measured) -> list[Row]:
    keys = ("data", "method", "backbone", "resolution", "seed", "cut")
    found = latest(measured.of("regions"), *keys)
    return sorted(found, key=lambda row: tuple(map(str, map(row.get, keys[:4]))))


def cut_table(measured: Measured) -> list[str]:
    """What cuts of the same maps mark (`regions.py`)."""
    lines = [
        (
            *(row["data"], row["method"], row["cut"]),
            *(figure([row[key]], 100) for key in ("iou", "f1", "region_recall")),
            f"{row['found']} of {row['defects']}",
            figure([row["false_per_picture"]], digits=2),
            f"{row['normal_with_region']} of {row['normal']}",
            *("×".join(map(str, row["resolution"])), row["backbone"]),
            *(commits([row]), device(row)),
        )
        for row in cuts(measured)
    ]
    columns = (
        *("Data", "Method", "Cut", "IoU", "F1", "Defects found (%)", "Defects found"),
        *("False regions a picture", "Good pictures with a region"),
        *("Resolution", "Backbone", "Commit", "Device"),
    )
    title = "How the same maps are cut (`regions.py`)"
    sheet = Sheet(title=title, above=CUTS, columns=columns, lines=tuple(lines))
    return sections(sheet) if lines else []


def large_answer(measured: Measured) -> str:
    rows = tiles(measured)
    told: list[str] = []
    for data in dict.fromkeys(row["data"] for row in rows):
        of_data = [row for row in rows if row["data"] == data]
        tiled = [row for row in of_data if row["tile"] is not None]
        whole = [row for row in of_data if row["tile"] is None]
        if tiled and whole:
            told.append(f"on {data} {most(tiled)} in tiles and {most(whole)} whole")
    return f"Defects found at the threshold, at best: {'; '.join(told)}." if told else NOTHING


def most(rows: Sequence[Row]) -> str:
    best = max(rows, key=lambda row: row["found"])
    return f"{best['found']} of {best['defects']}"


def tiles(measured: Measured) -> list[Row]:
    found = latest(
        measured.of("tiles"), "data", "method", "backbone", "image_size", "tile", "overlap"
    )
    order = ("data", "backbone")
    return sorted(
        found, key=lambda row: (*map(row.get, order), row["tile"] or 0, row["image_size"])
    )


def large_parts(measured: Measured) -> list[str]:
    """Big pictures whole and in tiles (`tiles.py`)."""
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
        for row in tiles(measured)
    ]
    columns = (
        *("Data", "Pictures' size", "Looked at", "Learned from, tested on", "I", "P"),
        *("Defects found", "False regions a picture", "IoU", "Rate", "Seconds a picture"),
        *("Megapixels/s", "Beside plain pictures", "Peak (MiB)"),
        *("Method", "Backbone", "Commit", "Device"),
    )
    title = "Whole and in tiles (`tiles.py`)"
    sheet = Sheet(title=title, above=TILES, columns=columns, lines=tuple(lines))
    return sections(sheet) if lines else []


def looked_at(row: Row) -> str:
    """Of what, and at which size of the encoder's input."""
    size = f"{row['image_size']}²"
    if row["tile"] is None:
        return f"whole at {size}"
    return f"tiles of {row['tile']}², {100 * row['overlap']:.0f} % in common, at {size}"


REGIONS = Question(
    "regions", "Do thresholds and regions hold what they promise?", regions_answer, regions_parts
)
LARGE = Question(
    "large", "Do tiles find what big pictures lose as a whole?", large_answer, large_parts
)
