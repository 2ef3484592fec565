"""Runs an exported ONNX file in ONNX Runtime, on a CPU or by one of its GPU providers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from blemish.engines import packages
from blemish.engines.base import Input
from blemish.engines.files import ExportedFile
from blemish.engines.graph import GraphEngine, Port, parsed_device, threads_of
from blemish.errors import ConfigError, EngineError

_CPU = "CPUExecutionProvider"
# In the order in which ONNX Runtime is to try them, the last of them what the others leave over.
PROVIDERS = {
    "cpu": (_CPU,),
    "cuda": ("CUDAExecutionProvider", _CPU),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", _CPU),
}
_DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
_FATAL = 4  # of the levels of its log: what it cannot do it says in exceptions too


class OnnxEngine(GraphEngine):
    """ONNX Runtime over the graph of a `.onnx`."""

    name = "onnxruntime"

    def __init__(
        self, file: ExportedFile, *, device: str = "auto", threads: int | None = None
    ) -> None:
        """Args: device: auto (CUDA where this onnxruntime has it, else the CPU), cpu, cuda, cuda:1,
        tensorrt or tensorrt:1. threads: of a CPU; None as `graph.threads_of`.

        Raises: ConfigError for an unknown device; EngineError without onnxruntime, for a device
            that is not to be had, where the graph cannot run, or memory does not hold it;
            ArtifactError where it is another than the record says.
        """
        super().__init__(file)
        runtime = packages.onnxruntime()
        if file.record.kind != "onnx":
            raise ConfigError(f"{file.path}: is for OpenVINO; open it with --engine openvino")
        kind, number = self._asked(runtime, device)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads_of(threads)
        options.log_severity_level = _FATAL
        runtime.set_default_logger_severity(_FATAL)  # of what is said outside of a session
        try:
            self._session = runtime.InferenceSession(
                file.model, options, providers=self._providers(kind, number)
            )
            # Names of a forged graph need not be text.
            inputs, outputs = (
                [_port(each) for each in ports]
                for ports in (self._session.get_inputs(), self._session.get_outputs())
            )
        except Exception as error:
            raise self._cannot_open(error, runtime.__version__) from error
        if self._session.get_providers()[0] != PROVIDERS[kind][0]:
            if device != "auto":
                raise EngineError(
                    f"device {device!r}: onnxruntime {runtime.__version__} has it, but cannot load "
                    "it here: its CUDA, cuDNN or TensorRT libraries are missing or of other "
                    "versions; install these, or choose cpu"
                )
            kind = "cpu"
            self.notes += ("CUDA is there but cannot be loaded; the CPU computes.",)
        self.device = kind if kind == "cpu" else f"{kind}:{number or 0}"
        self._hold_against(inputs, outputs)

    def _compute(self, images: Input, names: Sequence[str]) -> Sequence[NDArray[Any]]:
        fed = {self.record.input_name: images}
        values: list[NDArray[Any]] = self._session.run(names, fed)
        return values

    def _asked(self, runtime: Any, device: str) -> tuple[str, int | None]:
        """The provider by the name of a device, and the number of its GPU.

        Raises: ConfigError for an unknown name; EngineError for one that is not installed.
        """
        there = runtime.get_available_providers()
        if device == "auto":
            return ("cuda", None) if PROVIDERS["cuda"][0] in there else ("cpu", None)
        kind, number = parsed_device(device, tuple(PROVIDERS))
        if kind == "cpu" and number:
            raise ConfigError(f"device {device!r}: there is one cpu; choose cpu")
        if PROVIDERS[kind][0] not in there:
            known = ", ".join(name for name, each in PROVIDERS.items() if each[0] in there)
            raise EngineError(
                f"device {device!r}: the installed onnxruntime {runtime.__version__} computes on: "
                f"{known}. For NVIDIA: pip uninstall onnxruntime; pip install onnxruntime-gpu"
            )
        return kind, number

    def _providers(self, kind: str, number: int | None) -> list[Any]:
        """The providers with what they are told."""
        told: list[Any] = []
        for name in PROVIDERS[kind]:
            if name == _CPU:
                told.append(name)
                continue
            settings = {"device_id": str(number or 0)}
            if name == PROVIDERS["cuda"][0]:
                # By default it rounds the factors of products to 10 bits, and so moves scores.
                settings["use_tf32"] = "0"
            told.append((name, settings))
        return told


def _port(argument: Any) -> Port:
    return Port(
        name=argument.name,
        dtype=_DTYPES.get(argument.type, argument.type),
        shape=tuple(size if isinstance(size, int) else None for size in argument.shape),
    )
