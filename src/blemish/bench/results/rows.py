"""Rows of measurements: lines of a JSONL file that only grows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from blemish import config
from blemish.config import Count, Fraction, NotNegative, Positive
from blemish.data.text import pluralize
from blemish.errors import BlemishError, DataError
from blemish.files import ROWS_BYTES, cannot_write, read_whole

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
    "extractor_rate": 1.0,
}
OF_PRETRAINING = frozenset({"pretraining_recipe", "pretraining_epochs", "masking", "mask_ratio"})


Metric = Fraction | None
_Group = Mapping[str, float | int | None]


@dataclass(frozen=True, kw_only=True)
class _Device:
    """What a run was on, as far as tables tell it apart."""

    type: str
    name: str = ""
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Counts:
    """How many pictures a run was of, as far as estimates go by them."""

    fitted: Count
    pictures: Count
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Heading:
    """What every row has, of a failed run too, and what older ones lack."""

    schema: Count
    status: Literal["ok", "failed"]
    key: str
    method: str
    recipe: str
    label: str
    settings: Mapping[str, Any]
    data: str
    seed: int
    date: str = ""
    commit: str = ""
    dirty: bool = False
    changed: Mapping[str, Any] = field(default_factory=dict)
    shots: Count | None = None
    anomaly_count: Count | None = None
    anomaly_type: str | None = None
    time_budget: float | None = None
    shifts: tuple[str, ...] = ()
    adapt: tuple[str, ...] = ()
    compared_at: int | str | None = None
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Measured(_Heading):
    """What a row has of a run that ended well, and what older ones lack."""

    counts: _Counts
    device: _Device
    precision: str
    image_auroc: Metric
    image_ap: Metric
    pixel_auroc: Metric
    aupro: Metric
    resolution: tuple[Count, ...]
    schedule: str
    seconds_to_fit: NotNegative
    images_per_second: Positive
    weights: Mapping[str, Any]
    by_defect: Mapping[str, _Group] = field(default_factory=dict)
    by_category: Mapping[str, _Group] = field(default_factory=dict)
    by_group: Mapping[str, _Group] = field(default_factory=dict)
    category: str = ""
    categories: tuple[str, ...] = ()
    multi_class: bool = False
    training: Mapping[str, Any] | None = None
    pretraining: Mapping[str, Any] | None = None
    efficiency: Mapping[str, Any] | None = None
    shifted: Mapping[str, Any] = field(default_factory=dict)
    votes: Mapping[str, Any] | None = None


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a results file, in order. A last line that was cut short is passed over: its run will be repeated.

    Raises: DataError when the file cannot be read, another line is damaged, or a row was written by a newer blemish.
    """
    content = read_whole(path, limit=ROWS_BYTES, error=DataError)
    lines = content.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        row = parse(line)
        if row is not None:
            try:
                schema = config.from_dict(_Heading, row, strict=True).schema
                if schema <= SCHEMA and row["status"] == OK:
                    config.from_dict(_Measured, row, strict=True)
            except BlemishError as error:
                raise DataError(
                    f"{path}, line {number}: is not a row of blemish bench ({error})"
                ) from error
            if schema > SCHEMA:
                raise DataError(
                    f"{path}, line {number}: was written by a newer blemish: pip install --upgrade blemish"
                )
            rows.append(row)
        elif line.strip() and number < len(lines):
            raise DataError(
                f"{path}, line {number}: is not a row of blemish bench; mend or remove it"
            )
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
        row = config.parse_json(line)
    except ValueError:
        return None
    told = isinstance(row, dict) and {"schema", "status", "key"} <= row.keys()
    return row if told and isinstance(row["schema"], int) else None


def as_ever(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as rows had them before newer ones joined, where these change nothing; without those of a pre-training
    where there is none."""
    idle = OF_PRETRAINING if settings.get("pretraining") == "none" else ()
    usual = {
        key
        for key, value in settings.items()
        if key in idle or (key in _JOINED and value == _JOINED[key])
    }
    return {key: value for key, value in settings.items() if key not in usual}


def as_it_was(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those that joined after the row had been measured, as they were then."""
    return {**_JOINED, **settings}


def identity(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """What counts once: a run on a kind of device in a precision (both change scores and times)."""
    return row["key"], row["device"]["type"], row["precision"]


def compared_at(row: Mapping[str, Any]) -> int | str | None:
    """Where maps and masks were compared: side of a square in pixels, or ORIGINAL; None where they were not.

    Rows that do not say it were compared at 256×256 when masks still lay half a pixel off the maps: 0 for these.
    """
    if all(row.get(name) is None for name in ("pixel_auroc", "aupro", "pixel_auroc_anomalous")):
        return None
    given: int | str = row.get("compared_at", 0)
    return given


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
        *(
            [pluralize(defects, "defect") + (f" of type {kind}" if kind else "")]
            if defects is not None
            else []
        ),
        *([f"budget {budget:g} min"] if budget is not None else []),
        *([f"also shifted: {', '.join(shifts)}"] if shifts else []),
        *([f"also adapting: {', '.join(modes)}"] if modes else []),
    ]


def words(settings: Mapping[str, Any]) -> str:
    """Settings for a table, without those that have a column of their own."""
    shown = {key: value for key, value in settings.items() if key not in ("backbone", "image_size")}
    return " ".join(
        f"{key}={','.join(map(str, v)) if isinstance(v, list) else v}" for key, v in shown.items()
    )
