"""Rows beside what a paper published: the tables of a suite."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blemish.bench.results.ablations import (
    differently,
    held_by_all,
    published_columns,
    settings_sheets,
    sheet_of_columns,
    table_signs,
)
from blemish.bench.results.overview import (
    COLUMNS,
    LEGEND,
    PARTLY,
    SCHEDULE,
    SCORES,
    Rows,
    backbone,
    commits,
    legend,
    size,
)
from blemish.bench.results.rows import (
    NEITHER,
    Row,
    asked_for,
    at,
    departures,
    likeness,
    newest,
    together,
    words,
)
from blemish.bench.results.sheets import NONE, Page, Quantity, Sheet, quantity, text, texts
from blemish.bench.suites import Comparison, Entry, Figure, Published, Suite, Table
from blemish.data.layouts import OFFICIAL
from blemish.text import pluralize

_BOLD = """\
Bold: the best, where it leads the second by more than the larger spread of the two; never with one
seed."""
_STEPS = "Steps: of training; under a time budget a costlier line makes fewer of them."
_STATUS = """\
Measured: by a row of ours; a number in brackets says under what conditions. Published: in no row,
there are the paper's figures alone. Out of reach: in no row, and without a published figure."""
_HEADS = {**{name: head for head, name in SCORES.items()}, "pixel_auroc_anomalous": "P"}
# What the user chooses, and a paper's table does not vary: other values stand in a column of their
# own.
_CHOSEN = SCHEDULE | {"backbone", "image_size", "cache_gib"}
# Where rows of an entry differ in one of these only, they are of the same conditions.
_NO_CONDITION = {"method", "recipe", "shots", "anomaly_count", "anomaly_type", "shifts", "adapt"}
_NO_CONDITION |= {"cache_gib", "cpu", "cores", "threads"}


def suite_page(rows: Iterable[Row], suite: Suite) -> Page:
    """The rows that belong to a suite, in its tables.

    A paper's main table, and one that compares methods, are shown whatever was measured of them:
    gaps are part of the result. A row belongs to an entry of theirs when it has its method, recipe,
    settings, shots and defects, and differs from the recipe in nothing else but backbone, picture
    size and schedule; each of these has a column (or line) of its own, and figures are the mean
    over the seeds.

    A table that varies settings is shown for every data set, and whatever else is common: rows are
    set in one only when they have all else in common, seed and commit aside, and when at least two
    lines of it have rows. Where each category has a model of its own, the means over the categories
    that all lines have stand in place of them.
    """
    latest, failed = newest(rows)
    sheets: list[Sheet] = []
    legends = {LEGEND: None, _BOLD: None}  # each once, in order
    for part in suite.tables:
        if isinstance(part, Comparison):
            sheets.append(_comparison(part, _systems(part, latest)))
        elif part.factors:
            sheets += settings_sheets(part, latest, suite.published_on)
        else:
            sheets.append(_methods(part, _systems(part, latest)))
        legends[_STEPS if isinstance(part, Table) and part.factors else _STATUS] = None
    empty = f"No rows of {suite.name}."
    return Page(sheets=tuple(sheets), legend=legend(legends, sheets), failed=failed, empty=empty)


# Methods, as papers compare them


@dataclass(frozen=True, kw_only=True)
class _System:
    """What was measured of an entry under the same conditions.

    Attributes:
        part: the table that it is for.
        rows: the newest of every data set and seed.
        head: the entry's label, and under which number the conditions are said.
        mode: of adapting, whose figures are meant; None = the detector as it is.
    """

    part: Table | Comparison
    rows: Rows
    head: str
    label: str
    conditions: str
    mode: str | None = None

    def quantity(self, lines: Sequence[str], metric: str) -> Quantity | None:
        """Over the lines, then over the seeds that have them all; None where there is no such
        seed."""
        each = [self._figures(line, metric) for line in lines]
        seeds = sorted(set.intersection(*map(set, each))) if each else []
        error = isinstance(self.part, Comparison) and self.part.spread == "standard error"
        means = [statistics.fmean(of[seed] for of in each) for seed in seeds]
        return quantity(means, standard_error=error)

    def held(self, lines: Iterable[str], metrics: Iterable[str]) -> list[str]:
        """Those of the lines of which it has figures."""
        return [line for line in lines if any(self._figures(line, metric) for metric in metrics)]

    def partly(self, lines: Collection[str]) -> bool:
        """Whether the pictures of one of these categories, or of the whole set, are not the
        official ones."""
        return any(row["differs"] for row in self.rows if row["data"] in {*lines, self.part.data})

    def _figures(self, line: str, metric: str) -> dict[int, float]:
        """Seed -> the figure of a category or group, in %."""
        within = _within(self.part)
        found: dict[int, float] = {}
        for row in self.rows:
            of: Mapping[str, Any] = row
            if self.mode is not None:
                of = row["shifted"].get(NEITHER, {}).get(self.mode, {})
            if within:
                of = of.get(within, {}).get(line, {})
            if row["data"] == (self.part.data if within else line) and of.get(metric) is not None:
                found[row["seed"]] = 100 * of[metric]
        return found


