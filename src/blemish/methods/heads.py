"""The projection head of DINO (Caron et al. 2021), on which methods put a last layer of their own."""

from __future__ import annotations

from torch import nn


def projection(dim: int, hidden: int = 2048, bottleneck: int = 256) -> nn.Sequential:
    """Three linear layers with GELU between them, B D to B bottleneck; DINO normalises the result to length 1."""
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
    )


def initialise(head: nn.Module) -> None:
    """Draw the weights of the linear layers of a head as DINO does: truncated normal, 0.02; biases 0."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
