"""Whether the pictures have changed: one number per picture, and an alarm with a stated error.

What is tested, each with a third of the error:

- `usual`: pictures without an alarm score like the calibration pictures that have none. (Alarms are
  left out, or every defect would speak for a change.)
- `alarms`: no more pictures raise an alarm than the threshold's rate and a share of defects allow.
- `steady`: all pictures score like those before them; against what changes later, whatever it was
  in the beginning.

**Why not the p-values of the predictions.** They all come from one calibration set. Each is right
on average over such sets, but given the set at hand their distribution is off by about
1 / sqrt(n), always in the same direction, and a martingale that takes them for independent and
uniform finds that out: with 40 calibration pictures, three quarters of all streams of 5,000 good
pictures end in an alarm that was to come in one of twenty. Here each new score is ranked among the
calibration scores and all scores that came since: these p-values are independent and uniform,
exactly, if the pictures are exchangeable with the calibration pictures (Vovk, Gammerman & Shafer
2022, "Algorithmic Learning in a Random World", ch. 8). Nobody needs to keep the scores for that.
Between n calibration scores there are n + 1 gaps, and given all that came before, the next score
falls into a gap with probability (1 + scores that fell into it) / (n + 1 + all that came since): an
urn of Pólya, since over draws of the calibration set the gaps' chances are a Dirichlet
distribution. So counts are enough, and gaps may be joined (64 are kept). The probability of ever a
false alarm is over calibration sets and streams together: a detector is calibrated once and watches
one stream. (Shaer et al. 2026, "Testing for distribution shifts with conditional conformal test
martingales", bound it for nearly every single calibration set, and pay for it with wider margins.)

The price is that what came is learned: after a change, the new scores become usual by and by. An
alarm stays, and a change is seen while it is new; no exact test of n calibration pictures against a
changed stream can go on collecting evidence for ever, since n pictures do not say more.

**Ties.** Equal scores are put in order by a number drawn from the seed and the picture's key
(smoothed p-values): else the p-values of a method with few distinct scores were not uniform. The
number depends on nothing else, so the state is the same whenever it is computed again.

**Error.** `alpha`: over all time, the probability that any false alarm comes is at most alpha
(Ville's inequality at 3 / alpha for each test). `run`: the restarted sums give further notices, of
false ones at most one in `run` pictures on average, for ever, and again after each. Both hold for
pictures in any number, if they are exchangeable but for a share `tolerance` of them, which may
score as it likes: missed defects do not make an alarm, nor does a change too small to matter.

**How soon.** In the median (rows of `benchmarks/monitoring.py`; the defaults, 200 calibration
pictures, 1,000 pictures before the change): where a picture after it scores higher than one before
it 76 times in 100, after 40 pictures; 64 times, after 140; where scores spread half as far again,
after 180. 57 times in 100 is near what the tolerance lets pass: 40 % of such streams were noticed
within 5,000 pictures, and all, after 810, where 10,000 had come before. With 40 calibration
pictures and a change before the first picture, only the greatest of these is noticed as a rule: 40
pictures do not say more.

Pictures that come in runs (one lamp, one batch, a camera that looks twice) are not exchangeable:
have a monitor for each camera, and leave out what is nearly the same as the picture before.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blemish.errors import ConfigError, NonFiniteError
from blemish.monitoring import betting
from blemish.monitoring.beta import quantile
from blemish.monitoring.draws import uniform
from blemish.text import counted

Floats = NDArray[np.float64]
TESTS = ("usual", "alarms", "steady")
_CELLS = 64
_ARRAYS = ("usual", "steady", "shares", "logs", "sums")  # of a monitor's state
_MEMORY = 500.0  # pictures over which the recent ranks are averaged

ADVICE = {
    "higher": (
        "Scores have become higher: expect more false alarms. Look at the newest pictures for "
        "light, focus, dirt on the lens, position, another batch of material. Where the parts are "
        "good and this is to stay, review some and refine or calibrate anew; else put right what "
        "changed."
    ),
    "lower": (
        "Scores have become lower: defects may be missed. Look whether pictures have become "
        "blurred, dark, overexposed or empty, or whether the part is out of view. Where the "
        "pictures are right and this is to stay, calibrate anew, so that the threshold follows."
    ),
    "wider": (
        "Scores have become more extreme on both sides: two kinds of pictures may come by turns "
        "(two lamps, two batches, two cameras under one name). Look at the highest and the lowest; "
        "give kinds that belong apart a source or a category of their own."
    ),
    "narrower": (
        "Scores have become more alike than they were: look whether the same picture comes again "
        "and again (a camera that hangs, a line that stands)."
    ),
    "alarms": (
        "More pictures raise an alarm than the threshold's rate and the expected share of defects "
        "explain. Review some alarms: where they are defects, the line makes more of them; where "
        "they are good, find what changed in the pictures, or calibrate anew."
    ),
}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The calibration scores as cells, the highest first.

    Attributes:
        n: calibration scores.
        gaps: K: how many of the n + 1 gaps between them each cell joins.
        top: the cells that lie above the threshold, at least in part.
        negative: n: the scores times -1, rising; empty where only their number is known.
        tiebreaks: n: what puts equal ones in order.
        seed: of the tie-breaking numbers.
    """

    n: int
    gaps: tuple[int, ...]
    top: int
    negative: Floats = field(repr=False)
    tiebreaks: Floats = field(repr=False)
    seed: str

    @classmethod
    def of(cls, scores: ArrayLike, threshold: float | None, *, seed: str) -> Reference:
        """Of the calibration scores that the predictions' p-values come from.

        Args: threshold: None where there is none: then no picture is an alarm.
        Raises: ConfigError without scores; NonFiniteError for one that is not finite.
        """
        values = np.asarray(scores, np.float64).ravel()
        if not values.size:
            raise ConfigError("no calibration scores: there is nothing to tell a change by")
        if not np.isfinite(values).all() or (threshold is not None and math.isnan(threshold)):
            raise NonFiniteError("a calibration score or the threshold is not finite")
        ties = np.array([uniform(seed, "calibration", at) for at in range(values.size)])
        order = np.lexsort((-ties, -values))
        above = 0 if threshold is None else int((values > threshold).sum()) + 1
        gaps, top = _joined(values.size, above)
        return cls(
            n=values.size,
            gaps=gaps,
            top=top,
            negative=-values[order],
            tiebreaks=ties[order],
            seed=seed,
        )

    @classmethod
    def untied(cls, n: int, rate: float | None, *, seed: str) -> Reference:
        """Where only p-values are known: of n calibration scores, no two alike. Args: rate: the
        threshold's false-alarm rate; None for none."""
        if n < 1 or not (rate is None or 0 < rate < 1):
            raise ConfigError(f"{n} calibration scores at a rate of {rate}: nothing to tell by")
        above = 0 if rate is None else math.floor((n + 1) * rate + 1e-9) or 1
        gaps, top = _joined(n, above)
        none = np.zeros(0)
        return cls(n=n, gaps=gaps, top=top, negative=none, tiebreaks=none, seed=seed)

    def cell(self, score: float, key: str) -> int:
        """The cell of a score. Args: key: of the prediction (its id), for ties.
        Raises: NonFiniteError for a score that is not finite."""
        if not math.isfinite(score):
            raise NonFiniteError(f"prediction {key}: its score is {score}")
        higher = bisect.bisect_left(self.negative, -score)
        upto = bisect.bisect_right(self.negative, -score, higher)
        if upto > higher:
            own = uniform(self.seed, "tie", key)
            higher += int((self.tiebreaks[higher:upto] > own).sum())
        return self._cell(higher)

    def cell_of(self, p_value: float) -> int:
        """The cell of a `Prediction.p_value` that comes from the same calibration scores.
        Raises: ConfigError for one that does not."""
        at = p_value * (self.n + 1)
        if not 0.5 < at < self.n + 1.5 or abs(at - round(at)) > 1e-3:
            raise ConfigError(f"a p-value of {p_value} is none of {self.n} calibration pictures")
        return self._cell(round(at) - 1)

    def _cell(self, gap: int) -> int:
        return bisect.bisect_right(self._ends, gap)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.gaps))


