"""The nearest entry of a memory bank, looked for in few dimensions and measured in all.

Features of length 1 are projected orthogonally onto the bank's principal directions, d of D. What
is left of them has a length, too, and joins as one more number: of neighbours these rests point
about half the same way, so that

    q·b ≈ Pq·Pb + |q − PᵀPq| |b − PᵀPb| / 2

(measured in the nearest pairs of good pictures' features: 0.3 to 0.7, the less the more dimensions
are left). Entries are arranged in columns of `ROWS`. Of each feature the columns that hold the
highest products are taken whole, and the distance to all of their entries is exact: so it is never
below that to the nearest, and equal to it where this is among them.

Only products, elementwise maxima over whole rows and a small `topk` depend on the size of the bank,
which all engines are quick at; an argmax over all of it costs them more than the product.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 8  # entries of a column
COLUMNS = 2  # that are measured
_REST = 0.5  # of the product of the rests' lengths
_CHUNK = 512  # features that are looked for at once, which keeps the scratch memory in the cache


def principal_axes(bank: Tensor, dims: int) -> Tensor:
    """The `dims` directions that hold most of a bank k D: float32 D d, orthonormal."""
    wide = bank.double()
    found: Tensor = torch.linalg.eigh(wide.T @ wide).eigenvectors[:, -dims:].flip(1)
    return found.float().contiguous()


def shortened(features: Tensor, axes: Tensor) -> Tensor:
    """Features n D of length 1 along D d axes, and a share of the length that is left: n (d + 1).

    Example:
        >>> shortened(torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0], [0.0]])).square()
        tensor([[0.3600, 0.3200]])
    """
    along = features @ axes
    rest = (_REST * (1 - along.square().sum(1, keepdim=True))).clamp_min(0).sqrt()
    return torch.cat([along, rest], dim=1)


def shortlisted(
    queries: Tensor,
    bank: Tensor,
    axes: Tensor,
    short: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    excluded: Tensor | None = None,
) -> Tensor:
    """Euclidean distance of each query to the nearest of the bank points that look near in few
    dimensions; all of unit length.

    Args:
        queries: float32 n D. bank: k D, any floating type. axes: float32 D d.
        short: k (d + 1), the bank as of `shortened`, any floating type.
        dtype: in which the products are.
        excluded: bool k, True for bank points that do not count; not all of them.
    Returns: float32 n.
    """
    if not torch.compiler.is_exporting() and len(queries) > _CHUNK:
        parts = torch.split(queries, _CHUNK)
        each = [
            shortlisted(one, bank, axes, short, dtype=dtype, excluded=excluded) for one in parts
        ]
        return torch.cat(each)
    width = -(-len(bank) // ROWS)
    starts = [min(row * width, len(bank) - width) for row in range(ROWS)]  # the last may overlap
    asked, near = shortened(queries, axes).to(dtype), short.to(dtype)
    best: Tensor | None = None
    for start in starts:
        products = asked @ near[start : start + width].T
        if excluded is not None:
            products.masked_fill_(excluded[start : start + width], -torch.inf)
        best = products if best is None else torch.maximum(best, products)
    assert best is not None
    columns = best.topk(min(COLUMNS, width), dim=1).indices
    at = (columns[:, :, None] + torch.tensor(starts, device=bank.device)).flatten(1)
    squares = (queries[:, None] - bank[at].float()).square().sum(2)
    if excluded is not None:
        squares.masked_fill_(excluded[at], torch.inf)
    return squares.amin(1).sqrt()
