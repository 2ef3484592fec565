"""The distance of a patch to what its nearest good patches make together.

A memory bank holds single patches, and a good patch lies between some of them: of a part that lies
at an angle which no training picture has, say. The distance to the nearest alone, PatchCore's eq. 6
(Roth et al. 2022), then tells how sparse the bank is there as much as how unusual the patch is. So
a patch q is compared with a mean of its k nearest entries b_1, …, b_k, at distances d_1 ≤ … ≤ d_k,
by the Epanechnikov kernel whose bandwidth is the distance of the next entry (kernel regression with
a nearest-neighbour bandwidth: Cleveland 1979 has it, with another kernel):

    |q − Σ w_i b_i / Σ w_i|    w_i = 1 − d_i² / d_{k+1}²

With k = 1 that is the distance to the nearest. Where two entries are as far away and change places,
the one that comes in has weight 0, as the one that goes out had: so the distance is continuous in
the features, and engines whose last digits differ find the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SPARE = 11  # entries that are measured beside those that count, as products in bf16 rank roughly
_LEAST = 1e-6  # of a weight: where all distances are equal, all count the same
_SMALLEST = 1e-12  # of a squared distance that is divided by
_CHUNK = 512  # queries that are looked for at once, which keeps the scratch memory in the cache


def distance_to_mean(
    queries: Tensor,
    bank: Tensor,
    *,
    count: int,
    dtype: torch.dtype = torch.float32,
    excluded: Tensor | None = None,
) -> Tensor:
    """Euclidean distance of each query to the weighted mean of its nearest bank points.

    Args:
        queries: float32 n D, of length 1. bank: float32 K D, of length 1; K >= 1.
        count: of the points that have a weight, k >= 1. Where the bank has no more, all that it has
            count the same.
        dtype: in which the nearest are looked for; they are then measured in float32.
        excluded: bool K, True for bank points that do not count; not all of them.
    Returns: float32 n.
    """
    products = bank.to(dtype).T

    def measured(some: Tensor) -> Tensor:
        return _distance(some, bank, products, count, excluded)

    if torch.compiler.is_exporting() or len(queries) <= _CHUNK:
        return measured(queries)
    return torch.cat([measured(some) for some in torch.split(queries, _CHUNK)])


def _distance(
    queries: Tensor, bank: Tensor, products: Tensor, count: int, excluded: Tensor | None
) -> Tensor:
    cosines = queries.to(products.dtype) @ products
    if excluded is not None:
        cosines.masked_fill_(excluded, -torch.inf)
    candidates = cosines.topk(min(count + 1 + _SPARE, len(bank)), dim=1).indices
    squares = (queries[:, None] - bank[candidates]).square().sum(2)
    if excluded is not None:
        squares = squares.masked_fill(excluded[candidates], torch.inf)
    near, order = squares.topk(min(count + 1, squares.shape[1]), dim=1, largest=False)
    weights = torch.ones_like(near)
    if near.shape[1] > count:
        share = near / near[:, count:].clamp_min(_SMALLEST)
        weights, order = (1 - share + _LEAST)[:, :count], order[:, :count]
    if excluded is not None:  # fewer may be left, of which all count the same
        left = near[:, : order.shape[1]].isfinite()
        weights = torch.where(near.isfinite().all(1, keepdim=True), weights, 1.0) * left
    entries = bank[candidates.gather(1, order)]
    mean = (weights[..., None] * entries).sum(1) / weights.sum(1, keepdim=True)
    return (queries - mean).square().sum(1).sqrt()