def _joined(n: int, above: int) -> tuple[tuple[int, ...], int]:
    """How many gaps each cell joins, so that no cell lies on both sides of the threshold, and how
    many cells are above."""
    top = min(above, 8)
    rest = n + 1 - above
    below = min(rest, _CELLS - top)
    edges = [
        np.linspace(0, size, count + 1).round().astype(int)
        for size, count in ((above, top), (rest, below))
    ]
    found = [np.diff(each).tolist() for each in edges]
    return tuple(found[0] + found[1]), top


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A change that was noticed.

    Attributes:
        test: "usual", "alarms" or "steady".
        kind: what changed: a key of `ADVICE`.
        final: whether it is the alarm, false with probability at most alpha ever; otherwise a
            notice, of false ones at most one in `run` pictures on average.
        at: which picture of the monitor it came with, from 1.
        advice: what it means and what to do.
    """

    test: str
    kind: str
    final: bool
    at: int
    advice: str


class Monitor:
    """Watches the scores of one detector on one source, picture by picture.

    Args:
        reference: the calibration scores.
        seed: any text; with the keys of the pictures it fixes every random number.
        alpha: the probability that any false alarm ever comes, in (0, 0.5].
        run: pictures, on average at least, to a false notice; from 100 up.
        tolerance: the share of the pictures that may score as it likes, in [0, 0.5).
        defects: the share of defects that is no reason for an alarm, in [0, 1).
    Raises: ConfigError for values out of range.

    Example:
        >>> known = Reference.of(range(100), 95, seed="s")
        >>> monitor = Monitor(known, seed="s")
        >>> [len(monitor.add(known.cell(99.5, str(at)), str(at))) for at in range(3)]
        [0, 0, 0]
    """

    def __init__(
        self,
        reference: Reference,
        *,
        seed: str,
        alpha: float = 0.01,
        run: float = 1e6,
        tolerance: float = 0.01,
        defects: float = 0.05,
    ) -> None:
        fits = 0 < alpha <= 0.5 and 100 <= run < 1e100 and 0 <= tolerance < 0.5
        if not fits or not 0 <= defects < 1:
            raise ConfigError(
                f"alpha {alpha}, run {run}, tolerance {tolerance}, defects {defects}: needed are "
                "alpha in (0, 0.5], run from 100, tolerance in [0, 0.5) and defects in [0, 1)"
            )
        self.reference, self.seed = reference, seed
        self.alpha, self.run, self.tolerance, self.defects = alpha, run, tolerance, defects
        gaps, top = np.asarray(reference.gaps, np.float64), reference.top
        self._usual, self._steady = gaps[top:].copy(), np.zeros(len(gaps))
        self._shares, self._logs, self._sums = betting.opening(len(TESTS))
        self._since = [0] * len(TESTS)  # the picture that each alarm came with; 0 for none
        self.count = 0
        self.recent_rank = 0.5
        self.recent_alarms = 0.0
        self._middle = 1 - (np.cumsum(gaps) - gaps / 2) / gaps.sum()
        above = float(gaps[:top].sum())
        # A tenth of the error of `alarms` is that the threshold's rate is higher than this.
        rest = float(gaps.sum()) - above
        rate = float(quantile(above, rest, 1 - alpha / 30)) if top and rest else float(top > 0)
        self._most = min(defects + (1 - defects) * rate, 0.999)
        self._levels = np.array([alpha / 3, 0.9 * alpha / 3, alpha / 3])
        self._floor = math.log(3 / alpha)

    def add(self, cell: int, key: str) -> list[Alarm]:
        """Takes the next picture in: about 50 µs. Returns: what came with it, mostly nothing.

        Args: cell: from `Reference.cell`. key: of the prediction; no two may have the same.
        """
        if not 0 <= cell < len(self._steady):
            raise ConfigError(f"cell {cell} of {len(self._steady)}")
        self.count += 1
        u, top = uniform(self.seed, "within", key), self.reference.top
        weight = max(1 / self.count, 1 / _MEMORY)
        self.recent_rank += weight * (float(self._middle[cell]) - self.recent_rank)
        self.recent_alarms += weight * ((cell < top) - self.recent_alarms)
        p = np.array([0.5, _counted(self._steady, cell, u, True)])
        if cell >= top:
            p[0] = _counted(self._usual, cell - top, u, False)
        payments = np.ones((len(TESTS), len(betting.EXPERTS)))
        payments[::2] = betting.stakes(p, self.tolerance)
        if cell < top:
            payments[0] = 1  # no bet
        if top:
            payments[1] = betting.share_stakes(cell < top, self._most)
        self._shares, self._logs, self._sums = betting.bet(
            self._shares, self._logs, self._sums, payments
        )
        return self._said()

    def _said(self) -> list[Alarm]:
        # Means and sums reach a bound only where one of their parts does.
        if self._logs.max() < self._floor and self._sums.max() < len(TESTS) * self.run:
            return []
        reached = betting.capital(self._logs) >= 1 / self._levels
        restarted = self._sums.sum(1) >= len(TESTS) * self.run * len(betting.EXPERTS)
        found = []
        for at in range(len(TESTS)):
            if reached[at] and not self._since[at]:
                self._since[at] = self.count
                found.append(self._alarm(at, True, self.count))
            if restarted[at]:
                found.append(self._alarm(at, False, self.count))
                self._sums[at] = 0
        return found

    def _alarm(self, test: int, final: bool, count: int) -> Alarm:
        """Named after the expert who has earned most."""
        if TESTS[test] == "alarms":
            kind = "alarms"
        else:
            scaled = self._logs[test] - self._logs[test].max()
            earned = (self._shares[test] * np.exp(scaled)[:, None]).sum(0)
            best = np.argmax((earned if final else self._sums[test])[1:])
            kind = betting.EXPERTS[int(best) + 1]
        return Alarm(test=TESTS[test], kind=kind, final=final, at=count, advice=ADVICE[kind])

    def evidence(self) -> dict[str, float]:
        """The capital of each test, > 0; begun with 1, an alarm at 3 / alpha."""
        return dict(zip(TESTS, betting.capital(self._logs).tolist(), strict=True))

    def alarms(self) -> list[Alarm]:
        """The alarms that stand, for each test at most one."""
        return [self._alarm(at, True, since) for at, since in enumerate(self._since) if since]

    def words(self) -> str:
        """What is known now, in two or three sentences.

        Example:
            >>> Monitor(Reference.of(range(100), 95, seed="s"), seed="s").words()
            'No picture has been seen yet.'
        """
        if not self.count:
            return "No picture has been seen yet."
        place = (
            f"Recent pictures score higher than {100 * self.recent_rank:.0f} % of the calibration "
            f"pictures on average (50 % if nothing has changed), and {100 * self.recent_alarms:.1f}"
            " % of them raise an alarm."
        )
        standing = self.alarms()
        if not standing:
            return f"No change was noticed in {counted(self.count, 'picture')}. {place}"
        first = min(standing, key=lambda one: one.at)
        return (
            f"A change was noticed with picture {first.at:,} of {self.count:,} (the probability "
            f"that such an alarm ever comes without one is at most {100 * self.alpha:g} %). "
            f"{first.advice} {place}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready state, without the calibration scores: some 10 kB."""
        settings = ("seed", "alpha", "run", "tolerance", "defects", "count")
        recent = {"recent_rank": float(self.recent_rank), "recent_alarms": self.recent_alarms}
        return {
            **{name: getattr(self, name) for name in settings},
            **recent,
            "gaps": list(self.reference.gaps),
            "since": list(self._since),
            **{name: getattr(self, f"_{name}").tolist() for name in _ARRAYS},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], reference: Reference) -> Monitor:
        """What `to_dict` wrote. Raises: ConfigError for what is no such state, or is one of another
        calibration: then begin a new monitor."""
        try:
            names = ("seed", "alpha", "run", "tolerance", "defects")
            found = cls(reference, **{name: values[name] for name in names})
            if tuple(values["gaps"]) != reference.gaps:
                raise ConfigError("the monitor's state is of another calibration; begin a new one")
            found.count = int(values["count"])
            found.recent_rank = float(values["recent_rank"])
            found.recent_alarms = float(values["recent_alarms"])
            found._since = [int(values["since"][at]) for at in range(len(TESTS))]
            for name in _ARRAYS:
                array = np.asarray(values[name], np.float64)
                if array.shape != getattr(found, f"_{name}").shape or not np.isfinite(array).all():
                    raise ConfigError(f"the monitor's state has impossible {name}")
                setattr(found, f"_{name}", array)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"not the state of a monitor: {error}") from error
        return found


def _counted(counts: Floats, cell: int, u: float, itself: bool) -> float:
    """As `betting.urn`, of one picture, which is counted afterwards."""
    p = (counts[:cell].sum() + u * (counts[cell] + itself)) / (counts.sum() + itself)
    counts[cell] += 1
    return float(p)
