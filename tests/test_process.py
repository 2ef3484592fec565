"""What the program does as a process: signals, its output, what others write at the same time, odd
names.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from parts import rows_of

import blemish
from blemish import files, interrupts
from blemish.cli import app, console
from blemish.data.folder import find_pictures, place_of
from blemish.data.layouts import read
from blemish.detector import predict as predictor
from blemish.detector.sources import batch_begun
from blemish.errors import DataError
from blemish.report.journal import Journal

Run = Callable[..., tuple[int, str, str]]
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and devices of POSIX")


@POSIX
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_signals_end_predict_with_its_rows_kept(
    run: Run, part: Path, good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals, status: int,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    add = Journal.add

    def ended(journal: Journal, row: dict[str, Any]) -> None:
        if len(journal.rows) == 3:
            os.kill(os.getpid(), number)
        add(journal, row)

    monkeypatch.setattr(Journal, "add", ended)
    given, _, err = run("predict", part, good_folder, "--output", out)
    assert given == status
    assert "the same command with --resume goes on from here" in err
    assert len(rows_of(out)) == 3
    assert len((out / "predictions.csv").read_text().splitlines()) == 4
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # put back


@POSIX
def test_an_ignored_signal_stays_ignored_and_a_library_hears_none() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interrupts.heard():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    with interrupts.waiting() as came:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert came.number == 0


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_last_words_are_not_interrupted(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    complain = console.complain

    def hurried(message: str) -> None:
        signal.raise_signal(number)
        complain(message)

    def ended(_arguments: list[str]) -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr(console, "complain", hurried)
    monkeypatch.setattr(app, "_run", ended)
    status, _, err = run("methods")
    assert (status, err) == (143, "blemish: interrupted; no file was left half written\n")


@pytest.mark.parametrize("kept", [1, 8, 11])
def test_resumed_predictions_are_in_the_batches_of_one_go(
    run: Run, part: Path, good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    kept: int,
) -> None:  # fmt: skip
    (good_folder / "002.png").write_bytes(b"")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run("predict", part, good_folder, "--output", whole)[0] == 1
    assert run("predict", part, good_folder, "--output", out, "--overlay-size none")[0] == 1
    lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
    batches: list[list[str]] = []
    score = predictor.Detector._score

    def noted(detector: predictor.Detector, chunk: Any, *how: Any, **more: Any) -> Any:
        batches.append([Path(one.source).name for one in chunk])
        return score(detector, chunk, *how, **more)

    monkeypatch.setattr(predictor.Detector, "_score", noted)
    run("predict", part, good_folder)
    expected, batches[:] = list(batches), []
    run("predict", part, good_folder, "--output", out, "--resume --overlay-size none")
    assert batches == expected[-len(batches) :]  # whole ones of it, none divided otherwise
    assert sum(map(len, batches)) < 24 - kept + 4 * predictor.BATCH_SIZE
    drawn = ("overlay", "saliency")
    bare = [
        {key: value for key, value in row.items() if key not in drawn} for row in rows_of(whole)
    ]
    assert rows_of(out) == bare  # to the bit


def test_where_a_batch_begins() -> None:
    assert batch_begun([True] * 8 + [True] * 3, 8) == 3
    assert (
        batch_begun([False, True, False, True], 2) == 0
    )  # a broken one before any good one waits for none
    assert batch_begun([True, False, False], 2) == 3
    assert batch_begun([], 8) == 0


@POSIX
def test_two_processes_on_one_output(
    run: Run, part: Path, mvtec: Path, good_folder: Path, tmp_path: Path
) -> None:
    out, artifact = tmp_path / "out", tmp_path / "new.blemish"
    run("predict", part, good_folder, "--output", out)
    before = (out / "predictions.jsonl").read_bytes()
    told = "another process of blemish is writing it; let that end, or name another place"
    judged, measured = tmp_path / "judged", tmp_path / "r.jsonl"
    predict = ("predict", part, good_folder, "--output", out)
    cases: dict[Path, tuple[object, ...]] = {
        out / "predictions.jsonl": (*predict, "--resume"),
        judged / "evaluation.json": ("evaluate", part, mvtec, "--output", judged),
        artifact: ("fit knn", good_folder, "-o", artifact),
        measured: ("bench --methods knn --data", mvtec, "--results", measured),
    }
    for place, command in cases.items():
        with files.locked(place):
            status, printed, err = run(*command)
        assert (status, printed, told in err) == (2, "", True), command
    assert (out / "predictions.jsonl").read_bytes() == before
    assert run(*predict, "--resume")[0] == 0  # the lock was given back


@POSIX
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_cannot_be_written_is_one_sentence() -> None:
    """Standard output full, its reader gone, and closed, in one process that imports all once."""
    code = """
