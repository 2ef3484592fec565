"""Signals that ask a process to end, as a KeyboardInterrupt that says which it was.

Only the command line listens to more than Ctrl-C: a library leaves the signals of its process
alone.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# SIGTERM is what Docker, Slurm and systemd send; SIGHUP comes when a terminal is closed.
_OTHERS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
# Seconds in which signals count as one: a terminal and what it has started may both send theirs,
# and torchrun takes its time.
_SAME, _SAME_UNDER_TORCHRUN = 1.0, 5.0
_PATIENCE = 3.0  # seconds that a second signal leaves to a long call, before the process ends
_speaking = False  # whether this process is a command line, which may say something and may end


class Interrupted(KeyboardInterrupt):
    """The process was asked to end.

    Attributes:
        number: of the signal; 2 where it was Ctrl-C.
    """

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        self.number = int(number)
        super().__init__(message)


def number_of(error: BaseException | None) -> int:
    """The number of the signal behind a KeyboardInterrupt."""
    return error.number if isinstance(error, Interrupted) else int(signal.SIGINT)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(number=number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def heard(*, aloud: bool = False) -> Iterator[None]:
    """While open, SIGTERM and SIGHUP interrupt as Ctrl-C does, where nobody has another wish for
    them; with `aloud` it is said where that takes long, see `told`.

    One that is ignored stays so, as SIGHUP under nohup. Outside the main thread nothing is changed.
    """
    global _speaking
    taken = [
        number
        for number in _OTHERS
        if _in_main_thread() and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in taken:
        signal.signal(number, _interrupt)
    _speaking = aloud
    try:
        yield
    finally:
        _speaking = False
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


class Waiting:
    """What came while interrupts wait: `number` is the first signal's, 0 where there was none."""

    def __init__(self) -> None:
        self.number = 0
        self.saving = False  # nothing interrupts while this is set
        self.left = threading.Event()  # set once nothing waits any more
        self._since = 0.0

    def note(self, number: int, _frame: FrameType | None) -> None:
        if self.number and not self.saving and time.monotonic() - self._since >= _apart():
            raise Interrupted(number=self.number)
        if not self.number:
            self.number, self._since = number, time.monotonic()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Around what must not be interrupted half way; a signal is noted, as the first one is."""
        self.saving = True
        try:
            yield
        finally:
            self.saving = False


def _apart() -> float:
    """Seconds between a signal and one that counts as the second."""
    return max(_SAME, _SAME_UNDER_TORCHRUN) if "TORCHELASTIC_RUN_ID" in os.environ else _SAME


@contextmanager
def told(words: str, came: Waiting | None = None) -> Iterator[None]:
    """While open, a command line that is interrupted says so on standard error at once, even where
    its main thread is in a call that lasts (a backward pass takes half a minute): Python's handlers
    run after that. Where the main thread has not come back a few seconds after a second signal, and
    `came` is not being saved, the process ends.

    Nothing is done in a library, outside the main thread, or without words.
    """
    if not (_speaking and words and _in_main_thread()):
        yield
        return
    came = Waiting() if came is None else came
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    teller = threading.Thread(target=_tell, args=(reading, words, came), daemon=True)
    teller.start()
    try:
        yield
    finally:
        came.left.set()
        signal.set_wakeup_fd(before)
        writing.close()
        teller.join()
        reading.close()


def _tell(reading: socket.socket, words: str, came: Waiting) -> None:
    """Answer the signals whose numbers come, until the other end is closed."""
    since = None
    while got := reading.recv(1):
        if got[0] not in (signal.SIGINT, *_OTHERS):
            continue
        if since is None:
            since = time.monotonic()
            _say(words)
        elif time.monotonic() - since >= _apart():
            while not came.left.wait(_PATIENCE):
                if not came.saving:  # files are written whole or not at all
                    _say("interrupted; what was saved is whole")
                    os._exit(128 + got[0])


def _say(words: str) -> None:
    # Not by `sys.stderr`, which the main thread may be at work with.
    with suppress(OSError, ValueError, AttributeError):
        start = "\n" if sys.stderr.isatty() else ""  # after ^C and a bar
        os.write(sys.stderr.fileno(), f"{start}blemish: {words}\n".encode())


@contextmanager
def waiting(*, wanted: bool = True, words: str = "") -> Iterator[Waiting]:
    """While open, signals that would interrupt are only noted; again a second later (five under
    torchrun), they interrupt.

    Without `wanted`, outside the main thread and where the caller has handlers of its own nothing
    is changed.

    Args: words: as of `told`.
    """
    came = Waiting()
    mine = (signal.default_int_handler, _interrupt)
    before = {
        number: handler
        for number in (signal.SIGINT, *_OTHERS)
        if wanted and _in_main_thread() and (handler := signal.getsignal(number)) in mine
    }
    for number in before:
        signal.signal(number, came.note)
    try:
        with told(words if before else "", came):
            yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ignored() -> Iterator[None]:
    """While open, nothing interrupts: for the last words of a process that was."""
    with waiting() as came, came.whole():
        yield
