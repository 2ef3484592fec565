"""Convolutions with batch norm, and the U-shaped networks that are made of them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SCALES = (1, 2, 4, 8, 8, 8)  # what the blocks are wide, in widths of the first
_DEVIATION = 0.02  # of the weights at the start, those of batch norms about 1; DRAEM's


def convolved(inward: int, outward: int) -> tuple[nn.Module, ...]:
    """A 3×3 convolution from B `inward` h w to B `outward` h w, batch norm and ReLU."""
    convolution = nn.Conv2d(inward, outward, kernel_size=3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outward), nn.ReLU()


class UShaped(nn.Module):
    """From pictures B C H W of any size to B K H W: blocks of two convolutions, between which the
    picture is halved (maxima of 2×2), then as often doubled (bilinear) and convolved; the result
    float32.

    Args:
        inward, outward: C and K. width: channels of the first block.
        blocks: on the way down, 6 at most.
        skips: whether the way up is shown what the way down had in the same size, as in U-Net
            (Ronneberger et al. 2015); else all goes through the narrowest place.
    """

    def __init__(self, inward: int, outward: int, width: int, blocks: int, *, skips: bool) -> None:
        super().__init__()
        self.skips = skips
        down = [width * scale for scale in _SCALES[:blocks]]
        self.down = nn.ModuleList(
            nn.Sequential(*convolved(before, own), *convolved(own, own))
            for before, own in zip([inward, *down], down, strict=False)
        )
        self.up, self.after = nn.ModuleList(), nn.ModuleList()
        before = down[-1]
        for own, beside in zip([*down[-3::-1], width], down[-2::-1], strict=True):
            between = own if skips else before
            self.up.append(nn.Sequential(*convolved(before, between)))
            joined = own + beside if skips else before
            self.after.append(nn.Sequential(*convolved(joined, between), *convolved(between, own)))
            before = own
        self.out = nn.Conv2d(before, outward, kernel_size=3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, _DEVIATION)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, _DEVIATION)
        self.to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU

    def forward(self, images: Tensor) -> Tensor:
        x, passed = images.contiguous(memory_format=torch.channels_last), []
        for number, block in enumerate(self.down):
            # A last odd row or column counts, so that pictures of any size can be halved.
            x = block(F.max_pool2d(x, 2, ceil_mode=True) if number else x)
            passed.append(x)
        for up, after, beside in zip(self.up, self.after, passed[-2::-1], strict=True):
            size = beside.shape[-2:]
            x = up(F.interpolate(x, size=size, mode="bilinear", align_corners=True))
            x = after(torch.cat([x, beside], dim=1) if self.skips else x)
        with torch.autocast(x.device.type, enabled=False):  # in bf16 scores would tie
            return cast(Tensor, self.out(x.float()))


def average_early(networks: Iterable[nn.Module]) -> None:
    """Let the running statistics of batch norms be the mean of the batches' so far until the tenth,
    and go on as always. Called before each training step.
    """
    for module in chain.from_iterable(network.modules() for network in networks):
        if isinstance(module, nn.BatchNorm2d) and module.num_batches_tracked is not None:
            module.momentum = max(0.1, 1 / (1 + int(module.num_batches_tracked)))
