"""What a command line says when it is interrupted in a call that lasts, and how it ends then."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from blemish import artifact, cli, interrupts
from blemish.methods import apmask

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
# `pbkdf2_hmac` stands for a backward pass: no handler of Python runs before it is done.
LONG = """
import hashlib, sys
from blemish import interrupts
interrupts._SAME, interrupts._PATIENCE = 0.2, 0.2
with interrupts.heard(aloud={aloud}), interrupts.waiting(words="stopping soon") as came:
    came.saving = {saving}
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})
print("done", came.number)
"""


# Of a pre-training of a few short steps.
SETTINGS = {
    **{"backbone": "test_vit", "picture_size": 40, "image_size": 32, "local_size": 16},
    **{"local_views": 1, "hidden": 16, "bottleneck": 8, "prototypes": 4, "train_batch_size": 4},
    **{"epochs": 1, "min_steps": 6},
}
OPTIONS = (
    *("--weights", "random", "--device", "cpu", "--precision", "fp32"),
    *(f"--set={key}={value}" for key, value in SETTINGS.items()),
)


@contextmanager
def started(**how: Any) -> Iterator[subprocess.Popen[str]]:
    code = LONG.format(**{"aloud": True, "saving": False, "rounds": 10**9, **how})
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True) as one:
        try:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
            yield one
        finally:
            one.kill()


def said(one: subprocess.Popen[str], within: float = 5.0) -> str:
    assert one.stderr is not None
    ready, _, _ = select.select([one.stderr], [], [], within)
    return one.stderr.readline() if ready else ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_said_at_once_and_the_second_one_ends_it(number: signal.Signals) -> None:
    with started() as one:
        one.send_signal(number)
        assert said(one) == "blemish: stopping soon\n"
        assert one.poll() is None  # still at work
        threading.Event().wait(0.3)
        one.send_signal(number)
        out, err = one.communicate(timeout=10)
    assert (one.returncode, out) == (128 + number, "")
    assert err == "blemish: interrupted; what was saved is whole\n"


def test_two_at_once_are_one_and_what_is_being_saved_is_not_ended() -> None:
    with started(saving=True, rounds=3 * 10**6) as one:
        one.send_signal(signal.SIGINT)
        assert said(one) == "blemish: stopping soon\n"
        one.send_signal(signal.SIGINT)
        threading.Event().wait(0.4)
        one.send_signal(signal.SIGINT)
        out, err = one.communicate(timeout=60)
    assert (one.returncode, out, err) == (0, "done 2\n", "")


def test_a_library_says_nothing_and_leaves_the_handlers(capfd: Any) -> None:
    with interrupts.waiting(words="stopping") as came:
        signal.raise_signal(signal.SIGINT)
    assert came.number == signal.SIGINT
    before = threading.active_count()
    with interrupts.heard(aloud=True), interrupts.waiting() as came:
        assert threading.active_count() == before
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == ""
    assert signal.set_wakeup_fd(-1) == -1


def test_an_interrupt_is_answered_at_once_and_what_is_not_there_is_told(
    good_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, checkpoint = apmask.APMask.after_step, tmp_path / "encoder.safetensors.training"

    def interrupted(self: apmask.APMask, number: int, steps: int) -> None:
        if number == 2:
            signal.raise_signal(signal.SIGINT)
        step(self, number, steps)

    monkeypatch.setattr(apmask.APMask, "after_step", interrupted)
    output = str(tmp_path / "encoder.safetensors")
    command = ["pretrain", str(good_folder), "-o", output, *OPTIONS, "--resume"]
    assert cli.main(command) == 130
    err = capfd.readouterr().err
    assert f"blemish: notice: nothing to resume: {checkpoint} is not there; it begins anew" in err
    assert "blemish: stopping after this step, which is saved; the same once more stops" in err
    assert "the same command with --resume goes on from here" in err
    assert artifact.read(checkpoint)[1]["checkpoint"]["step"] == 2
    monkeypatch.setattr(apmask.APMask, "after_step", step)
    assert cli.main(command) == 0
    assert "nothing to resume" not in capfd.readouterr().err
