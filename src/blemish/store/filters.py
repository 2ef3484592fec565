"""Which predictions are meant, as conditions in SQL."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict

import sqlalchemy as sql
from sqlalchemy import ColumnElement

from blemish.errors import ConfigError, unknown_name
from blemish.store.records import (
    CATEGORY,
    DISAGREED,
    NAME,
    SOURCE,
    VERDICTS,
    check_choice,
    check_digest,
    check_time,
    storable,
)
from blemish.store.schema import CONSENSUS, PREDICTIONS, stamp

LARGEST_ID = 2**63 - 1


class OfOneModel(TypedDict, total=False):
    """Which predictions of a model are meant; None, or what is left out, leaves none out.

    Attributes:
        version, source, category, picture: exactly these. name: holds this text, A as a.
        label: the verdict: 0 normal, 1 anomalous.
        reviewed: True = pictures that somebody has labelled, False = all others; or "good",
            "defect", "unsure" or "disagreed": what their labels come to.
        since, until: predicted at this time or later; before this time.
    """

    version: str | None
    source: str | None
    name: str | None
    category: str | None
    picture: str | None
    label: int | None
    reviewed: bool | str | None
    since: datetime | None
    until: datetime | None


class Filters(OfOneModel, total=False):
    """The same of any model. Attributes: model: exactly this one."""

    model: str | None


_NAMES = (*OfOneModel.__annotations__, "model")
_LENGTHS = {"model": NAME, "version": NAME, "source": SOURCE, "category": CATEGORY}


def conditions(filters: Filters) -> list[ColumnElement[bool]]:
    """Of predictions. Raises: ConfigError for a filter or a value that cannot be."""
    given: dict[str, Any] = dict(filters)
    for name in given:
        if name not in _NAMES:
            raise unknown_name("filter", name, _NAMES)
    found: list[ColumnElement[bool]] = []
    for name, value in given.items():
        if value is None:
            continue
        if name in _LENGTHS:
            found.append(PREDICTIONS.c[name] == storable(value, _LENGTHS[name]))
        elif name == "picture":
            found.append(PREDICTIONS.c.picture == check_digest(value))
        elif name == "name":
            text = storable(value, SOURCE)
            found.append(PREDICTIONS.c.name.icontains(text, autoescape=True))
        elif name == "label":
            if value not in (0, 1):
                raise ConfigError(f"label {value}: is neither 0 nor 1")
            found.append(PREDICTIONS.c.label == int(value))
        elif name == "reviewed":
            found.append(_reviewed(value))
        elif name == "since":
            found.append(PREDICTIONS.c.time >= stamp(check_time(value)))
        else:
            found.append(PREDICTIONS.c.time < stamp(check_time(value)))
    return found


def _reviewed(value: bool | str) -> ColumnElement[bool]:
    of = CONSENSUS.alias()  # as pages show the verdicts too, from the same table
    if value is False:
        return ~sql.exists().where(of.c.picture == PREDICTIONS.c.picture, of.c.verdict != "")
    verdicts = sql.select(of.c.picture)
    if value is True:
        return PREDICTIONS.c.picture.in_(verdicts.where(of.c.verdict != ""))
    check_choice("reviewed", value, (*VERDICTS, DISAGREED))
    return PREDICTIONS.c.picture.in_(verdicts.where(of.c.verdict == value))


def check_id(what: str, value: int) -> int:
    """Raises: ConfigError for a number that no database gives."""
    if not 0 <= value <= LARGEST_ID:
        raise ConfigError(f"{what} {str(value)[:30]}: is out of range")
    return value
