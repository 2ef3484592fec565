"""Pictures of every format that is read, drawn from a seed, and what may befall their files."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[Any]
Random = np.random.Generator

# What a file of a format says of itself by which damage can be told.
CHECKS: Mapping[str, str] = {
    "PNG": "CRC-32 of every chunk, Adler-32 of the pixels, and their number",
    "JPEG": "markers and Huffman codes, which end early or late where they are damaged, as a rule",
    "WebP": "the length; inside of the coded data nothing",
    "BMP": "the length",
    "TIFF": "the length",
    "TIFF Deflate": "the length, and Adler-32 of the pixels",
    "PNM": "the length",
    "DICOM": "the length",
}


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
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
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
    values: Pixels, photometric: str = "MONOCHROME2", *, bits: int = 8, coded: str = ""
) -> bytes:
    """A DICOM file; `coded`: "" or "RLE"."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    dataset.PatientName = "Nobody^At^All"
    dataset.SamplesPerPixel = 3 if values.ndim == 3 else 1
    dataset.PhotometricInterpretation = photometric
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.BitsAllocated = values.dtype.itemsize * 8
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
    dataset.PixelData = values.tobytes()
    if coded:
        dataset.compress(RLELossless, generate_instance_uid=False)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def dicoms(random: Random) -> dict[str, bytes]:
    rgb = scene(random)
    twelve = rgb[..., 0].astype(np.uint16) << 4
    return {
        "grey 8": dicom(rgb[..., 0].copy()),
        "grey 12": dicom(twelve, bits=12),
        "grey 16 inverted": dicom(twelve << 4, "MONOCHROME1", bits=16),
        "RGB": dicom(rgb, "RGB"),
        "RLE": dicom(rgb[..., 0] >> 4 << 4, coded="RLE"),
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
_KINDS = {
    "png": "PNG",
    "jpeg": "JPEG",
    "webp": "WebP",
    "bmp": "BMP",
    "tiff": "TIFF",
    "pnm": "PNM",
    "dicom": "DICOM",
}


def format_of(data: bytes) -> str | None:
    """The format of a file's content, by its first bytes; None for others."""
    from blemish.images import sniff

    return _KINDS.get(sniff(data[:132]) or "")


# --- What may befall a file --------------------------------------------------------------------


def flipped(data: bytes, random: Random) -> bytes:
    """One bit, anywhere."""
    changed = bytearray(data)
    changed[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def scribbled(data: bytes, random: Random) -> bytes:
    """Two to sixteen bytes, one of them among the first 200, written over."""
    changed = bytearray(data)
    for place in [
        random.integers(min(200, len(data))),
        *random.integers(len(data), size=random.integers(1, 16)),
    ]:
        changed[int(place)] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF, random.integers(256)]))
    return bytes(changed)


def truncated(data: bytes, random: Random) -> bytes:
    """The end is missing: from one byte to nearly all."""
    return data[: int(random.integers(1, len(data)))] if random.random() < 0.8 else data[:-1]


