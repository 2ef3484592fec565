"""The one decoder of blemish: a file, bytes, a PIL image, an array or a tensor in; RGB pixels of a stated range out.

PNG, JPEG, BMP, TIFF, WebP, PGM, PPM and DICOM are recognised by content, never by file name. A
small strict reader per format looks at the container first: size, number of frames and completeness
are known before a pixel is decoded, so that a bomb fails fast and a truncated file is an error
rather than half a picture, whatever Pillow's global switches say. Metadata stays behind: Pillow and
OpenCV are handed what makes pixels, and corrupt EXIF cannot break a good picture.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import math
import os
import re
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from io import TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.errors import BlemishError, ConfigError, ImageError, NonFiniteError
from blemish.images.bmp import bmp
from blemish.images.budget import BUDGET, ran_out, within_memory
from blemish.images.dicom import dicom
from blemish.images.jpeg import jpeg
from blemish.images.limits import LIMITS, Limits, Unusable, check_frames, check_size, too_large
from blemish.images.pixels import (
    Array,
    Container,
    Raw,
    full_scale,
    image_values,
    native,
    row_blocks,
    split,
    unit,
    upright,
)
from blemish.images.quiet import quiet
from blemish.images.raster import png, pnm, webp
from blemish.images.tiff import tiff

if TYPE_CHECKING:
    from torch import Tensor

Source: TypeAlias = Union[str, Path, bytes, BinaryIO, Image.Image, Array, "Tensor"]

EXTENSIONS = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp"),
        *(".pgm", ".ppm", ".pnm", ".dcm", ".dicom"),
    }
)
"""Lower-case suffixes that a folder scan considers; the content of the file still decides its format."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, upright.

    Attributes:
        pixels: RGB, (H, W, 3), C-contiguous; uint8 in 0..255 or float32 in [0, 1]. Treat it as read-only: it may share
            memory with the array that it was made from.
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
        """32 hex characters that tell pictures apart by their decoded pixels, whatever the file (blake2b)."""
        state = hashlib.blake2b(
            f"{self.pixels.shape} {self.pixels.dtype.name} ".encode(), digest_size=16
        )
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
        return (
            self.pixels
            if self.pixels.dtype == np.float32
            else np.divide(self.pixels, 255, dtype=np.float32)
        )


def decode(
    source: Source,
    *,
    window: tuple[float, float] | None = None,
    limits: Limits = LIMITS,
    name: str | None = None,
) -> Picture:
    """The picture behind a path, a file, the bytes of one, a PIL image, an array or a tensor.

    EXIF orientation is applied; grey becomes three equal channels; palettes and CMYK become RGB; transparency is
    composed over white (and noted). 8-bit pictures stay uint8 and exact. 16-bit pictures become float32, 0..65535 to
    0..1, nothing clipped; where none of their values is above 4095 that is noted, as they may hold 12 bits. Bands of a
    TIFF beyond its colours are transparency where it says so (ExtraSamples), and else left out and noted. Colour
    profiles are ignored.

    DICOM (extra `medical`): the modality rescale or table is applied, then the file's own window or table, else the
    full stored range; MONOCHROME1 is inverted, so that higher is brighter. Patient attributes are never read; what is
    burnt into the pixels stays there.

    Args:
        source: see above. Files: opened in binary mode, read from where they stand to their end. Arrays: (H, W),
            (H, W, 1), (H, W, 3) or (H, W, 4) as RGB(A); bool, uint8, uint16, or float32/float64 in [0, 1]. Tensors: on
            any device, the same and float16 and bfloat16, and (C, H, W) where the first of three sides is 1, 3 or 4,
            whatever the last is. PIL images: any mode; a 16-bit RGB file opened by Pillow was already cut to 8.
        window: (lo, hi), lo < hi: values mapped linearly to [0, 1] and clipped, as float32. In the picture's own units:
            0..255 for 8 bits, 0..65535 for 16, modality units (such as Hounsfield) for DICOM. Needed for float pixels
            outside [0, 1] and for integers of other depths. Alpha is never windowed.
        limits: the most that a picture may ask for.
        name: how messages name the picture; default: its path, or what kind of object it is.

    Raises: ImageError if it cannot be decoded whole; NonFiniteError for NaN or infinite pixels; MissingExtraError if
        the format needs an optional dependency; ConfigError if `window` is not an interval.

    Example:
        >>> decode(np.array([[0, 1000, 65535]], np.uint16), window=(0, 2000)).pixels[..., 0]
        array([[0. , 0.5, 1. ]], dtype=float32)
    """
    if window is not None and not (all(map(math.isfinite, window)) and window[0] < window[1]):
        raise ConfigError(
            f"window {window[0]:g},{window[1]:g}: two finite numbers lo,hi with lo < hi are needed"
        )
    label = name or _label(source)
    with within_memory(label) as memory:
        raw = _read(source, label, limits)
        notes = raw.notes if window else (*raw.notes, *_depth_note(raw))
        scaled, alpha = _scaling(raw, window, label)
        if alpha is not None and alpha.min() < full_scale(alpha):
            notes = (*notes, "transparency composed over white")
        else:
            alpha = None
        picture = Picture(_rgb(raw.values, scaled, alpha), label, notes)
        memory.kept = picture.pixels.nbytes
    return picture


