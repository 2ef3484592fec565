"""Memory banks of normal patch features: PatchCore, and a plain nearest neighbour on ViT patches.

PatchCore: Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection". Locally
averaged mid-level features (eq. 1-2), a greedy coreset as memory bank (Algorithm 1), the distance
to the nearest bank entry as anomaly score (eq. 6). Deviates: the coreset is built from a stream
under a hard cap (`coreset.py`) instead of a fraction of all features held at once; the image score
is the mean of the top fraction of the smoothed map instead of one re-weighted maximum (eq. 7); the
layers of a ViT are normalised and averaged (`embedding.py`).

kNN: as AnomalyDINO (Damm et al. 2025): cosine distance of a patch to the nearest normal patch.
Deviates: the bank is a uniform random sample under a hard cap; several layers may be joined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import Backbone, Features
from blemish.config import Range
from blemish.errors import ConfigError
from blemish.methods.base import LARGEST_BANK, Method, MethodConfig, Pooling, reported
from blemish.methods.capabilities import Batches, Extends, Fits, LeavesOneOut
from blemish.methods.coreset import StreamingCoreset, StreamingSample, distance, nearest
from blemish.methods.embedding import join
from blemish.methods.stored import UNIT, Free, Stored, numbers
from blemish.types import Batch, Progress, Scores


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(MethodConfig):
    """Settings of a memory bank.

    Attributes:
        bank_size: hard cap on the number of patch features remembered. It bounds memory at fit and
            time at prediction.
        pooling: side of the square of neighbouring patches that are averaged into one feature; odd,
            1 = none.
    """

    bank_size: Annotated[int, Range(1, LARGEST_BANK)] = 16_000
    pooling: Pooling = 3


@dataclass(frozen=True, kw_only=True)
class PatchCoreConfig(MemoryConfig):
    """PatchCore's settings; `paper` is the published one (WideResNet-50-2, layer2 and layer3,
    224²).
    """

    @classmethod
    def paper(cls) -> Self:
        """WideResNet-50-2, layers 2 and 3, 224², maximum of the map smoothed with σ = 4 pixels.

        The paper keeps 1 %, 10 % or 25 % of all features; the cap of 16,000 is 10 % of those of 209
        pictures at 28×28.
        """
        return cls(
            backbone="wide_resnet50_2",
            image_size=(224,),
            layers=(2, 3),
            smoothing=4 / 224,
            top_fraction=0.0,
        )


@dataclass(frozen=True, kw_only=True)
class KnnConfig(MemoryConfig):
    """Settings of the plain nearest neighbour on patches."""

    pooling: Pooling = 1


class _Collector(Protocol):
    def add(self, features: Tensor, owners: Tensor) -> None: ...
    def resume(self, features: Tensor, owners: Tensor, *, seen: int) -> None: ...
    def result(self) -> tuple[Tensor, Tensor]: ...


class MemoryBank(Method, Fits, Extends, LeavesOneOut):
    """A bank of patch features (float32 K D), each with the training picture it came from.

    Attributes: rounds: as of `coreset.distance`, for an exported graph.
    """

    config: MemoryConfig
    rounds: bool = False
    bank: Tensor
    owners: Tensor

    def __init__(self, config: MemoryConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("bank", torch.empty(0, 0))
        self.register_buffer("owners", torch.empty(0, dtype=torch.int64))

    def _collector(self, dim: int) -> _Collector:
        raise NotImplementedError

    def learned_tensors(self) -> dict[str, Stored]:
        kept = Free("K", 1, self.config.bank_size)
        return {
            "bank": Stored(shape=(kept, self._joined_shape()[1]), low=-UNIT, high=UNIT),
            "owners": numbers(kept),
        }

    def fit(self, batches: Batches, count: int, progress: Progress) -> None:
        self._remember(batches, count, progress)

    @torch.no_grad()
    def extend(self, batches: Batches, count: int, progress: Progress, *, rows: int) -> None:
        """The bank does not grow beyond its size: it is selected anew from old and new patches."""
        self._require(self.bank)
        self._remember(batches, count, progress, rows)

    def _remember(self, batches: Batches, count: int, progress: Progress, rows: int = 0) -> None:
        collector: _Collector | None = None
        for batch in reported(batches(), "remembering", count, progress):
            embedded, grid = self.embedded(self.see(batch.images))
            known = self._framed(batch.images, grid).flatten(1)  # padding is no feature
            flat = embedded[known].cpu()
            if collector is None:
                collector = self._collector(flat.shape[1])
                if rows:
                    seen = round(rows * len(flat) / len(embedded))
                    collector.resume(self.bank.float().cpu(), self.owners.cpu(), seen=seen)
            collector.add(flat, batch.owners.repeat_interleave(known.sum(1).cpu()))
        if collector is None:
            raise ConfigError("there is no training picture")
        progress("selecting", 0, 0)
        bank, owners = collector.result()
        device = self.backbone.device
        self.bank, self.owners = bank.to(device), owners.to(device)

    def next_owner(self) -> int:
        return int(self.owners.max()) + 1

    def embedded(self, features: Features) -> tuple[Tensor, tuple[int, int]]:
        """One unit-length feature per location: float32 B N D, and the grid (h, w)."""
        own = features.layers(slice(len(self.layers)))
        joined, grid = join(own, self.backbone.spec.kind, pooling=self.config.pooling)
        return F.normalize(joined, dim=-1), grid

    def anomaly_map(self, features: Features) -> Tensor:
        """The distance of each location to the bank: B h w."""
        self._require(self.bank)
        embedded, grid = self.embedded(features)
        found = distance(embedded.flatten(0, 1), self._searched(), rounds=self.rounds)
        return found.reshape(embedded.shape[0], *grid)

    def judge(self, features: Features, images: Tensor) -> Scores:
        return self._finish(self.anomaly_map(features), images)

    def leaves_one_out(self) -> bool:
        return True

    def knows_several(self) -> bool:
        return bool((self.owners != self.owners[:1]).any())

    def judge_left_out(self, features: Features, batch: Batch) -> Scores:
        """Each picture against the bank without its own patches.

        Raises: ConfigError where all of the bank is of one picture, which leaves nothing to compare
        it with.
        """
        self._require(self.bank)
        embedded, grid = self.embedded(features)
        bank = self._searched()
        maps = []
        for one, owner in zip(embedded, batch.owners.to(self.owners.device), strict=True):
            own = self.owners == owner
            if bool(own.all()):
                raise ConfigError(
                    "the bank holds patches of one training picture only, which leaves none to "
                    f"compare it with; raise bank_size ({self.config.bank_size})"
                )
            maps.append(nearest(one, bank, excluded=own)[0].reshape(grid))
        return self._finish(torch.stack(maps), batch.images)

    def _searched(self) -> Tensor:
        """The bank in the precision that the search runs in: that of the backbone."""
        return self.bank.to(self.backbone.dtype)


class PatchCore(MemoryBank):
    """PatchCore with a streaming greedy coreset."""

    name = "patchcore"
    summary = "coreset memory bank of locally averaged mid-level features"
    source = "Roth et al. 2022, Towards Total Recall in Industrial Anomaly Detection"
    Config = PatchCoreConfig

    def _collector(self, dim: int) -> _Collector:
        return StreamingCoreset(self.config.bank_size, dim, search_dtype=self.backbone.dtype)


class Knn(MemoryBank):
    """Nearest normal patch, with a uniform random sample of patches as bank."""

    name = "knn"
    summary = "cosine distance to the nearest normal patch"
    source = "Damm et al. 2025, AnomalyDINO"
    Config = KnnConfig

    def _collector(self, dim: int) -> _Collector:
        return StreamingSample(self.config.bank_size, dim, seed=self.config.seed)
