"""What a command writes at its end: where that fails it answers all the same, and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blemish.cli import console
from blemish.cli.status import ERROR
from blemish.errors import OutputError
from blemish.files import cannot_write, or_elsewhere

if TYPE_CHECKING:
    from rich.table import Table


class Writing:
    """What could not be written so far: `errors`, in their order."""

    def __init__(self) -> None:
        self.errors: list[OutputError] = []

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
        before = len(self.errors)
        if path is not None:
            with self.tried():
                what = "what is there" if folder else "it"
                or_elsewhere(path, write, f"once there is room, move {what} to {path}")
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
        if not self.errors:
            console.answer(document, human, as_json=as_json)
            return status
        message = "; ".join(map(str, self.errors))
        error = {"kind": OutputError.__name__, "message": f"blemish: {message}"}
        console.answer({**document, "error": error}, human, as_json=as_json)
        if not as_json:
            for one in self.errors:
                console.complain(f"blemish: {one}")
        return ERROR


def _with(error: OutputError, then: str) -> OutputError:
    return OutputError(f"{error}; {then}") if then else error
