"""Exported files, right and forged, of a graph of a few operators.

A forged one has the digest that belongs to it, which anybody can compute. Its graph stays as it is;
`graphs` forges that.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from blemish.engines import files, ir, protobuf
from fuzzing import artifacts

Random = np.random.Generator
OPSET = 20


def graph(side: int) -> bytes:
    """An ONNX model: the map is the mean of the channels, the score its highest value."""
    from onnx import TensorProto, helper, numpy_helper

    node, of = helper.make_node, helper.make_tensor_value_info
    axes = {"channel": [1], "places": [1, 2]}
    made = helper.make_graph(
        [
            node("ReduceMean", ["images", "channel"], ["map"], keepdims=0),
            node("ReduceMax", ["map", "places"], ["score"], keepdims=0),
        ],
        "part",
        [of("images", TensorProto.FLOAT, ["B", 3, side, side])],
        [
            of("score", TensorProto.FLOAT, ["B"]),
            of("map", TensorProto.FLOAT, ["B", side, side]),
        ],
        [numpy_helper.from_array(np.array(axis, np.int64), name) for name, axis in axes.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


def write(folder: Path, artifact: Path) -> tuple[Path, Path]:
    """A .onnx, and an .xml of no operators with its .bin, with the manifest of an artifact."""
    from blemish.artifact import read_manifest

    told = read_manifest(artifact)
    side = told["preprocessing"]["height"]
    record = {
        **{"format": files.FORMAT, "precision": "fp32", "input": "normalised", "opset": OPSET},
        **{"outputs": ["score", "map"], "map_size": [side, side], "top_fraction": 0.01},
        **{"scores_by_map": True, "source": "0" * 64},
    }
    onnx, xml = folder / "part.onnx", folder / "part.xml"
    files.write(onnx, "onnx", graph(side), {**told, "export": {**record, "kind": "onnx"}})
    net = b'<?xml version="1.0"?><net name="part" version="11"><layers></layers></net>'
    both = {**told, "export": {**record, "kind": "openvino"}}
    files.write(xml, "openvino", (net, bytes(64)), both)
    return onnx, xml


def hostile_onnx(right: bytes, random: Random) -> bytes:
    """An .onnx with another manifest, or none, or two, or one in another place."""
    entries = {
        name: (value, start) for name, value, start, _ in protobuf.read_model(right).metadata
    }
    text, start = entries[files.MANIFEST]
    model, told = right[:start], protobuf.entry(files.MANIFEST, text)
    doing = int(random.integers(10))
    if doing == 0:
        return _signed(model)
    if doing == 1:
        return _signed(model + told + told)
    if doing == 2:
        return _signed(told + model)
    if doing == 3:
        return _signed(model + told) + _field(random)
    if doing == 4:
        return _signed(model + _field(random) + told)
    return _signed(model + protobuf.entry(files.MANIFEST, _altered(text, random)))


def hostile_xml(right: bytes, random: Random) -> bytes:
    """The same of an .xml, with or without a digest that is right (the .bin is 64 zeros)."""
    text = ir.Document(right).notes[files.MANIFEST]
    note = ir.note(files.MANIFEST, text)
    start = right.index(note)
    end = right.index(b"<info", start + 1)
    doing = int(random.integers(8))
    if doing == 0:
        return right[:start] + right[end:]
    if doing == 1:
        return right.replace(note, note + note)
    if doing == 2:
        bomb = b'<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>'
        return right.replace(b"<net", bomb + b"<net", 1)
    if doing == 3:
        return right.replace(b"<layers>", b"<layers>" + b"<a>" * 100_000, 1)
    other = ir.note(files.MANIFEST, _altered(text, random))
    rest = right[:start] + other + right[end:].partition(b"<info")[0]
    digested = right.partition(ir.note(files.DIGEST, "")[:-5])
    whole = rest + digested[2].partition(b"/>")[2]
    digest = hashlib.sha256(whole + bytes(64)).hexdigest()
    return rest + ir.note(files.DIGEST, digest) + digested[2].partition(b"/>")[2]


def _signed(content: bytes) -> bytes:
    return content + protobuf.entry(files.DIGEST, hashlib.sha256(content).hexdigest())


def _field(random: Random) -> bytes:
    """A field of Protocol Buffers, of any number, kind and length, that may not end."""
    key = int(random.integers(1, 40)) << 3 | int(random.integers(8))
    length = (0, 1, 127, 255)[int(random.integers(4))]
    return bytes([key & 127 | 128, key >> 7, length]) + random.bytes(int(random.integers(40)))


def _altered(text: str, random: Random) -> str:
    """A manifest with another value somewhere, half the time in what it says of its graph."""
    manifest: dict[str, Any] = json.loads(text)
    if random.random() < 0.1:
        return ("", "[]", "null", artifacts.nested(), '{"export": 1}')[int(random.integers(5))]
    if random.random() < 0.5:
        return json.dumps(artifacts.altered(manifest, random)[2])
    export = artifacts.altered(manifest["export"], random)[2]
    return json.dumps({**manifest, "export": export})
