"""Where memory runs out, that is one picture's own failure, in its own words; the others are
scored.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import blemish
from blemish.data import ahead
from blemish.data import stream as streams
from blemish.data.stream import PictureStream
from blemish.errors import ImageError
from blemish.images import sources
from blemish.images.limits import BUDGET
from blemish.types import Failure, Prediction

rng = np.random.default_rng(3)
GOOD = [rng.integers(80, 100, (40, 36, 3), dtype=np.uint8) for _ in range(5)]
RAN_OUT = [
    MemoryError(),
    cv2.error("alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
]
WORDS = "needs more memory than there was left when its turn came"


def fitted(pictures: list[np.ndarray]) -> blemish.Detector:
    return blemish.fit("knn", pictures, backbone="test_vit", weights="random", image_size=32)


@pytest.fixture(scope="module")
def detector() -> blemish.Detector:
    return fitted(GOOD)


@pytest.fixture(autouse=True)
def nothing_stays_reserved() -> Iterator[None]:
    yield
    assert BUDGET.used == 0


def failing_for(pixels: np.ndarray, function: Any, error: BaseException) -> Any:
    """The function, but for one picture, told by its shape, memory runs out."""

    def called(first: Any, *rest: Any, **more: Any) -> Any:
        values = getattr(first, "values", getattr(first, "pixels", first))
        if getattr(values, "shape", ())[:2] == pixels.shape[:2]:
            raise error
        return function(first, *rest, **more)

    return called


LARGE = np.full((60, 50, 3), 90, np.uint8)


@pytest.mark.parametrize("error", RAN_OUT, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("stage", ["_from_array", "scaling", "_rgb", "prepare"])
def test_a_picture_for_which_memory_runs_out_fails_alone(
    detector: blemish.Detector, monkeypatch: pytest.MonkeyPatch, stage: str, error: Exception
) -> None:
    places = {"prepare": "detector.reading", "_from_array": "images.sources"}
    home = sys.modules[f"blemish.{places.get(stage, 'images.rendering')}"]
    monkeypatch.setattr(home, stage, failing_for(LARGE, getattr(home, stage), error))
    results = list(detector.predict_many([GOOD[0], LARGE, GOOD[1], GOOD[2]], batch_size=2))
    assert [isinstance(result, Failure) for result in results] == [False, True, False, False]
    assert isinstance(results[1], Failure)
    assert results[1].source == "array 1"
    assert results[1].reason.startswith(WORDS)
    assert "damaged" not in results[1].reason
    if stage != "prepare":
        with pytest.raises(ImageError, match=WORDS):
            blemish.images.decode(LARGE)


@pytest.mark.parametrize("error", RAN_OUT, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("stage", ["decode", "prepare", "thumbnail"])
def test_a_fit_goes_on_without_it(
    monkeypatch: pytest.MonkeyPatch, stage: str, error: Exception
) -> None:
    home = ahead if stage == "decode" else streams
    monkeypatch.setattr(home, stage, failing_for(LARGE, getattr(home, stage), error))
    assert isinstance(fitted([*GOOD, LARGE]).predict(GOOD[0]), Prediction)


@pytest.mark.parametrize("limit", [1, 2])
def test_a_batch_too_large_for_memory_is_scored_in_halves(
    detector: blemish.Detector, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    new = [np.flipud(pixels).copy() for pixels in GOOD]  # those that were learned score nearly 0
    expected = [result.score for result in detector.predict_many(new, batch_size=1)]
    assert min(expected) > 0.01
    judge, seen = detector.method.judge, []

    def small_only(features: Any, images: Any) -> Any:
        seen.append(len(images))
        if len(images) > limit:
            raise RAN_OUT[2]
        return judge(features, images)

    monkeypatch.setattr(detector.method, "judge", small_only)
    results = list(detector.predict_many([*new[:2], b"broken", *new[2:]], batch_size=5))
    assert isinstance(results.pop(2), Failure)
    assert [result.score for result in results] == pytest.approx(expected, abs=1e-5)
    assert max(seen) == 5
    assert min(seen) == 1


def test_one_that_cannot_be_scored_even_alone_fails_alone(
    detector: blemish.Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = detector.method.judge

    def not_white(features: Any, images: Any) -> Any:
        if (images.flatten(1).min(1).values > 0.5).any():
            raise RAN_OUT[2]
        return judge(features, images)

    monkeypatch.setattr(detector.method, "judge", not_white)
    white = np.full((40, 36, 3), 255, np.uint8)
    results = list(detector.predict_many([GOOD[0], GOOD[1], white, GOOD[2]], batch_size=4))
    assert [isinstance(result, Failure) for result in results] == [False, False, True, False]
    assert "not enough memory for it alone" in results[2].reason


def test_another_error_of_the_model_is_not_taken_for_that(
    detector: blemish.Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(features: Any, images: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(detector.method, "judge", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        list(detector.predict_many(GOOD[:2]))


def test_a_decoded_picture_is_let_go_before_its_mask_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, detector: blemish.Detector
) -> None:
    Image.fromarray(GOOD[0]).save(tmp_path / "a.png")
    Image.fromarray(np.full((40, 36), 255, np.uint8)).save(tmp_path / "mask.png")
    alive: list[Any] = []
    decode, marked = ahead.decode, streams.marked

    def decoded(*arguments: Any, **more: Any) -> Any:
        picture = decode(*arguments, **more)
        alive.append(weakref.ref(picture))
        return picture

    def looked(*arguments: Any) -> Any:
        assert alive
        assert alive[0]() is None
        assert BUDGET.used == 0
        return marked(*arguments)

    monkeypatch.setattr(ahead, "decode", decoded)
    monkeypatch.setattr(streams, "marked", looked)
    path = tmp_path / "a.png"
    sample = blemish.types.Sample(path=path, label=1, mask=tmp_path / "mask.png")
    stream = PictureStream([path], detector.preprocessing, 1, labels=[1], marks=[sample])
    reading = iter(stream)
    (batch,) = reading
    assert batch.masks is not None
    assert not reading.found.failures


def test_the_process_is_held_to_its_limit(tmp_path: Path) -> None:
    """Under `ulimit -v` a picture of 48 megapixels is refused in words, and the small ones are
    scored.
    """
    pytest.importorskip("resource")
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    Image.fromarray(np.full((6000, 8000), 90, np.uint8)).save(large, compress_level=1)
    Image.fromarray(GOOD[0]).save(small)
    code = """
