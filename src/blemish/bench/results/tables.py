"""All rows of some results as tables: one for each data set, a line for each method with its settings."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from blemish.bench.results.pages import NONE, Page, Sheet, figure, markdown
from blemish.bench.results.recipes import departures
from blemish.bench.results.rows import (
    NEITHER,
    OF_PRETRAINING,
    OK,
    Row,
    as_ever,
    asked_for,
    compared_at,
    identity,
    words,
)
from blemish.types import ORIGINAL, RESOLUTION

LEGEND = """\
I, P, PRO: image AUROC, pixel AUROC and AUPRO up to a false-positive rate of 0.3, in %; mean ± standard deviation over
the seeds; maps and masks at 256×256; unless said. With several categories in one model: the mean over these."""
_MEASURED = """\
Fit: seconds, loading the backbone included. Images/s: scoring, decoding included. Memory: peak of the process (on a
GPU: of the GPU's memory) up to the last prediction. Commit: + marks local changes."""
REDUCED, PARTLY, OFF, ELSEWHERE = "†", "‡", "§", "¶"
SIGNS = {
    REDUCED: "another schedule than the recipe's, under a time budget or of other epochs.",
    PARTLY: "not all of the official pictures, or others: no like for a published figure.",
    OFF: "measured while masks lay half a pixel off the maps: P and PRO a little too low.",
    ELSEWHERE: "maps and masks compared at another size than the paper's.",
}
SCORES = {"I": "image_auroc", "P": "pixel_auroc", "PRO": "aupro"}
SCHEDULE = frozenset({"epochs", "min_steps", "pretraining_epochs"})
_COLUMNS = (
    *("Method", "Settings", *SCORES, "Fit (s)", "Images/s", "Memory (MiB)"),
    *("Seeds", "Resolution", "Backbone", "Precision", "Commit", "Device"),
)
Published = Mapping[str, Mapping[str, Sequence[float | None]]]


def table(rows: Iterable[Row], *, published: Published | None = None) -> str:
    """`page` as Markdown."""
    return markdown(page(rows, published=published))


def page(rows: Iterable[Row], *, published: Published | None = None) -> Page:
    """A table for each data set, a line for each method with its settings; where rows tell of shifted pictures, a
    further one of these.

    Of rows with the same identity the newest good one counts. Runs on different devices are never averaged; runs that
    have only failed are listed below.

    Args: published: data set -> source -> (image AUROC, pixel AUROC, AUPRO), fractions or None, set beside the rows.
    """
    latest, failed = newest(rows)
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in latest:
        groups.setdefault(row["data"], {}).setdefault(likeness(row), []).append(row)
    sheets: list[Sheet] = []
    for data, group in sorted(groups.items()):
        lines = sorted(_cells(members) for members in group.values())
        for source, values in (published or {}).get(data, {}).items():
            figures = [figure([value], 100) for value in values]
            lines.append((source, "published", *figures, *[NONE] * (len(_COLUMNS) - 5)))
        sheets.append(Sheet(title=data, columns=_COLUMNS, lines=tuple(lines)))
        if shifted := [members for members in group.values() if "shifted" in members[-1]]:
            sheets.append(_shifted(data, shifted))
    return Page(
        sheets=tuple(sheets), legend="\n".join([LEGEND, _MEASURED, *signs(sheets)]), failed=failed
    )


def _shifted(data: str, lines: Iterable[Sequence[Row]]) -> Sheet:
    """Image AUROC by shift and adaptation. `lines`: the rows of each method with its settings."""
    lines = sorted(lines, key=lambda rows: (rows[-1]["method"], asked(rows[-1])))
    modes = list(
        dict.fromkeys(
            mode for rows in lines for by_mode in rows[-1]["shifted"].values() for mode in by_mode
        )
    )
    cells: list[tuple[str, ...]] = []
    for rows in lines:
        last = {**rows[-1], "shifts": (), "adapt": ()}  # the table tells them
        shifts = [name for name in last["shifted"] if name != NEITHER]
        shown = {
            NEITHER: [NEITHER],
            **{name: [name] for name in shifts},
            **({"mean": shifts} if shifts else {}),
        }
        for name, averaged in shown.items():
            figures = [
                figure([_image_auroc(row, averaged, mode) for row in rows], 100) for mode in modes
            ]
            cells.append((last["method"], asked(last), name, *figures, str(len(rows))))
    adaptation = ["not adapting" if mode == NEITHER else mode for mode in modes]
    return Sheet(
        title=f"{data}: shifted test pictures",
        above="Image AUROC in %, of the detector as it is, and adapting to the pictures.",
        columns=("Method", "Settings", "Shift", *adaptation, "Seeds"),
        lines=tuple(cells),
        notes=("mean: over the shifts, without the pictures as they are (none).",),
    )


def _image_auroc(row: Row, shifts: Iterable[str], mode: str) -> float | None:
    """Mean over the shifts; None where that of one is missing."""
    values = [row["shifted"][shift].get(mode, {}).get("image_auroc") for shift in shifts]
    return None if None in values else statistics.fmean(values)


def newest(rows: Iterable[Row]) -> tuple[list[Row], tuple[str, ...]]:
    """The newest good row of every identity and, of one model of several categories, of each choice of these, oldest
    first; and the runs that have only failed, a sentence each."""
    latest: dict[tuple[str, ...], Row] = {}
    failed: dict[str, Row] = {}
    for row in sorted(rows, key=itemgetter("date")):
        if row["status"] == OK:
            which = (*identity(row), *together(row))  # of other categories it is another model
            latest.pop(which, None)
            latest[which] = row
        else:
            failed[row["key"]] = row
    good = {key for key, *_ in latest}
    return list(latest.values()), tuple(
        f"{row['method']} on {row['data']}, seed {row['seed']}"
        f"{''.join(f' · {wish}' for wish in asked_for(row))}: {' '.join(row['error'].split())}"
        for key, row in failed.items()
        if key not in good
    )


def likeness(row: Mapping[str, Any], factors: Collection[str] = ()) -> str:
    """Rows that differ only in seed, date, commit and in the settings called `factors` have the same."""
    idle = OF_PRETRAINING if "pretraining" in factors else ()  # that of "none" has none
    left_out = {"seed", *factors, *idle}
    settings = {
        key: value for key, value in as_ever(row["settings"]).items() if key not in left_out
    }
    names = ["method", "recipe", "precision", "device"]
    if "backbone" in factors:  # each rounds the size asked for to what it divides
        settings["image_size"] = row.get("changed", {}).get("image_size")
    else:
        names += ["resolution", "weights"]
    also = [*(list(row.get(name, ())) for name in ("shifts", "adapt")), together(row)]
    return json.dumps(
        [
            settings,
            *map(row.get, [*names, "shots", "anomaly_count", "anomaly_type", "time_budget"]),
            *also,
            compared_at(row),
        ],
        sort_keys=True,
    )


def together(row: Mapping[str, Any]) -> list[str]:
    """The categories that one model has learned, where these are several."""
    return sorted(row["categories"]) if row.get("multi_class") else []


def _cells(rows: Sequence[Row]) -> tuple[str, ...]:
    last = rows[-1]
    on_gpu = last["peak_gpu_memory_mib"] is not None

    def of(name: str, scale: float = 1, digits: int = 1) -> str:
        return figure([row[name] for row in rows], scale, digits)

    return (
        last["method"],
        " ".join([asked(last), *flags(rows)]),
        *(of(name, 100) for name in SCORES.values()),
        of("seconds_to_fit"),
        of("images_per_second"),
        of("peak_gpu_memory_mib" if on_gpu else "peak_memory_mib", digits=0),
        str(len(rows)),
        size(last),
        backbone(last),
        last["precision"],
        commits(rows),
        device(last),
    )


def asked(row: Row) -> str:
    """What was asked for, what the recipe was then, and the schedule that came of it."""
    changed = row.get("changed", {}).keys()
    before = {
        key: value for key, value in departures(row, row["recipe"]).items() if key not in changed
    }
    return (
        " · ".join(filter(None, [*asked_for(row), words(before), row["schedule"], at(row)]))
        or "best"
    )


def flags(rows: Iterable[Row]) -> list[str]:
    """The signs that rows carry. Rows of before `differs` was looked at carry none for it."""
    rows = list(rows)
    reduced = any(
        row.get("time_budget") is not None or SCHEDULE & row.get("changed", {}).keys()
        for row in rows
    )
    partly, off = (
        any(row.get("differs") for row in rows),
        any(compared_at(row) == 0 for row in rows),
    )
    return [REDUCED] * reduced + [PARTLY] * partly + [OFF] * off


def signs(sheets: Iterable[Sheet]) -> list[str]:
    """What the signs mean that stand in these tables."""
    shown = "".join(
        cell for sheet in sheets for cells in (sheet.columns, *sheet.lines) for cell in cells
    )
    return [f"{sign} {meaning}" for sign, meaning in SIGNS.items() if sign in shown]


def at(row: Row) -> str:
    """Where maps and masks were compared, in words, where not at 256×256."""
    given = compared_at(row)
    if given in (None, 0, RESOLUTION):
        return ""
    return (
        "compared at the pictures' own size"
        if given == ORIGINAL
        else f"compared at {given}×{given}"
    )


def size(row: Row) -> str:
    return "×".join(map(str, row["resolution"]))


def backbone(row: Row) -> str:
    return f"{row['backbone']} ({row['weights']['sha256'][:8] or row['weights']['source']})"


def commits(rows: Iterable[Row]) -> str:
    return ", ".join(
        sorted(
            {
                NONE if row["commit"] is None else row["commit"][:8] + "+" * row["dirty"]
                for row in rows
            }
        )
    )


def device(row: Row) -> str:
    kind = row["device"]
    name: str = kind["name"]
    return name if kind["type"] == "cuda" else f"{name}, threads: {kind['threads']}"
