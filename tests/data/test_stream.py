"""Pictures decoded ahead, in order, as far ahead as allowed, with the broken ones set aside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blemish.data.stream import PictureStream, load_picture, map_ahead, name_of
from blemish.data.transforms import Preprocessing, prepare
from blemish.images import Picture, decode
from blemish.types import Failure

Part = Callable[..., np.ndarray]
PLAIN = Preprocessing(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def decoder_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("blemish-decode")]


@pytest.mark.parametrize("ahead", [0, 1, 5, 100])
def test_map_ahead_keeps_the_order(ahead: int) -> None:
    def slow_at_first(item: int) -> int:
        time.sleep(0.01 if item % 4 == 0 else 0)
        return item * item

    assert list(map_ahead(slow_at_first, range(30), ahead=ahead)) == [item * item for item in range(30)]
    assert list(map_ahead(slow_at_first, [], ahead=ahead)) == []
    assert decoder_threads() == []


@pytest.mark.parametrize("ahead", [0, 3])
def test_map_ahead_does_not_run_away(ahead: int) -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for item in range(50):
            taken.append(item)
            yield item

    results = map_ahead(lambda item: item, source(), ahead=ahead)
    assert taken == []
    for index in range(10):
        assert next(results) == index
        assert len(taken) == index + 1 + ahead


def test_map_ahead_passes_an_error_on_in_its_place_and_ends() -> None:
    def fail(item: int) -> int:
        if item == 3:
            raise ValueError("the fourth")
        return item

    results = map_ahead(fail, range(100), ahead=8)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(results)
    assert decoder_threads() == []


def test_map_ahead_ends_when_nobody_asks_any_more() -> None:
    started: list[int] = []

    def slow(item: int) -> int:
        started.append(item)
        time.sleep(0.005)
        return item

    results = map_ahead(slow, range(1000), ahead=20)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert decoder_threads() == []
    assert len(started) < 30


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 50])
def test_batches_hold_every_picture_once_in_order(batch_size: int, picture: Part) -> None:
    sources = [picture(seed) for seed in range(7)]
    stream = PictureStream(sources, PLAIN, batch_size)
    for _ in range(2):  # it starts anew each time
        batches = list(stream)
        assert len(batches) == stream.batches == -(-7 // batch_size)
        assert torch.cat([batch.owners for batch in batches]).tolist() == list(range(7))
        assert all(len(batch.images) == len(batch.owners) == batch_size for batch in batches[:-1])
        images = torch.cat([batch.images for batch in batches])
        assert torch.equal(images, torch.stack([prepare(decode(source), PLAIN) for source in sources]))
    assert stream.digests == {index: decode(source).digest for index, source in enumerate(sources)}
    assert batches[0].owners.dtype == torch.int64


@pytest.mark.parametrize("rotations", [2, 3, 4])
def test_turned_copies_share_their_owner(rotations: int, picture: Part) -> None:
    sources = [picture(seed) for seed in range(3)]
    stream = PictureStream(sources, PLAIN, batch_size=4, rotations=rotations)
    batches = list(stream)
    assert len(batches) == stream.batches
    owners = torch.cat([batch.owners for batch in batches]).tolist()
    assert owners == [owner for owner in range(3) for _ in range(rotations)]
    images = torch.cat([batch.images for batch in batches])
    expected = [
        prepare(decode(source), PLAIN, angle=360 * turn / rotations) for source in sources for turn in range(rotations)
    ]
    assert torch.equal(images, torch.stack(expected))
    assert len(stream.digests) == 3  # of the pictures, not of their copies


@pytest.mark.parametrize("rotations", [1, 3])
def test_mirrored_copies_follow_their_plain_ones(rotations: int, picture: Part) -> None:
    sources = [picture(seed) for seed in range(2)]
    stream = PictureStream(sources, PLAIN, batch_size=5, rotations=rotations, flips=True)
    batches = list(stream)
    assert len(batches) == stream.batches
    owners = torch.cat([batch.owners for batch in batches]).tolist()
    assert owners == [owner for owner in range(2) for _ in range(2 * rotations)]
    expected = [
        prepare(decode(source), PLAIN, angle=360 * turn / rotations, flip=flip)
        for source in sources
        for turn in range(rotations)
        for flip in (False, True)
    ]
    assert torch.equal(torch.cat([batch.images for batch in batches]), torch.stack(expected))
    assert not torch.equal(expected[0], expected[1])


def test_broken_pictures_are_set_aside(tmp_path: Path, picture: Part) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    sources = [picture(0), tmp_path / "text.png", picture(1), np.zeros((2, 2, 9), np.uint8), picture(2), "nowhere.png"]
    stream = PictureStream(sources, PLAIN, batch_size=2)
    for _ in range(2):
        batches = list(stream)
        assert torch.cat([batch.owners for batch in batches]).tolist() == [0, 2, 4]
        assert [len(batch.images) for batch in batches] == [2, 1]
        assert set(stream.failures) == {1, 3, 5}
    assert stream.failures[1] == Failure(source=str(tmp_path / "text.png"), reason="is not a picture (looks like text)")
    assert stream.failures[3].source == "array 3"
    assert stream.failures[5] == Failure(source="nowhere.png", reason="does not exist")
    assert set(stream.digests) == {0, 2, 4}


def test_nothing_but_broken_pictures(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    stream = PictureStream([tmp_path / "x.png"], PLAIN, batch_size=2)
    assert list(stream) == []
    assert len(stream.failures) == 1
    assert list(PictureStream([], PLAIN, batch_size=2)) == []


def test_a_picture_that_is_not_finite_is_a_failure() -> None:
    pixels = np.full((4, 4), 0.5)
    pixels[1, 1] = np.nan
    stream = PictureStream([pixels], PLAIN, batch_size=1)
    assert list(stream) == []
    assert "finite" in stream.failures[0].reason.lower() or "NaN" in stream.failures[0].reason


def test_the_window_reaches_the_decoder() -> None:
    pixels = np.full((4, 4), 500, np.uint16)
    windowed = Preprocessing(height=32, width=32, mean=(0.0,) * 3, std=(1.0,) * 3, window=(0, 1000))
    (batch,) = PictureStream([pixels], windowed, batch_size=1)
    torch.testing.assert_close(batch.images, torch.full((1, 3, 32, 32), 0.5))
    found = load_picture(pixels, 0, (0, 1000))
    assert isinstance(found, Picture)
    assert found.pixels.max() == 0.5


def test_names() -> None:
    assert name_of("a/b.png", 3) == "a/b.png"
    assert name_of(Path("a/b.png"), 3) == str(Path("a/b.png"))
    assert name_of(np.zeros((1, 1)), 3) == "array 3"
    assert name_of(Image.new("L", (1, 1)), 3) == "array 3"


def test_a_stream_that_is_left_early_leaves_no_thread(picture: Part) -> None:
    batches = iter(PictureStream([picture(seed) for seed in range(40)], PLAIN, batch_size=2))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert decoder_threads() == []
