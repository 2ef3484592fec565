"""The folder: the files of the page as they lie beside this one, ONNX Runtime Web, the model and
what the page must know of the detector."""

from __future__ import annotations

import hashlib
import json
import lzma
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blemish.detector.manifest import read_manifest
from blemish.engines.record import read_record
from blemish.errors import ExportError, OutputError
from blemish.export.web.described import check_page, described
from blemish.files import cannot_write, check_writable

_STATIC = Path(__file__).with_name("static")
# ONNX Runtime Web 1.30.0 as its authors have built it: see vendor/README.md.
_VENDOR = Path(__file__).with_name("vendor")
_SHA256 = {
    "ort.js": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
MODEL, DETECTOR = "model.onnx", "detector.json"
_RUNTIME = (*_SHA256, "LICENSE.txt", "notices.txt")


def write_page(directory: Path, model: bytes, manifest: Mapping[str, Any]) -> Path:
    """Write the folder of the page, whole or not at all; an earlier page there is replaced.

    Args:
        directory: a new or an empty folder, or one that holds an earlier page and nothing else.
        model: an exported .onnx file. manifest: its manifest, with `export`.
    Raises: ExportError for a detector that a page cannot score, or an installation in which files
        of the page are damaged; OutputError where it cannot be written, or other files are there;
        ArtifactError for a manifest that is none.
    """
    export = read_record(directory, manifest)
    record = read_manifest(directory, manifest)
    check_page(record, export.kind, export.input)
    digest = hashlib.sha256(model).hexdigest()
    detector = json.dumps(described(record, export, digest), ensure_ascii=False, allow_nan=False)
    files = page_files()
    files |= {MODEL: model, DETECTOR: detector.encode()}
    check_place(directory)
    temporary = directory.parent / f".blemish-{secrets.token_hex(8)}.tmp"
    try:
        try:
            for name, content in files.items():
                place = temporary / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
            _replace(directory, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise cannot_write(directory, error) from error
    return directory


def page_files() -> dict[str, bytes]:
    """What is the same in every page: its files by their places in the folder.

    Raises: ExportError where a file of the installation is missing or damaged.
    """
    try:
        listed = (path for path in sorted(_STATIC.iterdir()) if path.is_file())
        files = {path.name: path.read_bytes() for path in listed}
        files |= {f"onnxruntime/{name}": _unpacked(name) for name in _RUNTIME}
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise _damaged(error) from error
    for name, sha256 in _SHA256.items():
        if hashlib.sha256(files[f"onnxruntime/{name}"]).hexdigest() != sha256:
            raise _damaged(f"{name} is not the one that blemish was released with")
    return files


def _unpacked(name: str) -> bytes:
    packed = _VENDOR / f"{name}.xz"
    if packed.exists():
        return lzma.decompress(packed.read_bytes())
    return (_VENDOR / name).read_bytes()


def _damaged(why: object) -> ExportError:
    return ExportError(
        f"--web: the files of the page are not as they were installed ({why}); install blemish anew"
    )


def check_place(directory: Path) -> None:
    """Make sure, before any work, that a page can be written there.

    Raises: OutputError where anything is in the folder that no page has put there, or where no
        folder can be made beside it.
    """
    names = {path.name for path in _STATIC.iterdir() if path.is_file()}
    names |= {MODEL, DETECTOR, *(f"onnxruntime/{name}" for name in _RUNTIME)}
    if not directory.exists() and not directory.is_symlink():
        _check_beside(directory)
        return
    if not directory.is_dir():
        raise OutputError(f"{directory}: is no folder; name a new one")
    try:
        found = {
            path.relative_to(directory).as_posix()
            for path in directory.rglob("*")
            if not path.is_dir() or path.is_symlink()
        }
    except OSError as error:
        raise cannot_write(directory, error) from error
    if strange := sorted(found - names):
        raise OutputError(
            f"{directory}: holds other files ({strange[0]}), and a page needs a folder of its "
            "own; name a new one"
        )
    if found and DETECTOR not in found:
        raise OutputError(f"{directory}: holds files of no page of blemish; name a new folder")
    _check_beside(directory)


def _check_beside(directory: Path) -> None:
    """Raises: OutputError where the folder, which is made beside its place, cannot be written."""
    try:
        check_writable(directory.with_name(f"{directory.name}.page"))
    except OutputError as error:
        if isinstance(error.__cause__, OSError):
            raise cannot_write(directory, error.__cause__) from error
        raise


def _replace(directory: Path, made: Path) -> None:
    """Put the folder `made` into the place of `directory`; what is there goes last."""
    if not directory.exists():
        made.rename(directory)
        return
    earlier = made.with_suffix(".old")
    directory.rename(earlier)
    try:
        made.rename(directory)
    except OSError:
        earlier.rename(directory)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
