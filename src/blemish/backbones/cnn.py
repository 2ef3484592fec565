"""Convolutional networks over timm: a feature pyramid behind the same surface as a ViT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blemish.backbones.base import Backbone, Features
from blemish.backbones.cells import cell_offsets
from blemish.backbones.spec import BackboneSpec, WeightsInfo
from blemish.errors import ConfigError


class CnnBackbone(Backbone):
    """A CNN: layer l is the last feature map of stride 2^(l+1); layers 2 and 3 of a ResNet are its
    layer2, layer3.
    """

    def __init__(self, spec: BackboneSpec, model: Any, info: WeightsInfo) -> None:
        super().__init__(spec, model.to(memory_format=torch.channels_last), info)
        strides = [int(entry["reduction"]) for entry in model.feature_info]
        last = {stride: index for index, stride in enumerate(strides)}
        self._indices = [last[stride] for stride in (4, 8, 16, 32, 64) if stride in last]
        self.depth = len(self._indices)
        if self.depth == 0 or strides[self._indices[-1]] != 2 ** (self.depth + 1):
            raise ConfigError(f"{spec.name} has feature maps of strides {strides}, not 4, 8, 16, …")
        self.stride = 32
        self.dims = tuple(int(model.feature_info[index]["num_chs"]) for index in self._indices)

    def forward(
        self,
        images: Tensor,
        layers: Sequence[int] = (),
        *,
        attention: Sequence[int] = (),
        full_attention: Sequence[int] = (),
        keep: Tensor | None = None,
    ) -> Features:
        """The pyramid's levels asked for; stages after the last one asked for are not run.

        Args: as `VitBackbone.forward`; attention and dropping do not exist in a CNN.
        Raises: ConfigError when attention or dropping is asked for, and as `VitBackbone.forward`.
        """
        if attention or full_attention or keep is not None:
            raise ConfigError(f"{self.spec.name} is a CNN: no attention, and no tokens to drop")
        self._check_images(images)
        wanted = self.check_layers(layers)
        images = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
        order = sorted(set(wanted))
        found = self.model.forward_intermediates(  # type: ignore[operator]
            images,
            indices=[self._indices[layer - 1] for layer in order],
            output_fmt="NCHW",
            intermediates_only=True,
            stop_early=True,
        )
        maps = [found[order.index(layer)] for layer in wanted]
        grids = tuple((each.shape[2], each.shape[3]) for each in maps)
        return Features(
            tokens=tuple(each.float().flatten(2).transpose(1, 2) for each in maps),
            grids=grids,
            offsets=tuple(self.offset(grid, images) for grid in grids),
        )

    def offset(self, grid: tuple[int, int], images: Tensor) -> float:
        known = {2**power: offset for power, offset in enumerate(self.spec.offsets, start=2)}
        return known.get(images.shape[-2] // grid[0], 0.0)

    @torch.no_grad()
    def measured_offsets(self) -> tuple[float, ...]:
        """What `BackboneSpec.offsets` holds, as the weights are now."""
        self.eval()
        cfg: dict[str, Any] = self.model.pretrained_cfg  # type: ignore[assignment]
        strides = [2 ** (layer + 1) for layer in range(1, self.depth + 1)]
        side = cfg["input_size"][-1] if cfg.get("fixed_input_size") else 2 * strides[-1]
        last = (self.depth,)
        return tuple(cell_offsets(self.model, lambda images: self(images, last), side, strides))
