"""What the figures of a version rest on, read as plain columns: of many pictures, and often."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sql
from sqlalchemy import ColumnElement

from blemish.store.part import Part
from blemish.store.records import NAME, check_digest, storable
from blemish.store.schema import CONSENSUS, DRAWS, LABELS, PREDICTIONS, time_of

_AT_ONCE = 500  # values in one statement
_PAGE = 20_000  # rows that are read at once


@dataclass(frozen=True, slots=True)
class Placed:
    """Predictions of pictures that have a place in the review queue.

    Attributes: last: the id of the last one. Of each: picture; arrived, priority, size of its
    place; score.
    """

    last: int
    pictures: tuple[str, ...]
    arrived: tuple[float, ...]
    priorities: tuple[float, ...]
    sizes: tuple[float, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """What a reviewer says of a picture. Attributes: revealed: as of `Label`."""

    picture: str
    reviewer: str
    verdict: str
    revealed: bool | None


@dataclass(frozen=True, slots=True)
class Scene:
    """A version's last prediction of a picture, and where that came from."""

    id: int
    score: float
    time: datetime
    source: str
    category: str


class Judging(Part):
    """The part of a store that figures are made of."""

    def said(self) -> list[Said]:
        """All labels that are not undone, the oldest first."""
        columns = [LABELS.c[name] for name in ("picture", "reviewer", "verdict", "revealed")]
        counting = sql.select(*columns).where(LABELS.c.undone.is_(None)).order_by(LABELS.c.id)
        with self._database.reading() as connection:
            return [Said(*row) for row in connection.execute(counting).all()]

    def labels_state(self) -> tuple[int, int]:
        """Another one whenever a label is given or undone."""
        last = sql.select(sql.func.max(LABELS.c.id))
        undone = sql.select(sql.func.count()).where(LABELS.c.undone.is_not(None))
        with self._database.reading() as connection:
            return connection.scalar(last) or 0, connection.scalar(undone) or 0

    def placed(
        self, model: str, version: str, *, after: int = 0, until: int | None = None
    ) -> Iterator[Placed]:
        """The predictions of a version whose pictures have a place in the queue, the oldest first,
        in pages. Args: after, until: ids: later than this one, and this one at most."""
        own = (PREDICTIONS.c.model == storable(model, NAME), PREDICTIONS.c.version == version)
        beside = sql.and_(
            DRAWS.c.picture == PREDICTIONS.c.picture, DRAWS.c.model == PREDICTIONS.c.model
        )
        place = (DRAWS.c.arrived, DRAWS.c.priority, DRAWS.c.size)
        columns = (PREDICTIONS.c.id, PREDICTIONS.c.picture, *place, PREDICTIONS.c.score)
        rows = sql.select(*columns).join(DRAWS, beside).where(*own)
        rows = rows.where(DRAWS.c.size.is_not(None), DRAWS.c.arrived.is_not(None))
        if until is not None:
            rows = rows.where(PREDICTIONS.c.id <= until)
        last = after
        while True:
            page = rows.where(PREDICTIONS.c.id > last).order_by(PREDICTIONS.c.id).limit(_PAGE)
            with self._database.reading() as connection:
                found = connection.execute(page).all()
            if found:
                ids, pictures, *numbers = zip(*found, strict=True)
                last = ids[-1]
                yield Placed(last, pictures, *numbers)
            if len(found) < _PAGE:
                return

    def scenes(self, pictures: Sequence[str], model: str, version: str) -> dict[str, Scene]:
        """The last prediction that a version made of each of some pictures, by picture."""
        names = ("picture", "version", "id", "score", "time", "source", "category")
        of_model = PREDICTIONS.c.model == storable(model, NAME)
        found: dict[str, Scene] = {}
        with self._database.reading() as connection:
            for start in range(0, len(pictures), _AT_ONCE):
                some = [check_digest(one) for one in pictures[start : start + _AT_ONCE]]
                columns = sql.select(*(PREDICTIONS.c[name] for name in names))
                # Asked for in order, or by version too, it would read all that this has scored.
                rows = connection.execute(columns.where(PREDICTIONS.c.picture.in_(some), of_model))
                for picture, by, id, score, time, source, category in rows.all():
                    if by == version and (picture not in found or found[picture].id < id):
                        found[picture] = Scene(id, score, time_of(time), source, category)
        return found

    def records(self, pictures: Sequence[str], model: str) -> dict[str, dict[str, Any]]:
        """The records of the places of some pictures in the queue of a model, by picture."""
        found: dict[str, dict[str, Any]] = {}
        of_model = DRAWS.c.model == storable(model, NAME)
        columns = sql.select(DRAWS.c.picture, DRAWS.c.record).where(of_model)
        with self._database.reading() as connection:
            for start in range(0, len(pictures), _AT_ONCE):
                some = [check_digest(one) for one in pictures[start : start + _AT_ONCE]]
                rows = connection.execute(columns.where(DRAWS.c.picture.in_(some)))
                found.update({picture: json.loads(record) for picture, record in rows.all()})
        return found

    def arrivals(self, pictures: Sequence[str], model: str) -> list[float]:
        """When those of some pictures came that have a place in the queue of a model."""
        found: list[float] = []
        of_model = DRAWS.c.model == storable(model, NAME)
        with self._database.reading() as connection:
            for start in range(0, len(pictures), _AT_ONCE):
                some = [check_digest(one) for one in pictures[start : start + _AT_ONCE]]
                where = (of_model, DRAWS.c.picture.in_(some), DRAWS.c.arrived.is_not(None))
                found += connection.scalars(sql.select(DRAWS.c.arrived).where(*where))
        return found

    def waiting(self, model: str, most: int) -> int:
        """How many pictures in the queue of a model have no label; `most` where there are more."""
        where = (DRAWS.c.model == storable(model, NAME), unlabelled())
        some = sql.select(sql.literal(1)).select_from(DRAWS).where(*where).limit(most).subquery()
        with self._database.reading() as connection:
            return int(connection.scalar(sql.select(sql.func.count()).select_from(some)) or 0)

    def defect_types(self, model: str, most: int) -> list[str]:
        """The types of defects that reviewers found on a model's pictures, the latest first."""
        of = (PREDICTIONS.c.picture == CONSENSUS.c.picture, PREDICTIONS.c.model == model)
        where = (CONSENSUS.c.verdict == "defect", CONSENSUS.c.defect != "", sql.exists().where(*of))
        types = sql.select(CONSENSUS.c.defect).where(*where).group_by(CONSENSUS.c.defect)
        latest = types.order_by(sql.func.max(CONSENSUS.c.last).desc()).limit(most)
        with self._database.reading() as connection:
            return list(connection.scalars(latest))


def unlabelled() -> ColumnElement[bool]:
    """Of places in the queue: that nobody has said anything of their picture."""
    said = CONSENSUS.c.picture == DRAWS.c.picture
    return ~sql.exists().where(said, CONSENSUS.c.verdict != "")
