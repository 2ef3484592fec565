"""Deletes what is old, and never what is labelled.

First files, then the predictions, so that whatever an interrupted run leaves is found again by the
next: files of pictures that no prediction knows are deleted too, a day after they were written. A
picture counts as labelled while any label on it is not undone. Files are deleted some at a time,
in a transaction that has those wait who would label one of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path

import sqlalchemy as sql
from sqlalchemy import ColumnElement, Connection

from blemish.errors import ConfigError
from blemish.files import sweep
from blemish.store.counting import tally
from blemish.store.media import MAPS, MEDIA, PICTURES, THUMBNAILS
from blemish.store.part import Part
from blemish.store.records import now
from blemish.store.schema import CONSENSUS, DRAWS, PREDICTIONS, SCORES, stamp

_AT_ONCE = 200  # files or rows in one transaction
_ORPHANED = timedelta(days=1)
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Retained:
    """What was deleted. Attributes: pictures, thumbnails, maps: files. predictions: rows.
    freed: bytes of the files. held: bytes that are left, of files and of SQLite."""

    pictures: int = 0
    thumbnails: int = 0
    maps: int = 0
    predictions: int = 0
    freed: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    kind: str
    picture: str
    size: int
    time: float


class Retention(Part):
    """The part of a store that deletes."""

    def retain(self, *, days: float | None = None, gibibytes: float | None = None) -> Retained:
        """Delete what is older than so many days, and then the oldest until the store is as small.

        Pictures and maps go first, then thumbnails, then predictions with their places in the
        queue. A picture is as old as the last time it was sent. Labels, and the pictures, maps and
        predictions of labelled pictures, stay.

        Args: days, gibibytes: > 0; None = any. The size is that of the files and of SQLite's
        database; of PostgreSQL only the files count, and predictions are deleted by age alone.
        """
        for what, value in (("days", days), ("gibibytes", gibibytes)):
            if value is not None and not 0 < value < 10**6:
                raise ConfigError(f"{what} {value}: is not in (0, 1,000,000)")
        done = _Done()
        files = sorted(self._files(), key=lambda file: file.time)
        files = self._without_orphans(files, done)
        if days is not None:
            oldest = now() - timedelta(days=days)
            old = [file for file in files if file.time < oldest.timestamp()]
            self._delete_files(old, done, lambda: True)
            self._delete_rows(PREDICTIONS.c.time < stamp(oldest), done, lambda: True)
        if gibibytes is not None:
            self._shrink(gibibytes * _GIB, files, done)
        self._database.shrink()
        self._database.analyse()
        left = sum(file.size for file in self._files()) + self._database.size()
        return Retained(**done.numbers, freed=done.freed, held=left)

    def _shrink(self, most: float, files: Sequence[_File], done: _Done) -> None:
        left = [file for file in files if file.path not in done.deleted]
        held = sum(file.size for file in left) + self._database.size()
        start = done.freed

        def too_large() -> bool:
            return held - (done.freed - start) > most

        for kinds in ((PICTURES, MAPS), (THUMBNAILS,)):
            self._delete_files([file for file in left if file.kind in kinds], done, too_large)
        if self._database.is_sqlite:
            rest = sum(file.size for file in left if file.path not in done.deleted)
            self._delete_rows(sql.true(), done, lambda: rest + self._database.size() > most)

    def _files(self) -> Iterator[_File]:
        for kind in (PICTURES, MAPS, THUMBNAILS):
            with suppress(FileNotFoundError), os.scandir(self.folder / MEDIA / kind) as shards:
                for shard in sorted(entry.path for entry in shards if entry.is_dir()):
                    sweep(Path(shard), again=True)
                    yield from _in_shard(Path(shard), kind)

    def _without_orphans(self, files: Sequence[_File], done: _Done) -> list[_File]:
        """Delete the files of pictures that nothing is known of; the others are returned."""
        latest = (now() - _ORPHANED).timestamp()
        kept: list[_File] = []
        for some in _some(files):
            with self._database.reading() as connection:
                mine = PREDICTIONS.c.picture.in_({file.picture for file in some})
                known = set(connection.scalars(sql.select(PREDICTIONS.c.picture).where(mine)))
            orphans = [file for file in some if file.picture not in known and file.time < latest]
            self._delete_files(orphans, done, lambda: True)
            kept += [file for file in some if file.path not in done.deleted]
        return kept

    def _delete_files(
        self, files: Iterable[_File], done: _Done, goes_on: Callable[[], bool]
    ) -> None:
        for some in _some(files):
            if not goes_on():
                return
            with self._database.writing() as connection:
                labelled = self._labelled(connection, {file.picture for file in some})
                for file in some:
                    if file.picture not in labelled and goes_on():
                        done.delete(file)

    def _labelled(self, connection: Connection, pictures: set[str]) -> set[str]:
        """Which are labelled, and stay unlabelled otherwise until the transaction ends."""
        if not self._database.is_sqlite:
            connection.execute(sql.text("LOCK TABLE consensus IN SHARE ROW EXCLUSIVE MODE"))
        some = (CONSENSUS.c.picture.in_(pictures), CONSENSUS.c.verdict != "")
        return set(connection.scalars(sql.select(CONSENSUS.c.picture).where(*some)))

    def _delete_rows(
        self, where: ColumnElement[bool], done: _Done, goes_on: Callable[[], bool]
    ) -> None:
        """Delete predictions of unlabelled pictures, the oldest first, while asked to."""
        columns = [
            PREDICTIONS.c[name]
            for name in ("id", "time", "picture", "model", "version", "category", "label")
        ]
        last = (-(2**62), 0)
        while goes_on():
            after = sql.tuple_(PREDICTIONS.c.time, PREDICTIONS.c.id) > sql.tuple_(*last)
            page = sql.select(*columns).where(where, after)
            with self._database.writing() as connection:
                ordered = page.order_by(PREDICTIONS.c.time, PREDICTIONS.c.id).limit(_AT_ONCE)
                rows = connection.execute(ordered).mappings().all()
                if not rows:
                    return
                last = (rows[-1]["time"], rows[-1]["id"])
                labelled = self._labelled(connection, {row["picture"] for row in rows})
                old = [row for row in rows if row["picture"] not in labelled]
                if not old:
                    continue
                ids = [row["id"] for row in old]
                connection.execute(sql.delete(PREDICTIONS).where(PREDICTIONS.c.id.in_(ids)))
                tally(connection, [dict(row) for row in old], -1)
                _forget(connection, {row["picture"] for row in old})
            done.numbers["predictions"] += len(old)


class _Done:
    """What was deleted so far."""

    def __init__(self) -> None:
        self.numbers = dict.fromkeys((PICTURES, THUMBNAILS, MAPS, "predictions"), 0)
        self.deleted: set[Path] = set()
        self.freed = 0

    def delete(self, file: _File) -> None:
        with suppress(FileNotFoundError):
            if file.path.stat().st_mtime > file.time:
                return  # sent again meanwhile
            file.path.unlink()
            self.numbers[file.kind] += 1
            self.freed += file.size
            self.deleted.add(file.path)


def _some(files: Iterable[_File]) -> Iterator[list[_File]]:
    rest = iter(files)
    while some := list(islice(rest, _AT_ONCE)):
        yield some


def _in_shard(shard: Path, kind: str) -> Iterator[_File]:
    with suppress(FileNotFoundError), os.scandir(shard) as entries:
        for entry in entries:
            picture = entry.name.partition(".")[0].partition("-")[0]
            if not picture:  # a temporary file
                continue
            with suppress(FileNotFoundError):
                told = entry.stat(follow_symlinks=False)
                yield _File(Path(entry.path), kind, picture, told.st_size, told.st_mtime)


def _forget(connection: Connection, pictures: set[str]) -> None:
    """What else was known of pictures, where no prediction of them is left."""
    for table in (DRAWS, SCORES):
        mine = PREDICTIONS.c.picture == table.c.picture
        some = table.c.picture.in_(pictures)
        connection.execute(sql.delete(table).where(some, ~sql.exists().where(mine)))
