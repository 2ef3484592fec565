"""TIFF: every depth, band and compression at its own values, and blocks that are not whole."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from made import (
    GREY16,
    RGB,
    RGB16,
    RGBA16,
    SMOOTH,
    grey_rgb,
    near,
    pixels,
    reason,
    same,
    saved,
    tiff,
    unit,
)
from PIL import Image

from blemish.errors import MissingExtraError, NonFiniteError
from blemish.images import decode

FEWER = "is damaged: a TIFF with fewer pixels than it announces"


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_16_bit_tiff(byteorder, compression):
    options = {"byteorder": byteorder, "compression": compression}
    assert same(tiff(RGB16, photometric="rgb", **options), unit(RGB16))
    assert same(tiff(RGB16, photometric="rgb", bigtiff=True, **options), unit(RGB16))
    grey = grey_rgb(unit(GREY16))
    assert same(tiff(GREY16, photometric="minisblack", **options), grey)
    assert same(tiff(GREY16, photometric="miniswhite", **options), 1 - grey)
    planes = np.ascontiguousarray(RGB16.transpose(2, 0, 1))
    assert same(tiff(planes, photometric="rgb", planarconfig="separate", **options), unit(RGB16))


def bands(count, depth, extra, *, kind="rgb", planar=False, values=None):
    """A TIFF of so many bands, and the bands in [0, 1]; `extra`: its ExtraSamples, None = it has no
    such tag.
    """
    full = np.dtype(depth).type(np.iinfo(depth).max)
    if values is None:
        values = np.random.default_rng(0).integers(40, 255, (6, 7, count)).astype(np.uint8)
        values = values.astype(depth) * depth(full // 255)
    stored = np.ascontiguousarray(values.transpose(2, 0, 1)) if planar else values
    data = tiff(
        stored,
        extrasamples=extra or ["unspecified"] * (count - (3 if kind == "rgb" else 1)),
        photometric=kind,
        planarconfig="separate" if planar else "contig",
    )
    if extra is None:  # the tag becomes a private one
        (tags,) = struct.unpack_from("<H", data, 8)
        for at in range(10, 10 + 12 * tags, 12):
            if struct.unpack_from("<H", data, at) == (338,):
                data = data[:at] + struct.pack("<H", 65000) + data[at + 2 :]
    return data, values / float(full)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("extra", [None, ["unspecified"], ["assocalpha"], ["unassalpha"]])
def test_a_fourth_band_is_transparency_only_where_the_file_says_so(depth, planar, extra):
    data, values = bands(4, depth, extra, planar=planar)
    colour, alpha = values[..., :3], values[..., 3:]
    expected, note = colour * alpha + 1 - alpha, "transparency composed over white"
    if extra == ["assocalpha"]:
        multiplied = np.concatenate([colour * alpha, alpha], axis=-1) * np.iinfo(depth).max
        multiplied = np.rint(multiplied).astype(depth)
        data, _ = bands(4, depth, extra, planar=planar, values=multiplied)
    elif extra != ["unassalpha"]:
        expected = colour
        note = "band 4 left out: beyond the colours, and not said to be transparency (ExtraSamples)"
    picture = decode(data)
    assert picture.notes == (note,)
    within = (2.1 if extra == ["assocalpha"] else 0.6) / 255 if depth == np.uint8 else 5e-5
    assert np.allclose(picture.as_float(), expected, atol=within)


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


def test_grey_with_alpha_goes_through_tifffile(monkeypatch):
    """OpenCV would cut it to 8 bits and drop the alpha."""
    both = np.ascontiguousarray(RGBA16[..., [0, 3]])
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    data = tiff(both, extrasamples=["unassalpha"], **options)
    alpha = both[..., 1] / 65535
    assert near(data, both[..., 0] / 65535 * alpha + 1 - alpha)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingExtraError, match=r"tifffile .* 'blemish\[medical\]'"):
        decode(data)


def test_compressions_that_deep_pictures_come_in():
    slope = np.add.outer(np.arange(40) * 500, np.arange(30) * 300).astype(np.uint16)
    smooth = slope[..., None] + RGB16[:1, :1] // 2
    expected = unit(smooth)
    for values in (smooth, expected):
        for options in ({"predictor": values is smooth}, {"tile": (16, 16)}, {"rowsperstrip": 3}):
            assert same(tiff(values, photometric="rgb", compression="deflate", **options), expected)
    for code in (1, 5, 8, 32773):  # none, LZW, deflate, PackBits
        how = [cv2.IMWRITE_TIFF_COMPRESSION, code]
        assert same(cv2.imencode(".tiff", smooth[..., ::-1], how)[1].tobytes(), expected)
    grey = np.ascontiguousarray(smooth[..., 0])
    for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd"):
        assert same(saved(grey, "TIFF", compression=compression), grey_rgb(unit(grey)))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_float_tiff(dtype):
    values = (GREY16 / 65535).astype(dtype)
    assert same(tiff(values), grey_rgb(values.astype(np.float32)))
    wide = (GREY16 / 100).astype(dtype)
    assert "--window lo,hi" in reason(tiff(wide))
    assert near(tiff(wide), np.clip((wide.astype(float) - 100) / 200, 0, 1), window=(100, 300))
    values[2, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"scan\.tif"):
        decode(tiff(values), name="scan.tif")


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32", "int8"])
def test_integers_of_other_depths_need_a_window(dtype):
    values = np.array([[-100, 0], [50, 120]]).clip(np.iinfo(dtype).min).astype(dtype)
    assert "--window lo,hi" in reason(tiff(values))
    assert near(tiff(values), np.clip(values / np.float32(100), 0, 1), window=(0, 100))


# --- Blocks that are not whole


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_blocks_hold_what_they_announce(compression, mode, capfd):
    rng = np.random.default_rng(3)
    rough = np.tile(SMOOTH, (7, 6, 1)) // 2 + rng.integers(0, 9, (280, 360, 3), dtype=np.uint8)
    data = saved(Image.fromarray(rough).convert(mode), "TIFF", compression=compression)
    image = Image.open(io.BytesIO(data))
    assert same(data, np.asarray(image.convert("RGB")))
    start, size = image.tag_v2[273][0], image.tag_v2[279][0]
    hurt = bytearray(data)
    hurt[start + size // 2 : start + size // 2 + 200] = bytes(200)
    assert "is damaged" in reason(bytes(hurt))
    assert capfd.readouterr().err == ""


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """With another value of a tag that has one."""
    kind = 4 if struct.pack("<HHI", tag, 4, 1) in data else 3
    at = data.index(struct.pack("<HHI", tag, kind, 1)) + 8
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


@pytest.mark.parametrize("values", [RGB, RGB16])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_fewer_pixels_than_announced(values, compression):
    data = tiff(values, photometric="rgb", compression=compression)
    assert reason(with_tag(with_tag(data, 257, 7000), 278, 7)) == FEWER


def test_a_strip_that_is_said_to_be_shorter_than_its_rows():
    data = saved(SMOOTH, "TIFF")
    (size,) = Image.open(io.BytesIO(data)).tag_v2[279]
    assert reason(with_tag(data, 279, size - 1)) == FEWER


def test_a_deflated_block_that_inflates_beyond_the_picture(monkeypatch):
    data = tiff(unit(GREY16).astype(np.float16), compression="deflate")
    assert pixels(data).shape == (7, 5, 3)
    start = tifffile.TiffFile(io.BytesIO(data)).pages[0].dataoffsets[0]
    block = zlib.compress(bytes(10**6))
    swollen = with_tag(data, 279, len(block))[:start] + block
    monkeypatch.setattr(tifffile, "TiffFile", lambda *_: pytest.fail("inflated"))
    assert reason(swollen) == "is damaged: a TIFF with more pixels than it announces"


def test_lengths_of_lzw():
    """Of whole strips; a picture tells a strip of the right length from a shorter one only."""
    from blemish.images.blocks import _lzw

    noise = np.random.default_rng(3).integers(0, 256, (180, 240, 3), dtype=np.uint8)
    for values in (noise, np.zeros_like(noise), noise // 100):
        tags = Image.open(io.BytesIO(data := saved(values, "TIFF", compression="tiff_lzw"))).tag_v2
        for place, (start, size) in enumerate(zip(tags[273], tags[279], strict=True)):
            expected = min(tags[278], 180 - place * tags[278]) * 240 * 3
            assert _lzw(data[start : start + size], expected + 1) == expected


def test_a_page_chain_that_loops_ends():
    data = bytearray(saved(RGB, "TIFF"))
    (start,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * entries, start)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(bytes(data), RGB)
