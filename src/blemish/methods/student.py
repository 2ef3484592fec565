"""A student: a smaller encoder that learns, on good pictures, to see as a larger one does.

Batzner et al. 2024, "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level
Latencies", distil a large network into a small one, patch by patch, by the squared distance of
normalised features. Deviates: the paper's student is a CNN that learns from all of ImageNet what a
WideResNet sees, and a second one learns good pictures alone; here one student learns for any method
from the good pictures of one part, and so that it sees defects as its teacher does, half of what it
is shown has a synthetic anomaly in it. It starts as some of the teacher's own blocks, as a network
drawn at random learns far less in minutes (docs/log.md).

For each of the teacher's layers that the method reads, with LN the layer norm without weights:

    loss = mean over pictures, layers, patches and channels of (LN(student) − LN(teacher))²

Agreement, of pictures that it has not learned, with m the mean of LN(teacher) over patches:

    1 − Σ (LN(student) − LN(teacher))² / Σ (LN(teacher) − m)²

1 = the same; 0 = no more than the mean patch of the teacher tells.
"""

from __future__ import annotations

import copy
import hashlib
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.anomalies import simulate_batch
from blemish.anomalies.blending import FPI, NSA
from blemish.anomalies.cutpaste import CutPaste, CutPasteScar
from blemish.anomalies.guided import GuidedFine
from blemish.backbones import Backbone, VitBackbone
from blemish.backbones.building import chosen_blocks
from blemish.config import Fraction, Layers, NotNegative, Positive, Range, Seed
from blemish.errors import ConfigError
from blemish.methods.learner import FineTuned, FineTuning, TrainingBatch

LEARNED = (CutPaste(), CutPasteScar(), NSA())  # synthetic anomalies that it learns from
HELD = (GuidedFine(), FPI())  # and others, by which its agreement is measured


@dataclass(frozen=True, kw_only=True)
class Distillation(FineTuning):
    """Settings of a distillation; those of its run are as of every training.

    Attributes:
        anomalies: share of what it is shown that has a synthetic anomaly.
        most_views: at most so many views of good pictures (of their tiles) are learned from: eight
            of each (four angles, plain and mirrored), of many four, two or one, and of more than
            these some, evenly from all.
        held: the share of the good pictures that it does not learn from, to measure its agreement
            by; between 2 and 16 of them.
        seed: of how the pictures are changed, and of the run.
    """

    epochs: Annotated[int, Range(1, 2**31)] = 1
    min_steps: Annotated[int, Range(0, 2**31)] = 300
    train_batch_size: Annotated[int, Range(1, 2**20)] = 8
    learning_rate: Positive = 2e-4
    learning_rate_start: NotNegative = 1e-6
    layer_decay: Annotated[float, Range(0, 1, above=True)] = 1.0
    anomalies: Fraction = 0.5
    most_views: Annotated[int, Range(1, 2**20)] = 768
    held: Annotated[float, Range(0, 0.5, above=True)] = 0.125
    seed: Seed = 0

    @classmethod
    def for_input(cls, height: int, width: int, *, seed: int) -> Self:
        """The settings for pictures of a size: of large ones fewer, as each of their patches
        teaches.

        Example:
            >>> [(one.train_batch_size, one.most_views) for one in
            ...  (StudentConfig.for_input(side, side, seed=0) for side in (112, 224, 448, 896))]
            [(8, 768), (8, 768), (2, 192), (1, 96)]
        """
        usual = cls(seed=seed)
        size = min(max(1, round(8 * 224 * 224 / (height * width))), 8)
        return replace(usual, train_batch_size=size, most_views=96 * size)

    def copies(self, pictures: int) -> tuple[int, bool]:
        """At how many angles each of so many pictures is learned, and whether mirrored as well.

        Example:
            >>> [StudentConfig(most_views=80).copies(count) for count in (10, 20, 40, 41, 900)]
            [(4, True), (4, False), (1, True), (1, False), (1, False)]
        """
        each = self.most_views // pictures
        return (4 if each >= 4 else 1), each >= 8 or 2 <= each < 4


@dataclass(frozen=True, kw_only=True)
class StudentConfig(Distillation):
    """Settings of a student that is made of some of its teacher's blocks.

    Attributes:
        blocks: which of the teacher's blocks the student starts from, ascending, the layers that
            the method reads among them; empty = half of those up to the last of these.
    """

    blocks: Layers = ()


