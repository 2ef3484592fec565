"""How soon a change is noticed, and how often intervals hold."""

from __future__ import annotations

from blemish.bench.results import Sheet
from blemish.bench.results.sheets import NONE
from questions.question import NOTHING, Measured, Question, Row, percent, sections

DELAYS = """\
A change is named by how often a picture after it scores higher than one before it; scores are made
up, so that what is true is known. Compared with the calibration pictures ("usual") or with the
stream itself ("steady"). Delay: pictures after the change, the median of the streams."""
FALSE = "Streams of 5,000 pictures without a change in which an alarm is raised, at alpha = 5 %."
COVERED = """\
Rates that a review estimates, from reviewed pictures that were drawn with known probabilities
("weighted"), or from the random share alone. Held: how often the interval holds the true rate, to
be compared with its level."""


def rows_of(measured: Measured, what: str) -> list[Row]:
    return [row for row in measured.of(what) if row.get("part") == "monitoring"]


def answer(measured: Measured) -> str:
    delays = [row for row in rows_of(measured, "delay") if row["median"] is not None]
    covered = rows_of(measured, "coverage")
    if not delays or not covered:
        return NOTHING
    plain = [row for row in delays if row["against"] == "steady" and row["begins"] == 1000]
    told = [f"{row['median']:.0f} ({row['change']})" for row in plain]
    held = [row["covered"] for row in covered if (row["way"], row["level"]) == ("weighted", 0.95)]
    return (
        "After 1,000 steady pictures a change is noticed, by the median, after "
        f"{', '.join(told)} more, and intervals of 95 % hold the true rate in "
        f"{percent(min(held))} to {percent(max(held))} % of the trials."
    )


def parts(measured: Measured) -> list[str]:
    raised = [
        (row["against"], f"{row['n']:,}", f"{percent(row['share'])} %")
        for row in rows_of(measured, "false")
    ]
    delays = [
        (
            *(row["against"], f"{row['n']:,}", f"{row['begins']:,}", row["change"]),
            f"{100 * row['noticed']:.0f} %",
            NONE if row["median"] is None else f"{row['median']:.0f}",
        )
        for row in rows_of(measured, "delay")
    ]
    covered = [
        (
            *(f"{row['pictures']:,}", f"{row['budget']:,}", row["rate"], row["way"]),
            *(f"{100 * row['level']:g} %", f"{row['true']:.3f}", f"{row['mean']:.3f}"),
            *(f"{percent(row['covered'])} %", f"{row['width']:.3f}"),
        )
        for row in rows_of(measured, "coverage")
    ]
    common = ("Against", "Calibration pictures")
    made = (
        ("False alarms", FALSE, (*common, "Streams with one"), raised),
        (
            "How soon a change is noticed",
            DELAYS,
            (*common, "Pictures before", "Change", "Noticed", "Delay"),
            delays,
        ),
        (
            "How often intervals hold",
            COVERED,
            (*("Pictures", "Reviewed", "Rate", "By", "Level", "True", "Mean", "Held", "Width"),),
            covered,
        ),
    )
    return [
        *sections(
            *(
                Sheet(
                    title=f"{title} (`monitoring.py`)",
                    above=above,
                    columns=columns,
                    lines=tuple(lines),
                )
                for title, above, columns, lines in made
                if lines
            )
        )
    ]


MONITORING = Question(
    "monitoring", "How soon is a change noticed, and do the intervals hold?", answer, parts
)
