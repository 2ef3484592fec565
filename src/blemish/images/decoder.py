"""The one decoder of blemish: any source of a picture in, RGB pixels of a stated range out.

PNG, JPEG, BMP, TIFF, WebP, PGM, PPM and DICOM are recognised by content, never by file name. A
small strict reader per format looks at the container first: size, number of frames and completeness
are known before a pixel is decoded, so that a bomb fails fast and a truncated file is an error
rather than half a picture. Metadata stays behind: the libraries are handed what makes pixels, and
corrupt EXIF cannot break a good picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from blemish.errors import ImageError
from blemish.images.limits import LIMITS, Limits, within_memory
from blemish.images.pixels import Array, Raw, full_scale, row_blocks, split
from blemish.images.rendering import (
    Extent,
    check_window,
    digest_of,
    notes_of,
    scaling,
    shown,
)
from blemish.images.sources import Source, label_of, read_stored


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, upright.

    Attributes:
        pixels: RGB, (H, W, 3), C-contiguous; uint8 in 0..255 or float32 in [0, 1]. Treat it as
            read-only: it may share memory with the array that it was made from.
        source: path or description of where it came from.
        notes: what was done that a user should know ("transparency composed over white").

    Example:
        >>> picture = decode(np.zeros((2, 3), np.uint8))
        >>> picture.size, picture.pixels.shape, picture.digest
        ((2, 3), (2, 3, 3), '35d47191dbf60ce4b007aeaae8e702ab')
    """

    pixels: Array
    source: str
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.pixels.shape[:2]
        return height, width

    @cached_property
    def digest(self) -> str:
        """32 hex characters (blake2b) that tell decoded pixels apart, whatever the file."""
        state = digest_of(self.size, self.pixels.dtype)
        state.update(self.pixels.data)
        return state.hexdigest()

    def as_uint8(self) -> Array:
        """The pixels as uint8 in 0..255, rounded to the nearest."""
        if self.pixels.dtype == np.uint8:
            return self.pixels
        small = np.empty(self.pixels.shape, np.uint8)
        for rows in row_blocks(*self.size):
            small[rows] = np.rint(self.pixels[rows] * 255)
        return small

    def as_float(self) -> Array:
        """The pixels as float32 in [0, 1]."""
        if self.pixels.dtype == np.float32:
            return self.pixels
        return np.divide(self.pixels, 255, dtype=np.float32)


def decode(
    source: Source,
    *,
    window: tuple[float, float] | None = None,
    limits: Limits = LIMITS,
    name: str | None = None,
) -> Picture:
    """The picture behind a path, a file, the bytes of one, a PIL image, an array or a tensor.

    EXIF orientation is applied; grey becomes three equal channels; palettes and CMYK become RGB;
    transparency is composed over white (and noted). 8-bit pictures stay uint8 and exact. 16-bit
    pictures become float32, 0..65535 to 0..1, nothing clipped; where none of their values is above
    4095 that is noted, as they may hold 12 bits. Bands of a TIFF beyond its colours are
    transparency where it says so (ExtraSamples), and else left out and noted. Colour profiles are
    ignored.

    DICOM (extra `medical`): the modality rescale or table is applied, then the file's own window or
    table, else the full stored range; MONOCHROME1 is inverted, so that higher is brighter. Patient
    attributes are never read; what is burnt into the pixels stays there.

    Args:
        source: see above. Files: opened in binary mode, read from where they stand to their end.
            Arrays: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) as RGB(A); bool, uint8, uint16, or
            float32/float64 in [0, 1]. Tensors: on any device, the same and float16 and bfloat16,
            and (C, H, W) where the first of three sides is 1, 3 or 4, whatever the last is. PIL
            images: any mode; a 16-bit RGB file opened by Pillow was already cut to 8.
        window: (lo, hi), lo < hi: values mapped linearly to [0, 1] and clipped, as float32. In the
            picture's own units: 0..255 for 8 bits, 0..65535 for 16, modality units (such as
            Hounsfield) for DICOM. Needed for float pixels outside [0, 1] and for integers of other
            depths. Alpha is never windowed.
        limits: the most that a picture may ask for.
        name: how messages name the picture; default: its path, or what kind of object it is.

    Raises: ImageError if it cannot be decoded whole; NonFiniteError for NaN or infinite pixels;
        MissingExtraError if the format needs an optional dependency; ConfigError if `window` is not
        an interval.

    Example:
        >>> decode(np.array([[0, 1000, 65535]], np.uint16), window=(0, 2000)).pixels[..., 0]
        array([[0. , 0.5, 1. ]], dtype=float32)
    """
    check_window(window)
    label = name or label_of(source)
    with within_memory(label) as memory:
        raw = read_stored(source, label, limits)
        extent = Extent.of(raw, label)
        pixels = shown(raw, window, extent, label)
        picture = Picture(pixels, label, notes_of(raw, window, extent))
        memory.kept = picture.pixels.nbytes
    return picture


_MAX_CLASS = 63  # in masks of class numbers; a quarter of full scale in 8 bits


def decode_mask(
    source: Source, *, limits: Limits = LIMITS, name: str | None = None
) -> npt.NDArray[np.bool_]:
    """The marked pixels of a mask, bool (H, W): where any colour is above half of full scale.

    Full scale is 255 for 8 bits, 65535 for 16, 1 for float; alpha is ignored. A mask of whole
    numbers up to 63 holds class numbers (VisA) or 0 and 1, and is True above 0: a 0/255 mask has no
    reason to peak there. Any other that has values above 0 but none above half would be silently
    empty: it is an error.

    Raises: as `decode`.

    Example:
        >>> decode_mask(np.array([[0, 127, 128]], np.uint8))
        array([[False, False,  True]])
        >>> decode_mask(np.array([[0, 1]], np.uint8))
        array([[False,  True]])
    """
    label = name or label_of(source)
    with within_memory(label):
        return _marked(read_stored(source, label, limits), label)


def _marked(raw: Raw, label: str) -> npt.NDArray[np.bool_]:
    stored = split(raw.values)[0]
    plain = stored.dtype.kind in "iu" and not raw.inverted and raw.rendered is None
    if plain and stored.max() <= _MAX_CLASS:
        return _any_channel(stored > 0)
    scaled, _ = scaling(raw, None, Extent.of(raw, label), label)
    marked = np.empty(stored.shape[:2], bool)
    most = 0.0
    for rows in row_blocks(*stored.shape[:2]):
        colour = scaled(rows)
        top, most = full_scale(colour), max(most, colour.max())
        marked[rows] = _any_channel(colour > top / 2)
    if not marked.any() and most > 0:
        raise ImageError(
            label,
            f"is no clear mask: its largest value is {most:.4g} of {top}; "
            "save it with 0 and 255, or 0 and 1",
        )
    return marked


def _any_channel(above: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    return above if above.ndim == 2 else np.any(above, axis=2)
