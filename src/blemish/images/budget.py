"""The memory that all decoders of the process share.

A decode reserves what it will need at its peak before it allocates. It waits while others hold too
much, in the order of arrival, so that a large picture is not overtaken for ever by small ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from blemish.errors import BlemishError, ImageError
from blemish.images.limits import Unusable

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "insufficient memory")
_UNASKED = 32 * 2**20  # to ask the system takes longer than to decode a picture so small
_NO_END = 2**60  # cgroup v1 and RLIMIT_AS write "no limit" as a number near 2**63
OUT_OF_MEMORY = (
    "needs more memory than there was left when its turn came; score fewer pictures at once, "
    "close other programs, or save it in a smaller size"
)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out: of Python, numpy, Pillow, OpenCV or torch.

    Example:
        >>> ran_out(MemoryError()), ran_out(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
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
    found = [_of_the_machine(root), *_of_cgroups(root), _of_the_process(root)]
    known = [each for each in found if each is not None]
    return max(min(known), 0) if known else None


def _of_the_machine(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    if root == Path("/") and hasattr(os, "sysconf"):
        with contextlib.suppress(ValueError, OSError):
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


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
            limits = [
                int(text) for name in names if (text := _text(group / name).strip()).isdigit()
            ]
            used = _text(group / current).strip()
            if limits and used.isdigit() and min(limits) < _NO_END:
                yield min(limits) - int(used) + _entry(group / "memory.stat", idle)


def _of_the_process(root: Path) -> int | None:
    """What `ulimit -v` leaves."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _text(root / "proc/self/statm").split()
    if limit in (resource.RLIM_INFINITY, -1) or limit >= _NO_END or not pages:
        return None
    return limit - int(pages[0]) * resource.getpagesize()


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _entry(path: Path, name: str) -> int:
    """A number of a file of lines "name number"; 0 where it is not there."""
    for line in _text(path).splitlines():
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    return 0


class Budget:
    """Memory reserved by the decodes of a process; safe to use from many threads.

    Without a limit a decode waits until all of them together, itself included, hold at most half of
    the memory that is free and theirs. What is reserved counts as free until it is allocated, so at
    worst they promise each other all that was free, never more. One that is larger than that is let
    through when no other is at work, if free memory holds it at all.

    Args:
        free: says how many bytes are free; None = not known, then only an explicit limit counts.
    """

    def __init__(self, free: Callable[[], int | None] = free_memory) -> None:
        self._free = free
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._used = 0
        self._at_work = 0  # threads that hold something and do not wait
        self._own = _Own()

    @property
    def used(self) -> int:
        """Bytes that are reserved now."""
        return self._used

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
                self._used -= own.reserved - left
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
                self._used += size
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
                f"{in_words(limit)} (Limits.memory): raise it, or save the picture in a smaller size"
            )
        if limit is not None and self._at_work and self._used + size > limit:
            return False
        if self._used + size <= _UNASKED:
            return True
        free = self._free()
        if self._at_work == 0:
            if free is not None and size > free:
                raise Unusable(
                    f"needs about {in_words(size)} to decode; {in_words(free)} are free: "
                    "make room, or save the picture in a smaller size"
                )
            return True
        return free is None or self._used + size <= (free + self._used) // 2


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
