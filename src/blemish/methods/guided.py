"""Guided synthetic anomalies: learn to find pieces that were cut out and pasted where attention
looks.

"Anomaly Detection and Localization Using Attention-Guided Synthetic Anomaly and Test-Time
Adaptation" (the poster), and the fine-tuning part of the APMask paper, which repeats it with more
detail. From every normal picture a twin is made with a synthetic anomaly, placed where the [CLS]
attention of the pre-trained encoder looks (`blemish.anomalies`). The encoder, trained end to end, a
head on its final [CLS] token and a mix of the last block's attention heads learn to tell the twins
apart and to mark the pasted pixels: L = 0.95 · cross-entropy + 0.05 · Dice. At prediction several
sizes of a picture are looked at and their maps averaged. `adaptation.py` is the other half of the
poster.

The papers do not say, and here: the map's logit is Σ_l w_l · N · a_l + b for the last block's
attention a_l (sum 1) of head l; every batch holds normal pictures and their twins, as many of each;
the Dice loss is taken of the twins only; augmentation is a crop of at least four fifths of the
picture and some brightness and contrast, and the guidance is computed once, of the picture before
it, and cropped along; the image score is the mean of the log-odds over the sizes.

The paper's map cannot be finer than the grid of patches and comes from one weight a head. `best`
has a head that reads every patch's features in the middle of the depth instead, where defects are
still local, trains it on every patch, and puts the distance to a bank of the same features beside
it. The encoder stays as it was. The score is that map's, so there is no class head, and blocks
after the deepest layer that is read are not run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
from blemish.methods.adaptation import Adapter, EntropyAdapter, Look, Mode, attention_entropy
from blemish.methods.augmentation import augmented
from blemish.methods.base import reported, smooth, top_mean
from blemish.methods.capabilities import Adapts, Batches, LooksAtScales, Summarises
from blemish.methods.coreset import StreamingCoreset, nearest
from blemish.methods.embedding import join
from blemish.methods.guidance import sharpness, shuffled
from blemish.methods.guided_config import GuidedConfig
from blemish.methods.heads import AttentionMix, ClassHead, PatchHead
from blemish.methods.learner import FineTuned, TrainingBatch, follow
from blemish.methods.reference import Noted, Reference, check_reference, check_spreads
from blemish.methods.stored import UNIT, Free, Stored, numbers
from blemish.methods.trained import TrainedMethod
from blemish.types import Progress, Scores

# Training pictures, about, whose attention entropies and maps are summarised.
SUMMARISED = 256
# Training pictures, about, by which the bank is judged, each without its own features.
LEFT_OUT = 32
REFERENCE = "reference."  # how the names of its tensors begin

Size = tuple[int, int]


class Guided(FineTuned, TrainedMethod, Summarises, Adapts, LooksAtScales):
    """Encoder, classifier of pictures, and segmentation head."""

    name = "guided"
    summary = "finding pieces pasted where attention looks; adapts to shifted pictures"
    source = (
        "Bozorgtabar et al. 2022, Anomaly Detection and Localization Using Attention-Guided "
        "Synthetic Anomaly"
    )
    Config = GuidedConfig
    config: GuidedConfig
    backbone: VitBackbone
    bank: Tensor
    pictured: Tensor  # (H, W) of the pictures that the bank is of
    normal: (
        Tensor  # over normal pictures: means (first row) and spreads of learned map and distance
    )

    def __init__(self, config: GuidedConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        if not isinstance(backbone, VitBackbone) or backbone.model.cls_token is None:
            raise ConfigError(
                f"guided needs a ViT with a [CLS] token, which {backbone.spec.name} is not"
            )
        self.map_layers = self.layers
        depth = backbone.depth
        guides = tuple(depth + 1 + layer if layer < 0 else layer for layer in config.guide_layers)
        self.guides = backbone.check_layers(guides or self.map_layers)
        self.simulators = [simulator(name) for name in config.simulators]
        classes = 1 + max(each.kinds for each in self.simulators)
        attends, patches = config.map_head != "patches", config.map_head != "attention"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.class_head = ClassHead(backbone.dim, classes) if config.reads_class else None
            self.attention_mix = AttentionMix(backbone.heads) if attends else None
            self.segmentation_head = (
                PatchHead(backbone.dim, len(self.map_layers)) if patches else None
            )
        if self.class_head is not None:
            self.layers = (*self.map_layers, depth)
        if attends or config.adaptation == "entropies":
            self.attended = (depth,)
        self.deepest = max((*self.layers, *self.attended))
        self.register_buffer("bank", torch.empty(0, backbone.dim))
        self.register_buffer("pictured", torch.tensor(self.scoring_size))
        self.register_buffer("normal", torch.empty(0))
        self.reference = Reference()
        self.average: nn.Module | None = None
        self.reference_encoder: ReferenceEncoder | None = None

    @property
    def scoring_size(self) -> Size:
        return max(self.scales)

    def see(self, images: Tensor, also: Sequence[int] = ()) -> Features:
        with self._autocast(images):
            return super().see(images, also)

    def look(self, seen: Features) -> Seen:
        """What the heads make of what `see` gave of pictures in one size."""
        features = seen.layers(slice(len(self.map_layers)))
        attention = [
            seen.attention[layer] / seen.attention[layer].sum(-1, keepdim=True)
            for layer in self.attended
        ]
        tokens = features.tokens
        with self._autocast(tokens[0]):
            logits = [] if self.attention_mix is None else [self.attention_mix(attention[0])]
            logits += [] if self.segmentation_head is None else [self.segmentation_head(tokens)]
            classes = None
            if self.class_head is not None:
                last = self.backbone.norm(seen.cls[len(self.map_layers)])
                classes = self.class_head(last).float()
        return Seen(
            mask_logits=torch.stack(logits).sum(0).reshape(len(tokens[0]), *seen.grids[0]),
            features=features,
            logits=classes,
            attention=attention[0] if attention else None,
        )

    # Training

    @property
    def needs_images(self) -> bool:
        return True

    def prepare_training(self) -> None:
        encoder = copy.deepcopy(self.backbone).requires_grad_(False).eval().to(self._computes_in)
        self.reference_encoder = ReferenceEncoder(encoder, self.guides)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """The guidance: where the encoder looked before it was trained, B h w, sum 1."""
        assert self.reference_encoder is not None
        return {"guide": self.reference_encoder.guidance(images)}

    @torch.enable_grad()
    def start_training(self, sample: TrainingBatch) -> None:
        """Let the last `trainable_blocks` up to the deepest layer that is read learn, or all; and
        of these no tensor that reaches neither map nor class nor bank, as the last norm where the
        score is the map's.
        """
        assert sample.images is not None
        encoder, blocks = self.backbone.model, self.config.trainable_blocks
        if blocks is None:
            self.backbone.requires_grad_(True)
        elif blocks:
            for module in (
                *encoder.blocks[max(0, self.deepest - blocks) : self.deepest],
                encoder.norm,
            ):
                module.requires_grad_(True)
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        seen = self.look(self.see(sample.images[:1]))
        read = [seen.mask_logits, *(() if seen.logits is None else (seen.logits,))]
        read += list(seen.features.tokens) if self.config.bank_size else []
        total = torch.stack([each.float().sum() for each in read]).sum()
        gradients = torch.autograd.grad(total, learning, allow_unused=True)
        for parameter, gradient in zip(learning, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        if self.config.ema:
            self.average = copy.deepcopy(self._learning()).requires_grad_(False)

    def _learning(self) -> nn.ModuleDict:
        """The parts of which anything learns."""
        parts = ("backbone", "class_head", "attention_mix", "segmentation_head")
        return nn.ModuleDict(
            {
                name: part
                for name, part in self.named_children()
                if name in parts and any(each.requires_grad for each in part.parameters())
            }
        )

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        assert batch.images is not None
        config, images, guide = self.config, batch.images, batch.features["guide"]
        if config.augment:
            images, guide = augmented(images, guide)
        # Within the range of pixels, as the twins are: they must not be told apart by that.
        mean, std = self._colours(images)
        images = ((images * std + mean).clamp(0, 1) - mean) / std
        twins, masks, kinds = self._simulated(images, guide)
        seen = self.look(self.see(torch.cat([images, twins])))
        loss = seen.mask_logits.new_zeros(())
        if seen.logits is not None:
            classes = torch.cat([torch.zeros_like(kinds), kinds])
            loss = loss + config.cross_entropy_weight * F.cross_entropy(seen.logits, classes)
        logits = enlarged(seen.mask_logits, masks.shape[-2:])[:, 0]
        if config.dice_weight:
            dice = dice_loss(logits[len(images) :].sigmoid(), masks)
            loss = loss + config.dice_weight * dice
        if config.bce_weight:
            wanted = torch.cat([torch.zeros_like(masks), masks])
            bce = F.binary_cross_entropy_with_logits(logits, wanted)
            loss = loss + config.bce_weight * bce
        return loss

    def _simulated(self, images: Tensor, guide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Twins B 3 H W of pictures B 3 H W with guidance B h w, their soft masks B H W and classes
        B.
        """
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
        device = images.device
        twins = torch.from_numpy(np.stack([one.image for one in made])).to(device)
        masks = torch.from_numpy(np.stack([one.label for one in made])).to(device)
        kinds = torch.tensor([one.kind for one in made], device=device)
        return (twins.permute(0, 3, 1, 2) - mean) / std, masks, kinds

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
        follow(self.average, self._learning(), max(0.0, 1 - 20 / steps))

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

    def judge(self, features: Features, images: Tensor) -> Scores:
        """Scores, maps and votes, from every one of `scales`."""
        return self.combine(self.examine(images, features))

    def examine(self, images: Tensor, features: Features | None = None) -> Look:
        """What is seen in pictures B 3 H W at every one of `scales`; `features` is what `see` gave."""
        self._require(self.normal)
        seen = self._at_scales(images, features)
        look = self._look(seen, images)
        if self.config.bank_size == 0:
            return look
        distance = enlarged(self._distance(self._described(seen, images)), look.maps.shape[-2:])
        (middle, far), (unit, width) = self.normal
        learned = self.config.head_weight * (look.maps - middle) / unit
        return replace(look, maps=learned + (distance - far) / width)

    def _at_scales(self, images: Tensor, features: Features | None = None) -> dict[Size, Features]:
        """What `see` gives of B 3 H W at every one of `scales`; `features`: in the size they have."""
        own = tuple(images.shape[-2:])
        return {
            scale: features
            if features is not None and scale == own
            else self.see(resized(images, scale))
            for scale in self.scales
        }

    def _look(self, seen: Mapping[Size, Features], images: Tensor) -> Look:
        """As `examine`, with the map as it is learned."""
        stride = self.config.map_stride
        size = (images.shape[-2] // stride, images.shape[-1] // stride)
        looks = [self.look(features) for features in seen.values()]
        odds = [log_odds(look.logits) for look in looks if look.logits is not None]
        entropies = [
            attention_entropy(look.attention.float())
            for look in looks
            if look.attention is not None
        ]
        return Look(
            maps=torch.stack([enlarged(look.mask_logits, size) for look in looks]).mean(0),
            odds=torch.stack(odds) if odds else None,
            entropies=torch.stack(entropies) if entropies else None,
        )

    def _described(self, seen: Mapping[Size, Features], images: Tensor) -> Tensor:
        """A unit-length feature for every patch of B 3 H W, B h w D, in the size that the bank is
        of.
        """
        height, width = self.pictured.tolist()
        with torch.no_grad():
            features = seen.get((height, width))
            if features is None:
                features = self.see(resized(images, (height, width)))
            own = features.layers(slice(len(self.map_layers)))
            described, grid = join(own, "vit", pooling=self.config.pooling)
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

    def describe(self, features: Features, images: Tensor) -> Tensor:
        """What pictures are scored by, B D. Where the score reads the class, the final [CLS] token
        that the class head takes (as the papers show it), mean over `scales`. Otherwise the
        features that the bank holds, mean over the places, each weighted by the softmax of the map.
        """
        seen = self._at_scales(images, features)
        if self.config.score == "map":
            described = self._described(seen, images)
            grid = (described.shape[1], described.shape[2])
            maps = F.adaptive_avg_pool2d(self.examine(images, features).maps, grid)
            return (maps.flatten(1).softmax(1)[..., None] * described.flatten(1, 2)).sum(1)
        with torch.no_grad(), self._autocast(images):
            last = len(self.map_layers)
            tokens = [self.backbone.norm(each.cls[last]).float() for each in seen.values()]
        return torch.stack(tokens).mean(0)

    def summarised(self) -> int | None:
        return None if self.config.bank_size else SUMMARISED

    @torch.no_grad()
    def summarise(self, batches: Batches, count: int, progress: Progress) -> None:
        """Stage II: the reference that adaptation brings pictures back to, of training pictures
        (and of their twins, for "entropies"); the spread of their learned maps; and the bank.
        """
        size, noted = self.config.bank_size, Noted()
        bank = StreamingCoreset(size, self.backbone.dim, search_dtype=self._computes_in)
        some: list[tuple[Tensor, Tensor]] = []  # by which the bank is judged, with their owners
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            for done, batch in enumerate(reported(batches(), "remembering", count, progress)):
                seen: Mapping[Size, Features] = {}
                # Evenly from all, as they may be sorted, and the first batch always.
                if done % max(1, count // SUMMARISED) == 0:
                    seen = self._note(batch.images, noted)
                    noted.owners.update(batch.owners.tolist())
                if size:
                    described = self._described(seen, batch.images)
                    places = described[0, ..., 0].numel()
                    bank.add(described.flatten(0, 2).cpu(), batch.owners.repeat_interleave(places))
                    every = max(1, count // LEFT_OUT)
                    few = slice(-done * len(batch.images) % every, None, every)
                    some.append((described[few].clone(), batch.owners[few]))
        self.reference_encoder = None
        self.reference.keep(noted)
        spreads = [spread(torch.cat([each.flatten() for each in noted.maps]))]
        if size:
            progress("selecting", 0, 0)
            kept, owners = bank.result()
            self.bank = kept.to(self.bank.device)
            spreads.append(self._spread_of_distance(some, owners))
        self.normal = torch.stack(spreads, dim=1)

    def _note(self, images: Tensor, noted: Noted) -> Mapping[Size, Features]:
        """Look at training pictures for what adaptation needs to know; what was seen at each scale."""
        if self.config.adaptation == "entropies":
            guide = self.encode(resized(images, self.config.height_width))["guide"]
            twins, _, _ = self._simulated(images, guide)
            seen = self._at_scales(images)
            look = self._look(seen, images)
            twin = self._look(self._at_scales(twins), twins)
            for kept, each in zip(noted.entropies, (look, twin), strict=True):
                assert each.entropies is not None
                kept.append(each.entropies)
        else:
            with alignment.recorded(self.backbone, noted.moments, blocks=self.deepest):
                seen = self._at_scales(images)
            look = self._look(seen, images)
        noted.maps.append(look.maps)
        return seen

    def _spread_of_distance(self, some: Sequence[tuple[Tensor, Tensor]], owners: Tensor) -> Tensor:
        """Mean and spread of the distance of normal pictures, each without its own entries."""
        if bool(
            (owners == owners[0]).all()
        ):  # of one picture, which nothing is known to be far from
            return self.bank.new_tensor([0.0, 1.0])
        distances = [
            self._distance(one[None], (owners == owner).to(self.bank.device)).flatten()
            for described, named in some
            for one, owner in zip(described, named, strict=True)
        ]
        return spread(torch.cat(distances))

    def with_scales(self, scales: Sequence[int]) -> Guided:
        """The same weights, looking at squares of these sides. Entropies are kept where it has
        them.

        Raises: ConfigError for a side below 1.
        """
        other = copy.copy(self)  # the weights are shared
        other.config = replace(self.config, scales=tuple(scales))
        if other.scales == self.scales:
            return self
        known = [self.scales.index(scale) for scale in other.scales if scale in self.scales]
        reference = self.reference.of_sizes(known if len(known) == len(other.scales) else None)
        # Modules live in a dict that the copy shares.
        other._modules = {**self._modules, "reference": reference}
        return other

    def learned_tensors(self) -> dict[str, Stored]:
        width, size = self.backbone.dim, self.config.bank_size
        reference = self.reference.stored(
            blocks=self.deepest, width=width, scales=len(self.scales), heads=self.backbone.heads
        )
        return {
            "bank": Stored(shape=(Free("K", min(1, size), size), width), low=-UNIT, high=UNIT),
            "pictured": numbers(2, low=1, high=2**16),
            "normal": Stored(shape=(2, 1 + min(1, size))),
            **{REFERENCE + name: stored for name, stored in reference.items()},
        }

    def check_learned(self, tensors: Mapping[str, Tensor]) -> None:
        pictured, stride = tensors["pictured"], self.backbone.stride
        if bool((pictured % stride != 0).any()) or int(pictured.prod()) > LARGEST:
            raise ArtifactError(
                f"pictured: {pictured.tolist()} is no size that {stride} divides, or too large a one"
            )
        check_spreads("normal", tensors["normal"], axis=0, first=1)
        names = (name for name in tensors if name.startswith(REFERENCE))
        try:
            check_reference({name.removeprefix(REFERENCE): tensors[name] for name in names})
        except ArtifactError as error:
            raise ArtifactError(f"{REFERENCE}{error}") from error

    def adapter(self, mode: Mode) -> Adapter:
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


@dataclass(frozen=True)
class ReferenceEncoder:
    """The encoder as it was before training, whose attention guides; no part of what is learned."""

    encoder: VitBackbone
    layers: tuple[int, ...]

    def guidance(self, images: Tensor) -> Tensor:
        """Where its [CLS] token looks in B 3 H W: B h w, sum 1."""
        return self.encoder.guidance(images, self.layers)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the network makes of pictures in one size.

    Attributes:
        mask_logits: of the learned map, float32 B h w. features: of the map's layers.
        logits: of the classes, float32 B K, class 0 = normal; None without a class head.
        attention: of the last block's [CLS] token, B L N, rows sum to 1; None where nothing reads
            it.
    """

    mask_logits: Tensor
    features: Features
    logits: Tensor | None
    attention: Tensor | None


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
