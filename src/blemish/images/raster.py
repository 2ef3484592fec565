"""PNG, JPEG, WebP, BMP, PGM and PPM: the container is walked first, then a library makes pixels."""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from blemish.images.limits import TRUNCATED, Limits, Unusable, check_frames, check_size
from blemish.images.pixels import Array, Raw, load, native, opencv, upright
from blemish.images.tiff import directories


def exif_orientation(exif: bytes) -> int:
    """Orientation 1..8 from an EXIF block; 1 where it does not say or is corrupt."""
    with contextlib.suppress(ValueError, struct.error, StopIteration):
        return next(directories(exif.removeprefix(b"Exif\0\0"))).get(0x0112, (1,))[0]
    return 1


def png(data: bytes, limits: Limits) -> Raw:
    """Walks the chunks and hands on only those that make pixels."""
    kept: list[bytes] = [data[:8]]
    transparent, orientation, complete, position = b"", 1, False, 8
    depth, top = 0, None
    while not complete:
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if end > len(data):
            raise Unusable(TRUNCATED)
        kind, body = data[position + 4 : position + 8], data[position + 8 : end - 4]
        if len(kept) == 1:
            if kind != b"IHDR":
                raise Unusable("is damaged: a PNG without a header")
            width, height, depth = struct.unpack_from(">IIB", body)
            check_size(width, height, limits)
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(data[end - 4 : end]):
                raise Unusable("is damaged: a PNG checksum does not match")
            if kind == b"tRNS" and depth == 16:
                transparent = body  # left to _png_deep: OpenCV reads it for RGB only
            else:
                kept.append(data[position:end])
        elif kind == b"acTL":
            check_frames(int.from_bytes(body[:4]))
        elif kind[:1].isupper():
            raise Unusable("is damaged: a PNG with an unknown critical chunk")
        elif kind == b"eXIf":
            orientation = exif_orientation(body)
        elif kind == b"sBIT" and body:
            top = 2 ** max(body) - 1
        complete, position = kind == b"IEND", end
    if not any(part[4:8] == b"IDAT" for part in kept):
        raise Unusable("is damaged: a PNG without pixels")
    pixels = b"".join(kept)
    if depth == 16:
        return Raw(upright(_png_deep(pixels, transparent), orientation), top=top)
    return load(PngImagePlugin.PngImageFile(BytesIO(pixels)), orientation)


def _png_deep(data: bytes, transparent: bytes) -> Array:
    """16-bit PNG, which Pillow would cut to 8 bits where it has colour."""
    values = opencv(data)
    if values.dtype != np.uint16:
        raise ValueError("OpenCV cut the picture to 8 bits")
    if transparent:  # one colour that is see-through, as big-endian 16-bit samples
        key = np.frombuffer(transparent, ">u2")
        if values.ndim == 2:
            values = np.stack([values] * 3, axis=-1)
        alpha = np.where((values == key).all(axis=-1, keepdims=True), 0, 65535).astype(np.uint16)
        values = np.concatenate([values, alpha], axis=-1)
    return values


_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # inside coded data 00 is stuffing, d0..d7 are restarts


