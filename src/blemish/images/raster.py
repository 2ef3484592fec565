"""PNG, WebP, PGM and PPM: the container is walked first, then a library makes pixels."""

from __future__ import annotations

import re
import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import PngImagePlugin

from blemish.images.directories import exif_orientation
from blemish.images.limits import TRUNCATED, Limits, Unusable, check_frames, check_size
from blemish.images.pixels import Array, Container, Raw, load, native, opencv, upright

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


# Whose damage harms no pixel (PNG 3rd edition, and its registered extensions).
_ANCILLARY = (
    *(
        b"acTL",
        b"bKGD",
        b"cHRM",
        b"cICP",
        b"cLLI",
        b"dSIG",
        b"eXIf",
        b"fcTL",
        b"fdAT",
        b"gAMA",
        b"gIFg",
        b"gIFx",
    ),
    *(
        b"hIST",
        b"iCCP",
        b"iTXt",
        b"mDCV",
        b"oFFs",
        b"pCAL",
        b"pHYs",
        b"sBIT",
        b"sCAL",
        b"sPLT",
        b"sRGB",
        b"sTER",
    ),
    *(b"tEXt", b"tIME", b"zTXt"),
)


def png(data: bytes, limits: Limits) -> Container:
    """Walks the chunks; those that make pixels are what is decoded."""
    head: list[bytes] = [data[:8]]
    coded: list[memoryview] = []
    transparent, orientation, complete, position = b"", 1, False, 8
    width = height = depth = colour = interlace = 0
    top: int | None = None
    while not complete:
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if end > len(data):
            raise Unusable(TRUNCATED)
        kind, body = data[position + 4 : position + 8], memoryview(data)[position + 8 : end - 4]
        if (kind == b"IHDR") != (position == 8):
            raise Unusable(
                "is damaged: a PNG without a header"
                if position == 8
                else "is damaged: a PNG of two headers"
            )
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(data[end - 4 : end]):
                raise Unusable("is damaged: a PNG checksum does not match")
            if kind == b"IHDR":
                width, height, depth, colour, interlace = struct.unpack(">IIBBxxB", body)
                check_size(width, height, limits)
                if depth not in _PNG_DEPTHS.get(colour, ()) or interlace > 1:
                    raise Unusable("is damaged: a PNG of an unknown kind of pixels")
            if kind == b"tRNS":
                transparent = bytes(body)
            elif kind == b"IDAT":
                coded.append(body)
            elif kind != b"IEND":
                head.append(data[position:end])
        elif kind not in _ANCILLARY and zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(
            data[end - 4 : end]
        ):
            raise Unusable(
                "is damaged: a PNG checksum does not match"
            )  # it may be one of the above with a bit flipped
        elif kind == b"acTL":
            check_frames(int.from_bytes(body[:4]))
        elif kind[:1].isupper():
            raise Unusable("is damaged: a PNG with an unknown critical chunk")
        elif kind == b"eXIf":
            orientation = exif_orientation(bytes(body))
        elif kind == b"sBIT" and body:
            top = 2 ** max(body) - 1
        complete, position = kind == b"IEND", end
    if not coded:
        raise Unusable("is damaged: a PNG without pixels")
    bits = depth * _PNG_CHANNELS[colour]
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    sizes = [(-((x - width) // across), -((y - height) // down)) for x, y, across, down in passes]
    promised = sum(
        rows * (1 + (columns * bits + 7) // 8)
        for columns, rows in sizes
        if columns > 0 and rows > 0
    )

    def decoded() -> Raw:
        if transparent and depth < 16:  # left to _png_deep where deep: OpenCV reads it for RGB only
            head.append(_chunk(b"tRNS", _shown_key(transparent, depth, colour)))
        file = _stored(head, coded, promised)
        coded.clear()
        if depth == 16:
            return Raw(upright(_png_deep(file, transparent), orientation), top=top)
        return load(PngImagePlugin.PngImageFile(file), orientation)

    return Container(
        height, width, 4 if colour == 3 or transparent else _PNG_CHANNELS[colour], depth, decoded
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join(
        [len(body).to_bytes(4), kind, body, zlib.crc32(body, zlib.crc32(kind)).to_bytes(4)]
    )


def _stored(head: list[bytes], coded: list[memoryview], promised: int) -> BytesIO:
    """The pixels that a PNG holds, inflated once and never beyond what its header promises, as a stored zlib stream.

    Libraries make black rows of pixels that are missing, and memory for all of them before they look; what they are
    handed is whole, and costs them a copy to inflate.
    """
    inflate, store = zlib.decompressobj(), zlib.compressobj(0)
    file = BytesIO()  # written piece by piece: joined, it would be there twice
    file.writelines(head)
    length = 0
    try:
        for body in coded:
            for start in range(0, len(body), 1 << 14):  # in pieces: what is left of one is copied
                part = inflate.decompress(body[start : start + (1 << 14)], promised - length + 1)
                length += len(part)
                if length > promised:
                    raise Unusable("is damaged: a PNG with more pixels than it announces")
                file.write(_chunk(b"IDAT", store.compress(part)))
    except zlib.error:
        raise Unusable("is damaged: the coded data of the PNG is not whole") from None
    if length < promised or not inflate.eof:
        raise Unusable("is damaged: a PNG with fewer pixels than it announces")
    file.write(_chunk(b"IDAT", store.flush()))
    file.write(_chunk(b"IEND", b""))
    file.seek(0)
    return file


def _shown_key(transparent: bytes, depth: int, colour: int) -> bytes:
    """tRNS as Pillow compares it: with pixels of 8 bits, to which it spreads those of 2 and 4 bits."""
    if colour == 3:
        return transparent
    key = np.frombuffer(transparent, ">u2") & (
        2**depth - 1
    )  # the other bits do not count (PNG 11.3.2.1)
    scaled: Array = (key * (255 // (2**depth - 1) if depth > 1 else 1)).astype(">u2")
    return scaled.tobytes()


def _png_deep(file: BytesIO, transparent: bytes) -> Array:
    """16-bit PNG, which Pillow would cut to 8 bits where it has colour."""
    values = opencv(file.getbuffer())
    file.close()
    if values.dtype != np.uint16:
        raise ValueError("OpenCV cut the picture to 8 bits")
    if transparent:  # one colour that is see-through, as big-endian 16-bit samples
        key = np.frombuffer(transparent, ">u2")
        if values.ndim == 2:
            values = np.stack([values] * 3, axis=-1)
        alpha = np.where((values == key).all(axis=-1, keepdims=True), 0, 65535).astype(np.uint16)
        values = np.concatenate([values, alpha], axis=-1)
    return values


def webp(data: bytes, limits: Limits) -> Container:
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise Unusable(TRUNCATED)
    orientation, frames, position = 1, 0, 12
    width = height = 0
    while position + 8 <= end:
        kind = data[position : position + 4]
        body = position + 8
        size = int.from_bytes(data[position + 4 : body], "little")
        if body + size > end:
            raise Unusable(TRUNCATED)
        if kind == b"VP8X":
            width, height = (
                1 + int.from_bytes(data[body + i : body + i + 3], "little") for i in (4, 7)
            )
            check_size(width, height, limits)
        elif kind == b"VP8 ":
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, body + 6))
            check_size(width, height, limits)
        elif kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, body + 1)
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            check_size(width, height, limits)
        elif kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF":
            orientation = exif_orientation(data[body : body + size])
        position = body + size + size % 2
    check_frames(frames)
    # The same pixels as by Pillow, which decodes as if it were a film: into two canvases more.
    return Container(height, width, 4, 8, lambda: Raw(upright(opencv(data[:end]), orientation)))


_PNM_HEAD = re.compile(rb"P([56])" + rb"(?:\s|#[^\n\r]*[\n\r])+(\d{1,9})" * 3 + rb"\s")


def pnm(data: bytes, limits: Limits) -> Container:
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
        raise Unusable(
            "holds more than one picture; one picture per file is needed: save each on its own"
        )

    def decoded() -> Raw:
        values = native(np.frombuffer(data, kind, count, head.end()))
        if values.max() > top:
            raise Unusable(f"is damaged: a value above {top}, the largest that it announces")
        shaped = values.reshape((height, width, channels)[: 3 if channels > 1 else 2]).copy()
        return Raw(shaped, black_white=None if top in (255, 65535) else (0.0, float(top)))

    return Container(height, width, channels, 8 * kind.itemsize, decoded)
