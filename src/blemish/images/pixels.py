"""Pixels as a file stores them: what every reader gives back, and what all readers share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from blemish.images.limits import quiet

Array: TypeAlias = npt.NDArray[Any]
CMYK_NOTE = "CMYK converted to RGB without a colour profile"


@dataclass(frozen=True, slots=True)
class Raw:
    """Pixels as they are stored.

    Attributes:
        values: upright; (H, W) grey, or (H, W, C) with C = 2 grey and alpha, 3 RGB, 4 RGBA.
        black_white: the values that map to 0 and 1 without an explicit window; None: by the dtype.
        inverted: low values are bright.
        rendered: grey in [0, 1] by the file's own curve, which stands unless a window is given.
        top: the largest value that its samples can take, where the file says so.
        notes: what a user should know.
    """

    values: Array
    black_white: tuple[float, float] | None = None
    inverted: bool = False
    rendered: Array | None = None
    top: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Container:
    """What a file says of its picture before a pixel is decoded. Its sizes are within the limits.

    Attributes:
        height, width: pixels, as stored (before the orientation is applied).
        channels: samples of a pixel, as decoded (a palette counts as 4).
        bits: of a sample, as stored.
        decode: makes the pixels; raises Unusable, or whatever a library raises on a damaged file.
    """

    height: int
    width: int
    channels: int
    bits: int
    decode: Callable[[], Raw]


def image_values(image: Image.Image) -> tuple[Array, tuple[str, ...]]:
    """The pixels of a loaded PIL image as (H, W), (H, W, 3) or (H, W, 4), writable, and what to
    note.

    Row by row: converted as a whole it would be held three times, and once more by numpy.
    """
    notes: tuple[str, ...] = ()
    mode = image.mode
    deep = mode in ("I", "F") or mode.startswith("I;16")
    if image.has_transparency_data and not deep:
        opaque = all(
            each.getchannel("A").getextrema() == (255, 255) for _, each in _parts(image, "RGBA")
        )
        mode = "RGB" if opaque else "RGBA"
    elif mode == "1":
        mode = "L"
    elif mode == "CMYK":
        mode, notes = "RGB", (CMYK_NOTE,)
    elif mode not in ("L", "RGB") and not deep:
        mode = "RGB"
    return np.asarray(_values(image, mode)), notes


def _values(image: Image.Image, mode: str) -> Array:
    values: Array | None = None
    # By way of RGBA where the transparency is left out: a palette converted to RGB at once is the
    # same, but nothing promises it.
    through = "RGBA" if image.has_transparency_data and mode == "RGB" else mode
    for rows, part in _parts(image, through):
        some = native(np.asarray(part if part.mode == mode else part.convert(mode)))
        if values is None:
            values = np.empty((image.height, *some.shape[1:]), some.dtype)
        values[rows] = some
    assert values is not None  # a picture has a row
    return values


def _parts(image: Image.Image, mode: str) -> Iterator[tuple[slice, Image.Image]]:
    """Some rows of the image at a time, in a mode."""
    for rows in row_blocks(image.height, image.width):
        part = image.crop((0, rows.start, image.width, rows.stop))
        if part.mode == "La":
            part = part.convert("LA")
        yield rows, part if part.mode == mode else part.convert(mode)


def row_blocks(height: int, width: int) -> Iterator[slice]:
    """All rows of a picture, about a quarter of a million pixels at a time: what is computed of
    these stays in the processor's cache, and no copy of the whole picture is made."""
    step = max(1, 2**18 // max(width, 1))
    for first in range(0, height, step):
        yield slice(first, min(first + step, height))


def native(values: Array) -> Array:
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def upright(values: Array, orientation: object) -> Array:
    """The pixels turned and mirrored as EXIF's orientation 1..8 asks; any other asks nothing."""
    if orientation not in range(2, 9):
        return values
    import cv2  # turns pixels several times faster than strided copies in numpy

    # As bytes, whatever the dtype.
    turned = np.ascontiguousarray(values).reshape(*values.shape[:2], -1).view(np.uint8)
    if orientation in (5, 7):
        turned = cv2.transpose(turned)
    turn = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
    if orientation == 7:
        turned = cv2.flip(turned, -1, dst=turned)  # in place: by half a turn
    elif orientation in turn:
        turned = cv2.rotate(turned, turn[orientation])
    elif orientation in (2, 4):
        turned = cv2.flip(turned, 1 if orientation == 2 else 0)
    return turned.view(values.dtype).reshape(*turned.shape[:2], *values.shape[2:])


def exif_orientation(exif: bytes) -> int:
    """Orientation 1..8 of an EXIF block; 1 where it does not say or is corrupt."""
    with quiet, contextlib.suppress(Exception):
        block = Image.Exif()
        block.load(exif)
        return int(block.get(0x0112, 1))
    return 1


def full_scale(values: Array) -> int:
    return {"uint8": 255, "uint16": 65535}.get(values.dtype.name, 1)


def split(values: Array) -> tuple[Array, Array | None]:
    """Colour, (H, W) or (H, W, 3), and alpha, (H, W) or None."""
    if values.ndim == 2:
        return values, None
    channels = values.shape[2]
    alpha = values[..., -1] if channels in (2, 4) else None
    return (values[..., 0] if channels < 3 else values[..., :3]), alpha


def unit(values: Array, lo: float, hi: float) -> Array:
    """lo to 0, hi to 1, linear between, clipped."""
    if values.dtype.kind in "iu" and values.dtype.itemsize < 4:
        out = values.astype(np.float32)  # exact
        out -= np.float32(lo)
        out /= np.float32(hi - lo)
    else:
        out = ((values.astype(np.float64) - lo) / (hi - lo)).astype(np.float32)
    return np.clip(out, 0, 1, out=out)


def load(image: Image.Image, orientation: int = 1, notes: tuple[str, ...] = ()) -> Raw:
    """A complete, checked picture decoded by Pillow."""
    file = image.fp if isinstance(image, ImageFile.ImageFile) else None
    image.load()
    if file is not None:
        file.close()  # lets go of the bytes of the file
    values, more = image_values(image)
    image.close()  # lets go of its own copy of the pixels
    return Raw(upright(values, orientation), notes=notes + more)


def opencv(data: bytes | memoryview) -> Array:
    """Pixels as RGB(A) or grey, at the depth at which OpenCV reads them.

    Raises: ValueError where it cannot.
    """
    import cv2

    values: Array | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("OpenCV could not decode the picture")
    if values.ndim == 3 and values.shape[2] in (3, 4):
        for rows in row_blocks(*values.shape[:2]):  # in place
            values[rows, :, :3] = values[rows, :, 2::-1].copy()
    return values
