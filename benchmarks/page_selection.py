"""The table of `selection.py` on docs/results.md: what a choice without test labels costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blemish.bench.results import Sheet

Row = Mapping[str, Any]
ABOVE = """\
Candidates compared as `blemish compare` does: good training pictures that were left out, and
defects generated in them, choose; the test's labels take no part. Cost: points of image AUROC on
the test pictures by which the best candidate, found by looking at their labels, lies above the
chosen one; beside it the cost of the candidate in the middle. Smallest: about the sides of the
smallest generated defects, as a share of the picture's. Rank correlation: of the candidates by
generated and by real defects (Spearman)."""


def selections(rows: Sequence[Row]) -> Sheet:
    """A line a row, the newest of each key."""
    newest = {row["key"]: row for row in sorted(rows, key=lambda row: row["date"])}
    ordered = sorted(newest.values(), key=lambda row: (row["data"], len(row["methods"]) == 1))
    return Sheet(
        title="What a choice without test labels costs (`selection.py`)",
        above=ABOVE,
        columns=(
            *(
                "Data",
                "Smallest",
                "Chosen by generated defects",
                "test AUROC",
                "Best by the test's labels",
            ),
            *("test AUROC", "Cost", "Cost in the middle", "Rank correlation", "Candidates"),
            *("Test pictures", "Commit"),
        ),
        lines=tuple(_line(row) for row in ordered),
    )


def _line(row: Row) -> tuple[str, ...]:
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
