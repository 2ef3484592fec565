"""BMP by Pillow, but for the run-length coded kinds, which Pillow decodes pixel by pixel in Python."""

from __future__ import annotations

import struct
from functools import partial
from io import BytesIO

import numpy as np
from PIL import BmpImagePlugin

from blemish.images.limits import TRUNCATED, Limits, Unusable, check_size
from blemish.images.pixels import Array, Container, Raw, load

_SHORT = "is damaged: a BMP with fewer pixels than it announces"


def bmp(data: bytes, limits: Limits) -> Container:
    try:
        image = BmpImagePlugin.BmpImageFile(BytesIO(data))
    except (SyntaxError, OSError, struct.error):
        if len(data) < int.from_bytes(data[2:6], "little"):
            raise Unusable(TRUNCATED) from None
        raise
    check_size(*image.size, limits)
    tile = image.tile[0]
    coded = tile.codec_name != "raw"
    if coded or not isinstance(tile.args, tuple):
        size = int.from_bytes(
            data[34:38], "little"
        )  # run-length coded: the size that the header gives
    else:
        size = tile.args[1] * image.height  # stride × rows
    if tile.offset + size > len(data):
        raise Unusable(TRUNCATED)
    channels = {"1": 1, "L": 1, "P": 4}.get(image.mode, len(image.getbands()))
    if not coded:
        return Container(image.height, image.width, channels, 8, partial(load, image))
    nibbles = isinstance(tile.args, tuple) and bool(tile.args[1])
    runs = data[tile.offset : tile.offset + size if size else len(data)]
    return Container(
        image.height, image.width, channels, 8, partial(_run_length, image, runs, nibbles)
    )


def _run_length(image: BmpImagePlugin.BmpImageFile, runs: bytes, nibbles: bool) -> Raw:
    """The picture behind runs, with the colours that Pillow found in the header."""
    indices = _indices(runs, image.width, image.height, nibbles)[::-1]  # stored from the bottom up
    if image.mode == "P" and image.palette is not None:
        stride = len(image.palette.rawmode or "BGRX")
        colours = np.frombuffer(bytes(image.palette.palette), np.uint8).reshape(-1, stride)[
            :, 2::-1
        ]
        known = np.zeros((256, 3), np.uint8)  # what the palette does not name is black
        known[: len(colours)] = colours[:256]
        indices = known[indices]
    elif image.mode == "1":
        indices = np.where(indices > 0, np.uint8(255), np.uint8(0))
    return Raw(np.ascontiguousarray(indices))


def _indices(runs: bytes, width: int, height: int, nibbles: bool) -> Array:
    """Colour numbers (H, W), the bottom row first; what the runs pass over stays 0 (Windows GDI, BI_RLE8 and BI_RLE4).

    Raises: Unusable if a run leaves the picture, or the runs end before its last row.
    """
    indices = np.zeros((height, width), np.uint8)
    row = column = position = 0
    while True:
        if position + 2 > len(runs):
            if row >= height or (row == height - 1 and column == width):
                return indices  # without an end mark, but whole
            raise Unusable(TRUNCATED)
        count, code = runs[position], runs[position + 1]
        position += 2
        if count == 0 and code < 2:
            if code == 1:
                if row < height - 1:
                    raise Unusable(_SHORT)
                return indices
            row, column = row + 1, 0
            continue
        if count == 0 and code == 2:
            if position + 2 > len(runs):
                raise Unusable(TRUNCATED)
            column, row, position = column + runs[position], row + runs[position + 1], position + 2
            continue
        length = count or code  # of a run of one code, or of as many codes as stand there
        if row >= height or column + length > width:
            raise Unusable("is damaged: a BMP whose runs leave the picture")
        size = 1 if count else (length + 1) // 2 if nibbles else length
        values = np.frombuffer(
            bytes([code]) if count else runs[position : position + size], np.uint8
        )
        if len(values) < size:
            raise Unusable(TRUNCATED)
        if nibbles:
            values = np.resize(np.stack([values >> 4, values & 15], axis=-1).reshape(-1), length)
        indices[row, column : column + length] = values
        column += length
        position += 0 if count else size + size % 2  # whole words
