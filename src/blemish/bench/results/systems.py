"""Rows beside what a paper published: the tables of a suite."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blemish.bench.results.ablations import differently, held_by_all, settings_sheets, table_flags
from blemish.bench.results.pages import (
    NONE,
    Page,
    Quantity,
    Sheet,
    figure,
    leader,
    markdown,
    quantity,
)
from blemish.bench.results.recipes import departures
from blemish.bench.results.rows import NEITHER, Row, as_ever, asked_for, compared_at, words
from blemish.bench.results.tables import (
    LEGEND,
    PARTLY,
    SCHEDULE,
    SCORES,
    at,
    backbone,
    commits,
    newest,
    signs,
    size,
    together,
)
from blemish.bench.suites import Comparison, Entry, Published, Suite, Table
from blemish.data.layouts import OFFICIAL
from blemish.data.text import pluralize

_BOLD = """\
Bold: the best, where it leads the second by more than the larger spread of the two; never with one seed."""
_STEPS = "Steps: of training; under a time budget a costlier line makes fewer of them."
_STATUS = """\
Measured: by a row of ours; a number in brackets says under what conditions. Published: in no row, there are the paper's
figures alone. Out of reach: in no row, and without a published figure."""
_HEADS = {**{name: head for head, name in SCORES.items()}, "pixel_auroc_anomalous": "P"}
# What the user chooses, and a paper's table does not vary: other values stand in a column of their own.
_CHOSEN = SCHEDULE | {"backbone", "image_size", "cache_gib"}
_MEAN = "Mean"
_Figures = Mapping[str, Sequence[Quantity | None]]  # metric -> the figure of every column


def suite_table(rows: Iterable[Row], suite: Suite) -> str:
    """`suite_page` as Markdown."""
    return markdown(suite_page(rows, suite))


def suite_page(rows: Iterable[Row], suite: Suite) -> Page:
    """The rows that belong to a suite, in its tables.

    A paper's main table, and one that compares methods, are shown whatever was measured of them: gaps are part of the
    result. A row belongs to an entry of theirs when it has its method, recipe, settings, shots and defects, and differs
    from the recipe in nothing else but backbone, picture size and schedule; each of these has a column (or line) of its
    own, and figures are the mean over the seeds.

    A table that varies settings is shown for every data set, and whatever else is common: rows are set in one only when
    they have all else in common, seed and commit aside, and when at least two lines of it have rows. Where each
    category has a model of its own, the means over the categories that all lines have stand in place of them.
    """
    latest, failed = newest(rows)
    sheets: list[Sheet] = []
    legends = {LEGEND: None, _BOLD: None}  # each once, in order
    for part in suite.tables:
        if isinstance(part, Table) and part.factors:
            sheets += settings_sheets(part, latest, suite.published_on)
            legends[_STEPS] = None
        else:
            systems = _systems(part, latest)
            sheets.append(
                _comparison(part, systems)
                if isinstance(part, Comparison)
                else _methods(part, systems)
            )
            legends[_STATUS] = None
    legend = "\n".join([*legends, *signs(sheets)])
    return Page(
        sheets=tuple(sheets), legend=legend, failed=failed, empty=f"No rows of {suite.name}."
    )


# Methods, as papers compare them


@dataclass(frozen=True)
class _System:
    """What was measured of an entry under the same conditions.

    Attributes:
        rows: the newest of every data set and seed.
        head: the entry's label, and under which number the conditions are said.
        mode: of adapting, whose figures are meant; None = the detector as it is.
    """

    rows: tuple[Row, ...]
    head: str
    label: str
    conditions: str
    mode: str | None = None

    def figures(self, part: Table | Comparison, line: str, metric: str) -> dict[int, float]:
        """Seed -> the figure of a category or group, in %."""
        grouped = isinstance(part, Comparison) and part.by == "group"
        whole = grouped or part.multi_class
        found: dict[int, float] = {}
        for row in self.rows:
            if row["data"] != (part.data if whole else line):
                continue
            told: Mapping[str, Any] = row
            if self.mode is not None:
                told = row.get("shifted", {}).get(NEITHER, {}).get(self.mode, {})
            if whole:
                told = told.get("by_group" if grouped else "by_category", {}).get(line, {})
            if (value := told.get(metric)) is not None:
                found[row["seed"]] = 100 * value
        return found

    def mean(self, part: Table | Comparison, lines: Sequence[str], metric: str) -> Quantity | None:
        """Over the lines, then over the seeds that have them all; None where there is no such seed."""
        each = [self.figures(part, line, metric) for line in lines]
        seeds = sorted(set.intersection(*map(set, each))) if each else []
        return _over_seeds(part, [statistics.fmean(of[seed] for of in each) for seed in seeds])

    def lines(
        self, part: Table | Comparison, lines: Iterable[str], metrics: Iterable[str]
    ) -> list[str]:
        """Those of which it has figures."""
        return [
            line for line in lines if any(self.figures(part, line, metric) for metric in metrics)
        ]

    def partly(self, line: str) -> bool:
        """Whether the pictures of a category, or of the whole set, are not the official ones."""
        return any(row.get("differs") for row in self.rows if row["data"] == line)


def _systems(part: Table | Comparison, rows: Iterable[Row]) -> list[_System]:
    """In the order of the entries, numbered."""
    found: dict[str, dict[str, dict[tuple[str, int], Row]]] = {
        entry.label: {} for entry in part.entries
    }
    names = _data_names(part)
    for row in rows:
        fitting = [entry for entry in part.entries if row["data"] in names and _belongs(row, entry)]
        if fitting:
            closest = max(fitting, key=lambda entry: len(entry.settings))
            alike = found[closest.label].setdefault(_conditions(row), {})
            older = alike.get(
                (row["data"], row["seed"]), {}
            )  # where that also adapted, it goes on telling of it
            alike[row["data"], row["seed"]] = {**older, **row}
    systems: list[_System] = []
    number = 0
    for entry in part.entries:
        for alike in found[entry.label].values():
            number += 1
            one = tuple(alike.values())
            head = " ".join(
                [
                    f"{entry.label} [{number}]",
                    *(sign for sign in table_flags(part, one) if sign != PARTLY),
                ]
            )
            plain = _System(one, head, entry.label, f"[{number}] {_described(one)}")
            adapted = [
                replace(plain, head=f"{head}, adapting: {mode}", mode=mode)
                for mode in entry.adapt
                if any(mode in row.get("shifted", {}).get(NEITHER, {}) for row in one)
            ]
            systems += [plain, *adapted]
    return systems


def _over_seeds(part: Table | Comparison, values: Sequence[float]) -> Quantity | None:
    """With the spread that the paper gives."""
    return quantity(
        values, standard_error=isinstance(part, Comparison) and part.spread == "standard error"
    )


def _data_names(part: Table | Comparison) -> Collection[str]:
    """What rows of its data call that."""
    if part.multi_class:
        return {part.data}
    if isinstance(part, Comparison):
        return {part.data} if part.by == "group" else part.lines
    return OFFICIAL[part.data].categories


def _belongs(row: Row, entry: Entry) -> bool:
    if (row["method"], row.get("shots")) != (entry.method, entry.shots):
        return False
    if (row.get("anomaly_count"), row.get("anomaly_type")) != (entry.anomaly_count, None):
        return False
    free = _CHOSEN | ({"layers"} if "backbone" in row.get("changed", {}) else set())
    return departures(row, entry.recipe, entry.settings).keys() <= free


def _conditions(row: Row) -> str:
    """Rows that differ only in data set, seed, date, commit, threads and in what adapts have the same."""
    settings = {
        key: value
        for key, value in as_ever(row["settings"]).items()
        if key not in ("seed", "cache_gib")
    }
    kind = row["device"]["type"], row["device"]["name"]
    also = [
        row["resolution"],
        row["weights"],
        row["precision"],
        row.get("time_budget"),
        together(row),
        compared_at(row),
    ]
    return json.dumps([settings, kind, *also], sort_keys=True)


def _described(rows: Sequence[Row]) -> str:
    """Under what conditions, in words."""
    last = rows[-1]
    several = together(last)
    steps = sorted({row["training"]["steps"] for row in rows if row.get("training")})
    changed = words(
        {key: value for key, value in last.get("changed", {}).items() if key != "cache_gib"}
    )
    said = [
        last["method"],
        f"recipe {last['recipe']}",
        *asked_for({**last, "recipe": "best", "label": changed, "shifts": (), "adapt": ()}),
        *([f"one model of {pluralize(len(several), 'category', 'categories')}"] if several else []),
        backbone(last),
        size(last),
        *filter(None, [at(last)]),
        last["precision"],
        last["device"]["name"],
        *(
            [f"{' to '.join(f'{count:,}' for count in (steps[0], steps[-1])[: len(steps)])} steps"]
            if steps
            else []
        ),
        f"commit {commits(rows)}",
        f"seed {', '.join(map(str, sorted({row['seed'] for row in rows})))}",
        *_votes(rows),
    ]
    return " · ".join(said)


def _votes(rows: Sequence[Row]) -> list[str]:
    """What the majority of the sizes looked at is right in, the mean over the rows, in words."""
    votes = [row["votes"] for row in rows if row.get("votes")]
    if not votes or len(votes) < len(rows):
        return []
    ranked, balanced = (100 * statistics.fmean(of[name] for of in votes) for name in votes[0])
    return [f"by majority vote: image AUROC {ranked:.1f}, balanced accuracy {balanced:.1f}"]


def _comparison(part: Comparison, systems: Sequence[_System]) -> Sheet:
    """Lines: categories or groups. Columns: the published systems, then the measured ones."""
    columns = [*(system.source for system in part.published), *(system.head for system in systems)]
    held = [system.lines(part, part.lines, part.metrics) for system in systems]

    def cells(
        name: str, quantities: Mapping[str, Sequence[Quantity | None]], partly: Sequence[bool]
    ) -> tuple[str, ...]:
        split = len(part.published)
        marks = [*[""] * split, *(f" {PARTLY}" * it for it in partly)]
        texts = [[_text(it) for it in of] for of in quantities.values()]
        for of, shown in zip(quantities.values(), texts, strict=True):
            if (best := leader(of)) is not None:
                shown[best] = f"**{shown[best]}**"
        joined = [
            NONE if set(each) == {NONE} else " / ".join(each) for each in zip(*texts, strict=True)
        ]
        status = _status(joined[split:], joined[:split])
        return (
            name,
            *(text + mark * (text != NONE) for text, mark in zip(joined, marks, strict=True)),
            status,
        )

    lines: list[tuple[str, ...]] = []
    for line in part.lines:
        quantities = {
            metric: [
                *(_quantity(system.figures[line].get(metric)) for system in part.published),
                *(
                    _over_seeds(part, list(system.figures(part, line, metric).values()))
                    for system in systems
                ),
            ]
            for metric in part.metrics
        }
        whole = part.multi_class or part.by == "group"
        lines.append(
            cells(
                line,
                quantities,
                [system.partly(part.data if whole else line) for system in systems],
            )
        )
    if part.by == "category" and len(part.lines) > 1:
        partly = [
            any(map(system.partly, {*of, part.data}))
            for system, of in zip(systems, held, strict=True)
        ]
        means = {
            metric: [
                *(_quantity(system.mean.get(metric)) for system in part.published),
                *(system.mean(part, part.lines, metric) for system in systems),
            ]
            for metric in part.metrics
        }
        lines.append(cells(_MEAN, means, partly))
        shared = held_by_all(part.lines, held)
        if 1 < len(shared) < len(part.lines):
            means = {
                metric: [
                    *(_published_mean(system, shared, metric) for system in part.published),
                    *(system.mean(part, shared, metric) for system in systems),
                ]
                for metric in part.metrics
            }
            lines.append(cells(f"Mean of the {len(shared)} measured", means, partly))
    if any(system.latency_ms for system in part.published):
        theirs = [NONE if it.latency_ms is None else f"{it.latency_ms:g}" for it in part.published]
        ours = [NONE if it.mode else _latency(it.rows) for it in systems]
        lines.append(("Latency (ms)", *theirs, *ours, _status(ours, theirs)))
    return Sheet(
        title=part.title,
        above=" ".join(
            [
                f"{' / '.join(_HEADS.get(metric, metric) for metric in part.metrics)}.",
                *([f"Published: {part.source}."] if part.source else []),
                *differently(part),
            ]
        ),
        columns=("", *columns, "Status"),
        lines=tuple(lines),
        notes=(part.note,) if part.note else (),
        footnotes=_footnotes(systems),
    )


def _methods(part: Table, systems: Sequence[_System]) -> Sheet:
    """Lines: methods, measured and published. Its best is not marked: some know more pictures than others."""
    categories = list(OFFICIAL[part.data].categories)
    held = [system.lines(part, categories, SCORES.values()) for system in systems]
    shared = held_by_all(categories, held)
    names: list[str] = []
    figures: dict[str, list[Quantity | None]] = {head: [] for head in SCORES}
    published: dict[str, list[Quantity | None]] = {head: [] for head in SCORES}
    for row in part.rows:
        own: list[_System | None] = [
            each for each in systems if row.method and each.label == row.label
        ]
        for system in own or [None]:
            partly = system is not None and any(map(system.partly, {*shared, part.data}))
            names.append(row.label if system is None else system.head + f" {PARTLY}" * partly)
            for head, metric in SCORES.items():
                figures[head].append(None if system is None else system.mean(part, shared, metric))
                value = row.published.get(metric)
                published[head].append(None if value is None else Quantity(value))
    seeds = [
        max((it.seeds for it in line if it), default=0)
        for line in zip(*figures.values(), strict=True)
    ]
    ours = {head: list(map(_text, of)) for head, of in figures.items() if any(of)}
    theirs = {
        f"{head}, published": list(map(_text, of)) for head, of in published.items() if any(of)
    }
    blank = [NONE] * len(names)
    status = [
        _status(measured, given)
        for measured, given in zip(
            zip(*ours.values(), blank, strict=True),
            zip(*theirs.values(), blank, strict=True),
            strict=True,
        )
    ]
    columns = {"": names, **ours, "Seeds": list(map(str, seeds)), **theirs, "Status": status}
    where = (
        f"mean of {len(shared)} of {len(categories)} categories"
        if len(shared) > 1
        else f"{''.join(shared)} alone"
    )
    said = [
        f"Published: {part.source}." if theirs and part.source else "",
        *differently(part),
        part.note,
    ]
    note = " ".join(filter(None, said))
    return Sheet(
        title=f"{part.title}: {where}" if shared and len(categories) > 1 else part.title,
        columns=tuple(columns),
        lines=tuple(zip(*columns.values(), strict=True)),
        notes=(note,) if note else (),
        footnotes=_footnotes(systems),
    )


def _footnotes(systems: Iterable[_System]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(system.conditions for system in systems))


def _quantity(given: Any) -> Quantity | None:
    return None if given is None else Quantity(given.value, given.spread)


def _published_mean(system: Published, lines: Sequence[str], metric: str) -> Quantity | None:
    values = [given.value for line in lines if (given := system.figures[line].get(metric))]
    return Quantity(statistics.fmean(values)) if len(values) == len(lines) else None


def _latency(rows: Iterable[Row]) -> str:
    return figure([(row.get("efficiency") or {}).get("latency_p50_ms") for row in rows])


def _text(it: Quantity | None) -> str:
    return NONE if it is None else str(it)


def _status(measured: Iterable[str], published: Iterable[str]) -> str:
    if any(cell != NONE for cell in measured):
        return "measured"
    return "published" if any(cell != NONE for cell in published) else "out of reach"
