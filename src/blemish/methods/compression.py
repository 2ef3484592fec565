"""What is kept of how a memory bank was compressed, and at what loss. `compressing` does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blemish import config as configs
from blemish.config import Count, NotNegative
from blemish.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Compression:
    """How a memory bank was compressed, as the artifact keeps it.

    Losses are root mean squares of how far values move from those of the whole bank, in standard
    deviations of the scores of good pictures.

    Attributes:
        asked: the largest loss that was allowed, the setting `bank_loss`.
        abstains: why the bank is as it was; "" where it was compressed.
        entries, whole: features that are kept, of so many.
        dims, width: dimensions in which the nearest is looked for, of so many; the same where it is
            looked for in all.
        stored: in which floating point the features are kept.
        pictures: good ones, each left out in turn, that it was measured on, and as many generated
            defects in them.
        good, defects: losses of their scores. maps: of the values of both's maps, of all that reach
            the lowest score of a good picture.
    """

    asked: NotNegative
    abstains: str = ""
    entries: Count = 0
    whole: Count = 0
    dims: Count = 0
    width: Count = 0
    stored: Literal["fp32", "fp16"] = "fp32"
    pictures: Count = 0
    good: NotNegative = 0.0
    defects: NotNegative = 0.0
    maps: NotNegative = 0.0

    def __post_init__(self) -> None:
        configs.check(self)
        if self.entries > self.whole or self.dims > self.width:
            raise ConfigError("entries, dims: are more than there were")

    @property
    def loss(self) -> float:
        """The greatest of its losses."""
        return max(self.good, self.defects, self.maps)
