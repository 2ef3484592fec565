"""Small files that ask for much, and large pictures of every kind."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fuzzing import artifacts, forks, pictures
from fuzzing.tallies import Tally

MEGAPIXELS = 24
SECONDS_PER_BYTE = 12 / 2.4e9  # a whole picture of 200 megapixels of 16 bits takes so long
PEAK = 3.0  # how many times the decoded picture may be in memory at most
WIDE = 14_142  # squared it is just within the limit of 200 megapixels


def bombs() -> list[tuple[str, bytes]]:
    """(name, file), each below 300 KiB."""
    return [*_png_bombs(), *_bmp_bombs(), *_tiff_bombs(), *_other_bombs()]


def _png_bombs() -> list[tuple[str, bytes]]:
    def head(side: int, depth: int, colour: int) -> tuple[bytes, bytes]:
        return b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)

    def of(header: tuple[bytes, bytes], body: bytes, *more: tuple[bytes, bytes]) -> bytes:
        return pictures.png_of([header, *more, (b"IDAT", body), (b"IEND", b"")])

    empty = zlib.compress(b"")
    zeros = zlib.compress(bytes(200 * 2**20), 9)
    row = zlib.compressobj(9)
    real = row.compress(bytes((1 + (WIDE + 7) // 8) * WIDE)) + row.flush()
    found = [
        (f"PNG, {depth} bits, colour {colour}, no pixels", of(head(WIDE, depth, colour), empty))
        for depth, colour in ((1, 0), (8, 0), (8, 2), (8, 6), (16, 0), (16, 6))
    ]
    return [
        *found,
        ("PNG, 200 megapixels of 1 bit", of(head(WIDE, 1, 0), real)),
        ("PNG, 200 MiB of zeros for 10 × 10", of(head(10, 8, 0), zeros)),
        (
            "PNG, 200 MiB of zeros as a text",
            of(head(10, 8, 0), zlib.compress(bytes(110)), (b"zTXt", b"a\0\0" + zeros)),
        ),
        (
            "PNG, 200 MiB of zeros as a profile",
            of(head(10, 8, 0), zlib.compress(bytes(110)), (b"iCCP", b"a\0\0" + zeros)),
        ),
        (
            "PNG, 20,000 empty chunks",
            of(head(10, 8, 0), zlib.compress(bytes(110)), *[(b"tEXt", b"")] * 20_000),
        ),
        (
            "PNG, 20,000 empty IDAT",
            of(head(10, 8, 0), zlib.compress(bytes(110)), *[(b"IDAT", b"")] * 20_000),
        ),
    ]


def _bmp_bombs() -> list[tuple[str, bytes]]:
    def of(
        coded: bytes, bits: int = 8, compression: int = 1, *, width: int = WIDE, height: int = WIDE
    ) -> bytes:
        palette = bytes(4 * 2**bits)
        size = 54 + len(palette)
        head = b"BM" + struct.pack("<IHHI", size + len(coded), 0, 0, size)
        shape = (40, width, height, 1, bits, compression, len(coded), 2835, 2835, 2**bits, 0)
        return head + struct.pack("<IiiHHIIiiII", *shape) + palette + coded

    return [
        ("BMP, ends of lines only", of(b"\0\0" * 200 + b"\0\1")),
        ("BMP, ends of all lines", of(b"\0\0" * WIDE + b"\0\1")),
        ("BMP, a pixel a line", of(b"\1\0\0\0" * WIDE + b"\0\1")),
        ("BMP, a pixel in a line of 2 million", of(b"\1\0\0\0" * 100, width=2_000_000, height=100)),
        ("BMP, moves only", of(b"\0\2\xff\xff" * 5000 + b"\0\1")),
        ("BMP, 4 bits, ends of all lines", of(b"\0\0" * WIDE + b"\0\1", 4, 2)),
        ("BMP, 4 bits, moves only", of(b"\0\2\xff\xff" * 5000 + b"\0\1", 4, 2)),
        ("BMP, no pixels", of(b"", 8, 0)),
    ]


def _tiff(tags: Mapping[int, tuple[str, list[int]]], body: bytes = b"") -> bytes:
    """A little-endian TIFF of one page; the strip's data lie at byte 8."""
    size = {"H": 2, "I": 4}
    start = 8 + len(body) + len(body) % 2
    extra = start + 2 + 12 * len(tags) + 4
    entries, more = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}{kind}", *values)
        if len(packed) <= 4:
            entries += struct.pack(
                "<HHI", tag, 3 if kind == "H" else 4, len(values)
            ) + packed.ljust(4, b"\0")
        else:
            entries += struct.pack(
                "<HHII", tag, 3 if kind == "H" else 4, len(values), extra + len(more)
            )
            more += packed + b"\0" * (len(packed) % 2)
    del size
    head = b"II*\0" + struct.pack("<I", start) + body + b"\0" * (len(body) % 2)
    return head + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + more