def _rgb(values: Array, scaled: Callable[[slice], Array], alpha: Array | None) -> Array:
    """H W 3: the scaled colours over white, a few rows at a time, or as they are where they are that already."""
    height, width = values.shape[:2]
    first = scaled(slice(0, 1))
    if alpha is None and values.shape[2:] == (3,) and np.may_share_memory(first, values):
        return np.ascontiguousarray(values)
    pixels = np.empty((height, width, 3), first.dtype)
    for rows in row_blocks(height, width):
        colour = scaled(rows)
        if alpha is not None:
            colour = _over_white(colour, alpha[rows])
        if colour.ndim == 2:
            import cv2  # many times faster than broadcasting in numpy

            cv2.cvtColor(np.ascontiguousarray(colour), cv2.COLOR_GRAY2RGB, dst=pixels[rows])
        else:
            pixels[rows] = colour
    return pixels


_MAX_CLASS = 63  # in masks of class numbers; a quarter of full scale in 8 bits


def decode_mask(
    source: Source, *, limits: Limits = LIMITS, name: str | None = None
) -> npt.NDArray[np.bool_]:
    """The marked pixels of a mask, bool (H, W): True where any colour channel is above half of full scale.

    Full scale is 255 for 8 bits, 65535 for 16, 1 for float; alpha is ignored. A mask of whole numbers up to 63 holds
    class numbers (VisA) or 0 and 1, and is True above 0: a 0/255 mask has no reason to peak there. Any other that has
    values above 0 but none above half would be silently empty: it is an error.

    Raises: as `decode`.

    Example:
        >>> decode_mask(np.array([[0, 127, 128]], np.uint8)), decode_mask(np.array([[0, 1]], np.uint8))
        (array([[False, False,  True]]), array([[False,  True]]))
    """
    label = name or _label(source)
    with within_memory(label):
        return _marked(_read(source, label, limits), label)


def _marked(raw: Raw, label: str) -> npt.NDArray[np.bool_]:
    stored = split(raw.values)[0]
    if (
        stored.dtype.kind in "iu"
        and stored.max() <= _MAX_CLASS
        and not raw.inverted
        and raw.rendered is None
    ):
        above = stored > 0
        marked: npt.NDArray[np.bool_] = above if above.ndim == 2 else np.any(above, axis=2)
    else:
        scaled, _ = _scaling(raw, None, label)
        marked = np.empty(stored.shape[:2], bool)
        most = 0.0
        for rows in row_blocks(*stored.shape[:2]):
            colour = scaled(rows)
            top, most = full_scale(colour), max(most, colour.max())
            above = colour > top / 2
            marked[rows] = above if above.ndim == 2 else np.any(above, axis=2)
        if not marked.any() and most > 0:
            raise ImageError(
                label,
                f"is no clear mask: its largest value is {most:.4g} of {top}; save it with 0 and 255, or 0 and 1",
            )
    return marked


