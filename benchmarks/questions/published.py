"""Rows beside what papers published."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from blemish.bench import results, suites
from blemish.bench.results import Sheet
from blemish.bench.results.rows import departures
from questions.question import NOTHING, Measured, Question, Row, section

# The suites whose tables stand on other pages; so do ablations and what learns from few pictures.
ELSEWHERE = frozenset({"atacnet", "dra"})
FEW = "few pictures"


def answer(measured: Measured) -> str:
    rows = measured.good
    told, empty = suites_of(measured)
    if not told:
        return NOTHING
    whole = sum(repeats(row) for row in rows)
    held = sum(map(len, told.values()))
    return (
        f"{held} of the {held + len(empty)} tables of the papers hold a figure of ours, and "
        f"{whole or 'none'} of the {len(rows)} rows repeat{'' if whole > 1 else 's'} a published "
        "setting whole, its backbone and its schedule included."
    )


def repeats(row: Row) -> bool:
    """Whether it is a paper's recipe, and nothing but the number of threads is another's."""
    return (
        row["recipe"].startswith("paper")
        and not departures(row, row["recipe"])
        and row["time_budget"] is None
        and row["shots"] is None
    )


def parts(measured: Measured) -> list[str]:
    names = [it for it in suites.names() if it not in ELSEWHERE and not it.endswith("-ablations")]
    found = [suite_section(measured, name, lambda title: FEW not in title) for name in names]
    return [*filter(None, found)]


def suite_section(
    measured: Measured, name: str, which: Callable[[str], bool] = lambda title: True
) -> str:
    """The tables of a suite that hold a figure of ours and have such titles; "" without any."""
    suite = suites.read(name)
    sheets = tuple(it for it in tables_of(measured.bench, suite)[0] if which(it.title))
    if not sheets:
        return ""
    whole = results.suite_page(comparable(measured.bench), suite)
    whole = dataclasses.replace(whole, sheets=sheets, failed=())
    return section(f"Suite `{name}`: {suite.title}", whole)


def comparable(rows: Sequence[Row]) -> list[Row]:
    """Those that may stand in these tables: a threshold adds nothing to them, and may cost a fifth
    of the training pictures."""
    good = [row for row in rows if row["status"] == results.OK]
    return [row for row in good if row.get("false_alarm_rate") is None]


def tables_of(rows: Sequence[Row], suite: suites.Suite) -> tuple[list[Sheet], list[str]]:
    """The tables of a suite that hold a figure of ours, and the names of the others."""
    good = comparable(rows)
    sheets: list[Sheet] = []
    empty: list[str] = []
    for part in suite.tables:
        # The main tables of papers are there without rows, too, but then nothing is said of
        # conditions.
        made = results.suite_page(good, suite.only([part.name])).sheets
        found = [sheet for sheet in made if sheet.footnotes or "Status" not in sheet.columns]
        sheets += found
        empty += [] if found else [part.name]
    return sheets, empty


def suites_of(measured: Measured) -> tuple[dict[str, list[Sheet]], list[tuple[str, str]]]:
    """Suite -> its tables that hold a figure of ours; and suite and name of the others."""
    told: dict[str, list[Sheet]] = {}
    empty: list[tuple[str, str]] = []
    for name in suites.names():
        sheets, without = tables_of(measured.bench, suites.read(name))
        told |= {name: sheets} if sheets else {}
        empty += [(name, part) for part in without]
    return told, empty


PAPERS = Question("papers", "How near do our figures come to the published ones?", answer, parts)