class Distilled(FineTuned):
    """The smaller encoder, and while it learns, its teacher.

    Attributes:
        backbone: the student. layers: those of the teacher that it learns.
        held: normalised pictures B 3 H W that it does not learn from.
    """

    name = "student"
    config: Distillation
    backbone: Backbone
    held: Tensor

    def __init__(self, config: Distillation, teacher: Backbone, layers: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.layers = tuple(sorted(set(layers)))
        self.backbone = self._begun(teacher)
        self.held = torch.empty(0)
        # In a list, as it is no part of what is learned and kept.
        self._teacher: list[Backbone] = [teacher]

    @abstractmethod
    def _begun(self, teacher: Backbone) -> Backbone:
        """The student before it learns."""

    # What it is shown

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Each of B 3 H W changed, always in the same way, and what the teacher sees then, in
        float16: "shown" B 3 H W and "taught" B K N D."""
        shown = torch.stack([self.changed(image) for image in images]).half()
        return {"shown": shown, "taught": self._taught(shown.float())}

    def changed(self, image: Tensor) -> Tensor:
        """A normalised picture 3 H W as it is shown: a part of it enlarged, its colours moved, an
        anomaly put in; all of it drawn by the picture's content and the seed."""
        content = image.to("cpu", torch.float32).contiguous().numpy().tobytes()
        digest = hashlib.sha256(content + str(self.config.seed).encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:8]))
        pixels = self._pixels(image)
        if random.random() < 0.5:
            pixels = _enlarged(pixels, random)
        if random.random() < 0.5:
            gain, shift = random.uniform(0.8, 1.2, 3), random.uniform(-0.1, 0.1, 3)
            pixels = np.clip(pixels * gain + shift, 0, 1)
        if random.random() < self.config.anomalies:
            pixels = _spoilt(pixels, LEARNED, int(random.integers(2**31)))
        return self._normalised(pixels).to(image.device)

    def _pixels(self, image: Tensor) -> np.ndarray:
        """float32 H W 3 in [0, 1] of a normalised 3 H W."""
        own = image.detach().to("cpu", torch.float32).permute(1, 2, 0).numpy()
        found: np.ndarray = np.clip(own * self.backbone.std + self.backbone.mean, 0, 1)
        return found.astype(np.float32)

    def _normalised(self, pixels: np.ndarray) -> Tensor:
        own = (pixels - self.backbone.mean) / np.array(self.backbone.std)
        return torch.from_numpy(own.astype(np.float32)).permute(2, 0, 1).contiguous()

    # Training

    def start_training(self, sample: TrainingBatch) -> None:
        self.requires_grad_(True)

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        shown, taught = (batch.features[name].float() for name in ("shown", "taught"))
        return F.mse_loss(self._seen(shown), self._target(taught))

    @torch.no_grad()
    def findings(self, sample: TrainingBatch) -> dict[str, float]:
        """How well it agrees with its teacher on the pictures held: as they are, and with synthetic
        anomalies of other kinds than it has learned from."""
        spoilt = [
            self._normalised(_spoilt(self._pixels(image), HELD, number))
            for number, image in enumerate(self.held)
        ]
        return {
            "agreement": self._agreement(self.held),
            "agreement_on_anomalies": self._agreement(torch.stack(spoilt)),
        }

    def end_training(self, steps: int) -> None:
        self._teacher.clear()
        self.held = torch.empty(0)
        self.requires_grad_(False)

    def _agreement(self, images: Tensor) -> float:
        own, theirs = [], []
        self.backbone.eval()
        for part in torch.split(images.to(self.backbone.device), self.config.train_batch_size):
            with self._autocast(part):
                own.append(self._seen(part).cpu())
                theirs.append(self._target(self._taught(part).float()).cpu())
        seen, taught = torch.cat(own), torch.cat(theirs)
        apart = (taught - taught.mean((0, 2), keepdim=True)).square().sum()
        return float(1 - (seen - taught).square().sum() / apart.clamp(min=1e-12))

    @abstractmethod
    def _taught(self, images: Tensor) -> Tensor:
        """What the teacher sees in B 3 H W: float16 B K N D."""

    def _target(self, taught: Tensor) -> Tensor:
        """What the student is to see where the teacher saw that, B K N D."""
        return taught

    @abstractmethod
    def _seen(self, images: Tensor) -> Tensor:
        """What the student sees in B 3 H W: float32 B K N D."""


