"""Learns what tells the categories of a detector apart; see `categories`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from blemish.backbones import Backbone
from blemish.backbones.glance import features
from blemish.data.stream import PictureStream
from blemish.detector.categories import CategoryFeatures, Floats

PICTURES_OF_EACH = 32  # whose mean is kept


def category_features(
    backbone: Backbone, layers: Sequence[int], stream: PictureStream, categories: Sequence[str]
) -> CategoryFeatures | None:
    """From some pictures of each category, evenly; None for fewer than two categories.

    Args: categories: of each of the stream's sources; "" is none.
    """
    found: dict[str, Floats] = {}
    names = sorted(set(categories) - {""})
    for name in names:
        own = [at for at, category in enumerate(categories) if category == name]
        some = stream.only(own[:: -(-len(own) // PICTURES_OF_EACH)])
        with torch.inference_mode():
            batches = some.on(backbone.device)
            seen = [features(backbone, layers, batch.images).cpu().numpy() for batch in batches]
        if seen:
            found[name] = np.concatenate(seen)
    return CategoryFeatures.learned(found) if len(found) >= max(len(names), 2) else None
