"""From what a method says of its input to what a prediction says of the picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blemish.area import Area
from blemish.data.geometry import Placement, put_back
from blemish.methods.base import inside_of
from blemish.methods.frames import reached
from blemish.types import Scores


def columns_of(scores: Scores, placements: Sequence[Placement]) -> dict[str, Iterable[Any]]:
    """The fields of predictions that a batch's scores give, a value for each picture; maps and
    crops are those of the whole picture, wherever it lies in the input."""
    columns: dict[str, Iterable[Any]] = {
        "score": scores.image.float().cpu().tolist(),
        "anomaly_map": put_back(scores.maps.float().cpu().numpy(), placements),
    }
    if scores.votes is not None:
        columns["votes"] = scores.votes.cpu().tolist()
    if scores.saliency is not None:
        columns["saliency"] = put_back(scores.saliency.float().cpu().numpy(), placements)
    if scores.boxes is not None:
        boxes = zip(placements, scores.boxes.float().cpu().tolist(), strict=True)
        columns["box"] = [placement.box_to_picture(box) for placement, box in boxes]
    return columns


def places_of(area: Area, placements: Sequence[Placement], maps: Tensor) -> Tensor | None:
    """The places of maps B h w over the input in which any of an area of the pictures lies: bool
    h w, or B h w where they lie in it differently; None where all are."""
    size = (maps.shape[1], maps.shape[2])
    if all(one.is_whole for one in placements):
        return inside_of(area, size, maps.device)
    masks = torch.from_numpy(np.stack([one.inside(area) for one in placements]))
    return reached(masks, size).to(maps.device)
