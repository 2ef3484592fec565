"""PNG, WebP, BMP, PGM and PPM: the container is walked first, then a library makes pixels."""

from __future__ import annotations

import re
import struct
import zlib
from functools import partial
from io import BytesIO

import numpy as np
from PIL import BmpImagePlugin, PngImagePlugin

from blemish.images.limits import TRUNCATED, Limits, Unusable, check_frames, check_size, damaged
from blemish.images.pixels import (
    Array,
    Container,
    Raw,
    exif_orientation,
    load,
    native,
    opencv,
    upright,
)

# Of PNG, by colour type: samples of a pixel, and the bits that each may have.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# The passes of an interlaced PNG: first column and row, and steps across and down.
_PASSES = "0088 4088 0448 2044 0224 1022 0112"
_ADAM7 = [tuple(map(int, each)) for each in _PASSES.split()]
# Chunks whose damage harms no pixel (PNG 3rd edition, and its registered extensions).
_ANCILLARY = frozenset(
    b"acTL bKGD cHRM cICP cLLI dSIG eXIf fcTL fdAT gAMA gIFg gIFx hIST iCCP iTXt mDCV oFFs pCAL "
    b"pHYs sBIT sCAL sPLT sRGB sTER tEXt tIME zTXt".split()
)


def png(data: bytes, limits: Limits) -> Container:
    """Walks the chunks; those that make pixels are what is decoded."""
    head: list[bytes] = [data[:8]]
    coded: list[memoryview] = []
    transparent, orientation, kind, position = b"", 1, b"", 8
    width = height = depth = colour = interlace = 0
    top: int | None = None
    while kind != b"IEND":
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if end > len(data):
            raise Unusable(TRUNCATED)
        kind, body = data[position + 4 : position + 8], memoryview(data)[position + 8 : end - 4]
        if (kind == b"IHDR") != (position == 8):
            raise damaged(f"a PNG {'without a header' if position == 8 else 'of two headers'}")
        checksum = int.from_bytes(data[end - 4 : end])
        # An unknown one may be one of ours with a bit flipped.
        if kind not in _ANCILLARY and zlib.crc32(body, zlib.crc32(kind)) != checksum:
            raise damaged("a PNG checksum does not match")
        if kind == b"IHDR":
            width, height, depth, colour, interlace = struct.unpack(">IIBBxxB", body)
            check_size(width, height, limits)
            if depth not in _PNG_DEPTHS.get(colour, ()) or interlace > 1:
                raise damaged("a PNG of an unknown kind of pixels")
        if kind in (b"IHDR", b"PLTE"):
            head.append(data[position:end])
        elif kind == b"tRNS":
            transparent = bytes(body)
        elif kind == b"IDAT":
            coded.append(body)
        elif kind == b"acTL":
            check_frames(int.from_bytes(body[:4]))
        elif kind == b"eXIf":
            orientation = exif_orientation(bytes(body))
        elif kind == b"sBIT" and body:
            top = 2 ** max(body) - 1
        elif kind[:1].isupper() and kind != b"IEND":
            raise damaged("a PNG with an unknown critical chunk")
        position = end
    if not coded:
        raise damaged("a PNG without pixels")
    promised = _png_bytes(width, height, depth * _PNG_CHANNELS[colour], interlace)

    def decoded() -> Raw:
        if transparent and depth < 16:  # left to _png_deep where deep: OpenCV reads it for RGB only
            head.append(_chunk(b"tRNS", _shown_key(transparent, depth, colour)))
        file = _stored(head, coded, promised)
        coded.clear()
        if depth == 16:
            return Raw(upright(_png_deep(file, transparent), orientation), top=top)
        return load(PngImagePlugin.PngImageFile(file), orientation)

    channels = 4 if colour == 3 or transparent else _PNG_CHANNELS[colour]
    return Container(height, width, channels, depth, decoded)


