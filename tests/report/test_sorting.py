"""Pictures in folders by verdict: nothing is lost, nothing is written over."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from blemish.errors import OutputError
from blemish.report import sorting
from blemish.report.sorting import Sorter, Way


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "sub" / "a.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sorter(tmp_path: Path, way: Way) -> Sorter:
    return Sorter(tmp_path / "out", way, tmp_path / "in")


@pytest.mark.parametrize("way", ["move", "copy", "link"])
def test_a_file_goes_to_its_place_below_its_verdict(tmp_path: Path, source: Path, way: Way) -> None:
    one = sorter(tmp_path, way)
    placed = one.put(source, "defect")
    target = tmp_path / "out" / placed
    assert (placed, target.read_bytes()) == ("defect/sub/a.png", b"mine")
    assert target.is_symlink() == (way == "link")
    assert source.exists()  # until its row is written
    one.leave(source, placed)
    assert source.exists() == (way != "move")
    assert target.read_bytes() == b"mine"
    assert names(target.parent) == ["a.png"]


@pytest.mark.parametrize("way", ["move", "copy", "link"])
def test_a_file_of_the_same_name_is_never_written_over(
    tmp_path: Path, source: Path, way: Way
) -> None:
    there = tmp_path / "out" / "good" / "sub" / "a.png"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"ours")
    (there.parent / "a-2.png").symlink_to("nowhere")
    one = sorter(tmp_path, way)
    assert one.put(source, "good") == "good/sub/a-3.png"
    assert (there.read_bytes(), (there.parent / "a-2.png").is_symlink()) == (b"ours", True)
    assert (there.parent / "a-3.png").read_bytes() == b"mine"
    one.leave(source, "good/sub/a.png")
    assert source.exists()  # that one is another


@pytest.mark.parametrize("way", ["move", "copy", "link"])
def test_what_a_killed_process_has_put_there_is_not_put_again(
    tmp_path: Path, source: Path, way: Way
) -> None:
    first = sorter(tmp_path, way).put(source, "good")
    again = sorter(tmp_path, way)
    assert again.put(source, "good") == first
    again.leave(source, first)
    assert names(tmp_path / "out" / "good" / "sub") == ["a.png"]


def test_to_another_disk_a_file_is_copied(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def far(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", far)
    os.utime(source, (1e9, 1e9))
    one = sorter(tmp_path, "move")
    placed = one.put(source, "good")
    target = tmp_path / "out" / placed
    assert (target.read_bytes(), target.stat().st_mtime) == (b"mine", 1e9)
    one.leave(source, placed)
    assert not source.exists()
    source.write_bytes(b"other")
    assert one.put(source, "good") == "good/sub/a-2.png"
    assert names(target.parent) == ["a-2.png", "a.png"]


def test_a_link_is_no_copy_for_which_the_file_may_leave(tmp_path: Path, source: Path) -> None:
    placed = sorter(tmp_path, "link").put(source, "good")
    sorter(tmp_path, "move").leave(source, placed)
    assert source.exists()


def test_a_file_that_is_gone_and_a_folder_that_cannot_be_written(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sorter(tmp_path, "copy").put(source.with_name("gone.png"), "good") == ""
    (tmp_path / "out").write_bytes(b"a file")
    with pytest.raises(OutputError, match="cannot be written"):
        sorter(tmp_path, "copy").put(source, "good")

    def gone(path: Path, target: Path) -> None:
        path.unlink()
        raise FileNotFoundError(errno.ENOENT, "gone", str(path))

    (tmp_path / "out").unlink()
    monkeypatch.setattr(sorting, "_copied", gone)
    assert sorter(tmp_path, "copy").put(source, "good") == ""


def test_frames_are_written_as_pictures(tmp_path: Path) -> None:
    one = sorter(tmp_path, "copy")
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    name = "rtsp://10.0.0.7/live 2026-01-31T12:00:00.25Z"
    assert one.put_pixels(name, black, "good") == "good/live_2026-01-31T12_00_00.25Z.png"
    assert one.put_pixels(name, black, "good") == "good/live_2026-01-31T12_00_00.25Z.png"
    assert one.put_pixels(name, white, "good") == "good/live_2026-01-31T12_00_00.25Z-2.png"
    assert one.put_pixels("a/line.avi#000012", white, "defect") == "defect/line.avi#000012.png"
