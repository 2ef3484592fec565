"""What the parts of a store share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy import Connection

from blemish.errors import StoreError
from blemish.store.database import Database
from blemish.store.records import Held, now
from blemish.store.schema import LEASES, stamp


class LeaseLost(StoreError):
    """Something was to be written under a lease that another holds by now; it was not."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is another's by now; nothing was written", retryable=True)


class Part:
    """A part of a store.

    Attributes:
        folder: of the media.
    """

    _database: Database
    folder: Path

    def _under(self, connection: Connection, held: Held | None) -> None:
        """Keep a lease until the end of a transaction that writes. Raises: LeaseLost."""
        if held is None:
            return
        mine = (LEASES.c.name == held.name, LEASES.c.holder == held.holder)
        standing = sql.select(LEASES.c.name).where(*mine, LEASES.c.until > moment(self._database))
        if connection.scalar(standing.with_for_update()) is None:
            raise LeaseLost(held.name)


def moment(database: Database) -> Any:
    """Now, by the clock that all who share a database go by: a stamp, or what gives one in SQL."""
    if database.is_sqlite:
        return stamp(now())
    return sql.cast(sql.extract("epoch", sql.func.clock_timestamp()) * 1_000_000, sql.BigInteger)
