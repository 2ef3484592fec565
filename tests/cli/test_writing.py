"""A disk that fills up before a command has written what it was asked for: its figures are printed
all the same, what was made is kept elsewhere, and the same command can be given again.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from parts import FIT, rows_of

from blemish.cli.status import BY_SIGNAL, ERROR
from blemish.data.folder import find_pictures
from blemish.interrupts import Interrupted
from blemish.report.predictions import Mistakes

Run = Callable[..., tuple[int, str, str]]
Full = Callable[[int], AbstractContextManager[None]]
PROBE = 2**16  # bytes by which a command finds, before any work, that there is room


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


@pytest.fixture
def full(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Full:
    """While open, only so many more files fit into `there`; temporary ones lie elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    sync = os.fsync

    @contextmanager
    def filled(room: int) -> Iterator[None]:
        left = [room]

        def refuses(number: int) -> None:
            this = os.fstat(number)
            mine = any(os.path.samestat(this, one.stat()) for one in there.rglob("*"))
            if mine and this.st_size != PROBE:
                if not left[0]:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                left[0] -= 1
            sync(number)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuses)
            yield

    return filled


@pytest.mark.parametrize("room", [0, 2, 9])
def test_evaluate_prints_its_figures_and_can_be_given_again(
    run: Run, part: Path, mvtec: Path, there: Path, tmp_path: Path, full: Full, room: int
) -> None:
    out, report = there / "out", there / "report.html"
    evaluate = ("evaluate", part, mvtec, "--output", out, "--report", report)
    with full(room):
        status, said, err = run(*evaluate)
    assert status == ERROR
    assert "13 pictures: 6 good, 7 defective" in said  # all that it measured
    assert "At the stored threshold of " in said
    assert "Written: " not in said
    assert "No space left on device" in err
    (kept,) = (tmp_path / "elsewhere").glob("*/out")
    assert f"kept in {kept}: once there is room, move what is there to {out}" in err
    assert json.loads((kept / "evaluation.json").read_text())["counts"]["pictures"] == 13
    assert len(list((kept / "worst").iterdir())) == 13
    (page,) = (tmp_path / "elsewhere").glob("*/report.html")
    assert f"kept in {page}: once there is room, move it to {report}" in err
    assert run(*evaluate)[0] == 0
    assert (out / "evaluation.json").read_text() == (kept / "evaluation.json").read_text()


def test_with_json_the_error_is_in_the_one_document(
    run: Run, part: Path, mvtec: Path, there: Path, full: Full
) -> None:
    with full(0):
        status, said, err = run("evaluate", part, mvtec, "--report", there / "r.html", "--json")
    made = json.loads(said)
    assert (status, made["image_auroc"], made["report"]) == (ERROR, 1.0, None)
    assert "blemish:" not in err
    assert made["error"]["kind"] == "OutputError"
    assert "r.html: cannot be written (No space left on device)" in made["error"]["message"]


def test_predict_prints_its_verdicts_where_its_report_cannot_be_written(
    run: Run, part: Path, good_folder: Path, there: Path, tmp_path: Path, full: Full
) -> None:
    report, coco = there / "r.html", there / "c.json"
    with full(1):
        status, said, err = run(
            *("predict", part, good_folder, "--report", report, "--coco", coco),
        )
    assert status == ERROR
    assert "24 scored: " in said
    assert f"Written: {report}" in said
    assert f"Written: {coco}" not in said
    (kept,) = (tmp_path / "elsewhere").glob("*/c.json")
    assert f"kept in {kept}: once there is room, move it to {coco}" in err
    assert len(json.loads(kept.read_text())["images"]) == 24


@pytest.mark.parametrize("room", [1, 10, 25])  # run.json; a few overlays; all but the table
def test_predict_says_what_it_has_scored_and_goes_on(
    run: Run, part: Path, good_folder: Path, there: Path, full: Full, room: int
) -> None:
    out = there / "out"
    predict = ("predict", part, good_folder, "--output", out, "--group-by", r"(\d)\.png")
    with full(room):
        status, said, err = run(*predict)
    assert status == ERROR
    told = f"{room - 1} scored: " if room > 1 else "no picture was scored"
    assert told in said
    assert "No space left on device" in err
    assert "once there is room, the same command with --resume goes on from here" in err
    assert run(*predict, "--resume")[0] == 0
    assert [Path(row["path"]) for row in rows_of(out)] == find_pictures(good_folder)
    assert len((out / "predictions.csv").read_text().splitlines()) == 25


def test_figures_are_all_there_or_none(
    run: Run, part: Path, mvtec: Path, there: Path, tmp_path: Path, full: Full
) -> None:
    figures = ("figures", part, mvtec, "--output", there)
    with full(1):
        status, _, err = run(*figures)
    assert status == ERROR
    (kept,) = (tmp_path / "elsewhere").glob("*/there")
    assert f"kept in {kept}: move what is there to {there}" in err
    names = {"histogram.png", "embedding.png", "gallery.png"}
    assert {one.name for one in kept.iterdir()} == names
    assert not list(there.glob("*.png"))
    assert run(*figures)[0] == 0


