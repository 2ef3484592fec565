"""Predictions that wait until the database is back, in order and up to a limit.

They are held in memory, and in a file beside the media as long as that can be written, which the
next process takes up. What was written to the database although nobody heard of it is known there
by its key, so nothing is there twice.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from blemish.config import parse_json
from blemish.errors import BlemishError, ConfigError, OutputError, StoreError
from blemish.files import (
    ROWS_BYTES,
    append_whole,
    locked,
    or_elsewhere,
    read_whole,
    write_whole,
)
from blemish.store.descriptor import Descriptor
from blemish.store.records import Scored
from blemish.store.store import Store
from blemish.text import pluralize

FILE = "waiting.jsonl"
SERVICES = 16  # that may share a folder, each with a file of its own
MOST = 100_000  # predictions that wait at most
LARGEST = 256 * 2**20  # bytes of them
_AT_ONCE = 500  # predictions in one transaction
_PAUSE = 1.0  # seconds between attempts


class Spool:
    """Writes predictions to a store, now or as soon as it can. Any number of threads may use one.

    Args:
        store: where they go. It stays open when the spool is closed.
        most: how many predictions may wait, >= 1. largest: how many bytes of them, as JSON.
        pause: seconds between attempts while some wait, > 0.
    Attributes:
        fault: why the last attempt failed; None where it did not.
        damaged: lines of an earlier process's file that could not be read.
    Raises: StoreError where its file cannot be read; where another process has the folder's spool,
        for SQLite, and where `SERVICES` have one, for PostgreSQL.
    """

    def __init__(
        self, store: Store, *, most: int = MOST, largest: int = LARGEST, pause: float = _PAUSE
    ) -> None:
        if most < 1 or largest < 1 or not pause > 0:
            raise ConfigError(f"spool of {most} predictions, {largest} bytes, {pause} s: too few")
        self.fault: StoreError | None = None
        self.damaged = 0
        self._store, self._most, self._largest, self._pause = store, most, largest, pause
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._behind = False  # whether some wait that the file does not hold
        self._lock = threading.Lock()  # of the two above and the file
        self._writing = threading.Lock()  # held while the store is written to, so in order
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        with ExitStack() as opened:
            self._file = self._own_file(opened)
            self._recover(self._file)
            self._take_up()
            self._open = opened.pop_all()
        if self._waiting:
            self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """How many predictions are not in the store yet."""
        with self._lock:
            return len(self._waiting)

    def add(self, rows: Sequence[Scored]) -> list[int] | None:
        """Write predictions to the store, or keep them for later.

        Returns: their ids; None where they wait.
        Raises: StoreError where too many wait already, or where to try again is of no use; then
            none of these is kept.
        """
        with self._writing:
            if not self.waiting:
                try:
                    ids = self._store.add_predictions(rows)
                except StoreError as error:
                    self.fault = error
                    if not error.retryable:
                        raise
                else:
                    self.fault = None
                    return ids
            self._keep(rows)
        self._start()
        return None

    def flush(self) -> int:
        """Write what waits to the store now, as far as that is possible.

        Returns: how many wait still.
        """
        with self._writing:
            while batch := self._first():
                try:
                    self._store.add_predictions([_read(line) for line in batch])
                except StoreError as error:
                    self.fault = error
                    break
                self.fault = None
                self._drop(len(batch))
        return self.waiting

    def close(self) -> None:
        """Try once more, and leave what waits still in the file.

        Raises: StoreError where the file cannot be written: it says where they are kept, or that
            they are lost.
        """
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        with self._open:
            if self.flush():
                self._leave()

    def _leave(self) -> None:
        """Write all that waits to the file, or elsewhere. Raises: StoreError as `close`."""
        with self._lock:
            number, content = len(self._waiting), b"".join(self._waiting)
        then = f"once there is room, and before the next start, move it to {self._file}"
        try:
            or_elsewhere(self._file, lambda place: write_whole(place, content), then)
        except OutputError as error:
            kept = "" if then in str(error) else "; lost"
            wait = f"{pluralize(number, 'prediction')} still wait{'s' if number == 1 else ''}"
            raise StoreError(f"{wait} for {self._store.name}: {error}{kept}") from error

    def _keep(self, rows: Sequence[Scored]) -> None:
        lines = [_line(row) for row in rows]
        size = sum(map(len, lines))
        with self._lock:
            number = len(self._waiting)
            if number + len(lines) > self._most or self._bytes + size > self._largest:
                raise StoreError(
                    f"{self._store.name} is unreachable, and {number} predictions wait for it "
                    "already, which is the most; try again",
                    retryable=True,
                )
            self._waiting.extend(lines)
            self._bytes += size
            self._write(lines)

    def _write(self, lines: Sequence[bytes]) -> None:
        """Add to the file. What cannot be written stays in memory, and is added with the next: a
        full disk may be why it waits."""
        behind, self._behind = self._behind, True
        with suppress(OSError, OutputError):
            long = self._file.is_file() and self._file.stat().st_size > 2 * self._largest
            if long or behind:  # without what was written since, and with what could not be added
                write_whole(self._file, b"".join(self._waiting))
            else:
                with self._file.open("ab", buffering=0) as file:
                    append_whole(file, b"".join(lines), sync=True)
            self._behind = False

    def _first(self) -> list[bytes]:
        with self._lock:
            return [self._waiting[at] for at in range(min(_AT_ONCE, len(self._waiting)))]

    def _drop(self, number: int) -> None:
        """Forget the first ones. The file keeps them until none waits: their keys are known."""
        with self._lock:
            for _ in range(number):
                self._bytes -= len(self._waiting.popleft())
            if not self._waiting:
                self._behind = False
                with suppress(OSError):
                    self._file.unlink()

    def _own_file(self, opened: ExitStack) -> Path:
        """A file that no other process has, locked. Raises: StoreError."""
        files = _files(self._store)
        for file in files:
            try:
                opened.enter_context(locked(file))
            except OutputError as error:
                if file == files[-1]:
                    raise StoreError(
                        f"{file.parent}: another process writes into this store; end it, or give "
                        "this one another"
                    ) from error
            else:
                return file
        raise AssertionError("there is a file")

    def _take_up(self) -> None:
        """Make what waits for processes that are gone this one's."""
        for file in _files(self._store):
            if file != self._file and file.is_file():
                with suppress(OutputError), locked(file):
                    known = len(self._waiting)
                    self._recover(file)
                    self._write([self._waiting[at] for at in range(known, len(self._waiting))])
                    file.unlink(missing_ok=True)

    def _recover(self, file: Path) -> None:
        """Take up what an earlier process left; half a line at the end is what a kill leaves."""
        if not file.is_file():
            return
        content = read_whole(file, limit=ROWS_BYTES, error=StoreError)
        for line in content.splitlines(keepends=True):
            try:
                _read(line)
            except (ValueError, BlemishError):
                self.damaged += 1
                continue
            whole = line if line.endswith(b"\n") else line + b"\n"
            self._waiting.append(whole)
            self._bytes += len(whole)
        if self.damaged and content and not content.endswith(b"\n"):
            with suppress(OSError), file.open("ab") as opened:
                opened.write(b"\n")  # or the next line would be added to the damaged one

    def _start(self) -> None:
        with self._lock:
            running = self._thread is not None and self._thread.is_alive()
            if running or self._closed.is_set():
                return
            self._thread = threading.Thread(target=self._run, name="blemish-spool", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(self._pause):
            self.flush()


def _files(store: Store) -> list[Path]:
    """Where predictions may wait: SQLite is for one process at a time."""
    first = store.folder / FILE
    if store.is_sqlite:
        return [first]
    more = [first.with_stem(f"{first.stem}-{number}") for number in range(2, SERVICES + 1)]
    return [first, *more]


def _line(row: Scored) -> bytes:
    return json.dumps(row.to_dict()).encode() + b"\n"


def _read(line: bytes) -> Scored:
    """Raises: ValueError or ConfigError for what is no prediction."""
    found = parse_json(line)
    if not isinstance(found, dict):
        raise ValueError("no prediction")
    try:
        return _scored(found)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("no prediction") from error


def _scored(found: Mapping[str, Any]) -> Scored:
    regions, descriptor = found["regions"], found.get("descriptor")
    return Scored(
        **{
            **found,
            "descriptor": None if descriptor is None else Descriptor.from_dict(descriptor),
            "notes": tuple(found["notes"]),
            "regions": None if regions is None else tuple(regions),
            "time": datetime.fromisoformat(found["time"]),
        }
    )
