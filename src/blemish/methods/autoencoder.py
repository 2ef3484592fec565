"""EfficientAD's autoencoder: what a whole picture holds, through a bottleneck of one place."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn
from torch.nn import functional as F

from blemish.backbones.cells import resampled
from blemish.methods.decoder import Dropout

if TYPE_CHECKING:
    from blemish.methods.efficientad_config import EfficientADConfig

Size = tuple[int, int]
_DROPOUT = 0.2
# Sides of the maps of the decoder before its convolutions: of 256 pixels 3, 8, 15, 32, 63, 127.
_STEPS = ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1))


class Autoencoder(nn.Module):
    """From pictures B 3 H W to B C h w.

    Five convolutions of 4×4 halve the sides, a sixth leaves one place; six more, of 4×4, follow
    upon enlargements, with dropout after each, then one of 3×3 on the grid, each with a ReLU behind
    it; the last, of 3×3, gives C channels.

    Args: size: (H, W), 32 at least each. grid: (h, w).
    """

    def __init__(self, config: EfficientADConfig, size: Size, grid: Size) -> None:
        super().__init__()
        narrow, wide = config.autoencoder_width, 2 * config.autoencoder_width
        inward = (3, narrow, narrow, wide, wide, wide)
        self.encoder = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(inward)
        )
        self.middle = nn.Conv2d(wide, wide, (size[0] // 32, size[1] // 32))
        self.decoder = nn.ModuleList(nn.Conv2d(wide, wide, 4, padding=2) for _ in _STEPS)
        self.sizes = [
            (max(1, size[0] // each - less), max(1, size[1] // each - less))
            for each, less in _STEPS
        ]
        self.grid = grid
        self.dropout = Dropout(_DROPOUT)
        self.last = nn.Conv2d(wide, wide, 3, padding=1)
        self.outward = nn.Conv2d(wide, config.channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for layer in self.encoder:
            x = F.relu(layer(x))
        x = self.middle(x)
        for layer, size in zip(self.decoder, self.sizes, strict=True):
            x = self.dropout(F.relu(layer(resampled(x, size))))
        x = F.relu(self.last(resampled(x, self.grid)))
        return cast(Tensor, self.outward(x))
