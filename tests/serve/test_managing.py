"""Versions: taken in, promoted, rolled back, while pictures are scored."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Live, serving
from parts import Fitted

import blemish

URL = "/v1/models/part/predict"


@pytest.fixture
def folder(artifact: Path, fitted: Fitted, tmp_path: Path) -> Path:
    """models/part with two versions, the later one of another threshold."""
    own = tmp_path / "models" / "part"
    own.mkdir(parents=True)
    shutil.copy(artifact, own / "9.blemish")
    fitted("knn").with_threshold(1e9).save(own / "10.blemish")
    return own.parent


@pytest.fixture
def live(folder: Path) -> Iterator[Live]:
    with serving(folder) as running:
        yield running


def test_the_newest_is_live(live: Live) -> None:
    with live.client() as client:
        (told,) = client.get("/v1/models").json()["models"]
        assert (told["name"], told["version"], told["threshold"]) == ("part", "10", 1e9)
        found = client.get("/v1/models/part").json()
    assert [one["version"] for one in found["versions"]] == ["9", "10"]
    assert [one["live"] for one in found["versions"]] == [False, True]
    assert found["promotions"] == []


def test_no_request_is_lost_while_versions_change(live: Live, pictures: list[Path]) -> None:
    content = pictures[0].read_bytes()
    seen: Counter[tuple[int, str, int | None]] = Counter()
    ended = threading.Event()

    def ask() -> None:
        with live.client() as client:
            while not ended.is_set():
                answer = client.post(URL, content=content)
                told = answer.json()
                (row,) = told.get("predictions", [{"label": None}])
                seen[(answer.status_code, told.get("version", ""), row["label"])] += 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    with live.client() as client:
        for version in ("9", "10", "9", "10"):
            answer = client.post("/v1/models/part/promote", json={"version": version})
            assert answer.status_code == 200, answer.text
            assert answer.json()["version"] == version
            before = seen.total()
            while seen.total() < before + 8:  # two of each, so that some saw it for sure
                time.sleep(0.005)
    ended.set()
    for thread in threads:
        thread.join(30)
    # Each was scored by a version that was live, and judged by that version's threshold.
    assert set(seen) == {(200, "9", 1), (200, "10", 0)}


def test_promotions_and_the_way_back(live: Live) -> None:
    with live.client() as client:
        assert client.post("/v1/models/part/roll-back").status_code == 409
        told = {"version": "9", "reason": "fewer misses"}
        assert client.post("/v1/models/part/promote", json=told).status_code == 200
        assert client.post("/v1/models/part/promote", json=told).status_code == 409
        assert client.post("/v1/models/part/promote", json={"version": "8"}).status_code == 404
        assert client.post("/v1/models/other/promote", json=told).status_code == 404
        assert client.post("/v1/models/part/promote", json={}).status_code == 400
        assert client.post("/v1/models/part/roll-back").json()["version"] == "10"
        assert client.post("/v1/models/part/roll-back").status_code == 409
        history = client.get("/v1/models/part").json()["promotions"]
        told_by_metrics = client.get("/metrics").text
    assert [(one["version"], one["kind"], one["who"]) for one in history] == [
        ("10", "roll back", "local"),
        ("9", "promote", "local"),
        ("10", "promote", "blemish"),
    ]
    assert history[1]["reason"] == "fewer misses"
    assert 'blemish_live{model="part",version="10"} 1.0' in told_by_metrics
    assert 'blemish_live{model="part",version="9"} 0.0' in told_by_metrics


def test_a_version_by_its_name(live: Live, pictures: list[Path]) -> None:
    content = pictures[0].read_bytes()
    with live.client() as client:
        for version, label in (("9", 1), ("10", 0)):
            answer = client.post(URL, content=content, params={"version": version}).json()
            assert (answer["version"], answer["predictions"][0]["label"]) == (version, label)
        assert client.post(URL, content=content, params={"version": "8"}).status_code == 404
        assert client.post(URL, content=content, params={"version": "../9"}).status_code == 404


@pytest.mark.parametrize("way", ["body", "multipart"])
def test_a_version_is_taken_in(live: Live, folder: Path, artifact: Path, way: str) -> None:
    content, params = artifact.read_bytes(), {"version": "11"}
    url = "/v1/models/part/versions"
    with live.client() as client:
        if way == "body":
            answer = client.post(url, params=params, content=content)
        else:
            answer = client.post(url, params=params, files={"model": ("x.blemish", content)})
        assert answer.status_code == 201, answer.text
        assert (folder / "part" / "11.blemish").read_bytes() == content
        assert client.get("/v1/models/part").json()["version"] == "10"  # until it is promoted
        again = client.post(url, params=params, content=content)
        assert again.status_code == 409
        answer = client.post("/v1/models/part/promote", json={"version": "11"})
        assert answer.json()["version"] == "11"


def test_a_new_model(live: Live, folder: Path, artifact: Path, pictures: list[Path]) -> None:
    with live.client() as client:
        answer = client.post(
            "/v1/models/nut/versions", params={"version": "1"}, content=artifact.read_bytes()
        )
        assert answer.status_code == 201, answer.text
        found = client.post("/v1/models/nut/predict", content=pictures[0].read_bytes())
    assert found.json()["predictions"][0]["label"] == 1


def test_an_exported_file(tmp_path: Path, made_onnx: Path, pictures: list[Path]) -> None:
    root = tmp_path / "models"
    (root / "part").mkdir(parents=True)
    shutil.copy(made_onnx, root / "part" / "1.onnx")
    with serving(root) as live, live.client() as client:
        answer = client.post(
            "/v1/models/part/versions",
            params={"version": "2", "kind": "onnx"},
            content=made_onnx.read_bytes(),
        )
        assert answer.status_code == 201, answer.text
        client.post("/v1/models/part/promote", json={"version": "2"}).raise_for_status()
        (row,) = client.post(URL, content=pictures[0].read_bytes()).json()["predictions"]
    known = blemish.load(made_onnx).predict(pictures[0])
    assert row["score"] == pytest.approx(known.score, rel=1e-5)


@pytest.mark.parametrize("damage", ["cut", "changed", "other", "empty"])
def test_what_is_no_model_changes_nothing(
    live: Live, folder: Path, artifact: Path, pictures: list[Path], damage: str
) -> None:
    content = bytearray(artifact.read_bytes())
    if damage == "changed":
        content[-1] ^= 1
    content = {"cut": content[:1000], "other": pictures[0].read_bytes(), "empty": b""}.get(
        damage, content
    )
    before = sorted(path.name for path in (folder / "part").iterdir())
    with live.client() as client:
        answer = client.post(
            "/v1/models/part/versions", params={"version": "11"}, content=bytes(content)
        )
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert error["kind"] == "UnusableModel"
        assert str(folder) not in answer.text
        assert len(error["message"]) > len("the model cannot be used: ")
        assert client.get("/v1/models/part").json()["version"] == "10"
        assert client.post("/v1/models/part/promote", json={"version": "11"}).status_code == 404
    assert sorted(path.name for path in (folder / "part").iterdir()) == before


@pytest.mark.parametrize("version", ["../11", "a/b", "", ".hidden", "x" * 65, "a b", "a\0b"])
def test_a_name_that_is_none(live: Live, artifact: Path, version: str) -> None:
    with live.client() as client:
        answer = client.post("/v1/models/part/versions", params={"version": version}, content=b"x")
    assert answer.status_code == 400


def test_a_service_of_files_takes_none_in(artifact: Path) -> None:
    with serving(artifact) as live, live.client() as client:
        answer = client.post("/v1/models/part/versions", params={"version": "2"}, content=b"x")
    assert answer.status_code == 409


def test_a_corrupt_file_that_lies_there(live: Live, folder: Path) -> None:
    (folder / "part" / "11.blemish").write_bytes(b"nothing")
    with live.client() as client:
        answer = client.post("/v1/models/part/promote", json={"version": "11"})
        assert answer.status_code == 422
        assert str(folder) not in answer.text
        assert client.get("/v1/models/part").json()["version"] == "10"


def test_events_are_told_of(live: Live, pictures: list[Path]) -> None:
    with live.client() as client, client.stream("GET", "/v1/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == ": here"
        with live.client() as other:
            other.post(URL, content=pictures[0].read_bytes(), params={"name": "<b>.png"})
            other.post("/v1/models/part/promote", json={"version": "9"})
        told = []
        for line in lines:
            if line.startswith("data: "):
                told.append(json.loads(line[6:]))
            if len(told) == 2:
                break
    assert told[0]["name"] == "<b>.png"
    assert len(told[0]["picture"]) == 32
    assert told[0]["label"] == 0
    assert (told[1]["version"], told[1]["before"]) == ("9", "10")


def test_the_page_about_it(live: Live) -> None:
    with live.client() as client:
        page = client.get("/docs")
        assert page.status_code == 200
        assert "<script" not in page.text
        assert "style=" not in page.text
        assert "http://" not in page.text.replace(live.url, "")
        assert "https://" not in page.text
        assert client.get("/docs/manual.css").headers["content-type"].startswith("text/css")
        schema = client.get("/openapi.json").json()
        for path, methods in schema["paths"].items():
            assert path in page.text
            assert all(told["description"] for told in methods.values())
