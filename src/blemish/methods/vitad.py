"""ViTAD: a plain ViT gives a plain ViT's features back, from its last layer alone.

Zhang et al. 2023, "Exploring Plain ViT Reconstruction for Multi-class Unsupervised Anomaly
Detection", with the numbers of the authors' implementation (ADer). With f_l the patches of layer l
of a frozen ViT of 12 layers, DINO's ViT-S/16:

    x₀ = W f₁₂ + b + positions: the fusion, of the last layer only, and learned positions
    xₖ = block k of x₍ₖ₋₁₎, a plain ViT's, for k = 1 to 9
    x₉ is to be f₃, x₆ is to be f₆, x₃ is to be f₉

    loss = Σ over the three of 1 − cos(whole map given, whole map wanted)
    map = mean over the three of 1 − cos at a place, smoothed by a Gaussian of σ = 4 pixels of 256;
    image score = maximum of the map averaged over 16×16 pixels of 256

AdamW, 1e-4, a tenth of it after 80 of 100 epochs, batches of 8, weight decay 1e-4, gradients
clipped at norm 5; weights of the blocks and positions start from a normal distribution of deviation
0.02. The paper's abstract speaks of a squared error; its implementation, and this, has the cosine.

Deviations: maps have a quarter of the picture's sides, and their Gaussian ends at 3 σ, not 4. Other
depths have the targets at a quarter, a half and three quarters of the encoder; where `layers` names
others, the last named is shown and the ones before it are given back (the one, where there is but
one).

`best`, the default, is for a CPU: a block for each target, many small steps at a higher rate that
falls as a cosine, and scores as every method has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.backbones import Backbone, Features
from blemish.config import Layers, Positive, Range
from blemish.losses.cosine import cosine_distance
from blemish.methods.decoder import DecoderLayer
from blemish.methods.heads import initialise
from blemish.methods.learner import TrainingBatch
from blemish.methods.reconstruction import Windowed, WindowedConfig, require_vit


@dataclass(frozen=True, kw_only=True)
class ViTADConfig(WindowedConfig):
    """Settings of ViTAD; the defaults are `best`.

    Attributes:
        layers: the last one is what the decoder is shown, the others are what it gives back.
        depth: blocks of the decoder, as wide as the encoder and with as many heads; the targets
            are spread over them evenly, the deepest layer first.
    """

    layers: Layers = ()
    epochs: Annotated[int, Range(1, 2**31)] = 20
    min_steps: Annotated[int, Range(0, 2**31)] = 2500
    train_batch_size: Annotated[int, Range(1, 2**20)] = 2
    learning_rate: Positive = 2e-3
    depth: Annotated[int, Range(1, 64)] = 3

    @classmethod
    def paper(cls) -> Self:
        """The published setting: DINO ViT-S/16 at 256², 100 epochs."""
        return cls(
            backbone="dino_vits16",
            image_size=(256,),
            smoothing=4 / 256,
            epochs=100,
            min_steps=0,
            train_batch_size=8,
            learning_rate=1e-4,
            depth=9,
            schedule="step",
            score_window=16 / 256,
        )


class ViTAD(Windowed):
    """Encoder, fusion and decoder."""

    name = "vitad"
    summary = "reconstruction of a plain ViT's layers from its last one by a plain ViT"
    source = "Exploring Plain ViT Reconstruction for Multi-class Unsupervised Anomaly Detection"
    Config = ViTADConfig
    config: ViTADConfig
    decoder: PlainDecoder
    clip_norm = 5.0

    def __init__(self, config: ViTADConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        vit, targets = require_vit(self.name, backbone), max(1, len(self.layers) - 1)
        places = self.trained_on().tokens[0].shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.decoder = PlainDecoder(config.depth, vit.dim, vit.heads, targets, places)

    @classmethod
    def usual_layers(cls, backbone: Backbone) -> tuple[int, ...]:
        """A quarter, a half and three quarters of the depth, and the last."""
        layers = {max(1, round(backbone.depth * quarter / 4)) for quarter in (1, 2, 3, 4)}
        return backbone.check_layers(sorted(layers))

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """`last` B N D and `targets` B T N D, in the backbone's precision."""
        last, targets = self._apart(self.backbone(images, self.layers))
        dtype = self.backbone.dtype
        return {"last": last.to(dtype), "targets": targets.to(dtype)}

    def _apart(self, features: Features) -> tuple[Tensor, Tensor]:
        """What is shown, B N D, and what is to be given back, B T N D."""
        tokens = features.tokens[: len(self.layers)]
        return tokens[-1], torch.stack(tokens[:-1] or tokens, 1)

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        targets = batch.features["targets"].float()
        given = self.decoder(batch.features["last"].float())
        return cosine_distance(given.flatten(2), targets.flatten(2)).mean(0).sum()

    def anomaly_map(self, features: Features, images: Tensor) -> Tensor:
        """The mean over targets of the cosine distance: B h w."""
        last, targets = self._apart(features)
        distance = 1 - F.cosine_similarity(self.reconstructed(last), targets, dim=-1)
        return distance.mean(1).reshape(last.shape[0], *features.grids[0])


class PlainDecoder(nn.Module):
    """From the last layer B N D to T earlier ones, B T N D, the earliest first.

    Args: targets: T; their outputs are those after the blocks ⌈depth · t / T⌉ for t = 1 … T.
    """

    def __init__(self, depth: int, dim: int, heads: int, targets: int, places: int) -> None:
        super().__init__()
        self.fusion = nn.Linear(dim, dim)
        self.positions = nn.Parameter(torch.empty(places, dim))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.layers = nn.ModuleList(
            DecoderLayer(dim, heads, "softmax", activation=F.gelu, epsilon=1e-6)
            for _ in range(depth)
        )
        initialise(self.layers)
        self.ends = [math.ceil(depth * number / targets) for number in range(targets, 0, -1)]

    def forward(self, last: Tensor) -> Tensor:
        x, outputs = self.fusion(last) + self.positions, []
        for layer in self.layers:
            x, _ = layer(x)
            outputs.append(x)
        return torch.stack([outputs[end - 1] for end in self.ends], 1)
