"""Pictures decoded ahead, in order, as far ahead as allowed, with the broken ones set aside."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import prepared
from PIL import Image

from blemish.data.ahead import load_picture, map_ahead, name_of
from blemish.data.stream import Passes, PictureStream, unreadable
from blemish.data.transforms import Preprocessing
from blemish.images import Picture, decode
from blemish.types import Batch, Failure, Sample

Part = Callable[..., np.ndarray]
Write = Callable[..., Path]
PLAIN = Preprocessing(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def owners_of(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.owners for batch in batches]).tolist()


@pytest.mark.parametrize("ahead", [0, 1, 5, 100])
def test_map_ahead_keeps_the_order(decoder_threads: Callable[[], list[str]], ahead: int) -> None:
    def slow_at_first(item: int) -> int:
        time.sleep(0.01 if item % 4 == 0 else 0)
        return item * item

    squares = [item * item for item in range(30)]
    assert list(map_ahead(slow_at_first, range(30), ahead=ahead)) == squares
    assert list(map_ahead(slow_at_first, [], ahead=ahead)) == []
    assert decoder_threads() == []


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_map_ahead_takes_no_more_than_it_says_and_loses_nothing(
    decoder_threads: Callable[[], list[str]], ahead: int
) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(9):
            taken.append(number)
            yield number
        raise OSError("unplugged")

    results = map_ahead(lambda number: number * 10, items(), ahead=ahead)
    assert taken == []
    for place in range(9):
        assert next(results) == place * 10
        assert len(taken) == min(9, place + 1 + ahead)
    with pytest.raises(OSError, match="unplugged"):
        next(results)
    assert decoder_threads() == []


def test_map_ahead_passes_an_error_on_in_its_place_and_ends(
    decoder_threads: Callable[[], list[str]],
) -> None:
    def fail(item: int) -> int:
        if item == 3:
            raise ValueError("the fourth")
        return item

    results = map_ahead(fail, range(100), ahead=8)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(results)
    assert decoder_threads() == []


def test_map_ahead_ends_when_nobody_asks_any_more(
    decoder_threads: Callable[[], list[str]],
) -> None:
    started: list[int] = []

    def slow(item: int) -> int:
        started.append(item)
        time.sleep(0.005)
        return item

    results = map_ahead(slow, range(1000), ahead=20)
    next(results)
    results.close()
    assert decoder_threads() == []
    assert len(started) < 30


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_batches_hold_every_picture_once_in_order(batch_size: int, picture: Part) -> None:
    sources = [picture(seed) for seed in range(7)]
    stream = PictureStream(sources, PLAIN, batch_size)
    expected = torch.stack([prepared(decode(source), PLAIN) for source in sources])
    for _ in range(2):  # it starts anew each time
        reading = iter(stream)
        batches = list(reading)
        assert len(batches) == -(-7 // batch_size)
        assert stream.rows == 7
        assert owners_of(batches) == list(range(7))
        assert all(len(batch.images) == len(batch.owners) == batch_size for batch in batches[:-1])
        assert torch.equal(torch.cat([batch.images for batch in batches]), expected)
        assert reading.found.digests == {at: decode(each).digest for at, each in enumerate(sources)}
        assert all(batch.masks is None for batch in batches)
    assert batches[0].owners.dtype == torch.int64


@pytest.mark.parametrize("flips", [(False,), (False, True)])
@pytest.mark.parametrize("rotations", [1, 3])
def test_turned_and_mirrored_copies_share_their_owner(
    rotations: int, flips: tuple[bool, ...], picture: Part
) -> None:
    sources = [picture(seed) for seed in range(3)]
    stream = PictureStream(sources, PLAIN, 4, rotations=rotations, flips=True in flips)
    reading = iter(stream)
    batches = list(reading)
    assert owners_of(batches) == [o for o in range(3) for _ in range(rotations * len(flips))]
    assert len(owners_of(batches)) == stream.rows
    expected = [
        prepared(decode(source), PLAIN, angle=360 * turn / rotations, flip=flip)
        for source, turn, flip in product(sources, range(rotations), flips)
    ]
    assert torch.equal(torch.cat([batch.images for batch in batches]), torch.stack(expected))
    assert len(reading.found.digests) == 3  # of the pictures, not of their copies


@pytest.mark.parametrize("rotations", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 50])
def test_pictures_of_the_same_content_share_the_owner_of_the_first(
    batch_size: int, rotations: int, picture: Part, write: Write, tmp_path: Path
) -> None:
    """Or a picture that is left out would be judged by its own twin; the name and the file format
    do not matter.
    """
    twin, other = (write(tmp_path / name, picture(1)) for name in ("twin.bmp", "other.png"))
    sources = [picture(0), picture(1), twin, "nowhere.png", picture(2), picture(0), other]
    reading = iter(PictureStream(sources, PLAIN, batch_size, rotations=rotations))
    owners = owners_of(list(reading))
    assert owners == [owner for owner in (0, 1, 1, 4, 0, 1) for _ in range(rotations)]
    assert reading.found.originals == {0: 0, 1: 1, 2: 1, 4: 4, 5: 0, 6: 1}


def test_broken_pictures_are_set_aside(tmp_path: Path, picture: Part) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    nan = np.full((4, 4), np.nan)
    many = np.zeros((2, 2, 9), np.uint8)
    sources = [picture(0), tmp_path / "text.png", picture(1), many, picture(2), "nowhere.png", nan]
    reading = iter(PictureStream(sources, PLAIN, batch_size=2))
    batches, found = list(reading), reading.found
    assert owners_of(batches) == [0, 2, 4]
    assert [len(batch.images) for batch in batches] == [2, 1]
    assert list(found.failures) == [1, 3, 5, 6]
    assert found.failures[1] == Failure(
        source=str(tmp_path / "text.png"), reason="is not a picture (looks like text)"
    )
    assert found.failures[3].source == "array 3"
    assert found.failures[5] == Failure(source="nowhere.png", reason="does not exist")
    assert "finite" in found.failures[6].reason.lower()
    assert list(found.digests) == list(found.thumbnails) == [0, 2, 4]
    first, rest = found.part(0, 3), found.part(3, 7)
    assert (list(first.digests), list(first.failures)) == ([0, 2], [1])
    assert (list(rest.digests), list(rest.failures)) == ([1], [0, 2, 3])
    assert rest.failures[0] is found.failures[3]


def test_some_of_the_pictures_keep_their_numbers(picture: Part) -> None:
    stream = PictureStream([picture(0), "nowhere.png", picture(2), picture(3)], PLAIN, batch_size=8)
    some = stream.only([3, 1, 0])
    assert some.rows == 3
    reading = iter(some)
    (batch,) = reading
    assert batch.owners.tolist() == [3, 0]
    assert (list(reading.found.digests), list(reading.found.failures)) == ([3, 0], [1])
    assert torch.equal(batch.images[0], prepared(decode(picture(3)), PLAIN))


def test_an_unreadable_set_names_the_first_five() -> None:
    failures = [Failure(source=f"{index}.png", reason="empty") for index in range(7)]
    lines = str(unreadable("nothing", failures)).split("\n  ")
    assert lines == ["nothing", *(f"{index}.png: empty" for index in range(5))]


def test_a_picture_that_was_broken_once_stays_out(
    picture: Part, write: Write, tmp_path: Path
) -> None:
    """Every pass is over the same pictures, whatever comes to lie there in between."""
    stream = PictureStream([tmp_path / "late.png", picture(1)], PLAIN, batch_size=2)
    passes = Passes(stream, torch.device("cpu"), first_owner=10)
    for _ in range(2):
        (batch,) = passes()
        assert batch.owners.tolist() == [11]
        write(tmp_path / "late.png", picture(0))
    assert (list(passes.found.digests), list(passes.found.failures)) == ([1], [0])


def test_the_window_reaches_the_decoder() -> None:
    pixels = np.full((4, 4), 500, np.uint16)
    windowed = Preprocessing(height=32, width=32, mean=(0.0,) * 3, std=(1.0,) * 3, window=(0, 1000))
    (batch,) = PictureStream([pixels], windowed, batch_size=1)
    torch.testing.assert_close(batch.images, torch.full((1, 3, 32, 32), 0.5))
    found = load_picture(pixels, 0, (0, 1000))
    assert isinstance(found, Picture)
    assert found.pixels.max() == 0.5


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/b.png", "a/b.png"),
        (Path("a/b.png"), str(Path("a/b.png"))),
        (np.zeros((1, 1)), "array 3"),
        (Image.new("L", (1, 1)), "array 3"),
        (b"", "file 3"),
        (io.BytesIO(), "file 3"),
    ],
)
def test_names(source: Any, name: str) -> None:
    assert name_of(source, 3) == name


def test_a_stream_that_is_left_early_leaves_no_thread(
    picture: Part,
    decoder_threads: Callable[[], list[str]],
) -> None:
    batches = iter(PictureStream([picture(seed) for seed in range(40)], PLAIN, batch_size=2))
    next(batches)
    batches.close()
    assert decoder_threads() == []


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_masks_are_the_marked_share_at_a_quarter_of_the_sides(
    batch_size: int, tmp_path: Path, picture: Part, write: Write
) -> None:
    drawn = np.zeros((64, 64), np.uint8)  # twice as large as the pictures are looked at
    drawn[8:24, 16:] = 255
    drawn[40:44, 0:8] = 255
    marks = [
        Sample(path=Path("a"), mask=write(tmp_path / "mask.png", drawn)),
        Sample(path=Path("b")),
        Sample(path=Path("broken"), boxes=((0, 0, 1, 1),)),
        Sample(path=Path("c"), boxes=((0.25, 0.0, 0.375, 0.5),)),
    ]
    sources = [picture(0), picture(1), "nowhere.png", picture(2)]
    batches = list(PictureStream(sources, PLAIN, batch_size, marks=marks))
    assert owners_of(batches) == [0, 1, 3]
    assert all(
        batch.masks is not None and len(batch.masks) == len(batch.images) for batch in batches
    )
    masks = torch.cat([batch.masks for batch in batches if batch.masks is not None])
    assert (masks.dtype, masks.shape) == (torch.float32, (3, 8, 8))
    seen = drawn[::2, ::2] > 0
    for y, x in np.ndindex(8, 8):
        assert masks[0, y, x] == seen[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean()
    assert masks[1].isnan().all()  # not known is not the same as nowhere
    boxed = torch.zeros(8, 8)
    boxed[:4, 2:5] = 1
    assert torch.equal(masks[2], boxed)


def test_a_mask_that_cannot_be_read_is_named(tmp_path: Path, picture: Part, write: Write) -> None:
    (tmp_path / "mask.png").write_text("not a picture")
    path = write(tmp_path / "part.png", picture(0))
    marks = [Sample(path=path, mask=tmp_path / name) for name in ("mask.png", "nowhere.png")]
    reading = iter(PictureStream([path, path], PLAIN, batch_size=2, marks=marks))
    assert list(reading) == []
    failures = reading.found.failures.values()
    assert [(Path(each.source).name, each.reason) for each in failures] == [
        ("mask.png", "is not a picture (looks like text)"),
        ("nowhere.png", "does not exist"),
    ]
