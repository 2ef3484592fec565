"""Labels: what reviewers say of pictures, and what that comes to.

A label is never changed. A reviewer's later label on a picture takes the place of the former; one
that is undone stays, marked, and the former counts again. What the labels of all reviewers come to
is written down with each change (`CONSENSUS`):

    every one that is sure says good    good
    every one that is sure says defect  defect, of the type and with the mask that came last
    they say both                       disagreed
    nobody is sure                      unsure
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import sqlalchemy as sql
from sqlalchemy import Connection, RowMapping
from sqlalchemy.dialects import postgresql, sqlite

from blemish.errors import ConfigError, ImageError
from blemish.images import decode_mask, sniff
from blemish.store.filters import check_id
from blemish.store.part import Part
from blemish.store.records import DISAGREED, Label, check_digest, check_name, now
from blemish.store.schema import CONSENSUS, LABELS, PREDICTIONS, stamp, time_of

_PLAIN = ("picture", "verdict", "defect", "reviewer", "prediction", "mask", "revealed")


class Labels(Part):
    """The part of a store that holds labels."""

    def add_label(self, label: Label) -> int:
        """Write a label, which is durable when this returns.

        Returns: its id.
        Raises: ConfigError for a prediction that is not there or of another picture, ImageError for
            a mask that is none of that picture.
        """
        mask = None if label.mask is None else _marked(label.mask)
        with self._database.writing() as connection:
            size = _size_of(connection, label)
            if mask is not None and size is not None and mask.shape != size:
                (height, width), (high, wide) = mask.shape, size
                raise ImageError("mask", f"is {height}×{width} pixels, its picture {high}×{wide}")
            self._hold_picture(connection, label.picture)
            values = {
                "picture": label.picture,
                "verdict": label.verdict,
                "defect": label.defect,
                "reviewer": label.reviewer,
                "time": stamp(label.time),
                "prediction": label.prediction,
                "undone": None,
                "masked": mask is not None and bool(mask.any()),
                "mask": None if mask is None or not mask.any() else _png(mask),
                "revealed": label.revealed,
            }
            adding = sql.insert(LABELS).values(values).returning(LABELS.c.id)
            id = connection.scalars(adding).one()
            _agree(connection, label.picture)
        return int(id)

    def undo_label(self, reviewer: str) -> Label | None:
        """Take a reviewer's last label back, and the one before the next time.

        Returns: it; None where the reviewer has none.
        """
        check_name("reviewer", reviewer)
        mine = sql.and_(LABELS.c.reviewer == reviewer, LABELS.c.undone.is_(None))
        last = sql.select(LABELS).where(mine).order_by(LABELS.c.id.desc()).limit(1)
        with self._database.writing() as connection:
            while (found := connection.execute(last).mappings().first()) is not None:
                self._hold_picture(connection, found["picture"])
                undone = sql.update(LABELS).where(mine, LABELS.c.id == found["id"])
                when = stamp(now())
                if connection.execute(undone.values(undone=when)).rowcount:
                    _agree(connection, found["picture"])
                    return replace(label_of(found), undone=time_of(when))
        return None

    def label(self, id: int) -> Label | None:
        """One label, with its mask; None where there is none of that id."""
        with self._database.reading() as connection:
            one = sql.select(LABELS).where(LABELS.c.id == check_id("label", id))
            found = connection.execute(one).mappings().first()
        return None if found is None else label_of(found)

    def labels(self, picture: str) -> list[Label]:
        """All that was said of a picture, the oldest first, also what was undone or replaced."""
        mine = LABELS.c.picture == check_digest(picture)
        with self._database.reading() as connection:
            ordered = sql.select(LABELS).where(mine).order_by(LABELS.c.id)
            return [label_of(found) for found in connection.execute(ordered).mappings()]

    def current(self, picture: str) -> dict[str, Label]:
        """What each reviewer says of a picture now, by reviewer, the latest last."""
        return self.current_of([picture]).get(picture, {})

    def current_of(self, pictures: Sequence[str]) -> dict[str, dict[str, Label]]:
        """The same of several pictures, by picture; those without labels are left out."""
        found: dict[str, dict[str, Label]] = {}
        with self._database.reading() as connection:
            for start in range(0, len(pictures), 500):
                some = [check_digest(one) for one in pictures[start : start + 500]]
                where = (LABELS.c.picture.in_(some), LABELS.c.undone.is_(None))
                rows = connection.execute(sql.select(LABELS).where(*where).order_by(LABELS.c.id))
                for row in rows.mappings():
                    of_one = found.setdefault(row["picture"], {})
                    of_one.pop(row["reviewer"], None)
                    of_one[row["reviewer"]] = label_of(row)
        return found

    def _hold_picture(self, connection: Connection, picture: str) -> None:
        """Have all others wait that label the same picture, until the transaction ends."""
        insert = (sqlite if self._database.is_sqlite else postgresql).insert(CONSENSUS)
        empty = {"picture": picture, "verdict": "", "defect": "", "masked": False}
        row = insert.values(**empty, reviewers=0, first=0, last=0)
        same = {"picture": row.excluded.picture}
        connection.execute(row.on_conflict_do_update(index_elements=["picture"], set_=same))


def label_of(found: RowMapping) -> Label:
    """A row of labels as a record."""
    undone = found["undone"]
    return Label(
        id=found["id"],
        time=time_of(found["time"]),
        undone=None if undone is None else time_of(undone),
        **{name: found[name] for name in _PLAIN},
    )


def _size_of(connection: Connection, label: Label) -> tuple[int, int] | None:
    """(H, W) of the labelled picture; None where nobody predicted it. Raises: ConfigError."""
    columns = sql.select(PREDICTIONS.c.picture, PREDICTIONS.c.height, PREDICTIONS.c.width)
    if label.prediction is None:
        mine = columns.where(PREDICTIONS.c.picture == label.picture)
        found = connection.execute(mine.order_by(PREDICTIONS.c.id.desc()).limit(1)).first()
    else:
        one = PREDICTIONS.c.id == check_id("prediction", label.prediction)
        found = connection.execute(columns.where(one)).first()
        if found is None or found.picture != label.picture:
            raise ConfigError(
                f"prediction {label.prediction}: is "
                f"{'not there' if found is None else 'of another picture'}; label without it"
            )
    return None if found is None else (found.height, found.width)


def outcome(labels: Sequence[Label]) -> tuple[str, str]:
    """What the labels of several reviewers, one of each, come to: verdict and type of the defect;
    "" where there are none. The latest of them comes last."""
    sure = {label.verdict for label in labels} - {"unsure"}
    if len(sure) == 2:
        return DISAGREED, ""
    verdict = next(iter(sure), "unsure" if labels else "")
    types = [label.defect for label in labels if label.defect]
    return verdict, types[-1] if types and verdict == "defect" else ""


def _agree(connection: Connection, picture: str) -> None:
    """Write down what the labels on a picture, which is held, come to."""
    counting = sql.select(LABELS).where(LABELS.c.picture == picture, LABELS.c.undone.is_(None))
    rows = connection.execute(counting.order_by(LABELS.c.id)).mappings()
    by_reviewer: dict[str, Label] = {}
    for row in rows:
        by_reviewer.pop(row["reviewer"], None)
        by_reviewer[row["reviewer"]] = label_of(row)
    labels = list(by_reviewer.values())
    verdict, defect = outcome(labels)
    times = [stamp(label.time) for label in labels] or [0]
    values = {
        "verdict": verdict,
        "defect": defect,
        "masked": any(label.mask is not None for label in labels),
        "reviewers": len(labels),
        "first": min(times),
        "last": max(times),
    }
    one = sql.update(CONSENSUS).where(CONSENSUS.c.picture == picture)
    connection.execute(one.values(values))


def _marked(mask: bytes) -> np.ndarray:
    """What a mask marks, bool H×W. Raises: ImageError for anything but a PNG of 0 and 255."""
    if sniff(mask[:132]) != "png":
        raise ImageError("mask", "is no PNG")
    return decode_mask(mask, name="mask")


def _png(marked: np.ndarray) -> bytes:
    """As a PNG of our own, so that nothing of what was sent stays but its pixels."""
    done, coded = cv2.imencode(".png", marked.view(np.uint8) * 255)
    assert done
    return bytes(coded)
