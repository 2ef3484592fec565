"""What a choice without test labels costs."""

from __future__ import annotations

from blemish.bench.results import Sheet
from questions.question import NOTHING, Measured, Question, Row, listed, sections

ABOVE = """\
Candidates compared as `blemish compare` does: good training pictures that were left out, and
defects generated in them, choose; the test's labels take no part. Cost: points of image AUROC on
the test pictures by which the best candidate, found by looking at their labels, lies above the
chosen one; beside it the cost of the candidate in the middle. Smallest: about the sides of the
smallest generated defects, as a share of the picture's. Rank correlation: of the candidates by
generated and by real defects (Spearman)."""


def newest(measured: Measured) -> list[Row]:
    rows = sorted(measured.having("looked"), key=lambda row: row["date"])
    by_key = {row["key"]: row for row in rows}
    return sorted(by_key.values(), key=lambda row: (row["data"], len(row["methods"]) == 1))


def answer(measured: Measured) -> str:
    told = [
        f"{row['cost']:.1f} on {row['data']} ({len(row['candidates'])} settings of "
        f"{listed(f'`{name}`' for name in row['methods'])})"
        for row in newest(measured)
    ]
    if not told:
        return NOTHING
    return (
        "Choosing by defects generated in good pictures instead of by test labels costs, in points "
        f"of image AUROC, {', '.join(told)}."
    )


def parts(measured: Measured) -> list[str]:
    columns = (
        *("Data", "Smallest", "Chosen by generated defects", "test AUROC"),
        *("Best by the test's labels", "test AUROC", "Cost", "Cost in the middle"),
        *("Rank correlation", "Candidates", "Test pictures", "Commit"),
    )
    lines = tuple(map(line, newest(measured)))
    title = "Chosen and best (`selection.py`)"
    return sections(Sheet(title=title, above=ABOVE, columns=columns, lines=lines)) if lines else []


def line(row: Row) -> tuple[str, ...]:
    counts = row["counts"]
    return (
        row["data"],
        f"{100 * row.get('smallest_defect', 0.025):g} %",
        row["chosen"]["label"],
        f"{100 * row['chosen']['test_auroc']:.1f}",
        row["looked"]["label"],
        f"{100 * row['looked']['test_auroc']:.1f}",
        f"{row['cost']:.1f}",
        f"{row['median_cost']:.1f}",
        f"{row['rank_correlation']:.2f}",
        str(len(row["candidates"])),
        f"{counts['checking_good']} good, {counts['checking_defects']} defective",
        f"{row['commit'][:8]}{' (changed)' if row['dirty'] else ''}",
    )


SELECTION = Question("selection", "What does choosing without test labels cost?", answer, parts)
