"""The strips and tiles of a TIFF, each of which must hold exactly the pixels that it announces.

libtiff leaves what is missing black or grey and passes over what is too much; zlib's checksum is not
looked at where the pixels are complete before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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
            if (blocks.sizes and blocks.sizes[place] < row * rows) or start + row * rows > len(
                data
            ):
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


_CODES = np.arange(3840)  # more than can follow a clear: 4096 less 258 codes
_WIDTHS = np.array([min(12, (258 + max(code, 1)).bit_length()) for code in range(3840)])
_ENDS = np.cumsum(_WIDTHS)
_STARTS = _ENDS - _WIDTHS


def _lzw(coded: bytes, most: int) -> int:
    """How many bytes LZW gives, up to `most` or a little more (TIFF 6.0, section 13).

    Only the lengths of the strings are worked out: where a code stands depends on none before it but the last clear,
    and a code's string is one longer than the string of the code that it was entered with. In the older kind, whose
    bits come in the other order, nothing is told apart: it counts as whole.
    """
    if len(coded) > 1 and coded[0] == 0 and coded[1] & 1:
        return most - 1
    stored = np.frombuffer(coded + bytes(3), np.uint8)
    start, total = 0, 0
    while total < most:
        count = int(np.searchsorted(_ENDS, 8 * len(coded) - start, side="right"))
        at, width = start + _STARTS[:count], _WIDTHS[:count]
        byte = at >> 3
        word = (
            stored[byte].astype(np.int64) << 16
            | stored[byte + 1].astype(np.int64) << 8
            | stored[byte + 2]
        )
        codes = word >> (24 - (at & 7) - width) & ((1 << width) - 1)
        marks = np.flatnonzero((codes == 256) | (codes == 257))
        stop = int(marks[0]) if len(marks) else count
        entry = codes[:stop] - 258
        if np.any(entry >= _CODES[:stop]) or stop == len(_CODES):
            raise Unusable(_BROKEN)
        length, parent = (
            np.append(np.ones(stop, np.int64), 0),
            np.append(np.where(entry < 0, stop, entry), stop),
        )
        while np.any(
            parent < stop
        ):  # from each string to the one that it goes on from, twice as far each time
            length, parent = length + length[parent], parent[parent]
        total += int(length.sum())
        if not len(marks) or codes[stop] == 257:  # end of information, which some writers leave out
            break
        start = int(at[stop] + width[stop])
    return total


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
