"""PaDiM: one Gaussian per location over pre-trained features.

Defard et al. 2021, "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization". Features
of several layers joined on the finest grid, a random subset of channels (section III-A), mean and covariance per
location with εI added (eq. 1, ε = 0.01), Mahalanobis distance as anomaly (eq. 2). Deviates: the layers of a ViT are
normalised and averaged (`embedding.py`); the image score is the mean of the top fraction of the map instead of its
maximum. It presumes that every picture shows the object at the same place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from blemish.backbones import Backbone
from blemish.errors import ConfigError, NonFiniteError
from blemish.methods.base import Batches, Method, MethodConfig
from blemish.methods.embedding import embed
from blemish.types import Progress


@dataclass(frozen=True, kw_only=True)
class PadimConfig(MethodConfig):
    """Settings of PaDiM.

    Attributes:
        channels: how many feature channels are kept (a random subset); memory grows with its square per location.
        epsilon: added to the diagonal of every covariance, > 0.
    """

    image_size: tuple[int, ...] = (224,)
    channels: int = 100
    epsilon: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels < 1:
            raise ConfigError(f"channels: at least 1 is needed, got {self.channels}")
        if not 0 < self.epsilon < math.inf:
            raise ConfigError(f"epsilon: a positive finite number is needed, got {self.epsilon}")

    @classmethod
    def paper(cls) -> Self:
        """WideResNet-50-2, layers 1 to 3, 550 channels, 224², maximum of the map smoothed with σ = 4 pixels."""
        return cls(backbone="wide_resnet50_2", layers=(1, 2, 3), channels=550, smoothing=4 / 224, top_fraction=0.0)


class Padim(Method):
    """A Gaussian per location: means N d, and inverse Cholesky factors N d d of the covariances."""

    name = "padim"
    summary = "one Gaussian per location over a random subset of feature channels"
    source = "Defard et al. 2021, PaDiM"
    Config = PadimConfig
    minimum_images = 2
    means: Tensor
    whiteners: Tensor
    subset: Tensor

    def __init__(self, config: PadimConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.config: PadimConfig = config
        self.register_buffer("means", torch.empty(0, 0))
        self.register_buffer("whiteners", torch.empty(0, 0, 0))
        self.register_buffer("subset", torch.empty(0, dtype=torch.int64))

    def fit(self, batches: Batches, count: int, progress: Progress) -> None:
        seen = 0
        sums = products = shift = torch.empty(0)
        for done, batch in enumerate(batches(), start=1):
            features, _ = embed(self.backbone, batch.images, self.config.layers)
            if seen == 0:
                width = min(self.config.channels, features.shape[2])
                order = torch.randperm(features.shape[2], generator=torch.Generator().manual_seed(self.config.seed))
                self.subset = order[:width].sort().values.to(features.device)
                shift = features[:, :, self.subset].mean(0)  # keeps the sums of squares small: N d
                sums = torch.zeros_like(shift)
                products = shift.new_zeros(len(shift), width, width)
            centred = features[:, :, self.subset] - shift
            seen += len(centred)
            sums += centred.sum(0)
            by_location = centred.transpose(0, 1)  # N B d
            products += by_location.transpose(1, 2) @ by_location
            progress("measuring", done, count)
        if seen < self.minimum_images:
            raise ConfigError(f"padim needs at least {self.minimum_images} training pictures, got {seen}")
        progress("inverting", 0, 0)
        mean = sums / seen
        covariance = (products - seen * mean[:, :, None] * mean[:, None, :]) / (seen - 1)
        covariance.diagonal(dim1=1, dim2=2).add_(self.config.epsilon)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if bool(failed.any()):
            raise NonFiniteError("padim: a covariance is not positive definite; raise epsilon (--set epsilon=0.1)")
        identity = torch.eye(covariance.shape[-1], device=covariance.device).expand_as(covariance)
        self.whiteners = torch.linalg.solve_triangular(factor, identity, upper=False).contiguous()
        self.means = mean + shift

    def anomaly_map(self, images: Tensor) -> Tensor:
        self._require(self.means)
        features, grid = embed(self.backbone, images, self.config.layers)
        centred = (features[:, :, self.subset] - self.means).transpose(0, 1)  # N B d
        whitened = centred @ self.whiteners.transpose(1, 2)
        return whitened.square().sum(2).sqrt().T.reshape(len(images), *grid)
