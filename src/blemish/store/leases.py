"""What belongs to one of several services, or to one reviewer, for a while: leases.

A lease is had by one holder until it ends, is given back, or is had anew by the same holder. Whose
it is is settled by the database alone, and on PostgreSQL by its clock too, so that services on
several machines agree. What a holder writes under a lease is written only while it stands
(`Part._under`): who slept through its end writes nothing of what others have taken over.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite

from blemish.errors import ConfigError
from blemish.store.part import Part, moment
from blemish.store.records import LEASE, NAME, check_name
from blemish.store.schema import LEASES

_LONGEST = 24 * 3600.0  # seconds
_FORGOTTEN = 3_600_000_000  # microseconds after its end in which the row of a lease is kept


class Leases(Part):
    """The part of a store that holds leases."""

    def lease(self, name: str, holder: str, seconds: float) -> bool:
        """Have a lease, or have it anew, from now on for so many seconds, in (0, 86400].

        Returns: whether the holder has it now; False where another does.
        """
        if not 0 < seconds <= _LONGEST:
            raise ConfigError(f"lease {name}: {seconds} seconds are not in (0, {_LONGEST:g}]")
        given = {
            "name": check_name("lease", name, most=LEASE),
            "holder": check_name("holder", holder, most=NAME),
        }
        at = moment(self._database)
        insert = (sqlite if self._database.is_sqlite else postgresql).insert(LEASES)
        row = insert.values(**given, until=at + round(seconds * 1e6))
        had = row.on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": row.excluded.holder, "until": row.excluded.until},
            where=sql.or_(LEASES.c.holder == row.excluded.holder, LEASES.c.until <= at),
        )
        with self._database.writing() as connection:
            return connection.scalar(had.returning(LEASES.c.name)) is not None

    def release(self, name: str, holder: str) -> None:
        """Give a lease back. One that another has by now stays theirs."""
        mine = (LEASES.c.name == name, LEASES.c.holder == holder)
        with self._database.writing() as connection:
            connection.execute(sql.delete(LEASES).where(*mine))

    def release_all(self, holder: str) -> None:
        """Give all back that a holder has, who is gone."""
        with self._database.writing() as connection:
            connection.execute(sql.delete(LEASES).where(LEASES.c.holder == holder))

    def leased(self, beginning: str) -> dict[str, str]:
        """The leases that stand now and whose names begin so: who has them, by name."""
        where: list[Any] = [LEASES.c.name.startswith(beginning, autoescape=True)]
        where.append(LEASES.c.until > moment(self._database))
        chosen = sql.select(LEASES.c.name, LEASES.c.holder).where(*where)
        with self._database.reading() as connection:
            return {row.name: row.holder for row in connection.execute(chosen)}

    def forget_leases(self) -> None:
        """Delete the rows of leases that ended more than an hour ago."""
        past = LEASES.c.until < moment(self._database) - _FORGOTTEN
        with self._database.writing() as connection:
            connection.execute(sql.delete(LEASES).where(past))
