"""Files that somebody else has made, and files that are written beside other processes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blemish import artifact, config, files
from blemish.backbones.checkpoint import read_tensors
from blemish.bench import suites
from blemish.bench.results import read_rows
from blemish.data.tables import read_text
from blemish.errors import ArtifactError, BlemishError, ConfigError, OutputError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes, devices and locks of POSIX")
READERS: list[Callable[[Path], object]] = [
    artifact.read,
    config.read_config_file,
    read_text,
    read_rows,
    read_tensors,
    suites.read,
]


@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_are_read(reader: Callable[[Path], object], tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe.toml", tmp_path / "link.toml"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    zeros = tmp_path / "zeros.toml"
    zeros.symlink_to("/dev/zero")
    for path, what in ((pipe, "a pipe"), (link, "a pipe"), (zeros, "a device")):
        with pytest.raises(BlemishError, match=f"{path.name}: cannot be read, it is {what}; "):
            reader(path)


@pytest.mark.parametrize("reader", READERS)
def test_a_terabyte_of_holes_is_not_read(reader: Callable[[Path], object], tmp_path: Path) -> None:
    holes = tmp_path / "holes.toml"
    with holes.open("wb") as file:
        try:
            file.truncate(2**40)
        except OSError:
            pytest.skip("this file system has no files of a terabyte")
    with pytest.raises(BlemishError, match=r"at most [0-9,]+ are read of a file of this kind"):
        reader(holes)


def test_a_pipe_that_takes_the_place_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a"
    place.write_bytes(b"{}")
    opened = os.open

    def swapped(path: Path, flags: int) -> int:
        place.unlink()
        os.mkfifo(place)
        return opened(path, flags)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(ConfigError, match="it is a pipe"):
        files.read_whole(place, limit=10, error=ConfigError)


def test_what_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    for name in (tmp_path / "nowhere", Path("null\0byte"), tmp_path / ("a" * 300)):
        with pytest.raises(ArtifactError, match="cannot be read"):
            files.read_whole(name, limit=10, error=ArtifactError)


def test_a_link_stays_and_its_target_keeps_its_mode(tmp_path: Path) -> None:
    target, link = tmp_path / "store" / "a.blemish", tmp_path / "a.blemish"
    target.parent.mkdir()
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    files.write_whole(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    dangling = tmp_path / "later"
    dangling.symlink_to(tmp_path / "store" / "new")
    files.write_whole(dangling, b"first")
    assert dangling.is_symlink()
    assert (tmp_path / "store" / "new").read_bytes() == b"first"
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OutputError, match="cannot be written"):
        files.write_whole(loop, b"")


@pytest.mark.parametrize(
    "write", [lambda path: files.write_whole(path, b"x"), files.check_writable]
)
def test_devices_and_pipes_are_not_replaced(
    write: Callable[[Path], object], tmp_path: Path
) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "null"
    os.mkfifo(pipe)
    link.symlink_to("/dev/null")
    for path, what in (
        (pipe, "is a pipe, which nothing is written to"),
        (link, "is a device, which nothing is written to"),
        (Path("/dev/null"), "is a device, which nothing is written to"),
        (Path("/dev/stdout"), "is a stream of a process"),
        (Path("/dev/fd/1"), "is a stream of a process"),
    ):
        with pytest.raises(OutputError, match=what):
            write(path)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.dcm"])
def test_what_is_no_picture_is_not_named_as_one(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for write in (files.check_writable, lambda path: files.write_whole(path, b"{}")):
        with pytest.raises(OutputError, match="is the name of a picture"):
            write(path)
    with pytest.raises(OutputError, match="is the name of a picture"), files.locked(path):
        pass
    files.check_writable(path, picture=True)
    assert files.write_whole(path, b"pixels", picture=True).read_bytes() == b"pixels"


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    left, fresh, held, other = (tmp_path / f".blemish-{sign * 16}.tmp" for sign in "abcx")
    for path in (left, fresh, held, other):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - (0 if path == fresh else 3600),) * 2)
    with held.open("rb") as file:
        assert files._lock(file)
        files.write_whole(tmp_path / "result", b"whole")
    assert not left.exists()
    assert all(path.exists() for path in (fresh, held, other))  # x is no digit of ours


def test_a_killed_writer_releases_its_lock(tmp_path: Path) -> None:
    place = tmp_path / "rows.jsonl"
    code = (
        "import sys, time; from pathlib import Path; from blemish.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, place], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(
                OutputError, match=r"rows\.jsonl: another process of blemish is writing it"
            ),
            files.locked(place),
        ):
            pass
        other.send_signal(signal.SIGKILL)
    with files.locked(place):
        assert [path.name for path in tmp_path.iterdir()] == [".rows.jsonl.lock"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [10, 2**16 - 1, 2**16, 200_000])
def test_half_a_row_of_any_length_is_removed(tmp_path: Path, length: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": "' + b"x" * length)
    files.end_last_row(path)
    assert path.read_bytes() == b'{"a": 1}\n'
    whole = b'{"b": "' + b"x" * length + b'"}'
    path.write_bytes(whole)
    files.end_last_row(path)
    assert path.read_bytes() == whole + b"\n"
