"""Stored values -> RGB of a stated range: what of that is a fact of the whole picture (`Extent`),
and what is done to each pixel, so that any part of a picture is shown as it is in the whole.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blemish.errors import ConfigError, ImageError, NonFiniteError
from blemish.images.pixels import Array, Raw, full_scale, row_blocks, split, unit

Window = tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Extent:
    """How far the stored values of a picture go.

    Attributes:
        least, most: of its colours; 0 for 8 bits, where nothing depends on them.
        transparent: whether any pixel is.
    """

    least: float
    most: float
    transparent: bool

    @classmethod
    def of(cls, raw: Raw, label: str) -> Extent:
        """Raises: NonFiniteError for NaN or infinity, ImageError for an alpha that is no share."""
        values = raw.values
        stored, alpha = split(values)
        if values.dtype in (bool, np.uint8):
            least = most = 0.0
        else:
            least, most = float(stored.min()), float(stored.max())  # NaN survives both
        if values.dtype.kind == "f":
            lowest, highest = (0, 1) if alpha is None else (alpha.min(), alpha.max())
            if not all(map(math.isfinite, (least, most, lowest, highest))):
                raise NonFiniteError(
                    f"{label}: holds NaN or infinite pixels; replace them before decoding"
                )
            if lowest < 0 or highest > 1:
                raise ImageError(label, "has an alpha channel outside [0, 1]")
        return cls(least, most, alpha is not None and bool(alpha.min() < full_scale(alpha)))

    def with_other(self, other: Extent) -> Extent:
        """Of both parts of a picture."""
        return Extent(
            min(self.least, other.least),
            max(self.most, other.most),
            self.transparent or other.transparent,
        )


def check_window(window: Window) -> None:
    """Raises: ConfigError where it is no interval."""
    if window is not None and not (all(map(math.isfinite, window)) and window[0] < window[1]):
        raise ConfigError(
            f"window {window[0]:g},{window[1]:g}: two finite numbers lo,hi with lo < hi are needed"
        )


def digest_of(size: tuple[int, int], dtype: npt.DTypeLike) -> hashlib.blake2b:
    """The beginning of the digest of a picture, (H, W); its pixels follow, row by row."""
    form = f"{(*size, 3)} {np.dtype(dtype).name} "
    return hashlib.blake2b(form.encode(), digest_size=16)


def notes_of(raw: Raw, window: Window, extent: Extent) -> tuple[str, ...]:
    """What a user should know of a picture. Args: raw: any part of it."""
    notes = raw.notes if window else (*raw.notes, *_depth_note(raw, extent))
    return (*notes, "transparency composed over white") if extent.transparent else notes


def shown(raw: Raw, window: Window, extent: Extent, label: str) -> Array:
    """RGB of a picture or a part of one: (H, W, 3), uint8, or float32 in [0, 1].

    Args: extent: of the whole picture. Raises: ImageError where it takes a window.
    """
    scaled, alpha = scaling(raw, window, extent, label)
    return _rgb(raw.values, scaled, alpha if extent.transparent else None)


def _rgb(values: Array, scaled: Callable[[slice], Array], alpha: Array | None) -> Array:
    """H W 3: the scaled colours over white, a few rows at a time; no copy where they are that."""
    height, width = values.shape[:2]
    first = scaled(slice(0, 1))
    if alpha is None and values.shape[2:] == (3,) and np.may_share_memory(first, values):
        return np.ascontiguousarray(values)
    pixels = np.empty((height, width, 3), first.dtype)
    for rows in row_blocks(height, width):
        colour = scaled(rows)
        if alpha is not None:
            colour = _over_white(colour, alpha[rows])
        if colour.ndim == 2:
            import cv2  # many times faster than broadcasting in numpy

            cv2.cvtColor(np.ascontiguousarray(colour), cv2.COLOR_GRAY2RGB, dst=pixels[rows])
        else:
            pixels[rows] = colour
    return pixels


def is_unclear(raw: Raw, window: Window, extent: Extent) -> bool:
    """Whether nothing says which values are black and white: other integers than of 8 and 16 bits,
    and floats outside [0, 1], without a window."""
    told = window is not None or raw.rendered is not None or raw.black_white is not None
    kind = raw.values.dtype
    in_range = kind.kind == "f" and extent.least >= 0 and extent.most <= 1
    return not (told or in_range or kind in (bool, np.uint8, np.uint16))


def scaling(
    raw: Raw, window: Window, extent: Extent, label: str
) -> tuple[Callable[[slice], Array], Array | None]:
    """What gives colour of some rows as uint8, or as float32 in [0, 1], and alpha as stored.

    Args and errors: as of `shown`.
    """
    values = raw.values
    if values.dtype == bool:
        values = values.astype(np.uint8) * np.uint8(255)
    stored, alpha = split(values)
    if is_unclear(raw, window, extent):
        raise ImageError(
            label,
            f"has {values.dtype} pixels from {extent.least:g} to {extent.most:g}: "
            "say which values are black and white with --window lo,hi (window=(lo, hi))",
        )
    black_white = window or raw.black_white
    if window is None and raw.rendered is not None:
        stored, black_white = raw.rendered, None
    elif black_white is None and values.dtype == np.uint16:
        black_white = (0, 65535)

    def scaled(rows: slice) -> Array:
        colour = stored[rows]
        if black_white is not None:
            colour = unit(colour, *black_white)
        elif colour.dtype != np.uint8:
            colour = colour.astype(np.float32, copy=False)
        if raw.inverted:
            colour = 1 - colour if colour.dtype == np.float32 else 255 - colour
        return colour

    return scaled, alpha


def _depth_note(raw: Raw, extent: Extent) -> tuple[str, ...]:
    """That 16-bit values may be of fewer bits, where they do not go beyond those.

    Read as 16 bits they are nearly black.
    """
    if raw.values.dtype != np.uint16 or raw.black_white or raw.rendered is not None:
        return ()
    largest = int(extent.most)
    top = next((top for top in (raw.top or 0, 255, 4095) if 0 < largest <= top < 65535), None)
    if top is None:
        return ()
    bits = f"{top.bit_length()}-bit data" if top & (top + 1) == 0 else "that range"
    how = f"for {bits} fit with --window 0,{top}"
    return (f"16-bit values no higher than {top}, read as 0 to 65535: {how}",)


def _over_white(colour: Array, alpha: Array) -> Array:
    """colour·alpha + white·(1 − alpha), rounded to the nearest for uint8; grey stays (H, W)."""
    if colour.ndim == 3:
        alpha = alpha[..., None]
    if colour.dtype == np.uint8:
        weight = alpha.astype(np.uint16)
        return ((colour * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)
    share: Array = alpha.astype(np.float32) / np.float32(full_scale(alpha))
    composed: Array = colour * share + (1 - share)
    return np.clip(composed, 0, 1, out=composed)
