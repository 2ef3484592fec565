"""Attempts in forked processes: what crashes, hangs or is killed there leaves the harness whole.

The process that forks has imported blemish and computes nothing, so that an attempt costs
milliseconds instead of the seconds of an import, and starts as `python -m blemish` would.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

LIMIT = 5.0  # seconds of computing, or of waiting for nothing, that count as a hang
GIVE_UP = 120.0  # seconds of the clock, on a machine that has other things to do
ROOM = 6 * 2**30  # bytes that an attempt may allocate before the system refuses
REQUESTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
CODE = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class")


@dataclass(frozen=True, kw_only=True)
class End:
    """How an attempt ended.

    Attributes:
        status: exit status; None where a signal or the harness ended it. signal: of its end, or 0.
        hung: whether it was ended for computing or waiting more than the limit.
        out, err: what it printed. requests: attempts to reach a network, or to run a program.
        seconds: computing and waiting, without the time in which others had the processor.
        peak_mib: memory beyond that of a process that does nothing.
    """

    status: int | None
    signal: int = 0
    hung: bool = False
    out: str = ""
    err: str = ""
    requests: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_mib: float = 0.0

    @property
    def told(self) -> str:
        """The last line that it printed on standard error, or how it ended."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        return lines[-1] if lines else f"status {self.status}, signal {self.signal}"


def attempt(
    work: Callable[[], int],
    *,
    limit: float = LIMIT,
    room: int = ROOM,
    prepare: Callable[[], None] | None = None,
    watch: Callable[[int, float], None] | None = None,
) -> End:
    """Runs `work` in a fork, where it gives the exit status.

    Args:
        limit: seconds until it counts as hung. room: bytes that it may allocate.
        prepare: called in the fork first, once its output is caught.
        watch: called every few milliseconds with the fork's id and its age in seconds: to kill it.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _child(work, out, err, writer, room, prepare)
        os.close(writer)
        try:
            state, usage, hung = _wait(pid, started, limit, watch)
            with os.fdopen(reader, "rb", closefd=False) as told:
                requests = tuple(sorted(set(told.read().decode("utf-8", "replace").splitlines())))
        finally:
            os.close(reader)
        return End(
            status=os.waitstatus_to_exitcode(state) if os.WIFEXITED(state) else None,
            signal=os.WTERMSIG(state) if os.WIFSIGNALED(state) else 0,
            hung=hung,
            out=_text(out),
            err=_text(err),
            requests=requests,
            seconds=round(usage.ru_utime + usage.ru_stime, 3),
            peak_mib=max(0.0, round(usage.ru_maxrss / 1024 - _own_mib(), 1)),
        )


def _child(
    work: Callable[[], int],
    out: BinaryIO,
    err: BinaryIO,
    requests: int,
    room: int,
    prepare: Callable[[], None] | None,
) -> None:
    """All that happens in the fork; never returns."""
    status = 70
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        _settle(requests, room)
        if prepare is not None:
            prepare()
        status = work()
        sys.stdout.flush()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(status & 0xFF)


def _settle(requests: int, room: int) -> None:
    """Limits of a fork, and a hook that refuses the network and tells of it and of programs."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (data + room, data + room))

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CODE:
            os.write(requests, f"code: {event} {arguments[:1]!r:.80}\n".encode())
        elif event in REQUESTS and not isinstance(arguments[-1], (str, bytes)):  # no UNIX socket
            os.write(requests, f"network: {event} {arguments[1:]!r:.80}\n".encode())
            raise OSError("the harness refuses the network")
        elif event in REQUESTS[1:3]:
            os.write(requests, f"network: {event} {arguments!r:.80}\n".encode())
            raise OSError("the harness refuses the network")

    sys.addaudithook(refuse)


def _wait(
    pid: int, started: float, limit: float, watch: Callable[[int, float], None] | None
) -> tuple[int, Any, bool]:
    """(wait status, usage, whether it was ended as hung)."""
    hung = False
    while True:
        found, state, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return state, usage, hung
        age = time.monotonic() - started
        if watch is not None:
            watch(pid, age)
        if not hung and age > limit and (spent(pid, age) > limit or age > GIVE_UP):
            hung = True
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001 if age < 0.5 else 0.01)


def spent(pid: int, age: float, before: tuple[float, float] = (0.0, 0.0)) -> float:
    """The larger of the seconds in which a process computed, and in which it waited for nothing.

    On a busy machine a process may be ready and not get a processor: that is no fault of its own.
    `before`: what `busy` gave when the `age` began.
    """
    computed, ready = (now - then for now, then in zip(busy(pid), before, strict=True))
    return max(computed, age - computed - ready)


