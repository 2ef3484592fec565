"""ATAC-Net: learn from a few known defects, and look twice: at the picture, then closer at where
attention was.

"ATAC-Net: Zoomed View Works Better for Anomaly Detection". A feature extractor φ, trained end to
end, an attention-augmentation module σ and a score mapper τ give attention features and a score for
each location: a₁ = τ(σ(φ(x))). The channel mean of the attention features, brought to [0, 1], is
the saliency; where it exceeds w lies the crop x_c (eq. 4-6), which the same weights look at again:
a₂ = τ(σ(φ(x_c))) (eq. 7). The score of a map is the mean of its top K values, that of a picture the
mean of the two (eq. 8-10). The deviation loss (eq. 11-12) draws the scores of normal pictures to 0
and pushes those of anomalous ones above k; labels are of whole pictures. Two baselines of the paper
are other settings of `network`: DevNet (the extractor, the mapper and the loss: one look), and a
classifier (a perceptron on the mean feature instead of a score map, weighted cross-entropy).

Deviates: eq. 12 is printed without a lower bound, y·(k − |dev|); here it is DevNet's y·max(0, k −
dev).

The paper does not say, and here: φ ends with the last stage of a CNN (7×7 for ResNet-50 at 224²),
or the last block of a ViT, its tokens layer-normalised. σ is two 3×3 convolutions, each with batch
norm and ReLU, and a self-attention as in
SAGAN (Zhang et al. 2019): queries and keys of an eighth of the width, not scaled, beside a
residual, with a learned weight that starts at 0. The crop is the bounding box of the active cells,
with a margin of a tenth of its own sides on every side, cut at the border of the picture. It
carries no gradient; both looks do. Where nothing stands out it is the whole picture. Batches of
ATAC-Net and DevNet are halves, normal and anomalous, and an epoch shows every normal picture once
(where no defects are labelled, half of them only as what CutMix takes pieces from). Of the
anomalous pictures CutMix makes a part: a piece of a labelled defect, or of a normal picture where
there are none, pasted into a normal one. The classifier takes pictures as they come, normal ones
and few defects; the weights of its cross-entropy, which are the inverse shares of the classes, make
up for that (balanced batches would leave them nothing to weigh). Its perceptron has one hidden
layer with a ReLU, as wide as σ. Batch norm's statistics are those of pictures and crops alike. The
heatmap is a₁, averaged with a₂ where the crop is; the paper reports no pixel metric for it. That of
the classifier is its Grad-CAM, times the number of locations to be in the unit of the logit.

On few pictures the extractor, trained end to end at the paper's rate, learns them by heart
(`docs/findings.md`); `extractor_rate` lets it learn slower, or not at all. That is not in the
paper, and no recipe of the paper sets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.anomalies.cutmix import cut_mix
from blemish.backbones import Backbone, Features
from blemish.config import (
    Factor,
    Fraction,
    FractionBelow1,
    Length,
    NotNegative,
    Positive,
    Range,
    Side,
)
from blemish.errors import ConfigError
from blemish.losses.deviation import deviation_loss
from blemish.methods import frames
from blemish.methods.base import map_size, shown, smooth
from blemish.methods.convolutions import convolved
from blemish.methods.crops import crop_boxes, cropped, enlarged, merged
from blemish.methods.guidance import normalise
from blemish.methods.labelled import Labelled, LabelledConfig, normal_first
from blemish.methods.learner import TrainingBatch
from blemish.types import ANOMALOUS, NORMAL, Scores


@dataclass(frozen=True, kw_only=True)
class AtacNetConfig(LabelledConfig):
    """Settings of ATAC-Net; the defaults are the paper's.

    Attributes:
        weight_decay: 0: the optimiser is Adam; with weight decay it is AdamW.
        network: "atacnet"; "devnet", which looks once and has no attention module; or "classifier".
        active: w, the saliency above which a location is active, in [0, 1).
        padding: margin of the crop on every side, as a share of the side of the active region.
        attention_dim: channels of the attention-augmentation module, and the hidden width of the
            classifier.
        pseudo: share of the anomalous half of a batch that is made by CutMix; all of it where no
            defects are labelled.
    """

    backbone: str = "resnet50"
    image_size: Annotated[tuple[Side, ...], Length(1, 2)] = (224,)
    smoothing: Annotated[float, Range(0, 0.5, below=True)] = 0.0
    epochs: Annotated[int, Range(1, 2**31)] = 30
    train_batch_size: Annotated[int, Range(2, 2**20)] = 16  # both classes
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 0.0
    network: Literal["atacnet", "devnet", "classifier"] = "atacnet"
    active: FractionBelow1 = 0.4
    padding: Factor = 0.1
    margin: Positive = 10.0
    attention_dim: Annotated[int, Range(1, 8192)] = 64
    pseudo: Fraction = 0.5

    def defects_among(self, size: int) -> int | None:
        return None if self.network == "classifier" else size // 2

    @classmethod
    def paper(cls) -> Self:
        """The published setting: ResNet-50, 224², 30 epochs of batches of 16, k = 10, w = 0.4."""
        return cls()

    @classmethod
    def paper_devnet(cls) -> Self:
        """The same without the attention module and the closer look: DevNet (Pang et al. 2019,
        2021).
        """
        return cls(network="devnet")

    @classmethod
    def paper_classifier(cls) -> Self:
        """The same extractor as a classifier: CutMix and weighted cross-entropy."""
        return cls(network="classifier")


class AtacNet(Labelled):
    """Extractor, attention-augmentation module and score mapper."""

    name = "atacnet"
    summary = "learning from a few known defects, with a closer look where attention is"
    source = "Gupta et al. 2024, ATAC-Net: Zoomed View Works Better for Anomaly Detection"
    Config = AtacNetConfig
    training_only = ("attention.key.bias",)  # alike for all keys of a query: no softmax sees it
    config: AtacNetConfig

    def __init__(self, config: AtacNetConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        dim = self._width()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            width = config.attention_dim
            self.attention: AttentionAugmentation | None = None
            self.mapper: nn.Module  # τ, or the classifier's perceptron on one vector a picture
            if config.network == "classifier":
                self.mapper = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, 1))
            elif config.network == "devnet":
                self.mapper = nn.Conv2d(dim, 1, kernel_size=1)
            else:
                self.attention = AttentionAugmentation(dim, width)
                self.mapper = nn.Conv2d(width, 1, kernel_size=1)

    # The network

    def look(self, images: Tensor, seen: Features) -> Look:
        """All that it makes of pictures B 3 H W, of which `see` gave the features."""
        features, first = self.glance(seen)
        if self.config.network == "classifier":
            with torch.autocast(images.device.type, enabled=False):
                return Look(self.mapper(features.mean(dim=(2, 3)))[:, 0], features, first)
        config, grid = self.config, (first.shape[1], first.shape[2])
        inside = self._inside(images, grid)
        score = self._highest(first, inside)
        if config.network == "devnet":
            return Look(score, features, first)
        saliency = normalise(features.detach().mean(1).flatten(1)).reshape(first.shape)
        if self.framed:  # nobody looks closer at padding
            saliency = shown(saliency, inside)
        offset = self._offset(first, images)
        boxes = crop_boxes(saliency, active=config.active, padding=config.padding, offset=offset)
        crops = cropped(images, boxes)
        _, second = self.glance(self.see(crops))
        closer = frames.places(crops, grid) if self.framed else None
        score = (score + self._highest(second, closer)) / 2
        if self.framed:
            second = frames.extended(second, crops)
        return Look(score, features, first, second, saliency, boxes)

    def glance(self, seen: Features) -> tuple[Tensor, Tensor]:
        """One look: the features, float32 B C h w, and what is shown of each location, B h w.

        The features are the attention features, or the extractor's where there is no attention
        module. What is shown is the score of the location, and of the classifier, which gives it
        none, the Grad-CAM.
        """
        features = self._extracted(seen)
        if self.attention is not None:
            with self._autocast(features):
                features = self.attention(features)
        with torch.autocast(features.device.type, enabled=False):  # in bf16 scores would tie
            features = features.float()
            if self.config.network == "classifier":
                return features, grad_cam(self.mapper, features)
            return features, self.mapper(features)[:, 0]

    # Training

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        """Eq. 12, or the weighted cross-entropy."""
        images, labels = self.mixed(batch)
        score = self.look(images, self.see(images)).score
        if self.config.network == "classifier":
            weight = torch.tensor(class_weights(self.class_counts), device=score.device)[labels]
            return F.binary_cross_entropy_with_logits(score, labels.float(), weight=weight)
        return deviation_loss(score, labels, margin=self.config.margin, draws=self.config.draws)

    def mixed(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Pictures B 3 H W and labels B, the normal ones first: CutMix has made `pseudo` of the
        anomalous ones.

        Args: batch: where half of a batch is to be anomalous (`defects_among`), B//2 of its rows
            are labelled defects, or none is: then these rows are normal pictures that CutMix takes
            pieces from.
        Raises: ConfigError for fewer than two rows.
        """
        images, labels = batch.images, batch.labels
        assert images is not None
        count = len(images)
        half = count // 2
        if half == 0:
            raise ConfigError("train_batch_size: 2 at least for each process, for both classes")
        balanced = self.config.defects_among(count) is not None
        anomalous = made = half
        if labels is None:
            # Unless other processes have the defects.
            if not balanced and self.class_counts[1]:
                anomalous = made = 0
            labels = torch.full((count,), NORMAL, device=images.device)
        else:
            if not balanced:
                anomalous = int((labels == ANOMALOUS).sum())
            # On average that share.
            made = int(self.config.pseudo * anomalous + float(torch.rand(())))
            images, labels = normal_first(images, labels)
        normal, other = images[: count - anomalous], images[count - anomalous :]
        made = min(made, len(normal))
        pseudo = cut_mix(normal[:made], other[:made], self._looked_at(normal[:made]))
        found = [labels[: count - anomalous], labels[count - anomalous + made :]]
        found.append(labels.new_full((made,), ANOMALOUS))
        return torch.cat([normal, other[made:], pseudo]), torch.cat(found)

    def findings(self, sample: TrainingBatch) -> dict[str, float]:
        """The mean scores of both classes, and the share of the picture that crops cover."""
        images = sample.images
        if images is None or len(images) < 2:
            return {}
        training = self.training
        self.eval()
        images, labels = self.mixed(sample)
        look = self.look(images, self.see(images))
        self.train(training)
        figures = {}
        for name, label in (("normal_score", NORMAL), ("anomalous_score", ANOMALOUS)):
            if len(scores := look.score[labels == label]):
                figures[name] = float(scores.mean())
        if look.boxes is not None:
            figures["crop_share"] = float(look.boxes[:, 2:].prod(1).mean())
        return figures

    # Scoring

    def judge(self, features: Features, images: Tensor) -> Scores:
        """Scores, maps and saliency (at a quarter of the input's sides) and crops of B 3 H W."""
        self._require(self.steps)
        look, size = self.look(images, features), map_size(images)
        first, inside = self._extended(look.first, images), self._inside(images, size)
        offset = self._offset(look.first, images)
        saliency = None
        if look.saliency is not None:
            saliency = shown(enlarged(look.saliency, size, offset), inside)
        if look.second is None or look.boxes is None:
            maps = enlarged(first, size, offset)
        else:
            maps = merged(first, look.second, look.boxes, size, offset)
        maps = smooth(maps[:, None], self.config.smoothing)[:, 0]
        return Scores(look.score, shown(maps, inside), saliency=saliency, boxes=look.boxes)

    @torch.no_grad()
    def describe(self, features: Features, images: Tensor) -> Tensor:
        """The mean over the locations of the features of the first look; see `glance`."""
        self._require(self.steps)
        return self.glance(features)[0].mean(dim=(2, 3))


