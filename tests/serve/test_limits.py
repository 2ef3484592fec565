"""What is too much, too slow or not wanted any more."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from live import Live, serving
from parts import write_picture

from blemish.detector.predict import Detector
from blemish.detector.reading import Reading
from blemish.errors import EngineError, NonFiniteError

URL = "/v1/models/part/predict"


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[int]]]:
    """While open, no batch ends before the event is set; the sizes of those that began."""
    free, sizes = threading.Event(), []
    known = Detector.predict_loaded

    def waiting(self: Detector, loaded: Any) -> Any:
        sizes.append(len(loaded))
        assert free.wait(30)
        return known(self, loaded)

    with monkeypatch.context() as patch:
        patch.setattr(Detector, "predict_loaded", waiting)
        try:
            yield free, sizes
        finally:
            free.set()


def until(true: Any) -> None:
    """Wait until something is so."""
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to be")


def connected(live: Live) -> socket.socket:
    parts = urlsplit(live.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def answer_of(raw: socket.socket) -> bytes:
    """What comes, to the end of a JSON document."""
    told = b""
    while not told.endswith(b"}}") and (more := raw.recv(4096)):
        told += more
    return told


def head(length: int | str, path: str = URL) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


def test_pictures_of_several_clients_are_scored_together(
    artifact: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(artifact, largest_batch=4) as live, held(monkeypatch) as (free, sizes):

        def ask(path: Path) -> int:
            with live.client() as client:
                return client.post(URL, content=path.read_bytes()).status_code

        with ThreadPoolExecutor(9) as pool:
            first = pool.submit(ask, pictures[0])
            until(lambda: sizes == [1])  # alone, as nobody else was on the way
            others = [pool.submit(ask, path) for path in pictures]
            until(lambda: live.service.queued == 9)
            until(lambda: len(live.service.models.live("part")._batcher._ready) == 8)
            free.set()
            assert [one.result() for one in (first, *others)] == [200] * 9
    assert sizes == [1, 4, 4]


def test_the_longest_wait(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[Path]
) -> None:
    """A picture does not wait longer for one that is being decoded."""
    decoding, decoded = threading.Event(), threading.Event()
    known = Reading.load

    def load(self: Reading, given: Any, *rest: Any, **more: Any) -> Any:
        if getattr(given, "name", "") == "slow":
            decoding.set()
            assert decoded.wait(30)
        return known(self, given, *rest, **more)

    monkeypatch.setattr(Reading, "load", load)
    with serving(artifact, longest_wait_ms=50) as live, ThreadPoolExecutor() as pool:

        def ask(name: str) -> int:
            with live.client() as client:
                params = {"name": name}
                return client.post(URL, content=pictures[0].read_bytes(), params=params).status_code

        slow = pool.submit(ask, "slow")
        assert decoding.wait(30)
        assert ask("quick") == 200
        assert not slow.done()
        decoded.set()
        assert slow.result() == 200


def test_a_full_queue_is_told_before_a_body_is_read(
    artifact: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pictures[0].read_bytes()
    with serving(artifact, queue=2) as live, held(monkeypatch) as (free, _):
        with ThreadPoolExecutor() as pool, live.client() as client:
            waiting = [pool.submit(client.post, URL, content=content) for _ in range(2)]
            until(lambda: live.service.queued == 2)
            with connected(live) as raw:  # of which no byte of the body is sent
                raw.sendall(head(1000))
                answer = answer_of(raw)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in answer.lower()
            assert b'"kind":"Busy"' in answer
            assert client.get("/v2/health/ready").status_code == 200
            free.set()
            assert [one.result().status_code for one in waiting] == [200, 200]
        assert live.service.queued == live.service.held == 0
        assert client_status(live, content) == 200


def client_status(live: Live, content: bytes, **more: Any) -> int:
    with live.client() as client:
        return client.post(URL, content=content, **more).status_code


def test_memory_for_bodies_has_an_end(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(artifact, held_bytes=100_000) as live:
        with connected(live) as raw:
            raw.sendall(head(90_000) + b"x" * 80_000)
            until(lambda: live.service.held == 80_000)
            assert client_status(live, b"x" * 30_000) == 503
        until(lambda: live.service.held == 0)
        assert client_status(live, b"x" * 30_000) == 422


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_long(artifact: Path, declared: bool) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    with serving(artifact, largest_upload=100_000) as live, live.client() as client:
        content = b"x" * 1_000_000 if declared else chunks()
        answer = client.post(URL, content=content)
        assert answer.status_code == 413
        assert "100,000 bytes" in answer.json()["error"]["message"]
        assert client.get("/v1/me").status_code == 200


def test_more_pixels_than_there_may_be(artifact: Path, tmp_path: Path) -> None:
    large = write_picture(tmp_path / "large.png", np.zeros((100, 101, 3), np.uint8))
    with serving(artifact, largest_pixels=10_000) as live, live.client() as client:
        answer = client.post(URL, content=large.read_bytes())
    assert answer.status_code == 422
    assert "the limit is 10,000" in answer.json()["error"]["message"]


def test_more_pictures_than_there_may_be(artifact: Path, pictures: list[Path]) -> None:
    with serving(artifact, most_pictures=2) as live, live.client() as client:
        files = [("picture", ("a.png", pictures[0].read_bytes()))]
        for count, status in ((2, 200), (3, 413), (12, 413)):
            assert client.post(URL, files=files * count).status_code == status


def test_a_body_that_comes_too_slowly(artifact: Path) -> None:
    with serving(artifact, time_limit_s=0.3) as live, connected(live) as raw:
        raw.sendall(head(1000) + b"x" * 10)
        answer = answer_of(raw)
    assert answer.startswith(b"HTTP/1.1 408")
    assert live.service.held == live.service.queued == 0


@pytest.mark.parametrize("begun", [b"", b"POST /v1", b"GET /v2/health/live HTTP/1.1\r\nHost: l"])
def test_a_head_that_never_ends(artifact: Path, begun: bytes) -> None:
    with serving(artifact, time_limit_s=0.3) as live, connected(live) as raw:
        raw.sendall(begun)
        assert raw.recv(4096) == b""  # closed
        with live.client() as client:
            for pause in (0.0, 0.2):  # one that goes on is not
                time.sleep(pause)
                assert client.get("/v2/health/live").status_code == 200


def test_a_second_head_that_never_ends(artifact: Path) -> None:
    whole = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serving(artifact, time_limit_s=0.3) as live, connected(live) as raw:
        raw.sendall(whole)
        answer = b""
        while not answer.endswith(b"}"):
            answer += raw.recv(4096)
        raw.sendall(whole[:20])
        assert raw.recv(4096) == b""


def test_an_answer_that_comes_too_late(
    artifact: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pictures[0].read_bytes()
    with (
        serving(artifact, time_limit_s=0.3) as live,
        held(monkeypatch) as (free, sizes),
        live.client() as client,
    ):
        answer = client.post(URL, content=content)
        assert answer.status_code == 504
        assert answer.json()["error"]["kind"] == "TimeUp"
        late = [client.post(URL, content=content).status_code for _ in range(2)]
        assert late == [504, 504]
        free.set()
        until(lambda: client.post(URL, content=content).status_code == 200)
    assert sizes[:2] == [1, 1]  # what nobody waited for any more was never begun


def test_a_client_that_has_gone(
    artifact: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pictures[0].read_bytes()
    with serving(artifact) as live, held(monkeypatch) as (free, sizes):
        with ThreadPoolExecutor() as pool:
            first = pool.submit(client_status, live, content)
            until(lambda: sizes == [1])
            for _ in range(3):
                with connected(live) as raw:
                    raw.sendall(head(len(content)) + content)
                    until(lambda: live.service.queued == 2)
                until(lambda: live.service.queued == 1)
            free.set()
            assert first.result() == 200
        assert client_status(live, content) == 200
    assert sizes == [1, 1]  # none of the three was scored
    assert [line["status"] for line in live.lines if line["event"] == "request"].count(499) == 3


def test_a_body_that_ends_early(artifact: Path) -> None:
    with serving(artifact) as live:
        for sent in (b"", b"x" * 10):
            with connected(live) as raw:
                raw.sendall(head(1000) + sent)
        until(lambda: [line["status"] for line in live.lines].count(499) == 2)
        assert live.service.held == live.service.queued == 0


def test_a_fault_of_one_does_not_harm_its_neighbours(
    artifact: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One picture in a batch whose score is not finite, and one that nobody has thought of."""
    known = Detector.predict_loaded
    sizes = []

    def failing(self: Detector, loaded: Any) -> Any:
        sizes.append(len(loaded))
        for one in loaded:
            if one.source == "nan":
                raise NonFiniteError("nan: the score is not finite")
            if one.source == "bug":
                raise ZeroDivisionError("/secret/place")
        return known(self, loaded)

    monkeypatch.setattr(Detector, "predict_loaded", failing)
    content = pictures[0].read_bytes()
    with serving(artifact, longest_wait_ms=500) as live, ThreadPoolExecutor() as pool:

        def ask(name: str) -> tuple[int, str]:
            with live.client() as client:
                answer = client.post(URL, content=content, params={"name": name})
            return answer.status_code, answer.text

        found = dict(zip("abc", pool.map(ask, ("good", "nan", "bug")), strict=True))
    assert found["a"][0] == 200
    assert found["b"][0] == 422
    assert "not finite" in found["b"][1]
    assert found["c"][0] == 500
    assert "secret" not in found["c"][1]
    (line,) = [line for line in live.lines if line["level"] == "error"]
    assert "ZeroDivisionError" in line["traceback"]


