"""Pictures in over HTTP, predictions out: those of `Detector.predict`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from live import Live, serving

import blemish

URL = "/v1/models/part/predict"


@pytest.fixture(scope="module")
def live(artifact: Path) -> Iterator[Live]:
    with serving(artifact) as running:
        yield running


def assert_same(row: dict[str, Any], known: blemish.Prediction) -> None:
    """The same picture, score and verdict; sums of another batch may differ in the last digits."""
    told = known.to_dict()
    for key in ("digest", "label", "threshold", "height", "width", "category", "notes", "p_value"):
        assert row[key] == told[key], key
    assert row["score"] == pytest.approx(told["score"], rel=1e-4)
    assert len(row["regions"] or ()) == len(told["regions"] or ())


def test_one_picture_as_the_body(live: Live, artifact: Path, pictures: list[Path]) -> None:
    detector = blemish.load(artifact)
    with live.client() as client:
        for path in pictures[:2]:
            answer = client.post(URL, content=path.read_bytes(), params={"name": path.name})
            assert answer.status_code == 200, answer.text
            told = answer.json()
            (row,) = told["predictions"]
            assert row["path"] == path.name
            assert told["version"] == live.service.models.live("part").version
            assert_same(row, detector.predict(path))


def test_many_at_once(live: Live, artifact: Path, pictures: list[Path]) -> None:
    known = {path.name: blemish.load(artifact).predict(path) for path in pictures}

    def ask(path: Path) -> dict[str, Any]:
        with live.client() as client:
            answer = client.post(URL, files={"picture": (path.name, path.read_bytes())})
        assert answer.status_code == 200, answer.text
        (row,) = answer.json()["predictions"]
        return dict(row)

    with ThreadPoolExecutor(16) as pool:
        rows = list(pool.map(ask, pictures * 6))
    for row in rows:
        assert_same(row, known[row["path"]])


def test_one_fault_among_many(live: Live, artifact: Path, pictures: list[Path]) -> None:
    files = [("picture", (path.name, path.read_bytes())) for path in pictures[:2]]
    files.insert(1, ("picture", ("broken.png", pictures[0].read_bytes()[:300])))
    with live.client() as client:
        answer = client.post(URL, files=files)
    assert answer.status_code == 200
    first, broken, last = answer.json()["predictions"]
    assert broken["path"] == "broken.png"
    assert broken["error"]["kind"] == "UnusablePicture"
    assert "truncated" in broken["error"]["message"]
    detector = blemish.load(artifact)
    for row, path in ((first, pictures[0]), (last, pictures[1])):
        assert_same(row, detector.predict(path))
