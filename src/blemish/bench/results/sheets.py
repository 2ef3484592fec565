"""The one form of all tables: titles, cells and notes, to be read as Markdown or HTML."""

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
        lines: cells, as many as there are columns; `**` around a part of one makes it bold, all
            else is text.
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
    """Tables, what their signs mean, and the runs that failed, a line each. `empty`: what to say
    without all that."""

    sheets: tuple[Sheet, ...] = ()
    legend: str = ""
    failed: tuple[str, ...] = ()
    empty: str = "No rows."


@dataclass(frozen=True, slots=True)
class Quantity:
    """A figure as it is shown, its spread over `seeds`, and how many these are: 0 = as
    published."""

    mean: float
    spread: float | None = None
    seeds: int = 0


def mean(values: Sequence[float | None]) -> float | None:
    """None where a value is missing, or all."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def quantity(
    values: Sequence[float | None], scale: float = 1, *, standard_error: bool = False
) -> Quantity | None:
    """Mean of one figure a seed, and their sample standard deviation or the mean's standard error;
    None where one is missing, or all."""
    known = [scale * value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    spread = statistics.stdev(known) if len(known) > 1 else None
    if spread is not None and standard_error:
        spread /= math.sqrt(len(known))
    return Quantity(statistics.fmean(known), spread, len(known))


def text(it: Quantity | None, digits: int = 1) -> str:
    """Mean ± spread, where that is known; – for None."""
    if it is None:
        return NONE
    mean = f"{it.mean:.{digits}f}"
    return mean if it.spread is None else f"{mean} ± {it.spread:.{digits}f}"


def figure(values: Sequence[float | None], scale: float = 1, digits: int = 1) -> str:
    """Mean ± sample standard deviation (with more than one value); – where any value is missing."""
    return text(quantity(values, scale), digits)


def texts(quantities: Sequence[Quantity | None]) -> list[str]:
    """The best in bold, where it leads the second by more than the larger spread of the two.

    With one seed nothing is measured of the spread, and between two figures without one nothing is
    known of it.
    """
    shown = list(map(text, quantities))
    ranked = sorted(((it.mean, place) for place, it in enumerate(quantities) if it), reverse=True)
    first, second = ([quantities[place] for _, place in ranked[:2]] + [None, None])[:2]
    if first and second and 1 not in (first.seeds, second.seeds):
        spreads = [it.spread for it in (first, second) if it.spread is not None]
        if spreads and first.mean - second.mean > max(spreads):
            best = ranked[0][1]
            shown[best] = f"**{shown[best]}**"
    return shown


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
    """The page as one HTML document that loads nothing: what rows hold is text in it, whatever they
    hold."""
    from markupsafe import Markup, escape

    from blemish.report.templates import environment

    templates = environment()
    templates.filters["bold"] = lambda cell: Markup(_BOLD.sub(r"<b>\1</b>", str(escape(cell))))
    templates.tests["figure"] = lambda cell: _NUMBER.match(cell) is not None
    return templates.get_template("tables.html.jinja").render(page=page, title=title)
