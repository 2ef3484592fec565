"""The patch description network of EfficientAD (Batzner et al. 2024): four convolutions, each of
whose outputs sees 33×33 pixels, as an encoder that has learned what a larger one sees.

Of width w, giving C channels (`paper` has w = 128, C = 384):

    4×4 convolution to w channels, ReLU, mean of 2×2, 4×4 to 2w, ReLU, mean of 2×2, 3×3 to 2w, ReLU,
    4×4 to C

Deviates: pictures are padded as the paper pads them while the network learns from ImageNet, also
afterwards, so the map has a quarter of the picture's sides; the paper then pads the map, by zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blemish.backbones.base import Backbone, Features
from blemish.backbones.spec import BackboneSpec, WeightsInfo
from blemish.errors import ConfigError

OFFSET = -0.375  # cells: output i sees pixels 4i − 16 to 4i + 16, and its cell's middle is 4i + 1.5


def description_network(width: int, channels: int) -> nn.Sequential:
    """From pictures B 3 H W to B C h w, h and w about a quarter of H and W."""
    return nn.Sequential(
        nn.Conv2d(3, width, 4, padding=3),
        nn.ReLU(),
        nn.AvgPool2d(2, padding=1),
        nn.Conv2d(width, 2 * width, 4, padding=3),
        nn.ReLU(),
        nn.AvgPool2d(2, padding=1),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, channels, 4),
    )


def map_side(side: int) -> int:
    """The side of the map of a picture of that side, in cells; a quarter where 4 divides it.

    Example:
        >>> [map_side(side) for side in (256, 224, 98)]
        [64, 56, 25]
    """
    halved = (side + 3) // 2 + 1
    return (halved + 3) // 2 - 2


class PdnBackbone(Backbone):
    """A patch description network in place of the encoder that it has learned from: what it gives
    stands for all of the layers that it was taught, `spec.layers`."""

    def __init__(self, spec: BackboneSpec, model: nn.Module, info: WeightsInfo) -> None:
        super().__init__(spec, model.to(memory_format=torch.channels_last), info)
        self.depth = max(spec.layers)
        self.stride = 1

    def check_layers(self, layers: Sequence[int]) -> tuple[int, ...]:
        chosen = super().check_layers(layers)
        if absent := [layer for layer in chosen if layer not in self.spec.layers]:
            there = ", ".join(map(str, self.spec.layers))
            raise ConfigError(
                f"layer {absent[0]} does not exist: this {self.spec.name} is a patch description "
                f"network, taught what layers {there} see"
            )
        return chosen

    def forward(
        self,
        images: Tensor,
        layers: Sequence[int] = (),
        *,
        attention: Sequence[int] = (),
        full_attention: Sequence[int] = (),
        keep: Tensor | None = None,
    ) -> Features:
        """The same map for each of the layers. Args and Raises: as `CnnBackbone.forward`."""
        if attention or full_attention or keep is not None:
            raise ConfigError(
                f"this {self.spec.name} is a patch description network: no attention, and no "
                "tokens to drop"
            )
        self._check_images(images)
        wanted = self.check_layers(layers)
        images = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
        found = self.model(images).float()
        tokens, grid = found.flatten(2).transpose(1, 2), (found.shape[2], found.shape[3])
        count = len(wanted)
        return Features(tokens=(tokens,) * count, grids=(grid,) * count, offsets=(OFFSET,) * count)

    def offset(self, grid: tuple[int, int], images: Tensor) -> float:
        return OFFSET