def _within(part: Table | Comparison) -> str:
    """The key under which rows of a table's data tell of each of its lines; "" where these have
    rows of their own."""
    if isinstance(part, Comparison) and part.by == "group":
        return "by_group"
    return "by_category" if part.multi_class else ""


def _systems(part: Table | Comparison, rows: Iterable[Row]) -> list[_System]:
    """In the order of the entries, numbered."""
    found: dict[str, dict[str, dict[tuple[str, int], Row]]] = {it.label: {} for it in part.entries}
    names: Collection[str] = (
        part.lines if isinstance(part, Comparison) else OFFICIAL[part.data].categories
    )
    names = {part.data} if _within(part) else names
    for row in rows:
        fitting = [entry for entry in part.entries if row["data"] in names and _belongs(row, entry)]
        if fitting:
            closest = max(fitting, key=lambda entry: len(entry.settings))
            alike = found[closest.label].setdefault(likeness(row, but=_NO_CONDITION), {})
            older = alike.get((row["data"], row["seed"]))
            # An older row that also adapted goes on telling of it.
            shifted = row["shifted"] or (older["shifted"] if older else {})
            alike[row["data"], row["seed"]] = {**row, "shifted": shifted}
    systems: list[_System] = []
    number = 0
    for entry in part.entries:
        for alike in found[entry.label].values():
            number += 1
            own = tuple(alike.values())
            signs = [sign for sign in table_signs(part, own) if sign != PARTLY]
            plain = _System(
                part=part,
                rows=own,
                head=" ".join([f"{entry.label} [{number}]", *signs]),
                label=entry.label,
                conditions=f"[{number}] {_described(own)}",
            )
            systems.append(plain)
            for mode in entry.adapt:
                if any(mode in row["shifted"].get(NEITHER, {}) for row in own):
                    systems.append(
                        replace(plain, head=f"{plain.head}, adapting: {mode}", mode=mode)
                    )
    return systems


def _belongs(row: Row, entry: Entry) -> bool:
    theirs = (row["method"], row["shots"], row["anomaly_count"], row["anomaly_type"])
    if theirs != (entry.method, entry.shots, entry.anomaly_count, None):
        return False
    free = _CHOSEN | ({"layers"} if "backbone" in row["changed"] else set())
    return departures(row, entry.recipe, entry.settings).keys() <= free


def _described(rows: Rows) -> str:
    """Under what conditions, in words."""
    last = rows[-1]
    changed = {key: value for key, value in last["changed"].items() if key != "cache_gib"}
    asked = {**last, "recipe": "best", "label": words(changed), "shifts": (), "adapt": ()}
    said = [last["method"], f"recipe {last['recipe']}", *asked_for(asked)]
    if several := together(last):
        said.append(f"one model of {pluralize(len(several), 'category', 'categories')}")
    said += [backbone(last), size(last), at(last), last["precision"], last["device"]["name"]]
    if steps := sorted({row["training"]["steps"] for row in rows if row["training"]}):
        said.append(
            " to ".join(f"{count:,}" for count in dict.fromkeys((steps[0], steps[-1]))) + " steps"
        )
    said.append(f"commit {commits(rows)}")
    said.append(f"seed {', '.join(map(str, sorted({row['seed'] for row in rows})))}")
    votes = [row["votes"] for row in rows if row["votes"]]
    if votes and len(votes) == len(rows):
        ranked, balanced = (100 * statistics.fmean(of[name] for of in votes) for name in votes[0])
        said.append(f"by majority vote: image AUROC {ranked:.1f}, balanced accuracy {balanced:.1f}")
    return " · ".join(filter(None, said))


