"""CutMix: a rectangle of one picture pasted into another; a whole batch at once, on its device, for
a training step.

Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
Features", as methods use it that learn from a few known anomalies: the result is anomalous
altogether, and no soft label says how much of each picture it holds. Deviates accordingly. There
the area is drawn from all, and the rectangle keeps its place: between normal pictures of aligned
parts that would change nothing that can be seen, or give another normal picture. Here it is a small
piece, of the area and the aspect ratio of CutPaste, and goes to another place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blemish.errors import ConfigError

AREA = (0.02, 0.15)  # share of the picture, drawn evenly
# Width over height: evenly from below or from above 1, then evenly between 1 and that end.
ASPECT = (0.3, 3.3)
LUMA = (0.299, 0.587, 0.114)


def cut_mix(images: Tensor, donors: Tensor, area: Tensor | None = None) -> Tensor:
    """Pictures B C H W, each with a rectangle cut anywhere out of its donor and pasted anywhere.

    Args:
        images, donors: float B C H W; they are not changed.
        area: bool B H W, some of each True: the middle of what is pasted lies there, and nothing
            changes elsewhere; None = everywhere.
    Returns: B C H W. All that is random is drawn from torch's global generator on the CPU, so that
        every device gets the same.
    Raises: ConfigError where the shapes differ, or nothing is in an area.

    Example:
        >>> made = cut_mix(torch.zeros(1, 3, 100, 100), torch.ones(1, 3, 100, 100))
        >>> 0.015 < float(made.mean()) < 0.16  # the share of the picture that was pasted
        True
    """
    if images.ndim != 4 or images.shape != donors.shape:
        raise ConfigError(
            "cut_mix: pictures and donors of one shape B C H W are needed, got "
            f"{tuple(images.shape)} and {tuple(donors.shape)}"
        )
    count, channels, height, width = images.shape
    size, end, between, *places = torch.rand(7, count, dtype=torch.float64)
    size = (AREA[0] + (AREA[1] - AREA[0]) * size) * height * width
    aspect = 1 + (torch.where(end < 0.5, *ASPECT) - 1) * between
    tall = (size / aspect).sqrt().round().clamp(1, height)
    wide = (size * aspect).sqrt().round().clamp(1, width)
    down, across = (
        (places[1] * (height - tall + 1)).floor(),
        (places[3] * (width - wide + 1)).floor(),
    )
    if area is not None:
        row, column = _drawn(area, places[1])
        down = (row - (tall / 2).floor()).clamp_min(0).minimum(height - tall)
        across = (column - (wide / 2).floor()).clamp_min(0).minimum(width - wide)
    inside_rows, rows = _along(height, tall, places[0], down)
    inside_columns, columns = _along(width, wide, places[2], across)
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    rows, columns, inside = (
        part.to(images.device, non_blocking=True) for part in (rows, columns, inside)
    )
    if area is not None:
        inside = inside & area
    pieces = donors.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
    pieces = pieces.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))
    return torch.where(inside[:, None], pieces, images)


def recoloured(images: Tensor, colours: tuple[Tensor, Tensor], *, strength: float = 0.1) -> Tensor:
    """Normalised pictures B 3 H W, each in other colours: pieces to paste that stand out a little.

    Brightness, contrast (about the picture's mean) and saturation (about its luma) are each
    multiplied by U(1 − strength, 1 + strength), and the hue turns about the grey axis by U(−1, 1) ·
    strength of the circle; then all is cut to what pixels can be.

    Args: colours: mean and standard deviation of the normalisation, as `Backbone.colours` gives
        them. strength: in [0, 0.5].
    Returns: B 3 H W, drawn as `cut_mix` draws.
    Raises: ConfigError for a strength out of range.

    Example:
        >>> plain = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
        >>> grey = torch.full((1, 3, 8, 8), 0.5)
        >>> made = recoloured(grey, plain, strength=0.2)
        >>> 0.4 <= float(made.min()) and float(made.max()) <= 0.6  # grey stays grey
        True
    """
    if not 0 <= strength <= 0.5:
        raise ConfigError(f"recoloured: strength in [0, 0.5] is needed, got {strength}")
    draws = strength * (2 * torch.rand(4, len(images)) - 1)
    turn = 2 * torch.pi * draws[3][:, None, None]
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    turned = turn.cos() * torch.eye(3) + (1 - turn.cos()) / 3 + turn.sin() * across
    bright, contrast, saturation = (
        factor.to(images.device, non_blocking=True)[:, None, None, None] for factor in 1 + draws[:3]
    )
    mean, std = colours
    pixels = (images * std + mean) * bright
    middle = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = middle + (pixels - middle) * contrast
    grey = (pixels * pixels.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    pixels = grey + (pixels - grey) * saturation
    turned = turned.to(images.device, non_blocking=True)
    pixels = torch.einsum("bij,bjhw->bihw", turned, pixels)
    return (pixels.clamp(0, 1) - mean) / std


def _drawn(area: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """A row and a column, B each, of a place in each area bool B H W, by draws B in [0, 1)."""
    flat = area.flatten(1).cpu()
    counts = flat.sum(1)
    if not bool(counts.all()):
        raise ConfigError("cut_mix: an area holds no pixel of its picture")
    at = (flat.cumsum(1) > (draws * counts).floor()[:, None]).int().argmax(1)
    return at // area.shape[2], at % area.shape[2]


def _along(side: int, extent: Tensor, cut: Tensor, paste: Tensor) -> tuple[Tensor, Tensor]:
    """Along one side: which positions are pasted over (bool B side), and which of the donor's goes
    to each (int64).

    Args: extent: pixels of each rectangle, B. cut: where it lies, in [0, 1) of the places where it
    fits, B. paste: the first position that is pasted over, B.
    """
    from_there, to_here = (cut * (side - extent + 1)).floor()[:, None], paste[:, None]
    position = torch.arange(side) - to_here
    inside = (position >= 0) & (position < extent[:, None])
    return inside, (from_there + position).clamp(0, side - 1).long()
