"""DINO: pre-train an encoder by predicting the teacher's own scores, centred and sharpened.

Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers". Deviates: on
APMask's views, of which the teacher sees one where DINO has it see two, so that the two differ in
nothing but the targets; the temperature of the targets is 0.04 throughout; 20 prototypes. With
`masking` its student misses patches as APMask's does, a control that is in no paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blemish.backbones import Backbone
from blemish.config import FractionBelow1, Positive
from blemish.losses.clustering import centred, mean_over_processes
from blemish.methods.masked import Masked, MaskedConfig, Masking
from blemish.methods.views import DINO_GLOBAL, DINO_LOCAL


@dataclass(frozen=True, kw_only=True)
class DINOConfig(MaskedConfig):
    """Settings of DINO; see `MaskedConfig` for the others.

    Attributes: target_temperature, centre_momentum: of the targets.
    """

    masking: Masking = "none"
    target_temperature: Positive = 0.04
    centre_momentum: FractionBelow1 = 0.9


class DINO(Masked):
    """Predicts the teacher's scores."""

    name = "dino"
    Config = DINOConfig
    config: DINOConfig
    global_views, local_view = DINO_GLOBAL, DINO_LOCAL
    centre: Tensor  # K, a running mean of the teacher's scores

    def __init__(self, config: DINOConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("centre", torch.zeros(config.prototypes))

    def targets(self, shown: Tensor) -> Tensor:
        assert self.teacher is not None
        scores = self.teacher.head.scores(shown)
        targets = centred(scores, self.centre, temperature=self.config.target_temperature)
        self.centre.lerp_(mean_over_processes(scores.mean(0)), 1 - self.config.centre_momentum)
        return targets
