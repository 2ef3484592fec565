"""The rows of `blemish predict` in a folder: written one by one, read back, gone on from.

    run.json             what the rows were made with
    predictions.jsonl    a row per picture, in the order in which they were scored; one that is
                         broken has an "error"
    predictions.csv      the same rows as a table, written at the end

A row is written when its files are (`predictions`), so that whatever a killed run leaves behind can
be gone on from. Anybody may have changed the files meanwhile: what is no row is refused.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from blemish import config, interrupts
from blemish.config import Count, Finite, Fraction, Length, Matching, Range, parse_json
from blemish.data.folder import place_of
from blemish.detector.sources import batch_begun
from blemish.errors import ArtifactError, BlemishError, OutputError
from blemish.files import (
    ARTIFACT_BYTES,
    DOCUMENT_BYTES,
    ROWS_BYTES,
    append_whole,
    cannot_write,
    check_writable,
    end_last_row,
    locked,
    open_regular,
    read_whole,
    write_whole,
)
from blemish.types import Failure, Prediction

_ROWS, _RUN, _TABLE = "predictions.jsonl", "run.json", "predictions.csv"
_MADE_WITH = {  # what a run was made with, in words
    "artifact": "another artifact",
    "precision": "another precision",
    "category": "another category",
    "adapt": "another --adapt",
    "scales": "other --scales",
    "threshold": "another --threshold",
    "region_threshold": "another --region-threshold",
    "smallest_region": "another --smallest-region",
    "save": "another --save",
    "area": "another --roi or --ignore",
    "folder": "another working folder",
    "watched": "another folder or camera",
}
# Of the keys that earlier versions did not write, what they stood for.
_EARLIER = {
    **dict.fromkeys(("category", "adapt", "scales", "threshold"), ""),
    **{"region_threshold": "", "smallest_region": "", "save": "overlays", "area": ""},
}
_BREAKS = frozenset("\x7f\x85\u2028\u2029")  # what else some programs take for the end of a line
# Of the crop, as fractions of the picture's width and height.
_BOX = ("box_x", "box_y", "box_width", "box_height")
_COLUMNS = (
    *("path", "score", "label", "threshold", "p_value", "regions", "region_area", "votes", *_BOX),
    *("adapted", "category", "category_assigned", "height", "width", "digest", "notes"),
    *("overlay", "saliency", "mask", "map", "tiff", "error"),
)

Row = dict[str, Any]
_Side = Annotated[int, Range(1, 2**31)]
_Overlay = Annotated[str, Matching(r"(overlays/[\w.-]+)?", "a file in overlays/")]
_Share = Annotated[float, Range(0, 1, above=True)]


@dataclass(frozen=True, kw_only=True)
class _Failed:
    """As `types.Failure` writes it."""

    path: str
    error: str
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Region:
    """As `regions.Region` writes it, and `row_of` its run lengths."""

    box: Annotated[tuple[Count, ...], Length(4, 4)]
    area: Annotated[int, Range(1, 2**53)]
    share: _Share
    centroid: Annotated[tuple[Finite, ...], Length(2, 2)]
    peak: Finite
    mean: Finite
    polygon: tuple[Annotated[tuple[Count, ...], Length(2, 2)], ...]
    runs: Annotated[str, Matching(r"[0-9]{1,18}( [0-9]{1,18})*", "whole numbers between blanks")]
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """As `types.Prediction` writes it, and the files beside it. Rows of earlier versions lack
    some."""

    path: str
    score: Finite
    threshold: Finite | None
    label: Annotated[int, Range(0, 1)] | None
    height: _Side
    width: _Side
    digest: str
    category: str
    category_assigned: bool = False
    adapted: bool = False
    votes: Fraction | None = None
    box: Annotated[tuple[Finite, ...], Length(4, 4)] | None = None
    notes: tuple[str, ...] = ()
    p_value: _Share | None = None
    region_threshold: Finite | None = None
    regions: tuple[_Region, ...] | None = None
    overlay: _Overlay = ""
    saliency: _Overlay = ""
    mask: Annotated[str, Matching(r"(masks/[\w.-]+)?", "a file in masks/")] = ""
    map: Annotated[str, Matching(r"(maps/[\w.-]+)?", "a file in maps/")] = ""
    tiff: Annotated[str, Matching(r"(maps/[\w.-]+)?", "a file in maps/")] = ""
    other: Mapping[str, Any] = field(default_factory=dict)


def holds_rows(folder: Path) -> bool:
    """Whether there are rows in a folder that can be gone on from."""
    return (folder / _ROWS).exists()


def row_of(result: Prediction | Failure) -> Row:
    """The row of a picture; each of its regions has its `runs` (as of `regions.Region`) as one text
    with blanks between the numbers, a thousand of which take little room."""
    row = result.to_dict()
    if isinstance(result, Prediction):
        for told, region in zip(row["regions"] or (), result.regions or (), strict=True):
            told["runs"] = " ".join(map(str, region.runs))
    return row


def runs_of(region: Mapping[str, Any]) -> list[int]:
    """The run lengths of a region of a row."""
    return [int(length) for length in region["runs"].split()]


def read_row(line: bytes) -> Row:
    """A row of predictions.jsonl, as it stands there.

    Raises: ValueError for what is no row, which says what is wrong with it.
    """
    row = parse_json(line)
    if not isinstance(row, dict):
        raise ValueError(f"{config.short(row)} is no row")
    try:
        config.from_dict(_Failed if "error" in row else _Scored, row, strict=True)
    except BlemishError as error:
        raise ValueError(str(error)) from error
    for told, limit in (("label", "threshold"), ("regions", "region_threshold")):
        if row.get(told) is not None and row.get(limit) is None:
            raise ValueError(f"{told} without a {limit}")
    for region in row.get("regions") or ():
        made, pixels = sum(runs_of(region)), row["height"] * row["width"]
        if made != pixels:
            raise ValueError(f"the runs of a region make {made} of {pixels} pixels")
    return row


class Journal:
    """The rows of one `blemish predict`, in memory and, if there is a folder, on disk as they come.

    Args:
        folder: where the rows go; None = nowhere.
        artifact: the artifact's file; rows of another one are never added to.
        precision: that the scores are computed in.
        ways: how the pictures are judged, by name: rows made in another way are never added to.
        resume: go on in a folder that has rows already.
    Attributes:
        rows: those of an earlier run first. A row has "path", and "score" or "error".
    Raises: OutputError when the folder cannot be written, or has rows and these are not to be or
        cannot be gone on from.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        artifact: Path,
        precision: str,
        ways: Mapping[str, str],
        resume: bool,
    ) -> None:
        self.folder = folder
        self.rows: list[Row] = []
        self._file: io.RawIOBase | None = None
        self._open = ExitStack()
        if folder is None:
            return
        with open_regular(artifact, limit=ARTIFACT_BYTES, error=ArtifactError) as file:
            run = {"artifact": hashlib.file_digest(file, "sha256").hexdigest()}
        run |= {"precision": precision, "folder": str(Path.cwd()), **ways}
        place = folder / _ROWS
        check_writable(place)
        with ExitStack() as started:
            started.enter_context(locked(place))
            if place.exists():
                if not resume:
                    raise OutputError(
                        f"{folder}: holds predictions already; go on from them with --resume, "
                        "or name another folder"
                    )
                _check_same(folder, run)
                self.recover(place)
            else:
                write_whole(folder / _RUN, json.dumps(run, indent=2).encode())
            try:
                self._file = started.enter_context(place.open("ab", buffering=0))
            except OSError as error:
                raise cannot_write(place, error) from error
            self._open = started.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def remaining(self, pictures: Sequence[Path], batch_size: int) -> tuple[list[Path], int]:
        """The pictures to go on with, and how many of the first of them have a row already.

        These make up the batch that was interrupted, so that the scores of the others are to the
        bit what they would have been. Where the pictures are not those of the earlier run in its
        order, they are those without a row.
        """
        earlier = {place_of(Path(row["path"])): "error" not in row for row in self.rows}
        places = [place_of(picture) for picture in pictures]
        pairs = zip(pictures, places, strict=True)
        todo = [picture for picture, place in pairs if place not in earlier]
        done = len(pictures) - len(todo)
        if not todo or list(earlier) != places[:done]:
            return todo, 0
        again = batch_begun(earlier.values(), batch_size)
        return [*pictures[done - again : done], *todo], again

    @property
    def failures(self) -> list[Failure]:
        """The pictures that could not be scored."""
        broken = [row for row in self.rows if "error" in row]
        return [Failure(source=row["path"], reason=row["error"]) for row in broken]

    @property
    def scored(self) -> list[Row]:
        """The rows with a score, the highest first."""
        scored = [row for row in self.rows if "error" not in row]
        return sorted(scored, key=lambda row: -row["score"])

    def add(self, row: Row) -> None:
        """Keep a row, and have it on its way to the disk when this returns; an interrupt waits
        until it is in both places. Raises: OutputError."""
        with interrupts.waiting() as came, came.whole():
            if self._file is not None and self.folder is not None:
                try:
                    append_whole(self._file, json.dumps(row, allow_nan=False).encode() + b"\n")
                except OSError as error:
                    raise cannot_write(self.folder / _ROWS, error) from error
            self.keep(row)
        if came.number:
            raise interrupts.Interrupted(number=came.number)

    def keep(self, row: Row) -> None:
        """Hold a row in memory."""
        self.rows.append(row)

    def recover(self, place: Path) -> None:
        """Take up the rows of an earlier run. Raises: OutputError for what is no row."""
        self.rows = _recovered(place)

    def write_table(self) -> None:
        """All rows as predictions.csv, if there is a folder. Raises: OutputError."""
        if self.folder is None:
            return
        text = io.StringIO()
        table = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for row in self.rows:
            box = dict(zip(_BOX, row.get("box") or (), strict=False))
            cells = {**row, **box, "notes": "; ".join(row.get("notes", ()))}
            if row.get("regions") is not None:
                cells["regions"] = len(row["regions"])
                cells["region_area"] = sum(region["share"] for region in row["regions"])
            table.writerow({name: cell(cells[name]) for name in _COLUMNS if name in cells})
        write_whole(self.folder / _TABLE, text.getvalue().encode("utf-8", "backslashreplace"))


