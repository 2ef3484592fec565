"""Reading files that somebody else may have made; writing whole, so that readers see old or new."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, RawIOBase
from pathlib import Path
from types import ModuleType
from typing import IO

from blemish.errors import OutputError

_locks: ModuleType | None
try:
    import fcntl as _locks
except ImportError:  # Windows
    _locks = None

# The most bytes that are read of a file, by what it is named as: far above any that is meant, and
# far below a terabyte of holes. Pictures have limits of their own (`blemish.images.Limits`).
GIB = 2**30
ARTIFACT_BYTES = 16 * GIB  # a checkpoint, a pre-trained encoder and weights hold no more than these
WEIGHTS_BYTES = 64 * GIB
ROWS_BYTES = 4 * GIB  # of predictions, of a benchmark, of the log of a training
TABLE_BYTES = GIB
DOCUMENT_BYTES = 16 * 2**20  # of settings, of a suite, of what a run says of itself

# What pictures are named as, in lower case: a folder scan considers these (the content decides the
# format), and nothing but a picture is written under such a name, where it might replace one.
EXTENSIONS = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp"),
        *(".pgm", ".ppm", ".pnm", ".dcm", ".dicom"),
    )
)

_TEMPORARY = re.compile(r"\.blemish-[0-9a-f]{16}\.tmp")
# Seconds since something was written to a temporary file, which was in memory already.
_ABANDONED = 60.0
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.+)")  # two letters at least: C:\ is a drive
_STREAM = re.compile(r"/dev/(stdin|stdout|stderr|fd(/.*)?)|/proc/.*")
_PROBE = 2**16  # bytes by which a disk is found to be full before any work
_BLOCK = 2**16  # bytes that are read at once from the end of a file of rows
_swept: set[Path] = set()  # folders that this process has looked through for what killed ones left

_KINDS = (
    (stat.S_ISDIR, "a folder; name the file in it"),
    (stat.S_ISFIFO, "a pipe; copy what it gives to a file, and name that"),
    (stat.S_ISSOCK, "a socket; name a file"),
    (stat.S_ISCHR, "a device; name a file"),
    (stat.S_ISBLK, "a device; name a file"),
)


def uri_of(path: str | Path) -> str:
    """The URI that a path was named as, such as s3://bucket/parts; "" where it is a path.

    Example:
        >>> uri_of(Path("s3://bucket/parts")), uri_of(Path("parts/a.png"))
        ('s3://bucket/parts', '')
    """
    found = _URI.fullmatch(str(path))
    if found is None or Path(f"{found[1]}:").is_dir():
        return ""
    return f"{found[1]}://{found[2]}"


def open_regular(
    path: str | Path, *, limit: int, error: Callable[[str], Exception]
) -> BufferedReader:
    """A named file, open for reading: a regular one of at most `limit` bytes, behind any links.

    What it is is asked of the path, as to open a device may do something, and again of what was
    opened, without waiting: a pipe that takes the file's place in between does not hang the reader.

    Raises: `error` with one sentence that says what to do.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        fault = _fault(os.stat(path), limit)  # noqa: PTH116 - a null byte in a Path raises too
        if not fault:
            file = open(os.open(path, flags), "rb")  # noqa: PTH123, SIM115 - the caller closes it
            fault = _fault(os.fstat(file.fileno()), limit)
            if not fault:
                return file
            file.close()
    except (OSError, ValueError) as problem:  # ValueError: a null byte in the name
        raise error(f"{path}: cannot be read ({_reason(problem)})") from problem
    raise error(f"{path}: {fault}")


def _fault(status: os.stat_result, limit: int) -> str:
    """Why a file of this kind and size is not read; "" where it is."""
    if not stat.S_ISREG(status.st_mode):
        return f"cannot be read, it is {_kind(status)}"
    if status.st_size > limit:
        return (
            f"is {status.st_size:,} bytes, and at most {limit:,} are read of a file of this kind; "
            "name another file"
        )
    return ""


def _kind(status: os.stat_result) -> str:
    """What is no regular file, and what to do."""
    found = (what for is_kind, what in _KINDS if is_kind(status.st_mode))
    return next(found, "no regular file; name one")


