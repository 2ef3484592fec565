"""A database that is full, gone, held, damaged, foreign or newer says so, and goes on after."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from postgres import Server
from store_parts import digest

from blemish.errors import BlemishError, ConfigError, StoreError
from blemish.store import Label, Scored, Store
from blemish.store.schema import METADATA

Make = Callable[..., Scored]
FILE = "blemish.sqlite"


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A PostgreSQL that a test may stop."""
    server = Server()
    yield server
    server.remove()


def in_a_process(work: Callable[..., None], *given: object) -> str:
    """What a function raises in a process of its own, which it may spoil; "" where nothing."""
    forks = multiprocessing.get_context("forkserver")
    here, there = forks.Pipe(duplex=False)
    process = forks.Process(target=_tell, args=(there, work, given))
    process.start()
    there.close()
    process.join(60)
    assert process.exitcode == 0
    said: str = here.recv()
    return said


def _tell(
    pipe: multiprocessing.connection.Connection,
    work: Callable[..., None],
    given: tuple[object, ...],
) -> None:
    try:
        work(*given)
    except BlemishError as error:
        pipe.send(f"{type(error).__name__} {error}")
    except BaseException:
        pipe.send(traceback.format_exc())
    else:
        pipe.send("")


def test_the_tables_are_those_that_migrations_make(store: Store) -> None:
    with store._database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_opened_again_it_is_as_it_was(url: str | None, tmp_path: Path, scored: Make) -> None:
    for at in range(3):
        with Store.open(url, tmp_path) as store:
            store.add_predictions([scored(at)])
            assert store.counts().predictions == at + 1


def test_settings_of_sqlite(tmp_path: Path) -> None:
    with Store.open(None, tmp_path) as store, store._database.writing() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert (found["journal_mode"], found["synchronous"]) == ("wal", 2)  # 2 is FULL
    assert (found["foreign_keys"], found["busy_timeout"]) == (1, 10_000)


def test_a_newer_version(url: str | None, tmp_path: Path) -> None:
    with Store.open(url, tmp_path) as store, store._database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="newer version of blemish") as told:
        Store.open(url, tmp_path)
    assert not told.value.retryable


def test_tables_of_another_program(url: str | None, tmp_path: Path) -> None:
    with Store.open(url, tmp_path) as store, store._database.writing() as connection:
        connection.exec_driver_sql("DROP TABLE alembic_version")
    with pytest.raises(StoreError, match="another program"):
        Store.open(url, tmp_path)