def busy(pid: int) -> tuple[float, float]:
    """Seconds in which the threads of a process computed, and were ready but had no processor."""
    computed = ready = 0.0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError, ValueError):
            on, queued, _ = map(int, file.read_text().split())
            computed += on / 1e9
            ready += queued / 1e9
    return computed, ready


def _own_mib() -> float:
    """What a fork has of this process's memory before it does anything."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read(4_000_000).decode("utf-8", "replace")


@dataclass
class _Line:
    """What is read of a fork that goes through many attempts."""

    pid: int
    reader: int
    told: int
    rest: bytes = b""


def through(
    work: Callable[[int], dict[str, Any]],
    count: int,
    *,
    limit: float = LIMIT,
    room: int = ROOM,
    deadline: float = float("inf"),
) -> Iterator[tuple[int, dict[str, Any]]]:
    """`work(0)`, `work(1)`, … in a fork, which is made anew where one crashes or hangs.

    `work` gives what JSON can hold. In place of what has crashed {"crash": signal}, and
    {"hang": seconds} of what took longer than `limit`. Ends when `time.monotonic()` is past
    `deadline`.
    """
    first = 0
    while first < count and time.monotonic() < deadline:
        line = _start(work, first, count, room)
        try:
            while first < count and time.monotonic() < deadline:
                answer = _answer(line, limit)
                with suppress(BlockingIOError):
                    answer["requests"] = (
                        os.read(line.told, 65536).decode("utf-8", "replace").splitlines()
                    )
                yield first, answer
                first += 1
                if "crash" in answer or "hang" in answer:
                    break
        finally:
            with suppress(ProcessLookupError):
                os.kill(line.pid, signal.SIGKILL)
            os.waitpid(line.pid, 0)
            os.close(line.reader)
            os.close(line.told)


def _start(work: Callable[[int], dict[str, Any]], first: int, count: int, room: int) -> _Line:
    reader, writer = os.pipe()
    told, tells = os.pipe()
    os.set_blocking(told, False)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(writer)
        os.close(tells)
        return _Line(pid, reader, told)
    try:
        os.close(reader)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        _settle(tells, room)
        for index in range(first, count):
            before = _reset_peak()
            start = time.process_time()
            try:
                found = work(index)
            except BaseException:
                found = {"bug": traceback.format_exc()[-600:]}
            found["seconds"] = round(time.process_time() - start, 4)
            found["peak"] = max(0, _memory("VmHWM") - before)
            os.write(writer, json.dumps(found).encode() + b"\n")
    finally:
        os._exit(0)


def _answer(line: _Line, limit: float) -> dict[str, Any]:
    """The next one of a fork."""
    begun = time.monotonic()
    before = busy(line.pid)
    while b"\n" not in line.rest:
        ready, _, _ = select.select([line.reader], [], [], 0.5)
        if ready:
            part = os.read(line.reader, 1 << 20)
            if not part:
                end = os.waitid(os.P_PID, line.pid, os.WEXITED | os.WNOWAIT)
                return {"crash": end.si_status if end else -1}
            line.rest += part
            continue
        age = time.monotonic() - begun
        if age > limit and (spent(line.pid, age, before) > limit or age > GIVE_UP):
            return {"hang": round(age, 1)}
    answer, _, line.rest = line.rest.partition(b"\n")
    found: dict[str, Any] = json.loads(answer)
    return found


def _reset_peak() -> int:
    """The bytes that this process has, from which its peak is counted anew."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(what: str) -> int:
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith(what):
            return int(row.split()[1]) * 1024
    return 0


def warm_up() -> None:
    """Imports all that the commands use, without computing anything, so that a fork need not."""
    for name in _USED:
        importlib.import_module(name)
    import cv2
    import torch

    from blemish import cli
    from blemish.engines import packages

    packages.onnxruntime()
    packages.openvino()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with redirect_stdout(io.StringIO()):
        cli.main(["methods"])  # builds the tree of commands
    gc.freeze()


_USED = (
    *(
        "blemish.cli",
        "blemish.detector.fit",
        "blemish.detector.predict",
        "blemish.detector.pretrain",
        "blemish.detector.refine",
        "blemish.detector.restoring",
        "blemish.detector.loading",
    ),
    *(
        "blemish.detector.calibrate",
        "blemish.detector.evaluate",
        "blemish.report.galleries",
        "blemish.report.simulation",
    ),
    *(
        "blemish.report.predictions",
        "blemish.bench.results",
        "blemish.bench.run",
        "blemish.report.html",
    ),
    *(
        "blemish.data.checking",
        "blemish.cli.app",
        "pydicom.pixels",
        "tifffile",
        "timm",
        "PIL.GifImagePlugin",
    ),
    *("blemish.export.exporting", "torch.onnx", "onnxscript", "torchvision"),
    *("PIL.PpmImagePlugin", "matplotlib.style", "rich.table", "rich.progress", "typer.rich_utils"),
)
