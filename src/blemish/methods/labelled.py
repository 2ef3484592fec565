"""What detectors have in common that learn from labelled defects step by step: an extractor trained
end to end, a deviation loss, and batches of both classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from blemish.backbones import Backbone, Features
from blemish.config import Fraction, FractionAbove0, NotNegative, Positive, Range
from blemish.methods.embedding import join
from blemish.methods.learner import EndToEnd, TrainingBatch, share_statistics
from blemish.methods.stored import Stored, numbers
from blemish.methods.trained import TrainedConfig, TrainedMethod


@dataclass(frozen=True, kw_only=True)
class LabelledConfig(TrainedConfig):
    """Settings of what learns from labelled defects step by step.

    Attributes:
        layers: layers whose features are used, joined as for the memory banks; empty = the last
            one.
        top_fraction: K, as a share of the locations.
        margin: k, the deviation that anomalous pictures are to have at least.
        draws: R, from N(0, 1), of which the deviation is, drawn anew in every step.
        extractor_rate: the extractor's learning rate, as a share of the other parts'; 1 in the
            papers. With 0 it stays as it is, its batch norms too, and only what follows it learns.
        drop_every, drop: the learning rate is multiplied by `drop` whenever this fraction of the
            run is over.
    """

    top_fraction: Fraction = 0.1
    margin: Positive = 10.0
    draws: Annotated[int, Range(2, 2**24)] = 5000
    extractor_rate: NotNegative = 1.0
    drop_every: FractionAbove0 = 1 / 3
    drop: FractionAbove0 = 0.1

    @property
    def encoder_learns(self) -> bool:
        return self.extractor_rate > 0


class Labelled(EndToEnd, TrainedMethod):
    """An extractor that learns at a rate of its own, and what follows it.

    Attributes:
        decoupled: whether weight decay acts on the weights directly, as in AdamW, or is added to
            the gradient, as in Adam.
    """

    takes_defects = True
    needs_images = True
    decoupled: ClassVar[bool] = True
    config: LabelledConfig
    steps: Tensor

    def __init__(self, config: LabelledConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("steps", torch.empty(0, dtype=torch.int64))

    @classmethod
    def usual_layers(cls, backbone: Backbone) -> tuple[int, ...]:
        return (backbone.depth,)

    @property
    def scores_by_map(self) -> bool:
        return False

    def see(self, images: Tensor, also: Sequence[int] = ()) -> Features:
        with self._autocast(images):
            return super().see(images, also)

    def _width(self) -> int:
        """Channels of what `_extracted` gives."""
        backbone = self.backbone
        probe = backbone.shapes(backbone.stride, backbone.stride, self.layers)
        return join(probe, backbone.spec.kind)[0].shape[2]

    def _extracted(self, seen: Features) -> Tensor:
        """The features of the locations, B D h w."""
        own = seen.layers(slice(len(self.layers)))
        tokens, grid = join(own, self.backbone.spec.kind)
        return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid)

    def _offset(self, maps: Tensor, images: Tensor) -> float:
        """Where the locations of B h w lie in B 3 H W, as `resampled` takes it."""
        return self.backbone.offset((maps.shape[1], maps.shape[2]), images)

    def start_training(self, sample: TrainingBatch) -> None:
        """What the features depend on learns, unless `extractor_rate` is 0; a norm or a convolution
        after them stays as it is, as where several processes train together everything that learns
        has to take part.
        """
        backbone = self.backbone.eval().requires_grad_(self.config.encoder_learns)
        if not self.config.encoder_learns:
            return
        assert sample.images is not None
        parameters = list(backbone.parameters())
        with torch.enable_grad():
            corner = sample.images[:1, :, : backbone.stride, : backbone.stride]
            total = self._extracted(self.see(corner)).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def optimizer(self) -> torch.optim.Optimizer:
        rate, decay = self.config.learning_rate, self.config.weight_decay
        return torch.optim.Adam(
            self.groups(), lr=rate, weight_decay=decay, decoupled_weight_decay=self.decoupled
        )

    def groups(self) -> list[dict[str, Any]]:
        """What is learned, as groups of the optimiser."""
        extractor = self.of_the_extractor()
        own = [
            each
            for name, each in self.named_parameters()
            if each.requires_grad and not name.startswith("backbone.")
        ]
        rate = self.config.learning_rate * self.config.extractor_rate
        groups: list[dict[str, Any]] = [{"params": own}]
        return [*groups, {"params": extractor, "lr": rate}] if extractor else groups

    def of_the_extractor(self) -> list[nn.Parameter]:
        """What of it is learned."""
        return [each for each in self.backbone.parameters() if each.requires_grad]

    def learning_rate_factor(self, fraction: float) -> float:
        """Steps down; in the papers after 10 and 20 of 30 epochs."""
        return self.config.drop ** math.floor(fraction / self.config.drop_every + 1e-9)

    def after_step(self, step: int, steps: int) -> None:
        share_statistics(self)

    def end_training(self, steps: int) -> None:
        self.requires_grad_(False)
        self.steps = self.steps.new_tensor([steps])

    def learned_tensors(self) -> dict[str, Stored]:
        return {"steps": numbers(1, low=1)}


def normal_first(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures B … and their labels B, the normal ones first, each class in an order drawn anew; no
    device is asked where they are.
    """
    order = (labels + torch.rand(len(labels)).to(images.device, non_blocking=True)).argsort()
    return images[order], labels[order]
