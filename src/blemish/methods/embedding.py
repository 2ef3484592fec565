"""Features of several layers joined into one vector per location, as memory banks and PaDiM do."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import Features
from blemish.backbones.cells import resampled


class Places(NamedTuple):
    """Where features lie: a grid (h, w), and how far right of and below the middle of its cell each
    of them looks, in cells."""

    grid: tuple[int, int]
    offset: float


def finest(features: Features) -> Places:
    """Those of the finest layer."""
    grid = max(features.grids)
    return Places(grid, features.offsets[features.grids.index(grid)])


def join(
    features: Features,
    kind: str,
    *,
    pooling: int = 1,
    centre: float = 0.0,
    onto: Places | None = None,
) -> tuple[Tensor, tuple[int, int]]:
    """Joined features per location: float32 B N D, and the grid (h, w) of the finest layer. Where
    patches were dropped, those of the kept ones: B K D.

    The layers of a ViT, all of one width and written to one residual stream, are layer-normalised
    (without weights) and averaged: as accurate as joining them end to end, and the search costs a
    fraction (docs/log.md). The levels of a CNN are brought to the places of the finest bilinearly
    and joined end to end, as they are.

    Args:
        kind: of the backbone: "vit" or "cnn".
        pooling: side of the square of neighbouring locations averaged first; odd, 1 = none.
        centre: share of a location's own feature beside that average, in [0, 1].
        onto: the places, other than those of the finest layer, that they are brought to, where no
            patches were dropped.
    """
    own = finest(features)
    grid, places = own.grid, onto or own
    if kind == "vit":
        normalised = [F.layer_norm(tokens, tokens.shape[-1:]) for tokens in features.tokens]
        joined = torch.stack(normalised).mean(0)
        if features.kept is not None:
            mean = _mean_of_kept(joined, features.kept, grid, pooling)
            return _with_own(mean, joined, centre), grid
        joined = joined.transpose(1, 2)
        maps = [(joined.reshape(joined.shape[0], -1, *grid), features.offsets[0])]
    else:
        maps = list(zip(features.maps(), features.offsets, strict=True))
    levels = [
        resampled(_local_mean(each, pooling, centre), places.grid, offset=at, onto=places.offset)
        for each, at in maps
    ]
    return torch.cat(levels, dim=1).flatten(2).transpose(1, 2), places.grid


def _local_mean(level: Tensor, side: int, centre: float) -> Tensor:
    """Each location of B D h w averaged with the neighbours in a square that there are; its own
    value has the share `centre` beside that average."""
    if side == 1:
        return level
    mean = F.avg_pool2d(level, side, stride=1, padding=side // 2, count_include_pad=False)
    return _with_own(mean, level, centre)


def _with_own(mean: Tensor, own: Tensor, centre: float) -> Tensor:
    return torch.lerp(mean, own, centre) if centre else mean


def laid_out(values: Tensor, kept: Tensor, places: int) -> Tensor:
    """Values B K D of the patches `kept` (B K) among all: B N D, 0 elsewhere."""
    empty = values.new_zeros(values.shape[0], places, values.shape[2])
    return empty.scatter(1, kept[:, :, None].expand(-1, -1, values.shape[2]), values)


def _mean_of_kept(values: Tensor, kept: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Values B K D of the patches `kept` of a grid, each averaged with those of its neighbours,
    in a square of odd `side`, that are kept as well."""
    if side == 1:
        return values
    ones = torch.ones_like(values[:, :, :1])
    both = laid_out(torch.cat([values, ones], 2), kept, grid[0] * grid[1])
    square = both.transpose(1, 2).reshape(values.shape[0], -1, *grid)
    sums = F.avg_pool2d(square, side, stride=1, padding=side // 2).flatten(2).transpose(1, 2)
    sums = sums.gather(1, kept[:, :, None].expand(-1, -1, sums.shape[2]))
    return sums[:, :, :-1] / sums[:, :, -1:]
