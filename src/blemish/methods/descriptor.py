"""A few numbers that place a whole picture among others, from what scoring sees of it anyway.

The patch features of the config's last layer, each of length 1, are averaged over the picture and
multiplied by a fixed matrix of random signs, which keeps distances up to some 20 % (Achlioptas
2003, "Database-friendly random projections"). Nothing is learned, so every detector has it, those
fitted before too, and it never changes for a detector. Compared by distance: how far pictures lie
apart (`monitoring.queue`), whether their distribution has changed (`monitoring.comparing`).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import Features
from blemish.methods.base import Method

SIZE = 32  # numbers of a picture


def descriptor(method: Method, features: Features) -> Tensor:
    """The descriptor of each of B pictures: float32 B × `SIZE`, of a length of 1 or less, about.

    Args: features: what `method.see` gave of them.
    """
    tokens = features.tokens[len(method.config.layers) - 1].float()
    mean = F.normalize(tokens, dim=-1).mean(1)
    return mean @ torch.from_numpy(signs(mean.shape[1])).to(mean.device)


@lru_cache(maxsize=8)
def signs(width: int) -> NDArray[np.float32]:
    """±1 / √`SIZE`, width × `SIZE`: the same on every machine and for good."""
    drawn = hashlib.shake_256(f"blemish descriptor 1 {width}".encode()).digest(width * SIZE // 8)
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8)).reshape(width, SIZE)
    found: NDArray[np.float32] = ((2.0 * bits - 1) / np.sqrt(SIZE)).astype(np.float32)
    return found
