"""Imports the packages of the engines, without what these report to their makers.

Left alone, onnxruntime (from 1.32 at the latest) writes a data base into the user's folder and
sends from it to Microsoft, and openvino sends to Google Analytics, as soon as they are imported.
Nothing in blemish does that: whatever imports one of them, does it here.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from blemish.errors import EngineError, MissingExtraError

_REPORTS = "openvino_telemetry"  # the package that openvino and nncf send with, where it is there


def onnxruntime() -> Any:
    """The package. Raises: EngineError without it, with what to install."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise EngineError(
            "onnxruntime is needed to run exported .onnx files: pip install onnxruntime (or "
            f"onnxruntime-gpu for NVIDIA); importing it said: {error}"
        ) from error


def openvino() -> Any:
    """The package. Raises: MissingExtraError, or EngineError where it is there and broken."""
    return _quietly("openvino", "run exported files in OpenVINO")


def nncf() -> Any:
    """The package, with which graphs are quantised. Raises: as `openvino`."""
    openvino()
    return _quietly("nncf", "export in int8")


def _quietly(name: str, purpose: str) -> Any:
    try:
        with _without_reports():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise _broken(name, error) from error
        raise MissingExtraError(name, extra="openvino", purpose=purpose) from error
    except ImportError as error:
        raise _broken(name, error) from error


def _broken(name: str, error: ImportError) -> EngineError:
    return EngineError(
        f"{name} is installed but cannot be imported ({error}); install it again: "
        f"pip install --force-reinstall {name}"
    )


@contextmanager
def _without_reports() -> Iterator[None]:
    """While open, the package that reports is not to be found; both then do without it."""
    there = sys.modules.get(_REPORTS)
    sys.modules[_REPORTS] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if there is None:
            del sys.modules[_REPORTS]
        else:
            sys.modules[_REPORTS] = there
