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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import Backbone, Features
from blemish.backbones.cells import resampled
from blemish.config import NEW, Fraction, Range
from blemish.errors import ArtifactError, ConfigError
from blemish.methods.base import LARGEST_BANK, Method, MethodConfig, Pooling, map_size, reported
from blemish.methods.capabilities import Batches, Extends, Fits, LeavesOneOut
from blemish.methods.closer import (
    FINE_BANK,
    PICTURES,
    RESERVE,
    WITHOUT_PART,
    CoarseLook,
    coarse_size,
    shrunk,
    weights,
)
from blemish.methods.coreset import StreamingCoreset, StreamingSample, distance, nearest
from blemish.methods.embedding import join, laid_out
from blemish.methods.stored import UNIT, Free, Stored, numbers
from blemish.methods.telling import foreground_of
from blemish.types import Batch, Progress, Scores


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(MethodConfig):
    """Settings of a memory bank.

    Attributes:
        bank_size: hard cap on the number of patch features remembered. It bounds memory at fit and
            time at prediction.
        pooling: side of the square of neighbouring patches that are averaged into one feature; odd,
            1 = none.
        coarse: longer side, in pixels, of the picture of a first, coarse look, which tells the
            patches of `image_size` that are worth a second one (`methods.closer`); ViTs only.
            0 = one look, everywhere.
        close_share: the share of the patches that gets the second look; 0 = as the good pictures
            tell, by how much of them is the part.
    """

    bank_size: Annotated[int, Range(1, LARGEST_BANK)] = 16_000
    pooling: Pooling = 3
    coarse: Annotated[int, Range(0, 8192)] = field(default=0, metadata={NEW: True})
    close_share: Fraction = field(default=0.0, metadata={NEW: True})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.close_share and not self.coarse:
            raise ConfigError("close_share: is that of a second look; name coarse, too")

    @property
    def no_student(self) -> str:
        return "its two looks (coarse) see pictures that a student has not" if self.coarse else ""


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


Bank = tuple[Tensor, Tensor]  # features K D, and the training picture that each came from, K
Look = Callable[[Batch], tuple[Tensor, Tensor]]  # features B n D of a batch; bool B n: which count


@dataclass(frozen=True)
class _Closer:
    """What two looks say of B pictures, on the fine grid h×w.

    Attributes:
        distances: of the first look, B h w.
        kept: int64 B K, the patches of the second. embedded: their features, B K D.
        known: bool B K: those of them that lie where pictures are looked at.
    """

    distances: Tensor
    kept: Tensor
    embedded: Tensor
    known: Tensor


