"""Methods that learn from good pictures alone, from many of them and from few."""

from __future__ import annotations

from collections.abc import Sequence

from blemish.text import pluralize
from questions.kinds import of_kind, rows_of
from questions.matrix import UNLABELLED, Cells, covered, image_auroc, matrix
from questions.published import suite_section
from questions.question import NOTHING, Measured, Question, Row, listed, sections

ABOVE = """\
By data set, the recipes as they are, but for backbone, resolution and how long was trained. Other
settings: [what they change](settings.md). Few pictures: [how few are enough](few.md)."""
UNLABELLED_CELLS = """\
Image AUROC / pixel AUROC in %, in brackets the number of seeds. Of several settings the one nearest
to the recipe; [what each figure is of](coverage.md#what-each-of-these-figures-is-of). Resolutions,
budgets and threads differ between cells."""


def methods_answer(measured: Measured) -> str:
    cells = covered(measured)
    best: list[str] = []
    for column in columns_of(cells):
        ranked = {
            line.label: image_auroc(cells[line.label][column])
            for line in UNLABELLED
            if column in cells[line.label]
        }
        first = max(ranked.values(), default=0.0)
        names = [label for label, value in ranked.items() if value == first]
        if len(ranked) > 1:
            best.append(f"{listed(names)} on {column} ({first:.1f})")
    if not best:
        return NOTHING
    return (
        f"Without labels the highest image AUROC, in %, is that of {'; '.join(best)}; settings "
        "differ, and differences of a point between single seeds mean nothing."
    )


def columns_of(cells: Cells) -> list[str]:
    """The data sets that any method was measured on."""
    return list(dict.fromkeys(column for found in cells.values() for column in found))


def methods_parts(measured: Measured) -> list[str]:
    cells = covered(measured)
    own = {line.label: cells[line.label] for line in UNLABELLED}
    texts = sections(matrix(own, "All methods, all data sets", UNLABELLED_CELLS))
    return [*texts, rows_of(measured, of_kind("methods"), "Rows", ABOVE)]


def few_answer(measured: Measured) -> str:
    few = [row for row in measured.good if row["shots"] is not None]
    told: list[str] = []
    for data in sorted({row["data"] for row in few}):
        counts = sorted({row["shots"] for row in few if row["data"] == data})
        best = [
            best_of([row for row in few if (row["data"], row["shots"]) == (data, count)])
            for count in counts
        ]
        told.append(f"on {data} {listed(best)}")
    return f"Image AUROC in %, at best: {'; '.join(told)}." if told else NOTHING


def best_of(rows: Sequence[Row]) -> str:
    best = max(rows, key=lambda row: (row["image_auroc"], row["method"]))
    return (
        f"{100 * best['image_auroc']:.1f} from {pluralize(best['shots'], 'picture')} "
        f"(`{best['method']}`)"
    )


def few_parts(measured: Measured) -> list[str]:
    of_suite = suite_section(measured, "agpnet", lambda title: "few pictures" in title)
    rows = rows_of(measured, of_kind("few"), "Rows")
    return [*filter(None, [rows, of_suite])]


METHODS = Question(
    "methods", "Which method finds most without labels?", methods_answer, methods_parts
)
FEW = Question("few", "How few good pictures are enough?", few_answer, few_parts)
