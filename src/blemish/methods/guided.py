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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.anomalies import simulator
from blemish.backbones import Backbone, Features
from blemish.backbones.cells import resampled
from blemish.backbones.vit import VitBackbone
from blemish.config import LARGEST
from blemish.errors import ArtifactError, ConfigError
from blemish.losses.dice import dice_loss
from blemish.methods import alignment
from blemish.methods.adaptation import Adapter, EntropyAdapter, Look, attention_entropy
from blemish.methods.augmentation import augmented, simulated
from blemish.methods.base import reported, shown, smooth
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
from blemish.types import Mode, Progress, Scores

SUMMARISED = 256  # training pictures, about, whose maps and moments or entropies are noted
LEFT_OUT = 32  # training pictures, about, by which the bank is judged, each without its own

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
    normal: Tensor  # over normal pictures: means and spreads (rows) of learned map and distance

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
            dim, read = backbone.dim, len(self.map_layers)
            self.class_head = ClassHead(dim, classes) if config.reads_class else None
            self.attention_mix = AttentionMix(backbone.heads) if attends else None
            self.segmentation_head = PatchHead(dim, read) if patches else None
        if self.class_head is not None:
            self.layers = (*self.map_layers, depth)
        if attends or config.adaptation == "entropies":
            self.attended = (depth,)
        self.deepest = max((*self.layers, *self.attended))
        self.register_buffer("bank", torch.empty(0, backbone.dim))
        self.register_buffer("pictured", torch.tensor(self.scoring_size))
        self.register_buffer("normal", torch.empty(0))
        self._pictured: Size | None = None  # the same, once it is asked for
        self.reference = Reference()
        self.average: nn.Module | None = None
        self.reference_guidance: Callable[[Tensor], Tensor] | None = None

    @property
    def scoring_size(self) -> Size:
        return max(self.scales)

    def see(self, images: Tensor, also: Sequence[int] = ()) -> Features:
        with self._autocast(images):
            return super().see(images, also)

    def read(self, seen: Features) -> Read:
        """What the heads make of what `see` gave of pictures in one size."""
        tokens, attention, classes = seen.tokens[: len(self.map_layers)], None, None
        if self.attended:
            rows = seen.attention[self.attended[0]]
            attention = rows / rows.sum(-1, keepdim=True)
        with self._autocast(tokens[0]):
            logits = [] if self.attention_mix is None else [self.attention_mix(attention)]
            logits += [] if self.segmentation_head is None else [self.segmentation_head(tokens)]
            if self.class_head is not None:
                last = self.backbone.norm(seen.cls[len(self.map_layers)])
                classes = self.class_head(last).float()
        mask_logits = torch.stack(logits).sum(0).reshape(tokens[0].shape[0], *seen.grids[0])
        return Read(mask_logits=mask_logits, logits=classes, attention=attention)

    # Training

    @property
    def needs_images(self) -> bool:
        return True

    def prepare_training(self) -> None:
        # The encoder as it is before training: no part of what is learned, nor of the artifact.
        encoder = copy.deepcopy(self.backbone).requires_grad_(False).eval().to(self._computes_in)
        self.reference_guidance = partial(encoder.guidance, layers=self.guides)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """The guidance: where the encoder looked before it was trained, B h w, sum 1."""
        assert self.reference_guidance is not None
        return {"guide": self.reference_guidance(images)}

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
            encoder.norm.requires_grad_(True)
            encoder.blocks[max(0, self.deepest - blocks) : self.deepest].requires_grad_(True)
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        seen = self.see(sample.images[:1])
        read = self.read(seen)
        used = [read.mask_logits, *(() if read.logits is None else (read.logits,))]
        used += seen.tokens[: len(self.map_layers)] if self.config.bank_size else ()
        total = torch.stack([each.float().sum() for each in used]).sum()
        gradients = torch.autograd.grad(total, learning, allow_unused=True)
        for parameter, gradient in zip(learning, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        if self.config.ema:
            self.average = copy.deepcopy(self._learning()).requires_grad_(False)

    def _learning(self) -> nn.ModuleDict:
        """The parts of which anything learns."""

        def learns(part: nn.Module) -> bool:
            return any(each.requires_grad for each in part.parameters())

        return nn.ModuleDict({name: part for name, part in self.named_children() if learns(part)})

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        assert batch.images is not None
        config, images, guide = self.config, batch.images, batch.features["guide"]
        inside = self._looked_at(images)
        if config.augment:
            images, guide, inside = augmented(images, guide, inside)
        # Within the range of pixels, as the twins are: they must not be told apart by that.
        mean, std = self.backbone.colours(images)
        images = ((images * std + mean).clamp(0, 1) - mean) / std
        twins, masks, kinds = self._simulated(images, guide, inside)
        seen = self.read(self.see(torch.cat([images, twins])))
        loss = seen.mask_logits.new_zeros(())
        if seen.logits is not None:
            classes = torch.cat([torch.zeros_like(kinds), kinds])
            loss = loss + config.cross_entropy_weight * F.cross_entropy(seen.logits, classes)
        logits = enlarged(seen.mask_logits, masks.shape[-2:])[:, 0]
        if config.dice_weight:
            loss = loss + config.dice_weight * dice_loss(logits[len(images) :].sigmoid(), masks)
        if config.bce_weight:
            wanted = torch.cat([torch.zeros_like(masks), masks])
            loss = loss + config.bce_weight * F.binary_cross_entropy_with_logits(logits, wanted)
        return loss

    def _simulated(
        self, images: Tensor, guide: Tensor, inside: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Twins of pictures B 3 H W with guidance B h w, of which bool B H W is looked at: B 3 H W,
        soft masks B H W, classes B.
        """
        if self.config.guidance == "uniform":
            guide = torch.ones_like(guide)
        elif self.config.guidance == "shuffled":
            guide = shuffled(guide.flatten(1)).reshape(guide.shape)
        seeds = torch.randint(2**62, (len(images),)).tolist()
        colours, device = self.backbone.colours(images), images.device
        twins, made = simulated(self.simulators, images, colours, guide, seeds, inside)
        masks = torch.from_numpy(np.stack([one.label for one in made])).to(device)
        kinds = torch.tensor([one.kind for one in made], device=device)
        return twins, masks, kinds

    def after_step(self, step: int, steps: int) -> None:
        """The average spans about the last tenth of the run."""
        if self.average is not None:
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
    def scales(self) -> tuple[Size, ...]:
        """(H, W) of the sizes that a picture is scored in, each what the backbone divides."""
        height, width = (round(self.config.zoom * side) for side in self.config.height_width)
        sizes = [(side, side) for side in self.config.scales] or [(height, width)]
        return tuple(dict.fromkeys(self.backbone.round_size(*size) for size in sizes))

    @property
    def scores_by_map(self) -> bool:
        return self.config.score == "map"

    def judge(self, features: Features, images: Tensor) -> Scores:
        return self.combine(self.examine(images, features))

    def examine(self, images: Tensor, features: Features | None = None) -> Look:
        """What is seen in B 3 H W at every one of `scales`; `features` is what `see` gave."""
        self._require(self.normal)
        seen = self._at_scales(images, features)
        look = self._look(seen, images)
        if self.config.bank_size == 0:
            return look
        distance = self._extended(self._distance(self._described(seen, images)), images)
        distance = enlarged(distance, look.maps.shape[-2:])
        (middle, far), (unit, width) = self.normal
        learned = self.config.head_weight * (look.maps - middle) / unit
        return replace(look, maps=learned + (distance - far) / width)

    def _at_scales(self, images: Tensor, features: Features | None = None) -> dict[Size, Features]:
        """What `see` gives of B 3 H W at each of `scales`; `features` are those of their own."""
        known = {} if features is None else {(images.shape[-2], images.shape[-1]): features}
        return {size: known.get(size) or self.see(resized(images, size)) for size in self.scales}

    def _look(self, seen: Mapping[Size, Features], images: Tensor) -> Look:
        """As `examine`, with the map as it is learned."""
        stride = self.config.map_stride
        size = (images.shape[-2] // stride, images.shape[-1] // stride)
        looks = [self.read(features) for features in seen.values()]
        odds = [log_odds(each.logits) for each in looks if each.logits is not None]
        attention = [each.attention.float() for each in looks if each.attention is not None]
        entropies = [attention_entropy(rows) for rows in attention]
        maps = [enlarged(self._extended(each.mask_logits, images), size) for each in looks]
        return Look(
            maps=torch.stack(maps).mean(0),
            odds=torch.stack(odds) if odds else None,
            entropies=torch.stack(entropies) if entropies else None,
            inside=self._inside(images, size),
        )

    def _described(self, seen: Mapping[Size, Features], images: Tensor) -> Tensor:
        """Features of length 1 of all patches of B 3 H W in the size of the bank's: B h w D."""
        if self._pictured is None:
            height, width = self.pictured.tolist()
            self._pictured = height, width
        size = self._pictured
        with torch.no_grad():
            features = seen.get(size) or self.see(resized(images, size))
            own = features.layers(slice(len(self.map_layers)))
            described, grid = join(own, "vit", pooling=self.config.pooling)
        return F.normalize(described, dim=-1).reshape(images.shape[0], *grid, -1)

    def _distance(self, described: Tensor, left_out: Tensor | None = None) -> Tensor:
        """Distance of B h w D to the bank, without the entries `left_out` (bool K): B h w."""
        rows, bank = described.flatten(0, 2), self.bank.to(self._computes_in)
        return nearest(rows, bank, excluded=left_out)[0].reshape(described.shape[:3])

    def combine(self, look: Look) -> Scores:
        """One score, map and vote for each picture; no votes where there is no class."""
        maps = smooth(look.maps, self.config.smoothing)[:, 0]
        parts, votes = [], None
        if look.odds is not None:
            votes = (look.odds > 0).float().mean(0)
            parts += [look.odds.mean(0)] if self.config.score != "map" else []
        if self.config.score != "class":
            parts.append(self._highest(maps, look.inside))
        return Scores(torch.stack(parts).sum(0), shown(maps, look.inside), votes=votes)

    def describe(self, features: Features, images: Tensor) -> Tensor:
        """What pictures are scored by, B D. Where the score reads the class, the final [CLS] token
        that the class head takes (as the papers show it), mean over `scales`. Otherwise the
        features that the bank holds, mean over the places, each weighted by the softmax of the map.
        """
        seen = self._at_scales(images, features)
        if self.config.score == "map":
            described = self._described(seen, images)
            maps = self.examine(images, features).maps
            maps = F.adaptive_avg_pool2d(maps, (described.shape[1], described.shape[2]))
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
        # By which the bank is judged, which of their places count, and their owners.
        some: list[tuple[Tensor, Tensor, Tensor]] = []
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
                    known = self._framed(batch.images, (described.shape[1], described.shape[2]))
                    counts = known.flatten(1).sum(1).cpu()
                    bank.add(described[known].cpu(), batch.owners.repeat_interleave(counts))
                    every = max(1, count // LEFT_OUT)
                    few = slice(-done * len(batch.images) % every, None, every)
                    some.append((described[few].clone(), known[few], batch.owners[few]))
        self.reference_guidance = None
        self.reference.keep(noted)
        spreads = [spread(torch.cat([each.flatten() for each in noted.maps]))]
        if size:
            progress("selecting", 0, 0)
            kept, owners = bank.result()
            self.bank = kept.to(self.bank.device)
            spreads.append(self._spread_of_distance(some, owners))
        self.normal = torch.stack(spreads, dim=1)

    def _note(self, images: Tensor, noted: Noted) -> Mapping[Size, Features]:
        """Note of training pictures what adaptation needs; gives what was seen at each scale."""
        if self.config.adaptation == "entropies":
            guide = self.encode(resized(images, self.config.height_width))["guide"]
            twins, _, _ = self._simulated(images, guide, self._looked_at(images))
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
        inside = look.inside if self.framed else None
        noted.maps.append(look.maps if inside is None else look.maps[:, 0][inside])
        return seen

    def _spread_of_distance(
        self, some: Sequence[tuple[Tensor, Tensor, Tensor]], owners: Tensor
    ) -> Tensor:
        """Mean and spread of the distance of normal pictures, each without its own entries."""
        if bool((owners == owners[0]).all()):  # nothing is known to be far from a single picture
            return self.bank.new_tensor([0.0, 1.0])
        distances = [
            self._distance(one[None], (owners == owner).to(self.bank.device))[0, places]
            for described, known, named in some
            for one, places, owner in zip(described, known, named, strict=True)
        ]
        return spread(torch.cat(distances))

    def with_scales(self, scales: Sequence[int]) -> Guided:
        """The same weights for squares of these sides. Entropies are kept where it has them."""
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
            **reference,
        }

    def check_learned(self, tensors: Mapping[str, Tensor]) -> None:
        pictured, stride = tensors["pictured"], self.backbone.stride
        if bool((pictured % stride != 0).any()) or int(pictured.prod()) > LARGEST:
            raise ArtifactError(
                f"pictured: {pictured.tolist()} is no size that {stride} divides, or too large"
            )
        check_spreads(tensors, "normal", axis=0, first=1)
        check_reference(tensors)

    def adapter(self, mode: Mode) -> Adapter:
        config, stride = self.config, self.backbone.stride
        if config.adaptation == "entropies":
            rate, guarded = config.adaptation_rate, config.adaptation_guard
            steps = config.adaptation_steps
            return EntropyAdapter(self, mode, rate=rate, steps=steps, guarded=guarded)
        sizes = {(height // stride) * (width // stride) for height, width in self.scales}
        return alignment.Aligner(self, mode, sizes)


@dataclass(frozen=True, slots=True)
class Read:
    """What the heads make of pictures in one size.

    Attributes:
        mask_logits: of the learned map, float32 B h w.
        logits: of the classes, float32 B K, class 0 = normal; None without a class head.
        attention: of the last block's [CLS] token, B L N, rows sum to 1; None where it is not read.
    """

    mask_logits: Tensor
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
    return F.interpolate(maps[:, None].float(), tuple(size), mode="bilinear", align_corners=False)


def resized(images: Tensor, size: Size) -> Tensor:
    """B 3 H W at another size, antialiased where it shrinks."""
    return resampled(images, size, antialias=True)
