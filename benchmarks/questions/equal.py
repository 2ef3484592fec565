"""Methods beside each other at equal arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from blemish.bench.results import Sheet
from blemish.bench.results.rows import newest
from blemish.bench.results.sheets import NONE, figure
from questions.matrix import COLUMNS, image_auroc
from questions.question import NOTHING, Measured, Question, Row, listed, sections

FILE = "equal.jsonl"
ABOVE = """\
Image AUROC / pixel AUROC / AUPRO in %, in brackets the number of seeds, of the recipes as they are
(`best`) at {resolution}, `{backbone}`, {precision}. What trains by gradient was held to
{budget:g} TFLOP (`--compute-budget`: {budget:g} × 10^12 operations, a multiply-add as 2, forwards
and backwards, those of the frozen encoder too); banks have no training, they read every picture.
A picture: GFLOP to score one; `guided` looks at more than one size. So short a
training is no method's published schedule: what the table tells is what to expect from minutes of
one core."""


def rows_of(measured: Measured) -> list[Row]:
    return newest(measured.files.get(FILE, []))[0]


def equal_answer(measured: Measured) -> str:
    rows = [row for row in rows_of(measured) if row["anomaly_count"] is None]
    best: list[str] = []
    for column, names in COLUMNS.items():
        values = {
            method: image_auroc(
                [row for row in rows if row["method"] == method and row["data"] in names]
            )
            for method in sorted({row["method"] for row in rows if row["data"] in names})
        }
        first = max(values.values(), default=0.0)
        if len(values) > 1:
            found = listed(f"`{name}`" for name, value in values.items() if value == first)
            best.append(f"{found} on {column} ({first:.1f})")
    if not best:
        return NOTHING
    return (
        f"At {budget_of(rows):g} TFLOP of training, a minute or two of one core, the highest image "
        f"AUROC, in %, is that of {'; '.join(best)}."
    )


def equal_parts(measured: Measured) -> list[str]:
    rows = rows_of(measured)
    parts: list[str] = []
    for count in sorted({row["anomaly_count"] or 0 for row in rows}):
        own = [row for row in rows if (row["anomaly_count"] or 0) == count]
        title = f"With {count} labelled defects" if count else "From good pictures alone"
        parts += sections(sheet(title, own, budget_of(rows)))
    return parts


def budget_of(rows: Sequence[Row]) -> float:
    """The one budget of the trained ones, in TFLOP."""
    (budget,) = {row["compute_budget"] for row in rows if row.get("compute_budget") is not None}
    return float(budget)


def sheet(title: str, rows: Sequence[Row], budget: float) -> Sheet:
    columns = [name for name, of in COLUMNS.items() if any(row["data"] in of for row in rows)]
    methods = sorted({row["method"] for row in rows}, key=lambda name: -mean(rows, name, columns))
    first = rows[0]
    height, width = first["resolution"]
    above = ABOVE.format(
        resolution=f"{height}×{width}",
        **{key: first[key] for key in ("backbone", "precision")},
        budget=budget,
    )
    return Sheet(
        title=title,
        above=above,
        columns=("Method", *columns, "Steps", "A picture"),
        lines=tuple(
            line([row for row in rows if row["method"] == name], columns) for name in methods
        ),
    )


def mean(rows: Sequence[Row], method: str, columns: Sequence[str]) -> float:
    """Of the image AUROC over the data sets, that of a set that is missing as nothing."""
    found = [
        [row for row in rows if row["method"] == method and row["data"] in COLUMNS[column]]
        for column in columns
    ]
    return sum(image_auroc(group) for group in found if group)


def line(rows: Sequence[Row], columns: Sequence[str]) -> tuple[str, ...]:
    cells = [cell([row for row in rows if row["data"] in COLUMNS[column]]) for column in columns]
    steps = sorted(row["training"]["steps"] for row in rows if row["training"])
    flops = [row["efficiency"]["flops"] / 1e9 for row in rows if row["efficiency"]]
    ends = sorted({steps[0], steps[-1]}) if steps else []
    made = " to ".join(f"{step:,}" for step in ends) or NONE
    return (f"`{rows[0]['method']}`", *cells, made, f"{statistics.median(flops):.0f}")


def cell(rows: Sequence[Row]) -> str:
    if not rows:
        return NONE
    figures = [
        figure([row[name] for row in rows], 100) for name in ("image_auroc", "pixel_auroc", "aupro")
    ]
    return f"{' / '.join(each for each in figures if each != NONE)} ({len(rows)})"


EQUAL = Question("equal", "Which method finds most at equal arithmetic?", equal_answer, equal_parts)
