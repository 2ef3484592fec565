"""Imports point down only: read from the sources, lazy ones and those for type checkers alike."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import blemish

ROOT = Path(blemish.__file__).parent
# A room may import rooms of a lower rank, and itself. Rank 4, where results are made, may also look sideways.
RANKS: dict[str, float] = {
    "errors": -1,
    "types": 0,
    "config": 1,
    "images": 1,
    "files": 0,
    "interrupts": 0,
    "compute": 1,
    "artifact": 1.5,  # above `config` and `files`, and below `backbones`, whose weights one kind of it holds
    "data": 2,
    "backbones": 2,
    "anomalies": 2,
    "losses": 2,
    "metrics": 2,
    "thresholds": 2,
    "categories": 3,
    "manifest": 3,
    "methods": 3,
    "suites": 3,
    "catalogue": 4,
    "training": 4,
    "predictor": 4,
    "calibration": 4,
    "fitting": 4,
    "refining": 4,
    "pretraining": 4,
    "evaluation": 4,
    "report": 4,
    "outputs": 4,
    "results": 4,
    "simulation": 4,
    "illustration": 4,
    "planning": 4,
    "estimates": 4,
    "efficiency": 4,
    "benchmark": 5,
    "doctor": 5,
    "console": 6,
    "wording": 6,
    "cli": 6,
    "__main__": 7,
    "__init__": 7,  # hands the public names out
}
SIDEWAYS = {4, 6}
# A method takes batches and returns losses or scores; who feeds it and who judges it is not its business.
FORBIDDEN = {"methods": {"data", "metrics", "training", "thresholds", "artifact"}}
SOURCES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    """(room, line) of every import of blemish in a source, wherever it stands."""
    rooms = {room_of(source) for source in SOURCES}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            # `from blemish import config` names a room; `from blemish import fit` the package itself.
            names = (
                [f"blemish.{alias.name}" if alias.name in rooms else "blemish" for alias in node.names]
                if node.module == "blemish"
                else [node.module or ""]
            )
        else:
            continue
        for name in names:
            package, *rest = name.split(".")
            if package == "blemish":
                yield (rest[0] if rest else "__init__"), node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    assert room in RANKS, f"{room} has no rank: give it one in RANKS"
    for other, line in imported_rooms(path):
        assert other in RANKS, f"{path}:{line}: {other} has no rank: give it one in RANKS"
        down = RANKS[other] < RANKS[room]
        level = RANKS[other] == RANKS[room] and (other == room or RANKS[room] in SIDEWAYS)
        assert down or level, f"{path}:{line}: {room} (rank {RANKS[room]}) imports {other} (rank {RANKS[other]})"
        assert other not in FORBIDDEN.get(room, set()), f"{path}:{line}: {room} must not import {other}"


def test_the_rule_can_fail(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text(
        "import blemish.cli\nfrom blemish import config, fit\ndef f():\n    from blemish.data.folder import scan\n"
    )
    found = sorted(imported_rooms(source))
    assert found == [("__init__", 2), ("cli", 1), ("config", 2), ("data", 4)]
