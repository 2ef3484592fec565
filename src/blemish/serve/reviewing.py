"""The review queue of a model, and whether its pictures have changed: the store's predictions, read
by `monitoring` as they come.

Nothing here needs to be told of a prediction: `catch_up` reads those that are new, in the order of
their ids, and before them which pictures people have decided on since. Each picture is placed once,
and its place is written down, with the chances that it had: figures hold only with those. The
states of the queue and of the monitors are a note in the store. Of several services one does so
(`leading`), and the others read its places and its note.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any

from blemish.errors import ConfigError
from blemish.monitoring.drift import Alarm, Monitor, Reference
from blemish.monitoring.queue import Candidate, Opinion, Queue
from blemish.serve.appearance import Appearance
from blemish.serve.leading import Lead
from blemish.serve.population import Judged, Population
from blemish.store import Descriptor, Draw, LeaseLost, OtherScore, Row, Store

WHY = {
    "threshold": "near the threshold",
    "disagreement": "versions disagree on it",
    "unseen": "unlike all that was reviewed",
    "random": "by chance, for honest figures",
    "second": "another reviewer was unsure, or said otherwise",
}
CHANGES = {
    "higher": "scores have become higher",
    "lower": "scores have become lower",
    "wider": "scores have become more extreme",
    "narrower": "scores have become more alike",
    "alarms": "more alarms than expected",
    "looks": "pictures look otherwise than at first",
}
ALPHA = 0.01  # the probability of ever a false alarm of all sources together
ALPHA_CAMERAS = 0.04  # and of all cameras' monitors
MOST_LEFT = 500  # as many as are counted
_CAMERAS = 64  # sources with a monitor of their own
_PAGE = 1000  # predictions that are read at once
_LEASE = 120.0  # seconds in which a picture that one reviewer looks at is shown to no other
_UNSAVED = 500  # predictions after which the state is written down,
_UNSAVED_S = 20.0  # or seconds
_POPULATIONS = 4  # versions whose pictures are held for figures


@dataclass(frozen=True)
class Next:
    """A picture to be reviewed. Attributes: row: its prediction; why: as a key of `WHY`."""

    row: Row
    why: str


@dataclass(frozen=True)
class Drift:
    """Whether the pictures of a source have changed. Attributes: source: "" for all together."""

    source: str
    monitor: Monitor

    @property
    def alarms(self) -> list[Alarm]:
        """Those that stand."""
        return self.monitor.alarms()

    @property
    def first(self) -> Alarm:
        """The one that came first, of at least one."""
        return min(self.alarms, key=lambda one: one.at)


class Reviewing:
    """Queue and monitors of a model. Any number of threads of one process may use one.

    Args: owner: the instance of this service, where others may share the store.
    """

    def __init__(self, store: Store, model: str, owner: str | None = None) -> None:
        self._store, self._model = store, model
        hashed = hashlib.sha256(model.encode()).hexdigest()[:32]
        self._note, self._shown = f"reviewing {hashed}", f"shown {hashed} "
        self._anew = f"looking anew {hashed}"
        self._lead, self._led, self._read_at = Lead(store, self._note, owner), False, 0
        self._populations: dict[str, Population] = {}  # those asked for last at the end
        self._lock = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        """Know nothing that is not in the store."""
        self._queue = Queue(seed=self._model)
        self._last: int | None = None
        self._decided = 0  # the last label that the queue knows of
        self._anew_at = 0  # when somebody last wanted looks to begin anew
        self._begun = False
        self._unsaved, self._saved = 0, time.monotonic()
        self._watched = ""
        self._reference: Reference | None = None
        self._monitors: dict[str, Monitor] = {}
        self._appearance = Appearance()
        self._kept: dict[str, Any] = {}  # the monitors' states, until their version is watched

    @classmethod
    def of(cls, service: Any, model: str) -> Reviewing:
        """That of a running service."""
        known: dict[str, Reviewing] = service.__dict__.setdefault("_reviewing", {})
        if model not in known:
            together = service.together
            known[model] = cls(service.store, model, None if together is None else together.id)
        return known[model]

    def catch_up(self) -> None:
        """Place what was predicted since the last time, and have the monitors see it; or read what
        the service did that leads."""
        with self._lock:
            leads = self._lead.has()
            if leads != self._led:  # what this one knows may be old
                self._led = leads
                self._forget()
            try:
                if leads:
                    self._catch_up()
            except LeaseLost:
                self._lost()
            if not self._led:
                self._read()

    def _lost(self) -> None:
        """Another service leads by now."""
        self._lead.lose()
        self._led = False
        self._forget()

    def _catch_up(self) -> None:
        if not self._begun:
            self._begin()
        self._begin_anew()
        for page in self._new_pages():
            described = self._store.descriptors([row.id for row in page])
            self._cover()
            self._place(page, described)
            self._watch(page, described)
            self._last = page[-1].id
            self._unsaved += len(page)
        late = time.monotonic() - self._saved > _UNSAVED_S
        if self._unsaved >= _UNSAVED or (self._unsaved and late):
            self.save()

    def _read(self) -> None:
        """Read the note where it is new, and the places of pictures as far as they have one."""
        written = self._store.note_time(self._note) or 0
        if not self._begun or written != self._read_at:
            self._read_at = written
            self._begin()
        for page in self._new_pages():
            there = self._store.draws([row.picture for row in page], self._model)
            for row in page:
                if row.picture not in there:
                    return  # it waits for the one that leads
                self._last = row.id

    def _new_pages(self) -> Iterator[list[Row]]:
        """The predictions after the last one that was seen, none of which may still have others
        before it that are being written."""
        end = self._store.last_settled()
        while page := self._store.predictions(
            model=self._model, before=self._last, order="oldest", limit=_PAGE, regions=False
        ):
            settled = [row for row in page if row.id <= end]
            if settled:
                yield settled
            if len(settled) < len(page):
                return

    def save(self) -> None:
        """Write down the states of queue and monitors, if there is something new."""
        with self._lock:
            if not self._unsaved or not self._led:
                return
            told = self._kept
            if self._watched:
                monitors = {source: one.to_dict() for source, one in self._monitors.items()}
                told = {"watched": self._watched, "monitors": monitors}
                told["appearance"] = self._appearance.to_dict()
            state = {
                "queue": self._queue.to_dict(),
                "decided": self._decided,
                "anew": self._anew_at,
            }
            try:
                self._store.put_note(
                    self._note, {"last": self._last, **state, **told}, self._lead.held
                )
            except LeaseLost:
                self._lost()
                return
            self._unsaved, self._saved = 0, time.monotonic()

    def coming(self, reviewer: str, count: int, skipped: Sequence[str] = ()) -> list[Next]:
        """The pictures that a reviewer is shown next; the first is kept for them a while."""
        with self._lock:
            self.catch_up()
            passed, shown = set(skipped), self._store.leased(self._shown)
            found: list[Next] = []
            for draw in self._line():
                name = self._shown + draw.picture
                if draw.picture in passed or shown.get(name, reviewer) != reviewer:
                    continue
                rows = self._store.predictions(
                    picture=draw.picture, model=self._model, limit=1, regions=False
                )
                if rows and not found and not self._store.lease(name, reviewer, _LEASE):
                    continue  # another was quicker
                found += [Next(row, draw.stratum) for row in rows]
                if len(found) == count:
                    break
            if len(found) < count:
                found += self._second_looks(reviewer, count - len(found), passed)
            return found

    def left(self) -> int:
        """How many pictures wait for a first label; `MOST_LEFT` where there are more."""
        with self._lock:
            self.catch_up()
            left: int = self._store.waiting(self._model, MOST_LEFT)
            return left

    def judged(self, version: str, seen: Collection[str] = ()) -> Judged:
        """What the reviewed pictures say of a version that scored them, and all that it scored,
        without those that it has `seen` before, by their digests."""
        with self._lock:
            self.catch_up()
            population = self._populations.pop(version, None)
            if population is None:
                population = Population(self._store, self._model, version)
            kept = list(self._populations.items())[1 - _POPULATIONS :]
            self._populations = {**dict(kept), version: population}
            last = self._last or 0
        return population.judged(last, seen)

    def watch(
        self,
        version: str,
        scores: Sequence[float],
        threshold: float | None,
        space: str | None = None,
    ) -> None:
        """Have monitors compare what a version scores with its calibration scores, and how its
        pictures look with how they looked at first.

        Args: space: of the version's descriptors; None where it makes none.
        """
        with self._lock:
            self.catch_up()  # what follows sees all that is placed, and no more
            if version == self._watched and (space or "") == self._appearance.space:
                return
            self._watched, self._monitors, self._reference = version, {}, None
            if len(scores):
                self._reference = Reference.of(scores, threshold, seed=self._model)
            goes_on = self._restored(version, space or "")
            if not self._led:
                return
            since, end = self._kept.get("last") if goes_on else None, self._last or 0
            rows = self._store.each_prediction(model=self._model, version=version, after=since)
            new = takewhile(lambda row: row.id <= end, rows)
            while page := list(islice(new, _PAGE)):
                self._watch(page, self._store.descriptors([row.id for row in page]))
            self._unsaved += 1
            self.save()

    def _restored(self, version: str, space: str) -> bool:
        """Go on with what was kept, if it is of this version with this calibration; otherwise all
        begins anew. What is of other descriptors, or of before there were any, begins now."""
        self._appearance, self._monitors = Appearance(space, self._model), {}
        if self._kept.get("watched") != version:
            return False
        if self._reference is not None:
            try:
                self._monitors = {
                    source: Monitor.from_dict(one, self._reference)
                    for source, one in self._kept["monitors"].items()
                }
            except ConfigError:
                self._monitors = {}
                return False
        kept = self._kept.get("appearance")
        if kept is not None and kept["space"] == space:
            self._appearance = Appearance.from_dict(kept)
        return True

    def appearance(self) -> Appearance:
        """How pictures look beside the first ones of the version that is watched."""
        with self._lock:
            self.catch_up()
            return self._appearance

    def look_anew(self) -> None:
        """Compare how pictures look with those that come from now on: an alarm ends."""
        with self._lock:
            self._store.put_note(self._anew, {})  # for the service that leads
            self.catch_up()

    def _begin_anew(self) -> None:
        """Do what `look_anew` asked for, here or in another service."""
        asked = self._store.note_time(self._anew) or 0
        if asked > self._anew_at:
            self._anew_at = asked
            self._unsaved += 1
            self._kept.pop("appearance", None)
            self._appearance = Appearance(self._appearance.space, self._model)
            self._unsaved += 1
            self.save()

    def drift(self) -> list[Drift]:
        """Of all sources together, and of each, those with alarms first."""
        with self._lock:
            self.catch_up()
            found = [Drift(source, monitor) for source, monitor in self._monitors.items()]
        return sorted(found, key=lambda one: (one.source != "", not one.alarms, one.source))

    def _begin(self) -> None:
        """Read what was written down before."""
        note = self._store.note(self._note)
        if note is not None:
            self._queue = Queue.from_dict(note["queue"])
            names = ("watched", "monitors", "appearance", "last")
            self._kept = {key: note[key] for key in names if key in note}
            self._decided, self._anew_at = note.get("decided", 0), note.get("anew", 0)
            if not self._led and self._watched:
                self._restored(self._watched, self._appearance.space)
        if not self._begun:
            self._last = None if note is None else note["last"]
        self._begun = True

    def _line(self) -> Iterator[Draw]:
        """The pictures without a label, the next first: a few are read at once."""
        after: float | None = None
        while page := self._store.queue(self._model, after=after, limit=32):
            yield from page
            after = page[-1].priority

    def _cover(self) -> None:
        """Tell the queue which pictures people have decided on since the last time."""
        while labels := self._store.decided(self._model, self._decided):
            for id, one in labels:
                if one is not None:
                    self._queue.cover(one.numbers, one.space)
                self._decided = id
            self._unsaved += 1

    def _place(self, page: Sequence[Row], described: Mapping[int, Descriptor]) -> None:
        first = {row.picture: row for row in reversed(page)}
        there = self._store.draws(list(first), self._model)
        new = [row for row in reversed(first.values()) if row.picture not in there]
        others = self._store.other_scores_of([row.picture for row in new], self._model)
        placed = []
        for row in new:
            others_of_it = others.get(row.picture, [])
            draw = self._queue.place(_candidate(row, others_of_it, described.get(row.id)))
            placed.append(
                Draw(
                    picture=row.picture,
                    model=row.model,
                    version=row.version,
                    stratum=draw.stratum,
                    probability=draw.probability,
                    priority=draw.priority,
                    record={**draw.to_dict(), "arrived": row.id},
                )
            )
        self._store.add_draws(placed, self._lead.held)

    def _watch(self, page: Sequence[Row], described: Mapping[int, Descriptor]) -> None:
        for row in page:
            if row.version == self._watched:
                self._monitor(row)
                self._appearance.add(row, described.get(row.id))

    def _monitor(self, row: Row) -> None:
        if self._reference is None:
            return
        cell = self._reference.cell(row.score, str(row.id))
        for source in dict.fromkeys(("", row.source)):
            if source not in self._monitors:
                if len(self._monitors) > _CAMERAS:
                    continue
                seed = f"{self._model} {row.version} {source}"
                alpha = ALPHA_CAMERAS / _CAMERAS if source else ALPHA
                self._monitors[source] = Monitor(self._reference, seed=seed, alpha=alpha)
            self._monitors[source].add(cell, str(row.id))

    def _second_looks(self, reviewer: str, count: int, passed: set[str]) -> list[Next]:
        """Pictures on which another is unsure or reviewers disagree, and this one said nothing."""
        found: list[Next] = []
        for kind in ("disagreed", "unsure"):
            rows = self._store.predictions(
                model=self._model, reviewed=kind, limit=200, regions=False
            )
            current = self._store.current_of([row.picture for row in rows])
            for row in {row.picture: row for row in reversed(rows)}.values():
                if reviewer not in current.get(row.picture, {}) and row.picture not in passed:
                    found.append(Next(row, "second"))
        return found[:count]


def _candidate(row: Row, others: Sequence[OtherScore], own: Descriptor | None) -> Candidate:
    live = Opinion(version=row.version, score=row.score, threshold=row.threshold)
    more = [
        Opinion(version=one.version, score=one.score, threshold=one.threshold)
        for one in others
        if one.version != row.version
    ]
    if own is None:
        return Candidate(picture=row.picture, opinions=(live, *more))
    return Candidate(
        picture=row.picture, opinions=(live, *more), descriptor=own.numbers, space=own.space
    )