@pytest.mark.parametrize("content", [b"no database\n" * 1000, os.urandom(8192), b"\0" * 4096])
def test_a_file_that_is_no_database(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(StoreError, match="is no database") as told:
        Store.open(None, tmp_path)
    assert str(tmp_path) in str(told.value)
    assert (tmp_path / FILE).read_bytes() == content


def test_a_damaged_database(tmp_path: Path, scored: Make) -> None:
    with Store.open(None, tmp_path) as store:
        store.add_predictions([scored(number) for number in range(2000)])
    file = tmp_path / FILE
    content = bytearray(file.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"damaged|no database") as told:
        _read_all(tmp_path)
    assert not told.value.retryable


def _read_all(folder: Path) -> None:
    with Store.open(None, folder) as store:
        store.predictions(limit=2000)


def test_a_folder_in_the_place_of_the_database(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(None, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="no folder for a store"):
        Store.open(None, tmp_path / "file")
    with pytest.raises(StoreError, match="no folder for a store"):
        Store.open(None, tmp_path / "a\0b")


def _open_as_nobody(folder: str) -> None:
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    Store.open(None, Path(folder))


def test_a_read_only_folder(scored: Make) -> None:
    folder = Path("/tmp") / f"blemish-read-only-{os.getpid()}"  # those of pytest are private
    folder.mkdir()
    try:
        with Store.open(None, folder / "filled") as store:
            store.add_predictions([scored(1)])
        (folder / "empty").mkdir()
        for place in (folder / "filled", folder / "empty"):
            place.chmod(0o555)
            for file in place.iterdir():
                file.chmod(0o444)
            said = in_a_process(_open_as_nobody, str(place))
            assert said.startswith("StoreError"), said
            assert "read-only" in said or "may not be written" in said
            assert str(place) in said
    finally:
        for place in folder.iterdir():
            place.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "url", ["mysql://x/y", "sqlite:///x", "postgresql+psycopg2://x/y", "no url", "", "http://x:y/z"]
)
def test_urls_of_other_databases(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="postgresql://"):
        Store.open(url, tmp_path)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    url = f"postgresql://blemish:secret@/x?host={tmp_path}"
    with pytest.raises(StoreError, match="unreachable") as told:
        Store.open(url, tmp_path, wait=0.5)
    assert told.value.retryable
    assert "secret" not in str(told.value)


def test_a_database_that_is_not_there(postgres: Server, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere") as told:
        Store.open(postgres.url("nowhere"), tmp_path, wait=0.5)
    assert not told.value.retryable


def _fill(folder: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Store.open(None, Path(folder)) as store:
        size = max(place.stat().st_size for place in Path(folder).iterdir()) + 400_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        written, told = _write_until_full(store)
        assert written
        assert store.counts().predictions == written
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        store.add_predictions([_wide(written)])
        assert store.counts().predictions == written + 1
        raise told


def _write_until_full(store: Store) -> tuple[int, StoreError]:
    """How many predictions were written, and what the first that was not came to."""
    for number in range(0, 10**5, 50):
        try:
            store.add_predictions([_wide(number + at) for at in range(50)])
        except StoreError as error:
            return number, error
    raise AssertionError("it was never full")


def _wide(number: int) -> Scored:
    given = {"model": "part", "version": "1", "score": 1.0, "height": 8, "width": 8}
    return Scored(picture=digest(number), source="x" * 1000, **given)  # type: ignore[arg-type]


def test_a_full_disk_by_limits(tmp_path: Path) -> None:
    said = in_a_process(_fill, str(tmp_path))
    assert said.startswith("StoreError"), said
    assert "disk" in said
    assert str(tmp_path) not in said


def _label_until_full(store: Store, label: Label) -> int:
    for number in range(10**5):
        try:
            store.add_label(label)
        except StoreError:
            return number
    raise AssertionError("it was never full")


def test_a_full_disk(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=3m none {place} 2>/dev/null"):
        pytest.skip("needs to be root, and a mount of tmpfs")
    try:
        with Store.open(None, place) as store:
            ballast = place / "ballast"
            ballast.write_bytes(b"x" * 500_000)
            written, told = _write_until_full(store)
            assert "full" in str(told)
            assert told.retryable
            assert store.counts().predictions == written
            label = Label(picture=digest(1), verdict="good", reviewer="x" * 100)
            labels = _label_until_full(store, label)
            assert len(store.labels(digest(1))) == labels
            ballast.unlink()
            store.add_label(Label(picture=digest(1), verdict="good", reviewer="Ada"))
            assert len(store.labels(digest(1))) == labels + 1
    finally:
        os.system(f"umount {place}")


def test_sqlite_held_by_another(tmp_path: Path, scored: Make) -> None:
    with Store.open(None, tmp_path, wait=0.2) as store:
        with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StoreError, match="unreachable") as told:
                store.add_predictions([scored(1)])
            assert told.value.retryable
            assert store.predictions() == []  # who reads need not wait
            other.execute("ROLLBACK")
        store.add_predictions([scored(1)])
        assert len(store.predictions()) == 1


def test_postgresql_held_by_another(postgres: Server, tmp_path: Path, scored: Make) -> None:
    with (
        postgres.database() as url,
        Store.open(url, tmp_path, wait=0.2) as store,
        Store.open(url, tmp_path) as other,
    ):
        with other._database.writing() as connection:
            connection.exec_driver_sql("LOCK TABLE predictions IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreError, match="unreachable") as told:
                store.add_predictions([scored(1)])
            assert told.value.retryable
        store.add_predictions([scored(1)])


def test_postgresql_gone_and_back(own_server: Server, tmp_path: Path, scored: Make) -> None:
    with Store.open(own_server.url(), tmp_path, wait=2) as store:
        [first] = store.add_predictions([scored(1)])
        own_server.stop()
        for call in (
            lambda: store.add_predictions([scored(2)]),
            lambda: store.predictions(),
            lambda: store.add_label(Label(picture=digest(1), verdict="good", reviewer="Ada")),
            lambda: store.counts(),
        ):
            with pytest.raises(StoreError, match="unreachable") as told:
                call()
            assert told.value.retryable
            assert str(own_server.folder) not in str(told.value)
        own_server.start()
        store.add_label(Label(picture=digest(1), verdict="good", reviewer="Ada"))
        assert [row.id for row in store.predictions()] == [first]


def _write(url: str | None, folder: str, start: int) -> None:
    with Store.open(url, Path(folder)) as store:
        for number in range(start, start + 12):
            store.add_predictions([_wide(number)])
            store.add_label(Label(picture=digest(7), verdict="good", reviewer=f"{number}"))


def test_two_processes_on_one_database(url: str | None, tmp_path: Path) -> None:
    """Also when it is new to both: one makes the tables, the other finds them."""
    said: list[str] = []
    threads = [
        threading.Thread(
            target=lambda at=at: said.append(in_a_process(_write, url, str(tmp_path), at * 1000))
        )
        for at in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == ["", "", ""]
    with Store.open(url, tmp_path) as store:
        assert store.counts().predictions == 36
        assert len(store.current(digest(7))) == 36


def test_sqlite_is_opened_while_another_writes(tmp_path: Path, scored: Make) -> None:
    with Store.open(None, tmp_path) as store:
        store.add_predictions([scored(1)])
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with Store.open(None, tmp_path, wait=0.1) as store:
            assert store.counts().predictions == 1


def test_what_was_deleted_gives_its_room_back(tmp_path: Path) -> None:
    with Store.open(None, tmp_path) as store:
        store.add_predictions([_wide(number) for number in range(2000)])
        before = store.retain().held
        store.retain(gibibytes=1e-9)
        assert store.retain().held < before / 2
    assert (tmp_path / FILE).stat().st_size < before / 2
