"""MSN: pre-train an encoder by predicting, from a view without some of its patches, the prototypes
of a view of the same picture that is whole.

Assran et al. 2022, "Masked Siamese Networks for Label-Efficient Learning", with the figures of the
authors' configuration for ViT-S/16 where the paper does not give them. The target p⁺ is the
teacher's softmax(z⁺·q / τ) sharpened (to the temperature τ⁺ = 0.025), then balanced by Sinkhorn in
3 iterations. The student sees one global view without 15 % of its patches, drawn at random, and ten
small ones ("focal" masks) with all of theirs. With p̄ the mean prediction over all views, eq. 1 is

    L = 1/(V·B) Σ H(p⁺, p) − λ H(p̄),   λ = 1

here with log K added to −H(p̄), so that 0 is the least of it. The teacher's momentum rises from
0.996 on a line that would reach 1 after 1.25 times the run.

Deviates, beside what `selfsupervised` says: each picture loses patches of its own, where the
authors' code draws them once for a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Self

from torch import Tensor

from blemish.config import FractionBelow1, NotNegative, Positive, Range
from blemish.losses.clustering import entropy_missing, multi_view, sinkhorn
from blemish.methods.masked import Masked, MaskedConfig, Masking
from blemish.methods.views import Augmentation

_COLOURS = (0.4, 0.4, 0.4, 0.1)  # half of the usual strength of SimCLR's


@dataclass(frozen=True, kw_only=True)
class MSNConfig(MaskedConfig):
    """Settings of MSN; see `MaskedConfig` for the others, of which `masking` concerns the global
    view alone.

    Attributes:
        target_temperature, iterations: of the targets: τ⁺, and of the balancing.
        mean_entropy_weight: λ, of the regularisation that keeps all prototypes in use.
    """

    local_views: Annotated[int, Range(0, 1024)] = 10
    masking: Masking = "random"
    mask_ratio: FractionBelow1 = 0.15
    target_temperature: Positive = 0.025
    iterations: Annotated[int, Range(1, 1000)] = 3
    mean_entropy_weight: NotNegative = 1.0

    @classmethod
    def paper(cls) -> Self:
        """The published objective, with 1,024 prototypes, in the schedule of the APMask paper."""
        return replace(super().paper(), prototypes=1024)


class MSN(Masked):
    """Predicts the prototypes of a whole view, sharpened and balanced."""

    name = "msn"
    Config = MSNConfig
    config: MSNConfig
    masks_local = False
    global_views = (Augmentation(area=(0.3, 1.0), blur=0.5, colours=_COLOURS),) * 2
    local_view = Augmentation(area=(0.05, 0.3), blur=0.5, colours=_COLOURS)

    def targets(self, shown: Tensor) -> Tensor:
        scores = self.head.scores(shown) / self.config.target_temperature
        return sinkhorn(scores.log_softmax(1), epsilon=1.0, iterations=self.config.iterations)

    def loss(self, targets: Tensor, predictions: Sequence[Tensor]) -> Tensor:
        regularisation = self.config.mean_entropy_weight * entropy_missing(predictions)
        return multi_view(targets, predictions) + regularisation

    def momentum(self, step: int, steps: int) -> float:
        start = self.config.momentum
        return start + (1 - start) * (step - 1) / (1.25 * steps)
