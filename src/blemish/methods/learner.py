"""What learns by gradient: it answers batches with a loss; `blemish.training` feeds it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from blemish.backbones import Backbone
from blemish.config import FractionAbove0, FractionBelow1, NotNegative, Positive, Range, check
from blemish.errors import NonFiniteError
from blemish.losses import mean_over_processes


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Settings of everything that is trained. Schedules are fractions of the run: a shorter run has
    the same shape.

    Attributes:
        epochs: passes over the training pictures (each rotation and flip of one counts as a
            picture); over the normal ones where labelled defects have a part of every batch.
        min_steps: a small set is passed over more often, until this many steps have been made.
        train_batch_size: pictures of one optimiser step, over all processes (`batch_size` of `fit`
            is how many the frozen part looks at, at once).
        learning_rate, weight_decay: of AdamW; the learning rate is that before its schedule.
        cache_gib: the most memory, in GiB, in which what the frozen part gives is kept between
            epochs. What does not fit is computed anew in every epoch.
    """

    epochs: Annotated[int, Range(1, 2**31)] = 100
    min_steps: Annotated[int, Range(0, 2**31)] = 0
    train_batch_size: Annotated[int, Range(1, 2**20)] = 32
    learning_rate: Positive = 1e-4
    weight_decay: NotNegative = 1e-4
    cache_gib: NotNegative = 4.0

    def __post_init__(self) -> None:
        check(self)

    @property
    def encoder_learns(self) -> bool:
        """Whether anything of the encoder is trained."""
        return False

    @property
    def left_out(self) -> float:
        """The share of the normal pictures that no step is fed with, in [0, 1): by them what was
        learned is measured (`Learner.measure_left_out`)."""
        return 0.0

    def defects_among(self, size: int) -> int | None:
        """How many of the `size` rows of every batch are labelled defects, where there are any;
        None: they come as often as the other pictures do.
        """
        return size // 2


