"""A question, the rows that can answer it, and the words of a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blemish.bench import results
from blemish.bench.results import Page, Row, Sheet
from blemish.bench.results.overview import commits, device
from blemish.bench.results.rows import newest
from blemish.bench.results.sheets import NONE

__all__ = ["NOTHING", "Measured", "Question", "Row", "latest", "section", "sections", "table"]

NOTHING = "Nothing is measured yet."
MADE = """\
<!-- Made by `python benchmarks/page.py` from the rows in benchmarks/results. Change those or the
script, not this. -->"""


@dataclass(frozen=True)
class Measured:
    """The rows of all files, told apart by their form. Attributes: files: name -> rows."""

    files: Mapping[str, Sequence[Row]]

    @property
    def rows(self) -> list[Row]:
        """All, in the order of the files' names."""
        return [row for _, rows in sorted(self.files.items()) for row in rows]

    @property
    def bench(self) -> list[Row]:
        """Those of `blemish bench`."""
        return [row for row in self.rows if "schema" in row]

    @property
    def good(self) -> list[Row]:
        """Of the same runs of `blemish bench` the newest that did not fail."""
        return newest(self.bench)[0]

    @property
    def draws(self) -> list[Row]:
        """Draws of labelled defects (`weak.py`), the newest of each."""
        return latest((row for row in self.rows if "draw" in row), "key")

    def of(self, what: str) -> list[Row]:
        """The rows that say that they are of this."""
        return [row for row in self.rows if row.get("what") == what and "schema" not in row]

    def having(self, *keys: str) -> list[Row]:
        """The rows with these keys, without those of `blemish bench`."""
        return [row for row in self.rows if set(keys) <= row.keys() and "schema" not in row]


@dataclass(frozen=True)
class Question:
    """A page. Attributes:
    name: of its file, without the ending.
    title: the question.
    answer: the first sentence; `NOTHING` where there are no rows.
    parts: what stands below it, each part with its own heading of the second level.
    """

    name: str
    title: str
    answer: Callable[[Measured], str]
    parts: Callable[[Measured], list[str]]

    def page(self, measured: Measured) -> str:
        """The whole page."""
        back = "How to read the figures: [results](index.md#how-to-read-them)."
        parts = [MADE, f"# {self.title}", self.answer(measured), back]
        return "\n\n".join([*parts, *self.parts(measured)]) + "\n"


def section(title: str, content: Page, above: str = "") -> str:
    """Tables under a heading of their own; "" where there are none."""
    if not content.sheets and not content.failed:
        return ""
    text = re.sub("^## ", "### ", results.markdown(content).strip(), flags=re.MULTILINE)
    return "\n\n".join(filter(None, [f"## {title}", above, text]))


def sections(*sheets: Sheet) -> list[str]:
    """Each table as a section."""
    return [results.markdown(Page(sheets=(sheet,))).strip() for sheet in sheets]


def latest(rows: Iterable[Row], *keys: str) -> list[Row]:
    """Of rows that have the same of all these keys, on the same kind of device, the last one of
    the newest, in the order of the others."""
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row.get("date", "")):
        what = repr([row.get(key) for key in keys] + [row.get("device")])
        found.pop(what, None)
        found[what] = row
    return list(found.values())


def table(
    title: str, columns: Mapping[str, str], rows: Sequence[Row], *, above: str = ""
) -> list[str]:
    """A section with a line a row, sorted; none without rows. `columns`: heading -> key."""
    if not rows:
        return []
    lines = [
        (*(plain(row.get(key)) for key in columns.values()), commits([row]), device(row))
        for row in rows
    ]
    heads = (*columns, "Commit", "Device")
    ordered = tuple(sorted(lines, key=in_order))
    return sections(Sheet(title=title, above=above, columns=heads, lines=ordered))


def in_order(cells: Sequence[str]) -> list[tuple[float, str]]:
    """By number where there is one."""
    numbers = (cell.replace(",", "") for cell in cells)
    return [(float(cell), "") if re.fullmatch(r"[\d.]+", cell) else (0.0, cell) for cell in numbers]


def plain(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "with" if value else "without"
    if isinstance(value, float):
        return f"{value:,.1f}" if value >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def percent(value: float | None) -> str:
    """A share as a figure in %, without the sign."""
    return NONE if value is None else f"{100 * value:.1f}"


def listed(words: Iterable[str]) -> str:
    """ "a, b and c"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
