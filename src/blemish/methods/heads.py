"""Heads on an encoder's tokens: DINO's projection (Caron et al. 2021), and those of `guided`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def projection(dim: int, hidden: int = 2048, bottleneck: int = 256) -> nn.Sequential:
    """Three linear layers with GELU between them, B D to B bottleneck; DINO then normalises."""
    return nn.Sequential(
        nn.Linear(dim, hidden),
        nn.GELU(),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Linear(hidden, bottleneck),
    )


def initialise(head: nn.Module, *, deviation: float = 0.02, limit: float = 2.0) -> None:
    """Draw the weights of linear layers as DINO does, from a normal distribution that is cut off at
    ±`limit`; biases 0.
    """
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=deviation, a=-limit, b=limit)
            nn.init.zeros_(module.bias)


class ClassHead(nn.Module):
    """DINO's projection head (Caron et al. 2021) with classes for prototypes: B D to B K."""

    def __init__(self, dim: int, classes: int, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.layers = projection(dim, hidden, bottleneck)
        self.last = nn.Linear(bottleneck, classes)
        initialise(self)

    def forward(self, cls: Tensor) -> Tensor:
        return _in_float32(self.last, F.normalize(self.layers(cls).float(), dim=-1))


class AttentionMix(nn.Module):
    """One learned weight a head: attention B L N (rows of sum 1) to logits B N of any grid."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((heads,), 1 / heads))
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def forward(self, attention: Tensor) -> Tensor:
        return (self.weights[:, None] * attention.float() * attention.shape[-1]).sum(1) + self.bias


class PatchHead(nn.Module):
    """Logits B N of every patch from its normalised features in several layers, each B N D."""

    def __init__(self, dim: int, layers: int, hidden: int = 256) -> None:
        super().__init__()
        self.inward = nn.Linear(layers * dim, hidden)
        self.outward = nn.Linear(hidden, 1)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, tokens: Iterable[Tensor]) -> Tensor:
        features = torch.cat([F.layer_norm(each, each.shape[-1:]) for each in tokens], dim=-1)
        return _in_float32(self.outward, F.gelu(self.inward(features)))[..., 0]


def _in_float32(last: nn.Linear, features: Tensor) -> Tensor:
    """Logits that are not rounded to bf16, in which scores would tie."""
    with torch.autocast(features.device.type, enabled=False):
        return cast(Tensor, last(features.float()))
