"""SwAV: pre-train an encoder by predicting the cluster of one view of a picture from another.

Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
with the figures of the authors' script for batches of 256 where the paper does not give them. The
features of each of two global views are assigned to prototypes, balanced over the batch by Sinkhorn
(ε = 0.05, 3 iterations); each assignment is predicted from the other global view and from six small
ones (multi-crop):

    L = 1/2 Σ_i 1/(V−1) Σ_{v≠i} 1/B Σ H(q_i, p_v)

A small batch cannot be divided evenly among many prototypes, so in `paper` features of earlier
batches are balanced along with it: a queue for each global view, from a share of the run on, read
once it is full. The prototypes learn nothing at first (one of 200 epochs).

There is no teacher: assignments come from the student's own features, without gradient. What is
kept in the end, the `teacher` of the base class, follows at once, so it is the student.

Deviates, beside what `selfsupervised` says: a ViT in place of the ResNet-50; the queue begins after
the same share of the run (15 of 200 epochs), not after as many steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from torch import Tensor

from blemish.backbones import Backbone
from blemish.config import Fraction, Positive, Range, Side
from blemish.losses.clustering import gathered, own_share, sinkhorn, swapped
from blemish.methods.selfsupervised import SelfSupervised, SelfSupervisedConfig, look
from blemish.methods.views import Augmentation

_COLOURS = (0.8, 0.8, 0.8, 0.2)


@dataclass(frozen=True, kw_only=True)
class SwAVConfig(SelfSupervisedConfig):
    """Settings of SwAV; see `SelfSupervisedConfig` for the others.

    Attributes:
        momentum: how much of what is kept in the end stays in every step; 0 = the student is kept.
        epsilon, iterations: of the balancing, see `losses.clustering.sinkhorn`.
        queue: how many features of earlier batches are balanced along with each one's, for each
            global view, over all processes; 0 = none. `queue_from`: the share of the run after
            which they are collected.
        frozen_prototypes: the share of the run in which the prototypes do not learn.
    """

    local_views: Annotated[int, Range(0, 1024)] = 6
    picture_size: Side = 704
    momentum: Fraction = 0.0
    epsilon: Positive = 0.05
    iterations: Annotated[int, Range(1, 1000)] = 3
    queue: Annotated[int, Range(0, 2**20)] = 0  # where prototypes are as few as pictures
    queue_from: Fraction = 15 / 200
    frozen_prototypes: Fraction = 1 / 200

    @classmethod
    def paper(cls) -> Self:
        """The published objective, with 3,000 prototypes, a bottleneck of 128 and 3,840 features in
        the queue, in the schedule of the APMask paper."""
        return replace(super().paper(), prototypes=3000, bottleneck=128, queue=3840)


class SwAV(SelfSupervised):
    """Each view predicts the clusters of the others."""

    name = "swav"
    Config = SwAVConfig
    config: SwAVConfig
    global_views = (Augmentation(area=(0.14, 1.0), blur=0.5, colours=_COLOURS),) * 2
    local_view = Augmentation(area=(0.05, 0.14), blur=0.5, colours=_COLOURS)
    queue: Tensor  # 2 Q D, the newest first; zeros where there is none yet

    def __init__(self, config: SwAVConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("queue", torch.zeros(2, config.queue, config.bottleneck))

    def loss_of(self, views: tuple[Tensor, Tensor, Tensor], fraction: float) -> Tensor:
        first, second, narrow = views
        count = len(first)
        seen, features = look(self.backbone, self.head, torch.cat([first, second]))
        wide = features.detach().split(count)  # type: ignore[no-untyped-call]
        targets = [self._assigned(each, number) for number, each in enumerate(wide)]
        if fraction >= self.config.queue_from:
            self._collect(wide)
        parts = list(features.split(count))  # type: ignore[no-untyped-call]
        if len(narrow):
            local = look(self.backbone, self.head, narrow)[1]
            parts += local.split(count)  # type: ignore[no-untyped-call]
        frozen = fraction < self.config.frozen_prototypes
        predictions = self.log_shares(parts, frozen=frozen)
        self._note(targets[0], predictions[1], (wide[0] * wide[1]).sum(1), seen[:count], wide[0])
        return swapped(targets, predictions)

    @torch.no_grad()
    def _assigned(self, features: Tensor, number: int) -> Tensor:
        """The balanced assignments B K of the features B D of global view `number`."""
        config, rows = self.config, features
        earlier = self.queue[number]
        if len(earlier) and bool(earlier[-1].any()):
            rows = torch.cat([own_share(earlier), features])
        scores = self.head.scores(rows)
        found = sinkhorn(scores, epsilon=config.epsilon, iterations=config.iterations)
        return found[-len(features) :]

    @torch.no_grad()
    def _collect(self, wide: tuple[Tensor, ...]) -> None:
        """Put the features B D of both global views, of all processes, into the queues."""
        for own, features in zip(self.queue, wide, strict=True):
            own.copy_(torch.cat([gathered(features), own])[: len(own)])

    def momentum(self, step: int, steps: int) -> float:
        return self.config.momentum
