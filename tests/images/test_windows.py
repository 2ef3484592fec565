"""Big pictures read in windows: the pixels, notes, digest and errors of the whole decode."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from made import saved, tiff
from PIL import Image

from blemish.errors import BlemishError, ConfigError, ImageError
from blemish.images import Limits, Windows, decode, open_windows, windows
from blemish.images import pieces as in_pieces

HEIGHT, WIDTH = 75, 90
rng = np.random.default_rng(11)
SLOPE = np.add.outer(np.arange(HEIGHT) * 2, np.arange(WIDTH))[..., None] + np.arange(0, 160, 40)
SMOOTH = (SLOPE % 200 + rng.integers(0, 9, (HEIGHT, WIDTH, 4))).astype(np.uint8)
DEEP = SMOOTH.astype(np.uint16) * 257
PLACES = [(0, 75, 0, 90), (0, 16, 0, 16), (10, 40, 20, 70), (74, 75, 89, 90), (31, 33, 5, 90)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few strips, and fewer of them kept than are in the picture."""
    monkeypatch.setattr(in_pieces, "_PIXELS", 1500)
    monkeypatch.setattr(windows, "_KEPT", 20_000)


def placed(folder: Path, data: bytes) -> Path:
    path = folder / "big.tif"
    path.write_bytes(data)
    return path


def opened(path: Path, **options: object) -> Windows:
    found = open_windows(path, in_memory=100, **options)
    assert not found.whole
    return found


def agrees(folder: Path, data: bytes, **options: object) -> tuple[str, ...]:
    """Reads windows of a TIFF, which are those of the whole; gives its notes."""
    path = placed(folder, data)
    picture = decode(path, **options)
    with opened(path, **options) as found:
        assert found.size == picture.size
        assert (found.source, found.notes) == (picture.source, picture.notes)
        assert found.digest == picture.digest
        for top, bottom, left, right in PLACES:
            part = found.read(slice(top, bottom), slice(left, right))
            assert part.dtype == picture.pixels.dtype
            assert np.array_equal(part, picture.pixels[top:bottom, left:right])
    return picture.notes


LAYOUTS = [{"tile": (16, 32)}, {"tile": (80, 96)}, {"rowsperstrip": 7}, {"rowsperstrip": 75}]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize(
    ("values", "photometric"),
    [
        (SMOOTH[..., 0], "minisblack"),
        (SMOOTH[..., 0], "miniswhite"),
        (SMOOTH[..., :3], "rgb"),
        (SMOOTH, "rgb"),
        (DEEP[..., 0], "miniswhite"),
        (DEEP[..., :3], "rgb"),
        (DEEP, "rgb"),
    ],
    ids=["grey", "inverted", "RGB", "RGBA", "inverted 16", "RGB 16", "RGBA 16"],
)
def test_layouts_and_bands(tmp_path, layout, compression, values, photometric):
    more = {"extrasamples": ["unassalpha"]} if values.shape[2:] == (4,) else {}
    big, order = len(layout) + values.ndim + values.itemsize, "<>"[values.itemsize - 1]
    options = {"bigtiff": big % 2 == 0, "byteorder": order, "compression": compression}
    notes = agrees(tmp_path, tiff(values, photometric=photometric, **layout, **more, **options))
    assert ("transparency composed over white" in notes) == (values.shape[2:] == (4,))


def patched(data: bytes, tag: int, value: int) -> bytes:
    """With another value of a tag that has one."""
    kind = 4 if struct.pack("<HHI", tag, 4, 1) in data else 3
    at = data.index(struct.pack("<HHI", tag, kind, 1)) + 8
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


def coded_tiles(
    values: np.ndarray, side: int, one: Callable[[np.ndarray], bytes]
) -> Iterator[bytes]:
    for top in range(0, len(values), side):
        for left in range(0, values.shape[1], side):
            part = values[top : top + side, left : left + side]
            tile = np.zeros((side, side, *values.shape[2:]), values.dtype)
            tile[: part.shape[0], : part.shape[1]] = part
            yield one(tile)


