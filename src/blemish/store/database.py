"""SQLite or PostgreSQL, opened, brought up to date, and its errors in words.

SQLite writes ahead (WAL) with `synchronous=FULL`: what a transaction wrote is on the disk when it
returns, and those who read do not wait for those who write. A writing transaction takes its lock at
its beginning, so that none finds at its end that it came too late; the threads of a process queue
for it among themselves, as SQLite's own waiting is not fair.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sql
from sqlalchemy import Connection, Engine, event, exc

from blemish.errors import ConfigError, StoreError
from blemish.store.migrating import bring_up_to_date

FILE = "blemish.sqlite"
_CACHE = 16 * 1024  # KiB of pages that each connection of SQLite holds
# What PostgreSQL says to whom it lets not in; it gives no code for that.
_REFUSED = ("does not exist", "authentication failed", "no pg_hba.conf entry", "no password")
_PAUSE = 0.2  # seconds between attempts to reach a database that is not there yet


class Database:
    """An open database. Args: as of `Store.open`.

    Attributes:
        is_sqlite: whether it is SQLite.
        file: of SQLite; None for PostgreSQL.
        wait: seconds that are waited for a lock or a connection.
    """

    def __init__(self, url: str | None, folder: Path, wait: float) -> None:
        if not 0 < wait <= 3600:
            raise ConfigError(f"wait {wait}: is not in (0, 3600] seconds")
        self.wait = wait
        self.is_sqlite = url is None
        self.file = folder / FILE if url is None else None
        self._lock = threading.Lock()
        if url is None:
            self.name, self._place = f"the database ({FILE})", str(folder / FILE)
            self._engine = _sqlite(folder / FILE, wait)
        else:
            self._engine = _postgresql(url, wait)
            self.name = "the database (PostgreSQL)"
            self._place = self._engine.url.render_as_string(hide_password=True)

    @classmethod
    def open(cls, url: str | None, folder: Path, wait: float) -> Self:
        """Reach the database, waiting for it as long as asked, and bring its tables up to date.

        Raises: StoreError.
        """
        if url is None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise StoreError(f"{folder}: no folder for a store ({reason})") from error
        made = cls(url, folder, wait)
        try:
            made._bring_up_to_date()
        except BaseException:
            made.close()
            raise
        return made

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one state of the database. Raises: StoreError."""
        with self._explained(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, whose changes are durable when it ends, or undone if that raises.

        Raises: StoreError.
        """
        with self._explained(), self._alone(), self._engine.connect() as connection:
            writer = connection.execution_options(writing=True)
            with writer.begin():
                yield writer

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self.is_sqlite:
            yield
            return
        if not self._lock.acquire(timeout=self.wait):
            raise StoreError(f"{self.name} is unreachable: it is busy; try again", retryable=True)
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _explained(self, place: str = "") -> Iterator[None]:
        """Args: place: what only who opens the database may see of it."""
        try:
            yield
        except (exc.DBAPIError, exc.TimeoutError) as error:
            raise explained(error, place or self.name, opening=bool(place)) from error

    def size(self) -> int:
        """Bytes of SQLite's database that are in use; 0 of PostgreSQL's. Raises: StoreError."""
        if not self.is_sqlite:
            return 0
        with self.reading() as connection:
            pages, free, each = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
                for name in ("page_count", "freelist_count", "page_size")
            )
        return (pages - free) * each

    def shrink(self) -> None:
        """Give the pages of SQLite that are not in use back to the disk. Raises: StoreError."""
        if self.is_sqlite:
            with self.writing() as connection:
                raw: Any = connection.connection.driver_connection
                # As a script: it frees a page with every step, and only these are run to their end.
                raw.executescript("PRAGMA incremental_vacuum")

    def analyse(self) -> None:
        """Have SQLite look at a part of its tables, so that it knows which index is worth using.
        PostgreSQL does so by itself. Raises: StoreError."""
        if self.is_sqlite:
            with self.writing() as connection:
                connection.exec_driver_sql("PRAGMA analysis_limit=1000")
                connection.exec_driver_sql("ANALYZE")

    def _bring_up_to_date(self) -> None:
        """Raises: StoreError, after `wait` seconds where the database is out of reach."""
        until = time.monotonic() + self.wait
        while True:
            try:
                with self._explained(self._place), self._engine.connect() as connection:
                    bring_up_to_date(connection, self._place)
                break
            except StoreError as error:
                if self.is_sqlite or not error.retryable or time.monotonic() > until:
                    raise
            time.sleep(_PAUSE)
        try:
            self.analyse()
        except StoreError as error:
            if not error.retryable:  # another process that is writing keeps nobody from opening
                raise


def _sqlite(file: Path, wait: float) -> Engine:
    engine = sql.create_engine(
        sql.URL.create("sqlite", database=str(file)),
        connect_args={"timeout": wait},
        pool_timeout=wait,
        pool_size=8,
        max_overflow=16,
    )

    @event.listens_for(engine, "connect")
    def settle(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, and by nobody else
        if not connection.execute("PRAGMA page_count").fetchone()[0]:  # a new file
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise StoreError(
                f"{file}: its file system cannot hold a database that several read; "
                "choose a folder on a local disk"
            )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA cache_size=-{_CACHE}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writing = connection.get_execution_options().get("writing")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _postgresql(text: str, wait: float) -> Engine:
    try:
        url = sql.make_url(text)
    except (exc.ArgumentError, ValueError) as error:
        raise ConfigError(
            "store: is no URL of a database; postgresql://USER@HOST/DATABASE is needed"
        ) from error
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise ConfigError(
            f"store: {url.drivername} databases are not known; postgresql://USER@HOST/DATABASE, "
            "or no URL for SQLite"
        )
    milliseconds = round(wait * 1000)
    options = f"-c lock_timeout={milliseconds} -c timezone=UTC"
    given = {
        "connect_timeout": max(2, round(wait)),
        "tcp_user_timeout": milliseconds,
        "keepalives_idle": 30,
        "options": options,
        "application_name": "blemish",
    }
    return sql.create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={key: value for key, value in given.items() if key not in url.query},
        pool_pre_ping=True,  # of connections that a restart of the server has ended
        pool_timeout=wait,
        pool_size=8,
        max_overflow=16,
    )


def explained(
    error: exc.DBAPIError | exc.TimeoutError, name: str, *, opening: bool = False
) -> StoreError:
    """An error of the database in words. Args: name: what it is called in them. opening: whether
    they may say where it is, as the libraries' own do."""
    original = getattr(error, "orig", None)
    if isinstance(original, sqlite3.Error):
        return _of_sqlite(original, name)
    if isinstance(error, exc.TimeoutError):
        return _gone(name, "all of its connections are in use")
    state = getattr(original, "sqlstate", None)
    if state is not None:
        return _of_postgresql(str(state), original, name)
    said = _first_line(original)
    if any(sign in said for sign in _REFUSED):
        return StoreError(f"{name} cannot be opened" + (f" ({said})" if opening else ""))
    if isinstance(error, exc.OperationalError | exc.InterfaceError) or getattr(
        error, "connection_invalidated", False
    ):
        return _gone(name, said if opening else "it does not answer")
    return StoreError(f"{name} cannot be used ({type(original).__name__})")


def _gone(name: str, reason: str) -> StoreError:
    return StoreError(f"{name} is unreachable: {reason}; try again", retryable=True)


def _full(name: str) -> StoreError:
    return StoreError(
        f"{name} cannot be written: its disk is full; make room, nothing of before is lost",
        retryable=True,
    )


def _of_sqlite(error: sqlite3.Error, name: str) -> StoreError:
    code = getattr(error, "sqlite_errorname", "")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return _gone(name, "another process holds it")
    if code.startswith("SQLITE_FULL"):
        return _full(name)
    if code.startswith("SQLITE_NOTADB"):
        return StoreError(f"{name} is no database; name another folder, or move that file away")
    if code.startswith("SQLITE_CORRUPT"):
        return StoreError(
            f"{name} is damaged ({error}); take a copy of it, then `sqlite3 FILE .recover`, or a "
            "backup"
        )
    if code.startswith("SQLITE_READONLY"):
        return StoreError(f"{name} cannot be written: it or its folder is read-only")
    if code.startswith(("SQLITE_CANTOPEN", "SQLITE_PERM")):
        return StoreError(
            f"{name} cannot be opened: its folder is gone, or may not be written", retryable=True
        )
    if code.startswith("SQLITE_IOERR"):
        return StoreError(
            f"{name} cannot be read or written ({error}): look at its disk, which may be full",
            retryable=True,
        )
    return StoreError(f"{name} cannot be used ({error})")


def _of_postgresql(state: str, error: Any, name: str) -> StoreError:
    """Of the code of an error: https://www.postgresql.org/docs/current/errcodes-appendix.html"""
    if state == "53100":
        return _full(name)
    if state.startswith(("08", "53", "57P")):
        return _gone(name, _first_line(error))
    if state in ("55P03", "40001", "40P01", "57014"):
        return _gone(name, "others hold what is to be written")
    if state in ("25006", "42501"):
        return StoreError(f"{name} cannot be written: this user may only read it")
    if state.startswith("28") or state == "3D000":
        return StoreError(f"{name} cannot be opened ({_first_line(error)})")
    return StoreError(f"{name} cannot be used ({_first_line(error)})")


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
