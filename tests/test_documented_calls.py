"""What README and docs tell readers to type: every command and option is there, and every call of
the library takes the arguments that it is given."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import blemish
from blemish.cli.app import command_tree
from blemish.methods import METHODS

ROOT = Path(__file__).parents[1]
# The log tells of commands as they were.
PAGES = sorted(
    page
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
    if page != ROOT / "docs" / "log.md"
)
BLOCK = re.compile(r"(?:^(?: {4,}[^\n]*)?\n)+", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*|-[a-z])(?![\w-])")


def wrong_in(line: str) -> str:
    """What is not there of a command line such as `blemish fit …`; "" where all is."""
    said = line.split("#")[0].replace("\\\n", " ")
    command: Any = command_tree()
    words = re.split(r"\s+", said.strip())[1:]
    if not words or not re.fullmatch(r"[a-z]+", words[0]):
        return ""  # blemish --version; `blemish …`
    while words and (inner := getattr(command, "commands", {})):
        if words[0] not in inner:
            break
        command, words = inner[words[0]], words[1:]
    if command is command_tree():
        return f"no command {words[0]}"
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    strange = [name for name in OPTION.findall(said) if name not in known | {"--help"}]
    return f"{command.name} has no {', '.join(strange)}" if strange else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    spans = re.findall(r"`(?:blemish )?([a-z]+(?: [^`]+)?)`", text)
    spans = [f"blemish {one}" for one in spans if one.split()[0] in command_tree().commands]
    lines = re.findall(r"^ {4,}(?:.* -m )?(blemish [^\n]+(?:\\\n[^\n]+)*)", text, re.MULTILINE)
    found = {line: said for line in (*spans, *lines) if (said := wrong_in(line))}
    assert found == {}


def calls(text: str) -> Iterator[ast.Call]:
    """Calls of `blemish.…` in the indented blocks of a page that are Python."""
    for block in BLOCK.findall(text):
        try:
            tree = ast.parse(dedent(block.replace("…", "...")))
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                of = node.func.value
                if isinstance(of, ast.Name) and of.id == "blemish":
                    yield node


def wrong_with(call: ast.Call) -> str:
    """Why such a call would be refused for its arguments; "" where it would not."""
    assert isinstance(call.func, ast.Attribute)
    name = call.func.attr
    if not hasattr(blemish, name):
        return f"no blemish.{name}"
    named = {word.arg: None for word in call.keywords if word.arg is not None}
    signature = inspect.signature(getattr(blemish, name))
    try:
        bound = signature.bind(*call.args, **named)
    except TypeError as error:
        return f"blemish.{name}: {error}"
    if name == "fit" and isinstance(call.args[0], ast.Constant):
        own = {field.name for field in dataclasses.fields(METHODS[call.args[0].value].Config)}
        strange = set(bound.arguments.get("settings", {})) - own
        return f"{call.args[0].value} has no {', '.join(strange)}" if strange else ""
    return ""


def test_calls_of_the_library_take_their_arguments() -> None:
    found = [call for page in PAGES for call in calls(page.read_text("utf-8"))]
    assert len(found) >= 5
    assert [said for call in found if (said := wrong_with(call))] == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("blemish fti knn good/", "no command fti"),
        ("blemish fit knn good/ --ouput x", "fit has no --ouput"),
        ("blemish bench table rows.jsonl --seeds 3", "table has no --seeds"),
        ("blemish fit knn good/ -o x  # --nothing", ""),
    ],
)
def test_a_wrong_command_is_found(line: str, said: str) -> None:
    assert wrong_in(line) == said


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("blemish.configure('knn', image_size=3)", "blemish.configure: got an unexpected keyword"),
        ("blemish.fit('knn', 'good/', bank_sise=3)", "knn has no bank_sise"),
        ("blemish.lod('x')", "no blemish.lod"),
        ("blemish.load('x', device='cpu')", ""),
    ],
)
def test_a_wrong_call_is_found(call: str, said: str) -> None:
    found = wrong_with(next(calls(f"Text\n\n    {call}\n\n")))
    assert found.startswith(said)
    assert bool(found) == bool(said)
