"""Greedy k-centre selection, exact and streaming.

PatchCore (Roth et al. 2022, Algorithm 1) thins its memory bank by greedy k-centre (farthest-point)
selection. Done plainly that is one pass over all features per selected point. Here the same points
are selected in blocks: distances to the selection only ever fall, so a stale distance is an upper
bound, and as long as the best point of a small up-to-date block beats every stale bound outside it,
it is the true farthest point. The bulk of the work becomes matrix products.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

_BLOCK = 512  # points kept up to date between two refreshes
_CHUNK = 16384  # rows of one distance product; bounds the scratch memory


def farthest_points(features: Tensor, count: int) -> tuple[Tensor, float]:
    """Indices of a greedy k-centre selection, in the order of selection, and its covering radius.

    The first centre is the point nearest to the mean, so that no random choice is involved; every
    further one is the point farthest from the centres so far (ties: any of them).

    Args:
        features: float32 n D.
        count: how many to select; at least 1. All are returned when count >= n.
    Returns: int64 indices, and the largest Euclidean distance of any point to its nearest centre (0
    if all are kept).
    """
    n = len(features)
    if count >= n:
        return torch.arange(n), 0.0
    squares = (features * features).sum(1)
    mean = features.mean(0)
    start = int((squares - 2 * features @ mean).argmin())
    selected: list[int] = [start]
    pending: list[int] = [start]
    bound = torch.full((n,), float("inf"))
    while True:
        _lower(bound, features, squares, pending)
        pending = []
        if len(selected) == count:
            break
        top = torch.topk(bound, min(_BLOCK + 1, n))
        block = top.indices[:_BLOCK]
        outside = float(top.values[-1]) if len(top.indices) > _BLOCK else -1.0
        local = bound[block].numpy().copy()
        near, lengths = features[block], squares[block]
        gram = torch.addmm(lengths[:, None] + lengths[None], near, near.T, alpha=-2)
        gram_rows = gram.clamp_min_(0).numpy()
        while len(selected) < count:
            best = int(local.argmax())
            if local[best] < outside:
                break
            pending.append(int(block[best]))
            selected.append(pending[-1])
            np.minimum(local, gram_rows[best], out=local)
            local[best] = -1.0  # never again, whatever rounding says
    return torch.tensor(selected), float(bound.max().clamp_min(0).sqrt())


def _lower(bound: Tensor, features: Tensor, squares: Tensor, centres: list[int]) -> None:
    """Lower `bound` to the squared distance to the nearest of `centres`, in place; centres
    themselves to -1.
    """
    index = torch.tensor(centres)
    for start in range(0, len(features), _CHUNK):
        rows = slice(start, start + _CHUNK)
        # |a - b|² = |a|² + (|b|² - 2 a·b); |a|² is added once the centre is found, which spares a
        # pass over the matrix
        partial = torch.addmm(squares[index][None], features[rows], features[index].T, alpha=-2)
        nearest_one = (partial.amin(1) + squares[rows]).clamp_min_(0)
        torch.minimum(bound[rows], nearest_one, out=bound[rows])
    bound[index] = -1.0


class StreamingCoreset:
    """At most `size` of the unit-length points of a stream of any length, in memory that does not
    grow with it.

    Points are collected up to `2 * size`; then a greedy k-centre selection keeps `size` of them and
    its covering radius r becomes the bar: a later point within r of the kept ones adds nothing and
    is dropped on arrival. While no more than `2 * size` points have come the result is exactly the
    offline greedy selection; after that it is a merge-and-reduce of it, whose covering radius is at
    most the sum of the radii of the reductions.

    Args:
        size: hard cap on the points kept. dim: D.
        search_dtype: precision in which arriving points are compared with the kept ones.
    Attributes:
        radius: the sum of the radii of all reductions so far: no point that has come lies farther
            from what is kept.
    """

    def __init__(self, size: int, dim: int, *, search_dtype: torch.dtype = torch.float32) -> None:
        self._size = size
        self._dtype = search_dtype
        self._features = torch.empty(2 * size, dim)
        self._owners = torch.empty(2 * size, dtype=torch.int64)
        self._filled = 0
        self._radius = 0.0
        self.radius = 0.0
        self._kept = self._features[:0].to(search_dtype)

    def add(self, features: Tensor, owners: Tensor) -> None:
        """Take in n points of length 1 (float32 n D) and the picture each came from (int64 n)."""
        for start in range(0, len(features), self._size):
            self._add(features[start : start + self._size], owners[start : start + self._size])

    def _add(self, features: Tensor, owners: Tensor) -> None:
        if self._radius > 0:
            # Only against what the last reduction kept: a bank of one size. Matrix products of ever
            # new shapes would each leave a compiled kernel in memory.
            new = nearest(features, self._kept)[0] > self._radius
            features, owners = features[new], owners[new]
        if self._filled + len(features) > len(self._features):
            self._reduce()
        end = self._filled + len(features)
        self._features[self._filled : end] = features
        self._owners[self._filled : end] = owners
        self._filled = end

    def _reduce(self) -> None:
        chosen, radius = farthest_points(self._features[: self._filled], self._size)
        self._filled = len(chosen)
        self._features[: self._filled] = self._features[chosen]
        self._owners[: self._filled] = self._owners[chosen]
        self._radius = max(self._radius, radius)
        self.radius += radius
        self._kept = self._features[: self._filled].to(self._dtype)

    def held(self) -> tuple[Tensor, Tensor]:
        """The points that are held now (float32 k D, k <= 2 * size) and their owners (int64 k)."""
        return self._features[: self._filled].clone(), self._owners[: self._filled].clone()

    def result(self) -> tuple[Tensor, Tensor]:
        """The kept points (float32 k D, k <= size) and their owners (int64 k)."""
        if self._filled > self._size:
            self._reduce()
        return self.held()


def distance(queries: Tensor, bank: Tensor, *, rounds: bool = False) -> Tensor:
    """As the first that `nearest` gives.

    In an exported graph it is |q|² + min (|b|² − 2 q·b), of features about the bank's mean, so that
    rounding counts by how far they lie apart: engines are slow to find where a maximum lies.

    Args: rounds: whether an engine is to compute the graph in less than float32, where that would
        be of no use.
    """
    if rounds or not torch.compiler.is_exporting():
        return nearest(queries, bank)[0]
    centre = bank.mean(0)
    apart, near = queries - centre, bank - centre
    halves = near.square().sum(1) / -2
    edges = [round(part * len(bank) / 4) for part in range(5)]
    best = [
        torch.addmm(halves[low:high], apart, near[low:high].T).amax(1)
        for low, high in pairwise(edges)
        if high > low
    ]
    squares = apart.square().sum(1) - 2 * torch.stack(best).amax(0)
    return squares.clamp_min(0).sqrt()


def nearest(
    queries: Tensor, bank: Tensor, *, excluded: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Euclidean distance of each query to its nearest bank point, and that point's index; all of
    unit length.

    The search (the highest cosine) runs in the precision of `bank`: bfloat16 is faster on hardware
    that has it. The best candidate of each quarter of the bank is then measured exactly in float32,
    so that only near-ties can be confused.

    Args:
        queries: n D, any floating type. bank: k D, k >= 1.
        excluded: bool k, True for bank points that do not count; not all of them.
    Returns: float32 n, int64 n.
    """
    cast = queries.to(bank.dtype)
    edges = [round(part * len(bank) / 4) for part in range(5)]
    best = []
    for low, high in pairwise(edges):
        if high > low:
            cosines = cast @ bank[low:high].T
            if excluded is not None:
                cosines.masked_fill_(excluded[low:high], -torch.inf)
            best.append(cosines.max(1).indices + low)
    candidates = torch.stack(best, 1)
    distances = (queries.float()[:, None] - bank[candidates].float()).square().sum(2)
    if excluded is not None:  # a whole quarter may be
        distances.masked_fill_(excluded[candidates], torch.inf)
    nearest_one = distances.min(1)
    index = candidates.gather(1, nearest_one.indices[:, None])[:, 0]
    return nearest_one.values.sqrt(), index


def least_squares(queries: Tensor, points: Tensor, *, rounds: bool = False) -> Tensor:
    """Squared distance of each of the queries B N D to the nearest of the points B M D: B N.

    In an exported graph it is |q|² + min (|p|² − 2 q·p), about the points' mean, as of
    `distance`; elsewhere the nearest one is found so and its distance measured.

    Args: rounds: whether an engine is to compute the graph in less than float32, where that would
        be of no use.
    """
    points = points.float()
    centre = points.mean(1, keepdim=True)
    apart, near = queries - centre, points - centre
    halves = near.square().sum(2)[:, None] / -2
    products = torch.baddbmm(halves, apart, near.mT)  # the highest is of the nearest
    if torch.compiler.is_exporting() and not rounds:
        return (apart.square().sum(2) - 2 * products.amax(2)).clamp_min(0)
    nearest = products.argmax(2, keepdim=True).expand_as(queries)
    return (queries - points.gather(1, nearest)).square().sum(2)
