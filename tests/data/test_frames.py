"""Frames of videos and cameras, whole and broken; `test_arrivals` has the folders that grow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from parts import part, write_picture

import blemish
from blemish import Failure, Frame
from blemish.data import frames as module
from blemish.data.containers import missing_bytes
from blemish.detector.predict import Detector
from blemish.errors import ConfigError, DataError

BLUE = np.full((16, 16, 3), (250, 10, 10), np.uint8)  # as OpenCV has it


class Camera:
    """Gives BGR pictures that grow brighter; nothing for each None in `script`."""

    def __init__(self, *script: int | None) -> None:
        self.script, self.released = list(script), 0
        self.buffer = np.empty((4, 4, 3), np.uint8)  # the same memory each time

    def isOpened(self) -> bool:
        return True

    def read(self) -> tuple[bool, Any]:
        value = self.script.pop(0) if self.script else None
        if value is None:
            return False, None
        self.buffer[:] = (value, 0, 1)
        return True, self.buffer

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def video(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "line.avi", code: str = "MJPG", count: int = 12) -> Path:
        path = tmp_path / name
        random = np.random.default_rng(0)
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 10.0, (64, 64))
        for _ in range(count):
            writer.write(random.integers(0, 255, (64, 64, 3), np.uint8))
        writer.release()
        return path

    return make


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits; the pauses that would have been made, in seconds. The clock goes on by them."""
    pauses: list[float] = []
    real = time.monotonic

    def rest(seconds: float, stop: Callable[[], bool]) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(module, "rest", rest)
    monkeypatch.setattr(module.time, "monotonic", lambda: real() + sum(pauses))
    return pauses


def test_a_video_in_rgb_with_names_and_times(tmp_path: Path) -> None:
    path = tmp_path / "blue.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (16, 16))
    for _ in range(3):
        writer.write(BLUE)
    writer.release()
    found = list(blemish.frames(path))
    assert [one.name for one in found] == [f"{path}#00000{index}" for index in range(3)]
    assert [one.time for one in found] == pytest.approx([0, 0.1, 0.2])
    assert all(one.source.shape == (16, 16, 3) for one in found)
    red, _, blue = found[0].source.mean((0, 1))
    assert blue > 200 > 60 > red


def test_every_so_many_seconds_of_a_video(video: Callable[..., Path]) -> None:
    found = list(blemish.frames(video(), every=0.5))
    assert [one.time for one in found] == pytest.approx([0, 0.5, 1.0])


@pytest.mark.parametrize(
    ("name", "code"), [("a.avi", "MJPG"), ("b.mkv", "MJPG"), ("c.mp4", "mp4v"), ("d.avi", "XVID")]
)
def test_a_whole_video_has_all_of_its_frames(
    video: Callable[..., Path], name: str, code: str
) -> None:
    path = video(name, code)
    assert missing_bytes(path) == 0
    found = list(blemish.frames(path))
    assert (len(found), {type(one) for one in found}) == (12, {Frame})


@pytest.mark.parametrize(
    ("name", "code"), [("a.avi", "MJPG"), ("b.mkv", "MJPG"), ("d.avi", "XVID")]
)
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_a_video_that_ends_in_the_middle_of_a_frame(
    video: Callable[..., Path], name: str, code: str, share: float
) -> None:
    path = video(name, code)
    whole = [one.source for one in blemish.frames(path)]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    *before, last = blemish.frames(path)
    assert isinstance(last, Failure)
    assert "cut off in this frame" in last.reason
    lacking = len(content) - int(len(content) * share)
    assert f"{lacking:,} bytes are missing" in last.reason
    assert len(before) >= (2 if share == 0.5 else 10)
    assert last.source == f"{path}#{len(before):06d}"
    for one, expected in zip(before, whole, strict=False):
        assert isinstance(one, Frame)
        assert np.array_equal(one.source, expected)  # half a picture is not among them


