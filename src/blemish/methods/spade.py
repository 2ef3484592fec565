"""SPADE: compare each place with all places of the good pictures that look most alike.

Cohen & Hoshen 2020, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences". The K nearest
good pictures by globally averaged features are found; their mean squared distance is the score of
the picture (section 3.2). The features of all places in these K make a gallery, and the squared
distance of each place to its nearest one in it (κ = 1) is the anomaly map (section 3.3); the
features are those of a pyramid of layers, joined on the finest grid with equal weights (3.4).

Deviates: joined features are kept in half precision, of at most `gallery_size` pictures, a uniform
random sample; the layers of a ViT are normalised and averaged (`embedding.py`), and its picture is
the mean over the patches.

`best` scores by the map: as Roth et al. 2022 show for PatchCore, on features of these kinds the
largest distance of a place tells small defects, which hardly move the mean of a picture. As there,
features are locally averaged. K is 16: at 448² with patches of 14 pixels that is as many features
to compare with as in the memory bank of 16,000 of the other methods.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import torch
from torch import Tensor

from blemish.backbones import Backbone, Features
from blemish.config import Range
from blemish.errors import ConfigError
from blemish.methods.base import Method, MethodConfig, Pooling, reported
from blemish.methods.capabilities import Batches, LeavesOneOut, nothing_left
from blemish.methods.coreset import least_squares
from blemish.methods.embedding import join
from blemish.methods.frames import filled, mean_of
from blemish.methods.stored import Free, Stored, numbers
from blemish.types import Batch, Progress, Scores

_LARGEST = 65504.0  # that half precision can hold


@dataclass(frozen=True, kw_only=True)
class SpadeConfig(MethodConfig):
    """Settings of SPADE; the defaults are `best`.

    Attributes:
        neighbours: K, the good pictures that a picture is compared with; all where there are fewer.
        gallery_size: hard cap on the number of good pictures that are remembered. It bounds memory.
        global_layer: the backbone layer whose mean over the picture finds the nearest ones; 0 = the
            last of `layers`.
        pooling: side of the square of neighbouring places that are averaged into one feature; odd,
            1 = none.
        score: of the picture: "map", the mean of the `top_fraction` of the map; or "pictures", the
            mean squared distance to the K nearest pictures.
    """

    neighbours: Annotated[int, Range(1, 2**16)] = 16
    gallery_size: Annotated[int, Range(1, 2**16)] = 500
    global_layer: Annotated[int, Range(0, 1024)] = 0
    pooling: Pooling = 3
    score: Literal["map", "pictures"] = "map"

    @classmethod
    def paper(cls) -> Self:
        """The published setting: WideResNet-50-2, pyramid of layers 1 to 3, pictures by layer 4,
        K = 50, 224², map smoothed with σ = 4 pixels.
        """
        return cls(
            backbone="wide_resnet50_2",
            image_size=(224,),
            layers=(1, 2, 3),
            global_layer=4,
            smoothing=4 / 224,
            neighbours=50,
            gallery_size=2**16,
            pooling=1,
            score="pictures",
        )


class Spade(Method, LeavesOneOut):
    """Features of all places of the good pictures, each picture with its mean feature and owner.

    Attributes:
        gallery: float16 G N D. means: float32 G C. owners: int64 G.
        rounds: as of `coreset.distance`, for an exported graph.
    """

    name = "spade"
    summary = "distance to all places of the good pictures that look most alike"
    source = "Cohen & Hoshen 2020, SPADE"
    Config = SpadeConfig
    config: SpadeConfig
    rounds: bool = False
    gallery: Tensor
    means: Tensor
    owners: Tensor

    def __init__(self, config: SpadeConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self._pyramid = slice(len(self.layers))
        whole = config.global_layer or self.layers[-1]
        if whole not in self.layers:
            self.layers = (*self.layers, *backbone.check_layers((whole,)))
        self._whole = self.layers.index(whole)
        self.register_buffer("gallery", torch.empty(0, 0, 0, dtype=torch.float16))
        self.register_buffer("means", torch.empty(0, 0))
        self.register_buffer("owners", torch.empty(0, dtype=torch.int64))

    def embedded(self, features: Features) -> tuple[Tensor, tuple[int, int]]:
        """One feature per place: float32 B N D, and the grid (h, w)."""
        kind, pooling = self.backbone.spec.kind, self.config.pooling
        return join(features.layers(self._pyramid), kind, pooling=pooling)

    def mean_features(self, features: Features, images: Tensor) -> Tensor:
        """The mean of the global layer over the places looked at: float32 B C."""
        tokens, grid = features.tokens[self._whole].float(), features.grids[self._whole]
        if not (self.bounded or self.framed):
            return tokens.mean(1)
        return mean_of(tokens, self._framed(images, grid).flatten(1))

    def fit(self, batches: Batches, count: int, progress: Progress) -> None:
        kept: list[tuple[float, Tensor, Tensor, int]] = []  # with a random key each
        seeds = itertools.count()
        for batch in reported(batches(), "remembering", count, progress):
            seen = self.see(batch.images)
            embedded, grid = self.embedded(seen)
            # What is not looked at is no feature: one that is there already stands in its place.
            embedded = filled(embedded, self._framed(batch.images, grid).flatten(1))
            half = embedded.clamp(-_LARGEST, _LARGEST).half().cpu()
            means = self.mean_features(seen, batch.images).cpu()
            for places, mean, owner in zip(half, means, batch.owners.tolist(), strict=True):
                key = np.random.default_rng([self.config.seed, next(seeds)]).random()
                kept.append((key, places.clone(), mean, owner))
                if len(kept) > self.config.gallery_size:
                    kept.pop(min(range(len(kept)), key=lambda index: kept[index][0]))
        if not kept:
            raise ConfigError("there is no training picture")
        device = self.backbone.device
        self.gallery = torch.stack([places for _, places, _, _ in kept]).to(device)
        self.means = torch.stack([mean for _, _, mean, _ in kept]).to(device)
        self.owners = torch.tensor([owner for *_, owner in kept], device=device)

    def learned_tensors(self) -> dict[str, Stored]:
        places, width = self._joined_shape()
        whole = self.backbone.shapes(*self.scoring_size, (self.layers[self._whole],))
        kept = Free("G", 1, self.config.gallery_size)
        return {
            "gallery": Stored(shape=(kept, places, width), dtypes=(torch.float16,)),
            "means": Stored(shape=(kept, whole.tokens[0].shape[2])),
            "owners": numbers(kept),
        }

    @property
    def scores_by_map(self) -> bool:
        return self.config.score == "map"

    def judge(self, features: Features, images: Tensor) -> Scores:
        return self._judged(features, images, None)

    def _judged(self, features: Features, images: Tensor, others: Tensor | None) -> Scores:
        """`others`: bool B G, the good pictures that count, one of each row; None = all."""
        self._require(self.means)
        means, (embedded, grid) = self.mean_features(features, images), self.embedded(features)
        distances, pictures = self._nearest(means, others)
        best = embedded.new_full(embedded.shape[:2], torch.inf)
        for column in range(pictures.shape[1]):
            found = least_squares(embedded, self.gallery[pictures[:, column]], rounds=self.rounds)
            best = torch.minimum(best, found)
        scores = self._finish(best.reshape(-1, *grid), images)
        return scores if self.scores_by_map else Scores(distances, scores.maps)

    def _nearest(self, means: Tensor, others: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of means B C the mean squared distance to the K nearest pictures, B, and these, B K:
        where there are fewer `others`, some twice.
        """
        squares = (means[:, None] - self.means).square().sum(2)
        if others is not None:
            squares = squares.masked_fill(~others, torch.inf)
        count = min(self.config.neighbours, len(self.means))
        values, pictures = squares.topk(count, dim=1, largest=False)
        if others is None:
            return values.mean(1), pictures
        found = values.isfinite()
        distances = values.masked_fill(~found, 0).sum(1) / found.sum(1)
        return distances, torch.where(found, pictures, pictures[:, :1])

    def knows_several(self) -> bool:
        return bool((self.owners != self.owners[:1]).any())

    def judge_left_out(self, features: Features, batch: Batch) -> Scores:
        """Each picture against the others of the gallery.

        Raises: ConfigError where all of the gallery is of one picture.
        """
        others = batch.owners.to(self.owners.device)[:, None] != self.owners
        if not bool(others.any(1).all()):
            raise nothing_left("the gallery is", "gallery_size", self.config.gallery_size)
        return self._judged(features, batch.images, others)
