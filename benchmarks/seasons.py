"""Seasons of reviewing, made up: pictures come, the queue draws them, people label some.

For `monitoring.py` and the tests: what is true is known, so intervals can be counted that hold it.
"""

from __future__ import annotations

import math

import numpy as np

from blemish.monitoring.draws import Draw
from blemish.monitoring.estimates import RATES, Answer, Pool, Sample, Waiting, sample

THRESHOLD = 2.0
DEFECTS, APART = 0.06, 2.5  # their share, and how much higher they score


def normal_tail(x: float) -> float:
    return 0.5 * math.erfc(x / math.sqrt(2))


def truth(threshold: float) -> dict[str, float]:
    alarm, miss = normal_tail(threshold), 1 - normal_tail(threshold - APART)
    found = DEFECTS * (1 - miss)
    precision = found / (found + (1 - DEFECTS) * alarm)
    return dict(zip(RATES, (alarm, miss, precision, DEFECTS), strict=True))


def reviewed(
    seed: int, pictures: int, budget: int, turns: bool = False
) -> tuple[Sample, np.ndarray, Pool]:
    """A season: pictures with scores and sizes much as the queue's own, of which `budget` are
    reviewed. With `turns` in two sittings, between which a version is promoted whose threshold, and
    with it all sizes, follows what the first sitting found.

    Returns: the sample, bool N (which pictures are defects), the pool.
    """
    random = np.random.default_rng(seed)
    bad = random.random(pictures) < DEFECTS
    scores = random.normal(size=pictures) + APART * bad

    def sizes(at: float) -> np.ndarray:
        apart = 2 * (scores - at)
        near = np.exp(np.where(apart > 0, -apart / 4, apart))
        return 0.2 + 0.8 * near / near.mean()

    size = sizes(THRESHOLD)
    by_chance = random.exponential(size=pictures) / 0.2
    other = random.exponential(size=pictures) / (size - 0.2)
    start, turn, began = np.zeros(pictures), np.zeros(pictures, int), []
    if turns:
        first = np.argsort(np.minimum(by_chance, other))
        clock = float(np.minimum(by_chance, other)[first[budget // 2]])
        begun = np.minimum(by_chance, other) >= clock
        found = scores[first[: budget // 2]][bad[first[: budget // 2]]]
        size = np.where(begun, sizes(float(found.mean()) if len(found) else 1.0), size)
        again = clock + random.exponential(size=pictures) / (size - 0.2)
        other = np.where(begun, again, other)
        start, turn, began = np.where(begun, clock, 0.0), begun.astype(int), [clock]
    priority = np.minimum(by_chance, other)
    order = np.argsort(priority)
    answers = [
        Answer(
            draw=Draw(
                picture=str(at),
                stratum="threshold",
                priority=float(priority[at]),
                size=float(size[at]),
                share=0.2,
                random=float(by_chance[at]),
                start=float(start[at]),
                turn=int(turn[at]),
            ),
            arrived=float(at),
            score=float(scores[at]),
            verdicts=("defect" if bad[at] else "good",),
        )
        for at in order[:budget]
    ]
    waiting = [
        Waiting(priority=float(priority[at]), arrived=float(at))
        for at in order[budget : budget + 1]
    ]
    return sample(answers, waiting, began), bad, Pool(scores=scores, sizes=size)
