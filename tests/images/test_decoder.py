"""The decoder: every kind of source, its window and masks, its limits, and what it refuses."""

from __future__ import annotations

import builtins
import io
import os
import struct
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fuzzing.pictures import MAKERS, chunk
from hypothesis import given, settings
from hypothesis import strategies as st
from made import (
    GREY16,
    RGB,
    RGB16,
    RGBA,
    SMOOTH,
    exif,
    grey_rgb,
    near,
    over_white,
    pixels,
    png,
    reason,
    same,
    saved,
    tiff,
    turned,
    unit,
)
from PIL import Image, ImageFile

from blemish.errors import ConfigError, ImageError, NonFiniteError
from blemish.images import Limits, Picture, decode, decode_mask, sniff
from blemish.images.limits import quiet

PIL_FORMATS = ["PNG", "JPEG", "BMP", "TIFF", "WEBP"]

# --- Arrays, tensors, PIL images and open files


def test_arrays():
    assert np.shares_memory(pixels(RGB), RGB)
    floats = RGB.astype(np.float32) / 255
    assert np.shares_memory(pixels(floats), floats)
    assert same(RGB[::-1, :, ::-1], RGB[::-1, :, ::-1])
    assert pixels(RGB[::-1, :, ::-1]).flags.c_contiguous
    assert same(RGB[..., 0], grey_rgb(RGB[..., 0]))
    assert same(RGB[..., :1], grey_rgb(RGB[..., 0]))
    opaque = np.dstack([RGB, np.full((7, 5), 255, np.uint8)])
    for source in (saved(opaque), opaque, Image.fromarray(opaque)):
        assert same(source, RGB)
        assert decode(source).notes == ()
    assert same(RGBA, over_white(RGBA))
    for deep in (RGB16, RGB16.astype(">u2")):
        assert same(deep, unit(RGB16))
    assert same(RGB > 99, (RGB > 99) * np.uint8(255))
    assert pixels(floats.astype(np.float64)).dtype == np.float32
    assert decode(RGB).source == "array"
    assert decode(RGB, name="camera 3").source == "camera 3"


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 3, 2), np.uint8), r"shape \(2, 3, 2\); .* is needed"),
        (np.zeros((1, 3, 2, 2), np.uint8), r"shape \(1, 3, 2, 2\)"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((2, 2), np.int64), r"dtype int64; .* is needed"),
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
    "dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_tensors(dtype):
    whole = torch.from_numpy(RGB.copy())
    values = whole if dtype == torch.uint8 else (whole.double() / 255).to(dtype)
    expected = values.numpy() if dtype == torch.uint8 else values.float().numpy()
    for tensor in (values, values.permute(2, 0, 1)):
        assert same(tensor, expected)
    assert same(values[..., 0], grey_rgb(expected[..., 0]))
    if dtype == torch.float32:
        assert same(values.requires_grad_(), expected)


def test_which_side_of_a_tensor_the_channels_are():
    stack = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3)
    assert same(stack, stack.permute(1, 2, 0).numpy())  # both could be: the first counts
    assert same(stack.numpy(), stack.numpy())  # in an array the last does
    assert "shape (1, 3, 4, 4)" in reason(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    "mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX", "LA", "La", "RGBA", "RGBa", "PA"]
)
def test_pil_modes(mode):
    through = {"La": ["LA"], "RGBa": ["RGBA"], "PA": ["P"]}.get(mode, [])
    image = Image.fromarray(RGB)
    for each in [*through, mode]:
        image = image.convert(each)
    picture = decode(image)
    assert picture.source == "PIL image"
    plain = image.convert("LA") if mode == "La" else image
    assert np.array_equal(picture.pixels, np.asarray(plain.convert("RGB")))


