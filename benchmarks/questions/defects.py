"""What labelled defects add."""

from __future__ import annotations

from blemish.bench import suites
from blemish.bench.results import Sheet
from blemish.bench.results.overview import alike, commits, device, flags, size
from blemish.bench.results.sheets import figure
from questions.kinds import LABELLED, of_kind, rows_of
from questions.matrix import COLUMNS, LINES, covered, image_auroc, matrix
from questions.published import ELSEWHERE, suite_section
from questions.question import NOTHING, Measured, Question, listed, sections

CELLS = """\
M: how many labelled defects are learned from. Image AUROC / pixel AUROC in %, in brackets the
number of seeds or draws. Of several settings the one nearest to the recipe; [what each figure is
of](coverage.md#what-each-of-these-figures-is-of)."""
DRAWS = """\
`lda`, recipe `best`, over `patchcore` of seed 0. M defects are drawn by seed and learned from, all
others are tested; M = 0 is `patchcore` itself. With `anomaly_type` they are drawn from that type
and all other types are tested. Least I: that of the worst draw."""
COUNTS = (0, 1, 10)


def answer(measured: Measured) -> str:
    cells = covered(measured)
    told: list[str] = []
    for column in COLUMNS:
        found = [cells[f"`lda`, M = {count}"].get(column) for count in COUNTS]
        if all(found):
            figures = [f"{image_auroc(rows):.1f}" for rows in found if rows]
            told.append(f"{column} {', '.join(figures)}")
    if not told:
        return NOTHING
    counts = listed(map(str, COUNTS))
    return f"Image AUROC of `lda` after {counts} defects, in %: {'; '.join(told)}."


def parts(measured: Measured) -> list[str]:
    cells = covered(measured)
    own = {line.label: cells[line.label] for line in LINES if line.method in LABELLED}
    suites_here = [suite_section(measured, name) for name in suites.names() if name in ELSEWHERE]
    rows = rows_of(measured, of_kind("defects"), "Rows")
    matrices = sections(matrix(own, "All methods, all data sets", CELLS))
    return [*filter(None, [*matrices, *drawn(measured), *suites_here, rows])]


def drawn(measured: Measured) -> list[str]:
    """Draws of labelled defects (`weak.py`)."""
    scores = ("image_auroc", "pixel_auroc", "aupro")
    ordered = sorted(
        measured.draws,
        key=lambda row: (row["data"], row["label"], row["anomaly_count"], row["seed"]),
    )
    lines = [
        (
            *(found[-1]["data"], size(found[-1]), str(found[-1]["anomaly_count"])),
            *(" ".join([found[-1]["label"] or "best", *flags(found)]), str(len(found))),
            *(figure([row[name] for row in found], 100) for name in scores),
            figure([min(row["image_auroc"] for row in found)], 100),
            *(commits(found), device(found[-1])),
        )
        for found in alike(ordered)
    ]
    if not lines:
        return []
    columns = (
        *("Data", "Resolution", "M", "Settings", "Draws", "I", "P", "PRO", "Least I"),
        *("Commit", "Device"),
    )
    title = "Draws of labelled defects (`weak.py`)"
    return sections(Sheet(title=title, above=DRAWS, columns=columns, lines=tuple(lines)))


DEFECTS = Question("defects", "What does it gain from a few labelled defects?", answer, parts)
