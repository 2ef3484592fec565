"""Where ATAC-Net looks closer: crops around what is salient, and their maps put back.

Boxes are float32 B 4: x, y, width and height as fractions of the picture's sides.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones.cells import resampled


def crop_boxes(
    saliency: Tensor, *, active: float = 0.4, padding: float = 0.1, offset: float = 0.0
) -> Tensor:
    """Eq. 4-6 of ATAC-Net: the boxes around the cells of B h w above `active`.

    It reaches from the first cell's edge to the last one's, and on every side further by `padding`
    times its own extent, as far as there is picture. Where no cell is active, it is the whole
    picture. Cells look `offset` cells further right and down than an even grid has them
    (`Backbone.offset`); those at the border, up to the border.

    Example:
        >>> crop_boxes(torch.tensor([[[0.0, 0.2, 0.0, 0.1], [0.0, 1.0, 0.5, 0.0]]]), padding=0.0)
        tensor([[0.2500, 0.5000, 0.5000, 0.5000]])
    """
    above = saliency > active
    (left, wide), (top, tall) = (_span(above.any(dim), padding, offset) for dim in (1, 2))
    return torch.stack([left, top, wide, tall], dim=1)


def _span(marks: Tensor, padding: float, offset: float) -> tuple[Tensor, Tensor]:
    """Start and extent, as fractions, of what is marked in B n; of everything where nothing is."""
    marks = marks.int()  # of several maxima, argmax gives the first
    before, behind = marks.argmax(1), marks.flip(1).argmax(1)
    start = (before > 0) * (before + offset) / marks.shape[1]
    end = 1 - (behind > 0) * (behind - offset) / marks.shape[1]
    margin = padding * (end - start)
    start = (start - margin).clamp_min(0)
    return start, (end + margin).clamp_max(1) - start


def cropped(images: Tensor, boxes: Tensor) -> Tensor:
    """The boxes B 4 of pictures B C H W, resized to the pictures' size, bilinear: B C H W."""
    grid = _grid(boxes[:, :2], boxes[:, 2:], images.shape[-2:])
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def merged(
    first: Tensor, second: Tensor, boxes: Tensor, size: tuple[int, int], offset: float = 0.0
) -> Tensor:
    """Maps B h w of pictures and of their crops as one, B H W: their mean inside the boxes B 4, the
    first outside.

    Args: offset: where the locations of both lie in what they are of, as of `crop_boxes`.
    """
    whole = enlarged(first, size, offset)
    grid = _grid(-boxes[:, :2] / boxes[:, 2:], 1 / boxes[:, 2:], size)
    lag = 2 * offset / torch.tensor([second.shape[2], second.shape[1]], device=grid.device)
    read = F.grid_sample(second[:, None], grid - lag, padding_mode="border", align_corners=False)
    return torch.where((grid.abs() <= 1).all(-1), (whole + read[:, 0]) / 2, whole)


def enlarged(maps: Tensor, size: tuple[int, int], offset: float = 0.0) -> Tensor:
    """B h w as B H W, bilinear; offset: as of `resampled`."""
    return resampled(maps[:, None], size, offset=offset)[:, 0]


def _grid(offset: Tensor, scale: Tensor, size: tuple[int, ...]) -> Tensor:
    """Where `grid_sample` is to read for each of H W pixels: B H W 2.

    A pixel whose centre lies at the fractions f (x and y) of the sides reads at offset + scale · f,
    each B 2. Not by `affine_grid`, which multiplies matrices, and in lower precision that misplaces
    a crop.
    """
    down, across = ((torch.arange(side, device=offset.device) + 0.5) / side for side in size)
    columns = offset[:, 0, None] + scale[:, 0, None] * across
    rows = offset[:, 1, None] + scale[:, 1, None] * down
    shape = (offset.shape[0], *size)
    places = columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)
    return 2 * torch.stack(places, dim=-1) - 1
