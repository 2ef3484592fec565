"""Tensors of the Open Inference Protocol, as JSON and as bytes (the binary data extension)."""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blemish.config import parse_json
from blemish.errors import ConfigError
from blemish.serve.refusals import Refusal, bad_request

IMAGES, PICTURES = "images", "pictures"
OUTPUTS = {
    "score": "FP32",
    "label": "INT32",
    "threshold": "FP32",
    "p_value": "FP32",
    "prediction": "BYTES",
    "error": "BYTES",
    "map": "FP32",
}
DEFAULT = ("score", "label", "threshold", "p_value", "prediction", "error")
NO_LABEL = -1
_LONGEST = 200  # characters of an id


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for.

    Attributes:
        id: its own, or "". pictures: each the bytes of a file, or uint8 H W 3.
        outputs: their names. binary: those that are wanted as bytes.
    """

    id: str
    pictures: list[Any]
    outputs: tuple[str, ...]
    binary: frozenset[str]


def read(body: bytes, header: int | None, most: int) -> Asked:
    """A request. Args: header: bytes of JSON at the start of the body; None = all of it is. most:
    how many pictures there may be.

    Raises: Refusal.
    """
    if header is not None and not 0 < header <= len(body):
        raise bad_request("Inference-Header-Content-Length is not a length within the body")
    try:
        told = parse_json(body[:header])
    except (ConfigError, ValueError, RecursionError) as error:
        raise bad_request("the body holds no JSON that can be read") from error
    if not isinstance(told, dict) or not isinstance(inputs := told.get("inputs"), list):
        raise bad_request("the body is no inference request: it has no list of inputs")
    pictures: list[Any] = []
    data = memoryview(body)[len(body) if header is None else header :]
    for tensor in inputs:
        if not isinstance(tensor, dict):
            raise bad_request("inputs: each is an object with name, shape, datatype and data")
        size = _size_of(tensor)
        if size is not None and size > len(data):
            raise bad_request("inputs: more bytes are announced than the body holds")
        own, data = (None, data) if size is None else (data[:size], data[size:])
        pictures += _pictures_of(tensor, own, most)
        if len(pictures) > most:
            raise Refusal(413, "TooLarge", f"at most {most} pictures are taken at once: send fewer")
    if data:
        raise bad_request("the body holds bytes that belong to no input")
    if not pictures:
        raise bad_request("inputs: there is no picture in them")
    outputs, binary = _outputs_of(told)
    name = told.get("id", "")
    return Asked(name[:_LONGEST] if isinstance(name, str) else "", pictures, outputs, binary)


def _size_of(tensor: Mapping[str, Any]) -> int | None:
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None or (isinstance(size, int) and not isinstance(size, bool) and size >= 0):
        return size
    raise bad_request("inputs: binary_data_size is no length")


def _pictures_of(tensor: Mapping[str, Any], data: memoryview | None, most: int) -> list[Any]:
    """The pictures in a tensor; data: None = they are in its JSON."""
    kind, shape = tensor.get("datatype"), tensor.get("shape")
    if not (
        isinstance(shape, list)
        and len(shape) <= 4
        and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in shape)
    ):
        raise bad_request("inputs: a shape is a list of whole numbers")
    count = math.prod(shape)
    if kind == "UINT8" and len(shape) == 4 and shape[3] == 3 and count:
        return list(_bytes_of(tensor, data, count).reshape(shape))
    if kind == "BYTES" and shape and count == max(shape) and len(shape) <= 2:
        if count > most:
            raise Refusal(413, "TooLarge", f"at most {most} pictures are taken at once: send fewer")
        return _texts_of(tensor, count) if data is None else _pieces_of(data, count)
    raise bad_request(
        f"inputs: {IMAGES} is UINT8 of shape [B, H, W, 3], RGB; {PICTURES} is BYTES of shape [B], "
        "each a picture file"
    )


def _bytes_of(tensor: Mapping[str, Any], data: memoryview | None, count: int) -> np.ndarray:
    wrong = bad_request("inputs: the data are not as many numbers from 0 to 255 as the shape says")
    if data is not None:
        if len(data) != count:
            raise wrong
        return np.frombuffer(data, np.uint8)
    try:
        values = np.array(tensor.get("data"))
    except (ValueError, TypeError, OverflowError):
        raise wrong from None
    if values.size != count or values.dtype.kind not in "iu":
        raise wrong
    if values.min() < 0 or values.max() > 255:
        raise wrong
    return values.astype(np.uint8)


def _texts_of(tensor: Mapping[str, Any], count: int) -> list[Any]:
    """Files written in JSON as base64."""
    told = tensor.get("data")
    if isinstance(told, list) and len(told) == 1 and isinstance(told[0], list):
        told = told[0]
    if not isinstance(told, list) or len(told) != count:
        raise bad_request("inputs: the data are not as many texts as the shape says")
    try:
        return [base64.b64decode(one, validate=True) for one in told]
    except (TypeError, ValueError, binascii.Error):
        raise bad_request("inputs: BYTES in JSON are to be written as base64") from None


def _pieces_of(data: memoryview, count: int) -> list[Any]:
    """Files one after the other, each after its length (4 bytes, the lowest first)."""
    found: list[Any] = []
    wrong = bad_request("inputs: the bytes are not as many pieces as the shape says")
    for _ in range(count):
        if len(data) < 4:
            raise wrong
        (length,) = struct.unpack("<I", data[:4])
        if length > len(data) - 4:
            raise wrong
        found.append(bytes(data[4 : 4 + length]))
        data = data[4 + length :]
    if data:
        raise wrong
    return found


def _outputs_of(told: Mapping[str, Any]) -> tuple[tuple[str, ...], frozenset[str]]:
    parameters = told.get("parameters")
    everything = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    wanted = told.get("outputs")
    if wanted is None:
        return DEFAULT, frozenset(DEFAULT if everything else ())
    names, binary = [], set()
    for one in wanted if isinstance(wanted, list) else [None]:
        name = one.get("name") if isinstance(one, dict) else None
        if name not in OUTPUTS:
            raise bad_request(f"outputs: there are {', '.join(OUTPUTS)}")
        names.append(name)
        told_of_it = one.get("parameters") if isinstance(one, dict) else None
        own = told_of_it.get("binary_data") if isinstance(told_of_it, dict) else None
        if own is True or (own is None and everything):
            binary.add(name)
    return tuple(dict.fromkeys(names)), frozenset(binary)


def written(
    head: Mapping[str, Any], outputs: Sequence[tuple[str, Any]], binary: frozenset[str]
) -> tuple[bytes, int | None]:
    """The body of an answer, and how much of it is JSON; None = all of it.

    Args: outputs: each with its values: FP32 and INT32 as arrays, BYTES as a list of bytes.
    """
    tensors, data = [], b""
    for name, values in outputs:
        is_text = OUTPUTS[name] == "BYTES"
        shape = [len(values)] if is_text else list(values.shape)
        tensor: dict[str, Any] = {"name": name, "datatype": OUTPUTS[name], "shape": shape}
        if name in binary:
            own = _packed(values) if is_text else np.ascontiguousarray(values).tobytes()
            tensor["parameters"] = {"binary_data_size": len(own)}
            data += own
        elif is_text:
            tensor["data"] = [one.decode() for one in values]
        else:
            flat = values.ravel().tolist()
            tensor["data"] = [None if one != one else one for one in flat]  # NaN is no JSON
        tensors.append(tensor)
    told = json.dumps({**head, "outputs": tensors}, allow_nan=False).encode()
    return (told + data, len(told)) if binary else (told, None)


def _packed(values: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in values)
