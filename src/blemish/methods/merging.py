"""What parts of the pictures have taught, merged into what all of them teach.

Every part gives a state (tensors by name); two states merge into one of the same kind, in a binary
tree that the number of parts alone decides (`Reduction`). So the result is the same to the bit,
whoever computes which part and in which order they are done, at the same number of threads.

Coresets (PatchCore). A part keeps a greedy k-centre selection, two merge by a greedy selection of
their union: merge and reduce (Bentley & Saxe 1980; Har-Peled & Mazumdar 2004), composable for
k-centre (Malkomes et al. 2015, "Fast Distributed k-Center Clustering with Outliers on MapReduce";
Ceccarello et al. 2019). What a selection with covering radius r leaves out of a union lies within r
of what it keeps, and what was left out before lies near something in the union. So by the triangle
inequality

    R(part) = the sum of the radii of its own selections (`StreamingCoreset`)
    R(a ∪ b) = max(R(a), R(b)) + r

bounds how far any feature that was ever seen lies from the bank. Against the smallest radius r*
that k centres anywhere can have on all features: k + 1 points of a subset that lie more than 2 r*
apart cannot be, as two of them would share a centre, so every greedy radius is at most 2 r*
(Gonzalez 1985), and with parts of one selection each R <= 2 (1 + L) r* after L levels, where one
selection of all features has 2 r*. Distances are rounded by about 1e-3.

Samples (kNN). Every feature gets a random key of the seed, the picture's number and its own place,
and those with the highest keys stay: merged or not, the same sample.

Moments (PaDiM). Counts, means and scatters merge exactly (Chan, Golub & LeVeque 1979), up to the
rounding of float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from blemish.methods.coreset import StreamingCoreset, farthest_points

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


class CoresetPart:
    """The coreset of a part, and how far any of its features can lie from it."""

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
        features, owners = self._coreset.result()
        radius = torch.tensor(self._coreset.radius, dtype=torch.float64)
        return {"features": features, "owners": owners, "radius": radius}


def merged_coresets(left: State, right: State, size: int) -> State:
    """One coreset of at most `size` features, the first of two first where all of them stay."""
    if not left or not right:
        return left or right
    features = torch.cat([left["features"], right["features"]])
    owners = torch.cat([left["owners"], right["owners"]])
    radius = torch.maximum(left["radius"], right["radius"])
    if len(features) > size:
        chosen, reach = farthest_points(features, size)
        features, owners, radius = features[chosen], owners[chosen], radius + reach
    return {"features": features, "owners": owners, "radius": radius}


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
