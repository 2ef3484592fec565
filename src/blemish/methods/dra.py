"""DRA: heads for different kinds of anomalies on one extractor, taught by a few known ones.

Ding, Pang & Shen 2022, "Catching Both Gray and Black Swans: Open-set Supervised Anomaly Detection".
An extractor, trained end to end, gives a feature for each location. Three heads score anomalies by
location: a 1×1 convolution s each; the mean of the top K values of |s| is a picture's score. The
one for *seen* anomalies learns from normal pictures and labelled defects; that for *pseudo* ones
from normal pictures and ones with a piece pasted in; that for *latent residuals* from all, by what
a 3×3 convolution, batch norm and ReLU make of the mean features of a few normal pictures minus the
picture's own. A fourth scores normality: the absolute value of a perceptron on the mean feature.
Pictures are looked at in two sizes by the same weights; a head's score is the mean of both. Each
head has a deviation loss, in which normal pictures are the deviating ones for the fourth; the loss
is the sum. The anomaly score is the sum of the three less the fourth.

After the authors' code: batches are in thirds normal, pseudo and labelled (halves where nothing is
labelled); a piece is of the picture itself, its colours moved by a tenth; the smaller picture is
the nearest pixels; 256 hidden units; gradients are clipped at 1.

Deviates: the reference pictures are drawn once, and what the last weights give of them is kept; in
the code they are drawn anew for every batch, when scoring too, and half of them have pieces pasted
in. Pictures are turned by eighths of a circle, as `data.transforms` turns; in the code by any
angle, with black corners. The learning rate drops after 10 and 20 epochs, in the code an epoch
earlier. K is rounded, not cut; a third of the batch has pieces, not so many on average. Sides of
pieces are CutPaste's, contrast is about the whole picture's mean, the hue turns about the grey
axis. With an area or padding, K counts what is inside. The heatmap (the paper measures none) is the
sum of the |s|, averaged over the sizes, less the normality score: it is in the unit of the score.

`best` is for encoders at hand: the extractor stays as it is, for few pictures are learned by heart
end to end (docs/findings.md); the heads learn at the rate of ATAC-Net's, from smaller batches;
pictures are not turned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.anomalies.cutmix import cut_mix, recoloured
from blemish.backbones import Backbone, Features
from blemish.config import NotNegative, Positive, Range
from blemish.errors import ConfigError
from blemish.losses.deviation import deviation_loss
from blemish.methods.base import map_size, shown, smooth
from blemish.methods.convolutions import convolved
from blemish.methods.labelled import Labelled, LabelledConfig, normal_first
from blemish.methods.learner import TrainingBatch
from blemish.methods.stored import Stored
from blemish.types import ANOMALOUS, NORMAL, Scores


@dataclass(frozen=True, kw_only=True)
class DraConfig(LabelledConfig):
    """Settings of DRA; the defaults are `best`.

    Attributes:
        weight_decay: of Adam, added to the gradient.
        references: normal pictures whose mean features are the reference.
        levels: sizes in which a picture is looked at, each half the one before.
        hidden: units of the hidden layer of the normality head.
    """

    backbone: str = "efficientnet_lite0"
    epochs: Annotated[int, Range(1, 2**31)] = 1
    min_steps: Annotated[int, Range(0, 2**31)] = 600
    train_batch_size: Annotated[int, Range(3, 2**20)] = 12  # three kinds
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 1e-5
    margin: Positive = 5.0
    extractor_rate: NotNegative = 0.0
    references: Annotated[int, Range(1, 64)] = 5
    levels: Annotated[int, Range(1, 4)] = 2
    hidden: Annotated[int, Range(1, 2**16)] = 256

    def defects_among(self, size: int) -> int | None:
        return size // 3

    @classmethod
    def paper(cls) -> Self:
        """The published setting: ResNet-18, 448² and 224², 30 epochs of 20 batches of 48."""
        own = cls(backbone="resnet18", extractor_rate=1.0, rotations=8, smoothing=0.0)
        return replace(own, train_batch_size=48, learning_rate=2e-4)


class Dra(Labelled):
    """Extractor, and the heads `normality`, `seen`, `pseudo` and `residual`.

    Attributes:
        sizes: (H, W) in which pictures are looked at. grids: (h, w) of the locations in each.
        examples: the reference pictures R 3 H W, while it is trained.
        reference: their mean features, D N, the N locations of all sizes one after the other.
    """

    name = "dra"
    summary = "heads for known, made and residual anomalies, taught by a few known defects"
    source = "Ding et al. 2022, DRA: Catching Both Gray and Black Swans"
    Config = DraConfig
    decoupled = False
    config: DraConfig
    examples: Tensor
    reference: Tensor

    def __init__(self, config: DraConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        height, width = backbone.round_size(*config.height_width)
        each = range(config.levels)
        self.sizes = [backbone.round_size(height >> n, width >> n) for n in each]
        self.grids = [max(backbone.shapes(*size, self.layers).grids) for size in self.sizes]
        self.register_buffer("examples", torch.empty(0), persistent=False)
        self.register_buffer("reference", torch.empty(0))
        dim, hidden = self._width(), config.hidden
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.normality = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))
            self.seen = nn.Conv2d(dim, 1, kernel_size=1)
            self.pseudo = nn.Conv2d(dim, 1, kernel_size=1)
            self.residual = nn.Sequential(*convolved(dim, dim), nn.Conv2d(dim, 1, kernel_size=1))

    def heads(self, features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Of features B D h w and mean features D h w: normality B, and what the other heads make
        of the locations, 3 B h w, none below 0.
        """
        normality = self.normality(features.mean(dim=(2, 3)))[:, 0].abs()
        found = self.seen(features), self.pseudo(features), self.residual(reference - features)
        return normality, torch.cat(found, dim=1).abs().transpose(0, 1)

    def look(self, images: Tensor, seen: Features, known: int = 0) -> tuple[Tensor, list[Tensor]]:
        """The scores of all heads, 4 B, normality first, and for each size the sum of the maps of
        the others, B h w; of pictures B 3 H W, of which `see` gave `seen`.

        Args: known: how many first ones are not scored but the reference; 0 = the learned one is.
        """
        scores, maps, start = [], [], 0
        for number, grid in enumerate(self.grids):
            if number:
                images = self._resized(images, number)
                seen = self.see(images)
            inside = self._inside(images[known:], grid)
            with torch.autocast(images.device.type, enabled=False):
                features = self._extracted(seen).float()
                if known:
                    mean = features[:known].mean(0)
                else:
                    mean = self.reference[:, start : start + grid[0] * grid[1]].reshape(-1, *grid)
                normality, found = self.heads(features[known:], mean)
                tops = [self._highest(each, inside) for each in found]
            scores.append(torch.stack([normality, *tops]))
            maps.append(found.sum(0))
            start += grid[0] * grid[1]
        return torch.stack(scores).mean(0), maps

    def _resized(self, images: Tensor, number: int) -> Tensor:
        return F.interpolate(images, size=self.sizes[number], mode="nearest")

    # Training

    def start_training(self, sample: TrainingBatch) -> None:
        super().start_training(sample)
        images, labels = sample.images, sample.labels
        assert images is not None
        if labels is not None and bool((labels == NORMAL).any()):
            images = images[labels == NORMAL]
        # As many in every process: all get those of the first.
        self.examples = images[torch.arange(self.config.references) % len(images)]

    def mixed(self, batch: TrainingBatch) -> tuple[Tensor, Tensor, int, int]:
        """Pictures B 3 H W (normal ones, those that a piece was pasted into, labelled defects),
        their labels B, how many the first kind are, and the first two.

        Raises: ConfigError for fewer than three rows.
        """
        images, labels = batch.images, batch.labels
        assert images is not None
        normal = len(images)
        if normal < 3:
            raise ConfigError("train_batch_size: 3 at least for each process, for all kinds")
        if labels is None:
            labels = torch.full((normal,), NORMAL, device=images.device)
        else:
            images, labels = normal_first(images, labels)
            normal -= normal // 3
        plain = normal - normal // 2
        whole, labels = images[plain:normal], labels.clone()
        pieces = recoloured(whole, self.backbone.colours(whole))
        pasted = cut_mix(whole, pieces, self._looked_at(whole))
        labels[plain:normal] = ANOMALOUS
        return torch.cat([images[:plain], pasted, images[normal:]]), labels, plain, normal

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        """The sum of the four deviation losses."""
        images, labels, plain, normal = self.mixed(batch)
        images, known = torch.cat([self.examples, images]), len(self.examples)
        normality, seen, pseudo, residual = self.look(images, self.see(images), known)[0]
        seen, told = (torch.cat([each[:plain], each[normal:]]) for each in (seen, labels))
        pairs = [(normality, 1 - labels), (seen, told)]
        pairs += [(pseudo[:normal], labels[:normal]), (residual, labels)]
        margin, draws = self.config.margin, self.config.draws
        losses = [deviation_loss(*pair, margin=margin, draws=draws) for pair in pairs]
        return torch.stack(losses).sum()

    def end_training(self, steps: int) -> None:
        if len(self.examples):
            self.eval()
            with torch.no_grad():
                sized = [self._resized(self.examples, number) for number in range(len(self.sizes))]
                means = [self._extracted(self.see(each)).float().mean(0) for each in sized]
            self.reference = torch.cat([mean.flatten(1) for mean in means], dim=1)
            self.examples = self.examples[:0]
        super().end_training(steps)

    def learned_tensors(self) -> dict[str, Stored]:
        shape = self.seen.in_channels, sum(high * wide for high, wide in self.grids)
        return {**super().learned_tensors(), "reference": Stored(shape=shape)}

    # Scoring

    def judge(self, features: Features, images: Tensor) -> Scores:
        self._require(self.steps)
        (scores, found), size = self.look(images, features), map_size(images)
        spread = []
        for number, each in enumerate(found):
            own = self._resized(images, number)
            spread.append(self._spread(self._extended(each, own), own, size))
        maps = smooth(torch.stack(spread).mean(0), self.config.smoothing)[:, 0]
        maps = maps - scores[0][:, None, None]
        score = scores[1:].sum(0) - scores[0]
        return Scores(score, shown(maps, self._inside(images, size)))
