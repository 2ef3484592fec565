"""PaDiM: one Gaussian per location over pre-trained features.

Defard et al. 2021, "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and
Localization". Features of several layers joined on the finest grid, a random subset of channels
(section III-A), mean and covariance per location with εI added (eq. 1, ε = 0.01), Mahalanobis
distance as anomaly (eq. 2). Deviates: the layers of a ViT are normalised and averaged
(`embedding.py`); the image score is the mean of the top fraction of the map instead of its maximum.
It presumes that every picture shows the object at the same place.

Leave-one-out is exact, and costs what scoring does. Without the k rows x of one picture (itself and
its copies), of n with mean μ and scatter S, the others have

    mean        μ − k (x − μ) / (n − k)
    covariance  C_k − q (x − μ)(x − μ)ᵀ
    C_k = S / (n − k − 1) + εI,  q = k n / ((n − k)(n − k − 1))

so that, with h = (x − μ)ᵀ C_k⁻¹ (x − μ), the squared distance of x is (n / (n − k))² h / (1 − q h)
(Sherman & Morrison 1950).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from torch import Tensor

from blemish.backbones import Backbone, Features
from blemish.config import Length, Positive, Range, Side
from blemish.errors import ArtifactError, ConfigError, NonFiniteError
from blemish.methods.base import Method, MethodConfig, reported
from blemish.methods.capabilities import Batches, LearnsInParts, LeavesOneOut
from blemish.methods.embedding import join
from blemish.methods.merging import State, merged_moments, renamed
from blemish.methods.stored import Stored, numbers
from blemish.types import Batch, Progress, Scores


@dataclass(frozen=True, kw_only=True)
class PadimConfig(MethodConfig):
    """Settings of PaDiM.

    Attributes:
        channels: how many feature channels are kept (a random subset); memory grows with its square
            per location.
        epsilon: added to the diagonal of every covariance, > 0.
    """

    image_size: Annotated[tuple[Side, ...], Length(1, 2)] = (224,)
    channels: Annotated[int, Range(1, 2**16)] = 100
    epsilon: Positive = 0.01

    @classmethod
    def paper(cls) -> Self:
        """WideResNet-50-2, layers 1 to 3, 550 channels, 224², maximum of the map smoothed with σ =
        4 pixels.
        """
        return cls(
            backbone="wide_resnet50_2",
            layers=(1, 2, 3),
            channels=550,
            smoothing=4 / 224,
            top_fraction=0.0,
        )


class Padim(Method, LearnsInParts, LeavesOneOut):
    """A Gaussian per location: means N d, and inverse Cholesky factors N d d of the covariances."""

    name = "padim"
    summary = "one Gaussian per location over a random subset of feature channels"
    source = "Defard et al. 2021, PaDiM"
    Config = PadimConfig
    minimum_images = 2
    config: PadimConfig
    means: Tensor
    whiteners: Tensor
    subset: Tensor

    def __init__(self, config: PadimConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("means", torch.empty(0, 0))
        self.register_buffer("whiteners", torch.empty(0, 0, 0))
        self.register_buffer("subset", torch.empty(0, dtype=torch.int64))
        self._learned: _Learned | None = None

    def fit(self, batches: Batches, count: int, progress: Progress) -> None:
        state = self.learn_part(batches, count, progress)
        progress("inverting", 0, 0)
        self.take(state, {})

    def learn_part(self, batches: Batches, count: int, progress: Progress) -> State:
        rows: Counter[int] = Counter()
        seen = 0
        sums = products = shift = subset = torch.empty(0)
        for batch in reported(batches(), "measuring", count, progress):
            features, _ = self._joined(self.see(batch.images))
            if seen == 0:
                width = min(self.config.channels, features.shape[2])
                generator = torch.Generator().manual_seed(self.config.seed)
                order = torch.randperm(features.shape[2], generator=generator)
                subset = order[:width].sort().values.to(features.device)
                shift = features[:, :, subset].mean(0)  # keeps the sums of squares small: N d
                sums = torch.zeros_like(shift)
                products = shift.new_zeros(len(shift), width, width)
            centred = features[:, :, subset] - shift
            seen += len(centred)
            rows.update(batch.owners.tolist())
            sums += centred.sum(0)
            by_location = centred.transpose(0, 1)  # N B d
            products += by_location.transpose(1, 2) @ by_location
        if not seen:
            return {}
        mean = sums / seen
        return {
            "seen": torch.tensor(seen),
            "mean": mean + shift,
            "scatter": products.sub_(seen * mean[:, :, None] * mean[:, None, :]),
            "subset": subset,
            "owners": torch.tensor([*rows]),
            "rows": torch.tensor([*rows.values()]),
        }

    def merged(self, left: State, right: State) -> State:
        return merged_moments(left, right)

    def take(self, state: State, originals: Mapping[int, int]) -> float | None:
        seen = int(state["seen"]) if state else 0
        if seen < self.minimum_images:
            raise ConfigError(
                f"padim needs at least {self.minimum_images} training pictures, got {seen}"
            )
        device = self.backbone.device
        scatter = state["scatter"].to(device)
        self.whiteners = self._whitened(scatter / (seen - 1))
        self.means, self.subset = state["mean"].to(device), state["subset"].to(device)
        if self.leaves_one_out():
            rows: Counter[int] = Counter()
            for owner, count in zip(
                renamed(state["owners"], originals).tolist(), state["rows"].tolist(), strict=True
            ):
                rows[owner] += count
            self._learned = _Learned(scatter, rows)
        return None

    def learned_tensors(self) -> dict[str, Stored]:
        places, width = self._joined_shape()
        kept = min(self.config.channels, width)
        return {
            "means": Stored(shape=(places, kept)),
            "whiteners": Stored(shape=(places, kept, kept)),
            "subset": numbers(kept, high=width - 1),
        }

    def check_learned(self, tensors: Mapping[str, Tensor]) -> None:
        if not bool((tensors["subset"].diff() > 0).all()):
            raise ArtifactError("subset: does not ascend; each channel counts once")
        whiteners = tensors["whiteners"]
        if not bool((whiteners.diagonal(dim1=1, dim2=2) > 0).all()):
            raise ArtifactError(
                "whiteners: are no inverse Cholesky factors, which have a positive diagonal"
            )

    def _whitened(self, covariance: Tensor) -> Tensor:
        """Inverse Cholesky factors of N covariances d d with εI added, in place."""
        covariance.diagonal(dim1=1, dim2=2).add_(self.config.epsilon)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if bool(failed.any()):
            raise NonFiniteError(
                "padim: a covariance is not positive definite; raise epsilon (--set epsilon=0.1)"
            )
        identity = torch.eye(covariance.shape[-1], device=covariance.device).expand_as(covariance)
        inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
        return inverse.contiguous()

    def _joined(self, features: Features) -> tuple[Tensor, tuple[int, int]]:
        return join(features.layers(slice(len(self.layers))), self.backbone.spec.kind)

    def anomaly_map(self, features: Features) -> Tensor:
        """The Mahalanobis distance of each location: B h w."""
        self._require(self.means)
        centred, grid = self._centred(features)
        return _squares(centred, self.whiteners).sqrt().reshape(centred.shape[0], *grid)

    def judge(self, features: Features, images: Tensor) -> Scores:
        return self._finish(self.anomaly_map(features), images)

    def leaves_one_out(self) -> bool:
        """Not with turned and mirrored copies of a picture, each of which would have to be left out
        with it.
        """
        return self.config.rotations == 1 and not self.config.flips

    def judge_left_out(self, features: Features, batch: Batch) -> Scores:
        """Each training picture against the Gaussians of the others; until `end_leaving_out`.

        Raises: ConfigError unless it was fitted on three pictures at least, without rotations or
        flips.
        """
        learned = self._learned
        if learned is None or not self.knows_several():
            raise ConfigError(
                "padim: leave-one-out is for a detector just fitted, on at least 3 pictures "
                "without rotations or flips"
            )
        centred, grid = self._centred(features)
        seen = learned.rows.total()
        copies = [learned.rows[owner] for owner in batch.owners.tolist()]
        taken = torch.tensor(copies, device=centred.device)
        squares = centred.new_empty(centred.shape[:2])
        for rows in sorted(set(copies)):
            if learned.without[0] != rows:
                learned.without = rows, self._whitened(learned.scatter / (seen - rows - 1))
            own = taken == rows
            h = _squares(centred[own], learned.without[1])
            q = rows * seen / ((seen - rows) * (seen - rows - 1))
            squares[own] = (seen / (seen - rows)) ** 2 * h / (1 - q * h).clamp(min=1e-6)
        return self._finish(squares.sqrt().reshape(len(centred), *grid), batch.images)

    def knows_several(self) -> bool:
        return self._learned is not None and len(self._learned.rows) > self.minimum_images

    def end_leaving_out(self) -> None:
        self._learned = None

    def _centred(self, features: Features) -> tuple[Tensor, tuple[int, int]]:
        """Features about the means, B N d, and their grid."""
        joined, grid = self._joined(features)
        return joined[:, :, self.subset] - self.means, grid


@dataclass
class _Learned:
    """What leaving a picture out takes.

    Attributes:
        scatter: N d d, about the mean. rows: how many each picture has, by owner.
        without: for how many rows there are whiteners, and these, N d d: of the covariance C_k.
    """

    scatter: Tensor
    rows: Counter[int]
    without: tuple[int, Tensor] = (-1, torch.empty(0))


def _squares(centred: Tensor, whiteners: Tensor) -> Tensor:
    """Squared Mahalanobis distances B N of B N d."""
    return (centred.transpose(0, 1) @ whiteners.transpose(1, 2)).square().sum(2).T
