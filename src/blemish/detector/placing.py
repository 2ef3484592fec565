"""From what a method says of its input to what a prediction says of the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blemish.area import Area
from blemish.data.geometry import Placement
from blemish.methods.base import inside_of
from blemish.methods.frames import reached


def places_of(area: Area, placements: Sequence[Placement], maps: Tensor) -> Tensor | None:
    """The places of maps B h w over the input in which any of an area of the pictures lies: bool
    h w, or B h w where they lie in it differently; None where all are."""
    size = (maps.shape[1], maps.shape[2])
    if all(one.is_whole for one in placements):
        return inside_of(area, size, maps.device)
    masks = torch.from_numpy(np.stack([one.inside(area) for one in placements]))
    return reached(masks, size).to(maps.device)
