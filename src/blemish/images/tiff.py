"""TIFF, by Pillow, OpenCV or tifffile: whichever reads a file at its own depth."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO

import numpy as np
from PIL import TiffImagePlugin

from blemish.errors import BlemishError, MissingExtraError
from blemish.images.blocks import Page, check_blocks
from blemish.images.limits import Limits, Unusable, quiet, ran_out
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


def tiff(data: bytes, limits: Limits) -> Container:
    """Reads the tags; the blocks are checked when they are decoded."""
    page, content = Page(data, limits), [data]
    decoded = partial(_decoded, content, page, limits)
    return Container(page.height, page.width, page.channels, page.bits, decoded)


def _decoded(content: list[bytes], page: Page, limits: Limits) -> Raw:
    """Args: content: the bytes of the file, taken out of the list so that they can be let go."""
    check_blocks(content[0], page, limits)
    return checked(content, page)


def checked(content: list[bytes], page: Page) -> Raw:
    """The pixels of a TIFF whose blocks are known to be whole. Args: as of `_decoded`."""
    bands = _Bands.of(page)
    if not page.deep and (shown := _by_pillow(content, page)) is not None:
        # Without the band that Pillow takes for transparency though the file does not say it.
        values = shown.values
        if bands.alpha is None and values.ndim == 3:
            values = values[..., :3]
        notes = tuple(dict.fromkeys(shown.notes + bands.notes))
        return replace(shown, values=values, notes=notes)
    data = content.pop()
    with quiet:
        values = _at_its_depth(data, page)
    unsigned = page.kind == "u"
    return Raw(
        bands.chosen(values, 2**page.bits - 1 if unsigned else 1),
        black_white=(0.0, 2.0**page.bits - 1) if unsigned and page.bits < 16 else None,
        inverted=page.photometric == 0,
        top=page.top,
        notes=bands.notes,
    )


def _by_pillow(content: list[bytes], page: Page) -> Raw | None:
    """8 bits; None for a layout that Pillow does not know, or planes of one that it does.

    Args: content: the bytes of the file; kept in the list only where None is given.
    """
    with quiet, contextlib.suppress(SyntaxError, ValueError if page.planar else SyntaxError):
        file = BytesIO(content[0])
        if turned := page.turned_at is not None and page.orientation != 1:
            # Pillow turns a picture upright in a second copy; `load` does it after Pillow's is
            # let go.
            upright_tag = b"\1\0" if content[0][:2] == b"II" else b"\0\1"
            file.getbuffer()[page.turned_at : page.turned_at + 2] = upright_tag
        image = TiffImagePlugin.TiffImageFile(file)
        if page.planar:
            image.load()
        content.clear()
        image.load()
        file.close()
        return load(image, page.orientation if turned else 1)
    return None


def _at_its_depth(data: bytes, page: Page) -> Array:
    """Neither cut to 8 bits nor short of a channel."""
    readers: list[Callable[[], Array]] = [lambda: _by_tifffile(data, page)]
    # OpenCV leaves planes in part undecoded; it turns a picture upright as well.
    if page.deep and page.photometric in (0, 1, 2) and not (page.planar and page.channels > 1):
        readers.insert(0, lambda: native(opencv(data)))
        if page.channels == 1:
            readers.insert(0, lambda: load(TiffImagePlugin.TiffImageFile(BytesIO(data))).values)
    # The numpy type that holds samples of so many bits.
    stored = next((width for width in (8, 16, 32, 64) if page.bits <= width), page.bits)
    for read in readers:
        try:
            values = read()
        except BlemishError:
            raise
        except Exception as error:  # not its kind of TIFF; what is wrong is told at the end
            if ran_out(error):
                raise
            continue
        found = values.shape[2] if values.ndim == 3 else 1
        depth = values.dtype.kind, values.dtype.itemsize * 8
        if found == page.channels and depth == (page.kind, stored):
            return values
    raise Unusable(
        f"cannot be decoded: a damaged or unsupported TIFF ({page.bits} bits × {page.channels} "
        "channels); save it with 8 or 16 bits"
    )


def _by_tifffile(data: bytes, page: Page) -> Array:
    if page.compression not in (1, 5, 8, 32773, 32946):
        raise Unusable("is compressed in a way that cannot be kept within limits")
    try:
        import tifffile
    except ImportError:
        raise MissingExtraError(
            "tifffile", extra="medical", purpose="read this kind of TIFF"
        ) from None
    with tifffile.TiffFile(BytesIO(data)) as file:
        values = native(file.pages[0].asarray())
    channels, height, width = page.channels, page.height, page.width
    if page.planar:
        values = np.moveaxis(values.reshape(channels, height, width), 0, -1)
    values = values.reshape((height, width, channels)[: 3 if channels > 1 else 2])
    return upright(values, page.orientation)


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
    def of(cls, page: Page) -> _Bands:
        """By ExtraSamples: of each band beyond the colours 1 (transparency that the colours are
        multiplied by), 2 (transparency) or 0 (unspecified, as where it is not said)."""
        notes = []
        known = {0: ("grey", 1), 1: ("grey", 1), 3: ("grey", 1), 5: ("CMYK", 4)}
        kind, own = known.get(page.photometric, ("RGB", 3))
        kinds = (*page.extra, *[0] * page.channels)[: max(page.channels - own, 0)]
        if page.photometric in (0, 1) and kinds[:2] == (0, 0):
            kind, own, kinds = "RGB", 3, kinds[2:]
            notes.append("bands 1 to 3 taken as red, green and blue, which the file does not say")
        found = {own + place: each for place, each in enumerate(kinds)}
        known_as_alpha = (1, 2, 999)  # 999: Corel's
        alpha = next((band for band, each in found.items() if each in known_as_alpha), None)
        others = [str(band + 1) for band in found if band != alpha]
        if others:
            which = f"band {others[0]}" if len(others) == 1 else f"bands {', '.join(others)}"
            notes.append(
                f"{which} left out: beyond the colours, and not said to be transparency "
                "(ExtraSamples)"
            )
        if kind == "CMYK":
            notes.append(CMYK_NOTE)
        return cls(kind, alpha, alpha is not None and found[alpha] == 1, tuple(notes))

    def chosen(self, values: Array, top: int) -> Array:
        """Of all bands as stored (H W, or H W C) grey or RGB, with alpha where there is any.

        Args: top: full scale.
        """
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
            if floats:
                colour = colour / np.where(alpha > 0, alpha, 1)
            else:
                colour = (colour + alpha // 2) // np.maximum(alpha, 1)
            colour = np.minimum(colour, top)
        if (full := full_scale(values)) > 1 and full != top:
            alpha = (alpha * full + top // 2) // top
        return np.concatenate([colour.astype(values.dtype), alpha.astype(values.dtype)], axis=-1)
