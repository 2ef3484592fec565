"""What holds for every command: no file that it reads is replaced by one that it writes, and what
the library says of its arguments names the options."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import wraps
from glob import has_magic, iglob
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

from typer.models import OptionInfo

from blemish.errors import CalibrationError, ConfigError, DataError, ExportError, OutputError

# The parameters of commands that name what is written: files, or folders for several.
_OUTPUTS = ("output", "report", "coco", "results", "web", "keep")
# What commands write into a folder under names that something else may have, too.
_IN_FOLDERS = (
    *("run.json", "predictions.jsonl", "predictions.csv", "parts.jsonl", "evaluation.json"),
    *("comparison.json", "report.html", "plan.json", "rows.jsonl"),
)
_BESIDE_REPORTS = _IN_FOLDERS[:5]  # of these commands, which may write a report there, too
# Where an artifact is changed, its file may be the one that is written.
_IN_PLACE = ("calibrate", "refine")
_TOLD = (ConfigError, CalibrationError, DataError, ExportError)
_OF_SETTINGS = (".json", ".toml")  # files whose keys are not the options
# What a folder of pictures says of them in: labels, boxes, lists, and settings.
_OF_DATA = (".csv", ".tsv", ".txt", ".parquet", ".json", ".xml", ".toml")
_LISTS = r"( Known: | Settings of \w+: )"  # after which keys stand, which are no options
# How results of blemish begin: regions of `predict`, and graphs of `export`.
_OWN = (
    b'{"info": {"description": "regions of defects, by blemish"}',
    b'<?xml version="1.0"?>\n<net ',
)


def guarded(command: Callable[..., int]) -> Callable[..., int]:
    """The command, of the same signature, with both."""

    @wraps(command)
    def run(**given: Any) -> int:
        check_apart(given, in_place=command.__name__ in _IN_PLACE)
        try:
            return command(**given)
        except _TOLD as error:
            words = with_options(str(error), _meant(given, options_of(command)), _names(given))
            error.args = (words, *error.args[1:])
            raise

    return run


def options_of(command: Callable[..., Any]) -> dict[str, str]:
    """The options of a command by the names of its parameters; its arguments have none."""
    found = {}
    hints = get_type_hints(command, include_extras=True)
    for name in signature(command).parameters:
        for told in getattr(hints[name], "__metadata__", ()):
            if not isinstance(told, OptionInfo):
                continue
            declared = (told.default, *(told.param_decls or ()))  # the first may stand there
            long = [one for one in declared if isinstance(one, str) and one.startswith("--")]
            found[name] = long[0] if long else f"--{name.replace('_', '-')}"
    return found


def _meant(given: Mapping[str, Any], options: Mapping[str, str]) -> Mapping[str, str]:
    """The options but those whose names are settings: of --set, --vary, or the file of --config."""
    pairs = [*(given.get("settings") or ()), *(given.get("vary") or ())]
    keys = {str(one).partition("=")[0].strip() for one in pairs}
    config = given.get("config")
    if isinstance(config, Path) and config.is_file():
        with suppress(OSError, ValueError, RecursionError):
            keys |= {key for key in json.loads(config.read_bytes()) if given.get(key) is None}
    return {name: option for name, option in options.items() if name not in keys}


def _names(given: Mapping[str, Any]) -> Iterator[str]:
    """What was given as text, or as the name of a file."""
    for value in given.values():
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, str | Path):
                yield str(each)


def with_options(message: str, options: Mapping[str, str], given: Iterable[str] = ()) -> str:
    """The message with the names of arguments as options.

    These are names at its head, as in "tile: …" or "tile and resize: …"; words of several parts,
    but not where they follow a file's name, whose keys they are; and words in backticks. What is in
    quotes was given, or is a key, and what a list of known names holds are keys.

    Args: given: names of files and other texts that the message may hold, as they are.

    Example:
        >>> with_options("tile: `overlap` and time_budget", {"tile": "--tile", "overlap": "--o"})
        '--tile: --o and time_budget'
    """
    given = {one for one in given if one and one in message}  # a few of perhaps many pictures
    head, colon, rest = message.partition(": ")
    if colon and Path(head).suffix.lower() in _OF_SETTINGS:
        return message
    names = head.split(" and ")
    if colon and head not in given and all(name in options for name in names):
        message = f"{' and '.join(options[name] for name in names)}: {rest}"
    message, mark, known = (*re.split(_LISTS, message, maxsplit=1), "", "")[:3]
    kept = [one for one in given if any(name in one for name in options)]
    as_given = "|".join(map(re.escape, sorted(kept, key=len, reverse=True))) or "(?!)"
    for name, option in options.items():
        bare = f"`{name}`"
        if "_" in name:
            bare += rf"|(?<![\w./\\'\"-])(?<!: )(?<!--set ){name}(?![\w/\\='\"-]|\.\w)"
        # What was given matches first, and stays; the rest of a match is put as the option.
        parts = re.split(rf"((?<![\w-])(?:{as_given})(?![\w-]))|(?:{bare})", message)
        message = "".join(part if part is not None else option for part in parts)
    return f"{message}{mark}{known}"


def check_apart(given: Mapping[str, Any], *, in_place: bool = False) -> None:
    """Make sure, before any work, that nothing is written over what is read, nor twice.

    Args:
        given: the parameters of a command. Those of `_OUTPUTS` are written; every other path, and
            every text that names a file, is read: settings, lists, tables, weights, suites.
        in_place: whether the artifact may be `output`, too.
    Raises: OutputError for an output that is there and is one of the files read, or a file of
        labels in a folder that is read; for two outputs of one name.
    """
    written: dict[str, Path] = {}
    for name in _OUTPUTS:
        path = given.get(name)
        if not isinstance(path, Path):
            continue
        for other, there in written.items():
            if _place(there) == _place(path):
                raise OutputError(f"--{other} and --{name}: both name {path}; name two files")
            if _place(path.parent) == _place(there) and path.name in _BESIDE_REPORTS:
                raise OutputError(
                    f"--{name} {path}: is what is written for --{other}; let its name be another"
                )
        written[name] = path
    inputs = {key: value for key, value in given.items() if key not in _OUTPUTS}
    if in_place:
        del inputs["artifact"]
    files = {file: name for name in written for file in _files(written[name]) if file.is_file()}
    for file, reason in _read_too(files, inputs):
        name = files[file]
        raise OutputError(
            f"--{name} {written[name]}: would replace {reason}, which this command reads; name "
            "another place"
        )


def _files(path: Path) -> Iterator[Path]:
    """What may be written for an output."""
    if path.is_dir():
        yield from (path / name for name in _IN_FOLDERS)
    else:
        yield path


def _read_too(files: Collection[Path], inputs: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Those of the files, which are there, that are read, and as what; each input is looked at
    once, as there may be many pictures."""
    if not files:
        return
    same = {(status.st_dev, status.st_ino): file for file in files if (status := _status(file))}
    for path in _named(inputs.values()):
        if not (status := _status(path)):
            continue
        if stat.S_ISREG(status.st_mode):
            if file := same.get((status.st_dev, status.st_ino)):
                yield file, str(path)
        elif stat.S_ISDIR(status.st_mode):
            for file in files:
                if _place(file).is_relative_to(_place(path)) and _says(file):
                    yield file, f"{file}, a file of {path}"


def _status(path: Path) -> os.stat_result | None:
    with suppress(OSError, ValueError):
        return path.stat()
    return None


def _says(file: Path) -> bool:
    """Whether a file in a folder of pictures may say something of them: a result of blemish, known
    by its name or how it begins, does not."""
    if file.name in _IN_FOLDERS or file.suffix.lower() not in _OF_DATA:
        return False
    try:
        with file.open("rb") as opened:
            return not opened.read(max(map(len, _OWN))).startswith(_OWN)
    except OSError:
        return True


def _named(values: Iterable[Any]) -> Iterator[Path]:
    """The paths that parameters name: as they are, between commas, after the = of a setting, before
    the : of a column, and as patterns."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _named(value)
        elif isinstance(value, Path | str) and str(value):
            text = str(value)
            yield Path(text)
            if isinstance(value, str):
                parts = (text.partition("=")[2], text.rpartition(":")[0], *text.split(","))
                yield from (Path(part) for part in parts if part)
            if has_magic(text):
                yield from map(Path, iglob(text, recursive=True))  # noqa: PTH207 - as it stands


def _place(path: Path) -> Path:
    return Path(os.path.realpath(path))