def _tiff_bombs() -> list[tuple[str, bytes]]:
    def of(
        side: int,
        body: bytes,
        compression: int,
        *,
        rows: int | None = None,
        strips: int = 1,
        bits: int = 8,
    ) -> bytes:
        return _tiff(
            {
                256: ("I", [side]),
                257: ("I", [side]),
                258: ("H", [bits]),
                259: ("H", [compression]),
                262: ("H", [1]),
                273: ("I", [8] * strips),
                277: ("H", [1]),
                278: ("I", [rows or side]),
                279: ("I", [len(body)] * strips),
            },
            body,
        )

    zeros = zlib.compress(bytes(200 * 2**20), 9)
    loop = bytearray(of(10, bytes(100), 1))
    struct.pack_into("<I", loop, len(loop) - 4, int.from_bytes(loop[4:8], "little"))
    return [
        *(
            (f"TIFF, compression {kind}, no pixels", of(WIDE, b"\x80\x0b\x60\x50", kind))
            for kind in (1, 5, 8, 32773, 3, 4, 7)
        ),
        *(
            (
                f"TIFF, 16 bits, compression {kind}, no pixels",
                of(WIDE, b"\x80\x0b\x60\x50", kind, bits=16),
            )
            for kind in (1, 5, 8, 32773)
        ),
        ("TIFF, 200 MiB of zeros", of(WIDE, zeros, 8)),
        ("TIFF, 200 MiB of zeros for 10 × 10", of(10, zeros, 8)),
        (
            "TIFF, the same strip for every row",
            of(WIDE, zlib.compress(bytes(WIDE)), 8, rows=1, strips=WIDE),
        ),
        (
            "TIFF, the same strip of 16 bits for every row",
            of(WIDE, zlib.compress(bytes(2 * WIDE)), 8, rows=1, strips=WIDE, bits=16),
        ),
        ("TIFF, a page that is its own next one", bytes(loop)),
    ]


def _other_bombs() -> list[tuple[str, bytes]]:
    scene = pictures.scene(np.random.default_rng(0), 64, 64)
    plain = pictures.saved(scene, "JPEG", quality=50)
    progressive = pictures.saved(scene, "JPEG", quality=50, progressive=True)

    def sized(data: bytes, side: int) -> bytes:
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        return data[: at + 5] + struct.pack(">HH", side, side) + data[at + 9 :]

    scan = progressive.rfind(b"\xff\xda")
    last = progressive[scan:-2]
    tables = b"".join(b"\xff\xfe\0\2" for _ in range(50_000))
    webp = pictures.saved(np.zeros((1, 1, 3), np.uint8), "WEBP", lossless=True)
    at = webp.find(b"\x2f") + 1
    side = (16_383 - 1) | (12_000 - 1) << 14
    return [
        ("JPEG, 200 megapixels of a small one", sized(plain, WIDE)),
        ("JPEG, progressive, 200 megapixels of a small one", sized(progressive, WIDE)),
        (
            "JPEG, progressive, 1,000 times its last scan",
            sized(progressive[:-2] + last * 1000 + b"\xff\xd9", 4000),
        ),
        ("JPEG, 50,000 comments", plain[:2] + tables + plain[2:]),
        ("WebP, 196 megapixels of 1 × 1", webp[:at] + struct.pack("<I", side) + webp[at + 4 :]),
        ("PNM, no pixels", b"P6\n14142 14142\n255\n"),
        ("DICOM, no pixels", _dicom_of(60_000)),
        ("DICOM, RLE, no pixels", _dicom_of(14_000, run_lengths=True)),
    ]


def _dicom_of(rows: int, *, run_lengths: bool = False) -> bytes:
    """A small DICOM file that announces so many rows and columns."""
    data = pictures.dicom(np.zeros((8, 8), np.uint8), run_lengths=run_lengths)
    for tag in (b"\x28\0\x10\0US\x02\0", b"\x28\0\x11\0US\x02\0"):
        at = data.find(tag) + len(tag)
        data = data[:at] + struct.pack("<H", rows) + data[at + 2 :]
    return data


