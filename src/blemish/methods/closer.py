"""Where a second, closer look is worth it, and how the maps of both looks become one.

A first look at a small picture (`coarse`) gives features and distances everywhere. By these a fixed
number of patches of the large picture is chosen: those of the part, told by the first principal
component of the features (`methods.telling`), and those that stand out most beside it, with a ring
of neighbours for context. Only they go through the encoder a second time; the others are dropped
before its first block. What a patch says depends on which others are there, so the bank of the
second look is learned from looks that drop patches in the same way; each picture is chosen from by
a first look that does not know it, as new pictures are.

The map is that of the second look where it looked, and elsewhere that of the first, brought to the
same scale: no defect outside is seen less than by the first look alone. (The mean of both looks
where there are two finds less, docs/log.md.)

How many patches are looked at, and the scale, come from good training pictures alone. All shapes
are fixed once it is fitted, and nothing but `topk`, `gather` and `scatter` depends on what a
picture shows, so that two looks can be exported as one can.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.backbones import Backbone, Features
from blemish.backbones.cells import resampled
from blemish.errors import ConfigError
from blemish.methods.embedding import laid_out
from blemish.methods.foreground import Foreground
from blemish.methods.stored import UNIT, Stored

RESERVE = 0.06  # share of the patches that is for what stands out beside the part
WITHOUT_PART = 0.5  # share that stands for the part where none can be told
PICTURES = 64  # good ones, about, that tell how much is looked at, and the scale
MATCHED = 0.99  # quantile at which the distances of both looks are brought together
FINE_BANK = 0.5  # of `bank_size`, for the second look, which sees fewer patches
_RING = 3  # side of the square of patches that are looked at around one that is worth it
_ABOVE_ALL = 1e4
_ALIKE = 2e-3  # what the last of all places is put behind the first, for its place alone
_LEAST = 1e-6  # of a distance: below it there is nothing to compare


@dataclass(frozen=True)
class TwoLooks:
    """What two looks say of B pictures, on the fine grid h×w.

    Attributes:
        distances: of the first look, B h w.
        kept: int64 B K, the patches of the second. embedded: their features, B K D.
        known: bool B K: those of them that lie where pictures are looked at.
    """

    distances: Tensor
    kept: Tensor
    embedded: Tensor
    known: Tensor


class CoarseLook(nn.Module):
    """What is known of the first look, learned from good pictures.

    Attributes:
        direction: float32 D, of length 1; features of unit length whose product with it is above
            `cut` are of the part. All 0 where no part can be told: then what stands out is chosen.
        scale: what distances of the first look are multiplied by, to mean what those of the second
            one do.
    """

    direction: Tensor
    cut: Tensor
    scale: Tensor
    bank: Tensor
    owners: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.empty(0, 0))
        self.register_buffer("owners", torch.empty(0, dtype=torch.int64))
        self.register_buffer("direction", torch.empty(0))
        self.register_buffer("cut", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def stored(self, width: int) -> dict[str, Stored]:
        """What its tensors beside the bank must be, for features of so many channels."""
        return {
            "direction": Stored(shape=(width,), low=-UNIT, high=UNIT),
            "cut": Stored(shape=(), low=-UNIT, high=UNIT),
            "scale": Stored(shape=(), low=0, above=True),
        }

    def know_part(self, part: Foreground, width: int) -> None:
        """Tell the part as `part` does; not at all where it abstains."""
        told, device = not part.abstains, self.scale.device
        self.direction = torch.tensor(part.direction if told else (0.0,) * width, device=device)
        self.cut = torch.tensor(part.cut if told else 0.0, device=device)

    def match(self, coarse: Tensor, fine: Tensor) -> None:
        """Bring distances of the first look to the scale of the second, by those of both looks at
        the same places of good pictures: float32 n each."""
        at = round(MATCHED * (len(coarse) - 1))  # torch's quantile takes 16 million at most
        low, high = (float(each.sort().values[at]) for each in (coarse, fine))
        self.scale = self.scale.new_tensor(high / low if min(low, high) > _LEAST else 1.0)

    def scaled(self, distances: Tensor) -> Tensor:
        """Distances of the first look as those of the second."""
        return self.scale * distances

    def part(self, features: Features, last: int, grid: tuple[int, int]) -> Tensor:
        """How much each patch of the fine grid h×w is of the part: B N, above 0 inside. `last`:
        which of the layers tells."""
        tokens = F.normalize(features.tokens[last].float(), dim=-1)
        values = (tokens @ self.direction - self.cut).reshape(-1, 1, *features.grids[last])
        return resampled(values, grid).flatten(1)

    def chosen(
        self, part: Tensor, distances: Tensor, allowed: Tensor, count: int, reserve: int
    ) -> Tensor:
        """The patches that get a second look: int64 B K, ascending. All but `reserve` of them are
        those most of the part; the others those that stand out most elsewhere, with their ring.
        Where no part can be told all are what stands out.

        Args:
            part: B N, of `part`. distances: B h w on the fine grid, of the first look.
            allowed: bool B N: others are taken only where there are not enough of these.
            count: K. reserve: at most K.
        """
        # Places that are alike come in one order, whatever engine chooses among them.
        order = torch.linspace(0, -_ALIKE, part.shape[1], device=part.device)
        standing = torch.where(allowed, _ringed(distances[:, None]) + order, -_ABOVE_ALL)
        worth = torch.where(self.direction.any(), part + order, standing)
        worth = torch.where(allowed, worth, worth - _ABOVE_ALL)
        first = worth.topk(count - reserve, dim=1).indices
        elsewhere = standing.scatter(1, first, -2 * _ABOVE_ALL)
        others = elsewhere.topk(reserve, dim=1).indices
        return torch.cat([first, others], dim=1).sort(dim=1).values


def coarse_size(coarse: int, size: tuple[int, int], backbone: Backbone) -> tuple[int, int]:
    """(h, w) of the picture of the first look: its longer side is `coarse` pixels, and its shape
    that of the second one's picture, of `size`.

    Raises: ConfigError for a backbone that cannot look at some patches alone, and where the first
        look is not at a smaller picture.
    """
    if backbone.spec.kind != "vit":
        raise ConfigError(
            f"coarse: a closer look at some patches is for ViTs; {backbone.spec.name} is a CNN, "
            "which looks at all of a picture: leave it out"
        )
    height, width = (round(coarse * side / max(size)) for side in size)
    first = backbone.round_size(height, width)
    if first[0] >= size[0] or first[1] >= size[1]:
        raise ConfigError(
            f"coarse: a first look at {first[0]}×{first[1]} is no smaller than the second one, "
            f"image_size {size[0]}×{size[1]}; half of it is usual"
        )
    return first


def shrunk(images: Tensor, size: tuple[int, int]) -> Tensor:
    """B 3 H W at h×w by area: every pixel is the mean of what it covers, whole factors or not."""
    height, width = images.shape[-2:]
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(images, (height // size[0], width // size[1]))
    down, across = (_shares(*each, images) for each in zip(images.shape[-2:], size, strict=True))
    return down @ images @ across.mT


def weights(kept: Tensor, grid: tuple[int, int]) -> Tensor:
    """How much the second look counts at each place, B h w in [0, 1]: 0 where it did not look, less
    than 1 beside that, so that no seam shows."""
    looked = laid_out(
        torch.ones_like(kept[:, :, None], dtype=torch.float32), kept, grid[0] * grid[1]
    )
    looked = looked.reshape(-1, 1, *grid)
    around = F.avg_pool2d(looked, 3, stride=1, padding=1, count_include_pad=False)
    return (looked * around)[:, 0]


def _ringed(values: Tensor) -> Tensor:
    """Values B 1 h w as B N, each the highest in the square around it; of those that are alike by
    this, the one that is higher by itself comes first."""
    around = F.max_pool2d(values, _RING, stride=1, padding=_RING // 2)
    return (around + 1e-2 * values).flatten(1)


def _shares(length: int, count: int, like: Tensor) -> Tensor:
    """count × length: how much each of `length` pixels is of each of `count` equal parts."""
    edges = torch.arange(count + 1, dtype=like.dtype, device=like.device) * (length / count)
    starts = torch.arange(length, dtype=like.dtype, device=like.device)
    low = torch.maximum(edges[:-1, None], starts[None])
    high = torch.minimum(edges[1:, None], starts[None] + 1)
    return (high - low).clamp_min(0) * (count / length)
