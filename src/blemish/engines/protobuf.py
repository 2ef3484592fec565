"""What of an ONNX file has to be known before an engine opens it, without the onnx package.

An ONNX file is a message of Protocol Buffers, a sequence of numbered fields; a reader takes fields
in any order, and keeps those that are added at the end. Numbers as in onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # wire types
_IR_VERSION, _GRAPH, _OPSETS, _METADATA = 1, 7, 8, 14  # of ModelProto
# The messages within each other that may hold nodes and tensors: {message: {field: message}}.
_WITHIN = {
    "model": {_GRAPH: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_OPERATOR = 4  # of NodeProto
_EXTERNAL = (13, 14)  # of TensorProto: where its bytes are, and that they are elsewhere
_DEEPEST = 100  # messages within each other, as in the readers of Protocol Buffers
_DOMAINS = {"": "ai.onnx"}


@dataclass(slots=True)
class Model:
    """What a model says of itself.

    Attributes:
        ir_version: of the format. opsets: version of each set of operators, by domain ("ai.onnx").
        metadata: the entries of `metadata_props` in order, as (name, value, start, end): the place
            of the field in the file. has_graph: whether there is one.
    """

    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: list[tuple[str, str, int, int]] = field(default_factory=list)
    has_graph: bool = False


def read_model(content: bytes) -> Model:
    """What the uppermost level of an ONNX file says.

    Raises: ValueError for what is no sequence of fields to its end.
    """
    model = Model()
    for number, value, start, end, first in _fields(content, 0, len(content)):
        if number == _IR_VERSION and isinstance(value, int):
            model.ir_version = value
        elif number == _GRAPH:
            model.has_graph = True
        elif number in (_OPSETS, _METADATA) and value is None:
            inner = {no: (one, a, b) for no, one, a, b, _ in _fields(content, start, end)}
            name = _text(content, inner.get(1))
            if number == _METADATA:
                model.metadata.append((name, _text(content, inner.get(2)), first, end))
            else:
                version = inner.get(2, (0, 0, 0))[0]
                model.opsets[_DOMAINS.get(name, name)] = version if version is not None else 0
    return model


def unsafe(content: bytes) -> str:
    """What in a model reaches beyond its own file; "" for nothing.

    Weights in other files (a model may name any), and operators that hold a compiled program.

    Raises: ValueError as `read_model`, for the levels below.
    """
    waiting = [("model", 0, len(content), 0)]
    while waiting:
        kind, begin, stop, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError("too deeply nested")
        within = _WITHIN.get(kind, {})
        for number, value, start, end, _ in _fields(content, begin, stop):
            if kind == "tensor":
                if number in _EXTERNAL and value != 0:
                    return "weights in another file"
            elif number in within and value is None:
                waiting.append((within[number], start, end, depth + 1))
            elif kind == "node" and number == _OPERATOR and content[start:end] == b"EPContext":
                return "a compiled program (EPContext)"
    return ""


def entry(name: str, value: str) -> bytes:
    """One encoded entry of `metadata_props`, to be put behind a model."""
    inner = b"".join(
        bytes([number << 3 | _BYTES]) + _varint(len(text)) + text
        for number, text in ((1, name.encode()), (2, value.encode()))
    )
    return bytes([_METADATA << 3 | _BYTES]) + _varint(len(inner)) + inner


def _fields(
    content: bytes, place: int, stop: int
) -> Iterator[tuple[int, int | None, int, int, int]]:
    """(number, value of a varint, start and end of the bytes, where the field begins) of each.

    Raises: ValueError.
    """
    while place < stop:
        first = place
        tag, place = _number(content, place, stop)
        number, wire = tag >> 3, tag & 7
        value, start = None, place
        if wire == _BYTES:
            length, start = _number(content, place, stop)
            place = start + length
        elif wire == _VARINT:
            value, place = _number(content, place, stop)
        elif wire in (_EIGHT, _FOUR):
            place += 8 if wire == _EIGHT else 4
        else:
            raise ValueError(f"a field of an unknown kind at byte {first:,}")
        if not number or place > stop:
            raise ValueError(f"a field at byte {first:,} that does not end")
        yield number, value, start, place, first


def _number(content: bytes, place: int, stop: int) -> tuple[int, int]:
    """A varint and where it ends. Raises: ValueError."""
    value = shift = 0
    while place < stop and shift < 70:
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
    raise ValueError(f"a number at byte {place:,} that does not end")


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _text(content: bytes, found: tuple[int | None, int, int] | None) -> str:
    """A field's text; "" where there is none. Raises: ValueError for what is not UTF-8."""
    return content[found[1] : found[2]].decode() if found else ""
