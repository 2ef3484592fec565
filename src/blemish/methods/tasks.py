"""What the base models of AHL learn from and are held against (Zhu et al. 2024, section 3.2).

Each has a support set, of one cluster of normal pictures, half of the known defects and one kind of
made anomalies; and a query set, of another cluster, the other defects and another kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from blemish.errors import ConfigError
from blemish.methods.coreset import farthest_points
from blemish.types import NORMAL

PLAIN, KINDS = 0, 3  # rows: normal ones, made anomalies of kinds 1 to 3, then labelled defects
LABELLED = KINDS + 1
_ROUNDS = 20
Part = TypeVar("Part", Tensor, Tensor | None)
Model = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # heads, as `openset.Heads`


@dataclass(frozen=True, slots=True)
class Half:
    """Rows of a batch, int64 n: normal ones, made anomalies, labelled defects; how many the first
    are, and the first two."""

    rows: Tensor
    plain: int
    normal: int

    def of(self, parts: Sequence[Part]) -> list[Part]:
        """Its rows of tensors B …; what has two sides only is the same for all."""
        return [each if each is None or each.ndim < 3 else each[self.rows] for each in parts]


@dataclass(frozen=True, slots=True)
class Task:
    """What one model learns: `clusters` and made anomalies' `kinds`, in the support set and in the
    query set.
    """

    clusters: tuple[int, int]
    kinds: tuple[int, int]


class Known:
    """What is known of watched pictures once features stay as they are.

    Attributes:
        features, reference, insides: as `openset.OpenSet.scored` takes them.
        labels: y of eq. 6, int64 P. factors: c, P T: 1 for made anomalies and labelled defects that
            the model does not learn from, 0 for normal pictures of the cluster that it does, else
            0.5.
        centres: of the clusters of the normal ones' features, C n.
        defects: mean features of the labelled ones, M D.
        learned, held: bool T M, which of these are in each task's support set, and in its query
            set; a single one is in both.
    Raises: ConfigError where the smallest size has one location.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        single: bool,
        seed: int,
        pictures: Tensor,
        kinds: Tensor,
        features: list[Tensor],
        reference: list[Tensor],
        insides: list[Tensor | None],
    ) -> None:
        if features[-1].shape[2:].numel() < 2:  # of a set of one picture batch norm needs several
            raise ConfigError(
                "image_size: the smallest size in which pictures are looked at has a single "
                "location; a larger image_size or fewer levels are needed"
            )
        self.features, self.reference, self.insides = features, reference, insides
        plain, labelled, first = kinds == PLAIN, kinds == LABELLED, features[0]
        self.labels = (~plain).long()
        whole = first[plain].flatten(1)
        self.centres = clustered(whole, 1 + max(task.clusters[0] for task in tasks))
        self.defects = first[labelled].mean((2, 3))
        # The same one may be watched twice.
        _, own = torch.unique(pictures[labelled].flatten(1), dim=0, return_inverse=True)
        distinct = int(own.max()) + 1 if len(own) else 0
        sides = [sides_of(distinct, [seed, number])[own.cpu()] for number in range(len(tasks))]
        self.learned = torch.stack(sides).to(own.device)
        self.held = ~self.learned
        if single or distinct == 1:
            self.learned = self.held = torch.ones_like(self.learned)
        self.factors = first.new_ones(len(kinds), len(tasks))
        cluster = nearest(whole, self.centres)
        for task, factor, learned in zip(tasks, self.factors.T, self.learned, strict=True):
            factor[kinds == task.kinds[0]] = 0.5
            factor[plain] = 0.5 * (cluster != task.clusters[0])
            factor[labelled] = 1 - 0.5 * learned

    def distances(self, features: Tensor) -> Tensor:
        """Of features B D h w from the clusters, B C."""
        return torch.cdist(features.flatten(1), self.centres)

    def resembled(self, features: Tensor) -> Tensor:
        """The number of the labelled one that each of B D h w resembles most, int64 B; none where
        none is watched.
        """
        if not len(features) or not len(self.defects):
            return torch.zeros(0, dtype=torch.int64, device=features.device)
        return nearest(features.mean((2, 3)), self.defects)


def tasks_of(clusters: int, seed: int) -> list[Task]:
    """One of every ordered pair of clusters; two kinds are drawn for each."""
    random = np.random.default_rng(seed)
    drawn = [random.permutation(KINDS)[:2] + 1 for _ in range(clusters * (clusters - 1))]
    pairs = permutations(range(clusters), 2)
    return [
        Task(pair, (int(one), int(other))) for pair, (one, other) in zip(pairs, drawn, strict=True)
    ]


