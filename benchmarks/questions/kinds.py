"""The rows of `blemish bench`, by the question that they answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from blemish.bench import results
from blemish.bench.results import Page
from blemish.bench.results.rows import departures
from questions.question import Measured, Row, section

# Methods that learn from labelled defects, if there are any.
LABELLED = frozenset({"ahl", "atacnet", "dra", "lda"})
# What may differ from a recipe that still counts as it.
FREE = frozenset({"backbone", "image_size", "layers", "cache_gib", "epochs", "min_steps"})


def kind_of(row: Row) -> str:
    """The name of the page that shows it: every row has one."""
    if row["anomaly_count"] is not None or row["method"] in LABELLED:
        return "defects"
    if row["shots"] is not None:
        return "few"
    if row["settings"].get("pretraining", "none") != "none":
        return "pretraining"
    return "settings" if departures(row, row["recipe"]).keys() - FREE else "methods"


def of_kind(kind: str) -> Callable[[Row], bool]:
    return lambda row: kind_of(row) == kind


def rows_of(measured: Measured, which: Callable[[Row], bool], title: str, above: str = "") -> str:
    """A table for each data set, of the rows of `blemish bench` that are such; "" without any."""
    whole = results.page([row for row in measured.bench if which(row)])
    plain = tuple(sheet for sheet in whole.sheets if ": " not in sheet.title)
    return section(title, dataclasses.replace(whole, sheets=plain), above)


def beside(measured: Measured, ending: str) -> Page:
    """The tables beside those of `rows_of`, of all rows, whose titles end so."""
    sheets = results.page(measured.bench).sheets
    return Page(sheets=tuple(it for it in sheets if it.title.endswith(f": {ending}")))
