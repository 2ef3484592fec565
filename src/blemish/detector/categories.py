"""Which of the categories that a detector was fitted on a picture shows, by the backbone's
features.

The nearest class mean (Webb & Copsey 2011, "Statistical Pattern Recognition"), with each feature in
units of its spread within the categories, the covariance taken as diagonal and common to all of
them. A picture's features are its patches' of one layer, averaged and of unit length, at a small
size: what the picture shows is seen at a glance, and costs little beside its score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray

from blemish.config import Finite, Length, Range
from blemish.errors import ConfigError

_FLOOR = 1e-3  # of the spread of a feature; a feature of unit length has 1/sqrt(D) in each
Floats = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CategoryFeatures:
    """What tells categories apart, as the manifest keeps it: numbers of five digits.

    Attributes:
        means: of each category the mean of its pictures' features, D numbers.
        spread: the standard deviation of each feature within the categories, D numbers.
    """

    means: Mapping[str, Annotated[tuple[Finite, ...], Length(1)]]
    spread: Annotated[tuple[Annotated[float, Range(0, above=True)], ...], Length(1)]

    def __post_init__(self) -> None:
        for name, mean in self.means.items():
            if len(mean) != len(self.spread):
                raise ConfigError(
                    f"means.{name}: {len(self.spread)} numbers are needed, got {len(mean)}"
                )

    @classmethod
    def learned(cls, found: Mapping[str, Floats]) -> Self:
        """From the `features` of pictures of each category, N D."""
        means = {name: of_one.mean(0) for name, of_one in found.items()}
        within = np.concatenate([of_one - means[name] for name, of_one in found.items()])
        spread = np.maximum(np.sqrt(np.square(within).mean(0)), _FLOOR)
        return cls(
            means={name: _rounded(mean) for name, mean in means.items()}, spread=_rounded(spread)
        )

    def nearest(self, found: Floats) -> list[str]:
        """The category of each of B D, of `features`.

        Example:
            >>> nut, bolt = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
            >>> known = CategoryFeatures.learned({"nut": nut, "bolt": bolt})
            >>> known.nearest(np.array([[0.2, 0.8]]))
            ['bolt']
        """
        means, spread = np.array(list(self.means.values())), np.array(self.spread)
        apart = (found[:, None] - means) / spread  # B K D
        places = np.square(apart).sum(-1).argmin(1)
        return [list(self.means)[place] for place in places.tolist()]


def _rounded(values: Floats) -> tuple[float, ...]:
    return tuple(float(f"{value:.5g}") for value in values.tolist())
