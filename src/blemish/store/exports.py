"""Predictions and labels for others: a table, COCO, a data set that blemish itself reads.

FOLDER/good/DIGEST.png
FOLDER/DEFECT TYPE/DIGEST.png
FOLDER/ground_truth/DEFECT TYPE/DIGEST_mask.png    where one was drawn
"""

from __future__ import annotations

import csv
import io
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from blemish.data.names import compact, mask_owner, may_be_good, meaning
from blemish.errors import OutputError, StoreError
from blemish.files import cannot_write, write_whole
from blemish.images import decode_mask
from blemish.regions import find_regions
from blemish.report.coco import write_coco
from blemish.report.journal import cell
from blemish.store.filters import Filters, conditions
from blemish.store.labels import Labels
from blemish.store.media import Media
from blemish.store.predictions import Predictions, row_of
from blemish.store.records import Label, Row
from blemish.store.reviewing import last_of

COLUMNS = (
    *("id", "time", "model", "version", "source", "name", "category", "score", "threshold"),
    *("label", "p_value", "reviewed", "defect", "height", "width", "picture", "category_assigned"),
    *("adapted", "votes", "notes"),
)
_UNNAMED = "defect"  # a defect without a type
_ROWS = 1000  # of a table that are made at once


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a data-set folder holds.

    Attributes:
        good: how many good pictures. defects: of each type how many pictures.
        folders: what the folder of each type is called. masks: how many pictures have one.
        left_out: how many reviewed pictures are not in it, by reason: "unsure", "disagreed", or
            "deleted", where the picture is not kept.
    """

    good: int
    masks: int
    defects: dict[str, int] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


class Exports(Predictions, Labels, Media):
    """The part of a store that writes files for others."""

    def export_csv(self, path: str | Path, **filters: Unpack[Filters]) -> Path:
        """Predictions as a table, the oldest first, with what their reviewers say. Its cells are
        no formulas to a spreadsheet. Raises: OutputError."""
        return write_whole(path, _table(self.each_prediction(**filters)))

    def export_coco(
        self, path: str | Path, *, predicted: bool = False, **filters: Unpack[Filters]
    ) -> Path:
        """The masks that reviewers drew, as COCO JSON, a category for each type of defect; pictures
        that they call good have none. Or the regions that were `predicted`.

        Pictures are named by their digests, as `export_folder` and the media are. Those that
        reviewers disagree on, or are unsure of, are left out, as is a defect without a mask.

        Raises: OutputError.
        """
        if predicted:
            rows = self.each_prediction(regions=True, **filters)
            found = ({**row.to_dict(), "file_name": self._name(row)} for row in rows)
            return write_coco(Path(path), found)
        reviewed = [row for row in self._reviewed(filters) if row.reviewed in ("good", "defect")]
        kinds = sorted({row.defect or _UNNAMED for row in reviewed if row.reviewed == "defect"})
        return write_coco(Path(path), self._marked(reviewed), kinds=kinds or [_UNNAMED])

    def export_folder(self, folder: str | Path, **filters: Unpack[Filters]) -> Exported:
        """The reviewed pictures as a data set that `fit`, `evaluate` and `data check` read, whole
        or not at all. Pictures whose reviewers disagree or are unsure are left out.

        Args: folder: a new one, or an empty one. filters: as `Filters`.
        Raises: OutputError where it cannot be written or holds something.
        """
        folder = Path(folder)
        beside = folder.parent / f".{folder.name[:100]}-{secrets.token_hex(4)}.tmp"
        try:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise OutputError(f"{folder}: holds something already; name a new folder")
            beside.mkdir(parents=True)
            try:
                done = self._fill(beside, filters)
                with suppress(FileNotFoundError):
                    folder.rmdir()
                beside.rename(folder)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        except (OSError, ValueError) as error:
            raise cannot_write(folder, error) from error
        return done

    def _fill(self, folder: Path, filters: Filters) -> Exported:
        good = masks = 0
        defects: dict[str, int] = {}
        folders: dict[str, str] = {}
        left_out: dict[str, int] = {}
        for row in self._reviewed(filters):
            place = self.picture(row.picture)
            if row.reviewed not in ("good", "defect") or place is None:
                why = "deleted" if row.reviewed in ("good", "defect") else row.reviewed
                left_out[why] = left_out.get(why, 0) + 1
                continue
            if row.reviewed == "good":
                good += 1
                _copy(place, folder / "good")
                continue
            kind = row.defect or _UNNAMED
            name = folders.setdefault(kind, _folder_of(kind, folders.values()))
            defects[kind] = defects.get(kind, 0) + 1
            _copy(place, folder / name)
            if (mask := self._mask(row.picture)) is not None:
                masks += 1
                there = folder / "ground_truth" / name
                there.mkdir(parents=True, exist_ok=True)
                (there / f"{row.picture}_mask.png").write_bytes(mask)
        return Exported(good=good, masks=masks, defects=defects, folders=folders, left_out=left_out)

    def _reviewed(self, filters: Filters) -> list[Row]:
        """Every reviewed picture as it was predicted last, the oldest first."""
        said = filters.get("reviewed")
        asked: Filters = {**filters, "reviewed": True if said is None else said}
        where = conditions(asked)
        with self._database.reading() as connection:
            rows = [row_of(found) for found in last_of(connection, where)]
        return [row for row in rows if row.reviewed]

    def _mask(self, picture: str) -> bytes | None:
        """The mask that was drawn last, by those who call it a defect now."""
        labels: list[Label] = sorted(self.current(picture).values(), key=lambda one: one.id or 0)
        masks = [label.mask for label in labels if label.mask is not None]
        return masks[-1] if masks else None

    def _marked(self, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
        """Rows as `report.coco` takes them, with what is marked in place of what was predicted."""
        for row in rows:
            mask = self._mask(row.picture) if row.reviewed == "defect" else None
            if row.reviewed == "defect" and mask is None:
                continue
            regions = [] if mask is None else _regions_of(mask, row.defect or _UNNAMED)
            size = {"width": row.width, "height": row.height}
            yield {**size, "path": "", "file_name": self._name(row), "regions": regions}

    def _name(self, row: Row) -> str:
        """What a picture's file is called."""
        place = self.picture(row.picture)
        return row.picture if place is None else place.name


