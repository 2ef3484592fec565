"""Pictures whose pixels are known, files of them, and what the decoder says."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tifffile
from fuzzing import pictures
from fuzzing.pictures import chunk
from PIL import Image

from blemish.errors import ImageError
from blemish.images import decode

rng = np.random.default_rng(7)
RGB = rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)
RGBA = rng.integers(0, 256, (7, 5, 4), dtype=np.uint8)
GREY = RGB[..., 0].copy()
RGB16 = rng.integers(0, 65536, (7, 5, 3), dtype=np.uint16)
RGBA16 = rng.integers(0, 65536, (7, 5, 4), dtype=np.uint16)
GREY16 = RGB16[..., 0].copy()
SMOOTH = np.add.outer(np.arange(40), 2 * np.arange(60)).astype(np.uint8)[..., None] + np.array(
    [0, 40, 90], np.uint8
)


def saved(image: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """By Pillow; WebP without loss."""
    lossless = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    return pictures.saved(image, kind, **{**lossless, **options})


def png(values: np.ndarray, colour: int, more: Mapping[bytes, bytes] | None = None) -> bytes:
    """A PNG of 8 or 16 bits, of a colour type, with more chunks before its pixels."""
    return pictures.png(values, colour, 8 * values.dtype.itemsize, more=more)


def png_of(
    side: tuple[int, int], depth: int, colour: int, stream: bytes, *parts: bytes, interlace: int = 0
) -> bytes:
    """A PNG of (columns, rows) that holds such a stream."""
    head = struct.pack(">IIBBBBB", *side, depth, colour, 0, 0, interlace)
    chunks = [chunk(b"IHDR", head), *parts, chunk(b"IDAT", zlib.compress(stream))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def pnm(values: np.ndarray, top: int = 255, *, head: bytes = b"") -> bytes:
    """A PGM or PPM in binary; `head` stands after the magic number."""
    height, width = values.shape[:2]
    kind = b"P6" if values.ndim == 3 else b"P5"
    body = values.astype(">u2" if top > 255 else np.uint8).tobytes()
    return kind + b"\n" + head + f"{width} {height}\n{top}\n".encode() + body


def tiff(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF 2.3 says of tag 0x0112: where row 0 and column 0 of the stored picture are seen."""
    height, width = values.shape[:2]
    shape = (width, height) if orientation > 4 else (height, width)
    out = np.empty((*shape, *values.shape[2:]), values.dtype)
    for row in range(height):
        for column in range(width):
            bottom, right = height - 1 - row, width - 1 - column
            places = [(row, column), (row, right), (bottom, right), (bottom, column)]
            places += [(column, row), (column, bottom), (right, bottom), (right, row)]
            out[places[orientation - 1]] = values[row, column]
    return out


def over_white(rgba: np.ndarray) -> np.ndarray:
    colour, alpha = rgba[..., :3].astype(float), rgba[..., 3:].astype(float) / 255
    return np.floor(colour * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


def grey_rgb(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def unit(values: np.ndarray) -> np.ndarray:
    """16 bits in [0, 1]."""
    return values / np.float32(65535)


def pixels(source: object, **options: Any) -> np.ndarray:
    return decode(source, **options).pixels


def reason(source: object, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        decode(source, **options)
    return caught.value.reason


def same(source: object, expected: np.ndarray, **options: Any) -> bool:
    return np.array_equal(pixels(source, **options), expected)


def near(source: object, expected: np.ndarray, **options: Any) -> bool:
    """Grey or RGB in [0, 1]; within rounding."""
    found = pixels(source, **options)
    return np.allclose(found[..., 0] if expected.ndim == 2 else found, expected, atol=1e-6)
