"""Predictions: written, listed, counted."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Unpack

import sqlalchemy as sql
from sqlalchemy import ColumnElement, Connection, RowMapping
from sqlalchemy.dialects import postgresql, sqlite

from blemish.errors import ConfigError
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
By = Literal["hour", "day", "source", "category", "version", "model"]

ORDERS = ("newest", "oldest", "highest", "lowest")
MOST = 10_000  # rows of one page
REGIONS_BYTES = 16 * 2**20  # of a prediction's regions as JSON
_TOO_MANY = "its regions take too much room, and were left out"
_AT_ONCE = 500  # values in one statement
_HOUR = 3_600_000_000  # microseconds
_PLAIN = (  # columns that are attributes of a row, as they are
    *("picture", "model", "version", "score", "height", "width", "threshold", "label", "p_value"),
    *("region_threshold", "source", "category", "category_assigned", "adapted", "votes", "key"),
)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many predictions there are.

    Attributes:
        predictions: all. alarms: those whose verdict is anomalous. normal: those called normal.
        unjudged: those without a verdict.
        reviewed: those of pictures that somebody has labelled.
    """

    predictions: int
    alarms: int
    normal: int
    unjudged: int
    reviewed: int


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How scores are distributed.

    Attributes:
        edges: of the bins, one more than there are; () where there are no scores.
        counts: how many scores lie in each; the last bin has its upper edge too.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How many of some predictions are alarms.

    Attributes:
        key: when the hour or day begins (UTC), or the source, category, version or model.
        predictions: of those with a verdict. alarms: called anomalous.
    """

    key: str | datetime
    predictions: int
    alarms: int

    @property
    def rate(self) -> float:
        """The share of alarms, in [0, 1]."""
        return self.alarms / self.predictions


class Predictions(Part):
    """The part of a store that holds predictions."""

    def add_predictions(self, rows: Sequence[Scored]) -> list[int]:
        """Write predictions in one transaction: all are durable when it returns, or none is there.

        One that was written before under the same `key` stays as it is.

        Returns: the id of each; ids rise with the order.
        """
        if not rows:
            return []
        values = [_values(row) for row in rows]
        with self._database.writing() as connection:
            insert = (sqlite if self._database.is_sqlite else postgresql).insert(PREDICTIONS)
            connection.execute(insert.on_conflict_do_nothing(index_elements=["key"]), values)
            ids = _ids(connection, [row.key for row in rows])
        return [ids[row.key] for row in rows]

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
            order: by time of writing, or by score.
            regions: whether to read these too.
            filters: as `Filters`.
        """
        if not 1 <= limit <= MOST:
            raise ConfigError(f"limit {limit}: is not in [1, {MOST}]")
        check_choice("order", order, ORDERS)
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
        self, *, regions: bool = False, **filters: Unpack[Filters]
    ) -> Iterator[Row]:
        """All predictions, the oldest first, page by page: those that are written meanwhile too."""
        last: int | None = None
        while page := self.predictions(
            before=last, limit=1000, order="oldest", regions=regions, **filters
        ):
            yield from page
            last = page[-1].id

    def counts(self, **filters: Unpack[Filters]) -> Counts:
        """How many predictions there are, by verdict."""
        where = conditions({**filters, "reviewed": None})
        asked = filters.get("reviewed")
        with self._database.reading() as connection:
            seen = _by_label(connection, [*where, *conditions({"reviewed": asked or True})])
            all_of = seen if asked else _by_label(connection, where)
        if asked is False:  # quicker than to look for each whether it has no label
            all_of, seen = {key: all_of[key] - seen[key] for key in all_of}, {}
        return Counts(
            predictions=sum(all_of.values()),
            alarms=all_of[1],
            normal=all_of[0],
            unjudged=all_of[None],
            reviewed=sum(seen.values()),
        )

    def score_histogram(self, *, bins: int = 40, **filters: Unpack[Filters]) -> Histogram:
        """How scores are distributed, in bins of the same width from the lowest to the highest.

        Args: bins: how many, in [1, 1000]. filters: as `Filters`; name one model and version, as
        the scores of others mean something else.
        """
        if not 1 <= bins <= 1000:
            raise ConfigError(f"bins {bins}: is not in [1, 1000]")
        where = conditions(filters)
        score = PREDICTIONS.c.score
        with self._database.reading() as connection:
            ends = sql.select(sql.func.min(score), sql.func.max(score)).where(*where)
            low, high = connection.execute(ends).one()
            if low is None:
                return Histogram(edges=(), counts=())
            half = (high / 2 - low / 2) / bins  # the whole range may be more than a float holds
            if not half:
                low, high, half = low - 0.5, high + 0.5, 0.5 / bins
            place = self._whole((score / 2 - low / 2) / half)
            binned = sql.select(place.label("bin"), sql.func.count()).where(*where).group_by("bin")
            counts = [0] * bins
            for place_of, number in connection.execute(binned):
                counts[min(max(int(place_of), 0), bins - 1)] += number
        edges = [*(low + half * at + half * at for at in range(bins)), high]
        return Histogram(edges=tuple(edges), counts=tuple(counts))

    def verdict_rates(self, by: By, **filters: Unpack[Filters]) -> list[Rate]:
        """How often the verdict is anomalous, by hour, day (of UTC), source, category, version or
        model; in order. Predictions without a verdict do not count."""
        spans = {"hour": _HOUR, "day": 24 * _HOUR}
        check_choice("by", by, (*spans, "source", "category", "version", "model"))
        key: ColumnElement[Any] = (
            PREDICTIONS.c.time // spans[by] if by in spans else (PREDICTIONS.c[by])
        )
        where = [*conditions(filters), PREDICTIONS.c.label.is_not(None)]
        grouped = (
            sql.select(key.label("of"), sql.func.count(), sql.func.sum(PREDICTIONS.c.label))
            .where(*where)
            .group_by("of")
            .order_by("of")
        )
        with self._database.reading() as connection:
            return [
                Rate(
                    key=time_of(int(of) * spans[by]) if by in spans else of,
                    predictions=number,
                    alarms=int(alarms),
                )
                for of, number, alarms in connection.execute(grouped)
            ]

    def _whole(self, value: ColumnElement[Any]) -> ColumnElement[Any]:
        """A number that is not negative, rounded down."""
        if self._database.is_sqlite:
            return sql.cast(value, sql.Integer)
        return sql.func.trunc(value)


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
        "category": storable(row.category, CATEGORY),
        "label": None if row.label is None else int(row.label),
        "notes": json.dumps([storable(note, NOTE) for note in notes[:NOTES]]),
        "regions": regions,
    }


def row_of(found: RowMapping) -> Row:
    """A row of `selected` as a record."""
    regions = found.get("regions")
    return Row(
        id=found["id"],
        time=time_of(found["time"]),
        notes=tuple(json.loads(found["notes"])),
        regions=None if regions is None else tuple(json.loads(zlib.decompress(regions))),
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


def _by_label(connection: Connection, where: Iterable[ColumnElement[bool]]) -> dict[Any, int]:
    label = PREDICTIONS.c.label
    grouped = sql.select(label, sql.func.count()).where(*where).group_by(label)
    found = {key: number for key, number in connection.execute(grouped)}
    return {key: found.get(key, 0) for key in (0, 1, None)}


def _ids(connection: Connection, keys: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    columns = sql.select(PREDICTIONS.c.key, PREDICTIONS.c.id)
    for start in range(0, len(keys), _AT_ONCE):
        some = columns.where(PREDICTIONS.c.key.in_(keys[start : start + _AT_ONCE]))
        found.update({key: id for key, id in connection.execute(some)})
    return found
