"""blemish serve: a process that scores what it is sent, and ends in order."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import made_graphs as graphs
import pytest
from parts import Fitted, Run, part, write_picture
from test_watch import Refused
from test_without_torch import _WITHOUT, REFUSED

import blemish
from blemish.artifact import FORMAT
from blemish.engines import files
from blemish.store import Store

_MAIN = "import sys\nfrom blemish.cli import main\nsys.exit(main(sys.argv[1:]))"


@contextmanager
def process(
    *arguments: object, code: str = _MAIN, folder: Path
) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """`blemish serve …` in a folder: the process, its URL and what it logs."""
    log = folder / "log"
    command = [sys.executable, "-c", code, "serve", *map(str, arguments), "--port", "0"]
    with log.open("wb") as file:
        source = {**os.environ, "PYTHONPATH": str(Path(blemish.__file__).parents[1])}
        running = subprocess.Popen(
            command, stderr=file, stdout=subprocess.PIPE, cwd=folder, env=source
        )
    try:
        for _ in range(1200):
            told = [line for line in log.read_bytes().splitlines() if b'"serving"' in line]
            if told or running.poll() is not None:
                break
            time.sleep(0.05)
        assert told, log.read_text()
        yield running, json.loads(told[0])["url"], log
    finally:
        running.kill()
        running.communicate()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return write_picture(tmp_path / "dent.png", part(200, defect=True))


@pytest.fixture
def exported(fitted: Fitted, tmp_path: Path) -> Path:
    """A detector of a graph of a few operators: it needs no PyTorch, which takes long to import."""
    record = fitted("knn").record
    preprocessing = replace(record.preprocessing, height=graphs.SIDE, width=graphs.SIDE)
    told = replace(record, preprocessing=preprocessing).to_dict()
    manifest = {**told, "format": FORMAT, "export": graphs.manifest()["export"]}
    return files.write(tmp_path / "part.onnx", "onnx", graphs.onnx_bytes(), manifest)


def test_what_was_accepted_is_answered(exported: Path, picture: Path, tmp_path: Path) -> None:
    """SIGTERM while pictures are on their way."""
    content = picture.read_bytes()
    with process(exported, "--log", "json", folder=tmp_path) as (running, url, log):

        def ask(_: int) -> int:
            return httpx.post(f"{url}/v1/models/part/predict", content=content).status_code

        ask(0)
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, number) for number in range(8)]
            while sum(b'"request"' in line for line in log.read_bytes().splitlines()) < 2:
                time.sleep(0.002)
            running.send_signal(signal.SIGTERM)
            found = []
            for one in asked:
                try:
                    found.append(one.result())
                except httpx.ConnectError:  # came after the end had begun
                    found.append(0)
        assert set(found) <= {200, 503, 0}
        assert running.wait(60) == 128 + signal.SIGTERM
    rows = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert rows[-1]["event"] == "ended"
    scored = found.count(200) + 1
    with Store.open(None, tmp_path / "blemish-store") as store:  # where nothing else is said
        assert store.counts().predictions == scored


def test_an_exported_file_without_torch(exported: Path, picture: Path, tmp_path: Path) -> None:
    known = blemish.load(exported).predict(picture)
    code = f"REFUSED = {REFUSED!r}\n{_WITHOUT}\n{_MAIN}"
    with process(exported, code=code, folder=tmp_path) as (running, url, _):
        for kind in ("png", "overlay"):
            answer = httpx.post(
                f"{url}/v1/models/part/predict",
                params={"heatmap": kind},
                files={"picture": picture.read_bytes()},
                timeout=60,
            )
            (row,) = answer.json()["predictions"]
            assert row["score"] == pytest.approx(known.score, rel=1e-6)
            assert row["heatmap"]["data"]
            assert row["id"] is not None
        assert httpx.get(f"{url}/docs").status_code == 200
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 128 + signal.SIGINT


def test_what_is_wrong_is_said(part: Path, refused: Refused, tmp_path: Path) -> None:
    at = ("--store", str(tmp_path / "store"))
    assert "others can reach it" in refused("serve", part, *at, "--address", "0.0.0.0")
    tokens = tmp_path / "tokens"
    tokens.write_text(f"admin root {'a' * 32}\n")
    tokens.chmod(0o644)
    assert "others can read the tokens" in refused("serve", part, *at, "--token-file", tokens)
    assert "does not exist" in refused("serve", tmp_path / "none.blemish", *at)
    (tmp_path / "models").mkdir()
    assert "holds no models" in refused("serve", tmp_path / "models", *at)
    broken = tmp_path / "broken.blemish"
    broken.write_bytes(b"nothing")
    assert "broken.blemish" in refused("serve", broken, *at)
    assert "is called neither" in refused("serve", tokens, *at)
    assert "maps" in refused("serve", part, *at, "--keep", "map")
    assert "text" in refused("serve", part, *at, "--log", "txt")
    assert "cannot be listened at" in refused(
        "serve", part, *at, "--address", "203.0.113.1", "--token-file", _private(tokens)
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "cannot be listened at" in refused("serve", part, *at, "--port", port)


def _private(path: Path) -> Path:
    path.chmod(0o600)
    return path


def test_two_of_one_name(part: Path, refused: Refused, tmp_path: Path) -> None:
    other = tmp_path / "other" / part.name
    other.parent.mkdir()
    other.write_bytes(part.read_bytes())
    assert "rename one of them" in refused("serve", part, other, "--store", "none")


def test_a_token_file_in_a_process(exported: Path, picture: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"predict line {'p' * 32}\n")
    tokens.chmod(0o600)
    how: tuple[Any, ...] = (exported, "--token-file", tokens, "--store", "none", "--json")
    with process(*how, folder=tmp_path) as (running, url, log):
        target, content = f"{url}/v1/models/part/predict", picture.read_bytes()
        assert httpx.post(target, content=content).status_code == 401
        headers = {"Authorization": f"Bearer {'p' * 32}"}
        assert httpx.post(target, content=content, headers=headers).status_code == 200
        running.send_signal(signal.SIGTERM)
        answer = json.loads(running.communicate(timeout=60)[0])
    assert answer == {"answered": {"200": 1, "401": 1}, "signal": signal.SIGTERM}
    assert "p" * 32 not in log.read_text()
    assert not (tmp_path / "blemish-store").exists()


def test_help_names_the_options(run: Run) -> None:
    status, out, _ = run("serve --help")
    assert status == 0
    for option in ("--token-file", "--largest-batch", "--longest-wait", "--queue", "--time-limit"):
        assert option in out
    assert os.environ.get("BLEMISH_STORE") is None
