"""What pictures may ask for: one alone (`Limits`), and all together (`Budget`); and a quiet
decoder.

A decode reserves what it will need at its peak before it allocates. It waits while others hold too
much, in the order of arrival, so that a large picture is not overtaken for ever by small ones.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from blemish.errors import BlemishError, ConfigError, ImageError

TRUNCATED = "is truncated: its end is missing"
OUT_OF_MEMORY = (
    "needs more memory than there was left when its turn came; score fewer pictures at once, "
    "close other programs, or save it in a smaller size"
)
_SIGNS = (
    *("out of memory", "can't allocate memory", "not enough memory", "insufficient memory"),
    *("failed to allocate", "bad_alloc", "bad allocation"),  # engines; C++
)
_UNASKED = 32 * 2**20  # to ask the system takes longer than to decode a picture so small
_NO_END = 2**60  # cgroup v1 and RLIMIT_AS write "no limit" as a number near 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a picture may ask for; one of more than one frame or page is always refused.

    Attributes:
        max_bytes: size of the file; checked before it is read.
        max_pixels: height × width; checked before a pixel is decoded.
        max_bytes_in_windows, max_pixels_in_windows: the same of a file that is read in windows
            (`open_windows`), which takes disk and time, but no memory in proportion.
        memory: bytes that all pictures being decoded in this process may hold together; one that
            needs more is refused. None: half of what the machine, its container (cgroup) and
            `ulimit -v` leave free; one that needs more is decoded alone if it fits at all.
    """

    max_bytes: int = 512 * 2**20
    max_pixels: int = 200_000_000
    max_bytes_in_windows: int = 16 * 2**30
    max_pixels_in_windows: int = 2**32
    memory: int | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            name, value = each.name, getattr(self, each.name)
            if value is not None and value < 1:
                raise ConfigError(f"limits must be at least 1: {name} {value}")


LIMITS = Limits()


class Unusable(ValueError):
    """Why a picture is refused, for a user; `decode` makes it an ImageError of the source."""


def damaged(what: str) -> Unusable:
    """Of a file that contradicts itself."""
    return Unusable(f"is damaged: {what}")


def check_bytes(size: int, limits: Limits, kind: str = "max_bytes", advice: str = "") -> None:
    """Raises: Unusable for a file of more bytes than there may be.

    Args: kind: the limit that counts, a field of `Limits`; advice: what to do beside raising it.
    """
    if size > (most := getattr(limits, kind)):
        raise Unusable(f"is {size:,} bytes; the limit is {most:,} (Limits.{kind}){advice}")


def check_size(
    width: int, height: int, limits: Limits, kind: str = "max_pixels", advice: str = ""
) -> None:
    """Raises: Unusable for no pixels, or more than there may be. Args: as of `check_bytes`."""
    if width < 1 or height < 1:
        raise Unusable(f"has no pixels ({width} × {height})")
    if width * height > (most := getattr(limits, kind)):
        raise Unusable(
            f"is {width:,} × {height:,} = {width * height:,} pixels; "
            f"the limit is {most:,} (Limits.{kind}){advice}"
        )


def check_frames(frames: int, what: str = "frames") -> None:
    """Raises: Unusable for more pictures than one."""
    if frames > 1:
        raise Unusable(f"has {frames} {what}; one picture per file is needed: save each on its own")


class _Quiet:
    """Holds back what Pillow, pydicom, tifffile and OpenCV say: blemish says what is wrong itself.

    The switches belong to the process, so all decoding threads share them: the first one in sets
    them, the last one out restores them. `warnings.catch_warnings` would put back the whole list of
    filters, and with it those that another thread had set only for a while; this takes out the one
    filter that it put in.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    def __enter__(self) -> None:
        import cv2

        with self._lock:
            if self._users == 0:
                warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")
                self._filter = warnings.filters[0]
                self._level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
                names = ("PIL.TiffImagePlugin", "pydicom", "tifffile")
                self._loggers = [(log, log.disabled) for log in map(logging.getLogger, names)]
                for log, _ in self._loggers:
                    log.disabled = True
            self._users += 1

    def __exit__(self, *_: object) -> None:
        import cv2

        with self._lock:
            self._users -= 1
            if self._users == 0:
                with contextlib.suppress(ValueError):  # another thread has replaced the list
                    warnings.filters.remove(self._filter)  # type: ignore[attr-defined]
                cv2.utils.logging.setLogLevel(self._level)
                for log, disabled in self._loggers:
                    log.disabled = disabled


quiet = _Quiet()


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out: of Python, numpy, Pillow, OpenCV, torch or
    an engine.

    Example:
        >>> ran_out(MemoryError()), ran_out(RuntimeError("CPUAllocator: can't allocate memory"))
        (True, True)
        >>> ran_out(ValueError("broken data stream"))
        False
    """
    if isinstance(error, (BlemishError, OSError)):  # their words may quote the name of a file
        return isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: the least that the machine, its cgroups (v1 and v2,
    by which containers and Slurm limit memory) and its own limit (`ulimit -v`) leave.

    None where the system tells nothing.

    Args: root: where `proc` and `sys` lie.
    """
    found = [*_of_the_machine(root), *_of_cgroups(root), *_of_the_process(root)]
    return max(min(found), 0) if found else None


def _of_the_machine(root: Path) -> Iterator[int]:
    meminfo = _numbers(root / "proc/meminfo")
    if "MemAvailable:" in meminfo:
        yield meminfo["MemAvailable:"] * 1024
    elif root == Path("/") and hasattr(os, "sysconf"):
        with contextlib.suppress(ValueError, OSError):
            yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _of_cgroups(root: Path) -> Iterator[int]:
    """What is left in each cgroup from this process's own up to the root of what it can see."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            base, names = root / "sys/fs/cgroup", ["memory.max", "memory.high"]
            current, idle = "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/memory", ["memory.limit_in_bytes"]
            current, idle = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        own = base / path.strip("/")
        for group in (own, *own.parents):
            if base not in (group, *group.parents):
                break
            told = [_text(group / name).strip() for name in (current, *names)]
            used, *limits = (int(text) if text.isdigit() else _NO_END for text in told)
            if used < _NO_END and min(limits) < _NO_END:
                yield min(limits) - used + _numbers(group / "memory.stat").get(idle, 0)


