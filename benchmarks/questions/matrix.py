"""The coverage matrix: methods against data sets, and which rows stand for a cell."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blemish.bench.results import Sheet
from blemish.bench.results.overview import flags
from blemish.bench.results.rows import departures, likeness
from blemish.bench.results.sheets import NONE, figure
from questions.question import Measured, Row

OUR_BACKBONE = "focus_vits14"
GAP = "not measured"


@dataclass(frozen=True)
class Line:
    """A line of the coverage matrix: rows of `method` that have all of `settings` ("none" where the
    method has none such) and learned from so many defects."""

    label: str
    method: str
    settings: Mapping[str, str] = field(default_factory=dict)
    defects: int = 0

    def holds(self, row: Row) -> bool:
        if (row["method"], row["anomaly_count"] or 0) != (self.method, self.defects):
            return False
        return all(row["settings"].get(key, "none") == it for key, it in self.settings.items())


NETWORKS = {"ATAC-Net's network": "atacnet", "DevNet": "devnet", "CutMix classifier": "classifier"}
UNLABELLED = (
    *(Line(f"`{method}`", method) for method in ("knn", "patchcore", "padim", "spade")),
    Line("`guided`", "guided", {"pretraining": "none"}),
    Line("`guided` after APMask", "guided", {"pretraining": "apmask"}),
    Line("`agpnet`", "agpnet"),
    *(
        Line(f"`{method}`", method)
        for method in ("dinomaly", "vitad", "simplenet", "rd4ad", "uniad", "efficientad", "draem")
    ),
)
LINES = (
    *UNLABELLED,
    *(Line(f"`lda`, M = {count}", "lda", {}, count) for count in (0, 1, 10)),
    *(Line(f"`{method}`, M = 10", method, {}, 10) for method in ("dra", "ahl")),
    *(
        Line(f"{title}, M = {count}", "atacnet", {"network": network}, count)
        for title, network in NETWORKS.items()
        for count in (1, 10)
    ),
)
# Heading -> what rows may call the data set.
COLUMNS = {
    "bottle": ("bottle",),
    "screw": ("screw",),
    "magnetic tile": ("magnetic_tile",),
    "brain MRI": ("brain_mri",),
    "ELPV": ("elpv",),
    "NIH (part)": ("nih_chest_xray", "nih"),
}
Cells = dict[str, dict[str, list[Row]]]  # label of the line -> column -> rows of one setting


def covered(measured: Measured) -> Cells:
    """For every cell of the matrix the rows of the setting nearest to the recipe; of equally near
    ones, of that with our backbone, the most seeds, the most pixels, the most steps."""
    rows = sorted([*measured.good, *measured.draws], key=lambda row: (row["date"], row["seed"]))
    cells: Cells = {line.label: {} for line in LINES}
    for line in LINES:
        for column, names in COLUMNS.items():
            groups: dict[str, list[Row]] = {}
            for row in rows:
                if line.holds(row) and row["data"] in names:
                    groups.setdefault(likeness(row), []).append(row)
            if groups:
                cells[line.label][column] = min(groups.values(), key=rank)
    return cells


def rank(group: Sequence[Row]) -> tuple[Any, ...]:
    """The lower, the nearer to the recipe."""
    row = group[-1]
    free = {"backbone", "image_size", "pretraining", "network"}
    changes = departures(row, row["recipe"]).keys() - free
    wishes = [row["recipe"] != "best", row["shots"] is not None]
    wishes.append(row["anomaly_type"] is not None)
    wishes.append(row.get("false_alarm_rate") is not None)
    height, width = row["resolution"]
    steps = (row["training"] or {}).get("steps", 0)
    budget = row.get("compute_budget") is not None  # such rows have a page of their own
    nearest = budget, len(changes) + sum(wishes), row["backbone"] != OUR_BACKBONE
    return (*nearest, -len(group), -height * width, -steps, likeness(row))


def matrix(cells: Cells, title: str, above: str) -> Sheet:
    return Sheet(
        title=title,
        above=above,
        columns=("Method", *COLUMNS),
        lines=tuple(
            (label, *(cell(found.get(column, [])) for column in COLUMNS))
            for label, found in cells.items()
        ),
    )


def cell(rows: Sequence[Row]) -> str:
    if not rows:
        return GAP
    figures = [figure([row[name] for row in rows], 100) for name in ("image_auroc", "pixel_auroc")]
    shown = " / ".join(each for each in figures if each != NONE)
    return f"{shown} ({len(rows)}){''.join(flags(rows))}"


def image_auroc(rows: Sequence[Row]) -> float:
    """Of a cell, in %, to one digit."""
    return round(100 * statistics.fmean(row["image_auroc"] for row in rows), 1)
