"""DRAEM's anomalies: textures that show through where Perlin noise is high.

Zavrtanik, Kristan, Skočaj 2021, "DRAEM - A Discriminatively Trained Reconstruction Embedding for
Surface Anomaly Detection" (ICCV), section 3.3, with the numbers of the authors' implementation:

    M = 1 where Perlin noise (Perlin 1985, scaled by √2) of 2^a × 2^b cells, turned, is above 0.5
    A = a texture, changed by three of ten operations
    the picture: (1 − M) I + M ((1 − β) I + β A), β from U(0.2, 1)

a and b are drawn evenly from 0 to 5, the angle from U(−90°, 90°).

Deviates: a cell has 8 pixels a side at least, as many as 32 cells have at the published 256²; a
noise that is above 0.5 nowhere is drawn again, where the authors' picture stays as it is; textures
are of `textures`: read from a folder, or generated, which no paper describes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from blemish.anomalies.base import Simulator, Synthetic, blank, plain
from blemish.anomalies.noise import perlin_noise, turned
from blemish.anomalies.textures import altered, generated

_FINEST = 5  # 2⁵ cells a side
_CELL = 8  # pixels
_ABOVE = 0.5
_OPACITY = (0.2, 1.0)


@dataclass(frozen=True, kw_only=True)
class PerlinTexture(Simulator):
    """A texture within the high places of Perlin noise.

    Attributes:
        textures: pictures uint8 H W 3 of the size of the picture (`textures.read_textures`), one of
            which is drawn each time; empty = they are generated.
    """

    name: ClassVar[str] = "draem"
    summary: ClassVar[str] = "lay a texture over where Perlin noise is high"
    source: ClassVar[str] = "Zavrtanik et al. 2021, DRAEM"

    textures: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)

    def _attempt(
        self, target: np.ndarray, rng: np.random.Generator, other: np.ndarray, attention: np.ndarray
    ) -> Synthetic:
        image, _, size = blank(target)
        finest = (min(_FINEST, max(0, int(math.log2(side / _CELL)))) for side in size)
        rows, columns = (2 ** int(rng.integers(most + 1)) for most in finest)
        noise = perlin_noise(size, (rows, columns), rng)
        mask = turned(noise, rng.uniform(-90, 90), outside=0.0) > _ABOVE
        texture = altered(self._drawn(size, target.shape[2], rng), rng)
        opacity = np.float32(rng.uniform(*_OPACITY))
        image[mask] += opacity * (texture[mask] - image[mask])
        return plain(np.clip(image, 0, 1), mask)

    def _drawn(self, size: tuple[int, int], channels: int, rng: np.random.Generator) -> np.ndarray:
        """A texture float32 H W C in [0, 1]."""
        if not self.textures:
            return generated(size, channels, rng)
        texture = self.textures[int(rng.integers(len(self.textures)))] / np.float32(255)
        if channels == 3:
            return texture
        return np.repeat(texture.mean(2, keepdims=True), channels, axis=2)