import json, resource, sys
from pathlib import Path
from blemish.data.stream import PictureStream
from blemish.data.transforms import Preprocessing
import cv2
stream = PictureStream(sys.argv[1:], Preprocessing(height=32, width=32, mean=(0,)*3, std=(1,)*3), 2)
list(PictureStream(sys.argv[2:], stream.preprocessing, 2))  # what is loaded lazily
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2**20 * 60
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
import blemish.data.ahead
blemish.data.ahead.WORKERS = 1
reading = iter(stream)
rows = sum(len(batch.images) for batch in reading)
print(json.dumps([rows, [failure.reason for failure in reading.found.failures.values()]]))
"""
    command = [sys.executable, "-c", code, str(large), str(small)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    rows, reasons = json.loads(done.stdout)
    assert rows == 1
    assert len(reasons) == 1
    assert "to decode" in reasons[0] or reasons[0].startswith(WORDS), reasons
    assert "damaged" not in reasons[0]


def test_out_of_memory_inside_a_reader_is_not_called_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Image.fromarray(GOOD[0]).save(tmp_path / "a.png")
    for error in RAN_OUT:

        def full(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setitem(sources._READERS, "png", full)
        with pytest.raises(ImageError, match=WORDS):
            blemish.images.decode(tmp_path / "a.png")
