"""The estimates: right on average, and intervals that hold, on queues that look closely."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from seasons import APART, DEFECTS, THRESHOLD, reviewed, truth

from blemish.detector.beta import quantile
from blemish.errors import ConfigError
from blemish.monitoring.draws import Draw
from blemish.monitoring.estimates import (
    RATES,
    Answer,
    Pool,
    Sample,
    Waiting,
    by_group,
    consensus,
    curve,
    figures,
    sample,
)
from blemish.monitoring.queue import Candidate, Opinion, Queue


def covered(
    make: Callable[[int], tuple[Sample, Pool | None]], times: int, level: float
) -> dict[str, tuple[float, float]]:
    """Of each rate: how often the interval holds the truth, and the mean of the values."""
    hits = {name: 0 for name in RATES}
    values: dict[str, list[float]] = {name: [] for name in RATES}
    right = truth(THRESHOLD)
    for seed in range(times):
        found, pool = make(seed)
        for name, one in figures(found, THRESHOLD, level=level, pool=pool).items():
            if name in RATES:
                hits[name] += one.low <= right[name] <= one.high
                if one.value is not None:
                    values[name].append(one.value)
    return {name: (hits[name] / times, float(np.mean(values[name]))) for name in RATES}


def enough(times: int, level: float) -> float:
    """Coverage below which a true level would fall once in a thousand trials of the test."""
    return level - 3.1 * math.sqrt(level * (1 - level) / times)


@pytest.mark.parametrize(("pictures", "budget"), [(300, 30), (1000, 150)])
def test_intervals_hold(pictures: int, budget: int) -> None:
    def make(seed: int) -> tuple[Sample, Pool | None]:
        found, _, pool = reviewed(seed, pictures, budget)
        return found, pool

    found = covered(make, 60, 0.9)
    assert all(hit >= enough(60, 0.9) for hit, _ in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize("with_pool", [True, False])
@pytest.mark.parametrize(("pictures", "budget"), [(200, 20), (500, 60), (3000, 300), (3000, 1000)])
def test_intervals_hold_in_many_seasons(
    pictures: int, budget: int, with_pool: bool, level: float
) -> None:
    def make(seed: int) -> tuple[Sample, Pool | None]:
        found, _, pool = reviewed(seed + 1000, pictures, budget)
        return found, pool if with_pool else None

    found = covered(make, 600, level)
    print(pictures, budget, with_pool, level, found)
    assert all(hit >= enough(600, level) for hit, _ in found.values()), found


def test_uncorrected_figures_are_wrong() -> None:
    """The same labels, each counted once: that the correction does something."""
    right = truth(THRESHOLD)["false_alarm_rate"]
    plain, corrected, narrower = [], [], []
    for seed in range(12):
        found, _, pool = reviewed(seed, 1000, 150)
        flat = Sample(**{**found.__dict__, "counts": np.ones(len(found.scores)), "largest": 1.0})
        plain.append(figures(flat, THRESHOLD)["false_alarm_rate"])
        corrected.append(figures(found, THRESHOLD, pool=pool)["false_alarm_rate"])
        narrower.append(figures(found.random_share(), THRESHOLD)["false_alarm_rate"])
    assert np.mean([one.value for one in plain]) > 4 * right
    assert abs(np.mean([one.value for one in corrected]) - right) < 0.15 * right
    assert not any(one.low <= right <= one.high for one in plain)
    width = [np.mean([one.high - one.low for one in each]) for each in (corrected, narrower)]
    assert width[0] < width[1] / 3  # than the random share alone


def season(seed: int, pictures: int) -> tuple[Sample, Pool]:
    """The queue itself: pictures come while two people review, some labels are undone, and in the
    middle a version is promoted whose threshold follows what was found: the places of pictures that
    came before stay as they are."""
    random = np.random.default_rng(seed)
    bad = random.random(pictures) < DEFECTS
    scores = random.normal(size=pictures) + APART * bad
    other = scores + random.normal(size=pictures) / 2
    queue, version, threshold = Queue(seed=seed), "1", THRESHOLD
    draws: list[Draw] = []
    open_ones: list[int] = []
    answered: list[int] = []

    def candidate(at: int) -> Candidate:
        first = Opinion(version="1", score=float(scores[at]), threshold=THRESHOLD)
        if version == "1":
            return Candidate(picture=str(at), opinions=(first,))
        second = Opinion(version="2", score=float(other[at]), threshold=threshold)
        return Candidate(picture=str(at), opinions=(second, first))

    for at in range(pictures):
        draws.append(queue.place(candidate(at)))
        open_ones.append(at)
        if at == pictures // 2:
            found = [scores[one] for one in answered if bad[one]]
            version, threshold = "2", float(np.mean(found)) - 1 if found else 1.5
        if at % 5 == 4:
            for _ in range(2):  # each takes the next that the other has not
                following = min(open_ones, key=lambda one: draws[one].priority)
                open_ones.remove(following)
                answered.append(following)
            if random.random() < 0.1:
                open_ones.append(answered.pop(int(random.integers(len(answered)))))
    answers = [
        Answer(
            draw=draws[one],
            arrived=float(one),
            score=float(scores[one]),
            verdicts=("defect" if bad[one] else "good",),
        )
        for one in answered
    ]
    waiting = [Waiting(priority=draws[one].priority, arrived=float(one)) for one in open_ones]
    sizes = np.array([one.size for one in draws])
    return sample(answers, waiting), Pool(scores=scores, sizes=sizes)


def test_intervals_hold_with_the_queue_itself() -> None:
    found = covered(lambda seed: season(seed, 150), 25, 0.9)
    assert all(hit >= enough(25, 0.9) for hit, _ in found.values()), found


@pytest.mark.slow
def test_the_queue_itself_is_right_on_average() -> None:
    found = covered(lambda seed: season(seed + 500, 600), 300, 0.9)
    print(found)
    assert all(hit >= enough(300, 0.9) for hit, _ in found.values()), found
    right = truth(THRESHOLD)
    for name in ("false_alarm_rate", "defect_share"):
        assert abs(found[name][1] - right[name]) < 0.1 * right[name]


def simple(truths: list[int], scores: list[float], **change: object) -> Sample:
    count = len(scores)
    values = {
        "scores": np.array(scores),
        "truths": np.array(truths),
        "counts": np.ones(count),
        "by_chance": np.ones(count, bool),
        "groups": ({},) * count,
        "clock": math.inf,
        "largest": 1.0,
        "until": None,
        "left_out": {},
        "disagreements": 0,
    }
    return Sample(**{**values, **change})  # type: ignore[arg-type]


def test_equal_weights_are_clopper_pearson() -> None:
    for weight in (1.0, 7.5):
        whole = simple(
            [0] * 30 + [1] * 5,
            [3.0] * 3 + [1.0] * 27 + [3.0] * 5,
            counts=np.full(35, weight),
            largest=weight,
        )
        found = figures(whole, 2.0)
        alarm, miss = found["false_alarm_rate"], found["miss_rate"]
        assert alarm.value == pytest.approx(0.1)
        assert alarm.low == pytest.approx(quantile(3, 28, 0.025), rel=1e-8)
        assert alarm.high == pytest.approx(quantile(4, 27, 0.975), rel=1e-8)
        assert (miss.value, miss.low) == (0, 0)
        assert miss.high == pytest.approx(1 - 0.025 ** (1 / 5), rel=1e-8)
        assert found["precision"].value == pytest.approx(5 / 8)
        assert "too few: 5 defects reviewed" in miss.few
        assert alarm.few == ""


def test_nothing_reviewed() -> None:
    found = figures(sample([], []), 1.0)
    for name in RATES:
        assert (found[name].value, found[name].low, found[name].high) == (None, 0, 1)
        assert found[name].few
    assert found["unsure_share"].value is None
    assert curve(sample([], [])).thresholds.size == 0


def test_the_curve_is_the_figures_at_every_threshold() -> None:
    found, _, pool = reviewed(4, 800, 120)
    line = curve(found, pool=pool)
    for at in range(0, len(line.thresholds), 17):
        one = figures(found, float(line.thresholds[at]), pool=pool)
        for name in RATES:
            value = one[name].value
            assert value is None or line.values[name][at] == pytest.approx(value)
            assert line.low[name][at] == pytest.approx(one[name].low)
            assert line.high[name][at] == pytest.approx(one[name].high)
    more = curve(found, also=[0.123, 9.0], pool=pool)
    assert set(more.thresholds) == {*line.thresholds, 0.123, 9.0}
    assert (np.diff(line.values["false_alarm_rate"]) <= 1e-12).all()
    assert (np.diff(line.values["miss_rate"]) >= -1e-12).all()
    assert np.ptp(line.values["defect_share"]) < 1e-12
    for name in RATES:
        known = ~np.isnan(line.values[name])
        assert (line.low[name][known] <= line.values[name][known]).all()
        assert (line.values[name][known] <= line.high[name][known]).all()
    said = json.loads(json.dumps(line.to_dict(), allow_nan=False))
    assert len(said["precision"]["value"]) == len(said["thresholds"]) <= 200
    with pytest.raises(ConfigError, match="level of an interval"):
        curve(found, level=95)
    with pytest.raises(ConfigError, match="threshold is not finite"):
        figures(found, math.nan)


def place(count: int, seed: int = 1) -> list[tuple[Draw, float]]:
    queue = Queue(seed=seed)
    scores = np.random.default_rng(seed).normal(size=count)
    found = []
    for at, score in enumerate(scores.tolist()):
        opinion = Opinion(version="1", score=score, threshold=THRESHOLD)
        found.append((queue.place(Candidate(picture=str(at), opinions=(opinion,))), score))
    return found


def test_all_reviewed_is_a_count() -> None:
    placed = place(40)
    answers = [
        Answer(draw=draw, arrived=at, score=score, verdicts=("good",))
        for at, (draw, score) in enumerate(placed)
    ]
    found = sample(answers, [])
    assert found.counts.tolist() == [1] * 40
    share = np.mean([score > 1 for _, score in placed])
    assert figures(found, 1.0)["false_alarm_rate"].value == pytest.approx(share)


def test_pictures_that_just_came_undone_labels_and_side_doors() -> None:
    placed = sorted(enumerate(place(200)), key=lambda one: one[1][0].priority)
    answers = [
        Answer(draw=draw, arrived=at, score=score, verdicts=("good",))
        for at, (draw, score) in placed[:50]
    ]
    next_in_line = Waiting(priority=placed[50][1][0].priority, arrived=placed[50][0])
    whole = sample(answers, [next_in_line])
    assert (len(whole.scores), whole.until) == (50, None)
    # A picture that has just come and is first in line: it and what comes after it wait.
    fresh = Waiting(priority=1e-6, arrived=1000.0)
    assert sample(answers, [next_in_line, fresh]).until == 1000.0
    assert sample(answers, [next_in_line, fresh]).counts.tolist() == whole.counts.tolist()
    # An undone label: its place holds up all behind it, until somebody answers again.
    undone, rest = answers[20], [*answers[:20], *answers[21:]]
    assert undone.draw is not None
    held = sample(rest, [next_in_line, Waiting(priority=undone.draw.priority, arrived=-1.0)])
    assert len(held.scores) == 20
    assert held.left_out["early"] == 29
    # A picture that was looked at out of order, and one that never was in the queue.
    at, (draw, score) = placed[120]
    side = Answer(draw=draw, arrived=at, score=score, verdicts=("defect",))
    bare = Answer(draw=None, arrived=5, score=9.0, verdicts=("defect",))
    beside = sample([*answers, side, bare], [next_in_line])
    assert beside.truths.tolist() == whole.truths.tolist()
    assert beside.left_out == {"unplaced": 1, "early": 1, "late": 0}


def test_consensus() -> None:
    assert consensus(["unsure"]) == consensus([]) == consensus(["good", "defect"]) == -1
    assert consensus(["good", "defect", "defect", "unsure"]) == 1
    with pytest.raises(ConfigError, match="verdicts are good, defect, unsure"):
        consensus(["bad"])


def test_unsure_pictures_are_told_and_bounded() -> None:
    found = figures(simple([0, 0, 0, 1, -1, -1], [3.0, 1, 1, 3, 3, 1]), 2.0)
    alarm, miss = found["false_alarm_rate"], found["miss_rate"]
    assert (alarm.reviewed, alarm.events) == (3, 1)
    assert alarm.value == pytest.approx(1 / 3)
    assert alarm.unsure == (pytest.approx(1 / 4), pytest.approx(1 / 2))
    assert miss.unsure == (0, pytest.approx(1 / 2))
    assert found["unsure_share"].value == pytest.approx(1 / 3)
    split = Answer(draw=place(1)[0][0], arrived=0, score=1.0, verdicts=("good", "defect"))
    assert sample([split], []).disagreements == 1


def test_by_group() -> None:
    groups = ({"camera": "left"},) * 12 + ({"camera": "right"},) * 2 + ({},)
    whole = simple([0] * 15, [3.0] + [1.0] * 14, groups=groups)
    found = by_group(whole, "camera", 2.0)
    assert list(found) == ["left", "right"]
    assert found["left"]["false_alarm_rate"].value == pytest.approx(1 / 12)
    assert found["left"]["false_alarm_rate"].few == ""
    assert "2 good pictures reviewed" in found["right"]["false_alarm_rate"].few
    assert found["right"]["false_alarm_rate"].high > 0.8
