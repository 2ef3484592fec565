"""Where a picture lies among others, as it is kept."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from blemish.errors import ConfigError

MOST = 1024  # numbers of one
_MOST_HALF = 65504.0  # what a float16 holds


@dataclass(frozen=True)
class Descriptor:
    """Where a picture lies among others, as an encoder sees it.

    Attributes:
        space: which descriptors it can be compared with: `Detector.descriptor_space`.
        content: its numbers, as many float16, little-endian.
    Raises: ConfigError for a space that is none, and for none or too many numbers.
    """

    space: str
    content: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.space, str) or not re.fullmatch(r"[0-9a-f]{32}", self.space):
            raise ConfigError("space of a descriptor: is not 32 hexadecimal digits")
        if not 0 < len(self.content) <= 2 * MOST or len(self.content) % 2:
            raise ConfigError(f"descriptor: is {len(self.content)} bytes")
        if not all(map(math.isfinite, self.numbers)):
            raise ConfigError("descriptor: a number of it is not finite")

    @classmethod
    def of(cls, space: str, numbers: Sequence[float] | np.ndarray) -> Self:
        """Of D numbers, 1 to 1,024, which are rounded."""
        values = np.asarray(numbers, np.float64)
        return cls(space, np.clip(values, -_MOST_HALF, _MOST_HALF).astype("<f2").tobytes())

    @property
    def numbers(self) -> tuple[float, ...]:
        """D, with the four digits that a float16 holds: written down, they are short."""
        return tuple(float(f"{each:.4g}") for each in np.frombuffer(self.content, "<f2").tolist())

    def to_dict(self) -> dict[str, str]:
        """JSON-ready."""
        return {"space": self.space, "content": self.content.hex()}

    @classmethod
    def from_dict(cls, values: Mapping[str, str]) -> Self:
        """What `to_dict` gave. Raises: ConfigError, KeyError, TypeError, ValueError."""
        return cls(values["space"], bytes.fromhex(values["content"]))
