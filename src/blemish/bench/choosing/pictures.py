"""Which of a user's pictures are learned from, which choose, and which tell afterwards how good the
choice is.

Good pictures that choose are left out of what is learned. Labelled defects are divided into some
that choose and some that do not, as good as they can be by kind of defect; the latter, with as many
good pictures that did not choose either, give figures that the choice has not made look better.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from blemish.bench.choosing.advice import ENOUGH
from blemish.data.pictures import Pictures, hold_out_positions
from blemish.data.splits import shuffled
from blemish.errors import DataError
from blemish.text import there_are
from blemish.types import Sample

FEWEST = 12  # good pictures: some to learn from, some to judge by
LEARNED = 200  # at most
LEFT_OUT = 0.3  # of the good pictures, to choose by
CHOOSING = 60  # good pictures, at most; half as many check
DEFECTS = 100  # labelled ones, at most, in each part
FEW_DEFECTS = 2 * ENOUGH  # fewer all choose: a half of them could not


@dataclass(frozen=True)
class Division:
    """The pictures by what they are for, each part in an order of which a beginning is a fair
    draw.

    Attributes:
        learned: good, learned from.
        good: left out, to choose by. defects: labelled, to choose by.
        checking_good, checking_defects: those that do not choose; empty without labelled defects,
            or with too few of them.
    """

    learned: tuple[Sample, ...]
    good: tuple[Sample, ...]
    defects: tuple[Sample, ...] = ()
    checking_good: tuple[Sample, ...] = ()
    checking_defects: tuple[Sample, ...] = ()

    def absolute(self) -> Division:
        """The same, by names that hold in any folder."""
        parts = {
            name: tuple(replace(one, path=one.path.absolute()) for one in samples)
            for name, samples in vars(self).items()
        }
        return Division(**parts)

    def reduced(self, share: float) -> Division:
        """The beginning of each part: this share of it, but no fewer than is worth anything."""

        def some(samples: Sequence[Sample], fewest: int) -> tuple[Sample, ...]:
            return tuple(samples[: max(fewest, round(share * len(samples)))])

        return replace(
            self,
            learned=some(self.learned, 24),
            good=some(self.good, 15),
            defects=some(self.defects, 15),
            checking_good=some(self.checking_good, 10),
            checking_defects=some(self.checking_defects, 15),
        )


def divided(good: Pictures, defects: Sequence[Sample] = (), *, seed: int = 0) -> Division:
    """Good pictures, and labelled defects, divided by the seed; of several categories each by
    itself.

    Raises: DataError for fewer than 12 good pictures.
    """
    count = len(good.samples)
    if count < FEWEST:
        raise DataError(
            f"to compare at least {FEWEST} good pictures are needed, to learn from some and judge "
            f"by others; {there_are(count, 'picture')}"
        )
    checks = len(defects) >= FEW_DEFECTS
    share = min(LEFT_OUT, CHOOSING / count)
    kept, choosing = map(good.only, hold_out_positions(good, share, seed))
    checking: Sequence[Sample] = ()
    if checks:
        share = len(choosing.samples) / 2 / len(kept.samples)
        kept, held = map(kept.only, hold_out_positions(kept, share, seed))
        checking = shuffled(held.samples, seed)
    learned = shuffled(kept.samples, seed)[:LEARNED]
    judging, others = halves(defects, seed) if checks else (list(defects), [])
    return Division(
        learned=tuple(learned),
        good=tuple(shuffled(choosing.samples, seed)),
        defects=tuple(judging[:DEFECTS]),
        checking_good=tuple(checking),
        checking_defects=tuple(others[:DEFECTS]),
    )


def halves(defects: Iterable[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """Labelled defects in two parts, drawn by the seed, each kind of defect in both as evenly as
    can be; the first part has the odd one."""
    kinds: dict[str, list[Sample]] = defaultdict(list)
    for sample in shuffled(defects, seed):
        kinds[sample.defect].append(sample)
    # Dealt out kind by kind: consecutive ones go to different parts, also across kinds.
    dealt = [sample for kind in sorted(kinds) for sample in kinds[kind]]
    parts = dealt[::2], dealt[1::2]
    return shuffled(parts[0], seed), shuffled(parts[1], seed)
