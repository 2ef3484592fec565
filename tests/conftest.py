"""Pictures, data sets and small fitted detectors that many tests share: tiny, on the CPU, without a network."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import blemish
from blemish import cli
from blemish.methods import METHODS, apmask
from blemish.predictor import Detector

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
# Where the tests run in the background Ctrl-C is ignored, and would be in every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

gc.freeze()  # what torch and timm have made lives as long as the tests: no collection need look at it again

SIDE = 64
# Nothing here may depend on what the machine has, and the defaults of a method are for real backbones.
SMALL: dict[str, Any] = {
    "backbone": "test_vit",
    "weights": "random",
    "image_size": SIDE,
    "layers": (2, 4),
    "device": "cpu",
    "precision": "fp32",
}


# A short training; those of methods that are not trained have no such settings.
BRIEF: dict[str, Any] = {"epochs": 1, "min_steps": 12, "pictures_per_step": 8, "width": 32, "heads": 4, "depth": 1}
# A step through the head of guided, which is DINO's and 2048 wide, takes as long as many of the others. And it scores
# pictures larger than it learns from, unless told otherwise.
BRIEFER: dict[str, dict[str, Any]] = {
    "guided": {"min_steps": 2, "zoom": 1.0},
    "atacnet-paper": {"min_steps": 40, "learning_rate": 3e-4},
}


def settings_of(method: str) -> dict[str, Any]:
    """Arguments of `blemish.fit` for this method, to fit it in milliseconds."""
    names = {field.name for field in dataclasses.fields(METHODS[method].Config)} if method in METHODS else set()
    return {**SMALL, **{name: value for name, value in BRIEF.items() if name in names}, **BRIEFER.get(method, {})}


def part(seed: int, *, defect: bool = False, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """A striped part with some noise, uint8 H W 3; with a defect: the same picture with a bright square in it."""
    return _drawn(seed, defect, height, width).copy()


@cache
def _drawn(seed: int, defect: bool, height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / SIDE
    stripes = 90 + 40 * np.sin(2 * np.pi * 3 * columns + random.uniform(0, 0.2)) + 20 * rows
    pixels = stripes[..., None] + random.normal(0, 4, (height, width, 3))
    if defect:
        top, left = height * 5 // 8, width // 8
        pixels[top : top + height // 5, left : left + width // 5] = 250
    return np.asarray(np.clip(pixels, 0, 255), dtype=np.uint8)


def write_picture(path: Path, pixels: np.ndarray) -> Path:
    """The pixels (RGB or grey) in the lossless format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., ::-1]))
    return path


@cache
def _fitted(method: str, count: int) -> Detector:
    return blemish.fit(method, [part(seed) for seed in range(count)], **settings_of(method))


@pytest.fixture
def small(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of `blemish.fit` for a detector that fits in milliseconds: of the test's `method`, or of any other."""
    callspec = getattr(request.node, "callspec", None)
    return settings_of(callspec.params.get("method", "knn") if callspec else "knn")


@pytest.fixture
def brief(small: dict[str, Any]) -> dict[str, Any]:
    """As `small`, but training takes three steps: for tests of anything but what is learned."""
    return {**small, "min_steps": 3} if "min_steps" in small else small


@pytest.fixture(scope="session")
def picture() -> Callable[..., np.ndarray]:
    return part


@pytest.fixture(scope="session")
def write() -> Callable[[Path, np.ndarray], Path]:
    return write_picture


@pytest.fixture(scope="session")
def fitted() -> Callable[..., Detector]:
    """`fitted("knn")`: a detector of that method on `count` parts, the same object each time: do not change it."""

    def get(method: str = "knn", count: int = 24) -> Detector:
        return _fitted(method, count)

    return get


@pytest.fixture(scope="session")
def kept_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `good` and `part`, of which the next two fixtures give copies: to copy is quicker than to draw."""
    kept = tmp_path_factory.mktemp("kept")
    for seed in range(24):
        write_picture(kept / "good" / f"{seed:03d}.png", part(seed))
    root = kept / "part"
    for seed in range(24):
        write_picture(root / "train" / "good" / f"{seed:03d}.png", part(seed))
    for seed in range(6):
        write_picture(root / "test" / "good" / f"{seed:03d}.png", part(100 + seed))
    for seed in range(4):
        write_picture(root / "test" / "square" / f"{seed:03d}.png", part(200 + seed, defect=True))
        marked = (part(200 + seed, defect=True) != part(200 + seed)).any(axis=2)
        write_picture(root / "ground_truth" / "square" / f"{seed:03d}_mask.png", marked.astype(np.uint8) * 255)
    for seed in range(3):
        dark = part(300 + seed)
        mask = np.zeros(dark.shape[:2], np.uint8)
        mask[8 : 24 + 8 * seed, 30:50] = 255
        mask[50:60, 4:20] = 255
        dark[mask > 0] //= 3
        write_picture(root / "test" / "dark" / f"{seed:03d}.png", dark)
        write_picture(root / "ground_truth" / "dark" / f"{seed:03d}_mask.png", mask)
    return kept


@pytest.fixture
def good_folder(kept_sets: Path, tmp_path: Path) -> Path:
    """A flat folder of 24 good parts, the ones that `fitted` knows."""
    return Path(shutil.copytree(kept_sets / "good", tmp_path / "good", dirs_exist_ok=True))


@pytest.fixture
def mvtec(kept_sets: Path, tmp_path: Path) -> Path:
    """A data set in the MVTec layout: 24 train, 6 good, 4 with a square (with masks), 3 that are dark (with masks)."""
    return Path(shutil.copytree(kept_sets / "part", tmp_path / "part", dirs_exist_ok=True))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`run("fit", …)`: (exit status, standard output, standard error)."""

    def execute(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return execute


@pytest.fixture
def interrupted_pretraining() -> Callable[[], AbstractContextManager[None]]:
    """`with interrupted_pretraining():` Ctrl-C comes at the end of a pre-training's fourth step."""

    @contextmanager
    def interruption() -> Iterator[None]:
        step = apmask.APMask.after_step

        def interrupted(self: apmask.APMask, number: int, steps: int) -> None:
            if number == 4:
                raise KeyboardInterrupt
            step(self, number, steps)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(apmask.APMask, "after_step", interrupted)
            yield

    return interruption