def jpeg(data: bytes, limits: Limits) -> Raw:
    """Walks the markers up to the end marker and hands on the file without its application data."""
    kept: list[bytes] = [data[:2]]
    notes: tuple[str, ...] = ()
    orientation, sized, scan, position = 1, False, 0, 2
    while data[position : position + 2] != b"\xff\xd9":
        if position + 4 > len(data):
            raise Unusable(TRUNCATED)
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0:
            raise Unusable("is damaged: a JPEG marker is missing")
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if end > len(data):
            raise Unusable(TRUNCATED)
        body = data[position + 4 : end]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            depth, height, width = struct.unpack_from(">BHH", body)
            check_size(width, height, limits)
            if depth != 8:
                raise Unusable(f"{depth}-bit JPEG is not supported; convert to PNG")
            sized = True
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = exif_orientation(body)
        elif marker == 0xE2 and body.startswith(b"MPF\0"):
            notes = ("the first of several pictures in a multi-picture JPEG",)
        if marker == 0xDA:
            scan = scan or position
            following = _JPEG_MARKER.search(data, end)
            if following is None:
                raise Unusable(TRUNCATED)
            position = following.start()
            continue
        if not scan and not (0xE1 <= marker <= 0xEF and marker != 0xEE) and marker != 0xFE:
            kept.append(data[position:end])  # application data stays behind, but APP0 and APP14 name the colour space
        position = end
    if not sized or not scan:
        raise Unusable("is damaged: a JPEG without pixels")
    kept.append(data[scan : position + 2])
    return load(JpegImagePlugin.JpegImageFile(BytesIO(b"".join(kept))), orientation, notes)


def webp(data: bytes, limits: Limits) -> Raw:
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise Unusable(TRUNCATED)
    orientation, frames, position = 1, 0, 12
    while position + 8 <= end:
        kind = data[position : position + 4]
        body = position + 8
        size = int.from_bytes(data[position + 4 : body], "little")
        if body + size > end:
            raise Unusable(TRUNCATED)
        if kind == b"VP8X":
            width, height = (1 + int.from_bytes(data[body + i : body + i + 3], "little") for i in (4, 7))
            check_size(width, height, limits)
        elif kind == b"VP8 ":
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, body + 6))
            check_size(width, height, limits)
        elif kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, body + 1)
            check_size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, limits)
        elif kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF":
            orientation = exif_orientation(data[body : body + size])
        position = body + size + size % 2
    check_frames(frames)
    return load(WebPImagePlugin.WebPImageFile(BytesIO(data[:end])), orientation)


def bmp(data: bytes, limits: Limits) -> Raw:
    try:
        image = BmpImagePlugin.BmpImageFile(BytesIO(data))
    except (SyntaxError, OSError, struct.error):
        if len(data) < int.from_bytes(data[2:6], "little"):
            raise Unusable(TRUNCATED) from None
        raise
    check_size(*image.size, limits)
    tile = image.tile[0]
    if tile.codec_name == "raw" and isinstance(tile.args, tuple):
        size = tile.args[1] * image.height  # stride × rows
    else:
        size = int.from_bytes(data[34:38], "little")  # run-length coded: the size that the header gives
    if tile.offset + size > len(data):
        raise Unusable(TRUNCATED)
    return load(image)


_PNM_HEAD = re.compile(rb"P([56])" + rb"(?:\s|#[^\n\r]*[\n\r])+(\d{1,9})" * 3 + rb"\s")


def pnm(data: bytes, limits: Limits) -> Raw:
    """PGM and PPM as they are kept in binary (Netpbm): 8 bits a sample, or 16 with the higher byte first."""
    head = _PNM_HEAD.match(data)
    if head is None:
        raise Unusable("is damaged: a PGM or PPM without a whole header")
    channels, (width, height, top) = 3 if head[1] == b"6" else 1, map(int, head.groups()[1:])
    check_size(width, height, limits)
    if not 0 < top < 65536:
        raise Unusable(f"is damaged: a PGM or PPM with {top} as its largest value")
    kind = np.dtype(np.uint8 if top < 256 else ">u2")
    count = width * height * channels
    if len(data) - head.end() < count * kind.itemsize:
        raise Unusable(TRUNCATED)
    if len(data) - head.end() >= 2 * count * kind.itemsize:
        raise Unusable("holds more than one picture; one picture per file is needed: save each on its own")
    values = native(np.frombuffer(data, kind, count, head.end()))
    if values.max() > top:
        raise Unusable(f"is damaged: a value above {top}, the largest that it announces")
    shaped = values.reshape((height, width, channels)[: 3 if channels > 1 else 2]).copy()
    return Raw(shaped, black_white=None if top in (255, 65535) else (0.0, float(top)))
