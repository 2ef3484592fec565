"""Work in processes of their own: what they say on the way, what they answer, and how they end.

A process of a module of blemish prints lines of JSON: `{"progress": [stage, done, total]}` as often
as it likes, and last its answer. Whatever else libraries print is passed over.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any

from blemish import config as configs
from blemish.types import Progress, silent

_BETWEEN = 0.5  # seconds between two lines of progress


def ending(code: int, said: str) -> str:
    """How a process ended that has not answered, in words; `said`: on standard error."""
    if code < 0:
        killed = " (out of memory?)" if code == -9 else ""
        return f"the process was ended by signal {-code}{killed}"
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    return f"the process ended with status {code}: {last}"


def answer_of(
    module: str, order: Mapping[str, Any], *, seconds: float, progress: Progress = silent
) -> tuple[dict[str, Any] | None, str]:
    """What `python -m MODULE` answers to an order, a JSON object on its standard input.

    The process is ended when it has not answered in time, and when this is interrupted.

    Returns: the answer, or None and why there is none.
    """
    try:
        with tempfile.TemporaryFile() as errors, _started(module, errors) as child:
            late = threading.Event()

            def end() -> None:
                late.set()
                child.kill()

            timer = threading.Timer(max(0.1, seconds), end)
            timer.daemon = True
            timer.start()
            try:
                answer = _heard(child, order, progress)
                child.wait()
            finally:
                timer.cancel()
                child.kill()
            if answer is not None:
                return answer, ""
            if late.is_set():
                return None, f"it was ended after {seconds:.0f} s, for which it had time"
            errors.seek(0)
            return None, ending(child.returncode, errors.read().decode("utf-8", "replace"))
    except OSError as error:
        return None, f"its process could not be started ({error.strerror or error})"


def _started(module: str, errors: Any) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", module]
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=errors, text=True, errors="replace"
    )


def _heard(
    child: subprocess.Popen[str], order: Mapping[str, Any], progress: Progress
) -> dict[str, Any] | None:
    """The last object that a process prints, which is no progress; None where there is none."""
    assert child.stdin is not None
    assert child.stdout is not None
    answer = None
    try:
        child.stdin.write(json.dumps(order))
        child.stdin.close()
    except BrokenPipeError:
        return None
    for line in child.stdout:
        try:
            told = configs.parse_json(line)
        except ValueError:
            continue
        if not isinstance(told, dict):
            continue
        if set(told) == {"progress"}:
            progress(*told["progress"])
        else:
            answer = told
    return answer


class Told:
    """A progress that prints its lines for `answer_of`, not more often than anybody reads."""

    def __init__(self) -> None:
        self._stage, self._at = "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage or now - self._at > _BETWEEN:
            self._stage, self._at = stage, now
            print(json.dumps({"progress": [stage, done, total]}), flush=True)
