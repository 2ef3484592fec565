"""Processes that are killed at any moment, and what they had acknowledged by then.

    said = killed(work, folder, after=0.2, said=tmp_path / "said")

runs `work(say, folder)` in a process of its own, which has imported everything when it begins, ends
it by SIGKILL 0.2 s after its first word, and returns the lines that it had handed to `say`: what it
said was done. `work` is a function of a module, and never returns by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["blemish.store.store", "blemish.store.spool", "alembic.command"])

Say = Callable[[str], None]


def killed(
    work: Callable[..., None], *given: Any, after: float, said: Path, at_once: bool = False
) -> list[str]:
    """What a process says before it is killed.

    Args:
        after: seconds that it has. said: a file for its words, made anew. at_once: whether these
            seconds count from its start, so that it is killed before its first word too.
    """
    said.write_bytes(b"")
    process = _FORKS.Process(target=_run, args=(work, str(said), given))
    process.start()
    try:
        until = time.monotonic() + 60
        while not at_once and not said.stat().st_size:
            assert process.is_alive(), "it ended by itself"
            assert time.monotonic() < until, "it says nothing"
            time.sleep(0.002)
        time.sleep(after)
        assert process.is_alive(), "it ended by itself"
    finally:
        process.kill()
        process.join()
    lines = said.read_text().split("\n")
    return lines[:-1]  # the last one was not ended


def _run(work: Callable[..., None], said: str, given: tuple[Any, ...]) -> None:
    place = os.open(said, os.O_WRONLY | os.O_APPEND)
    work(lambda line: os.write(place, f"{line}\n".encode()) and None, *given)
