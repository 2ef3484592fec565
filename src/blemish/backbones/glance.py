"""What a picture shows, seen at a glance: what tells categories apart."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from blemish.backbones.base import Backbone
from blemish.backbones.cells import resampled

_SIDE = 112  # pixels; at most those of the pictures


def features(backbone: Backbone, layers: Sequence[int], images: Tensor) -> Tensor:
    """What tells categories apart in B 3 H W, of the last layer: float32 B D, rows of length 1."""
    size = backbone.round_size(*(min(side, _SIDE) for side in images.shape[-2:]))
    small = resampled(images, size, antialias=True)
    tokens: Tensor = backbone(small, backbone.check_layers(layers)[-1:]).tokens[-1]
    return F.normalize(tokens.float().mean(1), dim=-1)
