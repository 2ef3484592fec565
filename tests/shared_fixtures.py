"""Pictures, data sets and small fitted detectors that many tests share: tiny, on the CPU, without a
network.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM, OPTIONS
from parts import LEARNED, part, settings_of, write_picture

import blemish
from blemish import cli
from blemish.detector.predict import Detector
from blemish.methods import apmask

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
# Where the tests run in the background Ctrl-C is ignored, and would be in every process that they
# start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# what torch and timm have made lives as long as the tests: no collection need look at it again
gc.freeze()


@pytest.fixture
def decoder_threads() -> Callable[[], list[str]]:
    """The names of the threads that decode pictures, without those that an interrupted test has
    left to the garbage collector before.
    """

    def running() -> set[threading.Thread]:
        return {each for each in threading.enumerate() if each.name.startswith("blemish-decode")}

    before = running()
    return lambda: [each.name for each in running() - before]


@cache
def _fitted(method: str, count: int) -> Detector:
    settings = {**settings_of(method), **LEARNED.get(method, {})}
    return blemish.fit(method, [part(seed) for seed in range(count)], **settings)


@pytest.fixture
def small(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of `blemish.fit` for a detector that fits in milliseconds: of the test's `method`,
    or of any other.
    """
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
    """`fitted("knn")`: a detector of that method on `count` parts, the same object each time: do
    not change it.
    """

    def get(method: str = "knn", count: int = 24) -> Detector:
        return _fitted(method, count)

    return get


@pytest.fixture(scope="session")
def kept_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `good` and `part`, of which the next two fixtures give copies: to copy is
    quicker than to draw.
    """
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
        write_picture(
            root / "ground_truth" / "square" / f"{seed:03d}_mask.png", marked.astype(np.uint8) * 255
        )
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
    """A data set in the MVTec layout: 24 train, 6 good, 4 with a square (with masks), 3 that are
    dark (with masks).
    """
    return Path(shutil.copytree(kept_sets / "part", tmp_path / "part", dirs_exist_ok=True))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`run("fit knn", path, …)`: (exit status, standard output, standard error). A string is split
    at blanks, a path is one argument."""

    def execute(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        words = [one.split() if isinstance(one, str) else [str(one)] for one in arguments]
        status = cli.main([word for part in words for word in part])
        return status, *capsys.readouterr()

    return execute


@pytest.fixture
def seeded() -> Iterator[None]:
    """Torch draws the same in every test, and its generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def answered(run: Callable[..., tuple[int, str, str]]) -> Callable[..., Any]:
    """`answered("inspect", path)`: the JSON document of a command."""
    return lambda *arguments: json.loads(run(*arguments, "--json")[1])


@pytest.fixture
def refused(run: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """`refused("fit", …)`: the message of a command that must end with status 2, having printed
    nothing else.
    """

    def execute(*arguments: object) -> str:
        status, out, err = run(*arguments)
        assert (status, out) == (2, ""), err
        assert "Traceback" not in err
        assert "bug in blemish" not in err
        return err[err.index("blemish") :]

    return execute


@pytest.fixture(name="part")
def saved_part(tmp_path: Path, fitted: Callable[..., Detector]) -> Path:
    """The artifact of `fitted()`."""
    return fitted().save(tmp_path / "part.blemish")


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


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, Any]:
    """Debian's Chromium. Skips where there is none, but not in CI."""
    if not CHROMIUM:
        (pytest.fail if os.environ.get("BLEMISH_CI") else pytest.skip)(
            "no Chromium: apt-get install chromium"
        )
    return {"executable_path": CHROMIUM, "args": list(OPTIONS)}
