"""The directories of tags that TIFF and EXIF are made of."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

from blemish.images.limits import TRUNCATED, Unusable

_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}  # the integer types, and opaque bytes
_TIFF_TAGS = {
    *(
        256,
        257,
        258,
        259,
        262,
        266,
        273,
        274,
        277,
        278,
        279,
        281,
        284,
        317,
        320,
        322,
        323,
        324,
        325,
    ),
    *(338, 339, 347),
}

UPRIGHT = -274


def directories(data: bytes) -> Iterator[dict[int, tuple[int, ...]]]:
    """For each page of a TIFF file (or of an EXIF block) the tags that its pixels need, none of them cut.

    Under `UPRIGHT` a page has where the two bytes of its orientation stand in the file.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise Unusable("is damaged: a TIFF without a header")
    big = struct.unpack_from(order + "H", data, 2) == (43,)
    offset_type, count_type, entry_size = ("Q", "Q", 20) if big else ("I", "H", 12)
    inline = struct.calcsize("=" + offset_type)

    def unpack(kind: str, offset: int) -> tuple[int, ...]:
        if offset + struct.calcsize("=" + kind) > len(data):
            raise Unusable(TRUNCATED)
        return struct.unpack_from(order + kind, data, offset)

    (offset,) = unpack(offset_type, 8 if big else 4)
    seen: set[int] = set()
    while offset and offset not in seen:
        seen.add(offset)
        (entries,) = unpack(count_type, offset)
        first = offset + struct.calcsize("=" + count_type)
        tags: dict[int, tuple[int, ...]] = {}
        for entry in range(first, first + entries * entry_size, entry_size):
            tag, kind, count = unpack("HH" + offset_type, entry)
            if tag in _TIFF_TAGS and kind in _TIFF_TYPES:
                size = count * struct.calcsize("=" + _TIFF_TYPES[kind])
                at = entry + entry_size - inline
                (start,) = (at,) if size <= inline else unpack(offset_type, at)
                tags[tag] = unpack(f"{count}{_TIFF_TYPES[kind]}", start)
                if (tag, kind, count) == (274, 3, 1):
                    tags[UPRIGHT] = (at,)
        yield tags
        (offset,) = unpack(offset_type, first + entries * entry_size)


def exif_orientation(exif: bytes) -> int:
    """Orientation 1..8 from an EXIF block; 1 where it does not say or is corrupt."""
    with contextlib.suppress(ValueError, struct.error, StopIteration):
        return next(directories(exif.removeprefix(b"Exif\0\0"))).get(0x0112, (1,))[0]
    return 1
