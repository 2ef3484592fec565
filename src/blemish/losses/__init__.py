"""Losses that are more than one line of torch: pure functions of tensors."""

from __future__ import annotations

from blemish.losses.clustering import (
    centred,
    entropy_missing,
    gathered,
    masked_prediction,
    mean_over_processes,
    multi_view,
    own_share,
    sinkhorn,
    swapped,
)

__all__ = [
    "centred",
    "entropy_missing",
    "gathered",
    "masked_prediction",
    "mean_over_processes",
    "multi_view",
    "own_share",
    "sinkhorn",
    "swapped",
]