def test_an_unknown_category(artifact: Path, pictures: list[Path]) -> None:
    with serving(artifact) as live, live.client() as client:
        params = {"category": "nut"}
        answer = client.post(URL, content=pictures[0].read_bytes(), params=params)
    assert answer.status_code == 400
    assert "knows no categories" in answer.json()["error"]["message"]


def test_what_was_accepted_is_done_before_the_end(
    artifact: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pictures[0].read_bytes()
    with (
        ThreadPoolExecutor() as pool,
        serving(artifact) as live,
        held(monkeypatch) as (free, _),
    ):
        asked = [pool.submit(client_status, live, content) for _ in range(3)]
        until(lambda: live.service.queued == 3)
        with live.client() as client, client.stream("GET", "/v1/events") as stream:
            live.server.should_exit = True
            assert list(stream.iter_lines())[-1] == ""  # they end, or it never would
        free.set()
        assert [one.result() for one in asked] == [200] * 3


def test_an_engine_that_fails(
    artifact: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message names the file, which is for the log alone."""

    def failing(self: Detector, loaded: Any) -> Any:
        raise EngineError(f"{artifact}: the engine failed while it ran")

    with serving(artifact) as live, live.client() as client:
        monkeypatch.setattr(Detector, "predict_loaded", failing)
        answer = client.post(URL, content=pictures[0].read_bytes())
        assert answer.status_code == 500
        assert answer.json()["error"]["kind"] == "EngineError"
        assert str(artifact) not in answer.text
    assert any(str(artifact) in line.get("traceback", "") for line in live.lines)
