"""Rows of measurements, and the tables made of them."""

from __future__ import annotations

from blemish.bench.results.costs import efficiency_page
from blemish.bench.results.pages import Page, Sheet, html, markdown
from blemish.bench.results.rows import (
    FAILED,
    NEITHER,
    OK,
    SCHEMA,
    Row,
    append,
    as_ever,
    asked_for,
    identity,
    parse,
    read_rows,
    ready,
    words,
)
from blemish.bench.results.systems import suite_page, suite_table
from blemish.bench.results.tables import page, table

__all__ = [
    "FAILED",
    "NEITHER",
    "OK",
    "SCHEMA",
    "Page",
    "Row",
    "Sheet",
    "append",
    "as_ever",
    "asked_for",
    "efficiency_page",
    "html",
    "identity",
    "markdown",
    "page",
    "parse",
    "read_rows",
    "ready",
    "suite_page",
    "suite_table",
    "table",
    "words",
]
