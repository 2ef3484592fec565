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


def reviewed(seed: int, pictures: int, budget: int) -> tuple[Sample, np.ndarray, Pool]:
    """A season: pictures with scores and sizes much as the queue's own, of which `budget` are
    reviewed.

    Returns: the sample, bool N (which pictures are defects), the pool.
    """
    random = np.random.default_rng(seed)
    bad = random.random(pictures) < DEFECTS
    scores = random.normal(size=pictures) + APART * bad

    apart = 2 * (scores - THRESHOLD)
    near = np.exp(np.where(apart > 0, -apart / 4, apart))
    size = 0.2 + 0.8 * near / near.mean()
    by_chance = random.exponential(size=pictures) / 0.2
    other = random.exponential(size=pictures) / (size - 0.2)
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
    return sample(answers, waiting), bad, Pool(scores=scores, sizes=size)
