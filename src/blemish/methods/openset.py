"""DRA's network (Ding et al. 2022): four heads on an extractor's features, in several sizes of a
picture; how it scores. How it learns stands in `dra` and `ahl`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.backbones import Backbone, Features
from blemish.config import Range
from blemish.methods.base import map_size, shown, smooth
from blemish.methods.convolutions import convolved
from blemish.methods.labelled import Labelled, LabelledConfig
from blemish.methods.learner import TrainingBatch
from blemish.methods.stored import Stored
from blemish.types import NORMAL, Scores


@dataclass(frozen=True, kw_only=True)
class OpenSetConfig(LabelledConfig):
    """Settings of the network.

    Attributes:
        references: normal pictures whose mean features are the reference.
        levels: sizes in which a picture is looked at, each half the one before.
        hidden: units of the hidden layer of the normality head.
    """

    references: Annotated[int, Range(1, 64)] = 5
    levels: Annotated[int, Range(1, 4)] = 2
    hidden: Annotated[int, Range(1, 2**16)] = 256

    def defects_among(self, size: int) -> int | None:
        return size // 3


class Heads(nn.Module):
    """`normality`, `seen`, `pseudo` and `residual`, on features of `dim` channels."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.normality = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.seen = nn.Conv2d(dim, 1, kernel_size=1)
        self.pseudo = nn.Conv2d(dim, 1, kernel_size=1)
        self.residual = nn.Sequential(*convolved(dim, dim), nn.Conv2d(dim, 1, kernel_size=1))

    def forward(self, features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Of features B D h w and mean features D h w: normality B, and what the other heads make
        of the locations, 3 B h w, none below 0.
        """
        normality = self.normality(features.mean(dim=(2, 3)))[:, 0].abs()
        found = self.seen(features), self.pseudo(features), self.residual(reference - features)
        return normality, torch.cat(found, dim=1).abs().transpose(0, 1)


@dataclass(frozen=True, slots=True)
class Look:
    """What the heads make of B pictures: the scores of all, 4 B, normality first, and for each size
    the sum of the maps of the others, B h w.
    """

    scores: Tensor
    maps: list[Tensor]

    @property
    def anomaly(self) -> Tensor:
        """The anomaly scores, B."""
        return self.scores[1:].sum(0) - self.scores[0]


class OpenSet(Labelled):
    """Extractor and heads.

    Attributes:
        sizes: (H, W) in which pictures are looked at. grids: (h, w) of the locations in each.
        examples: the reference pictures R 3 H W, while it is trained.
        reference: their mean features, D N, the N locations of all sizes one after the other.
    """

    decoupled = False
    config: OpenSetConfig
    examples: Tensor
    reference: Tensor

    def __init__(self, config: OpenSetConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        height, width = backbone.round_size(*config.height_width)
        each = range(config.levels)
        self.sizes = [backbone.round_size(height >> n, width >> n) for n in each]
        self.grids = [max(backbone.shapes(*size, self.layers).grids) for size in self.sizes]
        self.register_buffer("examples", torch.empty(0), persistent=False)
        self.register_buffer("reference", torch.empty(0))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.heads = Heads(self._width(), config.hidden)

    # The network

    def look(self, images: Tensor, seen: Features) -> Look:
        """What the heads make of pictures B 3 H W, of which `see` gave `seen`."""
        sizes = [high * wide for high, wide in self.grids]
        parts = torch.split(self.reference, sizes, dim=1)
        reference = [own.reshape(-1, *grid) for own, grid in zip(parts, self.grids, strict=True)]
        features = self.extracted(images, seen)
        return self.scored(self.heads, features, reference, self.insides(images))

    def extracted(self, images: Tensor, seen: Features) -> list[Tensor]:
        """The features of pictures B 3 H W, of which `see` gave `seen`: for each size float32
        B D h w.
        """
        smaller = [self.see(self._resized(images, n)) for n in range(1, len(self.sizes))]
        with torch.autocast(images.device.type, enabled=False):
            return [self._extracted(each).float() for each in (seen, *smaller)]

    def insides(self, images: Tensor) -> list[Tensor | None]:
        """What is looked at of pictures B 3 H W, for each size; see `_inside`."""
        sized = (self._resized(images, n) if n else images for n in range(len(self.sizes)))
        return [self._inside(own, grid) for own, grid in zip(sized, self.grids, strict=True)]

    def scored(
        self,
        heads: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        features: Sequence[Tensor],
        reference: Sequence[Tensor],
        insides: Sequence[Tensor | None],
    ) -> Look:
        """What heads make of features B D h w and mean features D h w in each size."""
        scores, maps = [], []
        with torch.autocast(features[0].device.type, enabled=False):
            for own, mean, inside in zip(features, reference, insides, strict=True):
                normality, found = heads(own, mean)
                tops = [self._highest(each, inside) for each in found]
                scores.append(torch.stack([normality, *tops]))
                maps.append(found.sum(0))
        return Look(torch.stack(scores).mean(0), maps)

    def _resized(self, images: Tensor, number: int) -> Tensor:
        return F.interpolate(images, size=self.sizes[number], mode="nearest")

    # The reference

    def start_training(self, sample: TrainingBatch) -> None:
        super().start_training(sample)
        images, labels = sample.images, sample.labels
        assert images is not None
        if labels is not None and bool((labels == NORMAL).any()):
            images = images[labels == NORMAL]
        # As many in every process: all get those of the first.
        self.examples = images[torch.arange(self.config.references) % len(images)]

    def end_training(self, steps: int) -> None:
        if len(self.examples):
            self.eval()
            with torch.no_grad():
                sized = [self._resized(self.examples, number) for number in range(len(self.sizes))]
                means = [self._extracted(self.see(each)).float().mean(0) for each in sized]
            self.reference = torch.cat([mean.flatten(1) for mean in means], dim=1)
            self.examples = self.examples[:0]
        super().end_training(steps)

    def learned_tensors(self) -> dict[str, Stored]:
        shape = self._width(), sum(high * wide for high, wide in self.grids)
        return {**super().learned_tensors(), "reference": Stored(shape=shape)}

    # Scoring

    def judge(self, features: Features, images: Tensor) -> Scores:
        self._require(self.steps)
        look, size = self.look(images, features), map_size(images)
        spread = []
        for number, each in enumerate(look.maps):
            own = self._resized(images, number)
            spread.append(self._spread(self._extended(each, own), own, size))
        maps = smooth(torch.stack(spread).mean(0), self.config.smoothing)[:, 0]
        maps = maps - look.scores[0][:, None, None]
        return Scores(look.anomaly, shown(maps, self._inside(images, size)))
