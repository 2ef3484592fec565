"""Files, folders and patterns -> the picture files in them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from blemish.errors import DataError
from blemish.images import EXTENSIONS

SUFFIXES = ", ".join(sorted(EXTENSIONS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """What a folder holds, hidden files and folders left out, in path order.

    Attributes:
        pictures: files with a picture's suffix, at any depth.
        folders: the folders below it, at any depth.
        others: files with another suffix, at any depth.
    """

    pictures: tuple[Path, ...]
    folders: tuple[Path, ...]
    others: tuple[Path, ...]


def scan(folder: str | Path) -> Tree:
    """Everything below `folder`. Links are followed; a link to a folder that it lies in is not.

    A link with a picture's suffix that leads nowhere counts as a picture: decoding it tells the user.

    Raises: DataError when a folder cannot be listed.
    """
    pictures: list[Path] = []
    folders: list[Path] = []
    others: list[Path] = []

    def walk(here: Path, above: frozenset[tuple[int, int]]) -> None:
        try:
            status = here.stat()
            with os.scandir(here) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(".")]
        except OSError as error:
            raise DataError(f"{here}: this folder cannot be read ({error.strerror})") from error
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        if above:
            folders.append(here)
        for entry in entries:
            path = here / entry.name
            if is_folder(path):
                walk(path, above | {identity})
            elif path.suffix.lower() in EXTENSIONS and (is_file(path) or entry.is_symlink()):
                pictures.append(path)  # a pipe or a device with a picture's name would hang the decoder
            else:
                others.append(path)

    walk(Path(folder), frozenset())
    return Tree(pictures=tuple(sorted(pictures)), folders=tuple(sorted(folders)), others=tuple(sorted(others)))


def find_pictures(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The picture files behind files, folders and patterns: argument by argument, each in path order, none twice.

    A folder is searched to any depth for files with a picture's suffix in upper or lower case; hidden files and
    folders are skipped. A file that is named is taken whatever its suffix: the decoder goes by content. A name that
    does not exist and has one of `*?[` in it is a pattern (`**` is any depth); its hits need a picture's suffix.

    Raises: DataError for a path that does not exist, a pattern without a hit, or when there is no picture at all.
    """
    arguments = [paths] if isinstance(paths, (str, Path)) else list(paths)
    found: dict[str, Path] = {}  # by absolute path: a file reached twice is one picture
    for argument in arguments:
        for picture in _expand(Path(argument)):
            found.setdefault(os.path.abspath(picture), picture)  # noqa: PTH100 - resolve() would merge links by target
    if not found:
        places = ", ".join(map(str, arguments)) or "no path was given"
        raise DataError(f"{places}: no pictures found; files with these suffixes are looked for: {SUFFIXES}")
    return list(found.values())


def is_file(path: Path) -> bool:
    """Whether there is a file; False also for a name too long or out of reach, where `Path.is_file` raises."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder; False where `Path.is_dir` raises, as in `is_file`."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _expand(path: Path) -> Iterable[Path]:
    if is_folder(path):
        return scan(path).pictures
    if is_file(path):
        return [path]
    if not any(sign in str(path) for sign in "*?["):
        raise DataError(f"{path}: no such file or folder")
    hits = [Path(hit) for hit in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - skips hidden files
    if not hits:
        raise DataError(f"{path}: nothing matches this pattern")
    found: list[Path] = []
    for hit in hits:
        if is_folder(hit):
            found.extend(scan(hit).pictures)
        elif hit.suffix.lower() in EXTENSIONS:
            found.append(hit)
    return found
