"""Textures that stand for defects: of a folder, or generated; and how they are changed.

DRAEM takes those of the Describable Textures Dataset (Cimpoi et al. 2014), which cannot come with
blemish. The generated ones are ours: clouds, stripes and grain in two colours drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from blemish.anomalies.noise import perlin_noise, turned
from blemish.anomalies.patch import jittered
from blemish.errors import ConfigError
from blemish.images import EXTENSIONS, decode

MOST = 1000  # textures that are held in memory
_OCTAVES = 4


def read_textures(folder: str | Path, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """The pictures under a folder, brought to `size` (H, W): uint8 H W 3 each; of more than 1,000
    so many, evenly from all in the order of their paths.

    Raises: ConfigError where it is no folder or holds no picture; ImageError for one that cannot be
    read.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise ConfigError(f"textures: {folder} is no folder; name one that holds pictures")
    found = sorted(each for each in place.rglob("*") if each.suffix.lower() in EXTENSIONS)
    if not found:
        raise ConfigError(f"textures: there is no picture in {folder}; name a folder of textures")
    some = found[:: -(-len(found) // MOST)]
    return tuple(
        cv2.resize(decode(each).as_uint8(), size[::-1], interpolation=cv2.INTER_AREA)
        for each in some
    )


def generated(size: tuple[int, int], channels: int, rng: np.random.Generator) -> np.ndarray:
    """A texture float32 H W C in [0, 1]: clouds (Perlin noise in octaves), wavy stripes, or grain,
    each of them between two colours.
    """
    kind = int(rng.integers(3))
    if kind == 0:
        first = int(rng.integers(1, 4))
        octaves = [2 ** (first + step) for step in range(_OCTAVES)]
        layers = [perlin_noise(size, (count, count), rng) for count in octaves]
        field = np.sum([layer / 2**step for step, layer in enumerate(layers)], axis=0)
    elif kind == 1:
        angle, waves = rng.uniform(0, np.pi), rng.uniform(4, 40)
        rows, columns = np.mgrid[: size[0], : size[1]] / max(size)
        along = rows * np.sin(angle) + columns * np.cos(angle)
        bent = rng.uniform(0, 0.2) * perlin_noise(size, (4, 4), rng)
        field = np.sin(2 * np.pi * waves * (along + bent))
    else:
        field = cv2.GaussianBlur(rng.random(size), (0, 0), rng.uniform(0.5, 4.0))
    low, high = field.min(), field.max()
    field = (field - low) / max(high - low, 1e-12)
    dark, bright = rng.random((2, channels))
    return np.asarray(dark + field[..., None] * (bright - dark), dtype=np.float32)


def altered(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A texture float32 H W C in [0, 1], changed by three different ones of ten operations."""
    for number in rng.choice(len(_OPERATIONS), 3, replace=False):
        texture = np.clip(_OPERATIONS[number](texture, rng), 0, 1).astype(np.float32)
    return texture


def _solarised(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What is above a threshold is inverted, in half of the cases."""
    above = texture > rng.uniform(32, 128) / 255
    return np.where(above & (rng.random() < 0.5), 1 - texture, texture)


def _posterised(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """So many bits a channel are left, from 1 to 8."""
    step = 2.0 ** -int(rng.integers(1, 9))
    return np.asarray(np.minimum(np.floor(texture / step) * step, 1))


def _stretched(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each channel goes from 0 to 1; up to a fifth of its values at each end are cut off."""
    cut = rng.uniform(0, 20)
    low, high = np.percentile(texture, (cut, 100 - cut), axis=(0, 1))
    return np.asarray((texture - low) / np.maximum(high - low, 1e-6))


def _equalised(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each channel's values are as frequent everywhere."""
    levels = np.rint(255 * texture).astype(np.uint8)
    planes = [cv2.equalizeHist(np.ascontiguousarray(each)) for each in np.moveaxis(levels, 2, 0)]
    return np.stack(planes, axis=2) / 255


def _sharpened(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What differs from the mean of 3×3 pixels is made up to twice as strong, or left out."""
    planes = [cv2.blur(np.ascontiguousarray(each), (3, 3)) for each in np.moveaxis(texture, 2, 0)]
    smooth = np.stack(planes, axis=2)
    return np.asarray(smooth + rng.uniform(0, 2) * (texture - smooth))


# As in the authors' implementation, with its ranges.
_OPERATIONS: tuple[Callable[[np.ndarray, np.random.Generator], np.ndarray], ...] = (
    lambda texture, rng: texture ** rng.uniform(0.5, 2, texture.shape[2]),
    lambda texture, rng: texture * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30) / 255,
    _sharpened,
    lambda texture, rng: jittered(texture, rng, 0.2, 0.2),
    _solarised,
    _posterised,
    lambda texture, rng: 1 - texture,
    _stretched,
    _equalised,
    lambda texture, rng: turned(texture, rng.uniform(-45, 45)),
)
