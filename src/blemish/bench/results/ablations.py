"""Tables that vary settings, as ablations do; and what all tables of a suite say of themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from blemish.bench.results.overview import (
    ELSEWHERE,
    OFF,
    SCORES,
    Rows,
    backbone,
    commits,
    device,
    flags,
    size,
)
from blemish.bench.results.rows import (
    HALF_OFF,
    OF_PRETRAINING,
    Row,
    asked_for,
    at,
    compared_at,
    likeness,
    told,
    words,
)
from blemish.bench.results.sheets import NONE, Sheet, figure, mean, quantity, texts
from blemish.bench.suites import Comparison, Entry, Table
from blemish.data.layouts import OFFICIAL
from blemish.types import ORIGINAL, RESOLUTION


def settings_sheets(part: Table, rows: Iterable[Row], published_on: str) -> list[Sheet]:
    """One sheet for each data set and whatever else the rows of at least two lines have in
    common."""
    # Each backbone rounds the size asked for to what it divides, and has weights of its own.
    but = {
        *part.factors,
        *({"resolution", "weights", "image_size"} if "backbone" in part.factors else ()),
    }
    if "pretraining" in part.factors:
        but |= OF_PRETRAINING  # where nothing is pre-trained, these settings say nothing
    groups: dict[str, dict[str, dict[str, list[Row]]]] = {}
    for entry in part.entries:
        for row in rows:
            if row["method"] == entry.method and all(
                row["settings"].get(key) == value for key, value in entry.settings.items()
            ):
                alike = likeness(row, but=but) + json.dumps(row["changed"].get("image_size"))
                lines = groups.setdefault(alike, {}).setdefault(_pretraining(row, part.factors), {})
                lines.setdefault(entry.label, []).append(row)
    found: list[tuple[str, str, Sheet]] = []
    for alike, by_pretraining in groups.items():
        without = by_pretraining.pop("", {})  # stands beside every pre-training
        for before, lines in by_pretraining.items() or [("", {})]:
            for title, of in _on_data(part, without | lines):
                if len(of) > 1:
                    found.append((title, alike + before, _lines(part, title, of, published_on)))
    return [sheet for *_, sheet in sorted(found, key=lambda it: it[:2])]


def _pretraining(row: Row, factors: Collection[str]) -> str:
    """How a row was pre-trained, as far as a table that varies the pre-training does not vary that,
    too; "" = not."""
    settings = row["settings"]
    if "pretraining" not in factors or settings["pretraining"] == "none":
        return ""
    return json.dumps(
        {key: settings.get(key) for key in sorted(OF_PRETRAINING.difference(factors))}
    )


# The rows of a seed, one for each category that its figures are means over.
_Seed = Sequence[Row]


def _on_data(
    part: Table, lines: Mapping[str, Rows]
) -> Iterator[tuple[str, dict[str, list[_Seed]]]]:
    """Title, and label -> seeds: of a set whose categories have models of their own, over those
    categories that all lines have, if these are several; else of each data set."""
    official = OFFICIAL[part.data] if part.data and not part.multi_class else None
    categories = list(official.categories) if official else []
    shared = held_by_all(categories, ({row["data"] for row in of} for of in lines.values()))
    wanted: dict[str, Sequence[str]] = {}
    pooled: Collection[str] = ()
    if official and len(shared) > 1:
        title = f"{official.title}, mean of {len(shared)} of {len(categories)} categories"
        wanted[title], pooled = shared, categories
    names = (row["data"] for of in lines.values() for row in of)
    wanted |= {name: [name] for name in names if name not in pooled}
    for title, data in wanted.items():
        seeds = {label: _seeds(of, data) for label, of in lines.items()}
        yield title, {label: of for label, of in seeds.items() if of}


def _seeds(rows: Rows, names: Sequence[str]) -> list[_Seed]:
    """The seeds that have rows of all these data."""
    by_seed: dict[int, dict[str, Row]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], {})[row["data"]] = row
    return [[of[name] for name in names] for of in by_seed.values() if of.keys() >= set(names)]


_TRAININGS: Mapping[str, Callable[[Row], Any]] = {
    "Pre-training steps": lambda row: (row["pretraining"] or {}).get("training"),
    "Steps": lambda row: row["training"],
}


def _lines(
    part: Table, title: str, measured: Mapping[str, Sequence[_Seed]], published_on: str
) -> Sheet:
    """The lines of a table that varies settings. `measured`: label -> seeds."""
    lines = [measured.get(row.label, []) for row in part.rows]
    rows = [[row for seed in seeds for row in seed] for seeds in lines]
    names = [
        " ".join([row.label, *table_signs(part, of)])
        for row, of in zip(part.rows, rows, strict=True)
    ]
    columns: dict[str, Sequence[str]] = {"": names}
    for head, metric in SCORES.items():
        figures = [[mean([told(row, metric) for row in seed]) for seed in seeds] for seeds in lines]
        columns[head] = texts([quantity(of, 100) for of in figures])
    columns["Seeds"] = [str(len(seeds)) for seeds in lines]
    for head, training in _TRAININGS.items():
        made = [
            [mean([it["steps"] if (it := training(row)) else None for row in seed]) for seed in of]
            for of in lines
        ]
        known = [[it for it in of if it is not None] for of in made]
        if any(known):
            columns[head] = [figure(counts, digits=0) for counts in known]
    theirs = published_columns(part.rows)
    columns |= theirs
    elsewhere = f", on {published_on}; no measure for other data" if published_on else ""
    source = f"Published: {part.source}{elsewhere}." if theirs else ""
    return sheet_of_columns(
        f"{part.title}: {title}",
        columns,
        above=_common(
            [row for of in measured.values() for seed in of for row in seed], part.factors
        ),
        notes=[source, *differently(part), part.note],
    )


def _common(rows: Rows, factors: Collection[str]) -> str:
    """What all rows of a table have in common, in words."""
    row = rows[-1]
    settings = {key: value for key, value in row["changed"].items() if key not in factors}
    said = [row["method"], *asked_for({**row, "label": words(settings)})]
    said += sorted({size(row) for row in rows})
    said += [at(row), "" if "backbone" in factors else backbone(row), row["precision"], device(row)]
    return " · ".join(filter(None, [*said, f"commit {commits(rows)}"]))


def published_columns(rows: Iterable[Entry]) -> dict[str, list[str]]:
    """The columns of what was published of these lines."""
    figures = {
        f"{head}, published": [row.published.get(metric) for row in rows]
        for head, metric in SCORES.items()
    }
    return {
        head: [NONE if value is None else f"{value:.1f}" for value in of]
        for head, of in figures.items()
        if any(of)
    }


def sheet_of_columns(
    title: str,
    columns: Mapping[str, Sequence[str]],
    *,
    above: str = "",
    notes: Iterable[str],
    footnotes: tuple[str, ...] = (),
) -> Sheet:
    """A sheet from its columns; what there is of the notes is one paragraph."""
    note = " ".join(filter(None, notes))
    return Sheet(
        title=title,
        above=above,
        columns=tuple(columns),
        lines=tuple(zip(*columns.values(), strict=True)),
        notes=(note,) if note else (),
        footnotes=footnotes,
    )


def table_signs(part: Table | Comparison, rows: Rows) -> list[str]:
    """As `flags`, and whether maps and masks were compared elsewhere than the part says of its
    paper; where it shows nothing of maps, nothing of that."""
    if isinstance(part, Comparison) and set(part.metrics) == {"image_auroc"}:
        return [sign for sign in flags(rows) if sign != OFF]
    wanted = {part.compared_at or ORIGINAL, None}
    if part.compared_at == RESOLUTION:
        wanted.add(HALF_OFF)
    return flags(rows) + [ELSEWHERE] * any(compared_at(row) not in wanted for row in rows)


def differently(part: Table | Comparison) -> list[str]:
    """What of the legend is otherwise in a table, in sentences."""
    said = []
    if part.compared_at is None:
        said.append("Maps and masks are compared at the pictures' own size.")
    elif part.compared_at != RESOLUTION:
        said.append(f"Maps and masks are compared at {part.compared_at}×{part.compared_at}.")
    if isinstance(part, Comparison) and part.spread != "standard deviation":
        said.append(f"±: the {part.spread} over the seeds.")
    return said


def held_by_all(lines: Sequence[str], held: Iterable[Collection[str]]) -> list[str]:
    """The lines of which everything that was measured at all has figures. `held`: the lines of
    each."""
    some = [of for of in held if of]
    return [line for line in lines if some and all(line in of for of in some)]
