"""What figures are made of, from SQLite and PostgreSQL, and out of a store of before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from alembic import command
from alembic.config import Config
from store_parts import digest

from blemish.store import Draw, Label, Scored, Store
from blemish.store.migrating import MIGRATIONS

Make = Callable[..., Scored]


def draw_of(number: int, **record: Any) -> Draw:
    return Draw(
        picture=digest(number),
        model="part",
        version="1",
        stratum="random",
        probability=0.5,
        priority=number / 10,
        record=record,
    )


def label(store: Store, number: int, verdict: str, reviewer: str = "Ada", **more: Any) -> int:
    return store.add_label(
        Label(picture=digest(number), verdict=verdict, reviewer=reviewer, **more)
    )


def test_predictions_come_with_their_places(store: Store, scored: Make) -> None:
    store.add_predictions([scored(number) for number in range(1, 6)])
    store.add_predictions([scored(2, score=7.0), scored(3, version="2"), scored(4, model="nut")])
    store.add_draws([draw_of(number, size=0.5 * number, arrived=number) for number in (1, 2, 3)])
    store.add_draws([draw_of(4)])  # of a queue that says neither: nobody can count it
    (page,) = store.placed("part", "1")
    assert page.pictures == tuple(digest(number) for number in (1, 2, 3, 2))
    assert page.arrived == (1, 2, 3, 2)
    assert page.sizes == (0.5, 1.0, 1.5, 1.0)
    assert page.priorities == (0.1, 0.2, 0.3, 0.2)
    assert page.scores == (1, 2, 3, 7)
    assert page.last == 6
    (later,) = store.placed("part", "1", after=3, until=6)
    assert later.pictures == (digest(2),)
    assert not list(store.placed("part", "3"))
    assert store.arrivals([digest(3), digest(4), digest(9)], "part") == [3]
    assert store.records([digest(1), digest(9)], "part") == {digest(1): {"size": 0.5, "arrived": 1}}
    assert set(store.draws([digest(1), digest(9)], "part")) == {digest(1)}


def test_the_last_prediction_of_a_version_counts(store: Store, scored: Make) -> None:
    store.add_predictions([scored(1, source="a"), scored(1, source="b"), scored(2, version="2")])
    found = store.scenes([digest(1), digest(2), digest(3)], "part", "1")
    assert {picture: one.source for picture, one in found.items()} == {digest(1): "b"}


def test_what_is_said_now(store: Store, scored: Make) -> None:
    store.add_predictions([scored(number) for number in range(4)])
    before = store.labels_state()
    label(store, 1, "good", revealed=True)
    label(store, 2, "defect", defect="scratch", revealed=False)
    label(store, 1, "unsure", "Bo")
    assert store.labels_state() != before
    assert [(one.verdict, one.reviewer, one.revealed) for one in store.said()] == [
        ("good", "Ada", True),
        ("defect", "Ada", False),
        ("unsure", "Bo", None),
    ]
    assert [one.revealed for one in store.labels(digest(1))] == [True, None]
    before = store.labels_state()
    store.undo_label("Ada")
    assert store.labels_state() != before
    assert [one.verdict for one in store.said()] == ["good", "unsure"]


def test_how_many_wait_and_what_defects_are_called(store: Store, scored: Make) -> None:
    store.add_predictions([scored(number) for number in range(6)])
    store.add_draws([draw_of(number) for number in range(6)])
    assert store.waiting("part", 4) == 4
    assert store.waiting("part", 10) == 6
    label(store, 1, "defect", defect="scratch")
    label(store, 2, "defect", defect="dent")
    label(store, 3, "defect", defect="scratch")
    label(store, 4, "defect")
    assert store.waiting("part", 10) == 2
    assert store.waiting("nut", 10) == 0
    assert store.defect_types("part", 12) == ["scratch", "dent"]
    assert store.defect_types("part", 1) == ["scratch"]
    assert store.defect_types("nut", 12) == []


def test_predictions_after_one(store: Store, scored: Make) -> None:
    ids = store.add_predictions([scored(number) for number in range(5)])
    assert [row.id for row in store.each_prediction(after=ids[2])] == ids[3:]


def test_a_store_of_before_is_brought_up_to_date(
    url: str | None, tmp_path: Path, scored: Make
) -> None:
    folder = tmp_path / "store"
    with Store.open(url, folder) as store:
        store.add_predictions([scored(1)])
        store.add_draws([draw_of(1, size=0.25, arrived=1)])
        label(store, 1, "good", revealed=True)
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with store._database.writing() as connection:
            connection.execute(sql.text("DROP INDEX ix_labels_undone_id_picture_reviewer_verdict"
                                        "_revealed"))  # fmt: skip
            connection.execute(sql.text("ALTER TABLE labels DROP COLUMN revealed"))
            for name in ("size", "arrived"):
                connection.execute(sql.text(f"ALTER TABLE draws DROP COLUMN {name}"))
            for name in ("leases", "descriptors"):
                connection.execute(sql.text(f"DROP TABLE {name}"))
            connection.execute(sql.text("ALTER TABLE jobs DROP COLUMN service"))
            config.attributes["connection"] = connection
            command.stamp(config, "0001")
    with Store.open(url, folder) as store:
        (page,) = store.placed("part", "1")
        assert (page.sizes, page.arrived) == ((0.25,), (1,))
        assert [one.revealed for one in store.said()] == [None]
        assert json.loads(json.dumps(dict(store.draws([digest(1)], "part")[digest(1)].record)))
        label(store, 1, "defect", revealed=True)
        assert [one.revealed for one in store.said()] == [None, True]


@pytest.mark.parametrize("model", ["part", "x" * 200])
def test_a_model_that_is_not_there_has_nothing(store: Store, model: str) -> None:
    assert not list(store.placed(model, "1"))
    assert store.scenes([digest(1)], model, "1") == {}
