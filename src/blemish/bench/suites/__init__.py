"""Suites: tables of runs that belong together, as those of a paper, each a TOML file beside this one.

A file has a `title`, and of these what its tables share: `method`, `recipe`, `data`, `multi_class` (as of `Table`) and
`published_on` (what the published figures were measured on, where that is not `data`), and `compared_at` (the side of
the square at which maps and masks are compared, or "original" for the pictures' own size, as in the paper; 256 where
that does not say it). It holds, in any number:

`[[comparison]]`, a main table, of `name`, `title`, `source`, `note`, `data`, `multi_class`, `metrics`, `lines`,
perhaps `by`, `spread` and `compared_at`, and `entries`, what is measured for it; then a `[[comparison.published]]`
for each published system, of `source`, for each metric a figure for each line (nan where there is none, [figure,
spread] where a spread is published), and perhaps `mean` and `latency_ms`.

`[[table]]`, settings or methods compared with each other, of `name`, `title`, perhaps a `source` and a `note`, and
`rows`, each with a `label`, perhaps `published`, and what an `Entry` has. Either all rows that can be measured name the
same `settings`, the table's factors, and whatever they do not name is common to the whole table; or they are of
methods, recipes, shots or counts of defects, with `data`. A row of a label and `published` alone is only shown.

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
from typing import Any, Literal, TypeVar, get_args

from blemish import config
from blemish.data.layouts import OFFICIAL
from blemish.errors import ConfigError, unknown_name
from blemish.files import DOCUMENT_BYTES, read_whole
from blemish.types import ORIGINAL, RESOLUTION

T = TypeVar("T")
SUFFIX = ".toml"
Spread = Literal["standard deviation", "standard error"]
_OF_ENTRIES = ("method", "recipe", "settings", "shots", "anomaly_count", "adapt")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is measured, or was published, as a line or a column of a table.

    Attributes:
        method, recipe: names, as of `blemish.fit`. No method = published only, it cannot be measured.
        settings: what the table varies, as this entry has it; anything else is up to the recipe and the user.
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
class Table:
    """Lines to be compared with each other.

    Attributes:
        name: for `--only`.
        rows: its lines, in order.
        source: where it was published, as "Table 5".
        note: what a reader of the table must know.
        data: the official data set that it is of, a name of `blemish.data.layouts.OFFICIAL`; "" = any.
        multi_class: whether one model learns all categories; otherwise each has its own, and the table shows the means.
        compared_at: side of the square at which maps and masks are compared; None = the pictures' own size.
    """

    name: str
    title: str
    rows: tuple[Entry, ...]
    source: str = ""
    note: str = ""
    data: str = ""
    multi_class: bool = False
    compared_at: int | None = RESOLUTION

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The lines that can be measured."""
        return tuple(row for row in self.rows if row.method)

    @property
    def factors(self) -> frozenset[str]:
        """The settings that its rows vary; none where it compares methods, recipes, shots or counts of defects."""
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
class Comparison:
    """A paper's main table: categories as lines, and as columns what was published and what is measured.

    Attributes:
        name, title, source, note, data, multi_class, compared_at: as of `Table`.
        metrics: of a result row, in the order in which a cell gives them.
        lines: names of the categories, as rows have them, or of the groups.
        by: whether the lines are categories of the data set or groups in it (sexes, in NIH).
        spread: what stands after ± where there are several seeds, as in the paper.
        published: the columns that were published, in order.
        entries: those to be measured; one that adapts has a column as it is, and one for every mode.
    """

    name: str
    title: str
    lines: tuple[str, ...]
    metrics: tuple[str, ...]
    published: tuple[Published, ...]
    entries: tuple[Entry, ...]
    data: str
    source: str = ""
    note: str = ""
    multi_class: bool = False
    by: Literal["category", "group"] = "category"
    spread: Spread = "standard deviation"
    compared_at: int | None = RESOLUTION


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a system costs, as a paper gives it: learnable parameters in millions, FLOPs in billions, pictures/s."""

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
    """Tables that are measured together; `published_on` names what their published figures were measured on, where
    their `data` does not."""

    name: str
    title: str
    tables: tuple[Table | Comparison, ...]
    published_on: str = ""
    efficiency: Efficiency | None = None

    def only(self, names: Sequence[str]) -> Suite:
        """The suite with only the tables of these names. Raises: ConfigError that suggests the nearest name."""
        known = [table.name for table in self.tables]
        for name in names:
            if name not in known:
                raise unknown_name(f"table of suite {self.name}", name, known)
        return dataclasses.replace(
            self, tables=tuple(table for table in self.tables if table.name in names)
        )

    def entries(self, recipe: str | None = None) -> list[Entry]:
        """What can be measured of all tables, with the recipes of the suite or another."""
        entries = (entry for table in self.tables for entry in table.entries)
        return [
            entry if recipe is None else dataclasses.replace(entry, recipe=recipe)
            for entry in entries
        ]


def names() -> list[str]:
    """The suites that come with blemish.

    Example:
        >>> names()
        ['agpnet', 'agpnet-ablations', 'apmask', 'apmask-ablations', 'atacnet', 'guided', 'guided-ablations']
    """
    files = (file.name for file in resources.files(__name__).iterdir())
    return sorted(file.removesuffix(SUFFIX) for file in files if file.endswith(SUFFIX))


def read(name: str | Path) -> Suite:
    """A suite by its name, or from a TOML file of one's own.

    Raises: ConfigError for an unknown name, or a file that cannot be read or is not of a suite's form.
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
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # ValueError: not TOML, not UTF-8.
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{name}: is not a suite of benchmarks ({what})") from error


