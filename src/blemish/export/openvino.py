"""From an ONNX graph to OpenVINO's own form."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from blemish.engines import packages
from blemish.engines.graph import first
from blemish.errors import ExportError


def converted(model: bytes, *, half: bool = False) -> tuple[bytes, bytes]:
    """The .xml and the .bin of an ONNX model.

    Args: half: keep the weights in fp16.
    Raises: MissingExtraError without OpenVINO; ExportError for a graph that it does not take.
    """
    return saved(read(model), half=half)


def read(model: bytes) -> Any:
    """An `openvino.Model` of an ONNX model. Raises: as `converted`."""
    openvino = packages.openvino()
    try:
        return packages.core().read_model(model)
    except RuntimeError as error:
        version = openvino.__version__.partition("-")[0]
        raise ExportError(
            f"OpenVINO {version} does not take the graph ({first(error)}); export it as .onnx"
        ) from error


def saved(model: Any, *, half: bool = False) -> tuple[bytes, bytes]:
    """The .xml and the .bin of an OpenVINO model."""
    openvino = packages.openvino()
    with tempfile.TemporaryDirectory(prefix="blemish-") as folder:
        path = Path(folder) / "part.xml"
        openvino.save_model(model, path, compress_to_fp16=half)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()
