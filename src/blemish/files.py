"""Reading files that somebody else may have made, and writing so that a reader sees the old content or the new."""

from __future__ import annotations

import os
import secrets
import stat
from io import BufferedReader
from pathlib import Path

from blemish.errors import BlemishError, OutputError

# The most bytes that are read of a file, by what it is named as: far above any that is meant, and
# far below a terabyte of holes. Pictures have limits of their own (`blemish.images.Limits`).
GIB = 2**30
ARTIFACT_BYTES = 16 * GIB  # a checkpoint, a pre-trained encoder and weights hold no more than these
WEIGHTS_BYTES = 64 * GIB
ROWS_BYTES = 4 * GIB  # of predictions, of a benchmark, of the log of a training
TABLE_BYTES = GIB
DOCUMENT_BYTES = 16 * 2**20  # of settings, of a suite, of what a run says of itself

_KINDS = (
    (stat.S_ISDIR, "a folder; name the file in it"),
    (stat.S_ISFIFO, "a pipe; copy what it gives to a file, and name that"),
    (stat.S_ISSOCK, "a socket; name a file"),
    (stat.S_ISCHR, "a device; name a file"),
    (stat.S_ISBLK, "a device; name a file"),
)


def open_regular(path: str | Path, *, limit: int, error: type[BlemishError]) -> BufferedReader:
    """A named file, open for reading: a regular one of at most `limit` bytes, behind any links.

    What it is is asked of the path, as to open a device may do something, and again of what was
    opened, without waiting: a pipe that takes the file's place in between does not hang the reader.

    Raises: `error` with one sentence that says what to do.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        _check_regular(path, os.stat(path), error)  # noqa: PTH116 - a null byte in a Path raises too
        file = open(os.open(path, flags), "rb")  # noqa: PTH123, SIM115 - the caller closes it
        try:
            status = os.fstat(file.fileno())
            _check_regular(path, status, error)
            if status.st_size > limit:
                raise error(
                    f"{path}: is {status.st_size:,} bytes, and at most {limit:,} are read of a file of this kind; "
                    "name another file"
                )
        except BaseException:
            file.close()
            raise
    except (OSError, ValueError) as problem:  # ValueError: a null byte in the name
        raise error(f"{path}: cannot be read ({getattr(problem, 'strerror', None) or problem})") from problem
    return file


def read_whole(path: str | Path, *, limit: int, error: type[BlemishError]) -> bytes:
    """The content of a named file, as of `open_regular`: what it held when it was opened.

    Raises: `error`.
    """
    with open_regular(path, limit=limit, error=error) as file:
        try:
            return file.read(os.fstat(file.fileno()).st_size)
        except OSError as problem:
            raise error(f"{path}: cannot be read ({problem.strerror or problem})") from problem


def _check_regular(path: str | Path, status: os.stat_result, error: type[BlemishError]) -> None:
    if not stat.S_ISREG(status.st_mode):
        what = next((what for is_kind, what in _KINDS if is_kind(status.st_mode)), "no regular file; name one")
        raise error(f"{path}: cannot be read, it is {what}")


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write to a temporary file beside `path`, fsync, rename; missing folders are made.

    Raises: OutputError if it cannot be written (no permission, disk full, a folder of that name, …).
    """
    path = Path(path)
    # Not tempfile: its files are private to the user, and results are made to be handed on.
    temporary = path.parent / f".blemish-{secrets.token_hex(8)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def cannot_write(path: str | Path, error: OSError) -> OutputError:
    """The one wording for a file that cannot be written."""
    return OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another place")
