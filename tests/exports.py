"""Exports in tests: a graph is traced once, however often its detector is exported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from blemish.detector.predict import Detector
from blemish.engines.base import Engine, Input, Outputs
from blemish.export import exporting, graph

_TRACED: dict[str, bytes] = {}
_OF_THE_GRAPH = ("method", "config", "preprocessing", "foreground", "category_features")


@contextmanager
def traced_once() -> Iterator[None]:
    """While open, `to_onnx` gives back what it gave for the same weights and settings: nearly all
    the time that an export of a tiny detector takes is PyTorch's, in tracing.
    """

    def remembering(detector: Detector, **how: Any) -> bytes:
        asked = {name: value for name, value in how.items() if name != "progress"}
        whole = detector.record.to_dict()
        told = {name: whole.get(name) for name in _OF_THE_GRAPH}
        key = hashlib.sha256(json.dumps([told, asked], sort_keys=True).encode())
        for name, tensor in detector.method.fitted_state().items():
            key.update(name.encode())
            key.update(np.ascontiguousarray(tensor.numpy()).tobytes())
        if key.hexdigest() not in _TRACED:
            _TRACED[key.hexdigest()] = graph.to_onnx(detector, **how)
        return _TRACED[key.hexdigest()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "to_onnx", remembering)
        yield


class Altered(Engine):
    """An engine, of which the outputs are changed.

    Args: change: from outputs to outputs.
    """

    def __init__(self, engine: Engine, change: Any) -> None:
        self._engine, self._change = engine, change
        self.name, self.input = engine.name, engine.input
        self.device, self.precision = engine.device, engine.precision
        self.top_fraction, self.scores_by_map = engine.top_fraction, engine.scores_by_map
        self.offset = engine.offset

    def run(self, images: Input, *, category: bool = False) -> Outputs:
        found: Outputs = self._change(self._engine.run(images, category=category))
        return found

    def save(self, path: Any, manifest: Any) -> Any:
        return self._engine.save(path, manifest)  # the graph itself, as it is
