"""Predictions: written, listed, counted."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Unpack

import sqlalchemy as sql
from sqlalchemy import ColumnElement, Connection, RowMapping

from blemish.errors import ConfigError, StoreError
from blemish.store.counting import tally
from blemish.store.descriptors import write as write_descriptors
from blemish.store.filters import Filters, check_id, conditions
from blemish.store.part import Part
from blemish.store.records import (
    CATEGORY,
    NOTE,
    NOTES,
    SOURCE,
    Row,
    Scored,
    check_choice,
    storable,
)
from blemish.store.schema import CONSENSUS, PREDICTIONS, stamp, time_of

Order = Literal["newest", "oldest", "highest", "lowest"]

ORDERS = ("newest", "oldest", "highest", "lowest")
MOST = 10_000  # rows of one page
REGIONS_BYTES = 16 * 2**20  # of a prediction's regions as JSON
_TOO_MANY = "its regions take too much room, and were left out"
_AT_ONCE = 500  # values in one statement
_ADDING = {"of": 0x626C656D616464}  # "blemadd": the number of PostgreSQL's advisory lock
_PLAIN = (  # columns that are attributes of a row, as they are
    *("picture", "model", "version", "score", "height", "width", "threshold", "label", "p_value"),
    *("region_threshold", "source", "name", "category", "category_assigned", "adapted"),
    *("votes", "key"),
)


class Predictions(Part):
    """The part of a store that holds predictions."""

    def add_predictions(self, rows: Sequence[Scored]) -> list[int]:
        """Write predictions in one transaction: all are durable when it returns, or none is there.

        One that was written before under the same `key` stays as it is.

        Returns: the id of each; ids rise with the order.
        """
        if not rows:
            return []
        values = {row.key: _values(row) for row in rows}
        with self._database.writing() as connection:
            if not self._database.is_sqlite:  # see `last_settled`
                connection.execute(sql.text("SELECT pg_advisory_xact_lock_shared(:of)"), _ADDING)
            there = _ids(connection, list(values))
            new = [value for key, value in values.items() if key not in there]
            if new:
                connection.execute(sql.insert(PREDICTIONS), new)
                tally(connection, new, 1)
            added = _ids(connection, [value["key"] for value in new])
            write_descriptors(connection, {row.key: row for row in rows}, added)
        ids = there | added
        return [ids[row.key] for row in rows]

    def last_settled(self) -> int:
        """The id of the last prediction before which none can come any more; 0 without any.

        PostgreSQL gives ids before it writes, so that of two services one may write a lower id
        after a higher one can be read. Those who add hold a lock meanwhile, which this waits for.
        """
        last = sql.select(sql.func.max(PREDICTIONS.c.id))
        with self._database.reading() as connection:
            if not self._database.is_sqlite:
                connection.execute(sql.text("SELECT pg_advisory_xact_lock(:of)"), _ADDING)
            return int(connection.scalar(last) or 0)

    def predictions(
        self,
        *,
        before: int | None = None,
        limit: int = 50,
        order: Order = "newest",
        regions: bool = True,
        **filters: Unpack[Filters],
    ) -> list[Row]:
        """A page of predictions.

        Args:
            before: the id of the last row of the page before this one, in the same order; None =
                the first page.
            limit: how many rows at most, in [1, 10,000].
            order: by time of writing, or by score, for which a model must be named.
            regions: whether to read these too.
            filters: as `Filters`.
        """
        if not 1 <= limit <= MOST:
            raise ConfigError(f"limit {limit}: is not in [1, {MOST}]")
        check_choice("order", order, ORDERS)
        if order in ("highest", "lowest") and filters.get("model") is None:
            raise ConfigError(f"order {order}: scores of several models mean nothing side by side")
        where = conditions(filters)
        with self._database.reading() as connection:
            if before is not None:
                where.append(_after(connection, check_id("before", before), order))
            page = selected(regions).where(*where).order_by(*_ordered(order)).limit(limit)
            return [row_of(found) for found in connection.execute(page).mappings()]

    def prediction(self, id: int) -> Row | None:
        """One prediction; None where there is none of that id."""
        if not 0 <= id < 2**63:
            return None
        with self._database.reading() as connection:
            one = selected(True).where(PREDICTIONS.c.id == id)
            found = connection.execute(one).mappings().first()
        return None if found is None else row_of(found)

    def each_prediction(
        self, *, after: int | None = None, regions: bool = False, **filters: Unpack[Filters]
    ) -> Iterator[Row]:
        """All predictions, the oldest first, page by page: those that are written meanwhile too.

        Args: after: an id; those up to this one are left out.
        """
        last = after
        while page := self.predictions(
            before=last, limit=1000, order="oldest", regions=regions, **filters
        ):
            yield from page
            last = page[-1].id


def _values(row: Scored) -> dict[str, Any]:
    """A prediction as columns."""
    values = {name: getattr(row, name) for name in _PLAIN}
    notes = list(row.notes)
    regions = None
    if row.regions is not None:
        text = json.dumps([dict(one) for one in row.regions], allow_nan=False).encode()
        if len(text) <= REGIONS_BYTES:
            regions = zlib.compress(text, 1)
        else:
            notes = [_TOO_MANY, *notes]
    return values | {
        "time": stamp(row.time),
        "source": storable(row.source, SOURCE),
        "name": storable(row.name, SOURCE),
        "category": storable(row.category, CATEGORY),
        "label": None if row.label is None else int(row.label),
        "notes": json.dumps([storable(note, NOTE) for note in notes[:NOTES]]),
        "regions": regions,
    }


def row_of(found: RowMapping) -> Row:
    """A row of `selected` as a record. Raises: StoreError for one that is damaged."""
    coded = found.get("regions")
    try:
        regions = None if coded is None else tuple(json.loads(zlib.decompress(coded)))
        notes = tuple(json.loads(found["notes"]))
    except (zlib.error, ValueError) as error:
        raise StoreError(f"prediction {found['id']}: is damaged in the database") from error
    return Row(
        id=found["id"],
        time=time_of(found["time"]),
        notes=notes,
        regions=regions,
        reviewed=found["reviewed"] or "",
        defect=found["defect"] or "",
        **{name: found[name] for name in _PLAIN},
    )


def selected(regions: bool) -> sql.Select[Any]:
    """Predictions with what their labels come to."""
    columns = [one for one in PREDICTIONS.c if regions or one.name != "regions"]
    verdicts = (CONSENSUS.c.verdict.label("reviewed"), CONSENSUS.c.defect)
    joined = PREDICTIONS.outerjoin(CONSENSUS, CONSENSUS.c.picture == PREDICTIONS.c.picture)
    return sql.select(*columns, *verdicts).select_from(joined)


def _ordered(order: str) -> Sequence[ColumnElement[Any]]:
    score, id = PREDICTIONS.c.score, PREDICTIONS.c.id
    orders: dict[str, Sequence[ColumnElement[Any]]] = {
        "newest": [id.desc()],
        "oldest": [id.asc()],
        "highest": [score.desc(), id.desc()],
        "lowest": [score.asc(), id.desc()],
    }
    return orders[order]


def _after(connection: Connection, last: int, order: str) -> ColumnElement[bool]:
    """What comes after a row in an order."""
    score, id = PREDICTIONS.c.score, PREDICTIONS.c.id
    if order == "newest":
        return id < last
    if order == "oldest":
        return id > last
    there = connection.scalar(sql.select(score).where(id == last))
    if there is None:
        raise ConfigError(f"before {last}: there is no such prediction any more; begin again")
    further = score < there if order == "highest" else score > there
    return sql.or_(further, sql.and_(score == there, id < last))


def _ids(connection: Connection, keys: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    columns = sql.select(PREDICTIONS.c.key, PREDICTIONS.c.id)
    for start in range(0, len(keys), _AT_ONCE):
        some = columns.where(PREDICTIONS.c.key.in_(keys[start : start + _AT_ONCE]))
        found.update({key: id for key, id in connection.execute(some)})
    return found
