"""Folders that grow: which pictures are taken, when, and that none is taken twice."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from parts import part, write_picture

import blemish
from blemish.data import arrivals as module
from blemish.data.arrivals import Arrivals, Stamp, Taken
from blemish.errors import DataError


class Clock:
    """Of this process and of the files at once; set by hand."""

    def __init__(self) -> None:
        self.now = time.time()

    def age(self, path: Path, seconds: float) -> None:
        """The file was last written so long ago."""
        os.utime(path, (self.now - seconds,) * 2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "time", lambda: clock.now)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    return clock


def names(arrivals: Arrivals) -> list[str]:
    """What a look gives, each of them finished."""
    found = []
    for frame in arrivals.look():
        found.append(str(Path(frame.name).relative_to(arrivals.folder)))
        arrivals.finish(frame)
    return found


def test_old_pictures_at_once_and_new_ones_once_they_have_settled(
    tmp_path: Path, clock: Clock
) -> None:
    for name in ("b.png", "a.JPG", "sub/c.png", ".hidden.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        clock.age(path, 100)
    arrivals = Arrivals(tmp_path, settle=2.0)
    assert names(arrivals) == ["a.JPG", "b.png", "sub/c.png"]
    assert (names(arrivals), arrivals.waiting) == ([], 0)
    new = tmp_path / "new.png"
    new.write_bytes(b"x")
    clock.age(new, 0)
    assert (names(arrivals), arrivals.waiting) == ([], 1)
    clock.now += 1
    with new.open("ab") as file:
        file.write(b"more")  # it is still being written
    assert names(arrivals) == []
    clock.now += 1.9
    assert (names(arrivals), arrivals.waiting) == ([], 1)
    clock.now += 0.2
    assert (names(arrivals), arrivals.waiting) == (["new.png"], 0)
    assert names(arrivals) == []


def test_a_clock_that_is_ahead_or_behind_a_little_is_no_reason_to_take_a_file_early(
    tmp_path: Path, clock: Clock
) -> None:
    for name, age in (("behind.png", 30), ("ahead.png", -500)):
        (tmp_path / name).write_bytes(b"x")
        clock.age(tmp_path / name, age)
    arrivals = Arrivals(tmp_path, settle=1.0)
    assert names(arrivals) == []
    clock.now += 1
    assert names(arrivals) == ["ahead.png", "behind.png"]


def test_a_picture_that_is_written_anew_is_a_new_one(tmp_path: Path, clock: Clock) -> None:
    latest = tmp_path / "latest.png"
    latest.write_bytes(b"x")
    clock.age(latest, 100)
    arrivals = Arrivals(tmp_path)
    assert names(arrivals) == ["latest.png"]
    clock.age(latest, 90)
    assert names(arrivals) == ["latest.png"]
    latest.write_bytes(b"longer")
    clock.age(latest, 90)
    assert names(arrivals) == ["latest.png"]
    assert names(arrivals) == []


def test_what_cannot_be_decoded_comes_again_until_patience_is_at_an_end(
    tmp_path: Path, clock: Clock
) -> None:
    new, old = tmp_path / "new.png", tmp_path / "old.png"
    for path, age in ((new, 0.0), (old, 1000.0)):
        path.write_bytes(b"half")
        clock.age(path, age)
    arrivals = Arrivals(tmp_path, settle=1.0, patience=5.0)
    (frame,) = arrivals.look()
    assert frame.name == str(old)
    assert not arrivals.postpone(frame, broken=True)  # nobody writes it any more
    arrivals.finish(frame)
    for seconds, again in ((1.0, True), (3.0, True), (1.0, False)):
        clock.now += seconds
        (frame,) = arrivals.look()
        assert frame.name == str(new)
        assert arrivals.postpone(frame, broken=True) is again
        assert arrivals.waiting == 1
    arrivals.finish(frame)
    assert (list(arrivals.look()), arrivals.waiting) == ([], 0)


def test_a_picture_that_changes_while_it_is_scored_comes_again(
    tmp_path: Path, clock: Clock
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    clock.age(path, 100)
    arrivals = Arrivals(tmp_path)
    (frame,) = arrivals.look()
    assert list(arrivals.look()) == []  # it is under way
    path.write_bytes(b"xx")
    clock.age(path, 0)
    assert arrivals.postpone(frame, broken=False)
    assert names(arrivals) == []
    clock.now += 1
    assert names(arrivals) == ["a.png"]
    (tmp_path / "b.png").write_bytes(b"x")
    clock.age(tmp_path / "b.png", 100)
    (frame,) = arrivals.look()
    Path(frame.name).unlink()
    assert not arrivals.postpone(frame, broken=True)  # gone: what was found stands


def test_results_and_what_is_to_be_left_out(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "predictions.jsonl").touch()
    for name in ("run/overlays/a.png", "out/good/b.png", "lost+found/c.png", "d.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        clock.age(path, 100)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.png")
    assert names(Arrivals(tmp_path, leave_out=[tmp_path / "out"])) == ["d.png"]


def test_a_folder_that_is_gone_for_a_while(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "in"
    with pytest.raises(DataError, match="in: cannot be read"):
        Arrivals(folder)
    (folder / "sub").mkdir(parents=True)
    (folder / "a.png").write_bytes(b"x")
    clock.age(folder / "a.png", 100)
    said: list[str] = []
    arrivals = Arrivals(folder, note=said.append)
    assert names(arrivals) == ["a.png"]
    folder.rename(tmp_path / "away")
    assert names(arrivals) == names(arrivals) == []
    (tmp_path / "away").rename(folder)
    (folder / "sub").rmdir()
    assert names(arrivals) == []
    assert said == [
        f"{folder}: cannot be read (No such file or directory); it is tried again",
        f"{folder}: can be read again",
    ]


def test_of_what_was_taken_little_is_kept() -> None:
    import tracemalloc

    taken = Taken()
    tracemalloc.start()
    for index in range(50_000):
        taken.add(f"/a/rather/long/path/to/a/picture/of/a/part/number-{index:09d}.png", Stamp(7, 9))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(taken) == 50_000
    assert peak / 50_000 < 150  # bytes each, at the moment when the set grows
    assert ("/a", Stamp(1, 2)) not in taken


def test_frames_of_a_folder(tmp_path: Path, kept_sets: Path) -> None:
    shutil.copytree(kept_sets / "good", tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        os.utime(path, (1e9, 1e9))
    coming = blemish.frames(tmp_path / "in", interval=0.01, settle=0.01)
    first = [next(coming) for _ in range(24)]
    assert [Path(one.name).name for one in first] == [f"{index:03d}.png" for index in range(24)]
    assert {one.time for one in first} == {1e9}
    write_picture(tmp_path / "in" / "later.png", part(1))
    assert next(coming).name == str(tmp_path / "in" / "later.png")
    coming.close()
    once = blemish.frames(tmp_path / "in", once=True, settle=0.01, interval=0.01)
    assert len(list(once)) == 25


def test_frames_of_a_folder_are_taken_only_as_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fitted: Callable[..., blemish.Detector]
) -> None:
    for index in range(40):
        write_picture(tmp_path / f"{index:02d}.png", part(index))
    finished: list[str] = []
    finish = Arrivals.finish

    def noted(arrivals: Arrivals, frame: blemish.Frame) -> None:
        finished.append(frame.name)
        finish(arrivals, frame)

    monkeypatch.setattr(Arrivals, "finish", noted)
    results = fitted().predict_many(blemish.frames(tmp_path, settle=0, once=True), batch_size=4)
    assert next(results).source == str(tmp_path / "00.png")
    assert len(finished) <= 7
