"""UniAD's transformer: neighbour-masked attention, and a decoder of learned queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.methods.decoder import Dropout

if TYPE_CHECKING:
    from blemish.methods.uniad import UniADConfig


class QueryTransformer(nn.Module):
    """From features B N C to as many, of the places of a grid (h, w)."""

    mask: Tensor

    def __init__(self, config: UniADConfig, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        width, each = config.width, range(config.depth)
        self.inward, self.outward = nn.Linear(channels, width), nn.Linear(width, channels)
        self.rows = nn.Parameter(torch.rand(grid[0], width // 2))
        self.columns = nn.Parameter(torch.rand(grid[1], width - width // 2))
        self.encoder = nn.ModuleList(Layer(config, attentions=1) for _ in each)
        self.decoder = nn.ModuleList(Layer(config, attentions=2) for _ in each)
        self.queries = nn.ParameterList(torch.randn(grid[0] * grid[1], width) for _ in each)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("mask", neighbour_mask(grid, config.neighbours), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Tensor:
        columns = self.columns[None].expand(len(self.rows), -1, -1)
        rows = self.rows[:, None].expand(-1, len(self.columns), -1)
        places = torch.cat([columns, rows], dim=2).flatten(0, 1)
        x = self.inward(features)
        for layer in self.encoder:
            x = layer(x, [x], places, self.mask)
        memory = x
        for layer, queries in zip(self.decoder, self.queries, strict=True):
            x = layer(queries.expand_as(memory), [memory, x], places, self.mask)
        return cast(Tensor, self.outward(self.norm(x)))


class Layer(nn.Module):
    """Masked attentions, one for each memory, then a feed-forward part; a norm after each."""

    def __init__(self, config: UniADConfig, *, attentions: int) -> None:
        super().__init__()
        width = config.width
        self.attentions = nn.ModuleList(
            MaskedAttention(width, config.heads, config.dropout) for _ in range(attentions)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(attentions + 1))
        self.hidden, self.out = nn.Linear(width, config.hidden), nn.Linear(config.hidden, width)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, memories: list[Tensor], places: Tensor, mask: Tensor) -> Tensor:
        for attention, norm, memory in zip(self.attentions, self.norms, memories, strict=False):
            given = attention(x + places, memory + places, memory, mask)
            x = norm(x + self.dropout(given))
        inner = self.dropout(F.relu(self.hidden(x)))
        return cast(Tensor, self.norms[-1](x + self.dropout(self.out(inner))))


class MaskedAttention(nn.Module):
    """Softmax attention of B N W, with a mask that is added to the logits, N N."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        # Without a bias, which is alike for all keys of a query: no softmax sees it.
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        parts = (self.query(queries), self.key(keys), self.value(values))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, mask.to(q.dtype), dropout_p=rate)
        return cast(Tensor, self.out(mixed.transpose(1, 2).flatten(2)))


def neighbour_mask(grid: tuple[int, int], side: int) -> Tensor:
    """What is added to the logits of places among each other, float32 N N: -inf where they are
    neighbours in a square of that odd side, else 0. No place is left without one to look at, unless
    it is the only one.
    """
    reach = min(side // 2, max(grid) // 2 - 1)
    rows, columns = (torch.arange(length) for length in grid)
    down = (rows[:, None] - rows).abs() <= reach
    across = (columns[:, None] - columns).abs() <= reach
    near = down[:, None, :, None] & across[None, :, None, :]
    places = grid[0] * grid[1]
    return torch.zeros(places, places).masked_fill(near.reshape(places, places), -torch.inf)