def with_hole(data: bytes, random: Random) -> bytes:
    """Zeros in the middle, up to 4 KiB of them."""
    size = min(4096, len(data) // 4)
    start = int(random.integers(len(data) // 3, len(data) - size - len(data) // 8))
    return data[:start] + bytes(size) + data[start + size :]


def closed(data: bytes, random: Random) -> bytes:
    """Cut in the middle and ended as the format ends, with the length put right where it says
    it."""
    cut = int(len(data) * random.uniform(0.3, 0.8))
    kind = format_of(data)
    if kind == "JPEG":
        return data[:cut] + b"\xff\xd9"
    if kind == "WebP":
        part = bytearray(data[: cut + cut % 2])
        part[4:8] = struct.pack("<I", len(part) - 8)
        return bytes(part)
    if kind == "PNG":
        parts = chunks(data)
        share = random.uniform(0.3, 0.8)
        return png_of(
            [
                (kind, body[: int(len(body) * share)] if kind == b"IDAT" else body)
                for kind, body in parts
            ]
        )
    return data[:cut] + bytes(len(data) - cut)  # as a disk does that has allocated and not written


def enlarged(data: bytes, random: Random) -> bytes:
    """The header announces twice as many rows as there are, or a few more, and is right
    otherwise."""
    del random
    return _with_rows(data, lambda rows: 2 * rows)


def shrunk(data: bytes, random: Random) -> bytes:
    """The header announces half of the rows."""
    del random
    return _with_rows(data, lambda rows: rows // 2)


def _with_rows(data: bytes, change: Callable[[int], int]) -> bytes:
    """The file with another number of rows in its header; as it is where it has no such field."""
    kind = format_of(data)
    if kind == "PNG":
        parts = chunks(data)
        head = bytearray(parts[0][1])
        head[4:8] = struct.pack(">I", change(int.from_bytes(head[4:8])))
        return png_of([(b"IHDR", bytes(head)), *parts[1:]])
    places: dict[str, tuple[bytes, int, str]] = {
        "JPEG": (rb"\xff[\xc0\xc1\xc2]..\x08", 5, ">H"),
        "WebP": (rb"VP8 ....(?s:.)(?s:.)(?s:.)\x9d\x01\x2a..", 16, "<H"),
        "BMP": (rb"^BM", 22, "<i"),
        "TIFF": (rb"\x01\x01[\x03\x04]\0\x01\0\0\0", 8, "<H"),
        "DICOM": (rb"\x28\0\x10\0US\x02\0", 8, "<H"),
    }
    if kind == "PNM":
        return re.sub(
            rb"(\d+)\n(\d+)\n", lambda m: b"%d\n%s\n" % (change(int(m[1])), m[2]), data, count=1
        )
    if kind not in places:
        return data
    pattern, offset, form = places[kind]
    found = re.search(pattern, data, re.DOTALL)
    if found is None:
        return data
    at = found.start() + offset
    (rows,) = struct.unpack_from(form, data, at)
    changed = bytearray(data)
    struct.pack_into(form, changed, at, change(rows))
    return bytes(changed)


def forged(data: bytes, random: Random) -> bytes:
    """What a stranger makes: fields of the header with hostile numbers, checksums put right."""
    if format_of(data) != "PNG":
        changed = bytearray(data)
        for _ in range(int(random.integers(1, 4))):
            at = int(random.integers(2, min(len(data) - 8, 160)))
            number = int(random.choice([0, 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**32 - 1]))
            form = str(random.choice(["<I", ">I"]))
            struct.pack_into(form, changed, at, number)
        return bytes(changed)
    parts = chunks(data)
    place = int(random.integers(len(parts)))
    kind, body = parts[place]
    doing = int(random.integers(5))
    if doing == 0 and body:
        parts[place] = (kind, flipped(body, random))
    elif doing == 1:
        parts.insert(place, parts[int(random.integers(len(parts)))])
    elif doing == 2 and len(parts) > 1:
        del parts[place]
    elif doing == 3:
        sizes = struct.pack(">II", *(int(2 ** random.uniform(0, 14)) for _ in range(2)))
        parts[0] = (b"IHDR", sizes + parts[0][1][8:])
    else:
        parts[0] = (
            b"IHDR",
            parts[0][1][:8] + bytes(random.choice([0, 1, 2, 3, 4, 6, 8, 16], 5).tolist()),
        )
    return png_of(parts)


MUTATIONS: Mapping[str, Callable[[bytes, Random], bytes]] = {
    "flip": flipped,
    "scribble": scribbled,
    "truncation": truncated,
    "hole": with_hole,
    "closed": closed,
    "enlarged": enlarged,
    "shrunk": shrunk,
    "forged": forged,
}
# What every format can tell of a file that has been damaged so: there no wrong accept is excused.
TOLD: Mapping[str, frozenset[str]] = {
    "truncation": frozenset(CHECKS),
    "enlarged": frozenset(CHECKS),
    "closed": frozenset({"PNG", "JPEG", "WebP", "TIFF Deflate"}),
    "hole": frozenset(
        {"PNG", "TIFF Deflate"}
    ),  # of JPEG about one in a hundred ends by chance where it should
    "flip": frozenset({"PNG"}),
    "scribble": frozenset({"PNG"}),
    "shrunk": frozenset({"PNG", "JPEG", "PNM", "DICOM"}),
}
NEAR, SHARE = 8, 0.01  # of 255; of the pixels: what is within both is an honest picture still


def compared(found: Pixels, original: Pixels) -> str:
    """Of pixels, uint8 H W 3: "right", "changed" (within an honest amount) or "wrong"."""
    if found.shape != original.shape:
        return "wrong"
    apart = np.abs(found.astype(np.int16) - original.astype(np.int16)).max(axis=2)
    if not apart.any():
        return "right"
    return "wrong" if float((apart > NEAR).mean()) > SHARE else "changed"


def checked_as(form: str, kind: str) -> str:
    """The name in `CHECKS` of a picture of this format and kind."""
    return f"{form} Deflate" if form == "TIFF" and "Deflate" in kind else form


def tried(data: bytes, original: Pixels, notes: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the decoder makes of a file, by "verdict".

    refused, right, changed (within an honest amount), noted (other pixels, and a note that says
    so), wrong (other pixels, in silence), bug (an error that blemish does not know); with "why",
    and "size", the bytes of the decoded picture.
    """
    from blemish.errors import BlemishError
    from blemish.images import decode

    try:
        picture = decode(data)
    except BlemishError as error:
        return {"verdict": "refused", "why": str(error)[:200], "size": 0}
    except BaseException as error:  # whatever it is, it is not ours
        return {"verdict": "bug", "why": f"{type(error).__name__}: {error}"[:200], "size": 0}
    verdict = compared(picture.as_uint8(), original)
    if verdict == "wrong" and set(picture.notes) - set(notes):
        verdict = "noted"
    return {"verdict": verdict, "why": "; ".join(picture.notes), "size": int(picture.pixels.nbytes)}
