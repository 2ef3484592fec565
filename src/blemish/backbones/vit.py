"""Vision Transformers over timm (`VisionTransformer` and `Eva`, which DINOv3 is).

timm's own forward pass hands out neither the [CLS] attention row nor a pass in which chosen tokens
are absent, so the pass is written out here from timm's modules: embed, add positions, gather the
kept patches, prefix tokens, blocks. Attention is computed from the q and k that `q_norm` and
`k_norm` put out (caught by hooks), so that the fused kernel stays on inside the blocks; for DINOv3
the rotary embedding, which comes after these norms, is applied here as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import PatchEmbed, apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.backbones.base import Backbone, Features
from blemish.backbones.spec import BackboneSpec, WeightsInfo
from blemish.errors import ConfigError


class VitBackbone(Backbone):
    """A ViT: layer l is the residual stream after block l; stride = patch size.

    Attributes:
        blocks: the numbers of its blocks, counted from 1: those of the architecture of which a
            student has some only, and else all. Layers go by them.
        placed: the position embeddings (learned, rotary) by grid, as they are then kept once they
            are made; None = they are made anew in every pass, as where weights may change.
    """

    model: Any
    placed: dict[tuple[int, int], tuple[Tensor | None, Tensor | None]] | None = None

    def __init__(self, spec: BackboneSpec, model: Any, info: WeightsInfo) -> None:
        super().__init__(spec, model, info)
        if not isinstance(model.patch_embed, PatchEmbed) or getattr(model, "rope_mixed", False):
            raise ConfigError(
                f"{spec.name} is a ViT of a kind that blemish does not read: hybrid, or of mixed "
                "RoPE"
            )
        self.blocks = spec.blocks or tuple(range(1, len(model.blocks) + 1))
        self.depth = self.blocks[-1]
        self.stride = int(model.patch_embed.patch_size[0])
        self.dim = int(model.embed_dim)
        self.prefix = int(model.num_prefix_tokens)
        self.heads = int(model.blocks[0].attn.num_heads)

    def check_layers(self, layers: Sequence[int]) -> tuple[int, ...]:
        chosen = super().check_layers(layers)
        if absent := [layer for layer in chosen if layer not in self.blocks]:
            there = ", ".join(map(str, self.blocks))
            raise ConfigError(
                f"layer {absent[0]} does not exist: this {self.spec.name} is a student with "
                f"layers {there}"
            )
        return chosen

    def norm(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self.model.norm(tokens.to(self.dtype))
        return normed.float()

    def shapes(self, height: int, width: int, layers: Sequence[int]) -> Features:
        self._check_images(torch.empty(1, 3, height, width, device="meta"))
        wanted, grid = self.check_layers(layers), (height // self.stride, width // self.stride)
        tokens = tuple(torch.empty(1, grid[0] * grid[1], self.dim, device="meta") for _ in wanted)
        return Features(tokens=tokens, grids=(grid,) * len(wanted), offsets=(0.0,) * len(wanted))

    def forward(
        self,
        images: Tensor,
        layers: Sequence[int] = (),
        *,
        attention: Sequence[int] = (),
        full_attention: Sequence[int] = (),
        keep: Tensor | None = None,
        masked: tuple[Tensor, Tensor] | None = None,
    ) -> Features:
        """Tokens and attention of the layers asked for; blocks after the last one asked for are not
        run.

        Args:
            images: B 3 H W, normalised; H and W multiples of the stride.
            layers: blocks (from 1) whose patch tokens are wanted; empty = the backbone's default
                layers.
            attention: blocks whose [CLS] attention row is wanted. full_attention: whose whole
                attention is wanted.
            keep: int64 B K, indices of the patches to keep, distinct within a row. The others never
                enter block 1: positions are added first, then the kept tokens are gathered.
            masked: bool B N and a vector D, which takes the place of these patches' embeddings
                before positions are added; None = none.
        Raises: ConfigError for a layer that does not exist, a size the stride does not divide, a
            [CLS] row of a model without [CLS].
        """
        self._check_images(images)
        wanted = self.check_layers(layers)
        self.check_layers((*attention, *full_attention) or wanted)
        if attention and self.model.cls_token is None:
            raise ConfigError(f"{self.spec.name} has no [CLS] token, so it has no [CLS] attention")
        x, rope, grid = self._embed(images.to(self.dtype), keep, masked)
        tokens: dict[int, Tensor] = {}
        looks = {*attention, *full_attention}
        with self._catch_qk(looks) as caught:
            last = self.blocks.index(max((*wanted, *looks)))
            for layer, block in zip(self.blocks[: last + 1], self.model.blocks, strict=False):
                x = block(x) if rope is None else block(x, rope=rope)
                if layer in wanted:
                    tokens[layer] = x.float()
        rotated = {
            layer: (
                self._rotate(caught[layer, "q_norm"], rope),
                self._rotate(caught[layer, "k_norm"], rope),
            )
            for layer in looks
        }
        has_cls = self.model.cls_token is not None
        return Features(
            tokens=tuple(tokens[layer][:, self.prefix :] for layer in wanted),
            grids=(grid,) * len(wanted),
            offsets=(0.0,) * len(wanted),
            cls=tuple(tokens[layer][:, 0] for layer in wanted if has_cls),
            attention={
                layer: _softmax_rows(*rotated[layer], 1)[:, :, 0, self.prefix :]
                for layer in attention
            },
            full_attention={each: _softmax_rows(*rotated[each], None) for each in full_attention},
            kept=keep,
        )

    def guidance(self, images: Tensor, layers: Sequence[int]) -> Tensor:
        """Where the [CLS] token looks in B 3 H W, as `Features.looked_at`: float32 B h w, sum 1.

        Raises: ConfigError as `forward`.
        """
        seen: Features = self(images, layers[:1], attention=layers)
        return seen.looked_at().reshape(len(images), *seen.grids[0])

    def _embed(
        self, images: Tensor, keep: Tensor | None, masked: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Tokens B T D as they enter block 1, the rotary embedding (or None), and the grid."""
        model = self.model
        patches = model.patch_embed(images)
        if patches.ndim == 3:  # timm models built without dynamic_img_size flatten
            raise ConfigError(f"{self.spec.timm_name} was not built for dynamic image sizes")
        batch, height, width, _ = patches.shape
        x = patches.flatten(1, 2)
        if masked is not None:
            x = torch.where(masked[0][..., None], masked[1].to(x.dtype), x)
        names = ("cls_token", "dist_token", "reg_token")
        held = [token for name in names if (token := getattr(model, name, None)) is not None]
        prefix = [token.expand(batch, -1, -1) for token in held]
        positions, rope = self._places((height, width))
        if positions is not None:
            on_prefix = 0 if model.no_embed_class else self.prefix
            x = x + positions[:, on_prefix:]
            if on_prefix:
                prefix = [torch.cat(prefix, dim=1) + positions[:, :on_prefix]]
        if keep is not None:
            x = x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[-1]))
            if rope is not None:
                rope = rope[keep][:, None]  # N E -> B 1 K E: each picture's, shared by the heads
        return model.norm_pre(torch.cat([*prefix, x], dim=1)), rope, (height, width)

    def _places(self, grid: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
        """Learned positions (1 prefix+N D) and rotary embedding of a grid, None for those that the
        model does not have."""
        if self.placed is not None and grid in self.placed:
            positions, rope = self.placed[grid]
            return None if positions is None else positions.to(self.dtype), rope
        model, positions = self.model, None
        if model.pos_embed is not None:
            on_prefix = 0 if model.no_embed_class else self.prefix
            positions = self._positions(model.pos_embed, on_prefix, grid)
        rotary = getattr(model, "rope", None)
        made = positions, None if rotary is None else rotary.get_embed(shape=grid)
        if self.placed is not None:
            self.placed[grid] = made
        return made

    def _positions(self, table: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
        """The learned positions (1 prefix+N D) on another grid, bicubic."""
        side = round((table.shape[1] - prefix) ** 0.5)
        if grid == (side, side):
            return table
        square = table[:, prefix:].float().transpose(1, 2).reshape(1, -1, side, side)
        resized = F.interpolate(
            square, size=grid, mode="bicubic", align_corners=False, antialias=self.spec.antialias
        )
        patches = resized.flatten(2).transpose(1, 2).to(table.dtype)
        return torch.cat([table[:, :prefix], patches], dim=1)

    @contextmanager
    def _catch_qk(self, layers: set[int]) -> Iterator[dict[tuple[int, str], Tensor]]:
        """While open, the dict that it gives receives the queries and keys of these blocks, each
        B L T d, after their norms: by layer and the norm's name.
        """
        caught: dict[tuple[int, str], Tensor] = {}

        def catch(place: tuple[int, str]) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda _module, _inputs, output: caught.update({place: output})

        handles = [
            getattr(self.model.blocks[self.blocks.index(layer)].attn, name).register_forward_hook(
                catch((layer, name))
            )
            for layer in layers
            for name in ("q_norm", "k_norm")
        ]
        try:
            yield caught
        finally:
            for handle in handles:
                handle.remove()

    def _rotate(self, x: Tensor, rope: Tensor | None) -> Tensor:
        """Queries or keys B L T d, those of the patches turned by their place."""
        if rope is None:
            return x
        attn = self.model.blocks[0].attn
        half, cut = bool(getattr(attn, "rotate_half", False)), int(attn.num_prefix_tokens)
        turned = apply_rot_embed_cat(x[:, :, cut:].float(), rope.float(), half=half)
        return torch.cat([x[:, :, :cut].float(), turned], dim=2)


def _softmax_rows(q: Tensor, k: Tensor, rows: int | None) -> Tensor:
    """softmax(q kᵀ / √d) of the first `rows` queries (None: all), in float32: B L rows T."""
    q = q[:, :, :rows].float()
    return torch.softmax(q @ k.float().transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
