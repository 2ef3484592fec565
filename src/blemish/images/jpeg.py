"""JPEG by libjpeg-turbo, with its warnings as errors: a picture with a hole is no picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image, JpegImagePlugin

from blemish.images.limits import TRUNCATED, Limits, Unusable, check_size, damaged
from blemish.images.pixels import (
    CMYK_NOTE,
    Array,
    Container,
    Raw,
    exif_orientation,
    load,
    row_blocks,
    upright,
)

# Inside coded data 00 is stuffing, and d0 to d7 are restarts.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Of a progressive picture, each of which costs a pass over all blocks; usual are 10.
_MAX_SCANS = 200
_SPACES = {1: "GRAY", 3: "RGB", 4: "CMYK"}


def jpeg(data: bytes, limits: Limits) -> Container:
    """Walks the markers up to the end marker; the file without its application data is what is
    decoded.

    What cameras write wrong without harm to a pixel is put right on the way: the scan parameters of
    a sequential picture, the version of JFIF, Adobe's transform. Only then is a warning of the
    library about the coded data.
    """
    kept: list[bytes] = [data[:2]]
    notes: tuple[str, ...] = ()
    orientation, frame, scans, adobe = 1, 0, 0, 0
    left: dict[int, list[int]] = {}  # of each component, bits that its 64 coefficients lack
    width = height = channels = 0
    for marker, segment, coded in _segments(data):
        body = segment[4:]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if len(body) < 6 or frame:
                raise damaged("a JPEG of one frame header is needed")
            frame, depth, channels = marker, body[0], body[5]
            height, width = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
            check_size(width, height, limits)
            if depth != 8:
                raise Unusable(f"{depth}-bit JPEG is not supported; convert to PNG")
            if channels not in _SPACES:
                raise Unusable(f"a JPEG of {channels} channels is not supported; convert to PNG")
        elif marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) > 6:
            segment = segment[:9] + b"\x01\x01" + segment[11:]
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) > 11:
            adobe = len(kept)
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = exif_orientation(body)
        elif marker == 0xE2 and body.startswith(b"MPF\0"):
            notes = ("the first of several pictures in a multi-picture JPEG",)
        elif marker == 0xDA:
            scans += 1
            _note_scan(left, body)
            if frame in (0xC0, 0xC1, 0xC9):
                segment = segment[:-3] + b"\x00\x3f\x00"
        # Application data stays behind, but APP0 and APP14 name the colour space.
        if marker in (0xE0, 0xEE) or not (0xE1 <= marker <= 0xEF or marker == 0xFE):
            kept += [segment, coded]
    if not frame or not scans:
        raise damaged("a JPEG without pixels")
    if scans > _MAX_SCANS:
        raise damaged(f"a JPEG of {scans:,} scans; the limit is {_MAX_SCANS}")
    lacks = len(left) < channels or any(map(any, left.values()))
    if frame in (0xC2, 0xC6, 0xCA, 0xCE) and lacks:
        raise damaged("a progressive JPEG without its last scans")
    if adobe and kept[adobe][15]:  # any transform is the one that there is for so many channels
        kept[adobe] = kept[adobe][:15] + (b"\x02" if channels == 4 else b"\x01") + kept[adobe][16:]
    decoded = partial(_decoded, kept, channels, orientation, notes)
    return Container(height, width, channels, 8, decoded)


def _segments(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Up to the end marker each marker, its segment, and the coded data after it (of a scan)."""
    position = 2
    while data[position : position + 2] != b"\xff\xd9":
        if position + 4 > len(data):
            raise Unusable(TRUNCATED)
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0:
            raise damaged("a JPEG marker is missing")
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        end = following = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if end > len(data):
            raise Unusable(TRUNCATED)
        if marker == 0xDA:
            found = _MARKER.search(data, end)
            if found is None:
                raise Unusable(TRUNCATED)
            following = found.start()
        yield marker, data[position:end], data[end:following]
        position = following


def _note_scan(left: dict[int, list[int]], scan: bytes) -> None:
    """Take from the bits that the coefficients of a progressive JPEG lack what a scan brings.

    Args: scan: its header (ITU T.81, B.2.3): components, first and last coefficient, low bit.
    """
    if len(scan) < 4 or len(scan) < 4 + 2 * scan[0]:
        raise damaged("the header of a JPEG scan is not whole")
    first, last, bits = scan[1 + 2 * scan[0] :][:3]
    for component in scan[1 : 1 + 2 * scan[0] : 2]:
        lacking = left.setdefault(component, [16] * 64)
        for place in range(first, min(last, 63) + 1):
            lacking[place] = bits & 15


def _decoded(kept: list[bytes], channels: int, orientation: int, notes: tuple[str, ...]) -> Raw:
    coded = b"".join(kept) + b"\xff\xd9"
    values = _strict(coded, _SPACES[channels])
    if values is None:
        return load(JpegImagePlugin.JpegImageFile(BytesIO(coded)), orientation, notes)
    if channels == 4:
        colours = np.empty((*values.shape[:2], 3), np.uint8)
        for rows in row_blocks(*values.shape[:2]):  # inverted, as Adobe writes them
            colours[rows] = Image.fromarray(255 - values[rows], "CMYK").convert("RGB")
        values, notes = colours, (*notes, CMYK_NOTE)
    return Raw(upright(values[..., 0] if channels == 1 else values, orientation), notes=notes)


def _strict(coded: bytes, space: str) -> Array | None:
    """The pixels of a JPEG; None where its layout is one that the strict decoder does not know.

    Args: space: "GRAY", "RGB" or "CMYK" (as stored). Raises: Unusable if its coded data is damaged.
    """
    import simplejpeg

    try:
        values: Array = simplejpeg.decode_jpeg(coded, colorspace=space, strict=True)
        return values
    except ValueError as error:
        if "subsampling level" in str(error):
            return None
    padded = len(coded) - 2 - len(coded[:-2].rstrip(b"\0"))
    if 0 < padded <= 3:  # what some cameras fill up their pictures with, to a whole number of words
        return _strict(coded[: -2 - padded] + b"\xff\xd9", space)
    raise damaged("the coded data of the JPEG is not whole")
