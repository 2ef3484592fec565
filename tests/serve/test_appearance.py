"""How pictures look: kept with predictions, compared with the first ones, told where it changes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live import Live, serving

import blemish
from blemish.serve.appearance import FIRST, WINDOW, Appearance
from blemish.store import Descriptor, Row, Scored, Store

URL = "/v1/models/part/predict"
HTML = {"Accept": "text/html"}


@pytest.fixture
def live(artifact: Path, tmp_path: Path) -> Iterator[Live]:
    with serving(artifact, store_folder=tmp_path / "store") as one:
        yield one


def add(live: Live, start: int, count: int, shift: float = 0.0) -> None:
    """Pictures that all score as good ones do, and look otherwise where they are shifted."""
    store, served = live.service.store, live.service.models.live("part")
    assert store is not None
    random = np.random.default_rng(start)
    scores = served.detector.record.calibration_scores
    rows = [
        Scored(
            picture=f"{start + at:032x}",
            model="part",
            version=served.version,
            score=float(random.choice(scores)),
            label=0,
            height=64,
            width=64,
            descriptor=Descriptor.of(
                served.detector.descriptor_space, random.normal(size=32) + shift
            ),
        )
        for at in range(count)
    ]
    store.add_predictions(rows)


def test_descriptors_are_kept_with_predictions(
    live: Live, artifact: Path, pictures: list[Path], tmp_path: Path
) -> None:
    with live.client() as client:
        rows = [
            client.post(URL, content=path.read_bytes()).json()["predictions"][0]
            for path in pictures[:3]
        ]
    assert "descriptor" not in rows[0]
    detector = blemish.load(artifact)
    store = live.service.store
    assert store is not None
    found = store.descriptors([row["id"] for row in rows])
    for row, path in zip(rows, pictures, strict=False):
        known = detector.predict(path).descriptor
        assert known is not None
        assert found[row["id"]].numbers == pytest.approx(known, rel=2e-3, abs=1e-3)
        assert found[row["id"]].space == detector.descriptor_space


def test_a_change_of_how_pictures_look_is_told_once(live: Live) -> None:
    follower = live.service.follower
    assert follower is not None

    def told() -> list[str]:
        live.run(follower.look())
        return [one["change"] for one in live.lines if one["event"] == "drift"]

    add(live, 0, FIRST + WINDOW)
    assert told() == []
    with live.client() as client:
        assert "look like the first 300" in client.get("/figures", headers=HTML).text
        add(live, 1000, 2 * WINDOW, 0.5)
        wanted = "pictures look otherwise than at first"
        assert told() == [wanted]
        assert told() == [wanted]  # an alarm that stands is told once
        measured = client.get("/metrics").text
        assert re.search(r"^blemish_looks_otherwise\{.*\} 1.0$", measured, re.MULTILINE)
        share = re.search(r"^blemish_looks_share\{.*\} (.*)$", measured, re.MULTILINE)
        assert share is not None
        assert 0.05 < float(share[1]) < 1
        for path in ("/live", "/figures"):
            shown = client.get(path, headers=HTML).text
            assert "alarming" in shown
            assert "light, focus, position" in shown
        figures = client.get("/figures", headers=HTML).text
        csrf = re.search(r'<meta name="csrf" content="(.*?)">', figures)
        assert csrf is not None
        # Only from a page, by somebody who has seen it.
        assert client.post("/figures/looks", params={"model": "part"}).status_code == 403
        answer = client.post(
            "/figures/looks", params={"model": "part"}, headers={"X-CSRF-Token": csrf[1], **HTML}
        )
        assert answer.status_code == 200, answer.text
        assert "is compared once 400" in answer.text
        assert told() == [wanted]
        add(live, 2000, FIRST, 0.5)
        add(live, 3000, WINDOW, 0.5)
        assert told() == [wanted]
        add(live, 4000, WINDOW)
        assert told() == [wanted, wanted]


def test_a_file_that_was_exported_before_says_so(
    made_onnx: Path, pictures: list[Path], tmp_path: Path
) -> None:
    with serving(made_onnx, store_folder=tmp_path / "store") as live, live.client() as client:
        row = client.post(URL, content=pictures[0].read_bytes()).json()["predictions"][0]
        shown = client.get("/figures", headers=HTML).text
        assert live.service.store is not None
        assert live.service.store.descriptors([row["id"]]) == {}
        follower = live.service.follower
        assert follower is not None
        live.run(follower.look())
        assert "blemish_looks_share{" not in client.get("/metrics").text
    assert "exported by an earlier blemish" in shown
    assert "Export it again" in shown


def test_pictures_that_stay_as_they_are_raise_no_alarm(tmp_path: Path) -> None:
    """Sixty windows after as many references as there are streams: a false alarm in any of them has
    a probability below 2 %. Dimensions depend on each other as those of real descriptors do."""
    row = Row(
        picture="0" * 32, model="part", version="1", score=0.0, height=8, width=8, id=1, label=0
    )
    space = "0" * 32
    small = []
    for seed in range(12):
        random = np.random.default_rng(seed)
        mixed = random.normal(size=(4, 32))
        watch = Appearance(space, str(seed))
        for _ in range(FIRST + 60 * WINDOW):
            numbers = random.standard_t(5, size=4) @ mixed + 0.1 * random.normal(size=32)
            watch.add(row, Descriptor.of(space, numbers))
            last = watch.looks.last
            if last is not None and watch.looks.pictures % WINDOW == 0:
                small.append(last.comparison.p_value <= 0.05)
        assert not watch.since
        assert watch.looks.count == 60
    assert 0.02 < np.mean(small) < 0.08  # p-values of one stream share a reference


def test_a_store_of_before_goes_on(live: Live) -> None:
    """Predictions without descriptors are passed over, and nothing is compared with them."""
    store, served = live.service.store, live.service.models.live("part")
    assert isinstance(store, Store)
    one = Scored(
        picture="0" * 32, model="part", version=served.version, score=1.0, height=8, width=8
    )
    store.add_predictions([one])
    with live.client() as client:
        assert "is compared once 400" in client.get("/figures", headers=HTML).text
