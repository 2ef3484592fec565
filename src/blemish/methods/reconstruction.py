"""What the methods share that learn to give back the features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.backbones import Backbone, Features, VitBackbone
from blemish.errors import ConfigError
from blemish.methods.base import map_size, shown, smooth
from blemish.methods.learner import TrainingBatch
from blemish.methods.stored import Stored, numbers
from blemish.methods.trained import TrainedConfig, TrainedMethod
from blemish.types import Scores


class Reconstruction(TrainedMethod):
    """A frozen encoder and the decoder that learns.

    Attributes:
        decoder: from what it is shown of the encoder's features to what they should be.
        steps: int64 1, how many steps it has learned; empty before.
    """

    decoder: nn.Module
    steps: Tensor

    def __init__(self, config: TrainedConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("steps", torch.empty(0, dtype=torch.int64))

    def trained_on(self) -> Features:
        """What a training picture gives in its size: shapes without storage."""
        size = self.backbone.round_size(*self.config.height_width)
        return self.backbone.shapes(*size, self.layers)

    def start_training(self, sample: TrainingBatch) -> None:
        return

    def end_training(self, steps: int) -> None:
        self.decoder.requires_grad_(False)
        self.steps = self.steps.new_tensor([steps])

    def learned_tensors(self) -> dict[str, Stored]:
        return {"steps": numbers(1, low=1)}

    def reconstructed(self, features: Tensor) -> Tensor:
        """What the decoder makes of features B N D in the backbone's precision: float32."""
        dtype = self.backbone.dtype
        with torch.autocast(features.device.type, dtype=dtype, enabled=dtype != torch.float32):
            given: Tensor = self.decoder(features)
        return given.float()

    def _windowed(self, raw: Tensor, images: Tensor, window: float, *, smoothed: bool) -> Scores:
        """Scores that are the maximum of the map averaged over a square of the side `window`, a
        fraction of the map's longer one.

        Args: raw: B h w on the backbone's grid. smoothed: whether the map is smoothed before.
        """
        raw, (height, width) = self._extended(raw, images), map_size(images)
        inside = self._inside(images, (height, width))
        maps = shown(self._spread(raw, images, (height, width))[:, 0], inside)[:, None]
        smooth_maps = smooth(maps, self.config.smoothing)
        side = max(1, round(window * max(height, width)))
        averaged = smooth_maps if smoothed else maps
        pooled = F.avg_pool2d(averaged, (min(side, height), min(side, width)), stride=1)
        return Scores(pooled.flatten(1).amax(1), shown(smooth_maps[:, 0], inside))


def grouped(layers: Sequence[Tensor], groups: int) -> Tensor:
    """Layers B N D each, in their order, summed to `groups` targets: B G N D."""
    split = torch.tensor_split(torch.stack(tuple(layers), 1), groups, dim=1)
    return torch.stack([group.sum(1) for group in split], 1)


def require_vit(method: str, backbone: Backbone) -> VitBackbone:
    """The backbone as a ViT. Raises: ConfigError where it is none."""
    if not isinstance(backbone, VitBackbone):
        raise ConfigError(
            f"{method} needs a ViT, which {backbone.spec.name} is not; choose one, as --backbone "
            "dinov2_vits14, or another method"
        )
    return backbone