def read_whole(path: str | Path, *, limit: int, error: Callable[[str], Exception]) -> bytes:
    """The content of a named file, as of `open_regular`: what it held when it was opened.

    Raises: `error`.
    """
    with open_regular(path, limit=limit, error=error) as file:
        try:
            return file.read(os.fstat(file.fileno()).st_size)
        except OSError as problem:
            raise error(f"{path}: cannot be read ({_reason(problem)})") from problem


def write_whole(
    path: str | Path, content: bytes | Iterable[bytes], *, picture: bool = False
) -> Path:
    """Write to a temporary file beside `path`, fsync, rename; missing folders are made.

    A symbolic link stays, and what it leads to is replaced. A file that is replaced keeps its mode.
    Temporary files that killed processes have left in the folder are removed.

    Args:
        content: at once, or piece by piece as it is made.
        picture: whether it may be one: nothing else gets the name of one (`EXTENSIONS`).
    Raises: OutputError if it cannot be written (no permission, disk full, a folder of that name…).
    """
    path = Path(path)
    target = writable_place(path, picture=picture)
    # Not tempfile: its files are private to the user, and results are made to be handed on.
    temporary = target.parent / f".blemish-{secrets.token_hex(8)}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        try:
            with temporary.open("xb") as file:
                _lock(file)
                file.writelines([content] if isinstance(content, bytes) else content)
                file.flush()
                with suppress(OSError):  # a new file, or a file system without modes
                    os.chmod(temporary, stat.S_IMODE(target.stat().st_mode) & 0o777)  # noqa: PTH101
                os.fsync(file.fileno())
                if os.name == "posix":  # while it is locked, or another would take it for left
                    temporary.replace(target)
            if os.name != "posix":
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def writable_place(path: Path, *, picture: bool = False) -> Path:
    """Where a file named `path` is written: behind the links, where it is one.

    Args: picture: as of `write_whole`.
    Raises: OutputError for what is there and is no file (a folder is refused when it is written
    to), for a URI, and for the name of a picture.
    """
    if uri := uri_of(path):
        raise OutputError(
            f"{uri}: is on another file system, where `predict --engine ray` alone writes; name a "
            "path, and copy the file there"
        )
    if not picture and path.suffix.lower() in EXTENSIONS:
        raise OutputError(
            f"{path}: is the name of a picture, and what is written is none: it might replace one; "
            "let the name end otherwise"
        )
    target = path
    try:
        if path.is_symlink():
            target = Path(os.path.realpath(path))
        status = None
        with suppress(FileNotFoundError):
            status = path.stat()
    except (OSError, ValueError) as problem:
        raise cannot_write(path, problem) from problem
    if _STREAM.fullmatch(os.path.abspath(path)) or _STREAM.fullmatch(str(target)):  # noqa: PTH100
        raise OutputError(
            f"{path}: is a stream of a process, and a result is written to a file; name one"
        )
    if status is not None and not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        what = _kind(status).partition(";")[0]
        raise OutputError(f"{path}: is {what}, which nothing is written to; name a file")
    return target


