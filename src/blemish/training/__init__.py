"""The training engine: feeds a method that learns by gradient, and takes its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blemish.lazy import handing_out

if TYPE_CHECKING:
    from blemish.training.loop import train
    from blemish.training.records import Training

__all__ = ["Training", "train"]

if not TYPE_CHECKING:
    _HOMES = {"Training": "blemish.training.records", "train": "blemish.training.loop"}
    __getattr__, __dir__ = handing_out(__name__, _HOMES)
