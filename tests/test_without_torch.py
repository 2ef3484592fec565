"""The base install has no PyTorch: what it offers neither imports nor uses what it lacks.

In a process of their own, which refuses to import the packages of the extras as if they were not
installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blemish import artifact

REFUSED = ("torch", "torchvision", "timm", "scipy", "sklearn", "matplotlib")

# What predict, watch, inspect, doctor and data take, by rooms.
MODULES = (
    *("area", "artifact", "compute", "config", "errors", "extras", "files", "interrupts"),
    *("machine", "regions", "text", "types"),
    *("images.decoder", "images.windows", "images.dicom", "images.pieces", "images.limits"),
    *("metrics.ranking", "metrics.regions", "metrics.detections", "metrics.cuts"),
    *("anomalies", "anomalies.base"),
    *("data.areas", "data.arrivals", "data.checking", "data.copies", "data.folder", "data.frames"),
    *("data.layouts", "data.marks", "data.masks", "data.pictures", "data.tables", "data.tiles"),
    *("engines.base",),
    *("detector.beta", "detector.grouping", "detector.thresholds", "detector.parts"),
    *("report.heatmap", "report.sorting", "report.health"),
    *("cli.app",),
)

_WITHOUT = """if True:
    import sys

    class Refusing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in REFUSED:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Refusing())
"""


def without(code: str, *given: str) -> str:
    """What Python code prints in a process without the packages."""
    refusing = f"REFUSED = {REFUSED!r}\n" + _WITHOUT
    command = [sys.executable, "-c", f"{refusing}\n{code}", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(*lines: list[str]) -> list[tuple[int, str]]:
    """The exit status and the words of command lines, all in one process."""
    code = """if True:
        import contextlib, io, json
        from blemish.cli import main
        for line in json.loads(sys.argv[1]):
            with contextlib.redirect_stdout(io.StringIO()) as said:
                with contextlib.redirect_stderr(said):
                    status = main(line)
            print(json.dumps([status, said.getvalue()]))
    """
    return [tuple(json.loads(line)) for line in without(code, json.dumps(lines)).splitlines()]


def test_the_packages_are_refused() -> None:
    for name in REFUSED:
        with pytest.raises(AssertionError, match=f"No module named '{name}'"):
            without(f"import {name}")


def test_modules_are_imported_without_it() -> None:
    code = """if True:
        import importlib, json
        for name in json.loads(sys.argv[1]):
            # As if each were the first: what a failed import leaves behind hides the next failure.
            for known in [one for one in sys.modules if one.partition(".")[0] == "blemish"]:
                del sys.modules[known]
            try:
                importlib.import_module("blemish." + name)
            except ImportError as error:
                print(name, error)
    """
    assert without(code, json.dumps(MODULES)) == ""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three good pictures."""
    rng = np.random.default_rng(0)
    for number in range(3):
        file = tmp_path / "set" / "good" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), np.uint8)).save(file)
    return tmp_path / "set"


def test_what_needs_none_of_it_works(data: Path) -> None:
    names = ("fit", "predict", "watch", "evaluate", "figures", "calibrate", "refine", "pretrain")
    more = ("simulate", "inspect", "backbones", "methods", "doctor", "data", "bench")
    found = commands(
        ["data", "check", str(data)],
        ["data", "layouts"],
        ["simulate", "--list"],
        ["doctor"],
        ["--help"],
        *([name, "--help"] for name in (*names, *more)),
    )
    assert [status for status, _ in found] == [0] * len(found)
    assert "Nothing is wrong." in found[0][1]
    assert "can run exported detectors here" in found[3][1]
    assert "the engine torch: pip install 'blemish[torch]'" in found[3][1]


@pytest.mark.parametrize("as_json", [False, True])
def test_what_needs_it_says_how_to_get_it(as_json: bool, data: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "part.blemish")
    lines: dict[str, list[str]] = {
        "learn a detector": ["fit", "knn", str(data), "--output", output],
        "train an encoder": ["pretrain", str(data), "--output", output],
        "refine a detector": ["refine", output, "--good", str(data)],
        "set thresholds anew": ["calibrate", output, str(data), "--output", output],
        "list the methods": ["methods"],
        "list the backbones": ["backbones"],
        "draw how artifacts see pictures": ["figures", output, str(data), "-o", output],
        "make synthetic anomalies": ["simulate", str(data), "-o", output],
        "read what was measured": ["bench", "table", output],
        "measure methods": ["bench", "--methods", "knn", "--data", "x", "--results", output],
    }
    found = commands(*([*line, *(["--json"] if as_json else [])] for line in lines.values()))
    for (status, said), purpose in zip(found, lines, strict=True):
        told = f"PyTorch is needed to {purpose}: pip install 'blemish[torch]'"
        assert status == 2
        if as_json:
            error = json.loads(said)["error"]
            assert error["kind"] == "MissingExtraError"
            assert error["message"] == f"blemish: {told}"
        else:
            assert said == f"blemish: {told}\n"
    assert not Path(output).exists()


def test_public_names_say_it_too() -> None:
    code = """if True:
        import blemish
        try:
            blemish.fit("knn", [])
        except blemish.BlemishError as error:
            print(error)
    """
    told = "PyTorch is needed to use blemish.fit: pip install 'blemish[torch]'\n"
    assert without(code) == told


def test_the_manifest_of_an_artifact_is_read_without_it(tmp_path: Path) -> None:
    tensors = {
        "bank": torch.zeros(3, dtype=torch.bfloat16),
        "count": torch.tensor(2),
        "weights": torch.ones(2, 2),
    }
    path = artifact.write(tmp_path / "part.blemish", tensors, {"method": "knn"})
    code = """if True:
        import json
        from blemish.artifact import read_manifest
        from blemish.errors import ArtifactError
        try:
            print(json.dumps(read_manifest(sys.argv[1])))
        except ArtifactError as error:
            print(error)
    """

    def told() -> Any:
        return without(code, str(path)).strip()

    assert json.loads(told()) == {"method": "knn", "format": artifact.FORMAT}
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "was altered or damaged after it was written" in told()
