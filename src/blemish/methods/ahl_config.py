"""Settings of AHL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

from blemish.config import FractionBelow1, NotNegative, Positive, Range
from blemish.errors import ConfigError
from blemish.methods.dra import DraConfig


@dataclass(frozen=True, kw_only=True)
class AhlConfig(DraConfig):
    """Settings of AHL; the defaults are `best`.

    Attributes:
        learning_rate, weight_decay: of Adam, of the unified model; ψ learns at the same rate.
        base_share: the share of the run in which the extractor is trained, with heads of its own,
            as by `dra`; 0 where `extractor_rate` is 0.
        base_rate, base_decay: learning rate and weight decay there.
        clusters: C, of normal pictures; there are C (C − 1) base models.
        inner_steps, inner_rate: steps of a base model, and their learning rate (of plain gradient
            descent).
        history: K, the steps from the scores of which ψ predicts the next ones.
        watched: training pictures whose scores ψ sees: half of them normal, a quarter with made
            anomalies, a quarter labelled defects, if there are any.
    """

    min_steps: Annotated[int, Range(0, 2**31)] = 200
    train_batch_size: Annotated[int, Range(4, 2**20)] = 12
    learning_rate: Positive = 2e-3
    weight_decay: NotNegative = 1e-4
    base_share: FractionBelow1 = 0.0
    base_rate: Positive = 2e-4
    base_decay: NotNegative = 1e-5
    clusters: Annotated[int, Range(2, 8)] = 3
    inner_steps: Annotated[int, Range(1, 100)] = 1
    inner_rate: Positive = 2e-4
    history: Annotated[int, Range(1, 100)] = 5
    watched: Annotated[int, Range(8, 4096)] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.base_share > 0) != (self.extractor_rate > 0):
            raise ConfigError(
                f"base_share: {self.base_share:g} does not fit extractor_rate "
                f"{self.extractor_rate:g}: the extractor learns in this share of the run only, so "
                "both are 0, or neither"
            )

    @classmethod
    def paper(cls) -> Self:
        """The published setting: 600 steps as DRA, then 30 of the unified model, all of 48."""
        return cls(
            backbone="resnet18",
            rotations=8,
            smoothing=0.0,
            min_steps=630,
            train_batch_size=48,
            extractor_rate=1.0,
            base_share=600 / 630,
            inner_steps=3,
            watched=64,
        )
