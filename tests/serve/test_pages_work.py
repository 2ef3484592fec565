"""How much the pages of a store with many labels read: statements and rows, not seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sql
from live import Live, serving
from test_review_queue import THRESHOLD, grown, label, order

from blemish.monitoring import beta
from blemish.monitoring.estimates import curve
from blemish.serve.reviewing import Reviewing
from blemish.store import Store

HTML = {"Accept": "text/html"}
MOST = 40  # statements of a page, however many labels there are


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """What is asked of the database meanwhile."""
    found: list[str] = []
    engine: Any = store._database._engine

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        found.append(statement)

    sql.event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        sql.event.remove(engine, "before_cursor_execute", note)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """1,200 predictions, 600 of which are reviewed, the last of them without the queue."""
    with Store.open(None, tmp_path / "store") as one:
        grown(one, 0, 1200)
        reviewing = Reviewing(one, "part")
        reviewing.watch("1", np.random.default_rng(7).normal(size=100).tolist(), THRESHOLD)
        reviewing.catch_up()
        reviewing.save()
        line = order(one)
        for picture in [*line[:590], *line[-10:]]:
            label(one, picture, "good")
        yield one


def test_a_restart_reads_what_is_new_alone(store: Store) -> None:
    grown(store, 5000, 3)
    reviewing = Reviewing(store, "part")
    with statements(store) as asked:
        reviewing.watch("1", np.random.default_rng(7).normal(size=100).tolist(), THRESHOLD)
        assert reviewing.drift()[0].monitor.count == 1203
    assert len([one for one in asked if "FROM predictions" in one]) <= 10
    labels = [one for one in asked if "FROM labels" in one]
    assert all("labels.id > ?" in one for one in labels)  # none that it knows
    assert len(labels) <= 2


def test_figures_are_read_once_and_then_what_is_new(store: Store) -> None:
    reviewing = Reviewing(store, "part")
    first = reviewing.judged("1")
    assert len(first.sample.scores) == 590
    assert first.sample.left_out["early"] == 10
    with statements(store) as asked:
        assert reviewing.judged("1") is first  # nothing has changed
    assert len([one for one in asked if not one.startswith("BEGIN")]) <= 5
    grown(store, 5000, 2)
    label(store, order(store)[0], "defect")
    with statements(store) as asked:
        again = reviewing.judged("1")
    assert len(again.sample.scores) == 591
    assert len(again.pool.scores) == 1202
    assert len([one for one in asked if not one.startswith("BEGIN")]) <= 18


def test_what_is_known_of_a_picture_that_comes_again_is_read_again(store: Store) -> None:
    reviewing = Reviewing(store, "part")
    picture = order(store)[0]
    label(store, picture, "good")
    reviewing.judged("1")
    seen = store.predictions(picture=picture)[0]
    grown(store, int(picture, 16), 1, source="camera 9")
    sample = reviewing.judged("1").sample
    assert "camera 9" in {one.get("camera") for one in sample.groups}
    assert seen.source != "camera 9"


@pytest.mark.parametrize("page", ["live", "pictures", "review", "figures", "refine", "models"])
def test_a_page_asks_a_fixed_number_of_questions(
    store: Store, artifact: Path, tmp_path: Path, page: str
) -> None:
    models = tmp_path / "models" / "part"
    models.mkdir(parents=True)
    (models / "1.blemish").write_bytes(artifact.read_bytes())
    with serving(tmp_path / "models", store_folder=tmp_path / "store") as live:
        found = asked_by(live, page)
    assert found <= MOST


def asked_by(live: Live, page: str) -> int:
    store = live.service.store
    assert store is not None
    with live.client() as client:
        client.get(f"/{page}", headers=HTML).raise_for_status()
        with statements(store) as asked:
            client.get(f"/{page}", headers=HTML).raise_for_status()
    return len([one for one in asked if one.startswith(("SELECT", "WITH"))])


def test_the_limits_of_a_curve_take_few_steps(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newton's method ends where it has arrived, for each limit by itself."""
    judged = Reviewing(store, "part").judged("1")
    passes: list[int] = []
    fraction = beta._fraction

    def counted(a: Any, b: Any, x: Any) -> Any:
        passes.append(len(a))
        return fraction(a, b, x)

    monkeypatch.setattr(beta, "_fraction", counted)
    curve(judged.sample, pool=judged.pool)
    assert len(passes) < 30
    assert sum(passes) < 12 * passes[0]
