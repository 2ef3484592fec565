"""Which pictures show the same part: told by their paths, or by a table that lists them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blemish.data.folder import place_of
from blemish.data.tables import TABLES, read_column
from blemish.errors import ConfigError


@dataclass(frozen=True)
class Column:
    """Parts by a column of a table of pictures.

    Attributes:
        table, name: the file, and the column as it is called there.
        parts: by the place of a picture (`data.folder.place_of`) its part; "" where it has none.
    """

    table: Path
    name: str
    parts: Mapping[str, str] = field(repr=False)

    @property
    def pattern(self) -> str:
        """What an artifact keeps of it: pictures to come are listed in another table."""
        return f"column {self.name}"


Grouping = re.Pattern[str] | Column


def grouping_of(text: str) -> Grouping:
    """How parts are told: by a regular expression for the paths of pictures or, as in
    "views.csv:part", by the column of a table of pictures.

    Raises: ConfigError for an expression that does not compile or has more than one group, and for
        a table without that column; DataError for one that cannot be read, or rows at fault.

    Example:
        >>> part_of("line 3/part17_left.png", grouping_of(r"part(\\d+)_"))
        '17'
    """
    file, _, column = text.rpartition(":")
    if column and Path(file).suffix.lower() in TABLES:
        return Column(Path(file), column, read_column(Path(file), column))
    try:
        pattern = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"group by {text!r}: is no regular expression ({error}); one that finds the part's "
            r"name in a path is needed, as in 'part(\d+)_', or the column of a table, as in "
            "views.csv:part"
        ) from error
    if pattern.groups > 1:
        raise ConfigError(
            f"group by {text!r}: has {pattern.groups} groups, and the one that names the part is "
            "not known; write the others as (?:…)"
        )
    return pattern


def checked(text: str | None, paths: Sequence[str]) -> Grouping | None:
    """How parts are told, where that is asked for, before any work. Raises: as `grouping_of`, and
    as `grouped` of these paths."""
    if text is None:
        return None
    by = grouping_of(text)
    grouped(paths, by)
    return by


def part_of(path: str, by: Grouping) -> str | None:
    """The part that a picture shows: what the pattern's group, or without one the whole pattern,
    finds first in its path; or what the table says. None where that is nothing."""
    if isinstance(by, Column):
        return by.parts.get(place_of(Path(path))) or None
    match = by.search(path)
    return (match.group(by.groups) or None) if match else None


def grouped(paths: Sequence[str], by: Grouping) -> tuple[dict[str, list[int]], list[int]]:
    """The positions of the pictures of each part, and of those that are of no part.

    Raises: ConfigError where none is of any.

    Example:
        >>> grouped(["a1.png", "b.png", "c1.png"], grouping_of(r"\\d"))
        ({'1': [0, 2]}, [1])
    """
    parts: dict[str, list[int]] = defaultdict(list)
    others: list[int] = []
    for at, path in enumerate(paths):
        name = part_of(path, by)
        (others if name is None else parts[name]).append(at)
    if others and not parts:
        if isinstance(by, Column):
            raise ConfigError(
                f"group by {by.table}:{by.name}: the table names a part of none of the pictures, "
                f"as of {paths[0]}; its paths are read from its own folder"
            )
        raise ConfigError(
            f"group by {by.pattern!r}: finds no part in the path of any picture, as in "
            f"{paths[0]}; letters' case and folders count, and a table and its column are named as "
            "in views.csv:part"
        )
    return dict(parts), others
