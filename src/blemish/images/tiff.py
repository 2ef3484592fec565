"""TIFF, by Pillow, OpenCV or tifffile: whichever reads a file at its own depth."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, Literal

import numpy as np
from PIL import TiffImagePlugin

from blemish.errors import BlemishError, MissingExtraError
from blemish.images.blocks import FEWER, Blocks, check_blocks
from blemish.images.budget import ran_out
from blemish.images.directories import UPRIGHT, directories
from blemish.images.limits import TRUNCATED, Limits, Unusable, check_frames, check_size
from blemish.images.pixels import (
    CMYK_NOTE,
    Array,
    Container,
    Raw,
    full_scale,
    load,
    native,
    opencv,
    row_blocks,
    upright,
)
from blemish.images.quiet import quiet

_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}


@dataclass(frozen=True, slots=True)
class _Page:
    """What the tags of a TIFF say of its pixels; `blocks` are its strips or tiles."""

    height: int
    width: int
    channels: int
    bits: int
    sample_kind: str
    photometric: int
    orientation: int
    turned_at: int | None
    planar: bool
    top: int
    extra: tuple[int, ...]
    blocks: Blocks

    @property
    def deep(self) -> bool:
        return self.bits > 8 or self.sample_kind != "u"

    @property
    def bands(self) -> _Bands:
        return _Bands.of(self.channels, self.photometric, self.extra)


def tiff(data: bytes, limits: Limits) -> Container:
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
    bits, channels, planar = max(tags.get(258, (1,))), tags.get(277, (1,))[0], tags.get(284) == (2,)
    tiled = 322 in tags and 323 in tags
    across, down = (
        (tags[322][0], tags[323][0]) if tiled else (width, min(height, tags.get(278, (height,))[0]))
    )
    check_size(across, down, limits)
    photometric, compression = tags.get(262, (1,))[0], tags.get(259, (1,))[0]
    count = math.ceil(width / across) * math.ceil(height / down) * (channels if planar else 1)
    if len(starts) < count or 0 < len(sizes) < count:
        raise Unusable(FEWER)
    blocks = Blocks(
        starts=starts[:count],
        sizes=sizes[:count],
        compression=compression,
        across=across,
        down=down,
        last=down if tiled else height - (math.ceil(height / down) - 1) * down,
        column=math.ceil(height / down),
        samples=1 if planar else channels,
        bits=bits,
        reversed=tags.get(266) == (2,),
        tables=bytes(tags.get(347, ())),
        fixed=photometric != 6 or compression == 7,
    )
    page = _Page(
        height=height,
        width=width,
        channels=channels,
        bits=bits,
        sample_kind={1: "u", 2: "i", 3: "f"}.get(tags.get(339, (1,))[0], "u"),
        photometric=photometric,
        orientation=tags.get(274, (1,))[0],
        turned_at=next(iter(tags.get(UPRIGHT, ())), None),
        planar=planar,
        top=min(tags.get(281, (65535,))),
        extra=tags.get(338, ()),
        blocks=blocks,
    )
    content = [data]
    return Container(height, width, channels, bits, lambda: _decoded(content, page, limits))


def _decoded(content: list[bytes], page: _Page, limits: Limits) -> Raw:
    """8 bits by Pillow; deeper by Pillow, OpenCV or tifffile, whichever reads it at its own depth.

    Args: content: the bytes of the file, taken out of the list so that they can be let go.
    """
    data = content.pop()
    check_blocks(data, page.blocks, limits)
    readers: list[Callable[[], Array]] = [lambda: _by_tifffile(data, page)]
    with quiet:
        if not page.deep:
            # A layout that Pillow does not know, or planes of one that it does.
            with contextlib.suppress(SyntaxError, ValueError if page.planar else SyntaxError):
                file = BytesIO(data)
                if turned := page.turned_at is not None and page.orientation != 1:
                    # Pillow turns a picture upright in a second copy; `load` does it after Pillow's is let go.
                    file.getbuffer()[page.turned_at : page.turned_at + 2] = (1).to_bytes(
                        2, _ORDERS[data[:2]]
                    )
                image = TiffImagePlugin.TiffImageFile(file)
                if not page.planar:  # no other reader will be asked: the bytes are let go
                    data = b""
                image.load()
                data = b""
                file.close()
                loaded = load(image, page.orientation if turned else 1)
                return replace(loaded, **_shown_by_pillow(loaded, page.bands))
        elif page.photometric in (0, 1, 2) and not (page.planar and page.channels > 1):
            # OpenCV leaves planes in part undecoded; it turns a picture upright as well.
            readers.insert(0, lambda: native(opencv(data)))
            if page.channels == 1:
                readers.insert(0, lambda: load(TiffImagePlugin.TiffImageFile(BytesIO(data))).values)
        for read in readers:
            try:
                values = read()
            except BlemishError:
                raise
            except Exception as error:  # not this reader's kind of TIFF; what went wrong is told once all have failed
                if ran_out(error):
                    raise
                continue
            found = values.shape[2] if values.ndim == 3 else 1
            depth = (values.dtype.kind, values.dtype.itemsize * 8)
            if found == page.channels and depth == (page.sample_kind, _stored(page.bits)):
                break  # neither cut to 8 bits nor short of a channel
        else:
            kind = f"{page.bits} bits × {page.channels} channels"
            raise Unusable(
                f"cannot be decoded: a damaged or unsupported TIFF ({kind}); save it with 8 or 16 bits"
            )
    unsigned = page.sample_kind == "u"
    black_white = (0.0, 2.0**page.bits - 1) if unsigned and page.bits < 16 else None
    bands = page.bands
    values = bands.chosen(values, 2**page.bits - 1 if unsigned else 1)
    return Raw(
        values,
        black_white=black_white,
        inverted=page.photometric == 0,
        top=page.top,
        notes=bands.notes,
    )


def _by_tifffile(data: bytes, page: _Page) -> Array:
    if page.blocks.compression not in (1, 5, 8, 32773, 32946):
        raise Unusable("is compressed in a way that cannot be kept within limits")
    channels, height, width = page.channels, page.height, page.width
    values = _tiff_tifffile(data)
    values = np.moveaxis(values.reshape(channels, height, width), 0, -1) if page.planar else values
    return upright(
        values.reshape((height, width, channels)[: 3 if channels > 1 else 2]), page.orientation
    )


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
        kind, own = {0: ("grey", 1), 1: ("grey", 1), 3: ("grey", 1), 5: ("CMYK", 4)}.get(
            photometric, ("RGB", 3)
        )
        kinds = (*extra, *[0] * channels)[: max(channels - own, 0)]
        if photometric in (0, 1) and kinds[:2] == (0, 0):
            kind, own, kinds = "RGB", 3, kinds[2:]
            notes.append("bands 1 to 3 taken as red, green and blue, which the file does not say")
        found = {own + place: each for place, each in enumerate(kinds)}
        alpha = next(
            (band for band, each in found.items() if each in (1, 2, 999)), None
        )  # 999: Corel's
        others = [str(band + 1) for band in found if band != alpha]
        if others:
            which = f"band {others[0]}" if len(others) == 1 else f"bands {', '.join(others)}"
            notes.append(
                f"{which} left out: beyond the colours, and not said to be transparency (ExtraSamples)"
            )
        if kind == "CMYK":
            notes.append(CMYK_NOTE)
        return cls(kind, alpha, alpha is not None and found[alpha] == 1, tuple(notes))

    def chosen(self, values: Array, top: int) -> Array:
        """Of all bands as stored (H W, or H W C) grey or RGB, with alpha where there is any. `top`: full scale."""
        if values.ndim == 2:
            return values
        parts = ((rows, self._of_rows(values[rows], top)) for rows in row_blocks(*values.shape[:2]))
        rows, part = next(parts)
        chosen = np.empty((len(values), *part.shape[1:]), part.dtype)
        chosen[rows] = part
        for rows, part in parts:
            chosen[rows] = part
        return chosen

    def _of_rows(self, values: Array, top: int) -> Array:
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
            colour = (
                colour / np.where(alpha > 0, alpha, 1)
                if floats
                else (colour + alpha // 2) // np.maximum(alpha, 1)
            )
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
        raise MissingExtraError(
            "tifffile", extra="medical", purpose="read this kind of TIFF"
        ) from None
    with tifffile.TiffFile(BytesIO(data)) as file:
        return native(file.pages[0].asarray())
