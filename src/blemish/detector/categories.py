"""Which of the categories that a detector was fitted on a picture shows, told by the backbone's features.

The nearest class mean (Webb & Copsey 2011, "Statistical Pattern Recognition"), with each feature in units of its spread
within the categories, the covariance taken as diagonal and common to all of them. A picture's features are its patches'
of one layer, averaged and of unit length, at a small size: what the picture shows is seen at a glance, and costs little
beside its score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import Backbone

PICTURES_OF_EACH = 32  # whose mean is kept
_SIDE = 112  # pixels; at most those of the pictures
_FLOOR = 1e-3  # of the spread of a feature; a feature of unit length has 1/sqrt(D) in each


def features(backbone: Backbone, layers: Sequence[int], images: Tensor) -> Tensor:
    """What tells categories apart in a batch B 3 H W: float32 B D, rows of unit length, of the last of the layers."""
    size = backbone.round_size(*(min(side, _SIDE) for side in images.shape[-2:]))
    small = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    tokens: Tensor = backbone(small, backbone.check_layers(layers)[-1:]).tokens[-1]
    return F.normalize(tokens.float().mean(1), dim=-1)


@dataclass(frozen=True, eq=False)
class NearestCategory:
    """Tells categories apart.

    Attributes:
        names: of C categories.
        means: float32 C D, of the features of each. spread: float32 D, standard deviation within the categories.
    """

    names: tuple[str, ...]
    means: Tensor
    spread: Tensor

    @classmethod
    def learned(cls, found: Mapping[str, Tensor]) -> NearestCategory:
        """From the `features` of pictures of each category, N D."""
        means = {name: of_one.mean(0) for name, of_one in found.items()}
        within = torch.cat([of_one - means[name] for name, of_one in found.items()])
        spread = within.square().mean(0).sqrt().clamp_min(_FLOOR)
        return cls(tuple(found), torch.stack(list(means.values())), spread)

    def of(self, found: Tensor) -> list[str]:
        """The category of each of B D, of `features`.

        Example:
            >>> nut, bolt = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
            >>> NearestCategory.learned({"nut": nut, "bolt": bolt}).of(torch.tensor([[0.2, 0.8]]))
            ['bolt']
        """
        found = found.cpu()
        nearest = torch.cdist(found / self.spread, self.means / self.spread).argmin(1)
        return [self.names[place] for place in nearest.tolist()]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the numbers with five digits."""
        means = {name: _rounded(mean) for name, mean in zip(self.names, self.means, strict=True)}
        return {"means": means, "spread": _rounded(self.spread)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NearestCategory:
        """What `to_dict` wrote."""
        means = torch.tensor(list(values["means"].values()), dtype=torch.float32)
        return cls(
            tuple(values["means"]), means, torch.tensor(values["spread"], dtype=torch.float32)
        )


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]