def test_synthetic_anomalies_can_be_made_again(
    run: Run, good_folder: Path, there: Path, full: Full
) -> None:
    simulate = ("simulate", good_folder, "--output", there, "--simulator cutpaste --count 12")
    with full(19):  # the first sheet has eight pictures, each with its mask
        status, _, err = run(*simulate)
    assert status == ERROR
    assert "cannot be written (No space left on device)" in err
    assert "The 9 of 12 pictures that were written before it are removed again" in err
    assert list(there.iterdir()) == []
    assert run(*simulate)[0] == 0


def test_a_drawn_data_set_can_be_made_again(run: Run, there: Path, full: Full) -> None:
    synthetic = ("data synthetic", there / "set", "--count 3 --defects 1 --size 64")
    with full(6):  # good ones: three, then two to test on; then a mask, and not its picture
        status, _, err = run(*synthetic)
    assert status == ERROR
    assert "cannot be written (No space left on device)" in err
    assert "The 5 of 10 pictures that were written before it are removed again" in err
    assert "once there is room, the same command makes them all" in err
    assert not list((there / "set").iterdir())
    assert run(*synthetic)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_evaluate_prints_its_figures_where_it_is_interrupted_while_it_draws(
    run: Run,
    part: Path,
    mvtec: Path,
    there: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    out, report = there / "out", there / "report.html"
    evaluate = ("evaluate", part, mvtec, "--output", out, "--report", report)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(number=number)

    with monkeypatch.context() as patch:
        patch.setattr(Mistakes, "write", interrupted)
        status, said, err = run(*evaluate)
        status_of_json, document, quiet = run(*evaluate, "--json")
    assert (status, status_of_json) == (BY_SIGNAL + number, BY_SIGNAL + number)
    assert "13 pictures: 6 good, 7 defective" in said
    assert "At the stored threshold of " in said
    assert "Written: " not in said
    assert f"interrupted before all of {out} was written; what is printed here is whole" in err
    assert not report.exists()  # asked to end, it begins nothing more
    assert json.loads(document)["image_auroc"] == 1.0
    assert json.loads(document)["error"]["kind"] == "Interrupted"
    assert "interrupted" not in quiet
    assert run(*evaluate)[0] == 0


@pytest.mark.parametrize("command", ["calibrate", "refine"])
def test_what_other_commands_have_made_is_kept(
    run: Run, part: Path, good_folder: Path, mvtec: Path, there: Path, tmp_path: Path, full: Full,
    command: str,
) -> None:  # fmt: skip
    made = there / "x.blemish"
    given: tuple[Any, ...] = ("calibrate", part, "--threshold 5", "-o", made)
    if command == "refine":
        bad = mvtec / "test" / "square"
        assert run("fit lda", good_folder, "--anomalies", bad, "-o", part, FIT)[0] == 0
        given = ("refine", part, "--good", mvtec / "test" / "good", "-o", made)
    with full(0):
        status, _, err = run(*given)
    (kept,) = (tmp_path / "elsewhere").glob("*/x.blemish")
    assert status == ERROR
    assert f"kept in {kept}: move it to {made}" in err
    assert run("inspect", kept)[0] == 0
    assert run(*given)[0] == 0


def test_a_fit_is_told_where_its_picture_of_the_foreground_cannot_be_written(
    run: Run, good_folder: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(there / "x.foreground.png"))

    monkeypatch.setattr("blemish.report.foregrounds.draw_foreground", fails)
    fit = ("fit knn", good_folder, "-o", there / "x.blemish", FIT, "--foreground auto")
    status, said, err = run(*fit)
    assert status == ERROR
    assert f"Written: {there / 'x.blemish'}" in said
    assert "x.foreground.png: cannot be written (No space left on device)" in err
    assert f"{there / 'x.blemish'} is whole, and the picture alone is missing" in err


def test_watch_tells_what_it_has_scored_and_goes_on(
    run: Run, part: Path, good_folder: Path, there: Path, full: Full
) -> None:
    out = there / "out"
    watch = ("watch", good_folder, part, "--output", out, "--once --settle 0 --save overlays")
    with full(10):
        status, said, err = run(*watch)
    assert status == ERROR
    assert "9 scored, " in said
    assert "once there is room, the same command goes on from here" in err
    assert run(*watch)[0] == 0
    assert sorted(Path(row["path"]) for row in rows_of(out)) == find_pictures(good_folder)


def test_a_training_whose_checkpoint_cannot_be_written_says_how_to_go_on(
    run: Run, good_folder: Path, there: Path, full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blemish.training.loop.BETWEEN_CHECKPOINTS", 0.0)
    sets = "--set epochs=1 --set min_steps=4 --set train_batch_size=8"
    fit = ("fit agpnet", good_folder, "-o", there / "x.blemish", FIT, sets)
    with full(2):
        status, _, err = run(*fit)
    assert status == ERROR
    assert "x.blemish.training: cannot be written (No space left on device)" in err
    assert "once there is room, the same command with --resume goes on from here" in err
    assert run(*fit, "--resume")[0] == 0
