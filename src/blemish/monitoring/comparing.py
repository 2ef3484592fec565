"""Whether two sets of pictures differ, by their scores or by their embeddings: the energy test.

The energy distance of two sets (Székely & Rizzo 2004; Baringhaus & Franz 2004) is twice the mean
distance between a member of one and a member of the other, less the mean distances within each: 0
only if both have the same distribution, in any number of dimensions, with nothing to be tuned (it
is a maximum mean discrepancy with the distance as its kernel: Sejdinovic et al. 2013). How large
it is by chance is seen by dividing the pictures at random into two sets of the same sizes, again
and again; the share of these in which it is as large or larger, the division at hand among them, is
a p-value that holds exactly for sets of any size (Phipson & Smyth 2010: "Permutation p-values
should never be zero"). It holds too where dividing ends as soon as some were as large (Besag &
Clifford 1991, "Sequential Monte Carlo p-values"): what could as well be chance is told at once.

With many pictures a difference that nobody would see is no chance either. How much they differ is
told by `Comparison.share`, and `Looks` may ask for both.

`Looks` compares window after window with one reference and keeps count, so that looking often does
not make false alarms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blemish.errors import ConfigError, NonFiniteError

Floats = NDArray[np.float64]
_LARGEST = 2000  # pictures of a set
_AT_ONCE = 1000  # divisions,
_AT_FIRST = 100  # as most windows are alike
_ENOUGH = 10  # as far apart: no change


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How two sets differ. Attributes: distance: energy distance after every dimension was divided
    by its standard deviation over both, >= 0. share: of the mean distance between pictures of
    different sets, as much as is not found within the sets too, in [0, 1]: 0 for sets that are
    alike, 1 for two points. p_value: in (0, 1]. first, second: their sizes."""

    distance: float
    share: float
    p_value: float
    first: int
    second: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def compare(
    first: ArrayLike,
    second: ArrayLike,
    *,
    permutations: int = 999,
    enough: int | None = None,
    seed: int = 0,
) -> Comparison:
    """The energy test of two sets of scores or embeddings.

    Args: first, second: N or N×D and M or M×D finite numbers, 2 to 2,000 each. permutations: random
        divisions, at least 19; the p-value is at least 1 / (permutations + 1). enough: end once so
        many were as far apart, at least 5; None = make all.
    Raises: ConfigError for sets that do not go together; NonFiniteError for a number in them.

    Example:
        >>> compare([1, 2, 3, 4, 5], [11, 12, 13, 14, 15], permutations=199).p_value < 0.05
        True
    """
    a, b = (_rows(one) for one in (first, second))
    if a.shape[1] != b.shape[1] or permutations < 19 or (enough is not None and enough < 5):
        raise ConfigError(
            f"cannot compare rows of {a.shape[1]} numbers with rows of {b.shape[1]} by "
            f"{permutations} permutations, {enough} of them enough; needed: as many, at least 19, "
            "and at least 5"
        )
    rows = np.concatenate([a, b])
    spread = rows.std(0)
    rows = (rows - rows.mean(0))[:, spread > 0] / spread[spread > 0]
    squares = (rows**2).sum(1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0))
    np.fill_diagonal(apart, 0)
    member = np.arange(len(rows)) < len(a)
    found = float(_energies(apart, member[None])[0])
    across = float(apart[: len(a), len(a) :].mean())
    within = [
        float(one.sum()) / (len(one) * (len(one) - 1))
        for one in (apart[: len(a), : len(a)], apart[len(a) :, len(a) :])
    ]
    share = (2 * across - sum(within)) / (2 * across) if across > 0 else 0.0
    return Comparison(
        distance=max(found, 0),
        share=min(max(share, 0.0), 1.0),
        p_value=_p_value(apart, member, found, permutations, enough, seed),
        first=len(a),
        second=len(b),
    )


def _p_value(
    apart: Floats,
    member: NDArray[np.bool_],
    found: float,
    permutations: int,
    enough: int | None,
    seed: int,
) -> float:
    """The share of the random divisions at least as far apart, as `compare` says."""
    random = np.random.default_rng(seed)
    at_least, done = 0, 0
    least = found - 1e-10 * (1 + found)  # what differs by rounding alone is equal
    while done < permutations:
        many = min(permutations - done, _AT_ONCE if done else _AT_FIRST)
        divided = random.permuted(np.tile(member, (many, 1)), axis=1)
        as_far = np.cumsum(_energies(apart, divided) >= least)
        if enough is not None and at_least + as_far[-1] >= enough:
            return enough / (done + 1 + int(np.searchsorted(as_far, enough - at_least)))
        at_least += int(as_far[-1])
        done += many
    return (1 + at_least) / (permutations + 1)


def _rows(values: ArrayLike) -> Floats:
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cannot compare what are no numbers: {error}") from error
    found = found[:, None] if found.ndim == 1 else found
    if found.ndim != 2 or not 2 <= len(found) <= _LARGEST or not found.shape[1]:
        raise ConfigError(f"2 to {_LARGEST} rows of numbers are needed, got shape {found.shape}")
    if not np.isfinite(found).all():
        raise NonFiniteError("a number to compare is not finite")
    return found


