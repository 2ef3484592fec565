"""Whether the pictures of a model look otherwise than they did at first: their descriptors,
compared window by window (`monitoring.comparing`).

The first pictures that a version scores are the reference. Pictures that raise an alarm do not take
part, on either side: how many there are is watched by the scores' monitors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blemish.monitoring.comparing import Looks
from blemish.monitoring.draws import uniform
from blemish.store import Descriptor, Row

ALPHA, PER = 0.01, 500  # of a false alarm in so many looks in a row
FIRST, WINDOW = 300, 100  # pictures
LEAST = 0.05  # `Comparison.share` that counts


class Appearance:
    """How the pictures of a version look, beside its first ones.

    Args: space: of its descriptors; "" = it makes none. seed: of what is random.
    Attributes: looks: what was compared so far.
    """

    def __init__(self, space: str = "", seed: str = "") -> None:
        self.space = space
        number = int(2**31 * uniform(seed, space))
        self.looks = Looks(
            alpha=ALPHA, per=PER, first=FIRST, window=WINDOW, least=LEAST, seed=number
        )

    def add(self, row: Row, descriptor: Descriptor | None) -> None:
        """Take a prediction in. One without a descriptor of this space, or with an alarm, is passed
        over."""
        if descriptor is not None and descriptor.space == self.space and row.label != 1:
            self.looks.add(descriptor.numbers)

    @property
    def since(self) -> int:
        """The picture with which a change was noticed; 0 for none."""
        return self.looks.since

    def words(self) -> str:
        """What is known now, in a few sentences."""
        looks = self.looks
        if not self.space:
            return (
                "How pictures look is not compared: this version was exported by an earlier "
                "blemish, and says nothing of it. Export it again."
            )
        if looks.last is None:
            return (
                f"How pictures look is compared once {looks.needed:,} more have come without an "
                f"alarm: windows of {looks.window} with the first {looks.first} of this version."
            )
        apart = f"{100 * looks.last.comparison.share:.0f} % apart (0 %: alike; 100 %: not at all)"
        rate = (
            f"in {looks.per} windows a false alarm comes with a probability of at most "
            f"{100 * looks.alpha:g} %"
        )
        if not looks.since:
            return (
                f"The last {looks.window} pictures without an alarm look like the first "
                f"{looks.first} of this version: {apart}. {looks.count:,} windows were compared; "
                f"{rate}."
            )
        now = "still differ" if looks.last.differs else "look as at first again"
        return (
            f"Pictures look otherwise than at first, noticed with picture {looks.since:,} of "
            f"{looks.pictures:,} without an alarm ({rate}). The last {looks.window} {now}: {apart}."
        )

    def advice(self) -> str:
        """What to do, where a change was noticed."""
        return ADVICE

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready state: some 100 kB."""
        return {"space": self.space, "looks": self.looks.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Appearance:
        """What `to_dict` gave. Raises: ConfigError for what is no such state."""
        found = cls(values["space"])
        found.looks = Looks.from_dict(values["looks"])
        return found


ADVICE = (
    "Look at the newest pictures beside older ones: light, focus, position, background, another "
    "part or batch. If that is wrong, put it right. If it is to stay and scores have not changed, "
    "the detector copes with it: review some to be sure, then compare with new ones. If scores "
    "have changed too, refine or calibrate anew; a new version begins anew."
)
