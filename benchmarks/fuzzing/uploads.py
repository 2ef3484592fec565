"""Requests that no honest client sends, as the bytes that go over a connection.

Damaged pictures of every format and bombs, files of other kinds, names that lead elsewhere, bodies
of another length than they say, multipart that nests or never ends, tensors of impossible shapes,
and paths, queries and methods that mean nothing.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote

import numpy as np

from fuzzing import damage, pictures
from fuzzing.bombs import bombs

Random = np.random.Generator
PREDICT, INFER = "/v1/models/part/predict", "/v2/models/part/infer"
_NAMES = (
    *("../../../../etc/passwd", "..\\..\\windows\\win.ini", "/etc/shadow", "C:\\x.png", "a\0b.png"),
    *("<script>alert(1)</script>.png", '"><img src=x onerror=alert(1)>', "a\r\nSet-Cookie: x=1"),
    *("%2e%2e%2f%2e%2e%2fx", "CON", "x" * 5000, "\x1b[2J", "=cmd|'/c calc'!A1", "{{7*7}}", "‮gnp"),
)
_OTHERS = (
    *(b"GIF89a" + bytes(50), b"%PDF-1.7\n", b"PK\x03\x04" + bytes(60), b"\x7fELF" + bytes(60)),
    *(b"<svg onload='alert(1)'/>", b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'b'>]>", b"{}"),
    *(b"import os", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"BM", b"P6", b"RIFF0000WEBP"),
    *(bytes(1), bytes(70_000), b"\xff" * 70_000, b"MM\0*" + b"\xff" * 100),
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request. parts: sent one after the other, `pause` seconds apart."""

    kind: str
    parts: tuple[bytes, ...]
    pause: float = 0.0


@cache
def _files() -> tuple[bytes, ...]:
    """Good pictures of every format."""
    random = np.random.default_rng(0)
    makers = (pictures.pngs, pictures.jpegs, pictures.webps, pictures.bmps, pictures.tiffs)
    return tuple(one for make in (*makers, pictures.pnms) for one in make(random).values())


