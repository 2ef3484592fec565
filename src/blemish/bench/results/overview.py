"""All rows of some results as tables: what was measured on each data set, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from blemish.bench.results.rows import (
    HALF_OFF,
    NEITHER,
    Row,
    asked_for,
    at,
    compared_at,
    departures,
    is_shortened,
    likeness,
    newest,
    told,
    words,
)
from blemish.bench.results.sheets import NONE, Page, Sheet, figure, mean
from blemish.bench.suites import Efficiency

LEGEND = """\
I, P, PRO: image AUROC, pixel AUROC and AUPRO up to a false-positive rate of 0.3, in %; mean ±
standard deviation over the seeds; maps and masks at 256×256; unless said. With several categories
in one model: the mean over these."""
_MEASURED = """\
Fit: seconds, loading the backbone included. Images/s: scoring, decoding included. Memory: peak of
the process (on a GPU: of the GPU's memory) up to the last prediction. Commit: + marks local
changes."""
_COSTS = """\
Mean ± standard deviation over the seeds. Learnable: what training changes. FLOPs: of scoring one
picture, a multiply-add counts as two. Images/s: scoring in batches, decoding included. Latency: one
picture at a time, from pixels to score. Memory: peak of the process (on a GPU: of the GPU's memory)
up to the last prediction. Fit: loading the backbone included. Runs of before these were measured
have gaps."""
REDUCED, PARTLY, OFF, ELSEWHERE, UNSEEN = "†", "‡", "§", "¶", "‖"
SIGNS = {
    REDUCED: "another schedule than the recipe's, under a time budget or of other epochs.",
    PARTLY: "not all of the official pictures, or others: no like for a published figure.",
    OFF: "measured while masks lay half a pixel off the maps: P and PRO a little too low.",
    ELSEWHERE: "maps and masks compared at another size than the paper's.",
    UNSEEN: "a training ended before it had seen every picture once: it may have learned little.",
}
SCORES = {"I": "image_auroc", "P": "pixel_auroc", "PRO": "aupro"}
SCHEDULE = frozenset({"epochs", "min_steps", "pretraining_epochs"})
Rows = Sequence[Row]  # that differ only in their seeds


def sheet(
    title: str,
    columns: Sequence[str],
    groups: Iterable[Rows],
    *,
    more: Iterable[Mapping[str, str]] = (),
    above: str = "",
    notes: tuple[str, ...] = (),
) -> Sheet:
    """A table of some of `COLUMNS`, a line for each group of rows, sorted; then a line each for
    `more`, of cells by their columns."""
    lines = sorted(tuple(COLUMNS[head](rows) for head in columns) for rows in groups)
    lines += [tuple(cells.get(head, NONE) for head in columns) for cells in more]
    return Sheet(title=title, columns=tuple(columns), lines=tuple(lines), above=above, notes=notes)


def page(rows: Iterable[Row]) -> Page:
    """A table for each data set, a line for each method with its settings; where rows tell of
    shifted pictures, or have verdicts, a further one of these.

    Of rows with the same identity the newest good one counts. Runs on different devices are never
    averaged; runs that have only failed are listed below.
    """
    latest, failed = newest(rows)
    by_data: dict[str, list[Rows]] = {}
    for group in alike(latest):
        by_data.setdefault(group[0]["data"], []).append(group)
    sheets: list[Sheet] = []
    for data, groups in sorted(by_data.items()):
        sheets.append(sheet(data, _OVERVIEW, groups))
        if shifted := [group for group in groups if group[-1]["shifted"]]:
            sheets.append(_shifted(data, shifted))
        if judged := [group for group in groups if group[-1].get("confusion")]:
            sheets.append(_judged(data, judged))
    return Page(sheets=tuple(sheets), legend=legend([LEGEND, _MEASURED], sheets), failed=failed)


def efficiency_page(rows: Iterable[Row], *, published: Efficiency | None = None) -> Page:
    """What methods cost, as Table 9 of AGPNet and more: a line for each method with its settings on
    a data set, and below it the published ones. Rows count as in `page`."""
    latest, failed = newest(rows)
    theirs = [
        {
            "Method": cost.label,
            "Settings": "published",
            "Learnable (M)": f"{cost.learnable_parameters:g}",
            "FLOPs (G)": f"{cost.flops:g}",
            "Images/s": f"{cost.images_per_second:g}",
        }
        for cost in (published.rows if published else ())
    ]
    if not latest and not theirs:
        return Page(failed=failed)
    notes = (f"Published: {published.source}. {published.note}".rstrip(),) if published else ()
    found = sheet("Efficiency", _EFFICIENCY, alike(latest), more=theirs, notes=notes)
    return Page(sheets=(found,), legend=legend([_COSTS], [found]), failed=failed)


def alike(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows in groups of the same data and likeness."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["data"], likeness(row)), []).append(row)
    return list(groups.values())


def _shifted(data: str, groups: Iterable[Rows]) -> Sheet:
    """Image AUROC by shift and adaptation."""

    def of(row: Row, shift: str, mode: str) -> float | None:
        return row["shifted"][shift].get(mode, {}).get("image_auroc")

    groups = sorted(groups, key=lambda rows: (rows[-1]["method"], asked(rows[-1])))
    modes = list(
        dict.fromkeys(
            mode for rows in groups for by_mode in rows[-1]["shifted"].values() for mode in by_mode
        )
    )
    lines: list[tuple[str, ...]] = []
    for rows in groups:
        last: Row = {**rows[-1], "shifts": (), "adapt": ()}  # the table tells them
        shifts = [name for name in last["shifted"] if name != NEITHER]
        shown = {NEITHER: [NEITHER], **{name: [name] for name in shifts}}
        if shifts:
            shown["mean"] = shifts
        for name, averaged in shown.items():
            figures = [
                figure([mean([of(row, shift, mode) for shift in averaged]) for row in rows], 100)
                for mode in modes
            ]
            lines.append((last["method"], asked(last), name, *figures, str(len(rows))))
    adaptation = ["not adapting" if mode == NEITHER else mode for mode in modes]
    return Sheet(
        title=f"{data}: shifted test pictures",
        above="Image AUROC in %, of the detector as it is, and adapting to the pictures.",
        columns=("Method", "Settings", "Shift", *adaptation, "Seeds"),
        lines=tuple(lines),
        notes=("mean: over the shifts, without the pictures as they are (none).",),
    )


def _judged(data: str, groups: Iterable[Rows]) -> Sheet:
    """Verdicts and regions at the threshold."""

    def verdicts(row: Row, wrong: str, right: str) -> float | None:
        counts = row.get("confusion") or {}
        of = counts[wrong] + counts[right]
        return counts[wrong] / of if of else None

    def regions(rows: Rows, *keys: str) -> list[float | None]:
        found: list[float | None] = []
        for row in rows:
            told: Mapping[str, Any] = row.get("regions") or {}
            values = [told.get(key) for key in keys]
            whole = values[1] if len(values) > 1 else 1
            found.append(values[0] / whole if values[0] is not None and whole else None)
        return found

    lines = sorted(
        (
            *(rows[-1]["method"], asked(rows[-1])),
            figure([verdicts(row, "false_positive", "true_negative") for row in rows], 100),
            figure([verdicts(row, "false_negative", "true_positive") for row in rows], 100),
            figure(regions(rows, "normal_with_region", "normal"), 100),
            figure(regions(rows, "region_recall"), 100),
            figure(regions(rows, "false_per_picture"), digits=2),
            *(figure(regions(rows, key), 100) for key in ("f1", "iou")),
            str(len(rows)),
        )
        for rows in groups
    )
    return Sheet(
        title=f"{data}: verdicts and regions",
        above="At the threshold; in %, but for the false regions a picture.",
        columns=(
            *("Method", "Settings", "False alarms", "Missed", "Good with a region"),
            *("Defects found", "False regions a picture", "Pixel F1", "IoU", "Seeds"),
        ),
        lines=tuple(lines),
    )


def asked(row: Row) -> str:
    """What was asked for, what the recipe was then, and the schedule that came of it."""
    held = departures(row, row["recipe"])
    before = words({key: value for key, value in held.items() if key not in row["changed"]})
    return " · ".join(filter(None, [*asked_for(row), before, row["schedule"], at(row)])) or "best"


def flags(rows: Rows) -> list[str]:
    """The signs that rows carry."""
    reduced = (is_shortened(row) or SCHEDULE & row["changed"].keys() for row in rows)
    partly = (row["differs"] for row in rows)
    off = (compared_at(row) == HALF_OFF for row in rows)
    unseen = (has_unseen(row) for row in rows)
    told = {REDUCED: reduced, PARTLY: partly, OFF: off, UNSEEN: unseen}
    return [sign for sign, of in told.items() if any(of)]


def has_unseen(row: Mapping[str, Any]) -> bool:
    """Whether a training of it, or the one before, made less than one pass over its pictures; not
    where it does not tell."""
    made = (row.get("training"), _within(row.get("pretraining"), "training"))
    passes = [_within(one, "epochs") for one in made]
    return any(isinstance(one, int | float) and one < 1 for one in passes)


def _within(values: object, key: str) -> object:
    return values.get(key) if isinstance(values, Mapping) else None


def legend(parts: Iterable[str], sheets: Iterable[Sheet]) -> str:
    """The parts, and what the signs mean that stand in these tables."""
    shown = "".join(
        cell for sheet in sheets for cells in (sheet.columns, *sheet.lines) for cell in cells
    )
    return "\n".join([*parts, *(f"{sign} {told}" for sign, told in SIGNS.items() if sign in shown)])


def size(row: Row) -> str:
    return "×".join(map(str, row["resolution"]))


def backbone(row: Row) -> str:
    return f"{row['backbone']} ({row['weights']['sha256'][:8] or row['weights']['source']})"


def commits(rows: Iterable[Row]) -> str:
    """Of the checkouts that rows were measured in; + where there were local changes."""
    return ", ".join(
        sorted(
            {
                NONE if row["commit"] is None else row["commit"][:8] + "+" * bool(row["dirty"])
                for row in rows
            }
        )
    )


def device(row: Row) -> str:
    kind = row["device"]
    name: str = kind["name"]
    return name if kind["type"] == "cuda" else f"{name}, threads: {kind['threads']}"


def _mean(key: str, scale: float = 1, digits: int = 1) -> Callable[[Rows], str]:
    """A column of a figure of the rows themselves."""
    return lambda rows: figure([told(row, key) for row in rows], scale, digits)


def _cost(key: str, scale: float = 1, digits: int = 1) -> Callable[[Rows], str]:
    """A column of a figure of `efficiency`."""
    return lambda rows: figure([(row["efficiency"] or {}).get(key) for row in rows], scale, digits)


def _memory(rows: Rows) -> str:
    on_gpu = rows[-1]["peak_gpu_memory_mib"] is not None
    return _mean("peak_gpu_memory_mib" if on_gpu else "peak_memory_mib", digits=0)(rows)


# Heading -> the cell for rows that differ only in their seeds.
COLUMNS: Mapping[str, Callable[[Rows], str]] = {
    "Method": lambda rows: rows[-1]["method"],
    "Settings": lambda rows: " ".join([asked(rows[-1]), *flags(rows)]),
    "Data": lambda rows: rows[-1]["data"],
    **{head: _mean(key, 100) for head, key in SCORES.items()},
    "Learnable (M)": _cost("learnable_parameters", 1e-6, 2),
    "Parameters (M)": _cost("parameters", 1e-6, 2),
    "FLOPs (G)": _cost("flops", 1e-9, 2),
    "Fit (s)": _mean("seconds_to_fit"),
    "Images/s": _mean("images_per_second"),
    "Latency p50 (ms)": _cost("latency_p50_ms"),
    "Latency p95 (ms)": _cost("latency_p95_ms"),
    "Memory (MiB)": _memory,
    "Artifact (MiB)": _cost("artifact_mib"),
    "Seeds": lambda rows: str(len(rows)),
    "Resolution": lambda rows: size(rows[-1]),
    "Backbone": lambda rows: backbone(rows[-1]),
    "Precision": lambda rows: rows[-1]["precision"],
    "Commit": commits,
    "Device": lambda rows: device(rows[-1]),
}
_OVERVIEW = (
    *("Method", "Settings", *SCORES, "Fit (s)", "Images/s", "Memory (MiB)"),
    *("Seeds", "Resolution", "Backbone", "Precision", "Commit", "Device"),
)
_EFFICIENCY = (
    *("Method", "Settings", "Data", "Learnable (M)", "Parameters (M)", "FLOPs (G)", "Images/s"),
    *("Latency p50 (ms)", "Latency p95 (ms)", "Memory (MiB)", "Fit (s)", "Artifact (MiB)"),
    *("Seeds", "Resolution", "Backbone", "Precision", "Device"),
)
