"""Many streams of scores at once through the arithmetic of `blemish.monitoring.betting`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from blemish.monitoring import betting

NEVER = np.iinfo(np.int64).max
Against = Literal["usual", "steady", "the calibration set alone"]


def first_alarms(
    n: int,
    steps: int,
    trials: int,
    *,
    seed: int,
    against: Against = "usual",
    alpha: float = 0.05,
    run: float = 1e4,
    tolerance: float = 0.0,
    draw: Callable[[np.random.Generator, int, int], np.ndarray] | None = None,
    stop: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """At which step (from 0, NEVER for none) each of `trials` streams, each with `n` calibration
    scores of its own from a normal distribution, raises its alarm and its first notice.

    Args: draw: (generator, step, trials) to scores; None for those of the calibration. stop: once
        all have raised an alarm.
    """
    random = np.random.default_rng(seed)
    known = np.sort(-random.normal(size=(trials, n)), axis=1)
    edges = np.linspace(0, n + 1, min(n + 1, 64) + 1).round().astype(int)
    cuts, gaps = known[:, edges[1:-1] - 1], np.diff(edges).astype(float)
    counts = np.tile(gaps if against != "steady" else 0 * gaps, (trials, 1))
    state = betting.opening(trials)
    alarms, notices = np.full(trials, NEVER), np.full(trials, NEVER)
    rows = np.arange(trials)
    for step in range(steps):
        scores = random.normal(size=trials) if draw is None else draw(random, step, trials)
        cells = (cuts < -scores[:, None]).sum(1)
        p = betting.urn(counts, cells, random.random(trials), against == "steady")
        if against != "the calibration set alone":
            counts[rows, cells] += 1
        state = betting.bet(*state, betting.stakes(p, tolerance))
        alarms[(betting.capital(state[1]) >= 1 / alpha) & (alarms == NEVER)] = step
        notices[(state[2].mean(-1) >= run) & (notices == NEVER)] = step
        if stop and (alarms != NEVER).all():
            break
    return alarms, notices