def end_last_row(path: Path) -> None:
    """End the last line of a JSONL file that rows are added to, or make the file.

    Half a row that a killed process has left is removed; a whole one gets its line break.

    Raises: OutputError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            end, last = _last_line(file)
            try:
                whole = isinstance(json.loads(last), dict)
            except (ValueError, RecursionError):
                whole = False
            if whole:
                file.write(b"\n")
            else:
                file.truncate(end)
    except OSError as error:
        raise cannot_write(path, error) from error


def _last_line(file: IO[bytes]) -> tuple[int, bytes]:
    """Where what follows the last line break begins, and what it is."""
    start, tail = file.seek(0, os.SEEK_END), b""
    while start and b"\n" not in tail:
        step = min(start, _BLOCK)
        start -= step
        file.seek(start)
        tail = file.read(step) + tail
    begins = tail.rfind(b"\n") + 1
    return start + begins, tail[begins:]


def append_whole(file: RawIOBase, content: bytes, *, sync: bool = False) -> None:
    """Add to an unbuffered file that is open for appending, and with `sync` have it on the disk;
    where that fails the file is as it was. Raises: OSError.
    """
    end, left = file.seek(0, os.SEEK_END), memoryview(content)
    try:
        while left:
            left = left[file.write(left) or 0 :]
        if sync:
            os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            file.truncate(end)  # half a row would spoil the next one
        raise


def or_elsewhere(path: Path, write: Callable[[Path], object], then: str) -> None:
    """Have `write` write at `path` what took long to make; where that fails, beside other temporary
    files in a new folder, so that it is not lost.

    Args: then: what is to be done with it, in a few words.
    Raises: OutputError, always where it is not at `path`. It says where it is kept; where it could
        not be kept either, no more than the first one.
    """
    try:
        write(path)
    except OutputError as error:
        kept = None
        try:
            kept = Path(tempfile.mkdtemp(prefix="blemish-kept-"), path.name)
            write(kept)
        except (OSError, OutputError):  # that disk is full, too, or there is none
            if kept is not None:
                shutil.rmtree(kept.parent, ignore_errors=True)
            raise error from None
        raise OutputError(f"{error}. What was made is kept in {kept}: {then}") from error


def taken_back(error: OutputError, written: int, of: int) -> OutputError:
    """What is said where some of several pictures were written, and removed again.

    Args: error: of the file that could not be. written: how many were whole. of: all of them.
    """
    return OutputError(
        f"{error}. The {written} of {of} pictures that were written before it are removed again; "
        "once there is room, the same command makes them all"
    )


def check_writable(path: Path, *, picture: bool = False) -> None:
    """Make sure, before any work, that a file can be written at `path`. Missing folders are made.

    By writing as much as a small result: where the disk is full already, an empty file can still
    be made.

    Args: picture: as of `write_whole`.
    Raises: OutputError.
    """
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file in it")
    place = writable_place(path, picture=picture)
    probe = place.parent / f".blemish-{secrets.token_hex(8)}.tmp"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        sweep(place.parent)
        try:
            with probe.open("xb") as file:
                file.write(bytes(_PROBE))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def locked(path: Path, wait: float = 0.0) -> Iterator[None]:
    """Keeps other processes from what is written at `path` step by step, while open.

    By a lock on a hidden file beside it, which the system releases when the process ends in any
    way, and which the next one that locks takes over. Where locks are not to be had, as on Windows
    and some network drives, nothing is locked.

    Args: wait: seconds for another process to let it go.
    Raises: OutputError where another process holds it, or the folder cannot be written.
    """
    place = writable_place(path)
    until = time.monotonic() + wait
    name = place.with_name(f".{place.name}.lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = name.open("ab")
            try:
                free = _lock(file)
                # The one who held it may have removed it between the opening and the lock.
                there = free and name.exists()
                same = there and os.path.samestat(name.stat(), os.fstat(file.fileno()))
            except BaseException:
                file.close()
                raise
            if same or _locks is None or (not free and time.monotonic() >= until):
                break
            file.close()
            if not free:
                time.sleep(0.02)
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        if not free:
            raise OutputError(
                f"{path}: another process of blemish is writing it; let that end, or name another "
                "place"
            )
        try:
            yield
        finally:
            with suppress(OSError):
                name.unlink()


def _lock(file: IO[bytes]) -> bool:
    """Lock an open file for this process; False where another holds it, True without locks."""
    if _locks is None:
        return True
    try:
        _locks.flock(file, _locks.LOCK_EX | _locks.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def sweep(folder: Path, *, again: bool = False) -> None:
    """Remove the temporary files that killed processes have left in a folder, once in a process,
    or `again`.

    One counts as left where no process holds its lock and nothing has been written to it for a
    minute: over a network a lock may not be seen, and between the making of a file and its lock
    there is a moment.
    """
    if folder in _swept and not again:
        return
    _swept.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not _TEMPORARY.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(OSError):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime < _ABANDONED:
                    continue
                with open(entry.path, "r+b") as file:  # noqa: PTH123
                    if _lock(file):
                        os.unlink(entry.path)  # noqa: PTH108


def cannot_write(path: str | Path, error: Exception) -> OutputError:
    """The one wording for a file that cannot be written."""
    return OutputError(f"{path}: cannot be written ({_reason(error)}); choose another place")


def _reason(problem: Exception) -> object:
    return getattr(problem, "strerror", None) or problem