@dataclass(frozen=True, slots=True)
class Look:
    """What the network makes of B pictures.

    Attributes:
        score: float32 B. features: those that are mapped, float32 B C h w, of the first pass.
        first, second: scores of the locations of the picture and of its crop, float32 B h w.
        saliency: B h w in [0, 1]. boxes: the crops, B 4; see `crop_boxes`.
    """

    score: Tensor
    features: Tensor
    first: Tensor
    second: Tensor | None = None
    saliency: Tensor | None = None
    boxes: Tensor | None = None


class AttentionAugmentation(nn.Module):
    """σ: convolutions of features B D h w to C channels, then self-attention beside a residual."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*convolved(dim, width), *convolved(width, width))
        narrow = max(1, width // 8)
        self.query = nn.Conv2d(width, narrow, kernel_size=1)
        self.key = nn.Conv2d(width, narrow, kernel_size=1)
        self.value = nn.Conv2d(width, width, kernel_size=1)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        x = self.convolutions(features)
        parts = (self.query, self.key, self.value)
        q, k, v = (part(x).flatten(2).transpose(1, 2) for part in parts)  # each B N d
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return cast(Tensor, x + self.gain * mixed.transpose(1, 2).reshape(x.shape))


@torch.no_grad()
def grad_cam(perceptron: nn.Module, features: Tensor) -> Tensor:
    """Grad-CAM of a perceptron's logit on the mean of features B C h w: B h w, in the unit of the
    logit.

    Selvaraju et al. 2017: ReLU of the channels, weighted by the mean gradient of the logit, here
    times the number of locations; for one hidden layer with a ReLU that gradient has a closed form.
    """
    hidden, _, last = cast(nn.Sequential, perceptron)
    open_ = (hidden(features.mean(dim=(2, 3))) > 0).float()
    weights = (open_ * last.weight) @ hidden.weight
    each = weights[:, None] @ features.flatten(2)  # B 1 N
    return F.relu(each.reshape(features.shape[0], *features.shape[2:]))


def class_weights(counts: tuple[int, int]) -> tuple[float, float]:
    """What a normal picture and a defect count, so that both classes count alike; 1 on average over
    `counts` pictures.

    Where there is no defect CutMix makes half of every batch, and both count 1.

    Example:
        >>> class_weights((30, 10))
        (0.6666666666666666, 2.0)
    """
    normal, defects = counts
    if not normal or not defects:
        return 1.0, 1.0
    return (normal + defects) / (2 * normal), (normal + defects) / (2 * defects)
