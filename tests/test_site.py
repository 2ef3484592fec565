"""The documentation site: built strictly, its reference made of the program, and nothing in it that
a reader without a network would miss."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from blemish.cli import app

ROOT = Path(__file__).parents[1]
# What a browser fetches by itself; links to elsewhere are for the reader to follow.
FETCHED = re.compile(
    r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=\"?(https?:)?//[^>]*>"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in ("mkdocs", "material", "mkdocstrings") if not _is_here(name)]
    if missing and not os.environ.get("BLEMISH_CI"):
        pytest.skip(f"needs the extra docs: {', '.join(missing)} not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def _is_here(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def test_every_command_has_its_page_with_all_its_options(site: Path) -> None:
    tree = app.command_tree()
    for words in ("fit", "predict", "data synthetic", "bench", "bench table"):
        command = tree
        for word in words.split():
            command = command.commands[word]
        page = (site / "reference" / "cli" / f"{words.replace(' ', '-')}.html").read_text("utf-8")
        options = {name for one in command.params for name in one.opts if name.startswith("--")}
        assert len(options) > 2
        assert [name for name in options if name not in page] == []


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        found = FETCHED.findall(page.read_text("utf-8"))
        assert found == [], page
    styles = [path.read_text("utf-8") for path in site.rglob("*.css")]
    assert styles
    assert not any(re.search(r"(@import|url\()[^;)]*https?://", style) for style in styles)
    sample = '<script src="https://cdn.example/x.js"></script>'
    assert FETCHED.search(sample)  # so the pattern can find one


def test_the_reference_is_made_of_docstrings(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text("utf-8")
    for name in ("blemish.fit", "blemish.Detector.predict_many", "blemish.Prediction"):
        assert f'id="{name}"' in page, name
    methods = (site / "reference" / "methods.html").read_text("utf-8")
    assert "bank_size" in methods


def test_it_can_be_searched(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    assert any("synthetic" in entry["text"] for entry in index["docs"])
