"""Tables as titles, cells and notes, and the two forms in which they are read: Markdown and HTML."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

NONE = "–"
_BOLD = re.compile(r"\*\*(.+?)\*\*")
_NUMBER = re.compile(r"(\*\*)?(\d|–)")


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table, in no form yet.

    Attributes:
        title: without markup.
        columns: what heads them; the first are the names of the lines.
        lines: cells, as many as there are columns; `**` around a part of one makes it bold, all else is text.
        above: a sentence before the table.
        notes: paragraphs after it.
        footnotes: what the numbers in brackets mean, each with its number.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    above: str = ""
    notes: tuple[str, ...] = ()
    footnotes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """Tables, what their signs mean, and the runs that failed, a line each. `empty`: what to say without all that."""

    sheets: tuple[Sheet, ...] = ()
    legend: str = ""
    failed: tuple[str, ...] = ()
    empty: str = "No rows."


@dataclass(frozen=True, slots=True)
class Quantity:
    """A figure as it is shown, its spread over `seeds`, and how many these are: 0 = as published."""

    mean: float
    spread: float | None = None
    seeds: int = 0

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.spread is None else f"{self.mean:.1f} ± {self.spread:.1f}"


def quantity(values: Sequence[float], *, standard_error: bool = False) -> Quantity | None:
    """Mean of one figure a seed, and their sample standard deviation or the mean's standard error; None of none."""
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    if spread is not None and standard_error:
        spread /= math.sqrt(len(values))
    return Quantity(statistics.fmean(values), spread, len(values))


def leader(quantities: Sequence[Quantity | None]) -> int | None:
    """The place of the best, where it leads the second by more than the larger spread of the two; otherwise None.

    With one seed nothing is measured of the spread, and between two figures without one nothing is known of it.
    """
    ranked = sorted(((it.mean, place) for place, it in enumerate(quantities) if it), reverse=True)
    if len(ranked) < 2:
        return None
    pair = [it for _, place in ranked[:2] if (it := quantities[place])]
    spreads = [it.spread for it in pair if it.spread is not None]
    if (
        any(it.seeds == 1 for it in pair)
        or not spreads
        or pair[0].mean - pair[1].mean <= max(spreads)
    ):
        return None
    return ranked[0][1]


def figure(values: Sequence[float | None], scale: float = 1, digits: int = 1) -> str:
    """Mean ± sample standard deviation (with more than one value); – where any value is missing."""
    known = [scale * value for value in values if value is not None]
    if not known or len(known) < len(values):
        return NONE
    mean = f"{statistics.fmean(known):.{digits}f}"
    return f"{mean} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else mean


def markdown(page: Page) -> str:
    """The page as Markdown."""
    parts = ["\n\n".join(_markdown(sheet)) for sheet in page.sheets]
    if parts and page.legend:
        parts.append(page.legend)
    if page.failed:
        parts.append("\n".join(["Failed:", "", *(f"- {run}" for run in page.failed)]))
    return "\n\n".join(parts or [page.empty]) + "\n"


def _markdown(sheet: Sheet) -> Iterator[str]:
    yield f"## {sheet.title}"
    if sheet.above:
        yield sheet.above
    yield "\n".join(map(_line, [sheet.columns, ["---"] * len(sheet.columns), *sheet.lines]))
    yield from sheet.notes
    if sheet.footnotes:
        yield "\n".join(f"- {note}" for note in sheet.footnotes)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in cells)} |"


def html(page: Page, *, title: str) -> str:
    """The page as one HTML document that loads nothing: what rows hold is text in it, whatever they hold."""
    from markupsafe import Markup, escape

    from blemish.report.templates import environment

    templates = environment()
    templates.filters["bold"] = lambda cell: Markup(_BOLD.sub(r"<b>\1</b>", str(escape(cell))))
    templates.tests["figure"] = lambda cell: _NUMBER.match(cell) is not None
    return templates.get_template("tables.html.jinja").render(page=page, title=title)
