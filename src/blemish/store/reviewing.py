"""The review queue, what came of it, where reviewers or versions disagree."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Unpack

import sqlalchemy as sql
from sqlalchemy import ColumnElement, Connection, RowMapping
from sqlalchemy.dialects import postgresql, sqlite

from blemish.errors import ConfigError
from blemish.store.filters import Filters, OfOneModel, conditions
from blemish.store.judging import unlabelled
from blemish.store.part import Part
from blemish.store.predictions import MOST, row_of, selected
from blemish.store.records import (
    DISAGREED,
    NAME,
    Draw,
    Held,
    OtherScore,
    Reviewed,
    Row,
    check_digest,
    document,
    storable,
)
from blemish.store.schema import CONSENSUS, DRAWS, PREDICTIONS, SCORES, stamp, time_of

_AT_ONCE = 500  # values in one statement
_DRAWN = ("picture", "model", "version", "stratum", "probability", "priority")
_SAID = ("picture", "model", "version", "score", "threshold", "label")


class Reviewing(Part):
    """The part of a store that holds the queue, and reads what was reviewed."""

    def add_draws(self, draws: Sequence[Draw], held: Held | None = None) -> None:
        """Write the places of pictures in the review queue, in one transaction. A picture has one
        for each model; a later one replaces it.

        Args: held: a lease without which none is written. Raises: LeaseLost.
        """
        if not draws:
            return
        values = [
            {
                **{name: getattr(one, name) for name in _DRAWN},
                "record": document("record", one.record),
                "time": stamp(one.time),
                "size": one.record.get("size"),
                "arrived": one.record.get("arrived"),
            }
            for one in {(one.picture, one.model): one for one in draws}.values()
        ]
        insert = (sqlite if self._database.is_sqlite else postgresql).insert(DRAWS)
        key = ["picture", "model"]
        new = {name: insert.excluded[name] for name in values[0] if name not in key}
        with self._database.writing() as connection:
            self._under(connection, held)
            replacing = insert.on_conflict_do_update(index_elements=key, set_=new)
            connection.execute(replacing, values)

    def draws(self, pictures: Sequence[str], model: str) -> dict[str, Draw]:
        """The places of pictures in the queue of a model, by picture, of those that have one."""
        with self._database.reading() as connection:
            return _draws_of(connection, model, [check_digest(one) for one in pictures])

    def draw(self, picture: str, model: str) -> Draw | None:
        """The place of a picture in the queue of a model; None where it has none."""
        where = (DRAWS.c.picture == check_digest(picture), DRAWS.c.model == storable(model, NAME))
        with self._database.reading() as connection:
            found = connection.execute(sql.select(DRAWS).where(*where)).mappings().first()
        return None if found is None else _draw_of(found)

    def queue(self, model: str, *, after: float | None = None, limit: int = 50) -> list[Draw]:
        """The pictures without a label, the next to review first.

        Args: after: the priority of the last one of the page before; None = the first page. limit:
        in [1, 10,000].
        """
        if not 1 <= limit <= MOST:
            raise ConfigError(f"limit {limit}: is not in [1, {MOST}]")
        where = [DRAWS.c.model == storable(model, NAME), unlabelled()]
        if after is not None:
            where.append(DRAWS.c.priority > after)
        page = sql.select(DRAWS).where(*where).order_by(DRAWS.c.priority).limit(limit)
        with self._database.reading() as connection:
            return [_draw_of(found) for found in connection.execute(page).mappings()]

    def reviewed(self, model: str, **filters: Unpack[OfOneModel]) -> list[Reviewed]:
        """Every reviewed picture that a model predicted, as it did so last, the oldest first.

        Args: filters: as `OfOneModel`; with `version`, the last predictions of that one.
        Returns: rows without regions. What their labels come to, see `store.labels`.
        """
        said = filters.get("reviewed")
        asked: Filters = {**filters, "model": model, "reviewed": True if said is None else said}
        where = conditions(asked)
        with self._database.reading() as connection:
            found = last_of(connection, where)
            draws = _draws_of(connection, model, [one["picture"] for one in found])
        return [
            Reviewed(
                row=row_of(one),
                verdict=one["reviewed"],
                defect=one["defect"],
                masked=one["masked"],
                reviewers=one["reviewers"],
                draw=draws.get(one["picture"]),
            )
            for one in found
            if one["reviewed"]
        ]

    def disagreements(self, model: str, **filters: Unpack[OfOneModel]) -> list[Row]:
        """The pictures that are good to one reviewer and a defect to another, as the model
        predicted them last, the newest first. `current` says who says what."""
        asked: Filters = {**filters, "model": model, "reviewed": DISAGREED}
        where = conditions(asked)
        with self._database.reading() as connection:
            found = last_of(connection, where)
        return [row_of(one) for one in reversed(found)]

    def add_scores(self, scores: Iterable[OtherScore]) -> None:
        """Write what versions say of pictures that they did not predict for anybody, in one
        transaction. What the same version said of a picture before is replaced."""
        values = [
            {**{name: getattr(one, name) for name in _SAID}, "time": stamp(one.time)}
            for one in {(one.picture, one.model, one.version): one for one in scores}.values()
        ]
        if not values:
            return
        insert = (sqlite if self._database.is_sqlite else postgresql).insert(SCORES)
        new = {name: insert.excluded[name] for name in ("score", "threshold", "label", "time")}
        replacing = insert.on_conflict_do_update(
            index_elements=["picture", "model", "version"], set_=new
        )
        with self._database.writing() as connection:
            connection.execute(replacing, values)

    def other_scores(self, picture: str, model: str | None = None) -> list[OtherScore]:
        """What each version said of a picture last, live or not. Args: model: None = of any."""
        return self.other_scores_of([picture], model).get(picture, [])

    def other_scores_of(
        self, pictures: Sequence[str], model: str | None = None
    ) -> dict[str, list[OtherScore]]:
        """The same of several pictures, by picture, the latest last."""
        found: dict[tuple[str, str, str], OtherScore] = {}
        with self._database.reading() as connection:
            for start in range(0, len(pictures), _AT_ONCE):
                some = [check_digest(one) for one in pictures[start : start + _AT_ONCE]]
                for table in (SCORES, PREDICTIONS):
                    where: list[ColumnElement[bool]] = [table.c.picture.in_(some)]
                    if model is not None:
                        where.append(table.c.model == storable(model, NAME))
                    columns = [table.c[name] for name in (*_SAID, "time")]
                    order = (table.c.time, table.c.id) if "id" in table.c else (table.c.time,)
                    rows = connection.execute(sql.select(*columns).where(*where).order_by(*order))
                    for row in rows.mappings():
                        given = {name: row[name] for name in _SAID}
                        live = table is PREDICTIONS
                        one = OtherScore(**given, time=time_of(row["time"]), live=live)
                        found[one.picture, one.model, one.version] = one
        by_picture: dict[str, list[OtherScore]] = {}
        for one in sorted(found.values(), key=lambda one: one.time):
            by_picture.setdefault(one.picture, []).append(one)
        return by_picture


def last_of(connection: Connection, where: Sequence[ColumnElement[bool]]) -> list[RowMapping]:
    """Of each reviewed picture the last of some predictions, the oldest first."""
    of = CONSENSUS.alias()
    mine = PREDICTIONS.c.picture == of.c.picture
    last = sql.select(sql.func.max(PREDICTIONS.c.id)).where(mine, *where).correlate(of)
    each = sql.select(last.scalar_subquery()).where(of.c.verdict != "")
    ids = sorted(id for id in connection.scalars(each) if id is not None)
    more = (CONSENSUS.c.masked, CONSENSUS.c.reviewers)
    rows = selected(False).add_columns(*more).order_by(PREDICTIONS.c.id)
    found: list[RowMapping] = []
    for start in range(0, len(ids), _AT_ONCE):
        some = PREDICTIONS.c.id.in_(ids[start : start + _AT_ONCE])
        found += connection.execute(rows.where(some)).mappings().all()
    return found


def _draws_of(connection: Connection, model: str, pictures: Sequence[str]) -> dict[str, Draw]:
    """The places in the queue of a model, by picture."""
    found: dict[str, Draw] = {}
    for start in range(0, len(pictures), _AT_ONCE):
        some = DRAWS.c.picture.in_(pictures[start : start + _AT_ONCE])
        of_model = DRAWS.c.model == storable(model, NAME)
        rows = connection.execute(sql.select(DRAWS).where(some, of_model)).mappings()
        found.update({row["picture"]: _draw_of(row) for row in rows})
    return found


def _draw_of(found: RowMapping) -> Draw:
    given = {name: found[name] for name in _DRAWN}
    return Draw(**given, record=json.loads(found["record"]), time=time_of(found["time"]))
