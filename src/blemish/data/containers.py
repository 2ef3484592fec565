"""How long a video file says it is: what tells one that was cut off from a whole one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_MATROSKA, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"


def missing_bytes(path: Path) -> int:
    """The bytes that a video file lacks by its own account: AVI, MP4, MOV, Matroska and WebM.

    0 where nothing is missing, and where that cannot be told: other formats, and files whose
    length was never filled in, as of a recording that goes on.

    Raises: OSError.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            said = _riff(file, size)
        elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            said = _boxes(file, size)
        elif head[:4] == _MATROSKA:
            said = _matroska(file)
        else:
            return 0
    return max(0, said - size)


def _riff(file: BinaryIO, size: int) -> int:
    """Where the last RIFF chunk ends; a file above 1 GiB has several."""
    place = 0
    while place < size:
        file.seek(place)
        head = file.read(8)
        if head[:4] != b"RIFF" or len(head) < 8:
            break
        length = int.from_bytes(head[4:], "little")
        if length == 0:  # not filled in
            break
        place += 8 + length + length % 2 if place + 8 + length < size else 8 + length
    return place


def _boxes(file: BinaryIO, size: int) -> int:
    """Where the last box of an MP4 ends."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # in 8 bytes more
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # to the end of the file, or nonsense
            return 0
        place += length
    return place


def _matroska(file: BinaryIO) -> int:
    """Where the segment ends, which follows the head."""
    file.seek(len(_MATROSKA))
    length = _number(file)
    if length is None:
        return 0
    file.seek(length, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return 0
    length = _number(file)
    return 0 if length is None else file.tell() + length


def _number(file: BinaryIO) -> int | None:
    """A length as Matroska writes it, in 1 to 8 bytes; None where it says that it is not known."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    more = 8 - first[0].bit_length()
    bits = 7 * (more + 1)
    value = int.from_bytes(first + file.read(more), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value