def _suite(name: str, values: dict[str, Any]) -> Suite:
    usual: dict[str, Any] = {key: values.pop(key) for key in ("method", "recipe") if key in values}
    on: dict[str, Any] = {
        key: values.pop(key) for key in ("data", "multi_class", "compared_at") if key in values
    }
    comparisons = [_comparison({**on, **each}, usual) for each in values.pop("comparison", ())]
    ours = values.pop("table") if not comparisons else values.pop("table", ())
    tables: tuple[Table | Comparison, ...] = (
        *comparisons,
        *(_table({**on, **each}, usual) for each in ours),
    )
    if len({table.name for table in tables}) < len(tables):
        raise ValueError("two tables have the same name")
    for table in tables:
        if table.data and table.data not in OFFICIAL:
            raise unknown_name(f"data set of table {table.name}", table.data, OFFICIAL)
    costs = values.pop("efficiency", None)
    if costs is not None:
        costs = Efficiency(rows=tuple(Cost(**row) for row in costs.pop("rows")), **costs)
    found = Suite(
        name=name, tables=tuple(map(_typed, tables)), efficiency=costs and _typed(costs), **values
    )
    if not (isinstance(found.title, str) and isinstance(found.published_on, str)):
        raise ValueError("title and published_on are texts")
    return found


def _typed(part: T) -> T:
    """The same, every value of it of its field's type. Raises: ConfigError that names the field."""
    return config.from_dict(
        type(part), config.to_dict(part), within=getattr(part, "name", "efficiency"), strict=True
    )


def _compared_at(given: Any) -> int | None:
    """Raises: ValueError."""
    if given == ORIGINAL:
        return None
    if not isinstance(given, int) or given < 1:
        raise ValueError(f'compared_at is a side in pixels (256) or "{ORIGINAL}", not {given!r}')
    return given


def _entry(values: Mapping[str, Any], usual: Mapping[str, Any]) -> Entry:
    values = {**values, **({"adapt": tuple(values["adapt"])} if "adapt" in values else {})}
    if not any(key in values for key in _OF_ENTRIES):
        return Entry(method="", **values)
    return Entry(**{**usual, **values})


def _table(values: dict[str, Any], usual: Mapping[str, Any]) -> Table:
    compared_at = _compared_at(values.pop("compared_at", RESOLUTION))
    usual = {**usual, "compared_at": compared_at}
    rows = tuple(_entry(row, usual) for row in values.pop("rows"))
    table = Table(rows=rows, compared_at=compared_at, **values)
    if not table.entries or any(row.settings.keys() != table.factors for row in table.entries):
        raise ValueError(f"table {table.name}: it needs rows, all of which name the same settings")
    if not table.factors and not table.data:
        raise ValueError(f"table {table.name}: rows without settings need data")
    if not all(row.method or row.published for row in rows):
        raise ValueError(f"table {table.name}: a row has neither settings nor published figures")
    if len({row.label for row in rows}) < len(rows):
        raise ValueError(f"table {table.name}: two rows have the same label")
    return table


def _comparison(values: dict[str, Any], usual: Mapping[str, Any]) -> Comparison:
    name, lines, metrics = values["name"], tuple(values.pop("lines")), tuple(values.pop("metrics"))
    published = tuple(_published(system, lines, metrics) for system in values.pop("published", ()))
    compared_at = _compared_at(values.pop("compared_at", RESOLUTION))
    usual = {**usual, "compared_at": compared_at}
    entries = tuple(_entry(row, usual) for row in values.pop("entries"))
    if not entries or not all(entry.method for entry in entries):
        raise ValueError(f"comparison {name}: it needs entries that can be measured")
    if values.get("by", "category") not in ("category", "group"):
        raise ValueError(f"comparison {name}: by is category or group")
    if values.get("spread", "standard error") not in get_args(Spread):
        raise ValueError(f"comparison {name}: spread is {' or '.join(get_args(Spread))}")
    if len({entry.label for entry in entries}) < len(entries) or len(
        {it.source for it in published}
    ) < len(published):
        raise ValueError(f"comparison {name}: two columns have the same name")
    return Comparison(
        lines=lines,
        metrics=metrics,
        published=published,
        entries=entries,
        compared_at=compared_at,
        **values,
    )


def _published(values: dict[str, Any], lines: Sequence[str], metrics: Sequence[str]) -> Published:
    source = values.pop("source")
    figures: dict[str, dict[str, Figure]] = {line: {} for line in lines}
    for metric in [metric for metric in metrics if metric in values]:
        given = values.pop(metric)
        if len(given) != len(lines):
            raise ValueError(f"{source}, {metric}: {len(given)} figures for {len(lines)} lines")
        for line, figure in zip(lines, given, strict=True):
            if isinstance(figure, list) or not math.isnan(figure):
                figures[line][metric] = _figure(figure)
    mean = {metric: _figure(figure) for metric, figure in values.pop("mean", {}).items()}
    return Published(source=source, figures=figures, mean=mean, **values)


def _figure(given: Any) -> Figure:
    return Figure(*map(float, given)) if isinstance(given, list) else Figure(float(given))
