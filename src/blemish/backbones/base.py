"""The one surface that ViTs and CNNs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from blemish.backbones.spec import BackboneSpec, WeightsInfo
from blemish.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a backbone gives for a batch.

    Legend: B pictures, N patches (locations), D channels, L heads, h×w = N the grid, T all tokens
    ([CLS], registers, patches).

    Attributes:
        tokens: one float32 B N D per layer asked for, row by row (N may differ between the layers
            of a CNN). The raw residual stream of a ViT: the final norm is not applied (see
            `Backbone.norm`).
        grids: (h, w) of each entry of `tokens`; where patches were dropped, N < h·w and the kept
            ones are `kept`.
        offsets: of each entry of `tokens`, as `Backbone.offset` gives it.
        cls: one float32 B D per layer, the [CLS] token; empty for a CNN or a ViT without one.
        attention: layer -> float32 B L N, softmax attention of the [CLS] query over the N patches
            in that layer: the full softmax with the [CLS] and register columns cut off, so a row
            sums to less than 1.
        full_attention: layer -> float32 B L T T.
        kept: int64 B K, ascending indices of the patches that were kept; None when none was
            dropped.
        beside: what a second encoder gives of the same pictures (`methods.joint`); None where there
            is none.
    """

    tokens: tuple[Tensor, ...]
    grids: tuple[tuple[int, int], ...]
    offsets: tuple[float, ...]
    cls: tuple[Tensor, ...] = ()
    attention: Mapping[int, Tensor] = field(default_factory=dict)
    full_attention: Mapping[int, Tensor] = field(default_factory=dict)
    kept: Tensor | None = None
    beside: Features | None = None

    def maps(self) -> tuple[Tensor, ...]:
        """One B D h w per layer. Raises: ConfigError when patches were dropped."""
        if self.kept is not None:
            raise ConfigError("patches were dropped, so there is no full grid to lay them out on")
        pairs = zip(self.tokens, self.grids, strict=True)
        return tuple(
            tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid) for tokens, grid in pairs
        )

    def looked_at(self) -> Tensor:
        """Where [CLS] looks, all heads and all layers of `attention` counting alike: float32 B N,
        rows of sum 1.

        What a head gives to [CLS] and the registers is left out first: else those that look at the
        patches least would count least.
        """
        rows = torch.stack(tuple(self.attention.values()))
        return (rows / rows.sum(-1, keepdim=True)).mean(dim=(0, 2))

    def layers(self, which: slice) -> Features:
        """The same for some of the layers that were asked for, by their places."""
        return self.only(range(len(self.tokens))[which])

    def only(self, places: Sequence[int]) -> Features:
        """The same for the layers at these places of those that were asked for."""
        return replace(
            self,
            tokens=tuple(self.tokens[place] for place in places),
            grids=tuple(self.grids[place] for place in places),
            offsets=tuple(self.offsets[place] for place in places),
            cls=tuple(self.cls[place] for place in places) if self.cls else (),
        )


class Backbone(nn.Module):
    """A pre-trained feature extractor over a timm model.

    Attributes:
        spec: what it is. info: where its weights came from (hash, licence).
        depth: number of layers that can be asked for, counted from 1.
        stride: sides of the input must be multiples of it; see `round_size`.
        mean, std: normalisation of the input, each three floats (for pixels in [0, 1]).
    """

    depth: int
    stride: int

    def __init__(self, spec: BackboneSpec, model: nn.Module, info: WeightsInfo) -> None:
        super().__init__()
        self.spec = spec
        self.model = model
        self.info = info
        cfg = getattr(model, "pretrained_cfg", {})
        self.mean: tuple[float, ...] = tuple(spec.mean or cfg.get("mean") or (0.485, 0.456, 0.406))
        self.std: tuple[float, ...] = tuple(spec.std or cfg.get("std") or (0.229, 0.224, 0.225))

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the weights are in."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def colours(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation by which pictures are normalised, each 3 1 1, as `images`."""
        both = images.new_tensor([self.mean, self.std])[..., None, None]
        return both[0], both[1]

    def round_size(self, height: int, width: int) -> tuple[int, int]:
        """The nearest size that the stride divides (at least one stride)."""
        step = self.stride
        return max(step, round(height / step) * step), max(step, round(width / step) * step)

    def check_layers(self, layers: Sequence[int]) -> tuple[int, ...]:
        """`layers`, or the backbone's default when empty. Raises: ConfigError for one that does not
        exist.
        """
        chosen = tuple(layers) or self.spec.layers or self.middle_layers
        for layer in chosen:
            if not 1 <= layer <= self.depth:
                raise ConfigError(
                    f"layer {layer} does not exist: {self.spec.name} has layers 1 to {self.depth}"
                )
        return chosen

    @property
    def middle_layers(self) -> tuple[int, ...]:
        """A third, a half and two thirds of the depth: local enough to place a defect, and past raw
        texture.
        """
        return tuple(sorted({max(1, round(self.depth * share)) for share in (1 / 3, 1 / 2, 2 / 3)}))

    def offset(self, grid: tuple[int, int], images: Tensor) -> float:
        """How far right of and below the middle of its cell lies what a location of h×w, the grid
        of a layer, sees of B 3 H W, in cells; 0 for a ViT. `cells.resampled` takes it.
        """
        return 0.0

    @torch.no_grad()
    def shapes(self, height: int, width: int, layers: Sequence[int]) -> Features:
        """What a picture of that size gives, as tensors without storage (of the device "meta"):
        nothing is computed.
        """
        held = (*self.named_parameters(), *self.named_buffers())
        empty = {name: each.to("meta") for name, each in held}
        images = torch.empty(1, 3, height, width, device="meta")
        found: Features = torch.func.functional_call(self, empty, (images, layers))
        return found

    def norm(self, tokens: Tensor) -> Tensor:
        """B N D tokens after the final norm of a ViT; unchanged for a CNN, which has none."""
        return tokens

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ConfigError(f"images must be B 3 H W; got {tuple(images.shape)}")
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            near = self.round_size(height, width)
            raise ConfigError(
                f"{self.spec.name} needs sides that {self.stride} divides; got {height}×{width}, "
                f"nearest {near[0]}×{near[1]}"
            )
