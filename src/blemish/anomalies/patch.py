"""A piece of a picture: cut, recoloured, turned, resized and put somewhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from blemish.errors import ConfigError

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Rec. 601, as in most colour jitters


@dataclass(frozen=True, slots=True)
class Patch:
    """Pixels and the place in a picture where they belong.

    Attributes:
        rows, columns: the smallest rectangle of the picture that holds every pixel of `inside`.
        pixels: float32 h w C, as large as that rectangle.
        inside: bool h w: which of them belong to the patch.
    """

    rows: slice
    columns: slice
    pixels: np.ndarray
    inside: np.ndarray


def window(
    centre: tuple[int, int], extent: tuple[int, int], size: tuple[int, int]
) -> tuple[slice, slice]:
    """The rectangle of `extent` (h, w) around a pixel, shifted to lie inside a picture of `size`
    (H, W), h ≤ H, w ≤ W.

    Example:
        >>> window((0, 5), (4, 3), (8, 8))
        (slice(0, 4, None), slice(4, 7, None))
    """
    starts = [min(max(c - e // 2, 0), s - e) for c, e, s in zip(centre, extent, size, strict=True)]
    return slice(starts[0], starts[0] + extent[0]), slice(starts[1], starts[1] + extent[1])


def pixels_of(share: float, side: int) -> int:
    """A share of a side in whole pixels: at least 1, at most all."""
    return min(side, max(1, round(share * side)))


def free_place(
    rng: np.random.Generator, extent: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int]:
    """The centre of a rectangle of `extent` (h, w) drawn evenly from all that lie inside a picture
    of `size` (H, W).
    """
    fitting = [min(e, s) for e, s in zip(extent, size, strict=True)]
    row, column = (
        int(rng.integers(s - e + 1)) + e // 2 for e, s in zip(fitting, size, strict=True)
    )
    return row, column


def jittered(
    pixels: np.ndarray, rng: np.random.Generator, strength: float, hue: float
) -> np.ndarray:
    """Pixels h w C in [0, 1] with other colours, in [0, 1].

    Brightness and contrast (about the patch's mean), and with three channels saturation, are each
    multiplied by U(1 − strength, 1 + strength); with three channels (red, green, blue) the hue then
    moves by U(−hue, hue) of the colour circle.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    shift = rng.uniform(-hue, hue)
    bright = pixels * brightness
    mean = bright.mean(dtype=np.float64).astype(np.float32)
    mixed = mean + (bright - mean) * contrast
    if pixels.shape[2] == 3:
        # Not by BLAS, whose last bit depends on its threads.
        grey = np.einsum("hwc,c->hw", mixed, LUMA)[..., None]
        mixed = np.clip(grey + (mixed - grey) * saturation, 0, 1)
        if hue:
            hsv = cv2.cvtColor(mixed, cv2.COLOR_RGB2HSV)
            hsv[..., 0] = (hsv[..., 0] + np.float32(360 * shift)) % 360
            mixed = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return np.asarray(np.clip(mixed, 0, 1, dtype=np.float32))


def put(
    pixels: np.ndarray,
    centre: tuple[int, int],
    size: tuple[int, int],
    *,
    angle: float = 0.0,
    factor: float = 1.0,
) -> Patch:
    """`pixels` h w C resized by `factor`, rotated, and laid around a pixel of a picture, clipped at
    its border.

    The middle (h // 2, w // 2) comes to lie on `centre`. Bilinear; without rotation and resizing an
    exact copy. A pixel belongs to the patch where it samples from within it, so the centre always
    does.

    Args:
        centre: (row, column) of a pixel of the picture.
        size: (H, W) of the picture.
        angle: degrees counter-clockwise.
    """
    height, width = pixels.shape[:2]
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    reach = (
        math.ceil(factor * (abs(cos) * (height + 1) + abs(sin) * (width + 1)) / 2),
        math.ceil(factor * (abs(sin) * (height + 1) + abs(cos) * (width + 1)) / 2),
    )
    top, left = (max(c - r, 0) for c, r in zip(centre, reach, strict=True))
    bottom, right = (min(c + r + 1, s) for c, r, s in zip(centre, reach, size, strict=True))
    down = (np.arange(top, bottom) - centre[0])[:, None] / factor
    across = (np.arange(left, right) - centre[1])[None] / factor
    x = width // 2 + cos * across - sin * down
    y = height // 2 + sin * across + cos * down
    inside = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
    rows, columns = inside.any(1).nonzero()[0], inside.any(0).nonzero()[0]
    tight = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    # From the tight rectangle's pixels back to those of the patch.
    first = (rows[0], columns[0])
    cos, sin = cos / factor, sin / factor
    back = np.array([[cos, -sin, x[first]], [sin, cos, y[first]]])
    return Patch(
        slice(top + int(rows[0]), top + int(rows[-1]) + 1),
        slice(left + int(columns[0]), left + int(columns[-1]) + 1),
        _sampled(pixels, back, (int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1)),
        inside[tight],
    )


def lay(canvas: np.ndarray, mask: np.ndarray, patch: Patch) -> None:
    """Paste hard: the patch's pixels replace those of `canvas` H W C, and are marked in `mask` H W
    (both changed).
    """
    canvas[patch.rows, patch.columns][patch.inside] = patch.pixels[patch.inside]
    mask[patch.rows, patch.columns] |= patch.inside


def check_range(name: str, values: tuple[float, ...], low: float, high: float) -> None:
    """Raises: ConfigError unless `values` are a lower and an upper end within [low, high]."""
    if len(values) != 2 or not low <= values[0] <= values[1] <= high:
        upper = f" to {high:g}" if math.isfinite(high) else " up"
        raise ConfigError(
            f"{name}: {', '.join(f'{value:g}' for value in values)} given; two numbers in order, "
            f"from {low:g}{upper} are needed"
        )


def check_number(name: str, value: float, low: float, high: float) -> None:
    """Raises: ConfigError unless `value` is within [low, high]."""
    if not low <= value <= high:
        raise ConfigError(f"{name}: {value:g} given; a number from {low:g} to {high:g} is needed")


def _sampled(pixels: np.ndarray, back: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 `size` C: the colour at `back` · (x, y, 1) of each place (x, y)."""
    flags, border = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, cv2.BORDER_REPLICATE
    # OpenCV warps at most four channels at a time in its older versions.
    fours = [pixels[..., first : first + 4] for first in range(0, pixels.shape[2], 4)]
    groups = [
        cv2.warpAffine(np.ascontiguousarray(four), back, size[::-1], flags=flags, borderMode=border)
        for four in fours
    ]
    joined = np.dstack(groups) if len(groups) > 1 else groups[0]
    return np.asarray(joined, dtype=np.float32).reshape(*size, pixels.shape[2])
