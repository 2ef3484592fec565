"""What the reader of a data set hands to `layouts`."""

from __future__ import annotations

from dataclasses import dataclass

from blemish.types import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a data set holds.

    Attributes:
        samples: in path order, with their splits.
        notes: what the description should add, of how the pictures were split and what is in no split.
        problems: what a person should look at, one sentence each.
    """

    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