def _png_bytes(width: int, height: int, bits: int, interlace: int) -> int:
    """How many bytes the pixels of so many bits are, each row of each pass after its filter."""
    total = 0
    for column, row, across, down in _ADAM7 if interlace else [(0, 0, 1, 1)]:
        columns, rows = -((column - width) // across), -((row - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(body, zlib.crc32(kind)).to_bytes(4)
    return b"".join([len(body).to_bytes(4), kind, body, checksum])


def _stored(head: list[bytes], coded: list[memoryview], promised: int) -> BytesIO:
    """The PNG, its pixels inflated once, never beyond what its header promises, and stored so.

    Libraries make black rows of pixels that are missing, and memory for all of them before they
    look; what they are handed is whole, and costs them a copy to inflate.
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
                    raise damaged("a PNG with more pixels than it announces")
                file.write(_chunk(b"IDAT", store.compress(part)))
    except zlib.error:
        raise damaged("the coded data of the PNG is not whole") from None
    if length < promised or not inflate.eof:
        raise damaged("a PNG with fewer pixels than it announces")
    file.write(_chunk(b"IDAT", store.flush()) + _chunk(b"IEND", b""))
    file.seek(0)
    return file


def _shown_key(transparent: bytes, depth: int, colour: int) -> bytes:
    """tRNS as Pillow compares it: with 8 bits, to which it spreads pixels of 2 and 4 bits."""
    if colour == 3:
        return transparent
    key = np.frombuffer(transparent, ">u2") & (2**depth - 1)  # others do not count (PNG 11.3.2.1)
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
    """Walks the chunks of the RIFF container."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise Unusable(TRUNCATED)
    orientation, frames, position = 1, 0, 12
    width = height = 0
    while position + 8 <= end:
        kind, size = struct.unpack_from("<4sI", data, position)
        body = position + 8
        if body + size > end:
            raise Unusable(TRUNCATED)
        if kind == b"VP8X":
            sides = data[body + 4 : body + 7], data[body + 7 : body + 10]
            width, height = (1 + int.from_bytes(side, "little") for side in sides)
        elif kind == b"VP8 ":
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, body + 6))
        elif kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, body + 1)
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        elif kind == b"EXIF":
            orientation = exif_orientation(data[body : body + size])
        if kind in (b"VP8X", b"VP8 ", b"VP8L"):
            check_size(width, height, limits)
        frames += kind == b"ANMF"
        position = body + size + size % 2
    check_frames(frames)
    # The same pixels as by Pillow, which decodes as if it were a film: into two canvases more.
    return Container(height, width, 4, 8, lambda: Raw(upright(opencv(data[:end]), orientation)))


_PNM_HEAD = re.compile(rb"P([56])" + rb"(?:\s|#[^\n\r]*[\n\r])+(\d{1,9})" * 3 + rb"\s")


def pnm(data: bytes, limits: Limits) -> Container:
    """PGM and PPM in binary (Netpbm): 8 bits a sample, or 16 with the higher byte first."""
    head = _PNM_HEAD.match(data)
    if head is None:
        raise damaged("a PGM or PPM without a whole header")
    channels, (width, height, top) = 3 if head[1] == b"6" else 1, map(int, head.groups()[1:])
    check_size(width, height, limits)
    if not 0 < top < 65536:
        raise damaged(f"a PGM or PPM with {top} as its largest value")
    kind = np.dtype(np.uint8 if top < 256 else ">u2")
    count = width * height * channels
    there = (len(data) - head.end()) // kind.itemsize
    if there < count:
        raise Unusable(TRUNCATED)
    if there >= 2 * count:
        raise Unusable(
            "holds more than one picture; one picture per file is needed: save each on its own"
        )

    def decoded() -> Raw:
        values = native(np.frombuffer(data, kind, count, head.end()))
        if values.max() > top:
            raise damaged(f"a value above {top}, the largest that it announces")
        shaped = values.reshape((height, width, channels)[: 3 if channels > 1 else 2]).copy()
        return Raw(shaped, black_white=None if top in (255, 65535) else (0.0, float(top)))

    return Container(height, width, channels, 8 * kind.itemsize, decoded)


