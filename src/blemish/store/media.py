"""Pictures, thumbnails and maps: files named by digests alone, in folders of a byte of it each.

    media/pictures/ab/ab12….png      as it was sent; the suffix tells what its content shows
    media/thumbnails/ab/ab12….jpg
    media/maps/ab/ab12…-0123456789abcdef.npz    of a model and version, whose hash follows

A file is written whole or not at all, and never changed, so nothing needs to be kept of it
elsewhere: what the folders hold is what there is.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from blemish.errors import ConfigError, OutputError, StoreError
from blemish.files import read_whole, write_whole
from blemish.images import sniff
from blemish.store.part import Part
from blemish.store.records import check_digest, check_name

MEDIA = "media"
PICTURES, THUMBNAILS, MAPS = "pictures", "thumbnails", "maps"
_SUFFIXES = {
    "png": ".png",
    "jpeg": ".jpg",
    "webp": ".webp",
    "bmp": ".bmp",
    "pnm": ".pnm",
    "tiff": ".tif",
    "dicom": ".dcm",
}
_MAP_BYTES = 256 * 2**20
_DAMAGED = (  # what numpy and zipfile say of a file that is none of ours
    *(ValueError, KeyError, OSError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


class Media(Part):
    """The part of a store that holds files."""

    def put_picture(self, picture: str, content: bytes) -> Path:
        """Keep a picture as it was sent. One that is there already stays, and counts as new.

        Args: content: of its file, in a format that blemish reads.
        Raises: ConfigError for anything else, StoreError where it cannot be written.
        """
        return self._put(PICTURES, picture, content)

    def picture(self, picture: str) -> Path | None:
        """The file of a picture; None where it is not kept, or was deleted."""
        return self._found(PICTURES, picture)

    def put_thumbnail(self, picture: str, content: bytes) -> Path:
        """Keep a small version of a picture, as `put_picture`."""
        return self._put(THUMBNAILS, picture, content)

    def thumbnail(self, picture: str) -> Path | None:
        """The file of a picture's small version; None where there is none."""
        return self._found(THUMBNAILS, picture)

    def put_map(self, picture: str, model: str, version: str, anomaly_map: np.ndarray) -> Path:
        """Keep the anomaly map of a prediction, float h×w, in half precision where it fits."""
        if anomaly_map.ndim != 2 or not np.isfinite(anomaly_map).all():
            raise ConfigError(f"map of {anomaly_map.shape}: is no map of finite h×w values")
        fits = np.abs(anomaly_map).max(initial=0) < np.finfo(np.float16).max
        coded = io.BytesIO()
        np.savez_compressed(coded, map=anomaly_map.astype(np.float16 if fits else np.float32))
        return self._written(self._map(picture, model, version), coded.getvalue())

    def map(self, picture: str, model: str, version: str) -> np.ndarray | None:
        """The anomaly map of a prediction, float32 h×w; None where it is not kept."""
        place = self._map(picture, model, version)
        if not place.is_file():
            return None
        content = read_whole(place, limit=_MAP_BYTES, error=_gone)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as held:
                return np.asarray(held["map"], dtype=np.float32)
        except _DAMAGED as error:
            raise StoreError("a map is damaged; delete it, or score the picture again") from error

    def _put(self, kind: str, picture: str, content: bytes) -> Path:
        form = sniff(content[:132])
        if form is None:
            raise ConfigError("picture: is of no format that blemish reads")
        there = self._found(kind, picture)
        if there is not None:
            with suppress(OSError):  # deleted in this moment, which is as if it had come before
                os.utime(there)
                return there
        return self._written(self._shard(kind, picture) / f"{picture}{_SUFFIXES[form]}", content)

    def _found(self, kind: str, picture: str) -> Path | None:
        shard = self._shard(kind, picture)
        places = (shard / f"{picture}{suffix}" for suffix in _SUFFIXES.values())
        return next((place for place in places if place.is_file()), None)

    def _map(self, picture: str, model: str, version: str) -> Path:
        check_name("model", model)
        check_name("version", version)
        whose = hashlib.sha256(f"{model}\n{version}".encode()).hexdigest()[:16]
        return self._shard(MAPS, picture) / f"{picture}-{whose}.npz"

    def _shard(self, kind: str, picture: str) -> Path:
        return self.folder / MEDIA / kind / check_digest(picture)[:2]

    def _written(self, place: Path, content: bytes) -> Path:
        try:
            return write_whole(place, content, picture=True)
        except OutputError as error:
            reason = getattr(error.__cause__, "strerror", None) or "see the log"
            raise StoreError(f"a picture cannot be kept ({reason})", retryable=True) from error


def _gone(message: str) -> StoreError:
    return StoreError("a map cannot be read")
