"""The rows of `blemish watch`: on disk at once, and of each only a hash in memory.

The files are those of `journal`, without the table: predictions.jsonl grows as long as there are
pictures. A row has in addition

    time        of the picture, ISO 8601 in UTC: when the file was last written, or the camera gave
                it; of a video, seconds since its start
    scored_at   when it was judged, ISO 8601 in UTC
    verdict     "good", "defect" or "unsure"; "" where there is no threshold
    sorted      where the picture was put, in the folder of the rows; "" where it was not
    bytes, written_ns   of a file: its length, and when it was last written
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from blemish.config import parse_json, short
from blemish.data.arrivals import Stamp, Taken
from blemish.errors import OutputError
from blemish.files import ROWS_BYTES, end_last_row, open_regular
from blemish.report.journal import Journal, Row

_LONGEST = 2**24  # bytes of a row


class Ledger(Journal):
    """A journal that any number of rows go through.

    Attributes:
        taken: the files that have a row.
        names: the frames of a video that have one.
        count: of the rows of earlier runs.
        last: the latest row, of this or an earlier run; None where there is none.
    """

    def __init__(
        self, folder: Path, *, artifact: Path, precision: str, ways: Mapping[str, str]
    ) -> None:
        self.taken = Taken()
        self.count = 0
        self.last: Row | None = None
        more = {"folder": "", **ways}  # paths are absolute
        super().__init__(folder, artifact=artifact, precision=precision, ways=more, resume=True)

    def keep(self, row: Row) -> None:
        self.last = row
        self.taken.add(row["path"], stamp_of(row))

    def recover(self, place: Path) -> None:
        end_last_row(place)
        with open_regular(place, limit=ROWS_BYTES, error=OutputError) as file:
            number = 0
            while line := file.readline(_LONGEST):
                number += 1
                try:
                    self.keep(_read(line))
                except (ValueError, RecursionError) as error:
                    reason = f"{place}: line {number} is damaged ({error}); name another folder"
                    raise OutputError(reason) from error
            self.count = number


def stamp_of(row: Row) -> Stamp:
    """Of the file that a row is of; (0, 0) where it is of a frame."""
    return Stamp(row.get("bytes", 0), row.get("written_ns", 0))


def _read(line: bytes) -> Row:
    """Raises: ValueError for what is no row."""
    row = parse_json(line)
    if not isinstance(row, dict) or not isinstance(row.get("path"), str):
        raise ValueError(f"{short(row)} is no row")
    whole = [row.get(key, 0) for key in ("bytes", "written_ns")]
    if not all(type(value) is int and value >= 0 for value in whole):
        raise ValueError("bytes and written_ns are to be whole numbers")
    if not isinstance(row.get("sorted", ""), str):
        raise ValueError("sorted is to be a text")
    return row
