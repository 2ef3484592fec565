"""Shifts: what another light, another focus or another transmission makes of a picture.

For measuring how a detector that was fitted on pictures as they are judges ones that are not.
Pixels are those of `images.Picture`, H W C, uint8 in 0…255 or float32 in [0, 1]; what comes out is
new, of the same type and shape, within the same range, and the same each time for the same picture.
Strengths are fixed, so that figures can be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import cv2
import numpy as np

DARKER, BRIGHTER, CONTRAST = 0.6, 1.4, 0.5
BLUR = 0.006  # of the longer side
NOISE = 0.06  # of full scale
QUALITY = 15


def brightness(pixels: np.ndarray) -> np.ndarray:
    """0.6 times as bright."""
    return _like(pixels, DARKER * _unit(pixels))


def brighter(pixels: np.ndarray) -> np.ndarray:
    """1.4 times as bright, clipped at full scale.

    Example:
        >>> brighter(np.array([[[10, 100, 200]]], np.uint8)).tolist()
        [[[14, 140, 255]]]
    """
    return _like(pixels, BRIGHTER * _unit(pixels))


def contrast(pixels: np.ndarray) -> np.ndarray:
    """Half the contrast: half as far from the mean over all pixels and channels."""
    values = _unit(pixels)
    mean = values.mean(dtype=np.float64).astype(np.float32)
    return _like(pixels, mean + CONTRAST * (values - mean))


def blur(pixels: np.ndarray) -> np.ndarray:
    """Out of focus: a Gaussian of 0.6 % of the longer side; borders mirrored."""
    sigma = BLUR * max(pixels.shape[:2])
    blurred = cv2.GaussianBlur(_unit(pixels), (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    return _like(pixels, blurred.reshape(pixels.shape))


def noise(pixels: np.ndarray) -> np.ndarray:
    """Gaussian noise with a standard deviation of 0.06 of full scale, clipped; seeded by the
    picture's content.

    It is drawn for every channel, but where all are equal only once: a grey picture stays grey.
    """
    values = _unit(pixels)
    content = hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=16).digest()
    channels = 1 if (pixels == pixels[..., :1]).all() else pixels.shape[2]
    drawn = np.random.default_rng(int.from_bytes(content, "little")).standard_normal(
        (*pixels.shape[:2], channels), dtype=np.float32
    )
    return _like(pixels, values + np.float32(NOISE) * drawn)


def jpeg(pixels: np.ndarray) -> np.ndarray:
    """Through JPEG at quality 15, and therefore through 8 bit; for 3 channels (RGB)."""
    sent = cv2.cvtColor(np.rint(255 * _unit(pixels)).astype(np.uint8), cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", sent, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    arrived = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return _like(pixels, _unit(arrived))


SHIFTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    each.__name__: each for each in (brightness, brighter, contrast, blur, noise, jpeg)
}
"""The shifts by name."""


def _unit(pixels: np.ndarray) -> np.ndarray:
    """float32 in [0, 1]."""
    return np.divide(pixels, 255, dtype=np.float32) if pixels.dtype == np.uint8 else pixels


def _like(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values in units of full scale as pixels of the same type, clipped."""
    clipped = np.clip(values, 0, 1)
    return np.asarray(
        np.rint(255 * clipped) if pixels.dtype == np.uint8 else clipped, dtype=pixels.dtype
    )