def strip_of(compression: str) -> Callable[[np.ndarray], bytes]:
    """Compresses by libtiff."""

    def one(values: np.ndarray) -> bytes:
        data = saved(values, "TIFF", compression=compression, tiffinfo={278: len(values)})
        tags = Image.open(io.BytesIO(data)).tag_v2
        return data[tags[273][0] : tags[273][0] + tags[279][0]]

    return one


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("compression", "code"), [("tiff_lzw", 5), ("packbits", 32773)])
def test_tiles_of_other_compressions(tmp_path, compression, code, channels):
    values = np.ascontiguousarray(SMOOTH[..., :3] if channels == 3 else SMOOTH[..., 0])
    tiles = coded_tiles(values, 32, strip_of(compression))
    options = {"photometric": "rgb" if channels == 3 else "minisblack", "compression": "zlib"}
    data = tiff(tiles, shape=values.shape, dtype=np.uint8, tile=(32, 32), **options)
    agrees(tmp_path, patched(data, 259, code))


@pytest.mark.parametrize("sampling", [0, 2])
def test_tiles_of_jpeg(tmp_path, sampling):
    values = np.ascontiguousarray(SMOOTH[..., :3])
    tiles = coded_tiles(values, 32, lambda tile: saved(tile, "JPEG", subsampling=sampling))
    options = {"photometric": "ycbcr", "compression": "zlib", "tile": (32, 32)}
    data = patched(tiff(tiles, shape=values.shape, dtype=np.uint8, **options), 259, 7)
    entry = struct.pack("<HHI", 530, 3, 2)  # YCbCrSubsampling
    factor = 1 + sampling // 2
    assert entry + struct.pack("<HH", 1, 1) in data
    data = data.replace(
        entry + struct.pack("<HH", 1, 1), entry + struct.pack("<HH", factor, factor)
    )
    agrees(tmp_path, data)
    picture = decode(tmp_path / "big.tif").pixels
    assert np.abs(picture.astype(int) - values).mean() < 8  # they are that picture


@pytest.mark.parametrize("rows", [16, 75])
@pytest.mark.parametrize(
    ("mode", "compression"),
    [
        *((mode, how) for mode in ("L", "RGB") for how in ("tiff_lzw", "packbits", "jpeg", "zstd")),
        *((mode, "tiff_lzw") for mode in ("P", "LA", "RGBA", "CMYK", "1", "I;16")),
        *(("1", how) for how in ("raw", "group3", "group4", "packbits")),
        ("YCbCr", "jpeg"),
        ("P", "raw"),
    ],
)
def test_strips_as_pillow_writes_them(tmp_path, mode, compression, rows):
    rgb = Image.fromarray(np.ascontiguousarray(SMOOTH[..., :3]))
    if mode == "I;16":
        image = Image.fromarray(np.ascontiguousarray(DEEP[..., 0]))
    elif mode in ("LA", "RGBA"):
        image = Image.fromarray(SMOOTH).convert(mode)
    else:
        image = rgb.quantize(16) if mode == "P" else rgb.convert(mode)
    agrees(tmp_path, saved(image, "TIFF", compression=compression, tiffinfo={278: rows}))


@pytest.mark.parametrize("values", [SMOOTH, DEEP], ids=["8", "16"])
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_predictors(tmp_path, values, compression):
    if values.dtype == np.uint8:
        tags = {317: 2, 278: 9}
        image = Image.fromarray(np.ascontiguousarray(values[..., :3]))
        agrees(tmp_path, saved(image, "TIFF", compression=compression, tiffinfo=tags))
    for layout in LAYOUTS:
        options = {"predictor": 2, "compression": "deflate", "photometric": "rgb"}
        agrees(tmp_path, tiff(values[..., :3], **options, **layout))


def test_notes_of_the_whole_picture(tmp_path):
    """One pixel in the last piece or the first decides."""
    options = {"photometric": "minisblack", "rowsperstrip": 9}
    dark = (SMOOTH[..., 0].astype(np.uint16) * 10) % 4096
    assert agrees(tmp_path, tiff(dark, **options))[0].startswith(
        "16-bit values no higher than 4095"
    )
    dark[-1, -1] = 4096
    assert agrees(tmp_path, tiff(dark, **options)) == ()
    options = {"photometric": "rgb", "tile": (32, 32), "extrasamples": ["unassalpha"]}
    opaque = SMOOTH.copy()
    opaque[..., 3] = 255
    assert agrees(tmp_path, tiff(opaque, **options)) == ()
    for place in (-1, 0):
        clear = opaque.copy()
        clear[place, place, 3] = 254
        assert agrees(tmp_path, tiff(clear, **options)) == ("transparency composed over white",)