def watched_of(images: Tensor, labels: Tensor | None, count: int) -> tuple[Tensor, int, int]:
    """So many pictures of a sample B 3 H W with labels B, some twice where it has too few: half of
    them normal ones, a quarter normal ones to make anomalies in, a quarter labelled defects, if
    there are any; how many the first are, and the first two.
    """
    normal, defects = images, images[:0]
    if labels is not None and bool((labels == NORMAL).any()):
        normal, defects = images[labels == NORMAL], images[labels != NORMAL]
    quarter = count // 4
    known = quarter if len(defects) else 0
    plain = count - quarter - known
    parts = [(normal, plain), (normal, quarter), (defects, known)]
    chosen = [each[torch.arange(size) % max(1, len(each))] for each, size in parts]
    return torch.cat(chosen), plain, plain + quarter


def kinds_drawn(count: int) -> Tensor:
    """Kinds of so many made anomalies, about as many of each, in rising order: int64."""
    return ((torch.arange(count) + torch.randint(KINDS, (1,))) % KINDS + 1).sort().values


def clustered(points: Tensor, count: int) -> Tensor:
    """The means of `count` clusters of points N D, by k-means (Lloyd) from points that lie far from
    each other, so that nothing is drawn; one without points stays where it is.
    """
    points = points.float()
    start = farthest_points(points.cpu(), count)[0].to(points.device)
    centres = points[start[torch.arange(count) % len(start)]]
    for _ in range(_ROUNDS):
        own = nearest(points, centres)
        member = (own[:, None] == torch.arange(count, device=own.device)).float()
        sizes = member.sum(0)[:, None]
        centres = torch.where(sizes > 0, member.T @ points / sizes.clamp_min(1), centres)
    return centres


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Of points N D the number of the nearest of centres C D, int64 N."""
    return torch.cdist(points, centres).argmin(1)


def sides_of(distinct: int, seed: Sequence[int]) -> Tensor:
    """Which of so many defects a model learns from, a half of them (the larger): bool."""
    order = np.random.default_rng(seed).permutation(distinct)
    return torch.from_numpy(order < (distinct + 1) // 2)


def halves(
    distances: Tensor, kinds: Tensor, task: Task, learned: Tensor, held: Tensor
) -> tuple[Half, Half]:
    """The support set and the query set of a task.

    Args: distances: of the first rows, which are normal ones, from all clusters, n C. kinds: of all
        rows, on the CPU, in rising order. learned, held: bool, which of the last rows, the labelled
        ones, are in the support set, and in the query set.
    Normal pictures are divided in halves by how much nearer they lie to the first cluster than to
    the second, so that none of a batch is lost and neither half is empty.
    """
    own, other = task.clusters
    order = (distances[:, own] - distances[:, other]).argsort()
    half = len(order) // 2
    made = [(kinds == kind).nonzero()[:, 0].to(order.device) for kind in task.kinds]
    first = int((kinds < LABELLED).sum())
    known = [side.nonzero()[:, 0] + first for side in (learned, held)]
    found = zip((order[:half], order[half:]), made, known, strict=True)
    return _half(*next(found)), _half(*next(found))


def _half(plain: Tensor, made: Tensor, known: Tensor) -> Half:
    return Half(torch.cat([plain, made, known]), len(plain), len(plain) + len(made))


def adapted(module: nn.Module, loss: Callable[[Model], Tensor], steps: int, rate: float) -> Model:
    """A module after gradient steps on a loss (eq. 1), as a function of its parameters.

    θ ← θ − rate · ∇ loss(θ), `steps` times. The first step can be differentiated, and the others
    are constants (in the authors' code likewise), so that what follows has a gradient of the second
    order for the module.
    """
    names, own = zip(*module.named_parameters(), strict=True)

    def model_of(parameters: Sequence[Tensor]) -> Model:
        given = dict(zip(names, parameters, strict=True))
        return lambda *inputs: functional_call(module, given, inputs)

    for step in range(steps):
        gradients = torch.autograd.grad(loss(model_of(own)), own, create_graph=step == 0)
        own = tuple(one - rate * each for one, each in zip(own, gradients, strict=True))
    return model_of(own)
