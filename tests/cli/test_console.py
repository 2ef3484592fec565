"""Answers, messages and progress."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from blemish.cli import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that goes on when its `now` is set."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("blemish.cli.console.time.monotonic", lambda: clock.now)
    return clock


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """What standard output and standard error write to from now on."""
    terminal = Terminal()
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, terminal)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "200")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return terminal


def test_lines_come_at_the_start_of_a_stage_now_and_then_and_at_its_end(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress() as tick:
        tick("loading", 0, 0)
        for done in range(1, 13):
            tick("scoring", done, 12)
            clock.now += 1.0
        tick("scoring", 12, 12)
    assert capsys.readouterr().err.splitlines() == [
        "loading",
        "scoring: 1 of 12",
        "scoring: 6 of 12 · 1.0/s · 6 s left",
        "scoring: 11 of 12 · 1.0/s · 1 s left",
        "scoring: 12 of 12 · 1.0/s",
    ]


def test_lines_of_a_stage_that_tells_its_details(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress() as tick:
        tick("training", 0, 30)
        for done in range(1, 8):
            clock.now += 1.0
            tick(f"training · loss {1 / done:.2f} · {30 - done} s left", done, 30)
        tick("calibrating", 1, 2)
        tick("calibrating", 2, 2)
    assert capsys.readouterr().err.splitlines() == [
        "training: 0 of 30",
        "training: 5 of 30 · loss 0.20 · 25 s left",
        "calibrating: 1 of 2",
        "calibrating: 2 of 2",
    ]


@pytest.mark.parametrize("seconds", [0.001, 1.0, 3600.0, 36_000.0])
@pytest.mark.parametrize("ticks", [1, 30, 5000])
def test_a_stage_is_some_twenty_lines_however_long_it_takes(
    seconds: float, ticks: int, clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress() as tick:
        for done in range(1, ticks + 1):
            clock.now += seconds / ticks
            tick("scoring", done, ticks)
    lines = capsys.readouterr().err.splitlines()
    least = 20 if ticks == 5000 and seconds >= 3600 else 1
    assert least <= len(lines) <= (22 if seconds > 1 else 2)
    assert lines[0] == f"scoring: 1 of {ticks}"
    assert lines[-1].startswith(f"scoring: {ticks} of {ticks}")


def test_a_stage_of_unknown_length_is_a_few_lines_too(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress() as tick:
        for done in range(36_000):
            clock.now += 0.1
            tick("trying", done, 0)
    assert 10 <= len(capsys.readouterr().err.splitlines()) <= 22


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    with console.progress() as tick:
        tick("loading", 0, 0)
        tick("training [a]", 0, 3)
        tick("training [a] · loss 0.5 · 3 s left", 1, 3)
        tick("training [a] · loss 0.25 · 2 s left", 2, 3)
    assert "loading" in terminal.getvalue()
    last = terminal.getvalue().split("training [a]")[-1]
    assert "loss 0.25 · 2 s left" in last
    assert "2/3" in last
    assert "/s" not in last
    frames = terminal.getvalue().split("\x1b[2K")
    assert max(frame.count("training [a]") for frame in frames) == 1


def test_tables_are_not_cut_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(1, "x" * 500), (22, "[red]\x1b[1m")]
    console.answer({}, [console.table(("n", "path"), rows, right=("n",))], as_json=False)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [" n  path", f" 1  {'x' * 500}", "22  [red]\\x1b[1m"]


def test_tables_are_coloured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    console.answer({}, [console.table(("verdict",), [("alarm",)])], as_json=False)
    assert "\x1b[1;31malarm" in terminal.getvalue()


def test_json_is_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    console.answer({"path": "\udcff"}, ["not shown"], as_json=True)
    assert capsys.readouterr().out == '{\n  "path": "\\udcff"\n}\n'


def test_a_message_keeps_its_own_lines_and_not_those_of_a_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = "blemish: a{}b.png: no layout:\n\n    mvtec   train/good\n\n    flat\nTry this"
    console.complain(message.format("\n"))
    assert capsys.readouterr().err == message.format("\\n") + "\n"
