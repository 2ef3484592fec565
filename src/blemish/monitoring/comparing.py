"""Whether two sets of pictures differ, by their scores or by their embeddings: the energy test.

The energy distance of two sets (Székely & Rizzo 2004; Baringhaus & Franz 2004) is twice the mean
distance between a member of one and a member of the other, less the mean distances within each: 0
only if both have the same distribution, in any number of dimensions, with nothing to be tuned (it
is a maximum mean discrepancy with the distance as its kernel: Sejdinovic et al. 2013). How large
it is by chance is seen by dividing the pictures at random into two sets of the same sizes, again
and again; the share of these in which it is as large or larger, the division at hand among them, is
a p-value that holds exactly for sets of any size (Phipson & Smyth 2010: "Permutation p-values
should never be zero").

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
_AT_ONCE = 1000  # divisions


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How two sets differ. Attributes: distance: energy distance after every dimension was divided
    by its standard deviation over both, >= 0. p_value: in (0, 1]. first, second: their sizes."""

    distance: float
    p_value: float
    first: int
    second: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def compare(
    first: ArrayLike, second: ArrayLike, *, permutations: int = 999, seed: int = 0
) -> Comparison:
    """The energy test of two sets of scores or embeddings.

    Args: first, second: N or N×D and M or M×D finite numbers, 2 to 2,000 each. permutations: random
        divisions, at least 19; the p-value is a multiple of 1 / (permutations + 1).
    Raises: ConfigError for sets that do not go together; NonFiniteError for a number in them.

    Example:
        >>> compare([1, 2, 3, 4, 5], [11, 12, 13, 14, 15], permutations=199).p_value < 0.05
        True
    """
    a, b = (_rows(one) for one in (first, second))
    if a.shape[1] != b.shape[1] or permutations < 19:
        raise ConfigError(
            f"cannot compare rows of {a.shape[1]} numbers with rows of {b.shape[1]} by "
            f"{permutations} permutations; needed: as many, and at least 19"
        )
    rows = np.concatenate([a, b])
    spread = rows.std(0)
    rows = (rows - rows.mean(0))[:, spread > 0] / spread[spread > 0]
    squares = (rows**2).sum(1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0))
    np.fill_diagonal(apart, 0)
    member = np.arange(len(rows)) < len(a)
    found = float(_energies(apart, member[None])[0])
    random = np.random.default_rng(seed)
    at_least, left = 0, permutations
    while left:
        many = min(left, _AT_ONCE)
        divided = random.permuted(np.tile(member, (many, 1)), axis=1)
        # What differs by rounding alone is equal.
        at_least += int((_energies(apart, divided) >= found - 1e-10 * (1 + found)).sum())
        left -= many
    p_value = (1 + at_least) / (permutations + 1)
    return Comparison(distance=max(found, 0), p_value=p_value, first=len(a), second=len(b))


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
    """One window compared with the reference. Attributes: number: from 1. alarm: whether its
    p-value is at most `level`. words: what it means."""

    number: int
    comparison: Comparison
    level: float
    alarm: bool
    words: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


class Looks:
    """Compares each window of pictures with the first ones, and keeps count of the looks.

    The first `window` pictures are the reference, if none is given. After that every full window is
    one look, at alpha / per: among any `per` looks in a row a false alarm comes with probability at
    most alpha (Bonferroni, for any dependence: all look at one reference), if the pictures of
    reference and window are exchangeable.

    Args:
        alpha: in (0, 0.5]. per: looks that alpha is for: those of a month, say.
        window: pictures, 20 to 2,000. seed: of the divisions.
        reference: R×D (R up to 2,000), fixed beforehand.
        source: what is compared, for the words: "scores" or "embeddings".
    Raises: ConfigError for values out of range.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.05,
        per: int = 30,
        window: int = 200,
        seed: int = 0,
        reference: ArrayLike | None = None,
        source: str = "embeddings",
    ) -> None:
        if not 0 < alpha <= 0.5 or per < 1 or not 20 <= window <= _LARGEST:
            raise ConfigError(
                f"alpha {alpha}, per {per}, window {window}: needed are alpha in (0, 0.5], per "
                f"from 1 and a window of 20 to {_LARGEST}"
            )
        self.alpha, self.per, self.window, self.seed = alpha, per, window, seed
        self.source = source
        self.count = 0
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
        if not self._fixed:
            self._reference.append(values.tolist())
            self._fixed = len(self._reference) == self.window
            return None
        self._recent.append(values.tolist())
        return self._look() if len(self._recent) == self.window else None

    def _look(self) -> Look:
        self.count += 1
        level = self.alpha / self.per
        found = compare(
            self._reference,
            self._recent,
            permutations=max(999, math.ceil(5 / level)),
            seed=self.seed + self.count,
        )
        self._recent = []
        alarm = found.p_value <= level
        return Look(
            number=self.count,
            comparison=found,
            level=level,
            alarm=alarm,
            words=self._words(found, alarm),
        )

    def _words(self, found: Comparison, alarm: bool) -> str:
        if not alarm:
            return (
                f"The {self.source} of the last {found.second} pictures could as well be those of "
                f"the {found.first} they are compared with (p = {found.p_value:.3g})."
            )
        return (
            f"The {self.source} of the last {found.second} pictures differ from those of the "
            f"{found.first} they are compared with (p = {found.p_value:.2g}; in {self.per} looks "
            f"such an alarm comes without a change with probability at most {100 * self.alpha:g} "
            "%). Look at the newest pictures beside the older ones. Where they show what they "
            "should and scores have not changed either, go on with a new reference; else see to "
            "camera and light, or teach the detector the new pictures."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready state: the rows of the reference and of the window begun."""
        settings = ("alpha", "per", "window", "seed", "source", "count")
        return {
            **{name: getattr(self, name) for name in settings},
            "reference": self._reference,
            "fixed": self._fixed,
            "recent": self._recent,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Looks:
        """What `to_dict` wrote. Raises: ConfigError for what is no such state."""
        try:
            names = ("alpha", "per", "window", "seed", "source")
            found = cls(**{name: values[name] for name in names})
            found.count, found._fixed = int(values["count"]), bool(values["fixed"])
            found._reference = [[float(x) for x in row] for row in values["reference"]]
            found._recent = [[float(x) for x in row] for row in values["recent"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not the state of such looks: {error}") from error
        return found
