"""Files on any file system, by URI: pyarrow's own (local, s3, gs, abfs, hdfs), fsspec's else.

Credentials are found as these packages find them, in the environment or their own files. Errors
name the place, and say what to do.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from blemish.errors import BlemishError, ConfigError
from blemish.extras import require
from blemish.files import write_whole

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two letters at least: C:\ is a drive
# Where a file comes to be when it is closed, whole.
_OBJECT_STORES = frozenset({"s3", "s3a", "gcs", "gs", "abfs", "abfss", "az", "azure", "adl"})
UNFINISHED = "_unfinished-"  # readers of Parquet folders leave out what begins so


@dataclass(frozen=True)
class Place:
    """A file, or a folder, that need not be there.

    Attributes:
        name: as its user calls it, and as `place_of` finds it again, with the same file system.
        filesystem: of pyarrow. path: in it, without a slash at its end.
        is_local: whether `path` is one of this machine.
        root: what stands for `base` at the beginning of a path, to make it a URI.
    """

    name: str
    filesystem: Any
    path: str
    is_local: bool
    root: str = ""
    base: str = ""

    @property
    def whole(self) -> str:
        """Its name for another process, which may have another working folder."""
        return self.path if self.is_local else self.name

    def at(self, path: str) -> Place:
        """Another file of the same file system."""
        name = self.root + path.removeprefix(self.base) if self.root else path
        return replace(self, name=name, path=path)

    def __truediv__(self, name: str) -> Place:
        """What lies in a folder under this name."""
        return replace(self, name=f"{self.name.rstrip('/')}/{name}", path=f"{self.path}/{name}")

    @property
    def is_object_store(self) -> bool:
        """Whether a file there comes to be when it is closed, whole."""
        kind = self.filesystem.type_name.removeprefix("py::fsspec+")
        return not _OBJECT_STORES.isdisjoint(re.split(r"\W+", kind))


def scheme_of(name: str) -> str:
    """ "s3" of s3://bucket/key; "" of a path.

    Example:
        >>> scheme_of("s3://bucket/key"), scheme_of("C:/parts"), scheme_of("parts/a.png")
        ('s3', '', '')
    """
    found = _SCHEME.match(name)
    return found[1].lower() if found else ""


def place_of(name: str | Path, filesystem: Any = None) -> Place:
    """The place of a path or a URI.

    Args: filesystem: of pyarrow or fsspec, in which `name` is a path; None = by the URI's scheme.
    Raises: ConfigError for a scheme that nobody knows, or of which the package is missing.
    """
    require("pyarrow", purpose=f"reach {name}")
    from pyarrow import fs

    text = os.fspath(name)
    if filesystem is not None:
        known = _of_pyarrow(filesystem)
        return Place(text, known, _trimmed(text), isinstance(known, fs.LocalFileSystem))
    scheme = scheme_of(text)
    if scheme in ("", "file"):
        path = str(Path(text.removeprefix("file://")).absolute())
        return Place(text, fs.LocalFileSystem(), path, True)
    begin, _, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    # A glob's ? and [ are none of a URI's: the file system is that of its beginning.
    root = f"{begin}://{authority}"
    found, base = _by_authority(scheme, root)
    return Place(text, found, _trimmed(base + slash + path), False, root, base)


def _trimmed(path: str) -> str:
    return path.rstrip("/") or "/"


def _of_pyarrow(filesystem: Any) -> Any:
    from pyarrow import fs

    if isinstance(filesystem, fs.FileSystem):
        return filesystem
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem))


@cache
def _by_authority(scheme: str, uri: str) -> tuple[Any, str]:
    import pyarrow
    from pyarrow import fs

    try:
        found, base = fs.FileSystem.from_uri(f"{uri}/x")
        return found, base.removesuffix("/x")
    except pyarrow.ArrowInvalid:
        pass  # it does not know the scheme, or this form of it
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{uri}: {_in_short(error)}") from error
    require("fsspec", purpose=f"reach {uri}")
    import fsspec

    if scheme not in fsspec.available_protocols():
        raise ConfigError(
            f"{uri}: no file system is known by {scheme}://; known are s3, gs, abfs, hdfs, "
            "those of the fsspec packages that are installed, and paths"
        )
    try:
        other, base = fsspec.core.url_to_fs(f"{uri}/x")
    except ImportError as error:
        raise ConfigError(
            f"{uri}: {_in_short(error)}, where blemish and its workers run"
        ) from error
    except Exception as error:
        raise ConfigError(f"{uri}: {_in_short(error)}") from error
    return _of_pyarrow(other), str(base).removesuffix("/x")


def told(place: Place | str, error: BaseException, kind: Callable[[str], BlemishError], what: str
         ) -> BlemishError:  # fmt: skip
    """The one wording for what a file system refuses.

    Args: what: "be read", "be written".
    """
    name = place if isinstance(place, str) else place.name
    return kind(f"{name}: cannot {what} ({_in_short(error)})")


def _in_short(error: BaseException) -> str:
    """The first line of what a file system says, without what its library adds for its makers."""
    said = getattr(error, "strerror", None) or str(error)
    line = next((line.strip() for line in str(said).splitlines() if line.strip()), "")
    line = re.sub(r"\. Detail: .*$|^\[Errno \d+\] ", "", line)
    return line.rstrip(".") or type(error).__name__


def read_bytes(place: Place, *, limit: int, error: Callable[[str], BlemishError]) -> bytes:
    """The content of a file of at most `limit` bytes. Raises: `error`."""
    try:
        with place.filesystem.open_input_file(place.path) as file:
            size = file.size()
            if size > limit:
                raise error(f"{place.name}: is {size:,} bytes, and at most {limit:,} are read")
            return bytes(file.read())
    except BlemishError:
        raise
    except Exception as problem:  # packages of fsspec raise what they like
        raise told(place, problem, error, "be read") from problem


def write_bytes(place: Place, content: Any, *, error: Callable[[str], BlemishError]) -> None:
    """A file, whole or not at all. Missing folders are made.

    Args: content: bytes, or a buffer of pyarrow.
    Raises: `error`; OutputError of a local place.
    """
    if place.is_local:
        pieces = [memoryview(content)]
        write_whole(place.path, pieces, picture=True)  # type: ignore[arg-type]
        return
    files, parent = place.filesystem, place.path.rpartition("/")[0]
    try:
        if place.is_object_store:
            _write(files, place.path, content)
            return
        files.create_dir(parent, recursive=True)
        draft = f"{parent}/{UNFINISHED}{secrets.token_hex(8)}"
        _write(files, draft, content)
        if files.get_file_info(place.path).is_file:
            files.delete_file(place.path)
        files.move(draft, place.path)
    except Exception as problem:
        raise told(place, problem, error, "be written") from problem


def _write(files: Any, path: str, content: Any) -> None:
    with files.open_output_stream(path) as file:
        file.write(content)
