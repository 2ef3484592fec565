"""The review queue of a model, and whether its pictures have changed: what the store holds, read by
`monitoring` as it grows.

Nothing here needs to be told of a prediction: `catch_up` reads those that are new, in the order of
their ids, so that a restart comes to the same queue. It takes about 0.2 ms a picture.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from blemish.images import EXTENSIONS
from blemish.monitoring import draws
from blemish.monitoring.drift import Alarm, Monitor, Reference
from blemish.monitoring.estimates import Answer, Pool, Sample, Waiting, sample
from blemish.monitoring.queue import Candidate, Opinion, Queue
from blemish.store import Draw, OtherScore, Row, Store

WHY = {
    "threshold": "near the threshold",
    "disagreement": "versions disagree on it",
    "unseen": "unlike pictures seen before",
    "random": "by chance, for honest figures",
    "second": "another reviewer was unsure, or said otherwise",
}
_PAGE = 1000  # predictions that are read at once
_LEASE = 120.0  # seconds in which a picture that one reviewer looks at is shown to no other
_CHUNK = 64
_CAMERAS = 64  # sources with a monitor of their own


@dataclass(frozen=True)
class Next:
    """A picture to be reviewed. Attributes: row: its prediction; why: as a key of `WHY`."""

    row: Row
    why: str


@dataclass(slots=True)
class _Placed:
    """A picture in the queue: its draw, and its first prediction."""

    draw: draws.Draw
    id: int
    version: str
    score: float


@dataclass(frozen=True)
class Drift:
    """Whether the pictures of a source have changed. Attributes: source: "" for all together."""

    source: str
    monitor: Monitor

    @property
    def alarms(self) -> list[Alarm]:
        """Those that stand."""
        return self.monitor.alarms()


class Reviewing:
    """Queue and monitors of a model. Any number of threads may use one."""

    def __init__(self, store: Store, model: str) -> None:
        self._store, self._model = store, model
        self._queue = Queue(seed=model)
        self._placed: dict[str, _Placed] = {}
        self._line: list[tuple[float, str]] = []  # priority and picture, the next first
        self._last: int | None = None
        self._labelled: set[str] = set()
        self._handed: dict[str, tuple[str, float]] = {}
        self._noted: set[str] = set()
        self._lock = threading.RLock()
        self._watched = ""
        self._reference: Reference | None = None
        self._monitors: dict[str, Monitor] = {}

    @classmethod
    def of(cls, service: Any, model: str) -> Reviewing:
        """That of a running service."""
        known: dict[str, Reviewing] = service.__dict__.setdefault("_reviewing", {})
        if model not in known:
            known[model] = cls(service.store, model)
        return known[model]

    def catch_up(self) -> None:
        """Place what was predicted since the last time."""
        with self._lock:
            while page := self._store.predictions(
                model=self._model, before=self._last, order="oldest", limit=_PAGE, regions=False
            ):
                new = [row for row in page if row.picture not in self._placed]
                others = self._store.other_scores_of([row.picture for row in new], self._model)
                for row in page:
                    if row.picture not in self._placed:
                        self._place(row, others.get(row.picture, []))
                    self._watch(row)
                self._last = page[-1].id

    def coming(self, reviewer: str, count: int, skipped: Sequence[str] = ()) -> list[Next]:
        """The pictures that a reviewer is shown next; the first is kept for them a while."""
        with self._lock:
            self.catch_up()
            found = []
            now, passed = time.monotonic(), set(skipped)
            for picture in self._unlabelled():
                who, until = self._handed.get(picture, ("", 0.0))
                if picture in passed or (who != reviewer and until > now):
                    continue
                row = self._store.prediction(self._placed[picture].id)
                if row is None:  # deleted since
                    continue
                found.append(Next(row, self._placed[picture].draw.stratum))
                if len(found) == count:
                    break
            if len(found) < count:
                found += self._second_looks(reviewer, count - len(found), passed)
            if found:
                self._hand(found[0], reviewer, now)
            return found

    def left(self) -> int:
        """How many wait."""
        with self._lock:
            return sum(1 for _ in self._unlabelled())

    def why(self, picture: str) -> str:
        """Why a picture was, or will be, shown; "" where the queue does not know it."""
        placed = self._placed.get(picture)
        return "" if placed is None else placed.draw.stratum

    def forget(self, picture: str) -> None:
        """Look again whether a picture has labels: one was undone."""
        with self._lock:
            self._labelled.discard(picture)

    def sample(self, version: str) -> tuple[Sample, Pool]:
        """What the reviewed pictures say of a version that scored them, and all that it scored."""
        with self._lock:
            self.catch_up()
            rows = self._store.reviewed(self._model, version=version)
            current = self._store.current_of([one.row.picture for one in rows])
            answers = [self._answer(one.row, current) for one in rows]
            known = {one.row.picture for one in rows}
            own = [one for one in self._placed.values() if one.version == version]
            waiting = [
                Waiting(priority=one.draw.priority, arrived=one.id)
                for one in own
                if one.draw.picture not in known
            ]
        most = max((one.draw.priority for one in answers if one.draw is not None), default=0.0)
        first = min((one.priority for one in waiting), default=0.0)
        needed = [one for one in waiting if one.priority <= max(most, first)]
        pool = Pool(
            scores=np.array([one.score for one in own], np.float64),
            sizes=np.array([one.draw.size for one in own], np.float64),
        )
        return sample(answers, needed, self._queue.turns), pool

    def watch(self, version: str, scores: Any, threshold: float | None) -> None:
        """Have monitors compare what a version scores with its calibration scores."""
        with self._lock:
            if version == self._watched:
                return
            self._watched, self._monitors, self._reference = "", {}, None
            self.catch_up()  # what follows reads all that is placed, and no more
            self._watched = version
            if not len(scores):
                return
            self._reference = Reference.of(scores, threshold, seed=self._model)
            for row in self._store.each_prediction(model=self._model, version=version):
                if row.id > (self._last or 0):
                    break
                self._watch(row)

    def drift(self) -> list[Drift]:
        """Of all sources together, and of each, those with alarms first."""
        with self._lock:
            self.catch_up()
            found = [Drift(source, monitor) for source, monitor in self._monitors.items()]
        return sorted(found, key=lambda one: (one.source != "", not one.alarms, one.source))

    def _place(self, row: Row, others: Sequence[OtherScore]) -> None:
        live = Opinion(version=row.version, score=row.score, threshold=row.threshold)
        more = [
            Opinion(version=one.version, score=one.score, threshold=one.threshold)
            for one in others
            if one.version != row.version
        ]
        draw = self._queue.place(Candidate(picture=row.picture, opinions=(live, *more)))
        self._placed[row.picture] = _Placed(draw, row.id, row.version, row.score)
        bisect.insort(self._line, (draw.priority, row.picture))

    def _watch(self, row: Row) -> None:
        if self._reference is None or row.version != self._watched:
            return
        cell = self._reference.cell(row.score, str(row.id))
        for source in dict.fromkeys(("", camera_of(row.source))):
            if source not in self._monitors:
                if len(self._monitors) > _CAMERAS:
                    continue
                seed = f"{self._model} {row.version} {source}"
                self._monitors[source] = Monitor(self._reference, seed=seed)
            self._monitors[source].add(cell, str(row.id))

    def _unlabelled(self) -> Iterator[str]:
        """The pictures without a label, in the order of the queue."""
        for start in range(0, len(self._line), _CHUNK):
            some = [picture for _, picture in self._line[start : start + _CHUNK]]
            asked = [picture for picture in some if picture not in self._labelled]
            if asked:
                self._labelled |= set(self._store.current_of(asked))
            yield from (picture for picture in asked if picture not in self._labelled)

    def _second_looks(self, reviewer: str, count: int, passed: set[str]) -> list[Next]:
        """Pictures on which another is unsure or reviewers disagree, and this one said nothing."""
        found: list[Next] = []
        for kind in ("disagreed", "unsure"):
            rows = self._store.predictions(
                model=self._model, reviewed=kind, limit=200, regions=False
            )
            current = self._store.current_of([row.picture for row in rows])
            for row in {row.picture: row for row in rows}.values():
                if reviewer not in current.get(row.picture, {}) and row.picture not in passed:
                    found.append(Next(row, "second"))
        return found[:count]

    def _hand(self, one: Next, reviewer: str, now: float) -> None:
        kept = {key: value for key, value in self._handed.items() if value[1] > now}
        self._handed = {**kept, one.row.picture: (reviewer, now + _LEASE)}
        placed = self._placed.get(one.row.picture)
        if placed is not None and one.row.picture not in self._noted and one.why != "second":
            self._noted.add(one.row.picture)
            row = one.row
            if self._store.draw(row.picture, self._model) is None:
                drawn = Draw(
                    picture=row.picture,
                    model=row.model,
                    version=row.version,
                    stratum=placed.draw.stratum,
                    probability=placed.draw.probability,
                )
                self._store.add_draws([drawn])

    def _answer(self, row: Row, current: Any) -> Answer:
        placed = self._placed.get(row.picture)
        said = current.get(row.picture, {}).values()
        groups = {"day": row.time.date().isoformat()}
        if camera := camera_of(row.source):
            groups["camera"] = camera
        if row.category:
            groups["category"] = row.category
        return Answer(
            draw=None if placed is None else placed.draw,
            arrived=row.id if placed is None else placed.id,
            score=row.score,
            verdicts=tuple(one.verdict for one in said),
            groups=groups,
        )


def camera_of(source: str) -> str:
    """The source of a picture, where it is a camera and not the name of the file alone.

    Example:
        >>> camera_of("camera 2"), camera_of("0001.png")
        ('camera 2', '')
    """
    return "" if PurePath(source).suffix.lower() in EXTENSIONS else source
