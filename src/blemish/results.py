"""Rows of measurements: lines of a JSONL file that only grows, and the Markdown tables made of them."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

from blemish.data.phrases import counted
from blemish.errors import DataError
from blemish.files import cannot_write
from blemish.suites import Suite, Table

SCHEMA = 1  # of a row; raised when an older blemish could misread it
OK, FAILED = "ok", "failed"
NEITHER = "none"  # in a row's `shifted`: pictures as they are; a detector that does not adapt

Row = dict[str, Any]
# Settings that methods got after rows had been measured, and the value at which all is as it was before.
_JOINED = {
    "flips": False,
    "adaptation": "entropies",
    "pretraining": "none",
    "pretraining_recipe": "best",
    "pretraining_epochs": 300,
    "masking": "attention",
    "mask_ratio": 0.3,
}
_OF_PRETRAINING = frozenset({"pretraining_recipe", "pretraining_epochs", "masking", "mask_ratio"})


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a results file, in order. A last line that was cut short is passed over: its run will be repeated.

    Raises: DataError when the file cannot be read, another line is damaged, or a row was written by a newer blemish.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        row = parse(line)
        if row is not None:
            if row["schema"] > SCHEMA:
                raise DataError(f"{path}, line {number}: was written by a newer blemish: pip install --upgrade blemish")
            rows.append(row)
        elif line.strip() and number < len(lines):
            raise DataError(f"{path}, line {number}: is not a row of blemish bench; mend or remove it")
    return rows


def append(path: str | Path, row: Row) -> None:
    """Add one line, on the disk when this returns. Raises: OutputError."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with Path(path).open("ab") as file:
            file.write(line.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def ready(path: Path) -> None:
    """Make the results file, or end its last line: a row cut short by a crash is removed. Raises: OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            content = file.read()
            end = content.rfind(b"\n") + 1
            if parse(content[end:].decode("utf-8", "replace")) is not None:
                file.write(b"\n")
            else:
                file.truncate(end)
    except OSError as error:
        raise cannot_write(path, error) from error


def parse(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"schema", "status", "key"} <= row.keys() else None


def as_ever(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as rows had them before newer ones joined, where these change nothing; without those of a pre-training
    where there is none."""
    idle = _OF_PRETRAINING if settings.get("pretraining") == "none" else ()
    usual = {key for key, value in settings.items() if key in idle or (key in _JOINED and value == _JOINED[key])}
    return {key: value for key, value in settings.items() if key not in usual}


def identity(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """What counts once: a run on a kind of device in a precision (both change scores and times)."""
    return row["key"], row["device"]["type"], row["precision"]


def asked_for(row: Mapping[str, Any]) -> list[str]:
    """Recipe, settings, shots, time budget, and what else was measured, of a row, in words, where they are not the
    usual ones."""
    recipe, shots, budget = row["recipe"], row.get("shots"), row.get("time_budget")
    defects, kind = row.get("anomaly_count"), row.get("anomaly_type")
    shifts, modes = row.get("shifts"), row.get("adapt")
    return [
        *([recipe] if recipe != "best" else []),
        *([row["label"]] if row["label"] else []),
        *([f"{shots}-shot"] if shots is not None else []),
        *([counted(defects, "defect") + (f" of type {kind}" if kind else "")] if defects is not None else []),
        *([f"budget {budget:g} min"] if budget is not None else []),
        *([f"also shifted: {', '.join(shifts)}"] if shifts else []),
        *([f"also adapting: {', '.join(modes)}"] if modes else []),
    ]


def words(settings: Mapping[str, Any]) -> str:
    """Settings for a table, without those that have a column of their own."""
    shown = {key: value for key, value in settings.items() if key not in ("backbone", "image_size")}
    return " ".join(f"{key}={','.join(map(str, v)) if isinstance(v, list) else v}" for key, v in shown.items())


_LEGEND = """\
I, P, PRO: image AUROC, pixel AUROC and AUPRO up to a false-positive rate of 0.3, in %, maps and masks at 256×256; mean
± standard deviation over the seeds. With several categories in one model: the mean over the categories."""
_MEASURED = """\
Fit: seconds, loading the backbone included. Images/s: scoring, decoding included. Memory: peak of the process (on a
GPU: of the GPU's memory) up to the last prediction. Commit: + marks local changes."""
_COMPARED = """\
Bold: the best, where it leads the second by more than the larger standard deviation of the two; never with one seed.
Steps: of training; under a time budget a costlier line makes fewer of them."""
_SCORES = {"I": "image_auroc", "P": "pixel_auroc", "PRO": "aupro"}
_COLUMNS = (
    *("Method", "Settings", *_SCORES, "Fit (s)", "Images/s", "Memory (MiB)"),
    *("Seeds", "Resolution", "Backbone", "Precision", "Commit", "Device"),
)
_NONE = "–"
Published = Mapping[str, Mapping[str, Sequence[float | None]]]


def table(rows: Iterable[Row], *, published: Published | None = None) -> str:
    """The rows as Markdown: a table for each data set, a line for each method with its settings; where rows tell of
    shifted pictures, a further one of these.

    Of rows with the same identity the newest good one counts. Runs on different devices are never averaged; runs that
    have only failed are listed below.

    Args: published: data set -> source -> (image AUROC, pixel AUROC, AUPRO), fractions or None, set beside the rows.
    """
    latest, failed = _newest(rows)
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in latest:
        groups.setdefault(row["data"], {}).setdefault(_group(row), []).append(row)
    parts: list[str] = []
    for data, group in sorted(groups.items()):
        lines = [f"## {data}", "", *_head(_COLUMNS)]
        lines += sorted(_line(_cells(members)) for members in group.values())
        for source, (image, pixel, regions) in (published or {}).get(data, {}).items():
            figures = [_figure([value], 100) for value in (image, pixel, regions)]
            lines.append(_line([source, "published", *figures, *[_NONE] * (len(_COLUMNS) - 5)]))
        parts.append("\n".join(lines))
        if shifted := [members for members in group.values() if "shifted" in members[-1]]:
            parts.append("\n".join([f"## {data}: shifted test pictures", "", *_shifted(shifted)]))
    if parts:
        parts.append(f"{_LEGEND}\n{_MEASURED}")
    return "\n\n".join([*parts, *failed] or ["No rows."]) + "\n"


def _shifted(lines: Iterable[Sequence[Row]]) -> Iterator[str]:
    """Image AUROC by shift and adaptation. `lines`: the rows of each method with its settings."""
    lines = sorted(lines, key=lambda rows: (rows[-1]["method"], _asked(rows[-1])))
    modes = list(dict.fromkeys(mode for rows in lines for by_mode in rows[-1]["shifted"].values() for mode in by_mode))
    adaptation = ["not adapting" if mode == NEITHER else mode for mode in modes]
    yield "Image AUROC in %, of the detector as it is, and adapting to the pictures."
    yield ""
    yield from _head(["Method", "Settings", "Shift", *adaptation, "Seeds"])
    for rows in lines:
        newest = {**rows[-1], "shifts": (), "adapt": ()}  # the table tells them
        shifts = [name for name in newest["shifted"] if name != NEITHER]
        shown = {NEITHER: [NEITHER], **{name: [name] for name in shifts}, **({"mean": shifts} if shifts else {})}
        for name, averaged in shown.items():
            figures = [_figure([_image_auroc(row, averaged, mode) for row in rows], 100) for mode in modes]
            yield _line([newest["method"], _asked(newest), name, *figures, str(len(rows))])
    yield ""
    yield "mean: over the shifts, without the pictures as they are (none)."


def _image_auroc(row: Row, shifts: Iterable[str], mode: str) -> float | None:
    """Mean over the shifts; None where that of one is missing."""
    values = [row["shifted"][shift].get(mode, {}).get("image_auroc") for shift in shifts]
    return None if None in values else statistics.fmean(values)


def suite_table(rows: Iterable[Row], suite: Suite) -> str:
    """The rows that belong to a suite as Markdown: its tables, each for every data set and whatever else is common.

    A row belongs to a line of a table when it has the suite's method and the line's settings. Rows are set in one table
    only when they have all else in common, seed and commit aside, and when at least two lines of it have rows.
    """
    latest, failed = _newest(rows)
    parts: list[str] = []
    for part in suite.tables:
        found: dict[tuple[str, str], dict[str, list[Row]]] = {}
        for entry, row in product(part.rows, latest):
            settings = row["settings"]
            alike = all(settings.get(key) == it for key, it in entry.settings.items())
            if entry.settings and row["method"] == entry.method and alike:
                lines = found.setdefault((row["data"], _group(row, part.factors)), {})
                lines.setdefault(entry.label, []).append(row)
        parts += [
            "\n".join([f"## {part.title}: {data}", "", *_compared(part, lines, suite.published_on)])
            for (data, _), lines in sorted(found.items())
            if len(lines) > 1
        ]
    if parts:
        parts.append(f"{_LEGEND}\n{_COMPARED}")
    return "\n\n".join([*parts, *failed] or [f"No rows of {suite.name}."]) + "\n"


def _compared(part: Table, measured: Mapping[str, Sequence[Row]], published_on: str) -> Iterator[str]:
    """The lines of a table of a suite. `measured`: label -> rows."""
    yield _common([row for rows in measured.values() for row in rows], part.factors)
    yield ""
    lines = [measured.get(entry.label, []) for entry in part.rows]
    columns = {"": [entry.label for entry in part.rows]}
    columns |= {head: _marked([[row[name] for row in rows] for rows in lines]) for head, name in _SCORES.items()}
    columns["Seeds"] = [str(len(rows)) for rows in lines]
    before = [[row["pretraining"]["training"]["steps"] for row in rows if row.get("pretraining")] for rows in lines]
    steps = [[row["training"]["steps"] for row in rows if row.get("training")] for rows in lines]
    for head, made in {"Pre-training steps": before, "Steps": steps}.items():
        if any(made):
            columns[head] = [_figure(counts, digits=0) for counts in made]
    published = {name for entry in part.rows for name in entry.published}
    for head, name in _SCORES.items():
        if name in published:
            figures = [entry.published.get(name) for entry in part.rows]
            columns[f"{head}, published"] = [_NONE if figure is None else f"{figure:.1f}" for figure in figures]
    yield from _head(list(columns))
    yield from (_line(cells) for cells in zip(*columns.values(), strict=True))
    notes = [part.note]
    if published:
        notes.insert(0, f"Published: {part.source}, on {published_on}; no measure for other data.")
    if any(notes):
        yield ""
        yield " ".join(filter(None, notes))


def _newest(rows: Iterable[Row]) -> tuple[list[Row], list[str]]:
    """The newest good row of every identity, oldest first; and, where runs have only failed, a list of them."""
    latest: dict[tuple[str, str, str], Row] = {}
    failed: dict[str, Row] = {}
    for row in sorted(rows, key=itemgetter("date")):
        if row["status"] == OK:
            latest.pop(identity(row), None)
            latest[identity(row)] = row
        else:
            failed[row["key"]] = row
    good = {key for key, _, _ in latest}
    names = [
        f"- {row['method']} on {row['data']}, seed {row['seed']}"
        f"{''.join(f' · {wish}' for wish in asked_for(row))}: {' '.join(row['error'].split())}"
        for key, row in failed.items()
        if key not in good
    ]
    return list(latest.values()), ["\n".join(["Failed:", "", *names])] if names else []


def _group(row: Mapping[str, Any], factors: Collection[str] = ()) -> str:
    """Rows that differ only in seed, date, commit and in the settings called `factors` have the same."""
    idle = _OF_PRETRAINING if "pretraining" in factors else ()  # that of "none" has none
    left_out = {"seed", *factors, *idle}
    settings = {key: value for key, value in as_ever(row["settings"]).items() if key not in left_out}
    names = ["method", "recipe", "precision", "device"]
    if "backbone" in factors:  # each rounds the size asked for to what it divides
        settings["image_size"] = row.get("changed", {}).get("image_size")
    else:
        names += ["resolution", "weights"]
    also = [list(row.get(name, ())) for name in ("shifts", "adapt")]
    return json.dumps(
        [settings, *map(row.get, [*names, "shots", "anomaly_count", "anomaly_type", "time_budget"]), *also],
        sort_keys=True,
    )


def _common(rows: Sequence[Row], factors: Collection[str]) -> str:
    """What all rows of a suite's table have in common, in words."""
    row = rows[-1]
    settings = {key: value for key, value in row.get("changed", {}).items() if key not in factors}
    said = [row["method"], *asked_for({**row, "label": words(settings)})]
    said += sorted({"×".join(map(str, row["resolution"])) for row in rows})
    said += [] if "backbone" in factors else [_backbone(row)]
    return " · ".join([*said, row["precision"], _device(row), f"commit {_commits(rows)}"])


def _marked(lines: Sequence[Sequence[float | None]]) -> list[str]:
    """The figures of a column in %; the best in bold where it leads by more than the standard deviation."""
    cells = [_figure(values, 100) for values in lines]
    known = [number for number, cell in enumerate(cells) if cell != _NONE]
    ranked = sorted(((statistics.fmean(_known(lines[number])), number) for number in known), reverse=True)
    if len(ranked) > 1:
        (best, first), (next_best, second) = ranked[:2]
        pair = [_known(lines[number]) for number in (first, second)]
        if min(map(len, pair)) > 1 and best - next_best > max(map(statistics.stdev, pair)):
            cells[first] = f"**{cells[first]}**"
    return cells


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _cells(rows: Sequence[Row]) -> list[str]:
    newest = rows[-1]
    on_gpu = newest["peak_gpu_memory_mib"] is not None

    def figure(name: str, scale: float = 1, digits: int = 1) -> str:
        return _figure([row[name] for row in rows], scale, digits)

    return [
        newest["method"],
        _asked(newest),
        *(figure(name, 100) for name in _SCORES.values()),
        figure("seconds_to_fit"),
        figure("images_per_second"),
        figure("peak_gpu_memory_mib" if on_gpu else "peak_memory_mib", digits=0),
        str(len(rows)),
        "×".join(map(str, newest["resolution"])),
        _backbone(newest),
        newest["precision"],
        _commits(rows),
        _device(newest),
    ]


def _asked(row: Row) -> str:
    return " · ".join(filter(None, [*asked_for(row), row["schedule"]])) or "best"


def _backbone(row: Row) -> str:
    return f"{row['backbone']} ({row['weights']['sha256'][:8] or row['weights']['source']})"


def _commits(rows: Iterable[Row]) -> str:
    return ", ".join(
        sorted({_NONE if row["commit"] is None else row["commit"][:8] + "+" * row["dirty"] for row in rows})
    )


def _device(row: Row) -> str:
    device = row["device"]
    name: str = device["name"]
    return name if device["type"] == "cuda" else f"{name}, threads: {device['threads']}"


def _figure(values: Sequence[float | None], scale: float = 1, digits: int = 1) -> str:
    """Mean ± sample standard deviation (with more than one value); – where any value is missing."""
    known = [scale * value for value in values if value is not None]
    if not known or len(known) < len(values):
        return _NONE
    mean = f"{statistics.fmean(known):.{digits}f}"
    return f"{mean} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else mean


def _head(columns: Sequence[str]) -> list[str]:
    return [_line(columns), _line(["---"] * len(columns))]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in cells)} |"
