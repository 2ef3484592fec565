"""Suites: tables of runs that belong together, as those of a paper, each a TOML file beside this
one.

A file has a `title`, and of these what its tables share: `method`, `recipe`, `data`, `multi_class`
(as of `Table`), `published_on` (what the published figures were measured on, where that is not
`data`) and `compared_at` (the side of the square at which maps and masks are compared, or
"original" for the pictures' own size, as in the paper; 256 where that does not say it).

It holds, in any number:

`[[comparison]]`, a main table, of `name`, `title`, `source`, `note`, `data`, `multi_class`,
`metrics`, `lines`, perhaps `by`, `spread` and `compared_at`, and `entries`, what is measured for
it; then a `[[comparison.published]]` for each published system, of `source`, for each metric a
figure for each line (nan where there is none, [figure, spread] where a spread is published), and
perhaps `mean` and `latency_ms`.

`[[table]]`, settings or methods compared with each other, of `name`, `title`, perhaps a `source`
and a `note`, and `rows`, each with a `label`, perhaps `published`, and what an `Entry` has. Either
all rows that can be measured name the same `settings`, the table's factors, and whatever they do
not name is common to the whole table; or they are of methods, recipes, shots or counts of defects,
with `data`. A row of a label and `published` alone is only shown.

`[efficiency]`, of `source`, `note` and `rows`, each a `Cost`.

All figures are in %, as printed.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from blemish import config
from blemish.data.layouts import OFFICIAL
from blemish.errors import BlemishError, ConfigError, unknown_name
from blemish.files import DOCUMENT_BYTES, read_whole
from blemish.types import ORIGINAL, RESOLUTION

SUFFIX = ".toml"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is measured, or was published, as a line or a column of a table.

    Attributes:
        method, recipe: names, as of `blemish.fit`. No method = published only, it cannot be
            measured.
        settings: what the table varies, as this entry has it; anything else is up to the recipe and
            the user.
        shots, anomaly_count: as of `blemish.fit`; None = all normal pictures, and no defect.
        adapt: modes of `blemish.methods.adaptation` in which the same detector is judged, too.
        compared_at: as of its table.
        label: how the table calls it.
        published: metric of a result row -> the figure in % that the source gives.
    """

    method: str
    recipe: str = "best"
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    published: Mapping[str, float] = field(default_factory=dict)
    shots: int | None = None
    anomaly_count: int | None = None
    adapt: tuple[str, ...] = ()
    compared_at: int | None = RESOLUTION


@dataclass(frozen=True, kw_only=True)
class Part:
    """What all tables of a suite have.

    Attributes:
        name: for `--only`.
        source: where it was published, as "Table 5".
        note: what a reader of the table must know.
        data: the official data set that it is of, a name of
            `blemish.data.layouts.OFFICIAL`; "" = any.
        multi_class: whether one model learns all categories; otherwise each has its own, and the
            table shows the means.
        compared_at: side of the square at which maps and masks are compared; None = the pictures'
            own size.
    """

    name: str
    title: str
    source: str = ""
    note: str = ""
    data: str = ""
    multi_class: bool = False
    compared_at: int | None = RESOLUTION


