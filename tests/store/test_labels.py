"""Labels are kept, replaced and undone; what reviewers say together follows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import cv2
import numpy as np
import pytest
from store_parts import digest, png

from blemish.errors import ConfigError, ImageError
from blemish.images import decode_mask
from blemish.store import Label, Scored, Store

Make = Callable[..., Scored]
P = digest(1)


def said(store: Store, picture: str = P) -> tuple[str, str]:
    """What pages show of a picture that has a prediction."""
    [row] = store.predictions(picture=picture)
    return row.reviewed, row.defect


def test_what_is_read_is_what_was_written(store: Store, scored: Make) -> None:
    [prediction] = store.add_predictions([scored(1)])
    marks = np.zeros((8, 8), np.uint8)
    marks[2:5, 3:7] = 255
    given = Label(
        picture=P,
        verdict="defect",
        defect="Kratzer 'tief'",
        mask=png(marks),
        reviewer="Ada",
        prediction=prediction,
        time=datetime(2026, 1, 1, tzinfo=UTC),
    )
    id = store.add_label(given)
    [read] = store.labels(P)
    assert read == store.label(id) == store.current(P)["Ada"]
    assert read.mask is not None
    assert (decode_mask(read.mask) == (marks > 0)).all()
    same = ("picture", "verdict", "defect", "reviewer", "prediction", "time", "undone")
    assert [getattr(read, name) for name in same] == [getattr(given, name) for name in same]
    assert store.label(id + 1) is None
    assert store.labels(digest(2)) == []
    assert store.current(digest(2)) == {}


def test_the_last_of_each_reviewer_counts(store: Store, scored: Make) -> None:
    store.add_predictions([scored(1)])
    assert said(store) == ("", "")
    steps: list[tuple[str, str, str, tuple[str, str]]] = [
        ("Ada", "unsure", "", ("unsure", "")),
        ("Ada", "defect", "dent", ("defect", "dent")),
        ("Bob", "unsure", "", ("defect", "dent")),
        ("Bob", "defect", "hole", ("defect", "hole")),
        ("Ada", "good", "", ("disagreed", "")),
        ("Bob", "good", "", ("good", "")),
    ]
    for reviewer, verdict, defect, outcome in steps:
        store.add_label(Label(picture=P, verdict=verdict, defect=defect, reviewer=reviewer))
        assert said(store) == outcome
    assert {name: one.verdict for name, one in store.current(P).items()} == {
        "Ada": "good",
        "Bob": "good",
    }
    assert [one.verdict for one in store.labels(P)] == [step[1] for step in steps]
    # And back again, one after the other.
    for reviewer, verdict, _, outcome in [
        ("Bob", "good", "", ("disagreed", "")),
        ("Bob", "defect", "", ("good", "")),
        ("Ada", "good", "", ("defect", "dent")),
        ("Ada", "defect", "", ("unsure", "")),
        ("Ada", "unsure", "", ("unsure", "")),
        ("Bob", "unsure", "", ("", "")),
    ]:
        undone = store.undo_label(reviewer)
        assert undone is not None
        assert (undone.verdict, undone.undone is None) == (verdict, False)
        assert said(store) == outcome
    assert store.undo_label("Bob") is None
    assert all(one.undone is not None for one in store.labels(P))
    assert store.counts(reviewed=True).predictions == 0


def test_undo_takes_the_last_of_any_picture(store: Store) -> None:
    for number in (1, 2, 1):
        store.add_label(Label(picture=digest(number), verdict="good", reviewer="Ada"))
    store.add_label(Label(picture=digest(3), verdict="good", reviewer="Bob"))
    taken = [store.undo_label("Ada") for _ in range(4)]
    assert [one and one.picture for one in taken] == [digest(1), digest(2), digest(1), None]
    assert store.current(digest(3)) != {}


def test_masks_that_are_none(store: Store, scored: Make) -> None:
    store.add_predictions([scored(1)])
    grey = png(np.full((8, 8), 100, np.uint8))
    jpeg = bytes(cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1])
    cut = png(np.eye(8, dtype=np.uint8) * 255)[:-20]
    for mask in (png(np.zeros((8, 9), np.uint8)), grey, jpeg, cut, b"", b"x" * 1000):
        with pytest.raises(ImageError, match="mask"):
            store.add_label(Label(picture=P, verdict="defect", mask=mask, reviewer="Ada"))
    assert store.labels(P) == []
    store.add_label(
        Label(picture=P, verdict="defect", mask=png(np.zeros((8, 8), np.uint8)), reviewer="Ada")
    )
    assert store.current(P)["Ada"].mask is None  # nothing was marked


def test_a_prediction_of_another_picture(store: Store, scored: Make) -> None:
    [other] = store.add_predictions([scored(2)])
    for id, why in ((other, "another picture"), (other + 5, "not there"), (2**80, "range")):
        with pytest.raises(ConfigError, match=why):
            store.add_label(Label(picture=P, verdict="good", reviewer="Ada", prediction=id))
    assert store.labels(P) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"picture": "../../x"},
        {"verdict": "bad"},
        {"reviewer": ""},
        {"reviewer": " "},
        {"reviewer": "a\0"},
        {"reviewer": "\udc80"},
        {"reviewer": "x" * 101},
        {"verdict": "defect", "defect": "x" * 10_000_000},
        {"verdict": "defect", "defect": "\x1b[2J"},
        {"verdict": "defect", "mask": b"x" * (2**24 + 1)},
        {"defect": "dent"},
        {"mask": b"x"},
        {"time": datetime(2026, 1, 1)},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_what_is_no_label(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as told:
        Label(**{"picture": P, "verdict": "good", "reviewer": "Ada", **changes})
    assert len(str(told.value)) < 300
    assert str(told.value).isprintable()


def test_texts_that_look_like_programs_are_texts(store: Store) -> None:
    names = ["'; DROP TABLE labels; --", "<script>", "../../etc", "%s %(a)s ? :x", "名前 ✓"]
    for name in names:
        store.add_label(Label(picture=P, verdict="defect", defect=name, reviewer=name))
    assert [one.defect for one in store.labels(P)] == names
    assert list(store.current(P)) == names


def test_many_at_once_on_one_picture(store: Store, scored: Make) -> None:
    store.add_predictions([scored(1)])
    faults: list[BaseException] = []

    def review(name: str) -> None:
        try:
            for verdict in ("good", "defect", "good", "defect"):
                store.add_label(Label(picture=P, verdict=verdict, reviewer=name))
            store.undo_label(name)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=review, args=(f"reviewer {at}",)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert {one.verdict for one in store.current(P).values()} == {"good"}
    assert len(store.labels(P)) == 32
    assert said(store) == ("good", "")
