"""Test-time adaptation as published: bring the attention entropies of new pictures back to the
training pictures'.

Stages II and III of "Anomaly Detection and Localization Using Attention-Guided Synthetic Anomaly
and Test-Time Adaptation" (the poster). A picture is described by the entropy of every attention
head of the last block's [CLS] token. After training, the mean and the second central moment of
these are kept for normal pictures and for their synthetic twins. At prediction a batch is
classified, the same moments are taken of either class as predicted, and their distance from the
kept ones is made smaller by a step of gradient descent; the scores are those after the step.

The poster gives neither parameters, step size nor number of steps, and here, as in the nearest
published code (class-wise matching of moments): the norms' weights and biases are adapted, by SGD
with momentum 0.9, the gradient clipped to 1, one step a batch; in the papers' recipes at its rate
of 0.001, and always. Distances are in units of the spread over the training pictures. Ours, and
only where `guarded`: a batch whose predicted normals lie where training pictures do by chance is
not adapted to, nor is a step kept that does not bring the moments nearer. In any case: fewer than 8
pictures are not adapted to, and a step that is not finite is undone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from blemish.backbones import VitBackbone
from blemish.errors import ConfigError
from blemish.types import MODES, Mode, Scores

if TYPE_CHECKING:
    from blemish.methods.reference import Reference

LEAST = 8  # pictures; fewer say too little of their distribution
MOMENTUM, LARGEST_GRADIENT = 0.9, 1.0
DRAWS, DRAWN, CHANCE = 400, 16, 0.99  # batches of training pictures that show how far chance goes
AS_USUAL = "not adapted: as the training pictures"
TOO_FEW = f"not adapted: {{}} pictures at once, {LEAST} are needed"


@dataclass(frozen=True, slots=True)
class Look:
    """What a model sees in a batch, at T sizes with L attention heads.

    Attributes:
        maps: B 1 h w, mean over the sizes.
        odds: log-odds of being anomalous, T B; None where no class is predicted.
        entropies: of the heads, T B L, in units of log N: 1 = the head looks everywhere alike;
            None where nothing reads them.
        inside: the places of the maps that are looked at, bool h w or B h w; None = all.
    """

    maps: Tensor
    odds: Tensor | None
    entropies: Tensor | None
    inside: Tensor | None = None


class Adaptable(Protocol):
    """A fitted method that can be adapted."""

    reference: Reference
    backbone: VitBackbone

    def score(self, images: Tensor) -> Scores: ...
    def examine(self, images: Tensor) -> Look: ...
    def combine(self, look: Look) -> Scores: ...


@dataclass(frozen=True, slots=True)
class Adapted:
    """Scores of a batch; `adapted`: whether adaptation took part; `note`: why not, or ""."""

    scores: Scores
    adapted: bool
    note: str = ""


def attention_entropy(attention: Tensor) -> Tensor:
    """Entropy of each row of B L N (rows sum to 1) in units of log N: B L in [0, 1]."""
    entropy: Tensor = -(attention * attention.clamp_min(1e-12).log()).sum(-1)
    return entropy / math.log(attention.shape[-1])


def summary(entropies: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What is kept of the training pictures.

    Args: entropies: of normal pictures and of synthetic ones, each T B L with B of at least 2.
    Returns: statistics 2 4 T L (class; mean, second central moment, the spread of each over
        pictures); and the limit of `drift` for batches of normal pictures, a number.
    """
    rows = []
    for each in entropies:
        values = each.double()
        mean = values.mean(1)
        squares = (values - mean[:, None]).square()
        floor = 1e-4  # a head that never moves must not count without bound
        spreads = values.std(1).clamp_min(floor), squares.std(1).clamp_min(floor**2)
        rows.append(torch.stack([mean, squares.mean(1), *spreads]))
    statistics = torch.stack(rows)
    normal = entropies[0].double()
    limit = drift_limit(normal.shape[1], lambda some: drift(normal[:, some], statistics))
    return statistics.float(), limit