def _head(path: str, length: int | str | None, method: str = "POST", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [] if length is None else [f"Content-Length: {length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def _raw(body: bytes, path: str = PREDICT, **headers: str) -> tuple[bytes, ...]:
    return (_head(path, len(body), **headers) + body,)


def _damaged(random: Random) -> Attempt:
    how = str(random.choice(list(damage.MUTATIONS)))
    body = damage.MUTATIONS[how](_files()[int(random.integers(len(_files())))], random)
    query = str(random.choice(["", "?heatmap=png", "?heatmap=overlay"]))
    return Attempt(f"picture {how}", _raw(body, PREDICT + query))


def _bomb(random: Random) -> Attempt:
    several = _bombs()
    name, body = several[int(random.integers(len(several)))]
    return Attempt(f"bomb {name}", _raw(body))


@cache
def _bombs() -> list[tuple[str, bytes]]:
    return bombs()


def _other(random: Random) -> Attempt:
    body = _OTHERS[int(random.integers(len(_OTHERS)))]
    kind = str(
        random.choice(["image/png", "text/html", "application/json", "x", "multipart/mixed"])
    )
    return Attempt("other file", _raw(body, Content_Type=kind))


def _part(content: bytes, name: str, field: str = "picture", boundary: str = "b") -> bytes:
    told = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"'
    return told.encode("utf-8", "surrogateescape") + b"\r\n\r\n" + content + b"\r\n"


def _name(random: Random) -> Attempt:
    name = _NAMES[int(random.integers(len(_NAMES)))]
    content = _files()[int(random.integers(len(_files())))]
    if random.random() < 0.4:
        return Attempt("name in query", _raw(content, f"{PREDICT}?name={quote(name, safe='')}"))
    body = _part(content, name) + b"--b--\r\n"
    return Attempt("name in multipart", _raw(body, Content_Type="multipart/form-data; boundary=b"))


def _length(random: Random) -> Attempt:
    body = _files()[0]
    lengths = (len(body) + 1000, len(body) // 2, -1, "x", 2**63, 10**30, "1, 2", "0x10", "", "+5")
    choice = int(random.integers(len(lengths) + 4))
    if choice < len(lengths):
        return Attempt("length", (_head(PREDICT, lengths[choice]) + body,))
    chunked = _head(PREDICT, None, Transfer_Encoding="chunked")
    bodies = (b"zz\r\n", b"5\r\nabc", b"FFFFFFFFFFFFFFFF\r\nab", b"-1\r\n\r\n")
    return Attempt("chunks", (chunked + bodies[choice - len(lengths)],))


def _slow(random: Random) -> Attempt:
    body = _files()[int(random.integers(len(_files())))]
    cuts = sorted(random.integers(1, len(body), 3).tolist())
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    whole = (_head(PREDICT, len(body)), *pieces)
    return Attempt("slow", whole if random.random() < 0.5 else whole[:3], 0.15)


def _multipart(random: Random) -> Attempt:
    picture = _files()[0]
    form = "multipart/form-data; boundary=b"
    inner = b"--c\r\n" * 200
    bodies = {
        "nested": _part(b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n" + inner, "x"),
        "many": _part(picture[:50], "x.png") * 400 + b"--b--\r\n",
        "no end": _part(picture, "x.png"),
        "cut": _part(picture, "x.png")[: int(random.integers(1, 200))],
        "headers": b"--b\r\n" + b"A: b\r\n" * 5000 + b"\r\n\r\n--b--\r\n",
        "long header": b"--b\r\nContent-Disposition: " + b"x" * 100_000 + b"\r\n\r\n\r\n--b--\r\n",
        "no header": b"--b\r\n\r\nx\r\n--b--\r\n",
        "nothing": b"--b--\r\n",
        "empty": b"",
        "garbage": random.bytes(3000),
        "boundaries": b"--b" * 20_000,
        "long field": b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + b"x" * 90_000,
        "line breaks": b"\r\n" * 50_000,
    }
    which = str(random.choice(list(bodies)))
    kinds = (
        form,
        form,
        form,
        "multipart/form-data",
        f"{form}{'x' * 300}",
        'multipart/form-data; boundary="',
    )
    kind = str(random.choice(kinds))
    return Attempt(f"multipart {which}", _raw(bodies[which], Content_Type=kind))


def _tensor(random: Random) -> Attempt:
    shapes: list[Any] = [
        *([1, 2, 2, 3], [2**40, 2**40, 1, 3], [-1, 2, 2, 3], [0, 0, 0, 3], [1, 1, 1, 3], [], "x"),
        *(None, [1.5, 1, 1, 3], [True, 1, 1, 3], [1] * 50, [9999999999], [1, 4096, 4096, 3]),
    ]
    data: list[Any] = [[1, 2, 3], [], [[1], [2]], "x", None, [1e400], [-1, 0, 1], [[[]]], {"a": 1}]
    tensor = {
        "name": str(random.choice(["images", "pictures", "../x", ""])),
        "datatype": str(random.choice(["UINT8", "BYTES", "FP32", "x"])),
        "shape": shapes[int(random.integers(len(shapes)))],
        "data": data[int(random.integers(len(data)))],
    }
    binary = random.random() < 0.4
    if binary:
        sizes: list[Any] = [3, 0, -1, 2**62, "x", None, 1.5]
        tensor["parameters"] = {"binary_data_size": sizes[int(random.integers(len(sizes)))]}
    told: Any = {"inputs": [tensor] * int(random.integers(1, 4))}
    text = json.dumps(told).encode()
    texts = (text, text, text, text[:-5], b"[" * 50_000, b'{"inputs": ' + b"[" * 9_000, b"\xff\xfe")
    text = texts[int(random.integers(len(texts)))]
    body = text + (struct.pack("<I", int(random.integers(2**32))) + b"abc" if binary else b"")
    header = str(random.choice([str(len(text)), "0", "-1", "99999999", "x", "9" * 40]))
    headers = {"Inference_Header_Content_Length": header} if binary else {}
    return Attempt("tensor", _raw(body, INFER, **headers))


def _elsewhere(random: Random) -> Attempt:
    paths = (
        *("/v1/models/../../etc/passwd", "/v1/models/%2e%2e%2fx/predict", "/v1/models/%00/predict"),
        *("/static/../service.py", "/static/%2e%2e/%2e%2e/etc/passwd", "/docs/../../x", "//evil/x"),
        *(f"{PREDICT}?version=../../x", f"{PREDICT}?version=%00", f"{PREDICT}?heatmap=x"),
        *(f"{PREDICT}?category=<b>", f"{PREDICT}?{'a=b&' * 2000}", f"/{'x' * 20_000}", "*", "x"),
        *("/v2/models/part/versions/../x/infer", "/v2/repository/index", "/v1/models/part/promote"),
        *(
            "/v1/models/part/versions?version=../x",
            "/v1/models/../versions?version=1",
            "/v1/events",
        ),
        "/v1/models/part/versions?version=9",
    )
    method = str(random.choice(["POST", "GET", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "x"]))
    path = paths[int(random.integers(len(paths)))]
    if method == "GET" and path == "/v1/events":
        method = "POST"  # or it has no end
    headers = (
        *({}, {}, {"Cookie": "blemish_session=" + "x" * 5000}, {"Authorization": "Bearer \xff"}),
        *({"Content_Encoding": "gzip"}, {"Expect": "100-continue"}, {"X": "y" * 70_000}),
        *({"Origin": "http://evil.example"}, {"Content_Type": "multipart/form-data"}),
        {"Accept": "image/png, text/html"},
    )
    chosen = headers[int(random.integers(len(headers)))]
    body = b'{"version": "../x"}' if random.random() < 0.5 else b"x" * 100
    return Attempt("elsewhere", (_head(path, len(body), method, **chosen) + body,))


KINDS: Mapping[str, Callable[[Random], Attempt]] = {
    "damaged": _damaged,
    "bomb": _bomb,
    "other": _other,
    "name": _name,
    "length": _length,
    "slow": _slow,
    "multipart": _multipart,
    "tensor": _tensor,
    "elsewhere": _elsewhere,
}


def attempts(count: int, seed: int = 0) -> Iterator[Attempt]:
    """So many requests, of each kind in turn."""
    random = np.random.default_rng(seed)
    makers = list(KINDS.values())
    for number in range(count):
        yield makers[number % len(makers)](random)


def answered(attempt: Attempt, host: str, port: int, patience: float = 60.0) -> bytes:
    """What is answered, headers and all; nothing where the connection was closed instead.

    Raises: TimeoutError where neither comes.
    """
    told = b""
    with socket.create_connection((host, port), timeout=patience) as connection:
        try:
            for part in attempt.parts:
                connection.sendall(part)
                time.sleep(attempt.pause)
            while more := connection.recv(65536):
                told += more
        except (BrokenPipeError, ConnectionResetError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
    return told
