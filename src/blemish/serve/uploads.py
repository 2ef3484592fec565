"""Pictures in the body of a request, read with an end: multipart of one or many, or raw."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from blemish.serve.refusals import Refusal, bad_request, too_large
from blemish.text import printable

LONGEST_NAME = 255
_FIELD = 2**16  # bytes of a field that is no file
_FOLDERS = re.compile(r"[\\/]")
Hold = Callable[[int], None]


@dataclass(slots=True)
class Part:
    """What stood in one part of a body: `field` names it, `name` is the file's own."""

    field: str
    name: str
    content: bytes


def shown_name(name: str, otherwise: str = "picture") -> str:
    """What a sender calls a file, as it may be shown: without folders, and not too long.

    Example:
        >>> shown_name("../../etc/passwd"), shown_name("a\\n.png"), shown_name("C:\\\\x\\\\")
        ('passwd', 'a\\\\n.png', 'picture')
    """
    own = printable(_FOLDERS.split(name)[-1].strip())[:LONGEST_NAME]
    return own if own.strip(". ") else otherwise


async def chunks(request: Request, limit: int, hold: Hold) -> AsyncIterator[bytes]:
    """A body as it comes, at most `limit` bytes of it, whatever its length is said to be.

    Args: hold: called with the bytes of each chunk, before it is kept.
    Raises: Refusal for a longer one, and for one that is compressed.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "Unsupported", "bodies are not taken compressed: send it as it is")
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > limit:
        raise _too_long(limit)
    length = 0
    async for chunk in request.stream():
        length += len(chunk)
        if length > limit:
            raise _too_long(limit)
        hold(len(chunk))
        if chunk:
            yield chunk


async def whole(request: Request, limit: int, hold: Hold) -> bytes:
    """All of a body. Raises: as `chunks`."""
    body = bytearray()
    async for chunk in chunks(request, limit, hold):
        body += chunk
    return bytes(body)


async def parts(request: Request, *, limit: int, most: int, hold: Hold) -> list[Part]:
    """The files and fields in a body; a raw one is a single file, named by `?name=`.

    Args: limit: bytes of all. most: how many parts there may be.
    Raises: Refusal.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind == b"multipart/form-data":
        boundary = options.get(b"boundary", b"")
        if not boundary:
            raise bad_request("the multipart body names no boundary in its Content-Type")
        return await _multipart(request, boundary, limit=limit, most=most, hold=hold)
    if kind.startswith(b"multipart/"):
        raise Refusal(415, "Unsupported", "of multipart bodies only multipart/form-data is taken")
    content = await whole(request, limit, hold)
    if not content:
        raise bad_request("the body is empty; send a picture, or multipart/form-data with some")
    return [Part("picture", request.query_params.get("name", ""), content)]


@dataclass
class _Reader:
    """Collects the parts of a multipart body as its parser finds them."""

    most: int
    found: list[Part] = field(default_factory=list)
    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: bytes = b""
    value: bytes = b""
    content: bytearray = field(default_factory=bytearray)
    ended: bool = False

    def begin(self) -> None:
        if len(self.found) == self.most:
            raise too_large(
                f"the body has more than {self.most} parts; send fewer pictures at once"
            )
        self.headers, self.content = {}, bytearray()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self.name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def header(self) -> None:
        self.headers[self.name.lower()] = self.value
        self.name = self.value = b""

    def data(self, data: bytes, start: int, end: int) -> None:
        self.content += data[start:end]

    def end(self) -> None:
        _, options = parse_options_header(self.headers.get(b"content-disposition", b""))
        name = options.get(b"filename")
        if name is None and len(self.content) > _FIELD:
            raise bad_request("a part without a file name is too long for a field")
        own = options.get(b"name", b"").decode("utf-8", "replace")
        file = "" if name is None else name.decode("utf-8", "replace")
        self.found.append(Part(own, file, bytes(self.content)))
        self.content = bytearray()

    def finish(self) -> None:
        self.ended = True


async def _multipart(
    request: Request, boundary: bytes, *, limit: int, most: int, hold: Hold
) -> list[Part]:
    reader = _Reader(most)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reader.begin,
                "on_part_data": reader.data,
                "on_part_end": reader.end,
                "on_header_field": reader.header_name,
                "on_header_value": reader.header_value,
                "on_header_end": reader.header,
                "on_end": reader.finish,
            },
            max_header_count=8,
            max_header_size=4096,
        )
        async for chunk in chunks(request, limit, hold):
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise bad_request("the multipart body is damaged; send it anew") from error
    if not reader.ended:
        raise bad_request("the multipart body ends in the middle; send it anew")
    return reader.found


def _too_long(limit: int) -> Refusal:
    return too_large(f"the body is longer than {limit:,} bytes, the limit (--largest-upload)")
