"""Thresholds from normal pictures, with what they promise, and the one place where a score becomes
a verdict.

Split conformal prediction (Vovk, Gammerman & Shafer 2005; Angelopoulos & Bates 2021): of n scores
of held-out normal pictures, the threshold is the k-th smallest, k = ceil((n + 1)(1 - rate)). A new
normal picture, exchangeable with them, is equally likely to take each of the n + 1 ranks, so it
scores above the threshold with probability at most 1 - k / (n + 1) <= rate, whatever the
distribution and the detector.

Leave-one-out, for memory banks and PaDiM: each training picture is scored against what the others
have taught, so that no picture is held out. That is the jackknife: in the worst case it promises
nothing; jackknife+ (Barber et al. 2021, "Predictive inference with the jackknife+") promises 2 ×
rate. For a bank that keeps every patch, where more patches can only lower a score, their argument
carries over and gives 2 × rate here too; a coreset breaks it, hence it is not claimed.

Both hold for any number that a picture gives: also for the level above which its map shows a region
(`blemish.regions.region_level`), so that at most that share of normal pictures shows any; and, of
labelled defects and turned round, for the share of them that is missed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blemish import config
from blemish.config import Count, Finite, Range
from blemish.detector.beta import quantile
from blemish.errors import CalibrationError, ConfigError, NonFiniteError, unknown_name
from blemish.text import there_are
from blemish.types import ANOMALOUS, NORMAL

LARGEST = 3.4e38  # of a score, which is a float32
Method = Literal["split conformal", "leave-one-out", "labelled defects", "by hand"]
Of = Literal["alarm", "region", "part"]
_EVENTS = {
    "alarm": ("raises a false alarm", "raise a false alarm"),
    "region": ("shows a region", "show a region"),
    "part": ("raises a false alarm", "raise a false alarm"),
}


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A threshold and how it came about.

    Attributes:
        value: in the unit of the score: a score above it is an alarm. None where n is too small for
            the rate.
        rate: the false-alarm rate asked for, in (0, 1), or with "labelled defects" the share of
            missed ones; None where it was set by hand.
        n: normal pictures, or defects, it was calibrated on; 0 where it was set by hand.
        method: "split conformal", "leave-one-out", "labelled defects", or "by hand": the user's
            own.
        guarantee: one sentence: what it promises; "" without a value.
        reason: why there is no value, and how many pictures are needed; "" with one.
    """

    value: Annotated[float, Range(-LARGEST, LARGEST)] | None
    rate: float | None
    n: Count
    method: Method
    guarantee: str
    reason: str

    def __post_init__(self) -> None:
        if (self.rate is None) != (self.method == "by hand"):
            raise ConfigError(f"a threshold {self.method} with a false-alarm rate of {self.rate}")
        if self.rate is not None:
            _exact(self.rate)
        if self.value is not None and not math.isfinite(self.value):
            raise NonFiniteError(
                f"the threshold is {self.value}; a finite number, or none, is needed"
            )
        config.check(self)
        if self.rate is None and (self.value is None or self.n):
            raise ConfigError(
                "a threshold by hand has a value and is of no picture, got "
                f"{self.value} of {self.n}"
            )
        if self.rate is not None and self.value is not None and self.n < pictures_needed(self.rate):
            raise ConfigError(
                f"n: {pictures_needed(self.rate)} pictures are needed for {self.rate}, got {self.n}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return config.to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Threshold:
        """The threshold that `to_dict` wrote.

        Raises: ConfigError for a missing or unknown key or a value that does not fit;
            NonFiniteError for a value that is not finite.
        """
        return config.from_dict(cls, values, within="threshold", strict=True)


@dataclass(frozen=True, kw_only=True)
class RegionThresholds:
    """From which score of the map on a place belongs to a region.

    Attributes:
        smallest: the share of the picture that a region has at least, in [0, 1).
        threshold, thresholds: the common one, and that of each category.
        levels, levels_by_category: what they come from, see `blemish.regions.region_level`.
    """

    smallest: Annotated[float, Range(0, 1, below=True)] = 0.0
    threshold: Threshold | None = None
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    levels: tuple[Finite, ...] = ()
    levels_by_category: Mapping[str, tuple[Finite, ...]] = field(default_factory=dict)

    def of(self, category: str) -> Threshold | None:
        """The threshold for a category: its own, or else the common one."""
        own = self.thresholds.get(category)
        return self.threshold if own is None or own.value is None else own


@dataclass(frozen=True, kw_only=True)
class PartThresholds:
    """Above which score of its highest view a part of several views is an alarm.

    Attributes:
        pattern: the regular expression that told parts by the paths of their pictures; "column
            part" where that column of a table did.
        threshold, thresholds: the common one, and that of each category.
        scores, scores_by_category: what they come from: the highest score of each good part.
        fewest, most: views of such a part.
        left_out: parts that do not count, as a view could not be read or was learned from.
        copies: parts that do not count, as another one has the same pictures.
        ungrouped: pictures that are of no part.
    """

    pattern: str
    threshold: Threshold | None
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    scores: tuple[Finite, ...] = ()
    scores_by_category: Mapping[str, tuple[Finite, ...]] = field(default_factory=dict)
    fewest: Count = 1
    most: Count = 1
    left_out: Count = 0
    copies: Count = 0
    ungrouped: Count = 0

    def of(self, category: str) -> Threshold | None:
        """The threshold for a category: its own, or else the common one."""
        own = self.thresholds.get(category)
        return self.threshold if own is None or own.value is None else own


def by_hand(value: float) -> Threshold:
    """A threshold that a person has chosen. Raises: ConfigError for what is no number;
    NonFiniteError for NaN.

    Example:
        >>> by_hand(30).guarantee
        'Set by hand: nothing is known of how many normal pictures are above it.'
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"threshold: a number is needed, got {value!r}") from error
    guarantee = "Set by hand: nothing is known of how many normal pictures are above it."
    return Threshold(value=number, rate=None, n=0, method="by hand", guarantee=guarantee, reason="")


def pictures_needed(rate: float, views: int = 1) -> int:
    """The fewest normal pictures that support a false-alarm rate, or a share `1 / views` of it.

    Example:
        >>> pictures_needed(0.05), pictures_needed(0.05, views=3)
        (19, 59)
    """
    return math.ceil(views / _exact(rate)) - 1


def for_each_view(scores: ArrayLike, rate: float, views: int) -> float | None:
    """The threshold for each view of a part, so that at most a share `rate` of normal parts has any
    view above: that of `calibrate` at `rate / views` (Bonferroni); None where n is too small.

    Args: scores: n raw scores of normal pictures. views: of a part, at least 1.
    Raises: as `calibrate`.

    Example:
        >>> for_each_view(range(1, 60), 0.1, 1), for_each_view(range(1, 60), 0.1, 3)
        (54.0, 58.0)
    """
    values, exact = _checked(scores), _exact(rate) / views
    return _smallest(values, math.ceil((values.size + 1) * (1 - exact)))


def calibrate(
    scores: ArrayLike,
    rate: float,
    *,
    method: Method,
    required: bool,
    remark: str = "",
    of: Of = "alarm",
) -> Threshold:
    """The lowest of the scores that keeps the false-alarm rate.

    Args:
        scores: n raw scores of normal pictures, held out ("split conformal") or left out in turn
            ("leave-one-out").
        rate: false alarms among normal pictures, in (0, 1), taken as the decimal number that it
            prints as.
        required: whether too few scores are an error; otherwise the value is None.
        remark: what is to be said beside how few there are.
        of: what happens above it: an alarm, or a region of the map is shown; "part": an alarm, of a
            whole part, for which the scores are those of n parts.
    Raises: ConfigError for a rate or method out of range or scores that are not one list;
        NonFiniteError for a score that is not finite; CalibrationError when required and there are
        too few.

    Example:
        >>> calibrate(range(1, 100), 0.05, method="split conformal", required=True).value
        95.0
        >>> calibrate([0.3, 0.4], 0.05, method="split conformal", required=False).reason[:61]
        'a false-alarm rate of 5 % needs at least 19 normal pictures t'
    """
    known = get_args(Method)[:2]
    if method not in known:
        raise unknown_name("calibration method", method, known)
    exact = _exact(rate)
    values = _checked(scores)
    n = values.size
    k = math.ceil((n + 1) * (1 - exact))
    value = _smallest(values, k)
    if value is not None:
        return Threshold(
            value=value,
            rate=rate,
            n=n,
            method=method,
            guarantee=_guarantee(method, rate, n, k, of),
            reason="",
        )
    units = "parts" if of == "part" else "pictures"
    reason = (
        f"a false-alarm rate of {100 * rate:.4g} % needs at least {pictures_needed(rate)} normal "
        f"{units} to calibrate on, and {there_are(n)}" + (f"; {remark}" if remark else "")
    )
    if required:
        lowest = -(-1000 // (n + 1)) / 10  # per cent, rounded up so that it is enough
        ask = f", or ask for a rate of {lowest:g} % or more" if n else ""
        raise CalibrationError(f"{reason}; add {units}{ask}")
    return Threshold(value=None, rate=rate, n=n, method=method, guarantee="", reason=reason)


def for_misses(scores: ArrayLike, rate: float) -> Threshold:
    """The highest threshold that misses at most a share of defects like the labelled ones.

    Args:
        scores: n raw scores of labelled defects that were not learned from.
        rate: the share that may be missed, in (0, 1).
    Raises: as `calibrate`, where the scores are too few for the rate.

    Example:
        >>> for_misses([4.0, 2.0, 9.0], 0.25).value < 2.0 < for_misses([4.0, 2.0, 9.0], 0.5).value
        True
    """
    exact = _exact(rate, "miss rate")
    values = _checked(scores)
    n = values.size
    k = math.floor((n + 1) * exact)
    if k < 1:
        raise CalibrationError(
            f"a miss rate of {100 * rate:.4g} % needs at least {pictures_needed(rate)} labelled "
            f"defects that were not learned from, and {there_are(n)}; add defects, or ask for more"
        )
    # Just below the k-th lowest: only a defect that scores less is missed.
    value = math.nextafter(float(np.partition(values, k - 1)[k - 1]), -math.inf)
    guarantee = (
        f"A new defect is missed with probability at most {100 * rate:.4g} %, on average over "
        f"draws of the {n} labelled defects and provided that it is exchangeable with them: of the "
        "same kinds, as often (split conformal). How many normal pictures raise a false alarm is "
        "not bounded."
    )
    return Threshold(
        value=value, rate=rate, n=n, method="labelled defects", guarantee=guarantee, reason=""
    )


def p_value(score: float, ordered: NDArray[np.float64]) -> float | None:
    """The conformal p-value of a score: how likely a normal picture scores as high, in (0, 1].

    At most a share p of new normal pictures has a p-value of p or less, if they are exchangeable
    with those of the scores (Vovk, Gammerman & Shafer 2005).

    Args: ordered: the n calibration scores, rising; None is returned where there are none.

    Example:
        >>> p_value(2.5, np.array([1.0, 2.0, 3.0]))
        0.5
    """
    if not len(ordered):
        return None
    higher = len(ordered) - int(np.searchsorted(ordered, score, side="left"))
    return (1 + higher) / (len(ordered) + 1)


def verdict(score: float, threshold: float | None) -> int | None:
    """1 (anomalous) if the score is above the threshold, else 0 (normal); None without a threshold.

    Raises: NonFiniteError for a score or threshold that is NaN or infinite: it is never called
    normal.

    Example:
        >>> verdict(2.0, 1.5), verdict(1.5, 1.5), verdict(2.0, None)
        (1, 0, None)
    """
    if not math.isfinite(score) or (threshold is not None and not math.isfinite(threshold)):
        raise NonFiniteError(
            f"no verdict on a score of {score} with a threshold of {threshold}; finite numbers are "
            "needed"
        )
    if threshold is None:
        return None
    return ANOMALOUS if score > threshold else NORMAL


def _checked(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise ConfigError(
            f"calibration scores have shape {values.shape}; one score a picture is needed"
        )
    if not np.isfinite(values).all():
        raise NonFiniteError(
            f"{np.count_nonzero(~np.isfinite(values))} of {values.size} calibration scores are NaN "
            "or infinite"
        )
    return values


def _smallest(values: NDArray[np.float64], k: int) -> float | None:
    """The k-th smallest; None where there are fewer."""
    return float(np.partition(values, k - 1)[k - 1]) if k <= values.size else None


def _exact(rate: float, what: str = "false-alarm rate") -> Fraction:
    """The rate as the decimal that was written: 0.05 is 1/20, so that 20 × (1 - rate) is 19, not a
    little more.
    """
    if not 0 < rate < 1:
        raise ConfigError(f"{what}: {rate} is not between 0 and 1 (0.05 for 5 %)")
    return Fraction(str(float(rate)))


def _guarantee(method: Method, rate: float, n: int, k: int, of: Of) -> str:
    happens, happen = _EVENTS[of]
    unit = "part" if of == "part" else "picture"
    percent = f"{100 * rate:.4g} %"
    if method == "leave-one-out":
        return (
            f"About {percent} of new normal pictures, usually fewer, {happen}: the "
            f"threshold is the jackknife's, from {n} training pictures each scored as if it had "
            "not been learned from, which is approximate and has no distribution-free bound in "
            "the worst case (even jackknife+ promises only twice the rate; Barber et al. 2021)."
        )
    low, high = (f"{100 * quantile(n + 1 - k, k, p):.3g} %" for p in (0.05, 0.95))
    return (
        f"A new normal {unit} {happens} with probability at most {percent}, on average "
        f"over draws of the {n} held-out normal {unit}s and provided that it is exchangeable with "
        f"them (split conformal); the long-run rate of one such draw follows Beta({n + 1 - k}, "
        f"{k}): between {low} and {high} in 90 % of draws, lower where scores tie."
    )
