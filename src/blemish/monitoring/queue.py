"""What to review next: what teaches most, and a random share for honest figures.

Four reasons, each with its share of the reviewing: pictures near the threshold, pictures on which
versions disagree, pictures unlike all that is known, and any picture at random. `draws` says how
the shares become an order with known chances.

Scores are measured in ranks (the share of recent pictures that score as high), so no reason has a
unit and none depends on how a method's scores are spread. Unlike all that is known is a picture far
from every one that was reviewed before it came, and from the first ones that raised no alarm; far
is measured by what is usual. What a picture's sizes are depends on pictures that came before it,
and on what people had said of these, never on its own waiting time, so the chances stay known.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blemish.errors import ConfigError, NonFiniteError
from blemish.monitoring.draws import RANDOM, Draw, race

REASONS = ("threshold", "disagreement", "unseen")
_RECENT = 1000  # scores of each version that ranks are told by
_FIRST = 256  # pictures of which those without an alarm are the reference,
_REFERENCE = 128  # and how many of these are kept
_REVIEWED = 256  # descriptors that stand for what was reviewed
_SPACES = 4  # that are kept apart, those used last
_USUAL = {"threshold": 0.25, "disagreement": 0.1}  # before any picture came
_LARGEST = 20.0  # times the mean that a reason may make of one picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What one version said of a picture. Attributes: score: finite. threshold: None for none."""

    version: str
    score: float
    threshold: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A picture that may be reviewed.

    Attributes:
        picture: its digest.
        opinions: of the live version first, then of others that saw the picture.
        descriptor: D numbers that place it among others (an embedding made short, or `outline`);
            None for none.
        space: which descriptors it is compared with: of one space all have one length.
    """

    picture: str
    opinions: tuple[Opinion, ...]
    descriptor: tuple[float, ...] | None = None
    space: str = ""

    def __post_init__(self) -> None:
        numbers = [one.score for one in self.opinions] + list(self.descriptor or ())
        numbers += [one.threshold for one in self.opinions if one.threshold is not None]
        if not self.opinions:
            raise ConfigError(f"picture {self.picture}: no version has scored it")
        if not all(math.isfinite(number) for number in numbers):
            raise NonFiniteError(f"picture {self.picture}: a score or descriptor is not finite")


def outline(regions: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> tuple[float, ...]:
    """A descriptor for where none is at hand: how many regions stand out, how large and where.

    Args: regions: of the picture, as `Region.to_dict` has them, with "box" (x, y, width, height in
        pixels) and "share" of the picture, in any order. size: (H, W) of the picture.
    Returns: 6 numbers that differ by about 1 between pictures that look different: of the number of
        regions and of their share the logarithm, and of the largest the middle (x, y), the
        logarithm of its share and that of width / height. Zeros where nothing stands out.
    Raises: ConfigError for regions without these.

    Example:
        >>> outline([{"box": [0, 0, 50, 50], "share": 0.25}], (100, 100))[2:4]
        (0.5, 0.5)
    """
    if not regions:
        return (0.0,) * 6
    try:
        largest = max(regions, key=lambda one: (one["share"], tuple(one["box"])))
        x, y, width, height = largest["box"]
        shares = [float(one["share"]) for one in regions]
        numbers = (
            math.log2(1 + len(regions)),
            math.log10(1 + 1e4 * sum(shares)),
            2 * (x + width / 2) / size[1],
            2 * (y + height / 2) / size[0],
            math.log10(1 + 1e4 * max(shares)),
            math.log2(width / height) / 2,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"regions without a box and a share in a picture of {size}") from error
    return numbers


class Queue:
    """Places pictures in the order of the review, one by one as they come.

    Args:
        seed: any text or number; the same seed and the same pictures give the same order.
        random: the share of the reviewing that is by chance, in [0.05, 1].
        shares: of the rest, by reason; reasons that cannot be told of a picture (no other version,
            no descriptor) give theirs to the threshold.
    Raises: ConfigError for shares that are none.

    Example:
        >>> queue = Queue(seed="screws")
        >>> seen = (Opinion(version="3", score=1.2, threshold=1.3),)
        >>> draw = queue.place(Candidate(picture="ab12", opinions=seen))
        >>> draw.priority > 0, queue.place(Candidate(picture="ab12", opinions=seen)) == draw
        (True, True)
    """

    def __init__(
        self,
        *,
        seed: str | int,
        random: float = 0.2,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        shares = shares or {"threshold": 0.5, "disagreement": 0.25, "unseen": 0.25}
        total = sum(shares.values())
        if not 0.05 <= random <= 1 or set(shares) - set(REASONS) or not total > 0:
            raise ConfigError(
                f"the random share is {random:g} and the others are {dict(shares)}; needed: "
                f"0.05 to 1, and shares of {', '.join(REASONS)}"
            )
        if min(shares.values()) < 0:
            raise ConfigError(f"a share of the review cannot be negative: {dict(shares)}")
        self.seed = seed
        self.random = random
        self.shares = {name: shares.get(name, 0.0) / total for name in REASONS}
        self._usual = {name: (value, 10) for name, value in _USUAL.items()}  # mean, count
        self._recent: dict[str, deque[float]] = {}
        self._ordered: dict[str, list[float]] = {}  # the same scores, rising
        self._spaces: dict[str, _Space] = {}  # the one used last is last
        self._placed: dict[str, Draw] = {}

    def place(self, candidate: Candidate) -> Draw:
        """Where a picture that has just come stands. Keep the draw; never place it twice, except
        that a copy among the last 1,000 gets the same draw again."""
        known = self._placed.get(candidate.picture)
        if known is not None:
            return known
        told = self._told(candidate)
        sizes = self._sizes(told)
        draw = race(candidate.picture, sizes, seed=self.seed)
        self._learn(candidate, told)
        self._placed[candidate.picture] = draw
        if len(self._placed) > _RECENT:
            del self._placed[next(iter(self._placed))]
        return draw

    def cover(self, descriptor: Sequence[float], space: str = "") -> None:
        """Somebody has decided on a picture: pictures like it are unseen no longer. Changes nothing
        of what is placed. Args: as of `Candidate`."""
        self._space(space).cover(descriptor)

    def _sizes(self, told: Mapping[str, float]) -> dict[str, float]:
        sizes = {RANDOM: self.random}
        rest = 1 - self.random
        for name in REASONS:
            share = self.shares[name]
            if name == "threshold":
                share += sum(self.shares[each] for each in REASONS if each not in told)
            if name in told:
                usual = told["usual"] if name == "unseen" else self._usual[name][0]
                relative = told[name] / usual
                sizes[name] = rest * share * min(relative, _LARGEST)
        return sizes

    def _told(self, candidate: Candidate) -> dict[str, float]:
        """How much each reason speaks for a picture, >= 0; a reason that cannot be told is
        missing. Of "unseen", what is "usual" too."""
        live, *others = candidate.opinions
        apart = self._apart(live)
        # Alarms are few and teach on either verdict, so they lose less by being far away.
        told = {"threshold": math.exp(-apart / 4 if apart > 0 else apart)}
        if others:
            beside = [self._apart(other) for other in others]
            split = any((apart > 0) != (each > 0) for each in beside)
            told["disagreement"] = split + min(max(abs(apart - each) for each in beside) / 8, 1)
        if candidate.descriptor is not None:
            space = self._space(candidate.space)
            told |= {"unseen": space.distance(candidate.descriptor), "usual": space.mean}
        return told

    def _space(self, name: str) -> _Space:
        found = self._spaces.pop(name, None) or _Space()
        self._spaces[name] = found
        while len(self._spaces) > _SPACES:
            del self._spaces[next(iter(self._spaces))]
        return found

    def _apart(self, opinion: Opinion) -> float:
        """How far above its threshold a score is, in log odds of the rank."""
        ordered = self._ordered.get(opinion.version, [])
        own = _odds(ordered, opinion.score)
        if opinion.threshold is None:
            return own - math.log(0.95 / 0.05)  # the highest twentieth is what is doubtful
        apart = own - _odds(ordered, opinion.threshold)
        # Between the same two scores ranks are equal; the side is still known.
        return apart or (1e-9 if opinion.score > opinion.threshold else -1e-9)

    def _learn(self, candidate: Candidate, told: Mapping[str, float]) -> None:
        for name, (mean, count) in self._usual.items():
            if name in told:
                count = min(count + 1, _RECENT)
                self._usual[name] = (max(mean + (told[name] - mean) / count, 1e-12), count)
        for opinion in candidate.opinions:
            recent = self._recent.setdefault(opinion.version, deque(maxlen=_RECENT))
            ordered = self._ordered.setdefault(opinion.version, [])
            if len(recent) == _RECENT:
                del ordered[bisect.bisect_left(ordered, recent[0])]
            recent.append(opinion.score)
            bisect.insort(ordered, opinion.score)
        if candidate.descriptor is not None:
            live = candidate.opinions[0]
            quiet = live.threshold is None or live.score <= live.threshold
            self._space(candidate.space).learn(candidate.descriptor, told["unseen"], quiet)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready state: at most some thousand numbers, and some hundred descriptors of each of
        four spaces."""
        return {
            "seed": self.seed,
            "random": self.random,
            "shares": self.shares,
            "usual": {name: list(pair) for name, pair in self._usual.items()},
            "recent": {version: list(scores) for version, scores in self._recent.items()},
            "spaces": {name: space.to_dict() for name, space in self._spaces.items()},
            "placed": [draw.to_dict() for draw in self._placed.values()],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Queue:
        """What `to_dict` wrote. Raises: ConfigError for what is no such state."""
        try:
            found = cls(seed=values["seed"], random=values["random"], shares=values["shares"])
            found._usual = {name: tuple(values["usual"][name]) for name in _USUAL}
            for version, scores in values["recent"].items():
                found._recent[version] = deque(scores, maxlen=_RECENT)
                found._ordered[version] = sorted(found._recent[version])
            for name, space in values.get("spaces", {}).items():  # not written at first
                found._spaces[name] = _Space.from_dict(space)
            draws = [Draw.from_dict(each) for each in values["placed"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"not the state of a review queue: {error}") from error
        found._placed = {draw.picture: draw for draw in draws}
        return found


class _Space:
    """What is known of pictures, by descriptors that can be compared.

    Attributes: mean: how far away from all that is known pictures are, on average.
    """

    def __init__(self) -> None:
        self.mean, self._count = 1.0, 0
        self._seen = 0
        self._reference: list[list[float]] = []
        self._reviewed: deque[list[float]] = deque(maxlen=_REVIEWED)
        self._known: NDArray[np.float64] | None = None  # both, until either changes

    def distance(self, descriptor: Sequence[float]) -> float:
        """To what is known; the mean where nothing is.

        Raises: ConfigError for a descriptor of another length than those before.
        """
        if not (self._reference or self._reviewed):
            return self.mean
        if self._known is None:
            self._known = np.array([*self._reference, *self._reviewed], np.float64)
        if self._known.shape[1] != len(descriptor):
            raise ConfigError(
                f"a descriptor has {len(descriptor)} numbers, those before had "
                f"{self._known.shape[1]}; give those of another backbone another space"
            )
        return float(np.sqrt(((self._known - np.asarray(descriptor)) ** 2).sum(1).min()))

    def learn(self, descriptor: Sequence[float], distance: float, quiet: bool) -> None:
        """Take in a picture that was placed. Args: quiet: whether it raised no alarm."""
        self._seen += 1
        if self._reference or self._reviewed:
            self._count = min(self._count + 1, _RECENT)
            step = (distance - self.mean) / self._count  # the first sets the unit
            self.mean = max(self.mean + step, 1e-12)
        far = not self._reference or distance >= self.mean
        if quiet and far and self._seen <= _FIRST and len(self._reference) < _REFERENCE:
            self._reference.append([float(each) for each in descriptor])
            self._known = None

    def cover(self, descriptor: Sequence[float]) -> None:
        """Take in a picture that was reviewed, unless one is known that is nearly the same."""
        known = self._reference or self._reviewed
        if not known or self.distance(descriptor) > self.mean / 4:
            self._reviewed.append([float(each) for each in descriptor])
            self._known = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "mean": self.mean,
            "count": self._count,
            "seen": self._seen,
            "reference": self._reference,
            "reviewed": list(self._reviewed),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> _Space:
        """What `to_dict` gave."""
        found = cls()
        found.mean, found._count = float(values["mean"]), int(values["count"])
        found._seen = int(values["seen"])
        found._reference = [list(each) for each in values["reference"]]
        found._reviewed.extend(list(each) for each in values["reviewed"])
        return found


def _odds(ordered: Sequence[float], value: float) -> float:
    """log odds of the share of the scores below a value, with half a score on both sides."""
    below = (bisect.bisect_left(ordered, value) + bisect.bisect_right(ordered, value)) / 2
    return math.log((below + 0.5) / (len(ordered) - below + 0.5))
