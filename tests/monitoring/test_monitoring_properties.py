"""What holds for any scores, labels, weights and streams."""

from __future__ import annotations

import json
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.monitoring.comparing import compare
from blemish.monitoring.draws import Draw, race, weights
from blemish.monitoring.drift import Monitor, Reference
from blemish.monitoring.estimates import Answer, Waiting, curve, figures, sample
from blemish.monitoring.queue import Candidate, Opinion, Queue
from blemish.serve.population import first_in_line

SCORES = st.floats(-1e30, 1e30) | st.integers(-3, 3).map(float)
THRESHOLDS = st.none() | SCORES
quick = settings(max_examples=30, deadline=None, derandomize=True)


@st.composite
def reviews(draw: st.DrawFn) -> tuple[list[Answer], list[Waiting]]:
    verdict = st.lists(st.sampled_from(["good", "defect", "unsure"]), min_size=1, max_size=3)
    count = draw(st.integers(0, 12))
    rows = []
    for at in range(count):
        sizes = {"random": 0.2, "threshold": draw(st.floats(0, 40))}
        rows.append(race(str(at), sizes, seed=draw(st.integers(0, 5))))
    answers = [
        Answer(
            draw=row if draw(st.booleans()) or draw(st.booleans()) else None,
            arrived=float(at),
            score=draw(SCORES),
            verdicts=tuple(draw(verdict)),
            groups={"camera": draw(st.sampled_from(["a", "b"]))},
        )
        for at, row in enumerate(rows)
    ]
    waits = st.builds(Waiting, priority=st.floats(1e-9, 30), arrived=st.floats(-1, 20))
    return answers, draw(st.lists(waits, max_size=4))


@quick
@given(reviews(), SCORES, st.floats(0.5, 0.999))
def test_intervals_are_intervals(
    given_: tuple[list[Answer], list[Waiting]], threshold: float, level: float
) -> None:
    answers, waiting = given_
    found = sample(answers, waiting)
    assert len(found.scores) + sum(found.left_out.values()) == len(answers)
    assert (found.counts >= 1).all()
    assert (found.counts <= found.largest * (1 + 1e-9)).all()
    for one in figures(found, threshold, level=level).values():
        assert 0 <= one.low <= one.high <= 1
        if one.value is not None:
            assert one.low <= one.value <= one.high
            assert one.unsure is None or (
                one.unsure[0] - 1e-12 <= one.value <= one.unsure[1] + 1e-12
            )
        json.dumps(one.to_dict(), allow_nan=False)
    json.dumps(curve(found, level=level).to_dict(), allow_nan=False)


@quick
@given(
    st.floats(0.05, 1),
    st.floats(0, 30),
    st.integers(0, 10**6),
    st.floats(1e-6, 1e3),
)
def test_weights_are_within_their_bounds(
    share: float, more: float, seed: int, clock: float
) -> None:
    draw = race("a", {"random": share, "unseen": more}, seed=seed)
    assert 1 <= weights(draw.size, clock) <= weights(share, clock) * (1 + 1e-9)
    assert 0 <= draw.probability <= 1
    assert Draw.from_dict(draw.to_dict()) == draw


@quick
@given(st.lists(st.tuples(SCORES, THRESHOLDS, st.none() | SCORES), min_size=1, max_size=15))
def test_any_scores_can_be_queued(rows: list[tuple[float, float | None, float | None]]) -> None:
    queue = Queue(seed=0)
    for at, (score, threshold, other) in enumerate(rows):
        opinions = [Opinion(version="2", score=score, threshold=threshold)]
        if other is not None:
            opinions.append(Opinion(version="1", score=other, threshold=threshold))
        place = (score, 0.0) if at % 2 else None
        candidate = Candidate(picture=str(at), opinions=tuple(opinions), descriptor=place)
        queue = Queue.from_dict(json.loads(json.dumps(queue.to_dict(), allow_nan=False)))
        draw = queue.place(candidate)
        assert 0.2 <= draw.size < 20
        assert 0 < draw.priority <= draw.random < math.inf


@quick
@given(
    st.lists(SCORES, min_size=1, max_size=30),
    THRESHOLDS,
    st.lists(SCORES, min_size=1, max_size=40),
)
def test_any_stream_can_be_watched(
    known: list[float], threshold: float | None, stream: list[float]
) -> None:
    reference = Reference.of(known, threshold, seed="s")
    assert sum(reference.gaps) == len(known) + 1
    assert min(reference.gaps) >= 1
    cells = [reference.cell(score, "k") for score in sorted(stream)]
    assert cells == sorted(cells, reverse=True)
    monitor = Monitor(reference, seed="s", run=100)
    for at, score in enumerate(stream):
        monitor.add(reference.cell(score, str(at)), str(at))
    again = Monitor.from_dict(json.loads(json.dumps(monitor.to_dict(), allow_nan=False)), reference)
    assert again.to_dict() == monitor.to_dict()
    assert all(0 < each < math.inf for each in monitor.evidence().values())
    assert monitor.words()


@quick
@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=20), st.integers(0, 99))
def test_any_numbers_can_be_compared(values: list[float], seed: int) -> None:
    half = len(values) // 2
    found = compare(values[:half], values[half:], permutations=19, seed=seed)
    assert 0 < found.p_value <= 1
    assert found.distance >= 0
    assert np.isfinite(found.distance)


@quick
@given(reviews())
def test_the_moment_is_the_one_with_which_most_count(
    given_: tuple[list[Answer], list[Waiting]],
) -> None:
    """Against a look at every picture that waits, each as the next in line."""
    answers, waiting = given_
    found = sample(answers, waiting)
    placed = [(one.draw.priority, one.arrived) for one in answers if one.draw is not None]
    best, clock = (-1, 0.0, math.inf), math.inf
    line = sorted(waiting, key=lambda one: (one.arrived, one.priority))
    for until, following in [*((one.arrived, one.priority) for one in line), (math.inf, 0.0)]:
        count = sum(priority < clock and arrived < until for priority, arrived in placed)
        if count >= best[0]:
            best = (count, clock, until)
        clock = min(clock, following)
    assert len(found.scores) == best[0]
    if best[0]:
        assert (found.clock, found.until or math.inf) == best[1:]


@quick
@given(reviews())
def test_few_of_those_that_wait_matter(
    given_: tuple[list[Answer], list[Waiting]],
) -> None:
    answers, waiting = given_
    line = sorted(waiting, key=lambda one: (one.arrived, one.priority))
    arrived, priority = (
        np.array([getattr(one, name) for one in line]) for name in ("arrived", "priority")
    )
    few = first_in_line(arrived, priority)
    assert len(few) <= len(waiting)
    found, wanted = sample(answers, few), sample(answers, waiting)
    assert found.left_out == wanted.left_out
    np.testing.assert_array_equal(found.counts, wanted.counts)
