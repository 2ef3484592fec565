"""Which engine runs a file; and what none of them needs, opens or sends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import made_graphs as graphs
import numpy as np
import pytest

from blemish.engines import packages
from blemish.engines.chosen import ENGINES, open_engine
from blemish.errors import ArtifactError, ConfigError, EngineError, MissingExtraError


@pytest.mark.parametrize(
    ("kind", "engine", "name"),
    [
        *(("onnx", "auto", "onnxruntime"), ("onnx", "onnxruntime", "onnxruntime")),
        *(("onnx", "openvino", "openvino"), ("openvino", "auto", "openvino")),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_the_engine_of_a_file(kind: str, engine: str, name: str, tmp_path: Path) -> None:
    if name == "openvino":
        pytest.importorskip("openvino")
    path, images = graphs.written(tmp_path, kind), graphs.batch()
    found, manifest = open_engine(str(path), engine=engine, device="cpu", threads=1)
    assert found.name == name
    assert manifest == graphs.manifest(kind=kind)
    np.testing.assert_allclose(found.run(images).map, graphs.said(images)["map"], atol=1e-5)


def test_names_that_do_not_fit(tmp_path: Path) -> None:
    path = graphs.written(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'openvino'"):
        open_engine(path, engine="openvno")
    with pytest.raises(ConfigError, match="name the artifact"):
        open_engine(path, engine="torch")
    with pytest.raises(ArtifactError, match="cannot be read"):
        open_engine(tmp_path / "none.onnx")
    assert {"torch", "auto"} < set(ENGINES)


BLOCKED = ("torch", "timm", "scipy", "sklearn", "matplotlib", "torchvision", "onnx")
ALONE = """
import socket, sys, threading
for name in {blocked!r}:
    sys.modules[name] = None
tried = []
def watch(event, arguments):
    if event.startswith("socket.") or event in ("urllib.Request", "subprocess.Popen", "os.fork"):
        tried.append(event)
        raise PermissionError(event)
sys.addaudithook(watch)
import numpy as np
from blemish.engines.chosen import open_engine
for path in sys.argv[1:]:
    engine, manifest = open_engine(path)
    found = engine.run(np.zeros((2, 3, 8, 8), np.float32))
    assert found.map.shape == (2, 8, 8), found
import os
links = []
for each in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
    try:
        links.append(os.readlink("/proc/self/fd/" + each))
    except OSError:
        pass
print(tried, [each for each in links if each.startswith("socket")])
print(sorted(set(sys.modules) & {{"openvino_telemetry"}}), threading.active_count())
"""


def alone(folder: Path, *paths: Path) -> list[str]:
    """What a process says that has no other packages, no network and an empty home."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"},
        "PYTHONPATH": os.pathsep.join(str(Path(each)) for each in sys.path if each),
        **{"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")},
    }
    ended = subprocess.run(
        [sys.executable, "-c", ALONE.format(blocked=BLOCKED), *map(str, paths)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout.splitlines()


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_alone_without_torch_and_without_a_network(kind: str, tmp_path: Path) -> None:
    if kind == "openvino":
        pytest.importorskip("openvino")
    home = tmp_path / "home"
    home.mkdir()
    path = graphs.written(tmp_path, kind)
    assert alone(home, path) == ["[] []", "[] 1"]
    # Where they report, both leave something in the user's folder.
    assert list(home.rglob("*")) == []


def test_what_is_imported_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = object()
    monkeypatch.setitem(sys.modules, packages._REPORTS, mark)
    assert packages.quietly("json").__name__ == "json"
    assert sys.modules[packages._REPORTS] is mark
    with pytest.raises(ImportError, match="none_of_this_name"):
        packages.quietly("none_of_this_name")
    assert sys.modules[packages._REPORTS] is mark
    monkeypatch.delitem(sys.modules, packages._REPORTS)
    assert packages.quietly("json").__name__ == "json"
    assert packages._REPORTS not in sys.modules


@pytest.mark.parametrize(("name", "extra"), [("openvino", "openvino"), ("nncf", "export")])
def test_a_package_that_is_not_there(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'blemish\[{extra}\]'"):
        getattr(packages, name)()


def test_a_package_that_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_a_package.py").write_text("import a_part_that_it_lacks\n")
    (tmp_path / "no_library.py").write_text("raise ImportError('libtbb.so.12: no such file')\n")
    (tmp_path / "two_versions.py").write_text("import os; os.of_the_other\n")
    (tmp_path / "an_empty_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for name, why in (
        *(("half_a_package", "a_part_that_it_lacks"), ("no_library", "libtbb")),
        *(("two_versions", "of_the_other"), ("an_empty_folder", "Core")),
    ):
        with pytest.raises(EngineError, match=f"installed but cannot be imported .*{why}"):
            packages._of_extra(name, "test", "Core")
