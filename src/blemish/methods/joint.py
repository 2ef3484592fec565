"""A second encoder beside the first: where one sees little, the other may see a defect.

Ours, for memory banks; `lda` describes pictures by it, too. A location's feature is

    (√(1 − s) u, √s v)    u: that of the backbone, v: that of the second encoder, each of length 1

so that squared distances are 1 − s times those of the backbone and s times those of the second
encoder, and whatever takes features of length 1 takes these. v is made of the layers as they are
(`embedding`), brought to the backbone's grid; each channel less its mean, in deviations of its own
over the good training pictures, so that none counts more for its unit. The pictures are the same;
each encoder has them in the colours, and in sides, that it takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.backbones import Backbone, Features
from blemish.backbones.cells import resampled
from blemish.errors import ConfigError
from blemish.methods.base import Method, reported
from blemish.methods.capabilities import Batches, TakesSecond
from blemish.methods.embedding import Places, finest, join
from blemish.methods.memory_config import MemoryConfig
from blemish.methods.stored import Stored
from blemish.types import Progress

_LEAST = 1e-3  # of the mean deviation: a channel that varies less counts as one that does so much
_SMALLEST = 1e-12  # of a deviation that is divided by


class SecondEncoder(nn.Module):
    """The encoder beside the backbone, and what is known of its channels.

    Attributes:
        encoder: frozen. layers: those that are joined. also: those that are read beside them.
        mean, deviation: float32 D, of each channel over the good training pictures.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, encoder: Backbone, layers: Sequence[int], also: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers, self.also = tuple(layers), tuple(also)
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("deviation", torch.empty(0))

    def see(self, images: Tensor, colours: tuple[Tensor, Tensor]) -> Features:
        """What it gives of B 3 H W, which are normalised by the mean and deviation `colours`:
        `layers`, then `also`."""
        mean, std = self.encoder.colours(images)
        own = (images * colours[1] + colours[0] - mean) / std
        size = self.encoder.round_size(images.shape[-2], images.shape[-1])
        small = resampled(own, size, antialias=True)
        features: Features = self.encoder(small, (*self.layers, *self.also))
        return features

    def joined(self, features: Features, onto: Places, config: MemoryConfig) -> Tensor:
        """Its layers joined, at the places of the backbone: float32 B N D."""
        kind, pooling, centre = self.encoder.spec.kind, config.pooling, config.centre
        read = features.layers(slice(len(self.layers)))
        return join(read, kind, pooling=pooling, centre=centre, onto=onto)[0]

    def standardised(self, joined: Tensor) -> Tensor:
        """The same in deviations from the mean, of length 1."""
        return F.normalize((joined - self.mean) / self.deviation, dim=-1)

    def know_channels(self, moments: Moments) -> None:
        """Take the mean and deviation of each channel."""
        mean, deviation = moments.told()
        self.mean = mean.float().to(self.encoder.device)
        self.deviation = deviation.float().to(self.encoder.device)

    def width(self, height: int, across: int) -> int:
        """D, of pictures of H×W."""
        seen = self.encoder.shapes(*self.encoder.round_size(height, across), self.layers)
        return join(seen, self.encoder.spec.kind)[0].shape[2]


class Moments:
    """Mean and deviation of each channel of all the features that were added, in float64.

    Each picture is added by itself, so that it does not matter in which batches they come.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, features: Tensor) -> None:
        """Those of a picture, n D."""
        exact = features.cpu().double()
        self._count += len(exact)
        self._sum = self._sum + exact.sum(0)
        self._squares = self._squares + exact.square().sum(0)

    def told(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation, float64 D; what hardly varies has a thousandth of the mean deviation.

        Raises: ConfigError where nothing was added.
        """
        if not self._count:
            raise ConfigError("there is no training picture")
        mean = torch.as_tensor(self._sum) / self._count
        variance = torch.as_tensor(self._squares) / self._count - mean.square()
        deviation = variance.clamp_min(0).sqrt()
        return mean, deviation.clamp_min(max(_LEAST * float(deviation.mean()), _SMALLEST))


class Joint(Method, TakesSecond):
    """A method whose features may be those of two encoders.

    Attributes: second: None where the config names none, or before `take_second`.
    """

    config: MemoryConfig
    second: SecondEncoder | None

    def __init__(self, config: MemoryConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.second = None

    @property
    def wants_second(self) -> str:
        return self.config.second

    def take_second(self, encoder: Backbone, also: Sequence[int] = ()) -> None:
        layers = encoder.check_layers(self.config.second_layers)
        self.config = replace(self.config, second_layers=layers)
        self.second = SecondEncoder(encoder, layers, also)

    @property
    def encoders(self) -> list[tuple[Backbone, tuple[int, ...]]]:
        own = super().encoders
        if self.second is None:
            return own
        return [*own, (self.second.encoder, (*self.second.layers, *self.second.also))]

    def set_precision(self, dtype: torch.dtype) -> None:
        super().set_precision(dtype)
        if self.second is not None:
            self.second.encoder.to(dtype)

    def see(self, images: Tensor, also: Sequence[int] = ()) -> Features:
        """As of `Method`; what the second encoder sees is `beside`."""
        features = super().see(images, also)
        if self.config.second and self.second is None:
            raise ConfigError(f"second: {self.config.second} was not given to the method")
        if self.second is None:
            return features
        return replace(features, beside=self.second.see(images, self.backbone.colours(images)))

    def embedded(self, features: Features) -> tuple[Tensor, tuple[int, int]]:
        """One unit-length feature per location: float32 B N D, and the grid (h, w)."""
        own = features.layers(slice(len(self.layers)))
        pooling, centre = self.config.pooling, self.config.centre
        joined, grid = join(own, self.backbone.spec.kind, pooling=pooling, centre=centre)
        unit, second, share = F.normalize(joined, dim=-1), self.second, self.config.second_share
        if second is None:
            return unit, grid
        assert features.beside is not None
        beside = second.joined(features.beside, finest(own), self.config)
        other = second.standardised(beside)
        return torch.cat([math.sqrt(1 - share) * unit, math.sqrt(share) * other], dim=-1), grid

    def measure_second(self, batches: Batches, count: int, progress: Progress) -> None:
        """Learn the channels of the second encoder, if any, from a pass over the good pictures."""
        second = self.second
        if second is None:
            return
        moments, onto = Moments(), finest(self.backbone.shapes(*self.scoring_size, self.layers))
        for batch in reported(batches(), "measuring the second encoder", count, progress):
            features = second.see(batch.images, self.backbone.colours(batch.images))
            joined = second.joined(features, onto, self.config)
            known = self._framed(batch.images, onto.grid).flatten(1)
            for one, inside in zip(joined, known, strict=True):
                moments.add(one[inside])
        second.know_channels(moments)

    def learned_tensors(self) -> dict[str, Stored]:
        known = super().learned_tensors()
        if self.second is not None:
            width = self.second.width(*self.scoring_size)
            known["second.mean"] = Stored(shape=(width,))
            known["second.deviation"] = Stored(shape=(width,), low=0, above=True)
        return known

    def _joined_shape(self) -> tuple[int, int]:
        places, width = super()._joined_shape()
        more = 0 if self.second is None else self.second.width(*self.scoring_size)
        return places, width + more
