"""kill -9 at any moment: what was acknowledged is there, and the store opens."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
from killing import Say, killed
from store_parts import digest, png

from blemish.images import decode
from blemish.store import Label, Scored, Spool, Store
from blemish.store.labels import outcome

PICTURE = png(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def write_all(say: Say, url: str | None, folder: str, start: int) -> None:
    """Predictions, labels and pictures, from several threads, until the end."""
    store = Store.open(url, Path(folder))
    spool = Spool(store)
    numbers = iter(range(start, 2**62))
    say("ready")

    def predict() -> None:
        while True:
            rows = [a_prediction(next(numbers)) for _ in range(5)]
            for row, id in zip(rows, spool.add(rows) or (), strict=True):
                say(f"prediction {id} {row.key}")

    def label(reviewer: str) -> None:
        while True:
            number = start + random.randrange(20)
            verdict = random.choice(["good", "defect", "unsure"])
            id = store.add_label(Label(picture=digest(number), verdict=verdict, reviewer=reviewer))
            say(f"label {id} {digest(number)} {verdict}")
            if random.random() < 0.2:
                undone = store.undo_label(reviewer)
                assert undone is not None
                say(f"undone {undone.id}")

    def keep() -> None:
        while True:
            number = next(numbers)
            store.put_picture(digest(number), PICTURE)
            say(f"picture {digest(number)}")

    for work in (predict, keep, lambda: label("Bob")):
        threading.Thread(target=work, daemon=True).start()
    label("Ada")


def a_prediction(number: int) -> Scored:
    given = {"model": "part", "version": "1", "score": float(number), "height": 64, "width": 64}
    return Scored(picture=digest(number), **given)  # type: ignore[arg-type]


def check(store: Store, lines: list[str]) -> None:
    """All that was acknowledged is there, and what belongs together agrees."""
    touched = set()
    for line in lines:
        kind, *words = line.split(" ")
        if kind == "prediction":
            row = store.prediction(int(words[0]))
            assert row is not None, line
            assert row.key == words[1]
        elif kind == "label":
            label = store.label(int(words[0]))
            assert label is not None, line
            assert (label.picture, label.verdict) == (words[1], words[2])
            touched.add(label.picture)
        elif kind == "undone":
            label = store.label(int(words[0]))
            assert label is not None
            assert label.undone is not None, line
        elif kind == "picture":
            place = store.picture(words[0])
            assert place is not None, line
            assert place.read_bytes() == PICTURE
    for picture in touched:
        rows = store.predictions(picture=picture, limit=1)
        if rows:
            now = outcome(list(store.current(picture).values()))
            assert (rows[0].reviewed, rows[0].defect) == now


def whole(store: Store) -> None:
    """No picture is half a picture."""
    for place in (store.folder / "media").glob("pictures/*/*"):
        if place.suffix != ".tmp":
            assert decode(place).size == (64, 64)


KINDS = {"ready", "prediction", "label", "undone", "picture"}  # of what was acknowledged


def kill_often(url: str | None, tmp_path: Path, times: int) -> None:
    folder, seed = tmp_path / "store", random.randrange(2**32)
    print(f"seed {seed}")  # of a failure
    chance = random.Random(seed)
    everything: list[str] = []
    kinds: set[str] = set()
    at = -1
    while (at := at + 1) < times or (kinds != KINDS and at < 3 * times):  # on a busy machine more
        early = at % 5 == 0
        after = chance.uniform(0, 0.1 if early else 0.3)
        given = (url, str(folder), at * 10**6)
        said = killed(write_all, *given, after=after, said=tmp_path / "said", at_once=early)
        with Store.open(url, folder) as store:
            check(store, said)
        everything += said
        kinds |= {line.split(" ")[0] for line in said}
    with Store.open(url, folder) as store, Spool(store) as spool:
        check(store, everything)
        whole(store)
        assert spool.waiting == 0
        keys = [row.key for row in store.each_prediction()]
        assert len(keys) == len(set(keys))
    assert kinds == KINDS


def test_no_acknowledged_label_is_lost(url: str | None, tmp_path: Path) -> None:
    kill_often(url, tmp_path, 10)


@pytest.mark.slow
def test_no_acknowledged_label_is_lost_in_200_kills(url: str | None, tmp_path: Path) -> None:
    kill_often(url, tmp_path, 200)
