"""Artifacts on any file system, and brought to workers that may not reach it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from blemish.errors import ArtifactError, BlemishError
from blemish.files import ARTIFACT_BYTES, open_regular
from blemish.scale.places import place_of, read_bytes, scheme_of


@dataclass(frozen=True)
class Shipped:
    """An artifact, or an exported file, as bytes: what workers are handed.

    Attributes: name: as its user calls it. digest: SHA-256 of its file. files: name and content;
        an OpenVINO file has its weights beside it.
    """

    name: str
    digest: str
    files: tuple[tuple[str, bytes], ...] = field(repr=False)


def shipped(artifact: str | Path) -> Shipped:
    """The bytes of an artifact. Raises: ArtifactError where it cannot be read; ConfigError as of
    `place_of`."""
    place = place_of(artifact)
    folder, _, name = place.path.replace("\\", "/").rpartition("/")
    names = [name, f"{name[:-4]}.bin"] if name.endswith(".xml") else [name]
    files = []
    for each in names:
        there = place if each == name else place.at(f"{folder}/{each}")
        files.append((each, read_bytes(there, limit=ARTIFACT_BYTES, error=ArtifactError)))
    return Shipped(str(artifact), hashlib.sha256(files[0][1]).hexdigest(), tuple(files))


@contextmanager
def at_hand(artifact: str | Path | Shipped) -> Iterator[tuple[Path, str]]:
    """A local file with the artifact, while open, and its SHA-256. Raises: as `shipped`."""
    if not isinstance(artifact, Shipped):
        if not scheme_of(str(artifact)):
            with open_regular(artifact, limit=ARTIFACT_BYTES, error=ArtifactError) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            yield Path(artifact), digest
            return
        artifact = shipped(artifact)
    with tempfile.TemporaryDirectory(prefix="blemish-") as folder:
        for name, content in artifact.files:
            Path(folder, name).write_bytes(content)
        try:
            yield Path(folder, artifact.files[0][0]), artifact.digest
        except BlemishError as error:  # is told of the file that its user knows
            known = artifact.name.removesuffix(artifact.files[0][0])
            error.args = tuple(str(one).replace(f"{folder}{os.sep}", known) for one in error.args)
            raise
