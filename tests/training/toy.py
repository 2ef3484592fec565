"""A method that trains in milliseconds, here or in a process of its own."""

from __future__ import annotations

import copy
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import blemish
from blemish.backbones import Backbone, Features, build
from blemish.config import to_dict
from blemish.data.stream import PictureStream
from blemish.data.transforms import Preprocessing
from blemish.methods import apmask
from blemish.methods.atacnet import AtacNet
from blemish.methods.guided_config import GuidedConfig
from blemish.methods.learner import TrainingBatch, follow
from blemish.methods.selfsupervised import SelfSupervisedConfig
from blemish.methods.trained import TrainedConfig, TrainedMethod
from blemish.training import Training, checkpoint, loop, train
from blemish.types import Scores

SIDE = 32


@dataclass(frozen=True, kw_only=True)
class ToyConfig(TrainedConfig):
    """`noise` is all that is random; `looks` reads the images too; `rule` is adamw or sgd."""

    backbone: str = "test_vit"
    image_size: tuple[int, ...] = (SIDE,)
    epochs: int = 2
    train_batch_size: int = 4
    learning_rate: float = 1e-2
    noise: float = 0.1
    looks: bool = False
    rule: str = "adamw"


@cache
def _backbone() -> Backbone:
    return build("test_vit", weights="random")


class Toy(TrainedMethod):
    """Learns to give back the mean patch token; a teacher follows what is learned."""

    name, summary, source, Config = "toy", "", "", ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config, copy.deepcopy(_backbone()))
        self.config: ToyConfig = config
        self.register_buffer("made", torch.empty(0, dtype=torch.int64))
        # Size and mean brightness of what it started from.
        self.register_buffer("sample", torch.zeros(2))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.learned = nn.Linear(64, 64)
        self.teacher: nn.Linear | None = None

    @property
    def needs_images(self) -> bool:
        return self.config.looks

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.backbone(images, (2,)).tokens[0]
        return {"mean": tokens.mean(1), "brightness": images.mean((1, 2, 3))}

    def start_training(self, sample: TrainingBatch) -> None:
        brightness = sample.features["brightness"]
        self.sample = torch.tensor([len(brightness), brightness.double().mean()])
        self.teacher = copy.deepcopy(self.learned).requires_grad_(False)

    def optimizer(self) -> torch.optim.Optimizer:
        if self.config.rule == "sgd":
            return torch.optim.SGD(self.learned.parameters(), lr=self.config.learning_rate)
        return torch.optim.AdamW(self.learned.parameters(), lr=self.config.learning_rate)

    def learning_rate_factor(self, fraction: float) -> float:
        return 1 - fraction / 2

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        mean = batch.features["mean"].float()
        noisy = mean
        if self.config.noise:
            noisy = mean + self.config.noise * (1 + fraction) * torch.randn_like(mean)
        loss = F.mse_loss(self.learned(noisy).float(), mean)
        if batch.images is not None:
            loss = loss + (self.learned.bias.mean() - batch.images.mean((1, 2, 3))).square().mean()
        return loss

    def after_step(self, step: int, steps: int) -> None:
        assert self.teacher is not None
        follow(self.teacher, self.learned, 0.9)

    def end_training(self, steps: int) -> None:
        assert self.teacher is not None
        # What it scores with has both histories in it.
        self.learned, self.teacher = self.teacher, None
        self.made = torch.tensor([steps])

    def judge(self, features: Features, images: Tensor) -> Scores:
        mean = self.encode(images)["mean"]
        raw = (self.learned(mean) - mean).norm(dim=1)[:, None, None].expand(-1, 2, 2)
        return self._finish(raw, images)


class Watched(Toy):
    """Notes what its steps are given; calls `when` in the middle of step number `at`."""

    def __init__(
        self, config: ToyConfig, at: int = 0, when: Callable[[], object] = lambda: None
    ) -> None:
        super().__init__(config)
        self.at, self.when, self.start_labels = at, when, [-1]
        self.seen: list[list[float]] = []
        self.labels: list[list[int] | None] = []
        self.rates: list[float] = []
        self.modes: list[tuple[bool, ...]] = []
        self.made_steps: list[tuple[int, int]] = []

    def start_training(self, sample: TrainingBatch) -> None:
        super().start_training(sample)
        self.start_labels = labels_of(sample)

    def optimizer(self) -> torch.optim.Optimizer:
        self.watched = super().optimizer()
        return self.watched

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        self.seen.append(batch.features["brightness"].tolist())
        self.labels.append(labels_of(batch))
        self.rates.append(self.watched.param_groups[0]["lr"])
        mixed = torch.is_autocast_enabled("cpu")
        self.modes.append((self.training, self.backbone.training, mixed))
        if len(self.seen) == self.at:
            self.when()
        return super().training_step(batch, fraction)

    def after_step(self, step: int, steps: int) -> None:
        super().after_step(step, steps)
        self.made_steps.append((step, steps))


def labels_of(batch: TrainingBatch) -> list[int] | None:
    return None if batch.labels is None else batch.labels.tolist()