def drift_limit(count: int, drift_of: Callable[[Tensor], Tensor]) -> Tensor:
    """How far batches of training pictures lie from the mean of all by chance.

    Args: count: of training pictures; `drift_of` gets the numbers of some of them.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randint(count, (DRAWN,), generator=generator) for _ in range(DRAWS))
    return torch.stack([drift_of(some) for some in drawn]).quantile(CHANCE, dim=0).float()


def drift(entropies: Tensor, statistics: Tensor, known: float = math.inf) -> Tensor:
    """How far pictures taken for normal (T B L) lie from the normal training pictures: the squared
    distance of the means in units of its standard error, mean over sizes and heads; about 1 without
    any shift. `known`: the number of training pictures, of whose mean the error counts too;
    infinite where B are of them.
    """
    mean, _, spread, _ = statistics[0].to(entropies)
    error = spread * (1 / entropies.shape[1] + 1 / known) ** 0.5
    away: Tensor = ((entropies.mean(1) - mean) / error).square().mean()
    return away


def discrepancy(entropies: Tensor, anomalous: Tensor, statistics: Tensor) -> Tensor:
    """Σ over the classes present of ‖(μ̂ − μ)/σ‖² + ‖(m̂ − m)/σ_m‖², mean over the sizes.

    Args:
        entropies: T B L. anomalous: bool B, the predicted classes.
        statistics: of `summary`. A class with fewer than 2 pictures has no second moment.
    """
    total = entropies.new_zeros(())
    for kind, chosen in enumerate((~anomalous, anomalous)):
        of_class = entropies[:, chosen]
        count = of_class.shape[1]
        if count == 0:
            continue
        mean, moment, mean_spread, moment_spread = statistics[kind].to(entropies)
        found = of_class.mean(1)
        total = total + ((found - mean) / mean_spread).square().sum(-1).mean()
        if count > 1:
            squares = (of_class - found[:, None]).square().mean(1)
            total = total + ((squares - moment) / moment_spread).square().sum(-1).mean()
    return total


class Adapter(ABC):
    """Scores batches with a model that follows them: `EntropyAdapter`, or `alignment.Aligner`.

    Args:
        mode: "online": what was learned of a batch is kept for the next; "episodic": every batch
            starts from the artifact's weights.
        known: whether the model knows what pictures are brought back to.
    Raises: ConfigError for another mode, or where it is not known.
    """

    def __init__(self, model: Adaptable, mode: Mode, *, known: bool) -> None:
        if mode not in MODES:
            raise ConfigError(f"adaptation: {' or '.join(MODES)}, got {mode!r}")
        if not known:
            raise ConfigError(
                "the artifact holds no statistics to adapt to, as it was fitted on a single "
                "picture or at other sizes; fit it on more, with these sizes as --scales"
            )
        self.model = model
        self.mode = mode

    @torch.no_grad()
    def score(self, images: Tensor) -> Adapted:
        """Scores of a batch B 3 H W, after adapting to it. Before and after, the model has the
        artifact's weights.
        """
        if len(images) < LEAST:
            return Adapted(self.model.score(images), False, TOO_FEW.format(len(images)))
        if self.mode == "episodic":
            self.restore()
        return self._follow(images)

    @abstractmethod
    def _follow(self, images: Tensor) -> Adapted:
        """As `score`, of pictures enough."""

    @abstractmethod
    def restore(self) -> None:
        """Forget what was adapted to."""


class EntropyAdapter(Adapter):
    """Brings the attention entropies of batches nearer to those of the training pictures.

    Args:
        model, mode: as of `Adapter`.
        rate, steps: of SGD, and how many of its steps a batch is worth.
        guarded: whether batches within chance are left alone, and steps that do not help undone.
    """

    def __init__(
        self, model: Adaptable, mode: Mode, *, rate: float, steps: int, guarded: bool
    ) -> None:
        super().__init__(model, mode, known=model.reference.entropies.numel() > 0)
        self._rate, self._steps, self._guarded = rate, steps, guarded
        norms = [module for module in model.backbone.modules() if isinstance(module, nn.LayerNorm)]
        self._weights = [parameter for norm in norms for parameter in norm.parameters()]
        self._source = [weight.detach().clone() for weight in self._weights]
        self.restore()

    def restore(self) -> None:
        self._current = self._source
        self._start_optimizer()

    def _start_optimizer(self) -> None:
        self._optimizer = torch.optim.SGD(self._weights, lr=self._rate, momentum=MOMENTUM)

    def _follow(self, images: Tensor) -> Adapted:
        self._put(self._current)
        try:
            return self._stepped(images)
        finally:
            self._put(self._source)

    def _stepped(self, images: Tensor) -> Adapted:
        look = self.model.examine(images)
        odds, entropies = _seen(look)
        anomalous = odds.mean(0) > 0
        if self._guarded and self._is_usual(entropies, anomalous):
            return self._result(look, AS_USUAL)
        before = discrepancy(entropies, anomalous, self.model.reference.entropies)
        self._learn(images, anomalous)
        look = self.model.examine(images)
        odds, entropies = _seen(look)
        after = discrepancy(entropies, anomalous, self.model.reference.entropies)
        if not bool(torch.isfinite(after)) or not bool(torch.isfinite(odds).all()):
            self.restore()
            note = "not adapted: the step was not finite"
        elif self._guarded and after >= before:
            self._start_optimizer()
            note = "not adapted: the step did not help"
        else:
            self._current = [weight.detach().clone() for weight in self._weights]
            return self._result(look)
        self._put(self._current)
        return self._result(self.model.examine(images), note)

    def _is_usual(self, entropies: Tensor, anomalous: Tensor) -> bool:
        """Whether those predicted to be normal lie where training pictures do by chance."""
        normal = ~anomalous if int((~anomalous).sum()) > 1 else torch.ones_like(anomalous)
        reference = self.model.reference
        away = drift(entropies[:, normal], reference.entropies, float(reference.pictures))
        return bool(away <= float(reference.entropy_limit))

    def _result(self, look: Look, note: str = "") -> Adapted:
        return Adapted(self.model.combine(look), self._current is not self._source, note)

    @torch.enable_grad()
    def _learn(self, images: Tensor, anomalous: Tensor) -> None:
        for weight in self._weights:
            weight.requires_grad_(True)
        try:
            for _ in range(self._steps):
                _, entropies = _seen(self.model.examine(images))
                loss = discrepancy(entropies, anomalous, self.model.reference.entropies)
                self._optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(self._weights, LARGEST_GRADIENT)
                self._optimizer.step()
        finally:
            for weight in self._weights:
                weight.requires_grad_(False).grad = None

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=True):
            weight.copy_(value)


def _seen(look: Look) -> tuple[Tensor, Tensor]:
    """Log-odds and entropies of a model that has both, as what adapts by them must."""
    assert look.odds is not None
    assert look.entropies is not None
    return look.odds, look.entropies
