"""The examples of the service do what they say."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from live import Live, serving
from parts import part, write_picture

import blemish

EXAMPLES = Path(__file__).parents[2] / "examples" / "serving"


@pytest.fixture
def live(artifact: Path, tmp_path: Path) -> Iterator[Live]:
    with serving(artifact, store_folder=tmp_path / "store") as running:
        yield running


def programs(folder: Path) -> str:
    """A folder of programs, with `blemish`."""
    made = folder / "programs"
    made.mkdir()
    command = made / "blemish"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m blemish "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return str(made)


def environment(path: str) -> dict[str, str]:
    source = str(Path(blemish.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": source, "PATH": f"{path}:{os.environ['PATH']}"}


def until(what: Callable[[], Any]) -> None:
    ends = time.monotonic() + 90
    while not what():
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.05)


def told(folder: Path, *command: object, path: str = "") -> str:
    """What a command prints; it must succeed."""
    known = environment(path)
    words = [str(one) for one in command]
    done = subprocess.run(
        words, cwd=folder, env=known, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_client_in_python(live: Live, pictures: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(pictures[0].parent, folder)
    (folder / "broken.png").write_bytes(b"x")
    script = EXAMPLES / "client.py"
    lines = told(tmp_path, sys.executable, script, live.url, "part", folder).splitlines()
    assert len(lines) == len(pictures) + 1
    assert "DEFECT, 1 regions" in lines[0]
    assert " good, 0 regions" in lines[1]
    assert "broken.png: the picture" in lines[-1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_client_in_curl(live: Live, pictures: list[Path], tmp_path: Path) -> None:
    said = told(tmp_path, "bash", EXAMPLES / "client.sh", live.url, "part", *pictures[:2])
    one, several, models = [json.loads(line) for line in said.splitlines()]
    assert [row["label"] for row in one["predictions"]] == [1]
    assert [row["label"] for row in several["predictions"]] == [1, 0]
    assert models["models"][0]["name"] == "part"
    assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_a_factory(live: Live, artifact: Path, tmp_path: Path) -> None:
    for seed in range(200, 204):
        write_picture(tmp_path / "in" / f"{seed}.png", part(seed, defect=seed == 201))
    line = ("bash", EXAMPLES / "factory.sh", tmp_path / "in", artifact, tmp_path / "out", live.url)
    how = ("part", "--once", "--settle", "0.05", "--interval", "0.05", "--device", "cpu")
    told(tmp_path, *line, *how, path=programs(tmp_path))
    assert {path.name for path in (tmp_path / "out" / "good").iterdir()} >= {"200.png", "202.png"}
    store = live.service.store
    assert store is not None
    (row,) = store.predictions()
    assert (row.source, row.label) == ("defect on the line", 1)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_a_factory_goes_on_while_the_service_is_away(artifact: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("predict line camera-0123456789abcdef\n")
    tokens.chmod(0o600)
    for seed in (211, 212):
        write_picture(tmp_path / "in" / f"a {seed}.png", part(seed, defect=seed == 211))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    line = ("bash", EXAMPLES / "factory.sh", tmp_path / "in", artifact, tmp_path / "out", url)
    options = ("part", "--settle", "0.05", "--interval", "0.05", "--device", "cpu")
    known = {**environment(programs(tmp_path)), "PAUSE": "0.2"}
    known["BLEMISH_TOKEN"] = "camera-0123456789abcdef"
    with (tmp_path / "said").open("w") as said:
        factory = subprocess.Popen(
            [*map(str, line), *options], cwd=tmp_path, env=known, stdout=said, stderr=said,
            process_group=0,
        )  # fmt: skip
    try:
        until(lambda: "does not answer" in (tmp_path / "said").read_text())
        assert factory.poll() is None
        how = {"store_folder": tmp_path / "store", "port": port, "token_file": tokens}
        with serving(artifact, **how) as live:
            store = live.service.store
            until(lambda: len(store.predictions()) == 1)
            write_picture(tmp_path / "in" / "b.png", part(213, defect=True))
            until(lambda: len(store.predictions()) == 2)
            until(lambda: (tmp_path / "out" / "sent").read_text().count("\n") == 2)
        os.killpg(factory.pid, signal.SIGINT)  # as Ctrl-C does
        factory.wait(30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(factory.pid, signal.SIGKILL)
        factory.wait()
    text = (tmp_path / "said").read_text()
    assert "Traceback" not in text
    assert "a 211.png: " in text


def test_a_factory_says_how_it_is_called(tmp_path: Path) -> None:
    script = EXAMPLES / "factory.sh"
    done = subprocess.run(["bash", script, "in"], capture_output=True, text=True, check=False)
    assert (done.returncode, "usage: bash factory.sh IN" in done.stderr) == (2, True)
