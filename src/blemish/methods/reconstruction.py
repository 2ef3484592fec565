"""What the methods share that learn to give back the features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.backbones import Backbone, Features, VitBackbone
from blemish.backbones.cells import resampled
from blemish.config import FractionBelow1
from blemish.errors import ConfigError
from blemish.methods.base import map_size, shown, smooth
from blemish.methods.learner import warm_up_then_cosine
from blemish.methods.trained import MapMethod, TrainedConfig
from blemish.types import Scores


@dataclass(frozen=True, kw_only=True)
class WindowedConfig(TrainedConfig):
    """Settings of a `Windowed`.

    Attributes:
        schedule: of the learning rate: "step" (a tenth, late in the run) or "cosine" (to a tenth,
            after a warm-up).
        score_window: the image score is the maximum of the map averaged over a square of this
            fraction of the side; 0 = the mean of the `top_fraction`.
    """

    schedule: Literal["step", "cosine"] = "cosine"
    score_window: FractionBelow1 = 0.0


class Reconstruction(MapMethod):
    """A frozen encoder and the decoder that learns.

    Attributes:
        decoder: from what it is shown of the encoder's features to what they should be.
    """

    decoder: nn.Module

    def optimizer(self) -> torch.optim.Optimizer:
        rate, decay = self.config.learning_rate, self.config.weight_decay
        # Fused: with two pictures a step, the other kind takes a tenth of the step on a CPU.
        return torch.optim.AdamW(self.decoder.parameters(), lr=rate, weight_decay=decay, fused=True)

    def reconstructed(self, features: Tensor) -> Tensor:
        """What the decoder makes of features B N D in the backbone's precision: float32."""
        dtype = self.backbone.dtype
        with torch.autocast(features.device.type, dtype=dtype, enabled=dtype != torch.float32):
            given: Tensor = self.decoder(features)
        return given.float()


class Windowed(Reconstruction):
    """One whose score may be the maximum of the map averaged over squares.

    Attributes:
        averages_smoothed: whether the map is smoothed before it is averaged.
        steps_down: the share of the run after which the learning rate is a tenth (schedule "step").
    """

    config: WindowedConfig
    averages_smoothed: ClassVar[bool] = True
    steps_down: ClassVar[float] = 0.8

    def learning_rate_factor(self, fraction: float) -> float:
        if self.config.schedule == "step":
            return 1.0 if fraction < self.steps_down else 0.1
        return warm_up_then_cosine(fraction, start=0.03, warmup=0.03, end=0.1)

    @property
    def scores_by_map(self) -> bool:
        return self.config.score_window == 0

    def judge(self, features: Features, images: Tensor) -> Scores:
        if self.config.score_window == 0:
            return super().judge(features, images)
        self._require(self.steps)
        raw, (height, width) = self.anomaly_map(features, images), map_size(images)
        raw, inside = self._extended(raw, images), self._inside(images, (height, width))
        maps = shown(self._spread(raw, images, (height, width))[:, 0], inside)[:, None]
        smooth_maps = smooth(maps, self.config.smoothing)
        side = max(1, round(self.config.score_window * max(height, width)))
        averaged = smooth_maps if self.averages_smoothed else maps
        pooled = F.avg_pool2d(averaged, (min(side, height), min(side, width)), stride=1)
        return Scores(pooled.flatten(1).amax(1), shown(smooth_maps[:, 0], inside))


def grouped(layers: Sequence[Tensor], groups: int) -> Tensor:
    """Layers B N D each, in their order, summed to `groups` targets: B G N D."""
    split = torch.tensor_split(torch.stack(tuple(layers), 1), groups, dim=1)
    return torch.stack([group.sum(1) for group in split], 1)


def on_coarsest(features: Features, layers: Sequence[Tensor]) -> list[Tensor]:
    """What is made of the layers of `features`, B N D each, brought to the grid of the coarsest."""
    grid = min(features.grids)
    onto, brought = features.offsets[features.grids.index(grid)], []
    for layer, own, offset in zip(layers, features.grids, features.offsets, strict=True):
        if own != grid:
            maps = layer.transpose(1, 2).reshape(layer.shape[0], -1, *own)
            maps = resampled(maps, grid, offset=offset, onto=onto, antialias=True)
            layer = maps.flatten(2).transpose(1, 2)
        brought.append(layer)
    return brought


def require_vit(method: str, backbone: Backbone) -> VitBackbone:
    """The backbone as a ViT. Raises: ConfigError where it is none."""
    if not isinstance(backbone, VitBackbone):
        raise ConfigError(
            f"{method} needs a ViT, which {backbone.spec.name} is not; choose one, as --backbone "
            "dinov2_vits14, or another method"
        )
    return backbone
