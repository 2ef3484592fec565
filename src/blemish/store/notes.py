"""What others must remember from one start to the next: a JSON document under a name each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite

from blemish.store.part import Part
from blemish.store.records import NAME, Held, check_name, document, now, storable
from blemish.store.schema import NOTES, stamp


class Notes(Part):
    """The part of a store that holds documents of others: the queue, the monitors of drift."""

    def put_note(self, name: str, value: Mapping[str, Any], held: Held | None = None) -> None:
        """Remember a document; the one of that name is replaced.

        Args: held: a lease without which it is not written. Raises: LeaseLost.
        """
        given = {"document": document(f"note {name}", value), "time": stamp(now())}
        insert = (sqlite if self._database.is_sqlite else postgresql).insert(NOTES)
        new = insert.on_conflict_do_update(index_elements=["name"], set_=given)
        with self._database.writing() as connection:
            self._under(connection, held)
            connection.execute(new, {"name": check_name("name", name), **given})

    def note(self, name: str) -> dict[str, Any] | None:
        """The document of that name; None where there is none."""
        one = sql.select(NOTES.c.document).where(NOTES.c.name == storable(name, NAME))
        with self._database.reading() as connection:
            found = connection.scalar(one)
        return None if found is None else dict(json.loads(found))

    def note_time(self, name: str) -> int | None:
        """When the document of that name was written, in microseconds since 1970; None where there
        is none."""
        one = sql.select(NOTES.c.time).where(NOTES.c.name == storable(name, NAME))
        with self._database.reading() as connection:
            found: int | None = connection.scalar(one)
        return found