def test_what_cannot_be_opened(video: Callable[..., Path], tmp_path: Path) -> None:
    cut = video("cut.mp4", "mp4v")
    content = cut.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.mp4: cannot be opened, .* bytes are missing"):
        blemish.frames(cut)
    (tmp_path / "empty.avi").touch()
    with pytest.raises(DataError, match="is empty"):
        blemish.frames(tmp_path / "empty.avi")
    (tmp_path / "text.avi").write_text("This is no video.\n")
    with pytest.raises(DataError, match="no video that OpenCV can read"):
        blemish.frames(tmp_path / "text.avi")
    picture = write_picture(tmp_path / "line000.png", part(0))
    with pytest.raises(DataError, match="is a picture; a video"):
        blemish.frames(picture)
    with pytest.raises(DataError, match="no such file or folder, and no URL"):
        blemish.frames(tmp_path / "nowhere.avi")
    with pytest.raises(DataError, match="camera 97: cannot be opened"):
        blemish.frames(97)
    with pytest.raises(DataError, match="the capture is not open"):
        blemish.frames(cv2.VideoCapture(), colours="bgr")


def test_settings_that_cannot_be(video: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is needed for a capture of your own"):
        blemish.frames(Camera(1))
    with pytest.raises(ConfigError, match="gives BGR; leave colours out"):
        blemish.frames(video(), colours="rgb")
    with pytest.raises(ConfigError, match="bgr or rgb is needed"):
        blemish.frames(Camera(1), colours="gbr")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="every -1: a number of seconds"):
        blemish.frames(Camera(1), colours="bgr", every=-1)
    with pytest.raises(ConfigError, match="interval 0"):
        blemish.frames(tmp_path, interval=0)
    with pytest.raises(ConfigError, match="are of cameras"):
        blemish.frames(tmp_path, every=1)
    with pytest.raises(ConfigError, match="frames of float"):
        blemish.frames(1.5)


def test_a_capture_of_ones_own_is_read_as_it_is_said_and_its_memory_is_its_own() -> None:
    as_bgr = list(blemish.frames(Camera(7, 8), colours="bgr"))
    assert [one.source[0, 0].tolist() for one in as_bgr] == [[1, 0, 7], [1, 0, 8]]
    as_rgb = list(blemish.frames(Camera(7, 8), colours="rgb"))
    assert [one.source[0, 0].tolist() for one in as_rgb] == [[7, 0, 1], [8, 0, 1]]
    assert abs(as_rgb[1].time - time.time()) < 60
    assert as_rgb[0].name != as_rgb[1].name
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(module.in_rgb(grey, "bgr"), grey)
    four = np.arange(4, dtype=np.uint8).reshape(1, 1, 4)
    assert module.in_rgb(four, "bgr").tolist() == [[[2, 1, 0, 3]]]


def test_a_camera_that_disappears_is_opened_again(hurry: list[float]) -> None:
    tries: list[Camera | None] = [
        Camera(1, 2, None), None, Camera(None), Camera(3, None), Camera(4, 5),
    ]  # fmt: skip
    cameras = [one for one in tries if one]

    def opened() -> Any:
        return tries.pop(0)

    said: list[str] = []
    coming = blemish.frames(opened, colours="bgr", note=said.append, patience=60)
    found = [next(coming) for _ in range(5)]
    assert [one.source[0, 0, 2] for one in found] == [1, 2, 3, 4, 5]
    assert hurry == [0.5, 1.0, 2.0, 0.5]  # growing, and from the start once it was back
    assert [one.split(";")[0].rstrip(" 0123456789s") for one in said] == [
        *("camera: gives no picture any more", "camera: back after"),
        *("camera: gives no picture any more", "camera: back after"),
    ]
    coming.close()
    assert all(one.released for one in cameras)


def test_a_camera_that_stays_away(hurry: list[float]) -> None:
    first = [Camera(1, 2)]
    coming = blemish.frames(
        lambda: first.pop() if first else None, colours="bgr", note=lambda _: None, patience=100
    )
    assert [next(coming).source[0, 0, 2] for _ in range(2)] == [1, 2]
    with pytest.raises(DataError, match="camera: gone, and not back after 9 tries in 2 min"):
        next(coming)
    assert max(hurry) == 30
    assert sum(hurry) == pytest.approx(100, abs=1)


def test_a_lost_camera_is_said_by_a_warning_where_nobody_listens(hurry: list[float]) -> None:
    cameras = [Camera(1), Camera(2)]
    coming = blemish.frames(lambda: cameras.pop(0), colours="bgr")
    next(coming)
    with pytest.warns(UserWarning, match="gives no picture any more|back after"):
        next(coming)


