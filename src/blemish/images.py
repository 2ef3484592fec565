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
import logging
import math
import os
import re
import stat
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO, TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union

import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from blemish.errors import BlemishError, ConfigError, ImageError, MissingExtraError, NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = npt.NDArray[Any]
Source: TypeAlias = Union[str, Path, bytes, BinaryIO, Image.Image, Array, "Tensor"]

EXTENSIONS = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp"),
        *(".pgm", ".ppm", ".pnm", ".dcm", ".dicom"),
    }
)
"""Lower-case suffixes that a folder scan considers; the content of the file still decides its format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a picture may ask for before it is refused. A picture of more than one frame or page is always refused.

    Attributes:
        max_bytes: size of the file; checked before it is read.
        max_pixels: height × width; checked before a pixel is decoded.
    """

    max_bytes: int = 512 * 2**20
    max_pixels: int = 200_000_000

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.max_pixels < 1:
            raise ConfigError(f"limits must be at least 1: max_bytes {self.max_bytes}, max_pixels {self.max_pixels}")


LIMITS = Limits()


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
        state = hashlib.blake2b(f"{self.pixels.shape} {self.pixels.dtype.name} ".encode(), digest_size=16)
        state.update(self.pixels.data)
        return state.hexdigest()

    def as_uint8(self) -> Array:
        """The pixels as uint8 in 0..255, rounded to the nearest."""
        return self.pixels if self.pixels.dtype == np.uint8 else np.rint(self.pixels * 255).astype(np.uint8)

    def as_float(self) -> Array:
        """The pixels as float32 in [0, 1]."""
        return self.pixels if self.pixels.dtype == np.float32 else np.divide(self.pixels, 255, dtype=np.float32)


def decode(
    source: Source, *, window: tuple[float, float] | None = None, limits: Limits = LIMITS, name: str | None = None
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
        raise ConfigError(f"window {window[0]:g},{window[1]:g}: two finite numbers lo,hi with lo < hi are needed")
    label = name or _label(source)
    raw = _read(source, label, limits)
    colour, alpha = _scaled(raw, window, label)
    notes = raw.notes if window else (*raw.notes, *_depth_note(raw))
    if alpha is not None and alpha.min() < _full_scale(alpha):
        colour = _over_white(colour, alpha)
        notes = (*notes, "transparency composed over white")
    if colour.ndim == 2:
        import cv2

        colour = cv2.cvtColor(colour, cv2.COLOR_GRAY2RGB)  # many times faster than broadcasting in numpy
    return Picture(np.ascontiguousarray(colour), label, notes)


_MAX_CLASS = 63  # in masks of class numbers; a quarter of full scale in 8 bits


def decode_mask(source: Source, *, limits: Limits = LIMITS, name: str | None = None) -> npt.NDArray[np.bool_]:
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
    raw = _read(source, label, limits)
    stored = _split(raw.values)[0]
    if stored.dtype.kind in "iu" and stored.max() <= _MAX_CLASS and not raw.inverted and raw.rendered is None:
        marked: npt.NDArray[np.bool_] = stored > 0
    else:
        colour, _ = _scaled(raw, None, label)
        marked = colour > _full_scale(colour) / 2
        if not marked.any() and colour.max() > 0:
            largest = f"{colour.max():.4g} of {_full_scale(colour)}"
            raise ImageError(
                label, f"is no clear mask: its largest value is {largest}; save it with 0 and 255, or 0 and 1"
            )
    return marked if marked.ndim == 2 else np.any(marked, axis=2)


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
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124):
        return "bmp"
    if re.match(rb"P[56]\s", head):
        return "pnm"
    return None


# --- From a source to stored values ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Raw:
    """Pixels as they are stored.

    Attributes:
        values: upright; (H, W) grey, or (H, W, C) with C = 2 grey and alpha, 3 RGB, 4 RGBA.
        black_white: the values that map to 0 and 1 without an explicit window; None: by the dtype.
        inverted: low values are bright.
        rendered: grey in [0, 1] by the file's own curve, which stands unless a window is given.
        top: the largest value that its samples can take, where the file says so.
        notes: what a user should know.
    """

    values: Array
    black_white: tuple[float, float] | None = None
    inverted: bool = False
    rendered: Array | None = None
    top: int | None = None
    notes: tuple[str, ...] = ()


