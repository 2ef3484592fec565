"""DICOM: windows and tables of the standard, whole pixels, and nothing about a patient."""

from __future__ import annotations

import struct
import sys
import traceback
import warnings

import numpy as np
import pytest
from fuzzing.pictures import dicom
from made import GREY, RGB, SMOOTH, grey_rgb, near, pixels, reason, same, saved
from PIL import ImageFile
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, itemize_fragment
from pydicom.pixels import convert_color_space

from blemish.errors import ImageError, MissingExtraError
from blemish.images import decode

BASELINE, JPEG_LS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.80"
RUN_LENGTH, DEFLATED = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.99"
CT = np.random.default_rng(7).integers(0, 4096, (7, 6), dtype=np.uint16)
NOISE = np.random.default_rng(3).integers(0, 256, (40, 60), dtype=np.uint8)


def test_without_a_window_it_spans_what_is_stored():
    picture = decode(dicom(CT, BitsStored=12))
    assert picture.pixels.dtype == np.float32
    assert np.array_equal(picture.pixels, grey_rgb(CT / np.float32(4095)))
    signed = CT.astype(np.int16) - 2048
    rescaled = dicom(signed, BitsStored=12, RescaleSlope=2, RescaleIntercept=-10)
    assert near(rescaled, (signed + 2048.0) / 4095)
    assert same(dicom(GREY), grey_rgb(GREY / np.float32(255)))
    assert near(dicom(CT, BitsStored=12, RescaleSlope=-1, RescaleIntercept=0), 1 - CT / 4095)


def linear(x: float, centre: float, width: float) -> float:
    """PS3.3 C.11.2.1.2.1 with the output range [0, 1]."""
    if x <= centre - 0.5 - (width - 1) / 2:
        return 0.0
    if x > centre - 0.5 + (width - 1) / 2:
        return 1.0
    return (x - (centre - 0.5)) / (width - 1) + 0.5


def test_the_window_follows_the_standard():
    rescale = {"RescaleSlope": "0.5", "RescaleIntercept": "-1000"}
    hounsfield = CT * 0.5 - 1000
    data = dicom(CT, BitsStored=12, WindowCenter=[-200, 40], WindowWidth=[900, 400], **rescale)
    assert near(data, np.vectorize(linear)(hounsfield, -200.0, 900.0))
    assert near(data, np.clip((hounsfield + 500) / 1000, 0, 1), window=(-500, 500))
    window = {"WindowCenter": -200, "WindowWidth": 900, **rescale}
    exact = dicom(CT, VOILUTFunction="LINEAR_EXACT", **window)
    assert near(exact, np.clip((hounsfield + 200) / 900 + 0.5, 0, 1))
    sigmoid = dicom(CT, VOILUTFunction="SIGMOID", **window)
    assert near(sigmoid, 1 / (1 + np.exp(-4 * (hounsfield + 200) / 900)))
    assert near(sigmoid, np.clip(hounsfield, 0, 1), window=(0, 1))
    assert near(dicom(CT, WindowCenter=2000, WindowWidth=1), CT > 1999.5)
    unusable = dicom(CT, BitsStored=12, WindowCenter=100, WindowWidth=0)
    assert same(unusable, pixels(dicom(CT, BitsStored=12)))


def test_monochrome1_is_inverted():
    plain, inverted = (dicom(CT, f"MONOCHROME{kind}", BitsStored=12) for kind in (2, 1))
    assert same(inverted, 1 - pixels(plain))
    assert same(inverted, 1 - pixels(plain, window=(100, 900)), window=(100, 900))


def test_tables():
    table = np.minimum(np.arange(256) ** 2, 65535).astype(np.uint16)
    item = Dataset()
    item.LUTDescriptor, item.LUTData, item.ModalityLUTType = [256, 0, 16], table.tolist(), "US"
    item["LUTData"].VR = item["LUTDescriptor"].VR = "US"
    wide = GREY.astype(np.uint16)
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        assert near(dicom(wide, **{keyword: [item]}), table[GREY] / 65535)
    rescaled = dicom(wide, VOILUTSequence=[item], RescaleSlope=1, RescaleIntercept=1)
    assert near(rescaled, table[np.minimum(GREY.astype(int) + 1, 255)] / 65535)


def test_colour():
    assert same(dicom(RGB, "RGB"), RGB)
    planes = RGB.transpose(2, 0, 1).tobytes() + b"\0"
    assert same(dicom(RGB, "RGB", PlanarConfiguration=1, PixelData=planes), RGB)
    smooth = SMOOTH[:6, :6].copy()
    found = pixels(dicom(convert_color_space(smooth, "RGB", "YBR_FULL"), "YBR_FULL"))
    assert np.abs(found.astype(int) - smooth).max() <= 2
    assert near(dicom(RGB.astype(np.uint16), "RGB", BitsStored=8), RGB / 255)
    assert "colour space" in reason(dicom(GREY, "PALETTE COLOR"))


def test_refusals():
    assert "has 3 frames" in reason(dicom(CT, NumberOfFrames=3))
    assert "max_pixels" in reason(dicom(CT, Rows=30000, Columns=30000))
    words = reason(dicom(CT, syntax=JPEG_LS, PixelData=encapsulate([CT.tobytes()])))
    assert words.startswith(
        "has a transfer syntax that cannot be decoded (JPEG-LS Lossless Image Compression); convert"
    )
    assert "Deflated" in reason(dicom(CT, syntax=DEFLATED))
    unknown = dicom(CT).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")
    assert "(unknown)" in reason(unknown)


