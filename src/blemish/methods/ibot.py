"""iBOT: pre-train an encoder as DINO, and by predicting what the teacher sees in patches that are
hidden from the student.

Zhou et al. 2022, "iBOT: Image BERT Pre-Training with Online Tokenizer", with the figures of the
authors' command for ViT-S/16. The teacher sees two global views whole. Of each the student sees
some patches replaced by a learned vector (mask token) before positions are added: with even chance
none, or a block of 10 to 50 % of them. With P_t the teacher's softmax, centred and sharpened, of
[CLS] and of each patch by the same head, and P_s the student's, u and v global views and V all of
the student's:

    L_CLS   = mean over u and v ≠ u of V of  H(P_t^CLS(u), P_s^CLS(v))
    L_patch = mean over u of  1/|hidden(u)| Σ_{i hidden} H(P_t^i(u), P_s^i(u))
    L = L_CLS + L_patch

The targets' temperature rises from 0.04 to 0.07 at first (30 of 800 epochs), in which also the
prototypes learn nothing for a while (one of 800).

Deviates, beside what `selfsupervised` says: what is hidden is one block of exactly ⌊rN⌋ patches
(`views.far_from_a_place`), where the authors add up several of BEiT's; prototypes of length 1 are
the authors' `norm_last_layer`, which they leave off for ViT-S.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from torch import Tensor, nn

from blemish.backbones import Backbone
from blemish.backbones.vit import VitBackbone
from blemish.config import Fraction, FractionBelow1, NotNegative, Positive, Range, Side
from blemish.errors import ConfigError
from blemish.losses.clustering import centred, masked_prediction, mean_over_processes, swapped
from blemish.methods.selfsupervised import SelfSupervised, SelfSupervisedConfig, look
from blemish.methods.views import DINO_GLOBAL, DINO_LOCAL, block_of


@dataclass(frozen=True, kw_only=True)
class IBOTConfig(SelfSupervisedConfig):
    """Settings of iBOT; see `SelfSupervisedConfig` for the others.

    Attributes:
        hidden_least, hidden_most: between which shares of a global view's patches are hidden, where
            any are.
        hidden_chance: how likely any are.
        patch_weight: of the loss of patches.
        target_temperature_start, target_temperature, temperature_rise: of the targets, at first and
            after this share of the run.
        centre_momentum: of the running means of the teacher's scores.
        frozen_prototypes: the share of the run in which the prototypes do not learn.
    """

    local_views: Annotated[int, Range(0, 1024)] = 10
    picture_size: Side = 520
    hidden_least: FractionBelow1 = 0.1
    hidden_most: FractionBelow1 = 0.5
    hidden_chance: Fraction = 0.5
    patch_weight: NotNegative = 1.0
    target_temperature_start: Positive = 0.04
    target_temperature: Positive = 0.07
    temperature_rise: Fraction = 30 / 800
    centre_momentum: FractionBelow1 = 0.9
    frozen_prototypes: Fraction = 1 / 800

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_least > self.hidden_most:
            raise ConfigError("hidden_least: must not be above hidden_most")

    @classmethod
    def paper(cls) -> Self:
        """The published objective, with 8,192 prototypes, in the schedule of the APMask paper."""
        return replace(super().paper(), prototypes=8192)


class IBOT(SelfSupervised):
    """Predicts the teacher's scores of views, and of patches that it does not see."""

    name = "ibot"
    Config = IBOTConfig
    config: IBOTConfig
    training_only = ("head.", "mask_token")
    global_views = (
        replace(DINO_GLOBAL[0], area=(0.25, 1.0)),
        replace(DINO_GLOBAL[1], area=(0.25, 1.0)),
    )
    local_view = replace(DINO_LOCAL, area=(0.05, 0.25))
    centre: Tensor  # K, a running mean of the teacher's scores of [CLS]
    patch_centre: Tensor  # K, of patches

    def __init__(self, config: IBOTConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.mask_token = nn.Parameter(torch.zeros(self.backbone.dim))
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self.register_buffer("patch_centre", torch.zeros(config.prototypes))

    def loss_of(self, views: tuple[Tensor, Tensor, Tensor], fraction: float) -> Tensor:
        first, second, narrow = views
        count, both = len(first), torch.cat([first, second])
        hidden = self.hidden(both)
        seen, shown, targets, of_patches = self._targets(both, hidden, fraction)
        cls, patches = tokens(self.backbone, both, (hidden, self.mask_token))
        features: Tensor = self.head(cls)
        parts = list(features.split(count))  # type: ignore[no-untyped-call]
        if len(narrow):
            local = look(self.backbone, self.head, narrow)[1]
            parts += local.split(count)  # type: ignore[no-untyped-call]
        frozen = fraction < self.config.frozen_prototypes
        predictions = self.log_shares(parts, frozen=frozen)
        (told,) = self.log_shares([self.head(patches[hidden])], frozen=frozen)
        agreements = (shown[:count] * parts[1]).sum(1)
        self._note(targets[0], predictions[1], agreements, seen[:count], shown[:count])
        patch_loss = masked_prediction(of_patches, told, hidden)
        return swapped(targets, predictions) + self.config.patch_weight * patch_loss

    def hidden(self, views: Tensor) -> Tensor:
        """Which patches of each of the global views B 3 H W the student does not see: bool B N."""
        config, stride = self.config, self.backbone.stride
        grid = views.shape[2] // stride, views.shape[3] // stride
        draws = torch.rand(2, len(views))  # on the host, so that every device draws the same
        shares = config.hidden_least + (config.hidden_most - config.hidden_least) * draws[0]
        shares = torch.where(draws[1] < config.hidden_chance, shares, 0.0)
        return block_of(grid, shares).to(views.device)

    @torch.no_grad()
    def _targets(
        self, both: Tensor, hidden: Tensor, fraction: float
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor]:
        """The teacher's [CLS] tokens 2B D of both global views, their features, the targets of
        each view B K, and those of the hidden patches M K; the running means move on."""
        assert self.teacher is not None
        head, temperature = self.teacher.head, self.temperature_at(fraction)
        seen, patches = tokens(self.teacher.backbone, both)
        shown, of_patches = head(seen), head(patches)
        scores = head.scores(shown)
        targets = centred(scores, self.centre, temperature=temperature)
        of_hidden = head.scores(of_patches[hidden])
        patch_targets = centred(of_hidden, self.patch_centre, temperature=temperature)
        # The mean of scores is the score of the mean: those of all patches need not be made.
        means = (scores.mean(0), head.scores(of_patches.flatten(0, 1).mean(0)))
        for centre, mean in zip((self.centre, self.patch_centre), means, strict=True):
            centre.lerp_(mean_over_processes(mean), 1 - self.config.centre_momentum)
        half = len(both) // 2
        return seen, shown, targets.split(half), patch_targets  # type: ignore[no-untyped-call]

    def temperature_at(self, fraction: float) -> float:
        """Of the targets, at `fraction` of the run."""
        config = self.config
        risen = 1.0 if fraction >= config.temperature_rise else fraction / config.temperature_rise
        start = config.target_temperature_start
        return start + (config.target_temperature - start) * risen


def tokens(
    backbone: VitBackbone, views: Tensor, masked: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The final [CLS] tokens B D and patch tokens B N D of views B 3 H W; `masked` as of
    `VitBackbone.forward`."""
    seen = backbone(views, (backbone.depth,), masked=masked)
    normed = backbone.norm(torch.cat([seen.cls[-1][:, None], seen.tokens[-1]], dim=1))
    return normed[:, 0], normed[:, 1:]