def test_deep_pil_modes():
    expected = grey_rgb(unit(GREY16))
    assert same(Image.fromarray(GREY16), expected)
    assert same(Image.frombytes("I;16B", (5, 7), GREY16.astype(">u2").tobytes()), expected)
    assert same(Image.fromarray(unit(GREY16)), expected)
    whole = Image.fromarray(GREY16.astype(np.int32))
    assert "--window" in reason(whole)
    assert near(whole, expected, window=(0, 65535))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_pil_images(orientation):
    expected = turned(RGB, orientation)
    for kind in ("PNG", "TIFF"):
        assert same(Image.open(io.BytesIO(saved(RGB, kind, exif=exif(orientation)))), expected)
    image = Image.fromarray(RGB)
    image.getexif()[0x0112] = orientation
    assert same(image, expected)
    assert np.array_equal(np.asarray(image), RGB)  # the caller's image is left alone


def test_pil_image_from_a_file_is_named_by_it(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(RGB))
    with Image.open(path) as image:
        assert decode(image).source == str(path)
    path.write_bytes(saved(RGB)[:-40])
    with Image.open(path) as image, pytest.raises(ImageError, match=r"a\.png: cannot be decoded"):
        decode(image)
    corrupt = png(RGB, 2, {b"eXIf": b"\xff" * 40})
    assert same(Image.open(io.BytesIO(corrupt)), RGB)


def test_files_are_read_from_where_they_stand(tmp_path):
    path = tmp_path / "part.png"
    path.write_bytes(b"left out" + png(RGB, 2))
    with path.open("rb") as file:
        file.seek(8)
        picture = decode(file)
    assert np.array_equal(picture.pixels, RGB)
    assert picture.source == str(path)
    assert "closed" in reason(file)
    with path.open(encoding="latin-1") as text:
        assert "opened as text" in reason(text)
    assert "empty" in reason(io.BytesIO())
    assert "limit is 100" in reason(io.BytesIO(bytes(200)), limits=Limits(max_bytes=100))

    class Socket:
        """Gives a few bytes at a time, as what is not on a disk may."""

        def __init__(self) -> None:
            self.rest = png(RGB, 2)

        def read(self, count: int) -> bytes:
            part, self.rest = self.rest[: min(count, 7)], self.rest[min(count, 7) :]
            return part

    assert same(Socket(), RGB)


@pytest.mark.parametrize("source", [None, [1, 2], bytearray(b"x")])
def test_other_sources_are_refused(source):
    assert "is not a path" in reason(source)


# --- Windows and depth


def test_window_is_in_the_pictures_own_units():
    assert pixels(saved(RGB), window=(50, 150)).dtype == np.float32
    eight = np.clip((RGB.astype(float) - 50) / 100, 0, 1)
    assert near(saved(RGB), eight, window=(50, 150))
    sixteen = np.clip((RGB16.astype(float) - 1000) / 9000, 0, 1)
    for source in (png(RGB16, 2), RGB16, tiff(RGB16, photometric="rgb")):
        assert near(source, sixteen, window=(1000, 10000))
    alpha = RGBA[..., 3:] / 255
    expected = np.clip((RGBA[..., :3].astype(float) - 50) / 100, 0, 1) * alpha + 1 - alpha
    assert near(RGBA, expected, window=(50, 150))


@pytest.mark.parametrize("window", [(1, 1), (5, 2), (0, float("nan")), (float("-inf"), 1)])
def test_a_window_that_is_no_interval(window):
    with pytest.raises(ConfigError, match="lo < hi"):
        decode(RGB, window=window)


def test_values_of_fewer_bits_than_the_file_are_told_and_left_alone():
    twelve = (GREY16 >> 4).astype(np.uint16)
    twelve[0, 0] = 3071
    note = "16-bit values no higher than 4095, read as 0 to 65535: for 12-bit data fit with "
    note += "--window 0,4095"
    rgb = np.dstack([twelve] * 3)
    for source in (png(twelve, 0), tiff(twelve), twelve, torch.from_numpy(twelve), png(rgb, 2)):
        picture = decode(source)
        assert picture.notes == (note,)
        assert np.array_equal(picture.pixels[..., 0], unit(twelve))
        assert decode(source, window=(0, 4095)).notes == ()
    opaque = np.dstack([rgb, np.full_like(twelve, 65535)])
    assert decode(png(opaque, 6)).notes == (note,)  # alpha has its own range
    assert "0,255" in decode(np.full((2, 2), 255, np.uint16)).notes[0]
    for plain in (GREY16, np.full((2, 2), 4096, np.uint16), np.zeros((2, 2), np.uint16), RGB):
        assert decode(plain).notes == ()
    fourteen = (GREY16 >> 2).astype(np.uint16)
    fourteen[0, 0] = 16383
    told = note.replace("4095", "16383").replace("12-bit", "14-bit")
    assert decode(png(fourteen, 0, {b"sBIT": bytes([14])})).notes == (told,)
    assert decode(png(GREY16, 0, {b"sBIT": bytes([12])})).notes == ()
    assert decode(tiff(fourteen, extratags=[(281, 3, 1, 16383, True)])).notes == (told,)


