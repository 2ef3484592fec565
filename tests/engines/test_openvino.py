"""OpenVINO over exported files: the numbers of ONNX Runtime, and every failure by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import made_graphs as graphs
import numpy as np
import pytest

from blemish.engines import files, packages
from blemish.engines.onnx import OnnxEngine
from blemish.engines.openvino import OpenvinoEngine
from blemish.errors import ArtifactError, ConfigError, EngineError, MissingExtraError
from blemish.images import ran_out

pytest.importorskip("openvino")
ALL = ["score", "map", "box", "category"]


def opened(folder: Path, kind: str = "openvino", **arguments: Any) -> OpenvinoEngine:
    record = {name: arguments.pop(name) for name in ("precision", "outputs") if name in arguments}
    return OpenvinoEngine(files.read(graphs.written(folder, kind, **record)), **arguments)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize("form", ["normalised", "pixels"])
def test_it_says_what_the_formula_says(kind: str, form: str, tmp_path: Path) -> None:
    path = graphs.written(tmp_path, kind, outputs=ALL, input=form)
    engine = OpenvinoEngine(files.read(path))
    assert (engine.name, engine.device, engine.precision) == ("openvino", "cpu", "fp32")
    assert (engine.input, engine.size, engine.notes) == (form, (graphs.SIDE,) * 2, ())
    for count in (1, 5, 2):
        images = graphs.batch(count)
        if form == "pixels":
            images = (images * 40 + 128).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        planes = images.transpose(0, 3, 1, 2) if form == "pixels" else images
        found, expected = engine.run(images, category=True), graphs.said(planes.astype(np.float32))
        for name in ALL:
            value = getattr(found, name)
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-4)
        assert engine.run(images).category is None
        assert engine.run(images).box is not None


def test_results_stay_as_they_are(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    first = engine.run(graphs.batch(seed=1))
    kept = first.map.copy()
    engine.run(graphs.batch(seed=2))
    np.testing.assert_array_equal(first.map, kept)


def test_it_agrees_with_onnx_runtime(tmp_path: Path) -> None:
    path, images = graphs.written(tmp_path), graphs.batch(4)
    images.flags.writeable = False
    ours, others = (
        OpenvinoEngine(files.read(path)).run(images),
        OnnxEngine(files.read(path)).run(images),
    )
    np.testing.assert_allclose(ours.map, others.map, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours.score, others.score, rtol=1e-6, atol=1e-6)


def test_a_graph_that_is_not_as_its_record_says(tmp_path: Path) -> None:
    said = graphs.manifest(kind="openvino", outputs=["score", "map", "votes"])
    path = files.write(tmp_path / "part.xml", "openvino", graphs.xml_bytes(), said)
    with pytest.raises(ArtifactError, match="lacks the output 'votes'"):
        OpenvinoEngine(files.read(path))


def test_an_operator_that_it_lacks(tmp_path: Path) -> None:
    model = graphs.onnx_bytes(operator="NoSuchOperator")
    path = files.write(tmp_path / "part.onnx", "onnx", model, graphs.manifest())
    with pytest.raises(EngineError, match="NoSuchOperator") as caught:
        OpenvinoEngine(files.read(path))
    message = str(caught.value)
    assert "cannot run its graph" in message
    assert "pip install --upgrade openvino" in message
    assert ".cpp:" not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'version="opset1"', b'version="opset99"'),
        (b'type="Parameter"', b'type="Parametre"'),
        (b'offset="0" size="12"', b'offset="99999" size="12"'),
        (b"<edges>", b"<edgez>"),
    ],
)
def test_a_graph_that_it_does_not_know(old: bytes, new: bytes, tmp_path: Path) -> None:
    xml, weights = graphs.xml_bytes()
    changed = xml.replace(old, new).replace(
        b"</edges>", b"</edgez>" if b"edgez" in new else b"</edges>"
    )
    said = graphs.manifest(kind="openvino")
    path = files.write(tmp_path / "part.xml", "openvino", (changed, weights), said)
    with pytest.raises((EngineError, ArtifactError), match=r"part\.xml"):
        OpenvinoEngine(files.read(path))


class Core:
    """OpenVINO with the devices and capabilities that a test wants; it keeps what it is told."""

    def __init__(self, whole: Any, devices: list[str], capabilities: list[str]) -> None:
        self.whole, self.available_devices, self.capabilities = whole, devices, capabilities
        self.told: dict[str, Any] = {}

    def get_property(self, device: str, name: str) -> list[str]:
        assert name == "OPTIMIZATION_CAPABILITIES"
        return self.capabilities

    def compile_model(self, model: Any, device: str, settings: dict[str, Any]) -> Any:
        self.told = {"device": device, **settings}
        return self.whole.compile_model(model, "CPU", {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    found = Core(packages.core(), ["CPU"], ["FP32", "INT8"])
    monkeypatch.setattr(packages, "core", lambda: found)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)  # what is played says what there is
    return found


@pytest.mark.parametrize(
    ("precision", "capable", "hint", "computed"),
    [
        ("fp32", ["BF16", "FP16"], "f32", "fp32"),
        ("int8", ["BF16", "FP16"], "f32", "int8"),
        ("bf16", ["BF16"], "bf16", "bf16"),
        ("bf16", ["FP16"], "f32", "fp32"),
        ("fp16", ["FP16"], "f16", "fp16"),
        ("fp16", ["BF16"], "f32", "fp32"),
    ],
)
def test_the_precision_is_always_said(
    precision: str, capable: list[str], hint: str, computed: str, core: Core, tmp_path: Path
) -> None:
    core.capabilities = ["FP32", "INT8", *capable]
    engine = opened(tmp_path, precision=precision)
    assert core.told["INFERENCE_PRECISION_HINT"] == hint
    assert engine.precision == computed
    assert bool(engine.notes) == (computed != precision)


def test_devices(core: Core, tmp_path: Path) -> None:
    core.available_devices = ["CPU", "GPU.0", "GPU.1", "NPU"]
    for device, told, said in (
        *(("auto", "CPU", "cpu"), ("cpu", "CPU", "cpu"), ("gpu:1", "GPU.1", "gpu:1")),
        *(("gpu", "GPU", "gpu"), ("GPU:0", "GPU.0", "gpu:0"), ("npu", "NPU", "npu")),
    ):
        assert opened(tmp_path, device=device).device == said
        assert core.told["device"] == told
        assert ("INFERENCE_NUM_THREADS" in core.told) == (told == "CPU")
    core.available_devices = ["CPU", "GPU"]
    assert opened(tmp_path, device="gpu:0").device == "gpu:0"
    for device in ("npu", "gpu:1"):
        with pytest.raises(EngineError, match="finds here: cpu, gpu"):
            opened(tmp_path, device=device)
    for device in ("cuda", "gpu:x", ""):
        with pytest.raises(ConfigError, match="unknown device"):
            opened(tmp_path, device=device)


def test_threads(core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    opened(tmp_path)
    assert core.told["INFERENCE_NUM_THREADS"] == 3
    opened(tmp_path, threads=1)
    assert core.told["INFERENCE_NUM_THREADS"] == 1


def test_memory_that_runs_out(core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As it says it; where a graph asks for terabytes it may end the process too, so it is played.
    error = RuntimeError(
        "Exception from src/inference/src/infer_request.cpp:224:\n[CPU] Tile node with name 't' "
        "Check 'ptr' failed at src/cpu_memory.cpp:257:\nFailed to allocate 94080000 bytes of memory"
    )

    def fails(*_: object, **__: object) -> None:
        raise error

    engine = opened(tmp_path)
    monkeypatch.setattr(engine, "_compute", fails)
    with pytest.raises(RuntimeError) as caught:
        engine.run(graphs.batch())
    assert caught.value is error
    assert ran_out(error)
    monkeypatch.setattr(core, "compile_model", fails)
    with pytest.raises(EngineError, match=r"part\.xml: .* has not the memory to open its graph"):
        opened(tmp_path)


def test_the_file_of_another_engine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--engine openvino"):
        OnnxEngine(files.read(graphs.written(tmp_path, "openvino")))


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'blemish\[openvino\]'"):
        opened(tmp_path, "onnx")


def test_ctrl_c_is_heard_after_engines_have_gone(tmp_path: Path) -> None:
    """Each with a `Core` of its own, the second to go had the process end by a fault instead."""
    path = graphs.written(tmp_path, "openvino")
    code = """
import gc, signal, sys
from blemish.engines.chosen import open_engine
for _ in range(3):
    one, other = open_engine(sys.argv[1]), open_engine(sys.argv[1])
    del one, other
    gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
"""
    found = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (0, "heard\n"), found.stderr
