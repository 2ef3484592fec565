"""The settings of EfficientAD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

from blemish.config import Fraction, FractionBelow1, NotNegative, Positive, Range
from blemish.methods.patches import PatchesConfig
from blemish.methods.trained import TrainedConfig


@dataclass(frozen=True, kw_only=True)
class EfficientADConfig(TrainedConfig):
    """Settings of EfficientAD; the defaults are `best`.

    Attributes:
        learning_rate, weight_decay: of Adam; the rate is that of student and autoencoder.
        width: channels of the first layer of teacher and student (w); the deeper ones have twice.
        channels: values that the teacher gives of each place (C); the student gives twice as many.
        autoencoder_width: channels of the autoencoder's first layers; the others have twice these.
        hard: of the student's squared errors in a step only those above this quantile are learned.
        penalty: what the student's answer to pictures that are not of the part weighs in the loss.
        grey: the share of the pictures that are not of the part which are shown in grey.
        left: the share of the good pictures that the student does not learn from; the maps' scale
            is measured on them.
        enlarged: how many times as large the encoder sees the pictures that the teacher learns.
        teacher_steps, teacher_batch_size, teacher_rate: of the teacher's training.
    """

    epochs: Annotated[int, Range(1, 2**31)] = 1
    min_steps: Annotated[int, Range(0, 2**31)] = 2500
    train_batch_size: Annotated[int, Range(1, 2**20)] = 2
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 1e-5
    width: Annotated[int, Range(1, 1024)] = 32
    channels: Annotated[int, Range(1, 4096)] = 128
    autoencoder_width: Annotated[int, Range(1, 1024)] = 8
    hard: FractionBelow1 = 0.999
    penalty: NotNegative = 1.0
    grey: Fraction = 0.3
    left: Annotated[float, Range(0, 0.5, above=True)] = 0.1
    enlarged: Annotated[int, Range(1, 8)] = 1
    teacher_steps: Annotated[int, Range(1, 2**31)] = 1500
    teacher_batch_size: Annotated[int, Range(1, 2**20)] = 8
    teacher_rate: Positive = 1e-3

    @property
    def left_out(self) -> float:
        return self.left

    @property
    def pretraining_config(self) -> PatchesConfig:
        return PatchesConfig(
            width=self.width,
            channels=self.channels,
            enlarged=self.enlarged,
            min_steps=self.teacher_steps,
            train_batch_size=self.teacher_batch_size,
            learning_rate=self.teacher_rate,
            weight_decay=self.weight_decay,
            cache_gib=self.cache_gib,
            seed=self.seed,
        )

    @classmethod
    def paper(cls) -> Self:
        """The published setting of EfficientAD-S: WideResNet-101-2 at 512², networks at 256²."""
        return cls(
            backbone="wide_resnet101_2.tv_in1k",
            image_size=(256,),
            layers=(2, 3),
            smoothing=0.0,
            top_fraction=0.0,
            min_steps=70_000,
            train_batch_size=1,
            learning_rate=1e-4,
            width=128,
            channels=384,
            autoencoder_width=32,
            enlarged=2,
            teacher_steps=60_000,
            teacher_batch_size=16,
            teacher_rate=1e-4,
        )