def cell(value: Any) -> Any:
    """A value as a cell that is one line, and that no spreadsheet takes for a formula:
    predictions.jsonl has it as is.

    Example:
        >>> cell("=1+1"), cell("a\\rb"), cell(-0.5)
        ("'=1+1", 'a\\\\rb', -0.5)
    """
    if not isinstance(value, str):
        return value
    guarded = f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value
    return "".join(
        sign if sign not in _BREAKS and ord(sign) >= 32 else sign.encode("unicode_escape").decode()
        for sign in guarded
    )


def _check_same(folder: Path, run: Mapping[str, str]) -> None:
    """Raises: OutputError where the rows of a folder were made with anything else than these."""
    try:
        told = parse_json(read_whole(folder / _RUN, limit=DOCUMENT_BYTES, error=OutputError))
        earlier = {**_EARLIER, **told}
        other = [key for key, value in run.items() if earlier[key] != value]
    except (OutputError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutputError(
            f"{folder / _RUN}: does not say what the rows were made with; name another folder"
        ) from error
    if other:
        raise OutputError(
            f"{folder}: the predictions there were made with "
            f"{' and '.join(_MADE_WITH[key] for key in other)}; resume as they were made, "
            "or name another folder"
        )


def _recovered(place: Path) -> list[Row]:
    """The rows of an earlier run; half a row that a killed one has left is removed."""
    end_last_row(place)
    rows: list[Row] = []
    content = read_whole(place, limit=ROWS_BYTES, error=OutputError)
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            rows.append(read_row(line))
        except ValueError as error:
            reason = f"{place}: line {number} is damaged ({error}); name another folder"
            raise OutputError(reason) from error
    return rows
