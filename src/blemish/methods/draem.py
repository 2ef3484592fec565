"""DRAEM: repair what textures were laid over, and tell where, by the picture and its repair.

Zavrtanik, Kristan, Skočaj 2021, "DRAEM - A Discriminatively Trained Reconstruction Embedding for
Surface Anomaly Detection" (ICCV), with the numbers of the authors' implementation. From a good
picture I a picture I_a is made, with a texture in some places M (`anomalies.perlin`), in half of
all cases, else as it is. Two networks learn from scratch, end to end:

    I_r = R(I_a), a U shape without skips: L_rec = mean (I − I_r)² + 1 − SSIM(I, I_r)
    M_o = softmax D(I_r, I_a), a U-Net: L_seg = focal loss of M_o against M, γ = 2
    loss = L_rec + L_seg
    map = M_o; image score = maximum of the map averaged over 21×21 pixels of 256

R has five blocks of 128 to 1,024 channels, D six of half as many; weights start from normal
distributions of deviation 0.02. Adam, 1e-4, a fifth of it after 80 % and again after 90 % of the
run, 700 epochs of batches of 8, 256². Three in ten pictures are turned by up to 90° before.

Deviates: the convolutions before a batch norm have no bias, which it takes out again. The corners
of a turned picture get the mean colour, not black, and with an area that is the same in all
pictures none is turned. An epoch shows every picture once, where pictures are drawn with
replacement. The focal loss has no smoothing of 1e-5. Batch norm's statistics start as the mean of
the first ten batches', so that short runs have them. What the anomalies deviate in:
`anomalies.perlin`. The paper's textures are the Describable Textures Dataset; `textures` names a
folder of these, or any other. Without one they are generated, which is no published setting.

The encoder has no part in score or map. It places a picture among others (descriptors, categories,
foregrounds), as that of any method.

`best`, the default, is for a CPU: narrower networks, many small steps at a higher rate, and scores
as every method has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.anomalies.perlin import PerlinTexture
from blemish.anomalies.textures import read_textures
from blemish.backbones import Backbone, Features
from blemish.backbones.cells import averaged
from blemish.config import Fraction, Length, NotNegative, Positive, Range, Side
from blemish.losses.focal import focal_loss
from blemish.losses.ssim import ssim
from blemish.methods.augmentation import some_simulated, turned
from blemish.methods.base import map_size, shown, smooth
from blemish.methods.convolutions import UShaped, average_early
from blemish.methods.learner import TrainingBatch, share_statistics
from blemish.methods.stored import Stored, numbers
from blemish.methods.trained import TrainedConfig, TrainedMethod
from blemish.types import Scores


@dataclass(frozen=True, kw_only=True)
class DraemConfig(TrainedConfig):
    """Settings of DRAEM; the defaults are `best`.

    Attributes:
        learning_rate, weight_decay: of Adam.
        textures: a folder of pictures that are laid over good ones, as the Describable Textures
            Dataset, of which 1,000 are used at most; empty = they are generated.
        width: channels of the first block of the repairing network; the other has half of it.
        share: of the pictures that a texture is laid over.
        turned: share of the pictures that are turned, by up to 90°.
        score_window: the image score is the maximum of the map averaged over a square of this
            fraction of the side; 0 = the mean of the `top_fraction`.
    """

    backbone: str = "efficientnet_lite0"
    image_size: Annotated[tuple[Side, ...], Length(1, 2)] = (256,)
    epochs: Annotated[int, Range(1, 2**31)] = 20
    min_steps: Annotated[int, Range(0, 2**31)] = 2000
    train_batch_size: Annotated[int, Range(1, 2**20)] = 4
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 0.0
    textures: str = ""
    width: Annotated[int, Range(2, 1024)] = 16
    share: Fraction = 0.5
    turned: Fraction = 0.0
    score_window: Fraction = 0.0

    @classmethod
    def paper(cls) -> Self:
        """The published setting: 700 epochs of batches of 8 at 256²; `textures` must be named."""
        return cls(
            smoothing=0.0,
            epochs=700,
            min_steps=0,
            train_batch_size=8,
            learning_rate=1e-4,
            width=128,
            turned=0.3,
            score_window=21 / 256,
        )


class Draem(TrainedMethod):
    """The repairing network, and the one that tells where."""

    name = "draem"
    summary = "repair of simulated anomalies, and a segmentation of picture and repair"
    source = "Zavrtanik et al. 2021, DRAEM"
    Config = DraemConfig
    config: DraemConfig
    needs_images = True
    clip_norm = math.inf  # as in the authors' implementation, nothing is clipped
    steps: Tensor

    def __init__(self, config: DraemConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("steps", torch.empty(0, dtype=torch.int64))
        self.simulator = PerlinTexture()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.repair = UShaped(3, 3, config.width, 5, skips=False)
            self.segmentation = UShaped(6, 2, config.width // 2, 6, skips=True)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of normalised pictures B 3 H W the repaired ones, as pixels in [0, 1], and the logits of
        the places, B 2 H W, the second for anomalous ones.
        """
        pixels = self._pixels(images)
        repaired = self.repair(pixels)
        return repaired, self.segmentation(torch.cat([repaired, pixels], dim=1))

    def _pixels(self, images: Tensor) -> Tensor:
        mean, std = self.backbone.colours(images)
        return images * std + mean

    def prepare_training(self) -> None:
        if self.config.textures:
            size = self.backbone.round_size(*self.config.height_width)
            self.simulator = PerlinTexture(textures=read_textures(self.config.textures, size))

    def start_training(self, sample: TrainingBatch) -> None:
        """There is nothing to make: it starts from random weights."""

    def optimizer(self) -> torch.optim.Optimizer:
        learned = [*self.repair.parameters(), *self.segmentation.parameters()]
        rate, decay = self.config.learning_rate, self.config.weight_decay
        return torch.optim.Adam(learned, lr=rate, weight_decay=decay)

    def learning_rate_factor(self, fraction: float) -> float:
        return 0.2 ** ((fraction >= 0.8) + (fraction >= 0.9))

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        """L_rec + L_seg."""
        assert batch.images is not None
        images = batch.images
        inside = self._inside(images, map_size(images))
        if self.framed or inside is None or bool(inside.all()):
            images = turned(images, share=self.config.turned)
        made, masks = self.overlaid(images)
        average_early([self.repair, self.segmentation])
        repaired, logits = self(made)
        pixels = self._pixels(images)
        repair = F.mse_loss(repaired, pixels) + 1 - ssim(repaired, pixels)
        return repair + focal_loss(logits, masks)

    def overlaid(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures B 3 H W, some with a texture, and where: int64 B H W."""
        colours, inside = self.backbone.colours(images), self._looked_at(images)
        return some_simulated([self.simulator], images, colours, self.config.share, inside)

    def after_step(self, step: int, steps: int) -> None:
        share_statistics(self)

    def end_training(self, steps: int) -> None:
        self.requires_grad_(False)
        self.simulator = PerlinTexture()
        self.steps = self.steps.new_tensor([steps])

    def learned_tensors(self) -> dict[str, Stored]:
        return {"steps": numbers(1, low=1)}

    @property
    def scores_by_map(self) -> bool:
        return self.config.score_window == 0

    def judge(self, features: Features, images: Tensor) -> Scores:
        self._require(self.steps)
        size, dtype = map_size(images), self.backbone.dtype
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
            _, logits = self(images)
        raw = self._extended(logits.softmax(1)[:, 1], images)
        maps = smooth(averaged(raw[:, None], size), self.config.smoothing)[:, 0]
        inside = self._inside(images, size)
        if self.scores_by_map:
            return Scores(self._highest(maps, inside), shown(maps, inside))
        height, width = images.shape[-2:]
        side = max(1, round(self.config.score_window * max(height, width)))
        whole = shown(raw, self._inside(images, (height, width)))
        means = F.avg_pool2d(whole, (min(side, height), min(side, width)), stride=1)
        return Scores(means.flatten(1).amax(1), shown(maps, inside))
