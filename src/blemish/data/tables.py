"""Tables in CSV -> their rows, and one error for all rows that cannot be used."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from blemish.data.phrases import counted
from blemish.errors import DataError
from blemish.files import TABLE_BYTES, read_whole

_FAULTS_SHOWN = 10


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells without the space around them): the first line whatever it holds, then rows that hold some.

    Cells are divided by whichever of comma, semicolon and tab the first line has most of. A line "sep=;" before it,
    which Excel writes and reads, says so itself.

    Raises: DataError when the file cannot be read or is no CSV in UTF-8.
    """
    text = read_text(path)
    skipped = 0
    if told := re.match(r"sep=([,;\t])\r?\n", text, re.IGNORECASE):
        text, skipped = text[told.end() :], 1
    header = re.split(r"[\r\n]", text, maxsplit=1)[0]
    rows = csv.reader(
        io.StringIO(text, newline=""), delimiter=told[1] if told else max(",;\t", key=header.count)
    )
    try:
        for cells in rows:
            cells = [cell.strip() for cell in cells]
            if rows.line_num == 1 or any(cells):
                yield rows.line_num + skipped, cells
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num + skipped} is not CSV ({error})") from error


def first_line(path: Path) -> str:
    """The first line of a file in lower case, to tell by it what the file is; "" where it cannot be read."""
    try:
        if not path.is_file():  # a pipe would wait for a writer
            return ""
        with path.open("rb") as file:
            return file.readline(4096).decode("utf-8", "replace").lower()
    except OSError:
        return ""


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark, its line ends as they are. Raises: DataError."""
    content = read_whole(path, limit=TABLE_BYTES, error=DataError)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save the table as CSV in UTF-8") from error


def refuse(path: Path, faults: Sequence[str]) -> None:
    """Raises: DataError that lists the first of the faults ("line 3: …"), where there are any."""
    if faults:
        more = [f"and {len(faults) - _FAULTS_SHOWN} more"] if len(faults) > _FAULTS_SHOWN else []
        head = f"{path}: {counted(len(faults), 'row')} cannot be used:"
        raise DataError("\n  ".join([head, *faults[:_FAULTS_SHOWN], *more]))
