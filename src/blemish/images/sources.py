"""Any source of a picture -> its pixels as stored: files by content, arrays, PIL images."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from io import BufferedReader, TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar, Union

import numpy as np
from PIL import Image

from blemish.errors import BlemishError, ImageError
from blemish.files import open_regular
from blemish.images.dicom import dicom
from blemish.images.jpeg import jpeg
from blemish.images.limits import (
    BUDGET,
    Limits,
    Unusable,
    check_bytes,
    check_frames,
    check_size,
    quiet,
    ran_out,
)
from blemish.images.pixels import Array, Container, Raw, image_values, native, upright
from blemish.images.raster import bmp, png, pnm, webp
from blemish.images.tiff import tiff
from blemish.types import Frame

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Source: TypeAlias = Union[str, Path, bytes, BinaryIO, Image.Image, Array, "Tensor", Frame]

_READERS: dict[str, Callable[[bytes, Limits], Container]] = {
    "png": png,
    "jpeg": jpeg,
    "webp": webp,
    "bmp": bmp,
    "pnm": pnm,
    "tiff": tiff,
    "dicom": dicom,
}


_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # their sizes, by version


def sniff(head: bytes) -> str | None:
    """The format that a file's first bytes (132 or more) show, a key of the readers; None for any
    other.

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
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "bmp"
    if re.match(rb"P[56]\s", head):
        return "pnm"
    return None


def label_of(source: object) -> str:
    if isinstance(source, Frame):
        return source.name
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "PIL image")
    if isinstance(name := getattr(source, "name", None), str):  # of an open file
        return name
    return "array" if isinstance(source, np.ndarray) else type(source).__name__


class Reading:
    """What is being read, for what is said of it. Attributes: what: in a user's words."""

    what = "picture"


def explained(work: Callable[[Reading], T], label: str) -> T:
    """What `work` gives; every failure is an ImageError of the source, or another BlemishError."""
    reading = Reading()
    try:
        return work(reading)
    except Unusable as refusal:
        reason = str(refusal)
    except BlemishError:
        raise
    # Decoders raise anything from struct.error to SyntaxError on hostile bytes.
    except Exception as error:
        if ran_out(error):
            raise
        raise ImageError(
            label, f"cannot be decoded: the {reading.what} is damaged or of an unsupported kind"
        ) from error
    # Outside the handlers: nothing that a decoder said is chained to it.
    raise ImageError(label, reason)


def read_stored(source: Source, label: str, limits: Limits) -> Raw:
    """The stored values of any source; every failure is an ImageError (or MissingExtraError)."""
    if isinstance(source, Frame):
        source = source.source
    return explained(partial(_stored, source, limits), label)


def _stored(source: Any, limits: Limits, reading: Reading) -> Raw:
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
    check_bytes(len(source), limits)
    kind = sniff(source[:132])
    if kind is None:
        raise Unusable(_not_a_picture(source[:512]))
    reading.what = {"webp": "WebP", "pnm": "PGM or PPM"}.get(kind, kind.upper())
    container = _READERS[kind](source, limits)
    del source  # where it comes from a file, the reader alone holds it, and lets go of it early
    size = container.height * container.width
    BUDGET.reserve(peak(kind, size, container.channels, container.bits), limits.memory)
    return container.decode()


def peak(kind: str, pixels: int, channels: int, bits: int) -> int:
    """Bytes that a decode of a format holds at its peak beside the file.

    What the library makes and our copy of it, or that copy and the picture (docs/robustness.md has
    what was measured). Args: channels, bits: as of `Container`.
    """
    sample = next((size for size in (1, 2, 4) if bits <= 8 * size), 8)
    stored = channels * sample
    picture = 3 if sample == 1 and kind != "dicom" else 12
    library = 4 if sample == 1 and channels > 1 else stored  # Pillow keeps colour in 4 bytes
    if kind == "png":
        library += stored  # inflated and checked before Pillow gets it
    return pixels * (stored + max(library, picture))


def _file_bytes(path: Path, limits: Limits) -> bytes:
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        check_bytes(size, limits)
        BUDGET.reserve(size, limits.memory)
        try:
            return file.read(size)
        except OSError as error:
            raise Unusable(f"cannot be read ({error.strerror or error})") from None


def opened(path: Path) -> BufferedReader:
    """A named file, a regular one. Raises: Unusable."""
    try:
        return open_regular(path, limit=sys.maxsize, error=Unusable)
    except Unusable as refusal:
        if isinstance(refusal.__cause__, FileNotFoundError):
            raise Unusable("does not exist") from None
        raise Unusable(str(refusal).removeprefix(f"{path}: ")) from None


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
        if image.format != "MPO":  # whose further pictures are previews and stereo twins
            check_frames(getattr(image, "n_frames", 1))
        image.load()  # before EXIF: Pillow turns a TIFF upright here and drops the tag
        orientation = 1
        with contextlib.suppress(Exception):  # corrupt EXIF says nothing
            orientation = image.getexif().get(0x0112, 1)
        values, notes = image_values(image)
    return Raw(upright(values, orientation), notes=notes)
