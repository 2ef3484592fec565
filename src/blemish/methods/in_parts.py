"""What is kept of a fit that learned in parts. `merging` has the arithmetic, `scale` does it."""

from __future__ import annotations

from dataclasses import dataclass

from blemish import config as configs
from blemish.config import Count, NotNegative


@dataclass(frozen=True, kw_only=True)
class InParts:
    """How a detector was learned in parts of its pictures, as the artifact keeps it.

    Attributes:
        parts: into how many the pictures to learn from were divided, in their order.
        levels: of the tree in which what the parts taught was merged.
        bound: of a coreset, the most that any feature of a training picture can lie from the bank,
            by the radii of all selections (`merging`); None for what merges without loss.
        farthest: the most that one of `measured` training pictures, evenly from all, lies from the
            bank; None for what has no bank.
    """

    parts: Count
    levels: Count
    bound: NotNegative | None = None
    farthest: NotNegative | None = None
    measured: Count = 0

    def __post_init__(self) -> None:
        configs.check(self)
