"""How normal pictures are varied, and synthetic anomalies put into them, as methods hold them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.anomalies import Simulator, Synthetic, simulate_batch


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


def turned(images: Tensor, *, share: float) -> Tensor:
    """Pictures B 3 H W, about a `share` of which are turned about their middles by up to 90°; their
    corners become 0, which is the mean colour, and marks what is not looked at."""
    count, (height, width), device = len(images), images.shape[-2:], images.device
    draw = torch.rand(count, 2)  # on the host, so that every device draws the same
    rows = (draw[:, 0] < share).nonzero()[:, 0]
    if not len(rows):
        return images
    angle = math.pi * (draw[rows, 1] - 0.5)
    theta = torch.zeros(len(rows), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
    theta[:, 0, 1], theta[:, 1, 0] = (
        angle.sin() * height / width,
        -angle.sin() * width / height,
    )
    rows, made = rows.to(device), images.clone()
    with torch.autocast(device.type, enabled=False):  # bf16 places pixels beside where they are
        some = images[rows].float()
        grid = F.affine_grid(theta.to(device), list(some.shape), align_corners=False)
        made[rows] = F.grid_sample(some, grid, align_corners=False).to(images.dtype)
    return made


def simulated(
    simulators: Sequence[Simulator],
    images: Tensor,
    colours: tuple[Tensor, Tensor],
    guide: Tensor | None,
    seeds: Sequence[int],
    inside: Tensor | None,
) -> tuple[Tensor, list[Synthetic]]:
    """Twins of normalised pictures B 3 H W with an anomaly each, and what was put in.

    Args: as of `anomalies.simulate_batch`. colours: as `Backbone.colours`. guide: B h w. inside:
        bool B H W, where alone it may be; None = anywhere.
    """
    mean, std = colours
    pixels = (images * std + mean).permute(0, 2, 3, 1).float().cpu().numpy()
    made = simulate_batch(
        simulators,
        np.ascontiguousarray(pixels),
        None if guide is None else guide.float().cpu().numpy(),
        seeds,
        areas=None if inside is None else inside.cpu().numpy(),
    )
    twins = torch.from_numpy(np.stack([one.image for one in made])).to(images.device)
    return (twins.permute(0, 3, 1, 2) - mean) / std, made


def some_simulated(
    simulators: Sequence[Simulator],
    images: Tensor,
    colours: tuple[Tensor, Tensor],
    share: float,
    inside: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Normalised pictures B 3 H W, about a `share` of which have an anomaly; where: int64 B H W.

    Args: as of `simulated`.
    """
    made, device = images.clone(), images.device
    masks = torch.zeros(len(images), *images.shape[-2:], dtype=torch.int64)
    drawn = (torch.rand(len(images)) < share).nonzero()[:, 0]
    seeds = torch.randint(2**62, (len(images),))[drawn].tolist()
    if len(drawn):
        rows = drawn.to(device)
        area = None if inside is None else inside[rows]
        made[rows], found = simulated(simulators, images[rows], colours, None, seeds, area)
        masks[drawn] = torch.from_numpy(np.stack([one.mask for one in found])).long()
    return made, masks.to(device)
