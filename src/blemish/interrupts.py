"""Signals that ask a process to end, as a KeyboardInterrupt that says which it was.

Only the command line listens to more than Ctrl-C: a library leaves the signals of its process
alone.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SIGTERM is what Docker, Slurm and systemd send; SIGHUP comes when a terminal is closed.
_OTHERS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_SAME = 5.0  # seconds in which signals count as one: a terminal and torchrun may both send theirs


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
def heard() -> Iterator[None]:
    """While open, SIGTERM and SIGHUP interrupt as Ctrl-C does, where nobody has another wish for
    them.

    One that is ignored stays so, as SIGHUP under nohup. Outside the main thread nothing is changed.
    """
    taken = [
        number
        for number in _OTHERS
        if _in_main_thread() and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in taken:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


class Waiting:
    """What came while interrupts wait: `number` is the first signal's, 0 where there was none."""

    def __init__(self) -> None:
        self.number = 0
        self.saving = False  # nothing interrupts while this is set
        self._since = 0.0

    def note(self, number: int, _frame: FrameType | None) -> None:
        if self.number and not self.saving and time.monotonic() - self._since >= _SAME:
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


@contextmanager
def waiting(*, wanted: bool = True) -> Iterator[Waiting]:
    """While open, signals that would interrupt are only noted; again five seconds later, they
    interrupt.

    Without `wanted`, outside the main thread and where the caller has handlers of its own nothing
    is changed.
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
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ignored() -> Iterator[None]:
    """While open, nothing interrupts: for the last words of a process that was."""
    with waiting() as came, came.whole():
        yield
