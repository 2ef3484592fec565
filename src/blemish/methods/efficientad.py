"""EfficientAD: a small student of a small teacher, and an autoencoder for the whole picture.

Batzner et al. 2024, "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level
Latencies", with what the unofficial implementation by nelson1425 makes of its algorithms. The
teacher T is a patch description network (`backbones.pdn`) that has learned what an encoder sees
(`patches`). T̂ is T with each of its C channels normalised over the good pictures. The student S is
such a network of 2C channels, S₁ and S₂; the autoencoder A gives C channels through a bottleneck of
one place. On a good picture I, the same I′ in other colours, and a picture P that is not of the
part:

    D = (T̂(I) − S₁(I))², and L_hard the mean of those of its values that reach its 0.999-quantile
    loss = L_hard + mean S₁(P)² + mean (T̂(I′) − A(I′))² + mean (A(I′) − S₂(I′))²

    map = ½ · n(mean over channels of (T̂ − S₁)²) + ½ · n(mean over channels of (A − S₂)²)
    n(m) = 0.1 (m − q_a) / (q_b − q_a), with q_a and q_b the 0.9- and the 0.995-quantile of that map
           of the good pictures that the student did not learn from, a tenth of all

Image score = maximum of the map. 70,000 steps of one picture at 256² with Adam at 1e-4 (a tenth of
it after 95 %), weight decay 1e-5; the teacher learns from a WideResNet-101-2 at 512² in 60,000
steps of 16.

Deviates: ImageNet is not at hand. The teacher learns from the good pictures (`patches` says how),
and P are good pictures with the phases of their spectrum drawn anew: their colours and their
texture's spectrum, and nothing of the part; three in ten are grey, as the paper's. I′ is changed in
all of brightness, contrast, saturation and hue, by a tenth, where the paper changes one of three by
a fifth. T's channels are normalised by a sample of the pictures. Networks are padded, so maps have
no border of zeros. The autoencoder's sides follow those of the picture; at 256² they are the
paper's. Dropout is of 51/256 where 0.2 is asked for. Where nothing is looked at (padding, outside
the area), no quantile is taken from.

`best` is for a CPU: networks a quarter as wide, of which a picture takes a twentieth of the
arithmetic, several pictures a step, and scores as every method has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.anomalies.cutmix import recoloured
from blemish.anomalies.scrambling import scrambled
from blemish.backbones import Backbone, Features
from blemish.backbones.cells import resampled
from blemish.backbones.pdn import OFFSET, description_network, map_side
from blemish.errors import ConfigError
from blemish.losses import mean_over_processes
from blemish.losses.hard import hardest
from blemish.methods.autoencoder import Autoencoder
from blemish.methods.efficientad_config import EfficientADConfig
from blemish.methods.learner import TrainingBatch
from blemish.methods.stored import Stored
from blemish.methods.trained import MapMethod

_QUANTILES = (0.9, 0.995)
_LEAST_SIDE = 32  # pixels: the autoencoder halves them five times


class EfficientAD(MapMethod):
    """Teacher (the backbone, once it is taught), student and autoencoder.

    Attributes:
        mean, deviation: of the teacher's channels, C. quantiles: q_a and q_b of the student's map,
            then of the autoencoder's, 2 2.
    """

    name = "efficientad"
    summary = "a small student of a small teacher, and an autoencoder: fast to score"
    source = "Batzner et al. 2024, EfficientAD"
    Config = EfficientADConfig
    config: EfficientADConfig
    clip_norm = math.inf  # nothing is clipped, as published
    mean: Tensor
    deviation: Tensor
    quantiles: Tensor

    def __init__(self, config: EfficientADConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        for name in ("mean", "deviation", "quantiles"):
            self.register_buffer(name, torch.empty(0))
        height, width = backbone.round_size(*config.height_width)
        if min(height, width) < _LEAST_SIDE:
            raise ConfigError(f"image_size: efficientad needs {_LEAST_SIDE} pixels at least")
        self.grid = (map_side(height), map_side(width))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            student = description_network(config.width, 2 * config.channels)
            autoencoder = Autoencoder(config, (height, width), self.grid)
        self.student = student.to(memory_format=torch.channels_last)
        self.autoencoder = autoencoder.to(memory_format=torch.channels_last)

    # Training

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """`taught` B N C, what the teacher gives, in its precision."""
        return {"taught": self.see(images).tokens[0].to(self.backbone.dtype)}

    @property
    def needs_images(self) -> bool:
        return True

    def start_training(self, sample: TrainingBatch) -> None:
        taught = sample.features["taught"].float().flatten(0, 1)
        deviation, self.mean = torch.std_mean(taught, 0, correction=0)
        self.deviation = deviation.clamp(min=1e-6)

    def optimizer(self) -> torch.optim.Optimizer:
        learned = chain(self.student.parameters(), self.autoencoder.parameters())
        rate, decay = self.config.learning_rate, self.config.weight_decay
        return torch.optim.Adam(learned, lr=rate, weight_decay=decay)

    def learning_rate_factor(self, fraction: float) -> float:
        return 1.0 if fraction < 0.95 else 0.1

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        images, taught = batch.images, self._normed(batch.features["taught"].float())
        assert images is not None
        changed = recoloured(images, self.backbone.colours(images))
        with torch.no_grad():
            taught_changed = self._normed(self.see(changed).tokens[0])
        foreign = scrambled(images, self.backbone.colours(images), self.config.grey)
        seen = self._laid(self.student, torch.cat([images, changed, foreign]))
        first, second = seen.chunk(2, dim=2)
        plain, _, strange = first.chunk(3)
        coded = self._laid(self.autoencoder, changed)
        hard = hardest((taught - plain).square(), self.config.hard)
        whole = F.mse_loss(coded, taught_changed) + F.mse_loss(coded, second.chunk(3)[1])
        loss: Tensor = hard + self.config.penalty * strange.square().mean() + whole
        return loss

    @torch.no_grad()
    def measure_left_out(self, batches: Iterable[TrainingBatch]) -> None:
        """The quantiles of both maps, over all places of the pictures."""
        self.eval()
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for batch in batches:
            assert batch.images is not None
            known = self._framed(batch.images, self.grid).flatten(1)
            maps = self._maps(batch.features["taught"], batch.images)
            for own, each in zip(found, maps, strict=True):
                own.append(each[known].cpu())
        limits = [np.quantile(torch.cat(own).numpy(), _QUANTILES) for own in found]
        measured = torch.tensor(np.stack(limits), dtype=torch.float32, device=self.mean.device)
        self.quantiles = mean_over_processes(measured)

    def learned_tensors(self) -> dict[str, Stored]:
        channels = Stored(shape=(self.config.channels,))
        return {
            **super().learned_tensors(),
            "mean": channels,
            "deviation": replace(channels, low=0, above=True),
            "quantiles": Stored(shape=(2, 2), low=0),
        }

    # Scoring

    def anomaly_map(self, features: Features, images: Tensor) -> Tensor:
        """½ · n(student's map) + ½ · n(autoencoder's map): B h w."""
        normed = []
        for found, (start, end) in zip(
            self._maps(features.tokens[0], images), self.quantiles, strict=True
        ):
            normed.append(0.1 * (found - start) / (end - start).clamp(min=1e-12))
        return torch.stack(normed).mean(0).reshape(-1, *self.grid)

    def _maps(self, taught: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """The student's map and the autoencoder's, B N each, where the teacher gives B N C."""
        dtype = self.backbone.dtype
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
            seen, coded = self._laid(self.student, images), self._laid(self.autoencoder, images)
        first, second = seen.chunk(2, dim=2)
        apart = (self._normed(taught.float()) - first, coded - second)
        student, autoencoder = (each.square().mean(2) for each in apart)
        return student, autoencoder

    def _normed(self, taught: Tensor) -> Tensor:
        """T̂ of what the teacher gives, B N C."""
        return (taught - self.mean) / self.deviation

    def _laid(self, network: nn.Module, images: Tensor) -> Tensor:
        """What a network gives of B 3 H W, place by place: float32 B N C."""
        given = network(images.contiguous(memory_format=torch.channels_last))
        return cast(Tensor, given.float().flatten(2).transpose(1, 2))

    def _spread(self, raw: Tensor, images: Tensor, size: tuple[int, int]) -> Tensor:
        return resampled(raw[:, None], size, offset=OFFSET)
