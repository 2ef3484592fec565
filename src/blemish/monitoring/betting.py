"""Bets against p-values being evenly spread: the arithmetic of `drift`.

A test martingale (Vovk, Nouretdinov & Gammerman 2003; Shafer & Vovk 2019): somebody begins with a
capital of 1 and bets on each p-value before it is seen, at odds that are fair if it is uniform on
(0, 1) whatever came before. If so, the capital ever reaches 1/α with probability at most α (Ville
1939). Here the capital is divided among experts, each of which always makes the same bet on one
kind of change, and in every step a small share of everybody's capital is divided evenly again (the
simple jumper of Vovk et al. 2021, "Retrain or not retrain: conformal test martingales for
change-point detection"; fixed share, Herbster & Warmuth 1998), so that a change is noticed whenever
it comes. Several such shares run side by side, for changes at several paces.

A second number starts anew all the time: the sum over all moments at which an expert might have
begun (Shiryaev 1963, Roberts 1966). Its expected value after t steps is at most t, so until it
reaches A there pass at least A steps on average, if nothing has changed (Shin, Ramdas & Rinaldo
2024, "E-detectors").

All functions take any leading shape, so that simulations run many trials at once with the very
arithmetic that counts.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# What each expert expects: "higher" scores (low p-values), and so on.
EXPERTS = ("none", "higher", "higher", "higher", "lower", "lower", "lower", "wider", "narrower")
JUMPS = np.array([1e-2, 1e-3, 1e-4, 1e-5])  # the shares that are divided again in a step
_CAP = 5.0  # of the bets on very low or very high p-values, before what it cuts off is given back
_CUT = 1 - 1 / (4 * _CAP)  # the mean of min(1 / (2 sqrt p), cap)
# Each expert's payment as a sum of 1, 1 - 2p, 6p² - 6p + 1 and the two capped powers.
_PARTS = np.zeros((5, len(EXPERTS)))
_PARTS[0] = (1, 1, 1, 0, 1, 1, 0, 1, 1)
_PARTS[1] = (0, 0.5, 0.95, 0, -0.5, -0.95, 0, 0, 0)
_PARTS[2, 7:] = (0.8, -0.8)
_PARTS[3, 3] = _PARTS[4, 6] = 1 / _CUT
_RANGES = np.array([0, 1, 1.9, (_CAP - 0.5) / _CUT, 1, 1.9, (_CAP - 0.5) / _CUT, 1.2, 1.2])
_SLOPES = np.array([0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9])
_LARGEST = 1e200


def stakes(p: Floats | float, tolerance: float = 0.0) -> Floats:
    """What each expert's capital is multiplied by, ...×X; at most 1 on average for uniform p.

    Args:
        p: ... p-values, in (0, 1].
        tolerance: in [0, 1): nothing is earned on average as long as the p-values' distribution,
            given what came before, differs from the uniform one by at most this share of the
            pictures (in total variation): every payment is divided by 1 + tolerance × its range,
            as a share of pictures that may do as it likes earns at most that.
    """
    p = np.asarray(p, np.float64)
    found = np.empty((*p.shape, 5))
    found[..., 0] = 1
    found[..., 1] = 1 - 2 * p
    found[..., 2] = 1 - 6 * p * (1 - p)
    found[..., 3] = 0.5 / np.sqrt(np.maximum(p, 0.25 / _CAP**2))
    found[..., 4] = 0.5 / np.sqrt(np.maximum(1 - p, 0.25 / _CAP**2))
    return np.asarray(found @ _table(tolerance))


@cache
def _table(tolerance: float) -> Floats:
    return np.asarray(_PARTS / (1 + tolerance * _RANGES))


def opening(*shape: int) -> tuple[Floats, Floats, Floats]:
    """The capital before the first bet: shares ...×J×X that sum to 1 over X, the logarithm of what
    they are shares of ...×J, and the sums of Shiryaev and Roberts ...×X."""
    count = len(EXPERTS)
    shares = np.full((*shape, len(JUMPS), count), 1 / count)
    return shares, np.zeros((*shape, len(JUMPS))), np.zeros((*shape, count))


def bet(
    shares: Floats, logs: Floats, sums: Floats, payments: Floats
) -> tuple[Floats, Floats, Floats]:
    """All three after one step. Args: payments: ...×X, from `stakes`."""
    shares = shares * payments[..., None, :]
    total = shares.sum(-1)
    shares = shares * ((1 - JUMPS) / total)[..., None] + JUMPS[:, None] / len(EXPERTS)
    return shares, logs + np.log(total), np.minimum((1 + sums) * payments, _LARGEST)


def capital(logs: Floats) -> Floats:
    """The whole capital, of 1 at the opening: ...; the mean over the paces."""
    return np.asarray(np.exp(np.minimum(logs, 460)).mean(-1))


def share_stakes(event: NDArray[np.bool_] | bool, most: float) -> Floats:
    """Bets that an event comes more often than in a share `most` of the pictures, ...×X: fair or
    worse if it does not, whatever came before. The first expert does not bet."""
    slopes = _SLOPES / max(most, 1 - most)
    return np.asarray(1 + slopes * (np.asarray(event, np.float64)[..., None] - most))


def urn(
    counts: Floats, cells: NDArray[np.int64], u: Floats | float, itself: bool = False
) -> Floats:
    """p-values of pictures that fell into cells, given how many fell there before: ...

    Args:
        counts: ...×K, before this picture; cell 0 has the highest scores.
        cells: ..., from 0 to K - 1.
        u: ... in (0, 1): where within the cell.
        itself: whether the picture counts in its own cell: where counts are of pictures alone.
    """
    own = np.take_along_axis(counts, np.asarray(cells)[..., None], -1)[..., 0]
    before = np.cumsum(counts, -1)
    above = np.take_along_axis(before, np.asarray(cells)[..., None], -1)[..., 0] - own
    return np.asarray((above + u * (own + itself)) / (before[..., -1] + itself))
