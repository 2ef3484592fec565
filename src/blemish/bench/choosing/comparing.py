"""A user's own pictures, several methods and resolutions: which of them to take.

A folder holds all of it: `plan.json` (what each picture is for), `rows.jsonl` (a line a candidate,
with the score of every picture), `generated/` (pictures with generated defects, and without), and
while candidates are to be measured `features/`. The same call goes on where an earlier one ended.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from blemish import interrupts
from blemish.bench.choosing import trial
from blemish.bench.choosing.candidates import Candidate
from blemish.bench.choosing.defects import SMALLEST_DEFECT
from blemish.bench.choosing.pictures import Division, divided
from blemish.bench.choosing.plan import Plan, fingerprint, name_of
from blemish.bench.choosing.trial import Order
from blemish.bench.processes import answer_of
from blemish.bench.results.rows import FAILED, OK, append
from blemish.config import (
    Count,
    Finite,
    Fraction,
    NotNegative,
    Positive,
    Range,
    from_dict,
    parse_json,
)
from blemish.data.dataset import Dataset
from blemish.data.folder import is_file, is_pattern
from blemish.data.layouts import read
from blemish.data.pictures import NO_PICTURES, Pictures, good_pictures, labelled_defects
from blemish.data.tables import TABLES
from blemish.errors import BlemishError, ConfigError, DataError, WeightsError
from blemish.files import ROWS_BYTES, check_writable, end_last_row, locked, read_whole
from blemish.types import Progress, Sample, silent

MODULE = "blemish.bench.choosing.trial"
MINUTES = 10.0
LEAST_DEFECT, MOST_DEFECT = 0.002, 0.1
_LEAST = 120.0  # seconds that any candidate may take that is begun
_FAIR = 3.0  # times its even share that one may take which is not trained: the first at a size
#              encodes the pictures for all others


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be compared, and how.

    Attributes:
        candidates: in the order in which they are measured.
        backbone, weights: of all of them; `weights` as of `blemish.fit`.
        minutes: that may be spent on what is not measured yet.
        smallest: about the sides of the smallest defects that matter, as a share of the picture's:
            so small generated ones are made.
        rate: of false alarms; None = the default, without a threshold where pictures are too few.
        device, precision: as of `blemish.fit`.
    """

    candidates: Sequence[Candidate]
    backbone: str
    weights: str | None = None
    minutes: float = MINUTES
    rate: float | None = None
    smallest: float = SMALLEST_DEFECT
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ConfigError("there is nothing to compare: name methods and resolutions")
        if not 0 < self.minutes < float("inf"):
            raise ConfigError(f"minutes: a positive number is needed, got {self.minutes}")
        if not LEAST_DEFECT <= self.smallest <= MOST_DEFECT:
            raise ConfigError(
                f"smallest_defect: a share of the picture's sides from {LEAST_DEFECT:g} to "
                f"{MOST_DEFECT:g} is needed, got {self.smallest:g}"
            )


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What was measured.

    Attributes:
        plan: with what each picture was for.
        rows: of the candidates, in their order, new or of an earlier call; good or failed.
        missing: those for which there was no time.
        good: how the pictures were recognised. counts: how many good and labelled ones there are.
    """

    plan: Plan
    rows: Sequence[tuple[Candidate, Mapping[str, Any]]]
    missing: Sequence[Candidate]
    good: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


def compare(
    good: Sequence[Path],
    asked: Asked,
    folder: Path,
    *,
    anomalies: Sequence[Path] = (),
    progress: Progress = silent,
) -> Compared:
    """Measure candidates on a user's pictures, as `measure`.

    Args:
        good: as of `blemish.fit`, paths alone. Of a data set that labels defects these choose, too.
        anomalies: more labelled defects.
    Raises: DataError for too few pictures; as `measure`.
    """
    pictures = good_pictures(list(good)).of_one_or_several()
    defects = _labelled(good, anomalies, pictures)
    found = measure(divided(pictures, defects, seed=asked.seed), asked, folder, progress=progress)
    counts = {"good": len(pictures.samples), "labelled": len(defects)}
    return dataclasses.replace(found, good=pictures.note, counts=counts)


def measure(
    division: Division, asked: Asked, folder: Path, *, progress: Progress = silent
) -> Compared:
    """Measure what the folder does not hold yet. Rows of candidates that failed say why, and are
    tried again by the next call.

    Args: progress: called with ("comparing · CANDIDATE: stage …", candidates done, in all).
    Raises: DataError for a folder that holds a comparison of other pictures; ConfigError,
        WeightsError; OutputError; Interrupted, after which the rows so far are there.
    """
    division, folder = division.absolute(), folder.absolute()
    results = folder / "rows.jsonl"
    ends = time.monotonic() + 60 * asked.minutes
    check_writable(results)
    with locked(results):
        try:
            plan = _planned(division, asked, folder, progress)
            end_last_row(results)
            rows, missing = _measured(plan, asked, folder, ends, progress)
        except KeyboardInterrupt as error:
            what = f"what was measured is kept in {folder}: the same command goes on from there"
            raise interrupts.Interrupted(what, interrupts.number_of(error)) from None
    if not missing and all(row["status"] == OK for _, row in rows):
        shutil.rmtree(folder / "features", ignore_errors=True)
    progress("comparing · done", len(asked.candidates), len(asked.candidates))
    return Compared(plan=plan, rows=rows, missing=missing)


def _labelled(good: Sequence[Path], anomalies: Sequence[Path], pictures: Pictures) -> list[Sample]:
    """The labelled defects, each once, of a category only where the good pictures have it."""
    found: list[Sample] = []
    for path in good:
        if is_pattern(path) or (is_file(path) and path.suffix.lower() not in TABLES):
            continue
        dataset: Dataset = read(path)
        found += dataset.anomalies()
    more = labelled_defects(list(anomalies)) if anomalies else NO_PICTURES
    known = set(pictures.names)
    each = {str(one.path): one for one in [*found, *more.samples]}
    return [
        one if one.category in known else dataclasses.replace(one, category="")
        for one in each.values()
    ]


def _planned(division: Division, asked: Asked, folder: Path, progress: Progress) -> Plan:
    """The plan of the folder, or a new one that fits into the minutes."""
    place = folder / "plan.json"
    told = [asked.seed, asked.rate, asked.backbone, asked.weights, asked.device, asked.precision]
    told.append(asked.smallest)
    wanted = fingerprint(told, division)
    sizes = {name_of(size): size for size in (one.config.height_width for one in asked.candidates)}
    plan = Plan.load(place) if is_file(place) else None
    if plan is not None and plan.fingerprint != wanted:
        raise DataError(
            f"{folder}: holds a comparison of other pictures, or with another seed, rate, device, "
            "backbone or smallest defect; name another folder with --output, or remove it"
        )
    known = {} if plan is None else plan.seconds
    unknown = [list(size) for name, size in sizes.items() if name not in known]
    if plan is not None and not unknown and plan.is_there():
        return plan
    some = division.good if plan is None else plan.division.good
    made = _prepared(some, unknown, asked, folder, progress)
    if plan is not None:
        plan = dataclasses.replace(plan, seconds={**plan.seconds, **made["seconds"]})
    else:
        plan = Plan(
            fingerprint=wanted,
            division=division,
            smallest=asked.smallest,
            generated=tuple(made["generated"]),
            seconds=made["seconds"],
            failures=tuple(made["failures"]),
        ).within(asked.minutes, asked.candidates)
    plan.save(place)
    return plan


def _prepared(
    good: Sequence[Sample],
    sizes: Sequence[Sequence[int]],
    asked: Asked,
    folder: Path,
    progress: Progress,
) -> Mapping[str, Any]:
    """As of `trial.prepared`. Raises: DataError or WeightsError with its reason."""
    order = {
        "work": "prepare",
        "good": [(str(one.path), one.category) for one in good],
        "folder": str(folder / "generated"),
        "sizes": sizes,
        **{key: getattr(asked, key) for key in ("backbone", "weights", "device", "precision")},
        **{"seed": asked.seed, "smallest": asked.smallest},
    }
    total = len(asked.candidates)
    seconds = max(600.0, 60 * asked.minutes)
    made, why = answer_of(MODULE, order, seconds=seconds, progress=_told("", 0, total, progress))
    if made is None:
        raise DataError(f"the comparison could not be prepared: {why}")
    if made.get("status") == FAILED:
        kinds = {one.__name__: one for one in (ConfigError, WeightsError)}
        raise kinds.get(made["kind"], DataError)(made["error"])
    return made


def _told(label: str, measured: int, candidates: int, progress: Progress) -> Progress:
    """What a process says, beside the number of candidates that are measured."""

    def tell(stage: str, done: int, total: int) -> None:
        step = f"{stage} {done} of {total}" if total else stage
        progress(f"comparing · {label}{': ' if label else ''}{step}", measured, candidates)

    return tell


def _measured(
    plan: Plan, asked: Asked, folder: Path, ends: float, progress: Progress
) -> tuple[list[tuple[Candidate, Mapping[str, Any]]], list[Candidate]]:
    """The rows of all candidates that were measured, now or before, and those that were not.

    Args: ends: when no candidate is begun any more, but the first, by `time.monotonic`.
    """
    results = folder / "rows.jsonl"
    keys = {plan.key_of(one): one for one in asked.candidates}
    rows = {key: row for key, row in read_rows(results).items() if key in keys}
    left = [(key, one) for key, one in keys.items() if rows.get(key, {}).get("status") != OK]
    missing: list[Candidate] = []
    for at, (key, one) in enumerate(left):
        seconds = ends - time.monotonic()
        if at and seconds <= 0:
            missing.append(one)
            continue
        share = max(seconds, _LEAST) / (len(left) - at)
        done = len(keys) - len(left) + at
        row = _tried(plan, one, asked, folder, share, _told(one.label, done, len(keys), progress))
        row = {"key": key, "label": one.label, **one.to_dict(), **row}
        append(results, row)
        rows[key] = row
    return [(one, rows[key]) for key, one in keys.items() if key in rows], missing


def _tried(
    plan: Plan, one: Candidate, asked: Asked, folder: Path, share: float, progress: Progress
) -> dict[str, Any]:
    """The row of a candidate, made in a process of its own; one that failed says why.

    Args: share: seconds that it may take, if all that are left take as many.
    """
    seconds = plan.seconds_of(one)
    judged = plan.judged
    # What a trained one has left for its training once its pictures are scored.
    scoring = 20 + 1.5 * seconds * (len(plan.learned) + len(judged))
    minutes = max(0.25, (share - scoring) / 60)
    order = Order(
        candidate=one.to_dict(),
        learned=plan.learned,
        judged=judged,
        rate=asked.rate,
        minutes=round(minutes, 2),
        features=str(folder / "features"),
        seconds_of_picture=seconds,
        device=asked.device,
        precision=asked.precision,
        weights=asked.weights,
    )
    most = max(_LEAST, _FAIR * share)
    told = {"work": "measure", "order": dataclasses.asdict(order)}
    began = time.monotonic()
    row, why = answer_of(MODULE, told, seconds=most, progress=progress)
    spent = round(time.monotonic() - began, 1)
    if row is None:
        row = {"schema": trial.SCHEMA, "status": FAILED, "error": why}
    return {**row, "seconds": spent}


def read_rows(path: Path) -> dict[str, Mapping[str, Any]]:
    """The newest row of each key. Raises: DataError for a file that holds others."""
    if not is_file(path):
        return {}
    content = read_whole(path, limit=ROWS_BYTES, error=DataError)
    found: dict[str, Mapping[str, Any]] = {}
    lines = content.decode("utf-8", "replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            _check(row)
            found[row["key"]] = row
            well = True
        except (ValueError, TypeError, KeyError, BlemishError):
            if number == len(lines):  # cut short by a kill
                continue
            well = False
        if not well:
            raise DataError(
                f"{path}, line {number}: is no row of `blemish compare` of this version; remove it"
            )
    return found


@dataclass(frozen=True, kw_only=True)
class _Heading:
    """What every row has."""

    schema: Count
    status: Literal["ok", "failed"]
    key: str


@dataclass(frozen=True, kw_only=True)
class _Failed:
    error: str


@dataclass(frozen=True, kw_only=True)
class _Costs:
    latency_p50_ms: Positive
    flops: NotNegative
    artifact_mib: NotNegative


@dataclass(frozen=True, kw_only=True)
class _Place:
    """How many regions a generated defect has, and what each adds to AUPRO in the mean."""

    regions: Annotated[int, Range(1)]
    overlap: Fraction


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What is made use of in a row of a candidate that was measured."""

    scores: Mapping[str, Finite]
    thresholds: Mapping[str, Finite | None]
    threshold: Finite | None
    reason: str
    rate: Fraction | None
    aupro: Fraction | None
    places: Mapping[str, _Place]
    seconds_to_fit: NotNegative
    fitted: Annotated[int, Range(1)]
    nearly_same: Count
    peak_memory_mib: NotNegative | None
    failures: tuple[Mapping[str, str], ...]
    efficiency: _Costs


def _check(row: Any) -> None:
    """Raises: KeyError, TypeError, ConfigError for what is no row of this version."""
    heading = from_dict(_Heading, _some(row, _Heading), strict=True)
    if heading.schema != trial.SCHEMA:
        raise TypeError("of another version")
    if heading.status == FAILED:
        from_dict(_Failed, _some(row, _Failed), strict=True)
        return
    values = _some(row, _Measured)
    values["efficiency"] = _some(values["efficiency"], _Costs)
    from_dict(_Measured, values, strict=True)
    for one in row["failures"]:
        _ = one["path"], one["error"]


def _some(row: Any, kind: type) -> dict[str, Any]:
    """What of a row a class of it has."""
    return {one.name: row[one.name] for one in dataclasses.fields(kind)}
