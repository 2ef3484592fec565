"""Which of the categories that a detector was fitted on a picture shows, by the backbone's
features.

The nearest class mean (Webb & Copsey 2011, "Statistical Pattern Recognition"), with each feature in
units of its spread within the categories, the covariance taken as diagonal and common to all of
them. A picture's features are its patches' of one layer, averaged and of unit length, at a small
size: what the picture shows is seen at a glance, and costs little beside its score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import Backbone
from blemish.backbones.cells import resampled
from blemish.config import Finite, Length, Range
from blemish.data.stream import PictureStream
from blemish.errors import ConfigError

PICTURES_OF_EACH = 32  # whose mean is kept
_SIDE = 112  # pixels; at most those of the pictures
_FLOOR = 1e-3  # of the spread of a feature; a feature of unit length has 1/sqrt(D) in each


def features(backbone: Backbone, layers: Sequence[int], images: Tensor) -> Tensor:
    """What tells categories apart in B 3 H W, of the last layer: float32 B D, rows of length 1."""
    size = backbone.round_size(*(min(side, _SIDE) for side in images.shape[-2:]))
    small = resampled(images, size, antialias=True)
    tokens: Tensor = backbone(small, backbone.check_layers(layers)[-1:]).tokens[-1]
    return F.normalize(tokens.float().mean(1), dim=-1)


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
    def learned(cls, found: Mapping[str, Tensor]) -> Self:
        """From the `features` of pictures of each category, N D."""
        means = {name: of_one.mean(0) for name, of_one in found.items()}
        within = torch.cat([of_one - means[name] for name, of_one in found.items()])
        spread = within.square().mean(0).sqrt().clamp_min(_FLOOR)
        return cls(
            means={name: _rounded(mean) for name, mean in means.items()}, spread=_rounded(spread)
        )

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        layers: Sequence[int],
        stream: PictureStream,
        categories: Sequence[str],
    ) -> Self | None:
        """From some pictures of each category, evenly; None for fewer than two categories.

        Args: categories: of each of the stream's sources; "" is none.
        """
        found: dict[str, Tensor] = {}
        names = sorted(set(categories) - {""})
        for name in names:
            own = [at for at, category in enumerate(categories) if category == name]
            some = stream.only(own[:: -(-len(own) // PICTURES_OF_EACH)])
            with torch.inference_mode():
                batches = some.on(backbone.device)
                seen = [features(backbone, layers, batch.images) for batch in batches]
            if seen:
                found[name] = torch.cat(seen).cpu()
        return cls.learned(found) if len(found) >= max(len(names), 2) else None

    def nearest(self, found: Tensor) -> list[str]:
        """The category of each of B D, of `features`.

        Example:
            >>> nut, bolt = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
            >>> known = CategoryFeatures.learned({"nut": nut, "bolt": bolt})
            >>> known.nearest(torch.tensor([[0.2, 0.8]]))
            ['bolt']
        """
        means, spread = torch.tensor(list(self.means.values())), torch.tensor(self.spread)
        places = torch.cdist(found.cpu() / spread, means / spread).argmin(1)
        return [list(self.means)[place] for place in places.tolist()]


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.5g}") for value in values.tolist())
