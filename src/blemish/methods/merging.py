"""What parts of the pictures have taught, merged into what all of them teach.

Every part gives a state (tensors by name); two states merge into one of the same kind, in a binary
tree that the number of parts alone decides (`Reduction`). So the result is the same to the bit,
whoever computes which part and in which order they are done, at the same number of threads.

Coresets (PatchCore). A part, and a union of two, holds up to 2 k features as they are; of more, a
greedy k-centre selection keeps k, and the last one keeps k of what the tree gives: merge and reduce
(Bentley & Saxe 1980; Har-Peled & Mazumdar 2004), composable for k-centre (Malkomes et al. 2015,
"Fast Distributed k-Center Clustering with Outliers on MapReduce"; Ceccarello et al. 2019). What a
selection with covering radius r leaves out of a union lies within r of what it keeps, and what was
left out before lies near something in the union. So by the triangle inequality

    R(part) = the sum of the radii of its own selections (`StreamingCoreset`)
    R(a ∪ b) = max(R(a), R(b)) + r, with r = 0 where all is kept
    R(bank) = R(all) + r of the last selection

bounds how far any feature that was ever seen lies from the bank. Against the smallest radius r*
that k centres anywhere can have on all features: k + 1 points of a subset that lie more than 2 r*
apart cannot be, as two of them would share a centre, so every greedy radius is at most 2 r*
(Gonzalez 1985), and with parts of at most 2 k features each R <= 2 (1 + L) r* after L levels, where
one selection of all features has 2 r*. Distances are rounded by about 1e-3.

A greedy selection of greedy selections is another one than that of everything: two ways to divide
the features give two banks that cover about as well and score differently, by as much as another
order of the pictures makes. So a fit on one machine goes through the same tree (`PartByPart`).

Samples (kNN). Every feature gets a random key of the seed, the picture's number and its own place,
and those with the highest keys stay: merged or not, the same sample.

Moments (PaDiM). Counts, means and scatters merge exactly (Chan, Golub & LeVeque 1979), up to the
rounding of float32.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from blemish.methods.coreset import StreamingCoreset, farthest_points

FEWEST = 64  # pictures of a part, where that is not given
MOST = 256  # parts, where their size is not given: so many workers can learn at once
BATCH = 8  # pictures of a batch, as `blemish.fit` reads them
# What a part has taught, by name; empty where none of its pictures could be read.
State = dict[str, Tensor]
Node = tuple[int, int]  # of a tree: its level, 0 for the parts, and its number there
S = TypeVar("S")


class Reduction(Generic[S]):
    """A binary tree over numbered parts: says which two results are to be merged next.

    On every level neighbours merge, and a last one without a neighbour goes up as it is.

    Attributes:
        result: of all of them; None until it is there.

    Example:
        >>> tree = Reduction(3)
        >>> tree.add((0, 2), "c"), tree.add((0, 0), "a")
        (None, None)
        >>> tree.add((0, 1), "b")
        ((1, 0), 'a', 'b')
        >>> tree.add((1, 0), "ab")
        ((2, 0), 'ab', 'c')
        >>> tree.add((2, 0), "abc")
        >>> tree.result
        'abc'
    """

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._waiting: dict[Node, S] = {}
        self.result: S | None = None

    @property
    def levels(self) -> int:
        """How many merges lie between a part and the result, at most."""
        return (self._parts - 1).bit_length()

    def add(self, node: Node, value: S) -> tuple[Node, S, S] | None:
        """Take in the result of a part, or of a merge; gives the merge that can be done now."""
        level, number = node
        while level < self.levels:
            width = -(-self._parts // 2**level)
            neighbour = (level, number ^ 1)
            if neighbour in self._waiting:
                pair = {(level, number): value, neighbour: self._waiting.pop(neighbour)}
                left, right = (pair[key] for key in sorted(pair))
                return (level + 1, number // 2), left, right
            if number ^ 1 < width:
                self._waiting[level, number] = value
                return None
            level, number = level + 1, number // 2
        self.result = value
        return None


def folded(parts: Iterable[S], count: int, merge: Callable[[S, S], S]) -> S | None:
    """The parts merged one after the other: no more than one result of each level is held."""
    tree = Reduction[S](count)
    for number, part in enumerate(parts):
        due = tree.add((0, number), part)
        while due is not None:
            node, left, right = due
            due = tree.add(node, merge(left, right))
    return tree.result


def divided(count: int, part_pictures: int | None = None) -> list[range]:
    """The parts of so many pictures, by their places, all nearly of one size. Where that is not
    given they end at multiples of `BATCH` pictures, so that batches are the same as in one go.

    Example:
        >>> divided(10, 4)
        [range(0, 3), range(3, 7), range(7, 10)]
        >>> divided(100)
        [range(0, 48), range(48, 100)]
    """
    if part_pictures:
        parts, step = -(-count // part_pictures), 1
    else:
        parts, step = min(-(-count // FEWEST), MOST), BATCH
    steps = -(-count // step)
    edges = [min(count, step * round(at * steps / max(parts, 1))) for at in range(parts + 1)]
    return [range(low, high) for low, high in pairwise(edges)]


class Part(Protocol):
    """What takes in the features of some of the pictures."""

    def add(self, features: Tensor, owners: Tensor, rows: Sequence[tuple[int, int]]) -> None: ...
    def resume(self, features: Tensor, owners: Tensor, *, seen: int) -> None: ...
    def state(self) -> State: ...


class PartByPart:
    """What all pictures teach, taken in one after the other: each part of them by itself, merged in
    the tree as soon as it can be. To the bit what a fit in these parts gives, with equal features.

    It holds a state of each level at most, and the part that is being taken in.

    Args: parts: as `divided` gives them. new: makes what takes in a part. merge: of two states.
    """

    def __init__(
        self,
        parts: Sequence[range],
        new: Callable[[], Part],
        merge: Callable[[State, State], State],
    ) -> None:
        self._new, self._merge = new, merge
        self._ends = [part.stop for part in parts[:-1]]
        self._tree = Reduction[State](len(parts))
        self._number, self._part = 0, new()

    def add(self, features: Tensor, owners: Tensor, rows: Sequence[tuple[int, int]]) -> None:
        """As of `CoresetPart`; the pictures come in the order of their numbers."""
        start = 0
        for number, some in groupby(rows, lambda row: bisect_right(self._ends, row[0])):
            own = [*some]
            end = start + sum(count for _, count in own)
            while self._number < number:
                self._end()
                self._part = self._new()
            self._part.add(features[start:end], owners[start:end], own)
            start = end

    def _end(self) -> None:
        due = self._tree.add((0, self._number), self._part.state())
        while due is not None:
            node, left, right = due
            due = self._tree.add(node, self._merge(left, right))
        self._number += 1

    def resume(self, features: Tensor, owners: Tensor, *, seen: int) -> None:
        """Start from what was kept of `seen` features, as of the first part."""
        self._part.resume(features, owners, seen=seen)

    def state(self) -> State:
        """Of all of them. Called once, after which nothing is taken in."""
        while self._number <= len(self._ends):
            self._end()
            self._part = self._new()
        assert self._tree.result is not None
        return self._tree.result


class CoresetPart:
    """What is held of a part for a coreset, and how far any of its features can lie from it."""

    def __init__(self, size: int, dim: int, *, search_dtype: torch.dtype) -> None:
        self._coreset = StreamingCoreset(size, dim, search_dtype=search_dtype)

    def add(self, features: Tensor, owners: Tensor, rows: Sequence[tuple[int, int]]) -> None:
        """As of `StreamingCoreset`; `rows`: of each picture its number, and of how many features
        it is."""
        self._coreset.add(features, owners)

    def resume(self, features: Tensor, owners: Tensor, *, seen: int) -> None:
        """Start from what was kept of `seen` features."""
        self._coreset.add(features, owners)

    def state(self) -> State:
        features, owners = self._coreset.held()
        radius = torch.tensor(self._coreset.radius, dtype=torch.float64)
        return {"features": features, "owners": owners, "radius": radius}


def merged_coresets(left: State, right: State, size: int) -> State:
    """What is held of both, the first of two first; of more than 2 * `size` features that many are
    selected."""
    if not left or not right:
        return left or right
    both = {name: torch.cat([left[name], right[name]]) for name in ("features", "owners")}
    both["radius"] = torch.maximum(left["radius"], right["radius"])
    return both if len(both["features"]) <= 2 * size else selected_coreset(both, size)


def selected_coreset(state: State, size: int) -> State:
    """The coreset of at most `size` features of what is held; all of fewer, in their order."""
    if not state or len(state["features"]) <= size:
        return state
    chosen, reach = farthest_points(state["features"], size)
    return {
        "features": state["features"][chosen],
        "owners": state["owners"][chosen],
        "radius": state["radius"] + reach,
    }


class SamplePart:
    """A uniform random sample of the features of a stream of any length: the `size` of them that
    have the highest keys (bottom-k sampling: Cohen & Kaplan 2007, "Summarizing Data using Bottom-k
    Sketches"; here the highest).

    Args: size: hard cap on the features kept. seed: of the keys.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self._seen: Counter[int] = Counter()
        self._state: State = {}

    def add(self, features: Tensor, owners: Tensor, rows: Sequence[tuple[int, int]]) -> None:
        """As of `CoresetPart`. A picture that comes again, turned or mirrored, gets other keys."""
        keys = []
        for number, count in rows:
            drawn = np.random.default_rng([self._seed, number, self._seen[number]])
            self._seen[number] += 1
            keys.append(torch.from_numpy(drawn.random(count)))
        new = {"features": features, "owners": owners, "keys": torch.cat(keys)}
        self._state = merged_samples(self._state, new, self._size)

    def resume(self, features: Tensor, owners: Tensor, *, seen: int) -> None:
        """Start from what was kept of `seen` features: their keys are drawn again, as the highest
        of so many."""
        # No picture's: a seed that is shorter is taken as one that ends in zeros.
        drawn = np.random.default_rng([self._seed, 0, 0, 1]).random(len(features))
        share = min(1.0, len(features) / seen)
        keys = torch.from_numpy(1 - share * drawn)
        self._state = {"features": features, "owners": owners, "keys": keys}

    def state(self) -> State:
        return self._state


def merged_samples(left: State, right: State, size: int) -> State:
    """Of two samples, in their order, the `size` features with the highest keys."""
    if not left or not right:
        return _highest(left or right, size)
    return _highest({name: torch.cat([left[name], right[name]]) for name in left}, size)


def _highest(state: State, size: int) -> State:
    if not state or len(state["keys"]) <= size:
        return state
    kept = state["keys"].sort(descending=True, stable=True).indices[:size].sort().values
    return {name: tensor[kept] for name, tensor in state.items()}


def merged_moments(left: State, right: State) -> State:
    """Counts, means N d and scatters N d d about them, of all pictures of both."""
    if not left or not right:
        return left or right
    n, m = float(left["seen"]), float(right["seen"])
    apart = right["mean"] - left["mean"]
    between = apart[:, :, None] * apart[:, None, :]
    return {
        "seen": left["seen"] + right["seen"],
        "mean": left["mean"] + apart * (m / (n + m)),
        "scatter": left["scatter"] + right["scatter"] + between * (n * m / (n + m)),
        "subset": left["subset"],
        "owners": torch.cat([left["owners"], right["owners"]]),
        "rows": torch.cat([left["rows"], right["rows"]]),
    }


def renamed(owners: Tensor, originals: Mapping[int, int]) -> Tensor:
    """Pictures by number, each named by the first one of the same content."""
    return torch.tensor([originals.get(owner, owner) for owner in owners.tolist()])
