"""Where pictures lie among others, as encoders see them: a descriptor for each prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sql
from sqlalchemy import Connection

from blemish.store.descriptor import Descriptor
from blemish.store.part import Part
from blemish.store.records import NAME, Scored, storable
from blemish.store.schema import DESCRIPTORS, LABELS, PREDICTIONS

_AT_ONCE = 500  # values in one statement


class Descriptors(Part):
    """The part of a store that reads them. They are written with the predictions, and go with
    them."""

    def descriptors(self, ids: Sequence[int]) -> dict[int, Descriptor]:
        """Those of predictions, by their ids, of those that have one."""
        found: dict[int, Descriptor] = {}
        with self._database.reading() as connection:
            for start in range(0, len(ids), _AT_ONCE):
                some = DESCRIPTORS.c.prediction.in_(ids[start : start + _AT_ONCE])
                for row in connection.execute(sql.select(DESCRIPTORS).where(some)).mappings():
                    found[row["prediction"]] = Descriptor(row["space"], bytes(row["content"]))
        return found

    def decided(
        self, model: str, after: int, limit: int = 1000
    ) -> list[tuple[int, Descriptor | None]]:
        """The labels that call a picture good or a defect: the id, which rises, and the descriptor
        of the picture, as the model predicted it last.

        Args: after: the id of the last label of before. limit: >= 1, of the labels.
        """
        last = sql.select(sql.func.max(PREDICTIONS.c.id)).where(
            PREDICTIONS.c.picture == LABELS.c.picture, PREDICTIONS.c.model == storable(model, NAME)
        )
        where = (LABELS.c.id > after, LABELS.c.undone.is_(None), LABELS.c.verdict != "unsure")
        labels = (
            sql.select(LABELS.c.id, last.correlate(LABELS).scalar_subquery().label("prediction"))
            .where(*where)
            .order_by(LABELS.c.id)
            .limit(limit)
        )
        with self._database.reading() as connection:
            pairs = [(row.id, row.prediction) for row in connection.execute(labels)]
        known = self.descriptors([one for _, one in pairs if one is not None])
        return [(id, known.get(one)) for id, one in pairs]


def write(connection: Connection, rows: Mapping[str, Scored], ids: Mapping[str, int]) -> None:
    """Write the descriptors of predictions that are new. Args: rows: by their keys. ids: of the
    new ones, by theirs."""
    values = [
        {"prediction": id, "space": one.space, "content": one.content}
        for key, id in ids.items()
        if (one := rows[key].descriptor) is not None
    ]
    if values:
        connection.execute(sql.insert(DESCRIPTORS), values)
