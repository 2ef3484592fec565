"""What was scored is in the store: rows, pictures, thumbnails, maps."""

from __future__ import annotations

import base64
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import serving
from postgres import Server

import blemish
from blemish.errors import StoreError
from blemish.images import decode
from blemish.store import Store

URL = "/v1/models/part/predict"


def test_everything_is_kept(artifact: Path, pictures: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with serving(artifact, store_folder=folder) as live:

        def ask(path: Path) -> dict[str, object]:
            with live.client() as client:
                params = {"source": "camera 1", "name": path.name}
                answer = client.post(URL, content=path.read_bytes(), params=params)
            (row,) = answer.json()["predictions"]
            return dict(row)

        with ThreadPoolExecutor(8) as pool:
            rows = list(pool.map(ask, pictures))
        version = live.service.models.live("part").version
    assert len({row["id"] for row in rows}) == len(pictures)
    detector = blemish.load(artifact)
    with Store.open(None, folder) as store:
        for row, path in zip(rows, pictures, strict=True):
            known = detector.predict(path)
            kept = store.prediction(int(str(row["id"])))
            assert kept is not None
            assert (kept.picture, kept.label) == (known.digest, known.label)
            assert (kept.model, kept.version, kept.source) == ("part", version, "camera 1")
            assert kept.score == pytest.approx(known.score, rel=1e-4)
            found = store.picture(known.digest)
            assert found is not None
            assert found.read_bytes() == path.read_bytes()
            small = store.thumbnail(known.digest)
            assert small is not None
            assert decode(small).size == (64, 64)
            values = store.map(known.digest, "part", version)
            assert values == pytest.approx(known.anomaly_map, rel=2e-3, abs=1e-3)
        assert store.counts().predictions == len(pictures)
        (told,) = store.versions("part")
        assert told.method == "knn"
        assert told.threshold == known.threshold


def test_promotions_outlive_the_process(artifact: Path, tmp_path: Path) -> None:
    own = tmp_path / "models" / "part"
    own.mkdir(parents=True)
    for version in ("1", "2"):
        (own / f"{version}.blemish").write_bytes(artifact.read_bytes())
    folder = tmp_path / "store"
    with serving(own.parent, store_folder=folder) as live, live.client() as client:
        assert client.post("/v1/models/part/promote", json={"version": "1"}).status_code == 200
    with serving(own.parent, store_folder=folder) as live, live.client() as client:
        told = client.get("/v1/models/part").json()
        assert told["version"] == "1"
        assert [one["version"] for one in told["promotions"]] == ["1", "2"]
        assert client.post("/v1/models/part/roll-back").json()["version"] == "2"
    with serving(own.parent, store_folder=folder) as live:
        assert live.service.models.live("part").version == "2"


def test_less_is_kept(artifact: Path, pictures: list[Path], tmp_path: Path) -> None:
    how = {"store_folder": tmp_path, "keep_pictures": False, "keep_maps": False}
    with serving(artifact, **how) as live, live.client() as client:
        client.post(URL, content=pictures[0].read_bytes())
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 64, 64, 3]}
        tensor["data"] = np.zeros(64 * 64 * 3, int).tolist()
        client.post("/v2/models/part/infer", json={"inputs": [tensor]})
    assert {path.name for path in (tmp_path / "media").iterdir()} == {"thumbnails"}
    with Store.open(None, tmp_path) as store:
        assert store.counts().predictions == 2


def test_scoring_goes_on_while_the_database_is_gone(
    artifact: Path, pictures: list[Path], tmp_path: Path
) -> None:
    server = Server()
    try:
        with server.database() as url:
            how = {"store_url": url, "store_folder": tmp_path / "media"}
            with serving(artifact, **how) as live, live.client() as client:

                def ask(path: Path) -> dict[str, object]:
                    answer = client.post(URL, content=path.read_bytes())
                    assert answer.status_code == 200
                    (row,) = answer.json()["predictions"]
                    return dict(row)

                assert ask(pictures[0])["id"] is not None
                server.stop()
                gone = [ask(path) for path in pictures[1:4]]
                assert [row["id"] for row in gone] == [None] * 3
                assert [row["label"] for row in gone] == [0, 1, 0]
                answer = client.post("/v1/models/part/promote", json={"version": "x"})
                assert answer.status_code in (404, 503)
                told = client.get("/v1/models/part")
                assert told.status_code == 503
                assert "retry-after" in told.headers
                assert str(tmp_path) not in told.text
                server.start()
                for _ in range(600):
                    if not live.service.keeper or not live.service.keeper.spool.waiting:
                        break
                    time.sleep(0.05)
                assert ask(pictures[4])["id"] is not None
                assert live.service.store is not None
                assert live.service.store.counts().predictions == 5
                assert "blemish_store_waiting 0.0" in client.get("/metrics").text
            assert any(line["event"] == "predictions wait for the store" for line in live.lines)
    finally:
        server.remove()


