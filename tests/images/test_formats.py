"""PNG, JPEG, BMP, WebP, PGM and PPM: the right pixels, and refused where they are not whole."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import pytest
from fuzzing.pictures import chunk
from made import (
    GREY,
    GREY16,
    RGB,
    RGB16,
    RGBA,
    RGBA16,
    SMOOTH,
    exif,
    grey_rgb,
    over_white,
    pixels,
    png,
    png_of,
    pnm,
    reason,
    same,
    saved,
    tiff,
    turned,
    unit,
)
from PIL import Image, ImageFile

from blemish.errors import ImageError
from blemish.images import decode, decode_mask

WHITE = "transparency composed over white"
rng = np.random.default_rng(3)
NOISE = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
BLURRED = np.clip(cv2.GaussianBlur(NOISE, (0, 0), 2).astype(int) + NOISE // 32, 0, 255)
BLURRED = BLURRED.astype(np.uint8)


# --- All of them


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_are_exact(kind, tmp_path):
    path = tmp_path / "part.txt"  # the name says nothing
    path.write_bytes(saved(RGB, kind))
    picture = decode(path)
    assert picture.pixels.dtype == np.uint8
    assert np.array_equal(picture.pixels, RGB)
    assert (picture.source, picture.size, picture.notes) == (str(path), (7, 5), ())
    assert same(str(path), RGB)
    assert same(path.read_bytes(), RGB)
    if kind != "WEBP":
        assert same(saved(GREY, kind), grey_rgb(GREY))
        bits = RGB[..., 0] > 127
        assert same(saved(Image.fromarray(bits), kind), grey_rgb(bits * np.uint8(255)))
    if kind != "BMP":
        picture = decode(saved(RGBA, kind))
        assert np.array_equal(picture.pixels, over_white(RGBA))
        assert picture.notes == (WHITE,)


def test_palette_with_and_without_transparency():
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette([10, 20, 30, 200, 100, 0, 1, 2, 3])
    expected = np.array([[10, 20, 30], [200, 100, 0], [1, 2, 3]], np.uint8)[indices]
    for kind in ("PNG", "BMP", "TIFF"):
        assert same(saved(image, kind), expected)
    picture = decode(saved(image, transparency=bytes([255, 0, 128])))
    alpha = np.array([255, 0, 128], np.uint8)[indices]
    assert np.array_equal(picture.pixels, over_white(np.dstack([expected, alpha])))
    assert picture.notes == (WHITE,)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation):
    block, stored = exif(orientation), pixels(saved(SMOOTH, "JPEG"))
    body, tag = block.removeprefix(b"Exif\0\0"), {"extratags": [(274, 3, 1, orientation, True)]}
    late = png(RGB, 2)[:-12] + chunk(b"eXIf", body) + chunk(b"IEND", b"")
    half, single = unit(GREY16).astype(np.float16), unit(RGB16)
    for source, upright in (
        *((saved(RGB, kind, exif=block), RGB) for kind in ("PNG", "WEBP", "TIFF")),
        (late, RGB),
        (saved(SMOOTH, "JPEG", exif=block), stored),
        (png(RGB16, 2, {b"eXIf": body}), unit(RGB16)),
        (png(GREY16, 0, {b"eXIf": body}), grey_rgb(unit(GREY16))),
        (tiff(RGB16, photometric="rgb", **tag), unit(RGB16)),
        (tiff(GREY16, **tag), grey_rgb(unit(GREY16))),
        (tiff(single, photometric="rgb", **tag), single),
        (tiff(half, **tag), grey_rgb(half.astype(np.float32))),
    ):
        assert same(source, turned(upright, orientation))


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01",
        b"Exif\0\0" + b"\xff" * 40,
        exif(6)[:-8],
        exif(77),
    ],
)
def test_corrupt_exif_does_not_break_decoding(block):
    assert same(png(RGB, 2, {b"eXIf": block[6:]}), RGB)
    assert same(png(RGB, 2)[:33] + chunk(b"eXIf", block)[:-1] + b"?" + png(RGB, 2)[33:], RGB)
    assert same(saved(SMOOTH, "JPEG", exif=block), pixels(saved(SMOOTH, "JPEG")))
    assert same(saved(RGB, "WEBP", exif=block), RGB)


def complete_files() -> dict[str, bytes]:
    noise = rng.integers(0, 256, (24, 31, 3), dtype=np.uint8)
    deep = rng.integers(0, 65536, (24, 31, 3), dtype=np.uint16)
    thumbnail = saved(noise[:8, :8].copy(), "JPEG")  # which has its own end
    return {
        "png": saved(noise),
        "png-16": png(deep, 2),
        "jpeg": saved(noise, "JPEG", exif=exif(1) + thumbnail),
        "jpeg-progressive": saved(noise, "JPEG", progressive=True),
        "bmp": saved(noise, "BMP"),
        "bmp-palette": saved(Image.fromarray(noise).convert("P"), "BMP"),
        "webp": saved(noise, "WEBP", lossless=False),
        "webp-lossless": saved(noise, "WEBP", exif=exif(1)),
        "tiff": saved(noise, "TIFF"),
        "tiff-lzw": saved(noise, "TIFF", compression="tiff_lzw"),
        "tiff-16-deflate": tiff(deep, photometric="rgb", compression="deflate", rowsperstrip=5),
        "tiff-end": cv2.imencode(".tiff", deep)[1].tobytes(),  # its directory is after the pixels
        "tiff-float": tiff(unit(deep[..., 0])),
    }


@pytest.mark.parametrize(("kind", "data"), complete_files().items(), ids=lambda part: str(part)[:9])
def test_truncation_is_an_error_never_half_a_picture(kind, data, monkeypatch, capfd):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as a program around us may
    whole, size = pixels(data), len(data)
    cuts = {*range(1, 9), *range(20, size, max(1, size // 60)), *range(size - 24, size)}
    refused = 0
    for cut in sorted(cuts):
        try:
            found = pixels(data[:cut])
        except ImageError:
            refused += 1
        else:
            assert np.array_equal(found, whole), f"a partial picture at {cut} of {size} bytes"
    assert refused >= len(cuts) - 8  # trailing padding may go
    assert capfd.readouterr().err == ""


# --- JPEG


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 1, 2, "4:1:1"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
def test_whole_jpegs_have_pillows_pixels(mode, subsampling, options):
    options = {"subsampling": subsampling if mode != "L" else -1, **options}
    for size in ((1, 1), (17, 33), (64, 47)):
        image = Image.fromarray(cv2.resize(BLURRED, size)).convert(mode)
        for more in ({}, {"comment": b"x" * 50, "exif": exif(1), "icc_profile": b"p" * 99}):
            data = saved(image, "JPEG", quality=80, **options, **more)
            picture = decode(data)
            expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            assert np.array_equal(picture.pixels, expected)
            assert any("CMYK converted to RGB" in note for note in picture.notes) == (
                mode == "CMYK"
            )
    if mode == "RGB":
        data = saved(image, "JPEG", keep_rgb=True)
        assert same(data, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_jpeg_with_a_hole_is_damaged(options, mode):
    if mode == "CMYK":
        options = {**options, "subsampling": 0}
    data = saved(Image.fromarray(BLURRED).convert(mode), "JPEG", quality=95, **options)
    start = data.index(b"\xff\xda") + 14
    middle = start + (len(data) - start) // 2
    assert "is damaged" in reason(data[:middle] + b"\xff\xd9")
    assert "is damaged" in reason(data[: middle - 500] + bytes(1000) + data[middle + 500 :])


def test_what_cameras_write_wrong_harms_no_jpeg():
    data = saved(BLURRED, "JPEG")
    whole = decode(data).pixels
    scan, jfif = data.index(b"\xff\xda") + 4 + 7, data.index(b"JFIF\0") + 5
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\7"
    for other in (
        data[:scan] + b"\0\0\0" + data[scan + 3 :],  # the scan parameters
        data[:jfif] + b"\x09\x09" + data[jfif + 2 :],  # the version of JFIF
        data[:2] + adobe + data[20:],  # an unknown transform, in place of JFIF
        data[:-2] + b"\0\0\xff\xd9",  # filled up to whole words
        data[:-2] + b"\xff\xff\xd9",
        data + b"trailing",
    ):
        assert same(other, whole)
    assert "is damaged" in reason(data[:-2] + bytes(200) + b"\xff\xd9")
    assert reason(data[:-2]) == reason(data[: len(data) // 2]) == "is truncated: its end is missing"


def test_unusual_jpegs_are_named():
    data = bytearray(saved(SMOOTH, "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    assert reason(bytes(data)) == "12-bit JPEG is not supported; convert to PNG"
    assert reason(b"\xff\xd8\xff\xd9\xff\xd9") == "is damaged: a JPEG without pixels"
    data = saved(SMOOTH, "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    assert "scans; the limit is" in reason(data[:scan] + data[scan:-2] * 300 + b"\xff\xd9")


def test_a_progressive_jpeg_that_lacks_scans_is_damaged():
    """Cut between two scans and closed, each scan is whole; the picture is a coarse one."""
    data = saved(NOISE[:48, :64].copy(), "JPEG", progressive=True)
    decode(data)
    scans = [place for place in range(len(data) - 1) if data[place : place + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for place in scans[1:]:
        table = data.rfind(b"\xff\xc4", 0, place)  # a scan's tables stand before it
        for cut in {place, table if table > scans[0] else place}:
            assert "damaged" in reason(data[:cut] + b"\xff\xd9")
    # One of three components has all of its scans, the others have none.
    data = saved(GREY, "JPEG", progressive=True)
    at = data.index(b"\xff\xc2")
    one = data[at + 10 : at + 13]
    three = b"".join((b"\3", *(bytes([number]) + one[1:] for number in (1, 2, 3))))
    header = b"\xff\xc2" + (17).to_bytes(2) + data[at + 4 : at + 9] + three
    assert "without its last scans" in reason(data[:at] + header + data[at + 13 :])


def test_multi_picture_jpeg_gives_its_primary_picture():
    second = Image.fromarray(255 - SMOOTH)
    data = saved(SMOOTH, "MPO", save_all=True, append_images=[second])
    picture = decode(data)
    assert np.abs(picture.pixels.astype(int) - SMOOTH).mean() < 8
    assert picture.notes == ("the first of several pictures in a multi-picture JPEG",)
    assert same(Image.open(io.BytesIO(data)), picture.pixels)


# --- PNG


def test_16_bit_png_keeps_every_bit():
    assert pixels(png(RGB16, 2)).dtype == np.float32
    assert same(png(RGB16, 2), unit(RGB16))
    assert same(png(GREY16, 0), grey_rgb(unit(GREY16)))
    assert same(saved(GREY16), grey_rgb(unit(GREY16)))
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert len(np.unique(pixels(png(levels, 0)))) == 65536
    alpha = RGBA16[..., 3:] / 65535
    for bands, colour in (([0, 1, 2, 3], 6), ([0, 3], 4)):
        picture = decode(png(RGBA16[..., bands], colour))
        expected = RGBA16[..., bands[:-1]] / 65535 * alpha + (1 - alpha)
        assert np.allclose(picture.pixels, expected, atol=1e-6)
        assert picture.notes == (WHITE,)


def test_grey_with_alpha():
    expected = over_white(RGBA[..., [0, 0, 0, 3]])
    assert same(png(RGBA[..., [0, 3]], 4), expected)


@pytest.mark.parametrize("values", [GREY, RGB, GREY16, RGB16], ids=lambda each: str(each.dtype))
def test_one_transparent_colour(values):
    colour = 2 if values.ndim == 3 else 0
    key = struct.pack(f">{colour + 1}H", *np.atleast_1d(values[1, 2]).tolist())
    shown = values if colour else grey_rgb(values)
    hidden = (shown == shown[1, 2]).all(axis=-1)[..., None]
    full = np.iinfo(values.dtype).max
    expected = np.where(hidden, values.dtype.type(full), shown)
    expected = expected if full == 255 else unit(expected)
    assert same(png(values, colour, {b"tRNS": key}), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_what_is_see_through_at_few_bits(depth):
    last = bytes([0x01 << 8 - 2 * depth & 0xFF if depth < 8 else 0])
    rows = b"\0" + last + (b"\x01" if depth == 8 else b"")  # 0 and 1
    for hidden, expected in ((1, [0, 255]), (0, [255, 255 // (2**depth - 1)])):
        data = png_of((2, 1), depth, 0, rows, chunk(b"tRNS", struct.pack(">H", hidden)))
        assert decode(data).pixels[0, :, 0].tolist() == expected
    palette = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60])), chunk(b"tRNS", b"\xff\x00")
    shown = decode(png_of((2, 1), depth, 3, rows, *palette)).pixels
    assert shown.tolist() == [[[10, 20, 30], [255] * 3]]


KINDS = [
    *((depth, 0) for depth in (1, 2, 4, 8, 16)),
    *((depth, 3) for depth in (1, 2, 4, 8)),
    *((depth, colour) for depth in (8, 16) for colour in (2, 4, 6)),
]


@pytest.mark.parametrize(("depth", "colour"), KINDS)
@pytest.mark.parametrize("interlace", [0, 1])
def test_a_png_holds_what_it_announces(depth, colour, interlace):
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = [(1, 1), (1, 1), (2, 1), (1, 2), (3, 2), (2, 4), (5, 3)] if interlace else [(5, 7)]
    stream = b"".join((b"\0" + bytes((w * bits + 7) // 8)) * h for w, h in passes)  # 5 × 7 pixels
    palette = [chunk(b"PLTE", bytes(6))] if colour == 3 else []

    def made(stream: bytes) -> bytes:
        return png_of((5, 7), depth, colour, stream, *palette, interlace=interlace)

    assert decode(made(stream)).size == (7, 5)
    assert "fewer pixels than it announces" in reason(made(stream[:-1]))
    assert "more pixels than it announces" in reason(made(stream + b"\0"))


def test_122_bytes_ask_for_no_gigabyte(monkeypatch):
    monkeypatch.setattr("blemish.images.raster.load", lambda *_: pytest.fail("decoded"))
    assert "fewer pixels" in reason(png_of((14142, 14142), 8, 2, bytes(50)))
    assert "more pixels" in reason(png_of((5, 7), 8, 2, bytes(10**7)))


def test_png_without_pixels():
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    for parts, words in (
        (header + chunk(b"IEND", b""), "without pixels"),
        (chunk(b"IDAT", b"") + header, "without a header"),
        (header + chunk(b"JDAT", b"") + chunk(b"IEND", b""), "unknown critical chunk"),
        (chunk(b"IHDR", bytes(13)), "no pixels"),
    ):
        assert words in reason(b"\x89PNG\r\n\x1a\n" + parts)


def test_a_flipped_bit_anywhere_in_a_png_is_noticed():
    """Also in the name of a chunk, which makes one that counts into one that nobody knows."""
    data = saved(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4, "PNG", transparency=12)
    assert b"tRNS" in data
    right = decode(data).pixels
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        try:
            found = decode(bytes(flipped)).pixels
        except ImageError:
            continue
        assert np.array_equal(found, right), place


# --- PGM and PPM


def test_pgm_and_ppm_are_exact():
    for values in (RGB, GREY):
        as_rgb = values if values.ndim == 3 else grey_rgb(values)
        for data in (saved(values, "PPM"), pnm(values), pnm(values, head=b"# by hand\n# twice\n")):
            assert same(data, as_rgb)
    assert same(pnm(RGB) + b"\n", RGB)  # what follows is left alone
    assert same(pnm(GREY16, 65535), grey_rgb(unit(GREY16)))
    assert same(pnm(RGB16, 65535), unit(RGB16))
    twelve = GREY16 // 16
    assert np.allclose(pixels(pnm(twelve, 4095))[..., 0], twelve / 4095)
    windowed = np.clip(twelve / np.float32(1000), 0, 1)
    assert same(pnm(twelve, 4095), grey_rgb(windowed), window=(0, 1000))
    assert np.array_equal(decode_mask(pnm(GREY % 2, 1)), GREY % 2 == 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pnm(RGB)[:-1], "is truncated"),
        (pnm(RGB) + pnm(RGB), "holds more than one picture"),
        (b"P5\n5", "without a whole header"),
        (b"P5\n0 7\n255\n", "has no pixels"),
        (b"P6 99999 99999 255\n", "9,999,800,001 pixels"),
        (b"P5 1 1 65536\n\0\0", "65536 as its largest value"),
        (pnm(GREY | 128, 100), "a value above 100"),
    ],
)
def test_pgm_and_ppm_that_cannot_be_read(data, words):
    assert words in reason(data)


# --- BMP


def run_length_bmp(side: int, runs: bytes, bits: int = 8) -> bytes:
    palette = bytes(part for i in range(2**bits) for part in (i, 2 * i % 256, 255 - i, 0))
    kind, count = 1 if bits == 8 else 2, 2**bits
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, bits, kind, len(runs), 0, 0, count, 0)
    offset = 54 + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(runs), 0, 0, offset) + header + palette + runs


@pytest.mark.parametrize(
    ("bits", "runs", "indices"),
    [
        (
            8,
            [4, 7, 0, 0, 0, 3, 1, 2, 3, 0, 1, 9, 0, 0, 0, 2, 1, 0, 3, 5, 0, 0, 4, 1, 0, 1],
            [[1] * 4, [0, 5, 5, 5], [1, 2, 3, 9], [7] * 4],
        ),
        (
            4,
            [4, 0x12, 0, 0, 0, 3, 0x12, 0x30, 1, 0x90, 0, 0, 4, 0, 0, 0, 4, 0x33, 0, 1],
            [[3] * 4, [0] * 4, [1, 2, 3, 9], [1, 2, 1, 2]],
        ),
    ],
)
def test_run_length_coded_bmp(bits, runs, indices):
    data, indices = run_length_bmp(4, bytes(runs), bits), np.array(indices)
    assert same(data, np.stack([255 - indices, 2 * indices, indices], -1))
    for cut in range(len(data) - len(runs), len(data)):
        assert "truncated" in reason(data[:cut])


def test_a_run_length_bmp_takes_no_longer_than_its_bytes_allow():
    assert "fewer pixels" in reason(run_length_bmp(14142, bytes([0, 1])))
    assert "truncated" in reason(run_length_bmp(14142, bytes([0, 0]) * 200))
    assert "leave the picture" in reason(run_length_bmp(4, bytes([5, 1, 0, 1])))