def pictures(count: int) -> list[np.ndarray]:
    randoms = map(np.random.default_rng, range(count))
    return [random.integers(0, 256, (40, 40, 3), dtype=np.uint8) for random in randoms]


def stream_of(sources: Sequence[Any], **settings: Any) -> PictureStream:
    plain = Preprocessing(height=SIDE, width=SIDE, mean=(0.5,) * 3, std=(0.25,) * 3)
    return PictureStream(sources, plain, **{"batch_size": 3, **settings})


def run(config: ToyConfig, count: int = 10, **options: Any) -> tuple[dict[str, Tensor], Training]:
    """What a toy has learned from `count` pictures, and its training."""
    toy = Toy(config)
    done, _ = train(
        toy, stream_of(pictures(count)), **{"seed": 7, "identity": to_dict(config), **options}
    )
    return learned(toy), done


def learned(toy: Toy) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in checkpoint.learned_state(toy).items()}


def _settle(environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def _stacked(columns: Sequence[str], rows: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    parts = zip(*rows, strict=True)
    return {name: torch.stack(part) for name, part in zip(columns, parts, strict=True)}


def train_apart(
    result: Path,
    config: ToyConfig,
    environment: Mapping[str, str],
    pause: float,
    options: Mapping[str, Any],
) -> None:
    """Train in a process of its own, with a checkpoint after every step, on ten pictures and a
    broken one.
    """
    _settle(environment)
    loop.BETWEEN_CHECKPOINTS = 0.0
    toy = Toy(config)
    after = toy.after_step

    def slowly(step: int, steps: int) -> None:
        after(step, steps)
        time.sleep(pause)

    toy.after_step = slowly  # type: ignore[method-assign]
    stream = stream_of([*pictures(2), "nowhere.png", *pictures(10)[2:]])
    try:
        done, found = train(toy, stream, seed=7, identity=to_dict(config), **options)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    broken = [(at, failure.source, failure.reason) for at, failure in found.failures.items()]
    digests = sorted(found.digests.items())
    told = {"training": done.to_dict(), "digests": digests, "failures": broken}
    save_file(learned(toy), result, metadata={"told": json.dumps(told)})


TINY = {"weights": "random", "device": "cpu", "precision": "fp32", "calibration_fraction": 0}


def fit_apart(
    result: Path,
    settings: Mapping[str, Any],
    environment: Mapping[str, str],
    pause: float,
    options: Mapping[str, Any],
) -> None:
    """Fit `guided` in a process of its own on eight pictures, and note what balances its
    pre-training's targets.
    """
    _settle(environment)
    balance, seen = apmask.sinkhorn, []

    def noted(scores: Tensor, **how: Any) -> Tensor:
        targets = balance(scores, **how)
        seen.append((scores, targets))
        return targets

    apmask.sinkhorn = noted
    brief = {"hidden": 16, "bottleneck": 8, "prototypes": 4, "local_views": 1}
    brief |= {"train_batch_size": 4, "epochs": 1, "min_steps": options["steps"]}
    whole = GuidedConfig.pretraining_config.fget
    assert whole is not None

    def small(config: GuidedConfig) -> SelfSupervisedConfig | None:
        made = whole(config)
        return None if made is None else replace(made, **brief)

    GuidedConfig.pretraining_config = property(small)  # type: ignore[assignment,method-assign]
    tiny = {"backbone": "test_vit", "image_size": SIDE, "layers": (2, 4), "zoom": 1.0, **TINY}
    quick = {"epochs": 1, "min_steps": 2, "train_batch_size": 4, "bank_size": 20}
    blemish.fit("guided", pictures(8), **{**tiny, **quick, **settings}).save(result)
    save_file(_stacked(("scores", "targets"), seen), f"{result}.balanced")


def fit_defects_apart(
    result: Path,
    told: Mapping[str, int],
    environment: Mapping[str, str],
    pause: float,
    options: Mapping[str, Any],
) -> None:
    """Fit `atacnet` in a process of its own, and note the labels that a step is given (−1: none)
    and those that it learns from.

    Args: told: "defects": how many pictures after the nine good ones are; "stop_at": Ctrl-C comes
    during this step.
    """
    _settle(environment)
    mix, seen = AtacNet.mixed, []

    def noted(self: AtacNet, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        assert batch.images is not None
        brightness = batch.images.mean((1, 2, 3))
        images, labels = mix(self, batch)
        if self.training:  # a step, and not the findings
            given = torch.full_like(labels, -1) if batch.labels is None else batch.labels
            seen.append((brightness, given, labels))
            if len(seen) == told.get("stop_at"):
                signal.raise_signal(signal.SIGINT)
        return images, labels

    AtacNet.mixed = noted  # type: ignore[method-assign]
    shown = pictures(9 + told["defects"])
    tiny = {"backbone": "test_resnet", "image_size": 2 * SIDE, "attention_dim": 8, "draws": 50}
    quick = {"recipe": "paper", "epochs": 1, "train_batch_size": 8, **TINY}
    try:
        detector = blemish.fit(
            "atacnet", shown[:9], anomalies=shown[9:], **tiny, **quick, **options
        )
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    detector.save(result)
    save_file(_stacked(("brightness", "given", "learned"), seen), f"{result}.steps")