def test_what_waits_when_the_service_ends(
    artifact: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Store, rows: object) -> list[int]:
        raise StoreError("the database is unreachable; try again", retryable=True)

    with monkeypatch.context() as patch, serving(artifact, store_folder=tmp_path) as live:
        patch.setattr(Store, "add_predictions", gone)
        with live.client() as client:
            for path in pictures[:3]:
                assert client.post(URL, content=path.read_bytes()).status_code == 200
    with serving(artifact, store_folder=tmp_path) as live:
        assert live.service.store is not None
        for _ in range(200):
            if live.service.store.counts().predictions == 3:
                break
            time.sleep(0.05)
        assert live.service.store.counts().predictions == 3


def test_a_full_disk_harms_no_answer(
    artifact: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Store, picture: str, content: bytes) -> Path:
        raise StoreError("a picture cannot be kept (No space left on device)", retryable=True)

    monkeypatch.setattr(Store, "put_picture", full)
    with serving(artifact, store_folder=tmp_path) as live, live.client() as client:
        for path in pictures[:2]:
            answer = client.post(URL, content=path.read_bytes())
            assert answer.status_code == 200
            (row,) = answer.json()["predictions"]
            assert row["id"] is not None
            assert row["notes"] == ["a picture cannot be kept (No space left on device)"]
    assert [line["event"] for line in live.lines].count("a picture is not kept") == 1


@pytest.mark.parametrize("binary", [True, False])
def test_notes_by_the_inference_protocol(
    artifact: Path,
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    binary: bool,
) -> None:
    def full(self: Store, picture: str, content: bytes) -> Path:
        raise StoreError("a picture cannot be kept (No space left on device)", retryable=True)

    files = [pictures[0].read_bytes(), b"no picture", pictures[1].read_bytes()]
    data = [base64.b64encode(one).decode() for one in files]
    asked: dict[str, Any] = {
        "inputs": [{"name": "pictures", "datatype": "BYTES", "shape": [3], "data": data}],
        "outputs": [{"name": "score", "parameters": {"binary_data": binary}}],
    }

    def parameters() -> Any:
        answer = client.post("/v2/models/part/infer", json=asked)
        assert answer.status_code == 200
        length = answer.headers.get("Inference-Header-Content-Length")
        return json.loads(answer.content[: length and int(length)]).get("parameters")

    with serving(artifact, store_folder=tmp_path) as live, live.client() as client:
        assert parameters() is None
        monkeypatch.setattr(Store, "put_picture", full)
        (told,) = parameters().items()
    note = "a picture cannot be kept (No space left on device)"
    assert (told[0], json.loads(told[1])) == ("notes", [[note], [], [note]])


@pytest.mark.parametrize("retryable", [True, False])
def test_an_answer_says_that_its_prediction_is_not_in_the_store(
    artifact: Path,
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    retryable: bool,
) -> None:
    """As on a full disk: nothing waits, and nothing is lost, without a word."""

    def full(self: object, *_: object) -> None:
        raise StoreError("its disk is full; make room", retryable=retryable)

    monkeypatch.setattr(Store, "put_picture", full)
    with monkeypatch.context() as patch, serving(artifact, store_folder=tmp_path) as live:
        patch.setattr(Store, "add_predictions", full)
        with live.client() as client:
            for path in pictures[:2]:
                (row,) = client.post(URL, content=path.read_bytes()).json()["predictions"]
                assert row["id"] is None
                waits = "not in the store yet, it is written as soon as that can be: "
                begins = waits if retryable else "not kept: "
                assert row["notes"][0] == f"{begins}its disk is full; make room"
    events = [line["event"] for line in live.lines]
    assert events.count("a picture is not kept") == 1
    assert events.count("predictions wait for the store") == retryable
    lost = [line["rows"] for line in live.lines if line["event"] == "predictions are lost"]
    assert lost == [] if retryable else sum(lost) == 2


def test_what_still_waits_at_the_end_and_cannot_be_left_is_told(
    artifact: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, *_: object) -> None:
        raise StoreError("its disk is full; make room", retryable=True)

    monkeypatch.setattr(Store, "add_predictions", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with serving(artifact, store_folder=tmp_path / "store") as live, live.client() as client:
        (tmp_path / "store" / "waiting.jsonl").mkdir()  # where nothing can be written
        assert client.post(URL, content=pictures[0].read_bytes()).status_code == 200
    (told,) = [line for line in live.lines if line["event"] == "predictions were not written"]
    (kept,) = tmp_path.glob("blemish-kept-*/waiting.jsonl")
    assert f"kept in {kept}" in told["reason"]
    assert len(kept.read_bytes().splitlines()) == 1
