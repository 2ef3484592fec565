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
from functools import cache
from typing import Any

from blemish.errors import EngineError
from blemish.extras import missing

_REPORTS = "openvino_telemetry"  # the package that openvino and nncf send with, where it is there


def onnxruntime() -> Any:
    """The package. Raises: EngineError without it, or where it is not whole, with what to do."""
    try:
        package = quietly("onnxruntime")
    except ImportError as error:
        raise EngineError(
            "onnxruntime is needed to run exported .onnx files: pip install onnxruntime (or "
            f"onnxruntime-gpu for NVIDIA); importing it said: {error}"
        ) from error
    except Exception as error:  # files of two versions, or half of them
        raise _broken("onnxruntime", error) from error
    # onnxruntime-gpu has the same folder: who removes one of the two leaves less than half of it.
    if not hasattr(package, "InferenceSession"):
        raise EngineError(
            "onnxruntime is not whole here, as where onnxruntime-gpu was installed beside it and "
            "one of them removed: pip uninstall onnxruntime onnxruntime-gpu, then install the one "
            "that you want"
        )
    return package


def openvino() -> Any:
    """The package. Raises: MissingExtraError, or EngineError where it is there and broken."""
    return _of_extra("openvino", "run exported files in OpenVINO", "Core")


@cache
def core() -> Any:
    """OpenVINO's one `Core` of this process, which is never let go.

    The CPU plug-in (2026.4) moves the stack on which signals are handled, and puts it back when its
    `Core` goes; of two, the second puts back what the first has freed, and Ctrl-C then ends the
    process with a segmentation fault.

    Raises: as `openvino`.
    """
    return openvino().Core()


def nncf() -> Any:
    """The package, with which graphs are quantised. Raises: as `openvino`."""
    return _of_extra("nncf", "export in int8", "quantize")


def quietly(name: str) -> Any:
    """A package, imported without its reports. Raises: ImportError."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported
    with _without_reports():
        return importlib.import_module(name)


def _of_extra(name: str, purpose: str, needed: str) -> Any:
    """A package that has a name that is needed of it."""
    try:
        package = quietly(name)
        getattr(package, needed)  # which a folder that an uninstallation has left has not
    except Exception as error:  # files of two versions, or half of them, fail in any way
        absent = isinstance(error, ModuleNotFoundError) and error.name == name
        told = missing(error, purpose) if absent and isinstance(error, ImportError) else None
        raise told or _broken(name, error) from error
    return package


def _broken(name: str, error: Exception) -> EngineError:
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
