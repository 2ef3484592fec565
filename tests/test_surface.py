"""The public surface: these names, no others, and nothing heavy until one of them is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import blemish

NAMES = [
    *("BACKBONES", "BlemishError", "Detector", "Evaluation", "Failure", "Frame", "METHODS"),
    "Prediction",
    *("configure", "evaluate", "fit", "frames", "load", "pretrain", "recalibrate", "refine"),
]
HEAVY = (
    *("torch", "timm", "numpy", "cv2", "PIL", "scipy", "sklearn", "matplotlib", "safetensors"),
    *("jinja2", "rich"),
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_names() -> None:
    assert blemish.__all__ == NAMES
    assert dir(blemish) == sorted(NAMES)
    assert all(getattr(blemish, name).__doc__ for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_its_home_calls_it(name: str) -> None:
    found = getattr(blemish, name)
    if name in ("METHODS", "BACKBONES"):
        assert isinstance(found, dict)
        assert all(isinstance(key, str) for key in found)
    else:
        assert found.__name__ == name
        assert found.__module__.startswith("blemish.")


def test_another_name() -> None:
    with pytest.raises(AttributeError, match="module 'blemish' has no attribute 'fitt'"):
        blemish.fitt  # noqa: B018


def test_import_is_light() -> None:
    heavy = f"[m for m in {HEAVY} if m in sys.modules]"
    assert run(f"import sys, blemish; print({heavy})") == "[]"
    assert run(f"import sys, blemish.errors, blemish.types, blemish.config; print({heavy})") == "[]"
    assert run(f"import sys; from blemish import BlemishError, Prediction; print({heavy})") == "[]"
    said = run(f"import sys; from blemish import cli; s = cli.main(['--help']); print({heavy}, s)")
    assert said.splitlines()[-1] == "[] 0"
