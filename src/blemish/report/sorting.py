"""Pictures put into folders by their verdict, never over one that is there.

A picture is put in its place before its row is written, and a moved one leaves its old place
after that: a process that is killed at any moment loses none, and the next one ends what it began.
"""

from __future__ import annotations

import errno
import filecmp
import os
import re
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from blemish.files import cannot_write, sweep
from blemish.report.heatmap import encode_png

Way: TypeAlias = Literal["move", "copy", "link"]
GOOD, DEFECT, UNSURE = VERDICTS = ("good", "defect", "unsure")


class Sorter:
    """Puts pictures into `folder`/good, defect and unsure.

    Args:
        folder: made where it is missing.
        way: how files get there: moved, copied, or as symbolic links to where they lie.
        within: what the pictures lie in; their folders below it are kept.
    """

    def __init__(self, folder: Path, way: Way, within: Path) -> None:
        self.folder, self.way, self._within = folder, way, within
        self._next: dict[Path, int] = {}  # the number to try, of names that were there already

    def put(self, path: Path, verdict: str) -> str:
        """Where a file now is as well, relative to the folder; "" where it is gone.

        Raises: OutputError.
        """
        inside = path.relative_to(self._within) if path.is_relative_to(self._within) else path.name
        act = {"move": _linked, "copy": _copied, "link": _pointed}[self.way]

        def place(target: Path) -> None:
            act(path, target)

        def is_there(target: Path) -> bool:
            return _is_same(path, target)

        if not os.path.lexists(path):
            return ""
        try:
            return self._placed(Path(verdict, inside), place, is_there)
        except FileNotFoundError as error:
            if os.path.lexists(path):
                raise cannot_write(self.folder / verdict, error) from error
            return ""

    def put_pixels(self, name: str, pixels: np.ndarray, verdict: str) -> str:
        """The same for a frame, written as PNG. `pixels`: RGB, uint8 H W 3."""
        content = encode_png(pixels)
        stem = re.sub(r"[^A-Za-z0-9.#_-]+", "_", name.rpartition("/")[2])

        def place(target: Path) -> None:
            _whole(target, lambda temporary: temporary.write_bytes(content))

        def is_there(target: Path) -> bool:
            return target.is_file() and target.read_bytes() == content

        return self._placed(Path(verdict, f"{stem}.png"), place, is_there)

    def leave(self, path: Path, placed: str) -> None:
        """The end of a move: the file leaves its old place, if it is in the new one. Raises:
        OutputError."""
        target = self.folder / placed
        if self.way != "move" or not placed or target.is_symlink() or not _is_same(path, target):
            return
        try:
            path.unlink()
        except OSError as error:
            raise cannot_write(path, error) from error

    def _placed(
        self, name: Path, place: Callable[[Path], None], is_there: Callable[[Path], bool]
    ) -> str:
        """The name that `place` could give; one that is taken stays, and the next is tried.

        `is_there`: whether it was put there by a process that was killed before it wrote the row.
        """
        number = self._next.get(name, 1)
        while True:
            free = name if number == 1 else name.with_name(f"{name.stem}-{number}{name.suffix}")
            target = self.folder / free
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                if not (os.path.lexists(target) and is_there(target)):
                    place(target)
                return free.as_posix()
            except FileExistsError as error:
                if not target.parent.is_dir():
                    raise cannot_write(target.parent, error) from error
                number += 1
                self._next[name] = number
            except FileNotFoundError:
                raise
            except OSError as error:
                raise cannot_write(target, error) from error


def _linked(path: Path, target: Path) -> None:
    """A second name for the file; a copy where there can be none, as on another disk."""
    try:
        os.link(os.path.realpath(path), target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOENT, errno.ENOSPC):
            raise
        _copied(path, target)


def _pointed(path: Path, target: Path) -> None:
    target.symlink_to(path)


def _copied(path: Path, target: Path) -> None:
    _whole(target, lambda temporary: shutil.copy2(path, temporary))


def _whole(target: Path, write: Callable[[Path], object]) -> None:
    """A file that is there whole or not at all. Raises: FileExistsError."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    sweep(target.parent)
    temporary = target.parent / f".blemish-{secrets.token_hex(8)}.tmp"
    try:
        write(temporary)
        try:
            os.link(temporary, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            target.touch(exist_ok=False)
            temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _is_same(source: Path, target: Path) -> bool:
    """Whether a file is the other one, or points to it, or was copied from it."""
    try:
        if source.samefile(target):
            return True
        one, other = source.stat(), target.stat()
        same = (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
        return same and filecmp.cmp(source, target, shallow=False)
    except OSError:
        return False
