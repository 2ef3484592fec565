"""Random views of pictures, as DINO and its kin make them, and which patches of one are shown.

They are drawn for a whole batch at once. So a picture's colours are changed by one affine map: in
it brightness, contrast, saturation and hue (turned in the plane of the chrominances, YIQ) commute,
and there is no order to draw; a crop that would stick out is narrowed instead of drawn again; and
crops are read bilinearly, at as many points of each pixel as it covers pixels of the picture,
about, whose mean it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# How likely colours change, and turn grey; the brightness from which on pixels are solarised.
JITTER, GREY, SOLARISED = 0.8, 0.2, 0.5
SIGMA = (0.1, 2.0)  # of the blur, in pixels
# Its first row is the luminance.
YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How views of a kind are made.

    Attributes:
        area: least and greatest share of the picture that is cropped; its aspect ratio is between
            3/4 and 4/3.
        blur, solarise: how likely it is blurred, and solarised.
        colours: by how much brightness, contrast, saturation and hue change at most; hue in turns.
    """

    area: tuple[float, float]
    blur: float
    solarise: float = 0.0
    colours: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)


DINO_GLOBAL = (
    Augmentation(area=(0.4, 1.0), blur=1.0),
    Augmentation(area=(0.4, 1.0), blur=0.1, solarise=0.2),
)
DINO_LOCAL = Augmentation(area=(0.05, 0.4), blur=0.5)


def view(pixels: Tensor, size: tuple[int, int], how: Augmentation) -> Tensor:
    """A random view of each picture B 3 H W with values in [0, 1]: B 3 h w, in [0, 1] too.

    Args: size: (h, w).
    """
    draws = torch.rand(14, len(pixels))  # on the host, so that every device draws the same
    made = recoloured(cropped(pixels, size, how.area, draws[:5]), draws[5:11], how.colours)
    some = (draws[11] < how.blur).nonzero()[:, 0]
    if len(some):
        made[some] = blurred(made[some], SIGMA[0] + (SIGMA[1] - SIGMA[0]) * draws[12, some])
    some = (draws[13] < how.solarise).nonzero()[:, 0]
    made[some] = torch.where(made[some] < SOLARISED, made[some], 1 - made[some])
    return made


def cropped(
    pixels: Tensor, size: tuple[int, int], area: tuple[float, float], draws: Tensor
) -> Tensor:
    """A crop of each of B 3 H W, resized with antialiasing, half of them mirrored: B 3 h w.

    Draws 5 B: area, aspect ratio, place (across, down), mirrored.
    """
    share = area[0] + (area[1] - area[0]) * draws[0]
    ratio = (4 / 3) ** (2 * draws[1] - 1)
    width, height = (share * ratio).sqrt().clamp(max=1), (share / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(len(share), 2, 3)
    theta[:, 0, 0] = torch.where(draws[4] < 0.5, -width, width)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (2 * draws[2] - 1) * (1 - width)
    theta[:, 1, 2] = (2 * draws[3] - 1) * (1 - height)
    coarse = max(pixels.shape[2] / size[0], pixels.shape[3] / size[1])
    fine = max(1, round(math.sqrt(area[1]) * coarse))
    sampled = [len(pixels), 3, fine * size[0], fine * size[1]]
    places = F.affine_grid(theta.to(pixels.device), sampled, align_corners=False)
    read = F.grid_sample(pixels, places, padding_mode="border", align_corners=False)
    return F.avg_pool2d(read, fine)


def recoloured(pixels: Tensor, draws: Tensor, colours: tuple[float, float, float, float]) -> Tensor:
    """Each of B 3 H W in other colours. Draws 6 B: whether its brightness, contrast, saturation and
    hue change, these four, and whether it turns grey. `colours` as of `Augmentation`.
    """
    device, (bright, contrasty, saturated, hue) = pixels.device, colours
    change = torch.where(draws[0] < JITTER, 2 * draws[1:5] - 1, 0.0)
    brightness, contrast = 1 + bright * change[0], 1 + contrasty * change[1]
    saturation = torch.where(draws[5] < GREY, 0.0, 1 + saturated * change[2])
    angle = 2 * math.pi * hue * change[3]
    turn = torch.zeros(len(pixels), 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = saturation * angle.cos()
    turn[:, 2, 1] = saturation * angle.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    yiq = torch.tensor(YIQ)
    turned: Tensor = (brightness * contrast)[:, None, None] * (torch.linalg.inv(yiq) @ turn @ yiq)
    luminance = (pixels * yiq[0].to(device)[:, None, None]).sum(1).mean((1, 2))
    lifted = (brightness * (1 - contrast)).to(device) * luminance
    made = turned.to(device) @ pixels.flatten(2) + lifted[:, None, None]
    return made.clamp(0, 1).reshape(pixels.shape)


def blurred(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Each B 3 H W with a Gaussian of its own; sigma: B, > 0, in pixels. Borders are mirrored."""
    count, channels, height, width = pixels.shape
    radius = math.ceil(3 * SIGMA[1])
    offsets = torch.arange(-radius, radius + 1)
    kernels = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernels = kernels / kernels.sum(1, keepdim=True)
    kernels = kernels.repeat_interleave(channels, 0).to(pixels.device)
    stack: Tensor = F.pad(pixels.reshape(1, -1, height, width), (radius,) * 4, mode="reflect")
    for kernel in (kernels[:, None, None, :], kernels[:, None, :, None]):
        stack = F.conv2d(stack, kernel, groups=count * channels)
    return stack.reshape(pixels.shape)


def most(worth: Tensor, ratio: float) -> Tensor:
    """The N − ⌊ratio·N⌋ worthiest of each row of B N: int64 B K, ascending.

    Example:
        >>> most(torch.tensor([[0.1, 0.4, 0.2, 0.3]]), 0.5)
        tensor([[1, 3]])
    """
    patches = worth.shape[1]
    dropped = math.floor(ratio * patches + 1e-9)  # 0.29 · 100 is 28.999…
    return worth.topk(patches - dropped, dim=1).indices.sort(dim=1).values


def far_from_a_place(count: int, grid: tuple[int, int]) -> Tensor:
    """How far each patch is from a random place of the picture, B N: the nearest form a block of
    random shape, whose aspect ratio is between 0.3 and 1/0.3 (as in BEiT).
    """
    draws = torch.rand(count, 3)
    stretch = (10 / 3) ** (draws[:, :1] - 0.5)
    rows, columns = torch.meshgrid(*(torch.arange(side) + 0.5 for side in grid), indexing="ij")
    down = (rows.flatten() - draws[:, 1:2] * grid[0]).abs() * stretch
    across = (columns.flatten() - draws[:, 2:] * grid[1]).abs() / stretch
    # A side is filled from its middle.
    return torch.maximum(down, across) + 1e-3 * torch.minimum(down, across)


def block_of(grid: tuple[int, int], shares: Tensor) -> Tensor:
    """The ⌊share·N⌋ patches of each picture that lie nearest to a random place of it: bool B N.

    Args: shares: B, in [0, 1).
    """
    far = far_from_a_place(len(shares), grid)
    counts = (shares * far.shape[1] + 1e-6).floor()
    return far.argsort(1).argsort(1) < counts[:, None]
