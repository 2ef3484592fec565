"""Brings the tables of a database to what this version of blemish knows, by Alembic.

The migrations are files of the package. They are run in one transaction, under a lock, so that of
two processes that open a new database one makes the tables and the other finds them.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sql
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from blemish.errors import StoreError

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x626C656D697368  # "blemish": the number of PostgreSQL's advisory lock


def bring_up_to_date(connection: Connection, name: str) -> None:
    """Make the tables, or change them to what is known now; nothing where they are so already.

    Raises: StoreError for tables of a newer version, or of another program.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    with connection.begin():
        if _is_current(connection, scripts, name):
            return
    writer = connection.execution_options(writing=True)
    with writer.begin():
        if connection.dialect.name == "postgresql":
            writer.execute(sql.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        if not _is_current(writer, scripts, name):  # another may have been first
            command.upgrade(config, "head")


def _is_current(connection: Connection, scripts: ScriptDirectory, name: str) -> bool:
    """Whether there is nothing to do. Raises: StoreError."""
    found = MigrationContext.configure(connection).get_current_revision()
    if found is None:
        tables = set(sql.inspect(connection).get_table_names()) - {"alembic_version"}
        if tables:
            raise StoreError(
                f"{name}: holds the tables of another program ({', '.join(sorted(tables)[:3])}); "
                "name another database or folder"
            )
        return False
    if found not in {script.revision for script in scripts.walk_revisions()}:
        raise StoreError(
            f"{name}: was written by a newer version of blemish (tables of {found[:40]!r}); "
            "install that version, or a later one"
        )
    return found == scripts.get_current_head()