def sniff(head: bytes) -> str | None:
    """The format that a file's first bytes (132 or more) show, a key of the readers; None for any other.

    Example:
        >>> sniff(b"\\x89PNG\\r\\n\\x1a\\n"), sniff(b"GIF89a"), sniff(b"path,label")
        ('png', None, None)
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[128:132] == b"DICM":  # before TIFF: the 128 free bytes may hold a TIFF header
        return "dicom"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in (
        12,
        16,
        40,
        52,
        56,
        64,
        108,
        124,
    ):
        return "bmp"
    if re.match(rb"P[56]\s", head):
        return "pnm"
    return None


def _label(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "PIL image")
    if isinstance(name := getattr(source, "name", None), str):  # of an open file
        return name
    return "array" if isinstance(source, np.ndarray) else type(source).__name__


def _read(source: Source, label: str, limits: Limits) -> Raw:
    """The stored values of any source; every failure is an ImageError (or MissingExtraError)."""
    what = "picture"
    try:
        if isinstance(source, np.ndarray):
            return _from_array(source, limits)
        if isinstance(source, Image.Image):
            return _from_image(source, limits)
        if (torch := sys.modules.get("torch")) is not None and isinstance(source, torch.Tensor):
            return _from_array(_tensor_values(source), limits)
        if isinstance(source, (str, os.PathLike)):
            source = _file_bytes(Path(source), limits)
        elif hasattr(source, "read"):
            source = _rest_of(source, limits)
        if not isinstance(source, bytes):
            raise Unusable(
                "is not a path, a file, the bytes of one, a PIL image, a numpy array or a torch tensor"
            )
        if len(source) > limits.max_bytes:
            raise Unusable(too_large(len(source), limits))
        kind = sniff(source[:132])
        if kind is None:
            raise Unusable(_not_a_picture(source[:512]))
        what = {"webp": "WebP", "pnm": "PGM or PPM"}.get(kind, kind.upper())
        container = _READERS[kind](source, limits)
        del source  # where it comes from a file, the reader alone holds it, and lets go of it early
        BUDGET.reserve(_peak(kind, container), limits.memory)
        return container.decode()
    except Unusable as refusal:
        reason = str(refusal)
    except BlemishError:
        raise
    except (
        Exception
    ) as error:  # decoders raise anything from struct.error to SyntaxError on hostile bytes
        if ran_out(error):
            raise
        raise ImageError(
            label, f"cannot be decoded: the {what} is damaged or of an unsupported kind"
        ) from error
    raise ImageError(
        label, reason
    )  # outside the handlers: nothing that a decoder said is chained to it


def _peak(kind: str, container: Container) -> int:
    """Bytes that a decode holds at its peak beside the file: what the library makes and our copy of
    it, or that copy and the picture (docs/robustness.md has what was measured)."""
    sample = next((size for size in (1, 2, 4) if container.bits <= 8 * size), 8)
    stored = container.channels * sample
    picture = 3 if sample == 1 and kind != "dicom" else 12
    library = (
        4 if sample == 1 and container.channels > 1 else stored
    )  # Pillow keeps colour in 4 bytes
    if kind == "png":
        library += stored  # inflated and checked before Pillow gets it
    return container.height * container.width * (stored + max(library, picture))


def _file_bytes(path: Path, limits: Limits) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise Unusable("is a folder, not a picture")
        if not stat.S_ISREG(status.st_mode):
            raise Unusable("is not a regular file")
        if status.st_size > limits.max_bytes:
            raise Unusable(too_large(status.st_size, limits))
        BUDGET.reserve(status.st_size, limits.memory)
        with path.open("rb") as file:
            return file.read(status.st_size)
    except FileNotFoundError:
        raise Unusable("does not exist") from None
    except PermissionError:
        raise Unusable("cannot be read: permission denied") from None
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror or 'input/output error'}") from None
    except ValueError as error:
        if isinstance(error, Unusable):
            raise
        raise Unusable("is not a valid path") from None  # a null byte inside


def _rest_of(file: Any, limits: Limits) -> bytes:
    """What an open file still holds."""
    if isinstance(file, TextIOBase):
        raise Unusable("is a file opened as text; open it in binary mode ('rb')")
    parts: list[bytes] = []
    room = limits.max_bytes + 1
    try:
        while room > 0 and (part := file.read(room)):
            parts.append(bytes(part))  # which fails for one that gives text
            room -= len(part)
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror or error}") from None
    except (TypeError, ValueError) as error:  # of a closed file, or of one that gives text
        raise Unusable(f"cannot be read: {error}") from None
    return b"".join(parts)  # no copy where it came in one piece


_FOREIGN = {
    b"GIF8": "GIF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "Photoshop",
    b"v/1\x01": "OpenEXR",
    b"%PDF": "PDF",
    b"P1\n": "PBM",
    b"P2\n": "PGM as text",
    b"P3\n": "PPM as text",
    b"P4\n": "PBM",
}


def _not_a_picture(head: bytes) -> str:
    """Why content that is not on the allow-list is refused."""
    if not head:
        return "is empty (0 bytes)"
    foreign = next((known for magic, known in _FOREIGN.items() if head.startswith(magic)), None)
    if head[4:8] == b"ftyp":
        foreign = "AVIF" if head[8:12] in (b"avif", b"avis") else "HEIC or video"
    if foreign is not None:
        return f"{foreign} is not supported; convert to PNG"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or _is_text(head):
        return "is not a picture (looks like text)"
    return "is not a picture that is supported: PNG, JPEG, BMP, TIFF, WebP, PGM, PPM, DICOM"


def _is_text(head: bytes) -> bool:
    """Whether bytes are UTF-8, cut anywhere, without control characters."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


# --- Arrays and PIL images -------------------------------------------------------------------------------------------


