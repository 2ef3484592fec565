"""Rows of measurements: lines of a JSONL file that only grows."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, make_dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, get_args, get_origin, get_type_hints

from blemish import config as configs
from blemish.config import Count, Fraction, NotNegative, Positive
from blemish.detector.fit import configure
from blemish.errors import BlemishError, ConfigError, DataError, OutputError
from blemish.files import ROWS_BYTES, append_whole, cannot_write, or_elsewhere, read_whole
from blemish.text import pluralize
from blemish.types import ORIGINAL, RESOLUTION

SCHEMA = 2  # of a row; raised when a blemish of another schema could misread it
OK, FAILED = "ok", "failed"
NEITHER = "none"  # in a row's `shifted`: pictures as they are; a detector that does not adapt
# Where maps and masks were compared in rows of before October 2026: at 256×256, with the masks half
# a pixel off the maps.
HALF_OFF = "256, masks half a pixel off"
OF_PRETRAINING = frozenset({"pretraining_recipe", "pretraining_epochs", "masking", "mask_ratio"})

Metric = Fraction | None
Group = Mapping[str, float | int | None]


class Heading(TypedDict):
    """What every row has, of a failed run too. Those of before November 2026 lack the keys that
    need not be there."""

    schema: Count
    status: Literal["ok", "failed"]
    key: str
    date: str
    commit: str | None
    dirty: bool | None
    method: str
    recipe: str
    label: str
    settings: Mapping[str, Any]
    changed: Mapping[str, Any]
    shots: Count | None
    anomaly_count: Count | None
    anomaly_type: str | None
    time_budget: float | None
    compute_budget: NotRequired[float | None]
    false_alarm_rate: NotRequired[float | None]
    shifts: tuple[str, ...]
    adapt: tuple[str, ...]
    compared_at: int | str
    data: str
    seed: int


class Device(TypedDict):
    """What a run was made on."""

    type: str
    name: str
    cpu: str
    cores: Count
    threads: Count


class Row(Heading):
    """What a row has of a run that ended well; a failed one has its heading and an `error`.

    Metrics are fractions. `weights` are the backbone's, `second_weights` those of the encoder
    beside it. `second_weights`, `votes`, `training`, `pretraining` and `efficiency` are null where
    there is nothing of the kind, and `shifted` is empty where neither a shift nor adaptation was
    asked for.
    Of a run with a rate of false alarms: `calibration` says the `method` of the threshold, from how
    many `pictures` it is, and how many were `held_out` for it, which the detector has not learned
    from; `confusion` and `regions` are as of `blemish.types.Evaluation`. Else they are null.
    """

    blemish: str
    category: str
    categories: tuple[str, ...]
    multi_class: bool
    split: Mapping[str, Count]
    counts: Mapping[str, Count]
    differs: tuple[str, ...]
    fingerprint: str
    backbone: str
    weights: Mapping[str, str]
    second_weights: NotRequired[Mapping[str, str] | None]
    resolution: tuple[Count, ...]
    schedule: str
    training: Mapping[str, Any] | None
    pretraining: Mapping[str, Any] | None
    image_auroc: Metric
    image_ap: Metric
    best_f1: Metric
    pixel_auroc: Metric
    aupro: Metric
    votes: Mapping[str, float] | None
    calibration: NotRequired[Mapping[str, str | int] | None]
    confusion: NotRequired[Mapping[str, Count] | None]
    regions: NotRequired[Mapping[str, Any] | None]
    pixel_auroc_anomalous: Metric
    by_defect: Mapping[str, Group]
    by_category: Mapping[str, Group]
    by_group: Mapping[str, Group]
    seconds_to_fit: NotNegative
    images_per_second: Positive
    cores_used: NotNegative | None
    peak_memory_mib: NotNegative | None
    peak_gpu_memory_mib: NotNegative | None
    efficiency: Mapping[str, Any] | None
    device: Mapping[str, Any]
    precision: str
    torch: str
    python: str
    shifted: Mapping[str, Mapping[str, Mapping[str, Any]]]


def _form(kind: type) -> type:
    """A dataclass with the keys of a row, which `config.from_dict` can hold a JSON object
    against."""
    hints = get_type_hints(kind, include_extras=True)
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for key, hint in hints.items():
        if get_origin(hint) is NotRequired:
            fields.append((key, get_args(hint)[0], field(default=None)))
        else:
            fields.append((key, hint))
    fields.append(("other", Mapping[str, Any], field(default_factory=dict)))
    return make_dataclass(kind.__name__, fields, kw_only=True)


_HEADING, _ROW = _form(Heading), _form(Row)


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a results file, in order. A last line that was cut short is passed over: its run
    will be repeated.

    Raises: DataError when the file cannot be read, another line is damaged, or a row was written by
        another blemish.
    """
    content = read_whole(path, limit=ROWS_BYTES, error=DataError)
    lines = content.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        if (row := parse(line)) is not None:
            if row["schema"] != SCHEMA:
                newer = row["schema"] > SCHEMA
                what = (
                    "a newer blemish: pip install --upgrade blemish"
                    if newer
                    else ("an older blemish, which measured other things: measure it anew")
                )
                raise DataError(f"{path}, line {number}: was written by {what}")
            try:
                configs.from_dict(_ROW if row["status"] == OK else _HEADING, row, strict=True)
            except BlemishError as error:
                raise DataError(
                    f"{path}, line {number}: is not a row of blemish bench ({error})"
                ) from error
            rows.append(row)
        elif line.strip() and number < len(lines):
            raise DataError(
                f"{path}, line {number}: is not a row of blemish bench; mend or remove it"
            )
    return rows


