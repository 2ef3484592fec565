"""TIFF, by Pillow, OpenCV or tifffile: whichever reads a file at its own depth."""

from __future__ import annotations

import contextlib
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
from PIL import TiffImagePlugin

from blemish.errors import BlemishError, MissingExtraError
from blemish.images.limits import TRUNCATED, Limits, Unusable, check_frames, check_size
from blemish.images.pixels import CMYK_NOTE, Array, Raw, full_scale, load, native, opencv, upright
from blemish.images.quiet import quiet

_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}  # the integer types, and opaque bytes
_TIFF_TAGS = {256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 281, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347}


def directories(data: bytes) -> Iterator[dict[int, tuple[int, ...]]]:
    """For each page of a TIFF file (or of an EXIF block) the tags that its pixels need, none of them cut."""
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
        yield tags
        (offset,) = unpack(offset_type, first + entries * entry_size)


def tiff(data: bytes, limits: Limits) -> Raw:
    """8 bits by Pillow; deeper by Pillow, OpenCV or tifffile, whichever reads it at its own depth."""
    pages = list(directories(data))
    check_frames(len(pages), "pages")
    tags = pages[0] if pages else {}
    starts, sizes = tags.get(273, tags.get(324, ())), tags.get(279, tags.get(325, ()))
    if not starts or 256 not in tags or 257 not in tags:
        raise Unusable("is damaged: a TIFF without pixels")
    width, height = tags[256][0], tags[257][0]
    check_size(width, height, limits)
    if any(start + size > len(data) for start, size in zip(starts, sizes, strict=False)):
        raise Unusable(TRUNCATED)
    orientation, photometric = tags.get(274, (1,))[0], tags.get(262, (1,))[0]
    bits, channels, planar = max(tags.get(258, (1,))), tags.get(277, (1,))[0], tags.get(284) == (2,)
    compression = tags.get(259, (1,))[0]
    if 322 in tags and 323 in tags:
        across, down = tags[322][0], tags[323][0]
    else:
        across, down = width, min(height, tags.get(278, (height,))[0])
    check_size(across, down, limits)
    blocks = math.ceil(width / across) * math.ceil(height / down) * (channels if planar else 1)
    whole = width * height * channels * bits // 8
    if len(starts) < blocks or (sizes and compression == 1 and photometric != 6 and sum(sizes) < whole):
        raise Unusable("is damaged: a TIFF with fewer pixels than it announces")
    sample_kind = {1: "u", 2: "i", 3: "f"}.get(tags.get(339, (1,))[0], "u")
    deep = bits > 8 or sample_kind != "u"

    def by_tifffile() -> Array:
        room = across * down * (1 if planar else channels) * bits // 8
        if compression in (8, 32946):
            for start, size in zip(starts, sizes, strict=True):
                if len(zlib.decompressobj().decompress(data[start : start + size], room + 1)) > room:
                    raise Unusable("is damaged: a TIFF with more pixels than it announces")
        elif compression not in (1, 5, 32773):
            raise Unusable("is compressed in a way that cannot be kept within limits")
        values = _tiff_tifffile(data)
        values = np.moveaxis(values.reshape(channels, height, width), 0, -1) if planar else values
        return upright(values.reshape((height, width, channels)[: 3 if channels > 1 else 2]), orientation)

    readers: list[Callable[[], Array]] = [by_tifffile]
    with quiet:
        if not deep:
            # A layout that Pillow does not know, or planes of one that it does.
            with contextlib.suppress(SyntaxError, ValueError if planar else SyntaxError):
                loaded = load(TiffImagePlugin.TiffImageFile(BytesIO(data)))  # turns it upright as well
                return replace(loaded, **_shown_by_pillow(loaded, _Bands.of(channels, photometric, tags.get(338, ()))))
        elif photometric in (0, 1, 2) and not (planar and channels > 1):  # OpenCV leaves planes in part undecoded
            readers.insert(0, lambda: native(opencv(data)))  # turns it upright as well
            if channels == 1:
                readers.insert(0, lambda: load(TiffImagePlugin.TiffImageFile(BytesIO(data))).values)
        for read in readers:
            try:
                values = read()
            except BlemishError:
                raise
            except Exception:  # not this reader's kind of TIFF; what went wrong is told once all have failed
                continue
            found = values.shape[2] if values.ndim == 3 else 1
            depth = (values.dtype.kind, values.dtype.itemsize * 8)
            if found == channels and depth == (sample_kind, _stored(bits)):
                break  # neither cut to 8 bits nor short of a channel
        else:
            kind = f"{bits} bits × {channels} channels"
            raise Unusable(f"cannot be decoded: a damaged or unsupported TIFF ({kind}); save it with 8 or 16 bits")
    top = min(tags.get(281, (65535,)))
    black_white = (0.0, 2.0**bits - 1) if sample_kind == "u" and bits < 16 else None
    bands = _Bands.of(channels, photometric, tags.get(338, ()))
    values = bands.chosen(values, 2**bits - 1 if sample_kind == "u" else 1)
    return Raw(values, black_white=black_white, inverted=photometric == 0, top=top, notes=bands.notes)


