"""Exported files: a model as an engine takes it, with the manifest and a digest over all of it.

`.onnx`: the model, then two entries of its metadata, which any reader of ONNX keeps: the manifest
and, last, the digest: SHA-256 over all bytes before it. `.xml` with `.bin` (OpenVINO): both are
notes of the model in the `.xml`; the digest is over that file without it, and the `.bin`.

Neither torch nor onnx nor openvino is needed to read or write them, and reading runs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from blemish.config import parse_json, short
from blemish.engines import ir, protobuf
from blemish.engines.record import EXPORT, FORMAT, Exported, Kind, read_record
from blemish.errors import ArtifactError, OutputError
from blemish.files import ARTIFACT_BYTES, GIB, check_writable, read_whole, write_whole

SUFFIXES: dict[str, Kind] = {".onnx": "onnx", ".xml": "openvino"}
WEIGHTS = ".bin"  # beside an .xml
MANIFEST, DIGEST = "blemish_manifest", "blemish_digest"
# Protocol Buffers count bytes in 31 bits.
ONNX_BYTES = 2 * GIB - 1
XML_BYTES = GIB // 4

_HEX = 64  # digits of a SHA-256
_LAST = protobuf.entry(DIGEST, "0" * _HEX)[:-_HEX]
_NOTE, _END = ir.note(DIGEST, "").split(b'""')
_NOTE += b'"'
_END = b'"' + _END
_AGAIN = "export it again or restore a copy"
_FOREIGN = (
    (b"PK", "a Python or PyTorch object file, which can run code when loaded; not opened"),
    (b"\x80", "a Python or PyTorch object file, which can run code when loaded; not opened"),
    (b"\x89HDF", "a file of Keras; not opened"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportedFile:
    """What an exported file holds.

    Attributes:
        path: of the `.onnx` or `.xml`. manifest: the whole of it, as it was written; `record`: its
            `export`, checked.
        model: the bytes that an engine takes, without manifest and digest.
        weights: those of the `.bin`; None for ONNX.
    """

    path: Path
    manifest: Mapping[str, Any]
    record: Exported
    model: bytes
    weights: bytes | None = None


def is_exported(path: str | Path) -> bool:
    """Whether a path is named as an exported file is, or lies beside an .xml as its weights do."""
    path = Path(path)
    suffix = path.suffix.lower()
    return suffix in SUFFIXES or (suffix == WEIGHTS and path.with_suffix(".xml").exists())


def check_name(path: str | Path, kind: Kind | None) -> None:
    """Raises: OutputError for a name that does not end as files of the kind do; None = artifacts,
    which have any ending but these.
    """
    path = Path(path)
    if kind is None and is_exported(path):
        raise OutputError(
            f"{path}: is the name of an exported file; name the artifact {path.stem}.blemish, from "
            f"which blemish export writes {path.name}"
        )
    suffix = next((suffix for suffix, each in SUFFIXES.items() if each == kind), "")
    if kind is not None and path.suffix.lower() != suffix:
        raise OutputError(f"{path}: a file for {kind} is to be named {path.stem}{suffix}")


def write(
    path: str | Path,
    kind: Kind,
    model: bytes | tuple[bytes, bytes],
    manifest: Mapping[str, Any],
) -> Path:
    """Write an exported file whole or not at all.

    Args:
        path: ending as the kind does: .onnx or .xml.
        model: the bytes of the ONNX file; of OpenVINO's .xml and .bin.
        manifest: JSON-ready, with its `export`, the record of this kind.
    Raises: OutputError for a name of another ending, more bytes than the format can have, and what
        cannot be written; ArtifactError where `manifest` has no valid `export`.
    """
    path = Path(path)
    check_name(path, kind)
    record = read_record(path, manifest)
    if record.kind != kind:
        raise ArtifactError(f"{path}: {EXPORT}.kind: is {record.kind!r}, and {kind!r} is written")
    # In ASCII, so that half of a character that stands alone in a file's name can be written too.
    text = json.dumps(manifest, allow_nan=False)
    if isinstance(model, bytes):
        return write_whole(path, _onnx(path, model, text))
    return _write_pair(path, _xml(path, model[0], model[1], text), model[1])


def _onnx(path: Path, model: bytes, manifest: str) -> bytes:
    """The content of an ONNX file. Raises: OutputError."""
    written = {name for name, *_ in protobuf.read_model(model).metadata}
    if written & {MANIFEST, DIGEST}:
        raise OutputError(f"{path}: the model to be written has a manifest already")
    signed = model + protobuf.entry(MANIFEST, manifest)
    content = signed + _LAST + _digest(signed).encode()
    if len(content) > ONNX_BYTES:
        raise OutputError(
            f"{path}: would be {len(content):,} bytes, and an ONNX file has at most "
            f"{ONNX_BYTES:,}; export with --precision fp16, or for OpenVINO (-o {path.stem}.xml)"
        )
    return content


def _xml(path: Path, model: bytes, weights: bytes, manifest: str) -> bytes:
    """The content of an .xml. Raises: OutputError."""
    rest = ir.with_note(model, MANIFEST, manifest)
    content = ir.with_note(rest, DIGEST, _digest(rest, weights))
    if content.count(_NOTE) != 1:
        raise OutputError(f"{path}: the model to be written has a digest already")
    if len(content) > XML_BYTES:
        raise OutputError(f"{path}: would be {len(content):,} bytes, at most {XML_BYTES:,} are")
    return content


def _write_pair(path: Path, content: bytes, weights: bytes) -> Path:
    """Write the .bin, then the .xml.

    Between the two, which only a killed process leaves so, an .xml that is replaced has not the
    digest of the new .bin: it is refused, and is never read with foreign weights. Where the .xml
    cannot be written, the .bin is as it was before.
    """
    beside = path.with_suffix(WEIGHTS)
    check_writable(path)
    kept = path.with_name(f".blemish-{secrets.token_hex(8)}.tmp")
    with suppress(OSError):  # there is none, or no hard links
        os.link(os.path.realpath(beside), kept)
    try:
        write_whole(beside, weights)
        try:
            write_whole(path, content)
        except BaseException:
            if kept.exists():
                kept.replace(os.path.realpath(beside))
            else:
                beside.unlink(missing_ok=True)
            raise
    finally:
        kept.unlink(missing_ok=True)
    return path


def read(path: str | Path) -> ExportedFile:
    """What an exported file holds.

    Raises: ArtifactError when it cannot be read, is of another kind, without our manifest,
        truncated, altered, of a newer format, or reaches beyond itself.
    """
    path = Path(path)
    if path.suffix.lower() == WEIGHTS:
        raise ArtifactError(
            f"{path}: holds the weights of an exported file; name the .xml beside it"
        )
    content = read_whole(path, limit=ONNX_BYTES, error=ArtifactError)
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        return _read_pair(path, content)
    try:
        model = protobuf.read_model(content)
    except ValueError as error:
        _refuse_foreign(path, content)
        if MANIFEST.encode() in content or path.suffix.lower() == ".onnx":
            raise ArtifactError(f"{path}: is cut short or damaged ({error}); {_AGAIN}") from error
        raise ArtifactError(f"{path}: is no file that blemish export has written") from error
    if not model.has_graph:
        _refuse_foreign(path, content)
        raise ArtifactError(f"{path}: is no file that blemish export has written")
    texts = [value for name, value, *_ in model.metadata if name == MANIFEST]
    if len(texts) != 1:
        raise _without_manifest(path, "an ONNX model", ".onnx")
    manifest = _manifest(path, texts[0])
    signed = memoryview(content)[: -len(_LAST) - _HEX]
    if content[len(signed) : -_HEX] != _LAST or not _is_digest(content[-_HEX:], signed):
        raise ArtifactError(f"{path}: was cut short, altered or damaged after it was written; "
                            f"{_AGAIN}")  # fmt: skip
    try:
        beyond = protobuf.unsafe(content)
    except ValueError as error:
        raise ArtifactError(f"{path}: its graph is damaged ({error}); {_AGAIN}") from error
    if beyond:
        raise ArtifactError(f"{path}: asks for {beyond}, which no blemish writes; not opened")
    entry = protobuf.entry(MANIFEST, texts[0])
    if signed[-len(entry) :] != entry:
        raise ArtifactError(f"{path}: its manifest is not where blemish writes it; {_AGAIN}")
    return _file(path, "onnx", manifest, bytes(signed[: -len(entry)]), None)


def _read_pair(path: Path, content: bytes) -> ExportedFile:
    """What an .xml and its .bin hold. Raises: ArtifactError as `read`."""
    if len(content) > XML_BYTES:
        raise ArtifactError(
            f"{path}: is {len(content):,} bytes of XML, and at most {XML_BYTES:,} are read; "
            "name another file"
        )
    try:
        notes = ir.Document(content).notes
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: is no model of OpenVINO, or is cut short or damaged "
                            f"({error}); {_AGAIN}") from error  # fmt: skip
    if MANIFEST not in notes:
        raise _without_manifest(path, "a model of OpenVINO", ".xml")
    manifest = _manifest(path, notes[MANIFEST])
    beside = path.with_suffix(WEIGHTS)
    if not beside.exists():
        raise ArtifactError(
            f"{path}: its weights, {beside.name}, are not beside it; copy both files"
        )
    weights = read_whole(beside, limit=ARTIFACT_BYTES, error=ArtifactError)
    before, found, after = content.partition(_NOTE)
    digest, after = after[:_HEX], after[_HEX:]
    if not found or not after.startswith(_END) or _NOTE in after:
        raise ArtifactError(f"{path}: was altered or damaged after it was written; {_AGAIN}")
    if not _is_digest(digest, before, after.removeprefix(_END), weights):
        raise ArtifactError(
            f"{path}: it or {beside.name} was altered or damaged, or the two are of different "
            f"exports; {_AGAIN}, both files together"
        )
    plain = before.replace(ir.note(MANIFEST, notes[MANIFEST]), b"") + after.removeprefix(_END)
    return _file(path, "openvino", manifest, plain, weights)


def _refuse_foreign(path: Path, content: bytes) -> None:
    """Raises: ArtifactError for other files that a user may name, with what they are."""
    if not content:
        raise ArtifactError(f"{path}: is empty; {_AGAIN}")
    for start, what in _FOREIGN:
        if content.startswith(start):
            raise ArtifactError(f"{path}: is {what}")
    length = int.from_bytes(content[:8], "little")
    if content[8:9] == b"{" and length <= len(content):
        raise ArtifactError(
            f"{path}: is an artifact or weights in safetensors format, which PyTorch computes; for "
            f"an engine without it: blemish export {path} -o {path.stem}.onnx"
        )


def _without_manifest(path: Path, what: str, suffix: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: is {what}, but not one that blemish export has written, or its manifest was "
        f"removed; write one with: blemish export ARTIFACT -o {path.stem}{suffix}"
    )


def _manifest(path: Path, text: str) -> dict[str, Any]:
    """The manifest, of a format that this blemish reads. Raises: ArtifactError."""
    try:
        manifest = parse_json(text)
        version = manifest[EXPORT]["format"]
        if type(version) is not int:
            raise ValueError(f"the format is {short(version)}")
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ArtifactError(f"{path}: the manifest is damaged ({error}); {_AGAIN}") from error
    if version > FORMAT:
        raise ArtifactError(
            f"{path}: has format {version}, written by blemish {manifest.get('blemish', '?')}; "
            f"this blemish reads formats up to {FORMAT}: pip install --upgrade blemish"
        )
    return cast("dict[str, Any]", manifest)


def _file(
    path: Path, kind: Kind, manifest: dict[str, Any], model: bytes, weights: bytes | None
) -> ExportedFile:
    record = read_record(path, manifest)
    if record.kind != kind:
        raise ArtifactError(f"{path}: says that it is for {record.kind}, and is not; {_AGAIN}")
    return ExportedFile(path=path, manifest=manifest, record=record, model=model, weights=weights)


def _is_digest(digest: bytes, *parts: bytes | memoryview) -> bool:
    return digest == _digest(*parts).encode()


def _digest(*parts: bytes | memoryview) -> str:
    """SHA-256 over all parts, in hexadecimal."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()
