"""Descriptors: written with predictions, read by their ids, and gone with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sql
from alembic import command
from alembic.config import Config
from store_parts import digest

from blemish.errors import ConfigError
from blemish.store import Descriptor, Label, Scored, Spool, Store
from blemish.store.migrating import MIGRATIONS
from blemish.store.predictions import _values
from blemish.store.records import now
from blemish.store.schema import DESCRIPTORS, PREDICTIONS
from blemish.types import Prediction

SPACE = "0123456789abcdef" * 2
Make = Callable[..., Scored]


def described(*numbers: float, space: str = SPACE) -> Descriptor:
    return Descriptor.of(space, numbers)


def test_they_come_back_as_they_were_rounded(store: Store, scored: Make) -> None:
    given = np.random.default_rng(0).normal(size=32)
    rows = [scored(0, descriptor=Descriptor.of(SPACE, given)), scored(1)]
    first, second = store.add_predictions(rows)
    found = store.descriptors([first, second, 99])
    assert list(found) == [first]
    assert found[first].space == SPACE
    assert found[first].numbers == pytest.approx(given, rel=1e-3)
    assert len(found[first].content) == 64
    # Written again under its key, a prediction stays as it was, descriptor and all.
    again = Scored(**{**vars(rows[0]), "descriptor": described(1.0)})
    assert store.add_predictions([again, again]) == [first, first]
    assert store.descriptors([first]) == found


def test_of_a_prediction() -> None:
    given = {"source": "x.png", "score": 1.0, "threshold": None, "label": None, "size": (8, 8)}
    one = Prediction(
        **given,  # type: ignore[arg-type]
        anomaly_map=np.zeros((2, 2), np.float32),
        digest=digest(1),
        descriptor=np.array([0.5, -0.25], np.float32),
    )
    kept = Scored.of(one, model="part", version="1", space=SPACE).descriptor
    assert kept == described(0.5, -0.25)
    assert Scored.of(one, model="part", version="1").descriptor is None


def test_they_wait_with_their_prediction(scored: Make, tmp_path: Path) -> None:
    """In the spool, while the database is gone; lines of before have none."""
    with Store.open(None, tmp_path) as store:
        waiting = json.dumps(scored(1, descriptor=described(1.0, 2.0)).to_dict())
        before = scored(2).to_dict()
        del before["descriptor"]
        (tmp_path / "waiting.jsonl").write_text(f"{waiting}\n{json.dumps(before)}\n")
        with Spool(store) as spool:
            assert spool.flush() == 0
            assert spool.damaged == 0
        first, second = (row.id for row in store.predictions(order="oldest"))
        assert store.descriptors([first, second]) == {first: described(1.0, 2.0)}


def test_they_go_with_their_prediction(store: Store, scored: Make) -> None:
    old = now() - timedelta(days=9)
    rows = [scored(at, descriptor=described(at), time=old) for at in range(3)]
    ids = store.add_predictions([*rows, scored(3, descriptor=described(3.0))])
    store.add_label(Label(picture=digest(1), verdict="good", reviewer="Ada"))
    assert store.retain(days=5).predictions == 2
    with store._database.reading() as connection:
        left = set(connection.scalars(sql.select(DESCRIPTORS.c.prediction)))
    assert left == {ids[1], ids[3]}


def test_pictures_that_people_have_decided_on(store: Store, scored: Make) -> None:
    store.add_predictions([scored(at, descriptor=described(at)) for at in range(4)])
    store.add_predictions([scored(4), scored(1, descriptor=described(10.0))])
    store.add_predictions([scored(2, model="other", descriptor=described(20.0))])
    labels = [
        store.add_label(Label(picture=digest(number), verdict=verdict, reviewer="Ada"))
        for number, verdict in ((1, "good"), (2, "defect"), (3, "unsure"), (4, "good"), (0, "good"))
    ]
    store.undo_label("Ada")
    wanted = [(labels[0], described(10.0)), (labels[1], described(2.0)), (labels[3], None)]
    assert store.decided("part", 0) == wanted
    assert store.decided("part", labels[0]) == wanted[1:]
    assert store.decided("part", 0, limit=1) == wanted[:1]
    assert store.decided("part", labels[3]) == []


def test_a_store_of_before_is_brought_up_to_date(
    url: str | None, scored: Make, tmp_path: Path
) -> None:
    file = tmp_path / "blemish.sqlite"
    where = sql.make_url(url or f"sqlite:///{file}")
    engine = sql.create_engine(where.set(drivername="postgresql+psycopg") if url else where)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(sql.insert(PREDICTIONS), [{"id": 7, **_values(scored(1))}])
    engine.dispose()
    with Store.open(url, tmp_path) as store:
        assert [row.id for row in store.predictions()] == [7]
        assert store.descriptors([7]) == {}
        ids = store.add_predictions([scored(2, descriptor=described(1.0))])
        assert list(store.descriptors([7, *ids])) == ids


@pytest.mark.parametrize(
    ("space", "numbers"),
    [("part", [1.0]), (SPACE, []), (SPACE, [float("nan")]), (SPACE, [0.0] * 1025)],
)
def test_what_is_no_descriptor(space: str, numbers: list[float]) -> None:
    with pytest.raises(ConfigError):
        Descriptor.of(space, numbers)
