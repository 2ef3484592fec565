"""Who writes into a folder on any file system: one run, which says so in a file there.

    OUTPUT/_writing-3fa9….json     which run, on which machine, since when
    OUTPUT/_alive-3fa9….json       its last sign of life

Locks of the system end with a process but do not reach beyond a machine, and buckets have none. So
a run puts a file under a name of its own and then looks for those of others: of two that begin at
once the later look finds both, as file systems and object stores show what was put before. Whoever
finds another withdraws. While it writes, a run renews its file; one that was not renewed for
`GONE` seconds, by the clock of the file system, or whose process this machine has no more, is of a
run that was killed, and is removed. A run whose file is gone writes no more.

What is left: a run that stands still for `GONE` seconds between the last look and the writing of
one file. `Output.check` finds what it did.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import secrets
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blemish.errors import BlemishError, OutputError
from blemish.files import DOCUMENT_BYTES
from blemish.scale.places import Place, read_bytes, told, write_bytes

GONE = 300.0  # seconds after the last sign of a run
_EVERY = 20.0  # seconds between its signs of life
_CLAIM, _ALIVE = "_writing-", "_alive-"
_own: set[str] = set()  # the names of this process's claims


class Claim:
    """The right to write into a folder, from when it is made until it is closed.

    Args: folder: it need not be there. every: seconds between signs of life.
    Raises: OutputError where another run has it, which it names, or nothing can be written.
    """

    def __init__(self, folder: Place, *, every: float = _EVERY) -> None:
        self._folder = folder
        self._name = f"{_CLAIM}{secrets.token_hex(8)}.json"
        self._place = folder / self._name
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._live, args=(every,), name="blemish-claim", daemon=True
        )
        _own.add(self._place.path)
        try:
            self._write(self._place)
            if (other := self._other()) is not None:
                raise other
        except BaseException:
            self.close()
            raise
        self._thread.start()

    def check(self) -> None:
        """Raises: OutputError where the claim has been taken over, or cannot be looked up."""
        try:
            found = _afresh(self._folder.filesystem).get_file_info(self._place.path)
        except Exception as error:  # packages of fsspec raise what they like
            raise told(self._place, error, OutputError, "be read") from error
        if not found.is_file:
            raise OutputError(
                f"{self._folder.name}: another run has taken over, as nothing was heard of this "
                f"one for {GONE:.0f} seconds, or somebody removed {self._place.name}; what is "
                "missing is scored by that one, or with --resume"
            )

    def close(self) -> None:
        """Give it back."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._remove(self._place)
        _own.discard(self._place.path)

    def _live(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            with suppress(BlemishError):  # the next time
                self._write(self._folder / _sign_of(self._name))

    def _write(self, place: Place) -> None:
        write_bytes(place, json.dumps(_self_told()).encode(), error=OutputError)

    def _remove(self, claim: Place) -> None:
        name = claim.path.rpartition("/")[2]
        for place in (claim, self._folder / _sign_of(name)):
            with suppress(Exception):  # it is gone already, or is found to be old later
                self._folder.filesystem.delete_file(place.path)

    def _other(self) -> OutputError | None:
        """What is said of another run that writes; those that were killed go."""
        found = claims_in(self._folder)
        now = next((heard for place, heard in found if place.path == self._place.path), None)
        for place, heard in found:
            if place.path == self._place.path:
                continue
            who = who_claims(place)
            silent = bool(now and heard and (now - heard).total_seconds() > GONE)
            if not silent and not _is_gone(place, who):
                return taken(self._folder, place, who)
            self._remove(place)
        return None


def claims_in(folder: Place) -> list[tuple[Place, datetime | None]]:
    """The claims to a folder, and when the last was heard of each, where its file system says so.

    Raises: OutputError.
    """
    from pyarrow import fs

    try:
        chosen = fs.FileSelector(folder.path, allow_not_found=True)
        found = _afresh(folder.filesystem).get_file_info(chosen)
    except Exception as error:  # packages of fsspec raise what they like
        raise told(folder, error, OutputError, "be written to") from error
    heard = {each.path.rpartition("/")[2]: each.mtime for each in found if each.is_file}
    return [
        (folder / name, max(filter(None, (time, heard.get(_sign_of(name)))), default=None))
        for name, time in heard.items()
        if name.startswith(_CLAIM)
    ]


def _afresh(filesystem: Any) -> Any:
    """The same file system, which forgets what it knew: those of fsspec remember listings."""
    handler = getattr(filesystem, "handler", None)
    if (known := getattr(handler, "fs", None)) is not None:
        known.invalidate_cache()
    return filesystem


def _sign_of(claim: str) -> str:
    """What the file of a run's signs of life is called."""
    return claim.replace(_CLAIM, _ALIVE, 1)


def who_claims(place: Place) -> dict[str, Any]:
    """What a run says of itself; empty where it cannot be read."""
    with suppress(BlemishError, ValueError, RecursionError):
        who = json.loads(read_bytes(place, limit=DOCUMENT_BYTES, error=OutputError))
        if isinstance(who, dict):
            return who
    return {}


def taken(folder: Place, place: Place, who: dict[str, Any]) -> OutputError:
    """That another run writes into a folder, and what to do."""
    names = ("run", "process", "since")
    run, process, since = (str(who.get(name, "?"))[:100] for name in names)
    return OutputError(
        f"{folder.name}: another run writes there ({run}, process {process}, since {since}); let "
        "it end, or name another folder. If it was killed, go on with --resume "
        f"{GONE:.0f} seconds after that, or at once when you have removed {place.name}"
    )


def _is_gone(claim: Place, who: dict[str, Any]) -> bool:
    """Whether a run was one of this machine, and its process is there no more."""
    machine, process = who.get("machine"), who.get("process")
    if not machine or machine != _machine() or not isinstance(process, int):
        return False
    return claim.path not in _own if process == os.getpid() else not _runs(process)


def _runs(process: int) -> bool:
    if os.name != "posix":  # there, to ask may end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _self_told() -> dict[str, Any]:
    user = "?"
    with suppress(Exception):  # a user without a name, as containers have
        user = getpass.getuser()
    return {
        "run": f"{user}@{platform.node()}",
        "process": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
    }


def _machine() -> str:
    """By which processes can be told from each other by their number; "" where that is unknown:
    the start of the system, and what a container can see of it."""
    with suppress(OSError):
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{started}/{Path('/proc/self/ns/pid').stat().st_ino}"
    return ""