class Student(Distilled):
    """A ViT of some of its teacher's blocks."""

    config: StudentConfig
    backbone: VitBackbone

    def _begun(self, teacher: Backbone) -> Backbone:
        blocks = blocks_of(teacher, self.layers, self.config)
        assert isinstance(teacher, VitBackbone)
        return shortened(teacher, blocks)

    def start_training(self, sample: TrainingBatch) -> None:
        # Not what comes after the last block, which no layer depends on.
        after = ("norm.", "fc_norm.", "attn_pool.", "head")
        for name, parameter in self.backbone.model.named_parameters():
            parameter.requires_grad_(not name.startswith(after))

    @torch.no_grad()
    def _taught(self, images: Tensor) -> Tensor:
        (teacher,) = self._teacher
        with self._autocast(images):
            return self._normed(teacher, images).half()

    def _seen(self, images: Tensor) -> Tensor:
        return self._normed(self.backbone, images)

    def _normed(self, backbone: Backbone, images: Tensor) -> Tensor:
        """The features of B 3 H W that are learned, float32 B K N D."""
        tokens = backbone(images, self.layers).tokens
        return torch.stack([F.layer_norm(each.float(), each.shape[-1:]) for each in tokens], dim=1)


def half_of(layers: Sequence[int]) -> tuple[int, ...]:
    """Every second block on the way to each of the layers, and those of the layers themselves.

    Example:
        >>> half_of((4, 6, 8)), half_of((3, 9))
        ((2, 4, 6, 8), (2, 3, 5, 7, 9))
    """
    found: list[int] = []
    before = 0
    for layer in sorted(set(layers)):
        count = math.ceil((layer - before) / 2)
        found += [before + math.ceil((layer - before) * k / count) for k in range(1, count + 1)]
        before = layer
    return tuple(found)


def blocks_of(teacher: Backbone, layers: Sequence[int], config: StudentConfig) -> tuple[int, ...]:
    """Which blocks of a teacher its student for these layers starts from.

    Raises: ConfigError for a CNN, for blocks that it does not have or that lack one of the layers,
    and where nothing would be left out.
    """
    blocks = config.blocks or half_of(layers)
    if not isinstance(teacher, VitBackbone):
        raise ConfigError(
            f"student: is made of some blocks of a ViT, and {teacher.spec.name} is a CNN; choose a "
            "ViT as the backbone, as --backbone dinov2_vits14, or leave student out"
        )
    teacher.check_layers(blocks)
    if list(blocks) != sorted(blocks) or set(layers) - set(blocks):
        raise ConfigError(
            f"blocks: ascending numbers are needed, the layers {', '.join(map(str, layers))} of "
            f"the method among them, got {', '.join(map(str, blocks))}"
        )
    if set(range(1, max(blocks) + 1)) <= set(blocks):
        raise ConfigError(
            f"student: layers {', '.join(map(str, blocks))} of {teacher.spec.name} are needed "
            "themselves, so no block can be left out; choose deeper --layers, or leave student out"
        )
    return blocks


def shortened(teacher: VitBackbone, blocks: Sequence[int]) -> VitBackbone:
    """A ViT of some of another's blocks, a copy of them."""
    places = [teacher.blocks.index(block) + 1 for block in blocks]
    model: Any = copy.copy(teacher.model)
    model._modules = dict(teacher.model._modules)
    model.blocks = chosen_blocks(teacher.model, places)
    spec = replace(
        teacher.spec,
        blocks=tuple(blocks),
        about=f"student of {len(blocks)} blocks, of {teacher.spec.about}",
    )
    made = VitBackbone(spec, copy.deepcopy(model), teacher.info)
    return made.to(teacher.device).eval()


def _enlarged(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A part of a picture H W 3, of half its sides at least, at the size of all."""
    import cv2

    height, width = pixels.shape[:2]
    share = random.uniform(0.5, 1)
    high, wide = max(1, round(share * height)), max(1, round(share * width))
    top, left = (int(random.integers(whole - own + 1)) for whole, own in
                 ((height, high), (width, wide)))  # fmt: skip
    part = np.ascontiguousarray(pixels[top : top + high, left : left + wide])
    return np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR))


def _spoilt(pixels: np.ndarray, simulators: Sequence[Any], seed: int) -> np.ndarray:
    """A picture H W 3 with a synthetic anomaly by one of the simulators, anywhere."""
    flat = np.ones((1, 1, 1), dtype=np.float32)
    (made,) = simulate_batch(simulators, pixels[None].astype(np.float32), flat, [seed], threads=1)
    return made.image
