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
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blemish.errors import ConfigError

Floats = NDArray[np.float64]
RANDOM = "random"
_EARLIER = ("start", "turn")  # 0 in records of before


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
    """

    picture: str
    stratum: str
    priority: float
    size: float
    share: float
    random: float

    @property
    def probability(self) -> float:
        """Of having come by the time at which it came, in (0, 1)."""
        return -math.expm1(-self.size * self.priority)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Draw:
        """What `to_dict` wrote. Raises: ConfigError for what is no draw."""
        own = {name: value for name, value in values.items() if name not in _EARLIER}
        try:
            found = cls(**{**own, "picture": str(values["picture"])})
            fit = found.priority > 0 and found.size >= found.share > 0
            fit = fit and not any(values.get(name) for name in _EARLIER)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"not the record of a draw: {error}") from error
        if not fit or not math.isfinite(found.priority + found.size):
            raise ConfigError(f"not the record of a draw: {dict(values)}")
        return found


def race(picture: str, sizes: Mapping[str, float], *, seed: object) -> Draw:
    """The draw of a picture: every reason runs a race of its own, and the first to come counts.

    Those for whom the random share has come are a simple random sample, by whatever reason they
    were shown earlier.

    Args: sizes: of each reason, >= 0; that of "random" > 0. seed: of the queue.
    Raises: ConfigError for sizes that are none.
    """
    share = sizes.get(RANDOM, 0.0)
    if not share > 0 or not all(0 <= size < math.inf for size in sizes.values()):
        raise ConfigError(f"a picture's sizes in the queue are {dict(sizes)}; needed: 'random' > 0")
    by_chance = -math.log(uniform(seed, RANDOM, picture)) / share
    times = {  # 0 keeps the times that they have had from the beginning
        reason: -math.log(uniform(seed, reason, 0, picture)) / size
        for reason, size in sizes.items()
        if size > 0 and reason != RANDOM
    }
    times[RANDOM] = by_chance
    first = min(times, key=times.__getitem__)
    return Draw(
        picture=picture,
        stratum=first,
        priority=times[first],
        size=sum(sizes.values()),
        share=share,
        random=by_chance,
    )


def weights(sizes: ArrayLike, clock: float) -> Floats:
    """How many pictures each reviewed one stands for: 1 / (the probability of having come), >= 1
    (Horvitz & Thompson 1952). The mean over all that may happen is 1 for every picture, where one
    that has not come counts 0.

    Args:
        sizes: R, > 0, of pictures that the clock has reached. That of the random share alone gives
            the most that any picture can weigh.
        clock: > 0, the priority of the next in line; infinite where none is left.
    Returns: R weights.
    """
    return np.asarray(1 / -np.expm1(-np.asarray(sizes, np.float64) * clock))
