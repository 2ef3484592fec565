"""Who may write into a folder: one run at a time, and the next one when that was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from blemish.errors import BlemishError, OutputError
from blemish.scale import claims
from blemish.scale.claims import Claim, claims_in
from blemish.scale.places import Place, place_of, write_bytes


@pytest.fixture(params=["local", "s3", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return place_of(tmp_path / "out")
    if request.param == "s3":
        return place_of(f"{request.getfixturevalue('s3')}/{tmp_path.name}")
    return place_of(f"memory://{tmp_path.name}")


def left(folder: Place, **changes: Any) -> Place:
    """What a run has left that was killed; of this machine where nothing else is said."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    who = {"run": "ada@far", "process": ended.pid, "since": "2026", "machine": claims._machine()}
    place = folder / "_writing-0123.json"
    write_bytes(place, json.dumps({**who, **changes}).encode(), error=OutputError)
    return place


def names(folder: Place) -> list[str]:
    return [place.name for place, _ in claims_in(folder)]


def test_one_at_a_time(folder: Place) -> None:
    with closing(Claim(folder)) as first:
        (name,) = names(folder)
        said = rf"process {os.getpid()}, since 20.*when you have removed .*{name[-20:]}"
        with pytest.raises(OutputError, match=said):
            Claim(folder)
        assert names(folder) == [name]
        first.check()
    assert names(folder) == []
    Claim(folder).close()
    assert names(folder) == []


def test_a_run_of_this_machine_that_was_killed_is_followed_at_once(folder: Place) -> None:
    place = left(folder)
    with closing(Claim(folder)) as claim:
        assert place.name not in names(folder)
        claim.check()


@pytest.mark.parametrize(
    "who",
    [
        {"machine": "another"},
        {"machine": "", "process": 0},
        {"process": os.getppid()},  # it runs
        {"process": 10**30},
        {"process": "1"},
        {"run": None, "since": [1]},
    ],
    ids=str,
)
def test_one_that_may_be_alive_is_left_alone(who: dict[str, Any], folder: Place) -> None:
    if "run" in who:
        who = {**who, "machine": "another"}
    place = left(folder, **who)
    with pytest.raises(OutputError, match=r"another run writes there .*removed .*_writing-0123"):
        Claim(folder)
    assert names(folder) == [place.name]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_file_that_says_nothing_is_of_somebody(content: bytes, folder: Place) -> None:
    write_bytes(folder / "_writing-0123.json", content, error=OutputError)
    with pytest.raises(OutputError, match=r"another run writes there \(\?, process \?"):
        Claim(folder)


@pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)
def test_one_that_is_silent_is_gone_and_learns_so(
    folder: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Claim(folder)) as silent:
        monkeypatch.setattr(claims, "GONE", -5.0)  # the clock of S3 has seconds
        monkeypatch.setattr(claims, "_machine", lambda: "another")
        with closing(Claim(folder)) as second:
            with pytest.raises(OutputError, match="another run has taken over"):
                silent.check()
            second.check()


def test_signs_of_life(folder: Place) -> None:
    """They make a claim younger; a claim that was removed does not come back by them."""
    with closing(Claim(folder, every=0.01)) as claim:
        ((place, first),) = claims_in(folder)
        for _ in range(500):
            if (sign := folder / place.name.rpartition("/")[2].replace("writing", "alive")) and (
                folder.filesystem.get_file_info(sign.path).is_file
            ):
                break
            time.sleep(0.01)
        else:
            pytest.fail("there was no sign of life")
        time.sleep(1.1)  # the clock of S3 has seconds
        ((_, last),) = claims_in(folder)
        if first is not None:  # the file system in memory has no times
            assert last is not None
            assert last > first
        folder.filesystem.delete_file(place.path)
        time.sleep(0.1)
        with pytest.raises(OutputError, match="taken over"):
            claim.check()
    assert claims_in(folder) == []
    assert not folder.filesystem.get_file_info(sign.path).is_file


def test_file_systems_that_remember_are_asked_afresh(tmp_path: Path) -> None:
    from fsspec.implementations.local import LocalFileSystem

    class Remembering(LocalFileSystem):  # as s3fs, gcsfs and adlfs do
        known: ClassVar[dict[str, Any]] = {}

        def find(self, path: str, *given: Any, **named: Any) -> Any:
            if path not in self.known:
                self.known[path] = super().find(path, *given, **named)
            return self.known[path]

        def invalidate_cache(self, path: str | None = None) -> None:
            self.known.clear()

    folder = place_of(tmp_path.as_posix(), Remembering(skip_instance_cache=True))
    with closing(Claim(folder)), pytest.raises(OutputError, match="another run writes there"):
        Claim(folder)


def test_of_those_who_begin_at_once_one_at_most_writes(
    folder: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has put its file before any of them looks for the others, the worst that can be."""
    count, won = 4, list[Claim]()
    put, looked = threading.Barrier(count), claims.claims_in

    def late(place: Place) -> Any:
        put.wait(10)
        return looked(place)

    monkeypatch.setattr(claims, "claims_in", late)

    def begin() -> None:
        with at_most_one():
            won.append(Claim(folder))

    @contextmanager
    def at_most_one() -> Iterator[None]:
        try:
            yield
        except BlemishError as error:
            refused.append(error)

    refused: list[BlemishError] = []
    threads = [threading.Thread(target=begin) for _ in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(won) <= 1
    assert len(won) + len(refused) == count
    for each in won:
        each.close()
    assert looked(folder) == []