def bmp(data: bytes, limits: Limits) -> Container:
    """By Pillow, but for the run-length coded kinds, which it decodes pixel by pixel in Python."""
    try:
        image = BmpImagePlugin.BmpImageFile(BytesIO(data))
    except (SyntaxError, OSError, struct.error):
        if len(data) < int.from_bytes(data[2:6], "little"):
            raise Unusable(TRUNCATED) from None
        raise
    check_size(*image.size, limits)
    tile = image.tile[0]
    coded = tile.codec_name != "raw"
    if coded or not isinstance(tile.args, tuple):  # the size that the header gives
        size = int.from_bytes(data[34:38], "little")
    else:
        size = tile.args[1] * image.height  # stride × rows
    if tile.offset + size > len(data):
        raise Unusable(TRUNCATED)
    channels = {"1": 1, "L": 1, "P": 4}.get(image.mode, len(image.getbands()))
    decoded = partial(load, image)
    if coded:
        nibbles = isinstance(tile.args, tuple) and bool(tile.args[1])
        runs = data[tile.offset : tile.offset + size if size else len(data)]
        decoded = partial(_run_length, image, runs, nibbles)
    return Container(image.height, image.width, channels, 8, decoded)


def _run_length(image: BmpImagePlugin.BmpImageFile, runs: bytes, nibbles: bool) -> Raw:
    """The picture behind runs, with the colours that Pillow found in the header."""
    indices = _indices(runs, image.width, image.height, nibbles)[::-1]  # stored from the bottom up
    if image.mode == "P" and image.palette is not None:
        stride = len(image.palette.rawmode or "BGRX")
        palette = np.frombuffer(bytes(image.palette.palette), np.uint8).reshape(-1, stride)
        known = np.zeros((256, 3), np.uint8)  # what the palette does not name is black
        known[: len(palette)] = palette[:256, 2::-1]
        indices = known[indices]
    elif image.mode == "1":
        indices = np.where(indices > 0, np.uint8(255), np.uint8(0))
    return Raw(np.ascontiguousarray(indices))


def _indices(runs: bytes, width: int, height: int, nibbles: bool) -> Array:
    """Colour numbers (H, W), the bottom row first (Windows GDI, BI_RLE8 and BI_RLE4).

    What the runs pass over stays 0.

    Raises: Unusable if a run leaves the picture, or the runs end before its last row.
    """
    indices = np.zeros((height, width), np.uint8)
    row = column = position = 0

    def take(size: int) -> bytes:
        nonlocal position
        position += size
        if position > len(runs):
            raise Unusable(TRUNCATED)
        return runs[position - size : position]

    while True:
        whole = row >= height or (row, column) == (height - 1, width)
        if position + 2 > len(runs) and whole:
            return indices  # without an end mark
        count, code = take(2)
        if count == 0 and code == 0:  # the end of a row
            row, column = row + 1, 0
        elif count == 0 and code == 1:  # the end
            if row < height - 1:
                raise damaged("a BMP with fewer pixels than it announces")
            return indices
        elif count == 0 and code == 2:  # a step to the right and up
            right, up = take(2)
            column, row = column + right, row + up
        else:
            length = count or code  # of a run of one code, or of as many codes as stand there
            if row >= height or column + length > width:
                raise damaged("a BMP whose runs leave the picture")
            size = 1 if count else (length + 1) // 2 if nibbles else length
            values = np.frombuffer(bytes([code]) if count else take(size), np.uint8)
            if nibbles:
                pairs = np.stack([values >> 4, values & 15], axis=-1)
                values = np.resize(pairs.reshape(-1), length)
            indices[row, column : column + length] = values
            column += length
            position += 0 if count else size % 2  # whole words
