"""Sessions of browsers, which a restart of the service does not end.

A session is what its cookie says, signed: a number of its own, whose token opened it, and when it
ends. The key lies in the store's folder, readable by its owner alone; services that share the
folder know each other's sessions. Beside it stand the sessions that were logged out. Who deletes
the file logs everybody out, at the next start. Without a folder the key lives as long as the
process.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blemish.errors import ConfigError
from blemish.files import DOCUMENT_BYTES, read_whole

FILE = "sessions.key"  # of the store
SECONDS = 12 * 3600  # of a session
_KEY = 32  # bytes
_WORDS = 4  # of a cookie: its number, who, until when, signature


@dataclass(frozen=True, slots=True)
class Opened:
    """What a cookie says.

    Attributes:
        number: of the session. owner: whose it is, as of `Sessions.owner`.
        ends: when, in seconds since 1970.
    """

    number: str
    owner: str
    ends: int


class Sessions:
    """Signs cookies and reads them. Args: key: bytes that nobody else knows; None = new ones.

    Attributes: fault: why the key could not be kept; "" where it was, or was not to be.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(_KEY)
        self._ended: dict[str, int] = {}
        self._file: Path | None = None
        self._state: tuple[int, int] | None = None
        self.fault = ""

    @classmethod
    def kept(cls, folder: Path) -> Sessions:
        """Those of a store's folder, which is there; with a new key where it has none that can be
        read, or others can read it."""
        made, file = cls(), folder / FILE
        try:
            found = _read(file)
            if found is None:
                _write(file, made._key)
                found = _read(file)
            if found is not None:
                made._key, made._ended = found
                made._file, made._state = file, _state_of(file)
        except OSError as error:
            made.fault = f"{FILE} cannot be written ({error.strerror or type(error).__name__})"
        return made

    def owner(self, token: bytes) -> str:
        """What stands for a user in a cookie. Args: token: its digest; b"" of who needs none."""
        return self._signed("owner", token.hex())[:32]

    def open(self, owner: str) -> str:
        """The cookie of a new session."""
        ends = int(time.time()) + SECONDS
        words = f"{secrets.token_urlsafe(18)}.{owner}.{ends}"
        return f"{words}.{self._signed('session', words)}"

    def read(self, cookie: str) -> Opened | None:
        """The session of a cookie; None where it is forged, has ended, or was logged out."""
        words, _, signature = cookie.rpartition(".")
        known = self._signed("session", words)
        if not hmac.compare_digest(signature.encode(), known.encode()):
            return None
        number, owner, ends = words.split(".")
        self._look()
        if int(ends) <= time.time() or _hashed(number) in self._ended:
            return None
        return Opened(number, owner, int(ends))

    def csrf(self, session: Opened) -> str:
        """What has to come with every change that a session's browser wants."""
        return self._signed("csrf", session.number)

    def end(self, session: Opened) -> None:
        """Log a session out, for as long as its cookie would be good."""
        self._ended[_hashed(session.number)] = session.ends
        if self._file is not None:
            line = f"{_hashed(session.number)} {session.ends}\n".encode()
            with suppress(OSError), self._file.open("ab") as file:
                file.write(line)

    def _look(self) -> None:
        """Read what was logged out by other services of this folder."""
        if self._file is None or (state := _state_of(self._file)) in (None, self._state):
            return
        with suppress(OSError):
            found = _read(self._file)
            if found is not None and found[0] == self._key:
                self._ended |= found[1]
        self._state = state

    def _signed(self, purpose: str, words: str) -> str:
        told = f"{purpose} {words}".encode("utf-8", "surrogateescape")
        return hmac.new(self._key, told, hashlib.sha256).hexdigest()


def _read(file: Path) -> tuple[bytes, dict[str, int]] | None:
    """The key, and the sessions that were logged out and have not ended; None without a key."""
    try:
        content = read_whole(file, limit=DOCUMENT_BYTES, error=ConfigError)
        mode = stat.S_IMODE(file.stat().st_mode)
    except (ConfigError, OSError):
        return None
    lines = content.decode("ascii", "replace").splitlines()
    try:
        key = bytes.fromhex(lines[0])
    except (IndexError, ValueError):
        return None
    if len(key) != _KEY or (os.name == "posix" and mode & 0o077):
        return None
    pairs = [line.split() for line in lines[1:]]
    now = time.time()
    ended = {
        pair[0]: int(pair[1])
        for pair in pairs
        if len(pair) == 2 and pair[1].isdecimal() and int(pair[1]) > now
    }
    return key, ended


def _write(file: Path, key: bytes) -> None:
    """Write a key whole, for its owner alone; one that another service has just written stays."""
    draft = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
    opened = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(opened, "wb") as written:
            written.write(key.hex().encode() + b"\n")
            written.flush()
            os.fsync(written.fileno())
        if file.exists():  # one that cannot be used
            draft.replace(file)
        else:
            with suppress(FileExistsError):
                os.link(draft, file)
    except OSError:
        if file.exists() or not draft.exists():
            raise
        draft.replace(file)  # a file system without links
    finally:
        draft.unlink(missing_ok=True)


def _state_of(file: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = file.stat()
        return found.st_mtime_ns, found.st_size
    return None


def _hashed(number: str) -> str:
    return hashlib.sha256(number.encode("utf-8", "surrogateescape")).hexdigest()[:32]
