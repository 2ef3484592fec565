"""What the parts of a store share."""

from __future__ import annotations

from pathlib import Path

from blemish.store.database import Database


class Part:
    """A part of a store.

    Attributes:
        folder: of the media.
    """

    _database: Database
    folder: Path