def test_floats_and_windows_of_values(tmp_path):
    floats = (DEEP[..., 0] / 65535).astype(np.float32)
    for layout in LAYOUTS:
        agrees(tmp_path, tiff(floats, **layout))
        agrees(tmp_path, tiff(floats * 300, **layout), window=(10, 200))
        agrees(tmp_path, tiff(DEEP[..., 0].astype(np.int32) - 9, **layout), window=(10, 2000))
        agrees(tmp_path, tiff(SMOOTH[..., :3], photometric="rgb", **layout), window=(10, 100))


# --- What is refused, in the words of the whole decode


def reasons(folder: Path, data: bytes, **options: object) -> str:
    """Why a TIFF is refused, whichever way it is read; by an error of the same kind."""
    path = placed(folder, data)
    with pytest.raises(BlemishError) as whole:
        decode(path, **options)
    with pytest.raises(BlemishError) as parts:
        open_windows(path, in_memory=100, **options)
    assert type(parts.value) is type(whole.value)
    assert str(parts.value) == str(whole.value)
    return str(parts.value)


def test_values_that_need_a_window_and_nan(tmp_path):
    floats = (DEEP[..., 0] / 65535).astype(np.float32)
    floats[-1, -1], floats[0, 0] = 7, -2
    assert "float32 pixels from -2 to 7: say" in reasons(tmp_path, tiff(floats, rowsperstrip=8))
    assert "has int16 pixels from -9" in reasons(
        tmp_path, tiff(SMOOTH[..., 0].astype(np.int16) - 9, tile=(16, 16))
    )
    floats[-1, -1] = np.nan
    assert "holds NaN" in reasons(tmp_path, tiff(floats, rowsperstrip=8))
    with pytest.raises(ConfigError, match="lo < hi"):
        open_windows(tmp_path / "big.tif", window=(3, 1))


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_files_that_are_not_whole(tmp_path, tiled, compression):
    layout = {"tile": (32, 32)} if tiled else {"rowsperstrip": 8}
    data = tiff(SMOOTH[..., :3], photometric="rgb", compression=compression, **layout)
    assert "is truncated" in reasons(tmp_path, data[:-1])
    assert "is truncated" in reasons(tmp_path, data[:100])
    assert "is truncated" in reasons(tmp_path, data[:8])
    assert "fewer pixels" in reasons(tmp_path, patched(data, 257, 7000))
    if compression:
        hurt = bytearray(data)
        hurt[-90:-50] = bytes(40)
        assert "is damaged" in reasons(tmp_path, bytes(hurt))


@pytest.mark.parametrize(
    ("compression", "filling", "said"),
    [
        ("tiff_lzw", b"\xff", "is damaged"),
        ("packbits", b"\x80", "is truncated"),
        ("jpeg", b"\xff", "is damaged"),
    ],
)
def test_coded_strips_that_are_damaged(tmp_path, compression, filling, said):
    image = Image.fromarray(np.ascontiguousarray(SMOOTH[..., :3]))
    data = saved(image, "TIFF", compression=compression, tiffinfo={278: 16})
    tags = Image.open(io.BytesIO(data)).tag_v2
    end = tags[273][0] + tags[279][0]
    hurt = data[: end - 450] + 400 * filling + data[end - 50 :]
    assert said in reasons(tmp_path, hurt)


def test_several_pages(tmp_path):
    pages = np.stack([SMOOTH[..., 0]] * 3)
    assert "has 3 pages" in reasons(tmp_path, tiff(pages, photometric="minisblack"))


def test_a_chain_of_pages_without_end_is_not_counted(tmp_path):
    """No more than are needed to refuse it."""
    page = struct.pack("<H", 0)
    chain = b"".join(page + struct.pack("<I", 8 + 6 * place) for place in range(1, 5000))
    said = reasons(tmp_path, b"II*\0" + struct.pack("<I", 8) + chain + page + bytes(4))
    assert "has 1000 pages or more" in said


