"""Predictions wait while the database is gone, and are written in order and once."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from postgres import Server

from blemish.errors import ConfigError, StoreError
from blemish.store import Scored, Spool, Store
from blemish.store.spool import FILE

Make = Callable[..., Scored]


@contextmanager
def held(store: Store) -> Iterator[None]:
    """SQLite is out of reach."""
    other = sqlite3.connect(store.folder / "blemish.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(None, tmp_path / "store", wait=0.05) as opened:
        yield opened


def until_written(spool: Spool) -> None:
    until = time.monotonic() + 30
    while spool.waiting:
        assert time.monotonic() < until, spool.fault
        time.sleep(0.02)


def scores(store: Store) -> list[float]:
    return [row.score for row in store.each_prediction()]


def test_nothing_waits_while_the_database_is_there(store: Store, scored: Make) -> None:
    with Spool(store) as spool:
        ids = spool.add([scored(1), scored(2)])
        assert ids == [row.id for row in store.each_prediction()]
        assert (spool.waiting, spool.fault) == (0, None)
    assert not (store.folder / FILE).exists()


def test_in_order_once_it_is_back(store: Store, scored: Make) -> None:
    with Spool(store, pause=0.05) as spool:
        spool.add([scored(0)])
        with held(store):
            assert spool.add([scored(1), scored(2)]) is None
            assert isinstance(spool.fault, StoreError)
            for number in range(3, 1200, 57):  # more than one transaction
                spool.add([scored(number + at) for at in range(57)])
            assert spool.waiting == 1199
        spool.add([scored(1200)])
        until_written(spool)
        assert scores(store) == list(map(float, range(1201)))
        assert spool.fault is None
        assert spool.add([scored(1201)]) is not None
    assert not (store.folder / FILE).exists()


def test_up_to_a_limit(store: Store, scored: Make) -> None:
    with Spool(store, most=5, pause=60) as spool:
        with held(store):
            for number in range(5):
                spool.add([scored(number)])
            with pytest.raises(StoreError, match="5 predictions wait") as told:
                spool.add([scored(5)])
            assert told.value.retryable
            with pytest.raises(StoreError):
                spool.add([scored(6), scored(7)])
        assert spool.flush() == 0
        assert scores(store) == [0.0, 1.0, 2.0, 3.0, 4.0]
    with Spool(store, largest=2000, pause=60) as spool, held(store):
        spool.add([scored(0)])
        with pytest.raises(StoreError, match="which is the most"):
            spool.add([scored(number) for number in range(1, 10)])
        assert spool.waiting == 1
    with pytest.raises(ConfigError):
        Spool(store, most=0)


def test_what_waits_outlives_the_process(store: Store, scored: Make) -> None:
    region = {"box": [1, 2, 3, 4], "runs": "1 2 61"}
    rows = [scored(number, source="\0\udc80ü", regions=(region,)) for number in range(3)]
    with held(store):
        spool = Spool(store, pause=60)
        spool.add(rows)
        spool.close()
    assert store.counts().predictions == 0
    with Spool(store, pause=0.02) as spool:
        until_written(spool)
    assert [row.key for row in store.each_prediction()] == [row.key for row in rows]
    assert [row.regions for row in store.each_prediction(regions=True)] == [(region,)] * 3


def test_what_was_written_unheard_is_there_once(store: Store, scored: Make) -> None:
    """As where the process was killed between the database and the file, or a commit went lost."""
    rows = [scored(number) for number in range(4)]
    with held(store):
        spool = Spool(store, pause=60)
        spool.add(rows)
        left = (store.folder / FILE).read_bytes()
        spool.close()
    store.add_predictions(rows[:2])
    (store.folder / FILE).write_bytes(left + b'{"picture": "half a li')
    with Spool(store, pause=60) as spool:
        assert (spool.waiting, spool.damaged) == (4, 1)
        with held(store):
            spool.add([scored(4)])
    assert scores(store) == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("line", [b"[]", b"{}", b"\xff\xfe", b"[" * 10**5, b'{"picture": 7}', b""])
def test_lines_that_are_no_predictions(line: bytes, store: Store, scored: Make) -> None:
    (store.folder / FILE).write_bytes(line + b"\n")
    with Spool(store, pause=60) as spool:
        assert (spool.waiting, spool.damaged) == (0, 1)


def test_one_process_for_a_folder(store: Store) -> None:
    with Spool(store), pytest.raises(StoreError, match="another process"):
        Spool(store)
    Spool(store).close()


def test_a_file_that_cannot_be_written(store: Store, scored: Make) -> None:
    with Spool(store, pause=60) as spool:
        with held(store):
            (store.folder / FILE).mkdir()
            spool.add([scored(1)])
            assert spool.waiting == 1
        (store.folder / FILE).rmdir()
        assert spool.flush() == 0
    assert scores(store) == [1.0]


@contextmanager
def full(store: Store, monkeypatch: pytest.MonkeyPatch, room: int = 0) -> Iterator[None]:
    """No file of the store's folder may be longer than `room` bytes; temporary ones lie
    elsewhere."""
    (store.folder.parent / "elsewhere").mkdir(exist_ok=True)
    sync = os.fsync

    def refuses(number: int) -> None:
        this = os.fstat(number)
        here = any(os.path.samestat(this, one.stat()) for one in store.folder.rglob("*"))
        if here and this.st_size > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(store.folder.parent / "elsewhere"))
        patch.setattr(os, "fsync", refuses)
        yield


def test_a_full_disk_leaves_no_half_line_and_what_was_missed_is_added(
    store: Store, scored: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = store.folder / FILE
    with Spool(store, pause=60) as spool, held(store):
        spool.add([scored(1)])
        with full(store, monkeypatch, room=file.stat().st_size):
            spool.add([scored(2)])
            assert len(file.read_bytes().splitlines()) == 1
        spool.add([scored(3)])
        rows = [json.loads(line) for line in file.read_bytes().splitlines()]
        assert [row["score"] for row in rows] == [1.0, 2.0, 3.0]
        assert spool.waiting == 3


def test_what_waits_at_the_end_on_a_full_disk_is_kept_elsewhere(
    store: Store, scored: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = store.folder / FILE
    spool = Spool(store, pause=60)
    with held(store), full(store, monkeypatch):
        spool.add([scored(1), scored(2)])
        with pytest.raises(StoreError, match="2 predictions still wait for") as told:
            spool.close()
    (kept,) = (store.folder.parent / "elsewhere").glob("*/waiting.jsonl")
    assert f"is kept in {kept}: once there is room, and before the next start" in str(told.value)
    assert "lost" not in str(told.value)
    kept.rename(file)
    with Spool(store, pause=0.02) as after:
        until_written(after)
    assert scores(store) == [1.0, 2.0]


def test_what_can_be_kept_nowhere_is_said_to_be_lost(
    store: Store, scored: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(store, pause=60)
    with held(store), full(store, monkeypatch):
        spool.add([scored(1)])
        (store.folder / "there").mkdir()
        monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: str(store.folder / "there"))
        with pytest.raises(StoreError, match=r"1 prediction still waits .*; lost$"):
            spool.close()
    Spool(store).close()  # the folder is free


def test_postgresql_gone_and_back(tmp_path: Path, scored: Make) -> None:
    server = Server()
    try:
        with Store.open(server.url(), tmp_path, wait=2) as store, Spool(store, pause=0.1) as spool:
            spool.add([scored(0)])
            server.stop()
            for number in range(1, 20):
                assert spool.add([scored(number)]) is None
            server.start()
            until_written(spool)
            assert scores(store) == list(map(float, range(20)))
    finally:
        server.remove()


def unreachable(rows: object) -> None:
    raise StoreError("the database is unreachable", retryable=True)


def test_several_services_of_one_folder(
    postgres: Server, tmp_path: Path, scored: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a file of its own, and what waits for one that was killed goes to the next."""
    with postgres.database() as url, Store.open(url, tmp_path) as store:
        with Spool(store) as one, Spool(store, pause=60) as other:
            assert one.add([scored(0)]) is not None
            with monkeypatch.context() as gone:
                gone.setattr(store, "add_predictions", unreachable)
                assert other.add([scored(1), scored(2)]) is None
            waiting = [file for file in tmp_path.glob("waiting*") if file.stat().st_size]
            assert len(waiting) == 1
            content = waiting[0].read_bytes()
            # As a third one that was killed would have left it.
            (tmp_path / "waiting-7.jsonl").write_bytes(content + b'{"half')
        assert len(store.predictions()) == 3
        with Spool(store) as after:
            assert (after.flush(), after.damaged) == (0, 1)
        assert not list(tmp_path.glob("waiting*"))
        assert len(store.predictions()) == 3  # their keys were known
