"""Pictures of every format that is read, drawn from a seed."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[Any]
Random = np.random.Generator


def scene(random: Random, height: int = 96, width: int = 128) -> Pixels:
    """A part with stripes, a bright disc and some noise: uint8 H W 3."""
    rows, columns = np.mgrid[:height, :width]
    base = 110 + 60 * np.sin(columns / random.uniform(3, 9)) + 30 * rows / height
    pixels = base[..., None] + random.normal(0, 6, (height, width, 3)) + np.array([0, 8, -12])
    middle = random.uniform(0.3, 0.7, 2) * (height, width)
    pixels[np.hypot(rows - middle[0], columns - middle[1]) < min(height, width) / 6] += 50
    return np.asarray(np.clip(pixels, 0, 255), np.uint8)


def saved(pixels: Pixels | Image.Image, kind: str, **options: Any) -> bytes:
    """As Pillow writes it."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# --- PNG, from the specification: Pillow writes neither 16-bit colour nor interlaced ones -----


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, body) of each chunk of a whole PNG."""
    found, position = [], 8
    while position + 12 <= len(data):
        size = int.from_bytes(data[position : position + 4])
        found.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + size]))
        position += 12 + size
    return found


def png_of(parts: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of chunks, each with the right checksum."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts)


_ADAM7 = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
    *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
)


def png(
    values: Pixels,
    colour: int,
    depth: int,
    *,
    more: Mapping[bytes, bytes] | None = None,
    interlaced: bool = False,
) -> bytes:
    """A PNG of samples (H W, or H W C), of a colour type and depth in bits."""

    def rows(part: Pixels) -> bytes:
        if depth == 16:
            coded = [row.astype(">u2").tobytes() for row in part.reshape(len(part), -1)]
        else:
            bits = np.unpackbits(part.reshape(len(part), -1, 1).astype(np.uint8), axis=2)
            coded = [
                row.tobytes()
                for row in np.packbits(bits[..., 8 - depth :].reshape(len(part), -1), axis=1)
            ]
        return b"".join(b"\0" + row for row in coded)

    passes = (
        [values[top::down, left::right] for top, left, down, right in _ADAM7]
        if interlaced
        else [values]
    )
    body = b"".join(rows(part) for part in passes if part.size)
    head = struct.pack(
        ">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, interlaced
    )
    extra = list((more or {}).items())
    return png_of([(b"IHDR", head), *extra, (b"IDAT", zlib.compress(body)), (b"IEND", b"")])


def pngs(random: Random) -> dict[str, bytes]:
    rgb = scene(random)
    grey, alpha = rgb[..., 0], (255 - rgb[..., 1:2] // 3)
    deep = rgb.astype(np.uint16) * 257 - random.integers(0, 200, rgb.shape, np.uint16)
    deep_alpha = (65535 - deep[..., :1] // 3).astype(np.uint16)
    found = {}
    for depth in (1, 2, 4, 8):
        fewer = grey >> (8 - depth)
        palette = random.integers(0, 256, (2**depth, 3), np.uint8).tobytes()
        found[f"grey {depth}"] = png(fewer, 0, depth)
        found[f"grey {depth} tRNS"] = png(
            fewer, 0, depth, more={b"tRNS": struct.pack(">H", int(fewer[5, 5]))}
        )
        found[f"palette {depth}"] = png(fewer, 3, depth, more={b"PLTE": palette})
    found["palette tRNS"] = png(
        grey >> 4, 3, 4, more={b"PLTE": bytes(range(48)), b"tRNS": b"\0\x80"}
    )
    for interlaced in (False, True):
        name = " interlaced" if interlaced else ""
        found[f"RGB 8{name}"] = png(rgb, 2, 8, interlaced=interlaced)
        found[f"RGB 16{name}"] = png(deep, 2, 16, interlaced=interlaced)
        found[f"grey 16{name}"] = png(deep[..., 0], 0, 16, interlaced=interlaced)
    found["RGBA 8"] = png(np.concatenate([rgb, alpha], 2), 6, 8)
    found["RGBA 16"] = png(np.concatenate([deep, deep_alpha], 2), 6, 16)
    found["grey alpha 8"] = png(np.concatenate([rgb[..., :1], alpha], 2), 4, 8)
    found["RGB 8 tRNS"] = png(rgb, 2, 8, more={b"tRNS": struct.pack(">HHH", *map(int, rgb[3, 3]))})
    return found


# --- The others -----------------------------------------------------------------------------------


def jpegs(random: Random) -> dict[str, bytes]:
    rgb = scene(random, 160, 224)
    cmyk = Image.fromarray(rgb).convert("CMYK")
    return {
        "4:4:4": saved(rgb, "JPEG", quality=92, subsampling=0),
        "4:2:0": saved(rgb, "JPEG", quality=75, subsampling=2),
        "grey": saved(rgb[..., 0], "JPEG", quality=85),
        "progressive": saved(rgb, "JPEG", quality=85, progressive=True),
        "restarts": saved(rgb, "JPEG", quality=85, restart_marker_rows=2),
        "optimised": saved(rgb, "JPEG", quality=60, optimize=True),
        "CMYK": saved(cmyk, "JPEG", quality=90),
    }


def webps(random: Random) -> dict[str, bytes]:
    rgb = scene(random, 160, 224)
    rgba = np.concatenate([rgb, 255 - rgb[..., :1] // 3], 2)
    return {
        "lossy": saved(rgb, "WEBP", quality=80),
        "lossless": saved(rgb, "WEBP", lossless=True, quality=20, method=0),
        "lossy alpha": saved(rgba, "WEBP", quality=80),
        "lossless alpha": saved(rgba, "WEBP", lossless=True, quality=20, method=0, exact=True),
    }


def run_length_bmp(grey: Pixels) -> bytes:
    """A BMP of 8 bits, run-length coded (RLE8), of a picture with few grey values."""
    coded = bytearray()
    for row in grey[::-1]:
        starts = np.flatnonzero(np.diff(row.astype(int), prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(row)], strict=True):
            while start < end:
                length = min(255, end - start)
                coded += bytes((length, int(row[start])))
                start += length
        coded += b"\0\0"
    coded += b"\0\1"
    palette = b"".join(bytes((level, level, level, 0)) for level in range(256))
    size = 54 + len(palette)
    height, width = grey.shape
    head = b"BM" + struct.pack("<IHHI", size + len(coded), 0, 0, size)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(coded), 2835, 2835, 256, 0)
    return head + info + palette + bytes(coded)


def bmps(random: Random) -> dict[str, bytes]:
    rgb = scene(random)
    return {
        "24 bits": saved(rgb, "BMP"),
        "grey 8": saved(rgb[..., 0], "BMP"),
        "palette 8": saved(Image.fromarray(rgb).quantize(64), "BMP"),
        "1 bit": saved(Image.fromarray(rgb[..., 0] > 110), "BMP"),
        "run-length 8": run_length_bmp(rgb[..., 0] >> 5 << 5),
    }


def tiffs(random: Random) -> dict[str, bytes]:
    import cv2
    import tifffile

    rgb = scene(random)
    deep = rgb.astype(np.uint16) * 257
    cv2.setNumThreads(1)

    def by_tifffile(values: Pixels, **options: Any) -> bytes:
        file = io.BytesIO()
        tifffile.imwrite(file, values, **options)
        return file.getvalue()

    found = {
        name: saved(rgb, "TIFF", compression=compression)
        for name, compression in {
            "none": None,
            "LZW": "tiff_lzw",
            "Deflate": "tiff_adobe_deflate",
            "PackBits": "packbits",
            "JPEG": "jpeg",
        }.items()
    }
    found["group 4"] = saved(Image.fromarray(rgb[..., 0] > 110), "TIFF", compression="group4")
    found["grey 16"] = by_tifffile(deep[..., 0], photometric="minisblack")
    found["RGB 16"] = by_tifffile(deep, photometric="rgb")
    found["RGB 16 Deflate"] = by_tifffile(deep, photometric="rgb", compression="zlib")
    found["RGB tiles"] = by_tifffile(rgb, photometric="rgb", tile=(32, 32))
    found["RGB planes"] = by_tifffile(
        np.moveaxis(rgb, 2, 0).copy(), photometric="rgb", planarconfig="separate"
    )
    found["float"] = by_tifffile(rgb[..., 0].astype(np.float32) / 255, photometric="minisblack")
    found["CMYK"] = saved(Image.fromarray(rgb).convert("CMYK"), "TIFF")
    coded = cv2.imencode(".tif", deep, [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1]
    found["RGB 16 LZW"] = coded.tobytes()
    return found


def pnms(random: Random) -> dict[str, bytes]:
    rgb = scene(random)
    deep = (rgb.astype(np.uint16) * 257).astype(">u2")

    def of(values: Pixels, top: int) -> bytes:
        kind = "P6" if values.ndim == 3 else "P5"
        return f"{kind}\n{values.shape[1]} {values.shape[0]}\n{top}\n".encode() + values.tobytes()

    return {
        "PGM 8": of(rgb[..., 0].copy(), 255),
        "PPM 8": of(rgb, 255),
        "PGM 16": of(deep[..., 0].copy(), 65535),
        "PPM 16": of(deep, 65535),
    }


def dicom(
    values: Pixels,
    photometric: str = "MONOCHROME2",
    *,
    syntax: str = "",
    run_lengths: bool = False,
    **attributes: Any,
) -> bytes:
    """A DICOM file of samples (H W, or H W 3), with attributes by keyword."""
    import pydicom
    from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax) if syntax else ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    dataset.PatientName = "Nobody^At^All"
    dataset.SamplesPerPixel = 3 if values.ndim == 3 else 1
    dataset.PhotometricInterpretation = photometric
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = values.dtype.itemsize * 8
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes() + bytes(values.nbytes % 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the standard forbids
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        dataset.HighBit = attributes.get("HighBit", dataset.BitsStored - 1)
        if run_lengths:
            dataset.compress(RLELossless, generate_instance_uid=False)
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def dicoms(random: Random) -> dict[str, bytes]:
    rgb = scene(random)
    twelve = rgb[..., 0].astype(np.uint16) << 4
    return {
        "grey 8": dicom(rgb[..., 0].copy()),
        "grey 12": dicom(twelve, BitsStored=12),
        "grey 16 inverted": dicom(twelve << 4, "MONOCHROME1"),
        "RGB": dicom(rgb, "RGB"),
        "RLE": dicom(rgb[..., 0] >> 4 << 4, run_lengths=True),
    }


MAKERS: Mapping[str, Callable[[Random], dict[str, bytes]]] = {
    "PNG": pngs,
    "JPEG": jpegs,
    "WebP": webps,
    "BMP": bmps,
    "TIFF": tiffs,
    "PNM": pnms,
    "DICOM": dicoms,
}


def format_of(data: bytes) -> str | None:
    """The format of a file's content, a key of `MAKERS`, by its first bytes; None for others."""
    from blemish.images import sniff

    kind = sniff(data[:132])
    return next((name for name in MAKERS if name.lower() == kind), None)