def append(path: str | Path, row: Mapping[str, Any]) -> None:
    """Add one line, on the disk when this returns; where it cannot be added the file is as it was.

    Raises: OutputError, which says where the row is kept instead, or has it.
    """
    path = Path(path)
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    content = line.encode("utf-8", "backslashreplace")
    then = f"once there is room, add this line to {path.name}, and nothing is to be measured again"
    try:
        or_elsewhere(path, partial(_add, content), then)
    except OutputError as error:
        if then in str(error):
            raise
        raise OutputError(f"{error}. The row is kept nowhere; {then}:\n  {line.strip()}") from error


def _add(content: bytes, path: Path) -> None:
    """Raises: OutputError."""
    try:
        with path.open("ab", buffering=0) as file:
            append_whole(file, content, sync=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def parse(line: str) -> Row | None:
    """The row in a line, so far unchecked; None where it is no JSON object with the look of a
    row."""
    try:
        row = configs.parse_json(line)
    except ValueError:
        return None
    told = isinstance(row, dict) and {"schema", "status", "key"} <= row.keys()
    return row if told and isinstance(row["schema"], int) else None


def identity(row: Row) -> tuple[str, str, str]:
    """What counts once: a run on a kind of device in a precision (both change scores and times)."""
    return row["key"], row["device"]["type"], row["precision"]


def newest(rows: Iterable[Row]) -> tuple[list[Row], tuple[str, ...]]:
    """The newest good row of every identity and, of one model of several categories, of each choice
    of these, oldest first; and the runs that have only failed, a sentence each."""
    latest: dict[tuple[str, ...], Row] = {}
    failed: dict[str, Any] = {}
    for row in sorted(rows, key=itemgetter("date")):
        if row["status"] == OK:
            which = (*identity(row), *together(row))  # a model of other categories is another model
            latest.pop(which, None)
            latest[which] = row
        else:
            failed[row["key"]] = row
    for key, *_ in latest:
        failed.pop(key, None)
    return list(latest.values()), tuple(
        " · ".join([f"{row['method']} on {row['data']}, seed {row['seed']}", *asked_for(row)])
        + f": {' '.join(row['error'].split())}"
        for row in failed.values()
    )


_LIKENESS = "method recipe settings shots anomaly_count anomaly_type time_budget shifts adapt"
_LIKENESS += " resolution weights precision device categories compared_at false_alarm_rate"
_LIKENESS += " compute_budget second_weights"


def told(row: Row, metric: str) -> float | None:
    """One of its metrics, by name."""
    values: Mapping[str, Any] = row
    found: float | None = values[metric]
    return found


_LATER = dict.fromkeys(("false_alarm_rate", "compute_budget", "second_weights"))  # not in old rows


def likeness(row: Row, *, but: Collection[str] = ()) -> str:
    """Rows have the same if they differ only in data, seed, date, commit, and in what `but` names:
    settings, and keys of rows and of their devices."""
    values: dict[str, Any] = {**_LATER, **row, "categories": together(row)}
    values["compared_at"] = compared_at(row)
    for part in ("settings", "device"):
        values[part] = {key: it for key, it in values[part].items() if key not in {"seed", *but}}
    return json.dumps([values[key] for key in _LIKENESS.split() if key not in but], sort_keys=True)


def together(row: Row) -> list[str]:
    """The categories that one model has learned, where these are several."""
    return sorted(row["categories"]) if row["multi_class"] else []


def compared_at(row: Row) -> int | str | None:
    """Where maps and masks were compared: side of a square in pixels, ORIGINAL or HALF_OFF; None
    where there were no masks."""
    figures = (row["pixel_auroc"], row["aupro"], row["pixel_auroc_anomalous"])
    return None if figures == (None, None, None) else row["compared_at"]


def departures(row: Row, recipe: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a row that differ from a recipe of its method with `settings`; the seed is
    none of them.

    Recipes change and rows stay: what counts is what the row was measured with, not what it calls
    it. What a fit makes of a recipe, by the backbone (settings left open) or the pictures, counts
    only where the row was asked for it. Of a recipe or setting that there is no more, all that was
    asked for departs.
    """
    changed = dict(row["changed"])
    try:
        asked = configure(row["method"], recipe=recipe, values=settings, shots=row["shots"])
    except ConfigError:
        return changed
    wanted = configs.to_dict(asked)
    suited = [configs.to_dict(asked.for_pictures(x_rays=x_rays)) for x_rays in (False, True)]
    held = {**row["settings"], **changed}
    for key, value in wanted.items():
        made = [] if key in changed else [it[key] for it in suited]
        left_open = value == [] and key not in changed
        if key in held and key != "seed" and held[key] not in [value, *made] and not left_open:
            changed[key] = held[key]
        else:
            changed.pop(key, None)
    return changed


def is_shortened(row: Row) -> bool:
    """Whether training was held to a budget."""
    return row["time_budget"] is not None or row.get("compute_budget") is not None


def asked_for(row: Mapping[str, Any]) -> list[str]:
    """Recipe, settings, shots, time budget, and what else was measured, of a row, in words, where
    they are not the usual ones. Also of a `Run` as a dictionary."""
    found = [row["recipe"]] if row["recipe"] != "best" else []
    found += filter(None, [row["label"]])
    if row["shots"] is not None:
        found.append(f"{row['shots']}-shot")
    if row["anomaly_count"] is not None:
        kind = f" of type {row['anomaly_type']}" if row["anomaly_type"] else ""
        found.append(pluralize(row["anomaly_count"], "defect") + kind)
    if row["time_budget"] is not None:
        found.append(f"budget {row['time_budget']:g} min")
    if (teraflops := row.get("compute_budget")) is not None:
        found.append(f"budget {teraflops:g} TFLOP")
    if (rate := row.get("false_alarm_rate")) is not None:
        found.append(f"threshold at {100 * rate:.4g} %{_held_out(row)}")
    for what in ("shifts", "adapt"):
        if row[what]:
            found.append(f"also {_ALSO[what]}: {', '.join(row[what])}")
    return found


def _held_out(row: Mapping[str, Any]) -> str:
    """How many pictures a row's detector has not learned from for its threshold; "" of a run."""
    count = (row.get("calibration") or {}).get("held_out")
    return "" if count is None else f" ({count} held out)"


_ALSO = {"shifts": "shifted", "adapt": "adapting"}


def words(settings: Mapping[str, Any]) -> str:
    """Settings for a table, without those that have a column of their own."""
    shown = {key: value for key, value in settings.items() if key not in ("backbone", "image_size")}
    return " ".join(
        f"{key}={','.join(map(str, v)) if isinstance(v, list) else v}" for key, v in shown.items()
    )


def at(row: Row) -> str:
    """Where maps and masks were compared, in words, where not at 256×256."""
    given = compared_at(row)
    if given in (None, HALF_OFF, RESOLUTION):
        return ""
    return (
        "compared at the pictures' own size"
        if given == ORIGINAL
        else f"compared at {given}×{given}"
    )
