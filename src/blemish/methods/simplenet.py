"""SimpleNet: tell normal features from the same ones with noise.

Liu et al. 2023, "SimpleNet: A Simple Network for Image Anomaly Detection and Localization". Locally
averaged features of a frozen encoder, joined on the finest grid (eq. 1-3), go through a linear
adaptor (eq. 4). Gaussian noise of small σ makes anomalous features of them (eq. 5). A discriminator
of one hidden layer (linear, batch norm, leaky ReLU of slope 0.2, linear) learns to give D >= th for
the ones and D <= -th for the others, by a truncated l1 loss (eq. 6-7); -D is the anomaly map
(eq. 8). As the authors' code has it: Xavier-normal weights, 1,024 hidden units, batch norm over
normal and noisy features together.

Deviates: adaptor and hidden layer have no bias, which batch norm takes out again; Adam for both, as
the paper says (in the code the adaptor has AdamW); the last state of the training is kept, where
the code keeps the one that is best on the test pictures; the image score is the mean of the top
fraction of the smoothed map, of which `paper` takes the maximum (the paper: of the map before
smoothing); the layers of a ViT are normalised and averaged (`embedding.py`); neighbours beyond the
border are left out of an average instead of counting as 0; nothing is learned from padding, or
outside the area looked at.

`best` is for any encoder: σ is in units of each adapted channel's standard deviation in the batch,
for 0.015 means nothing where features have another scale, and growing all features does not help.
0.3 of them was chosen by generated defects (docs/log.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.backbones import Backbone, Features
from blemish.config import NotNegative, Positive, Range
from blemish.methods.base import Pooling
from blemish.methods.embedding import join
from blemish.methods.learner import TrainingBatch, share_statistics
from blemish.methods.trained import MapMethod, TrainedConfig

_SLOPE = 0.2  # of the leaky ReLU below 0


@dataclass(frozen=True, kw_only=True)
class SimpleNetConfig(TrainedConfig):
    """Settings of SimpleNet; the defaults are `best`.

    Attributes:
        learning_rate, weight_decay: of Adam; the learning rate is that of the adaptor.
        discriminator_rate: the learning rate of the discriminator.
        pooling: side of the square of neighbouring patches that are averaged into one feature; odd,
            1 = none.
        hidden: units of the discriminator's hidden layer.
        noise: σ of eq. 5, above 0.
        noise_unit: of `noise`: "std", the standard deviation of each adapted channel in the batch;
            or "absolute", 1.
        margin: th of eq. 6, above 0.
    """

    epochs: Annotated[int, Range(1, 2**31)] = 40
    min_steps: Annotated[int, Range(0, 2**31)] = 1000
    train_batch_size: Annotated[int, Range(1, 2**20)] = 4
    weight_decay: NotNegative = 1e-5
    discriminator_rate: Positive = 2e-4
    pooling: Pooling = 3
    hidden: Annotated[int, Range(1, 2**16)] = 1024
    noise: Positive = 0.3
    noise_unit: Literal["std", "absolute"] = "std"
    margin: Positive = 0.5

    @classmethod
    def paper(cls) -> Self:
        """The published setting: WideResNet-50-2, layers 2 and 3, 224², σ = 0.015, 160 epochs;
        maximum of the map smoothed with σ = 4 pixels.
        """
        return cls(
            backbone="wide_resnet50_2",
            image_size=(224,),
            layers=(2, 3),
            smoothing=4 / 224,
            top_fraction=0.0,
            epochs=160,
            min_steps=0,
            noise=0.015,
            noise_unit="absolute",
        )


class Discriminator(nn.Module):
    """Features n D to n numbers, the higher the more normal."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inward = nn.Linear(width, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.outward = nn.Linear(hidden, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        inner = F.leaky_relu(self.norm(self.inward(features)), _SLOPE)
        return cast(Tensor, self.outward(inner)[:, 0])


class SimpleNet(MapMethod):
    """Encoder, adaptor and discriminator."""

    name = "simplenet"
    summary = "a discriminator of normal features and the same with noise"
    source = "Liu et al. 2023, SimpleNet"
    Config = SimpleNetConfig
    config: SimpleNetConfig
    clip_norm = math.inf  # nothing is clipped: the loss has gradients of bounded size

    def __init__(self, config: SimpleNetConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        width = join(self.trained_on(), backbone.spec.kind)[0].shape[2]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.adaptor = nn.Linear(width, width, bias=False)
            self.discriminator = Discriminator(width, config.hidden)
            for layer in (self.adaptor, self.discriminator.inward, self.discriminator.outward):
                nn.init.xavier_normal_(layer.weight)

    def embedded(self, features: Features) -> tuple[Tensor, tuple[int, int]]:
        """One feature per location: float32 B N D, and the grid (h, w)."""
        own = features.layers(slice(len(self.layers)))
        return join(own, self.backbone.spec.kind, pooling=self.config.pooling)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """`features` B N D in the backbone's precision; `known` bool B N, from which of them is
        learned, where it is not from all.
        """
        embedded, grid = self.embedded(self.see(images))
        encoded = {"features": embedded.to(self.backbone.dtype)}
        if self.bounded or self.framed:
            encoded["known"] = self._framed(images, grid).flatten(1)
        return encoded

    def optimizer(self) -> torch.optim.Optimizer:
        groups = [
            {"params": self.adaptor.parameters(), "lr": self.config.learning_rate},
            {"params": self.discriminator.parameters(), "lr": self.config.discriminator_rate},
        ]
        return torch.optim.Adam(groups, weight_decay=self.config.weight_decay)

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        """Eq. 6 and 7, a mean over the places of all pictures."""
        normal, noisy = self._told_apart(batch)
        margin = self.config.margin
        return F.relu(margin - normal).mean() + F.relu(margin + noisy).mean()

    def _told_apart(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """What the discriminator gives of normal features, and of the same with noise: n each."""
        features, known = batch.features["features"].float(), batch.features.get("known")
        rows = features.flatten(0, 1) if known is None else features[known]
        adapted = self.adaptor(rows).float()
        strength: Tensor | float = self.config.noise
        if self.config.noise_unit == "std":
            strength = self.config.noise * adapted.detach().std(0, correction=0)
        noisy = adapted + strength * torch.randn_like(adapted)
        given = self.discriminator(torch.cat([adapted, noisy])).float()
        return given[: len(rows)], given[len(rows) :]

    def after_step(self, step: int, steps: int) -> None:
        share_statistics(self.discriminator)

    def findings(self, sample: TrainingBatch) -> dict[str, float]:
        """The shares of normal and of noisy features that are told apart by the margin."""
        training = self.training
        self.eval()
        normal, noisy = self._told_apart(sample)
        self.train(training)
        apart = {"normal_told": normal, "noisy_told": -noisy}
        told = {name: each >= self.config.margin for name, each in apart.items()}
        return {name: float(each.float().mean()) for name, each in told.items()}

    def anomaly_map(self, features: Features, images: Tensor) -> Tensor:
        """Eq. 8, the negative of what the discriminator gives: B h w."""
        embedded, grid = self.embedded(features)
        given = self.discriminator(self.adaptor(embedded.flatten(0, 1)))
        return cast(Tensor, -given.reshape(-1, *grid))
