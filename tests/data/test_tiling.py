"""Pictures cut into tiles: where they lie, what they show, and whether to cut at all."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import Write, part, prepared

from blemish.data import tiles as tiles_module
from blemish.data.areas import read_area
from blemish.data.cutting import WELL_SEEN, chosen, cut
from blemish.data.pictures import Pictures, good_pictures, labelled_defects
from blemish.data.stream import Found, PictureStream
from blemish.data.tiles import Tile, TiledPicture, tiled
from blemish.data.tiling import Tiling
from blemish.data.transforms import Preprocessing
from blemish.errors import ConfigError, ImageError
from blemish.images import decode
from blemish.types import Failure, Sample, silent

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
HEIGHT, WIDTH = 100, 150
RIGHT_EDGE = [[[0.9, 0], [1, 0], [1, 1], [0.9, 1]]]


def how(side: int = 32, overlap: float = 0.25, size: int = 32, **more: object) -> Preprocessing:
    tiling = Tiling(side=side, overlap=overlap)
    plain = Preprocessing(height=size, width=size, mean=MEAN, std=STD, tiling=tiling)
    return replace(plain, **more)


def picture(seed: int = 0) -> np.ndarray:
    return part(seed, height=HEIGHT, width=WIDTH)


@given(st.integers(16, 300), st.floats(0, 0.9), st.integers(0, 2000))
def test_tiles_lie_evenly_from_border_to_border(side: int, overlap: float, more: int) -> None:
    tiling, length = Tiling(side=side, overlap=overlap), side + more
    starts = tiling.starts(length)
    assert starts[0] == 0
    assert starts[-1] == length - side
    steps = np.diff(starts)
    assert len(steps) == 0 or (steps.min() >= 0 and steps.max() - steps.min() <= 1)
    # At least as far as asked for, to the pixel that they are rounded to.
    assert len(steps) == 0 or side - steps.max() >= int(side * overlap) - 1
    assert len(set(starts)) == len(starts)


def test_no_tile_more_than_needed() -> None:
    assert Tiling(side=50, overlap=0.0).starts(150) == (0, 50, 100)
    assert Tiling(side=50, overlap=0.5).starts(100) == (0, 25, 50)
    assert Tiling(side=50, overlap=0.0).starts(151) == (0, 34, 67, 101)


@pytest.mark.parametrize("bad", [{"side": 8}, {"side": 64, "overlap": 1.0}, {"side": 40000}])
def test_what_is_no_tiling(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"side|overlap"):
        Tiling(**bad)  # type: ignore[arg-type]


def test_a_tile_shows_its_own_pixels(tmp_path: Path, write: Write) -> None:
    pixels = picture()
    path = write(tmp_path / "a.png", pixels)
    for source in (path, pixels):
        found = tiled(source, how(), name="a")
        assert found.size == (HEIGHT, WIDTH)
        assert found.digest == decode(pixels).digest
        assert len(found.tiles) == 4 * 6
        assert [tile.is_first for tile in found.tiles] == [True] + [False] * 23
        assert [tile.is_last for tile in found.tiles] == [False] * 23 + [True]
        for tile in found.tiles:
            window = tile.window
            assert np.array_equal(tile.cut().pixels, pixels[window.rows, window.columns])
        covered = np.zeros((HEIGHT, WIDTH), bool)
        for tile in found.tiles:
            covered[tile.window.rows, tile.window.columns] = True
        assert covered.all()


def test_closed_it_opens_again_and_only_as_it_was(tmp_path: Path, write: Write) -> None:
    pixels = picture()
    path = write(tmp_path / "a.png", pixels)
    found = tiled(path, how(), name="a.png")
    found.close()
    assert np.array_equal(found.tiles[3].cut().pixels, pixels[:32, found.tiles[3].window.columns])
    found.close()
    write(path, picture(1))
    with pytest.raises(ImageError, match=r"a\.png: has changed since it was first read"):
        found.tiles[0].cut()


def test_few_are_held_open(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles_module, "_AT_HAND", 2 * picture().nbytes)
    found = []
    for number in range(5):
        path = write(tmp_path / f"{number}.png", picture(number))
        found.append(tiled(path, how(), name=path.name))
        found[-1].close()
    for one in found:
        one.tiles[0].cut()
    opened = [one._opened is not None for one in found]
    assert opened == [False, False, False, True, True]
    alive = [weakref.ref(one) for one in found]
    del found, one
    gc.collect()
    assert [ref() for ref in alive] == [None] * 5


def test_a_picture_smaller_than_a_tile() -> None:
    with pytest.raises(ImageError, match=r"is 150 × 100 pixels, smaller than a tile of 128 × 128"):
        tiled(picture(), how(side=128), name="x")
    assert len(tiled(picture(), how(side=100), name="x").tiles) == 2


def test_tiles_outside_the_area_are_left_out() -> None:
    area = read_area(RIGHT_EDGE)
    found = tiled(picture(), how(area=area), name="x")
    assert len(found.tiles) == 4
    assert {tile.window.columns.start for tile in found.tiles} == {118}
    assert found.tiles[0].is_first
    assert found.tiles[-1].is_last


def test_the_area_is_that_of_the_picture() -> None:
    area, pixels = read_area(RIGHT_EDGE), picture()
    found = tiled(pixels, how(area=area), name="x")
    inside = area.mask(HEIGHT, WIDTH) if area else None
    assert inside is not None
    for tile in found.tiles:
        window = tile.window
        tensor = prepared(tile.cut(), how(area=area), window=window).numpy()
        within = inside[window.rows, window.columns]
        shown = pixels[window.rows, window.columns] / 255
        assert np.allclose(
            tensor.transpose(1, 2, 0)[within], (shown[within] - 0.5) / 0.25, atol=1e-3
        )
        assert np.abs(tensor.transpose(1, 2, 0)[~within]).max() < 0.01  # the mean colour, rounded


def test_a_stream_of_tiles(tmp_path: Path, write: Write) -> None:
    """Owners are pictures, copies share one, and what is found can be told by picture."""
    write(tmp_path / "a.png", picture(0))
    write(tmp_path / "b.png", picture(1))
    write(tmp_path / "c.png", picture(0))
    (tmp_path / "d.png").write_bytes(b"nothing")
    preprocessing = how(side=64)
    pictures = cut(good_pictures(tmp_path), preprocessing, silent)
    tiles = 2 * 3
    assert len(pictures.sources) == 3 * tiles + 1 == len(pictures.samples)
    assert isinstance(pictures.sources[-1], Failure)
    stream = PictureStream(pictures.sources, preprocessing, 4)
    reading = iter(stream)
    batches = list(reading)
    owners = [owner for batch in batches for owner in batch.owners.tolist()]
    assert owners == [0] * tiles + [tiles] * tiles + [0] * tiles
    assert [at for batch in batches for at in batch.positions] == list(range(3 * tiles))
    found = reading.found.of_pictures(stream.sources)
    assert sorted(found.digests) == [0, tiles, 2 * tiles]
    assert sorted(found.failures) == [3 * tiles]
    assert found.originals == {0: 0, tiles: tiles, 2 * tiles: 0}
    assert sorted(found.thumbnails) == [0, tiles, 2 * tiles]
    whole = stream.only_whole([tiles])
    assert list(whole.order) == list(range(tiles, 2 * tiles))


def test_of_pictures_leaves_what_is_no_tile() -> None:
    found = Found(digests={0: "a", 2: "b"}, failures={1: Failure(source="x", reason="y")})
    assert found.of_pictures(["p", "q", "r"]) == found


def test_of_defects_only_marked_tiles_are_learned(tmp_path: Path, write: Write) -> None:
    defect = picture()
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:8, 60:70] = 255
    write(tmp_path / "test/crack/000.png", defect)
    write(tmp_path / "ground_truth/crack/000_mask.png", mask)
    write(tmp_path / "test/good/000.png", defect)
    write(tmp_path / "train/good/000.png", defect)
    preprocessing = how()
    found = cut(labelled_defects(tmp_path), preprocessing, silent, defects=True)
    assert 1 <= len(found.sources) < 24
    for tile in found.sources:
        assert isinstance(tile, Tile)
        assert tile.marks is not None
        window = mask[tile.window.rows, tile.window.columns] > 0
        assert window.any()
        assert tile.marks.shape == (8, 8)
        assert float(tile.marks.mean()) == pytest.approx(window.mean(), abs=1e-6)


def test_defects_that_are_nowhere(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "a.png", picture())
    with pytest.raises(ConfigError, match=r"1 of the labelled defects have no mask.*a\.png"):
        cut(labelled_defects(tmp_path), how(), silent, defects=True)
    outside = Sample(path=path, label=1, boxes=((0.0, 0.0, 0.1, 0.1),))
    pictures = Pictures([path], [outside])
    found = cut(pictures, how(area=read_area(RIGHT_EDGE)), silent, defects=True)
    assert [type(one) for one in found.sources] == [Failure]
    assert "nothing of the defect is marked" in found.sources[0].reason


def pictures_of(*sizes: tuple[int, int]) -> Pictures:
    arrays = [np.full((*size, 3), 90, np.uint8) for size in sizes]
    return Pictures(list(arrays), [Sample(path=Path(str(at))) for at in range(len(arrays))])


NONE = Pictures()


def test_auto_cuts_what_is_much_larger_than_the_input() -> None:
    plain = how(size=64)
    tiling, why = chosen(pictures_of((300, 400)), NONE, plain, 0.25)
    assert tiling == Tiling(side=64)
    assert "400 pixels long, the backbone's input 64" in why
    tiling, why = chosen(pictures_of((90, 96)), NONE, plain, 0.25)
    assert tiling is None
    assert "96 pixels long" in why
    tiling, why = chosen(pictures_of((40, 400)), NONE, plain, 0.25)
    assert tiling is None
    assert "only 40 pixels across" in why


def test_auto_cuts_so_that_known_defects_are_seen() -> None:
    defect = pictures_of((300, 400))
    box = (0.5, 0.5, 40 / 400, 10 / 300)
    small = replace(defect, samples=[Sample(path=Path("x"), label=1, boxes=(box,))])
    tiling, why = chosen(pictures_of((300, 400)), small, how(size=64), 0.5)
    assert tiling == Tiling(side=round(40 * 64 / WELL_SEEN), overlap=0.5)
    assert "defects of 40 pixels cover 6 of the backbone's input" in why
    large = replace(defect, samples=[Sample(path=Path("x"), label=1, boxes=((0, 0, 0.5, 0.5),))])
    tiling, why = chosen(pictures_of((300, 400)), large, how(size=64), 0.25)
    assert tiling is None
    assert "as it is" in why


def test_auto_without_a_readable_picture() -> None:
    broken = Pictures([b"nothing"], [Sample(path=Path("x"))])
    tiling, why = chosen(broken, NONE, how(size=64), 0.25)
    assert tiling is None
    assert "can be read" in why


def test_what_is_done_to_the_pixels_is_done_to_the_whole() -> None:
    pixels = picture()
    found = TiledPicture(pixels, Tiling(side=64), name="x", alter=lambda values: 255 - values)
    first = found.tiles[0]
    assert np.array_equal(first.cut().pixels, 255 - pixels[:64, :64])
    assert found.digest == decode(pixels).digest
    found.close()
    assert np.array_equal(first.cut().pixels, 255 - pixels[:64, :64])
