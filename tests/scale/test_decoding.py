"""What tasks hand to actors, and what the death of one says of a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import blemish
from blemish.detector.reading import Loaded
from blemish.scale import predict as scale
from blemish.scale.cluster import Cluster
from blemish.scale.decoding import Watch, packed, unpacked
from blemish.scale.rows import COLUMNS, OF_MAPS, OF_MASKS
from blemish.scale.scorer import Loader, pictures_of
from blemish.types import Failure

DOCS = Path(__file__).parents[2] / "docs" / "scale.md"


def test_what_is_packed_comes_out_as_it_was(exported: Path, pictures: Path) -> None:
    paths = [str(path) for path in sorted(pictures.rglob("*.png"))]
    part = pa.table({"id": paths, "path": paths, "line": list(range(len(paths)))})
    given, ids = pictures_of({name: part.column(name) for name in part.column_names})
    assert ids == paths
    loads = [Loader(blemish.load(exported).reading()).load(one) for one in given]
    sent = packed(part, loads)
    assert sent.column_names[:3] == ["id", "path", "line"]
    for one, other in zip(loads, unpacked(sent, given), strict=True):
        if isinstance(one, Failure):
            assert other == one
            continue
        assert isinstance(other, Loaded)
        assert np.array_equal(one.pixels, other.pixels)
        assert one.pixels.dtype == other.pixels.dtype
        for name in ("source", "size", "digest", "notes", "category"):
            assert getattr(one, name) == getattr(other, name)
    assert sum(isinstance(one, Failure) for one in loads) == 1


def test_a_picture_at_which_processes_died_is_known() -> None:
    watch = Watch()
    assert [watch.begin("a") for _ in range(2)] == [(False, [])] * 2  # whoever may have died
    assert watch.begin("a") == (True, [])
    watch.at("a", 0)
    watch.at("a", None)
    watch.at("a", 3)
    assert watch.begin("a") == (True, [])  # once: a machine may have been lost
    watch.at("a", 3)
    assert watch.begin("a") == (True, [3])
    assert watch.begin("a") == (True, [3])
    assert watch.begin("b") == (False, [])


def test_how_many_are_one_task(exported: Path) -> None:
    reading = blemish.load(exported).reading()  # of 8 by 8 pixels
    assert scale.unit_size(reading, 8, 1_000_000, 4) == 256
    assert scale.unit_size(reading, 8, 100, 4) == 8  # something for each of them
    assert scale.unit_size(reading, 6, 200, 2) == 24
    assert scale.unit_size(reading, 300, 1_000_000, 1) == 300


def test_blocks_grow_with_the_workers_and_the_pictures(exported: Path) -> None:
    """As the one process that hands them out takes as long for any; within bounds of memory."""
    reading = blemish.load(exported).reading()
    looks = replace(reading.preprocessing, height=224, width=224)
    reading = replace(reading, preprocessing=looks, raw=False)
    each = 3 * 224 * 224 * 4
    sizes = {
        workers: scale.unit_size(reading, 8, 1_000_000, workers) for workers in (1, 8, 16, 32, 999)
    }
    assert sizes == {1: 24, 8: 24, 16: 48, 32: 104, 999: 104}
    for workers, size in sizes.items():
        assert size * each <= scale.block_bytes(workers) <= 64 * 2**20
        assert scale.decoding_bytes(workers) == 8 * scale.block_bytes(workers)
    assert scale.unit_size(reading, 8, 1000, 32) == 8  # of few pictures each gets some
    assert scale.unit_size(replace(reading, raw=True), 8, 1_000_000, 32) == 256


def test_how_many_score() -> None:
    small = Cluster(address="", nodes=1, cpus=4, gpus=0)
    large = Cluster(address="h:1", nodes=9, cpus=100, gpus=8)
    assert scale._workers(small, None, 0, 1) == 2
    assert scale._workers(small, 3, 0, 1) == 3
    assert scale._workers(large, None, 0, 4) == 12
    assert scale._workers(large, None, 0.5, 1) == 16
    with pytest.raises(blemish.BlemishError, match="one must be left to decode"):
        scale._workers(small, 4, 0, 1)
    for workers, gpus, what in (
        (0, 0, "at least 1 is needed"),
        (1, -1, "0 or more"),
        (1, 1.5, "a whole number, or 0.001 to 1, is needed"),
        (10_000, 0, "Ray of this machine counts"),
    ):
        with pytest.raises(blemish.BlemishError, match=what):
            scale._check_workers(workers, gpus, 1, None)


def test_the_page_has_the_columns() -> None:
    page = DOCS.read_text(encoding="utf-8")
    for name, kind, what in COLUMNS:
        assert f"| `{name}` | {kind} | {what} |" in page
    for name, _, _ in (*OF_MAPS, *OF_MASKS):
        assert f"`{name}`" in page
