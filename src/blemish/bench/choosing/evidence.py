"""What scores of left-out pictures say of candidates: AUROC, AUPRO and false alarms, with
intervals.

All candidates are resampled alike (a paired bootstrap): what makes a draw of pictures easy or hard
for all of them does not count as a difference. Generated defects are drawn with the good picture
that they were put into; labelled defects by themselves. Intervals are of 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from blemish.detector.beta import quantile

DRAWS = 2000
_TAIL = 0.025
Values = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A fraction, and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Pictures by their ids.

    Attributes:
        good: good ones. defective: groups of defective ones that are drawn together.
        paired: whether the k-th group is made of the k-th good picture, and drawn with it.
    """

    good: tuple[str, ...]
    defective: tuple[tuple[str, ...], ...]
    paired: bool = False

    @property
    def defects(self) -> int:
        return sum(map(len, self.defective))

    def known_to(self, tables: Sequence[Mapping[str, float]]) -> Evidence:
        """What of it every candidate has scored."""
        known = set.intersection(*map(set, tables)) if tables else set()
        groups = [tuple(one for one in group if one in known) for group in self.defective]
        if not self.paired:
            good = tuple(one for one in self.good if one in known)
            return Evidence(good=good, defective=tuple(filter(None, groups)))
        pairs = [pair for pair in zip(self.good, groups, strict=True) if pair[0] in known]
        return Evidence(
            good=tuple(one for one, _ in pairs),
            defective=tuple(group for _, group in pairs),
            paired=True,
        )


def aurocs(
    evidence: Evidence, tables: Sequence[Mapping[str, float]], *, draws: int = DRAWS, seed: int = 0
) -> Values | None:
    """The AUROC of every candidate, and in every draw: candidates × (1 + draws), the first column
    of all pictures as they are. None where one of the classes is missing.

    With weights v of good pictures and w of groups, how often each is drawn, the AUROC is
    Σ v_i w_j S_ij / (Σ v_i · Σ w_j n_j): S_ij counts the defects of group j that score above good
    picture i, ties as half, and n_j all of the group.

    Args: tables: of each candidate the score of each picture by id; all have the same ids.
    """
    goods, groups = len(evidence.good), len(evidence.defective)
    if not goods or not evidence.defects:
        return None
    random = np.random.default_rng(seed)
    of_good = _weights(random, draws, goods)
    of_groups = of_good if evidence.paired else _weights(random, draws, groups)
    counts = np.array([len(group) for group in evidence.defective], dtype=np.float64)
    total = of_good.sum(1) * (of_groups @ counts)
    rows = []
    for table in tables:
        good = np.array([table[one] for one in evidence.good])
        above = np.stack(
            [_above(good, np.array([table[one] for one in group])) for group in evidence.defective],
            axis=1,
        )
        won = ((of_good @ above) * of_groups).sum(1)
        # A draw without any defect, of few groups some of which are empty, tells nothing.
        rows.append(np.where(total > 0, won / np.maximum(total, 1), won[0] / total[0]))
    return np.stack(rows)


def aupros(
    evidence: Evidence,
    tables: Sequence[Mapping[str, Mapping[str, float]]],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Values | None:
    """The AUPRO of every candidate, and in every draw of `aurocs` with this seed, as that gives it.
    None where a candidate says nothing of a picture with a defect.

    It is the mean of what every region of a defect adds. Deviates: the false-positive axis, by
    which they were measured, is that of all pictures, and is not drawn again.

    Args: tables: of each candidate by id how many `regions` a picture has, and their mean `overlap`
        (`PixelMetrics.overlaps`); one without a region is not there.
    """
    ids = {one for table in tables for one in table}
    groups = [[one for one in group if one in ids] for group in evidence.defective]
    if not any(groups) or any(one not in table for g in groups for one in g for table in tables):
        return None
    drawn = _weights(np.random.default_rng(seed), draws, len(groups))
    counts = np.array([sum(tables[0][one]["regions"] for one in group) for group in groups])
    total = drawn @ counts
    rows = []
    for table in tables:
        of_each = {one: found["regions"] * found["overlap"] for one, found in table.items()}
        added = drawn @ np.array([sum(of_each[one] for one in group) for group in groups])
        rows.append(np.where(total > 0, added / np.maximum(total, 1), added[0] / total[0]))
    return np.stack(rows)


def _weights(random: np.random.Generator, draws: int, count: int) -> Values:
    """How often each of `count` is drawn, in all as often as there are: (1 + draws) × count, the
    first row once each."""
    drawn = random.multinomial(count, np.full(count, 1 / count), size=draws)
    return np.concatenate([np.ones((1, count)), drawn])


def _above(good: Values, defective: Values) -> Values:
    """Of each good picture how many of the defective ones score above it, ties as half."""
    both = np.sign(defective[None, :] - good[:, None])
    counted: Values = (0.5 * (both + 1)).sum(1)
    return counted


def estimate(row: Values, pictures: int) -> Estimate:
    """The value of a row of `aurocs`, with the percentiles of its draws.

    Where all draws are perfect they say nothing of how sure that is: the lower end is then that of
    a share of which all `pictures` have been met (Clopper and Pearson).
    """
    value = float(row[0])
    low, high = (float(np.quantile(row[1:], tail)) for tail in (_TAIL, 1 - _TAIL))
    if low == high == value == 1.0:
        low = share(pictures, pictures).low
    return Estimate(value, min(low, value), max(high, value))


def difference(one: Values, other: Values) -> Estimate:
    """How far one row of `aurocs` or `aupros` lies above another, over the same draws."""
    apart = one - other
    low, high = (float(np.quantile(apart[1:], tail)) for tail in (_TAIL, 1 - _TAIL))
    return Estimate(float(apart[0]), min(low, float(apart[0])), max(high, float(apart[0])))


def share(count: int, of: int) -> Estimate:
    """A share that was met `count` times of so many, with the interval of Clopper and Pearson
    (1934), which covers at least 95 %.

    Example:
        >>> [round(value, 4) for value in share(0, 20)], round(share(20, 20).low, 4)
        ([0.0, 0.0, 0.1684], 0.8316)
    """
    low = quantile(count, of - count + 1, _TAIL) if count else 0.0
    high = quantile(count + 1, of - count, 1 - _TAIL) if count < of else 1.0
    return Estimate(count / of, low, high)
