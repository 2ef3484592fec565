"""Answers, messages and progress."""

from __future__ import annotations

import io
import sys

import pytest

from blemish.cli import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("blemish.cli.console.time.monotonic", clock)
    return clock


def test_lines_come_at_the_start_of_a_stage_now_and_then_and_at_its_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
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
    clock: Clock, capsys: pytest.CaptureFixture[str]
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


@pytest.mark.parametrize("seconds", [0.001, 1.0, 60.0, 3600.0, 36_000.0])
@pytest.mark.parametrize("ticks", [1, 2, 30, 5000])
def test_a_stage_is_some_twenty_lines_however_long_it_takes(
    seconds: float, ticks: int, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress() as tick:
        for done in range(1, ticks + 1):
            clock.now += seconds / ticks
            tick("scoring", done, ticks)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 22
    assert lines[0] == f"scoring: 1 of {ticks}"
    assert lines[-1].startswith(f"scoring: {ticks} of {ticks}")
    if ticks == 5000 and seconds >= 3600:
        assert len(lines) >= 20
    if seconds <= 1:
        assert len(lines) <= 2


def test_a_stage_of_unknown_length_is_a_few_lines_too(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress() as tick:
        for done in range(36_000):
            clock.now += 0.1
            tick("trying", done, 0)
    assert 10 <= len(capsys.readouterr().err.splitlines()) <= 22


def test_one_bar_for_a_stage_whose_details_change(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with console.progress() as tick:
        tick("training [a]", 0, 3)
        tick("training [a] · loss 0.5 · 3 s left", 1, 3)
        tick("training [a] · loss 0.25 · 2 s left", 2, 3)
    last = terminal.getvalue().split("training [a]")[-1]
    assert "loss 0.25 · 2 s left" in last
    assert "2/3" in last
    assert "/s" not in last
    frames = terminal.getvalue().split("\x1b[2K")
    assert max(frame.count("training [a]") for frame in frames) == 1


def test_bars_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress() as tick:
        tick("loading", 0, 0)
        tick("scoring", 1, 3)
        tick("scoring", 3, 3)
    assert "loading" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_tables_are_not_cut_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 500
    console.answer(
        {},
        [console.table(("n", "path"), [(1, long), (22, "[red]\x1b[1m")], right=("n",))],
        as_json=False,
    )
    assert capsys.readouterr().out.splitlines() == [" n  path", f" 1  {long}", "22  [red]\\x1b[1m"]


def test_tables_are_coloured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console.answer({}, [console.table(("verdict",), [("alarm",)])], as_json=False)
    assert "\x1b[1;31malarm" in terminal.getvalue()


def test_json_is_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    console.answer({"path": "\udcff"}, ["not shown"], as_json=True)
    assert capsys.readouterr().out == '{\n  "path": "\\udcff"\n}\n'


def test_a_message_keeps_its_own_lines_and_not_those_of_a_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.complain(
        "blemish: a\nb.png: no layout:\n\n    mvtec   train/good\n\n    flat\nTry this"
    )
    assert capsys.readouterr().err == (
        "blemish: a\\nb.png: no layout:\n\n    mvtec   train/good\n\n    flat\nTry this\n"
    )
