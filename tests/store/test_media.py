"""Pictures, thumbnails and maps lie in files named by digests alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from store_parts import digest, png

from blemish.errors import ConfigError, StoreError
from blemish.store import Store

P = digest(0xABC)
PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Media lie in files whatever the database is."""
    return Store.open(None, tmp_path / "store")


def test_pictures(store: Store) -> None:
    assert store.picture(P) is None
    content = png(PIXELS)
    place = store.put_picture(P, content)
    assert place == store.picture(P) == store.folder / f"media/pictures/00/{P}.png"
    assert place.read_bytes() == content
    store.put_thumbnail(P, content)
    assert store.thumbnail(P) == store.folder / f"media/thumbnails/00/{P}.png"


def test_one_that_is_there_stays_and_counts_as_new(store: Store) -> None:
    place = store.put_picture(P, png(PIXELS))
    os.utime(place, (1, 1))
    assert store.put_picture(P, b"BM" + b"\0" * 12 + b"\x28\0\0\0" + b"\0" * 200) == place
    assert place.read_bytes() == png(PIXELS)
    assert place.stat().st_mtime > 10**9
    assert len(list(place.parent.iterdir())) == 1


@pytest.mark.parametrize("picture", ["../../x", "", "a" * 31, "A" * 32, "a" * 65, "é" * 32])
def test_names_that_are_no_digests(picture: str, store: Store) -> None:
    for call in (
        lambda: store.put_picture(picture, png(PIXELS)),
        lambda: store.picture(picture),
        lambda: store.put_map(picture, "m", "1", PIXELS),
    ):
        with pytest.raises(ConfigError, match="digest"):
            call()


@pytest.mark.parametrize("content", [b"", b"<html>", b"GIF89a" + b"\0" * 200])
def test_what_is_no_picture(content: bytes, store: Store) -> None:
    with pytest.raises(ConfigError, match="format"):
        store.put_picture(P, content)


def test_maps_are_of_a_version(store: Store) -> None:
    first = np.random.default_rng(0).normal(0, 10, (5, 7)).astype(np.float32)
    store.put_map(P, "part", "1", first)
    store.put_map(P, "part", "../../2", first * 1e6)
    read = store.map(P, "part", "1")
    assert read is not None
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, first, rtol=1e-3)
    large = store.map(P, "part", "../../2")  # more than half precision holds
    assert large is not None
    np.testing.assert_array_equal(large, first * 1e6)
    assert store.map(P, "part", "3") is None
    assert store.map(digest(1), "part", "1") is None
    for wrong in (np.zeros(3), np.full((2, 2), np.nan)):
        with pytest.raises(ConfigError, match="map"):
            store.put_map(P, "part", "1", wrong)


def test_a_damaged_map(store: Store) -> None:
    place = store.put_map(P, "part", "1", PIXELS)
    content = place.read_bytes()
    for damaged in (b"", b"PK", content[:-30], content[:60] + b"\xff" * 9 + content[69:]):
        place.write_bytes(damaged)
        with pytest.raises(StoreError, match="map is damaged"):
            store.map(P, "part", "1")


def test_a_folder_that_cannot_be_written(store: Store) -> None:
    (store.folder / "media").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be kept") as told:
        store.put_picture(P, png(PIXELS))
    assert str(store.folder) not in str(told.value)
    assert store.picture(P) is None
