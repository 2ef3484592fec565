"""ONNX Runtime over exported files: the formula's numbers, and every failure by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import made_graphs as graphs
import numpy as np
import onnxruntime
import pytest

from blemish.engines import files
from blemish.engines.onnx import OnnxEngine
from blemish.errors import ArtifactError, ConfigError, EngineError
from blemish.images import ran_out

ALL = ["score", "map", "box", "category"]


def opened(folder: Path, **arguments: Any) -> OnnxEngine:
    return OnnxEngine(files.read(graphs.written(folder)), **arguments)


def of_model(folder: Path, model: bytes, **record: Any) -> OnnxEngine:
    """An engine on a file whose graph is not the one that its record describes."""
    path = files.write(folder / "part.onnx", "onnx", model, graphs.manifest(**record))
    return OnnxEngine(files.read(path))


def test_it_says_what_the_formula_says(tmp_path: Path) -> None:
    path = graphs.written(tmp_path, outputs=ALL)
    engine = OnnxEngine(files.read(path))
    assert (engine.name, engine.device, engine.precision) == ("onnxruntime", "cpu", "fp32")
    assert (engine.input, engine.size, engine.notes) == ("normalised", (graphs.SIDE,) * 2, ())
    for count in (1, 5, 2):
        images = graphs.batch(count)
        found, expected = engine.run(images, category=True), graphs.said(images)
        for name in ALL:
            value = getattr(found, name)
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)
        assert found.votes is found.saliency is found.part is None
        assert engine.run(images).category is None


def test_pixels(tmp_path: Path) -> None:
    engine = OnnxEngine(files.read(graphs.written(tmp_path, input="pixels")))
    pixels = np.random.default_rng(1).integers(0, 256, (2, graphs.SIDE, graphs.SIDE, 3), np.uint8)
    expected = graphs.said(pixels.transpose(0, 3, 1, 2).astype(np.float32))
    np.testing.assert_allclose(engine.run(pixels).map, expected["map"], rtol=1e-5)
    assert engine.input == "pixels"
    with pytest.raises(EngineError, match="takes uint8 B × 8 × 8 × 3, got float32 3 × 3 × 8 × 8"):
        engine.run(graphs.batch())


def test_what_lies_otherwise_in_memory(tmp_path: Path) -> None:
    engine, images = opened(tmp_path), graphs.batch()
    turned = np.asfortranarray(images)
    turned.flags.writeable = False
    np.testing.assert_array_equal(engine.run(turned).map, engine.run(images).map)


@pytest.mark.parametrize(
    "images",
    [
        *(graphs.batch(side=9), graphs.batch()[0], graphs.batch().astype(np.float64)),
        *(graphs.batch()[:0], graphs.batch().transpose(0, 2, 3, 1), np.float32(1)[None]),
    ],
)
def test_pictures_of_another_form(images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"part\.onnx: takes float32 B × 3 × 8 × 8, got"):
        opened(tmp_path).run(images)


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"outputs": ["score", "map", "votes"]}, "lacks the output 'votes'"),
        ({"outputs": ["score", "map", "box"]}, "lacks the output 'box'"),
        ({"map_size": [4, 8]}, "'map' is 8 × 8 in place of 4 × 8"),
        ({"input": "pixels"}, "takes 'images' in place of 'pixels'"),
    ],
)
def test_a_graph_that_is_not_as_its_record_says(
    record: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=what):
        of_model(tmp_path, graphs.onnx_bytes(), **record)


@pytest.mark.parametrize("size", [["B", 8], ["B", 8, 8, 1]])
def test_an_output_of_other_dimensions(size: list[int | str], tmp_path: Path) -> None:
    # ONNX Runtime finds out itself what the graph gives, and does not take another for it.
    with pytest.raises((ArtifactError, EngineError), match=r"part\.onnx"):
        of_model(tmp_path, graphs.onnx_bytes(sizes={"map": size}))


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("map", np.zeros((3, 4, 8), np.float32), "'map' is 4 × 8 in place of 8 × 8"),
        ("map", np.zeros((3, 8, 8), np.float64), "'map' is float64 in place of float32"),
        ("map", np.zeros((3, 8), np.float32), "'map' has 2 dimensions in place of 3"),
        ("map", np.zeros((2, 8, 8), np.float32), "'map' is of 2 pictures in place of 3"),
        ("score", np.zeros((), np.float32), "'score' has 0 dimensions in place of 1"),
    ],
)
def test_what_comes_out_in_another_form(
    name: str, value: np.ndarray, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, images = opened(tmp_path), graphs.batch(3)
    values = {**graphs.said(images), name: value}
    monkeypatch.setattr(engine, "_compute", lambda _, names: [values[each] for each in names])
    with pytest.raises(EngineError, match=what):
        engine.run(images)


def test_inputs_of_another_form(tmp_path: Path) -> None:
    model = graphs.onnx_model()
    shape = model.graph.input[0].type.tensor_type.shape
    shape.dim[2].dim_param = "H"
    with pytest.raises(ArtifactError, match="takes float32"):
        of_model(tmp_path, model.SerializeToString())
    model.graph.input[0].type.tensor_type.shape.CopyFrom(type(shape)())
    with pytest.raises((ArtifactError, EngineError), match=r"part\.onnx"):
        of_model(tmp_path, model.SerializeToString())


def test_an_operator_that_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="NoSuchOperator") as caught:
        of_model(tmp_path, graphs.onnx_bytes(operator="NoSuchOperator"))
    message = str(caught.value)
    for part in (f"onnxruntime {onnxruntime.__version__} cannot run its graph", "--upgrade"):
        assert part in message
    assert ".cc:" not in message  # where in its own source it is no user's business
    assert "\n" not in message


@pytest.mark.parametrize("versions", [{"opset": 99}, {"ir_version": 99}])
def test_an_opset_of_the_future(versions: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot run its graph") as caught:
        of_model(tmp_path, graphs.onnx_bytes(**versions), opset=versions.get("opset", 20))
    assert "pip install --upgrade onnxruntime" in str(caught.value)


def test_a_graph_that_is_damaged_though_its_digest_is_right(tmp_path: Path) -> None:
    model = graphs.onnx_model()
    model.graph.node[-1].input[0] = "nowhere"
    with pytest.raises(EngineError, match="nowhere"):
        of_model(tmp_path, model.SerializeToString())


def test_names_that_are_no_text(tmp_path: Path) -> None:
    model = graphs.onnx_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "pictures"
    with pytest.raises(EngineError, match=r"part\.onnx: .* cannot run its graph"):
        of_model(tmp_path, model.SerializeToString().replace(b"pictures", b"\xff" * 8))


def test_nothing_is_printed_but_what_is_raised(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = of_model(tmp_path, graphs.greedy_model(terabytes=2**30))
    with pytest.raises(EngineError, match="overflow"):
        engine.run(graphs.batch())
    assert capfd.readouterr() == ("", "")


def test_what_fails_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(tmp_path)

    def fails(*_: object) -> list[np.ndarray]:
        raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : /a/b/c.cc:12 f() no luck")

    monkeypatch.setattr(engine, "_compute", fails)
    with pytest.raises(EngineError, match=r"part\.onnx: onnxruntime failed .*no luck") as caught:
        engine.run(graphs.batch())
    assert "c.cc" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer"
        ),
        RuntimeError("Exception during initialization: std::bad_alloc"),
        MemoryError(),
        RuntimeError("CUDA failure 2: out of memory"),
    ],
)
def test_memory_that_runs_out(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(tmp_path)

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(engine, "_compute", fails)
    with pytest.raises(type(error)) as caught:
        engine.run(graphs.batch())
    assert caught.value is error
    assert ran_out(error)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    with pytest.raises(EngineError, match=r"part\.onnx: .* has not the memory to open its graph"):
        opened(tmp_path)


def test_memory_that_no_machine_has(tmp_path: Path) -> None:
    engine = of_model(tmp_path, graphs.greedy_model())
    with pytest.raises(Exception, match="allocate") as caught:
        engine.run(graphs.batch())
    assert ran_out(caught.value), caught.value


@pytest.mark.parametrize(
    ("device", "kind"),
    [("tpu", ConfigError), ("cuda:x", ConfigError), ("", ConfigError), ("cpu:1", ConfigError)],
)
def test_devices_that_there_are_not(device: str, kind: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(kind, match="device"):
        opened(tmp_path, device=device)


def with_providers(monkeypatch: pytest.MonkeyPatch, *there: str, loads: bool) -> dict[str, Any]:
    """An onnxruntime that has these providers, and can load them or falls back to the CPU."""
    whole, asked = onnxruntime.InferenceSession, {}

    class Session:
        def __init__(self, model: bytes, options: Any, providers: list[Any]) -> None:
            asked["providers"] = providers
            self._session = whole(model, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            names = [each if isinstance(each, str) else each[0] for each in asked["providers"]]
            return names if loads else names[-1:]

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: [*there, "CPUExecutionProvider"]
    )
    return asked


CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


def test_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = with_providers(monkeypatch, TENSORRT, CUDA, loads=True)
    assert opened(tmp_path, device="cuda:1").device == "cuda:1"
    settings = {"device_id": "1", "use_tf32": "0"}
    assert asked["providers"] == [(CUDA, settings), "CPUExecutionProvider"]
    assert opened(tmp_path).device == "cuda:0"
    assert opened(tmp_path, device="tensorrt").device == "tensorrt:0"
    assert [each[0] for each in asked["providers"][:2]] == [TENSORRT, CUDA]
    assert opened(tmp_path, device="cpu").device == "cpu"


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "tensorrt"])
def test_a_gpu_that_is_not_installed(device: str, tmp_path: Path) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("it is")
    with pytest.raises(EngineError, match=r"computes on: cpu\. .*pip install onnxruntime-gpu"):
        opened(tmp_path, device=device)


def test_a_silent_fall_back_to_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_providers(monkeypatch, CUDA, loads=False)
    with pytest.raises(EngineError, match="cannot load it here"):
        opened(tmp_path, device="cuda")
    engine = opened(tmp_path)  # nobody asked for it
    assert engine.device == "cpu"
    assert "cannot be loaded" in engine.notes[0]


def test_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    whole = onnxruntime.InferenceSession

    def session(model: bytes, options: Any, providers: list[Any]) -> Any:
        counts.append(options.intra_op_num_threads)
        return whole(model, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr("blemish.engines.graph.cores", lambda: 7)
    for said in ("2", "3,1", "", "x", "0"):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        opened(tmp_path)
    opened(tmp_path, threads=1)
    assert counts == [2, 3, 7, 7, 7, 1]
    for threads in (0, -1, 5000):
        with pytest.raises(ConfigError, match="threads"):
            opened(tmp_path, threads=threads)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match="pip install onnxruntime"):
        opened(tmp_path)


def test_what_is_left_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = graphs.written(tmp_path)
    for left, what in (({}, "not whole here"), ({"__init__.py": "1 / 0"}, "division by zero")):
        folder = tmp_path / what / "onnxruntime"
        folder.mkdir(parents=True)
        for name, text in left.items():
            (folder / name).write_text(text)
        monkeypatch.delitem(sys.modules, "onnxruntime")
        monkeypatch.setattr(sys, "path", [str(folder.parent)])
        with pytest.raises(EngineError, match=f"{what}.*install"):
            OnnxEngine(files.read(path))
