"""The nearest entry of a memory bank, looked for in few dimensions and measured in all.

Features of length 1 are projected orthogonally onto the bank's principal directions, d of D. What
is left of them has a length, too, and joins as one more number: of neighbours these rests point
about half the same way, so that

    q·b ≈ Pq·Pb + |q − PᵀPq| |b − PᵀPb| / 2

(measured in the nearest pairs of good pictures' features: 0.3 to 0.7, the less the more dimensions
are left). Entries are arranged in columns of `ROWS`. Of each feature the columns that hold the
highest products are taken whole, and the distance to all of their entries is exact: so it is never
below that to the nearest, and equal to it where this is among them.

Which columns those are would hang on the last digits of products, and these differ between engines.
So twice as many are measured, `MEASURED`, as count wholly, `COLUMNS`, and the others count the less
the lower their highest product s is: the squared distances to their entries are taken as

    |q − b|² + 2 (t − s) (t − f) / (s − f)    f < s < t

where t is the highest product of the last column that counts wholly, and f that of the first which
is not measured. The surcharge begins as 2 (t − s), which is what the column looks to be farther
away, and grows beyond all bounds towards f. So the distance that is found is continuous in the
features and the products: it moves little where these do, whichever columns change places.

Only products, elementwise maxima over whole rows and a small `topk` depend on the size of the bank,
which all engines are quick at; an argmax over all of it costs them more than the product.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 2  # entries of a column
COLUMNS = 4  # that count wholly
MEASURED = 8  # with those that count less
_REST = 0.5  # of the product of the rests' lengths
_NEVER = -4.0  # below all products of features of length 1; infinities have no differences
_LEAST = 1e-30  # in the place of 0 where nothing lies between
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
            products.masked_fill_(excluded[start : start + width], _NEVER)
        best = products if best is None else torch.maximum(best, products)
    assert best is not None
    highest, columns = best.topk(min(MEASURED + 1, width), dim=1)
    measured = columns[:, :MEASURED, None]
    at = (measured + torch.tensor(starts, device=bank.device)).flatten(1)
    squares = (queries[:, None] - bank[at].to(queries.dtype)).square().sum(2)
    if excluded is not None:
        squares.masked_fill_(excluded[at], torch.inf)
    if width <= MEASURED:  # all of it
        return squares.amin(1).sqrt()
    nearest = squares.reshape(-1, MEASURED, ROWS).amin(2)
    found: Tensor = (nearest + _surcharge(highest.to(squares.dtype))).amin(1).sqrt()
    return found


def _surcharge(highest: Tensor) -> Tensor:
    """What is added to the squared distances to columns, by their highest products: n `MEASURED`.

    Args: highest: of those that are measured and of the one after them, the highest first.
    """
    last, beyond = highest[:, COLUMNS - 1 : COLUMNS], highest[:, -1:]
    own = highest[:, :-1]
    below = (last - own).clamp_min(0)
    return 2 * below * (last - beyond) / (own - beyond).clamp_min(_LEAST)
