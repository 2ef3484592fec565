"""Suites: tables of runs that belong together, as the ablations of a paper, each a TOML file beside this one.

A file has a `title`, a `method`, a `recipe`, `published_on` (what the published figures were measured on) and
`[[table]]` entries: `name`, `title`, perhaps a `source` and a `note`, and `rows`, each with a `label`, `settings`, and
perhaps `published`: metric -> figure in %, as printed. All rows of a table name the same settings, its factors;
whatever they do not name is common to the whole table. A row without settings is only shown, as it was published.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from blemish.errors import ConfigError, unknown_name

SUFFIX = ".toml"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of a table.

    Attributes:
        method, recipe: names, as of `blemish.fit`.
        settings: what the table varies, as this line has it; anything else is up to the recipe and the user. Empty in a
            line of a suite = published only, it cannot be measured.
        label: how the table calls the line.
        published: metric of a result row -> the figure in % that the source gives.
    """

    method: str
    recipe: str = "best"
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    published: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Lines to be compared with each other.

    Attributes:
        name: for `--only`.
        source: where it was published, as "Table 5".
        note: what a reader of the table must know.
    """

    name: str
    title: str
    rows: tuple[Entry, ...]
    source: str = ""
    note: str = ""

    @property
    def factors(self) -> frozenset[str]:
        """The settings that its rows vary."""
        return frozenset(key for row in self.rows for key in row.settings)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tables that are measured together; `published_on` names what their published figures were measured on."""

    name: str
    title: str
    tables: tuple[Table, ...]
    published_on: str = ""

    def only(self, names: Sequence[str]) -> Suite:
        """The suite with only the tables of these names. Raises: ConfigError that suggests the nearest name."""
        known = [table.name for table in self.tables]
        for name in names:
            if name not in known:
                raise unknown_name(f"table of suite {self.name}", name, known)
        return dataclasses.replace(self, tables=tuple(table for table in self.tables if table.name in names))

    def entries(self, recipe: str | None = None) -> list[Entry]:
        """What can be measured of all tables, with the recipe of the suite or another."""
        rows = (row for table in self.tables for row in table.rows if row.settings)
        return [row if recipe is None else dataclasses.replace(row, recipe=recipe) for row in rows]


def names() -> list[str]:
    """The suites that come with blemish.

    Example:
        >>> names()
        ['agpnet-ablations', 'apmask-ablations', 'guided-ablations']
    """
    files = (file.name for file in resources.files(__name__).iterdir())
    return sorted(file.removesuffix(SUFFIX) for file in files if file.endswith(SUFFIX))


def read(name: str | Path) -> Suite:
    """A suite by its name, or from a TOML file of one's own.

    Raises: ConfigError for an unknown name, or a file that cannot be read or is not of a suite's form.
    """
    own = Path(name).suffix == SUFFIX
    place = Path(name) if own else resources.files(__name__) / f"{name}{SUFFIX}"
    if not own and not place.is_file():
        raise unknown_name("suite", str(name), names())
    try:
        document = tomllib.loads(place.read_text(encoding="utf-8"))
        return _suite(Path(name).stem, document)
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # ValueError: not TOML, not UTF-8
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{name}: is not a suite of benchmarks ({what})") from error


def _suite(name: str, values: dict[str, Any]) -> Suite:
    method, recipe = values.pop("method"), values.pop("recipe")
    tables = tuple(_table(table, method, recipe) for table in values.pop("table"))
    if len({table.name for table in tables}) < len(tables):
        raise ValueError("two tables have the same name")
    return Suite(name=name, tables=tables, **values)


def _table(values: dict[str, Any], method: str, recipe: str) -> Table:
    rows = tuple(Entry(method=method, recipe=recipe, **row) for row in values.pop("rows"))
    table = Table(rows=rows, **values)
    if not table.factors or any(row.settings and row.settings.keys() != table.factors for row in rows):
        raise ValueError(f"table {table.name}: it needs rows, all of which name the same settings")
    if not all(row.settings or row.published for row in rows):
        raise ValueError(f"table {table.name}: a row has neither settings nor published figures")
    if len({row.label for row in rows}) < len(rows):
        raise ValueError(f"table {table.name}: two rows have the same label")
    return table
