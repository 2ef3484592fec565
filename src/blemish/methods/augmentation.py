"""How normal pictures are varied before `guided` pastes into them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def augmented(
    images: Tensor, guide: Tensor, inside: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pictures B 3 H W, each cropped to at least 4/5 of its area and resized back, its contrast
    changed by up to a tenth and its brightness by up to 0.1 (normalised); and their guidance B h w,
    cropped along, with sum 1; and what of them is looked at, bool B H W, cropped along
    (all of one of which nothing is left).
    """
    count, device = len(images), images.device
    draw = torch.rand(count, 5)  # on the host, so that every device draws the same
    side = (0.8 + 0.2 * draw[:, 0]).sqrt()
    shift = (2 * draw[:, 1:3] - 1) * (1 - side)[:, None]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = shift
    theta = theta.to(device)

    def crop(maps: Tensor) -> Tensor:
        with torch.autocast(device.type, enabled=False):  # bf16 places a crop to a fifth of a pixel
            grid = F.affine_grid(theta, list(maps.shape), align_corners=False)
            return F.grid_sample(maps.float(), grid, padding_mode="reflection", align_corners=False)

    contrast = (1 + 0.1 * (2 * draw[:, 3] - 1)).to(device)[:, None, None, None]
    brightness = (0.1 * (2 * draw[:, 4] - 1)).to(device)[:, None, None, None]
    cropped = crop(guide[:, None].float())[:, 0].clamp_min(0)
    if inside is not None:
        inside = crop(inside[:, None])[:, 0] > 0.5
        inside = inside | ~inside.flatten(1).any(1)[:, None, None]
    return (
        crop(images) * contrast + brightness,
        cropped / cropped.sum(dim=(1, 2), keepdim=True),
        inside,
    )