# --- Masks


def test_mask():
    mask = np.array([[0, 127, 128, 255]], np.uint8)
    for source in (
        saved(mask),
        mask.astype(np.uint16) * 257,
        mask / np.float32(255),
        saved(Image.fromarray(mask > 127)),
        mask > 127,
    ):
        assert decode_mask(source).tolist() == [[False, False, True, True]]
        assert decode_mask(source).dtype == bool
    coloured = np.zeros((1, 4, 3), np.uint8)
    coloured[0, 1, 2] = coloured[0, 2, 0] = 200
    assert decode_mask(coloured).tolist() == [[False, True, True, False]]
    assert not decode_mask(np.zeros((2, 2, 4), np.uint8)).any()  # alpha marks nothing
    assert not decode_mask(np.zeros((3, 4), np.uint8)).any()


def test_mask_of_class_numbers():
    ones = np.array([[0, 1, 1]], np.uint8)
    deep = png(ones.astype(np.uint16), 0), tiff(ones.astype(np.int32)), ones.astype(np.uint16)
    two, most = np.array([[0, 1, 2]], np.uint8), np.array([[0, 1, 63]], np.uint8)
    for source in (saved(ones), ones, *deep, two, most):
        assert decode_mask(source).tolist() == [[False, True, True]]
    assert decode_mask(np.array([[0, 1, 200]], np.uint8)).tolist() == [[False, False, True]]
    words = r"m\.png: is no clear mask: its largest value is 64 of 255"
    with pytest.raises(ImageError, match=words):  # it would be silently empty
        decode_mask(np.array([[0, 1, 64]], np.uint8), name="m.png")


def test_mask_has_the_same_limits_and_errors(tmp_path):
    with pytest.raises(ImageError, match="max_pixels"):
        decode_mask(saved(RGB), limits=Limits(max_pixels=34))
    with pytest.raises(ImageError, match="does not exist"):
        decode_mask(tmp_path / "none.png")


# --- Picture


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
    floats = picture.as_float()
    assert floats.dtype == np.float32
    assert np.array_equal(floats, picture.pixels / np.float32(255))
    again = Picture(floats, "x")
    assert again.as_float() is floats
    assert np.array_equal(again.as_uint8(), picture.pixels)


def test_pictures_of_one_row_or_column():
    for values in (GREY16[:1].copy(), GREY16[:, :1].copy(), GREY16[:1, :1].copy()):
        half = unit(values).astype(np.float16)
        for source in (tiff(values), png(values, 0), saved(values), values):
            assert same(source, grey_rgb(unit(values)))
        assert same(tiff(half), grey_rgb(half.astype(np.float32)))


# --- Limits and refusals


def bomb(kind: str, side: int) -> bytes:
    """A small file whose header claims side × side pixels."""
    data = bytearray(saved(SMOOTH[:8, :8], kind))
    if kind == "PNG":
        head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        return bytes(data[:8]) + chunk(b"IHDR", head) + bytes(data[33:])
    if kind == "JPEG":
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, side, side)
    elif kind == "BMP":
        struct.pack_into("<ii", data, 18, side, side)
    elif kind == "WEBP":
        struct.pack_into("<I", data, 21, (side - 1) | (side - 1) << 14)
    else:
        before, after = (
            struct.pack("<HHII", 256, 4, 1, size) + struct.pack("<HHII", 257, 4, 1, size)
            for size in (8, side)
        )
        return saved(Image.new("1", (8, 8)), "TIFF").replace(before, after)
    return bytes(data)