def test_a_capture_of_opencv_that_is_lost_cannot_be_opened_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Opened(Camera):
        def get(self, _: int) -> float:
            return 0.0

    monkeypatch.setattr(module.cv2, "VideoCapture", Opened)
    coming = blemish.frames(Opened(1), colours="bgr")
    next(coming)
    with pytest.raises(DataError, match="give `frames` the camera's number"):
        next(coming)


def test_every_so_many_seconds_of_a_camera_and_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(1000.0, 1010.0, 0.25))
    monkeypatch.setattr(module.time, "time", lambda: next(clock))
    camera = Camera(*range(20))
    taken: list[Frame | Failure] = []
    for one in blemish.frames(camera, colours="bgr", every=1.0, stop=lambda: len(taken) == 3):
        taken.append(one)
    assert [one.source[0, 0, 2] for one in taken] == [0, 4, 8]
    assert taken[1].name == "camera 1970-01-01T00:16:41.000000Z"


def test_secrets_of_a_url_are_not_shown() -> None:
    shown = module.shown("rtsp://me:pa@ss@host:554/a?password=1&channel=2&api_key=3#x")
    assert shown == "rtsp://host:554/a?password=…&channel=2&api_key=…#x"
    assert module.shown("http://host/a@b") == "http://host/a@b"


def test_predictions_of_frames_keep_name_and_time_and_what_came_before_a_fault(
    fitted: Callable[..., Detector], hurry: list[float]
) -> None:
    detector = fitted()
    pixels = part(3)

    class Line(Camera):
        def read(self) -> tuple[bool, Any]:
            came, _ = super().read()
            return came, np.ascontiguousarray(pixels[..., ::-1])

    cameras = [Line(1, 2, 3)]
    taken: list[Frame] = []

    def noted() -> Iterator[Frame | Failure]:
        for one in blemish.frames(
            lambda: cameras.pop() if cameras else None,
            colours="bgr",
            patience=1,
            note=lambda _: None,
        ):
            taken.append(one)  # type: ignore[arg-type]
            yield one

    results = detector.predict_many(noted(), batch_size=8)
    found = [next(results) for _ in range(3)]
    assert [(one.source, one.time) for one in found] == [(one.name, one.time) for one in taken]
    expected = detector.predict(pixels)
    assert all(one.digest == expected.digest for one in found)  # RGB, to the bit
    with pytest.raises(DataError, match="not back"):
        next(results)
    assert detector.predict(taken[0]).source == taken[0].name
    assert expected.time is None


def test_broken_frames_are_failures_among_the_others(fitted: Callable[..., Detector]) -> None:
    frames = [
        Frame(source=part(0), name="first", time=0.0),
        Frame(source=np.zeros((2, 2, 2), np.uint8), name="second", time=0.1),
        Frame(source=Path("nowhere.png"), name="third", time=0.2),
    ]
    one, two, three = fitted().predict_many(frames)
    assert (one.source, two.source, three.source) == ("first", "second", "third")
    assert isinstance(two, Failure)
    assert "has shape (2, 2, 2)" in two.reason
    assert "does not exist" in three.reason


def test_lengths_that_containers_name(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def missing(content: bytes) -> int:
        path.write_bytes(content)
        return missing_bytes(path)

    box = b"\0\0\0\x10ftyp" + bytes(8)
    assert missing(box + b"\0\0\0\x01mdat" + (64).to_bytes(8, "big") + bytes(8)) == 40
    assert missing(box + b"\0\0\0\0mdat" + bytes(8)) == 0  # to the end of the file
    assert missing(box + b"\0\0") == 0
    head = b"\x1aE\xdf\xa3\x81\0"
    assert missing(head + b"\x18S\x80g\x8a" + bytes(4)) == 6
    assert missing(head + b"\x18S\x80g\x40\x0a" + bytes(4)) == 6
    assert missing(head + b"\x18S\x80g\x01" + b"\xff" * 7) == 0  # not known
    assert missing(head) == missing(head[:4]) == missing(b"") == 0
    riff = b"RIFF" + (20).to_bytes(4, "little") + b"AVI " + bytes(16)
    assert missing(riff) == 0
    assert missing(riff[:-5]) == 5
    assert missing(riff + b"RIFF" + (20).to_bytes(4, "little") + bytes(4)) == 16
    assert missing(b"RIFF" + bytes(4) + b"AVI " + bytes(9)) == 0  # never filled in
    assert missing(b"GIF89a" + bytes(20)) == 0
