"""What of pictures is looked at, where their tensors say it themselves.

A pixel that is 0 in all channels is not looked at: it is padding, or lies outside the area (see
`blemish.data.transforms.prepare`). So it stays true of pictures that are resized, cropped, mirrored
or mixed on the way; where resizing mixes a pixel with padding, it counts.

What is looked at lies in a frame, a rectangle for each picture: nothing is learned outside the
frame, and what a method says there is replaced by what it says at the frame's border, so that it
reaches into the frame neither by smoothing nor by resampling.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def places(images: Tensor, size: tuple[int, int]) -> Tensor:
    """bool B h w: the places of maps of B 3 H W in which any pixel is looked at; all of a picture
    in which none is."""
    return reached((images != 0).any(1), size)


def reached(inside: Tensor, size: tuple[int, int]) -> Tensor:
    """bool B h w: the places in which any of bool B H W is; all where none is."""
    found = _any_along(_any_along(inside, size[0]).mT, size[1]).mT
    return found | ~found.flatten(1).any(1)[:, None, None]


def framed(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """bool B h w: the places of a grid over B 3 H W that lie in the frame, at least in part."""
    rows, columns = _frame(images, grid)
    down, across = (torch.arange(side, device=images.device) for side in grid)
    within = [
        (first[:, None] <= at) & (at <= last[:, None])
        for (first, last), at in zip((rows, columns), (down, across), strict=True)
    ]
    return within[0][:, :, None] & within[1][:, None, :]


def extended(values: Tensor, images: Tensor) -> Tensor:
    """Values B h w on a grid over B 3 H W; outside the frame, those of the nearest place in it."""
    count, height, width = values.shape
    rows, columns = _frame(images, (height, width))
    at = [
        torch.arange(side, device=values.device)
        .expand(count, -1)
        .clamp(first[:, None], last[:, None])
        for side, (first, last) in zip((height, width), (rows, columns), strict=True)
    ]
    each = torch.arange(count, device=values.device)[:, None, None]
    return values[each, at[0][:, :, None], at[1][:, None, :]]


def filled(values: Tensor, known: Tensor) -> Tensor:
    """Values B N D; of the places that are not known (bool B N, one at least in each is), those of
    the first one that is."""
    first = known.int().argmax(1, keepdim=True)
    at = torch.where(known, torch.arange(known.shape[1], device=known.device), first)
    return values.gather(1, at[:, :, None].expand_as(values))


def mean_of(values: Tensor, known: Tensor) -> Tensor:
    """Of values B N D the mean over the places that are known, as of `filled`: B D."""
    counted = known[:, :, None].float()
    return (values * counted).sum(1) / counted.sum(1)


def _any_along(inside: Tensor, count: int) -> Tensor:
    """Whether there is any True in each of `count` equal parts of the rows of bool B H W."""
    rows = inside.shape[1]
    sums = F.pad(inside.int().cumsum(1), (0, 0, 1, 0))
    ends = torch.arange(count + 1, device=inside.device)
    first, last = ends[:-1] * rows // count, -(-ends[1:] * rows // count)
    return sums[:, last] > sums[:, first]


def _frame(
    images: Tensor, grid: tuple[int, int]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The first and the last row of the frame of each of B 3 H W, and the same of its columns, each
    B, in places of a grid."""
    found = places(images, grid)
    return _ends(found.any(2)), _ends(found.any(1))


def _ends(marks: Tensor) -> tuple[Tensor, Tensor]:
    """Of bool B n the first and the last that are True, B each; one at least is."""
    marks = marks.int()  # of several maxima, argmax gives the first
    return marks.argmax(1), marks.shape[1] - 1 - marks.flip(1).argmax(1)
