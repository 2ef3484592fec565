"""Files, folders and patterns -> the picture files in them."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from blemish.data.earlier import is_result, is_result_folder
from blemish.data.masks import masks_among
from blemish.errors import DataError
from blemish.files import uri_of
from blemish.images import EXTENSIONS, sniff
from blemish.text import listed, pluralize

SUFFIXES = ", ".join(sorted(EXTENSIONS))
# Of pictures that are not decoded: whoever has some in a folder takes them for read.
_UNREAD = """
.gif .jp2 .j2k .jpx .jpf .heic .heif .avif .jxl .pbm .pam .pcx .tga .exr .hdr .psd .raw .dng .nef
.cr2 .cr3 .arw .orf .rw2 .nii .mha .mhd .nrrd .npy .npz
"""
UNREAD = frozenset(_UNREAD.split())
# Thumbnails, and what was thrown away.
NOT_ENTERED = frozenset({"@eaDir", "$RECYCLE.BIN", "__MACOSX", "lost+found"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """What a folder holds, hidden files and folders left out, in path order.

    Attributes:
        pictures: files with a picture's suffix, at any depth.
        folders: the folders below it, at any depth.
        others: files with another suffix, at any depth.
        results: pictures that an earlier run of blemish has written there, which are in none of the
            others.
        masks: those of the pictures that mark what is wrong with others; () where nobody has looked
            for them.
    """

    pictures: tuple[Path, ...]
    folders: tuple[Path, ...]
    others: tuple[Path, ...]
    results: tuple[Path, ...] = ()
    masks: tuple[Path, ...] = ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """What one could take for pictures that are read, and that are not: a sentence each."""
        told: list[str] = []
        if self.results:
            places = listed(dict.fromkeys(f"{path.parent}/" for path in self.results))
            told.append(
                f"{pluralize(len(self.results), 'picture')} of earlier results left out: {places}"
            )
        if self.masks:
            told.append(f"{pluralize(len(self.masks), 'mask')} left out: {listed(self.masks)}")
        suffixes = Counter(
            path.suffix.lower() for path in self.others if path.suffix.lower() in UNREAD
        )
        if suffixes:
            each = listed(f"{number} {suffix}" for suffix, number in suffixes.most_common())
            number = pluralize(suffixes.total(), "file")
            told.append(
                f"{number} in formats that are not read left out ({each}); convert pictures to PNG"
            )
        if unnamed := [path for path in self.others if _is_unnamed_picture(path)]:
            number = pluralize(len(unnamed), "picture")
            told.append(
                f"{number} without a suffix left out: {listed(unnamed)}; add .dcm, .png or its own"
            )
        return tuple(told)


def scan(folder: str | Path) -> Tree:
    """Everything below `folder`. Links are followed; a link to a folder that it lies in is not.

    A link with a picture's suffix that leads nowhere counts as a picture: decoding it tells the
    user. Overlays and figures of an earlier run are told apart by the files beside them; see
    `blemish.data.earlier`.

    Raises: DataError when a folder cannot be listed.
    """
    pictures: list[Path] = []
    folders: list[Path] = []
    others: list[Path] = []
    results: list[Path] = []

    def walk(here: Path, above: frozenset[tuple[int, int]], *, ours: bool) -> None:
        try:
            status = here.stat()
            with os.scandir(here) as listing:
                entries = [
                    e for e in listing if not e.name.startswith(".") and e.name not in NOT_ENTERED
                ]
        except OSError as error:
            raise DataError(f"{here}: this folder cannot be read ({error.strerror})") from error
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        if above and not ours:
            folders.append(here)
        beside = {entry.name for entry in entries}
        for entry in entries:
            path = here / entry.name
            if is_folder(path):
                walk(
                    path,
                    above | {identity},
                    ours=ours or is_result_folder(here, entry.name, beside),
                )
            elif path.suffix.lower() in EXTENSIONS and (is_file(path) or entry.is_symlink()):
                # A pipe or a device with a picture's name would hang the decoder.
                (results if ours or is_result(entry.name, beside) else pictures).append(path)
            elif not ours:
                others.append(path)

    walk(Path(folder), frozenset(), ours=False)
    return Tree(
        pictures=tuple(sorted(pictures)),
        folders=tuple(sorted(folders)),
        others=tuple(sorted(others)),
        results=tuple(sorted(results)),
    )


@dataclass(frozen=True, slots=True)
class Found:
    """Pictures, and what was left out where they were looked for: a sentence for each kind."""

    pictures: list[Path]
    left_out: tuple[str, ...]


def find_pictures(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The picture files behind files, folders and patterns, as of `search`."""
    return search(paths).pictures


