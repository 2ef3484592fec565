"""What a comparison does, kept beside its rows: the pictures and what each is for, the generated
defects, and how long the backbone takes. A comparison that is gone on from keeps to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blemish import config as configs
from blemish.bench.choosing.candidates import Candidate
from blemish.bench.choosing.evidence import Evidence
from blemish.bench.choosing.pictures import Division
from blemish.bench.choosing.trial import CHECKING, CHECKING_GOOD, GENERATED, GOOD, LABELLED
from blemish.config import Count, Fraction, FractionAbove0, NotNegative
from blemish.errors import BlemishError, DataError
from blemish.files import ROWS_BYTES, read_whole, write_whole
from blemish.types import Sample

SCHEMA = 1
_SPENT = 0.5  # of the minutes, on encoding pictures: the rest goes to learning and searching


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a comparison does.

    Attributes:
        fingerprint: of what was asked for: the pictures, and all that the plan depends on.
        division: the pictures, as far as there is time for them.
        generated: as of `defects.made_of`; `of` is a position in `division.good`.
        smallest: as of `defects.spoilt`.
        seconds: of encoding a picture, by size ("224x224").
        failures: good pictures that could not be read when defects were generated.
        reduced: the share of the pictures that are made use of, as there is no time for more.
    """

    fingerprint: str
    division: Division
    generated: tuple[Mapping[str, Any], ...]
    smallest: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[Mapping[str, Any], ...] = ()
    reduced: float = 1.0

    @property
    def learned(self) -> list[tuple[str, str]]:
        """Path and category of each picture to learn from."""
        return [(str(one.path), one.category) for one in self.division.learned]

    @property
    def judged(self) -> list[dict[str, Any]]:
        """As of `trial.Order`: all that is scored of every candidate."""
        categories = [one.category for one in self.division.good]
        rows = [
            {
                "id": f"good {one['of']}" + (f" {one['kind']}" if "kind" in one else ""),
                "role": GENERATED if "kind" in one else GOOD,
                "category": categories[one["of"]],
                **{key: one[key] for key in ("path", "kind", "mask") if key in one},
            }
            for one in self.generated
        ]
        for role, samples in (
            (LABELLED, self.division.defects),
            (CHECKING_GOOD, self.division.checking_good),
            (CHECKING, self.division.checking_defects),
        ):
            rows += [
                {
                    "id": f"{role} {at}",
                    "role": role,
                    "path": str(one.path),
                    "category": one.category,
                    "kind": one.defect,
                }
                for at, one in enumerate(samples)
            ]
        return rows

    def evidence(self) -> tuple[Evidence, Evidence, Evidence]:
        """Good pictures beside generated defects, beside labelled ones that choose, and those that
        check beside each other."""
        groups: dict[str, list[str]] = {}
        roles: dict[str, list[str]] = {LABELLED: [], CHECKING_GOOD: [], CHECKING: []}
        for row in self.judged:
            if row["role"] == GOOD:
                groups[row["id"]] = []
            elif row["role"] == GENERATED:
                groups[row["id"].removesuffix(f" {row['kind']}")].append(row["id"])
            else:
                roles[row["role"]].append(row["id"])
        good = tuple(groups)
        made = tuple(map(tuple, groups.values()))
        return (
            Evidence(good=good, defective=made, paired=True),
            Evidence(good=good, defective=tuple((one,) for one in roles[LABELLED])),
            Evidence(
                good=tuple(roles[CHECKING_GOOD]),
                defective=tuple((one,) for one in roles[CHECKING]),
            ),
        )

    def key_of(self, one: Candidate) -> str:
        """What the row of a candidate is known by, on these pictures."""
        counts = {name: len(samples) for name, samples in vars(self.division).items()}
        generated = [(row["of"], row.get("kind")) for row in self.generated]
        whole = [one.identity, self.fingerprint, counts, generated]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:16]

    def seconds_of(self, one: Candidate) -> float:
        """That its backbone takes for a picture."""
        return self.seconds.get(name_of(one.config.height_width), 0.0)

    def within(self, minutes: float, candidates: Sequence[Candidate]) -> Plan:
        """With no more pictures than there is time to encode, each once in every size."""
        sizes = {name_of(one.config.height_width) for one in candidates}
        pictures = len(self.division.learned) + len(self.judged)
        needed = pictures * sum(self.seconds.get(size, 0.0) for size in sizes)
        share = min(1.0, _SPENT * 60 * minutes / needed) if needed else 1.0
        if share == 1:
            return self
        division = self.division.reduced(share)
        kept = [one for one in self.generated if one["of"] < len(division.good)]
        fewer = replace(self, division=division, generated=tuple(kept))
        used = (len(division.learned) + len(fewer.judged)) / pictures
        return replace(fewer, reduced=round(used, 3))

    def is_there(self) -> bool:
        """Whether the generated defects are still where they were written."""
        files = [Path(one[key]) for one in self.generated for key in ("path", "mask") if key in one]
        return all(file.is_file() for file in files)

    def save(self, path: Path) -> None:
        """Raises: OutputError."""
        division = {
            name: [
                {"path": str(one.path), "category": one.category, "defect": one.defect}
                for one in samples
            ]
            for name, samples in vars(self.division).items()
        }
        told = {"schema": SCHEMA, **vars(self), "division": division}
        write_whole(path, json.dumps(told, indent=1).encode("utf-8", "backslashreplace"))

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Raises: DataError for a file that is none of these."""
        content = read_whole(path, limit=ROWS_BYTES, error=DataError)
        try:
            told = configs.from_dict(_File, configs.parse_json(content), strict=True)
            if told.schema != SCHEMA:
                raise ValueError(f"it is of version {told.schema}, not {SCHEMA}")
            parts = {
                name: tuple(
                    Sample(path=Path(one.path), category=one.category, defect=one.defect)
                    for one in samples
                )
                for name, samples in told.division.items()
            }
            plan = cls(
                fingerprint=told.fingerprint,
                division=Division(**parts),
                smallest=told.smallest,
                generated=tuple(_row(one) for one in told.generated),
                seconds=told.seconds,
                failures=told.failures,
                reduced=told.reduced,
            )
            plan.evidence()  # every generated defect is of a picture that is there
        except (ValueError, TypeError, KeyError, IndexError, BlemishError) as error:
            raise DataError(
                f"{path}: is not the plan of a comparison ({error}); remove it with its folder, or "
                "name another one"
            ) from error
        return plan


@dataclass(frozen=True, kw_only=True)
class _Picture:
    path: str
    category: str
    defect: str


@dataclass(frozen=True, kw_only=True)
class _Made:
    path: str
    of: Count
    kind: str = ""
    mask: str = ""


@dataclass(frozen=True, kw_only=True)
class _File:
    """What a file has to hold."""

    schema: Count
    fingerprint: str
    division: Mapping[str, tuple[_Picture, ...]]
    generated: tuple[_Made, ...]
    smallest: FractionAbove0
    seconds: Mapping[str, NotNegative]
    failures: tuple[Mapping[str, str], ...]
    reduced: Fraction


def _row(one: _Made) -> dict[str, Any]:
    """As `defects.made_of` gives it. Raises: ValueError for a defect without a mask."""
    if bool(one.kind) != bool(one.mask):
        raise ValueError("a generated defect has no mask, or no kind")
    more = {"kind": one.kind, "mask": one.mask} if one.kind else {}
    return {"path": one.path, "of": one.of, **more}


def name_of(size: tuple[int, int]) -> str:
    """How a plan calls a size."""
    return f"{size[0]}x{size[1]}"


def fingerprint(parts: Sequence[object], division: Division) -> str:
    """Of pictures and what each is for, by their names, sizes and times of writing, and of whatever
    else counts."""
    state = hashlib.sha256(json.dumps([str(one) for one in parts]).encode())
    for name, samples in vars(division).items():
        for one in samples:
            path = Path(one.path)
            try:
                status = path.stat()
                told = (status.st_size, status.st_mtime_ns)
            except OSError:
                told = (-1, -1)
            row = [name, str(path.resolve()), *told, one.category, one.defect]
            state.update(json.dumps(row).encode("utf-8", "replace"))
    return state.hexdigest()[:16]
