"""From an ONNX graph to OpenVINO's own form."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from blemish.engines import packages
from blemish.errors import ExportError


def converted(model: bytes, *, half: bool = False) -> tuple[bytes, bytes]:
    """The .xml and the .bin of an ONNX model.

    Args: half: keep the weights in fp16.
    Raises: ExportError where OpenVINO cannot read it.
    """
    openvino = packages.openvino()
    try:
        read = openvino.Core().read_model(model)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"OpenVINO {openvino.__version__} cannot read the graph ({reason})"
        ) from error
    return saved(read, half=half)


def saved(model: Any, *, half: bool = False) -> tuple[bytes, bytes]:
    """The .xml and the .bin of an OpenVINO model."""
    openvino = packages.openvino()
    with tempfile.TemporaryDirectory(prefix="blemish-") as folder:
        path = Path(folder) / "part.xml"
        openvino.save_model(model, path, compress_to_fp16=half)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()
