"""The base install has no PyTorch: what it offers neither imports nor uses what it lacks.

In a process of their own, which refuses to import the packages of the extras as if they were not
installed.
"""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import made_graphs as graphs
import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from parts import Fitted, part, write_picture

import blemish
from blemish import artifact, extras
from blemish.engines import files

ROOT = Path(__file__).parents[1]
REFUSED = ("torch", "torchvision", "timm", "scipy", "sklearn", "matplotlib")

# What learns, runs what is not exported, or draws what only such can show.
NEEDING = (
    *(
        "anomalies.cutmix",
        "anomalies.scrambling",
        "backbones.pdn",
        "backbones.base",
        "backbones.building",
        "backbones.cache",
    ),
    *("backbones.cells", "backbones.checkpoint", "backbones.cnn", "backbones.glance"),
    *("backbones.offline", "backbones.vit", "backbones.weights", "data.stream", "losses"),
    *("detector.built", "detector.distil", "detector.evidence", "detector.fit"),
    *("detector.learned", "detector.ways"),
    *("detector.pretrain", "detector.refine", "detector.request", "detector.restoring"),
    *("detector.telling", "engines.pytorch", "report.figures", "report.foregrounds"),
    *("report.galleries", "report.simulation", "training.checkpoint", "training.distributed"),
    *("scale.evaluating", "scale.jobs", "scale.learning", "scale.pieces"),
    *("training.arithmetic", "training.feed", "training.loop"),
)
# Rooms in which a module may need it.
_ROOMS = ("bench.", "export.", "methods.")

_FOUND = pkgutil.walk_packages(blemish.__path__, "blemish.", onerror=lambda name: None)
MODULES = sorted({one.name.removeprefix("blemish.") for one in _FOUND} - {"__main__"})

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
        failed = []
        for name in json.loads(sys.argv[1]):
            before = {*sys.modules}
            try:
                importlib.import_module("blemish." + name)
            except Exception as error:
                if type(error).__name__ not in ("ModuleNotFoundError", "MissingExtraError"):
                    raise
                failed.append(name)
                # What a failed import leaves behind hides the next failure.
                for new in [one for one in sys.modules if one.partition(".")[0] == "blemish"]:
                    if new not in before:
                        package, _, own = new.rpartition(".")
                        vars(sys.modules.get(package, sys)).pop(own, None)
                        del sys.modules[new]
        print(json.dumps(failed))
    """
    failed = json.loads(without(code, json.dumps(MODULES)))
    outside = [module for module in failed if not module.startswith(_ROOMS)]
    assert [module for module in outside if not module.startswith(NEEDING)] == []
    # What needs it no more is to be taken off the list.
    assert [name for name in NEEDING if not any(one.startswith(name) for one in outside)] == []


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Good pictures to learn from, and a test set with a defect."""
    root = tmp_path / "set"
    for folder, seeds in (
        ("train/good", range(50, 56)),
        ("test/good", (60, 61)),
        ("test/dent", (62,)),
    ):
        for seed in seeds:
            write_picture(root / folder / f"{seed}.png", part(seed, defect="dent" in folder))
    return root


