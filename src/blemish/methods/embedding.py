"""Features of several layers joined into one vector per location, as the memory banks and PaDiM use them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import Backbone


def embed(
    backbone: Backbone, images: Tensor, layers: Sequence[int], *, pooling: int = 1
) -> tuple[Tensor, tuple[int, int]]:
    """Joined features per location: float32 B N D, and the grid (h, w) of the finest layer.

    ViT tokens are layer-normalised (without weights) per layer, so that no layer outweighs another; CNN channels stay
    as they are. Coarser levels are brought to the finest grid bilinearly.

    Args:
        images: B 3 H W. layers: backbone layers.
        pooling: side of the square of neighbouring locations that are averaged first; odd, 1 = none.
    """
    features = backbone(images, layers)
    grid = max(features.grids)
    joined = []
    for level in features.maps():
        if backbone.spec.kind == "vit":
            level = F.layer_norm(level.movedim(1, -1), level.shape[1:2]).movedim(-1, 1)
        if pooling > 1:
            level = F.avg_pool2d(level, pooling, stride=1, padding=pooling // 2, count_include_pad=False)
        if level.shape[-2:] != grid:
            level = F.interpolate(level, size=grid, mode="bilinear", align_corners=False)
        joined.append(level)
    return torch.cat(joined, dim=1).flatten(2).transpose(1, 2), grid