def _energies(apart: Floats, members: NDArray[np.bool_]) -> Floats:
    """The energy distance of each of P divisions. Args: apart: L×L distances. members: P×L."""
    inside = members.astype(np.float64)
    count = inside.sum(1)
    others = len(apart) - count
    sums = apart.sum(1)
    within = ((inside @ apart) * inside).sum(1)
    touching = inside @ sums
    rest = sums.sum() - 2 * touching + within
    across = touching - within
    return np.asarray(2 * across / (count * others) - within / count**2 - rest / others**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One window compared with the reference. Attributes: number: from 1. differs: whether its
    p-value is at most `level`, and the sets differ by as much as was asked for."""

    number: int
    comparison: Comparison
    level: float
    differs: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


class Looks:
    """Compares each window of pictures with the first ones, and keeps count of the looks.

    The first pictures are the reference, if none is given. After that every full window is one
    look, at alpha / per: among any `per` looks in a row a false alarm comes with probability at
    most alpha (Bonferroni, for any dependence: all look at one reference), if the pictures of
    reference and window are exchangeable. An alarm stands; looks after it say whether it still
    holds, at a level of 1 %.

    Args:
        alpha: in (0, 0.5]. per: looks that alpha is for: those of a month, say.
        window: pictures, 20 to 2,000. first: of the reference, as many; None = as the window has.
        least: the `Comparison.share` below which no difference is an alarm, in [0, 1).
        seed: of the divisions.
        reference: R×D (R up to 2,000), fixed beforehand.
    Attributes: pictures: how many were added; since: with which of them the alarm came, 0 for none;
        last: the latest look; count: of the looks.
    Raises: ConfigError for values out of range.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.05,
        per: int = 30,
        window: int = 200,
        first: int | None = None,
        least: float = 0.0,
        seed: int = 0,
        reference: ArrayLike | None = None,
    ) -> None:
        first = window if first is None else first
        sizes = all(20 <= size <= _LARGEST for size in (window, first))
        if not 0 < alpha <= 0.5 or per < 1 or not sizes or not 0 <= least < 1:
            raise ConfigError(
                f"alpha {alpha}, per {per}, window {window}, first {first}, least {least}: needed "
                f"are alpha in (0, 0.5], per from 1, a window and a reference of 20 to {_LARGEST} "
                "and least in [0, 1)"
            )
        self.alpha, self.per, self.window, self.seed = alpha, per, window, seed
        self.first, self.least = first, least
        self.count = self.pictures = self.since = 0
        self.last: Look | None = None
        self._reference = [] if reference is None else _rows(reference).tolist()
        self._fixed = reference is not None
        self._recent: list[list[float]] = []

    def add(self, row: float | ArrayLike) -> Look | None:
        """Takes a picture's score or embedding in; a look where it fills a window.

        Raises: ConfigError for a row of another length than those before; NonFiniteError.
        """
        values = np.atleast_1d(np.asarray(row, np.float64))
        known = (self._reference or self._recent or [values.tolist()])[0]
        if values.ndim != 1 or len(values) != len(known):
            raise ConfigError(
                f"a row of shape {values.shape} after rows of {len(known)} numbers; begin anew for "
                "another backbone"
            )
        if not np.isfinite(values).all():
            raise NonFiniteError("a number to compare is not finite")
        self.pictures += 1
        if not self._fixed:
            self._reference.append(values.tolist())
            self._fixed = len(self._reference) == self.first
            return None
        self._recent.append(values.tolist())
        return self._look() if len(self._recent) == self.window else None

    def _look(self) -> Look:
        self.count += 1
        level = _STANDING if self.since else self.alpha / self.per
        found = compare(
            self._reference,
            self._recent,
            permutations=max(999, math.ceil(2 / level)),
            enough=_ENOUGH,
            seed=self.seed + self.count,
        )
        self._recent = []
        differs = found.p_value <= level and found.share >= self.least
        if differs and not self.since:
            self.since = self.pictures
        self.last = Look(number=self.count, comparison=found, level=level, differs=differs)
        return self.last

    @property
    def needed(self) -> int:
        """How many pictures are missing still before the first look."""
        if self.last is not None:
            return 0
        missing = 0 if self._fixed else self.first - len(self._reference)
        return missing + self.window - len(self._recent)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready state: the rows of the reference and of the window begun."""
        return {
            **{name: getattr(self, name) for name in (*_SETTINGS, *_COUNTS)},
            "last": None if self.last is None else self.last.to_dict(),
            "reference": self._reference,
            "fixed": self._fixed,
            "recent": self._recent,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Looks:
        """What `to_dict` wrote. Raises: ConfigError for what is no such state."""
        try:
            found = cls(**{name: values[name] for name in _SETTINGS})
            for name in _COUNTS:
                setattr(found, name, int(values[name]))
            found._fixed = bool(values["fixed"])
            found._reference = [[float(x) for x in row] for row in values["reference"]]
            found._recent = [[float(x) for x in row] for row in values["recent"]]
            last = values["last"]
            if last is not None:
                compared = Comparison(**last["comparison"])
                found.last = Look(**{**last, "comparison": compared})
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not the state of such looks: {error}") from error
        return found


_SETTINGS = ("alpha", "per", "window", "first", "least", "seed")
_COUNTS = ("count", "pictures", "since")
_STANDING = 0.01  # the level of looks while an alarm stands
