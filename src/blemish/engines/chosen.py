"""Which engine runs an exported file, by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blemish.engines.base import Engine
from blemish.engines.files import read
from blemish.errors import ConfigError, unknown_name

ENGINES = ("auto", "torch", "onnxruntime", "openvino")


def open_engine(
    path: str | Path, *, engine: str = "auto", device: str = "auto", threads: int | None = None
) -> tuple[Engine, dict[str, Any]]:
    """An engine with the graph of an exported file, and the file's manifest.

    Args:
        path: of a `.onnx`, or of an `.xml` that has its `.bin` beside it.
        engine: one of `ENGINES`; "auto" is OpenVINO for an `.xml` and ONNX Runtime for a `.onnx`,
            which OpenVINO runs too where it is asked for.
        device: "auto", or as the engine calls it: cpu; cuda, cuda:1, tensorrt (ONNX Runtime); gpu,
            gpu:1, npu (OpenVINO).
        threads: of a CPU; None: `OMP_NUM_THREADS`, else as many as this process may use cores.
    Raises: ArtifactError for a file that is not whole, not exported by blemish, or of a newer
        format; ConfigError for an unknown name; MissingExtraError and EngineError for an engine
        that is not installed, or that cannot run the graph.
    """
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    if engine == "torch":
        raise ConfigError(
            f"{path}: is an exported graph, which torch does not run; name the artifact that "
            "blemish fit has written, or choose onnxruntime or openvino"
        )
    file = read(path)
    if engine == "auto":
        engine = "onnxruntime" if file.record.kind == "onnx" else "openvino"
    if engine == "onnxruntime":
        from blemish.engines.onnx import OnnxEngine

        return OnnxEngine(file, device=device, threads=threads), dict(file.manifest)
    from blemish.engines.openvino import OpenvinoEngine

    return OpenvinoEngine(file, device=device, threads=threads), dict(file.manifest)