def test_it_holds_the_pixels_that_it_announces():
    for attributes, words in (
        ({"PixelData": NOISE.tobytes() * 2}, "it holds more pixels than its 60 × 40"),
        ({"PixelData": NOISE.tobytes() + bytes(NOISE.size)}, "more pixels"),
        ({"PixelData": NOISE.tobytes()[:-2]}, "truncated"),
        ({"Rows": 80}, "truncated"),
        ({"Rows": 20}, "more pixels"),
        ({"HighBit": 3}, "3 as its high bit"),
        ({"BitsStored": 12, "HighBit": 11}, "12 bits stored of 8"),
        ({"SamplesPerPixel": 3, "PlanarConfiguration": 0}, "3 samples a pixel"),
    ):
        assert words in reason(dicom(NOISE, **attributes))


@pytest.mark.parametrize("lenient", [False, True])
def test_truncation(lenient, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data = dicom(CT, BitsStored=12)
    for cut in [*range(132, len(data), 5), len(data) - 1]:
        assert "truncated" in reason(data[:cut])


def compressed(parts: list[bytes], syntax: str, *, table: bool = False) -> bytes:
    items = b"".join(itemize_fragment(part + b"\0" * (len(part) % 2)) for part in parts)
    coded = encapsulate(parts) if table else b"\xfe\xff\x00\xe0\0\0\0\0" + items
    return dicom(NOISE, syntax=syntax, PixelData=coded)


def test_compressed_pixels_are_one_whole_frame():
    frame = saved(NOISE, "JPEG", quality=95)
    whole = pixels(compressed([frame], BASELINE))
    assert np.array_equal(whole * 255, pixels(frame).astype(np.float32))
    cut = len(frame) // 2 // 2 * 2
    assert same(compressed([frame[:cut], frame[cut:]], BASELINE), whole)
    for table in (False, True):
        assert "has 2 frames" in reason(compressed([frame, frame], BASELINE, table=table))
    assert "is damaged" in reason(compressed([frame[:cut] + b"\xff\xd9"], BASELINE))
    larger = saved(np.tile(NOISE, (2, 2)), "JPEG")
    assert "its JPEG is 120 × 80, not 60 × 40" in reason(compressed([larger], BASELINE))


def test_runs_hold_the_pixels_that_are_announced():
    data, whole = dicom(CT, BitsStored=12, run_lengths=True), pixels(dicom(CT, BitsStored=12))
    assert same(data, whole)
    for cut in range(140, len(data), 7):
        try:
            assert same(data[:cut], whole)
        except ImageError:
            continue
    head = struct.pack("<16I", 1, 64, *[0] * 14)
    runs = b"".join(b"\x3b" + row.tobytes() for row in NOISE)
    assert same(compressed([head + runs], RUN_LENGTH), grey_rgb(NOISE / np.float32(255)))
    assert "not as many" in reason(compressed([head + runs + runs], RUN_LENGTH))
    assert "truncated" in reason(compressed([head + runs[:-61]], RUN_LENGTH))


def test_nothing_about_a_patient_gets_out(capfd, caplog):
    caplog.set_level(0)
    secrets = {
        "PatientName": "Doe^Jane",
        "PatientID": "SECRET-ID-4711",
        "PatientBirthDate": "19700131",
        "InstitutionName": "Hospital-of-Secrets",
    }
    good = dicom(CT, BitsStored=12, **secrets)
    bad = [
        good[:-10],
        good[:400],
        *(
            dicom(CT, **secrets, **more)
            for more in (
                {"NumberOfFrames": 2},
                {"Rows": 65000, "Columns": 65000},
                {"syntax": JPEG_LS, "PixelData": encapsulate([CT.tobytes()])},
                {"photometric": "DOE JANE"},
                {"BitsStored": 99},
            )
        ),
        good.replace(b"MONOCHROME2", b"Doe^Jane   "),
        good.replace(b"\x28\0\x10\0US", b"\x28\0\x10\0PN"),
        good.replace(b"1.2.840.10008.1.2.1\0", b"1.2.3.4.5.6.7.8.4711"),
    ]
    for data in bad:
        with pytest.raises(ImageError) as caught:
            decode(data, name="a.dcm")
        error = caught.value
        assert error.__cause__ is None
        assert error.__context__ is None
        said = "".join(traceback.format_exception(error))
        assert not any(secret in said for secret in [*secrets.values(), "4711", "DOE", "Doe"])
    picture = decode(good)
    printed = capfd.readouterr()
    everything = repr(picture.notes) + picture.source + printed.out + printed.err + caplog.text
    assert not any(secret in everything for secret in secrets.values())


def test_pydicoms_warnings_are_silent_and_filters_are_left_as_they_were():
    padded = dicom(CT, PixelData=CT.tobytes() + bytes(20))
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(padded, pixels(dicom(CT)))
    assert warnings.filters == before


def test_it_needs_its_extra(monkeypatch):
    data = dicom(CT)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    words = r"pydicom is needed to read DICOM files: pip install 'blemish\[medical\]'"
    with pytest.raises(MissingExtraError, match=words):
        decode(data)
