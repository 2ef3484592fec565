"""A detection method that learns by gradient."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from blemish.backbones import Backbone, Features
from blemish.methods.base import Method, MethodConfig
from blemish.methods.learner import Learner, Schedule, TrainingBatch
from blemish.methods.stored import Stored, numbers
from blemish.types import Scores


@dataclass(frozen=True, kw_only=True)
class TrainedConfig(MethodConfig, Schedule):
    """Settings that every trained method has."""

    @property
    def learns_by_gradient(self) -> bool:
        return True


class TrainedMethod(Method, Learner):
    """A detection method that `blemish.training.train` trains."""

    config: TrainedConfig


class MapMethod(TrainedMethod):
    """One whose networks start from random weights beside a frozen encoder, and whose score is that
    of the map that they give.

    Attributes:
        steps: int64 1, how many steps it has learned; empty before.
    """

    steps: Tensor

    def __init__(self, config: TrainedConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("steps", torch.empty(0, dtype=torch.int64))

    def trained_on(self) -> Features:
        """What a training picture gives in its size: shapes without storage."""
        size = self.backbone.round_size(*self.config.height_width)
        return self.backbone.shapes(*size, self.layers)

    def start_training(self, sample: TrainingBatch) -> None:
        return

    def end_training(self, steps: int) -> None:
        self.requires_grad_(False)
        self.steps = self.steps.new_tensor([steps])

    def learned_tensors(self) -> dict[str, Stored]:
        return {"steps": numbers(1, low=1)}

    @abstractmethod
    def anomaly_map(self, features: Features, images: Tensor) -> Tensor:
        """How anomalous each place of a grid is, B h w, from what `see` gave of B 3 H W."""

    def judge(self, features: Features, images: Tensor) -> Scores:
        self._require(self.steps)
        return self._finish(self.anomaly_map(features, images), images)
