"""Guided synthetic anomalies: learn to find pieces that were cut out and pasted where attention looks.

"Anomaly Detection and Localization Using Attention-Guided Synthetic Anomaly and Test-Time Adaptation" (the poster), and
the fine-tuning part of the APMask paper, which repeats it with more detail. From every normal picture a twin is made
with a synthetic anomaly, placed where the [CLS] attention of the pre-trained encoder looks (`blemish.anomalies`). The
encoder, trained end to end, a head on its final [CLS] token and a mix of the last block's attention heads learn to tell
the twins apart and to mark the pasted pixels: L = 0.95 · cross-entropy + 0.05 · Dice. At prediction several sizes of a
picture are looked at and their maps averaged. `adaptation.py` is the other half of the poster.

The papers do not say, and here: the map's logit is Σ_l w_l · N · a_l + b for the last block's attention a_l (sum 1) of
head l; every batch holds normal pictures and their twins, as many of each; the Dice loss is taken of the twins only;
augmentation is a crop of at least four fifths of the picture and some brightness and contrast, and the guidance is
computed once, of the picture before it, and cropped along; the image score is the mean of the log-odds over the sizes.

The paper's map cannot be finer than the grid of patches and comes from one weight a head. `best` adds a head that reads
every patch's features in the middle of the depth, where defects are still local, and trains it on every patch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.anomalies import simulate_batch, simulator
from blemish.backbones import Backbone, Features
from blemish.backbones.vit import VitBackbone
from blemish.errors import ConfigError
from blemish.methods import alignment
from blemish.methods.adaptation import Adapter, EntropyAdapter, Look, Mode, attention_entropy, summary
from blemish.methods.apmask import APMaskConfig, Masking
from blemish.methods.base import Batches, reported, smooth, top_mean
from blemish.methods.coreset import StreamingCoreset, nearest
from blemish.methods.embedding import join
from blemish.methods.guidance import sharpness, shuffled
from blemish.methods.heads import initialise, projection
from blemish.methods.trained import FineTuned, FineTuning, TrainedConfig, TrainedMethod, TrainingBatch
from blemish.types import Progress, Scores

SIX_SCALES = (224, 320, 384, 416, 448, 512)
SUMMARISED = 256  # training pictures, about, whose attention entropies and maps are summarised
LEFT_OUT = 32  # training pictures, about, by which the bank is judged, each without its own features


@dataclass(frozen=True, kw_only=True)
class GuidedConfig(TrainedConfig, FineTuning):
    """Settings of `guided`; the defaults are `best`.

    Attributes:
        simulators: names of `blemish.anomalies`; one of them, drawn evenly, makes each twin. Empty = guided
            cut-and-paste: hard, but blended on chest X-rays.
        small_pieces: where `simulators` is empty, whether half of the twins get small pieces in place of large ones.
        guidance: where guided simulators cut and paste: "attention", or as controls "uniform" and "shuffled" (attention
            at the wrong places).
        guide_layers: the layers whose [CLS] attention guides, averaged; -1 = the last one, empty = `layers`.
        augment: whether normal pictures are cropped and their brightness and contrast changed first.
        map_head: what the map is made of: "attention" (a mix of the last block's heads) or "features" (also the
            features of every patch in `layers`).
        tuned: how many of the encoder's last blocks learn; 0 = none, None = all and the patch embedding.
        detection, segmentation, marking: weights of the losses: cross-entropy of the picture's class, Dice of the map,
            and binary cross-entropy of every location of the map (the paper has none).
        score: the image score: "class" (log-odds of the picture's class), "map" (mean of the map's `top_fraction`)
            or "both" (their sum).
        bank_size: how many features of normal patches are kept once the encoder has learned. The distance to the
            nearest is then part of the map. 0 = none, the map is the learned one.
        learned: weight of the learned map beside that distance, both in units of their spread over normal pictures.
        pooling: side of the square of neighbouring patches that are averaged to a feature of the bank; odd.
        ema: whether the average of the weights over the last tenth of the run is kept, in place of the last ones.
        adaptation: what is brought back to the training pictures' at test time: "features" (their moments, in closed
            form) or "entropies" (of the last block's attention, as published).
        adaptation_rate, adaptation_steps: of SGD, and its steps a batch, for "entropies".
        scales: sides of the squares that a picture is looked at in when it is scored. The time grows with the sum of
            their areas: the six of the paper cost 19 times 224² alone.
        zoom: where there are no `scales`, a picture is scored in this multiple of `image_size`, in which it is trained.
        pretraining: how the encoder is trained further on the same pictures before all this: "none"; "apmask"; "dino"
            (APMask's views with DINO's own objective); or "published": "apmask", but "none" on chest X-rays, as in the
            second paper.
        pretraining_recipe, pretraining_epochs: the recipe of `APMaskConfig` that it follows, and its length, though not
            below the recipe's `min_steps`; a time budget decides instead of both.
        masking, mask_ratio: which patches its student does not see, and what share of them; see `APMaskConfig`.
    """

    image_size: tuple[int, ...] = (224,)
    epochs: int = 20
    min_steps: int = 400
    pictures_per_step: int = 8
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    smoothing: float = 0.015
    simulators: tuple[str, ...] = ()
    small_pieces: bool = True
    guidance: Literal["attention", "uniform", "shuffled"] = "attention"
    guide_layers: tuple[int, ...] = ()
    augment: bool = True
    map_head: Literal["attention", "features"] = "features"
    tuned: int | None = 4
    detection: float = 0.95
    segmentation: float = 0.05
    marking: float = 1.0
    score: Literal["class", "map", "both"] = "map"
    bank_size: int = 16_000
    learned: float = 0.25
    pooling: int = 3
    ema: bool = True
    adaptation: Literal["features", "entropies"] = "features"
    adaptation_rate: float = 0.1
    adaptation_steps: int = 1
    scales: tuple[int, ...] = ()
    zoom: float = 2.0
    pretraining: Literal["none", "apmask", "dino", "published"] = "none"
    pretraining_recipe: Literal["best", "paper"] = "best"
    pretraining_epochs: int = 300
    masking: Masking = "attention"
    mask_ratio: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        FineTuning.__post_init__(self)
        for name in self.simulators:
            simulator(name)  # refuses an unknown one
        for name in ("detection", "segmentation", "marking", "learned"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: a finite number from 0 is needed, got {getattr(self, name)}")
        if not self.detection + self.segmentation + self.marking:
            raise ConfigError("detection, segmentation, marking: one of them must be above 0")
        if self.tuned is not None and self.tuned < 0:
            raise ConfigError(f"tuned: null or a number of blocks from 0 is needed, got {self.tuned}")
        if self.bank_size < 0:
            raise ConfigError(f"bank_size: a number from 0 is needed, got {self.bank_size}")
        if self.pooling < 1 or self.pooling % 2 == 0:
            raise ConfigError(f"pooling: an odd number from 1 is needed, got {self.pooling}")
        if not 0 < self.adaptation_rate < math.inf or self.adaptation_steps < 1:
            raise ConfigError(
                "adaptation_rate: a positive finite number is needed, and adaptation_steps: at least 1, got "
                f"{self.adaptation_rate} and {self.adaptation_steps}"
            )
        if any(side < 1 for side in self.scales):
            raise ConfigError(f"scales: positive numbers are needed, got {self.scales}")
        if not 0.25 <= self.zoom <= 8:
            raise ConfigError(f"zoom: a factor from 0.25 to 8 is needed, got {self.zoom}")
        if self.scales and self.height_width[0] != self.height_width[1]:
            raise ConfigError("scales: are sides of squares; choose a square image_size, or no scales")
        if self.pretraining_epochs < 1:
            raise ConfigError(f"pretraining_epochs: at least 1 is needed, got {self.pretraining_epochs}")
        if not 0 <= self.mask_ratio < 1:
            raise ConfigError(f"mask_ratio: a fraction in [0, 1) is needed, got {self.mask_ratio}")

    @classmethod
    def paper_bmvc(cls) -> Self:
        """The poster's setting: hard pasting, one size; adaptation is chosen at prediction."""
        return cls(
            backbone="dino_vits16",
            epochs=100,
            min_steps=0,
            pictures_per_step=16,
            smoothing=0.0,
            small_pieces=False,
            guide_layers=(-1,),
            map_head="attention",
            tuned=None,
            layer_decay=1.0,
            marking=0.0,
            score="class",
            bank_size=0,
            ema=False,
            adaptation="entropies",
            zoom=1.0,
        )

    @classmethod
    def paper_aaai(cls) -> Self:
        """The second paper's setting: 300 epochs of APMask, then as the first, with six sizes."""
        return replace(cls.paper_bmvc(), scales=SIX_SCALES, pretraining="published", pretraining_recipe="paper")

    def for_layout(self, layout: str) -> Self:
        """Chest X-rays are blended, as in the second paper, and "published" is no pre-training on them: its row for NIH
        is without."""
        x_rays = layout == "nih"
        simulators, pretraining = self.simulators, self.pretraining
        if not simulators and x_rays:
            simulators = ("guided-poisson",)
        elif not simulators:
            simulators = ("guided", "guided-fine") if self.small_pieces else ("guided",)
        if pretraining == "published":
            pretraining = "none" if x_rays else "apmask"
        return replace(self, simulators=simulators, pretraining=pretraining)

    @property
    def pretraining_config(self) -> APMaskConfig | None:
        """The recipe's views are for pictures of 224²; these are in proportion to `image_size`."""
        if self.pretraining == "none":
            return None
        recipe = APMaskConfig.recipes()[self.pretraining_recipe]()
        height, width = self.height_width
        enlarged = math.sqrt(height * width) / recipe.image_size
        return replace(
            recipe,
            backbone=self.backbone,
            seed=self.seed,
            epochs=self.pretraining_epochs,
            cache_gib=self.cache_gib,
            image_size=round(enlarged * recipe.image_size),
            local_size=round(enlarged * recipe.local_size),
            picture_size=round(enlarged * recipe.picture_size),
            masking=self.masking,
            mask_ratio=self.mask_ratio,
            objective="dino" if self.pretraining == "dino" else "clusters",
        )


class Guided(FineTuned, TrainedMethod):
    """Encoder, classifier of pictures, and map."""

    name = "guided"
    summary = "finding pieces pasted where attention looks; adapts to shifted pictures"
    source = "Bozorgtabar et al. 2022, Anomaly Detection and Localization Using Attention-Guided Synthetic Anomaly"
    Config = GuidedConfig
    config: GuidedConfig
    backbone: VitBackbone
    bank: Tensor
    pictured: Tensor  # (H, W) of the pictures that the bank is of
    normal: Tensor  # over normal pictures, the means (first row) and spreads of the learned map and the distance
    statistics: Tensor
    chance: Tensor
    usual: Tensor
    limits: Tensor
    tokens: Tensor

    def __init__(self, config: GuidedConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.config = config
        if not isinstance(backbone, VitBackbone) or backbone.model.cls_token is None:
            raise ConfigError(f"guided needs a ViT with a [CLS] token, which {backbone.spec.name} is not")
        self.layers = backbone.check_layers(config.layers)
        guides = tuple(backbone.depth + 1 + layer if layer < 0 else layer for layer in config.guide_layers)
        self.guides = backbone.check_layers(guides or self.layers)
        self.simulators = [simulator(name) for name in config.simulators or ("guided",)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.head = ClassHead(backbone.dim, 1 + max(each.kinds for each in self.simulators))
            self.mix = AttentionMix(backbone.heads)
            self.marker = PatchHead(backbone.dim, len(self.layers)) if config.map_head == "features" else None
        self.register_buffer("bank", torch.empty(0, backbone.dim))
        self.register_buffer("pictured", torch.tensor(self.scoring_size))
        self.register_buffer("normal", torch.empty(0))
        self.register_buffer("statistics", torch.empty(0))
        self.register_buffer("chance", torch.zeros(2))
        self.register_buffer("usual", torch.empty(0))
        self.register_buffer("limits", torch.empty(0))
        self.register_buffer("tokens", torch.empty(0, dtype=torch.int64))
        self.average: nn.Module | None = None
        self._reference: list[VitBackbone] = []  # the pre-trained encoder, whose attention guides; not a submodule

    @property
    def scoring_size(self) -> tuple[int, int]:
        return max(self.scales)

    def look(self, images: Tensor) -> Seen:
        """What the network makes of pictures B 3 H W, in one size."""
        depth = self.backbone.depth
        seen = self.backbone(images, (*self.layers, depth), attention=(depth,))
        attention = seen.attention[depth] / seen.attention[depth].sum(-1, keepdim=True)
        features = replace(seen, tokens=seen.tokens[:-1], grids=seen.grids[:-1])
        marks = self.mix(attention)
        if self.marker is not None:
            marks = marks + self.marker(features.tokens)
        logits = self.head(self.backbone.norm(seen.cls[-1]))
        return Seen(logits.float(), marks.reshape(len(images), *seen.grids[0]), attention, features)

    # Training

    @property
    def needs_images(self) -> bool:
        return True

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """The guidance: what the pre-trained encoder's [CLS] token looks at, mean over the heads: B h w, sum 1."""
        if not self._reference:
            reference = copy.deepcopy(self.backbone).requires_grad_(False).eval()
            self._reference.append(reference.to(self._computes_in))
        return {"guide": self._reference[0].guidance(images, self.guides)}

    def start_training(self, sample: TrainingBatch) -> None:
        blocks = self.backbone.model.blocks
        tuned = self.config.tuned
        if tuned is None:
            self.backbone.requires_grad_(True)
        elif tuned:
            for module in (*blocks[max(0, len(blocks) - tuned) :], self.backbone.model.norm):
                module.requires_grad_(True)
        if self.config.ema:
            self.average = copy.deepcopy(self._learning()).requires_grad_(False)

    def _learning(self) -> nn.ModuleDict:
        parts = {"backbone": self.backbone, "head": self.head, "mix": self.mix, "marker": self.marker}
        return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})

    def training_step(self, batch: TrainingBatch, progress: float) -> Tensor:
        assert batch.images is not None
        images, guide = batch.images, batch.features["guide"]
        if self.config.augment:
            images, guide = augmented(images, guide)
        # Within the range of pixels, as the twins are: they must not be told apart by that.
        mean, std = self._colours(images)
        images = ((images * std + mean).clamp(0, 1) - mean) / std
        twins, labels, kinds = self._simulated(images, guide)
        seen = self.look(torch.cat([images, twins]))
        classes = torch.cat([torch.zeros_like(kinds), kinds])
        loss = self.config.detection * F.cross_entropy(seen.logits, classes)
        marks = F.interpolate(seen.marks[:, None], size=labels.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        if self.config.segmentation:
            loss = loss + self.config.segmentation * dice_loss(marks[len(images) :].sigmoid(), labels)
        if self.config.marking:
            wanted = torch.cat([torch.zeros_like(labels), labels])
            loss = loss + self.config.marking * F.binary_cross_entropy_with_logits(marks, wanted)
        return loss

    def _simulated(self, images: Tensor, guide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Twins B 3 H W, soft labels B H W and classes B (from 1) of pictures B 3 H W with guidance B h w."""
        mean, std = self._colours(images)
        pixels = images * std + mean
        if self.config.guidance == "uniform":
            guide = torch.ones_like(guide)
        elif self.config.guidance == "shuffled":
            guide = shuffled(guide.flatten(1)).reshape(guide.shape)
        seeds = torch.randint(2**62, (len(images),)).tolist()
        made = simulate_batch(
            self.simulators,
            np.ascontiguousarray(pixels.permute(0, 2, 3, 1).float().cpu().numpy()),
            guide.float().cpu().numpy(),
            seeds,
        )
        twins = torch.from_numpy(np.stack([one.image for one in made])).to(images.device).permute(0, 3, 1, 2)
        labels = torch.from_numpy(np.stack([one.label for one in made])).to(images.device)
        kinds = torch.tensor([one.kind for one in made], device=images.device)
        return (twins - mean) / std, labels, kinds

    def _colours(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation by which pictures are normalised, each 3 1 1."""
        mean, std = (images.new_tensor(each)[:, None, None] for each in (self.backbone.mean, self.backbone.std))
        return mean, std

    def after_step(self, step: int, steps: int) -> None:
        """The average spans about the last tenth of the run."""
        if self.average is None:
            return
        decay = max(0.0, 1 - 20 / steps)
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self._learning().parameters(), strict=True)
            for slow, fast in pairs:
                slow.lerp_(fast, 1 - decay)

    def findings(self, sample: TrainingBatch) -> dict[str, float]:
        """How sharp the guidance is."""
        return sharpness(sample.features["guide"].flatten(1).float())

    def end_training(self, steps: int) -> None:
        if self.average is not None:
            self._learning().load_state_dict(self.average.state_dict())
            self.average = None
        self.requires_grad_(False)

    # Scoring

    @property
    def scales(self) -> tuple[tuple[int, int], ...]:
        """(H, W) of the sizes that a picture is scored in, each what the backbone divides."""
        sides = self.config.scales
        height, width = (round(self.config.zoom * side) for side in self.config.height_width)
        sizes = [(side, side) for side in sides] or [(height, width)]
        return tuple(dict.fromkeys(self.backbone.round_size(*size) for size in sizes))

    def anomaly_map(self, images: Tensor) -> Tensor:
        return self.examine(images).maps[:, 0]

    def score(self, images: Tensor) -> Scores:
        """Scores, maps and votes, from every one of `scales`."""
        return self.combine(self.examine(images))

    def examine(self, images: Tensor) -> Look:
        """What is seen in pictures B 3 H W at every one of `scales`."""
        self._require(self.normal)
        look, features = self._look(images)
        if self.config.bank_size == 0:
            return look
        distance = enlarged(self._distance(self._described(images, features)), look.maps.shape[-2:])
        (usual, far), (unit, width) = self.normal
        return replace(look, maps=self.config.learned * (look.maps - usual) / unit + (distance - far) / width)

    def _look(self, images: Tensor) -> tuple[Look, Features | None]:
        """As `examine`, the map as it is learned; and the features from which the bank is made, if they came along."""
        size = (images.shape[-2] // 4, images.shape[-1] // 4)
        odds, maps, entropies = [], [], []
        features: Features | None = None
        for scale in self.scales:
            with self._autocast(images):
                seen = self.look(resized(images, scale))
            if list(scale) == self.pictured.tolist():
                features = seen.features
            odds.append(log_odds(seen.logits))
            maps.append(enlarged(seen.marks, size))
            entropies.append(attention_entropy(seen.attention.float()))
        return Look(torch.stack(odds), torch.stack(maps).mean(0), torch.stack(entropies)), features

    def _described(self, images: Tensor, features: Features | None = None) -> Tensor:
        """A unit-length feature for every patch of pictures B 3 H W, B h w D, in the size that the bank is of."""
        with torch.no_grad():
            if features is None:
                height, width = self.pictured.tolist()
                with self._autocast(images):
                    features = self.backbone(resized(images, (height, width)), self.layers)
            described, grid = join(features, "vit", pooling=self.config.pooling)
        return F.normalize(described, dim=-1).reshape(len(images), *grid, -1)

    def _distance(self, described: Tensor, left_out: Tensor | None = None) -> Tensor:
        """Distance of B h w D to the bank, without the entries `left_out` (bool K): B h w."""
        bank = self.bank.to(self._computes_in)
        distance, _ = nearest(described.flatten(0, 2), bank, excluded=left_out)
        return distance.reshape(described.shape[:3])

    def combine(self, look: Look) -> Scores:
        """One score, map and vote for each picture."""
        maps = smooth(look.maps, self.config.smoothing)[:, 0]
        parts = []
        if self.config.score != "map":
            parts.append(look.odds.mean(0))
        if self.config.score != "class":
            parts.append(top_mean(maps.flatten(1), self.config.top_fraction))
        return Scores(torch.stack(parts).sum(0), maps, votes=(look.odds > 0).float().mean(0))

    @property
    def summarised(self) -> int | None:
        return None if self.config.bank_size else SUMMARISED

    @torch.no_grad()
    def summarise(self, batches: Batches, count: int, progress: Progress) -> None:
        """Stage II: the moments of the attention entropies of training pictures and of their twins; the moments of
        the former's features; and the bank."""
        size = self.config.bank_size
        bank = StreamingCoreset(size, self.backbone.dim, search_dtype=self._computes_in) if size else None
        some: list[tuple[Tensor, Tensor]] = []  # pictures by which the bank is judged, with their owners
        maps: list[Tensor] = []
        entropies: tuple[list[Tensor], list[Tensor]] = ([], [])
        moments: dict[int, list[Tensor]] = {}  # by how many patches there are
        owners_seen: set[int] = set()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            for done, batch in enumerate(reported(batches(), "remembering", count, progress), start=1):
                pictures, features = len(batch.images), None
                # Evenly from all, as they may be sorted, and the first batch always.
                if (done - 1) % max(1, count // SUMMARISED) == 0:
                    guide = self.encode(resized(batch.images, self.config.height_width))["guide"]
                    twins, _, _ = self._simulated(batch.images, guide)
                    with alignment.recorded(self.backbone, moments):
                        look, features = self._look(batch.images)
                    maps.append(look.maps)
                    owners_seen.update(batch.owners.tolist())
                    entropies[0].append(look.entropies)
                    entropies[1].append(self._look(twins)[0].entropies)
                if bank is not None:
                    described = self._described(batch.images, features)
                    bank.add(
                        described.flatten(0, 2).cpu(), batch.owners.repeat_interleave(described[0, ..., 0].numel())
                    )
                    every = max(1, count // LEFT_OUT)
                    few = slice(-(done - 1) * pictures % every, None, every)
                    some.append((described[few].clone(), batch.owners[few]))
        self._reference.clear()
        if len(owners_seen) > 1:  # copies of one picture, turned and mirrored, do not tell what is usual
            self.statistics, self.chance = summary([torch.cat(rows, dim=1) for rows in entropies])
            self.chance[1] = len(owners_seen)
            aims = [alignment.summary(torch.cat(seen)) for seen in moments.values()]
            self.usual, self.limits = (torch.stack(parts) for parts in zip(*aims, strict=True))
            self.tokens = torch.tensor(list(moments), device=self.usual.device)
        spreads = [spread(torch.cat([each.flatten() for each in maps]))]
        if bank is not None:
            progress("selecting", 0, 0)
            kept, owners = bank.result()
            self.bank = kept.to(self.bank.device)
            spreads.append(self._spread_of_distance(some, owners))
        self.normal = torch.stack(spreads, dim=1)

    def _spread_of_distance(self, some: Sequence[tuple[Tensor, Tensor]], owners: Tensor) -> Tensor:
        """Mean and spread of the distance of normal pictures, each without its own entries of the bank."""
        if bool((owners == owners[0]).all()):  # a bank of one picture, which nothing is known to be far from
            return self.bank.new_tensor([0.0, 1.0])
        distances = [
            self._distance(one[None], (owners == owner).to(self.bank.device)).flatten()
            for described, named in some
            for one, owner in zip(described, named, strict=True)
        ]
        return spread(torch.cat(distances))

    def with_scales(self, scales: Sequence[int]) -> Guided:
        """The same weights, looking at squares of these sides. Statistics to adapt to are kept where it has them.

        Raises: ConfigError for a side below 1.
        """
        other = copy.copy(self)  # the weights are shared
        other.config = replace(self.config, scales=tuple(scales))
        if other.scales == self.scales:
            return self
        known = [self.scales.index(scale) for scale in other.scales if scale in self.scales]
        complete = self.statistics.numel() > 0 and len(known) == len(other.scales)
        # Buffers live in a dict that the copy shares.
        other._buffers = {**self._buffers, "statistics": self.statistics[:, :, known] if complete else torch.empty(0)}
        return other

    def adapter(self, mode: Mode) -> Adapter:
        """What scores batches while adapting to them."""
        settings, stride = self.config, self.backbone.stride
        if settings.adaptation == "entropies":
            return EntropyAdapter(self, mode, rate=settings.adaptation_rate, steps=settings.adaptation_steps)
        sizes = {(height // stride) * (width // stride) for height, width in self.scales}
        return alignment.Aligner(self, mode, sizes)

    @property
    def known(self) -> float:
        """Of how many training pictures the moments are."""
        return float(self.chance[1])


@dataclass(frozen=True, slots=True)
class Seen:
    """What the network makes of pictures in one size.

    Attributes:
        logits: of the classes, float32 B K, class 0 = normal. marks: logits of the map, float32 B h w.
        attention: of the last block's [CLS] token, B L N, rows sum to 1. features: of the configured layers.
    """

    logits: Tensor
    marks: Tensor
    attention: Tensor
    features: Features


class ClassHead(nn.Module):
    """DINO's projection head (Caron et al. 2021) with classes for prototypes: B D to B K."""

    def __init__(self, dim: int, classes: int, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.layers = projection(dim, hidden, bottleneck)
        self.last = nn.Linear(bottleneck, classes)
        initialise(self)

    def forward(self, cls: Tensor) -> Tensor:
        return _in_float32(self.last, F.normalize(self.layers(cls).float(), dim=-1))


class AttentionMix(nn.Module):
    """One learned weight a head: attention B L N (rows sum to 1) to logits B N, alike at any resolution."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((heads,), 1 / heads))
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def forward(self, attention: Tensor) -> Tensor:
        return (self.weights[:, None] * attention.float() * attention.shape[-1]).sum(1) + self.bias


class PatchHead(nn.Module):
    """Logits B N of every patch from its normalised features in several layers, each B N D."""

    def __init__(self, dim: int, layers: int, hidden: int = 256) -> None:
        super().__init__()
        self.inward = nn.Linear(layers * dim, hidden)
        self.outward = nn.Linear(hidden, 1)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, tokens: Iterable[Tensor]) -> Tensor:
        features = torch.cat([F.layer_norm(each, each.shape[-1:]) for each in tokens], dim=-1)
        return _in_float32(self.outward, F.gelu(self.inward(features)))[..., 0]


def _in_float32(last: nn.Linear, features: Tensor) -> Tensor:
    """Logits that are not rounded to bf16, in which scores would tie."""
    with torch.autocast(features.device.type, enabled=False):
        return cast(Tensor, last(features.float()))


def log_odds(logits: Tensor) -> Tensor:
    """Of any anomalous class against the normal one (class 0): B K to B."""
    logits = logits.float()
    return logits[:, 1:].logsumexp(1) - logits[:, 0]


def dice_loss(given: Tensor, wanted: Tensor) -> Tensor:
    """1 − Dice of soft masks B H W in [0, 1], mean over the pictures (Milletari et al. 2016, without squares)."""
    both = (given * wanted).sum(dim=(1, 2))
    return (1 - (2 * both + 1) / (given.sum(dim=(1, 2)) + wanted.sum(dim=(1, 2)) + 1)).mean()


def spread(values: Tensor) -> Tensor:
    """Mean and standard deviation, the latter 1 where there is none."""
    deviation = values.std()
    return torch.stack([values.mean(), torch.where(deviation > 1e-6, deviation, 1.0)])


def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """B h w as float32 B 1 H W, bilinear."""
    return F.interpolate(maps[:, None].float(), size=tuple(size), mode="bilinear", align_corners=False)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """B 3 H W at another size, antialiased where it shrinks."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def augmented(images: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures B 3 H W, each cropped to at least 4/5 of its area and resized back, its contrast changed by
    up to a tenth and its brightness by up to 0.1 (normalised); and their guidance B h w, cropped along, with sum 1."""
    count, device = len(images), images.device
    draw = torch.rand(count, 5)  # on the host, so that every device draws the same
    side = (0.8 + 0.2 * draw[:, 0]).sqrt()
    shift = (2 * draw[:, 1:3] - 1) * (1 - side)[:, None]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = shift
    theta = theta.to(device)

    def crop(maps: Tensor) -> Tensor:
        with torch.autocast(device.type, enabled=False):  # bf16 places a crop to a fifth of a pixel
            grid = F.affine_grid(theta, list(maps.shape), align_corners=False)
            return F.grid_sample(maps.float(), grid, padding_mode="reflection", align_corners=False)

    contrast = (1 + 0.1 * (2 * draw[:, 3] - 1)).to(device)[:, None, None, None]
    brightness = (0.1 * (2 * draw[:, 4] - 1)).to(device)[:, None, None, None]
    cropped = crop(guide[:, None].float())[:, 0].clamp_min(0)
    return crop(images) * contrast + brightness, cropped / cropped.sum(dim=(1, 2), keepdim=True)
