"""Draws, what came of reviews, and where reviewers or versions disagree."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from store_parts import digest

from blemish.errors import ConfigError
from blemish.store import Draw, Label, OtherScore, Scored, Store

Make = Callable[..., Scored]
START = datetime(2026, 1, 1, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def drawn(number: int, **changes: Any) -> Draw:
    given = {"picture": digest(number), "model": "part", "version": "1", "stratum": "random"}
    return Draw(**{**given, "probability": 0.25, "time": at(0), **changes})


def test_places_in_the_queue(store: Store, scored: Make) -> None:
    store.add_predictions([scored(number) for number in range(4)])
    record = {"size": 1.5, "share": 0.2}
    first = drawn(1, priority=0.5, record=record)
    store.add_draws(
        [first, drawn(2, priority=0.25), drawn(3, priority=0.75), drawn(1, model="lid")]
    )
    store.add_draws([])
    assert store.draw(digest(1), "part") == first
    assert store.draw(digest(4), "part") is None
    assert store.draw(digest(2), "lid") is None
    assert [one.picture for one in store.queue("part")] == [digest(2), digest(1), digest(3)]
    assert [one.picture for one in store.queue("part", limit=1)] == [digest(2)]
    assert [one.picture for one in store.queue("part", after=0.25)] == [digest(1), digest(3)]
    store.add_label(Label(picture=digest(1), verdict="unsure", reviewer="Ada"))
    store.add_draws([drawn(2, priority=0.9), drawn(2, priority=0.8)])
    assert [one.picture for one in store.queue("part")] == [digest(3), digest(2)]
    store.undo_label("Ada")
    assert [one.picture for one in store.queue("part")] == [digest(1), digest(3), digest(2)]
    with pytest.raises(ConfigError, match="limit"):
        store.queue("part", limit=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"probability": 0.0},
        {"probability": 1.01},
        {"probability": float("nan")},
        {"priority": float("inf")},
    ],
)
def test_probabilities(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"probability|priority"):
        drawn(1, **changes)


def test_reviewed_pictures_with_how_they_were_drawn(store: Store, scored: Make) -> None:
    rows = [scored(number) for number in range(6)]
    store.add_predictions([*rows, scored(1, version="2", score=9.0), scored(2, model="lid")])
    store.add_draws(
        [
            drawn(1, probability=0.2),
            drawn(2, model="lid"),
        ]
    )
    for number, verdict, who in (
        (1, "good", "Ada"),
        (1, "good", "Bob"),
        (2, "defect", "Ada"),
        (3, "good", "Ada"),
        (3, "defect", "Bob"),
        (4, "good", "Cyd"),
    ):
        time = at(5 + number)
        store.add_label(Label(picture=digest(number), verdict=verdict, reviewer=who, time=time))
    store.undo_label("Cyd")
    found = store.reviewed("part")
    assert [(one.row.score, one.verdict, one.reviewers) for one in found] == [
        (2.0, "defect", 1),
        (3.0, "disagreed", 2),
        (9.0, "good", 2),
    ]
    assert [one.draw and one.draw.probability for one in found] == [None, None, 0.2]
    assert [one.row.score for one in store.reviewed("part", version="1")] == [1.0, 2.0, 3.0]
    assert [one.row.score for one in store.reviewed("part", reviewed="good")] == [9.0]
    [lid] = store.reviewed("lid")
    assert lid.draw is not None
    assert store.reviewed("none") == []
    assert [row.score for row in store.disagreements("part")] == [3.0]
    store.add_label(Label(picture=digest(3), verdict="unsure", reviewer="Bob"))
    assert store.disagreements("part") == []


def test_other_scores(store: Store, scored: Make) -> None:
    store.add_predictions([scored(1, score=1.0, time=at(0)), scored(1, score=2.0, time=at(1))])

    def said(version: str, score: float, minutes: float) -> OtherScore:
        given = {"picture": digest(1), "model": "part", "version": version, "score": score}
        return OtherScore(**given, time=at(minutes))  # type: ignore[arg-type]

    store.add_scores([said("2", 5.0, 2), said("3", 7.0, 3)])
    store.add_scores([said("2", 6.0, 4), said("2", 6.5, 5)])
    store.add_scores([])
    found = [(one.version, one.score, one.live) for one in store.other_scores(digest(1))]
    assert found == [("1", 2.0, True), ("3", 7.0, False), ("2", 6.5, False)]
    assert store.other_scores(digest(1), model="lid") == []
    assert store.other_scores(digest(2)) == []
    assert set(store.other_scores_of([digest(1), digest(2)])) == {digest(1)}


def test_more_pictures_than_fit_into_a_statement(store: Store, scored: Make) -> None:
    rows = [scored(number) for number in range(1100)]
    store.add_predictions(rows)
    store.add_draws([drawn(number) for number in range(1100)])
    assert len(store.other_scores_of([row.picture for row in rows])) == 1100
    assert store.current_of([row.picture for row in rows]) == {}


def test_notes(store: Store) -> None:
    assert store.note("queue part") is None
    store.put_note("queue part", {"recent": [0.5], "text": "\0\udc80"})
    store.put_note("queue part", {"recent": [0.5, 1.5]})
    assert store.note("queue part") == {"recent": [0.5, 1.5]}
    with pytest.raises(ConfigError):
        store.put_note("queue part", {"x": float("inf")})
    with pytest.raises(ConfigError):
        store.put_note("", {})