def large() -> dict[str, Callable[[], bytes]]:
    """By name, what makes a picture of so many megapixels."""
    height, width = 4000, MEGAPIXELS * 250

    def rgb() -> np.ndarray:
        small = pictures.scene(np.random.default_rng(1), 400, 600)
        return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))

    def deep() -> np.ndarray:
        return rgb().astype(np.uint16) * 257

    def png_deep() -> bytes:
        import cv2

        return bytes(cv2.imencode(".png", deep(), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])

    def tiff(values: np.ndarray, **options: Any) -> bytes:
        import tifffile

        file = io.BytesIO()
        tifffile.imwrite(file, values, **options)
        return file.getvalue()

    def ppm() -> bytes:
        return f"P6\n{width} {height}\n255\n".encode() + rgb().tobytes()

    fast = {"compress_level": 1}
    return {
        "PNG grey 8": lambda: pictures.saved(rgb()[..., 0], "PNG", **fast),
        "PNG RGB 8": lambda: pictures.saved(rgb(), "PNG", **fast),
        "PNG RGBA 8": lambda: pictures.saved(Image.fromarray(rgb()).convert("RGBA"), "PNG", **fast),
        "PNG palette": lambda: pictures.saved(
            Image.fromarray(rgb()[..., 0]).convert("P"), "PNG", **fast
        ),
        "PNG RGB 16": png_deep,
        "JPEG": lambda: pictures.saved(rgb(), "JPEG", quality=85),
        "JPEG progressive": lambda: pictures.saved(rgb(), "JPEG", quality=85, progressive=True),
        "JPEG CMYK": lambda: pictures.saved(
            Image.fromarray(rgb()).convert("CMYK"), "JPEG", quality=85
        ),
        "WebP": lambda: pictures.saved(rgb(), "WEBP", quality=60, method=0),
        "BMP": lambda: pictures.saved(rgb(), "BMP"),
        "TIFF": lambda: pictures.saved(rgb(), "TIFF"),
        "TIFF LZW": lambda: pictures.saved(rgb(), "TIFF", compression="tiff_lzw"),
        "TIFF Deflate": lambda: pictures.saved(rgb(), "TIFF", compression="tiff_adobe_deflate"),
        "TIFF RGB 16": lambda: tiff(deep(), photometric="rgb"),
        "TIFF RGB 16 Deflate": lambda: tiff(deep(), photometric="rgb", compression="zlib"),
        "TIFF planes": lambda: tiff(
            np.moveaxis(rgb(), 2, 0).copy(), photometric="rgb", planarconfig="separate"
        ),
        "TIFF float": lambda: tiff(
            rgb()[..., 0].astype(np.float32) / 255, photometric="minisblack"
        ),
        "PPM": ppm,
        "DICOM 12": lambda: pictures.dicom(rgb()[..., 0].astype(np.uint16) << 4, BitsStored=12),
    }


def several_at_once(folder: Path) -> Iterator[Tally]:
    """`predict` on eight large pictures; and the same where memory is short: every picture a
    row."""
    from fuzzing.commands import DEVICE, run

    good, big, artifact = folder / "good", folder / "big", folder / "knn.blemish"
    count = 8

    def make() -> int:
        from fuzzing.texts import FIT

        good.mkdir()
        big.mkdir()
        for index, pixels in enumerate(artifacts.parts(4)):
            Image.fromarray(pixels).save(good / f"{index}.png")
        picture = large()["JPEG"]()
        for index in range(count):
            (big / f"{index}.jpg").write_bytes(picture)
        return run("fit", "knn", good, "-o", artifact, *FIT)

    made = forks.attempt(make, limit=120)
    if made.status != 0:
        raise SystemExit(made.err)
    line = ("predict", artifact, big, "--json", *DEVICE)
    decoded = MEGAPIXELS * 3  # MB
    for way, room in (("as it is", forks.ROOM), ("200 MiB left", 200 * 2**20)):
        tally = Tally("memory", f"predict, {count} pictures at once", way)
        end = forks.attempt(lambda: run(*line), limit=60, room=room)
        rows = (
            json.loads(end.out)["predictions"]
            if end.out.startswith("{") and "predictions" in end.out
            else []
        )
        if end.status is None:
            tally.add("hang" if end.hung else "crash", end.told)
        elif len(rows) != count:
            tally.add("lost", f"{len(rows)} rows of {count} pictures: {end.told}{end.out[:200]}")
        else:
            tally.add("right")
        tally.peak_mib, tally.slowest = end.peak_mib, end.seconds
        tally.peak_ratio = end.peak_mib * 2**20 / (decoded * 10**6)
        yield tally
