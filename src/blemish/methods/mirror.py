"""What RD4AD gives an encoder's stages back with: an embedding, and a decoder that mirrors it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from blemish.methods.rd4ad import RD4ADConfig

Grid = tuple[int, int]


class Block(nn.Module):
    """A bottleneck block, B C h w to B D h w: to half of the grid (`step` 2), or twice (-2).

    `bent`: whether it ends with a ReLU.
    """

    def __init__(
        self, inward: int, outward: int, widening: float, step: int = 1, *, bent: bool = True
    ) -> None:
        super().__init__()
        width, self.bent = max(1, round(widening * outward)), bent
        self.inner = nn.Sequential(
            *_normed(nn.Conv2d(inward, width, 1, bias=False), width),
            *_normed(_moving(width, width, 3, step), width),
            nn.Conv2d(width, outward, 1, bias=False),
            nn.BatchNorm2d(outward),
        )
        self.shortcut: nn.Module = nn.Identity()
        if abs(step) != 1 or inward != outward:
            moved = _moving(inward, outward, 1, step)
            self.shortcut = nn.Sequential(moved, nn.BatchNorm2d(outward))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x) + self.shortcut(x)
        return F.relu(x) if self.bent else x


class Student(nn.Module):
    """The embedding and the decoder: from stages B C h w to as many, the finest first."""

    def __init__(self, config: RD4ADConfig, widths: Sequence[int], grids: Sequence[Grid]) -> None:
        super().__init__()
        self.grids, deepest, widening = tuple(grids), widths[-1], config.widening
        steps = [2 if fine[0] > coarse[0] else 1 for fine, coarse in pairwise(grids)]
        self.fusing = nn.ModuleList()
        for at in range(len(steps)):
            moves = zip(pairwise(widths[at:]), steps[at:], strict=True)
            layers = [_normed(_moving(*sides, 3, step), sides[1]) for sides, step in moves]
            self.fusing.append(nn.Sequential(*chain.from_iterable(layers)))
        inward = 2 * deepest
        more = [Block(inward, inward, widening) for _ in range(1, config.embedding_blocks)]
        joined = Block(len(widths) * deepest, inward, widening, 2)
        self.embedding, self.decoder = nn.Sequential(joined, *more), nn.ModuleList()
        for number, (width, step) in enumerate(zip(widths[::-1], [2, *steps[::-1]], strict=True)):
            count = config.decoder_blocks[min(number, len(config.decoder_blocks) - 1)]
            bent = [True] * (count - 1) + [config.rectified]
            first = Block(inward, width, widening, -step, bent=bent[0])
            more = [Block(width, width, widening, bent=each) for each in bent[1:]]
            self.decoder.append(nn.Sequential(first, *more))
            inward = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        fused = [fusing(stage) for fusing, stage in zip(self.fusing, stages[:-1], strict=True)]
        x, given = self.embedding(torch.cat([*fused, stages[-1]], dim=1)), list[Tensor]()
        for part, (height, width) in zip(self.decoder, self.grids[::-1], strict=True):
            x = part(x)[:, :, :height, :width]
            given.append(x)
        return given[::-1]


def _moving(inward: int, outward: int, side: int, step: int) -> nn.Module:
    """A convolution to a grid as fine (step 1), or half (2); a transposed one to twice (-2)."""
    if step < -1:
        return nn.ConvTranspose2d(inward, outward, 2, stride=2, bias=False)
    return nn.Conv2d(inward, outward, side, stride=abs(step), padding=side // 2, bias=False)


def _normed(layer: nn.Module, width: int) -> tuple[nn.Module, ...]:
    return layer, nn.BatchNorm2d(width), nn.ReLU()
