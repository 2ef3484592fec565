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

The paper's map cannot be finer than the grid of patches and comes from one weight a head. `best` has
a head that reads every patch's features in the middle of the depth instead, where defects are still
local, trains it on every patch, and puts the distance to a bank of the same features beside it. The
encoder stays as it was. The score is that map's, so there is no class head, and blocks after the
deepest layer that is read are not run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.anomalies import simulate_batch, simulator
from blemish.backbones import Backbone, Features
from blemish.backbones.vit import VitBackbone
from blemish.config import LARGEST
from blemish.errors import ArtifactError, ConfigError
from blemish.losses.dice import dice_loss
from blemish.methods import alignment
from blemish.methods.adaptation import (
    Adapter,
    EntropyAdapter,
    Look,
    Mode,
    attention_entropy,
    summary,
)
from blemish.methods.augmentation import augmented
from blemish.methods.base import Batches, reported, smooth, top_mean
from blemish.methods.coreset import StreamingCoreset, nearest
from blemish.methods.embedding import join
from blemish.methods.guidance import sharpness, shuffled
from blemish.methods.guided_config import GuidedConfig
from blemish.methods.heads import AttentionMix, ClassHead, PatchHead
from blemish.methods.stored import UNIT, Free, Stored, numbers
from blemish.methods.trained import FineTuned, TrainedMethod, TrainingBatch
from blemish.types import Progress, Scores