def _comparison(part: Comparison, systems: Sequence[_System]) -> Sheet:
    """Lines: categories or groups. Columns: the published systems, then the measured ones."""
    split = len(part.published)
    held = [system.held(part.lines, part.metrics) for system in systems]

    def cells(
        name: str,
        lines: Sequence[str],
        partly: Sequence[bool],
        published: Callable[[Published, str], Figure | None],
    ) -> tuple[str, ...]:
        shown = [
            texts(
                [_published(published(system, metric)) for system in part.published]
                + [system.quantity(lines, metric) for system in systems]
            )
            for metric in part.metrics
        ]
        joined = [NONE if set(of) == {NONE} else " / ".join(of) for of in zip(*shown, strict=True)]
        marks = [""] * split + [f" {PARTLY}" * it for it in partly]
        marked = [of + mark * (of != NONE) for of, mark in zip(joined, marks, strict=True)]
        return (name, *marked, _status(joined[split:], joined[:split]))

    found = [
        cells(
            line,
            [line],
            [system.partly(() if _within(part) else [line]) for system in systems],
            lambda system, metric, line=line: system.figures[line].get(metric),  # type: ignore[misc]
        )
        for line in part.lines
    ]
    if part.by == "category" and len(part.lines) > 1:
        partly = [system.partly(of) for system, of in zip(systems, held, strict=True)]
        found.append(cells("Mean", part.lines, partly, lambda it, metric: it.mean.get(metric)))
        shared = held_by_all(part.lines, held)
        if 1 < len(shared) < len(part.lines):
            name = f"Mean of the {len(shared)} measured"
            found.append(
                cells(name, shared, partly, lambda it, metric: _shared_mean(it, shared, metric))
            )
    if any(system.latency_ms for system in part.published):
        theirs = [NONE if it.latency_ms is None else f"{it.latency_ms:g}" for it in part.published]
        ours = [NONE if it.mode else COLUMNS["Latency p50 (ms)"](it.rows) for it in systems]
        found.append(("Latency (ms)", *theirs, *ours, _status(ours, theirs)))
    heads = [*(it.source for it in part.published), *(it.head for it in systems)]
    said = [f"{' / '.join(_HEADS.get(metric, metric) for metric in part.metrics)}."]
    said += [f"Published: {part.source}."] if part.source else []
    return Sheet(
        title=part.title,
        above=" ".join([*said, *differently(part)]),
        columns=("", *heads, "Status"),
        lines=tuple(found),
        notes=(part.note,) if part.note else (),
        footnotes=tuple(dict.fromkeys(system.conditions for system in systems)),
    )


def _methods(part: Table, systems: Sequence[_System]) -> Sheet:
    """Lines: methods, measured and published. Its best is not marked: some know more pictures than
    others."""
    categories = list(OFFICIAL[part.data].categories)
    shared = held_by_all(categories, [it.held(categories, SCORES.values()) for it in systems])
    lines: list[tuple[Entry, _System | None]] = []
    for row in part.rows:
        own: list[_System | None] = [it for it in systems if row.method and it.label == row.label]
        lines += [(row, system) for system in own or [None]]
    columns: dict[str, Sequence[str]] = {
        "": [
            f"{it.head} {PARTLY}" if it and it.partly(shared) else it.head if it else row.label
            for row, it in lines
        ]
    }
    ours = {
        head: [it.quantity(shared, metric) if it else None for _, it in lines]
        for head, metric in SCORES.items()
    }
    columns |= {head: list(map(text, of)) for head, of in ours.items() if any(of)}
    each = list(zip(*ours.values(), strict=True))
    columns["Seeds"] = [str(max((it.seeds for it in line if it), default=0)) for line in each]
    theirs = published_columns([row for row, _ in lines])
    columns |= theirs
    given = list(zip(*theirs.values(), strict=True)) or [()] * len(lines)
    columns["Status"] = [_status(map(text, it), of) for it, of in zip(each, given, strict=True)]
    where = f"mean of {len(shared)} of {len(categories)} categories"
    where = where if len(shared) > 1 else f"{''.join(shared)} alone"
    source = f"Published: {part.source}." if theirs and part.source else ""
    return sheet_of_columns(
        f"{part.title}: {where}" if shared and len(categories) > 1 else part.title,
        columns,
        notes=[source, *differently(part), part.note],
        footnotes=tuple(dict.fromkeys(system.conditions for system in systems)),
    )


def _published(given: Figure | None) -> Quantity | None:
    return None if given is None else Quantity(given.value, given.spread)


def _shared_mean(system: Published, lines: Sequence[str], metric: str) -> Figure | None:
    values = [given.value for line in lines if (given := system.figures[line].get(metric))]
    return Figure(statistics.fmean(values)) if len(values) == len(lines) else None


def _status(measured: Iterable[str], published: Iterable[str]) -> str:
    if any(cell != NONE for cell in measured):
        return "measured"
    return "published" if any(cell != NONE for cell in published) else "out of reach"
