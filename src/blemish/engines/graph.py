"""What all engines of exported graphs share: what goes in, what has to come out, and threads."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blemish.engines.base import Engine, Input, Outputs
from blemish.engines.files import ExportedFile, check_name, write
from blemish.errors import ArtifactError, BlemishError, ConfigError, EngineError
from blemish.images import ran_out
from blemish.machine import MOST_THREADS, cores

_RANKS = {"score": 1, "map": 3, "votes": 1, "saliency": 3, "box": 2, "part": 3}
_RANKS |= {"category": 2, "descriptor": 2}
_FLOAT, _BYTE = "float32", "uint8"
_CATEGORY = "category"
_DEVICE = re.compile(r"([a-z]+)(?::(\d{1,3}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or output of a graph, as the engine declares it: its dtype as numpy names it, and
    its shape, None for what is open.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class GraphEngine(Engine):
    """Runs the graph of an exported file.

    Attributes: `record`: what the file says of the graph. `size`: height and width of its input.
    """

    size: tuple[int, int]

    def __init__(self, file: ExportedFile) -> None:
        self.file, self.path = file, file.path
        self.record = file.record
        self.precision = file.record.precision
        self.input = file.record.input
        self.top_fraction = file.record.top_fraction
        self.scores_by_map, self.offset = file.record.scores_by_map, file.record.offset

    def check_name(self, path: str | Path) -> None:
        """As of `Engine`."""
        check_name(path, self.record.kind)

    def save(self, path: str | Path, manifest: Mapping[str, Any]) -> Path:
        """As of `Engine`; the graph stays as it is."""
        model, weights = self.file.model, self.file.weights
        both = model if weights is None else (model, weights)
        return write(path, self.record.kind, both, manifest)

    def run(self, images: Input, *, category: bool = False) -> Outputs:
        """As of `Engine`."""
        images = self._checked(images)
        names = [name for name in self.record.outputs if name != _CATEGORY or category]
        try:
            values = self._compute(images, names)
        except BlemishError:
            raise
        except Exception as error:
            if ran_out(error):
                raise
            raise EngineError(
                f"{self.path}: {self.name} failed while it ran ({first(error)}); choose another "
                "engine or device"
            ) from error
        return self._named(dict(zip(names, values, strict=True)), len(images))

    @abstractmethod
    def _compute(self, images: Input, names: Sequence[str]) -> Sequence[NDArray[Any]]:
        """The outputs of these names, in this order. Raises: anything."""

    def _checked(self, images: Input) -> Input:
        """The batch, laid out as an engine needs it. Raises: EngineError for another form."""
        height, width = self.size
        normalised = self.input == "normalised"
        kind = _FLOAT if normalised else _BYTE
        shape = (3, height, width) if normalised else (height, width, 3)
        if images.ndim != 4 or images.shape[1:] != shape or images.dtype != kind or not len(images):
            wanted = " × ".join(map(str, shape))
            found = " × ".join(map(str, images.shape)) or "nothing"
            raise EngineError(
                f"{self.path}: takes {kind} B × {wanted}, got {images.dtype} {found}; prepare "
                "pictures by the preprocessing that the file names"
            )
        return np.ascontiguousarray(images)

    def _named(self, values: Mapping[str, NDArray[Any]], count: int) -> Outputs:
        """The outputs, checked. Raises: EngineError for those of another form than declared."""
        for name, value in values.items():
            expected = Port(name=name, dtype=str(value.dtype), shape=tuple(value.shape))
            fault = self._fault(expected)
            if not fault and value.shape[0] != count:
                fault = f"is of {value.shape[0]} pictures in place of {count}"
            if fault:
                raise EngineError(f"{self.path}: the output {name!r} {fault}; export it again")
        return Outputs(**dict[str, Any](values))

    def _fault(self, port: Port) -> str:
        """What of an output is not as the record says; "" for nothing."""
        if port.dtype != _FLOAT:
            return f"is {port.dtype} in place of {_FLOAT}"
        if len(port.shape) != _RANKS[port.name]:
            return f"has {len(port.shape)} dimensions in place of {_RANKS[port.name]}"
        wanted = {"map": self.record.map_size, "box": (4,)}.get(port.name, port.shape[1:])
        if any(size not in (None, one) for size, one in zip(port.shape[1:], wanted, strict=True)):
            shown = " × ".join("?" if size is None else str(size) for size in port.shape[1:])
            return f"is {shown} in place of {' × '.join(map(str, wanted))} for each picture"
        return ""

    def _hold_against(self, inputs: Iterable[Port], outputs: Iterable[Port]) -> None:
        """Sets `size`, where the graph is the one that the record describes.

        Raises: ArtifactError for another.
        """
        record, ports = self.record, {port.name: port for port in inputs}
        port = ports.get(record.input_name)
        if port is None or len(ports) != 1 or not port.shape:
            found = ", ".join(map(repr, ports)) or "nothing"
            raise self._foreign(f"takes {found} in place of {record.input_name!r}")
        normalised = record.input == "normalised"
        kind = _FLOAT if normalised else _BYTE
        channels, *sides = port.shape[1:] if normalised else (port.shape[-1], *port.shape[1:-1])
        height, width = sides if len(sides) == 2 else (None, None)
        if port.dtype != kind or channels != 3 or height is None or width is None:
            raise self._foreign(f"takes {port.dtype} {list(port.shape)} as {port.name!r}")
        self.size = (height, width)
        found_outputs = {port.name: port for port in outputs}
        for name in record.outputs:
            if name not in found_outputs:
                raise self._foreign(f"lacks the output {name!r}")
            if fault := self._fault(found_outputs[name]):
                raise self._foreign(f"says that the output {name!r} {fault}")

    def _foreign(self, what: str) -> ArtifactError:
        return ArtifactError(
            f"{self.path}: its graph is not the one that its manifest describes: it {what}; export "
            "it again"
        )

    def _cannot_open(self, error: Exception, version: str) -> EngineError:
        """Why an engine does not take the graph."""
        if ran_out(error):
            return EngineError(
                f"{self.path}: {self.name} {version} has not the memory to open its graph; free "
                "some, choose another engine, or export a detector with a smaller --image-size or "
                "bank_size"
            )
        return EngineError(
            f"{self.path}: {self.name} {version} cannot run its graph ({first(error)}); it was "
            f"exported with opset {self.record.opset}: pip install --upgrade {self.name}, or "
            "choose another engine"
        )


def parsed_device(name: str, known: Sequence[str]) -> tuple[str, int | None]:
    """The kind of a device, and its number where one is named ("cuda:1" is ("cuda", 1)).

    Raises: ConfigError for a name of another form, or one that is not in `known`.
    """
    found = _DEVICE.fullmatch(name.strip().lower())
    if not found or found[1] not in known:
        raise ConfigError(f"unknown device {name!r}. Known: {', '.join(known)}")
    return found[1], int(found[2]) if found[2] else None


def threads_of(threads: int | None) -> int:
    """How many threads compute: those asked for; else `OMP_NUM_THREADS`, as torch reads it; else
    the cores that this process may use.

    Raises: ConfigError for a number that no machine has.
    """
    if threads is not None:
        if not 1 <= threads <= MOST_THREADS:
            raise ConfigError(f"threads: 1 to {MOST_THREADS} are possible, got {threads}")
        return threads
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(said) if said.isdecimal() and 1 <= int(said) <= MOST_THREADS else cores()


def first(error: BaseException) -> str:
    """What an engine's error says, without where in its source, on one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = " ".join(line for line in lines if line and not _NOISE.search(line))
    told = _PLACE.sub("", told).strip() or type(error).__name__
    return told if len(told) <= 300 else f"{told[:300]} …"


_NOISE = re.compile(r"^(Exception from |Check '.*' failed at )")
_PLACE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |/\S+?\.(?:cc|cpp|h|hpp):\d+ ?\S*")
