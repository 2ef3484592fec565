"""The teacher of EfficientAD: a patch description network that learns to see as an encoder does.

Batzner et al. 2024, "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level
Latencies", section 3.1 and algorithm 3. With F the encoder's features of a place, locally averaged
and joined as PatchCore does, averaged in equal parts to C channels and normalised channel by
channel, and T the network (`backbones.pdn`):

    loss = mean over pictures, places and channels of (T − F)²

Deviates: the paper's teacher learns from 60,000 batches of ImageNet. Here it learns from the good
pictures kept to learn from, changed as those of any student (`student`): parts of them enlarged,
their colours moved, synthetic anomalies in half of them, so that it tells more than good pictures
apart. So it knows less of the world, and may see a defect of another kind as the student does.
Features have the means and deviations of a sample of what is shown, and lie where the network's
cells lie; the learning rate falls as a cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import Backbone, Features, PdnBackbone
from blemish.backbones.cells import resampled
from blemish.backbones.pdn import OFFSET, description_network, map_side
from blemish.config import Range
from blemish.methods.embedding import join
from blemish.methods.learner import TrainingBatch
from blemish.methods.student import Distillation, Distilled

_POOLING = 3  # side of the square of places that are averaged, as PatchCore has it


@dataclass(frozen=True, kw_only=True)
class PatchesConfig(Distillation):
    """Settings of the distillation of a patch description network.

    Attributes:
        width, channels: as of `backbones.pdn`.
        enlarged: how many times as large the encoder sees the pictures.
    """

    width: Annotated[int, Range(1, 1024)] = 32
    channels: Annotated[int, Range(1, 4096)] = 128
    enlarged: Annotated[int, Range(1, 8)] = 1


class Patches(Distilled):
    """The network, and while it learns, the encoder.

    Attributes: mean, deviation: of each of the encoder's C channels.
    """

    name = "patches"
    config: PatchesConfig
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: PatchesConfig, teacher: Backbone, layers: Sequence[int]) -> None:
        super().__init__(config, teacher, layers)
        self.register_buffer("mean", torch.zeros(config.channels))
        self.register_buffer("deviation", torch.ones(config.channels))

    def _begun(self, teacher: Backbone) -> Backbone:
        made = (self.config.width, self.config.channels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            model = description_network(*made)
        spec = replace(
            teacher.spec,
            kind="cnn",
            layers=self.layers,
            mean=teacher.mean,
            std=teacher.std,
            offsets=(),
            blocks=(),
            patches=made,
            about=f"patch description network, taught by {teacher.spec.about}",
        )
        return PdnBackbone(spec, model, teacher.info).to(teacher.device).eval()

    def start_training(self, sample: TrainingBatch) -> None:
        super().start_training(sample)
        taught = sample.features["taught"].float().flatten(0, 2)
        self.deviation, self.mean = torch.std_mean(taught, 0, correction=0)
        self.deviation = self.deviation.clamp(min=1e-6)

    def optimizer(self) -> torch.optim.Optimizer:
        rate, decay = self.config.learning_rate, self.config.weight_decay
        return torch.optim.Adam(self.backbone.parameters(), lr=rate, weight_decay=decay)

    @torch.no_grad()
    def _taught(self, images: Tensor) -> Tensor:
        """What the encoder sees in B 3 H W on the network's grid: float16 B 1 N C."""
        (teacher,) = self._teacher
        height, width = images.shape[-2:]
        times = self.config.enlarged
        size = teacher.round_size(times * height, times * width)
        with self._autocast(images):
            features = teacher(resampled(images, size), self.layers)
        joined, grid = join(features, teacher.spec.kind, pooling=_POOLING)
        pooled = F.adaptive_avg_pool1d(joined, self.config.channels)
        maps = pooled.transpose(1, 2).reshape(len(images), -1, *grid)
        offset = features.offsets[features.grids.index(grid)]
        onto = (map_side(height), map_side(width))
        brought = resampled(maps, onto, offset=offset, onto=OFFSET, antialias=True)
        return brought.flatten(2).transpose(1, 2)[:, None].half()

    def _target(self, taught: Tensor) -> Tensor:
        return (taught - self.mean) / self.deviation

    def _seen(self, images: Tensor) -> Tensor:
        found: Features = self.backbone(images, self.layers)
        return found.tokens[0][:, None]
