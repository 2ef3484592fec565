"""Imports point down only: read from the sources, lazy ones and those for type checkers alike."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import blemish

ROOT = Path(blemish.__file__).parent
# The rooms, the ground first: each may import those before it, and itself.
ORDER = (
    *(
        "errors",
        "extras",
        "lazy",
        "area",
        "regions",
        "types",
        "text",
        "machine",
        "files",
        "interrupts",
        "compute",
        "config",
        "artifact",
    ),
    *("images", "losses", "metrics", "anomalies", "backbones", "data", "methods"),
    *("training", "engines", "detector", "monitoring", "export", "report"),
    *("scale", "store", "serve", "bench", "cli", "__main__"),
)
# A method takes batches and returns losses or scores; who feeds it and who judges it is not its
# business.
FORBIDDEN = {"methods": {"data", "metrics", "training", "artifact"}}
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
            # `from blemish import config` names a room; `from blemish import fit` the package
            # itself.
            names = (
                [
                    f"blemish.{alias.name}" if alias.name in rooms else "blemish"
                    for alias in node.names
                ]
                if node.module == "blemish"
                else [node.module or ""]
            )
        else:
            continue
        for name in names:
            package, *rest = name.split(".")
            if package == "blemish":
                yield (rest[0] if rest else "__init__"), node.lineno


# Arrows that still point up: (room, what it imports). Nothing may be added.
UPWARD: set[tuple[str, str]] = set()


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return  # hands the public names out
    assert room in ORDER, f"{room} has no place: give it one in ORDER"
    for other, line in imported_rooms(path):
        assert other in ORDER, f"{path}:{line}: {other} has no place: give it one in ORDER"
        down = ORDER.index(other) <= ORDER.index(room)
        assert down or (room, other) in UPWARD, f"{path}:{line}: {room} imports {other}, above it"
        assert other not in FORBIDDEN.get(room, set()), (
            f"{path}:{line}: {room} must not import {other}"
        )


def test_the_rule_can_fail(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text(
        "import blemish.cli\nfrom blemish import config, fit\n"
        "def f():\n    from blemish.data.folder import scan\n"
    )
    found = sorted(imported_rooms(source))
    assert found == [("__init__", 2), ("cli", 1), ("config", 2), ("data", 4)]


def imported_at_once(statements: Iterable[ast.stmt]) -> Iterator[str]:
    """The names that are imported while a module is, not when one of its functions runs."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imported_at_once(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parts = (getattr(node, part, []) for part in ("body", "orelse", "finalbody"))
            for part in (*parts, *(each.body for each in getattr(node, "handlers", []))):
                yield from imported_at_once(part)


def graph_of(sources: dict[str, str]) -> TopologicalSorter[str]:
    """Which modules each imports at once, of sources by the names of their modules."""
    graph = {}
    for name, source in sources.items():
        found = imported_at_once(ast.parse(source).body)
        # Of `a.b.c` it is the module `a.b` where `c` is something in it.
        modules = {one if one in sources else one.rpartition(".")[0] for one in found}
        graph[name] = (modules & sources.keys()) - {name}
    return TopologicalSorter(graph)


def test_any_module_can_be_imported_first() -> None:
    sources = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path.read_text(encoding="utf-8")
        for path in SOURCES
    }
    assert len(sources) > 300
    graph_of(sources).prepare()  # raises for a circle


def test_a_circle_of_imports_is_seen() -> None:
    sources = {"a.b": "if e:\n    from a.c import d", "a.c": "def e():\n    import a.b\nimport a.d"}
    graph_of({**sources, "a.d": "def f():\n    from a import b"}).prepare()
    for late in ("from a import b", "import a.b", "class A:\n    from a.b import c"):
        with pytest.raises(CycleError):
            graph_of({**sources, "a.d": late}).prepare()
