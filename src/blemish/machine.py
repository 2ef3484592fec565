"""The machine that this runs on: its processor as the system describes it, and its memory."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from contextlib import suppress
from pathlib import Path

MOST_THREADS = 1024  # that anybody may ask for; no machine has more cores
_BETWEEN = 2.0  # seconds between two times that memory is given back


def cpu_name() -> str:
    """The name of the processor's model or, where the system does not say, its architecture."""
    return _described("model name") or platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """The instruction sets that the system reports; empty where it does not say."""
    return set(_described("flags").split())


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class FreeMemory:
    """What the C library's allocator holds of this process's memory and nobody uses.

    glibc keeps what is freed between blocks in use, in the heaps of all threads: of a service that
    scored for minutes, two thirds of what it had asked of the system. It takes 0.02 to 0.1 s to
    give it back, for which other threads' allocations wait.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()
        trim = None
        with suppress(OSError, TypeError):  # TypeError: this process has no library of its own
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
        self._trim = trim

    def give_back(self) -> bool:
        """Give it back to the system, at most once in two seconds; whether it was tried."""
        now = time.monotonic()
        if self._trim is None or now - self._last < _BETWEEN:
            return False
        self._last = now
        self._trim(0)
        return True


FREE_MEMORY = FreeMemory()


def _described(name: str) -> str:
    """What /proc/cpuinfo says of the first core under this name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""
