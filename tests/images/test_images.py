"""The decoder: every format, depth and orientation, and everything that must be refused."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
import traceback
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from blemish.errors import ConfigError, ImageError, MissingExtraError, NonFiniteError
from blemish.images import EXTENSIONS, Limits, Picture, decode, decode_mask, sniff, sources
from blemish.images.limits import quiet

PIL_FORMATS = ["PNG", "JPEG", "BMP", "TIFF", "WEBP"]
rng = np.random.default_rng(7)
RGB = rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)
RGBA = rng.integers(0, 256, (7, 5, 4), dtype=np.uint8)
RGB16 = rng.integers(0, 65536, (7, 5, 3), dtype=np.uint16)
RGBA16 = rng.integers(0, 65536, (7, 5, 4), dtype=np.uint16)
GREY16 = RGB16[..., 0].copy()
SMOOTH = np.add.outer(np.arange(40), 2 * np.arange(60)).astype(np.uint8)[..., None] + np.array(
    [0, 40, 90], np.uint8
)


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def lossless(kind: str) -> dict[str, object]:
    return {"WEBP": {"lossless": True, "exact": True}}.get(kind, {})


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: np.ndarray, colour_type: int, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of 8 or 16 bits, written from the specification."""
    height, width = values.shape[:2]
    depth = values.dtype.itemsize * 8
    rows = values.astype(f">u{depth // 8}").reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    coded = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [chunk(b"IHDR", header), before, chunk(b"IDAT", coded), after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values: np.ndarray, **options: object) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF 2.3 says of tag 0x0112: where row 0 and column 0 of the stored picture are seen."""
    height, width = values.shape[:2]
    out = np.empty(
        (width, height, *values.shape[2:]) if orientation > 4 else values.shape, values.dtype
    )
    for row in range(height):
        for column in range(width):
            bottom, right = height - 1 - row, width - 1 - column
            place = {
                1: (row, column),
                2: (row, right),
                3: (bottom, right),
                4: (bottom, column),
                5: (column, row),
                6: (column, bottom),
                7: (right, bottom),
                8: (right, row),
            }[orientation]
            out[place] = values[row, column]
    return out


def over_white(rgba: np.ndarray) -> np.ndarray:
    colour, alpha = rgba[..., :3].astype(float), rgba[..., 3:].astype(float) / 255
    return np.floor(colour * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


def reason(source: object, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        decode(source, **options)
    return caught.value.reason


def pixels(source: object, **options: object) -> np.ndarray:
    return decode(source, **options).pixels


# --- PGM and PPM
# -----------------------------------------------------------------------------------------------------


def pnm(values: np.ndarray, top: int, *, head: bytes = b"") -> bytes:
    """A PGM or PPM in binary, written from the specification; `head` stands after the magic number."""
    height, width = values.shape[:2]
    kind = b"P6" if values.ndim == 3 else b"P5"
    body = values.astype(">u2" if top > 255 else np.uint8).tobytes()
    return kind + b"\n" + head + f"{width} {height}\n{top}\n".encode() + body


@pytest.mark.parametrize("values", [RGB, RGB[..., 0]])
def test_pgm_and_ppm_are_exact(values):
    as_rgb = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
    for data in (
        saved(values, "PPM"),
        pnm(values, 255),
        pnm(values, 255, head=b"# by hand\n# twice\n"),
    ):
        assert sniff(data) == "pnm"
        assert np.array_equal(pixels(data), as_rgb)


def test_pgm_of_other_depths():
    assert np.array_equal(pixels(pnm(GREY16, 65535)), pixels(png(GREY16, 0)))
    assert np.array_equal(pixels(pnm(RGB16, 65535)), pixels(png(RGB16, 2)))
    twelve = GREY16 // 16
    assert np.allclose(pixels(pnm(twelve, 4095))[..., 0], twelve / 4095)
    assert np.array_equal(
        pixels(pnm(twelve, 4095), window=(0, 1000))[..., 0],
        np.clip(twelve / np.float32(1000), 0, 1),
    )
    assert np.array_equal(decode_mask(pnm(RGB[..., 0] % 2, 1)), RGB[..., 0] % 2 == 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pnm(RGB, 255)[:-1], "is truncated"),
        (pnm(RGB, 255) + pnm(RGB, 255), "holds more than one picture"),
        (b"P5\n5", "without a whole header"),
        (b"P5\n0 7\n255\n", "has no pixels"),
        (b"P6 99999 99999 255\n", "9,999,800,001 pixels"),
        (b"P5 1 1 65536\n\0\0", "65536 as its largest value"),
        (pnm(RGB[..., 0] | 128, 100), "a value above 100"),
    ],
)
def test_pgm_and_ppm_that_cannot_be_read(data, words):
    assert words in reason(data)


def test_what_follows_a_pgm_is_left_alone():
    assert np.array_equal(pixels(pnm(RGB, 255) + b"\n"), RGB)


# --- Formats
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_rgb_is_exact_in_lossless_formats(kind, tmp_path):
    path = tmp_path / "part.txt"  # the name says nothing
    path.write_bytes(saved(RGB, kind, **lossless(kind)))
    picture = decode(path)
    assert picture.pixels.dtype == np.uint8
    assert np.array_equal(picture.pixels, RGB)
    assert (picture.source, picture.size, picture.notes) == (str(path), (7, 5), ())
    assert np.array_equal(pixels(str(path)), RGB)
    assert np.array_equal(pixels(path.read_bytes()), RGB)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}]
)
def test_jpeg_equals_pillow(options):
    data = saved(
        SMOOTH,
        "JPEG",
        quality=90,
        comment=b"x" * 50,
        exif=exif(1),
        icc_profile=b"p" * 99,
        **options,
    )
    assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data))))


def test_grey_becomes_three_equal_channels():
    grey = RGB[..., 0].copy()
    for kind in ("PNG", "BMP", "TIFF"):
        found = pixels(saved(grey, kind))
        assert found.dtype == np.uint8
        assert np.array_equal(found, np.stack([grey] * 3, axis=-1))
    assert pixels(saved(grey, "JPEG")).shape == (7, 5, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composed_over_white_and_said(kind):
    picture = decode(saved(RGBA, kind, **lossless(kind)))
    assert np.array_equal(picture.pixels, over_white(RGBA))
    assert picture.notes == ("transparency composed over white",)


def test_opaque_alpha_changes_nothing_and_is_not_noted():
    opaque = np.dstack([RGB, np.full((7, 5), 255, np.uint8)])
    for source in (saved(opaque), opaque, Image.fromarray(opaque)):
        picture = decode(source)
        assert np.array_equal(picture.pixels, RGB)
        assert picture.notes == ()


def test_grey_with_alpha():
    grey = RGBA[..., [0, 3]]
    expected = over_white(RGBA[..., [0, 0, 0, 3]])
    assert np.array_equal(pixels(saved(Image.fromarray(grey, "LA"))), expected)
    assert np.array_equal(pixels(png(grey, 4)), expected)


def test_palette_with_and_without_transparency():
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette([10, 20, 30, 200, 100, 0, 1, 2, 3])
    expected = np.array([[10, 20, 30], [200, 100, 0], [1, 2, 3]], np.uint8)[indices]
    for kind in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(pixels(saved(image, kind)), expected)
    picture = decode(saved(image, transparency=bytes([255, 0, 128])))
    alpha = np.array([255, 0, 128], np.uint8)[indices]
    assert np.array_equal(picture.pixels, over_white(np.dstack([expected, alpha])))
    assert picture.notes
    assert np.array_equal(pixels(saved(image, transparency=1))[0, 1], [255, 255, 255])


@pytest.mark.parametrize("colour_type", [0, 2])
def test_one_transparent_colour(colour_type):
    values = RGB if colour_type == 2 else RGB[..., 0].copy()
    key = struct.pack(f">{colour_type + 1}H", *np.atleast_1d(values[1, 2]).tolist())
    expected = np.stack([values] * 3, axis=-1) if colour_type == 0 else values.copy()
    hidden = (expected == expected[1, 2]).all(axis=-1)
    found = pixels(png(values, colour_type, before=chunk(b"tRNS", key)))
    assert np.array_equal(found, np.where(hidden[..., None], 255, expected))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_one_bit(kind):
    bits = RGB[..., 0] > 127
    assert np.array_equal(pixels(saved(Image.fromarray(bits), kind))[..., 1], bits * np.uint8(255))


def test_cmyk_jpeg_is_converted_and_said():
    image = Image.fromarray(SMOOTH).convert("CMYK")
    picture = decode(saved(image, "JPEG", quality=100, subsampling=0))
    assert np.abs(picture.pixels.astype(int) - SMOOTH).max() < 10
    assert picture.notes == ("CMYK converted to RGB without a colour profile",)
    assert decode(saved(image, "TIFF")).notes == picture.notes


def test_run_length_coded_bmp():
    coded = bytes([3, 7, 0, 0, 3, 9, 0, 1])  # bottom row 7 7 7, top row 9 9 9
    palette = bytes(channel for i in range(256) for channel in (i, i, i, 0))
    header = struct.pack("<IiiHHIIiiII", 40, 3, 2, 1, 8, 1, len(coded), 0, 0, 256, 0)
    offset = 14 + 40 + 1024
    data = (
        b"BM" + struct.pack("<IHHI", offset + len(coded), 0, 0, offset) + header + palette + coded
    )
    expected = np.repeat(np.array([[9] * 3, [7] * 3], np.uint8)[..., None], 3, axis=2)
    assert np.array_equal(pixels(data), expected)
    for cut in range(offset, len(data)):
        assert "truncated" in reason(data[:cut])


def test_multi_picture_jpeg_gives_its_primary_picture():
    first, second = Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)
    file = io.BytesIO()
    first.save(file, "MPO", save_all=True, append_images=[second])
    picture = decode(file.getvalue())
    assert np.abs(picture.pixels.astype(int) - SMOOTH).mean() < 8
    assert picture.notes == ("the first of several pictures in a multi-picture JPEG",)
    assert np.array_equal(pixels(Image.open(io.BytesIO(file.getvalue()))), picture.pixels)


# --- Depth and window
# ------------------------------------------------------------------------------------------------


def test_16_bit_png_keeps_every_bit():
    scaled = RGB16 / np.float32(65535)
    assert np.array_equal(pixels(png(RGB16, 2)), scaled)
    assert pixels(png(RGB16, 2)).dtype == np.float32
    assert np.array_equal(pixels(png(GREY16, 0)), np.stack([scaled[..., 0]] * 3, axis=-1))
    assert np.array_equal(pixels(saved(Image.fromarray(GREY16)))[..., 2], scaled[..., 0])
    assert (
        len(np.unique(pixels(png(np.arange(65536, dtype=np.uint16).reshape(256, 256), 0)))) == 65536
    )


def test_16_bit_png_with_alpha():
    alpha = RGBA16[..., 3:] / 65535
    expected = RGBA16[..., :3] / 65535 * alpha + (1 - alpha)
    picture = decode(png(RGBA16, 6))
    assert np.allclose(picture.pixels, expected, atol=1e-6)
    assert picture.notes == ("transparency composed over white",)
    grey = decode(png(RGBA16[..., [0, 3]], 4)).pixels
    assert np.allclose(
        grey, (RGBA16[..., :1] / 65535 * alpha + (1 - alpha)).repeat(3, axis=2), atol=1e-6
    )


@pytest.mark.parametrize("colour_type", [0, 2])
def test_16_bit_png_with_one_transparent_colour(colour_type):
    values = RGB16 if colour_type == 2 else GREY16
    key = struct.pack(f">{colour_type + 1}H", *np.atleast_1d(values[1, 2]).tolist())
    found = pixels(png(values, colour_type, before=chunk(b"tRNS", key)))
    expected = (values if colour_type == 2 else np.stack([values] * 3, axis=-1)) / np.float32(65535)
    expected[1, 2] = 1
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_16_bit_tiff(byteorder, compression):
    options = {"byteorder": byteorder, "compression": compression}
    expected = RGB16 / np.float32(65535)
    assert np.array_equal(pixels(tiff(RGB16, photometric="rgb", **options)), expected)
    assert np.array_equal(pixels(tiff(RGB16, photometric="rgb", bigtiff=True, **options)), expected)
    assert np.array_equal(
        pixels(tiff(GREY16, photometric="minisblack", **options))[..., 0], expected[..., 0]
    )
    assert np.array_equal(
        pixels(tiff(GREY16, photometric="miniswhite", **options))[..., 0], 1 - expected[..., 0]
    )
    planes = np.ascontiguousarray(RGB16.transpose(2, 0, 1))
    assert np.array_equal(
        pixels(tiff(planes, photometric="rgb", planarconfig="separate", **options)), expected
    )


def test_tiff_alpha_straight_and_multiplied():
    rgba = np.maximum(RGBA16, 30000)
    alpha = rgba[..., 3:] / 65535
    expected = rgba[..., :3] / 65535 * alpha + 1 - alpha
    straight = tiff(rgba, photometric="rgb", extrasamples=["unassalpha"])
    multiplied = np.rint(rgba[..., :3] * alpha).astype(np.uint16)
    multiplied = tiff(
        np.dstack([multiplied, rgba[..., 3]]), photometric="rgb", extrasamples=["assocalpha"]
    )
    assert np.allclose(pixels(straight), expected, atol=1e-6)
    assert np.allclose(pixels(multiplied), expected, atol=5e-5)


def bands(count, depth, extra, *, kind="rgb", planar=False, values=None):
    """A TIFF of so many bands, and the bands in [0, 1]; `extra`: its ExtraSamples, None = it has no
    such tag.
    """
    full = np.dtype(depth).type(np.iinfo(depth).max)
    if values is None:
        values = np.random.default_rng(0).integers(40, 255, (6, 7, count)).astype(np.uint8)
        values = values.astype(depth) * depth(full // 255)
    stored = np.ascontiguousarray(values.transpose(2, 0, 1)) if planar else values
    options = {"photometric": kind, "planarconfig": "separate" if planar else "contig"}
    data = tiff(
        stored,
        extrasamples=extra or ["unspecified"] * (count - (3 if kind == "rgb" else 1)),
        **options,
    )
    if extra is None:  # the tag becomes a private one
        order, (tags,) = "<", struct.unpack_from("<H", data, 8)
        for at in range(10, 10 + 12 * tags, 12):
            if struct.unpack_from(order + "H", data, at) == (338,):
                data = data[:at] + struct.pack("<H", 65000) + data[at + 2 :]
    return data, values / float(full)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("extra", [None, ["unspecified"], ["assocalpha"], ["unassalpha"]])
def test_a_fourth_band_is_transparency_only_where_the_file_says_so(depth, planar, extra):
    data, values = bands(4, depth, extra, planar=planar)
    colour, alpha = values[..., :3], values[..., 3:]
    if extra == ["assocalpha"]:
        data, values = bands(4, depth, extra, planar=planar, values=np.rint(
            np.concatenate([colour * alpha, alpha], axis=-1) * np.iinfo(depth).max
        ).astype(depth))  # fmt: skip
    picture = decode(data)
    if extra in (None, ["unspecified"]):
        expected, note = (
            colour,
            "band 4 left out: beyond the colours, and not said to be transparency (ExtraSamples)",
        )
    else:
        expected, note = colour * alpha + 1 - alpha, "transparency composed over white"
    assert picture.notes == (note,)
    assert np.allclose(
        picture.as_float(), expected, atol=2.1 / 255 if extra == ["assocalpha"] else 0.6 / 255
    )


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("count", "kind", "extra", "used", "alpha", "note"),
    [
        (5, "rgb", ["unspecified", "unspecified"], [0, 1, 2], None, "bands 4, 5 left out"),
        (5, "rgb", ["unspecified", "unassalpha"], [0, 1, 2], 4, "band 4 left out"),
        (5, "rgb", ["unassalpha", "unspecified"], [0, 1, 2], 3, "band 5 left out"),
        (2, "minisblack", ["unspecified"], [0, 0, 0], None, "band 2 left out"),
        (2, "minisblack", None, [0, 0, 0], None, "band 2 left out"),
        (2, "minisblack", ["unassalpha"], [0, 0, 0], 1, "transparency"),
        (3, "minisblack", None, [0, 1, 2], None, "taken as red, green and blue"),
        (4, "minisblack", None, [0, 1, 2], None, "band 4 left out"),
        (3, "minisblack", ["unassalpha", "unspecified"], [0, 0, 0], 1, "band 3 left out"),
    ],
)
def test_other_bands_are_left_out_at_every_depth_and_said(
    depth, count, kind, extra, used, alpha, note
):
    data, values = bands(count, depth, extra, kind=kind)
    picture = decode(data)
    expected = values[..., used]
    if alpha is not None:
        expected = expected * values[..., [alpha]] + 1 - values[..., [alpha]]
    assert np.allclose(picture.as_float(), expected, atol=0.6 / 255)
    assert any(note in said for said in picture.notes)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_inks_are_no_transparency_at_any_depth(depth):
    full = np.iinfo(depth).max
    inks = np.random.default_rng(1).integers(0, full, (6, 7, 4), dtype=depth, endpoint=True)
    picture = decode(tiff(inks, photometric="separated"))
    expected = (1 - inks[..., :3] / full) * (1 - inks[..., 3:] / full)
    assert np.allclose(picture.as_float(), expected, atol=1 / 255)
    assert picture.notes == ("CMYK converted to RGB without a colour profile",)


def test_values_of_fewer_bits_than_the_file_are_told_and_left_alone():
    twelve = (GREY16 >> 4).astype(np.uint16)
    twelve[0, 0] = 3071
    note = "16-bit values no higher than 4095, read as 0 to 65535: for 12-bit data fit with --window 0,4095"
    for source in (
        png(twelve, 0),
        tiff(twelve),
        twelve,
        torch.from_numpy(twelve),
        png(np.dstack([twelve] * 3), 2),
    ):
        picture = decode(source)
        assert picture.notes == (note,)
        assert np.array_equal(picture.pixels[..., 0], twelve / np.float32(65535))
        assert decode(source, window=(0, 4095)).notes == ()
    assert decode(png(np.dstack([twelve] * 3 + [twelve * 0 + 65535]), 6)).notes == (
        note,
    )  # alpha has its own range
    assert "0,255" in decode(np.full((2, 2), 255, np.uint16)).notes[0]
    for plain in (GREY16, np.full((2, 2), 4096, np.uint16), np.zeros((2, 2), np.uint16), RGB):
        assert decode(plain).notes == ()
    fourteen = (GREY16 >> 2).astype(np.uint16)
    fourteen[0, 0] = 16383
    told = png(fourteen, 0, before=chunk(b"sBIT", bytes([14])))
    assert decode(told).notes == (note.replace("4095", "16383").replace("12-bit", "14-bit"),)
    assert decode(png(GREY16, 0, before=chunk(b"sBIT", bytes([12])))).notes == ()
    told = tiff(fourteen, extratags=[(281, 3, 1, 16383, True)])
    assert decode(told).notes[0].endswith("for 14-bit data fit with --window 0,16383")


def test_files_are_read_from_where_they_stand(tmp_path):
    path = tmp_path / "part.png"
    path.write_bytes(b"left out" + png(RGB, 2))
    with path.open("rb") as file:
        file.seek(8)
        picture = decode(file)
    assert np.array_equal(picture.pixels, RGB)
    assert picture.source == str(path)
    assert "closed" in reason(file)
    assert np.array_equal(pixels(io.BytesIO(png(RGB, 2))), RGB)
    with path.open(encoding="latin-1") as text:
        assert "opened as text" in reason(text)
    assert "empty" in reason(io.BytesIO())
    large = reason(io.BytesIO(bytes(200)), limits=Limits(max_bytes=100))
    assert "limit is 100" in large

    class Socket:
        """Gives a few bytes at a time, as what is not on a disk may."""

        def __init__(self) -> None:
            self.rest = png(RGB, 2)

        def read(self, count: int) -> bytes:
            part, self.rest = self.rest[: min(count, 7)], self.rest[min(count, 7) :]
            return part

    assert np.array_equal(pixels(Socket()), RGB)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_tensors(dtype):
    whole = torch.from_numpy(RGB.copy())
    values = whole if dtype == torch.uint8 else (whole.double() / 255).to(dtype)
    expected = values.numpy() if dtype == torch.uint8 else values.float().numpy()
    for tensor in (values, values.permute(2, 0, 1)):
        assert np.array_equal(pixels(tensor), expected)
    assert np.array_equal(pixels(values[..., 0]), np.stack([expected[..., 0]] * 3, axis=-1))
    if dtype == torch.float32:
        assert np.array_equal(pixels(values.requires_grad_()), expected)


def test_which_side_of_a_tensor_the_channels_are():
    stack = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3)
    assert np.array_equal(
        pixels(stack), stack.permute(1, 2, 0).numpy()
    )  # both could be: the first counts
    assert np.array_equal(pixels(stack.numpy()), stack.numpy())  # in an array the last does
    assert "shape (1, 3, 4, 4)" in reason(torch.zeros(1, 3, 4, 4))
    assert "dtype int64" in reason(torch.zeros(3, 4, 4, dtype=torch.int64))
    assert "--window" in reason(torch.full((3, 4, 4), -2.0))


def test_tiff_with_an_odd_number_of_channels_goes_through_tifffile(monkeypatch):
    grey_alpha = np.ascontiguousarray(
        RGBA16[..., [0, 3]]
    )  # OpenCV would cut it to 8 bits and drop the alpha
    data = tiff(
        grey_alpha, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
    )
    alpha = grey_alpha[..., 1] / 65535
    assert np.allclose(
        pixels(data)[..., 0], grey_alpha[..., 0] / 65535 * alpha + 1 - alpha, atol=1e-6
    )
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingExtraError, match=r"tifffile .* 'blemish\[medical\]'"):
        decode(data)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_orientation_through_tifffile(orientation):
    values = (GREY16 / 65535).astype(np.float16)
    data = tiff(values, extratags=[(274, 3, 1, orientation, True)])
    assert np.array_equal(pixels(data)[..., 0], upright(values.astype(np.float32), orientation))


def test_tiff_compressions_that_deep_pictures_come_in():
    smooth = (
        np.add.outer(np.arange(40) * 500, np.arange(30) * 300).astype(np.uint16)[..., None]
        + RGB16[:1, :1] // 2
    )
    unit = smooth / np.float32(65535)
    for values, expected in ((smooth, unit), (unit, unit)):
        for options in ({"predictor": values is smooth}, {"tile": (16, 16)}, {"rowsperstrip": 3}):
            found = pixels(tiff(values, photometric="rgb", compression="deflate", **options))
            assert np.array_equal(found, expected)
    for code in (1, 5, 8, 32773):  # none, LZW, deflate, PackBits
        coded = cv2.imencode(".tiff", smooth[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, code])[
            1
        ].tobytes()
        assert np.array_equal(pixels(coded), unit)
    for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd"):
        coded = saved(
            Image.fromarray(np.ascontiguousarray(smooth[..., 0])), "TIFF", compression=compression
        )
        assert np.array_equal(pixels(coded)[..., 0], unit[..., 0])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_float_tiff(dtype):
    unit = (GREY16 / 65535).astype(dtype)
    assert np.array_equal(pixels(tiff(unit))[..., 0], unit.astype(np.float32))
    wide = (GREY16 / 100).astype(dtype)
    assert "--window lo,hi" in reason(tiff(wide))
    found = pixels(tiff(wide), window=(100, 300))[..., 0]
    assert np.allclose(found, np.clip((wide.astype(float) - 100) / 200, 0, 1), atol=1e-6)
    unit[2, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"scan\.tif"):
        decode(tiff(unit), name="scan.tif")


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32", "int8"])
def test_integers_of_other_depths_need_a_window(dtype):
    values = np.array([[-100, 0], [50, 120]]).clip(np.iinfo(dtype).min).astype(dtype)
    assert "--window lo,hi" in reason(tiff(values))
    expected = np.clip(values / np.float32(100), 0, 1)
    assert np.allclose(pixels(tiff(values), window=(0, 100))[..., 0], expected, atol=1e-6)


def test_window_is_in_the_pictures_own_units():
    eight = pixels(saved(RGB), window=(50, 150))
    assert eight.dtype == np.float32
    assert np.allclose(eight, np.clip((RGB.astype(float) - 50) / 100, 0, 1), atol=1e-6)
    sixteen = np.clip((RGB16.astype(float) - 1000) / 9000, 0, 1)
    for source in (png(RGB16, 2), RGB16, tiff(RGB16, photometric="rgb")):
        assert np.allclose(pixels(source, window=(1000, 10000)), sixteen, atol=1e-6)
    alpha = RGBA[..., 3:] / 255
    expected = np.clip((RGBA[..., :3].astype(float) - 50) / 100, 0, 1) * alpha + 1 - alpha
    assert np.allclose(pixels(RGBA, window=(50, 150)), expected, atol=1e-6)


@pytest.mark.parametrize("window", [(1, 1), (5, 2), (0, float("nan")), (float("-inf"), 1)])
def test_a_window_that_is_no_interval(window):
    with pytest.raises(ConfigError, match="lo < hi"):
        decode(RGB, window=window)


# --- Orientation
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation):
    block = exif(orientation)
    expected = upright(RGB, orientation)
    assert np.array_equal(pixels(saved(RGB, exif=block)), expected)
    assert np.array_equal(pixels(saved(RGB, "WEBP", exif=block, **lossless("WEBP"))), expected)
    assert np.array_equal(pixels(saved(RGB, "TIFF", exif=block)), expected)
    late = png(RGB, 2, after=chunk(b"eXIf", block.removeprefix(b"Exif\0\0")))
    assert np.array_equal(pixels(late), expected)
    stored = pixels(saved(SMOOTH, "JPEG"))
    assert np.array_equal(pixels(saved(SMOOTH, "JPEG", exif=block)), upright(stored, orientation))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_deep_pictures(orientation):
    block = chunk(b"eXIf", exif(orientation).removeprefix(b"Exif\0\0"))
    expected = upright(RGB16, orientation) / np.float32(65535)
    assert np.array_equal(pixels(png(RGB16, 2, before=block)), expected)
    assert np.array_equal(pixels(png(GREY16, 0, before=block))[..., 0], expected[..., 0])
    tag = {"extratags": [(274, 3, 1, orientation, True)]}
    assert np.array_equal(pixels(tiff(RGB16, photometric="rgb", **tag)), expected)
    assert np.array_equal(pixels(tiff(GREY16, **tag))[..., 0], expected[..., 0])
    deep = RGB16.astype(np.float32) / 65535
    assert np.array_equal(pixels(tiff(deep, photometric="rgb", **tag)), upright(deep, orientation))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_pil_images(orientation):
    expected = upright(RGB, orientation)
    assert np.array_equal(
        pixels(Image.open(io.BytesIO(saved(RGB, exif=exif(orientation))))), expected
    )
    assert np.array_equal(
        pixels(Image.open(io.BytesIO(saved(RGB, "TIFF", exif=exif(orientation))))), expected
    )
    image = Image.fromarray(RGB)
    image.getexif()[0x0112] = orientation
    assert np.array_equal(pixels(image), expected)
    assert np.array_equal(np.asarray(image), RGB)  # the caller's image is left alone


CORRUPT_EXIF = [
    b"Exif\0\0",
    b"Exif\0\0II*\0\xff\xff\xff\x7f",
    b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01",
    b"Exif\0\0" + b"\xff" * 40,
    exif(6)[:-8],
    exif(77),
]


@pytest.mark.parametrize("block", CORRUPT_EXIF)
def test_corrupt_exif_does_not_break_decoding(block):
    assert np.array_equal(pixels(png(RGB, 2, before=chunk(b"eXIf", block[6:]))), RGB)
    assert np.array_equal(pixels(png(RGB, 2, before=chunk(b"eXIf", block)[:-1] + b"?")), RGB)
    assert np.array_equal(pixels(saved(SMOOTH, "JPEG", exif=block)), pixels(saved(SMOOTH, "JPEG")))
    assert np.array_equal(pixels(saved(RGB, "WEBP", exif=block, **lossless("WEBP"))), RGB)
    image = Image.open(io.BytesIO(png(RGB, 2, before=chunk(b"eXIf", block[6:]))))
    assert np.array_equal(pixels(image), RGB)


# --- Arrays, PIL images, masks
# ---------------------------------------------------------------------------------------


def test_arrays():
    assert np.shares_memory(pixels(RGB), RGB)
    unit = RGB.astype(np.float32) / 255
    assert np.shares_memory(pixels(unit), unit)
    assert np.array_equal(pixels(RGB[::-1, :, ::-1]), RGB[::-1, :, ::-1])
    assert pixels(RGB[::-1, :, ::-1]).flags.c_contiguous
    assert np.array_equal(pixels(RGB[..., 0])[..., 2], RGB[..., 0])
    assert np.array_equal(pixels(RGB[..., :1])[..., 2], RGB[..., 0])
    assert np.array_equal(pixels(RGBA), over_white(RGBA))
    assert np.array_equal(pixels(RGB16), RGB16 / np.float32(65535))
    assert np.array_equal(pixels(RGB16.astype(">u2")), RGB16 / np.float32(65535))
    assert np.array_equal(pixels(RGB > 99), (RGB > 99) * np.uint8(255))
    assert pixels(unit.astype(np.float64)).dtype == np.float32
    assert decode(RGB).source == "array"
    assert decode(RGB, name="camera 3").source == "camera 3"


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 3, 2), np.uint8), r"shape \(2, 3, 2\); .* is needed"),
        (np.zeros((1, 3, 2, 2), np.uint8), r"shape \(1, 3, 2, 2\)"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((2, 2), np.int64), r"dtype int64; .* is needed"),
        (np.zeros((2, 2), np.complex64), "dtype complex64"),
        (np.zeros((0, 2), np.uint8), "has no pixels"),
        (np.full((2, 2), 255.0), "from 255 to 255: .* --window lo,hi"),
        (np.full((2, 2), -0.1), "--window lo,hi"),
        (np.full((2, 2, 4), [0.5, 0.5, 0.5, 1.5]), "alpha channel outside"),
    ],
)
def test_arrays_that_are_refused(array, words):
    with pytest.raises(ImageError, match=f"^array: .*{words}"):
        decode(array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("window", [None, (0, 1)])
def test_non_finite_pixels(value, window):
    array = np.zeros((3, 3, 3), np.float32)
    array[1, 1, 1] = value
    with pytest.raises(NonFiniteError, match=r"^frame 9: holds NaN or infinite"):
        decode(array, window=window, name="frame 9")


@pytest.mark.parametrize(
    "mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX", "LA", "La", "RGBA", "RGBa", "PA"]
)
def test_pil_modes(mode):
    start = Image.fromarray(RGB)
    image = (
        start.convert("LA").convert("La")
        if mode == "La"
        else start.convert("RGBA" if mode == "RGBa" else "RGB")
    )
    image = (
        image.convert("P").convert("PA")
        if mode == "PA"
        else image
        if mode == "La"
        else image.convert(mode)
    )
    picture = decode(image)
    assert picture.source == "PIL image"
    expected = image.convert("LA").convert("RGB") if mode == "La" else image.convert("RGB")
    assert np.array_equal(picture.pixels, np.asarray(expected))


def test_deep_pil_modes():
    grey = Image.fromarray(GREY16)
    assert np.array_equal(pixels(grey)[..., 0], GREY16 / np.float32(65535))
    assert np.array_equal(
        pixels(Image.frombytes("I;16B", (5, 7), GREY16.astype(">u2").tobytes()))[..., 0],
        pixels(grey)[..., 0],
    )
    whole = Image.fromarray(GREY16.astype(np.int32))
    assert "--window" in reason(whole)
    assert np.allclose(pixels(whole, window=(0, 65535)), pixels(grey))
    assert np.array_equal(pixels(Image.fromarray(GREY16 / np.float32(65535))), pixels(grey))


def test_pil_image_from_a_file_is_named_by_it(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(RGB))
    with Image.open(path) as image:
        assert decode(image).source == str(path)
    path.write_bytes(saved(RGB)[:-40])
    with Image.open(path) as image, pytest.raises(ImageError, match=r"a\.png: cannot be decoded"):
        decode(image)


@pytest.mark.parametrize("source", [None, 3, [1, 2], {"a": 1}, bytearray(b"x")])
def test_other_sources_are_refused(source):
    assert "is not a path" in reason(source)


def test_mask():
    mask = np.array([[0, 127, 128, 255]], np.uint8)
    marked = [[False, False, True, True]]
    assert decode_mask(saved(mask)).tolist() == marked
    assert decode_mask(saved(mask)).dtype == bool
    assert decode_mask(mask.astype(np.uint16) * 257).tolist() == marked
    assert decode_mask(mask / np.float32(255)).tolist() == marked
    assert decode_mask(saved(Image.fromarray(mask > 127))).tolist() == marked
    coloured = np.zeros((1, 4, 3), np.uint8)
    coloured[0, 1, 2] = coloured[0, 2, 0] = 200
    assert decode_mask(coloured).tolist() == [[False, True, True, False]]
    assert (
        decode_mask(np.zeros((2, 2, 4), np.uint8)).tolist() == [[False] * 2] * 2
    )  # alpha marks nothing
    assert not decode_mask(np.zeros((3, 4), np.uint8)).any()
    assert decode_mask(mask > 127).tolist() == marked


def test_mask_of_zeros_and_ones():
    ones = np.array([[0, 1, 1]], np.uint8)
    for source in (
        saved(ones),
        ones,
        ones.astype(np.uint16),
        png(ones.astype(np.uint16), 0),
        tiff(ones.astype(np.int32)),
    ):
        assert decode_mask(source).tolist() == [[False, True, True]]
    assert decode_mask(np.array([[0, 1, 255]], np.uint8)).tolist() == [[False, False, True]]


def test_mask_of_class_numbers():
    for largest in (2, 63):
        assert decode_mask(np.array([[0, 1, largest]], np.uint8)).tolist() == [[False, True, True]]
    assert decode_mask(np.array([[0, 1, 200]], np.uint8)).tolist() == [[False, False, True]]


def test_mask_that_would_be_silently_empty():
    with pytest.raises(
        ImageError, match=r"m\.png: is no clear mask: its largest value is 64 of 255"
    ):
        decode_mask(np.array([[0, 1, 64]], np.uint8), name="m.png")


def test_mask_has_the_same_limits_and_errors(tmp_path):
    with pytest.raises(ImageError, match="max_pixels"):
        decode_mask(saved(RGB), limits=Limits(max_pixels=34))
    with pytest.raises(ImageError, match="does not exist"):
        decode_mask(tmp_path / "none.png")


# --- Picture
# ---------------------------------------------------------------------------------------------------------


def test_digest_tells_pixels_apart_not_files():
    picture = decode(saved(RGB))
    assert picture.digest == decode(saved(RGB, "BMP")).digest == decode(RGB).digest
    assert len(picture.digest) == 32
    others = [RGB[::-1], RGB.reshape(5, 7, 3), RGB.astype(np.float32) / 255]
    assert len({picture.digest, *(decode(other).digest for other in others)}) == 4
    assert picture.digest is picture.digest


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 255), min_size=3, max_size=12))
def test_uint8_and_float_round_trip(values):
    picture = Picture(np.array(values[: len(values) // 3 * 3], np.uint8).reshape(1, -1, 3), "x")
    assert picture.as_uint8() is picture.pixels
    unit = picture.as_float()
    assert unit.dtype == np.float32
    assert np.array_equal(unit, picture.pixels / np.float32(255))
    again = Picture(unit, "x")
    assert again.as_float() is unit
    assert np.array_equal(again.as_uint8(), picture.pixels)


# --- Limits and refusals
# ---------------------------------------------------------------------------------------------


def test_limits_are_validated():
    with pytest.raises(ConfigError, match="at least 1"):
        Limits(max_pixels=0)


def bomb(kind: str, side: int) -> bytes:
    """A small file whose header claims side × side pixels."""
    data = bytearray(saved(SMOOTH[:8, :8], kind, **lossless(kind)))
    if kind == "PNG":
        return (
            bytes(data[:8])
            + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
            + bytes(data[33:])
        )
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    elif kind == "WEBP":
        data[21:25] = struct.pack("<I", (side - 1) | (side - 1) << 14)
    else:
        return saved(Image.new("1", (8, 8)), "TIFF", tiffinfo={}).replace(
            *(
                struct.pack("<HHII", 256, 4, 1, s) + struct.pack("<HHII", 257, 4, 1, s)
                for s in (8, side)
            )
        )
    return bytes(data)


@pytest.mark.parametrize("kind", PIL_FORMATS)
def test_bomb_fails_from_its_header(kind, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    side = 16000 if kind == "WEBP" else 30000
    words = reason(bomb(kind, side))
    assert f"is {side:,} × {side:,} = {side * side:,} pixels; the limit is 200,000,000" in words


def test_bomb_of_a_pil_image_and_an_array():
    assert "max_pixels" in reason(Image.new("RGB", (5, 7)), limits=Limits(max_pixels=34))
    assert "max_pixels" in reason(RGB, limits=Limits(max_pixels=34))
    assert decode(RGB, limits=Limits(max_pixels=35)).size == (7, 5)


def test_pillows_own_pixel_limit_does_not_leak(monkeypatch):
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 30
    )  # 35 pixels: between its warning and its error
    for kind in PIL_FORMATS:
        assert decode(saved(RGB, kind)).size == (7, 5)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    for kind in ("PNG", "JPEG", "BMP"):
        assert decode(saved(RGB, kind)).size == (7, 5)
    assert Image.MAX_IMAGE_PIXELS == 3


def test_bytes_are_checked_before_reading(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(600 * 2**20)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("read"))
    assert reason(path) == "is 629,145,600 bytes; the limit is 536,870,912 (Limits.max_bytes)"
    assert "max_bytes" in reason(saved(RGB), limits=Limits(max_bytes=10))


@pytest.mark.parametrize(
    ("kind", "what"), [("WEBP", "frames"), ("PNG", "frames"), ("TIFF", "pages"), ("GIF", "frames")]
)
def test_animated_and_multi_page_files(kind, what):
    frames = [Image.fromarray(np.roll(RGB, i, axis=0)) for i in range(3)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    if kind == "GIF":
        assert reason(data) == "GIF is not supported; convert to PNG"
    else:
        assert reason(data).startswith(f"has 3 {what}; one picture per file")
    assert "has 3 frames" in reason(Image.open(io.BytesIO(data)))


def test_one_frame_of_an_animated_format_is_a_picture():
    one = chunk(b"acTL", struct.pack(">II", 1, 0))
    assert np.array_equal(pixels(png(RGB, 2, before=one)), RGB)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty (0 bytes)"),
        (b"path,label\na.png,0\n", "is not a picture (looks like text)"),
        ("Prüfbild für später".encode(), "is not a picture (looks like text)"),
        ("text".encode("utf-16"), "is not a picture (looks like text)"),
        (b"BMW was here, and this is only text", "is not a picture (looks like text)"),
        (b"GIF89a" + bytes(20), "GIF is not supported; convert to PNG"),
        (b"\0\0\0\x20ftypavif" + bytes(20), "AVIF is not supported; convert to PNG"),
        (b"\0\0\0\x20ftypheic" + bytes(20), "HEIC or video is not supported; convert to PNG"),
        (b"P2\n1 1\n255\n7\n", "PGM as text is not supported; convert to PNG"),
        (b"%PDF-1.7", "PDF is not supported; convert to PNG"),
        (
            bytes(300),
            "is not a picture that is supported: PNG, JPEG, BMP, TIFF, WebP, PGM, PPM, DICOM",
        ),
        (
            b"\x89PNG",
            "is not a picture that is supported: PNG, JPEG, BMP, TIFF, WebP, PGM, PPM, DICOM",
        ),
    ],
)
def test_files_that_are_no_picture(content, words, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        decode(path)
    assert str(caught.value) == f"{path}: {words}"


def test_sniff():
    for kind in PIL_FORMATS:
        assert sniff(saved(RGB, kind)[:132]) == kind.lower()
    assert sniff(bytes(128) + b"DICM") == "dicom"
    assert sniff(b"II*\0" + bytes(124) + b"DICM") == "dicom"
    assert sniff(b"") is None
    assert {".png", ".jpg", ".dcm", ".tif"} < EXTENSIONS


def test_paths_that_cannot_be_read(tmp_path, monkeypatch):
    assert reason(tmp_path / "none.png") == "does not exist"
    assert reason(tmp_path) == "cannot be read, it is a folder; name the file in it"
    assert reason("a\0b.png") == "cannot be read (embedded null byte)"
    assert reason("a" * 5000) == "cannot be read (File name too long)"
    os.mkfifo(tmp_path / "pipe.png")
    assert reason(tmp_path / "pipe.png").startswith("cannot be read, it is a pipe;")
    (tmp_path / "loop.png").symlink_to(tmp_path / "gone.png")
    assert reason(tmp_path / "loop.png") == "does not exist"
    path = tmp_path / "secret.png"
    path.write_bytes(saved(RGB))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert reason(path) == "cannot be read (Permission denied)"


# --- Truncated and damaged files
# -------------------------------------------------------------------------------------


def complete_files() -> dict[str, bytes]:
    noise = rng.integers(0, 256, (24, 31, 3), dtype=np.uint8)
    deep = rng.integers(0, 65536, (24, 31, 3), dtype=np.uint16)
    return {
        "png": saved(noise),
        "png-16": png(deep, 2),
        "png-grey": saved(noise[..., 0].copy()),
        "jpeg": saved(
            noise, "JPEG", exif=exif(1) + saved(noise[:8, :8].copy(), "JPEG")
        ),  # a thumbnail has its own end
        "jpeg-progressive": saved(noise, "JPEG", progressive=True),
        "bmp": saved(noise, "BMP"),
        "bmp-palette": saved(Image.fromarray(noise).convert("P"), "BMP"),
        "webp": saved(noise, "WEBP"),
        "webp-lossless": saved(noise, "WEBP", lossless=True, exif=exif(1)),
        "tiff": saved(noise, "TIFF"),
        "tiff-lzw": saved(noise, "TIFF", compression="tiff_lzw"),
        "tiff-16": tiff(deep, photometric="rgb"),
        "tiff-16-deflate": tiff(deep, photometric="rgb", compression="deflate", rowsperstrip=5),
        "tiff-end": cv2.imencode(".tiff", deep)[
            1
        ].tobytes(),  # its directory stands after the pixels
        "tiff-float": tiff(deep[..., 0] / np.float32(65535)),
    }


COMPLETE = complete_files()


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("kind", COMPLETE)
def test_truncation_is_an_error_never_half_a_picture(kind, lenient, monkeypatch, capfd):
    monkeypatch.setattr(
        ImageFile, "LOAD_TRUNCATED_IMAGES", lenient
    )  # whatever the program around us has set
    data = COMPLETE[kind]
    whole = pixels(data)
    size = len(data)
    cuts = {*range(1, 9), *range(20, size, max(1, size // 60)), *range(size - 24, size)}
    refused = 0
    for cut in sorted(cuts):
        try:
            found = pixels(data[:cut])
        except ImageError:
            refused += 1
        else:
            assert np.array_equal(found, whole), (
                f"{kind}: a partial picture at {cut} of {size} bytes"
            )
    assert refused >= len(cuts) - 8  # trailing padding may go
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["jpeg", "jpeg-progressive"])
def test_jpeg_without_its_end_marker_is_truncated(kind):
    assert reason(COMPLETE[kind][:-2]) == "is truncated: its end is missing"
    assert reason(COMPLETE[kind][: len(COMPLETE[kind]) // 2]) == "is truncated: its end is missing"
    zeroed = COMPLETE[kind][:-300] + bytes(300)  # a download whose end never arrived
    assert reason(zeroed).startswith(("is truncated", "is damaged"))
    assert np.array_equal(pixels(COMPLETE[kind] + b"trailing"), pixels(COMPLETE[kind]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(COMPLETE)), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_flipped_byte_gives_a_picture_or_an_image_error(kind, where, flip):
    data = bytearray(COMPLETE[kind])
    data[int(where * len(data))] ^= flip
    with contextlib.suppress(ImageError, NonFiniteError):
        assert decode(bytes(data)).pixels.shape[2] == 3


def test_damaged_png_is_recognised_by_its_checksum():
    data = bytearray(COMPLETE["png"])
    data[len(data) // 2] ^= 1
    assert "checksum" in reason(bytes(data))


def test_png_without_pixels():
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    for parts, words in (
        (header + chunk(b"IEND", b""), "without pixels"),
        (chunk(b"IDAT", b"") + header, "without a header"),
        (header + chunk(b"JDAT", b"") + chunk(b"IEND", b""), "unknown critical chunk"),
    ):
        assert words in reason(b"\x89PNG\r\n\x1a\n" + parts)
    assert "no pixels" in reason(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)))


def test_unusual_jpegs_are_named():
    data = bytearray(saved(SMOOTH, "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    assert reason(bytes(data)) == "12-bit JPEG is not supported; convert to PNG"
    assert reason(b"\xff\xd8\xff\xd9\xff\xd9") == "is damaged: a JPEG without pixels"


def test_tiff_that_announces_more_than_it_holds():
    for data in (
        saved(RGB, "TIFF"),
        tiff(RGB16, photometric="rgb"),
        tiff(RGB, photometric="rgb", compression="deflate"),
    ):
        at = data.index(struct.pack("<HHI", 257, 4, 1)) + 8
        taller = data[:at] + struct.pack("<I", 7000) + data[at + 4 :]
        at = (
            taller.index(struct.pack("<HH", 278, 4 if struct.pack("<HH", 278, 4) in taller else 3))
            + 8
        )
        taller = taller[:at] + struct.pack("<I", 7) + taller[at + 4 :]
        assert reason(taller) == "is damaged: a TIFF with fewer pixels than it announces"


def test_pictures_of_one_row_or_column():
    for values in (GREY16[:1].copy(), GREY16[:, :1].copy(), GREY16[:1, :1].copy()):
        scaled = values / np.float32(65535)
        for source in (tiff(values), png(values, 0), saved(Image.fromarray(values)), values):
            assert np.array_equal(pixels(source)[..., 0], scaled)
        assert np.array_equal(
            pixels(tiff(scaled.astype(np.float16)))[..., 0], scaled.astype(np.float16)
        )


def test_a_deflated_block_that_inflates_beyond_the_picture(monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    data = tiff((GREY16 / 65535).astype(np.float16), compression="deflate")
    assert pixels(data).shape == (7, 5, 3)
    start = tifffile.TiffFile(io.BytesIO(data)).pages[0].dataoffsets[0]
    block = zlib.compress(bytes(10**6))
    at = data.index(struct.pack("<HH", 279, 4)) + 8
    swollen = data[:at] + struct.pack("<I", len(block)) + data[at + 4 : start] + block
    monkeypatch.setattr(tifffile, "TiffFile", lambda *_: pytest.fail("inflated"))
    assert reason(swollen) == "is damaged: a TIFF with more pixels than it announces"


def test_a_page_chain_that_loops_ends():
    data = bytearray(saved(RGB, "TIFF"))
    start = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, start)[0]
    data[start + 2 + 12 * entries : start + 6 + 12 * entries] = struct.pack("<I", start)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(pixels(bytes(data)), RGB)


# --- DICOM
# -----------------------------------------------------------------------------------------------------------

JPEG_LS = "1.2.840.10008.1.2.4.80"
SECRETS = ["Doe^Jane", "SECRET-ID-4711", "19700131", "Hospital-of-Secrets"]


def dicom(
    values: np.ndarray,
    *,
    photometric: str = "MONOCHROME2",
    syntax: str | None = None,
    **attributes: object,
) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax or ExplicitVRLittleEndian)
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.InstitutionName = (
        SECRETS
    )
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 1 if values.ndim == 2 else 3
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = dataset.BitsStored = values.dtype.itemsize * 8
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    if syntax == JPEG_LS:
        dataset.PixelData = encapsulate([dataset.PixelData])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some tests write what the standard forbids
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        dataset.HighBit = dataset.BitsStored - 1
        file = io.BytesIO()
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


CT = rng.integers(0, 4096, (7, 6), dtype=np.uint16)


def test_dicom_without_a_window_spans_what_is_stored():
    picture = decode(dicom(CT, BitsStored=12))
    assert picture.pixels.dtype == np.float32
    assert np.array_equal(picture.pixels, np.stack([CT / np.float32(4095)] * 3, axis=-1))
    signed = CT.astype(np.int16) - 2048
    found = pixels(dicom(signed, BitsStored=12, RescaleSlope=2, RescaleIntercept=-10))[..., 0]
    assert np.allclose(found, (signed + 2048.0) / 4095, atol=1e-6)
    eight = RGB[..., 0].copy()
    assert np.array_equal(pixels(dicom(eight))[..., 0], eight / np.float32(255))
    falling = pixels(dicom(CT, BitsStored=12, RescaleSlope=-1, RescaleIntercept=0))[..., 0]
    assert np.allclose(falling, 1 - CT / 4095, atol=1e-6)


def linear(x: float, centre: float, width: float) -> float:
    """PS3.3 C.11.2.1.2.1 with the output range [0, 1]."""
    if x <= centre - 0.5 - (width - 1) / 2:
        return 0.0
    if x > centre - 0.5 + (width - 1) / 2:
        return 1.0
    return (x - (centre - 0.5)) / (width - 1) + 0.5


def test_dicom_window_follows_the_standard():
    rescale = {"RescaleSlope": "0.5", "RescaleIntercept": "-1000"}
    hounsfield = CT * 0.5 - 1000
    data = dicom(CT, BitsStored=12, WindowCenter=[-200, 40], WindowWidth=[900, 400], **rescale)
    expected = np.vectorize(linear)(hounsfield, -200.0, 900.0)
    assert np.allclose(pixels(data)[..., 0], expected, atol=1e-6)
    assert np.allclose(
        pixels(data, window=(-500, 500))[..., 0],
        np.clip((hounsfield + 500) / 1000, 0, 1),
        atol=1e-6,
    )

    exact = dicom(CT, WindowCenter=-200, WindowWidth=900, VOILUTFunction="LINEAR_EXACT", **rescale)
    assert np.allclose(
        pixels(exact)[..., 0], np.clip((hounsfield + 200) / 900 + 0.5, 0, 1), atol=1e-6
    )
    sigmoid = dicom(CT, WindowCenter=-200, WindowWidth=900, VOILUTFunction="SIGMOID", **rescale)
    assert np.allclose(
        pixels(sigmoid)[..., 0], 1 / (1 + np.exp(-4 * (hounsfield + 200) / 900)), atol=1e-6
    )
    assert np.allclose(pixels(sigmoid, window=(0, 1))[..., 0], np.clip(hounsfield, 0, 1), atol=1e-6)
    step = dicom(CT, WindowCenter=2000, WindowWidth=1)
    assert np.array_equal(pixels(step)[..., 0], CT > 1999.5)
    unusable = dicom(CT, BitsStored=12, WindowCenter=100, WindowWidth=0)
    assert np.array_equal(pixels(unusable), pixels(dicom(CT, BitsStored=12)))


def test_dicom_monochrome1_is_inverted():
    plain, inverted = (
        dicom(CT, BitsStored=12, photometric=p) for p in ("MONOCHROME2", "MONOCHROME1")
    )
    assert np.array_equal(pixels(inverted), 1 - pixels(plain))
    assert np.array_equal(pixels(inverted, window=(100, 900)), 1 - pixels(plain, window=(100, 900)))


def test_dicom_tables():
    from pydicom.dataset import Dataset

    table = np.minimum(np.arange(256) ** 2, 65535).astype(np.uint16)
    item = Dataset()
    item.LUTDescriptor = [256, 0, 16]
    item.LUTData = table.tolist()
    eight = RGB[..., 0].copy()
    expected = table[eight] / 65535
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        item["LUTData"].VR = item["LUTDescriptor"].VR = "US"
        item.ModalityLUTType = "US"
        assert np.allclose(
            pixels(dicom(eight.astype(np.uint16), **{keyword: [item]}))[..., 0], expected, atol=1e-6
        )
    rescaled = dicom(
        eight.astype(np.uint16), VOILUTSequence=[item], RescaleSlope=1, RescaleIntercept=1
    )
    assert np.allclose(
        pixels(rescaled)[..., 0], table[np.minimum(eight.astype(int) + 1, 255)] / 65535, atol=1e-6
    )


def test_dicom_colour():
    from pydicom.pixels import convert_color_space

    assert np.array_equal(pixels(dicom(RGB, photometric="RGB")), RGB)
    planes = dicom(
        RGB,
        photometric="RGB",
        PlanarConfiguration=1,
        PixelData=RGB.transpose(2, 0, 1).tobytes() + b"\0",
    )
    assert np.array_equal(pixels(planes), RGB)
    smooth = SMOOTH[:6, :6].copy()
    ybr = convert_color_space(smooth, "RGB", "YBR_FULL")
    assert np.abs(pixels(dicom(ybr, photometric="YBR_FULL")).astype(int) - smooth).max() <= 2
    wide = dicom(RGB.astype(np.uint16), photometric="RGB", BitsStored=8)
    assert np.allclose(pixels(wide), RGB / 255, atol=1e-6)
    assert "colour space" in reason(dicom(RGB[..., 0].copy(), photometric="PALETTE COLOR"))


def test_dicom_run_length_coded():
    import pydicom
    from pydicom.uid import RLELossless

    dataset = pydicom.dcmread(io.BytesIO(dicom(CT, BitsStored=12)))
    dataset.compress(RLELossless, generate_instance_uid=False)
    file = io.BytesIO()
    dataset.save_as(file)
    data = file.getvalue()
    whole = pixels(data)
    assert np.array_equal(whole, pixels(dicom(CT, BitsStored=12)))
    for cut in range(140, len(data), 7):
        try:
            assert np.array_equal(pixels(data[:cut]), whole)
        except ImageError:
            continue


def test_dicom_refusals():
    assert "has 3 frames" in reason(dicom(CT, NumberOfFrames=3))
    assert "max_pixels" in reason(dicom(CT, Rows=30000, Columns=30000))
    words = reason(dicom(CT, syntax=JPEG_LS))
    assert words.startswith(
        "has a transfer syntax that cannot be decoded (JPEG-LS Lossless Image Compression); convert"
    )
    assert "Deflated" in reason(dicom(CT, syntax="1.2.840.10008.1.2.1.99"))
    assert "(unknown)" in reason(
        dicom(CT).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")
    )


@pytest.mark.parametrize("lenient", [False, True])
def test_dicom_truncation(lenient, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data = dicom(CT, BitsStored=12)
    whole = pixels(data)
    for cut in range(132, len(data), 5):
        assert "truncated" in reason(data[:cut])
    assert "truncated" in reason(data[:-1])
    assert np.array_equal(pixels(data), whole)


def test_nothing_about_a_patient_gets_out(capfd, caplog):
    caplog.set_level(0)
    good = dicom(CT, BitsStored=12)
    bad = [
        good[:-10],
        good[:400],
        dicom(CT, NumberOfFrames=2),
        dicom(CT, Rows=65000, Columns=65000),
        dicom(CT, WindowCenter="1", WindowWidth="1", syntax=JPEG_LS),
        dicom(CT, photometric="DOE JANE"),
        dicom(CT, BitsStored=99),
        good.replace(b"MONOCHROME2", b"Doe^Jane   "),
        good.replace(
            struct.pack("<HH", 0x28, 0x10) + b"US", struct.pack("<HH", 0x28, 0x10) + b"PN"
        ),
        good.replace(b"1.2.840.10008.1.2.1\0", b"1.2.3.4.5.6.7.8.4711"),
    ]
    for data in bad:
        with pytest.raises(ImageError) as caught:
            decode(data, name="a.dcm")
        error = caught.value
        assert error.__cause__ is None
        assert error.__context__ is None
        said = "".join(traceback.format_exception(error))
        for secret in [*SECRETS, "4711", "DOE", "Doe"]:
            assert secret not in said
    picture = decode(good)
    printed = capfd.readouterr()
    everything = repr(picture.notes) + picture.source + printed.out + printed.err + caplog.text
    assert not any(secret in everything for secret in SECRETS)


def test_pydicoms_warnings_are_silent_and_filters_are_left_as_they_were():
    padded = dicom(CT, PixelData=CT.tobytes() + bytes(20))
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(pixels(padded), pixels(dicom(CT)))
    assert warnings.filters == before


def test_dicom_needs_its_extra(monkeypatch):
    data = dicom(CT)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(
        MissingExtraError,
        match=r"pydicom is needed to read DICOM files: pip install 'blemish\[medical\]'",
    ):
        decode(data)


# --- Around the edges
# ------------------------------------------------------------------------------------------------


def test_threads_get_what_one_thread_gets():
    sources = [COMPLETE[kind] for kind in sorted(COMPLETE)] + [dicom(CT, BitsStored=12)]
    alone = [decode(source).digest for source in sources]
    before = (list(warnings.filters), cv2.utils.logging.getLogLevel())
    with ThreadPoolExecutor(8) as pool:
        assert [picture.digest for picture in pool.map(decode, sources * 8)] == alone * 8
    assert (list(warnings.filters), cv2.utils.logging.getLogLevel()) == before


def test_the_last_thread_out_restores_the_switches():
    level = cv2.utils.logging.getLogLevel()
    before = list(warnings.filters)
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with quiet:
            entered.set()
            leave.wait(5)

    other = threading.Thread(target=stay)
    with quiet:
        other.start()
        entered.wait(5)
    assert cv2.utils.logging.getLogLevel() == cv2.utils.logging.LOG_LEVEL_SILENT
    leave.set()
    other.join()
    assert cv2.utils.logging.getLogLevel() == level
    assert warnings.filters == before


def test_out_of_memory_is_said(monkeypatch):
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setitem(sources._READERS, "png", full)
    assert reason(saved(RGB)).startswith("needs more memory than there was left when its turn came")


def test_plain_pictures_need_neither_opencv_nor_pydicom(monkeypatch):
    real = builtins.__import__

    def guarded(name: str, *rest: object, **more: object) -> object:
        assert name.partition(".")[0] not in ("cv2", "pydicom", "tifffile")
        return real(name, *rest, **more)

    data = [saved(RGB, kind) for kind in ("PNG", "JPEG", "BMP")]
    monkeypatch.setattr(builtins, "__import__", guarded)
    assert [decode(one).size for one in data] == [(7, 5)] * 3


def test_import_is_cheap():
    code = "import sys, blemish.images; print([m for m in ('cv2', 'pydicom', 'tifffile', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