def _from_array(values: Array, limits: Limits) -> Raw:
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        raise Unusable(
            f"has shape {values.shape}; (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) is needed"
        )
    if values.dtype.name not in ("bool", "uint8", "uint16", "float32", "float64"):
        raise Unusable(
            f"has dtype {values.dtype}; bool, uint8, uint16, float32 or float64 is needed"
        )
    check_size(values.shape[1], values.shape[0], limits)
    return Raw(native(np.asarray(values)))


def _tensor_values(tensor: Any) -> Array:
    """A tensor as an array with its channels last."""
    values = tensor.detach().cpu()
    if values.is_floating_point() and values.element_size() == 2:  # numpy has no bfloat16
        values = values.float()
    if values.ndim == 3 and values.shape[0] in (1, 3, 4):
        values = values.permute(1, 2, 0)
    array: Array = values.contiguous().numpy()
    return array


def _from_image(image: Image.Image, limits: Limits) -> Raw:
    check_size(*image.size, limits)
    with quiet:
        if (
            image.format != "MPO"
        ):  # its further pictures are previews and stereo twins: the primary one is the picture
            check_frames(getattr(image, "n_frames", 1))
        image.load()  # before EXIF: Pillow turns a TIFF upright here and drops the tag
        orientation = 1
        with contextlib.suppress(Exception):  # corrupt EXIF says nothing
            orientation = image.getexif().get(0x0112, 1)
        values, notes = image_values(image)
    return Raw(upright(values, orientation), notes=notes)


def _scaling(
    raw: Raw, window: tuple[float, float] | None, label: str
) -> tuple[Callable[[slice], Array], Array | None]:
    """What gives colour of some rows as uint8, or as float32 in [0, 1], and alpha as stored."""
    values = raw.values
    if values.dtype == bool:
        values = values.astype(np.uint8) * np.uint8(255)
    stored, alpha = split(values)
    if values.dtype.kind == "f":
        smallest, largest = values.min(), values.max()  # NaN survives both
        if not (np.isfinite(smallest) and np.isfinite(largest)):
            raise NonFiniteError(
                f"{label}: holds NaN or infinite pixels; replace them before decoding"
            )
        if alpha is not None and not (alpha.min() >= 0 and alpha.max() <= 1):
            raise ImageError(label, "has an alpha channel outside [0, 1]")
        in_range = stored.min() >= 0 and stored.max() <= 1
    black_white = window or raw.black_white
    if window is None and raw.rendered is not None:
        stored, black_white = raw.rendered, None
    elif black_white is None and values.dtype == np.uint16:
        black_white = (0, 65535)
    elif (
        black_white is None
        and values.dtype != np.uint8
        and not (values.dtype.kind == "f" and in_range)
    ):
        raise ImageError(
            label,
            f"has {values.dtype} pixels from {stored.min():g} to {stored.max():g}: "
            "say which values are black and white with --window lo,hi (window=(lo, hi))",
        )

    def scaled(rows: slice) -> Array:
        colour = stored[rows]
        if black_white is not None:
            colour = unit(colour, *black_white)
        elif colour.dtype != np.uint8:
            colour = colour.astype(np.float32, copy=False)
        if raw.inverted:
            colour = 1 - colour if colour.dtype == np.float32 else 255 - colour
        return colour

    return scaled, alpha


def _depth_note(raw: Raw) -> tuple[str, ...]:
    """That 16-bit values may be of fewer bits, where they do not go beyond those: read so they are nearly black."""
    if raw.values.dtype != np.uint16 or raw.black_white or raw.rendered is not None:
        return ()
    largest = int(split(raw.values)[0].max())
    top = next((top for top in (raw.top or 0, 255, 4095) if 0 < largest <= top < 65535), None)
    if top is None:
        return ()
    bits = f"{top.bit_length()}-bit data" if top & (top + 1) == 0 else "that range"
    return (
        f"16-bit values no higher than {top}, read as 0 to 65535: for {bits} fit with --window 0,{top}",
    )


def _over_white(colour: Array, alpha: Array) -> Array:
    """colour·alpha + white·(1 − alpha), rounded to the nearest for uint8; grey stays (H, W)."""
    if colour.ndim == 3:
        alpha = alpha[..., None]
    if colour.dtype == np.uint8:
        weight = alpha.astype(np.uint16)
        return ((colour * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)
    share: Array = alpha.astype(np.float32) / np.float32(full_scale(alpha))
    composed: Array = colour * share + (1 - share)
    return np.clip(composed, 0, 1, out=composed)


_READERS: dict[str, Callable[[bytes, Limits], Container]] = {
    "png": png,
    "jpeg": jpeg,
    "webp": webp,
    "bmp": bmp,
    "pnm": pnm,
    "tiff": tiff,
    "dicom": dicom,
}
