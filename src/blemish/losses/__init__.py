"""Losses that are more than one line of torch: pure functions of tensors."""

from __future__ import annotations

from blemish.losses.clustering import centred, mean_over_processes, multi_view, sinkhorn

__all__ = ["centred", "mean_over_processes", "multi_view", "sinkhorn"]
