"""Pictures for people: heatmaps laid over pictures on a fixed scale, thumbnails, encoded files.

The scale is an argument everywhere and never taken from the picture at hand: the same tint means
the same score in every picture of a report, and a faultless part does not show its own largest
noise in full colour.
Legend: H, W = height and width in pixels.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from blemish.anomalies.base import place_probability
from blemish.errors import ConfigError, NonFiniteError
from blemish.files import write_whole
from blemish.images import Windows

Picture = npt.NDArray[np.uint8]

# In multiples of the attention's mean: where it is flat, nothing shows.
ATTENTION_SCALE = (1.0, 8.0)
SALIENCY_SCALE = (0.0, 1.0)  # the range that methods give it in
_SIGNATURE = "Software"  # the PNG keyword under which a picture says what it is
_ROWS = 256  # drawn at a time
_BAND = 16  # rows of a reduced picture that are read at a time
_GREY = 128  # of what does not count, and of the line around what does
_LIGHT, _DARK = 255, 0  # of the two lines of what is outlined: one is seen on any ground

# Plasma (van der Walt and Smith 2015): lightness rises steadily, and so it reads without colour
# vision and in print. Its dark end is a saturated blue; inferno's is black, which on a photograph
# looks like a shadow of the part.
_INDICES = np.arange(256, dtype=np.uint8)[:, None]
_COLOURS: Picture = cv2.applyColorMap(_INDICES, cv2.COLORMAP_PLASMA).reshape(256, 3)[:, ::-1]  # RGB
# Share of the opacity at each colour: full from the middle of the scale on, or a faint defect gets
# too faint a tint.
_STRENGTHS = np.minimum(np.linspace(0.0, 2.0, 256), 1.0)


def overlay(
    picture: Picture,
    heatmap: npt.NDArray[np.floating[Any]],
    scale: tuple[float, float],
    *,
    opacity: float = 0.5,
) -> Picture:
    """The picture tinted where the heatmap is high.

    Args:
        picture: uint8 H W 3, RGB.
        heatmap: H W, finite, unit of the score.
        scale: (low, high) in the unit of the score, low < high. At or below `low` the picture shows
            unchanged; towards `high` the tint runs from blue through red to yellow, growing more
            opaque up to the middle of the scale; above `high` nothing changes any more.
        opacity: of the tint from the middle of the scale on, 0 to 1.

    Returns: uint8 H W 3; the arguments are left alone.
    Raises: NonFiniteError if the heatmap is not finite; ConfigError if sizes, scale or opacity do
        not fit.

    Example:
        >>> grey = np.full((1, 3, 3), 100, np.uint8)
        >>> overlay(grey, np.array([[0.0, 1.0, 9.0]], np.float32), (1.0, 2.0), opacity=1.0).tolist()
        [[[100, 100, 100], [100, 100, 100], [240, 249, 33]]]
    """
    low, high = _checked_scale(scale)
    _check_picture(picture)
    if not 0.0 <= opacity <= 1.0:
        raise ConfigError(f"opacity {opacity} is out of range; use a number from 0 to 1")
    if heatmap.shape != picture.shape[:2]:
        raise ConfigError(
            f"a heatmap of shape {heatmap.shape} does not fit a picture of shape {picture.shape}; "
            "resize the heatmap to the picture's height and width first"
        )
    if not np.isfinite(heatmap).all():
        raise NonFiniteError("the heatmap holds NaN or infinite values; it cannot be drawn")
    alpha = (opacity * _STRENGTHS)[:, None]
    kept, tint = (1.0 - alpha).astype(np.float32), (alpha * _COLOURS).astype(np.float32)
    blended = np.empty_like(picture)
    # A large picture whole would take thirty times its own memory.
    for first in range(0, len(picture), _ROWS):
        rows = slice(first, first + _ROWS)
        # Divided before subtracting, so that a scale near the largest float cannot overflow.
        level = np.clip(
            heatmap[rows].astype(np.float64) / (high - low) - low / (high - low), 0.0, 1.0
        )
        index = np.rint(level * 255.0).astype(np.uint8)
        blended[rows] = np.rint(picture[rows] * kept[index] + tint[index]).astype(np.uint8)
    return blended


def attention_overlay(picture: Picture, attention: npt.NDArray[np.floating[Any]]) -> Picture:
    """The picture tinted where attention (h w, sum 1) is high, on `ATTENTION_SCALE`.

    Raises: as `overlay`.

    Example:
        >>> grey, flat = np.full((32, 32, 3), 100, np.uint8), np.full((2, 2), 0.25)
        >>> bool((attention_overlay(grey, flat) == grey).all())
        True
    """
    height, width = picture.shape[:2]
    return overlay(
        picture, place_probability(attention, (height, width)) * (height * width), ATTENTION_SCALE
    )


def outline(picture: Picture, box: tuple[float, float, float, float]) -> Picture:
    """The picture with a rectangle around a part of it: a light line along the part's inner edge, a
    dark one around it.

    At the picture's border, where there is no room for the dark line, both move inwards.

    Args:
        picture: uint8 H W 3, RGB.
        box: x, y, width, height as fractions of the picture's width and height, the upper left
            corner first. What lies outside of the picture is left out.

    Returns: uint8 H W 3; the argument is left alone.
    Raises: NonFiniteError if the box is not finite; ConfigError if the picture is no picture.

    Example:
        >>> outline(np.full((6, 6, 3), 90, np.uint8), (0.25, 0.25, 0.5, 0.5))[2, :, 0].tolist()
        [90, 0, 255, 255, 0, 90]
    """
    _check_picture(picture)
    if not np.isfinite(box).all():
        raise NonFiniteError(f"the box {box} holds NaN or infinite values; it cannot be drawn")
    height, width = picture.shape[:2]
    line = max(1, round(max(height, width) / 200))
    x, y, across, down = box
    drawn = picture.copy()
    part = drawn[_within(y, down, height, line), _within(x, across, width, line)]
    inner = slice(2 * line, -2 * line)
    kept = part[inner, inner].copy()
    part[:] = _DARK
    part[line:-line, line:-line] = _LIGHT
    part[inner, inner] = kept
    return drawn


def contours(picture: Picture, mask: npt.NDArray[np.bool_]) -> Picture:
    """The picture with the parts of a mask outlined: a light line around each, a dark one around
    that.

    Both lie outside of the mask, so that the smallest part can be seen; only at the picture's
    border, where there is no room for them, they move inwards.

    Args: picture: uint8 H W 3, RGB. mask: bool H W.
    Returns: uint8 H W 3; the arguments are left alone.
    Raises: ConfigError if the picture is no picture or the mask of another size.

    Example:
        >>> mask = np.arange(25).reshape(5, 5) == 12
        >>> contours(np.full((5, 5, 3), 90, np.uint8), mask)[2, :, 0].tolist()
        [0, 255, 90, 255, 0]
    """
    _check_picture(picture)
    if mask.shape != picture.shape[:2]:
        raise ConfigError(
            f"a mask of shape {mask.shape} does not fit a picture of shape {picture.shape}"
        )
    drawn = picture.copy()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return drawn
    line = max(1, round(max(mask.shape) / 800))
    # Only around the parts: of a large picture that is little.
    window = tuple(
        slice(max(int(at[0]) - 2 * line, 0), int(at[-1]) + 2 * line + 1) for at in (rows, columns)
    )
    inside = np.ascontiguousarray(mask[window]).view(np.uint8)
    light = cv2.dilate(inside, np.ones((2 * line + 1, 2 * line + 1), np.uint8))
    dark = cv2.dilate(light, np.ones((2 * line + 1, 2 * line + 1), np.uint8))
    part = drawn[window]
    part[dark > light] = _DARK
    part[light > inside] = _LIGHT
    for depth, tone in ((2 * line, _LIGHT), (line, _DARK)):
        for edge in (np.s_[:depth], np.s_[-depth:], np.s_[:, :depth], np.s_[:, -depth:]):
            drawn[edge][mask[edge]] = tone
    return drawn


def faded(picture: Picture, part: npt.NDArray[np.bool_]) -> Picture:
    """The picture with all but a part of it faded towards grey, and a grey line around that.

    Args: picture: uint8 H W 3, RGB. part: bool h w, laid over the whole picture; its border is
        drawn smooth.
    Returns: uint8 H W 3; the arguments are left alone.
    Raises: ConfigError if the picture is no picture.

    Example:
        >>> left = np.array([[True, False]])
        >>> faded(np.full((1, 8, 3), 200, np.uint8), left)[0, :, 0].tolist()
        [200, 200, 200, 128, 160, 160, 160, 160]
    """
    _check_picture(picture)
    height, width = picture.shape[:2]
    inside = cv2.resize(part.astype(np.float32), (width, height)) > 0.5
    drawn = picture.copy()
    away = drawn[~inside].astype(np.uint16)
    drawn[~inside] = ((away * 4 + _GREY * 5 + 4) // 9).astype(np.uint8)
    line = max(1, round(max(height, width) / 400))
    kept = cv2.erode(inside.astype(np.uint8), np.ones((2 * line + 1,) * 2, np.uint8))
    drawn[inside & (kept == 0)] = _GREY
    return drawn


def colour_bar(
    scale: tuple[float, float], *, width: int = 256, height: int = 16, opacity: float = 1.0
) -> Picture:
    """The legend of `overlay`: uint8 height width 3, low at the left, over light grey.

    Raises: ConfigError as `overlay`.

    Example:
        >>> colour_bar((0.0, 40.0), width=100, height=8).shape
        (8, 100, 3)
    """
    low, high = _checked_scale(scale)
    ramp = np.broadcast_to(np.linspace(low, high, width), (height, width))
    return overlay(np.full((height, width, 3), 224, np.uint8), ramp, scale, opacity=opacity)


def thumbnail(picture: Picture, max_side: int) -> Picture:
    """The picture reduced so that neither side exceeds `max_side` pixels; a smaller one as it is.

    Raises: ConfigError if the picture is not uint8 H W 3 or `max_side` < 1.

    Example:
        >>> thumbnail(np.zeros((100, 300, 3), np.uint8), 60).shape
        (20, 60, 3)
    """
    _check_picture(picture)
    if max_side < 1:
        raise ConfigError(f"a thumbnail of {max_side} pixels is not possible; use at least 1")
    height, width = picture.shape[:2]
    factor = max_side / max(height, width)
    if factor >= 1.0:
        return picture
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.ascontiguousarray(
        cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8
    )


def reduced(windows: Windows, max_side: int) -> Picture:
    """As `thumbnail`, of a picture that is too large to be held: a few rows at a time, by means of
    squares first."""
    height, width = windows.size
    step = max(1, max(height, width) // max_side)
    bands = []
    for top in range(0, height - height % step, step * _BAND):
        rows = slice(top, min(top + step * _BAND, height - height % step))
        band = windows.read(rows, slice(0, width - width % step))
        size = (band.shape[1] // step, band.shape[0] // step)
        bands.append(cv2.resize(band, size, interpolation=cv2.INTER_AREA))
    found = np.concatenate(bands)
    if found.dtype != np.uint8:
        found = np.rint(found * 255).astype(np.uint8)
    return thumbnail(found, max_side)


def encode_jpeg(picture: Picture, quality: int = 85) -> bytes:
    """The picture (uint8 H W 3, RGB) as a JPEG file without metadata; `quality` from 1 to 95.

    Raises: ConfigError if the picture is not uint8 H W 3 or the quality is out of range.
    """
    if not 1 <= quality <= 95:
        raise ConfigError(f"JPEG quality {quality} is out of range; use a number from 1 to 95")
    return _encode(picture, "JPEG", quality=quality)


def encode_png(picture: Picture) -> bytes:
    """The picture (uint8 H W 3, RGB) as a PNG file without metadata.

    Raises: ConfigError if the picture is not uint8 H W 3.
    """
    return _encode(picture, "PNG")


def encode_mask(mask: npt.NDArray[np.bool_]) -> bytes:
    """The mask (bool H W) as a PNG file of 8-bit grey: 255 where it is True, else 0.

    Raises: ConfigError if the mask is not bool H W.
    """
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        raise ConfigError(f"a mask is bool H W; this array is {mask.dtype} of shape {mask.shape}")
    values = np.multiply(mask, 255, dtype=np.uint8)
    encoded, content = cv2.imencode(".png", values)  # Pillow would copy it first
    assert encoded  # of 8 bits
    return content.tobytes()


def encode_map(anomaly_map: npt.NDArray[np.floating[Any]]) -> bytes:
    """The map (float h w) as a TIFF file of one channel of float32, uncompressed: its values as
    they are, which Pillow (mode F), OpenCV (`IMREAD_UNCHANGED`) and tifffile read.

    Raises: ConfigError if the map is not h w.
    """
    if anomaly_map.ndim != 2 or anomaly_map.size == 0:
        raise ConfigError(f"an anomaly map is h w; this array has shape {anomaly_map.shape}")
    buffer = io.BytesIO()
    Image.fromarray(anomaly_map.astype(np.float32, copy=False)).save(buffer, "TIFF")
    return buffer.getvalue()


def save_png(path: str | Path, picture: Picture, *, signed: str = "") -> Path:
    """Writes the picture (uint8 H W 3, RGB) as a PNG file, whole or not at all.

    Args: signed: what it is, so that it is known again (`is_signed`).
    Raises: OutputError if it cannot be written; ConfigError if the picture is not uint8 H W 3.
    """
    info = PngImagePlugin.PngInfo()
    info.add_text(_SIGNATURE, signed)
    content = _encode(picture, "PNG", pnginfo=info) if signed else encode_png(picture)
    return write_whole(path, content, picture=True)


def is_signed(path: Path, signed: str) -> bool:
    """Whether a file is a picture that `save_png` has signed so."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError:
        return False
    return head.startswith(b"\x89PNG") and f"tEXt{_SIGNATURE}\0{signed}".encode() in head


def _encode(picture: Picture, format: str, **options: Any) -> bytes:
    _check_picture(picture)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format, **options)
    return buffer.getvalue()


def _within(start: float, length: float, pixels: int, margin: int) -> slice:
    """The pixels, one at least, of [start, start + length] as fractions of a side of `pixels`, and
    a margin."""
    first = min(max(round(start * pixels), 0), pixels - 1)
    last = min(max(round((start + length) * pixels), first + 1), pixels)
    return slice(max(first - margin, 0), min(last + margin, pixels))


def _check_picture(picture: Picture) -> None:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise ConfigError(
            f"a picture is uint8 H W 3; this array is {picture.dtype} of shape {picture.shape}"
        )


def _checked_scale(scale: tuple[float, float]) -> tuple[float, float]:
    low, high = map(float, scale)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(
            f"the scale ({low:g}, {high:g}) is empty; give two finite scores, the lower one first"
        )
    return low, high
