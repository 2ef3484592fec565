"""Dinomaly: reconstruct a ViT's middle features through noise, loosely.

Guo et al. 2025, "Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised Anomaly
Detection" (CVPR), with the numbers of the authors' implementation. With f_l the patches of layer l
of a frozen ViT and L layers in two groups, a shallow and a deep one:

    x₀ = MLP(1/L Σ f_l), with dropout before, within and after it: the noisy bottleneck
    xₖ = block k of x₍ₖ₋₁₎: a plain ViT's block whose attention is linear, φ = elu + 1, without
         positions
    the targets are the means of the layers of a group; what is given for the shallow group is the
    mean of the last blocks' outputs, for the deep one that of the first: the loose constraint

    loss = mean over groups of 1 − cos(whole map given, whole map wanted), in which the gradient of
    the easiest 90 % of the places weighs a tenth (`losses.loose`); the share rises from 0 within
    the first tenth of the run: the loose loss
    map = mean over groups of 1 − cos at a place; image score = mean of its highest 1 %

Layers are the middle two thirds, eight of them: 3 to 10 of 12 (which the paper counts from 0).
StableAdamW (`stable_adamw`) learns at 2e-3 after a warm-up over a hundredth of the run, then as a
cosine down to 2e-4, with gradients clipped at norm 0.1; weights start from a normal distribution of
deviation 0.01, cut off at 0.03; 10,000 steps of 16 pictures (5,000 where a model is of one
category).

Deviations: the decoder is shown patches alone, neither [CLS] nor registers. Pictures are looked at
whole, at 448², as large as the paper's, which cuts their middle 392² out. Dropout is of 51/256
where 0.2 is asked for. The warm-up starts at a hundredth of the rate, not at 0, at which the first
step does nothing. The implementation smooths by a Gaussian of σ = 4 pixels of 256 that is cut off
at 5×5, and so spreads 1.4 pixels: `paper` has a whole one of that spread. The easiest places are
⌊0.9 n⌋ of n, where the implementation has up to one more.

`best`, the default, is for a CPU: half the blocks, many small steps, and scores as every method has
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.backbones import Backbone, Features
from blemish.config import FractionBelow1, Layers, Positive, Range
from blemish.losses.loose import loose_cosine
from blemish.methods.decoder import DecoderLayer, Dropout
from blemish.methods.heads import initialise
from blemish.methods.learner import TrainingBatch, warm_up_then_cosine
from blemish.methods.reconstruction import Reconstruction, grouped, require_vit
from blemish.methods.stable_adamw import StableAdamW
from blemish.methods.trained import TrainedConfig


@dataclass(frozen=True, kw_only=True)
class DinomalyConfig(TrainedConfig):
    """Settings of Dinomaly; the defaults are `best`.

    Attributes:
        groups: of layers, in their order, each with a target of its own; no more than there are
            layers, or blocks.
        depth: blocks of the decoder, as wide as the encoder and with as many heads.
        dropout: of the bottleneck, in [0, 1).
        spared: the share of the best reconstructed places whose gradient weighs a tenth.
    """

    layers: Layers = ()
    epochs: Annotated[int, Range(1, 2**31)] = 20
    min_steps: Annotated[int, Range(0, 2**31)] = 2500
    train_batch_size: Annotated[int, Range(1, 2**20)] = 2
    learning_rate: Positive = 2e-3
    groups: Annotated[int, Range(1, 64)] = 2
    depth: Annotated[int, Range(1, 64)] = 4
    dropout: FractionBelow1 = 0.2
    spared: FractionBelow1 = 0.9

    @classmethod
    def paper(cls) -> Self:
        """The published setting: DINOv2 ViT-B/14 with registers, 10,000 steps of 16 pictures."""
        return cls(
            backbone="dinov2_vitb14_reg",
            image_size=(448,),
            smoothing=1.4 / 256,
            top_fraction=0.01,
            epochs=1,
            min_steps=10_000,
            train_batch_size=16,
            depth=8,
        )


class Dinomaly(Reconstruction):
    """Encoder, noisy bottleneck and decoder."""

    name = "dinomaly"
    summary = "reconstruction of a ViT's features through a noisy bottleneck, loosely"
    source = "Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised Anomaly Detection"
    Config = DinomalyConfig
    config: DinomalyConfig
    decoder: NoisyDecoder
    clip_norm = 0.1

    def __init__(self, config: DinomalyConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        vit = require_vit(self.name, backbone)
        self.groups = min(config.groups, len(self.layers), config.depth)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.decoder = NoisyDecoder(config, vit.dim, vit.heads, self.groups)

    @classmethod
    def usual_layers(cls, backbone: Backbone) -> tuple[int, ...]:
        """The middle two thirds, of a deep backbone every second."""
        depth = backbone.depth
        layers = range(depth // 6 + 1, depth - depth // 6 + 1, max(1, round(depth / 12)))
        return backbone.check_layers(tuple(layers))

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """`targets` B G N D, the sum of each group's layers, in the backbone's precision."""
        seen = self.backbone(images, self.layers)
        return {"targets": grouped(seen.tokens, self.groups).to(self.backbone.dtype)}

    def optimizer(self) -> torch.optim.Optimizer:
        rate, decay = self.config.learning_rate, self.config.weight_decay
        return StableAdamW(self.decoder.parameters(), lr=rate, weight_decay=decay)

    def learning_rate_factor(self, fraction: float) -> float:
        return warm_up_then_cosine(fraction, start=0.01, warmup=0.01, end=0.1)

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        targets = batch.features["targets"].float()
        easy = self.config.spared * min(1.0, 10 * fraction)
        return loose_cosine(self.decoder(self._shown(targets)), targets, easy=easy)

    def _shown(self, targets: Tensor) -> Tensor:
        """The mean over all layers, of the sums of groups B G N D: B N D."""
        return targets.sum(1) / len(self.layers)

    def anomaly_map(self, features: Features, images: Tensor) -> Tensor:
        """The mean over groups of the cosine distance: B h w."""
        own = features.layers(slice(len(self.layers)))
        targets = grouped(own.tokens, self.groups)
        given = self.reconstructed(self._shown(targets))
        distance = 1 - F.cosine_similarity(given, targets, dim=-1)
        return distance.mean(1).reshape(targets.shape[0], *own.grids[0])


class NoisyDecoder(nn.Module):
    """From features B N D through the noisy bottleneck to reconstructions B G N D."""

    def __init__(self, config: DinomalyConfig, dim: int, heads: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.dropout = Dropout(config.dropout)
        self.hidden = nn.Linear(dim, 4 * dim)
        self.out = nn.Linear(4 * dim, dim)
        self.layers = nn.ModuleList(
            DecoderLayer(dim, heads, "elu", activation=F.gelu, epsilon=1e-8)
            for _ in range(config.depth)
        )
        initialise(self, deviation=0.01, limit=0.03)

    def bottleneck(self, features: Tensor) -> Tensor:
        """An MLP with dropout, on while training, before, within and after it: B N D."""
        inner = F.gelu(self.hidden(self.dropout(features)))
        return cast(Tensor, self.dropout(self.out(self.dropout(inner))))

    def forward(self, features: Tensor) -> Tensor:
        x, outputs = self.bottleneck(features), []
        for layer in self.layers:
            x, _ = layer(x)
            outputs.append(x)
        return grouped(outputs[::-1], self.groups)
