"""UniAD: give features back from those that lie farther away, layer by layer from learned queries.

You et al. 2022, "A Unified Model for Multi-class Anomaly Detection" (NeurIPS), with the numbers of
the authors' implementation. The levels of a frozen CNN are brought to the grid of the coarsest and
joined to features f of C channels, one for each of N places:

    feature jittering, while it learns: f′ = f + ε · α ‖f‖ / C with ε ~ N(0, 1), α = 20
    x = W f′ + b, of 256 channels; positions p are learned for rows and columns and are added to
        queries and keys, not to values
    neighbour-masked attention: no place looks at itself or at the 7×7 places around it
    encoder, 4 layers: masked self-attention, then a feed-forward part
    layer-wise query decoder, 4 layers, each with N learned queries of its own: masked attention to
        what the encoder gives, then to what the layer before gives (the first: the encoder), then a
        feed-forward part
    each part is added to what it is given, and a layer norm follows it; the last output is normed
        once more and goes back to C channels

    loss = mean of the squared differences; map = l2 norm of the difference at a place; image score
    = maximum of the map averaged over 16×16 pixels of 224

AdamW, 1e-4, a tenth of it after 800 of 1,000 epochs, weight decay 1e-4, gradients clipped at norm
0.1; batches of 64 (we recall the paper so: its configuration says 8 for each process); weights of
linear layers are Xavier-uniform, biases 0; dropout 0.1; 224².

Deviates: of EfficientNet-B4 the levels of strides 4, 8 and 16; the level of stride 2, 24 of 272
channels, is none of our layers, and α is divided by our C. Levels are brought to where their cells
lie, averaging. Where a grid is so small that a place would see nothing, fewer neighbours are
masked. Dropout of the parts is of 26/256. The layers of a ViT are normalised and averaged
(`embedding`).

`best` is for a CPU: half the layers, no dropout, many small steps at a higher rate, and scores as
every method has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import Backbone, Features
from blemish.config import FractionBelow1, NotNegative, Positive, Range
from blemish.errors import ConfigError
from blemish.methods.embedding import join
from blemish.methods.learner import TrainingBatch
from blemish.methods.queries import QueryTransformer
from blemish.methods.reconstruction import Windowed, WindowedConfig, on_coarsest


@dataclass(frozen=True, kw_only=True)
class UniADConfig(WindowedConfig):
    """Settings of UniAD; the defaults are `best`.

    Attributes:
        width, heads: of the attention.
        hidden: units of the feed-forward parts.
        depth: layers of the encoder, and of the decoder.
        neighbours: side of the square of places around a place that it does not look at; odd.
        jitter: α, the strength of the noise; 0 = none.
        dropout: in [0, 1).
    """

    epochs: Annotated[int, Range(1, 2**31)] = 20
    min_steps: Annotated[int, Range(0, 2**31)] = 2500
    train_batch_size: Annotated[int, Range(1, 2**20)] = 2
    learning_rate: Positive = 5e-4
    width: Annotated[int, Range(2, 8192)] = 256
    heads: Annotated[int, Range(1, 256)] = 8
    hidden: Annotated[int, Range(1, 2**16)] = 1024
    depth: Annotated[int, Range(1, 64)] = 2
    neighbours: Annotated[int, Range(1, 255, odd=True)] = 7
    jitter: NotNegative = 20.0
    dropout: FractionBelow1 = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads or self.width % 2:
            raise ConfigError(
                f"width: an even multiple of heads ({self.heads}) is needed, got {self.width}"
            )

    @classmethod
    def paper(cls) -> Self:
        """The published setting: EfficientNet-B4 at 224², 1,000 epochs."""
        return cls(
            backbone="efficientnet_b4",
            image_size=(224,),
            layers=(1, 2, 3),
            smoothing=0.0,
            epochs=1000,
            min_steps=0,
            train_batch_size=64,
            learning_rate=1e-4,
            depth=4,
            dropout=0.1,
            schedule="step",
            score_window=16 / 224,
        )


class UniAD(Windowed):
    """Encoder, and the transformer that gives its features back."""

    name = "uniad"
    summary = "reconstruction of features from farther ones, by masked attention and queries"
    source = "You et al. 2022, A Unified Model for Multi-class Anomaly Detection"
    Config = UniADConfig
    config: UniADConfig
    decoder: QueryTransformer
    clip_norm = 0.1

    def __init__(self, config: UniADConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        probe = self.trained_on()
        self.grid = min(probe.grids)
        width = self.joined(probe).shape[2]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.decoder = QueryTransformer(config, width, self.grid)

    def joined(self, features: Features) -> Tensor:
        """f: float32 B N C."""
        own = features.layers(slice(len(self.layers)))
        if self.backbone.spec.kind == "vit":
            return join(own, "vit")[0]
        return torch.cat(on_coarsest(own, own.tokens), dim=2)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """`features` B N C in the backbone's precision."""
        return {"features": self.joined(self.see(images)).to(self.backbone.dtype)}

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        features = batch.features["features"].float()
        norms = features.norm(dim=2, keepdim=True) / features.shape[2]
        noise = self.config.jitter * norms * torch.randn_like(features)
        return F.mse_loss(self.decoder(features + noise).float(), features)

    def anomaly_map(self, features: Features, images: Tensor) -> Tensor:
        """The l2 norm of what is not given back: B h w."""
        wanted = self.joined(features)
        apart: Tensor = torch.linalg.vector_norm(self.reconstructed(wanted) - wanted, dim=2)
        return apart.reshape(-1, *self.grid)
