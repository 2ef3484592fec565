"""Writing files so that a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from blemish.errors import OutputError


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write to a temporary file beside `path`, fsync, rename; missing folders are made.

    Raises: OutputError if it cannot be written (no permission, disk full, a folder of that name, …).
    """
    path = Path(path)
    # Not tempfile: its files are private to the user, and results are made to be handed on.
    temporary = path.parent / f".blemish-{secrets.token_hex(8)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def cannot_write(path: str | Path, error: OSError) -> OutputError:
    """The one wording for a file that cannot be written."""
    return OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another place")
