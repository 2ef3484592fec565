"""DICOM by pydicom: only what makes pixels is read; nothing about a patient."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import numpy as np

from blemish.errors import MissingExtraError
from blemish.images.limits import Limits, Unusable, check_frames, check_size
from blemish.images.pixels import Array, Raw, unit
from blemish.images.quiet import quiet

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


def dicom(data: bytes, limits: Limits) -> Raw:
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("pydicom", extra="medical", purpose="read DICOM files") from None
    if _DEFLATED in data:  # pydicom would inflate it without a limit
        raise Unusable(f"has the transfer syntax Deflated Explicit VR Little Endian; {_CONVERT}")
    with quiet:
        try:
            dataset = pydicom.dcmread(BytesIO(data), specific_tags=[*_DICOM_ATTRIBUTES])
            return _dicom_values(dataset, limits)
        except Unusable:
            raise
        except Exception:  # its text may quote the file
            pass
    raise Unusable("cannot be decoded: the DICOM file is truncated or damaged, or holds no picture")


def _dicom_values(dataset: Any, limits: Limits) -> Raw:
    from pydicom.pixels import apply_modality_lut, apply_voi, get_decoder, pixel_array
    from pydicom.uid import UID_dictionary

    check_frames(int(dataset.get("NumberOfFrames") or 1))
    check_size(int(dataset.Columns), int(dataset.Rows), limits)
    syntax = dataset.file_meta.TransferSyntaxUID
    known = syntax in UID_dictionary  # anything else is free text
    if syntax.is_private or not known or (syntax.is_compressed and not get_decoder(syntax).is_available):
        raise Unusable(
            f"has a transfer syntax that cannot be decoded ({syntax.name if known else 'unknown'}); {_CONVERT}"
        )
    colours = str(dataset.PhotometricInterpretation)
    if colours not in ("MONOCHROME1", "MONOCHROME2", "RGB") and not colours.startswith("YBR_"):
        raise Unusable("has a colour space that is not supported; convert it to MONOCHROME2 or RGB")
    values = pixel_array(dataset)  # YBR becomes RGB
    if values.dtype.kind == "f":
        return Raw(values, inverted=colours == "MONOCHROME1")
    bits = int(dataset.BitsStored)
    lo, hi = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0.0, 2.0**bits - 1)
    if not colours.startswith("MONOCHROME"):
        return Raw(values, black_white=None if bits == 8 == 8 * values.dtype.itemsize else (lo, hi))

    if dataset.get("ModalityLUTSequence"):
        values = apply_modality_lut(values, dataset)
        lo, hi = 0.0, _table_top(dataset.ModalityLUTSequence)
    else:
        slope, intercept = _first(dataset.get("RescaleSlope"), 1.0), _first(dataset.get("RescaleIntercept"), 0.0)
        if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
            raise Unusable("has a rescale that is not usable")
        if (slope, intercept) != (1.0, 0.0):
            values = values * np.float64(slope) + intercept
            lo, hi = sorted((lo * slope + intercept, hi * slope + intercept))

    rendered: Array | None = None
    centre, width = _first(dataset.get("WindowCenter"), math.nan), _first(dataset.get("WindowWidth"), math.nan)
    if dataset.get("VOILUTSequence"):
        rendered = unit(apply_voi(values, dataset), 0, _table_top(dataset.VOILUTSequence))
    elif math.isfinite(centre) and math.isfinite(width) and width > 0:  # PS3.3 C.11.2.1.2 and C.11.2.1.3
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
