"""What reviewed pictures say of the verdicts: false alarms, misses, precision, share of defects.

Reviewed pictures are no fair sample: the queue showed what teaches most. Every picture had a known
chance of being shown (`draws`), so each reviewed one counts for 1 / chance pictures (Horvitz &
Thompson 1952), and a rate is the ratio of two such counts (Hájek 1971): of the weight A of the
events among the weight A + B of the pictures that they may happen to.

Intervals. A and B are sums of weights of pictures that come independently of each other, so each is
a weighted sum of Poisson counts, for which Fay & Feuer 1997 ("Confidence intervals for directly
standardized rates") give limits that hold for few events too: gamma distributions with the mean and
variance of the sum, and for the upper limit with one more event of the greatest weight that any
picture could have had. They are joined to limits of A / (A + B) as Fay, Proschan & Brittain 2015
join two such ("Combining one-sample confidence procedures"): quantiles of a / (a + b) for a and b
so distributed, which is a transformed Beta, in closed form. Where all weights are equal, this is
the interval of Clopper & Pearson 1934 to the last digit. The greatest weight is what keeps the
intervals honest: that no miss was seen among pictures that are seldom shown says little, and an
interval by a normal approximation or the bootstrap, which know only what was seen, has no way to
tell. No proof is known that the limits of Fay & Feuer always hold, and no exception either;
`benchmarks/monitoring.py` and the tests try them on adaptive queues. Other choices: betting on each
draw (Waudby-Smith & Ramdas 2024; Shekhar et al. 2023) is proven and holds whenever one stops, but
needs a bet for every rate and threshold, and the draws in their order, which several reviewers and
undone labels do not keep; LURE (Farquhar et al. 2021) is the same estimator for a fixed number of
draws from a set that does not grow.

An interval speaks of the rate among pictures like those that came; looked at again and again while
labels come in, it is wrong somewhat more often than its level says.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blemish.errors import ConfigError, NonFiniteError
from blemish.monitoring import beta
from blemish.monitoring.draws import Draw, weights

Floats = NDArray[np.float64]
GOOD, DEFECT, UNSURE = 0, 1, -1
VERDICTS = {"good": GOOD, "defect": DEFECT, "unsure": UNSURE}
FEWEST = 10  # good pictures or defects that a rate of theirs should rest on
_POINTS = 200  # of a curve
RATES = ("false_alarm_rate", "miss_rate", "precision", "defect_share")
_OF = {
    "false_alarm_rate": "good pictures",
    "miss_rate": "defects",
    "precision": "alarms",
    "defect_share": "pictures",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A reviewed picture.

    Attributes:
        draw: how the queue placed it; None where it never did: such an answer does not count, as
            nobody knows why this picture was looked at.
        arrived: when it came, as any number that rises (its id, or seconds).
        score: under the version whose figures are asked for.
        verdicts: what each reviewer says now: "good", "defect" or "unsure"; one a reviewer.
        groups: its camera, category, day or whatever figures are wanted by.
    """

    draw: Draw | None
    arrived: float
    score: float
    verdicts: tuple[str, ...]
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A picture in line: its priority and when it came."""

    priority: float
    arrived: float


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Reviewed pictures with what each stands for.

    Attributes:
        scores: R. truths: R: 0 good, 1 defect, -1 unsure. counts: R weights, > 0.
        by_chance: R: whether the random share alone would have shown it by now.
        groups: of each.
        clock: of the race, see `draws`.
        largest: the greatest weight that any picture may have.
        until: only pictures that came before this are spoken of; None for all.
        left_out: answers that do not count: "unplaced" (looked at without the queue), "early"
            (their turn had not come), "late" (came after `until`).
        disagreements: pictures on which reviewers said good and defect.
    """

    scores: Floats
    truths: NDArray[np.int64]
    counts: Floats
    by_chance: NDArray[np.bool_]
    groups: tuple[Mapping[str, str], ...]
    clock: float
    largest: float
    until: float | None
    left_out: Mapping[str, int]
    disagreements: int

    def only(self, kept: NDArray[np.bool_]) -> Sample:
        """Some of its pictures."""
        groups = tuple(compress(self.groups, kept.tolist()))
        parts = {"scores": self.scores, "truths": self.truths, "counts": self.counts}
        values = {**self.__dict__, **{name: each[kept] for name, each in parts.items()}}
        return Sample(**{**values, "by_chance": self.by_chance[kept], "groups": groups})

    def random_share(self) -> Sample:
        """Those whom chance alone would have shown by now: a simple random sample, which every
        formula for such may be used on. Fewer, and all count alike."""
        found = self.only(self.by_chance)
        return Sample(**{**found.__dict__, "counts": np.ones(len(found.scores)), "largest": 1.0})


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A rate and how well it is known.

    Attributes:
        value: in [0, 1]; None where nothing was reviewed that it is a rate of.
        low, high: the interval at `level`; [0, 1] where nothing is known.
        reviewed: pictures that it is a rate of; events: of these, those that it counts.
        few: why it should not be relied on; "" where it may.
        unsure: the least and the greatest that the value would be if the unsure ones were known.
    """

    value: float | None
    low: float
    high: float
    level: float
    reviewed: int
    events: int
    few: str
    unsure: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def consensus(verdicts: Iterable[str]) -> int:
    """0, 1 or -1 from what reviewers say: the majority of those who decided, -1 (unsure) where
    good and defect are as many.

    Raises: ConfigError for another verdict.

    Example:
        >>> consensus(["good"]), consensus(["defect", "unsure"]), consensus(["good", "defect"])
        (0, 1, -1)
    """
    said = Counter(verdicts)
    if foreign := set(said) - set(VERDICTS):
        raise ConfigError(f"verdicts are {', '.join(VERDICTS)}; got {sorted(foreign)}")
    lead = said["defect"] - said["good"]
    return UNSURE if lead == 0 else DEFECT if lead > 0 else GOOD


def sample(answers: Sequence[Answer], waiting: Sequence[Waiting]) -> Sample:
    """The reviewed pictures that together speak for all.

    Of pictures that came before some moment, those count whose turn came before that of the next in
    line. The moment is the one with which most reviewed pictures count: with pictures that have
    just come to the head of the line and wait, it is before these.

    Args:
        answers: all reviewed pictures. One that reviewers looked at and left undecided belongs here
            as "unsure", else its place in the line holds up all after it.
        waiting: pictures without an answer: at least the one of lowest priority, and all whose
            priority is below the greatest of an answer; none where all are reviewed.
    Raises: ConfigError for an unknown verdict; NonFiniteError for a score.
    """
    placed = [one for one in answers if one.draw is not None]
    scores = np.array([one.score for one in placed], np.float64)
    if not np.isfinite(scores).all():
        raise NonFiniteError("a reviewed picture's score is not finite")
    draws = [one.draw for one in placed if one.draw is not None]
    priorities = np.array([one.priority for one in draws], np.float64)
    arrived = np.array([one.arrived for one in placed], np.float64)
    clock, until = _clock(priorities, arrived, waiting)
    before = arrived < until
    kept = before & (priorities < clock)
    said = {one.verdicts: consensus(one.verdicts) for one in placed}  # few differ
    truths = np.array([said[one.verdicts] for one in placed], np.int64)
    split = [{"good", "defect"} <= set(one.verdicts) for one in placed]
    share = min((one.share for one in draws), default=1.0)
    out = {
        "unplaced": len(answers) - len(placed),
        "early": int((before & ~kept).sum()),
        "late": int((~before).sum()),
    }
    whole = Sample(
        scores=scores,
        truths=truths,
        counts=weights([one.size for one in draws], clock),
        by_chance=np.array([one.random < clock for one in draws], bool),
        groups=tuple(one.groups for one in placed),
        clock=clock,
        largest=float(weights(share, clock)) if kept.any() else 1.0,
        until=until if math.isfinite(until) else None,
        left_out=out,
        disagreements=int((np.array(split, bool) & kept).sum()),
    )
    return whole.only(kept)


def _clock(priorities: Floats, arrived: Floats, waiting: Sequence[Waiting]) -> tuple[float, float]:
    """The priority of the next in line, and before which moment pictures are spoken of."""
    best = (-1, 0.0, math.inf)
    clock = math.inf
    for one in [*_lower_than_before(waiting), None]:
        until = math.inf if one is None else one.arrived
        count = int(((priorities < clock) & (arrived < until)).sum())
        if count >= best[0]:
            best = (count, clock, until)
        if one is not None:
            clock = one.priority
    return best[1], best[2]


def _lower_than_before(waiting: Sequence[Waiting]) -> list[Waiting]:
    """In the order in which they came, those that are to be reviewed before all that came before
    them. Only these matter: as long as the next in line stays the same, later is better."""
    found: list[Waiting] = []
    for one in sorted(waiting, key=lambda each: (each.arrived, each.priority)):
        if not found or one.priority < found[-1].priority:
            found.append(one)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """All pictures of the population, reviewed or not: how much each could weigh narrows the
    intervals. Attributes: scores, sizes: N each, sizes from their draws."""

    scores: Floats
    sizes: Floats


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The four rates at many thresholds, for a slider.

    Attributes:
        thresholds: T, rising. values, low, high: of each rate T; values are NaN where nothing was
            reviewed that they are rates of.
    """

    thresholds: Floats
    values: Mapping[str, Floats]
    low: Mapping[str, Floats]
    high: Mapping[str, Floats]
    level: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, None in place of NaN."""
        rates = {
            name: {
                "value": [None if math.isnan(one) else one for one in self.values[name].tolist()],
                "low": self.low[name].tolist(),
                "high": self.high[name].tolist(),
            }
            for name in RATES
        }
        return {"thresholds": self.thresholds.tolist(), "level": self.level, **rates}


def curve(
    of: Sample,
    thresholds: Sequence[float] | Floats | None = None,
    *,
    also: Sequence[float] = (),
    level: float = 0.95,
    pool: Pool | None = None,
) -> Curve:
    """The rates at any threshold: above it is an alarm.

    Args: thresholds: those wanted; None for up to 200 at which something changes, and `also` these.
        level: in (0, 1).
    Raises: ConfigError for a level or threshold out of range.
    """
    if not 0 < level < 1:
        raise ConfigError(f"the level of an interval is in (0, 1), got {level}")
    if thresholds is None:
        known = np.unique(of.scores[of.truths != UNSURE])
        at = np.unique(np.linspace(0, max(len(known) - 1, 0), _POINTS).astype(int))
        wanted = np.unique([*(known[at] if known.size else known), *also]).astype(np.float64)
    else:
        wanted = np.unique(np.asarray(thresholds, np.float64))
    if not np.isfinite(wanted).all():
        raise ConfigError("a threshold is not finite")
    cells = {
        (truth, alarm): _weighed(of, wanted, truth, alarm)
        for truth in (GOOD, DEFECT)
        for alarm in (False, True)
    }
    most = {alarm: _greatest(of, pool, wanted, alarm) for alarm in (False, True)}
    everything = np.maximum(most[False], most[True])
    both = {truth: cells[truth, False] + cells[truth, True] for truth in (GOOD, DEFECT)}
    sides = {
        "false_alarm_rate": (cells[GOOD, True], most[True], cells[GOOD, False], most[False]),
        "miss_rate": (cells[DEFECT, False], most[False], cells[DEFECT, True], most[True]),
        "precision": (cells[DEFECT, True], most[True], cells[GOOD, True], most[True]),
        "defect_share": (both[DEFECT], everything, both[GOOD], everything),
    }
    a, most_a, b, most_b = (
        np.concatenate(parts, axis=-1) for parts in zip(*sides.values(), strict=True)
    )
    value, low, high = (
        dict(zip(sides, np.split(each, len(sides)), strict=True))
        for each in _rate(a, most_a, b, most_b, 1 - level)
    )
    return Curve(thresholds=wanted, values=value, low=low, high=high, level=level)


def _weighed(of: Sample, thresholds: Floats, truth: int, alarm: bool) -> Floats:
    """2×T: the weight of the pictures of one kind on one side of each threshold, and the sum of
    its squares."""
    own = of.truths == truth
    order = np.argsort(of.scores[own], kind="stable")
    counts = of.counts[own][order]
    sums = np.stack([np.cumsum(np.r_[0, counts]), np.cumsum(np.r_[0, counts**2])])
    below = sums[:, np.searchsorted(of.scores[own][order], thresholds, side="right")]
    return np.asarray(sums[:, -1:] - below if alarm else below)


def _greatest(of: Sample, pool: Pool | None, thresholds: Floats, alarm: bool) -> Floats:
    """The greatest weight that a picture on one side of each threshold may have."""
    if pool is None:
        return np.full(len(thresholds), of.largest)
    order = np.argsort(pool.scores, kind="stable")  # fast where they are in order already
    each = weights(pool.sizes[order], of.clock)
    running = np.maximum.accumulate(each[::-1])[::-1] if alarm else np.maximum.accumulate(each)
    at = np.searchsorted(pool.scores[order], thresholds, side="right")
    ends = np.r_[running, 1.0] if alarm else np.r_[1.0, running]
    return np.asarray(ends[at])


def _rate(
    events: Floats, most: Floats, others: Floats, most_others: Floats, alpha: float
) -> tuple[Floats, Floats, Floats]:
    """A / (A + B) and its limits, each T, from 2×T sums and the greatest weights T."""
    a, b = events[0], others[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        value = a / (a + b)
    more = np.stack([a + most, events[1] + most**2])
    more_others = np.stack([b + most_others, others[1] + most_others**2])
    part = np.concatenate([events, others], axis=1)
    rest = np.concatenate([more_others, more], axis=1)
    low, high = np.split(_limit(part, rest, alpha / 2), 2)
    return value, np.minimum(low, np.nan_to_num(value, nan=0)), np.fmax(1 - high, value)


def _limit(part: Floats, rest: Floats, p: float) -> Floats:
    """The p-quantile of a / (a + b) for gamma distributed a, b of given means and variances; 0
    where a is."""
    some = part[0] > 0
    found = np.zeros(len(some))
    (a, va), (b, vb) = part[:, some], rest[:, some]
    x = beta.quantile(a * a / va, b * b / vb, p)
    found[some] = va / a * x / (va / a * x + vb / b * (1 - x))
    return found


def figures(
    of: Sample, threshold: float, *, level: float = 0.95, pool: Pool | None = None
) -> dict[str, Estimate]:
    """The four rates at one threshold, and `unsure_share`: of pictures that reviewers could not
    decide.

    `false_alarm_rate`: of good pictures, those with an alarm. `miss_rate`: of defects, those
    without. `precision`: of alarms, those on defects. `defect_share`: of all pictures, defects.

    Raises: as `curve`.
    """
    known = curve(of, [threshold], level=level, pool=pool)
    alarm, sure = of.scores > threshold, of.truths != UNSURE
    good, defect = of.truths == GOOD, of.truths == DEFECT
    counted = {
        "false_alarm_rate": (good, alarm),
        "miss_rate": (defect, ~alarm),
        "precision": (alarm & sure, defect),
        "defect_share": (sure, defect),
    }
    found = {}
    for name, (base, event) in counted.items():
        value = float(known.values[name][0])
        reviewed = int(base.sum())
        found[name] = Estimate(
            value=None if math.isnan(value) else value,
            low=float(known.low[name][0]),
            high=float(known.high[name][0]),
            level=level,
            reviewed=reviewed,
            events=int((base & event).sum()),
            few=_few(reviewed, _OF[name]),
            unsure=_if_known(of, name, alarm),
        )
    return {**found, "unsure_share": _unsure(of, level)}


def _few(reviewed: int, what: str) -> str:
    if reviewed >= FEWEST:
        return ""
    return f"too few: {reviewed} {what} reviewed, at least {FEWEST} are needed"


def _unsure(of: Sample, level: float) -> Estimate:
    sure, counts = of.truths != UNSURE, of.counts
    sums = [np.array([[each.sum()], [(each**2).sum()]]) for each in (counts[~sure], counts[sure])]
    most = np.array([of.largest])
    value, low, high = _rate(sums[0], most, sums[1], most, 1 - level)
    return Estimate(
        value=float(value[0]) if len(sure) else None,
        low=float(low[0]),
        high=float(high[0]),
        level=level,
        reviewed=len(sure),
        events=int((~sure).sum()),
        few=_few(len(sure), "pictures"),
        unsure=None,
    )


def _if_known(of: Sample, name: str, alarm: NDArray[np.bool_]) -> tuple[float, float] | None:
    """The least and greatest value of a rate over what the unsure pictures may be: on either side
    of the threshold all good or all defects."""
    counts, truths = of.counts, of.truths
    kinds = {
        (truth, side): float(counts[(truths == truth) & (alarm == side)].sum())
        for truth in (GOOD, DEFECT, UNSURE)
        for side in (False, True)
    }
    found = []
    for above in (GOOD, DEFECT):
        for under in (GOOD, DEFECT):
            w = {key: value for key, value in kinds.items() if key[0] != UNSURE}
            w[above, True] += kinds[UNSURE, True]
            w[under, False] += kinds[UNSURE, False]
            good, defect = w[GOOD, True] + w[GOOD, False], w[DEFECT, True] + w[DEFECT, False]
            event, base = {
                "false_alarm_rate": (w[GOOD, True], good),
                "miss_rate": (w[DEFECT, False], defect),
                "precision": (w[DEFECT, True], w[GOOD, True] + w[DEFECT, True]),
                "defect_share": (defect, good + defect),
            }[name]
            if base > 0:
                found.append(event / base)
    return (min(found), max(found)) if found else None


def by_group(
    of: Sample, key: str, threshold: float, *, level: float = 0.95, most: int | None = None
) -> dict[str, dict[str, Estimate]]:
    """The figures of each camera, category or day: `key` names the group. Where there are too few,
    each estimate says so, and its interval is as wide as it must be.

    Args: most: as many groups at most, the last by name; None = all.

    With k groups, some interval among k is wrong more often than each by itself; ask for a level
    of 1 - (1 - level) / k where the worst one is to be picked out.
    """
    members: dict[str, list[int]] = {}
    for at, one in enumerate(of.groups):
        if key in one:
            members.setdefault(one[key], []).append(at)
    found = {}
    for name in sorted(members)[0 if most is None else -most :]:
        kept = np.zeros(len(of.groups), bool)
        kept[members[name]] = True
        found[name] = figures(of.only(kept), threshold, level=level)
    return found