class MemoryBank(Method, Fits, Extends, LeavesOneOut):
    """A bank of patch features (float32 K D), each with the training picture it came from.

    Attributes:
        rounds: as of `coreset.distance`, for an exported graph.
        coarse: what a first look needs where there are two: `bank` is then of the second.
    """

    config: MemoryConfig
    rounds: bool = False
    bank: Tensor
    owners: Tensor
    coarse: CoarseLook | None

    def __init__(self, config: MemoryConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("bank", torch.empty(0, 0))
        self.register_buffer("owners", torch.empty(0, dtype=torch.int64))
        self.coarse = None
        if config.coarse:
            self.coarse_size = coarse_size(config.coarse, config.height_width, backbone)
            self.coarse = CoarseLook()

    def _collector(self, size: int, dim: int) -> _Collector:
        raise NotImplementedError

    def learned_tensors(self) -> dict[str, Stored]:
        width, known = self._joined_shape()[1], {}
        if self.coarse is not None:
            known = {f"coarse.{name}": it for name, it in self.coarse.stored(width).items()}
            known |= _stored_bank("coarse.", "k", self.config.bank_size, width)
        return {**_stored_bank("", "K", self.config.bank_size, width), **known}

    def check_learned(self, tensors: Mapping[str, Tensor]) -> None:
        if self.coarse is not None and not self.config.close_share:
            raise ArtifactError("config.close_share: is 0, so nothing would be looked at closely")

    def see(self, images: Tensor, also: Sequence[int] = ()) -> Features:
        """As of `Method`; where there are two looks, what the first one sees."""
        small = images if self.coarse is None else shrunk(images, self.coarse_size)
        return super().see(small, also)

    def fit(self, batches: Batches, count: int, progress: Progress) -> None:
        if self.coarse is not None:
            self._fit_first(self.coarse, batches, count, progress)
        self._remember(batches, count, progress)
        if self.coarse is not None:
            self._match(self.coarse, batches, count, progress)

    @torch.no_grad()
    def extend(self, batches: Batches, count: int, progress: Progress, *, rows: int) -> None:
        """The bank does not grow beyond its size: it is selected anew from old and new patches.

        Of two looks both banks are; what is looked at closely is told as before.
        """
        self._require(self.bank)
        if self.coarse is not None:
            self._remember_first(self.coarse, batches, count, progress, rows)
        self._remember(batches, count, progress, rows)

    def _remember(self, batches: Batches, count: int, progress: Progress, rows: int = 0) -> None:
        look, size = self._seen, self.config.bank_size
        if self.coarse is not None:
            look, size = self._seen_closely, max(1, round(size * FINE_BANK))
        reading = reported(batches(), "remembering", count, progress)
        old = self.bank, self.owners
        self.bank, self.owners = self._collected(look, reading, size, old, rows, progress)

    def _seen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        embedded, grid = self.embedded(self.see(batch.images))
        return embedded, self._framed(batch.images, grid).flatten(1)  # padding is no feature

    def _seen_closely(self, batch: Batch) -> tuple[Tensor, Tensor]:
        found = self._look_twice(self.see(batch.images), batch.images, batch.owners)
        return found.embedded, found.known

    def _collected(
        self,
        look: Look,
        reading: Iterable[Batch],
        size: int,
        old: Bank,
        rows: int,
        progress: Progress,
    ) -> Bank:
        """A bank of `size` of what a look gives of pictures, and of an `old` one of `rows`."""
        collector: _Collector | None = None
        for batch in reading:
            embedded, known = look(batch)
            flat = embedded[known].cpu()
            if collector is None:
                collector = self._collector(size, flat.shape[1])
                if rows:
                    seen = round(rows * len(flat) / len(embedded))
                    collector.resume(old[0].float().cpu(), old[1].cpu(), seen=seen)
            collector.add(flat, batch.owners.repeat_interleave(known.sum(1).cpu()))
        if collector is None:
            raise ConfigError("there is no training picture")
        progress("selecting", 0, 0)
        bank, owners = collector.result()
        return bank.to(self.backbone.device), owners.to(self.backbone.device)

    def next_owner(self) -> int:
        return int(self.owners.max()) + 1

    def embedded(self, features: Features) -> tuple[Tensor, tuple[int, int]]:
        """One unit-length feature per location: float32 B N D, and the grid (h, w)."""
        own = features.layers(slice(len(self.layers)))
        joined, grid = join(own, self.backbone.spec.kind, pooling=self.config.pooling)
        return F.normalize(joined, dim=-1), grid

    def judge(self, features: Features, images: Tensor) -> Scores:
        return self._judged(features, images, None)

    def leaves_one_out(self) -> bool:
        return True

    def knows_several(self) -> bool:
        both = (self.owners,) if self.coarse is None else (self.owners, self.coarse.owners)
        return all(bool((owners != owners[:1]).any()) for owners in both)

    def judge_left_out(self, features: Features, batch: Batch) -> Scores:
        """Each picture against the bank without its own patches.

        Raises: ConfigError where all of the bank is of one picture, which leaves nothing to compare
        it with.
        """
        return self._judged(features, batch.images, batch.owners)

    def _judged(self, features: Features, images: Tensor, without: Tensor | None) -> Scores:
        """`without`: of each picture the owner whose patches do not count; None = all do."""
        self._require(self.bank)
        if self.coarse is not None:
            found = self._look_twice(features, images, without)
            fine = self._distances(found.embedded, (self.bank, self.owners), without)
            return self._joined(self.coarse, found, fine, images)
        if without is None:
            return self._finish(self.anomaly_map(features), images)
        embedded, grid = self.embedded(features)
        distances = self._distances(embedded, (self.bank, self.owners), without)
        return self._finish(distances.reshape(-1, *grid), images)

    def anomaly_map(self, features: Features) -> Tensor:
        """The distance of each location to the bank: B h w. Of two looks that of the first."""
        self._require(self.bank)
        first = self.coarse
        embedded, grid = self.embedded(features)
        bank = (self.bank, self.owners) if first is None else (first.bank, first.owners)
        return self._distances(embedded, bank, None).reshape(-1, *grid)

    def _distances(self, embedded: Tensor, of: Bank, without: Tensor | None) -> Tensor:
        """Of B n D the distances to a bank: B n."""
        bank, owners = of[0].to(self.backbone.dtype), of[1]  # searched in the backbone's precision
        if without is None:
            found = distance(embedded.flatten(0, 1), bank, rounds=self.rounds)
            return found.reshape(embedded.shape[:2])
        each = []
        for one, owner in zip(embedded, without.to(owners.device), strict=True):
            own = owners == owner
            if bool(own.all()):
                raise ConfigError(
                    "the bank holds patches of one training picture only, which leaves none to "
                    f"compare it with; raise bank_size ({self.config.bank_size})"
                )
            each.append(nearest(one, bank, excluded=own)[0])
        return torch.stack(each)

    # Two looks: see `methods.closer`

    def _fine_grid(self, images: Tensor) -> tuple[int, int]:
        step = self.backbone.stride
        return images.shape[-2] // step, images.shape[-1] // step

    def _look_twice(self, features: Features, images: Tensor, without: Tensor | None) -> _Closer:
        """Look again at B 3 H W, of which the first look gave `features`; `without` as of
        `_judged`, where there are others to compare with."""
        first, grid = self.coarse, self._fine_grid(images)
        assert first is not None
        if without is not None and not bool((first.owners != first.owners[:1]).any()):
            without = None
        embedded, small = self.embedded(features)
        distances = self._distances(embedded, (first.bank, first.owners), without)
        distances = resampled(distances.reshape(-1, 1, *small), grid)[:, 0]
        allowed = self._framed(images, grid).flatten(1)
        part = first.part(features, len(self.config.layers) - 1, grid)
        share, places = self.config.close_share, grid[0] * grid[1]
        count, reserve = (max(1, round(each * places)) for each in (share, min(RESERVE, share / 2)))
        kept = first.chosen(part, distances, allowed, count, reserve)
        embedded, _ = self.embedded(self.backbone(images, self.layers, keep=kept))
        return _Closer(distances, kept, embedded, allowed.gather(1, kept))

    def _joined(self, first: CoarseLook, found: _Closer, fine: Tensor, images: Tensor) -> Scores:
        """One map of both looks: the second where it looked, at the same scale."""
        grid = self._fine_grid(images)
        share = weights(found.kept, grid)
        closely = laid_out(fine[:, :, None], found.kept, grid[0] * grid[1]).reshape(share.shape)
        scores = self._finish(torch.lerp(first.scaled(found.distances), closely, share), images)
        looked = self._spread(share, images, map_size(images))[:, 0].clamp(0, 1)
        inside = self._inside(images, map_size(images))
        return replace(scores, saliency=looked if inside is None else looked * inside)

    def _fit_first(
        self, first: CoarseLook, batches: Batches, count: int, progress: Progress
    ) -> None:
        """Learn the first look, and how much of good pictures is worth a second one."""
        told = foreground_of(self, batches, count, progress)
        first.know_part(told, self._joined_shape()[1])
        self._remember_first(first, batches, count, progress)
        if self.config.close_share:
            return
        shares, most = [], 0.0
        for batch in _some(batches(), count):
            grid = self._fine_grid(batch.images)
            allowed = self._framed(batch.images, grid).flatten(1)
            part = first.part(self.see(batch.images), len(self.config.layers) - 1, grid) > 0
            shares += (part & allowed).float().mean(1).tolist()
            most = max(most, float(allowed.float().mean(1).max()))
        share = WITHOUT_PART if told.abstains else float(torch.tensor(shares).median()) / most
        share = most * min(share + RESERVE, 1.0)
        self.config = replace(self.config, close_share=round(max(share, 1e-4), 4))

    def _remember_first(
        self, first: CoarseLook, batches: Batches, count: int, progress: Progress, rows: int = 0
    ) -> None:
        reading = reported(batches(), "remembering a first look", count, progress)
        height, width = self.config.height_width
        share = self.coarse_size[0] * self.coarse_size[1] / (height * width)
        size = max(1, round(self.config.bank_size * share))
        old = first.bank, first.owners
        first.bank, first.owners = self._collected(self._seen, reading, size, old, rows, progress)

    def _match(self, first: CoarseLook, batches: Batches, count: int, progress: Progress) -> None:
        """Bring the distances of both looks to one scale, by those of the training pictures."""
        coarse, fine = [], []
        several = self.knows_several()
        progress("comparing both looks", 0, 0)
        for batch in _some(batches(), count):
            without = batch.owners if several else None
            found = self._look_twice(self.see(batch.images), batch.images, without)
            closely = self._distances(found.embedded, (self.bank, self.owners), without)
            at = found.distances.flatten(1).gather(1, found.kept)
            coarse.append(at[found.known].float().cpu())
            fine.append(closely[found.known].float().cpu())
        first.match(torch.cat(coarse), torch.cat(fine))


def _some(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """Of batches of `count` pictures about `PICTURES`, evenly from all; all of fewer."""
    every, seen = -(-count // PICTURES), 0
    for batch in batches:
        rows = slice(-seen % every, None, every)
        seen += len(batch.images)
        if len(batch.images[rows]):
            yield Batch(batch.images[rows], batch.owners[rows])


def _stored_bank(begins: str, free: str, size: int, width: int) -> dict[str, Stored]:
    kept = Free(free, 1, size)
    return {
        f"{begins}bank": Stored(shape=(kept, width), low=-UNIT, high=UNIT),
        f"{begins}owners": numbers(kept),
    }


class PatchCore(MemoryBank):
    """PatchCore with a streaming greedy coreset."""

    name = "patchcore"
    summary = "coreset memory bank of locally averaged mid-level features"
    source = "Roth et al. 2022, Towards Total Recall in Industrial Anomaly Detection"
    Config = PatchCoreConfig

    def _collector(self, size: int, dim: int) -> _Collector:
        return StreamingCoreset(size, dim, search_dtype=self.backbone.dtype)


class Knn(MemoryBank):
    """Nearest normal patch, with a uniform random sample of patches as bank."""

    name = "knn"
    summary = "cosine distance to the nearest normal patch"
    source = "Damm et al. 2025, AnomalyDINO"
    Config = KnnConfig

    def _collector(self, size: int, dim: int) -> _Collector:
        return StreamingSample(size, dim, seed=self.config.seed)
