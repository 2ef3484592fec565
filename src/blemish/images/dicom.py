"""DICOM by pydicom: only what makes pixels is read; nothing about a patient."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from blemish.errors import MissingExtraError
from blemish.images.blocks import packbits_length
from blemish.images.jpeg import jpeg
from blemish.images.limits import (
    TRUNCATED,
    Limits,
    Unusable,
    check_frames,
    check_size,
    damaged,
    quiet,
    ran_out,
)
from blemish.images.pixels import Array, Container, Raw, unit

# All that is read of a DICOM file. What is not listed is skipped by pydicom, so that no value about
# a patient is ever parsed, kept, warned about or logged.
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_ATTRIBUTES = [
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("ModalityLUTSequence", "VOILUTSequence", "ExtendedOffsetTable"),
    *("ExtendedOffsetTableLengths", *_PIXELS),
]
_Result = TypeVar("_Result")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_CONVERT = "convert it to Explicit VR Little Endian"


def dicom(data: bytes, limits: Limits) -> Container:
    """Reads the attributes, and holds them against each other and the length of the pixels."""
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("pydicom", extra="medical", purpose="read DICOM files") from None
    if _DEFLATED in data:  # pydicom would inflate it without a limit
        raise Unusable(f"has the transfer syntax Deflated Explicit VR Little Endian; {_CONVERT}")
    dataset = _guarded(lambda: pydicom.dcmread(BytesIO(data), specific_tags=[*_ATTRIBUTES]))
    head = _guarded(lambda: _Header.of(dataset, limits))

    def decoded() -> Raw:
        return _guarded(lambda: _values(dataset, head, limits))

    return Container(head.height, head.width, head.samples, head.allocated, decoded)


def _guarded(work: Callable[[], _Result]) -> _Result:
    """What `work` gives; what it raises is told without its text, which may quote the file."""
    with quiet:
        try:
            return work()
        except Unusable:
            raise
        except Exception as error:
            if ran_out(error):
                raise MemoryError from None
    raise Unusable("cannot be decoded: the DICOM file is truncated or damaged, or holds no picture")


@dataclass(frozen=True, slots=True)
class _Header:
    """What the attributes say of the pixels, once they agree with each other and with the pixel
    data.

    Attributes:
        allocated, stored: bits of a sample: that it takes, and that count.
        colours: the photometric interpretation.
    """

    height: int
    width: int
    samples: int
    allocated: int
    stored: int
    signed: bool
    colours: str

    @classmethod
    def of(cls, dataset: Any, limits: Limits) -> _Header:
        from pydicom.pixels import get_decoder
        from pydicom.uid import UID_dictionary

        check_frames(int(dataset.get("NumberOfFrames") or 1))
        height, width = int(dataset.Rows), int(dataset.Columns)
        check_size(width, height, limits)
        syntax = dataset.file_meta.TransferSyntaxUID
        known = syntax in UID_dictionary and not syntax.is_private  # anything else is free text
        if not known or (syntax.is_compressed and not get_decoder(syntax).is_available):
            name = syntax.name if syntax in UID_dictionary else "unknown"
            raise Unusable(f"has a transfer syntax that cannot be decoded ({name}); {_CONVERT}")
        colours = str(dataset.PhotometricInterpretation)
        if colours not in ("MONOCHROME1", "MONOCHROME2", "RGB") and not colours.startswith("YBR_"):
            raise Unusable(
                "has a colour space that is not supported; convert it to MONOCHROME2 or RGB"
            )
        samples, allocated = int(dataset.SamplesPerPixel), int(dataset.BitsAllocated)
        if samples != (1 if colours.startswith("MONOCHROME") else 3):
            raise damaged(f"{samples} samples a pixel do not make its colour space")
        floats = "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset
        stored = allocated if floats else int(dataset.BitsStored)
        high = stored - 1 if floats else int(dataset.get("HighBit", stored - 1))
        possible = (32, 64) if floats else (1, 8, 16, 32)
        if allocated not in possible or not 1 <= stored <= allocated:
            raise damaged(f"{stored} bits stored of {allocated} allocated")
        if high != stored - 1:
            raise damaged(f"{high} as its high bit, with {stored} bits stored")
        signed = bool(dataset.get("PixelRepresentation", 0))
        head = cls(height, width, samples, allocated, stored, signed, colours)
        if not syntax.is_compressed:
            head.check_length(dataset)
        return head

    def check_length(self, dataset: Any) -> None:
        """That there are the pixels of one frame, of which a few bytes may follow to fill up."""
        samples = 2 if self.colours == "YBR_FULL_422" else self.samples
        length = (self.height * self.width * samples * self.allocated + 7) // 8
        stored = next((dataset[name].value for name in _PIXELS if name in dataset), b"")
        if len(stored) < length:
            raise Unusable(TRUNCATED)
        rest = stored[length:]
        if len(rest) > 1 and (len(rest) >= length or any(rest)):
            raise damaged(f"it holds more pixels than its {self.width} × {self.height}")


def _check_coded(dataset: Any, head: _Header, limits: Limits) -> None:
    """That compressed pixels are one frame, of the size that the attributes say, and whole.

    The last as far as their kind of compression tells.
    """
    from pydicom.encaps import generate_fragments, generate_frames, parse_basic_offsets
    from pydicom.uid import JPEGBaseline8Bit, RLELossless

    syntax, pixels = dataset.file_meta.TransferSyntaxUID, dataset.PixelData
    check_frames(len(parse_basic_offsets(pixels)))
    check_frames(len(dataset.get("ExtendedOffsetTable") or b"") // 8)
    fragments = list(generate_fragments(pixels))[1:]  # the first is the table of offsets
    begun = [
        part
        for part in fragments
        if syntax == RLELossless or part.startswith((b"\xff\xd8\xff", b"\xff\x4f\xff"))
    ]
    check_frames(len(begun))
    (frame,) = generate_frames(pixels, number_of_frames=1)
    if syntax == JPEGBaseline8Bit:
        found = jpeg(frame, limits)
        if (found.height, found.width, found.channels) != (head.height, head.width, head.samples):
            raise damaged(
                f"its JPEG is {found.width} × {found.height}, not {head.width} × {head.height}"
            )
        found.decode()
    elif syntax == RLELossless:
        count, *starts = struct.unpack_from("<16I", frame)
        bounds = [*starts[:count], len(frame)]
        for start, end in pairwise(bounds):
            length, used = packbits_length(frame[start:end], head.height * head.width)
            # One byte more makes it even.
            if length != head.height * head.width or end - start - used > 1:
                raise damaged("its run-length coded pixels are not as many as it announces")


def _values(dataset: Any, head: _Header, limits: Limits) -> Raw:
    from pydicom.pixels import apply_modality_lut, apply_voi, pixel_array

    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        _check_coded(dataset, head, limits)
    colours = head.colours
    values = pixel_array(dataset)  # YBR becomes RGB
    if values.shape != (head.height, head.width, head.samples)[: 3 if head.samples > 1 else 2]:
        raise damaged(f"its pixels are not {head.width} × {head.height}")
    if values.dtype.kind == "f":
        return Raw(values, inverted=colours == "MONOCHROME1")
    bits = head.stored
    lo, hi = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if head.signed else (0.0, 2.0**bits - 1)
    if not colours.startswith("MONOCHROME"):
        return Raw(values, black_white=None if bits == 8 == 8 * values.dtype.itemsize else (lo, hi))

    if dataset.get("ModalityLUTSequence"):
        values = apply_modality_lut(values, dataset)
        lo, hi = 0.0, _table_top(dataset.ModalityLUTSequence)
    else:
        slope = _first(dataset.get("RescaleSlope"), 1.0)
        intercept = _first(dataset.get("RescaleIntercept"), 0.0)
        if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
            raise Unusable("has a rescale that is not usable")
        if (slope, intercept) != (1.0, 0.0):
            values = values * np.float64(slope) + intercept
            lo, hi = sorted((lo * slope + intercept, hi * slope + intercept))

    rendered: Array | None = None
    centre = _first(dataset.get("WindowCenter"), math.nan)
    width = _first(dataset.get("WindowWidth"), math.nan)
    if dataset.get("VOILUTSequence"):
        rendered = unit(apply_voi(values, dataset), 0, _table_top(dataset.VOILUTSequence))
    elif math.isfinite(centre) and math.isfinite(width) and width > 0:
        # PS3.3 C.11.2.1.2 and C.11.2.1.3
        function = str(dataset.get("VOILUTFunction") or "LINEAR")
        if function == "SIGMOID":
            exponent = np.clip(-4 * (values - centre) / width, -80, 80)
            rendered = (1 / (1 + np.exp(exponent))).astype(np.float32)
        else:
            shift = 0.5 if function == "LINEAR" else 0.0
            half = max(width - 2 * shift, 1e-6) / 2  # a width of 1 is a step
            lo, hi = centre - shift - half, centre - shift + half
    return Raw(values, black_white=(lo, hi), inverted=colours == "MONOCHROME1", rendered=rendered)


def _first(value: Any, default: float) -> float:
    """The first of a DICOM attribute's values."""
    if value is None or value == "":
        return default
    return float(value) if isinstance(value, (int, float, str)) else float(value[0])


def _table_top(sequence: Any) -> float:
    """The largest value that a lookup table can give."""
    return 2.0 ** int(sequence[0].LUTDescriptor[2]) - 1
