"""Memory banks of normal patch features: PatchCore, and a plain nearest neighbour on ViT patches.

PatchCore: Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection". Locally
averaged mid-level features (eq. 1-2), a greedy coreset as memory bank (Algorithm 1), the distance
to the nearest bank entry as anomaly score (eq. 6). Deviates: the coreset is selected part by part
under a hard cap (`merging.py`) instead of a fraction of all features held at once; the image score
is the mean of the top fraction of the smoothed map instead of one re-weighted maximum (eq. 7); the
layers of a ViT are normalised and averaged (`embedding.py`). Of `best`, the distance is that to the
mean of the nearest entries (`neighbours.py`). With `second`, features are those of two encoders
(`joint.py`).

kNN: as AnomalyDINO (Damm et al. 2025): cosine distance of a patch to the nearest normal patch.
Deviates: the bank is a uniform random sample under a hard cap; several layers may be joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from blemish.backbones import Backbone, Features
from blemish.backbones.cells import resampled
from blemish.errors import ArtifactError, ConfigError
from blemish.methods import compressing, merging
from blemish.methods.base import map_size, reported, some_of
from blemish.methods.capabilities import (
    Batches,
    Extends,
    LearnsInParts,
    LeavesOneOut,
    nothing_left,
)
from blemish.methods.closer import (
    FINE_BANK,
    PICTURES,
    RESERVE,
    WITHOUT_PART,
    CoarseLook,
    TwoLooks,
    coarse_size,
    shrunk,
    weights,
)
from blemish.methods.coreset import distance, farthest_points
from blemish.methods.embedding import laid_out
from blemish.methods.joint import Joint
from blemish.methods.memory_config import KnnConfig as KnnConfig
from blemish.methods.memory_config import MemoryConfig as MemoryConfig
from blemish.methods.memory_config import PatchCoreConfig as PatchCoreConfig
from blemish.methods.merging import CoresetPart, Part, PartByPart, SamplePart, State, divided
from blemish.methods.neighbours import distance_to_mean
from blemish.methods.stored import UNIT, Free, Stored, numbers
from blemish.methods.telling import foreground_of
from blemish.types import Batch, Progress, Scores

Bank = tuple[Tensor, Tensor]  # features K D, and the training picture that each came from, K
# Features B n D of a batch; bool B n: which of them count.
Seeing = Callable[[Batch], tuple[Tensor, Tensor]]
# What is looked up in the bank, B n D, and what makes scores of its distances, B n.
Looked = tuple[Tensor, Callable[[Tensor], Scores]]


class _Start(NamedTuple):
    """What a bank begins with: an old one, of `rows`; or nothing.

    Attributes: pictures: how many there are in all; 0 = those of a part, or that come to the old.
    """

    pictures: int = 0
    old: Bank | None = None
    rows: int = 0


class MemoryBank(Joint, LearnsInParts, Extends, LeavesOneOut):
    """A bank of patch features (float32 K D), each with the training picture it came from.

    Attributes:
        rounds: as of `coreset.distance`, for an exported graph.
        coarse: what a first look needs where there are two: `bank` is then of the second.
        axes, short: as of `shortlist`, with `bank_loss` alone; empty where all of D is searched.
        most: how many features `bank` may have, with `bank_loss` alone.
    """

    config: MemoryConfig
    rounds: bool = False
    bank: Tensor
    owners: Tensor
    axes: Tensor
    short: Tensor
    most: Tensor
    coarse: CoarseLook | None

    def __init__(self, config: MemoryConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("bank", torch.empty(0, 0))
        self.register_buffer("owners", torch.empty(0, dtype=torch.int64))
        if config.bank_loss:
            self.register_buffer("axes", torch.empty(0, 0))
            self.register_buffer("short", torch.empty(0, 0, dtype=torch.float16))
            self.register_buffer("most", torch.tensor(config.bank_size))
        self.coarse = None
        if config.coarse:
            self.coarse_size = coarse_size(config.coarse, config.height_width, backbone)
            self.coarse = CoarseLook()

    def _collector(self, size: int, dim: int, pictures: int = 0) -> Part:
        """What takes in features of this width for a bank of `size`; `pictures`: of how many, where
        these are all that is learned from; 0 = of a part, or of what comes to an old bank."""
        raise NotImplementedError

    def _selected(self, state: State, size: int) -> State:
        """The bank of `size`, of what was taken in."""
        return state

    def learned_tensors(self) -> dict[str, Stored]:
        width, known = self._joined_shape()[1], super().learned_tensors()
        if self.coarse is not None:
            known |= {f"coarse.{name}": it for name, it in self.coarse.stored(width).items()}
            known |= _stored_bank("coarse.", "k", self.config.bank_size, width)
        own = _stored_bank("", "K", self.config.bank_size, width)
        if self.config.bank_loss:
            own["bank"] = replace(own["bank"], dtypes=(torch.float32, torch.float16))
            known |= compressing.stored_short("K", self.config.bank_size, width)
        return {**own, **known}

    def check_learned(self, tensors: Mapping[str, Tensor]) -> None:
        if self.config.bank_loss:
            compressing.check_short(tensors)
        if self.coarse is not None and not self.config.close_share:
            raise ArtifactError("config.close_share: is 0, so nothing would be looked at closely")

    def see(self, images: Tensor, also: Sequence[int] = ()) -> Features:
        """As of `Method`; where there are two looks, what the first one sees."""
        small = images if self.coarse is None else shrunk(images, self.coarse_size)
        return super().see(small, also)

    def fit(self, batches: Batches, count: int, progress: Progress) -> None:
        if self.coarse is not None:
            self._fit_first(self.coarse, batches, count, progress)
        self.measure_second(batches, count, progress)
        self._remember(batches, count, progress)
        if self.coarse is not None:
            self._match(self.coarse, batches, count, progress)
        if self.config.bank_loss:
            self._compress(batches, count, progress)

    def learn_part(self, batches: Batches, count: int, progress: Progress) -> State:
        reading = reported(batches(), "remembering", count, progress)
        part = self._gathered(self._seen, reading, self.config.bank_size, _Start())
        return {} if part is None else part.state()

    def take(self, state: State, originals: Mapping[int, int]) -> float | None:
        if not state:
            raise ConfigError("there is no training picture")
        state = self._selected(state, self.config.bank_size)
        self.bank = state["features"].to(self.backbone.device)
        self.owners = merging.renamed(state["owners"], originals).to(self.backbone.device)
        return float(state["radius"]) if "radius" in state else None

    def farthest(self, batch: Batch) -> float:
        embedded, known = self._seen(batch)
        found = self._distances(embedded, (self.bank, self.owners), None)
        return float(found[known].max()) if known.any() else 0.0

    @torch.no_grad()
    def extend(self, batches: Batches, count: int, progress: Progress, *, rows: int) -> None:
        """The bank does not grow beyond its size: it is selected anew from old and new patches.

        Of two looks both banks are; what is looked at closely is told as before. A compressed bank
        keeps its number of features and the dimensions in which it is searched, a second encoder
        the means and deviations of its channels.
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
        start = self._start(old, count, rows)
        if self.config.bank_loss:
            size = min(size, int(self.most))
        self.bank, self.owners = self._collected(look, reading, size, start, progress)
        if rows and old[0].dtype == torch.float16:
            self._take(compressing.shrunk_along(self.bank, self.owners, self.axes))

    def _seen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        embedded, grid = self.embedded(self.see(batch.images))
        return embedded, self._framed(batch.images, grid).flatten(1)  # padding is no feature

    def _seen_closely(self, batch: Batch) -> tuple[Tensor, Tensor]:
        found = self._look_twice(self.see(batch.images), batch.images, batch.owners)
        return found.embedded, found.known

    def _start(self, old: Bank, count: int, rows: int) -> _Start:
        """Of an `old` bank of `rows`, or where there are none of `count` rows anew."""
        if rows:
            return _Start(old=old, rows=rows)
        return _Start(pictures=count // (self.config.rotations * (1 + self.config.flips)))

    def _collected(
        self, look: Seeing, reading: Iterable[Batch], size: int, start: _Start, progress: Progress
    ) -> Bank:
        """A bank of `size` of what a look gives of pictures."""
        collector = self._gathered(look, reading, size, start)
        if collector is None:
            raise ConfigError("there is no training picture")
        progress("selecting", 0, 0)
        state, device = self._selected(collector.state(), size), self.backbone.device
        return state["features"].to(device), state["owners"].to(device)

    def _gathered(
        self, look: Seeing, reading: Iterable[Batch], size: int, start: _Start
    ) -> Part | None:
        """What has taken in all that a look gives of pictures; None where there is none."""
        collector: Part | None = None
        for batch in reading:
            embedded, known = look(batch)
            counts, flat = known.sum(1).cpu(), embedded[known].cpu()
            if collector is None:
                collector = self._collector(size, flat.shape[1], start.pictures)
                if start.old is not None:
                    seen = round(start.rows * len(flat) / len(embedded))
                    collector.resume(start.old[0].float().cpu(), start.old[1].cpu(), seen=seen)
            numbers = batch.positions or batch.owners.tolist()
            owners = batch.owners.cpu().repeat_interleave(counts)
            collector.add(flat, owners, [*zip(numbers, counts.tolist(), strict=True)])
        return collector

    def next_owner(self) -> int:
        return int(self.owners.max()) + 1

    def judge(self, features: Features, images: Tensor) -> Scores:
        return self._judged(features, images, None)

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
        if self.coarse is None and without is None:
            return self._finish(self.anomaly_map(features), images)
        embedded, finish = self.looked(features, images, without)
        return finish(self._own_distances(embedded, without))

    def looked(self, features: Features, images: Tensor, without: Tensor | None) -> Looked:
        """What is looked up in the bank, B n D, and what makes scores of its distances, B n."""
        first = self.coarse
        if first is not None:
            found = self._look_twice(features, images, without)
            return found.embedded, lambda fine: self._joined(first, found, fine, images)
        embedded, grid = self.embedded(features)
        return embedded, lambda each: self._finish(each.reshape(-1, *grid), images)

    def anomaly_map(self, features: Features) -> Tensor:
        """The distance of each location to the bank: B h w. Of two looks that of the first."""
        self._require(self.bank)
        first = self.coarse
        embedded, grid = self.embedded(features)
        if first is not None:
            found = self._distances(embedded, (first.bank, first.owners), None)
        else:
            found = self._own_distances(embedded, None)
        return found.reshape(-1, *grid)

    def _own_distances(self, embedded: Tensor, without: Tensor | None) -> Tensor:
        """Of B n D the distances to `bank`, searched as it was compressed, or to the mean of some
        of its features: B n."""
        own, count = (self.bank, self.owners), self.config.neighbours
        if count > 1:
            dtype = self.backbone.dtype
            mean = partial(distance_to_mean, bank=self.bank, count=count, dtype=dtype)
            return self._each(embedded, own, without, mean, mean)
        if not self.config.bank_loss or not self.axes.numel():
            return self._distances(embedded, own, without)
        search = compressing.Short(*own, self.axes, self.short).search(self.backbone.dtype)
        return self._each(embedded, own, without, search, search)

    def _distances(self, embedded: Tensor, of: Bank, without: Tensor | None) -> Tensor:
        """Of B n D the distances to a bank: B n."""
        bank = of[0].to(self.backbone.dtype)  # searched in the backbone's precision
        plain = partial(distance, bank=bank, rounds=self.rounds)
        return self._each(embedded, of, without, plain, compressing.searched_whole(bank))

    def _each(
        self,
        embedded: Tensor,
        of: Bank,
        without: Tensor | None,
        plain: compressing.Search,
        leaving: compressing.Search,
    ) -> Tensor:
        """Of B n D the distances that `plain` gives, or `leaving` out the owners `without`: B n."""
        if without is None:
            return plain(embedded.flatten(0, 1)).reshape(embedded.shape[:2])
        each, owners = [], of[1]
        for one, owner in zip(embedded, without.to(owners.device), strict=True):
            own = owners == owner
            if bool(own.all()):
                raise nothing_left("the bank is", "bank_size", self.config.bank_size)
            each.append(leaving(one, excluded=own))
        return torch.stack(each)

    # A smaller bank: see `methods.compressing`

    def _order(self) -> Tensor:
        """The features of the bank, those first that tell most: int64 K."""
        raise NotImplementedError

    def _compress(self, batches: Batches, count: int, progress: Progress) -> None:
        """Make the bank as small as its loss allows, and bring two looks to one scale again."""
        looks, places = [], self._joined_shape()[0]
        if self.knows_several():
            looks = compressing.looks_of(
                self, batches, count, progress, places=places, inside=self._looked_at
            )
        short, self.compression = compressing.compressed(
            *(self.bank, self.owners, self._order),
            looks,
            allowed=self.config.bank_loss,
            dtype=self.backbone.dtype,
            progress=progress,
        )
        if short is None:
            return
        self._take(short)
        if len(short.bank) < self.compression.whole:
            self.most = torch.full_like(self.most, len(short.bank))
        if self.coarse is not None:
            self._match(self.coarse, batches, count, progress)

    def _take(self, short: compressing.Short) -> None:
        self.bank, self.owners = short.bank, short.owners
        self.axes, self.short = short.axes, short.short

    # Two looks: see `methods.closer`

    def _fine_grid(self, images: Tensor) -> tuple[int, int]:
        step = self.backbone.stride
        return images.shape[-2] // step, images.shape[-1] // step

    def _look_twice(self, features: Features, images: Tensor, without: Tensor | None) -> TwoLooks:
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
        return TwoLooks(distances, kept, embedded, allowed.gather(1, kept))

    def _joined(self, first: CoarseLook, found: TwoLooks, fine: Tensor, images: Tensor) -> Scores:
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
        for batch in some_of(batches(), count, PICTURES):
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
        start = self._start(old, count, rows)
        first.bank, first.owners = self._collected(self._seen, reading, size, start, progress)

    def _match(self, first: CoarseLook, batches: Batches, count: int, progress: Progress) -> None:
        """Bring the distances of both looks to one scale, by those of the training pictures."""
        coarse, fine = [], []
        several = self.knows_several()
        progress("comparing both looks", 0, 0)
        for batch in some_of(batches(), count, PICTURES):
            without = batch.owners if several else None
            found = self._look_twice(self.see(batch.images), batch.images, without)
            closely = self._own_distances(found.embedded, without)
            at = found.distances.flatten(1).gather(1, found.kept)
            coarse.append(at[found.known].float().cpu())
            fine.append(closely[found.known].float().cpu())
        first.match(torch.cat(coarse), torch.cat(fine))


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

    def _collector(self, size: int, dim: int, pictures: int = 0) -> Part:
        new = partial(CoresetPart, size, dim, search_dtype=self.backbone.dtype)
        parts = divided(pictures)
        merge = partial(merging.merged_coresets, size=size)
        return PartByPart(parts, new, merge) if len(parts) > 1 else new()

    def _selected(self, state: State, size: int) -> State:
        return merging.selected_coreset(state, size)

    def merged(self, left: State, right: State) -> State:
        return merging.merged_coresets(left, right, self.config.bank_size)

    def _order(self) -> Tensor:
        """That of a greedy selection, in which a full bank was made."""
        size = len(self.bank)
        if size >= self.config.bank_size:
            return torch.arange(size)
        first, _ = farthest_points(self.bank.float().cpu(), max(1, size // 2))
        others = torch.ones(size, dtype=torch.bool)
        others[first] = False
        return torch.cat([first, others.nonzero()[:, 0]])


class Knn(MemoryBank):
    """Nearest normal patch, with a uniform random sample of patches as bank."""

    name = "knn"
    summary = "cosine distance to the nearest normal patch"
    source = "Damm et al. 2025, AnomalyDINO"
    Config = KnnConfig

    def _collector(self, size: int, dim: int, pictures: int = 0) -> Part:
        return SamplePart(size, self.config.seed)  # in parts or not, it is the same

    def merged(self, left: State, right: State) -> State:
        return merging.merged_samples(left, right, self.config.bank_size)

    def _order(self) -> Tensor:
        """A random one: each of them tells the same."""
        generator = torch.Generator().manual_seed(self.config.seed)
        return torch.randperm(len(self.bank), generator=generator)
