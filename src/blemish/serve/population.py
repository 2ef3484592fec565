"""The pictures that a version scored, and what reviewers say of those they saw: what its figures
rest on.

Read from the store when figures are first asked for, afterwards what is new alone. Four numbers of
each picture are held, and more of the reviewed ones only.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blemish.monitoring import draws
from blemish.monitoring.estimates import Answer, Pool, Sample, Waiting, sample
from blemish.store import Store
from blemish.store.judging import Said, Scene

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """What the figures of a version are made of.

    Attributes: sample: the reviewed pictures that count. pool: all that it scored. revealed: how
    many reviewed pictures somebody spoke of who had been shown what the detector says.
    """

    sample: Sample
    pool: Pool
    revealed: int


class Population:
    """That of a version of a model. Any number of threads may use one."""

    def __init__(self, store: Store, model: str, version: str) -> None:
        self._store, self._model, self._version = store, model, version
        self._last = 0  # the id of the last prediction that was read
        self._pictures = np.zeros((4, 0))  # arrived (rising), priority, size, score of each
        self._said: list[Said] = []
        self._scenes: dict[str, Answer | None] = {}  # without verdicts; None: it did not score it
        self._seen: tuple[frozenset[str], Floats] = (frozenset(), np.zeros(0))
        self._made: tuple[Any, Judged] | None = None
        self._lock = threading.Lock()

    def judged(self, until: int, seen: Collection[str] = ()) -> Judged:
        """What is known now.

        Args: until: the id of the last prediction that has its place. seen: pictures that the
        version has seen before, by their digests: they are left out.
        """
        with self._lock:
            said, before = self._store.said(), frozenset(seen)
            key = (self._read(until), before)
            if self._made is not None and self._made[0] == key and said == self._said:
                return self._made[1]
            self._said = said
            found = self._judge(said, before)
            self._made = (key, found)
            return found

    def _read(self, until: int) -> int:
        """Read the predictions that are new; gives the id of the last one."""
        pages = [self._pictures]
        for page in self._store.placed(self._model, self._version, after=self._last, until=until):
            pages.append(np.array([page.arrived, page.priorities, page.sizes, page.scores]))
            self._last = page.last
            if self._scenes:  # what is reviewed may have come again, from elsewhere
                for picture in page.pictures:
                    self._scenes.pop(picture, None)
        if len(pages) > 1:
            every = np.concatenate(pages, axis=1)
            every = every[:, np.argsort(every[0], kind="stable")]
            last = np.r_[every[0, 1:] != every[0, :-1], True]  # of a picture that came again
            self._pictures = every[:, last]
        return self._last

    def _judge(self, said: Sequence[Said], seen: frozenset[str]) -> Judged:
        verdicts: dict[str, dict[str, Said]] = {}
        for one in said:
            of_one = verdicts.setdefault(one.picture, {})
            of_one.pop(one.reviewer, None)
            of_one[one.reviewer] = one
        self._look_up([one for one in verdicts if one not in self._scenes])
        answers, revealed = [], 0
        for picture, by in verdicts.items():
            answer = self._scenes[picture]
            if answer is not None and picture not in seen:
                answers.append(replace(answer, verdicts=tuple(one.verdict for one in by.values())))
                revealed += any(one.revealed for one in by.values())
        arrived, priority, size, score = self._pictures
        kept = ~np.isin(arrived, self._arrivals(seen))
        answered = np.array([one.arrived for one in answers if one.draw is not None])
        waits = kept & ~np.isin(arrived, answered)
        line = first_in_line(arrived[waits], priority[waits])
        order = np.argsort(score[kept])  # once, as each rate needs them so
        pool = Pool(scores=score[kept][order], sizes=size[kept][order])
        return Judged(sample(answers, line), pool, revealed)

    def _look_up(self, pictures: Sequence[str]) -> None:
        scenes = self._store.scenes(pictures, self._model, self._version)
        places = self._store.records(list(scenes), self._model)
        for picture in pictures:
            scene = scenes.get(picture)
            self._scenes[picture] = None if scene is None else _answer(scene, places.get(picture))

    def _arrivals(self, seen: frozenset[str]) -> Floats:
        if self._seen[0] != seen:
            found = self._store.arrivals(sorted(seen), self._model)
            self._seen = (seen, np.array(found, np.float64))
        return self._seen[1]


def first_in_line(arrived: Floats, priority: Floats) -> list[Waiting]:
    """Of pictures that wait, those that matter to figures: each is to be reviewed before all that
    came before it. Args: arrived: rising."""
    before = np.minimum.accumulate(np.r_[np.inf, priority])[:-1]
    return [
        Waiting(priority=float(priority[at]), arrived=float(arrived[at]))
        for at in np.flatnonzero(priority < before)
    ]


def _answer(scene: Scene, place: dict[str, Any] | None) -> Answer:
    groups = {"day": scene.time.date().isoformat()}
    if scene.source:
        groups["camera"] = scene.source
    if scene.category:
        groups["category"] = scene.category
    record = dict(place or {})
    arrived = float(record.pop("arrived", scene.id))
    draw = draws.Draw.from_dict(record) if record else None
    return Answer(draw=draw, arrived=arrived, score=scene.score, verdicts=(), groups=groups)