class _Unusable(ValueError):
    """Why a picture is refused, in words for a user; leaves this module as an ImageError that names the source."""


_TRUNCATED = "is truncated: its end is missing"
_CMYK_NOTE = "CMYK converted to RGB without a colour profile"


def _label(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "PIL image")
    if isinstance(name := getattr(source, "name", None), str):  # of an open file
        return name
    return "array" if isinstance(source, np.ndarray) else type(source).__name__


def _read(source: Source, label: str, limits: Limits) -> _Raw:
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
            raise _Unusable("is not a path, a file, the bytes of one, a PIL image, a numpy array or a torch tensor")
        if len(source) > limits.max_bytes:
            raise _Unusable(_too_large(len(source), limits))
        kind = sniff(source[:132])
        if kind is None:
            raise _Unusable(_not_a_picture(source[:512]))
        what = {"webp": "WebP", "pnm": "PGM or PPM"}.get(kind, kind.upper())
        return _READERS[kind](source, limits)
    except _Unusable as refusal:
        reason = str(refusal)
    except BlemishError:
        raise
    except MemoryError:
        reason = "needs more memory than there is"
    except Exception as error:  # decoders raise anything from struct.error to SyntaxError on hostile bytes
        raise ImageError(label, f"cannot be decoded: the {what} is damaged or of an unsupported kind") from error
    raise ImageError(label, reason)  # outside the handlers: nothing that a decoder said is chained to it


def _file_bytes(path: Path, limits: Limits) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise _Unusable("is a folder, not a picture")
        if not stat.S_ISREG(status.st_mode):
            raise _Unusable("is not a regular file")
        if status.st_size > limits.max_bytes:
            raise _Unusable(_too_large(status.st_size, limits))
        with path.open("rb") as file:
            return file.read(status.st_size)
    except FileNotFoundError:
        raise _Unusable("does not exist") from None
    except PermissionError:
        raise _Unusable("cannot be read: permission denied") from None
    except OSError as error:
        raise _Unusable(f"cannot be read: {error.strerror or 'input/output error'}") from None
    except ValueError as error:
        if isinstance(error, _Unusable):
            raise
        raise _Unusable("is not a valid path") from None  # a null byte inside


def _rest_of(file: Any, limits: Limits) -> bytes:
    """What an open file still holds."""
    if isinstance(file, TextIOBase):
        raise _Unusable("is a file opened as text; open it in binary mode ('rb')")
    content = bytearray()
    try:
        while len(content) <= limits.max_bytes and (part := file.read(limits.max_bytes + 1 - len(content))):
            content += part
    except OSError as error:
        raise _Unusable(f"cannot be read: {error.strerror or error}") from None
    except (TypeError, ValueError) as error:  # of a closed file, or of one that gives text
        raise _Unusable(f"cannot be read: {error}") from None
    return bytes(content)


def _too_large(size: int, limits: Limits) -> str:
    return f"is {size:,} bytes; the limit is {limits.max_bytes:,} (Limits.max_bytes)"


