"""What the command line shows: answers on standard output; progress and messages on standard error.

Nothing heavy is imported here, and rich only where something is drawn with it: `blemish --help` has
to be instant.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from blemish.text import duration, printable
from blemish.types import Progress

if TYPE_CHECKING:
    from rich.table import Table


_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_OF_A_PART = 60
_LINES_OF_A_STAGE = 20  # about; a log is to be read
_DETAILS = " · "  # between the name of a stage and what is to be said of it
_ENDLESS = 1_000_000  # columns where the output is no terminal: nothing is cut for a pipe
_COLOURS = {"alarm": "bold red", "missing": "bold red", "normal": "green"}


def answer(
    document: Mapping[str, Any] | Sequence[Any], human: Iterable[str | Table], *, as_json: bool
) -> None:
    """The result of a command on standard output: the document as JSON, or its human form."""
    if as_json:
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    for part in human:
        if isinstance(part, str):
            print(printable(part, keep="\n"))
        else:
            print(_drawn(part))


def complain(message: str) -> None:
    """A message on standard error."""
    # A line break of ours is followed by two spaces (a blank line may be between) or by advice;
    # another is part of a name.
    text = printable(re.sub(r"\n(?!\n?  |Try )", r"\\n", message), keep="\n")
    with suppress(OSError):  # nobody is there any more to read it
        print(text, file=sys.stderr)


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()
) -> Table:
    """A table of plain cells; the columns named in `right` are numbers."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in head:
        drawn.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        cells = [printable(str(cell)) for cell in row]
        drawn.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in cells))
    return drawn


def facts(pairs: Iterable[tuple[str, object]]) -> Table:
    """Names and values in two columns."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    drawn.add_column(style="bold", no_wrap=True)
    drawn.add_column(overflow="fold")
    for name, value in pairs:
        drawn.add_row(Text(name), Text(printable(str(value), keep="\n")))
    return drawn


def _drawn(part: Table) -> str:
    from rich.console import Console

    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=_ENDLESS)
    with console.capture() as capture:
        console.print(part)
    return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n"))


@contextmanager
def progress() -> Iterator[Progress]:
    """A function to call with (stage, done, total): bars on a terminal, else a line now and then.

    A stage is known by what stands before its first " · "; what follows may change from call to
    call, and is shown in place of the rate and the remaining time.
    """
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich import progress as bar
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.table import Column

    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),  # if narrow, the bar gives way
        TextColumn("{task.fields[details]}", markup=False),
    ]
    with bar.Progress(*columns, console=Console(file=sys.stderr), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def tick(stage: str, done: int, total: int) -> None:
            name, _, details = stage.partition(_DETAILS)
            if name not in tasks:
                for earlier in tasks.values():
                    bars.stop_task(earlier)
                tasks[name] = bars.add_task(name, total=total or None, details="")
            task = tasks[name]
            details = details or _pace(bars.tasks[task].speed, total - done)
            bars.update(task, completed=done, total=total or None, details=details)

        yield tick


class _Lines:
    """A line for each stage when it begins, one at each twentieth of it that took five seconds or
    more, and the last; one a minute of what goes on in a single part of it.

    Where it is not known how much there is: one each time that the stage has lasted half as long
    again.
    """

    def __init__(self) -> None:
        self._stage = ""
        self._began = self._shown = 0.0
        self._first = self._told = 0  # what was done at the stage's first and its latest line

    def __call__(self, stage: str, done: int, total: int) -> None:
        name, _, details = stage.partition(_DETAILS)
        now = time.monotonic()
        if name != self._stage:
            self._stage, self._began, self._first = name, now, done
        elif done == total == self._told or (
            done != total and not self._due(now, done, total, bool(details))
        ):
            return
        self._shown, self._told = now, done
        rate = (done - self._first) / (now - self._began) if now > self._began else None
        parts = [
            f"{name}: {done} of {total}" if total else name,
            details or _pace(rate, total - done),
        ]
        print(printable(_DETAILS.join(part for part in parts if part)), file=sys.stderr, flush=True)

    def _due(self, now: float, done: int, total: int, detailed: bool) -> bool:
        if detailed and done == self._told and now - self._shown > _SECONDS_OF_A_PART:
            return True
        if now - self._shown < _SECONDS_BETWEEN_LINES:
            return False
        if total:
            return (done - self._told) * _LINES_OF_A_STAGE >= total
        return now - self._began >= 1.5 * (self._shown - self._began)


def _pace(rate: float | None, left: int) -> str:
    """ "1.0/s · 24 s left"; empty where nothing is known of it."""
    if not rate:
        return ""
    return f"{rate:.1f}/s" + (f"{_DETAILS}{duration(left / rate)} left" if left > 0 else "")
