"""A graph in ONNX as OpenVINO's two files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from blemish.engines import packages
from blemish.engines.graph import first
from blemish.errors import ExportError


def to_openvino(model: bytes, *, half: bool = False) -> tuple[bytes, bytes]:
    """The bytes of the .xml and .bin of an ONNX model.

    Args: half: whether weights are stored in fp16, in half the space.
    Raises: MissingExtraError without openvino; ExportError for a graph that OpenVINO does not take.
    """
    return written(read(model), half=half)


def read(model: bytes) -> Any:
    """An `openvino.Model` of an ONNX model. Raises: as `to_openvino`."""
    runtime = packages.openvino()
    try:
        return runtime.Core().read_model(model)
    except Exception as error:
        raise ExportError(
            f"OpenVINO {runtime.__version__.partition('-')[0]} does not take the graph "
            f"({first(error)}); export it as .onnx"
        ) from error


def written(model: Any, *, half: bool = False) -> tuple[bytes, bytes]:
    """The bytes of the .xml and .bin of an `openvino.Model`. Args: as of `to_openvino`."""
    runtime = packages.openvino()
    with tempfile.TemporaryDirectory(prefix="blemish-") as folder:  # it writes nowhere else
        path = Path(folder) / "graph.xml"
        runtime.save_model(model, path, compress_to_fp16=half)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()
