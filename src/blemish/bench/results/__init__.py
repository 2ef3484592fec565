"""Rows of measurements, and the tables made of them."""

from __future__ import annotations

from blemish.bench.results.overview import efficiency_page, page
from blemish.bench.results.papers import suite_page
from blemish.bench.results.rows import FAILED, NEITHER, OK, SCHEMA, Row, append, read_rows
from blemish.bench.results.sheets import Page, Sheet, html, markdown

__all__ = [
    "FAILED",
    "NEITHER",
    "OK",
    "SCHEMA",
    "Page",
    "Row",
    "Sheet",
    "append",
    "efficiency_page",
    "html",
    "markdown",
    "page",
    "read_rows",
    "suite_page",
]
