"""Pictures of nothing, in the colours of others."""

from __future__ import annotations

import torch
from torch import Tensor

from blemish.anomalies.cutmix import LUMA


def scrambled(images: Tensor, colours: tuple[Tensor, Tensor], grey: float) -> Tensor:
    """Normalised pictures B 3 H W, the phases of whose spectra are drawn anew.

    Their mean colour, their contrast and the spectrum of their textures stay, and so do the
    correlations of the colours, whose phases turn alike; nothing else does. Values are then cut to
    what pixels can be.

    Args: colours: as `Backbone.colours` gives them. grey: the share that is made grey, in [0, 1].
    Returns: B 3 H W, drawn on the CPU from torch's global generator.
    """
    mean, std = colours
    pixels = images * std + mean
    noise = torch.randn(len(images), 1, *images.shape[-2:]).to(images.device)
    turns = torch.fft.rfft2(noise)
    turns = turns / turns.abs().clamp(min=1e-12)
    turns[..., 0, 0] = 1  # the mean
    made = torch.fft.irfft2(torch.fft.rfft2(pixels) * turns, s=images.shape[-2:])
    luma = (made * made.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    chosen = (torch.rand(len(images)) < grey).to(images.device)
    made = torch.where(chosen[:, None, None, None], luma, made)
    return (made.clamp(0, 1) - mean) / std
