"""Features of several layers joined into one vector per location, as memory banks and PaDiM do."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import Features
from blemish.backbones.cells import resampled


def join(features: Features, kind: str, *, pooling: int = 1) -> tuple[Tensor, tuple[int, int]]:
    """Joined features per location: float32 B N D, and the grid (h, w) of the finest layer.

    The layers of a ViT, all of one width and written to one residual stream, are layer-normalised
    (without weights) and averaged: as accurate as joining them end to end, and the search costs a
    fraction (docs/log.md). The levels of a CNN are brought to the places of the finest bilinearly
    and joined end to end, as they are.

    Args:
        kind: of the backbone: "vit" or "cnn".
        pooling: side of the square of neighbouring locations averaged first; odd, 1 = none.
    """
    grid = max(features.grids)
    if kind == "vit":
        normalised = [F.layer_norm(tokens, tokens.shape[-1:]) for tokens in features.tokens]
        joined = torch.stack(normalised).mean(0).transpose(1, 2)
        levels = [_local_mean(joined.reshape(joined.shape[0], -1, *grid), pooling)]
    else:
        onto = features.offsets[features.grids.index(grid)]
        levels = [
            resampled(_local_mean(level, pooling), grid, offset=offset, onto=onto)
            for level, offset in zip(features.maps(), features.offsets, strict=True)
        ]
    return torch.cat(levels, dim=1).flatten(2).transpose(1, 2), grid


def _local_mean(level: Tensor, side: int) -> Tensor:
    """Each location of B D h w averaged with the neighbours in a square that there are."""
    if side == 1:
        return level
    return F.avg_pool2d(level, side, stride=1, padding=side // 2, count_include_pad=False)