def _check_size(width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise _Unusable(f"has no pixels ({width} × {height})")
    if width * height > limits.max_pixels:
        raise _Unusable(
            f"is {width:,} × {height:,} = {width * height:,} pixels; "
            f"the limit is {limits.max_pixels:,} (Limits.max_pixels)"
        )


def _check_frames(frames: int, what: str = "frames") -> None:
    if frames > 1:
        raise _Unusable(f"has {frames} {what}; one picture per file is needed: save each on its own")


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


def _from_array(values: Array, limits: Limits) -> _Raw:
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        raise _Unusable(f"has shape {values.shape}; (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) is needed")
    if values.dtype.name not in ("bool", "uint8", "uint16", "float32", "float64"):
        raise _Unusable(f"has dtype {values.dtype}; bool, uint8, uint16, float32 or float64 is needed")
    _check_size(values.shape[1], values.shape[0], limits)
    return _Raw(_native(np.asarray(values)))


def _tensor_values(tensor: Any) -> Array:
    """A tensor as an array with its channels last."""
    values = tensor.detach().cpu()
    if values.is_floating_point() and values.element_size() == 2:  # numpy has no bfloat16
        values = values.float()
    if values.ndim == 3 and values.shape[0] in (1, 3, 4):
        values = values.permute(1, 2, 0)
    array: Array = values.contiguous().numpy()
    return array


def _from_image(image: Image.Image, limits: Limits) -> _Raw:
    _check_size(*image.size, limits)
    with _quiet:
        if image.format != "MPO":  # its further pictures are previews and stereo twins: the primary one is the picture
            _check_frames(getattr(image, "n_frames", 1))
        image.load()  # before EXIF: Pillow turns a TIFF upright here and drops the tag
        orientation = 1
        with contextlib.suppress(Exception):  # corrupt EXIF says nothing
            orientation = image.getexif().get(0x0112, 1)
        values, notes = _image_values(image)
    return _Raw(_upright(values, orientation), notes=notes)


def _image_values(image: Image.Image) -> tuple[Array, tuple[str, ...]]:
    """The pixels of a loaded PIL image as (H, W), (H, W, 3) or (H, W, 4), writable, and what to note."""
    notes: tuple[str, ...] = ()
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    if image.has_transparency_data and not deep:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (255, 255):
            image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode == "CMYK":
        image, notes = image.convert("RGB"), (_CMYK_NOTE,)
    elif image.mode not in ("L", "RGB") and not deep:
        image = image.convert("RGB")
    return _native(np.array(image)), notes


def _native(values: Array) -> Array:
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _upright(values: Array, orientation: object) -> Array:
    """The pixels turned and mirrored as EXIF's orientation 1..8 asks; any other value asks for nothing."""
    if orientation not in range(2, 9):
        return values
    import cv2  # turns pixels several times faster than strided copies in numpy

    turned = np.ascontiguousarray(values).reshape(*values.shape[:2], -1).view(np.uint8)  # any dtype, as bytes
    if orientation in (5, 7):
        turned = cv2.transpose(turned)
    turn = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 7: cv2.ROTATE_180, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
    if orientation in turn:
        turned = cv2.rotate(turned, turn[orientation])
    elif orientation in (2, 4):
        turned = cv2.flip(turned, 1 if orientation == 2 else 0)
    return turned.view(values.dtype).reshape(*turned.shape[:2], *values.shape[2:])


# --- Stored values to [0, 1] or 0..255 -------------------------------------------------------------------------------


def _full_scale(values: Array) -> int:
    return {"uint8": 255, "uint16": 65535}.get(values.dtype.name, 1)


def _split(values: Array) -> tuple[Array, Array | None]:
    """Colour, (H, W) or (H, W, 3), and alpha, (H, W) or None."""
    if values.ndim == 2:
        return values, None
    channels = values.shape[2]
    alpha = values[..., -1] if channels in (2, 4) else None
    return (values[..., 0] if channels < 3 else values[..., :3]), alpha


def _scaled(raw: _Raw, window: tuple[float, float] | None, label: str) -> tuple[Array, Array | None]:
    """Colour as uint8, or as float32 in [0, 1], and alpha as stored."""
    values = raw.values
    if values.dtype == bool:
        values = values.astype(np.uint8) * np.uint8(255)
    colour, alpha = _split(values)
    if values.dtype.kind == "f":
        smallest, largest = values.min(), values.max()  # NaN survives both
        if not (np.isfinite(smallest) and np.isfinite(largest)):
            raise NonFiniteError(f"{label}: holds NaN or infinite pixels; replace them before decoding")
        if alpha is not None and not (alpha.min() >= 0 and alpha.max() <= 1):
            raise ImageError(label, "has an alpha channel outside [0, 1]")
        in_range = colour.min() >= 0 and colour.max() <= 1
    black_white = window or raw.black_white
    if window is None and raw.rendered is not None:
        colour = raw.rendered
    elif black_white is not None:
        colour = _unit(colour, *black_white)
    elif values.dtype == np.uint16:
        colour = _unit(colour, 0, 65535)
    elif values.dtype.kind == "f" and in_range:
        colour = colour.astype(np.float32, copy=False)
    elif values.dtype != np.uint8:
        raise ImageError(
            label,
            f"has {values.dtype} pixels from {colour.min():g} to {colour.max():g}: "
            "say which values are black and white with --window lo,hi (window=(lo, hi))",
        )
    if raw.inverted:
        colour = 1 - colour if colour.dtype == np.float32 else 255 - colour
    return colour, alpha


def _unit(values: Array, lo: float, hi: float) -> Array:
    """lo to 0, hi to 1, linear between, clipped."""
    if values.dtype.kind in "iu" and values.dtype.itemsize < 4:
        out = values.astype(np.float32)  # exact
        out -= np.float32(lo)
        out /= np.float32(hi - lo)
    else:
        out = ((values.astype(np.float64) - lo) / (hi - lo)).astype(np.float32)
    return np.clip(out, 0, 1, out=out)


def _depth_note(raw: _Raw) -> tuple[str, ...]:
    """That 16-bit values may be of fewer bits, where they do not go beyond those: read so they are nearly black."""
    if raw.values.dtype != np.uint16 or raw.black_white or raw.rendered is not None:
        return ()
    largest = int(_split(raw.values)[0].max())
    top = next((top for top in (raw.top or 0, 255, 4095) if 0 < largest <= top < 65535), None)
    if top is None:
        return ()
    bits = f"{top.bit_length()}-bit data" if top & (top + 1) == 0 else "that range"
    return (f"16-bit values no higher than {top}, read as 0 to 65535: for {bits} fit with --window 0,{top}",)


def _over_white(colour: Array, alpha: Array) -> Array:
    """colour·alpha + white·(1 − alpha), rounded to the nearest for uint8; grey stays (H, W)."""
    if colour.ndim == 3:
        alpha = alpha[..., None]
    if colour.dtype == np.uint8:
        weight = alpha.astype(np.uint16)
        return ((colour * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)
    share: Array = alpha.astype(np.float32) / np.float32(_full_scale(alpha))
    composed: Array = colour * share + (1 - share)
    return np.clip(composed, 0, 1, out=composed)


# --- PNG, JPEG, WebP, BMP --------------------------------------------------------------------------------------------


def _load(image: Image.Image, orientation: int = 1, notes: tuple[str, ...] = ()) -> _Raw:
    """A complete, checked picture decoded by Pillow."""
    image.load()
    values, more = _image_values(image)
    return _Raw(_upright(values, orientation), notes=notes + more)


def _exif_orientation(exif: bytes) -> int:
    """Orientation 1..8 from an EXIF block; 1 where it does not say or is corrupt."""
    with contextlib.suppress(ValueError, struct.error, StopIteration):
        return next(_directories(exif.removeprefix(b"Exif\0\0"))).get(0x0112, (1,))[0]
    return 1


def _png(data: bytes, limits: Limits) -> _Raw:
    """Walks the chunks and hands on only those that make pixels."""
    kept: list[bytes] = [data[:8]]
    transparent, orientation, complete, position = b"", 1, False, 8
    depth, top = 0, None
    while not complete:
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if end > len(data):
            raise _Unusable(_TRUNCATED)
        kind, body = data[position + 4 : position + 8], data[position + 8 : end - 4]
        if len(kept) == 1:
            if kind != b"IHDR":
                raise _Unusable("is damaged: a PNG without a header")
            width, height, depth = struct.unpack_from(">IIB", body)
            _check_size(width, height, limits)
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(data[end - 4 : end]):
                raise _Unusable("is damaged: a PNG checksum does not match")
            if kind == b"tRNS" and depth == 16:
                transparent = body  # left to _png_deep: OpenCV reads it for RGB only
            else:
                kept.append(data[position:end])
        elif kind == b"acTL":
            _check_frames(int.from_bytes(body[:4]))
        elif kind[:1].isupper():
            raise _Unusable("is damaged: a PNG with an unknown critical chunk")
        elif kind == b"eXIf":
            orientation = _exif_orientation(body)
        elif kind == b"sBIT" and body:
            top = 2 ** max(body) - 1
        complete, position = kind == b"IEND", end
    if not any(part[4:8] == b"IDAT" for part in kept):
        raise _Unusable("is damaged: a PNG without pixels")
    pixels = b"".join(kept)
    if depth == 16:
        return _Raw(_upright(_png_deep(pixels, transparent), orientation), top=top)
    return _load(PngImagePlugin.PngImageFile(BytesIO(pixels)), orientation)


def _png_deep(data: bytes, transparent: bytes) -> Array:
    """16-bit PNG, which Pillow would cut to 8 bits where it has colour."""
    values = _opencv(data)
    if values.dtype != np.uint16:
        raise ValueError("OpenCV cut the picture to 8 bits")
    if transparent:  # one colour that is see-through, as big-endian 16-bit samples
        key = np.frombuffer(transparent, ">u2")
        if values.ndim == 2:
            values = np.stack([values] * 3, axis=-1)
        alpha = np.where((values == key).all(axis=-1, keepdims=True), 0, 65535).astype(np.uint16)
        values = np.concatenate([values, alpha], axis=-1)
    return values


def _opencv(data: bytes) -> Array:
    """Pixels as RGB(A) or grey, at the depth at which OpenCV reads them; ValueError where it cannot."""
    import cv2

    values: Array | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("OpenCV could not decode the picture")
    if values.ndim == 3 and values.shape[2] in (3, 4):
        values = values[..., [2, 1, 0, 3][: values.shape[2]]]
    return values


_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # inside coded data 00 is stuffing, d0..d7 are restarts


def _jpeg(data: bytes, limits: Limits) -> _Raw:
    """Walks the markers up to the end marker and hands on the file without its application data."""
    kept: list[bytes] = [data[:2]]
    notes: tuple[str, ...] = ()
    orientation, sized, scan, position = 1, False, 0, 2
    while data[position : position + 2] != b"\xff\xd9":
        if position + 4 > len(data):
            raise _Unusable(_TRUNCATED)
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0:
            raise _Unusable("is damaged: a JPEG marker is missing")
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if end > len(data):
            raise _Unusable(_TRUNCATED)
        body = data[position + 4 : end]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            depth, height, width = struct.unpack_from(">BHH", body)
            _check_size(width, height, limits)
            if depth != 8:
                raise _Unusable(f"{depth}-bit JPEG is not supported; convert to PNG")
            sized = True
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _exif_orientation(body)
        elif marker == 0xE2 and body.startswith(b"MPF\0"):
            notes = ("the first of several pictures in a multi-picture JPEG",)
        if marker == 0xDA:
            scan = scan or position
            following = _JPEG_MARKER.search(data, end)
            if following is None:
                raise _Unusable(_TRUNCATED)
            position = following.start()
            continue
        if not scan and not (0xE1 <= marker <= 0xEF and marker != 0xEE) and marker != 0xFE:
            kept.append(data[position:end])  # application data stays behind, but APP0 and APP14 name the colour space
        position = end
    if not sized or not scan:
        raise _Unusable("is damaged: a JPEG without pixels")
    kept.append(data[scan : position + 2])
    return _load(JpegImagePlugin.JpegImageFile(BytesIO(b"".join(kept))), orientation, notes)


def _webp(data: bytes, limits: Limits) -> _Raw:
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise _Unusable(_TRUNCATED)
    orientation, frames, position = 1, 0, 12
    while position + 8 <= end:
        kind = data[position : position + 4]
        body = position + 8
        size = int.from_bytes(data[position + 4 : body], "little")
        if body + size > end:
            raise _Unusable(_TRUNCATED)
        if kind == b"VP8X":
            width, height = (1 + int.from_bytes(data[body + i : body + i + 3], "little") for i in (4, 7))
            _check_size(width, height, limits)
        elif kind == b"VP8 ":
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, body + 6))
            _check_size(width, height, limits)
        elif kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, body + 1)
            _check_size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, limits)
        elif kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF":
            orientation = _exif_orientation(data[body : body + size])
        position = body + size + size % 2
    _check_frames(frames)
    return _load(WebPImagePlugin.WebPImageFile(BytesIO(data[:end])), orientation)


