"""Graphs of a few operators, as exported files hold them, and what they say."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from blemish.engines import files, packages

SIDE = 8
OPSET = 20
WEIGHTS = np.array([0.25, 0.5, -1.5], np.float32)
SHAPES: dict[str, list[int | str]] = {
    "score": ["B"],
    "map": ["B", SIDE, SIDE],
    "box": ["B", 4],
    "category": ["B", 3],
}


def batch(count: int = 3, seed: int = 1, side: int = SIDE) -> np.ndarray:
    """float32 B 3 H W."""
    return np.random.default_rng(seed).normal(size=(count, 3, side, side)).astype(np.float32)


def said(images: np.ndarray) -> dict[str, np.ndarray]:
    """What the graph of `onnx_model` says of a batch, by its formula."""
    maps = np.einsum("c,bchw->bhw", WEIGHTS, images)
    flat = images.reshape(len(images), 3, -1)
    return {
        "map": maps,
        "score": maps.max((1, 2)),
        "box": np.broadcast_to(np.float32([0, 0, 1, 1]), (len(images), 4)),
        "category": flat.mean(2),
    }


def onnx_model(
    outputs: tuple[str, ...] = ("score", "map"),
    *,
    opset: int = OPSET,
    ir_version: int = 9,
    pixels: bool = False,
    operator: str = "",
    sizes: dict[str, list[int | str]] | None = None,
) -> onnx.ModelProto:
    """A weighted sum of the channels, and its highest value.

    Args: operator: put between the two; sizes: of outputs, declared otherwise.
    """
    constants = {
        "weights": WEIGHTS.reshape(1, 3, 1, 1),
        "channel": np.array([1], np.int64),
        "places": np.array([1, 2], np.int64),
        "last": np.array([2, 3], np.int64),
        "corners": np.array([[0, 0, 1, 1]], np.float32),
        "one": np.array([0], np.int64),
    }
    node = helper.make_node
    name, kind = ("pixels", TensorProto.UINT8) if pixels else ("images", TensorProto.FLOAT)
    shape: list[int | str] = ["B", SIDE, SIDE, 3] if pixels else ["B", 3, SIDE, SIDE]
    nodes = [
        *([node("Transpose", ["pixels"], ["raw"], perm=[0, 3, 1, 2])] if pixels else ()),
        *([node("Cast", ["raw"], ["images"], to=TensorProto.FLOAT)] if pixels else ()),
        node("Mul", ["images", "weights"], ["weighed"]),
        node("ReduceSum", ["weighed", "channel"], ["sum"], keepdims=0),
        node(operator or "Identity", ["sum"], ["map"]),
        node("ReduceMax", ["map", "places"], ["score"], keepdims=0),
    ]
    if "category" in outputs:
        nodes.append(node("ReduceMean", ["images", "last"], ["category"], keepdims=0))
    if "box" in outputs:
        nodes += [
            node("ReduceMean", ["images", "last"], ["means"], keepdims=0),
            node("ReduceSum", ["means", "channel"], ["level"], keepdims=1),
            node("Sub", ["level", "level"], ["nothing"]),
            node("Add", ["nothing", "corners"], ["box"]),
        ]
    shapes = {**SHAPES, **(sizes or {})}
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info(name, kind, shape)],
        [helper.make_tensor_value_info(each, TensorProto.FLOAT, shapes[each]) for each in outputs],
        [numpy_helper.from_array(value, each) for each, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def greedy_model(terabytes: int = 40) -> bytes:
    """The same, by way of a tensor of which no machine has the memory."""
    model = onnx_model()
    side = int((terabytes * 2**40 / 4) ** 0.5) // SIDE
    more = {
        "far": np.array([1, 1, side, side], np.int64),
        "places4": np.array([2, 3], np.int64),
        "two": np.array([1], np.int64),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(each, name) for name, each in more.items()
    )
    node, nodes = helper.make_node, list(model.graph.node)
    place = next(place for place, each in enumerate(nodes) if each.output[0] == "map")
    nodes[place : place + 1] = [
        node("ReduceMax", ["images", "places4"], ["top"], keepdims=1),
        node("Expand", ["top", "far"], ["much"]),
        node("ReduceMax", ["much", "places4"], ["less"], keepdims=1),
        node("ReduceSum", ["less", "two"], ["level"], keepdims=0),
        node("Add", ["sum", "level"], ["map"]),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    content: bytes = model.SerializeToString()
    return content


def onnx_bytes(outputs: tuple[str, ...] = ("score", "map"), **arguments: Any) -> bytes:
    content: bytes = onnx_model(outputs, **arguments).SerializeToString()
    return content


@cache
def xml_bytes(
    outputs: tuple[str, ...] = ("score", "map"), pixels: bool = False
) -> tuple[bytes, bytes]:
    """The same as OpenVINO writes it: .xml and .bin."""
    import openvino

    model = packages.core().read_model(onnx_bytes(outputs, pixels=pixels))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def manifest(**changed: Any) -> dict[str, Any]:
    """What an artifact could say of itself, and the record of the graph of `onnx_bytes`."""
    record = {
        "format": 1,
        "kind": "onnx",
        "precision": "fp32",
        "input": "normalised",
        "opset": OPSET,
        "outputs": ["score", "map"],
        "map_size": [SIDE, SIDE],
        "top_fraction": 0.01,
        "scores_by_map": True,
        "offset": 0.0,
        "proof": {"pictures": 8, "score": 1e-6},
        "source": "0" * 64,
        "versions": {"onnx": "1.0"},
    }
    return {
        "method": "knn",
        "blemish": "9.9",
        "note": 'Prüfling "7" <&> \udcff ✓\n',
        "nested": {"a": [1, {"b": True}, None, 2.5e-8]},
        "export": {**record, **changed},
    }


def written(folder: Path, kind: str = "onnx", **changed: Any) -> Path:
    """An exported file of the outputs that the record names."""
    outputs = tuple(changed.get("outputs", ("score", "map")))
    pixels = changed.get("input") == "pixels"
    said = manifest(**{"kind": kind, **changed})
    if kind == "onnx":
        return files.write(folder / "part.onnx", "onnx", onnx_bytes(outputs, pixels=pixels), said)
    return files.write(folder / "part.xml", "openvino", xml_bytes(outputs, pixels), said)
