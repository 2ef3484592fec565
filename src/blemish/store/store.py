"""A store: the database and the folder of media beside it, behind one object."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from blemish.store.counting import Counting
from blemish.store.database import Database
from blemish.store.descriptors import Descriptors
from blemish.store.exports import Exports
from blemish.store.jobs import Jobs
from blemish.store.judging import Judging
from blemish.store.leases import Leases
from blemish.store.notes import Notes
from blemish.store.retention import Retention
from blemish.store.reviewing import Reviewing
from blemish.store.versions import Versions


class Store(
    Exports, Counting, Reviewing, Judging, Descriptors, Versions, Jobs, Leases, Notes, Retention
):
    """What was predicted, and what people said of it. Any number of threads may use one.

    Every method raises StoreError where the database or the folder cannot be read or written, and
    ConfigError for what cannot be stored, asked for or is not there. Nothing of what fails is
    written. After a database was out of reach (`StoreError.retryable`), the same store goes on.

    Example:
        >>> import tempfile
        >>> from blemish.store import Label, Scored, Store
        >>> one = Scored(picture="0" * 32, model="part", version="1", score=1.5, height=8, width=8)
        >>> with tempfile.TemporaryDirectory() as folder, Store.open(None, Path(folder)) as store:
        ...     [id] = store.add_predictions([one])
        ...     label = store.add_label(Label(picture="0" * 32, verdict="good", reviewer="Ada"))
        ...     [(row.score, row.reviewed) for row in store.predictions()]
        [(1.5, 'good')]
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self.folder = folder

    @classmethod
    def open(cls, url: str | None, folder: str | Path, *, wait: float = 10.0) -> Self:
        """Open a store, or make a new one.

        Args:
            url: of a PostgreSQL database, postgresql://USER:PASSWORD@HOST/DATABASE; None = SQLite,
                in the folder.
            folder: of the media, and of SQLite's file; made where it is missing.
            wait: seconds to wait for a database that is not there yet or is held by others, in
                (0, 3600]. Also of every later call.
        Raises: StoreError where there is no such database, or it is damaged, of a newer version or
            another program's. ConfigError for a URL of another kind.
        """
        folder = Path(folder)
        return cls(Database.open(url, folder, wait), folder)

    @property
    def name(self) -> str:
        """What its database is called in messages: without a path or an address."""
        return self._database.name

    @property
    def is_sqlite(self) -> bool:
        """Whether its database is SQLite, which is for one service at a time."""
        return self._database.is_sqlite

    def close(self) -> None:
        """Let go of the database. A closed store may not be used."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
