"""AGPNet: reconstruct normal features that were perturbed where attention looks.

"Attention-Guided Perturbation for Unsupervised Image Anomaly Detection". A frozen encoder gives
features F (eq. 1); a light decoder learns to give F back from F with noise added (eq. 4-5), the
more so the more attended a location is (eq. 2-3); what it cannot give back at prediction is the
anomaly map (eq. 8). Eq. 4 is F' = F + E ⊙ (α(t) · N(A) + β), and the loss (eq. 7) the squared
distance, mean over the places, as later versions of the paper have them.

The paper does not say, and here: β is 0.5 (docs/log.md says how it was chosen); F is the sum of
layers 3, 6, 9 and 12; the decoder has width 256, feed-forward 1024 and two self-attentions a layer
(by arithmetic: that gives its parameters and multiply-adds); the prior is the [CLS] row over the
patches, brought to sum 1 in each head before heads and layers are averaged; the learned attention
is attention received, mean over queries, from a teacher that sees the clean F; noise is in units of
F's standard deviation in the picture; image noise has σ = 1 in normalised pixels; learning rate
1e-4 and weight decay 1e-4; gradients are clipped at norm 1 of the loss averaged over the channels,
too; the base factor of eq. 5 is 1; the image score averages over 16×16 pixels at 224². A CNN has no
attention: its levels are layer-normalised, brought to the coarsest grid and joined, and the prior
is the channel mean of squared activations.

`best` goes beyond the paper. By the published evidence for plain-ViT reconstruction (Guo et al.
2025, "Dinomaly"): dropout before the decoder, decoder attention without softmax, two groups of
layers as targets, cosine loss that spares what is reconstructed already. By our own (docs/log.md):
a decoder that starts as a linear autoencoder, many small steps, and noise everywhere, though more
of it where the encoder looks.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import Backbone, Features
from blemish.config import Fraction, FractionBelow1, Layers, NotNegative, Positive, Range
from blemish.errors import ConfigError
from blemish.losses.cosine import cosine_distance
from blemish.losses.loose import hard_weights
from blemish.methods.decoder import Decoder
from blemish.methods.guidance import normalise, sharpness, shuffled
from blemish.methods.learner import TrainingBatch, follow
from blemish.methods.reconstruction import Windowed, WindowedConfig, grouped, on_coarsest

Noise = Literal["none", "random", "attention", "shuffled"]


@dataclass(frozen=True, kw_only=True)
class AGPNetConfig(WindowedConfig):
    """Settings of AGPNet; the defaults are `best`.

    Attributes:
        groups: the layers, in their order, are summed to this many targets (eq. 1 has one). A CNN
            has one.
        width, depth, heads, attentions: of the decoder; `attentions` self-attentions a layer.
        start: the decoder's weights before training: "random", or "linear": as the linear
            autoencoder of this width that reconstructs some of the pictures best, so that training
            only adds what a linear map cannot say.
        softmax: whether the decoder's attention has a softmax; without, it is linear in the number
            of patches.
        dropout: of the features before the decoder, in [0, 1); the paper has none.
        loss: "l2" (eq. 7) or "cosine"; the anomaly map is the same distance.
        spared: with the cosine loss, this share of the best reconstructed locations weighs a tenth.
        feature_noise, image_noise: where noise goes: "none"; "random" (alike everywhere);
            "attention"; "shuffled" (attention at the wrong places: the control).
        noise_low, noise_high, noise_until: α(t) of eq. 4 and 5, the intensity of feature noise
            where attention is highest: at the start, and from this fraction of the run on; it rises
            linearly between.
        beta: β of eq. 4, the intensity that every place gets besides, attended or not, from the
            start; from 0. Of "random" noise, too, for which N(A) is 1 everywhere.
        noise_unit: of these intensities: "std", the standard deviation of F in the picture; or
            "absolute", 1.
        image_share, image_from: share of the pixels that image noise covers, until this fraction of
            the run; then it rises to 1 at `noise_until`.
        attention: what guides the noise: the encoder's attention ("prior"), the decoder's
            ("learned") or "both".
        mean_teacher: whether the learned attention comes from an average of the decoder over time
            (eq. 3), or the decoder itself.
        ema_decay, ema_every: of that average, and the steps between updates. None = it spans a
            twentieth of the run.
    """

    layers: Layers = ()
    epochs: Annotated[int, Range(1, 2**31)] = 20
    min_steps: Annotated[int, Range(0, 2**31)] = 2500
    train_batch_size: Annotated[int, Range(1, 2**20)] = 2
    learning_rate: Positive = 2e-3
    groups: Annotated[int, Range(1, 64)] = 2
    width: Annotated[int, Range(1, 8192)] = 256
    depth: Annotated[int, Range(1, 64)] = 4
    heads: Annotated[int, Range(1, 256)] = 8
    attentions: Annotated[int, Range(1, 16)] = 1
    start: Literal["random", "linear"] = "linear"
    softmax: bool = False
    dropout: FractionBelow1 = 0.2
    loss: Literal["l2", "cosine"] = "cosine"
    spared: FractionBelow1 = 0.9
    feature_noise: Noise = "attention"
    image_noise: Noise = "none"
    noise_low: float = 0.0
    noise_high: float = 0.5
    noise_until: Fraction = 0.8
    beta: NotNegative = 0.5
    noise_unit: Literal["std", "absolute"] = "std"
    image_share: Fraction = 0.6
    image_from: Fraction = 0.2
    attention: Literal["prior", "learned", "both"] = "prior"
    mean_teacher: bool = True
    ema_decay: FractionBelow1 | None = None
    ema_every: Annotated[int, Range(1, 2**31)] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % (2 * self.heads):
            raise ConfigError(
                f"width: a multiple of 2 × heads ({2 * self.heads}) is needed, got {self.width}"
            )
        low, high = self.noise_low, self.noise_high
        if not 0 <= low <= high < math.inf:
            raise ConfigError(f"noise_low and noise_high: 0 <= low <= high, got {low} and {high}")

    @classmethod
    def paper(cls) -> Self:
        """The published setting: DINO ViT-S/16 at 224², noise on images and features."""
        return cls(
            backbone="dino_vits16",
            image_size=(224,),
            layers=(3, 6, 9, 12),
            smoothing=0.0,
            epochs=500,
            min_steps=0,
            train_batch_size=32,
            learning_rate=1e-4,
            groups=1,
            attentions=2,
            start="random",
            softmax=True,
            dropout=0.0,
            loss="l2",
            spared=0.0,
            image_noise="attention",
            noise_high=1.0,
            attention="both",
            ema_decay=0.9999,
            schedule="step",
            score_window=16 / 224,
        )


class AGPNet(Windowed):
    """Encoder, decoder and, while training, the teacher."""

    name = "agpnet"
    summary = "reconstruction of features perturbed where attention looks"
    source = "Attention-Guided Perturbation for Unsupervised Image Anomaly Detection (AGPNet)"
    Config = AGPNetConfig
    config: AGPNetConfig
    decoder: Decoder
    averages_smoothed = False
    steps_down = 0.4

    def __init__(self, config: AGPNetConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        probe = self.trained_on()
        self.grid: tuple[int, int] = min(probe.grids)
        widths = [tokens.shape[2] for tokens in probe.tokens]
        dim, self.groups = widths[0], min(config.groups, len(widths))
        if backbone.spec.kind == "cnn":
            dim, self.groups = sum(widths), 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.decoder = Decoder(config, dim, self.groups, self.grid)
        if config.loss == "l2":  # adds up the channels: a limit of 1 would cut every gradient
            self.clip_norm = float(dim)
        self.teacher: Decoder | None = None

    # What the encoder gives

    def targets(self, features: Features) -> Tensor:
        """Eq. 1 of the layers of `features`, by groups: float32 B G N D."""
        normed = [F.layer_norm(layer, layer.shape[-1:]) for layer in features.tokens]
        if self.backbone.spec.kind == "cnn":
            return torch.cat(on_coarsest(features, normed), 2)[:, None]
        return grouped(normed, self.groups)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """`targets` B G N D in the backbone's precision; `prior` B N, the encoder's attention."""
        wanted = self._guided and self.config.attention != "learned"
        rows = self.layers if wanted and self.backbone.spec.kind == "vit" else ()
        features = self.backbone(images, self.layers, attention=rows)
        targets = self.targets(features)
        encoded = {"targets": targets.to(self.backbone.dtype)}
        if rows:
            encoded["prior"] = features.looked_at()
        elif wanted:
            squared = [layer.square().mean(2, keepdim=True) for layer in features.tokens]
            squared = on_coarsest(features, squared)
            encoded["prior"] = torch.stack([normalise(layer[:, :, 0]) for layer in squared]).mean(0)
        return encoded

    # Training

    @property
    def _guided(self) -> bool:
        kinds = (self.config.feature_noise, self.config.image_noise)
        return "attention" in kinds or "shuffled" in kinds

    @property
    def needs_images(self) -> bool:
        return self.config.image_noise != "none"

    def start_training(self, sample: TrainingBatch) -> None:
        if self.config.start == "linear":
            self.decoder.start_linear(sample.features["targets"].float())
        if self._guided and self.config.attention != "prior" and self.config.mean_teacher:
            self.teacher = copy.deepcopy(self.decoder).requires_grad_(False)

    def learning_rate_factor(self, fraction: float) -> float:
        if self.config.schedule == "step":
            return super().learning_rate_factor(fraction)
        warm = min(1.0, (fraction + 1e-3) / 0.03)
        return warm * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * fraction)))

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        """Eq. 6: half the error from perturbed features, half that from features of the perturbed
        picture.
        """
        targets = batch.features["targets"].float()
        guide = targets.new_zeros(targets.shape[0], targets.shape[2])
        if self._guided:
            guide = self._guide(targets, batch.features.get("prior"))
        given = self.decoder(self._perturbed(targets.sum(1), guide, fraction))
        loss = self.loss(given, targets, fraction)
        if self.config.image_noise == "none":
            return loss
        assert batch.images is not None
        with torch.no_grad():
            seen = self.backbone(self._noisy_images(batch.images, guide, fraction), self.layers)
            noisy = self.targets(seen).sum(1)
        given = self.decoder(self._perturbed(noisy, guide, fraction))
        return (loss + self.loss(given, targets, fraction)) / 2

    def after_step(self, step: int, steps: int) -> None:
        """Eq. 3: the teacher follows the decoder."""
        if self.teacher is None or step % self.config.ema_every:
            return
        decay = self.config.ema_decay
        if decay is None:
            decay = max(0.0, 1 - 20 * self.config.ema_every / steps)
        follow(self.teacher, self.decoder, decay)

    def findings(self, sample: TrainingBatch) -> dict[str, float]:
        """How sharp the guidance is."""
        if not self._guided:
            return {}
        targets, prior = sample.features["targets"].float(), sample.features.get("prior")
        return sharpness(self._guide(targets, prior))

    def end_training(self, steps: int) -> None:
        self.teacher = None
        super().end_training(steps)

    def _guide(self, targets: Tensor, prior: Tensor | None) -> Tensor:
        """Eq. 2, the mask that guides the noise: B N in [0, 1]."""
        parts: list[Tensor] = []
        if self.config.attention != "learned":
            assert prior is not None
            parts.append(normalise(prior.float()))
        if self.config.attention != "prior":
            looking = self.decoder if self.teacher is None else self.teacher
            training = looking.training
            looking.eval()
            with torch.no_grad():
                parts.append(normalise(looking.attention_received(targets.sum(1)).float()))
            looking.train(training)
        return normalise(torch.stack(parts).sum(0))

    def intensity(self, fraction: float) -> float:
        """Eq. 5: α(t), in units of `noise_unit`."""
        low, high = self.config.noise_low, self.config.noise_high
        return low + (high - low) * rise(fraction, 0.0, self.config.noise_until)

    def covered(self, fraction: float) -> float:
        """The share of the pixels that image noise covers."""
        share = self.config.image_share
        rising = rise(fraction, self.config.image_from, self.config.noise_until)
        return share + (1 - share) * rising

    def _perturbed(self, features: Tensor, guide: Tensor, fraction: float) -> Tensor:
        """Eq. 4: F' = F + E ⊙ (α(t) · N(A) + β), for features B N D and N(A), the guide, B N."""
        kind = self.config.feature_noise
        if kind == "none":
            return features
        if kind == "random":
            guide = torch.ones_like(guide)
        elif kind == "shuffled":
            guide = shuffled(guide)
        strength = (self.intensity(fraction) * guide + self.config.beta)[:, :, None]
        if self.config.noise_unit == "std":
            strength = strength * _spread(features)
        return features + strength * torch.randn_like(features)

    def _noisy_images(self, images: Tensor, guide: Tensor, fraction: float) -> Tensor:
        """Pictures B 3 H W with Gaussian noise in the most attended share of their pixels."""
        kind = self.config.image_noise
        if kind != "attention":
            guide = torch.rand_like(guide) if kind == "random" else shuffled(guide)
        size = (images.shape[-2], images.shape[-1])
        wanted = self._spread(guide.reshape(len(guide), *self.grid), images, size)
        order = wanted.flatten(1).argsort(1, descending=True)
        chosen = order[:, : round(self.covered(fraction) * order.shape[1])]
        inside = torch.zeros_like(wanted.flatten(1)).scatter_(1, chosen, 1.0).reshape(wanted.shape)
        return images + inside * torch.randn_like(images)

    def loss(self, given: Tensor, targets: Tensor, fraction: float) -> Tensor:
        """Eq. 7 for reconstructions B G N D, a mean over pictures, groups and places: of the
        squared l2 distance of the D channels, or of the cosine distance, which spares easy places.
        """
        if self.config.loss == "l2":
            return (given.float() - targets).square().sum(-1).mean()
        distance = cosine_distance(given, targets)
        easy = self.config.spared * min(1.0, 10 * fraction)  # everything counts at first
        if easy == 0:
            return distance.mean()
        return (distance * hard_weights(distance, easy)).mean()

    # Scoring

    def anomaly_map(self, features: Features, images: Tensor) -> Tensor:
        """Eq. 8: the distance between what goes into the decoder and what comes out, B h w."""
        own = features.layers(slice(len(self.layers)))
        targets = self.targets(own)
        given = self.reconstructed(targets.sum(1))
        if self.config.loss == "l2":
            distance: Tensor = (targets - given).square().sum(-1).sqrt()
        else:
            distance = 1 - F.cosine_similarity(given, targets, dim=-1)
        return distance.mean(1).reshape(targets.shape[0], *self.grid)


def _spread(features: Tensor) -> Tensor:
    """The standard deviation of each picture's features B N D: B 1 1.

    `Tensor.std` takes twenty times as long on a CPU, longer than drawing the noise.
    """
    centred = features - features.mean(dim=(1, 2), keepdim=True)
    count = features[0].numel()
    norm: Tensor = torch.linalg.vector_norm(centred, dim=(1, 2), keepdim=True)
    return norm / math.sqrt(count - 1)


def rise(fraction: float, start: float, end: float) -> float:
    """A line from 0 at `start` to 1 at `end`, and a step where these are not in this order."""
    if end <= start:
        return float(fraction >= start)
    return min(1.0, max(0.0, (fraction - start) / (end - start)))