import os, sys
from blemish import cli, errors
from blemish.cli import app
def work(arguments):
    if arguments[0] == "fails":
        raise errors.DataError("no")
    print("x" * int(arguments[0]))
    return 0
app._run = work
def status(arguments):
    pid = os.fork()
    if pid == 0:
        sys.exit(cli.main(arguments))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
said = os.dup(1)
answers = []
for way in ("full", "gone"):
    if way == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    else:
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(reader)
        os.close(writer)
    answers += [status(["9"]), status(["99999"])]
    answers += [status(["fails", "--json"])] if way == "full" else []
sys.stdout = None
answers.append(status(["9"]))
os.write(said, repr(answers).encode())
"""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=buffered
    )
    assert done.stdout == "[2, 2, 2, 141, 141, 0]", done.stderr
    lost = (
        "blemish: standard output cannot be written (No space left on device); the answer is lost"
    )
    assert set(done.stderr.splitlines()) == {
        lost,
        "blemish: the disk is full; make room or choose another place",
    }


def test_names_in_the_table_are_no_formulas_and_break_no_row(
    run: Run, part: Path, picture: Any, write: Any, tmp_path: Path
) -> None:
    names = ["=1+1.png", "+a.png", "@b.png", "-c.png", "\td.png", "e\rf.png", "g\nh.png"]
    names.append("plain.png")
    folder = tmp_path / "odd"
    for name in names:
        write(folder / "plain.png", picture(1)).rename(folder / name)
    write(folder / "plain.png", picture(1))
    (folder / "broken\n\x1b[2J.png").write_bytes(b"")
    here = Path.cwd()
    os.chdir(folder)
    try:
        given = sorted(path.name for path in folder.iterdir())
        status, printed, err = run(
            "predict", part, "--output", tmp_path / "out", "--", *map(Path, given)
        )
    finally:
        os.chdir(here)
    assert status == 1
    text = (tmp_path / "out" / "predictions.csv").read_bytes().decode()
    assert len(text.splitlines()) == 1 + len(names) + 1
    cells = [row["path"] for row in csv.DictReader(text.splitlines())]
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r"]
    assert {"'=1+1.png", "'-c.png", "'\\td.png", "e\\rf.png", "g\\nh.png", "plain.png"} <= set(
        cells
    )
    assert {row["path"] for row in rows_of(tmp_path / "out")} >= set(names)  # as they are
    assert "\x1b" not in printed + err
    assert "broken\\n\\x1b[2J.png: is empty" in printed
    assert not [
        line for line in (printed + err).splitlines() if line.startswith(("h.png", "\\x1b"))
    ]


def test_a_line_break_in_a_name_is_no_line_of_ours(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run("data check", Path("no\nblemish: all is well"))
    assert (status, err) == (2, "blemish: no\\nblemish: all is well: no such file or folder\n")
    capsys.readouterr()
    console.complain("one\n  two\nTry 'three'.\nfour")
    assert capsys.readouterr().err == "one\n  two\nTry 'three'.\\nfour\n"


def test_a_file_by_two_names_is_one_picture(
    run: Run, part: Path, good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    again = Path("good/../good/000.png")
    assert find_pictures([Path("good/000.png"), Path(f"./{again}")]) == [Path("good/000.png")]
    Path("set.csv").write_text("path\ngood/000.png\n./good/../good/000.png\n")
    with pytest.raises(DataError, match="listed already on line 2"):
        read(Path("set.csv"))
    run("predict", part, "good/000.png --output out")
    run("predict", part, again, "good/001.png --output out --resume")
    assert [row["path"] for row in rows_of(Path("out"))] == ["good/000.png", "good/001.png"]


@POSIX
def test_two_dots_behind_a_link_lead_where_the_system_says(tmp_path: Path) -> None:
    (tmp_path / "far" / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "in")
    for path in (tmp_path / "a.png", tmp_path / "far" / "a.png"):
        path.touch()
    assert place_of(tmp_path / "link" / ".." / "a.png") == os.path.realpath(
        tmp_path / "far" / "a.png"
    )


def test_a_mask_of_a_few_pixels_is_not_used(
    fitted: Callable[..., blemish.Detector], mvtec: Path
) -> None:
    mask = mvtec / "ground_truth" / "square" / "000_mask.png"
    cv2.imwrite(str(mask), np.full((1, 1), 255, np.uint8))  # one pixel for 64 × 64
    result = blemish.evaluate(fitted(), mvtec)
    (failure,) = result.failures
    assert failure.source == str(mask)
    assert failure.reason == "is 1×1 pixels, its picture 64×64; too few to say where a defect is"
    assert result.counts["without_mask"] == 1
