"""RD4AD: give an encoder's stages back from a narrow embedding, the deepest first.

Deng & Li 2022, "Anomaly Detection via Reverse Distillation from One-Class Embedding". A frozen
encoder (the teacher) gives stages; they are fused to the grid of the deepest (section 3.3, MFF:
convolutions of 3×3 and stride 2, batch norm, ReLU, then joined) and pass a residual stage that
halves the grid once more (OCE), which keeps what normal pictures need. A decoder (the student) that
mirrors the encoder gives the stages back from this embedding. Scored is one minus the cosine of
each place (eq. 1); the anomaly map is the sum of the resized maps (eq. 4).

The loss is that of the authors' code: one minus the cosine of each stage of a picture as one
vector, summed over the stages. In the paper (eq. 2) it is the mean of eq. 1 over the places
(`cosine="place"`). Of a ViT's layers such a student learns to answer one place of a picture with
activations a hundred times those of the others, which batch norm then makes small, and which a mean
of cosines hardly sees: in good pictures, too, heat lies there (docs/log.md).

As the authors' code has it: bottleneck blocks, twice as wide inside as those of a ResNet-50
(WideResNet-50-2), 3 in the embedding, 3, 4 and 6 in the decoder; stages are joined without the 1×1
convolution that the paper has there; where the grid grows, a transposed convolution of 2×2;
Adam with β = (0.5, 0.999); Kaiming-normal weights.

Deviates: the last state of the training is kept; maps are resized to where their cells lie; the
image score is the mean of the top fraction of the map, of which `paper` takes the maximum. Other
encoders have other grids: where one is no finer than the next, strides are 1 (so in a ViT, whose
embedding alone has another grid, and whose layers are normalised), and what a transposed
convolution makes too much is cut off. `best` has one block a stage, for the processors at hand, and
stages may end below 0, as those of a ViT and of an EfficientNet do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import Backbone, Features
from blemish.backbones.cells import resampled
from blemish.config import NEW, Length, NotNegative, Positive, Range
from blemish.losses.cosine import cosine_distance
from blemish.methods.learner import TrainingBatch, share_statistics
from blemish.methods.mirror import Student
from blemish.methods.trained import MapMethod, TrainedConfig

Blocks = Annotated[tuple[Annotated[int, Range(1, 64)], ...], Length(1, 64)]


@dataclass(frozen=True, kw_only=True)
class RD4ADConfig(TrainedConfig):
    """Settings of RD4AD; the defaults are `best`.

    Attributes:
        learning_rate, weight_decay: of Adam.
        embedding_blocks: residual blocks of the one-class embedding.
        decoder_blocks: residual blocks of each stage of the decoder, the deepest first; the last
            number counts for all stages that follow.
        widening: channels inside a block, as a share of those that it gives.
        rectified: whether each stage of the decoder ends with a ReLU, as those of a ResNet do.
        cosine: of what the loss takes the cosine, each `stage` of a picture or each `place` of it.
    """

    epochs: Annotated[int, Range(1, 2**31)] = 40
    min_steps: Annotated[int, Range(0, 2**31)] = 1000
    train_batch_size: Annotated[int, Range(1, 2**20)] = 8
    learning_rate: Positive = 2e-3
    weight_decay: NotNegative = 0.0
    embedding_blocks: Annotated[int, Range(1, 64)] = 1
    decoder_blocks: Blocks = (1,)
    widening: Annotated[float, Range(0, 4, above=True)] = 0.5
    rectified: bool = False
    cosine: Literal["stage", "place"] = field(default="stage", metadata={NEW: True})

    @classmethod
    def paper(cls) -> Self:
        """The published setting: WideResNet-50-2, stages 1 to 3, 256², 200 epochs; maximum of the
        map smoothed with σ = 4 pixels.
        """
        return cls(
            backbone="wide_resnet50_2",
            image_size=(256,),
            layers=(1, 2, 3),
            smoothing=4 / 256,
            top_fraction=0.0,
            epochs=200,
            min_steps=0,
            train_batch_size=16,
            learning_rate=5e-3,
            embedding_blocks=3,
            decoder_blocks=(3, 4, 6),
            rectified=True,
        )


class RD4AD(MapMethod):
    """Teacher, embedding and student."""

    name = "rd4ad"
    summary = "an encoder's stages given back from a one-class embedding"
    source = "Deng & Li 2022, RD4AD"
    Config = RD4ADConfig
    config: RD4ADConfig
    clip_norm = math.inf  # nothing is clipped, as published

    def __init__(self, config: RD4ADConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.layers = tuple(sorted(self.layers))
        probe = self.trained_on()
        widths = [tokens.shape[2] for tokens in probe.tokens]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.student = Student(config, widths, probe.grids)

    def stages(self, features: Features) -> list[Tensor]:
        """What is given back: one float32 B C h w a layer, the finest first."""
        own = features.layers(slice(len(self.layers)))
        if self.backbone.spec.kind == "cnn":
            return list(own.maps())
        normed = [F.layer_norm(tokens, tokens.shape[-1:]).mT for tokens in own.tokens]
        return [
            each.reshape(*each.shape[:2], *grid)
            for each, grid in zip(normed, own.grids, strict=True)
        ]

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """The stages, B C h w each in the backbone's precision, by number."""
        stages = self.stages(self.see(images))
        return {str(number): stage.to(self.backbone.dtype) for number, stage in enumerate(stages)}

    def optimizer(self) -> torch.optim.Optimizer:
        rate, decay = self.config.learning_rate, self.config.weight_decay
        learned = self.student.parameters()
        return torch.optim.Adam(learned, lr=rate, betas=(0.5, 0.999), weight_decay=decay)

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        """The sum over the stages of their mean distance."""
        stages = [stage.float() for stage in batch.features.values()]
        pairs = zip(self.student(stages), stages, strict=True)
        apart = [cosine_distance(*map(self._vectors, pair)).mean() for pair in pairs]
        return torch.stack(apart).sum()

    def _vectors(self, stage: Tensor) -> Tensor:
        """What the loss compares of B C h w."""
        return stage.flatten(1) if self.config.cosine == "stage" else stage.movedim(1, -1)

    def after_step(self, step: int, steps: int) -> None:
        share_statistics(self.student)

    def anomaly_map(self, features: Features, images: Tensor) -> Tensor:
        """Eq. 4 on the grid of the finest stage: the sum of the distances of all, B h w."""
        stages = self.stages(features)
        grid, onto = features.grids[0], features.offsets[0]
        total = images.new_zeros(images.shape[0], 1, *grid)
        levels = zip(self.student(stages), stages, features.offsets, strict=False)
        for given, wanted, offset in levels:
            apart = self._extended(1 - F.cosine_similarity(given, wanted), images)
            total = total + resampled(apart[:, None], grid, offset=offset, onto=onto)
        return total[:, 0]
