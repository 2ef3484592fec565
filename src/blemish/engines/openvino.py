"""Runs an exported file in OpenVINO: its own `.xml`, or a `.onnx`, which it reads too."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from blemish.compute import is_held_below_bf16
from blemish.engines import packages
from blemish.engines.base import Input
from blemish.engines.files import ExportedFile
from blemish.engines.graph import GraphEngine, Port, parsed_device, threads_of
from blemish.errors import BlemishError, EngineError

DEVICES = ("cpu", "gpu", "npu")
# What it computes in by the precision of the file, where the device has the capability named; int8
# is in the graph itself, and what it leaves in float is computed in f32.
_HINTS = {
    "fp32": ("f32", ""),
    "int8": ("f32", ""),
    "fp16": ("f16", "FP16"),
    "bf16": ("bf16", "BF16"),
}
_DTYPES = {"f32": "float32", "u8": "uint8"}


class OpenvinoEngine(GraphEngine):
    """OpenVINO over the graph of a `.xml` or `.onnx`."""

    name = "openvino"

    def __init__(
        self, file: ExportedFile, *, device: str = "auto", threads: int | None = None
    ) -> None:
        """Args: device: auto (the CPU), cpu, gpu, gpu:1 or npu. threads: of a CPU; None as
        `graph.threads_of`.

        Raises: MissingExtraError without openvino; ConfigError for an unknown device; EngineError
            for one that is not to be had, where the graph cannot run, or memory does not hold it;
            ArtifactError where it is another than the record says.
        """
        super().__init__(file)
        runtime = packages.openvino()
        self._core = packages.core()
        self._device = self._asked(runtime, device)
        self.device = self._device.lower().replace(".", ":")
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self._hint(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        if self._device == "CPU":
            self._settings |= {"INFERENCE_NUM_THREADS": threads_of(threads), "NUM_STREAMS": "1"}
        self._lock = threading.Lock()  # a request computes one batch at a time
        self._requests: dict[tuple[str, ...], Any] = {}
        try:
            weights = (file.weights,) if file.weights else ()
            self._model = self._core.read_model(file.model, *weights)
            self._hold_against(map(_port, self._model.inputs), map(_port, self._model.outputs))
            self._request([name for name in file.record.outputs if name != "category"])
        except BlemishError:
            raise
        except Exception as error:
            raise self._cannot_open(error, runtime.__version__.partition("-")[0]) from error

    def _compute(self, images: Input, names: Sequence[str]) -> Sequence[NDArray[Any]]:
        with self._lock:
            request = self._request(names)
            found = request.infer({self.record.input_name: images}, share_inputs=True)
            return [found[name] for name in names]

    def _request(self, names: Sequence[str]) -> Any:
        """What computes these outputs and nothing that only others need; compiled once."""
        wanted = tuple(names)
        if wanted not in self._requests:
            model = self._model.clone()
            for result in model.get_results():
                if not set(result.output(0).get_names()) & set(wanted):
                    model.remove_result(result)
            compiled = self._core.compile_model(model, self._device, self._settings)
            self._requests[wanted] = compiled.create_infer_request()
        return self._requests[wanted]

    def _asked(self, runtime: Any, device: str) -> str:
        """The device as OpenVINO names it. Raises: as the constructor."""
        if device == "auto":
            return "CPU"
        kind, number = parsed_device(device, DEVICES)
        there = self._core.available_devices
        wanted = kind.upper() if number is None else f"{kind.upper()}.{number}"
        # One device of a kind has no number in the list, and takes 0.
        if wanted not in there and not (
            number in (None, 0) and any(each.partition(".")[0] == kind.upper() for each in there)
        ):
            known = ", ".join(each.lower().replace(".", ":") for each in there)
            raise EngineError(
                f"device {device!r}: OpenVINO {runtime.__version__.partition('-')[0]} finds here: "
                f"{known}. Install the driver of the device, or choose one of these"
            )
        return wanted

    def _hint(self) -> str:
        """What to compute in, always said: left alone, OpenVINO chooses by the processor, and
        scores would differ from machine to machine.
        """
        hint, capability = _HINTS[self.precision]
        if not capability:
            return hint
        # Of what oneDNN is held to, OpenVINO does not tell.
        held = capability == "BF16" and self._device == "CPU" and is_held_below_bf16()
        there = self._core.get_property(self._device, "OPTIMIZATION_CAPABILITIES")
        if capability in there and not held:
            return hint
        self.notes += (
            f"This {self.device} does not compute in {self.precision}: it computes in fp32, which "
            "is slower, and as exact.",
        )
        self.precision = "fp32"
        return "f32"


def _port(port: Any) -> Port:
    names = sorted(port.get_names())
    shape = tuple(
        size.get_length() if size.is_static else None for size in port.get_partial_shape()
    )
    kind = port.get_element_type().get_type_name()
    return Port(name=names[0] if names else "", dtype=_DTYPES.get(kind, kind), shape=shape)
