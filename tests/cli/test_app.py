"""Every command by itself: help, wrong usage, and how what goes wrong is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parts import write_picture

from blemish import cli
from blemish.cli import app

Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]
Answered = Callable[..., Any]


def leaves(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        return [(path, command)]
    return [leaf for name, one in command.commands.items() for leaf in leaves(one, (*path, name))]


def test_every_command_has_help_and_json() -> None:
    found = leaves(app.command_tree())
    assert len(found) == 21  # bench without a command of its own is not a leaf
    for path, command in found:
        assert "--json" in {option for one in command.params for option in one.opts}, path
        assert command.help, path


def test_help_and_version(run: Run) -> None:
    status, out, err = run()
    assert (status, err) == (0, "")
    assert "Exit status: 0 all well; 1 done" in " ".join(out.split())
    assert run("--version")[:2] == (0, "blemish 0.1.0\n")


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "blemish", "fit"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "blemish fit: Missing argument" in done.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("fitt", "Did you mean 'fit'?"),
        ("fit knn", "Missing argument"),
        ("predict x.blemish y --otput z", "--otput"),
        ("predict x.blemish y --batch-size 0", "--batch-size"),
        ("predict x.blemish y --resume", "--output DIR"),
        ("evaluate x.blemish y --resolution big", "original"),
        ("data chek", "Did you mean 'check'?"),
        ("simulate x", "--output DIR"),
        ("simulate x -o y --image-size big", "--image-size big: whole numbers"),
    ],
)
def test_wrong_usage(
    refused: Refused, run: Run, answered: Answered, command: str, said: str
) -> None:
    assert said in refused(command)
    assert said in answered(command)["error"]["message"]
    assert run(command, "--json")[2] == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "{part}", ""], "word 3 of the command is empty, after {part}"),
        (["watch", "", "{part}", "--output", "out", "--sort", "move"], "word 2 of the command"),
        (["inspect", "{part}", "--device="], "word 3 of the command is empty;"),
    ],
)
def test_an_empty_word_is_not_the_current_folder(
    part: Path, picture: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, words: list[str], said: str,
) -> None:  # fmt: skip
    kept = write_picture(tmp_path / "here" / "mine.png", picture(1))
    monkeypatch.chdir(kept.parent)
    assert cli.main([word.format(part=part) for word in words]) == 2
    assert said.format(part=part) in capsys.readouterr().err
    assert list(kept.parent.iterdir()) == [kept]


def test_json_behind_two_dashes_is_a_name(refused: Refused) -> None:
    assert "--json: no such file" in refused("data check -- --json")


def test_a_bug_is_called_one(
    run: Run, answered: Answered, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("blemish.artifact.read_manifest", broken)
    status, out, err = run("inspect", part)
    assert (status, out) == (2, "")
    assert "this is a bug in blemish (ZeroDivisionError: division by zero)" in err
    assert "Traceback" not in err
    assert answered("inspect", part)["error"]["kind"] == "ZeroDivisionError"
    monkeypatch.setenv("BLEMISH_DEBUG", "1")
    assert "Traceback" in run("inspect", part)[2]


@pytest.mark.parametrize(
    "message",
    [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "OpenCV: error: (-4:Insufficient memory) Failed to allocate 9 bytes",
    ],
)
def test_running_out_of_memory_is_no_bug(
    refused: Refused, part: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def full(path: Path) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr("blemish.artifact.read_manifest", full)
    assert "out of memory; choose a smaller --batch-size" in refused("inspect", part)