def test_a_tag_of_more_values_than_any_picture_needs(tmp_path):
    data = tiff(SMOOTH[..., 0], photometric="minisblack")
    at = data.index(struct.pack("<HH", 258, 3))
    data = data[: at + 4] + struct.pack("<I", 2**20 + 1) + data[at + 8 :]
    assert "has 1,048,577 values" in reasons(tmp_path, data).replace("a TIFF with", "has")


def test_limits(tmp_path):
    path = placed(tmp_path, tiff(SMOOTH[..., 0], photometric="minisblack"))
    for limits, said in (
        (Limits(max_pixels_in_windows=6000), r"big\.tif: .* 6,750 pixels; .*max_pixels_in_windows"),
        (Limits(max_bytes_in_windows=6000), r"big\.tif: is \d,\d+ bytes; .*max_bytes_in_windows"),
    ):
        with pytest.raises(ImageError, match=said):
            opened(path, limits=limits)
    # The limits of what is decoded whole do not count.
    small = Limits(max_pixels=200, max_bytes=300)
    assert opened(path, limits=small).digest == decode(path).digest
    # Too many bytes to be read whole, though few pixels.
    with open_windows(path, limits=Limits(max_bytes=300)) as found:
        assert not found.whole


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"photometric": "rgb", "planarconfig": "separate"}, "its bands are stored apart"),
        ({"photometric": "minisblack", "extratags": [(274, 3, 1, 6, True)]}, "stored turned"),
    ],
)
def test_layouts_that_are_decoded_whole(tmp_path, options, said):
    values = SMOOTH[..., 0]
    if "planarconfig" in options:
        values = np.ascontiguousarray(SMOOTH[..., :3].transpose(2, 0, 1))
    path = placed(tmp_path, tiff(values, **options))
    picture, found = decode(path), open_windows(path, in_memory=100)
    assert found.whole
    assert (found.size, found.digest) == (picture.size, picture.digest)
    with pytest.raises(ImageError, match=f"max_pixels.*cannot be read in windows: .*{said}.*save"):
        open_windows(path, in_memory=100, limits=Limits(max_pixels=200))


def test_a_row_of_pieces_that_takes_too_much(tmp_path, monkeypatch):
    path = placed(tmp_path, tiff(SMOOTH[..., 0], photometric="minisblack", compression="zlib"))
    assert not open_windows(path, in_memory=100).whole
    monkeypatch.setattr(in_pieces, "_MOST_BYTES", 1000)
    assert open_windows(path, in_memory=100).whole


