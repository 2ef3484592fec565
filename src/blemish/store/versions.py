"""Versions of models, and which of them is live.

What is live follows from the history alone, of which nothing is ever changed: a promotion puts a
version on a pile, a roll back takes the top one off.
"""

from __future__ import annotations

import json

import sqlalchemy as sql
from sqlalchemy import Connection, RowMapping
from sqlalchemy.dialects import postgresql, sqlite

from blemish.errors import ConfigError
from blemish.store.part import Part
from blemish.store.records import (
    NAME,
    TEXT,
    Promotion,
    VersionRow,
    check_name,
    document,
    now,
    pile_of,
    storable,
)
from blemish.store.schema import PROMOTIONS, VERSIONS, stamp, time_of

_PLAIN = ("model", "version", "sha256", "method", "threshold", "rate", "base")


class Versions(Part):
    """The part of a store that holds versions and promotions."""

    def add_version(self, version: VersionRow) -> None:
        """Write a version down. One that is there already is replaced."""
        values = {name: getattr(version, name) for name in _PLAIN} | {
            "made": stamp(version.made),
            "learned_from": document("learned_from", version.learned_from),
            "figures": document("figures", version.figures),
        }
        insert = (sqlite if self._database.is_sqlite else postgresql).insert(VERSIONS)
        key = ["model", "version"]
        new = {name: insert.excluded[name] for name in values if name not in key}
        with self._database.writing() as connection:
            adding = insert.on_conflict_do_update(index_elements=key, set_=new)
            connection.execute(adding, values)

    def versions(self, model: str) -> list[VersionRow]:
        """The versions of a model, in the order in which they were made."""
        where = VERSIONS.c.model == storable(model, NAME)
        ordered = sql.select(VERSIONS).where(where).order_by(VERSIONS.c.made, VERSIONS.c.version)
        with self._database.reading() as connection:
            return [_version_of(found) for found in connection.execute(ordered).mappings()]

    def version(self, model: str, version: str) -> VersionRow | None:
        """One version; None where nobody has added it."""
        mine = (VERSIONS.c.model == storable(model, NAME),)
        one = sql.select(VERSIONS).where(*mine, VERSIONS.c.version == storable(version, NAME))
        with self._database.reading() as connection:
            found = connection.execute(one).mappings().first()
        return None if found is None else _version_of(found)

    def promote(self, model: str, version: str, who: str, reason: str = "") -> Promotion:
        """Write down that a version is live from now on."""
        check_name("model", model)
        check_name("version", version)
        with self._database.writing() as connection:
            self._hold_promotions(connection)
            return _add(connection, model, version, "promote", who, reason)

    def promoted(self, model: str) -> str | None:
        """The version that is live; None where none was promoted."""
        pile = pile_of(self.promotions(model))
        return pile[-1] if pile else None

    def promotions(self, model: str) -> list[Promotion]:
        """The history of what was live, the oldest first."""
        with self._database.reading() as connection:
            return _history(connection, model)

    def roll_back(self, model: str, who: str, reason: str = "") -> Promotion:
        """Write down that the version before the live one is live again.

        Raises: ConfigError where there is none.
        """
        check_name("model", model)
        with self._database.writing() as connection:
            self._hold_promotions(connection)
            pile = pile_of(_history(connection, model))
            if len(pile) < 2:
                raise ConfigError(
                    f"model {model}: no other version was live before; promote one instead"
                )
            return _add(connection, model, pile[-2], "roll back", who, reason)

    def _hold_promotions(self, connection: Connection) -> None:
        """Have all others wait that change what is live. On SQLite they do anyway."""
        if not self._database.is_sqlite:
            connection.execute(sql.text("LOCK TABLE promotions IN SHARE ROW EXCLUSIVE MODE"))


def _history(connection: Connection, model: str) -> list[Promotion]:
    where = PROMOTIONS.c.model == storable(model, NAME)
    ordered = sql.select(PROMOTIONS).where(where).order_by(PROMOTIONS.c.id)
    return [
        Promotion(**{**found, "time": time_of(found["time"])})
        for found in connection.execute(ordered).mappings()
    ]


def _add(
    connection: Connection, model: str, version: str, kind: str, who: str, reason: str
) -> Promotion:
    time = now()
    given = {"model": model, "version": version, "kind": kind, "who": check_name("who", who)}
    values = {**given, "reason": storable(reason, TEXT), "time": stamp(time)}
    adding = sql.insert(PROMOTIONS).values(values).returning(PROMOTIONS.c.id)
    id = connection.scalars(adding).one()
    return Promotion(**{**values, "time": time}, id=id)  # type: ignore[arg-type]


def _version_of(found: RowMapping) -> VersionRow:
    return VersionRow(
        made=time_of(found["made"]),
        learned_from=json.loads(found["learned_from"]),
        figures=json.loads(found["figures"]),
        **{name: found[name] for name in _PLAIN},
    )
