"""The tags of a TIFF, and its strips and tiles: each must hold exactly the pixels it announces.

libtiff leaves what is missing black or grey and passes over what is too much; zlib's checksum is
not looked at where the pixels are complete before it.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

import numpy as np

from blemish.images.jpeg import jpeg
from blemish.images.limits import TRUNCATED, Limits, Unusable, check_frames, check_size, damaged

FEWER = "a TIFF with fewer pixels than it announces"
_MORE = "a TIFF with more pixels than it announces"
_BROKEN = "the coded data of the TIFF is not whole"
_TYPES = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}  # the integer types, and opaque bytes
_TAGS = frozenset((*range(256, 260), 262, 266, 273, 274, 277, 278, 279, 281, 284, 317, 320))
_TAGS |= {292, 293, 322, 323, 324, 325, 338, 339, 347, 530}
_MOST_VALUES = 2**20  # of a tag: 16 × 16 tiles of more pixels than are decoded
_MOST_PAGES = 1000  # that are counted
UPRIGHT = -274
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


class Stored(Protocol):
    """The bytes of a file, in memory or on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


def directories(data: Stored) -> Iterator[dict[int, tuple[int, ...]]]:
    """For each page the tags that its pixels need, none of them cut.

    Under `UPRIGHT` a page has where the two bytes of its orientation stand in the file.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise damaged("a TIFF without a header")

    def unpack(kind: str, offset: int) -> tuple[int, ...]:
        end = offset + struct.calcsize("=" + kind)
        if end > len(data):
            raise Unusable(TRUNCATED)
        return struct.unpack(order + kind, data[offset:end])

    big = unpack("H", 2) == (43,)
    offset_type, count_type, entry_size = ("Q", "Q", 20) if big else ("I", "H", 12)
    inline = struct.calcsize("=" + offset_type)
    (offset,) = unpack(offset_type, 8 if big else 4)
    seen: set[int] = set()
    while offset and offset not in seen:
        seen.add(offset)
        (entries,) = unpack(count_type, offset)
        first = offset + struct.calcsize("=" + count_type)
        tags: dict[int, tuple[int, ...]] = {}
        for entry in range(first, first + entries * entry_size, entry_size):
            tag, kind, count = unpack("HH" + offset_type, entry)
            if tag in _TAGS and kind in _TYPES:
                if count > _MOST_VALUES:
                    raise Unusable(
                        f"is a TIFF with {count:,} values of a tag; the limit is {_MOST_VALUES:,}: "
                        "save it in larger strips or tiles"
                    )
                size = count * struct.calcsize("=" + _TYPES[kind])
                at = entry + entry_size - inline
                (start,) = (at,) if size <= inline else unpack(offset_type, at)
                tags[tag] = unpack(f"{count}{_TYPES[kind]}", start)
                if (tag, kind, count) == (274, 3, 1):
                    tags[UPRIGHT] = (at,)
        yield tags
        (offset,) = unpack(offset_type, first + entries * entry_size)


class Page:
    """What the tags of a TIFF say of its one page, and of the strips or tiles (blocks) of it.

    Args: windows: whether the limits of files that are read in windows count.
    Attributes:
        tags: those that its pixels need, by their number; `order`: b"II" or b"MM".
        height, width, channels, bits: of the page, and of a sample.
        kind: of a sample, as numpy's: "u", "i" or "f"; `deep`: whether it is more than 8 bits.
        photometric: the tag's value: 0 low is bright, 1 grey, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr.
        extra: what the bands beyond the colours are (ExtraSamples).
        orientation, turned_at: 1 to 8, and where its two bytes stand, None where it is not said.
        planar: whether each band is stored by itself.
        top: the largest value that a sample can take.
        starts, sizes: bytes, of each block; no sizes where the file does not say them.
        compression: the tag's value: 1 none, 5 LZW, 7 JPEG, 8 and 32946 Deflate, 32773 PackBits.
        across, down: pixels of a block; `last`: rows of the lowest ones.
        column: how many blocks there are from top to bottom.
        samples: of a pixel in a block.
        reversed: the lowest bit of a byte comes first (FillOrder 2).
        tables: of JPEG, shared by all blocks.
        fixed: every pixel takes the same room, as it does but for subsampled colours.
    Raises: Unusable for a file of several pages, too many pixels, or blocks that are not there.
    """

    def __init__(self, data: Stored, limits: Limits, *, windows: bool = False) -> None:
        pages = islice(directories(data), _MOST_PAGES)
        self.tags = tags = next(pages, {})
        count = 1 + sum(1 for _ in pages)
        check_frames(count, "pages or more" if count == _MOST_PAGES else "pages")
        self.order = data[:2]

        def first(tag: int, default: int) -> int:
            return tags.get(tag, (default,))[0]

        starts, sizes = tags.get(273, tags.get(324, ())), tags.get(279, tags.get(325, ()))
        if not starts or 256 not in tags or 257 not in tags:
            raise damaged("a TIFF without pixels")
        self.width, self.height = width, height = first(256, 0), first(257, 0)
        kind = "max_pixels_in_windows" if windows else "max_pixels"
        check_size(width, height, limits, kind)
        if any(start + size > len(data) for start, size in zip(starts, sizes, strict=False)):
            raise Unusable(TRUNCATED)
        self.channels, self.bits = first(277, 1), max(tags.get(258, (1,)))
        self.kind = {1: "u", 2: "i", 3: "f"}.get(first(339, 1), "u")
        self.deep = self.bits > 8 or self.kind != "u"
        self.photometric, self.compression = first(262, 1), first(259, 1)
        self.extra, self.planar = tags.get(338, ()), tags.get(284) == (2,)
        self.orientation, self.turned_at = first(274, 1), next(iter(tags.get(UPRIGHT, ())), None)
        self.top = min(tags.get(281, (65535,)))
        tiled = 322 in tags and 323 in tags
        self.across = first(322, width) if tiled else width
        self.down = first(323, height) if tiled else min(height, first(278, height))
        check_size(self.across, self.down, limits, kind)
        self.column = math.ceil(height / self.down)
        self.last = self.down if tiled else height - (self.column - 1) * self.down
        self.samples = 1 if self.planar else self.channels
        count = math.ceil(width / self.across) * self.column * (self.channels // self.samples)
        if len(starts) < count or 0 < len(sizes) < count:
            raise damaged(FEWER)
        self.starts, self.sizes = starts[:count], sizes[:count]
        self.reversed, self.tables = tags.get(266) == (2,), bytes(tags.get(347, ()))
        self.fixed = self.photometric != 6 or self.compression == 7

    @property
    def row(self) -> int:
        """Bytes of a row of a block, decoded."""
        return (self.across * self.samples * self.bits + 7) // 8

    def rows(self, place: int) -> int:
        """Rows of a block; of a tile all, also where they are below the picture."""
        return self.last if place % self.column == self.column - 1 else self.down


def check_blocks(data: Stored, page: Page, limits: Limits) -> None:
    """That each block decodes to its pixels, as far as its compression tells; none are kept.

    Raises: Unusable.
    """
    if not page.fixed:
        return
    for place, start in enumerate(page.starts):
        length = page.row * page.rows(place)
        if page.compression == 1:
            short = page.sizes and page.sizes[place] < length
            if short or start + length > len(data):
                raise damaged(FEWER)
        elif page.sizes:
            check_coded(data[start : start + page.sizes[place]], page, place, limits)


def check_coded(coded: bytes, page: Page, place: int, limits: Limits) -> None:
    """That the bytes of one compressed block decode to its pixels.

    Raises: Unusable.
    """
    rows = page.rows(place)
    if page.reversed:
        coded = coded.translate(_REVERSED)
    if page.compression == 7:
        _check_jpeg(coded, page, limits, rows)
    elif measure := _MEASURES.get(page.compression):
        length = measure(coded, page.row * page.down + 1)
        if length < page.row * rows:
            raise damaged(FEWER)
        if length > page.row * page.down:  # the lowest strip may be as high as the others
            raise damaged(_MORE)


def _deflate(coded: bytes, most: int) -> int:
    """How many bytes a zlib stream gives, up to `most`; its checksum is compared."""
    inflate, length = zlib.decompressobj(), 0
    try:
        for start in range(0, len(coded), 1 << 14):
            length += len(inflate.decompress(coded[start : start + (1 << 14)], most - length))
            if inflate.eof or length >= most:
                break
    except zlib.error:
        raise damaged(_BROKEN) from None
    if not inflate.eof and length < most:
        raise damaged(_BROKEN)
    return length


def packbits_length(coded: bytes, most: int) -> tuple[int, int]:
    """How many bytes PackBits gives until it gives `most` or more, and how many of its own that
    takes.
    """
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

    Only the lengths of the strings are worked out: where a code stands depends on none before it
    but the last clear, and a code's string is one longer than the string of the code that it was
    entered with. In the older kind, whose bits come in the other order, nothing is told apart: it
    counts as whole.
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
            raise damaged(_BROKEN)
        length = np.append(np.ones(stop, np.int64), 0)
        parent = np.append(np.where(entry < 0, stop, entry), stop)
        # From each string to the one that it goes on from, twice as far each time.
        while np.any(parent < stop):
            length, parent = length + length[parent], parent[parent]
        total += int(length.sum())
        if not len(marks) or codes[stop] == 257:  # end of information, which some writers leave out
            break
        start = int(at[stop] + width[stop])
    return total


def _check_jpeg(coded: bytes, page: Page, limits: Limits, rows: int) -> None:
    if page.samples not in (1, 3, 4):
        return
    found = jpeg((page.tables[:-2] if page.tables else coded[:2]) + coded[2:], limits)
    if found.width < page.across or found.height < rows:
        raise damaged(FEWER)
    if found.width > page.across or found.height > page.down:
        raise damaged(_MORE)
    found.decode()


_MEASURES: dict[int, Callable[[bytes, int], int]] = {
    5: _lzw,
    8: _deflate,
    32773: lambda coded, most: packbits_length(coded, most)[0],
    32946: _deflate,
}
