"""Answers, messages and progress."""

from __future__ import annotations

import io
import sys

import pytest

from blemish import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_come_at_the_start_of_a_stage_and_then_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("blemish.console.time.monotonic", lambda: now)
    with console.progress() as tick:
        tick("loading", 0, 0)
        for done in range(1, 12):
            tick("scoring", done, 30)
            now += 1.0
    assert capsys.readouterr().err.splitlines() == [
        "loading",
        "scoring: 1 of 30",
        "scoring: 6 of 30 · 1.0/s · 24 s left",
        "scoring: 11 of 30 · 1.0/s · 19 s left",
    ]


def test_lines_of_a_stage_that_tells_its_details(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("blemish.console.time.monotonic", lambda: now)
    with console.progress() as tick:
        tick("training", 0, 30)
        for done in range(1, 8):
            now += 1.0
            tick(f"training · loss {1 / done:.2f} · {30 - done} s left", done, 30)
        tick("calibrating", 1, 2)
    assert capsys.readouterr().err.splitlines() == [
        "training: 0 of 30",
        "training: 5 of 30 · loss 0.20 · 25 s left",
        "calibrating: 1 of 2",
    ]


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


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
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
    console.answer({}, [console.table(("n", "path"), [(1, long), (22, "[red]\x1b[1m")], right=("n",))], as_json=False)
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
