"""How many predictions there are, how their scores and verdicts are distributed.

Counts by model, version, category and time come from `TALLIES`, whole hours at once, and the
predictions themselves are only counted in the hours that a filter cuts; by source, picture or
review they are counted one by one, which an index makes quick enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Unpack

import sqlalchemy as sql
from sqlalchemy import ColumnElement, Connection
from sqlalchemy.dialects import postgresql, sqlite

from blemish.errors import ConfigError
from blemish.store.filters import Filters, conditions
from blemish.store.part import Part
from blemish.store.records import CATEGORY, NAME, check_choice, storable
from blemish.store.schema import HOUR, PREDICTIONS, TALLIES, stamp, time_of

By = Literal["hour", "day", "source", "category", "version", "model"]

_GROUPS = ("model", "version", "category")  # of which tallies are kept
_NO_VERDICT = -1
_SPANS = {"hour": 1, "day": 24}  # hours


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


class Counting(Part):
    """The part of a store that counts predictions."""

    def counts(self, **filters: Unpack[Filters]) -> Counts:
        """How many predictions there are, by verdict."""
        asked = filters.get("reviewed")
        conditions(filters)
        with self._database.reading() as connection:
            seen = _by_label(connection, {**filters, "reviewed": asked or True})
            found = seen if asked else _by_label(connection, {**filters, "reviewed": None})
        if asked is False:  # quicker than to look for each whether it has no label
            found, seen = found - seen, Counter()
        return Counts(
            predictions=found.total(),
            alarms=found[1],
            normal=found[0],
            unjudged=found[_NO_VERDICT],
            reviewed=seen.total(),
        )

    def score_histogram(self, *, bins: int = 40, **filters: Unpack[Filters]) -> Histogram:
        """How scores are distributed, in bins of the same width from the lowest to the highest.

        Args: bins: how many, in [1, 1000]. filters: as `Filters`; name one model and version, as
        the scores of others mean something else, and `since` when for a page that is shown often:
        a million scores take half a second.
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
        check_choice("by", by, (*_SPANS, "source", *_GROUPS))
        conditions(filters)
        numbers: Counter[Any] = Counter()
        alarms: Counter[Any] = Counter()
        with self._database.reading() as connection:
            for key, label, number in _counted(connection, filters, by):
                if label != _NO_VERDICT:
                    numbers[key] += number
                    alarms[key] += number * label
        span = _SPANS.get(by)
        return [
            Rate(
                key=key if span is None else time_of(key * span * HOUR),
                predictions=numbers[key],
                alarms=alarms[key],
            )
            for key in sorted(numbers)
            if numbers[key]
        ]

    def _whole(self, value: ColumnElement[Any]) -> ColumnElement[Any]:
        """A number that is not negative, rounded down."""
        if self._database.is_sqlite:
            return sql.cast(value, sql.Integer)
        return sql.func.trunc(value)


def tally(connection: Connection, rows: Sequence[Mapping[str, Any]], sign: int) -> None:
    """Keep count of predictions that are added (sign 1) or deleted (-1) in a transaction.

    Args: rows: with the columns of predictions that tallies have, and their time.
    """
    found: Counter[tuple[str, str, str, int, int]] = Counter()
    for row in rows:
        label = _NO_VERDICT if row["label"] is None else row["label"]
        hour = row["time"] // HOUR
        found[row["model"], row["version"], row["category"], hour, label] += sign
    key = [*_GROUPS, "hour", "label"]
    # In the same order everywhere, so that no two transactions wait for each other.
    values = [
        {**dict(zip(key, group, strict=True)), "number": found[group]} for group in sorted(found)
    ]
    insert = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(TALLIES)
    adding = {"number": TALLIES.c.number + insert.excluded.number}
    connection.execute(insert.on_conflict_do_update(index_elements=key, set_=adding), values)


def _by_label(connection: Connection, filters: Filters) -> Counter[int]:
    found: Counter[int] = Counter()
    for _, label, number in _counted(connection, filters, None):
        found[label] += number
    return found


def _counted(
    connection: Connection, filters: Filters, by: str | None
) -> Iterator[tuple[Any, int, int]]:
    """(key, label, number) of the predictions that are meant, some keys more than once."""
    one_by_one = any(filters.get(name) is not None for name in ("source", "picture", "reviewed"))
    if one_by_one or by == "source":
        yield from _of_rows(connection, conditions(filters), by)
        return
    since, until = filters.get("since"), filters.get("until")
    start = None if since is None else stamp(since)
    end = None if until is None else stamp(until)
    first = None if start is None else -(-start // HOUR)  # the first whole hour
    last = None if end is None else end // HOUR  # the first that is not whole any more
    if first is not None and last is not None and first >= last:
        yield from _of_rows(connection, conditions(filters), by)
        return
    rest: Filters = {**filters, "since": None, "until": None}
    time = PREDICTIONS.c.time
    if start is not None and first is not None and start < first * HOUR:
        cut = [*conditions(rest), time >= start, time < first * HOUR]
        yield from _of_rows(connection, cut, by)
    if end is not None and last is not None and last * HOUR < end:
        cut = [*conditions(rest), time >= last * HOUR, time < end]
        yield from _of_rows(connection, cut, by)
    yield from _of_tallies(connection, rest, first, last, by)


def _of_rows(
    connection: Connection, where: Sequence[ColumnElement[bool]], by: str | None
) -> Iterator[tuple[Any, int, int]]:
    label = sql.func.coalesce(PREDICTIONS.c.label, _NO_VERDICT).label("verdict")
    if by is None:
        counted = sql.select(sql.literal(None), label, sql.func.count()).group_by(label)
    else:
        span = _SPANS.get(by)
        of = PREDICTIONS.c[by] if span is None else PREDICTIONS.c.time // (span * HOUR)
        counted = sql.select(of.label("of"), label, sql.func.count()).group_by("of", "verdict")
    yield from connection.execute(counted.where(*where))


def _of_tallies(
    connection: Connection, filters: Filters, first: int | None, last: int | None, by: str | None
) -> Iterator[tuple[Any, int, int]]:
    """Args: first, last: hours since 1970, from and up to, this one excluded; None = any."""
    table = TALLIES.c
    lengths = {"model": NAME, "version": NAME, "category": CATEGORY}
    given: dict[str, Any] = dict(filters)
    where = [
        table[name] == storable(given[name], most)
        for name, most in lengths.items()
        if given.get(name) is not None
    ]
    if given.get("label") is not None:
        where.append(table.label == given["label"])
    if first is not None:
        where.append(table.hour >= first)
    if last is not None:
        where.append(table.hour < last)
    of: ColumnElement[Any] = sql.literal(None)
    if by is not None:
        span = _SPANS.get(by)
        of = table[by] if span is None else table.hour // span
    number = sql.func.sum(table.number)
    counted = sql.select(of.label("of"), table.label, number).where(*where)
    for key, label, many in connection.execute(counted.group_by("of", table.label)):
        yield key, label, int(many)