def _of_the_process(root: Path) -> Iterator[int]:
    """What `ulimit -v` leaves."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _text(root / "proc/self/statm").split()
    if pages and 0 <= limit < _NO_END and limit != resource.RLIM_INFINITY:
        yield limit - int(pages[0]) * resource.getpagesize()


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _numbers(path: Path) -> dict[str, int]:
    """A file of lines "name number …"."""
    lines = (line.split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


class Budget:
    """Memory reserved by the decodes of a process; safe to use from many threads.

    Without a limit a decode waits until all of them together, itself included, hold at most half of
    the memory that is free and theirs. What is reserved counts as free until it is allocated, so at
    worst they promise each other all that was free, never more. One that is larger than that is let
    through when no other is at work, if free memory holds it at all.

    Args:
        free: says how many bytes are free; None = not known, then only an explicit limit counts.
    Attributes:
        used: bytes that are reserved now.
    """

    def __init__(self, free: Callable[[], int | None] = free_memory) -> None:
        self._free = free
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self.used = 0
        self._at_work = 0  # threads that hold something and do not wait
        self._own = _Own()

    @contextlib.contextmanager
    def held(self) -> Iterator[_Own]:
        """Inside, what this thread reserves stays reserved: until the end of the outermost block.

        At the end of an inner block it shrinks to what that block sets as `kept`: the bytes of the
        picture that it hands out.
        """
        own = self._own
        before, kept = own.reserved, own.kept
        own.depth, own.kept = own.depth + 1, 0
        try:
            yield own
        finally:
            own.depth -= 1
            left = min(before + own.kept, own.reserved) if own.depth else 0
            with self._changed:
                self.used -= own.reserved - left
                self._at_work -= own.reserved > 0 and left == 0
                self._changed.notify_all()
            own.reserved, own.kept = left, kept

    def reserve(self, size: int, limit: int | None = None) -> None:
        """Wait until `size` bytes may be taken, and count them to the block (`held`) that is open.

        Those that wait are served in order. Whoever holds something already (the bytes of a file)
        waits like all others: where all who hold something wait, the first of them is let through.

        Args: limit: the most that all may hold together, in bytes; None = half of free memory.
        Raises: Unusable where it does not fit even alone.
        """
        own, ticket = self._own, object()
        with self._changed:
            self._waiting.append(ticket)
            self._at_work -= own.reserved > 0
            self._changed.notify_all()
            try:
                while self._waiting[0] is not ticket or not self._fits(size, limit):
                    self._changed.wait()
                self.used += size
                own.reserved += size
            finally:
                self._waiting.remove(ticket)
                self._at_work += own.reserved > 0
                self._changed.notify_all()

    def _fits(self, size: int, limit: int | None) -> bool:
        """Whether the first of those that wait may go on."""
        if limit is not None and self._own.reserved + size > limit:
            raise Unusable(
                f"needs about {in_words(self._own.reserved + size)} to decode; the limit is "
                f"{in_words(limit)} (Limits.memory): raise it, or save the picture smaller"
            )
        if limit is not None and self._at_work and self.used + size > limit:
            return False
        if self.used + size <= _UNASKED:
            return True
        free = self._free()
        if self._at_work == 0:
            if free is not None and size > free:
                raise Unusable(
                    f"needs about {in_words(size)} to decode; {in_words(free)} are free: "
                    "make room, or save the picture in a smaller size"
                )
            return True
        return free is None or self.used + size <= (free + self.used) // 2


class _Own(threading.local):
    """What a thread has reserved, and what the open block hands out, in bytes."""

    reserved = 0
    kept = 0
    depth = 0


def in_words(size: int) -> str:
    """A number of bytes for people.

    Example:
        >>> in_words(10_300_000_000), in_words(5_000_000)
        ('9.6 GiB', '4.8 MiB')
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


BUDGET = Budget()


@contextlib.contextmanager
def within_memory(name: str) -> Iterator[_Own]:
    """Inside, what is decoded counts to the process's budget until the block ends; where memory
    runs out, that is the picture's own failure.

    Raises: ImageError of `name` where memory runs out, whichever library says so.
    """
    try:
        with BUDGET.held() as own:
            yield own
        return
    except Exception as error:
        if not ran_out(error):
            raise
    # Outside the handler: what was decoded so far is let go with the error's frames.
    raise ImageError(name, OUT_OF_MEMORY)
