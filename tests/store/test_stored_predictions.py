"""Predictions are written once, listed in order, filtered and counted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from parts import Fitted, part

from blemish.errors import ConfigError
from blemish.store import Label, Row, Scored, Store
from blemish.store.records import NOTES, SOURCE

Make = Callable[..., Scored]


def scores(rows: list[Row]) -> list[float]:
    return [row.score for row in rows]


def test_what_is_read_is_what_was_written(store: Store, scored: Make) -> None:
    region = {"box": [1, 2, 3, 4], "area": 6, "peak": 2.5, "runs": "1 2 61"}
    full = scored(
        3,
        **{
            "p_value": 0.25,
            "region_threshold": 2.0,
            "source": "line 1",
            "name": "ü.png",
            "category": "lid",
        },
        **{"category_assigned": True, "adapted": True, "votes": 0.5, "notes": ("a", "b")},
        regions=(region,),
        time=datetime(2026, 1, 2, 3, 4, 5, 678901, timezone(timedelta(hours=2))),
    )
    least = scored(4, threshold=None, label=None)
    ids = store.add_predictions([full, least])
    for id, one in zip(ids, (full, least), strict=True):
        read = store.prediction(id)
        assert read is not None
        assert read == Row(id=id, **{name: getattr(one, name) for name in vars(one)})


def test_of_a_detectors_prediction(store: Store, fitted: Fitted) -> None:
    predicted = fitted("knn").predict(part(1, defect=True))
    [id] = store.add_predictions([Scored.of(predicted, model="part", version="2", source="cam 1")])
    row = store.prediction(id)
    assert row is not None
    assert (row.score, row.picture, row.source, row.name) == (
        predicted.score, predicted.digest, "cam 1", predicted.source,
    )  # fmt: skip
    assert (row.label, row.threshold, row.height, row.width) == (1, predicted.threshold, 64, 64)
    assert row.regions is not None
    assert predicted.regions is not None
    assert [one["box"] for one in row.regions] == [list(one.box) for one in predicted.regions]


def test_ids_rise_and_keys_are_there_once(store: Store, scored: Make) -> None:
    rows = [scored(number) for number in range(1200)]
    ids = store.add_predictions(rows)
    assert ids == sorted(set(ids))
    more = scored(9)
    again = store.add_predictions([rows[3], more, rows[1]])
    assert [again[0], again[2]] == [ids[3], ids[1]]
    assert again[1] > ids[-1]
    assert store.counts().predictions == 1201
    assert store.add_predictions([]) == []


def test_pages_in_every_order(store: Store, scored: Make) -> None:
    marks = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    ids = store.add_predictions([scored(at, score=mark) for at, mark in enumerate(marks)])
    by_score = sorted(zip(marks, ids, strict=True), key=lambda pair: (-pair[0], -pair[1]))
    lowest = sorted(zip(marks, ids, strict=True), key=lambda pair: (pair[0], -pair[1]))
    expected = {
        "newest": ids[::-1],
        "oldest": ids,
        "highest": [id for _, id in by_score],
        "lowest": [id for _, id in lowest],
    }
    for order, known in expected.items():
        found: list[int] = []
        while page := store.predictions(
            order=order,
            limit=3,
            model="part",
            before=found[-1] if found else None,  # type: ignore[arg-type]
        ):
            found += [row.id for row in page]
        assert found == known, order
    assert [row.id for row in store.each_prediction()] == ids


def test_filters(store: Store, scored: Make) -> None:
    early = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        scored(
            number,
            model="part" if number % 2 else "lid",
            version=str(number % 3),
            source=f"camera {number % 4}",
            name=f"Part_{number % 3}.PNG",
            category="a" if number < 6 else "b",
            time=early + timedelta(hours=number),
        )
        for number in range(12)
    ]
    store.add_predictions(rows)
    store.add_label(Label(picture=rows[7].picture, verdict="good", reviewer="Ada"))
    store.add_label(Label(picture=rows[8].picture, verdict="defect", reviewer="Ada"))
    cases: list[tuple[dict[str, Any], Callable[[int], bool]]] = [
        ({}, lambda n: True),
        ({"model": "part"}, lambda n: n % 2 == 1),
        ({"model": "lid", "version": "1"}, lambda n: n % 2 == 0 and n % 3 == 1),
        ({"source": "camera 2"}, lambda n: n % 4 == 2),
        ({"name": "part_1.png"}, lambda n: n % 3 == 1),
        ({"name": "rt_"}, lambda n: True),
        ({"name": "P_rt"}, lambda n: False),
        ({"category": "b", "label": 1}, lambda n: n >= 6),
        ({"label": 0}, lambda n: n <= 4),
        ({"picture": rows[3].picture}, lambda n: n == 3),
        ({"reviewed": True}, lambda n: n in (7, 8)),
        ({"reviewed": False}, lambda n: n not in (7, 8)),
        ({"reviewed": False, "model": "part"}, lambda n: n % 2 == 1 and n != 7),
        ({"reviewed": "defect"}, lambda n: n == 8),
        ({"reviewed": "disagreed"}, lambda n: False),
        ({"since": early + timedelta(hours=9)}, lambda n: n >= 9),
        ({"until": early + timedelta(hours=9)}, lambda n: n < 9),
        ({"source": "camera' OR 1=1 --"}, lambda n: False),
        ({"source": "\0\udc80" * 10**6}, lambda n: False),
    ]
    for filters, holds in cases:
        known = [float(number) for number in range(12) if holds(number)]
        assert scores(store.predictions(order="oldest", **filters)) == known, filters
        counts = store.counts(**filters)
        assert counts.predictions == len(known), filters
        assert counts.alarms == sum(score > 4 for score in known), filters
        assert counts.normal == sum(score <= 4 for score in known), filters
        assert counts.reviewed == sum(score in (7, 8) for score in known), filters


def test_filters_that_cannot_be(store: Store) -> None:
    for filters in (
        {"label": 2},
        {"reviewed": "bad"},
        {"since": datetime(2026, 1, 1)},
        {"picture": "../../etc/passwd"},
        {"modle": "part"},
        {"limit": 0},
        {"limit": 10**6},
        {"order": "random"},
        {"order": "highest"},
        {"before": -1},
        {"before": 2**70},
    ):
        with pytest.raises(ConfigError):
            store.predictions(**filters)  # type: ignore[arg-type]
    assert store.prediction(2**70) is None
    assert store.prediction(5) is None


def test_histogram(store: Store, scored: Make) -> None:
    random = np.random.default_rng(0)
    marks = random.normal(0, 3, 500)
    store.add_predictions([scored(at, score=float(mark)) for at, mark in enumerate(marks)])
    store.add_predictions([scored(0, score=1e6, version="other")])
    for bins in (1, 7, 40):
        found = store.score_histogram(model="part", version="1", bins=bins)
        counts, edges = np.histogram(marks, bins)
        np.testing.assert_allclose(found.edges, edges)
        assert list(found.counts) == counts.tolist()
    assert store.score_histogram(model="unknown").counts == ()


@pytest.mark.parametrize("ends", [(2.0, 2.0), (-sys.float_info.max, sys.float_info.max)])
def test_histogram_at_its_ends(ends: tuple[float, float], store: Store, scored: Make) -> None:
    store.add_predictions([scored(0, score=end) for end in ends])
    found = store.score_histogram(bins=4)
    assert sum(found.counts) == 2
    assert len(found.edges) == 5
    assert all(np.isfinite(found.edges))


def test_rates(store: Store, scored: Make) -> None:
    start = datetime(2026, 3, 1, 22, 30, tzinfo=UTC)
    store.add_predictions(
        [
            scored(at, time=start + timedelta(minutes=30 * at), source=f"camera {at % 2}")
            for at in range(8)
        ]
    )
    store.add_predictions([scored(9, label=None, threshold=None)])
    hours = [(rate.key, rate.predictions, rate.alarms) for rate in store.verdict_rates("hour")]
    first = datetime(2026, 3, 1, 22, tzinfo=UTC)
    known = [(0, 1, 0), (1, 2, 0), (2, 2, 0), (3, 2, 2), (4, 1, 1)]
    assert hours == [(first + timedelta(hours=h), number, alarms) for h, number, alarms in known]
    days = [(rate.key, rate.predictions, rate.alarms) for rate in store.verdict_rates("day")]
    assert days == [
        (datetime(2026, 3, 1, tzinfo=UTC), 3, 0),
        (datetime(2026, 3, 2, tzinfo=UTC), 5, 3),
    ]
    by_source = store.verdict_rates("source")
    assert [(rate.key, rate.rate) for rate in by_source] == [("camera 0", 0.25), ("camera 1", 0.5)]
    with pytest.raises(ConfigError, match="by"):
        store.verdict_rates("week")  # type: ignore[arg-type]


def test_hostile_texts_are_kept_as_well_as_can_be(store: Store, scored: Make) -> None:
    hostile = [
        "a\0b",
        "\ud800\udfff",
        "'; DROP TABLE predictions; --",
        "../../../etc/passwd",
        "<script>alert(1)</script>",
        "x" * 10_000_000,
        "\U0001f600" * SOURCE,
        "\x1b[2J\r\n\u2028",
    ]
    rows = [
        scored(at, source=text, name=text, category=text, notes=(text,) * 50)
        for at, text in enumerate(hostile)
    ]
    store.add_predictions(rows)
    read = store.predictions(order="oldest")
    for row, text in zip(read, hostile, strict=True):
        assert len(row.source) <= SOURCE
        assert len(row.notes) == NOTES
        assert "\0" not in row.source
        assert row.name == row.source
        clean = text.isprintable() and len(text) <= SOURCE
        assert not clean or row.source == text
    assert read[5].source.endswith("x…")
    assert [row.source for row in store.predictions(source=hostile[0])] == ["a\\x00b"]


def test_too_many_regions_are_left_out_with_a_note(store: Store, scored: Make) -> None:
    region = {"box": [0, 0, 1, 1], "runs": "1 " * 5_000_000 + "1"}
    [id] = store.add_predictions([scored(1, regions=(region, region))])
    row = store.prediction(id)
    assert row is not None
    assert row.regions is None
    assert "too much room" in row.notes[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"picture": "../x"},
        {"picture": "A" * 32},
        {"model": ""},
        {"model": "a\0"},
        {"version": "x" * 101},
        {"score": float("nan")},
        {"threshold": float("inf")},
        {"label": 2},
        {"height": 0},
        {"width": 2**31},
        {"time": datetime(2026, 1, 1)},
        {"key": "short"},
    ],
    ids=str,
)
def test_what_is_no_prediction(changes: dict[str, Any], scored: Make) -> None:
    with pytest.raises(ConfigError):
        scored(1, **changes)
