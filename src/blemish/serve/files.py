"""Which versions of which detectors there are: `models/NAME/VERSION.*`, or files by themselves."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blemish.errors import ArtifactError, ConfigError, DataError
from blemish.files import ARTIFACT_BYTES, open_regular
from blemish.serve.refusals import bad_request

SUFFIXES = (".blemish", ".onnx", ".xml")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
COMING = ".blemish-"  # how the names of versions begin that are on their way: no version's do
_SHORT = 8  # hexadecimal digits of a file's digest that are its version


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A version of a detector, as a file. digest: SHA-256 of it, "" where it was not read yet."""

    name: str
    version: str
    path: Path
    digest: str = ""

    @property
    def parts(self) -> tuple[Path, ...]:
        """The files that it is: an `.xml` has its `.bin`."""
        weights = self.path.with_suffix(".bin")
        return (self.path, weights) if self.path.suffix == ".xml" else (self.path,)


def check_name(what: str, name: str) -> str:
    """A name of a model or version, as it was given. Raises: Refusal for one that is none."""
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise bad_request(
            f"{what}: 1 to 64 of A-Z a-z 0-9 . _ - are needed, beginning with a letter or number"
        )
    return name


def digest_of(file: ModelFile) -> str:
    """SHA-256 of its bytes, in hexadecimal. Raises: ArtifactError."""
    state = hashlib.sha256()
    for path in file.parts:
        with open_regular(path, limit=ARTIFACT_BYTES, error=ArtifactError) as opened:
            while block := opened.read(2**20):
                state.update(block)
    return state.hexdigest()


def found(sources: Iterable[Path]) -> dict[str, dict[str, ModelFile]]:
    """By name and version what files and folders hold, the oldest version first.

    A file by itself is called by its own name, its version by its digest.

    Raises: DataError for what is not there, and where nothing is; ConfigError where two are called
        the same; ArtifactError.
    """
    models: dict[str, dict[str, ModelFile]] = {}
    for source in sources:
        if source.is_dir():
            several = list(_of_folder(source))
            if not several:
                raise DataError(
                    f"{source}: holds no models; a folder of models has NAME/VERSION.blemish, "
                    ".onnx or .xml"
                )
        elif source.exists():
            several = [_of_file(source)]
        else:
            raise DataError(f"{source}: does not exist")
        for one in several:
            versions = models.setdefault(one.name, {})
            if one.version in versions:
                raise ConfigError(
                    f"{one.path}: is {one.name}/{one.version}, and so is "
                    f"{versions[one.version].path}; rename one of them"
                )
            versions[one.version] = one
    return {
        name: dict(sorted(versions.items(), key=lambda item: natural(item[0])))
        for name, versions in sorted(models.items())
    }


def in_folders(sources: Iterable[Path]) -> Iterator[ModelFile]:
    """The versions that folders of models hold now, without reading them. Those of a folder that
    cannot be read are left out."""
    for source in sources:
        with suppress(OSError):
            if source.is_dir():
                yield from _of_folder(source)


def _of_folder(folder: Path) -> Iterator[ModelFile]:
    """What a folder of models holds; files and folders of other names are passed over."""
    for name in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not (name.is_dir() and _NAME.fullmatch(name.name)):
            continue
        for path in sorted(Path(name.path).iterdir()):
            if path.suffix in SUFFIXES and _NAME.fullmatch(path.stem) and path.is_file():
                yield ModelFile(name=name.name, version=path.stem, path=path)


def _of_file(path: Path) -> ModelFile:
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"{path}: is called neither .blemish, .onnx nor .xml, as what blemish fit and blemish "
            "export have written"
        )
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem)[:60].strip("._-") or "model"
    digest = digest_of(ModelFile(name=name, version="", path=path))
    return ModelFile(name=name, version=digest[:_SHORT], path=path, digest=digest)


def natural(version: str) -> tuple[tuple[int, int, str], ...]:
    """What orders versions as people do: 2 before 10.

    Example:
        >>> sorted(["v10", "v2", "v1.1"], key=natural)
        ['v1.1', 'v2', 'v10']
    """
    pieces = re.findall(r"\d+|\D+", version)
    return tuple((0, int(one), "") if one.isdecimal() else (1, 0, one) for one in pieces)
