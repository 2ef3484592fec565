"""The examples of the service do what they say."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Live, serving
from parts import part, write_picture

import blemish

EXAMPLES = Path(__file__).parents[2] / "examples" / "serving"


@pytest.fixture
def live(artifact: Path, tmp_path: Path) -> Iterator[Live]:
    with serving(artifact, store_folder=tmp_path / "store") as running:
        yield running


def told(folder: Path, *command: object, path: str = "") -> str:
    """What a command prints; it must succeed."""
    source = str(Path(blemish.__file__).parents[1])
    known = {**os.environ, "PYTHONPATH": source, "PATH": f"{path}:{os.environ['PATH']}"}
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
    programs = tmp_path / "programs"
    programs.mkdir()
    command = programs / "blemish"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m blemish "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    line = ("bash", EXAMPLES / "factory.sh", tmp_path / "in", artifact, tmp_path / "out", live.url)
    how = ("part", "--once", "--settle", "0.05", "--interval", "0.05", "--device", "cpu")
    told(tmp_path, *line, *how, path=str(programs))
    assert {path.name for path in (tmp_path / "out" / "good").iterdir()} >= {"200.png", "202.png"}
    store = live.service.store
    assert store is not None
    (row,) = store.predictions()
    assert (row.source, row.label) == ("defect on the line", 1)
