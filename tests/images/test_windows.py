"""Big pictures read in windows: the pixels, notes, digest and errors of the whole decode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made import tiff

from blemish.images import Windows, decode, open_windows, windows
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
