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
from torch import Tensor

from blemish.anomalies.cutmix import cut_mix, recoloured
from blemish.config import NotNegative, Positive, Range
from blemish.errors import ConfigError
from blemish.losses.deviation import deviation_loss
from blemish.methods.labelled import normal_first
from blemish.methods.learner import TrainingBatch
from blemish.methods.openset import Heads, Look, OpenSet, OpenSetConfig


@dataclass(frozen=True, kw_only=True)
class DraConfig(OpenSetConfig):
    """Settings of DRA; the defaults are `best`.

    Attributes:
        weight_decay: of Adam, added to the gradient.
    """

    backbone: str = "efficientnet_lite0"
    epochs: Annotated[int, Range(1, 2**31)] = 1
    min_steps: Annotated[int, Range(0, 2**31)] = 600
    train_batch_size: Annotated[int, Range(3, 2**20)] = 12  # three kinds
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 1e-5
    margin: Positive = 5.0
    extractor_rate: NotNegative = 0.0

    @classmethod
    def paper(cls) -> Self:
        """The published setting: ResNet-18, 448² and 224², 30 epochs of 20 batches of 48."""
        own = cls(backbone="resnet18", extractor_rate=1.0, rotations=8, smoothing=0.0)
        return replace(own, train_batch_size=48, learning_rate=2e-4)


class Dra(OpenSet):
    """DRA's network, all of it trained on batches of the three kinds."""

    name = "dra"
    summary = "heads for known, made and residual anomalies, taught by a few known defects"
    source = "Ding et al. 2022, DRA: Catching Both Gray and Black Swans"
    Config = DraConfig
    config: DraConfig

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        """The sum of the four deviation losses."""
        return self.end_to_end(self.heads, *self.mixed(batch))

    def mixed(self, batch: TrainingBatch) -> tuple[Tensor, int, int]:
        """Pictures B 3 H W (normal ones, those that a piece was pasted into, labelled defects), how
        many the first kind are, and the first two.
        """
        images, plain, normal = divided(batch)
        return self.pasted(images, plain, normal), plain, normal

    def pasted(self, images: Tensor, start: int, end: int, *, other: bool = False) -> Tensor:
        """Pictures B 3 H W; a recoloured piece of itself, or of the one before (`other`), is pasted
        into those from `start` (1 at least) to `end`.
        """
        whole = images[start:end]
        donors = images[start - 1 : end - 1] if other else whole
        pieces = recoloured(donors, self.backbone.colours(whole))
        made = cut_mix(whole, pieces, self._looked_at(whole))
        return torch.cat([images[:start], made, images[end:]])

    def end_to_end(self, heads: Heads, images: Tensor, plain: int, normal: int) -> Tensor:
        """The loss of heads on pictures in the order of `mixed`, from the pictures on."""
        known, images = len(self.examples), torch.cat([self.examples, images])
        features = self.extracted(images, self.see(images))
        reference = [each[:known].mean(0) for each in features]
        own = [each[known:] for each in features]
        look = self.scored(heads, own, reference, self.insides(images[known:]))
        return self.losses(look, plain, normal)

    def losses(self, look: Look, plain: int, normal: int) -> Tensor:
        """The sum of the four deviation losses of pictures in the order of `mixed`."""
        normality, seen, pseudo, residual = look.scores
        labels = (torch.arange(len(normality), device=normality.device) >= plain).long()
        seen, told = (torch.cat([each[:plain], each[normal:]]) for each in (seen, labels))
        pairs = [(normality, 1 - labels), (seen, told)]
        pairs += [(pseudo[:normal], labels[:normal]), (residual, labels)]
        margin, draws = self.config.margin, self.config.draws
        losses = [deviation_loss(*pair, margin=margin, draws=draws) for pair in pairs]
        return torch.stack(losses).sum()


def divided(batch: TrainingBatch, least: int = 3) -> tuple[Tensor, int, int]:
    """Pictures B 3 H W, the normal ones first; how many of these stay as they are (half), and how
    many there are.

    Raises: ConfigError for fewer than `least` rows.
    """
    images, labels = batch.images, batch.labels
    assert images is not None
    normal = len(images)
    if normal < least:
        raise ConfigError(f"train_batch_size: {least} at least for each process, for all kinds")
    if labels is not None:
        images, _ = normal_first(images, labels)
        normal -= normal // 3
    return images, normal - normal // 2, normal