@dataclass(frozen=True, kw_only=True)
class Table(Part):
    """Lines to be compared with each other: `rows`, in order."""

    rows: tuple[Entry, ...]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The lines that can be measured."""
        return tuple(row for row in self.rows if row.method)

    @property
    def factors(self) -> frozenset[str]:
        """The settings that its rows vary; none where it compares methods, recipes, shots or counts
        of defects."""
        return frozenset(key for row in self.rows for key in row.settings)


@dataclass(frozen=True, slots=True)
class Figure:
    """A published figure in %, and its spread over seeds where that is published."""

    value: float
    spread: float | None = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """A system as a paper gives it.

    Attributes:
        source: its name.
        figures: line -> metric of a result row -> figure.
        mean: metric -> the mean over the lines, as printed.
        latency_ms: milliseconds a picture, as printed; None where not.
    """

    source: str
    figures: Mapping[str, Mapping[str, Figure]]
    mean: Mapping[str, Figure]
    latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison(Part):
    """A paper's main table: categories as lines, and as columns what was published and what is
    measured.

    Attributes:
        metrics: of a result row, in the order in which a cell gives them.
        lines: names of the categories, as rows have them, or of the groups.
        by: whether the lines are categories of the data set or groups in it (sexes, in NIH).
        spread: what stands after ± where there are several seeds, as in the paper.
        published: the columns that were published, in order.
        entries: those to be measured; one that adapts has a column as it is, and one for every
            mode.
    """

    lines: tuple[str, ...]
    metrics: tuple[str, ...]
    published: tuple[Published, ...] = ()
    entries: tuple[Entry, ...]
    by: Literal["category", "group"] = "category"
    spread: Literal["standard deviation", "standard error"] = "standard deviation"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a system costs, as a paper gives it: learnable parameters in millions, FLOPs in
    billions, pictures/s."""

    label: str
    learnable_parameters: float
    flops: float
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """A paper's table of costs."""

    source: str
    rows: tuple[Cost, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tables that are measured together; `published_on` names what their published figures were
    measured on, where their `data` does not."""

    name: str
    title: str
    tables: tuple[Table | Comparison, ...] = ()
    published_on: str = ""
    efficiency: Efficiency | None = None

    def only(self, names: Sequence[str]) -> Suite:
        """The suite with only the tables of these names. Raises: ConfigError that suggests the
        nearest name."""
        known = [table.name for table in self.tables]
        for name in names:
            if name not in known:
                raise unknown_name(f"table of suite {self.name}", name, known)
        tables = tuple(table for table in self.tables if table.name in names)
        return dataclasses.replace(self, tables=tables)

    def entries(self, recipe: str | None = None) -> list[Entry]:
        """What can be measured of all tables, with the recipes of the suite or another."""
        entries = [entry for table in self.tables for entry in table.entries]
        return (
            entries
            if recipe is None
            else [dataclasses.replace(entry, recipe=recipe) for entry in entries]
        )


def names() -> list[str]:
    """The suites that come with blemish.

    Example:
        >>> names()[:3]
        ['agpnet', 'agpnet-ablations', 'ahl']
    """
    files = (file.name for file in resources.files(__name__).iterdir())
    return sorted(file.removesuffix(SUFFIX) for file in files if file.endswith(SUFFIX))


def read(name: str | Path) -> Suite:
    """A suite by its name, or from a TOML file of one's own.

    Raises: ConfigError for an unknown name, or a file that cannot be read or is not of a suite's
        form.
    """
    own = Path(name).suffix == SUFFIX
    place = resources.files(__name__) / f"{name}{SUFFIX}"
    if not own and not place.is_file():
        raise unknown_name("suite", str(name), names())
    content = (
        read_whole(name, limit=DOCUMENT_BYTES, error=ConfigError) if own else place.read_bytes()
    )
    try:
        return _suite(Path(name).stem, tomllib.loads(content.decode()))
    except (BlemishError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # ValueError: not TOML, not UTF-8.
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{name}: is not a suite of benchmarks ({what})") from error


def _suite(name: str, values: dict[str, Any]) -> Suite:
    usual: dict[str, Any] = {key: values.pop(key) for key in ("method", "recipe") if key in values}
    on: dict[str, Any] = {
        key: values.pop(key) for key in ("data", "multi_class", "compared_at") if key in values
    }
    tables: list[Table | Comparison] = [
        *(_comparison({**on, **each}, usual) for each in values.pop("comparison", ())),
        *(_table({**on, **each}, usual) for each in values.pop("table", ())),
    ]
    if not tables:
        raise KeyError("table")
    if len({table.name for table in tables}) < len(tables):
        raise ValueError("two tables have the same name")
    for table in tables:
        if table.data and table.data not in OFFICIAL:
            raise unknown_name(f"data set of table {table.name}", table.data, OFFICIAL)
    found = config.from_dict(Suite, {**values, "name": name}, strict=True)
    return dataclasses.replace(found, tables=tuple(tables))


def _entries(values: dict[str, Any], key: str, usual: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a table, with the entries under `key` as they are once all that they share is
    said."""
    given = values.get("compared_at", RESOLUTION)
    at = None if given == ORIGINAL else given
    if at is not None and (not isinstance(at, int) or at < 1):
        raise ValueError(f'compared_at is a side in pixels (256) or "{ORIGINAL}", not {given!r}')
    entries = [
        {**usual, "compared_at": at, **row}
        if row.keys() - {"label", "published"}
        else {"method": "", **row}
        for row in values[key]
    ]
    return {**values, "compared_at": at, key: entries}


def _table(values: dict[str, Any], usual: Mapping[str, Any]) -> Table:
    name = values["name"]
    table = config.from_dict(Table, _entries(values, "rows", usual), within=name, strict=True)
    if not table.entries or any(row.settings.keys() != table.factors for row in table.entries):
        raise ValueError(f"table {name}: it needs rows, all of which name the same settings")
    if not table.factors and not table.data:
        raise ValueError(f"table {name}: rows without settings need data")
    if not all(row.method or row.published for row in table.rows):
        raise ValueError(f"table {name}: a row has neither settings nor published figures")
    if len({row.label for row in table.rows}) < len(table.rows):
        raise ValueError(f"table {name}: two rows have the same label")
    return table


def _comparison(values: dict[str, Any], usual: Mapping[str, Any]) -> Comparison:
    name = values["name"]
    published = [
        _published(dict(system), values["lines"], values["metrics"])
        for system in values.pop("published", ())
    ]
    found = config.from_dict(
        Comparison, _entries(values, "entries", usual), within=name, strict=True
    )
    if not found.entries or not all(entry.method for entry in found.entries):
        raise ValueError(f"comparison {name}: it needs entries that can be measured")
    for columns in ([entry.label for entry in found.entries], [it.source for it in published]):
        if len(set(columns)) < len(columns):
            raise ValueError(f"comparison {name}: two columns have the same name")
    return dataclasses.replace(found, published=tuple(published))


def _published(values: dict[str, Any], lines: Sequence[str], metrics: Sequence[str]) -> Published:
    source = values["source"]
    figures: dict[str, dict[str, Figure]] = {line: {} for line in lines}
    for metric in [metric for metric in metrics if metric in values]:
        given = values.pop(metric)
        if len(given) != len(lines):
            raise ValueError(f"{source}, {metric}: {len(given)} figures for {len(lines)} lines")
        for line, figure in zip(lines, given, strict=True):
            if isinstance(figure, list) or not math.isnan(figure):
                figures[line][metric] = _figure(figure)
    mean = {metric: _figure(it) for metric, it in values.pop("mean", {}).items()}
    system = config.from_dict(
        Published, {**values, "figures": {}, "mean": {}}, within=str(source), strict=True
    )
    return dataclasses.replace(system, figures=figures, mean=mean)


def _figure(given: Any) -> Figure:
    return Figure(*map(float, given)) if isinstance(given, list) else Figure(float(given))