def _bmp(data: bytes, limits: Limits) -> _Raw:
    try:
        image = BmpImagePlugin.BmpImageFile(BytesIO(data))
    except (SyntaxError, OSError, struct.error):
        if len(data) < int.from_bytes(data[2:6], "little"):
            raise _Unusable(_TRUNCATED) from None
        raise
    _check_size(*image.size, limits)
    tile = image.tile[0]
    if tile.codec_name == "raw" and isinstance(tile.args, tuple):
        size = tile.args[1] * image.height  # stride × rows
    else:
        size = int.from_bytes(data[34:38], "little")  # run-length coded: the size that the header gives
    if tile.offset + size > len(data):
        raise _Unusable(_TRUNCATED)
    return _load(image)


_PNM_HEAD = re.compile(rb"P([56])" + rb"(?:\s|#[^\n\r]*[\n\r])+(\d{1,9})" * 3 + rb"\s")


def _pnm(data: bytes, limits: Limits) -> _Raw:
    """PGM and PPM as they are kept in binary (Netpbm): 8 bits a sample, or 16 with the higher byte first."""
    head = _PNM_HEAD.match(data)
    if head is None:
        raise _Unusable("is damaged: a PGM or PPM without a whole header")
    channels, (width, height, top) = 3 if head[1] == b"6" else 1, map(int, head.groups()[1:])
    _check_size(width, height, limits)
    if not 0 < top < 65536:
        raise _Unusable(f"is damaged: a PGM or PPM with {top} as its largest value")
    kind = np.dtype(np.uint8 if top < 256 else ">u2")
    count = width * height * channels
    if len(data) - head.end() < count * kind.itemsize:
        raise _Unusable(_TRUNCATED)
    if len(data) - head.end() >= 2 * count * kind.itemsize:
        raise _Unusable("holds more than one picture; one picture per file is needed: save each on its own")
    values = _native(np.frombuffer(data, kind, count, head.end()))
    if values.max() > top:
        raise _Unusable(f"is damaged: a value above {top}, the largest that it announces")
    shaped = values.reshape((height, width, channels)[: 3 if channels > 1 else 2]).copy()
    return _Raw(shaped, black_white=None if top in (255, 65535) else (0.0, float(top)))