@dataclass(frozen=True, kw_only=True)
class FineTuning(Schedule):
    """Settings of what may learn its encoder as well.

    Attributes:
        learning_rate_start, warmup: the learning rate rises from here during this fraction of the
            run; then it falls as a cosine to nearly 0.
        layer_decay: each block learns slower by this factor than the next one.
    """

    learning_rate_start: NotNegative = 1e-5
    warmup: FractionBelow1 = 0.1
    layer_decay: FractionAbove0 = 0.75

    @property
    def encoder_learns(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Pictures as a training step sees them.

    Attributes:
        images: float32 B 3 H W, normalised; None where the method does not ask for them
            (`needs_images`).
        features: what `Learner.encode` gave of them; each tensor has B rows.
        labels: int64 B, 0 normal, 1 a labelled defect; None where all are normal.
    """

    images: Tensor | None
    features: Mapping[str, Tensor]
    labels: Tensor | None = None


class Learner(nn.Module):
    """What learns by gradient: a detection method, or an encoder's pre-training.

    The order of a step, which the engine follows: the learning rate is set to the optimiser's own
    times `learning_rate_factor(fraction)`; `training_step` gives the loss; backward, clip,
    optimiser step; `after_step`. All randomness comes from torch's global generators, which the
    engine seeds anew for every step, so that a step's draws depend on the seed and its number only.

    Attributes:
        name: what it is called in messages.
        backbone: the encoder; where nothing of it is learned, checkpoints leave it out.
        clip_norm: the largest norm of all gradients together; in proportion to the scale of the
            loss.
        training_only: how the names of trained tensors begin that serve training alone, as a
            projection head that is thrown away; a change of any other trained tensor changes what
            is given.
        in_turns: whether some of what is trained takes no part in some steps.
        class_counts: how many normal rows and how many labelled defects it is trained on, over all
            processes; the engine sets them before `start_training`.
    """

    name: ClassVar[str]
    training_only: ClassVar[tuple[str, ...]] = ()
    in_turns: ClassVar[bool] = False
    config: Schedule
    backbone: Backbone
    clip_norm: float = 1.0
    class_counts: tuple[int, int] = (0, 0)

    @property
    @abstractmethod
    def precision(self) -> torch.dtype:
        """What it computes in."""

    @property
    def needs_images(self) -> bool:
        """Whether `training_step` reads `TrainingBatch.images`."""
        return False

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """What the frozen part gives of clean pictures B 3 H W: tensors of B rows, without
        gradient, small enough to keep. The same pictures always give the same.
        """
        return {}

    def prepare_training(self) -> None:
        """Make what `encode` needs. Called first, before anything is encoded."""

    @abstractmethod
    def start_training(self, sample: TrainingBatch) -> None:
        """Make what training alone needs (a teacher), and the start from a sample of the pictures.

        Called once, before the optimiser is asked for.
        """

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimiser over what is learned."""

    def learning_rate_factor(self, fraction: float) -> float:
        """What the learning rates are multiplied by, at `fraction` in [0, 1) of the run."""
        return 1.0

    @abstractmethod
    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        """The loss (a scalar) of a batch, at `fraction` in [0, 1) of the run."""

    def after_step(self, step: int, steps: int) -> None:
        """Called after the optimiser's step number `step` (from 1) of `steps`."""

    def findings(self, sample: TrainingBatch) -> dict[str, float]:
        """Figures by name that show whether training did what it should. Called before
        `end_training`.
        """
        return {}

    def measure_left_out(self, batches: Iterable[TrainingBatch]) -> None:
        """Learn from the pictures that were left out (`Schedule.left_out`) what only such can tell.
        Called once, after the last step, where there are any; without gradient.
        """

    @abstractmethod
    def end_training(self, steps: int) -> None:
        """Drop what was needed while training only; what was learned can be used from here on."""


class EndToEnd(Learner):
    """A learner whose encoder may learn as well: its weights are float32, and it computes in what
    it is told.
    """

    _computes_in: torch.dtype = torch.float32

    @property
    def precision(self) -> torch.dtype:
        return self._computes_in

    def set_precision(self, dtype: torch.dtype) -> None:
        """Compute in `dtype` from now on."""
        self._computes_in = dtype

    def _autocast(self, images: Tensor) -> torch.autocast:
        enabled = self._computes_in != torch.float32
        return torch.autocast(images.device.type, dtype=self._computes_in, enabled=enabled)


class FineTuned(EndToEnd):
    """A ViT and its heads, from a good encoder: blocks learn the slower the earlier they are."""

    config: FineTuning

    def optimizer(self) -> torch.optim.Optimizer:
        return layerwise_adamw(self, self.config.layer_decay)

    def learning_rate_factor(self, fraction: float) -> float:
        start = self.config.learning_rate_start / self.config.learning_rate
        return warm_up_then_cosine(fraction, start=start, warmup=self.config.warmup)


def layerwise_adamw(learner: Learner, decay: float) -> torch.optim.AdamW:
    """AdamW over what a ViT and its heads learn, each block slower by the factor `decay` than the
    next one.

    As BEiT fine-tunes (Bao et al. 2022): the heads and the final norm at the config's learning
    rate, the embedding slowest; what has one dimension (biases, norms) is not decayed.
    """
    settings, depth = learner.config, learner.backbone.depth
    groups = []
    for name, parameter in learner.named_parameters():
        if not parameter.requires_grad:
            continue
        distance = 0
        if name.startswith("backbone.model.blocks."):
            distance = depth - int(name.split(".")[3])
        elif name.startswith("backbone.") and not name.startswith("backbone.model.norm."):
            distance = depth + 1
        groups.append(
            {
                "params": [parameter],
                "lr": settings.learning_rate * decay**distance,
                "weight_decay": settings.weight_decay if parameter.ndim > 1 else 0.0,
            }
        )
    return torch.optim.AdamW(groups)


def warm_up_then_cosine(fraction: float, *, start: float, warmup: float, end: float = 0.0) -> float:
    """A factor of learning rates at `fraction` in [0, 1]: a line from `start` to 1 until `warmup`,
    then a cosine to `end`.

    Example:
        >>> shares = (0, 0.1, 0.2, 0.6, 1)
        >>> [round(warm_up_then_cosine(each, start=0.1, warmup=0.2), 3) for each in shares]
        [0.1, 0.55, 1.0, 0.5, 0.0]
    """
    if fraction < warmup:
        return start + (1 - start) * fraction / warmup
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup)))


def finite(loss: Tensor, step: int) -> Tensor:
    """The loss as it is. Raises: NonFiniteError when it is NaN or infinite."""
    if not bool(torch.isfinite(loss)):
        raise NonFiniteError(
            f"the loss of step {step} is {loss.item()}; a lower learning rate "
            "(--set learning_rate=…) or --precision fp32 may help"
        )
    return loss


@torch.no_grad()
def follow(average: nn.Module, learned: nn.Module, decay: float) -> None:
    """One step of an exponential moving average: θ ← decay · θ + (1 − decay) · the learned θ."""
    for slow, fast in zip(average.parameters(), learned.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


@torch.no_grad()
def share_statistics(module: nn.Module) -> None:
    """Make the running statistics of batch norm those of the pictures of all processes."""
    ends = ("running_mean", "running_var")
    kept = [each for name, each in module.named_buffers() if name.endswith(ends)]
    if kept:
        agreed = mean_over_processes(torch.cat(kept)).split([len(each) for each in kept])  # type: ignore[no-untyped-call]
        for statistic, mean in zip(kept, agreed, strict=True):
            statistic.copy_(mean)
