"""Memory that nobody uses goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from blemish import machine
from blemish.detector.predict import Detector
from blemish.machine import FreeMemory

# Blocks that glibc cuts from its heap; the last one stays in use, so the heap cannot shrink.
_HELD = """
import ctypes, re
from pathlib import Path
from blemish import machine
machine._BETWEEN = 0.0
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def mib():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
blocks = [libc.malloc(100_000) for _ in range(2000)]
for block in blocks:
    ctypes.memset(block, 1, 100_000)
for block in blocks[:-1]:
    libc.free(block)
held = mib()
assert machine.FreeMemory().give_back()
print(held - mib())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_what_is_free_goes_back_to_the_system() -> None:
    command = [sys.executable, "-c", _HELD]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(told) == pytest.approx(190, abs=15)  # MiB


def test_at_most_once_in_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(machine.time, "monotonic", lambda: now[0])
    memory, trimmed = FreeMemory(), []
    memory._trim = trimmed.append
    for now[0] in (101.9, 102.0, 103.9, 104.1):
        memory.give_back()
    assert len(trimmed) == 2
    memory._trim = None  # another C library
    now[0] = 1000.0
    assert not memory.give_back()


def test_every_batch_asks_for_it(
    fitted: Callable[..., Detector], picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(FreeMemory, "give_back", lambda _: asked.append(1))
    list(fitted("knn").predict_many([picture(i) for i in range(5)], batch_size=2))
    assert len(asked) == 3