def _table(rows: Iterable[Row]) -> Iterator[bytes]:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    names = {one.name for one in fields(Row)} - {"notes", "time", "regions"}
    for number, row in enumerate(rows, start=1):
        values = {name: getattr(row, name) for name in COLUMNS if name in names}
        values |= {"time": row.time.isoformat(), "notes": "; ".join(row.notes)}
        table.writerow([cell(values[name]) for name in COLUMNS])
        if number % _ROWS == 0:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode()


def _regions_of(mask: bytes, kind: str) -> list[dict[str, Any]]:
    """The connected parts of a mask, as a journal has regions, without scores."""
    marked = decode_mask(mask, name="mask")
    height, width = marked.shape
    found = find_regions(marked.astype(np.float32), 0.5, (height, width))
    return [
        {
            "box": list(region.box),
            "area": region.area,
            "runs": " ".join(map(str, region.runs)),
            "kind": kind,
        }
        for region in found
    ]


def _folder_of(kind: str, taken: Iterable[str]) -> str:
    """A name for the folder of a type of defects: its own as far as that is a plain name that says
    neither that its pictures are good nor that they are masks, and no other has it.

    Example:
        >>> _folder_of("Scratch, deep", []), _folder_of("../good", []), _folder_of("a", ["A"])
        ('Scratch_deep', 'defect_1', 'defect_2')
    """
    plain = re.sub(r"[^\w-]+", "_", kind.encode("ascii", "ignore").decode()).strip("_-")[:60]
    others = {compact(name) for name in taken}
    says = meaning(plain) in ("", "bad") and not may_be_good(plain) and mask_owner(plain) is None
    if compact(plain) and re.search("[A-Za-z]", plain) and says and compact(plain) not in others:
        return plain
    return f"defect_{len(others) + 1}"


def _copy(place: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(place, folder / place.name)
    except FileNotFoundError as error:
        raise StoreError("a picture was deleted meanwhile; try again", retryable=True) from error