# --- TIFF ------------------------------------------------------------------------------------------------------------

_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}  # the integer types, and opaque bytes
_TIFF_TAGS = {256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 281, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347}


def _directories(data: bytes) -> Iterator[dict[int, tuple[int, ...]]]:
    """For each page of a TIFF file (or of an EXIF block) the tags that its pixels need, none of them cut."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise _Unusable("is damaged: a TIFF without a header")
    big = struct.unpack_from(order + "H", data, 2) == (43,)
    offset_type, count_type, entry_size = ("Q", "Q", 20) if big else ("I", "H", 12)
    inline = struct.calcsize("=" + offset_type)

    def unpack(kind: str, offset: int) -> tuple[int, ...]:
        if offset + struct.calcsize("=" + kind) > len(data):
            raise _Unusable(_TRUNCATED)
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


def _tiff(data: bytes, limits: Limits) -> _Raw:
    """8 bits by Pillow; deeper by Pillow, OpenCV or tifffile, whichever reads it at its own depth."""
    pages = list(_directories(data))
    _check_frames(len(pages), "pages")
    tags = pages[0] if pages else {}
    starts, sizes = tags.get(273, tags.get(324, ())), tags.get(279, tags.get(325, ()))
    if not starts or 256 not in tags or 257 not in tags:
        raise _Unusable("is damaged: a TIFF without pixels")
    width, height = tags[256][0], tags[257][0]
    _check_size(width, height, limits)
    if any(start + size > len(data) for start, size in zip(starts, sizes, strict=False)):
        raise _Unusable(_TRUNCATED)
    orientation, photometric = tags.get(274, (1,))[0], tags.get(262, (1,))[0]
    bits, channels, planar = max(tags.get(258, (1,))), tags.get(277, (1,))[0], tags.get(284) == (2,)
    compression = tags.get(259, (1,))[0]
    if 322 in tags and 323 in tags:
        across, down = tags[322][0], tags[323][0]
    else:
        across, down = width, min(height, tags.get(278, (height,))[0])
    _check_size(across, down, limits)
    blocks = math.ceil(width / across) * math.ceil(height / down) * (channels if planar else 1)
    whole = width * height * channels * bits // 8
    if len(starts) < blocks or (sizes and compression == 1 and photometric != 6 and sum(sizes) < whole):
        raise _Unusable("is damaged: a TIFF with fewer pixels than it announces")
    sample_kind = {1: "u", 2: "i", 3: "f"}.get(tags.get(339, (1,))[0], "u")
    deep = bits > 8 or sample_kind != "u"

    def by_tifffile() -> Array:
        room = across * down * (1 if planar else channels) * bits // 8
        if compression in (8, 32946):
            for start, size in zip(starts, sizes, strict=True):
                if len(zlib.decompressobj().decompress(data[start : start + size], room + 1)) > room:
                    raise _Unusable("is damaged: a TIFF with more pixels than it announces")
        elif compression not in (1, 5, 32773):
            raise _Unusable("is compressed in a way that cannot be kept within limits")
        values = _tiff_tifffile(data)
        values = np.moveaxis(values.reshape(channels, height, width), 0, -1) if planar else values
        return _upright(values.reshape((height, width, channels)[: 3 if channels > 1 else 2]), orientation)

    readers: list[Callable[[], Array]] = [by_tifffile]
    with _quiet:
        if not deep:
            # A layout that Pillow does not know, or planes of one that it does.
            with contextlib.suppress(SyntaxError, ValueError if planar else SyntaxError):
                loaded = _load(TiffImagePlugin.TiffImageFile(BytesIO(data)))  # turns it upright as well
                return replace(loaded, **_shown_by_pillow(loaded, _Bands.of(channels, photometric, tags.get(338, ()))))
        elif photometric in (0, 1, 2) and not (planar and channels > 1):  # OpenCV leaves planes in part undecoded
            readers.insert(0, lambda: _native(_opencv(data)))  # turns it upright as well
            if channels == 1:
                readers.insert(0, lambda: _load(TiffImagePlugin.TiffImageFile(BytesIO(data))).values)
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
            raise _Unusable(f"cannot be decoded: a damaged or unsupported TIFF ({kind}); save it with 8 or 16 bits")
    top = min(tags.get(281, (65535,)))
    black_white = (0.0, 2.0**bits - 1) if sample_kind == "u" and bits < 16 else None
    bands = _Bands.of(channels, photometric, tags.get(338, ()))
    values = bands.chosen(values, 2**bits - 1 if sample_kind == "u" else 1)
    return _Raw(values, black_white=black_white, inverted=photometric == 0, top=top, notes=bands.notes)


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
            notes.append(_CMYK_NOTE)
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
        if (full := _full_scale(values)) > 1 and full != top:
            alpha = (alpha * full + top // 2) // top
        return np.concatenate([colour.astype(values.dtype), alpha.astype(values.dtype)], axis=-1)


def _shown_by_pillow(loaded: _Raw, bands: _Bands) -> dict[str, Any]:
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
        return _native(file.pages[0].asarray())


# --- DICOM -----------------------------------------------------------------------------------------------------------

# All that is read of a DICOM file. What is not listed is skipped by pydicom, so that no value about a patient is ever
# parsed, kept, warned about or logged.
_DICOM_ATTRIBUTES = [
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
    "PixelData",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
]
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_CONVERT = "convert it to Explicit VR Little Endian"


def _dicom(data: bytes, limits: Limits) -> _Raw:
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("pydicom", extra="medical", purpose="read DICOM files") from None
    if _DEFLATED in data:  # pydicom would inflate it without a limit
        raise _Unusable(f"has the transfer syntax Deflated Explicit VR Little Endian; {_CONVERT}")
    with _quiet:
        try:
            dataset = pydicom.dcmread(BytesIO(data), specific_tags=[*_DICOM_ATTRIBUTES])
            return _dicom_values(dataset, limits)
        except _Unusable:
            raise
        except Exception:  # its text may quote the file
            pass
    raise _Unusable("cannot be decoded: the DICOM file is truncated or damaged, or holds no picture")


def _dicom_values(dataset: Any, limits: Limits) -> _Raw:
    from pydicom.pixels import apply_modality_lut, apply_voi, get_decoder, pixel_array
    from pydicom.uid import UID_dictionary

    _check_frames(int(dataset.get("NumberOfFrames") or 1))
    _check_size(int(dataset.Columns), int(dataset.Rows), limits)
    syntax = dataset.file_meta.TransferSyntaxUID
    known = syntax in UID_dictionary  # anything else is free text
    if syntax.is_private or not known or (syntax.is_compressed and not get_decoder(syntax).is_available):
        raise _Unusable(
            f"has a transfer syntax that cannot be decoded ({syntax.name if known else 'unknown'}); {_CONVERT}"
        )
    colours = str(dataset.PhotometricInterpretation)
    if colours not in ("MONOCHROME1", "MONOCHROME2", "RGB") and not colours.startswith("YBR_"):
        raise _Unusable("has a colour space that is not supported; convert it to MONOCHROME2 or RGB")
    values = pixel_array(dataset)  # YBR becomes RGB
    if values.dtype.kind == "f":
        return _Raw(values, inverted=colours == "MONOCHROME1")
    bits = int(dataset.BitsStored)
    lo, hi = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0.0, 2.0**bits - 1)
    if not colours.startswith("MONOCHROME"):
        return _Raw(values, black_white=None if bits == 8 == 8 * values.dtype.itemsize else (lo, hi))

    if dataset.get("ModalityLUTSequence"):
        values = apply_modality_lut(values, dataset)
        lo, hi = 0.0, _table_top(dataset.ModalityLUTSequence)
    else:
        slope, intercept = _first(dataset.get("RescaleSlope"), 1.0), _first(dataset.get("RescaleIntercept"), 0.0)
        if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
            raise _Unusable("has a rescale that is not usable")
        if (slope, intercept) != (1.0, 0.0):
            values = values * np.float64(slope) + intercept
            lo, hi = sorted((lo * slope + intercept, hi * slope + intercept))

    rendered: Array | None = None
    centre, width = _first(dataset.get("WindowCenter"), math.nan), _first(dataset.get("WindowWidth"), math.nan)
    if dataset.get("VOILUTSequence"):
        rendered = _unit(apply_voi(values, dataset), 0, _table_top(dataset.VOILUTSequence))
    elif math.isfinite(centre) and math.isfinite(width) and width > 0:  # PS3.3 C.11.2.1.2 and C.11.2.1.3
        function = str(dataset.get("VOILUTFunction") or "LINEAR")
        if function == "SIGMOID":
            exponent = np.clip(-4 * (values - centre) / width, -80, 80)
            rendered = (1 / (1 + np.exp(exponent))).astype(np.float32)
        else:
            shift = 0.5 if function == "LINEAR" else 0.0
            half = max(width - 2 * shift, 1e-6) / 2  # a width of 1 is a step
            lo, hi = centre - shift - half, centre - shift + half
    return _Raw(values, black_white=(lo, hi), inverted=colours == "MONOCHROME1", rendered=rendered)


def _first(value: Any, default: float) -> float:
    """The first of a DICOM attribute's values."""
    if value is None or value == "":
        return default
    return float(value) if isinstance(value, (int, float, str)) else float(value[0])


