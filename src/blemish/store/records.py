"""What a store holds, as dataclasses. Each refuses, when it is made, what cannot be stored.

Times are timezone-aware. Names of models, versions, reviewers and defect types are people's own
and are refused where they cannot be shown or are too long; what comes from outside (the names of
pictures, notes) is stored as well as it can be: see `storable`.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Self

from blemish.errors import ConfigError
from blemish.report.journal import row_of
from blemish.store.descriptor import Descriptor
from blemish.text import printable
from blemish.types import Prediction

# The most characters of a text.
NAME = 100  # of a model, version, reviewer, defect type, stratum
LEASE = 200  # of the name of a lease
SOURCE = 1024
CATEGORY = 200
NOTE, NOTES = 500, 20  # of one note, and how many of them
TEXT = 4000  # of a reason or the message of a job
DOCUMENT = 4 * 2**20  # of a JSON document
MASK_BYTES = 16 * 2**20  # of a mask's PNG

VERDICTS = ("good", "defect", "unsure")
DISAGREED = "disagreed"  # what is said of a picture that is good and defective to two reviewers
STATES = ("waiting", "running", "done", "failed", "cancelled")
KINDS = ("promote", "roll back")

_DIGEST = re.compile(r"[0-9a-f]{32,64}")


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def storable(text: str, most: int) -> str:
    """A text of anybody's as any database takes it: without null bytes and lone surrogates, which
    are escaped, and of at most so many characters.

    Example:
        >>> storable("a\\0b\\udc80", 20), storable("abcdef", 4)
        ('a\\\\x00b\\\\udc80', 'abc…')
    """
    clean = text[: most + 1].encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def check_digest(picture: str) -> str:
    """The digest of a picture, as it was given. Raises: ConfigError for anything else."""
    if not isinstance(picture, str) or not _DIGEST.fullmatch(picture):
        raise ConfigError(
            f"picture {_short(picture)}: is no digest of a picture, which is 32 to 64 of 0-9 a-f"
        )
    return picture


def check_name(what: str, text: str, *, most: int = NAME, empty: bool = False) -> str:
    """A name of a model, reviewer… as it was given. Raises: ConfigError where it cannot be one."""
    if not isinstance(text, str) or not text.isprintable():
        raise ConfigError(f"{what} {_short(text)}: holds what cannot be shown; give it another")
    if len(text) > most:
        raise ConfigError(f"{what} {_short(text)}: is {len(text)} characters, at most {most} fit")
    if not empty and not text.strip():
        raise ConfigError(f"{what}: is empty; give it a name")
    return text


def check_time(time: datetime) -> datetime:
    """Raises: ConfigError for a time without a zone."""
    if time.tzinfo is None:
        raise ConfigError(f"time {time}: has no time zone; give it one, as UTC")
    return time


def check_choice(what: str, value: str, known: Sequence[str]) -> str:
    """Raises: ConfigError for a value that is none of those known."""
    if value not in known:
        raise ConfigError(f"{what} {_short(value)}: is none of {', '.join(known)}")
    return value


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return printable(repr(text[:40] + ("…" if len(text) > 40 else "")))


def _finite(what: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"{what} {value}: is not finite")


def document(what: str, value: Mapping[str, Any]) -> str:
    """A mapping as JSON, with escapes for all that is not ASCII, so that any database takes it.

    Raises: ConfigError for what is no JSON, or more than `DOCUMENT` characters of it.
    """
    try:
        text = json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what}: cannot be written as JSON ({error})") from error
    if len(text) > DOCUMENT:
        raise ConfigError(f"{what}: is {len(text):,} characters of JSON, at most {DOCUMENT:,} fit")
    return text


def new_key() -> str:
    """32 hexadecimal digits that no other prediction has, later ones greater: so that one that is
    written twice, as nobody knew whether the first time succeeded, is there once."""
    return f"{clock.time_ns():016x}{secrets.token_hex(8)}"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A prediction, as it is written down; `types.Prediction` says what most attributes are.

    Attributes:
        picture: the digest of its decoded pixels, hexadecimal.
        model, version: which detector predicted.
        height, width: of the picture in pixels.
        label: the verdict: 0 normal, 1 anomalous; None without a threshold.
        source: where it came from, as the camera; "" where nobody said. name: what its sender calls
            it. Both stored as `storable`.
        regions: as `report.journal.row_of` has them, with their `runs` as one text; None without a
            threshold for them.
        time: when it was predicted.
        key: known of no other prediction. Written again under the same key, it is there once.
        descriptor: where the picture lies among others; None where nobody said.
    """

    picture: str
    model: str
    version: str
    score: float
    height: int
    width: int
    threshold: float | None = None
    label: int | None = None
    p_value: float | None = None
    region_threshold: float | None = None
    source: str = ""
    name: str = ""
    category: str = ""
    category_assigned: bool = False
    adapted: bool = False
    votes: float | None = None
    notes: tuple[str, ...] = ()
    regions: tuple[Mapping[str, Any], ...] | None = field(default=None, repr=False)
    time: datetime = field(default_factory=now)
    key: str = field(default_factory=new_key, repr=False)
    descriptor: Descriptor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_digest(self.picture)
        check_name("model", self.model)
        check_name("version", self.version)
        check_time(self.time)
        for what in ("score", "threshold", "p_value", "region_threshold", "votes"):
            _finite(what, getattr(self, what))
        if self.label not in (None, 0, 1):
            raise ConfigError(f"label {self.label}: is none of 0, 1 and None")
        if not (0 < self.height < 2**31 and 0 < self.width < 2**31):
            raise ConfigError(f"size {self.height}×{self.width}: is that of no picture")
        if not re.fullmatch(r"[0-9a-f]{32}", self.key):
            raise ConfigError(f"key {_short(self.key)}: is not 32 hexadecimal digits")

    @classmethod
    def of(
        cls,
        prediction: Prediction,
        *,
        model: str,
        version: str,
        source: str = "",
        time: datetime | None = None,
        space: str = "",
    ) -> Self:
        """Of a prediction of a detector. Args: source: where it came from. space: the detector's
        `descriptor_space`; "" = its descriptor is not kept."""
        row, numbers = row_of(prediction), prediction.descriptor
        return cls(
            picture=prediction.digest,
            model=model,
            version=version,
            source=source,
            name=row["path"],
            regions=None if row["regions"] is None else tuple(row["regions"]),
            notes=prediction.notes,
            time=now() if time is None else time,
            descriptor=None if numbers is None or not space else Descriptor.of(space, numbers),
            **{name: row[name] for name in _SHARED},
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the time in ISO format."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        regions = None if self.regions is None else [dict(one) for one in self.regions]
        told = {"notes": list(self.notes), "regions": regions, "time": self.time.isoformat()}
        descriptor = None if self.descriptor is None else self.descriptor.to_dict()
        return found | told | {"descriptor": descriptor}


_SHARED = (
    *("score", "threshold", "label", "p_value", "region_threshold", "height", "width"),
    *("category", "category_assigned", "adapted", "votes"),
)


@dataclass(frozen=True, kw_only=True)
class Row(Scored):
    """A prediction, as it is read back.

    Attributes:
        id: rises with every prediction.
        regions: None also where they were not asked for.
        reviewed: what its reviewers say of the picture now: "good", "defect", "unsure" or
            "disagreed"; "" where nobody has said anything. `Store.reviewed` says how that is found.
        defect: the type of the defect that they name; "" without one.
    """

    id: int
    reviewed: str = ""
    defect: str = ""


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a reviewer said of a picture.

    Attributes:
        picture: digest of its decoded pixels.
        verdict: "good", "defect" or "unsure".
        defect: its type; "" where it has none.
        mask: a PNG of one channel, 0 and 255, at the picture's size; None where none was drawn.
        reviewer: who.
        time: when.
        prediction: id of the prediction that was looked at; None where there was none, or it is
            deleted.
        revealed: whether the reviewer had seen what the detector says of the picture; None where
            nobody knows.
        id: rises with every label; None before it is stored.
        undone: when it was taken back; None where it was not.
    """

    picture: str
    verdict: str
    reviewer: str
    defect: str = ""
    mask: bytes | None = field(default=None, repr=False)
    prediction: int | None = None
    time: datetime = field(default_factory=now)
    revealed: bool | None = None
    id: int | None = None
    undone: datetime | None = None

    def __post_init__(self) -> None:
        check_digest(self.picture)
        check_choice("verdict", self.verdict, VERDICTS)
        check_name("reviewer", self.reviewer)
        check_name("defect type", self.defect, empty=True)
        check_time(self.time)
        if self.verdict != "defect" and (self.defect or self.mask is not None):
            raise ConfigError(
                f"label {self.verdict}: has a defect type or a mask; call the picture a defect"
            )
        if self.mask is not None and len(self.mask) > MASK_BYTES:
            raise ConfigError(
                f"mask: is {len(self.mask):,} bytes, at most {MASK_BYTES:,} are kept of a mask"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `mask` says whether there is one."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        undone = None if self.undone is None else self.undone.isoformat()
        told = {"time": self.time.isoformat(), "undone": undone, "mask": self.mask is not None}
        return found | told


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How the review queue placed a picture.

    Attributes:
        version: that scored it then.
        stratum: what it is shown for ("random", "threshold", "disagreement", "unseen"…).
        probability: how likely it was to be drawn by then, in (0, 1].
        priority: its place in the queue: the lowest is reviewed next.
        record: JSON-ready: whatever else the queue must know of it (`monitoring.draws`).
    """

    picture: str
    model: str
    version: str
    stratum: str
    probability: float
    priority: float = 0.0
    record: Mapping[str, Any] = field(default_factory=dict)
    time: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        check_digest(self.picture)
        check_name("model", self.model)
        check_name("version", self.version)
        check_name("stratum", self.stratum)
        check_time(self.time)
        _finite("priority", self.priority)
        if not 0 < self.probability <= 1:
            raise ConfigError(f"probability {self.probability}: is not in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class Reviewed:
    """A picture that was reviewed, as a version scored it.

    Attributes:
        row: the last prediction of it.
        verdict: what its reviewers say together: "good", "defect", "unsure" or "disagreed".
        defect: the type that was named last; "" without one.
        masked: whether anybody drew a mask.
        reviewers: how many have a label on it.
        draw: its place in the review queue; None where it has none.
    """

    row: Row
    verdict: str
    defect: str
    masked: bool
    reviewers: int
    draw: Draw | None


@dataclass(frozen=True, kw_only=True)
class OtherScore:
    """What a version says of a picture. Attributes: live: whether it was predicted for somebody;
    otherwise it was only scored, to compare."""

    picture: str
    model: str
    version: str
    score: float
    threshold: float | None = None
    label: int | None = None
    time: datetime = field(default_factory=now)
    live: bool = False

    def __post_init__(self) -> None:
        check_digest(self.picture)
        check_name("model", self.model)
        check_name("version", self.version)
        check_time(self.time)
        _finite("score", self.score)
        _finite("threshold", self.threshold)
        if self.label not in (None, 0, 1):
            raise ConfigError(f"label {self.label}: is none of 0, 1 and None")


@dataclass(frozen=True, kw_only=True)
class VersionRow:
    """A version of a model.

    Attributes:
        sha256: of its file, 64 hexadecimal digits.
        method: that it was fitted with.
        threshold: of its verdicts; None without one.
        rate: the false-alarm rate that this promises, in (0, 1); None where it promises none.
        made: when.
        base: the version that it was learned from; "" for one that came as a file.
        learned_from: JSON-ready: the ids of labels, how many of which verdict…
        figures: JSON-ready: how good it was on what.
    """

    model: str
    version: str
    sha256: str
    method: str
    threshold: float | None = None
    rate: float | None = None
    base: str = ""
    learned_from: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    made: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        check_name("model", self.model)
        check_name("version", self.version)
        check_name("method", self.method, empty=True)
        check_name("base", self.base, empty=True)
        check_time(self.made)
        _finite("threshold", self.threshold)
        _finite("rate", self.rate)
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ConfigError(f"sha256 {_short(self.sha256)}: is not 64 hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """That a version went live.

    Attributes:
        kind: "promote", or "roll back": to the version that was live before.
        who, reason: of the person who did it.
    """

    model: str
    version: str
    kind: str
    who: str
    reason: str
    time: datetime
    id: int


def pile_of(history: Sequence[Any]) -> list[str]:
    """The versions that were live and can be gone back to, the live one last, none twice in a row.

    Args: history: of a model, the oldest first: `Promotion`s, or what has `kind` and `version`.
    """
    pile: list[str] = []
    for one in history:
        if one.kind == "roll back":
            pile.pop()
        elif pile[-1:] != [one.version]:
            pile.append(one.version)
    return pile


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work in the background.

    Attributes:
        kind: what is done ("refine"…).
        state: "waiting", "running", "done", "failed" or "cancelled".
        progress: in [0, 1].
        message: what it does now, or why it failed; stored as `storable`.
        who: started it.
        made, changed: when it was started, and last updated.
        settings: what it was started with, JSON-ready. result: what came out, JSON-ready.
        service: the instance that does it; "" of none that is known.
        id: rises; None before it is stored.
    """

    model: str
    kind: str
    who: str
    state: str = "waiting"
    progress: float = 0.0
    message: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    made: datetime = field(default_factory=now)
    changed: datetime = field(default_factory=now)
    service: str = ""
    id: int | None = None

    def __post_init__(self) -> None:
        check_name("model", self.model)
        check_name("kind of job", self.kind)
        check_name("service", self.service, empty=True)
        check_name("who", self.who)
        check_choice("state", self.state, STATES)
        check_time(self.made)
        check_time(self.changed)
        if not 0 <= self.progress <= 1:
            raise ConfigError(f"progress {self.progress}: is not in [0, 1]")


@dataclass(frozen=True)
class Held:
    """A lease under which something is written. Attributes: name; holder: who must have it."""

    name: str
    holder: str
