"""What methods guided by attention share: bringing it to [0, 1], its sharpness, its control."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sharpness(guide: Tensor) -> dict[str, float]:
    """Of guidance B N, non-negative: its entropy in units of log N (1 = it is flat, and guides
    nothing), and its peak as a multiple of its mean; means over the rows.
    """
    guide = guide + 1e-9  # all 0 is flat
    share, places = guide / guide.sum(1, keepdim=True), guide.shape[1]
    entropy = -(share * share.log()).sum(1) / math.log(places) if places > 1 else torch.ones(1)
    peak = guide.amax(1) / guide.mean(1)
    return {"guidance_entropy": float(entropy.mean()), "guidance_peak_to_mean": float(peak.mean())}


def shuffled(guide: Tensor) -> Tensor:
    """Each row of B N in an order of its own."""
    return guide.gather(1, torch.rand_like(guide).argsort(1))


def normalise(values: Tensor) -> Tensor:
    """Each row of B N brought to [0, 1]; a constant row to 0."""
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    return (values - low) / (high - low).clamp_min(1e-12)
