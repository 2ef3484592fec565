"""What parts of a fit have given, kept in a folder, so that one that was interrupted goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blemish import artifact
from blemish.errors import ArtifactError, ConfigError, OutputError
from blemish.files import DOCUMENT_BYTES, read_whole, write_whole

if TYPE_CHECKING:
    from torch import Tensor

_PLAN = "plan.json"
_ENDING = ".part"
Tensors = Mapping[str, "Tensor"]
Held = tuple[dict[str, "Tensor"], dict[str, Any]]


class Kept:
    """Pieces by name, each some tensors and a JSON object: files in a folder, or in memory.

    Args:
        folder: where they are kept, beside what they are part of; None = in memory.
        plan: what they are parts of, JSON-ready: pieces of another plan are of no use here.
        resume: whether pieces that lie there are taken.
    Raises: OutputError where pieces lie there and are not to be taken; ConfigError where they are
        of another plan.
    """

    def __init__(self, folder: Path | None, plan: Mapping[str, Any], *, resume: bool) -> None:
        self._folder = folder
        self._memory: dict[str, Held] = {}
        if folder is None:
            return
        check_free(folder, resume=resume)
        told = {key: _digest(value) for key, value in plan.items()}
        if (folder / _PLAN).exists():
            before = _plan(folder)
            other = sorted(key for key in {*told, *before} if told.get(key) != before.get(key))
            if other:
                raise ConfigError(
                    f"{folder}: the parts that are kept there were learned otherwise: "
                    f"{', '.join(other)} differ; give the same as then, or remove the folder and "
                    "start anew without --resume"
                )
        else:
            write_whole(folder / _PLAN, json.dumps(told).encode())

    def put(self, name: str, tensors: Tensors, notes: Mapping[str, Any]) -> None:
        """Keep a piece. Raises: OutputError."""
        if self._folder is None:
            self._memory[name] = dict(tensors), dict(notes)
            return
        whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
        artifact.write(self._folder / f"{name}{_ENDING}", whole, notes)

    def get(self, name: str) -> Held | None:
        """A piece; None where there is none that is whole."""
        if self._folder is None:
            return self._memory.get(name)
        path = self._folder / f"{name}{_ENDING}"
        if not path.exists():
            return None
        with suppress(ArtifactError):
            return artifact.read(path)
        return None

    def has(self, name: str) -> bool:
        """Whether a piece of this name seems to be there."""
        if self._folder is None:
            return name in self._memory
        return (self._folder / f"{name}{_ENDING}").exists()

    def drop(self, name: str) -> None:
        """A piece is not needed any more."""
        self._memory.pop(name, None)
        if self._folder is not None:
            (self._folder / f"{name}{_ENDING}").unlink(missing_ok=True)


def check_free(folder: Path, *, resume: bool) -> None:
    """Raises: OutputError where parts lie and are not to be gone on with, or something else is
    there."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is no folder, and parts are to be kept there; remove it")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / _PLAN).exists():
        raise OutputError(
            f"{folder}: parts are to be kept there, and it holds something else; move that"
        )
    if not resume:
        raise OutputError(
            f"{folder}: parts of an interrupted fit lie there; --resume goes on with them, or "
            "remove the folder to start anew"
        )


def forget(folder: Path) -> None:
    """Remove the folder, where it is one of parts."""
    if (folder / _PLAN).is_file():
        shutil.rmtree(folder, ignore_errors=True)


def identity_of(sources: Sequence[Any]) -> list[Any]:
    """By which pictures are known before they are read: their names, and of files their lengths
    and the times of writing."""
    found: list[Any] = []
    for each in sources:
        told: list[Any] = [str(each) if isinstance(each, (str, Path)) else _of_memory(each)]
        with suppress(OSError, ValueError, TypeError):
            status = Path(each).stat()
            told += [status.st_size, status.st_mtime_ns]
        found.append(told)
    return found


def _of_memory(source: Any) -> str:
    content = source if isinstance(source, bytes) else getattr(source, "tobytes", bytes)()
    return hashlib.sha256(content).hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _plan(folder: Path) -> dict[str, Any]:
    try:
        text = read_whole(folder / _PLAN, limit=DOCUMENT_BYTES, error=OutputError)
        told = json.loads(text)
        assert isinstance(told, dict)
    except (ValueError, AssertionError, RecursionError) as error:
        raise OutputError(
            f"{folder / _PLAN}: is damaged; remove the folder to start anew"
        ) from error
    return told
