"""The artifact: one file in safetensors format with a JSON manifest in its header.

Reading never runs code from the file. The header's metadata holds `manifest` (JSON text) and
`digest`, the SHA-256 over the manifest, the table of tensors and their bytes, so that a damaged or
altered file is noticed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, deserialize

from blemish.config import parse_json, short
from blemish.errors import ArtifactError
from blemish.files import ARTIFACT_BYTES, read_whole, write_whole

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2  # raised when an older blemish could misread the file
_EXPORTED = b"blemish_manifest"  # within exported files, see `engines.files`
_LIBRARIES = (
    *("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg", "opencv-python-headless"),
)


def provenance() -> dict[str, Any]:
    """What every manifest says of how it came about: which blemish made it, when, and with what."""
    versions = {
        "python": platform.python_version(),
        **{name: version_of(name) for name in _LIBRARIES},
    }
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"blemish": version_of("blemish"), "created": created, "versions": versions}


def write(path: str | Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> Path:
    """Write an artifact whole or not at all. Raises: OutputError."""
    from safetensors.torch import save as save_tensors

    text = json.dumps({**manifest, "format": FORMAT}, ensure_ascii=False, allow_nan=False)
    table, data = _parts(save_tensors(dict(tensors)), "the artifact")
    table["__metadata__"] = {"manifest": text, "digest": _digest(text, table, data)}
    header = json.dumps(table, ensure_ascii=False).encode("utf-8", "surrogatepass")
    header += b" " * (-len(header) % 8)
    return write_whole(path, len(header).to_bytes(8, "little") + header + data)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the manifest of an artifact.

    Raises: ArtifactError when the file cannot be read, is of another kind, truncated, altered or of
    a newer format.
    """
    from safetensors.torch import load as load_tensors

    content, manifest = _checked(path)
    try:
        return load_tensors(content), manifest
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path) from error


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest alone, of an artifact that is whole and unaltered; without PyTorch.

    Raises: as `read`.
    """
    content, manifest = _checked(path)
    try:
        deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise _damaged(path) from error
    return manifest


def _checked(path: str | Path) -> tuple[bytes, dict[str, Any]]:
    """The whole file and its manifest, held against its digest. Raises: as `read`."""
    content = read_whole(path, limit=ARTIFACT_BYTES, error=ArtifactError)
    table, data = _parts(content, path)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or "manifest" not in metadata or "digest" not in metadata:
        raise ArtifactError(
            f"{path}: is a safetensors file, but not one that blemish fit has written"
        )
    try:
        manifest = parse_json(metadata["manifest"])
        version = manifest.get("format")
        if type(version) is not int:
            raise ValueError(f"its format is {short(version)}")
    except (ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: the manifest is damaged ({error}); fit again or restore a copy"
        ) from error
    if version > FORMAT:
        raise ArtifactError(
            f"{path}: has format {version}, written by blemish {manifest.get('blemish', '?')}; "
            f"this blemish reads formats up to {FORMAT}: pip install --upgrade blemish"
        )
    if _digest(metadata["manifest"], table, data) != metadata["digest"]:
        raise ArtifactError(
            f"{path}: was altered or damaged after it was written; fit again or restore a copy"
        )
    if version < 1:
        raise ArtifactError(
            f"{path}: has format {short(version)}, which no blemish has ever written"
        )
    return content, manifest


def _damaged(path: object) -> ArtifactError:
    return ArtifactError(f"{path}: the table of tensors is damaged; fit again or restore a copy")


def _parts(content: bytes, path: object) -> tuple[dict[str, Any], bytes]:
    """The header table and the bytes of the tensors. Raises: ArtifactError."""
    if len(content) < 8:
        raise ArtifactError(f"{path}: is not an artifact ({len(content)} bytes)")
    length = int.from_bytes(content[:8], "little")
    if length > len(content) - 8:
        # Only here: the length of a good header may begin with the same bytes.
        if content[:2] == b"PK" or content[:1] == b"\x80":
            raise ArtifactError(
                f"{path}: is a Python or PyTorch object file, which can run code when loaded; "
                "not opened"
            )
        if content[8:9] == b"{":
            raise ArtifactError(f"{path}: is cut short")
        # Named otherwise, an exported file is taken for an artifact.
        kept = "; exported files keep the ending .onnx or .xml" if _EXPORTED in content else ""
        raise ArtifactError(f"{path}: is not an artifact that blemish fit has written{kept}")
    try:
        table = parse_json(content[8 : 8 + length].decode("utf-8", "surrogatepass"))
        end = max(
            (entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__"),
            default=0,
        )
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ArtifactError(f"{path}: is not an artifact that blemish fit has written") from error
    data = content[8 + length :]
    if end != len(data):
        raise ArtifactError(f"{path}: is cut short or damaged; fit again or restore a copy")
    return table, data


def _digest(manifest: str, table: Mapping[str, Any], data: bytes) -> str:
    rest = {name: entry for name, entry in table.items() if name != "__metadata__"}
    digest = hashlib.sha256(manifest.encode("utf-8", "surrogatepass"))
    digest.update(json.dumps(rest, sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()


def version_of(package: str) -> str:
    """Of an installed package; "unknown" of one that is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