def search(paths: str | Path | Iterable[str | Path]) -> Found:
    """The picture files behind files, folders and patterns: argument by argument, each in path
    order, none twice.

    A folder is searched to any depth for files with a picture's suffix in upper or lower case;
    hidden files and folders are skipped, and so are the results of an earlier run and masks of
    other pictures there, also where a folder of results is named among others of one place. A file
    that is named is taken whatever its suffix: the decoder goes by content. A name that does not
    exist and has one of `*?[` in it is a pattern (`**` is any depth); its hits need a picture's
    suffix.

    Raises: DataError for a path that does not exist, a pattern without a hit, or when there is no
    picture at all.
    """
    arguments = [paths] if isinstance(paths, (str, Path)) else list(paths)
    found: dict[str, Path] = {}  # by its place: a file reached twice is one picture
    left_out: list[str] = []
    places = Counter(Path(argument).parent for argument in arguments)
    for argument in arguments:
        # Among others beside it, a shell has named it: `parts/*`.
        among = places[Path(argument).parent] > 1
        tree = _expand(Path(argument), among_others=among)
        left_out += tree.left_out
        for picture in tree.pictures:
            found.setdefault(place_of(picture), picture)
    if not found:
        where = ", ".join(map(str, arguments)) or "no path was given"
        raise DataError(no_pictures(where, left_out))
    return Found(list(found.values()), tuple(left_out))


def not_there(path: Path) -> DataError:
    """That there is nothing of a name, and what to do where it is a URI."""
    if uri := uri_of(path):
        return DataError(
            f"{uri}: is on another file system, from which `predict --engine ray` alone reads; "
            "mount it as a folder, for a cluster under the same name on every machine (mount-s3, "
            "gcsfuse, …), or copy the pictures to a drive"
        )
    return DataError(f"{path}: no such file or folder")


def no_pictures(where: str | Path, left_out: Iterable[str]) -> str:
    """What to say where nothing is found."""
    found = [
        f"{where}: no pictures found; files with these suffixes are looked for: {SUFFIXES}",
        *left_out,
    ]
    return "; ".join(found)


def place_of(path: Path) -> str:
    """Where a file lies, the same however it is named, as by `pics/../pics/00.jpg`.

    Links are not followed, as what is reached by two of them is two pictures; except where `..`
    follows one.
    """
    place = os.path.abspath(path)  # noqa: PTH100 - resolve() would merge links by target
    if ".." in path.parts:
        with suppress(OSError):
            return place if os.path.samefile(place, path) else os.path.realpath(path)  # noqa: PTH121
    return place


def is_file(path: Path) -> bool:
    """Whether there is a file; False also where `Path.is_file` raises: too long, out of reach."""
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


def is_pattern(path: Path) -> bool:
    """Whether a path stands for all that match it: nothing has this name, with one of `*?[`."""
    return any(sign in str(path) for sign in "*?[") and not is_file(path) and not is_folder(path)


def _expand(path: Path, *, among_others: bool = False) -> Tree:
    if is_folder(path):
        tree = scan(path)
        if among_others and is_result_folder(path.parent, path.name, set(os.listdir(path.parent))):  # noqa: PTH208
            return Tree(pictures=(), folders=(), others=(), results=tree.pictures)
        masks = masks_among(path, tree.pictures)
        shown = tuple(picture for picture in tree.pictures if picture not in masks)
        return replace(tree, pictures=shown, masks=tuple(sorted(masks)))
    if is_file(path):
        return Tree(pictures=(path,), folders=(), others=())
    if uri_of(path) or not is_pattern(path):
        raise not_there(path)
    hits = [Path(hit) for hit in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - skips hidden files
    if not hits:
        raise DataError(f"{path}: nothing matches this pattern")
    fixed = next(
        depth for depth, part in enumerate(path.parts) if any(sign in part for sign in "*?[")
    )
    listings: dict[Path, set[str]] = {}
    pictures: list[Path] = []
    results: list[Path] = []
    others: list[Path] = []
    for hit in hits:
        ours = _is_result(hit, fixed, listings)
        if is_folder(hit):
            tree = scan(hit)
            (results if ours else pictures).extend(tree.pictures)
            results += tree.results
            others += tree.others
        elif hit.suffix.lower() in EXTENSIONS:
            (results if ours else pictures).append(hit)
        else:
            others.append(hit)
    # `**` hits folders, and then what is in them.
    found, rest, earlier = (tuple(dict.fromkeys(paths)) for paths in (pictures, others, results))
    return Tree(pictures=found, folders=(), others=rest, results=earlier)


def _is_result(hit: Path, fixed: int, listings: dict[Path, set[str]]) -> bool:
    """Whether a hit, or a folder of it below its first `fixed` parts, is of an earlier run."""
    for depth in range(fixed, len(hit.parts)):
        folder, name = Path(*hit.parts[:depth]), hit.parts[depth]
        if folder not in listings:
            listings[folder] = set(os.listdir(folder))  # noqa: PTH208 - names alone
        is_picture = depth == len(hit.parts) - 1 and not is_folder(hit)
        if is_picture and is_result(name, listings[folder]):
            return True
        if not is_picture and is_result_folder(folder, name, listings[folder]):
            return True
    return False


def _is_unnamed_picture(path: Path) -> bool:
    """Whether a file without a suffix, or with a number for one as in DICOM, holds a picture."""
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    try:
        if not path.is_file():  # a pipe would wait for a writer
            return False
        with path.open("rb") as file:
            return sniff(file.read(132)) is not None
    except OSError:
        return False
