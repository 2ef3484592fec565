"""The strips and tiles of a TIFF, each of which must hold exactly the pixels that it announces.

libtiff leaves what is missing black or grey and passes over what is too much; zlib's checksum is not
looked at where the pixels are complete before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

from blemish.images.jpeg import jpeg
from blemish.images.limits import TRUNCATED, Limits, Unusable

FEWER = "is damaged: a TIFF with fewer pixels than it announces"
_MORE = "is damaged: a TIFF with more pixels than it announces"
_BROKEN = "is damaged: the coded data of the TIFF is not whole"
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Strips or tiles.

    Attributes:
        starts, sizes: bytes, of each; no sizes where the file does not say them.
        compression: the tag's value: 1 none, 5 LZW, 7 JPEG, 8 and 32946 Deflate, 32773 PackBits.
        across, down: pixels of a block; `last`: rows of the lowest ones.
        column: how many there are from top to bottom.
        samples: of a pixel in a block; `bits`: of a sample.
        reversed: the lowest bit of a byte comes first (FillOrder 2).
        tables: of JPEG, shared by all blocks.
        fixed: every pixel takes the same room, as it does but for subsampled colours.
    """

    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    compression: int
    across: int
    down: int
    last: int
    column: int
    samples: int
    bits: int
    reversed: bool
    tables: bytes
    fixed: bool


def check_blocks(data: bytes, blocks: Blocks, limits: Limits) -> None:
    """That each block decodes to its pixels, as far as its compression tells; what is decoded is not kept.

    Raises: Unusable.
    """
    if not blocks.fixed:
        return
    row = (blocks.across * blocks.samples * blocks.bits + 7) // 8
    for place, start in enumerate(blocks.starts):
        rows = blocks.last if place % blocks.column == blocks.column - 1 else blocks.down
        if blocks.compression == 1:
            if (blocks.sizes and blocks.sizes[place] < row * rows) or start + row * rows > len(data):
                raise Unusable(FEWER)
        elif blocks.sizes:
            coded = data[start : start + blocks.sizes[place]]
            if blocks.reversed:
                coded = coded.translate(_REVERSED)
            if blocks.compression == 7:
                _check_jpeg(coded, blocks, limits, rows)
            elif measure := _MEASURES.get(blocks.compression):
                length = measure(coded, row * blocks.down + 1)
                if length < row * rows:
                    raise Unusable(FEWER)
                if length > row * blocks.down:  # the lowest strip may be as high as the others
                    raise Unusable(_MORE)


def _deflate(coded: bytes, most: int) -> int:
    """How many bytes a zlib stream gives, up to `most`; its checksum is compared."""
    inflate, length = zlib.decompressobj(), 0
    try:
        for start in range(0, len(coded), 1 << 14):
            length += len(inflate.decompress(coded[start : start + (1 << 14)], most - length))
            if inflate.eof or length >= most:
                break
    except zlib.error:
        raise Unusable(_BROKEN) from None
    if not inflate.eof and length < most:
        raise Unusable(_BROKEN)
    return length


def packbits_length(coded: bytes, most: int) -> tuple[int, int]:
    """How many bytes PackBits gives until it gives `most` or more, and how many of its own that takes."""
    length = position = 0
    while position < len(coded) and length < most:
        code = coded[position]
        if code < 128:
            position += 2 + code
            length += 1 + code
        elif code > 128:
            position += 2
            length += 257 - code
        else:  # nothing
            position += 1
    if position > len(coded):
        raise Unusable(TRUNCATED)
    return length, position


def _lzw(coded: bytes, most: int) -> int:
    """How many bytes LZW gives, up to `most` (TIFF 6.0, section 13).

    Only the lengths of the strings are kept. In the older kind, whose bits come in the other order, nothing can be
    told apart this way: it counts as whole.
    """
    if len(coded) > 1 and coded[0] == 0 and coded[1] & 1:
        return most - 1
    lengths: list[int] = []
    total, previous, width, bits, held = 0, 0, 9, 0, 0
    first = [1] * 256 + [0, 0]
    for byte in coded:
        held, bits = held << 8 | byte, bits + 8
        if bits < width:
            continue
        bits -= width
        code = held >> bits
        held &= (1 << bits) - 1
        if code == 257:  # end of information
            return total
        if code == 256:  # clear
            lengths, previous, width = first.copy(), 0, 9
            continue
        if not lengths:
            raise Unusable(_BROKEN)  # a strip starts with a clear
        if previous:
            lengths.append(previous + 1)
            if len(lengths) >= (1 << width) - 1 and width < 12:
                width += 1
        if code >= len(lengths) or len(lengths) > 4096:
            raise Unusable(_BROKEN)
        previous = lengths[code]
        total += previous
        if total >= most:
            return total
    return total  # some writers leave the end out


def _check_jpeg(coded: bytes, blocks: Blocks, limits: Limits, rows: int) -> None:
    if blocks.samples not in (1, 3, 4):
        return
    found = jpeg((blocks.tables[:-2] if blocks.tables else coded[:2]) + coded[2:], limits)
    if found.width < blocks.across or found.height < rows:
        raise Unusable(FEWER)
    if found.width > blocks.across or found.height > blocks.down:
        raise Unusable(_MORE)
    found.decode()


_MEASURES: dict[int, Callable[[bytes, int], int]] = {
    5: _lzw,
    8: _deflate,
    32773: lambda coded, most: packbits_length(coded, most)[0],
    32946: _deflate,
}
