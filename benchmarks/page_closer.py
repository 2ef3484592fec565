"""The table of docs/results.md on two looks; `page.py` calls it."""

from __future__ import annotations

from collections.abc import Iterable

from page_regions import Row, newest

from blemish.bench.results import Sheet
from blemish.bench.results.overview import commits, device
from blemish.bench.results.sheets import figure

CLOSER = """\
One look at pictures of one size, "448", or a first one at small pictures and a second one at some
patches of large ones, "224+448". GFLOP: of scoring one picture. Images/s: from files to
predictions, in one process, in turn, on a machine that had more to do; ×: the ratio to the first
way. Planted: pieces of the part pasted into the background of good test pictures, squares of three
sizes. Raised: by a standard deviation of the good scores. Lost: raised by the first way, and by
this one neither raised nor looked at closely. Few pictures: no ranking."""


def closer(rows: Iterable[Row]) -> Sheet:
    """One look and two (`closer.py`)."""
    found = newest(rows, ("data", "method", "backbone", "way", "precision"))
    found.sort(key=lambda row: (row["data"], row["method"], row["backbone"]))
    lines = [
        (
            *(row["data"], row["way"], figure([row["close_share"] or None], 100)),
            f"{row['fitted']}, {row['good']} + {row['pictures'] - row['good']}",
            *(figure([row[key]], 100) for key in ("image_auroc", "pixel_auroc", "aupro")),
            figure([row["flops"] / 1e9], digits=1),
            *(figure([row[key]], digits=2) for key in ("images_per_second", "speed")),
            figure([row["fit_seconds"]], digits=0),
            *(f"{planted(row, key)} of {planted(row, 'defects')}" for key in ("raised", "lost")),
            *(row["method"], row["backbone"], row["precision"], commits([row]), device(row)),
        )
        for row in found
    ]
    columns = (
        *("Data", "Looks", "Looked at closely (%)", "Learned from, tested on", "I", "P", "AUPRO"),
        *("GFLOP", "Images/s", "×", "Fit (s)", "Planted: raised", "Planted: lost"),
        *("Method", "Backbone", "Precision", "Commit", "Device"),
    )
    title = "One look and two (`closer.py`)"
    return Sheet(title=title, above=CLOSER, columns=columns, lines=tuple(lines))


def planted(row: Row, key: str) -> int:
    """A count over the defects of all sizes."""
    return sum(of_size[key] for of_size in row["planted"].values())
