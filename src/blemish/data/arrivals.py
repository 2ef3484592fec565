"""A folder that grows: which pictures in it are whole and have not been taken yet.

What a file is, is told by its place, its length and the moment at which it was last written: one
that is written anew under the same name is a new picture. Of what was taken only a hash is kept,
so that a million of them need some 100 MB.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from blemish.data.earlier import is_result, is_result_folder
from blemish.data.folder import NOT_ENTERED, place_of
from blemish.errors import DataError
from blemish.images import EXTENSIONS
from blemish.types import Frame

# Seconds since which nothing was written to a file that needs no second look: clocks of other
# machines go wrong by less, as a rule.
_LONG_AGO = 60.0


class Stamp(NamedTuple):
    """What changes when a file is written: its bytes, and when (nanoseconds since 1970)."""

    size: int
    written: int

    @classmethod
    def of(cls, path: str | Path) -> Stamp:
        """Raises: OSError."""
        status = os.stat(path)  # noqa: PTH116 - of each file at each look
        return cls(status.st_size, status.st_mtime_ns)


class Taken:
    """The files that were taken, each as a hash of 16 bytes."""

    def __init__(self) -> None:
        self._hashes: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, file: tuple[str, Stamp]) -> bool:
        return _hash(*file) in self._hashes

    def add(self, place: str, stamp: Stamp) -> None:
        self._hashes.add(_hash(place, stamp))


def _hash(place: str, stamp: Stamp) -> bytes:
    text = f"{stamp.size} {stamp.written} {place}"
    return hashlib.blake2b(os.fsencode(text), digest_size=16).digest()


class _Names(list[str]):
    """The names in a folder, once they are sorted: a set of them would need as much again."""

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        place = bisect_left(self, name)
        return place < len(self) and self[place] == name


@dataclass(slots=True)
class _Waiting:
    """A file that is not taken yet.

    Attributes:
        stamp: as it was at the latest look. since: when it first was so.
        look: the number of the latest look.
    """

    stamp: Stamp
    since: float
    look: int


class Arrivals:
    """The pictures of a folder, each once, as soon as it is whole.

    Args:
        folder: searched to any depth; hidden files and folders, and results of blemish, are left
            out.
        taken: those that are not to come again.
        leave_out: folders that are not entered.
        settle: seconds for which a file must not have changed.
        patience: seconds for which one that cannot be decoded is tried again.
        note: called with a sentence when a folder cannot be read, and when it can be again.
    Attributes:
        waiting: how many files were not taken yet after the latest look, and are to be.
    Raises: DataError where the folder cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        taken: Taken | None = None,
        leave_out: Collection[Path] = (),
        settle: float = 1.0,
        patience: float = 10.0,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.folder = Path(place_of(folder))
        self.taken = Taken() if taken is None else taken
        self._leave_out = {os.path.realpath(each) for each in leave_out}
        self._settle, self._patience, self._note = settle, patience, note
        self._waiting: dict[str, _Waiting] = {}
        self._given: dict[str, Stamp] = {}  # whose end is still to be told
        self._unread: set[Path] = set()
        self._looks = 0
        try:
            os.scandir(self.folder).close()
        except OSError as error:
            raise DataError(f"{folder}: cannot be read ({error.strerror})") from error

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def look(self) -> Iterator[Frame]:
        """Goes through the folder once, in the order of names, and gives what can be taken now.

        Each is then to be reported, to `finish` or to `postpone`.
        """
        self._looks += 1
        for place, stamp in self._pictures(self.folder, frozenset()):
            if (place, stamp) in self.taken:
                self._waiting.pop(place, None)
            elif place not in self._given and self._is_settled(place, stamp):
                self._given[place] = stamp
                yield Frame(source=Path(place), name=place, time=stamp.written / 1e9)
        gone = [place for place, one in self._waiting.items() if one.look != self._looks]
        for place in gone:
            del self._waiting[place]

    def stamp_of(self, frame: Frame) -> Stamp:
        """As the file was when it was given."""
        return self._given[frame.name]

    def finish(self, frame: Frame) -> None:
        """It is done with, and does not come again unless it is written anew."""
        self.taken.add(frame.name, self._given.pop(frame.name))
        self._waiting.pop(frame.name, None)

    def postpone(self, frame: Frame, *, broken: bool) -> bool:
        """Whether the file is to come again: it has changed since it was given, or it could not be
        decoded and may still be written."""
        stamp = self._given[frame.name]
        try:
            changed = Stamp.of(frame.name) != stamp
        except OSError:  # gone: what was made of it stands
            return False
        now = time.monotonic()
        known = self._waiting.get(frame.name)
        since = known.since if known is not None and known.stamp == stamp else now
        again = changed or (
            broken and not _is_old(stamp, self._patience) and now - since < self._patience
        )
        if again:
            del self._given[frame.name]
            self._waiting[frame.name] = _Waiting(stamp, since, self._looks)
        return again

    def _is_settled(self, place: str, stamp: Stamp) -> bool:
        now = time.monotonic()
        known = self._waiting.get(place)
        if known is not None and known.stamp == stamp:
            known.look = self._looks
            return now - known.since >= self._settle
        self._waiting[place] = _Waiting(stamp, now, self._looks)
        return self._settle == 0 or _is_old(stamp, self._settle)

    def _pictures(
        self, here: Path, above: frozenset[tuple[int, int]]
    ) -> Iterator[tuple[str, Stamp]]:
        """The places that `folder.scan` finds, without a list of all; links that lead nowhere are
        left out."""
        try:
            status = here.stat()
            with os.scandir(here) as listing:
                names = _Names(each.name for each in listing if not each.name.startswith("."))
        except OSError as error:
            self._unreadable(here, error)
            return
        if here in self._unread:
            self._unread.discard(here)
            self._note(f"{here}: can be read again")
        identity = (status.st_dev, status.st_ino)
        if identity in above or (self._leave_out and os.path.realpath(here) in self._leave_out):
            return
        names.sort()
        for name in names:
            place = os.path.join(here, name)  # noqa: PTH118 - of each file at each look
            try:
                status = os.stat(place)  # noqa: PTH116
            except OSError:  # gone meanwhile
                continue
            if stat.S_ISDIR(status.st_mode):
                if name not in NOT_ENTERED and not is_result_folder(here, name, names):
                    yield from self._pictures(here / name, above | {identity})
            elif stat.S_ISREG(status.st_mode) and _is_picture(name) and not is_result(name, names):
                yield place, Stamp(status.st_size, status.st_mtime_ns)

    def _unreadable(self, here: Path, error: OSError) -> None:
        """Said once; a folder that is merely gone is no fault, but for the watched one."""
        is_gone = isinstance(error, FileNotFoundError) and here != self.folder
        if not is_gone and here not in self._unread:
            self._unread.add(here)
            self._note(f"{here}: cannot be read ({error.strerror}); it is tried again")


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122


def _is_old(stamp: Stamp, seconds: float) -> bool:
    """Whether a file was last written long ago, by whatever clock."""
    return time.time() - stamp.written / 1e9 >= max(seconds, _LONG_AGO)