def _table_top(sequence: Any) -> float:
    """The largest value that a lookup table can give."""
    return 2.0 ** int(sequence[0].LUTDescriptor[2]) - 1


# --- Keeping the decoders quiet --------------------------------------------------------------------------------------


_LOGGERS = ("PIL.TiffImagePlugin", "pydicom", "tifffile")


class _Quiet:
    """Holds back what Pillow, pydicom and OpenCV say about a file; blemish says what is wrong with it itself.

    The switches belong to the process, so all decoding threads share them: the first one in sets them, the last one
    out restores them. `warnings.catch_warnings` would put back the whole list of filters, and with it those that
    another thread had set only for a while; this takes out the one filter that it put in.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    def __enter__(self) -> None:
        import cv2

        with self._lock:
            if self._users == 0:
                warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")
                self._filter = warnings.filters[0]
                self._level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
                self._loggers = [(log, log.disabled) for log in map(logging.getLogger, _LOGGERS)]
                for log, _ in self._loggers:
                    log.disabled = True
            self._users += 1

    def __exit__(self, *_: object) -> None:
        import cv2

        with self._lock:
            self._users -= 1
            if self._users == 0:
                with contextlib.suppress(ValueError):  # another thread may have replaced the list meanwhile
                    warnings.filters.remove(self._filter)  # type: ignore[attr-defined]
                cv2.utils.logging.setLogLevel(self._level)
                for log, disabled in self._loggers:
                    log.disabled = disabled


_quiet = _Quiet()

_READERS: dict[str, Callable[[bytes, Limits], _Raw]] = {
    "png": _png,
    "jpeg": _jpeg,
    "webp": _webp,
    "bmp": _bmp,
    "pnm": _pnm,
    "tiff": _tiff,
    "dicom": _dicom,
}