@dataclass(frozen=True, slots=True)
class _Bands:
    """What the bands of a TIFF are.

    Attributes:
        kind: of the first ones: "grey", "RGB" or "CMYK".
        alpha: the position of the band with transparency; None without.
        multiplied: whether the colours are multiplied by it.
        notes: which bands are left out, and what the others are taken for.
    """

    kind: str
    alpha: int | None
    multiplied: bool
    notes: tuple[str, ...]

    @classmethod
    def of(cls, channels: int, photometric: int, extra: tuple[int, ...]) -> _Bands:
        """Args: extra: ExtraSamples: of each band beyond the colours 1 (transparency that the colours are multiplied
        by), 2 (transparency) or 0 (unspecified, as where it is not said)."""
        notes = []
        kind, own = {0: ("grey", 1), 1: ("grey", 1), 3: ("grey", 1), 5: ("CMYK", 4)}.get(photometric, ("RGB", 3))
        kinds = (*extra, *[0] * channels)[: max(channels - own, 0)]
        if photometric in (0, 1) and kinds[:2] == (0, 0):
            kind, own, kinds = "RGB", 3, kinds[2:]
            notes.append("bands 1 to 3 taken as red, green and blue, which the file does not say")
        found = {own + place: each for place, each in enumerate(kinds)}
        alpha = next((band for band, each in found.items() if each in (1, 2, 999)), None)  # 999: Corel's
        others = [str(band + 1) for band in found if band != alpha]
        if others:
            which = f"band {others[0]}" if len(others) == 1 else f"bands {', '.join(others)}"
            notes.append(f"{which} left out: beyond the colours, and not said to be transparency (ExtraSamples)")
        if kind == "CMYK":
            notes.append(CMYK_NOTE)
        return cls(kind, alpha, alpha is not None and found[alpha] == 1, tuple(notes))

    def chosen(self, values: Array, top: int) -> Array:
        """Of all bands as stored (H W, or H W C) grey or RGB, with alpha where there is any. `top`: full scale."""
        if values.ndim == 2:
            return values
        colour = values[..., : {"grey": 1, "RGB": 3, "CMYK": 4}[self.kind]]
        floats = values.dtype.kind == "f"
        exact = np.float64 if floats else np.uint64
        if self.kind == "CMYK":
            ink = top - colour.astype(np.int64).clip(0, top)
            colour = ((ink[..., :3] * ink[..., 3:] + top // 2) // top).astype(values.dtype)
        if self.alpha is None:
            return np.ascontiguousarray(colour[..., 0] if self.kind == "grey" else colour)
        alpha = values[..., self.alpha, None].astype(exact)
        if self.multiplied:
            colour = colour.astype(exact) * exact(top)
            colour = colour / np.where(alpha > 0, alpha, 1) if floats else (colour + alpha // 2) // np.maximum(alpha, 1)
            colour = np.minimum(colour, top)
        if (full := full_scale(values)) > 1 and full != top:
            alpha = (alpha * full + top // 2) // top
        return np.concatenate([colour.astype(values.dtype), alpha.astype(values.dtype)], axis=-1)


def _shown_by_pillow(loaded: Raw, bands: _Bands) -> dict[str, Any]:
    """Without the band that Pillow takes for transparency though the file does not say it; with the notes."""
    values = loaded.values
    if bands.alpha is None and values.ndim == 3:
        values = values[..., :3]
    return {"values": values, "notes": tuple(dict.fromkeys(loaded.notes + bands.notes))}


def _stored(bits: int) -> int:
    """The width of the numpy type that holds samples of so many bits."""
    return next((width for width in (8, 16, 32, 64) if bits <= width), bits)


def _tiff_tifffile(data: bytes) -> Array:
    try:
        import tifffile
    except ImportError:
        raise MissingExtraError("tifffile", extra="medical", purpose="read this kind of TIFF") from None
    with tifffile.TiffFile(BytesIO(data)) as file:
        return native(file.pages[0].asarray())
