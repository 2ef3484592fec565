"""What is old is deleted, what is labelled stays, and an interrupted run leaves nothing behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from killing import Say, killed
from store_parts import digest, png

from blemish.errors import ConfigError
from blemish.store import Draw, Label, OtherScore, Scored, Store
from blemish.store.records import now

Make = Callable[..., Scored]
NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
DAY = 86_400


def fill(store: Store, scored: Make, numbers: range, *, days: float) -> None:
    """Predictions so many days old, the first the oldest, with all that belongs to them."""
    when = now() - timedelta(days=days)
    rows = []
    for number in numbers:
        row = scored(number, time=when + timedelta(seconds=number))
        rows.append(row)
        store.put_map(row.picture, "part", "1", np.ones((8, 8)))
        store.put_picture(row.picture, png(NOISE))
        store.put_thumbnail(row.picture, png(NOISE[:8, :8]))
        store.add_draws(
            [Draw(picture=row.picture, model="part", version="1", stratum="x", probability=0.5)]
        )
        store.add_scores([OtherScore(picture=row.picture, model="part", version="2", score=1.0)])
        for place in (store.folder / "media").glob(f"*/*/{row.picture}*"):
            os.utime(place, (row.time.timestamp(),) * 2)
    store.add_predictions(rows)


def kept(store: Store) -> dict[str, list[int]]:
    """The numbers of the pictures of which each thing is there."""
    found: dict[str, list[int]] = {}
    for kind in ("pictures", "thumbnails", "maps"):
        names = (place.name[:32] for place in (store.folder / "media" / kind).glob("*/*"))
        found[kind] = sorted(int(name, 16) for name in names)
    found["rows"] = sorted(int(row.picture, 16) for row in store.each_prediction())
    return found


def all_of(*numbers: int) -> dict[str, list[int]]:
    return {key: list(numbers) for key in ("pictures", "thumbnails", "maps", "rows")}


def test_by_age(store: Store, scored: Make) -> None:
    fill(store, scored, range(4), days=30)
    fill(store, scored, range(4, 6), days=3)
    store.add_label(Label(picture=digest(1), verdict="good", reviewer="Ada"))
    store.add_label(Label(picture=digest(2), verdict="good", reviewer="Bob"))
    store.undo_label("Bob")
    done = store.retain(days=10)
    assert kept(store) == all_of(1, 4, 5)
    assert (done.pictures, done.thumbnails, done.maps, done.predictions) == (3, 3, 3, 3)
    files = [place for place in (store.folder / "media").rglob("*") if place.is_file()]
    if store.name == "the database (PostgreSQL)":
        assert done.held == sum(place.stat().st_size for place in files)
    assert done.freed > 3 * len(png(NOISE))
    assert done.held >= sum(place.stat().st_size for place in files)
    assert store.draw(digest(0), "part") is None
    assert store.other_scores(digest(0)) == []
    assert store.draw(digest(1), "part") is not None
    assert store.counts().predictions == 3
    assert len(store.labels(digest(2))) == 1
    again = store.retain(days=10)
    assert (again.pictures, again.predictions, again.freed) == (0, 0, 0)


def test_a_label_given_on_a_prediction_stays_without_it(store: Store, scored: Make) -> None:
    [id] = store.add_predictions([scored(1, time=now() - timedelta(days=9))])
    store.add_label(Label(picture=digest(1), verdict="good", reviewer="Ada", prediction=id))
    store.retain(days=1)
    assert store.prediction(id) is not None
    store.undo_label("Ada")
    assert store.retain(days=1).predictions == 1
    [label] = store.labels(digest(1))
    assert label.prediction is None


def test_by_size(store: Store, scored: Make) -> None:
    fill(store, scored, range(8), days=3)
    store.add_label(Label(picture=digest(0), verdict="defect", reviewer="Ada"))
    size = len(png(NOISE))
    full = store.retain().held
    done = store.retain(gibibytes=(full - 1.5 * size) / 2**30)
    assert done.pictures == 2
    assert done.predictions == done.thumbnails == 0
    now_there = kept(store)
    assert now_there["pictures"] == [0, 3, 4, 5, 6, 7]
    assert now_there["rows"] == list(range(8))
    store.retain(gibibytes=1e-9)
    last = kept(store)
    assert last["pictures"] == last["thumbnails"] == last["maps"] == [0]
    by_age_alone = store.name == "the database (PostgreSQL)"
    assert last["rows"] == (list(range(8)) if by_age_alone else [0])


def test_nothing_is_asked_for(store: Store, scored: Make) -> None:
    fill(store, scored, range(2), days=300)
    assert store.retain().freed == 0
    for wrong in ({"days": 0}, {"days": float("nan")}, {"gibibytes": -1}):
        with pytest.raises(ConfigError):
            store.retain(**wrong)  # type: ignore[arg-type]
    assert kept(store) == all_of(0, 1)


def test_files_that_nothing_knows(store: Store, scored: Make) -> None:
    fill(store, scored, range(2), days=0)
    unknown = [store.put_picture(digest(number), png(NOISE)) for number in (7, 8)]
    left = unknown[0].parent / ".blemish-0123456789abcdef.tmp"
    left.write_bytes(b"half")
    for old in (unknown[0], left):
        os.utime(old, (time.time() - 2 * DAY,) * 2)
    store.retain()
    assert kept(store)["pictures"] == [0, 1, 8]  # 8 may be on its way


def test_one_that_is_sent_again_is_new(store: Store, scored: Make) -> None:
    fill(store, scored, range(2), days=9)
    store.put_picture(digest(0), png(NOISE))
    store.retain(days=3)
    assert kept(store)["pictures"] == [0]


def retain_all(say: Say, url: str | None, folder: str) -> None:
    store = Store.open(url, Path(folder))
    say("ready")
    store.retain(days=1)
    time.sleep(60)


def test_killed_half_way(url: str | None, tmp_path: Path, scored: Make) -> None:
    folder = tmp_path / "store"
    with Store.open(url, folder) as store:
        fill(store, scored, range(60), days=9)
        store.add_label(Label(picture=digest(5), verdict="good", reviewer="Ada"))
        for at in range(5):
            killed(retain_all, url, str(folder), after=0.01 * at, said=tmp_path / "said")
            assert {5} <= set(kept(store)["pictures"]) & set(kept(store)["rows"])
            assert store.counts().predictions == len(kept(store)["rows"])
        store.retain(days=1)
        assert kept(store) == all_of(5)
