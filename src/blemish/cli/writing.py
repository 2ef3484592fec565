"""What a command writes at its end: where that fails, or is interrupted, it answers all the same,
and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blemish import interrupts
from blemish.cli import console
from blemish.cli.status import BY_SIGNAL, ERROR
from blemish.errors import OutputError
from blemish.files import cannot_write, or_elsewhere

if TYPE_CHECKING:
    from rich.table import Table


class Writing:
    """What could not be written so far: `errors`, in their order, and `stopped` where the process
    was asked to end meanwhile: then nothing more is written."""

    def __init__(self) -> None:
        self.errors: list[OutputError] = []
        self.stopped: interrupts.Interrupted | None = None

    @contextmanager
    def tried(self, then: str = "") -> Iterator[None]:
        """Around what writes: where it cannot, that is noted.

        Args: then: what is to be done, in a few words.
        """
        try:
            yield
        except OSError as error:
            self.errors.append(_with(cannot_write(error.filename or "a file", error), then))
        except OutputError as error:
            self.errors.append(_with(error, then))

    def kept(
        self, path: Path | None, write: Callable[[Path], object], *, folder: bool = False
    ) -> Path | None:
        """Have `write` write a file, or a folder, at `path`, or elsewhere (`files.or_elsewhere`).

        Returns: `path` where it is there now; None where it is not, or nothing was asked for.
        """
        if path is None or self.stopped:
            return None
        before = len(self.errors)
        try:
            with self.tried():
                what = "what is there" if folder else "it"
                or_elsewhere(path, write, f"once there is room, move {what} to {path}")
        except KeyboardInterrupt as error:
            said = f"interrupted before all of {path} was written; what is printed here is whole"
            self.stopped = interrupts.Interrupted(said, interrupts.number_of(error))
            return None
        return path if len(self.errors) == before else None

    def answer(
        self,
        document: Mapping[str, Any],
        human: Iterable[str | Table],
        *,
        as_json: bool,
        status: int,
    ) -> int:
        """Answer as `console.answer` does, then say what could not be written: with --json as
        `error` of the document.

        Args: status: the exit status where everything was written.
        """
        failed: list[BaseException] = [*self.errors, *([self.stopped] if self.stopped else [])]
        if not failed:
            console.answer(document, human, as_json=as_json)
            return status
        message = "; ".join(map(str, failed))
        error = {"kind": type(failed[-1]).__name__, "message": f"blemish: {message}"}
        console.answer({**document, "error": error}, human, as_json=as_json)
        if not as_json:
            for one in failed:
                console.complain(f"blemish: {one}")
        return BY_SIGNAL + self.stopped.number if self.stopped else ERROR


def _with(error: OutputError, then: str) -> OutputError:
    return OutputError(f"{error}; {then}") if then else error
