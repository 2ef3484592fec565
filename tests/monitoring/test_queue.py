"""The review queue: what comes early, and that it is the same after a restart."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from blemish.errors import ConfigError, NonFiniteError
from blemish.monitoring.draws import Draw
from blemish.monitoring.queue import Candidate, Opinion, Queue, outline

USUAL = {"threshold": [0.25, 10], "disagreement": [0.1, 10]}


def candidate(
    name: object,
    score: float,
    threshold: float | None = 2.0,
    other: float | None = None,
    descriptor: tuple[float, ...] | None = None,
) -> Candidate:
    opinions = [Opinion(version="2", score=score, threshold=threshold)]
    if other is not None:
        opinions.append(Opinion(version="1", score=other, threshold=threshold))
    return Candidate(picture=str(name), opinions=tuple(opinions), descriptor=descriptor)


def scores(count: int, seed: int = 0) -> list[float]:
    return [float(each) for each in np.random.default_rng(seed).normal(size=count)]


def test_near_the_threshold_comes_early() -> None:
    queue = Queue(seed=1)
    found = [(score, queue.place(candidate(at, score))) for at, score in enumerate(scores(1500))]
    near = [draw.size for score, draw in found[500:] if score > 1.5]
    far = [draw.size for score, draw in found[500:] if score < 0]
    assert np.mean(near) > 5 * np.mean(far)
    assert min(draw.size for _, draw in found) >= 0.2
    # On average a picture's size is one, so the random share is what it is called.
    assert abs(np.mean([draw.size for _, draw in found[200:]]) - 1) < 0.1
    first = sorted((draw for _, draw in found), key=lambda draw: draw.priority)[:100]
    assert 0.08 < np.mean([draw.stratum == "random" for draw in first]) < 0.32


def test_scores_have_no_unit() -> None:
    plain, scaled = Queue(seed=1), Queue(seed=1)
    for at, score in enumerate(scores(300)):
        one = plain.place(candidate(at, score))
        other = scaled.place(candidate(at, math.exp(score), math.exp(2.0)))
        assert one == other


def test_versions_that_disagree() -> None:
    queue = Queue(seed=1)
    for at, score in enumerate(scores(400)):
        queue.place(candidate(at, score, other=score + 0.1))
    same = queue.place(candidate("same", 1.0, other=1.0))
    split = queue.place(candidate("split", 1.0, other=2.5))
    assert split.size > 2 * same.size


def test_unlike_what_was_seen() -> None:
    queue = Queue(seed=1, shares={"unseen": 1})
    random = np.random.default_rng(0)
    for at in range(400):
        queue.place(candidate(at, 0.0, descriptor=tuple(100 * random.normal(size=4))))
    usual = queue.place(candidate("usual", 0.0, descriptor=(0.0, 0.0, 0.0, 0.0)))
    strange = queue.place(candidate("strange", 0.0, descriptor=(900.0, 0.0, 0.0, 0.0)))
    assert strange.size > 4 * usual.size
    with pytest.raises(ConfigError, match="give those of another backbone another space"):
        queue.place(candidate("short", 0.0, descriptor=(1.0,)))


def test_a_region_stays_unseen_until_somebody_looks() -> None:
    queue = Queue(seed=1, shares={"unseen": 1})
    random = np.random.default_rng(0)

    def at(*middle: float) -> tuple[float, ...]:
        return tuple(np.asarray(middle) + random.normal(size=2))

    for number in range(300):
        queue.place(candidate(number, 0.0, descriptor=at(0, 0)))
    new = [queue.place(candidate(f"new {at_}", 0.0, descriptor=at(40, 0))) for at_ in range(3)]
    usual = queue.place(candidate("usual", 0.0, descriptor=(0.1, 0.0)))
    assert min(one.size for one in new) > 10 * usual.size  # the third as well as the first
    other = at(0, 40)
    queue.cover((40.0, 0.0))
    queue.cover((40.0, 0.0))  # the same again is no news
    known = queue.place(candidate("known", 0.0, descriptor=(40.3, 0.2)))
    assert known.size < min(one.size for one in new) / 5
    assert queue.place(candidate("other", 0.0, descriptor=other)).size > 5 * known.size
    assert len(queue.to_dict()["spaces"][""]["reviewed"]) == 1
    # Alarms are no reference of what is good, however early they come.
    fresh = Queue(seed=1, shares={"unseen": 1})
    for number in range(60):
        defect = number % 10 == 9
        where = (40.0, 0.0) if defect else at(0, 0)
        last = fresh.place(candidate(number, 9.0 if defect else 0.0, descriptor=where))
    assert last.size > 4


def test_spaces_are_kept_apart() -> None:
    queue = Queue(seed=1, shares={"unseen": 1})
    for at in range(40):
        for space in "ab":
            one = candidate(f"{space} {at}", 0.0, descriptor=(float(at % 3), 1.0))
            if space == "b":
                one = dataclasses.replace(one, descriptor=(9.0,), space="b")
            queue.place(one)
    state = queue.to_dict()["spaces"]
    assert {name: len(one["reference"][0]) for name, one in state.items()} == {"": 2, "b": 1}
    for name in "cdef":
        queue.cover((1.0, 2.0, 3.0), name)
    assert list(queue.to_dict()["spaces"]) == ["c", "d", "e", "f"]  # those used last
    # The state of a queue that knew of no spaces.
    before = {**Queue(seed=1).to_dict(), "known": [], "usual": {**USUAL, "unseen": [1.0, 10]}}
    del before["spaces"]
    assert Queue.from_dict(before).to_dict() == Queue(seed=1).to_dict()


def test_regions_in_place_of_a_descriptor() -> None:
    scratch = {"box": [10, 40, 40, 4], "share": 0.01}
    spot = {"box": [80, 80, 6, 6], "share": 0.003}
    size = (100, 100)
    assert outline([], size) == (0,) * 6
    assert outline([scratch, spot], size) == outline([spot, scratch], size)
    queue = Queue(seed=1, shares={"unseen": 1})
    random = np.random.default_rng(0)
    for at in range(300):
        moved = {**scratch, "box": [10 + int(random.integers(5)), 40, 40, 4]}
        seen = outline([moved] if at % 2 else [], size)
        queue.place(candidate(at, 0.0, descriptor=seen))
    usual = queue.place(candidate("scratch", 0.0, descriptor=outline([scratch], size)))
    strange = queue.place(candidate("spots", 0.0, descriptor=outline([spot] * 9, size)))
    assert strange.size > 4 * usual.size
    with pytest.raises(ConfigError, match="regions without a box"):
        outline([{"share": 1.0}], size)


def test_the_same_after_a_restart() -> None:
    queue, given = Queue(seed="s"), scores(60)
    halfway: list[Draw] = []
    kept = Queue(seed="s")
    for at, score in enumerate(given):
        draw = queue.place(candidate(at, score, other=score / 2, descriptor=(score, 1.0)))
        kept = Queue.from_dict(json.loads(json.dumps(kept.to_dict())))
        halfway.append(kept.place(candidate(at, score, other=score / 2, descriptor=(score, 1.0))))
        assert halfway[-1] == draw
    assert kept.place(candidate(59, given[-1])) == halfway[-1]  # a copy gets the same place
    assert Queue(seed="t").place(candidate(0, given[0])).priority != halfway[0].priority


def test_old_scores_are_forgotten() -> None:
    queue = Queue(seed=1)
    for at, score in enumerate(scores(1300)):
        queue.place(candidate(at, score))
    state = queue.to_dict()
    assert len(state["recent"]["2"]) == 1000
    assert queue._ordered["2"] == sorted(queue._recent["2"])
    assert len(json.dumps(state)) < 1e6


def test_a_state_that_was_written_when_there_were_turns() -> None:
    queue = Queue(seed=1)
    for at, score in enumerate(scores(20)):
        queue.place(candidate(at, score))
    state = json.loads(json.dumps(queue.to_dict()))
    placed = [{**one, "start": 0.0, "turn": 0} for one in state["placed"]]
    before = Queue.from_dict({**state, "turns": [], "placed": placed})
    assert before.to_dict() == state
    for name in (3, "new"):
        assert before.place(candidate(name, 1.0)) == queue.place(candidate(name, 1.0))


def test_without_a_threshold() -> None:
    queue = Queue(seed=1)
    draws = [queue.place(candidate(at, score, None)) for at, score in enumerate(scores(300))]
    high = queue.place(candidate("high", 2.0, None))
    assert high.size > np.mean([draw.size for draw in draws])


def test_what_cannot_be() -> None:
    for wrong in ({"random": 0.0}, {"shares": {"other": 1.0}}, {"shares": {"threshold": 0.0}}):
        with pytest.raises(ConfigError):
            Queue(seed=1, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be negative"):
        Queue(seed=1, shares={"threshold": 2.0, "unseen": -1.0})
    with pytest.raises(NonFiniteError, match="picture x"):
        candidate("x", math.nan)
    with pytest.raises(ConfigError, match="no version has scored it"):
        Candidate(picture="x", opinions=())
    with pytest.raises(ConfigError, match="not the state of a review queue"):
        Queue.from_dict({"seed": 1})
