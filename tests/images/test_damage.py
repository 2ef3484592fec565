"""Files that end early, hold too much or were hurt on the way: refused, wherever their format can
tell.
"""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from blemish.errors import ImageError
from blemish.images import decode

rng = np.random.default_rng(3)
NOISE = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
SMOOTH = np.clip(cv2.GaussianBlur(NOISE, (0, 0), 2).astype(int) + NOISE // 32, 0, 255).astype(
    np.uint8
)


def saved(values: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(file, kind, **options)
    return file.getvalue()


def reason(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value.reason


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    side: tuple[int, int],
    depth: int,
    colour: int,
    stream: bytes,
    before: bytes = b"",
    interlace: int = 0,
) -> bytes:
    head = struct.pack(">IIBBBBB", *side, depth, colour, 0, 0, interlace)
    coded = chunk(b"IDAT", zlib.compress(stream))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + coded + chunk(b"IEND", b"")


# --- JPEG
# ------------------------------------------------------------------------------------------------------------

JPEGS = [
    {},
    {"progressive": True},
    {"restart_marker_rows": 1},
    {"subsampling": 0},
    {"subsampling": "4:1:1"},
]


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_with_a_hole_is_damaged(options, mode):
    if mode == "CMYK":
        options = {**options, "subsampling": 0}
    data = saved(Image.fromarray(SMOOTH).convert(mode), "JPEG", quality=95, **options)
    start = data.index(b"\xff\xda") + 14
    middle = start + (len(data) - start) // 2
    assert "is damaged" in reason(data[:middle] + b"\xff\xd9")
    assert "is damaged" in reason(data[: middle - 500] + bytes(1000) + data[middle + 500 :])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 1, 2, "4:1:1"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
def test_whole_jpegs_have_pillows_pixels(mode, subsampling, options):
    for size in ((1, 1), (17, 33), (64, 47)):
        image = Image.fromarray(cv2.resize(SMOOTH, size)).convert(mode)
        data = saved(
            image, "JPEG", quality=80, subsampling=subsampling if mode != "L" else -1, **options
        )
        expected = Image.open(io.BytesIO(data)).convert("RGB")
        assert np.array_equal(decode(data).pixels, np.asarray(expected))
    if mode == "RGB":
        data = saved(image, "JPEG", keep_rgb=True)
        assert np.array_equal(decode(data).pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_what_cameras_write_wrong_harms_no_jpeg():
    data = saved(SMOOTH, "JPEG")
    whole = decode(data).pixels
    scan = data.index(b"\xff\xda") + 4 + 7
    jfif = data.index(b"JFIF\0") + 5
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\7"
    for other in (
        data[:scan] + b"\0\0\0" + data[scan + 3 :],  # the scan parameters
        data[:jfif] + b"\x09\x09" + data[jfif + 2 :],  # the version of JFIF
        data[:2] + adobe + data[2:],  # an unknown transform
        data[:-2] + b"\0\0\xff\xd9",  # filled up to whole words
        data[:-2] + b"\xff\xff\xd9",
        data + b"trailing",
    ):
        assert np.array_equal(decode(other).pixels, whole)
    assert "is damaged" in reason(data[:-2] + bytes(200) + b"\xff\xd9")


def test_a_jpeg_of_countless_scans():
    data = saved(SMOOTH, "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    assert "scans; the limit is" in reason(data[:scan] + data[scan:-2] * 300 + b"\xff\xd9")


# --- PNG
# -------------------------------------------------------------------------------------------------------------

KINDS = (
    [(d, 0) for d in (1, 2, 4, 8, 16)]
    + [(d, 3) for d in (1, 2, 4, 8)]
    + [(d, c) for d in (8, 16) for c in (2, 4, 6)]
)


@pytest.mark.parametrize(("depth", "colour"), KINDS)
@pytest.mark.parametrize("interlace", [0, 1])
def test_a_png_holds_what_it_announces(depth, colour, interlace):
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = [(1, 1), (1, 1), (2, 1), (1, 2), (3, 2), (2, 4), (5, 3)] if interlace else [(5, 7)]
    stream = b"".join((b"\0" + bytes((w * bits + 7) // 8)) * h for w, h in passes)  # 5 × 7 pixels
    palette = chunk(b"PLTE", bytes(6)) if colour == 3 else b""
    assert decode(png((5, 7), depth, colour, stream, palette, interlace)).size == (7, 5)
    assert "fewer pixels than it announces" in reason(
        png((5, 7), depth, colour, stream[:-1], palette, interlace)
    )
    assert "more pixels than it announces" in reason(
        png((5, 7), depth, colour, stream + b"\0", palette, interlace)
    )


def test_122_bytes_ask_for_no_gigabyte(monkeypatch):
    monkeypatch.setattr("blemish.images.raster.load", lambda *_: pytest.fail("decoded"))
    assert "fewer pixels than it announces" in reason(png((14142, 14142), 8, 2, bytes(50)))
    swollen = png((5, 7), 8, 2, bytes(10**7))
    assert "more pixels" in reason(swollen)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_one_see_through_grey_of_few_bits(depth):
    top = 2**depth - 1
    rows = (
        b"\0"
        + bytes([0x01 << 8 - 2 * depth & 0xFF if depth < 8 else 0])
        + (b"\x01" if depth == 8 else b"")
    )
    data = png((2, 1), depth, 0, rows, chunk(b"tRNS", struct.pack(">H", 1)))
    assert decode(data).pixels[0, :, 0].tolist() == [0, 255]  # 0, and 1 that is see-through
    shown = decode(png((2, 1), depth, 0, rows, chunk(b"tRNS", struct.pack(">H", 0)))).pixels[
        0, :, 0
    ]
    assert shown.tolist() == [255, 255 // top]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_see_through_colours_of_a_palette(depth):
    rows = (
        b"\0"
        + bytes([0x01 << 8 - 2 * depth & 0xFF if depth < 8 else 0])
        + (b"\x01" if depth == 8 else b"")
    )
    before = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60])) + chunk(b"tRNS", b"\xff\x00")
    assert decode(png((2, 1), depth, 3, rows, before)).pixels.tolist() == [
        [[10, 20, 30], [255] * 3]
    ]


# --- TIFF
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_blocks_of_a_tiff_hold_what_they_announce(compression, mode, capfd):
    image = Image.fromarray(np.kron(SMOOTH, np.ones((3, 3, 1), np.uint8))).convert(mode)
    data = saved(image, "TIFF", compression=compression)
    assert np.array_equal(
        decode(data).pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    )
    tags = Image.open(io.BytesIO(data)).tag_v2
    start, size = tags[273][0], tags[279][0]
    hurt = bytearray(data)
    hurt[start + size // 2 : start + size // 2 + 200] = bytes(200)
    assert "is damaged" in reason(bytes(hurt))
    assert capfd.readouterr().err == ""


def test_a_strip_that_is_said_to_be_shorter_than_its_rows():
    data = bytearray(saved(SMOOTH, "TIFF"))
    size = Image.open(io.BytesIO(bytes(data))).tag_v2[279][0]
    at = data.index(struct.pack("<HHII", 279, 4, 1, size)) + 8
    data[at : at + 4] = struct.pack("<I", size - 1)
    assert "fewer pixels than it announces" in reason(bytes(data))


def test_lengths_of_lzw():
    from blemish.images.blocks import _lzw

    for values in (NOISE, np.zeros_like(NOISE), SMOOTH):
        data = saved(np.kron(values, np.ones((2, 2, 1), np.uint8)), "TIFF", compression="tiff_lzw")
        tags = Image.open(io.BytesIO(data)).tag_v2
        rows = tags[278]
        for place, (start, size) in enumerate(zip(tags[273], tags[279], strict=True)):
            expected = min(rows, 180 - place * rows) * 240 * 3
            assert _lzw(data[start : start + size], expected + 1) == expected


# --- BMP
# -------------------------------------------------------------------------------------------------------------


def run_length_bmp(side: int, runs: bytes, bits: int = 8) -> bytes:
    palette = bytes(part for i in range(2**bits) for part in (i, 2 * i % 256, 255 - i, 0))
    header = struct.pack(
        "<IiiHHIIiiII", 40, side, side, 1, bits, 1 if bits == 8 else 2, len(runs), 0, 0, 2**bits, 0
    )
    offset = 54 + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(runs), 0, 0, offset) + header + palette + runs


def test_a_run_length_bmp_takes_no_longer_than_its_bytes_allow():
    assert "fewer pixels" in reason(run_length_bmp(14142, bytes([0, 1])))
    assert "truncated" in reason(run_length_bmp(14142, bytes([0, 0]) * 200))
    assert "leave the picture" in reason(run_length_bmp(4, bytes([5, 1, 0, 1])))
    runs = bytes([4, 7, 0, 0, 0, 3, 1, 2, 3, 0, 1, 9, 0, 0, 0, 2, 1, 0, 3, 5, 0, 0, 4, 1, 0, 1])
    expected = np.array([[1] * 4, [0, 5, 5, 5], [1, 2, 3, 9], [7] * 4])
    assert np.array_equal(
        decode(run_length_bmp(4, runs)).pixels,
        np.stack([255 - expected, 2 * expected, expected], -1),
    )
    runs = bytes([4, 0x12, 0, 0, 0, 3, 0x12, 0x30, 1, 0x90, 0, 0, 4, 0, 0, 0, 4, 0x33, 0, 1])
    expected = np.array([[3] * 4, [0] * 4, [1, 2, 3, 9], [1, 2, 1, 2]])
    found = decode(run_length_bmp(4, runs, bits=4)).pixels
    assert np.array_equal(found, np.stack([255 - expected, 2 * expected, expected], -1))


# --- DICOM
# -----------------------------------------------------------------------------------------------------------


def dicom(values: np.ndarray, **attributes: object) -> bytes:
    pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = values.tobytes()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def compressed(
    parts: list[bytes], syntax: str, values: np.ndarray, *, table: bool = False
) -> bytes:
    from pydicom import dcmread
    from pydicom.encaps import encapsulate, itemize_fragment
    from pydicom.uid import UID

    dataset = dcmread(io.BytesIO(dicom(values)))
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    items = b"".join(itemize_fragment(part + b"\0" * (len(part) % 2)) for part in parts)
    dataset.PixelData = encapsulate(parts) if table else b"\xfe\xff\x00\xe0\0\0\0\0" + items
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


GREY = np.ascontiguousarray(SMOOTH[:40, :60, 0])
BASELINE, RUN_LENGTH = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.5"


def test_dicom_holds_the_pixels_that_it_announces():
    assert np.array_equal(decode(dicom(GREY)).pixels[..., 0], GREY / np.float32(255))
    assert "it holds more pixels than its 60 × 40" in reason(
        dicom(GREY, PixelData=GREY.tobytes() * 2)
    )
    assert "more pixels" in reason(dicom(GREY, PixelData=GREY.tobytes() + bytes(GREY.size)))
    assert "truncated" in reason(dicom(GREY, PixelData=GREY.tobytes()[:-2]))
    assert "truncated" in reason(dicom(GREY, Rows=80))
    assert "more pixels" in reason(dicom(GREY, Rows=20))
    assert "3 as its high bit" in reason(dicom(GREY, HighBit=3))
    assert "12 bits stored of 8" in reason(dicom(GREY, BitsStored=12, HighBit=11))
    assert "3 samples a pixel" in reason(dicom(GREY, SamplesPerPixel=3, PlanarConfiguration=0))


def test_dicom_of_compressed_pixels_is_one_whole_frame():
    frame = saved(GREY, "JPEG", quality=95)
    whole = decode(compressed([frame], BASELINE, GREY)).pixels
    assert np.array_equal(whole * 255, decode(frame).pixels.astype(np.float32))
    cut = len(frame) // 2 // 2 * 2
    assert np.array_equal(
        decode(compressed([frame[:cut], frame[cut:]], BASELINE, GREY)).pixels, whole
    )
    for table in (False, True):
        assert "has 2 frames" in reason(compressed([frame, frame], BASELINE, GREY, table=table))
    assert "is damaged" in reason(compressed([frame[:cut] + b"\xff\xd9"], BASELINE, GREY))
    larger = saved(np.ascontiguousarray(SMOOTH[..., 0]), "JPEG")
    assert "its JPEG is 120 × 90, not 60 × 40" in reason(compressed([larger], BASELINE, GREY))


def test_dicom_of_runs_holds_the_pixels_that_it_announces():
    head = struct.pack("<16I", 1, 64, *[0] * 14)
    runs = b"".join(b"\x3b" + row.tobytes() for row in GREY)
    found = decode(compressed([head + runs], RUN_LENGTH, GREY)).pixels[..., 0]
    assert np.array_equal(found, GREY / np.float32(255))
    assert "not as many" in reason(compressed([head + runs + runs], RUN_LENGTH, GREY))
    assert "truncated" in reason(compressed([head + runs[:-61]], RUN_LENGTH, GREY))


def test_a_progressive_jpeg_that_lacks_scans_is_damaged() -> None:
    """Cut between two scans and closed, each scan is whole; the picture is a coarse one."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(
        file, "JPEG", progressive=True
    )
    data = file.getvalue()
    decode(data)
    scans = [place for place in range(len(data) - 1) if data[place : place + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for place in scans[1:]:
        table = data.rfind(b"\xff\xc4", 0, place)  # a scan's tables stand before it
        for cut in {place, table if table > scans[0] else place}:
            with pytest.raises(ImageError, match=r"damaged|truncated"):
                decode(data[:cut] + b"\xff\xd9")


def test_a_flipped_bit_anywhere_in_a_png_is_noticed() -> None:
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
