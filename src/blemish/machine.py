"""The processor that this runs on, as the system describes it."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

MOST_THREADS = 1024  # that anybody may ask for; no machine has more cores


def cpu_name() -> str:
    """The name of the processor's model or, where the system does not say, its architecture."""
    return _described("model name") or platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """The instruction sets that the system reports; empty where it does not say."""
    return set(_described("flags").split())


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _described(name: str) -> str:
    """What /proc/cpuinfo says of the first core under this name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""