@pytest.fixture
def exported(tmp_path: Path, fitted: Fitted) -> Path:
    """A detector of a graph of a few operators, as a file."""
    record = fitted("knn").record
    preprocessing = replace(record.preprocessing, height=graphs.SIDE, width=graphs.SIDE)
    told = replace(record, preprocessing=preprocessing).to_dict()
    manifest = {**told, "format": artifact.FORMAT, "export": graphs.manifest()["export"]}
    return files.write(tmp_path / "part.onnx", "onnx", graphs.onnx_bytes(), manifest)


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
    made = str(artifact.write(tmp_path / "made.blemish", {}, {"method": "knn"}))
    lines: dict[str, list[str]] = {
        "learn a detector": ["fit", "knn", str(data), "--output", output],
        "train an encoder": ["pretrain", str(data), "--output", output],
        "refine a detector": ["refine", output, "--good", str(data)],
        f"run {made}, which is not exported": ["predict", made, str(data)],
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


def test_what_pytorch_would_not_help(exported: Path, data: Path, tmp_path: Path) -> None:
    missing, renamed = tmp_path / "none.blemish", tmp_path / "part.model"
    renamed.write_bytes(exported.read_bytes())
    weights = tmp_path / "part.bin"
    weights.write_bytes(bytes(64))
    weights.with_suffix(".xml").write_text("<net/>")
    wanted = {
        missing: "cannot be read",
        renamed: "exported files keep the ending .onnx or .xml",
        weights: "holds the weights of an exported file; name the .xml beside it",
        data: "it is a folder",
    }
    found = commands(*(["predict", str(path), str(data)] for path in wanted))
    for (status, said), (path, what) in zip(found, wanted.items(), strict=True):
        assert status == 2
        assert said.startswith(f"blemish: {path}: ")
        assert what in said
        assert "PyTorch" not in said


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


def test_an_exported_detector_scores_watches_is_evaluated_and_calibrated(
    exported: Path, data: Path, tmp_path: Path
) -> None:
    found, anew = tmp_path / "found", tmp_path / "anew.onnx"
    told = commands(
        ["inspect", str(exported)],
        [
            *("predict", str(exported), str(data / "test"), "--output", str(found), "--json"),
            *("--save", "overlays,masks,maps,tiff", "--coco", str(found / "coco.json")),
            *("--report", str(found / "report.html")),
        ],
        [
            *("evaluate", str(exported), str(data), "--output", str(tmp_path / "judged"), "--json"),
            *("--report", str(tmp_path / "judged.html")),
        ],
        [
            *("calibrate", str(exported), str(data / "train" / "good"), "--output", str(anew)),
            *("--false-alarm-rate", "0.2"),
        ],
        ["inspect", str(anew), "--json"],
        [
            *("watch", str(data / "test" / "good"), str(exported), "--once", "--settle", "0.05"),
            *("--output", str(tmp_path / "line"), "--save", "overlays", "--sort", "copy"),
        ],
        ["predict", str(exported), str(data), "--adapt", "online"],
        ["predict", str(exported), str(data), "--scales", "64"],
    )
    assert [status for status, _ in told] == [0] * 6 + [2] * 2, told
    said = [words for _, words in told]
    assert "for ONNX Runtime, or OpenVINO, in fp32" in said[0]
    rows = json.loads(said[1][said[1].index("{") :])["predictions"]
    detector = blemish.load(exported)
    for row in rows:  # the same code, and so the same numbers
        known = detector.predict(row["path"])
        assert (row["score"], row["label"]) == (known.score, known.label)
        assert np.array_equal(np.load(found / row["map"]), known.anomaly_map)
        assert all((found / row[kind]).is_file() for kind in ("overlay", "mask", "tiff"))
    assert len(rows) == 3
    assert json.loads((found / "coco.json").read_text())["images"]
    evaluation = json.loads(said[2][said[2].index("{") :])
    assert evaluation["rows"] == blemish.evaluate(detector, data).to_dict()["rows"]
    assert {file.name for file in (tmp_path / "judged").iterdir()} >= {"roc.svg", "histogram.svg"}
    for report in (found / "report.html", tmp_path / "judged.html"):
        assert "data:image/svg+xml;base64," in report.read_text()
    assert json.loads(said[4])["manifest"]["threshold"]["n"] == 6
    assert "2 scored" in said[5]
    for words in said[6:]:
        assert "an exported graph can" in words


def test_what_is_said_to_bring_a_package_brings_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, modules in extras._EXTRAS.items():
        brought = {Requirement(text).name for text in project["optional-dependencies"][extra]}
        called = {"sklearn": "scikit-learn", "opentelemetry": "opentelemetry-sdk"}
        names = {called.get(one, one.replace("_", "-")) for one in modules}
        assert names - {"huggingface-hub"} <= brought  # timm brings the hub


def _declared() -> set[str]:
    """What the base install has: the packages that blemish asks for, and those that they ask for.

    Where pyproject.toml still has one of the extras' packages among them, without that.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"torch", "torchvision", "timm", "scipy", "scikit-learn", "matplotlib"}
    wanted = [Requirement(text) for text in (*project["dependencies"], "onnxruntime")]
    left, found = [one.name for one in wanted if one.name not in extras], set[str]()
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            needed = map(Requirement, metadata.requires(name) or ())
            left += [each.name for each in needed if not each.marker or each.marker.evaluate()]
    return found


def test_what_is_declared_is_enough(exported: Path, data: Path, tmp_path: Path) -> None:
    """A folder of packages with nothing but these: of Python's own there are no others."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in _declared():
        files_of = metadata.files(name) or ()
        for top in {file.parts[0] for file in files_of if file.parts[0] != ".."}:
            place = Path(str(metadata.distribution(name).locate_file(top)))
            if not (packages / top).exists():
                (packages / top).symlink_to(place)
    for name in ("torch", "timm", "scipy", "pytest"):
        assert not (packages / name).exists()
    code = """if True:
        import sys
        sys.path += sys.argv[1:3]
        from blemish.cli import main
        sys.exit(main(sys.argv[3:]))
    """
    report = str(tmp_path / "report.html")
    source = str(Path(blemish.__file__).parents[1])
    given = [str(packages), source, "predict", str(exported), str(data / "test"), "--json"]
    command = [sys.executable, "-I", "-S", "-c", code, *given, "--report", report]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scored"] == 3
    assert Path(report).is_file()
