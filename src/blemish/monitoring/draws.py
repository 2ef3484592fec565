"""How each picture came into the review: a race, whose rules give every picture a known chance.

Every picture draws a waiting time, and pictures are reviewed in the order of these: of the pictures
not yet reviewed, the next is any one of them with a chance in proportion to its size (successive
sampling: Rosén 1997, "Asymptotic theory for order sampling"; the times are exponential: Efraimidis
& Spirakis 2006). The clock of the race is the waiting time of the next in line: all before it are
reviewed. At clock c a picture of size s has come with probability 1 - exp(-s c), independently of
all others (Duffield, Lund & Thorup 2007, "Priority sampling for estimation of arbitrary subset
sums", for why the time of the next in line may be taken as if it had been fixed beforehand).

That is what makes it robust. Pictures that arrive later run the same race from 0, so no picture is
too late to be drawn and nothing that was drawn changes. How many reviewers there are, how long they
work and in which moment they stop does not matter. A label that is undone puts its picture back to
the head of the line. A label given without the queue counts once the clock has reached its picture,
and not before. Times depend on the seed and the picture's digest alone, so a restart changes
nothing.

Where sizes are set anew (another version was promoted), a new turn begins: who has not been drawn
goes on from the present clock with the new size, which is as if it had run so from the start, since
exponential times have no memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blemish.errors import ConfigError

Floats = NDArray[np.float64]
RANDOM = "random"


def uniform(*parts: object) -> float:
    """A number in (0, 1) that looks random and depends on the parts alone: SHA-256 of their text.

    Example:
        >>> uniform("seed", 7) == uniform("seed", 7) != uniform("seed", 8)
        True
    """
    text = "\x1f".join(str(part) for part in parts).encode()
    whole = int.from_bytes(hashlib.sha256(text).digest()[:7], "big") >> 3
    return (whole + 0.5) / 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How the queue placed a picture; never changed once the picture is reviewed.

    Attributes:
        picture: its digest.
        stratum: for what it is shown: "random", "threshold", "disagreement" or "unseen".
        priority: its waiting time, > 0: the lowest is reviewed next.
        size: how fast it comes, > 0; about 1 on average.
        share: the part of the size that is the same for all pictures, in (0, size].
        random: its waiting time in the random share alone; >= priority where it has not come yet.
        start: at which clock this size began to hold; 0 except after a new turn.
        turn: of the queue when it was placed, from 0.
    """

    picture: str
    stratum: str
    priority: float
    size: float
    share: float
    random: float
    start: float = 0.0
    turn: int = 0

    @property
    def probability(self) -> float:
        """Of having come by the time at which it came, in (0, 1)."""
        return -math.expm1(-self.size * (self.priority - self.start))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Draw:
        """What `to_dict` wrote. Raises: ConfigError for what is no draw."""
        try:
            found = cls(**{**values, "picture": str(values["picture"])})
            fit = found.priority > found.start >= 0 and found.size >= found.share > 0
        except (KeyError, TypeError) as error:
            raise ConfigError(f"not the record of a draw: {error}") from error
        if not fit or not math.isfinite(found.priority + found.size):
            raise ConfigError(f"not the record of a draw: {dict(values)}")
        return found


def race(
    picture: str, sizes: Mapping[str, float], *, seed: object, start: float = 0.0, turn: int = 0
) -> Draw:
    """The draw of a picture: every reason runs a race of its own, and the first to come counts.

    The random share runs from 0 with one time for good, whatever the turn: those for whom it has
    come are a simple random sample, by whatever reason they were shown earlier.

    Args: sizes: of each reason, >= 0; that of "random" > 0. seed: of the queue.
    Raises: ConfigError for sizes that are none.
    """
    share = sizes.get(RANDOM, 0.0)
    if not share > 0 or not all(0 <= size < math.inf for size in sizes.values()):
        raise ConfigError(f"a picture's sizes in the queue are {dict(sizes)}; needed: 'random' > 0")
    by_chance = -math.log(uniform(seed, RANDOM, picture)) / share
    times = {
        reason: start - math.log(uniform(seed, reason, turn, picture)) / size
        for reason, size in sizes.items()
        if size > 0 and reason != RANDOM
    }
    times[RANDOM] = by_chance
    if by_chance <= start:
        raise ConfigError(f"picture {picture} was drawn before clock {start:g} and keeps its place")
    first = min(times, key=times.__getitem__)
    return Draw(
        picture=picture,
        stratum=first,
        priority=times[first],
        size=sum(sizes.values()),
        share=share,
        random=by_chance,
        start=start,
        turn=turn,
    )


def weights(draws: Sequence[Draw], clock: float, turns: ArrayLike = ()) -> Floats:
    """How many pictures each reviewed one stands for: >= 1 as long as there was no new turn, a
    little less at times for one drawn in a later turn; 0 for one that the clock has not reached.

    Horvitz & Thompson 1952: 1 / (the probability of having come). With several turns, the mean of
    each turn's estimate weighted by how long it lasted: a picture drawn before a turn counts there
    as itself alone, one drawn in it for 1 / probability. The expected weight of every picture of
    the population, 0 where it is not drawn, is exactly 1; turn after turn this is the argument of
    Farquhar, Gal & Rainforth 2021 (LURE), with turns in place of single draws.

    Args:
        draws: R reviewed pictures.
        clock: the priority of the next in line; infinite where none is left.
        turns: the clocks at which turns 1, 2, … began, rising.
    Returns: R weights.
    """
    priority, size, began = (
        np.array([getattr(one, name) for one in draws], np.float64)
        for name in ("priority", "size", "start")
    )
    edges = np.r_[np.asarray(turns, np.float64), np.inf]
    # The turns after the one in which it was placed, whether its size was set anew then or not.
    first = np.minimum([one.turn for one in draws], len(edges) - 1).astype(np.int64)
    drawn_in = np.searchsorted(edges, priority, side="right")
    start = np.where(drawn_in > first, np.maximum(began, edges[drawn_in - 1]), began)
    end = np.minimum(clock, edges[np.maximum(drawn_in, first)])
    found = np.zeros(len(draws))
    kept = priority < clock
    found[kept] = _weight(size[kept], start[kept], end[kept], clock)
    return found


def heaviest(sizes: ArrayLike, clock: float, turns: ArrayLike = ()) -> Floats:
    """The most that pictures of these sizes can weigh, in whatever turn they come.

    Args: sizes: N, > 0; the random share alone bounds every picture. clock, turns: as `weights`.
    """
    inner = sorted({float(turn) for turn in np.asarray(turns, np.float64) if 0 < turn < clock})
    edges = [0.0, *inner, clock]
    spans = [(start, end) for at, start in enumerate(edges) for end in edges[at + 1 :]]
    each = [_weight(np.asarray(sizes, np.float64), *span, clock) for span in spans]
    return np.max(each, axis=0)  # type: ignore[no-any-return]


def _weight(size: Floats, start: Floats | float, end: Floats | float, clock: float) -> Floats:
    if math.isinf(clock):  # the last turn is without end and counts alone: all were drawn
        return np.ones_like(size)
    length = end - start
    return np.asarray((length / -np.expm1(-size * length) + clock - end) / clock)
