"""The report of a comparison: one HTML file that needs nothing else, and runs nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from blemish.files import write_whole
from blemish.report.templates import environment


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture to be shown: a JPEG file, and what stands below it."""

    picture: bytes
    caption: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the report says.

    Attributes:
        title, verdict: what to take; "" where nothing can be said.
        reasons, notes: sentences. sure: how sure it is.
        checked: what the chosen one does on pictures that have not chosen, sentences.
        facts: what the pictures were for, by name.
        head, lines: the table; the first cell of a line marks what is chosen.
        failed: what could not be measured, and why.
        chart: an SVG file; None where there is nothing to draw.
        examples: generated defects.
        broken: pictures that could not be read, and why.
        command: to run next.
    """

    title: str
    verdict: str
    reasons: Sequence[str]
    sure: str
    checked: Sequence[str]
    notes: Sequence[str]
    facts: Mapping[str, str]
    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    failed: Sequence[tuple[str, str]]
    chart: bytes | None
    examples: Sequence[Example]
    broken: Sequence[tuple[str, str]]
    command: str


def write_comparison(path: str | Path, page: Page) -> Path:
    """Writes the report, whole or not at all. Raises: OutputError."""
    templates = environment()
    templates.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    text = templates.get_template("comparison.html.jinja").render(
        page=page, written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    )
    return write_whole(path, text.encode("utf-8", "backslashreplace"))