def test_what_is_no_file_of_a_picture(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    for path in (tmp_path, tmp_path / "missing.tif", text, Path(os.devnull)):
        with pytest.raises(ImageError) as whole:
            decode(path)
        with pytest.raises(ImageError) as parts:
            open_windows(path, in_memory=1)
        assert str(parts.value) == str(whole.value)


# --- Everything else


def test_other_sources_are_read_by_slicing(tmp_path):
    grey = np.ascontiguousarray(SMOOTH[..., 0])
    path = placed(tmp_path, tiff(grey))
    sources = (grey, Image.fromarray(grey), saved(grey), path.read_bytes(), str(path))
    for source in sources:
        with open_windows(source) as found:
            assert found.whole
            assert np.array_equal(
                found.read(slice(3, 9), slice(4, 7)), decode(grey).pixels[3:9, 4:7]
            )
            assert found.digest == decode(grey).digest
    png = tmp_path / "a.png"
    png.write_bytes(saved(grey))
    assert open_windows(png, in_memory=1).whole
    assert open_windows(png, name="part 7").source == "part 7"


def test_slices_as_of_an_array(tmp_path):
    path = placed(tmp_path, tiff(SMOOTH[..., :3], photometric="rgb", tile=(16, 16)))
    pixels = decode(path).pixels
    for found in (opened(path), open_windows(path)):
        for rows, columns in (
            (slice(None), slice(-5, None)),
            (slice(70, 900), slice(0, 1)),
            (slice(9, 9), slice(3, 5)),
            (slice(9, 3), slice(100, 120)),
        ):
            part = found.read(rows, columns)
            assert part.shape == pixels[rows, columns].shape
            assert np.array_equal(part, pixels[rows, columns])
        with pytest.raises(ConfigError, match="no step"):
            found.read(slice(0, 9, 2), slice(0, 3))


def test_rows_of_windows_decode_each_tile_at_most_twice(tmp_path, monkeypatch):
    path = placed(tmp_path, tiff(SMOOTH[..., :3], photometric="rgb", tile=(16, 16)))
    found = opened(path)
    decoded: list[tuple[int, int]] = []
    once = in_pieces.Grid.decoded

    def counted(grid, coded, row, column):
        decoded.append((row, column))
        return once(grid, coded, row, column)

    monkeypatch.setattr(in_pieces.Grid, "decoded", counted)
    for top in range(0, 75, 18):
        for left in range(0, 90, 18):
            found.read(slice(top, top + 24), slice(left, left + 24))
    assert set(decoded) == {(row, column) for row in range(5) for column in range(6)}
    assert max(map(decoded.count, decoded)) <= 2


def test_what_lies_far_above_the_latest_window_is_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "_KEPT", 2**20)
    pixels = SMOOTH[..., :3]
    found = opened(placed(tmp_path, tiff(pixels, photometric="rgb", tile=(16, 16))))
    for top in (0, 16, 32, 48, 0):
        part = found.read(slice(top, top + 16), slice(None))
        assert np.array_equal(part, pixels[top : top + 16])
        assert {row for row, _ in found._kept} >= {top // 16}
        assert all(row >= top // 16 - 1 for row, _ in found._kept)
    assert found._held == sum(raw.values.nbytes for raw in found._kept.values())


def test_many_threads(tmp_path):
    path = placed(tmp_path, tiff(SMOOTH[..., :3], photometric="rgb", compression="zlib"))
    pixels = decode(path).pixels
    with opened(path) as found, ThreadPoolExecutor(4) as pool:
        tops = rng.integers(0, 60, 60).tolist()
        parts = pool.map(lambda top: found.read(slice(top, top + 15), slice(top, top + 20)), tops)
        for top, part in zip(tops, parts, strict=True):
            assert np.array_equal(part, pixels[top : top + 15, top : top + 20])


def test_memory_goes_by_the_pieces(tmp_path):
    """A decode of the whole would need ten times the limit."""
    path = placed(tmp_path, tiff(SMOOTH[..., :3], photometric="rgb", rowsperstrip=4))
    limits = Limits(memory=60_000)
    with pytest.raises(ImageError, match=r"Limits\.memory"):
        decode(path, limits=limits)
    found = opened(path, limits=limits)
    assert found.read(slice(0, 9), slice(0, 9)).shape == (9, 9, 3)


# --- A file that others write to


@pytest.mark.parametrize("change", ["other bytes", "shorter"])
def test_a_file_that_changes_is_no_longer_read(tmp_path, change):
    path = placed(tmp_path, tiff(SMOOTH[..., 0], photometric="minisblack"))
    times = path.stat()
    found = opened(path)
    with path.open("r+b") as file:
        if change == "shorter":
            file.truncate(path.stat().st_size - 40)
        else:
            file.seek(-40, os.SEEK_END)
            file.write(bytes(40))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(
        ImageError, match=r"big\.tif: has changed since it was opened: open it again"
    ):
        found.read(slice(70, 75), slice(80, 90))


@pytest.mark.skipif(os.name != "posix", reason="open files are not removed elsewhere")
def test_a_file_that_is_replaced_or_removed_is_read_as_it_was(tmp_path):
    path = placed(tmp_path, tiff(SMOOTH[..., 0], photometric="minisblack"))
    pixels = decode(path).pixels
    found = opened(path)
    other = tmp_path / "other.tif"
    other.write_bytes(tiff(SMOOTH[..., 1]))
    other.replace(path)
    assert np.array_equal(found.read(slice(0, 20), slice(0, 20)), pixels[:20, :20])
    path.unlink()
    assert np.array_equal(found.read(slice(None), slice(None)), pixels)


def test_after_close(tmp_path):
    found = opened(placed(tmp_path, tiff(SMOOTH[..., 0], photometric="minisblack")))
    found.read(slice(0, 5), slice(0, 5))
    found.close()
    with pytest.raises(ImageError, match="was closed: open it again"):
        found.read(slice(0, 5), slice(0, 5))