@pytest.mark.parametrize("kind", PIL_FORMATS)
def test_bomb_fails_from_its_header(kind, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    side = 16000 if kind == "WEBP" else 30000
    words = reason(bomb(kind, side))
    assert f"is {side:,} × {side:,} = {side * side:,} pixels; the limit is 200,000,000" in words


def test_limits_count_for_every_source(tmp_path, monkeypatch):
    for source in (Image.new("RGB", (5, 7)), RGB):
        assert "max_pixels" in reason(source, limits=Limits(max_pixels=34))
        assert decode(source, limits=Limits(max_pixels=35)).size == (7, 5)
    with pytest.raises(ConfigError, match="at least 1"):
        Limits(max_pixels=0)
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(600 * 2**20)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("read"))
    assert reason(path) == "is 629,145,600 bytes; the limit is 536,870,912 (Limits.max_bytes)"
    assert "max_bytes" in reason(saved(RGB), limits=Limits(max_bytes=10))


def test_pillows_own_pixel_limit_does_not_leak(monkeypatch):
    # 35 pixels are between its warning and its error, then beyond it.
    for limit, kinds in ((30, PIL_FORMATS), (3, ["PNG", "JPEG", "BMP"])):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for kind in kinds:
            assert decode(saved(RGB, kind)).size == (7, 5)
        assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("kind", "what"), [("WEBP", "frames"), ("PNG", "frames"), ("TIFF", "pages"), ("GIF", "frames")]
)
def test_animated_and_multi_page_files(kind, what):
    frames = [Image.fromarray(np.roll(RGB, i, axis=0)) for i in range(3)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    if kind != "GIF":
        assert reason(data).startswith(f"has 3 {what}; one picture per file")
    assert "has 3 frames" in reason(Image.open(io.BytesIO(data)))
    assert same(png(RGB, 2, {b"acTL": struct.pack(">II", 1, 0)}), RGB)  # one frame is a picture


SUPPORTED = "is not a picture that is supported: PNG, JPEG, BMP, TIFF, WebP, PGM, PPM, DICOM"


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
        (bytes(300), SUPPORTED),
        (b"\x89PNG", SUPPORTED),
    ],
)
def test_files_that_are_no_picture(content, words, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        decode(path)
    assert str(caught.value) == f"{path}: {words}"


def test_sniff():
    for form, maker in MAKERS.items():
        for data in maker(np.random.default_rng(0)).values():
            assert sniff(data[:132]) == form.lower()
    assert sniff(b"II*\0" + bytes(124) + b"DICM") == "dicom"


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


# --- Around the edges


def test_threads_get_what_one_thread_gets():
    makers = MAKERS.values()
    sources = [data for make in makers for data in make(np.random.default_rng(1)).values()]
    alone = [decode(source).digest for source in sources]
    before = (list(warnings.filters), cv2.utils.logging.getLogLevel())
    with ThreadPoolExecutor(8) as pool:
        assert [picture.digest for picture in pool.map(decode, sources * 3)] == alone * 3
    assert (list(warnings.filters), cv2.utils.logging.getLogLevel()) == before


def test_the_last_thread_out_restores_the_switches():
    level, before = cv2.utils.logging.getLogLevel(), list(warnings.filters)
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


def test_plain_pictures_need_neither_opencv_nor_pydicom(monkeypatch):
    real = builtins.__import__

    def guarded(name: str, *rest: object, **more: object) -> object:
        assert name.partition(".")[0] not in ("cv2", "pydicom", "tifffile")
        return real(name, *rest, **more)

    data = [saved(RGB, kind) for kind in ("PNG", "JPEG", "BMP")]
    monkeypatch.setattr(builtins, "__import__", guarded)
    assert [decode(one).size for one in data] == [(7, 5)] * 3


def test_import_is_cheap():
    heavy = "('cv2', 'pydicom', 'tifffile', 'torch')"
    code = f"import sys, blemish.images; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