SUMMARISED = 256  # training pictures, about, whose attention entropies and maps are summarised
LEFT_OUT = (
    32  # training pictures, about, by which the bank is judged, each without its own features
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
            raise ConfigError(
                f"guided needs a ViT with a [CLS] token, which {backbone.spec.name} is not"
            )
        self.layers = backbone.check_layers(config.layers)
        guides = tuple(
            backbone.depth + 1 + layer if layer < 0 else layer for layer in config.guide_layers
        )
        self.guides = backbone.check_layers(guides or self.layers)
        self.simulators = [simulator(name) for name in config.simulators or ("guided",)]
        classes = 1 + max(each.kinds for each in self.simulators)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.head = ClassHead(backbone.dim, classes) if config.reads_class else None
            self.mix = AttentionMix(backbone.heads) if config.map_head != "patches" else None
            self.marker = (
                PatchHead(backbone.dim, len(self.layers))
                if config.map_head != "attention"
                else None
            )
        entropies = config.adaptation == "entropies"
        self.attention_layer = backbone.depth if self.mix is not None or entropies else None
        self.deepest = (
            backbone.depth if self.head is not None or self.attention_layer else max(self.layers)
        )
        self.register_buffer("bank", torch.empty(0, backbone.dim))
        self.register_buffer("pictured", torch.tensor(self.scoring_size))
        self.register_buffer("normal", torch.empty(0))
        self.register_buffer("statistics", torch.empty(0))
        self.register_buffer("chance", torch.zeros(2))
        self.register_buffer("usual", torch.empty(0))
        self.register_buffer("limits", torch.empty(0))
        self.register_buffer("tokens", torch.empty(0, dtype=torch.int64))
        self.average: nn.Module | None = None
        self._reference: list[
            VitBackbone
        ] = []  # the pre-trained encoder, whose attention guides; not a submodule

    @property
    def scoring_size(self) -> tuple[int, int]:
        return max(self.scales)

    def look(self, images: Tensor) -> Seen:
        """What the network makes of pictures B 3 H W, in one size."""
        last = () if self.head is None else (self.backbone.depth,)
        attended = () if self.attention_layer is None else (self.attention_layer,)
        seen = self.backbone(images, (*self.layers, *last), attention=attended)
        features = seen.layers(slice(len(self.layers)))
        attention = [
            seen.attention[layer] / seen.attention[layer].sum(-1, keepdim=True)
            for layer in attended
        ]
        logits = [] if self.mix is None else [self.mix(attention[0])]
        logits += [] if self.marker is None else [self.marker(features.tokens)]
        return Seen(
            marks=torch.stack(logits).sum(0).reshape(len(images), *seen.grids[0]),
            features=features,
            logits=None
            if self.head is None
            else self.head(self.backbone.norm(seen.cls[-1])).float(),
            attention=attention[0] if attended else None,
        )

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

    @torch.enable_grad()
    def start_training(self, sample: TrainingBatch) -> None:
        """Lets the last `tuned` blocks up to the deepest layer that is read learn, or all; and of these
        no tensor that reaches neither the map nor the class nor the bank, as the last norm where the
        score is the map's."""
        assert sample.images is not None
        encoder, tuned = self.backbone.model, self.config.tuned
        if tuned is None:
            self.backbone.requires_grad_(True)
        elif tuned:
            for module in (
                *encoder.blocks[max(0, self.deepest - tuned) : self.deepest],
                encoder.norm,
            ):
                module.requires_grad_(True)
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        seen = self.look(sample.images[:1])
        read = [seen.marks, *(() if seen.logits is None else (seen.logits,))]
        read += list(seen.features.tokens) if self.config.bank_size else []
        total = torch.stack([each.float().sum() for each in read]).sum()
        for parameter, gradient in zip(
            learning, torch.autograd.grad(total, learning, allow_unused=True), strict=True
        ):
            parameter.requires_grad_(gradient is not None)
        if self.config.ema:
            self.average = copy.deepcopy(self._learning()).requires_grad_(False)

    def _learning(self) -> nn.ModuleDict:
        """The parts of which anything learns."""
        parts = {
            "backbone": self.backbone,
            "head": self.head,
            "mix": self.mix,
            "marker": self.marker,
        }
        there = {name: part for name, part in parts.items() if part is not None}
        return nn.ModuleDict(
            {
                name: part
                for name, part in there.items()
                if any(each.requires_grad for each in part.parameters())
            }
        )

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
        loss = seen.marks.new_zeros(())
        if seen.logits is not None:
            classes = torch.cat([torch.zeros_like(kinds), kinds])
            loss = loss + self.config.detection * F.cross_entropy(seen.logits, classes)
        marks = F.interpolate(
            seen.marks[:, None], size=labels.shape[-2:], mode="bilinear", align_corners=False
        )[:, 0]
        if self.config.segmentation:
            loss = loss + self.config.segmentation * dice_loss(
                marks[len(images) :].sigmoid(), labels
            )
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
        twins = (
            torch.from_numpy(np.stack([one.image for one in made]))
            .to(images.device)
            .permute(0, 3, 1, 2)
        )
        labels = torch.from_numpy(np.stack([one.label for one in made])).to(images.device)
        kinds = torch.tensor([one.kind for one in made], device=images.device)
        return (twins - mean) / std, labels, kinds

    def _colours(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation by which pictures are normalised, each 3 1 1."""
        mean, std = (
            images.new_tensor(each)[:, None, None]
            for each in (self.backbone.mean, self.backbone.std)
        )
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
        return replace(
            look, maps=self.config.learned * (look.maps - usual) / unit + (distance - far) / width
        )

    def _look(self, images: Tensor) -> tuple[Look, Features | None]:
        """As `examine`, the map as it is learned; and the features from which the bank is made, if they came along."""
        stride = self.config.map_stride
        size = (images.shape[-2] // stride, images.shape[-1] // stride)
        odds, maps, entropies = [], [], []
        features: Features | None = None
        for scale in self.scales:
            with self._autocast(images):
                seen = self.look(resized(images, scale))
            if list(scale) == self.pictured.tolist():
                features = seen.features
            maps.append(enlarged(seen.marks, size))
            if seen.logits is not None:
                odds.append(log_odds(seen.logits))
            if seen.attention is not None:
                entropies.append(attention_entropy(seen.attention.float()))
        look = Look(
            maps=torch.stack(maps).mean(0),
            odds=torch.stack(odds) if odds else None,
            entropies=torch.stack(entropies) if entropies else None,
        )
        return look, features

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
        """One score, map and vote for each picture; no votes where there is no class."""
        maps = smooth(look.maps, self.config.smoothing)[:, 0]
        parts, votes = [], None
        if look.odds is not None:
            votes = (look.odds > 0).float().mean(0)
        if look.odds is not None and self.config.score != "map":
            parts.append(look.odds.mean(0))
        if self.config.score != "class":
            parts.append(top_mean(maps.flatten(1), self.config.top_fraction))
        return Scores(torch.stack(parts).sum(0), maps, votes=votes)

    def embedding(self, images: Tensor) -> Tensor:
        """What pictures are scored by: float32 B D. Where the score reads the class, the final [CLS]
        token, which the projection head takes (as the papers show it), mean over `scales`. Otherwise the
        features that the bank holds, mean over the places, each weighted by the softmax of the map."""
        if self.config.score == "map":
            described = self._described(images)
            grid = (described.shape[1], described.shape[2])
            maps = F.adaptive_avg_pool2d(self.examine(images).maps, grid)
            return (maps.flatten(1).softmax(1)[..., None] * described.flatten(1, 2)).sum(1)
        depth, tokens = self.backbone.depth, []
        with torch.no_grad(), self._autocast(images):
            for scale in self.scales:
                seen = self.backbone(resized(images, scale), (depth,))
                tokens.append(self.backbone.norm(seen.cls[-1]).float())
        return torch.stack(tokens).mean(0)

    @property
    def summarised(self) -> int | None:
        return None if self.config.bank_size else SUMMARISED

    @torch.no_grad()
    def summarise(self, batches: Batches, count: int, progress: Progress) -> None:
        """Stage II: what adaptation brings pictures back to, of training pictures (and of their twins,
        for "entropies"); the spread of their learned maps; and the bank."""
        size = self.config.bank_size
        bank = (
            StreamingCoreset(size, self.backbone.dim, search_dtype=self._computes_in)
            if size
            else None
        )
        some: list[
            tuple[Tensor, Tensor]
        ] = []  # pictures by which the bank is judged, with their owners
        usual = _Usual()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            for done, batch in enumerate(
                reported(batches(), "remembering", count, progress), start=1
            ):
                pictures, features = len(batch.images), None
                # Evenly from all, as they may be sorted, and the first batch always.
                if (done - 1) % max(1, count // SUMMARISED) == 0:
                    features = self._note(batch.images, usual)
                    usual.owners.update(batch.owners.tolist())
                if bank is not None:
                    described = self._described(batch.images, features)
                    bank.add(
                        described.flatten(0, 2).cpu(),
                        batch.owners.repeat_interleave(described[0, ..., 0].numel()),
                    )
                    every = max(1, count // LEFT_OUT)
                    few = slice(-(done - 1) * pictures % every, None, every)
                    some.append((described[few].clone(), batch.owners[few]))
        self._reference.clear()
        if (
            len(usual.owners) > 1
        ):  # copies of one picture, turned and mirrored, do not tell what is usual
            self._keep(usual)
        spreads = [spread(torch.cat([each.flatten() for each in usual.maps]))]
        if bank is not None:
            progress("selecting", 0, 0)
            kept, owners = bank.result()
            self.bank = kept.to(self.bank.device)
            spreads.append(self._spread_of_distance(some, owners))
        self.normal = torch.stack(spreads, dim=1)

    def _note(self, images: Tensor, usual: _Usual) -> Features | None:
        """Look at training pictures for what adaptation needs to know; the features, as of `_look`."""
        if self.config.adaptation == "entropies":
            guide = self.encode(resized(images, self.config.height_width))["guide"]
            twins, _, _ = self._simulated(images, guide)
            look, features = self._look(images)
            for kept, seen in zip(usual.entropies, (look, self._look(twins)[0]), strict=True):
                assert seen.entropies is not None
                kept.append(seen.entropies)
        else:
            with alignment.recorded(self.backbone, usual.moments, blocks=self.deepest):
                look, features = self._look(images)
        usual.maps.append(look.maps)
        return features

    def _keep(self, usual: _Usual) -> None:
        self.chance = self.chance.new_tensor([0.0, len(usual.owners)])
        if self.config.adaptation == "entropies":
            self.statistics, self.chance[0] = summary(
                [torch.cat(rows, dim=1) for rows in usual.entropies]
            )
        else:
            aims = [alignment.summary(torch.cat(seen)) for seen in usual.moments.values()]
            self.usual, self.limits = (torch.stack(parts) for parts in zip(*aims, strict=True))
            self.tokens = torch.tensor(list(usual.moments), device=self.usual.device)

    def _spread_of_distance(self, some: Sequence[tuple[Tensor, Tensor]], owners: Tensor) -> Tensor:
        """Mean and spread of the distance of normal pictures, each without its own entries of the bank."""
        if bool(
            (owners == owners[0]).all()
        ):  # a bank of one picture, which nothing is known to be far from
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
        other._buffers = {
            **self._buffers,
            "statistics": self.statistics[:, :, known] if complete else torch.empty(0),
        }
        return other

    def of_today(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Artifacts of earlier, unreleased states hold a class head where nothing reads it, too."""
        if self.head is not None:
            return tensors
        return {name: each for name, each in tensors.items() if not name.startswith("head.")}

    def learned_tensors(self) -> dict[str, Stored]:
        width, size = self.backbone.dim, self.config.bank_size
        sizes = Free("T", 1, 64)
        return {
            "bank": Stored(shape=(Free("K", min(1, size), size), width), low=-UNIT, high=UNIT),
            "pictured": numbers(2, low=1, high=2**16),
            "normal": Stored(shape=(2, 1 + min(1, size))),
            "statistics": Stored(shape=(2, 4, len(self.scales), self.backbone.heads), absent=True),
            "chance": Stored(shape=(2,), low=0),
            "usual": Stored(shape=(sizes, self.deepest, 2, 2, width), absent=True),
            "limits": Stored(shape=(sizes, self.deepest), low=0, absent=True),
            "tokens": replace(numbers(sizes, low=1), absent=True),
        }

    def check_learned(self, tensors: Mapping[str, Tensor]) -> None:
        pictured, stride = tensors["pictured"], self.backbone.stride
        if bool((pictured % stride != 0).any()) or int(pictured.prod()) > LARGEST:
            raise ArtifactError(
                f"pictured: {pictured.tolist()} is no size that {stride} divides, or too large a one"
            )
        empty = {tensors[name].numel() == 0 for name in ("usual", "limits", "tokens")}
        if len(empty) > 1 or len(set(tensors["tokens"].tolist())) < tensors["tokens"].numel():
            raise ArtifactError(
                "tokens: `usual`, `limits` and `tokens` are not of the same sizes, each once"
            )
        for name, axis, first in (("normal", 0, 1), ("statistics", 1, 2), ("usual", 2, 1)):
            spreads = tensors[name]
            if spreads.numel() and not bool((spreads.narrow(axis, first, first) > 0).all()):
                raise ArtifactError(f"{name}: holds a spread that is not positive")

    def adapter(self, mode: Mode) -> Adapter:
        """What scores batches while adapting to them."""
        settings, stride = self.config, self.backbone.stride
        if settings.adaptation == "entropies":
            return EntropyAdapter(
                self,
                mode,
                rate=settings.adaptation_rate,
                steps=settings.adaptation_steps,
                guarded=settings.adaptation_guard,
            )
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
        marks: logits of the learned map, float32 B h w. features: of the configured layers.
        logits: of the classes, float32 B K, class 0 = normal; None without a class head.
        attention: of the last block's [CLS] token, B L N, rows sum to 1; None where nothing reads it.
    """

    marks: Tensor
    features: Features
    logits: Tensor | None
    attention: Tensor | None


@dataclass
class _Usual:
    """What is noted of some of the training pictures, batch by batch.

    Attributes:
        maps: learned maps, each B 1 H W. owners: whose they are.
        entropies: of the pictures and of their twins, each T B L. moments: of `alignment.recorded`.
    """

    maps: list[Tensor] = field(default_factory=list)
    owners: set[int] = field(default_factory=set)
    entropies: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))
    moments: dict[int, list[Tensor]] = field(default_factory=dict)


def log_odds(logits: Tensor) -> Tensor:
    """Of any anomalous class against the normal one (class 0): B K to B."""
    logits = logits.float()
    return logits[:, 1:].logsumexp(1) - logits[:, 0]


def spread(values: Tensor) -> Tensor:
    """Mean and standard deviation, the latter 1 where there is none."""
    deviation = values.std()
    return torch.stack([values.mean(), torch.where(deviation > 1e-6, deviation, 1.0)])


def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """B h w as float32 B 1 H W, bilinear."""
    return F.interpolate(
        maps[:, None].float(), size=tuple(size), mode="bilinear", align_corners=False
    )


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """B 3 H W at another size, antialiased where it shrinks."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
