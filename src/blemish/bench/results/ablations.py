"""The tables of a suite that vary settings, as ablations do; and what all of its tables say of themselves."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product

from blemish.bench.results.pages import NONE, Sheet, figure, leader, quantity
from blemish.bench.results.rows import OF_PRETRAINING, Row, as_it_was, asked_for, compared_at, words
from blemish.bench.results.tables import (
    ELSEWHERE,
    OFF,
    SCORES,
    at,
    backbone,
    commits,
    device,
    flags,
    likeness,
    size,
)
from blemish.bench.suites import Comparison, Entry, Table
from blemish.data.layouts import OFFICIAL
from blemish.types import ORIGINAL, RESOLUTION


def settings_sheets(part: Table, rows: Iterable[Row], published_on: str) -> list[Sheet]:
    found: dict[str, dict[str, dict[str, list[Row]]]] = {}
    for entry, row in product(part.entries, rows):
        if _varies(row, entry):
            alike = found.setdefault(likeness(row, part.factors), {})
            alike.setdefault(_before(row, part.factors), {}).setdefault(entry.label, []).append(row)
    parts: list[tuple[str, str, dict[str, list[Row]]]] = []
    for group, alike in found.items():
        without = alike.pop("", {})  # stands beside every pre-training
        for before, of in alike.items() or [("", {})]:
            parts += [(data, group + before, lines) for data, lines in _by_data(part, without | of)]
    return [
        _varied(part, data, lines, published_on)
        for data, _, lines in sorted(parts, key=lambda it: it[:2])
        if len(lines) > 1
    ]


def _before(row: Row, factors: Collection[str]) -> str:
    """How a row was pre-trained, as far as a table that varies the pre-training does not vary that, too; "" = not."""
    settings = as_it_was(row["settings"])
    if "pretraining" not in factors or settings["pretraining"] == "none":
        return ""
    return json.dumps(
        {key: settings[key] for key in OF_PRETRAINING.difference(factors)}, sort_keys=True
    )


def _varies(row: Row, entry: Entry) -> bool:
    settings = row["settings"]
    return row["method"] == entry.method and all(
        settings.get(key) == it for key, it in entry.settings.items()
    )


def _by_data(
    part: Table, lines: Mapping[str, Sequence[Row]]
) -> Iterator[tuple[str, dict[str, list[Row]]]]:
    """Data set -> label -> rows; of a set whose categories have models of their own, the means over those that all
    lines have, if these are several."""
    official = OFFICIAL[part.data] if part.data and not part.multi_class else None
    categories = list(official.categories) if official else []
    shared = held_by_all(categories, ({row["data"] for row in of} for of in lines.values()))
    pooled: set[str] = set()
    if official and len(shared) > 1:
        means = {label: _means(of, shared) for label, of in lines.items()}
        yield (
            f"{official.title}, mean of {len(shared)} of {len(categories)} categories",
            {label: of for label, of in means.items() if of},
        )
        pooled = set(categories)
    by_data: dict[str, dict[str, list[Row]]] = {}
    for label, of in lines.items():
        for row in of:
            if row["data"] not in pooled:
                by_data.setdefault(row["data"], {}).setdefault(label, []).append(row)
    yield from by_data.items()


def _means(rows: Iterable[Row], categories: Sequence[str]) -> list[Row]:
    """A row for each seed that has all the categories, with the means of their figures and steps."""
    seeds: dict[int, dict[str, Row]] = {}
    for row in rows:
        seeds.setdefault(row["seed"], {})[row["data"]] = row
    means: list[Row] = []
    for of in seeds.values():
        if all(category in of for category in categories):
            each = [of[category] for category in categories]
            figures = {metric: _mean([row[metric] for row in each]) for metric in SCORES.values()}
            means.append(
                {
                    **each[-1],
                    **figures,
                    "differs": [it for row in each for it in row.get("differs") or ()],
                }
            )
            for name, made in (("training", _steps), ("pretraining", _earlier_steps)):
                if each[-1].get(name):
                    steps = statistics.fmean(made(row) for row in each)
                    means[-1][name] = (
                        {"steps": steps} if name == "training" else {"training": {"steps": steps}}
                    )
    return means


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _steps(row: Row) -> float:
    steps: float = row["training"]["steps"]
    return steps


def _earlier_steps(row: Row) -> float:
    return _steps(row["pretraining"])


def _varied(
    part: Table, data: str, measured: Mapping[str, Sequence[Row]], published_on: str
) -> Sheet:
    """The lines of a table that varies settings. `measured`: label -> rows."""
    lines = [measured.get(row.label, []) for row in part.rows]
    names = [
        " ".join([row.label, *table_flags(part, rows)])
        for row, rows in zip(part.rows, lines, strict=True)
    ]
    columns = {"": names}
    columns |= {
        head: _marked([[row[name] for row in rows] for rows in lines])
        for head, name in SCORES.items()
    }
    columns["Seeds"] = [str(len(rows)) for rows in lines]
    before = [[_earlier_steps(row) for row in rows if row.get("pretraining")] for rows in lines]
    steps = [[_steps(row) for row in rows if row.get("training")] for rows in lines]
    for head, made in {"Pre-training steps": before, "Steps": steps}.items():
        if any(made):
            columns[head] = [figure(counts, digits=0) for counts in made]
    published = {name for row in part.rows for name in row.published}
    for head, name in SCORES.items():
        if name in published:
            given = [row.published.get(name) for row in part.rows]
            columns[f"{head}, published"] = [
                NONE if value is None else f"{value:.1f}" for value in given
            ]
    source = f"Published: {part.source}{f', on {published_on}; no measure for other data' if published_on else ''}."
    note = " ".join(filter(None, [source if published else "", *differently(part), part.note]))
    return Sheet(
        title=f"{part.title}: {data}",
        above=_common([row for rows in measured.values() for row in rows], part.factors),
        columns=tuple(columns),
        lines=tuple(zip(*columns.values(), strict=True)),
        notes=(note,) if note else (),
    )


def _common(rows: Sequence[Row], factors: Collection[str]) -> str:
    """What all rows of a table have in common, in words."""
    row = rows[-1]
    settings = {key: value for key, value in row.get("changed", {}).items() if key not in factors}
    said = [row["method"], *asked_for({**row, "label": words(settings)})]
    said += sorted({size(row) for row in rows})
    said += filter(None, [at(row)])
    said += [] if "backbone" in factors else [backbone(row)]
    return " · ".join([*said, row["precision"], device(row), f"commit {commits(rows)}"])


def _marked(lines: Sequence[Sequence[float | None]]) -> list[str]:
    """The figures of a column in %, the best in bold."""
    cells = [figure(values, 100) for values in lines]
    known = [[100 * value for value in values if value is not None] for values in lines]
    best = leader(
        [None if cell == NONE else quantity(of) for cell, of in zip(cells, known, strict=True)]
    )
    return [f"**{cell}**" if place == best else cell for place, cell in enumerate(cells)]


def table_flags(part: Table | Comparison, rows: Sequence[Row]) -> list[str]:
    """As `flags`, and whether maps and masks were compared elsewhere than the part says of its paper; where it shows
    nothing of maps, nothing of that."""
    if isinstance(part, Comparison) and set(part.metrics) == {"image_auroc"}:
        return [sign for sign in flags(rows) if sign != OFF]
    places = {compared_at(row) or RESOLUTION for row in rows if compared_at(row) is not None}
    return flags(rows) + [ELSEWHERE] * (not places <= {part.compared_at or ORIGINAL})


def differently(part: Table | Comparison) -> list[str]:
    """What of the legend is otherwise in a table, in sentences."""
    said = []
    if part.compared_at != RESOLUTION:
        size_ = (
            "the pictures' own size"
            if part.compared_at is None
            else f"{part.compared_at}×{part.compared_at}"
        )
        said.append(f"Maps and masks are compared at {size_}.")
    if isinstance(part, Comparison) and part.spread != "standard deviation":
        said.append(f"±: the {part.spread} over the seeds.")
    return said


def held_by_all(lines: Sequence[str], held: Iterable[Collection[str]]) -> list[str]:
    """The lines that all have who have any."""
    some = [of for of in held if of]
    return [line for line in lines if some and all(line in of for of in some)]
