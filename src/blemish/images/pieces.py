"""Pieces of a TIFF: a tile, or a few strips, as a small TIFF of its own.

It has the tags of the file, so that the readers of whole files (`tiff`) decode it as they would
there: depth, palette, bands, predictor, JPEG tables and all.
"""

from __future__ import annotations

import copy
import math
import struct
from dataclasses import dataclass

from blemish.images.blocks import FEWER, UPRIGHT, Page, Stored, check_coded
from blemish.images.limits import Limits, damaged, in_words
from blemish.images.pixels import Raw
from blemish.images.tiff import checked

# None, CCITT, LZW, JPEG, Deflate, PackBits, LZMA, zstd and WebP.
_COMPRESSIONS = frozenset((1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000, 50001))
_PIXELS = 2**18  # of a piece, about: fewer cost more in opening them than in decoding
_MOST_BYTES = 2**29  # of a row of pieces, decoded
# Of the file as it lies there, or of the whole picture.
_OTHERS = frozenset((UPRIGHT, 274, 322, 323, 324, 325))


def unfit(page: Page) -> str:
    """Why a TIFF cannot be read in pieces, and how to save it that it can; "" where it can."""
    if page.orientation in range(2, 9):
        return f"it is stored turned (orientation {page.orientation}): save it upright"
    if page.planar and page.channels > 1:
        return "its bands are stored apart: save it with them together (PlanarConfiguration 1)"
    if page.compression not in _COMPRESSIONS or not (page.sizes or page.compression == 1):
        return "of the way it is compressed: save it with LZW, Deflate or JPEG, in tiles"
    if not page.fixed:
        return "its colours are subsampled without JPEG: save it as RGB"
    if page.kind == "f" and page.extra:
        return "it has floats with transparency: save it without"
    if (size := Grid.of(page).row_bytes) > _MOST_BYTES:
        return (
            f"a row of its strips or tiles is {in_words(size)}, of at most {in_words(_MOST_BYTES)}:"
            " save it in smaller ones"
        )
    return ""


@dataclass(frozen=True, slots=True)
class Grid:
    """How the pieces of a picture lie.

    Attributes:
        page: whose blocks they are.
        across, down: pixels of each; those at the right and at the bottom may go beyond the
            picture.
        strips: how many blocks are in a piece; 1 of tiles.
        columns, rows: pieces from left to right, and from top to bottom.
    """

    page: Page
    across: int
    down: int
    strips: int
    columns: int
    rows: int

    @classmethod
    def of(cls, page: Page) -> Grid:
        page = _divided(page)
        strips = 1
        if page.across == page.width:
            strips = max(1, min(page.column, _PIXELS // (page.across * page.down)))
        columns = math.ceil(page.width / page.across)
        rows = math.ceil(page.column / strips)
        return cls(page, page.across, page.down * strips, strips, columns, rows)

    @property
    def row_bytes(self) -> int:
        """What a row of pieces takes, decoded."""
        sample = next((size for size in (1, 2, 4) if self.page.bits <= 8 * size), 8)
        channels = 4 if self.page.photometric == 3 else self.page.channels  # of a palette
        return self.columns * self.across * self.down * channels * sample

    def coded(self, data: Stored, row: int, column: int) -> list[bytes]:
        """The stored bytes of the blocks of a piece.

        Raises: Unusable where they are fewer than the blocks take uncompressed.
        """
        page, found = self.page, []
        for place in self._places(row, column):
            start = page.starts[place]
            size = page.row * page.rows(place) if page.compression == 1 else page.sizes[place]
            found.append(data[start : start + size])
            if page.compression == 1 and len(found[-1]) < size:
                raise damaged(FEWER)
        return found

    def check(self, coded: list[bytes], row: int, column: int, limits: Limits) -> None:
        """That the bytes of each block of a piece decode to its pixels. Raises: Unusable."""
        if self.page.compression != 1:
            for place, each in zip(self._places(row, column), coded, strict=True):
                check_coded(each, self.page, place, limits)

    def decoded(self, coded: list[bytes], row: int, column: int) -> Raw:
        """The pixels of a piece, as stored, with those beyond the picture.

        Raises: as the readers of whole files.
        """
        page = copy.copy(self.page)
        page.width, page.turned_at = self.across, None
        page.height = sum(self.page.rows(place) for place in self._places(row, column))
        raw = checked([_file(page, coded)], page)
        if raw.values.shape[:2] != (page.height, page.width):
            raise damaged(FEWER)
        return raw

    def _places(self, row: int, column: int) -> range:
        """Of the blocks of a piece, in the tables of the page."""
        first = (row * self.columns + column) * self.strips
        return range(first, min(first + self.strips, len(self.page.starts)))


def _divided(page: Page) -> Page:
    """The page in strips of about a quarter of a million pixels, where it has uncompressed ones of
    any height that lie one behind the other: many writers store a picture as a single one."""
    step, strip = max(1, _PIXELS // page.across), page.row * page.down
    follow = all(start == page.starts[0] + place * strip for place, start in enumerate(page.starts))
    if page.compression != 1 or page.across != page.width or not follow:
        return page
    page = copy.copy(page)
    first, page.sizes = page.starts[0], ()
    page.down = min(step, page.height)
    page.column = math.ceil(page.height / page.down)
    page.last = page.height - (page.column - 1) * page.down
    page.starts = tuple(first + place * page.down * page.row for place in range(page.column))
    return page


def _file(page: Page, coded: list[bytes]) -> bytes:
    """A TIFF of these strips, of the page's size."""
    order = {b"II": "<", b"MM": ">"}[page.order]
    tags = {tag: values for tag, values in page.tags.items() if tag not in _OTHERS}
    sizes = [len(each) for each in coded]
    tags |= {256: (page.width,), 257: (page.height,), 278: (page.down,), 279: tuple(sizes)}
    tags[273] = tuple(0 for _ in sizes)
    packed = {tag: _packed(tag, values, order) for tag, values in tags.items()}
    at = 8 + 2 + 12 * len(packed) + 4
    begins = at + sum(len(value) for _, value in packed.values() if len(value) > 4)
    starts = [begins + sum(sizes[:place]) for place in range(len(sizes))]
    packed[273] = _packed(273, tuple(starts), order)
    entries, behind = [], []
    for tag, (kind, value) in sorted(packed.items()):
        count = len(tags[tag])
        where = value.ljust(4, b"\0")
        if len(value) > 4:
            where = struct.pack(order + "I", at)
            at += len(value)
            behind.append(value)
        entries.append(struct.pack(order + "HHI", tag, kind, count) + where)
    head = page.order + struct.pack(order + "HIH", 42, 8, len(entries))
    return b"".join([head, *entries, bytes(4), *behind, *coded])


def _packed(tag: int, values: tuple[int, ...], order: str) -> tuple[int, bytes]:
    """The type of a tag, and its values: opaque bytes (of JPEG tables), 2 bytes each, or 4."""
    if tag == 347:
        return 7, bytes(values)
    long = tag in (273, 279) or max(values, default=0) > 0xFFFF
    return (4 if long else 3), struct.pack(f"{order}{len(values)}{'I' if long else 'H'}", *values)
