"""What may befall the file of a picture, and what the decoder makes of it then."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fuzzing.pictures import Pixels, Random, chunks, format_of, png_of

# What a file of a format says of itself by which damage can be told.
CHECKS: Mapping[str, str] = {
    "PNG": "CRC-32 of every chunk, Adler-32 of the pixels, and their number",
    "JPEG": "markers and Huffman codes, which end early or late where they are damaged, as a rule",
    "WebP": "the length; inside of the coded data nothing",
    "BMP": "the length",
    "TIFF": "the length",
    "TIFF Deflate": "the length, and Adler-32 of the pixels",
    "PNM": "the length",
    "DICOM": "the length",
}


def flipped(data: bytes, random: Random) -> bytes:
    """One bit, anywhere."""
    changed = bytearray(data)
    changed[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def scribbled(data: bytes, random: Random) -> bytes:
    """Two to sixteen bytes, one of them among the first 200, written over."""
    changed = bytearray(data)
    for place in [
        random.integers(min(200, len(data))),
        *random.integers(len(data), size=random.integers(1, 16)),
    ]:
        changed[int(place)] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF, random.integers(256)]))
    return bytes(changed)


def truncated(data: bytes, random: Random) -> bytes:
    """The end is missing: from one byte to nearly all."""
    return data[: int(random.integers(1, len(data)))] if random.random() < 0.8 else data[:-1]


def with_hole(data: bytes, random: Random) -> bytes:
    """Zeros in the middle, up to 4 KiB of them."""
    size = min(4096, len(data) // 4)
    start = int(random.integers(len(data) // 3, len(data) - size - len(data) // 8))
    return data[:start] + bytes(size) + data[start + size :]


def closed(data: bytes, random: Random) -> bytes:
    """Cut in the middle and ended as the format ends, with the length put right where it says
    it."""
    cut = int(len(data) * random.uniform(0.3, 0.8))
    kind = format_of(data)
    if kind == "JPEG":
        return data[:cut] + b"\xff\xd9"
    if kind == "WebP":
        part = bytearray(data[: cut + cut % 2])
        part[4:8] = struct.pack("<I", len(part) - 8)
        return bytes(part)
    if kind == "PNG":
        parts = chunks(data)
        share = random.uniform(0.3, 0.8)
        return png_of(
            [
                (kind, body[: int(len(body) * share)] if kind == b"IDAT" else body)
                for kind, body in parts
            ]
        )
    return data[:cut] + bytes(len(data) - cut)  # as a disk does that has allocated and not written


def enlarged(data: bytes, random: Random) -> bytes:
    """The header announces twice as many rows as there are, or a few more, and is right
    otherwise."""
    del random
    return _with_rows(data, lambda rows: 2 * rows)


def shrunk(data: bytes, random: Random) -> bytes:
    """The header announces half of the rows."""
    del random
    return _with_rows(data, lambda rows: rows // 2)


def _with_rows(data: bytes, change: Callable[[int], int]) -> bytes:
    """The file with another number of rows in its header; as it is where it has no such field."""
    kind = format_of(data)
    if kind == "PNG":
        parts = chunks(data)
        head = bytearray(parts[0][1])
        head[4:8] = struct.pack(">I", change(int.from_bytes(head[4:8])))
        return png_of([(b"IHDR", bytes(head)), *parts[1:]])
    places: dict[str, tuple[bytes, int, str]] = {
        "JPEG": (rb"\xff[\xc0\xc1\xc2]..\x08", 5, ">H"),
        "WebP": (rb"VP8 ....(?s:.)(?s:.)(?s:.)\x9d\x01\x2a..", 16, "<H"),
        "BMP": (rb"^BM", 22, "<i"),
        "TIFF": (rb"\x01\x01[\x03\x04]\0\x01\0\0\0", 8, "<H"),
        "DICOM": (rb"\x28\0\x10\0US\x02\0", 8, "<H"),
    }
    if kind == "PNM":
        return re.sub(
            rb"(\d+)\n(\d+)\n", lambda m: b"%d\n%s\n" % (change(int(m[1])), m[2]), data, count=1
        )
    if kind not in places:
        return data
    pattern, offset, form = places[kind]
    found = re.search(pattern, data, re.DOTALL)
    if found is None:
        return data
    at = found.start() + offset
    (rows,) = struct.unpack_from(form, data, at)
    changed = bytearray(data)
    struct.pack_into(form, changed, at, change(rows))
    return bytes(changed)


def forged(data: bytes, random: Random) -> bytes:
    """What a stranger makes: fields of the header with hostile numbers, checksums put right."""
    if format_of(data) != "PNG":
        changed = bytearray(data)
        for _ in range(int(random.integers(1, 4))):
            at = int(random.integers(2, min(len(data) - 8, 160)))
            number = int(random.choice([0, 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**32 - 1]))
            form = str(random.choice(["<I", ">I"]))
            struct.pack_into(form, changed, at, number)
        return bytes(changed)
    parts = chunks(data)
    place = int(random.integers(len(parts)))
    kind, body = parts[place]
    doing = int(random.integers(5))
    if doing == 0 and body:
        parts[place] = (kind, flipped(body, random))
    elif doing == 1:
        parts.insert(place, parts[int(random.integers(len(parts)))])
    elif doing == 2 and len(parts) > 1:
        del parts[place]
    elif doing == 3:
        sizes = struct.pack(">II", *(int(2 ** random.uniform(0, 14)) for _ in range(2)))
        parts[0] = (b"IHDR", sizes + parts[0][1][8:])
    else:
        parts[0] = (
            b"IHDR",
            parts[0][1][:8] + bytes(random.choice([0, 1, 2, 3, 4, 6, 8, 16], 5).tolist()),
        )
    return png_of(parts)


MUTATIONS: Mapping[str, Callable[[bytes, Random], bytes]] = {
    "flip": flipped,
    "scribble": scribbled,
    "truncation": truncated,
    "hole": with_hole,
    "closed": closed,
    "enlarged": enlarged,
    "shrunk": shrunk,
    "forged": forged,
}
# What every format can tell of a file that has been damaged so: there no wrong accept is excused.
TOLD: Mapping[str, frozenset[str]] = {
    "truncation": frozenset(CHECKS),
    "enlarged": frozenset(CHECKS),
    "closed": frozenset({"PNG", "JPEG", "WebP", "TIFF Deflate"}),
    "hole": frozenset(
        {"PNG", "TIFF Deflate"}
    ),  # of JPEG about one in a hundred ends by chance where it should
    "flip": frozenset({"PNG"}),
    "scribble": frozenset({"PNG"}),
    "shrunk": frozenset({"PNG", "JPEG", "PNM", "DICOM"}),
}
NEAR, SHARE = 8, 0.01  # of 255; of the pixels: what is within both is an honest picture still


def compared(found: Pixels, original: Pixels) -> str:
    """Of pixels, uint8 H W 3: "right", "changed" (within an honest amount) or "wrong"."""
    if found.shape != original.shape:
        return "wrong"
    apart = np.abs(found.astype(np.int16) - original.astype(np.int16)).max(axis=2)
    if not apart.any():
        return "right"
    return "wrong" if float((apart > NEAR).mean()) > SHARE else "changed"


def checked_as(form: str, kind: str) -> str:
    """The name in `CHECKS` of a picture of this format and kind."""
    return f"{form} Deflate" if form == "TIFF" and "Deflate" in kind else form


def tried(data: bytes, original: Pixels, notes: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the decoder makes of a file, by "verdict".

    refused, right, changed (within an honest amount), noted (other pixels, and a note that says
    so), wrong (other pixels, in silence), bug (an error that blemish does not know); with "why",
    and "size", the bytes of the decoded picture.
    """
    from blemish.errors import BlemishError
    from blemish.images import decode

    try:
        picture = decode(data)
    except BlemishError as error:
        return {"verdict": "refused", "why": str(error)[:200], "size": 0}
    except BaseException as error:  # whatever it is, it is not ours
        return {"verdict": "bug", "why": f"{type(error).__name__}: {error}"[:200], "size": 0}
    verdict = compared(picture.as_uint8(), original)
    if verdict == "wrong" and set(picture.notes) - set(notes):
        verdict = "noted"
    return {"verdict": verdict, "why": "; ".join(picture.notes), "size": int(picture.pixels.nbytes)}
