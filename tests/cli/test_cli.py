"""The commands, run in this process; start-up and closed pipes in processes of their own."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import rows_of

import blemish
from blemish import artifact, config
from blemish.anomalies import SIMULATORS
from blemish.artifact import read
from blemish.cli import app
from blemish.cli.status import BROKEN_PICTURES, ERROR
from blemish.data.layouts import OFFICIAL
from blemish.data.shifts import SHIFTS
from blemish.images import decode
from blemish.methods import METHODS
from blemish.report import predictions as outputs
from blemish.report.journal import Journal

Run = Callable[..., tuple[int, str, str]]
FIT = "--backbone test_vit --weights random --image-size 64 --layers 2,4 --precision fp32"


@pytest.fixture
def part(tmp_path: Path, fitted: Callable[..., blemish.Detector]) -> Path:
    return fitted().save(tmp_path / "part.blemish")


@pytest.fixture
def new(tmp_path: Path, picture: Callable[..., np.ndarray], write: Callable[..., Path]) -> Path:
    """Eight new pictures, every second with a defect, in two folders that use the same names."""
    for seed in range(8):
        folder = tmp_path / "new" / ("a" if seed < 4 else "b")
        write(
            folder / f"{seed % 4}.png", picture(500 + seed, defect=seed % 2 == 1, height=40 + seed)
        )
    return tmp_path / "new"


def document(answer: tuple[int, str, str]) -> Any:
    """The one JSON document of an answer."""
    return json.loads(answer[1])


def leaves(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "commands"):
        return [
            leaf for name, one in command.commands.items() for leaf in leaves(one, (*path, name))
        ]
    return [(path, command)]


def test_help_imports_nothing_heavy() -> None:
    heavy = {
        "torch",
        "numpy",
        "timm",
        "cv2",
        "matplotlib",
        "PIL",
        "scipy",
        "sklearn",
        "safetensors",
        "jinja2",
        "rich",
    }
    code = (
        "import sys; from blemish import cli; s = cli.main(['--help']); "
        f"print(sorted({heavy} & set(sys.modules)), s)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_every_command_has_help_and_json() -> None:
    found = leaves(app.command_tree())
    assert len(found) == 16  # bench without a command of its own is not a leaf
    for path, command in found:
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--json" in options, path
        assert command.help, path


def test_no_arguments_show_the_help_and_the_exit_statuses(run: Run) -> None:
    status, out, err = run()
    assert status == 0
    assert "Exit status: 0 all well; 1 done" in " ".join(out.split())
    assert err == ""


def test_version(run: Run) -> None:
    assert run("--version")[:2] == (0, "blemish 0.1.0\n")


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "blemish", "fit"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "blemish fit: Missing argument" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fitt"], "Did you mean 'fit'?"),
        (["fit", "knn"], "Missing argument"),
        (["predict x.blemish y --otput z"], "--otput"),
        (["predict x.blemish y --batch-size 0"], "--batch-size"),
        (["predict x.blemish y --resume"], "--output DIR"),
        (["evaluate x.blemish y --resolution big"], "original"),
        (["data", "chek"], "Did you mean 'check'?"),
        (["simulate", "x"], "--output DIR"),
        (["simulate x -o y --image-size big"], "--image-size big: whole numbers"),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], said: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    status, out, err = run(*arguments, "--json")
    assert status == 2
    assert err == ""
    assert said in json.loads(out)["error"]["message"]


def test_fit(run: Run, good_folder: Path, tmp_path: Path) -> None:
    (good_folder / "empty.png").touch()
    artifact = tmp_path / "made" / "part.blemish"
    status, out, err = run("fit knn", good_folder, "-o", artifact, FIT)
    assert status == 1  # done, but a picture was broken
    assert "flat layout: 25 pictures" in out
    assert "24 used, 1 broken" in out
    assert "empty.png: is empty" in out
    assert "About 5 % of new normal pictures" in out
    assert f"Written: {artifact} in " in out
    assert "remembering: 8 of 25" in err
    assert "remembering: 24 of 24" in err
    assert blemish.load(artifact).predict(good_folder / "000.png").score > 0


def test_the_last_of_recipe_file_option_and_set_wins(
    run: Run, good_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(
        '{"bank_size": 40, "pooling": 5, "image_size": [32], "backbone": "test_resnet", "seed": 3}'
    )
    fit = ("fit knn", good_folder, "-o", tmp_path / "a", "--weights random --config", file)
    options = "--image-size 32,64 --layers 2 --backbone test_vit --set layers=4 --seed 4"
    made = document(run(*fit, options, "--json"))
    expected = {"bank_size": 40, "pooling": 5, "image_size": [32, 64], "layers": [4]}
    expected |= {"backbone": "test_vit", "seed": 4}
    assert {key: made["config"][key] for key in expected} == expected
    assert made["config"]["top_fraction"] == METHODS["knn"].Config.best().top_fraction
    _, manifest = read(tmp_path / "a")
    assert (manifest["seed"], manifest["config"]) == (4, made["config"])
    assert (made["count"], made["failures"], made["recipe"]) == (24, [], "best")


def test_fit_takes_recipe_threshold_and_window(run: Run, good_folder: Path, tmp_path: Path) -> None:
    options = "--recipe paper --calibration-fraction 0.5 --false-alarm-rate 0.1 --window 10,200"
    fit = ("fit padim", good_folder, "-o", tmp_path / "a", FIT)
    made = document(run(*fit, options, "--json"))
    assert (made["recipe"], made["config"]["channels"]) == ("paper", 550)
    threshold = made["threshold"]
    assert (threshold["method"], threshold["n"], threshold["rate"]) == ("split conformal", 12, 0.1)
    _, manifest = read(tmp_path / "a")
    assert manifest["preprocessing"]["window"] == [10, 200]
    assert manifest["threshold"] == threshold
    status, _, err = run(*fit, "--window 200,10")
    assert (status, "--window 200,10: two numbers" in err) == (2, True)


def test_fit_with_known_defects(run: Run, good_folder: Path, mvtec: Path, tmp_path: Path) -> None:
    defects = mvtec / "test" / "square"
    teach = ("--anomalies", defects, "--anomaly-count 2 --set normality=knn", FIT)
    artifact = tmp_path / "part.blemish"
    status, out, _ = run("fit lda", good_folder, "-o", artifact, *teach)
    assert status == 0
    assert "Pictures: 24 used, 0 broken" in out
    assert "Defects learned from: 2; flat layout: 4 pictures" in out
    assert "About 5 % of new normal pictures" in out
    learned = read(artifact)[1]["data"]["defects"]
    assert len(learned) == 2
    judged = document(run("evaluate", artifact, mvtec, "--json"))
    left_out = [path for path in judged["left_out"] if "good" not in path]
    assert sorted(decode(path).digest for path in left_out) == sorted(learned)
    assert judged["counts"]["anomalous"] == 5

    answer = run("fit lda", good_folder, "-o", tmp_path / "again", *teach, "--json")
    assert answer[0] == 0
    made = document(answer)
    assert (made["method"], made["recipe"], made["count"], made["failures"]) == (
        "lda",
        "best",
        24,
        [],
    )
    assert (made["config"]["normality"], made["config"]["backbone"]) == ("knn", "test_vit")
    assert made["defects"] == learned


def test_fit_with_several_kinds_of_defects_some_of_them_broken(
    run: Run, good_folder: Path, mvtec: Path, tmp_path: Path
) -> None:
    (mvtec / "test" / "dark" / "000.png").write_text("not a picture")
    kinds = [
        option for kind in ("square", "dark") for option in ("--anomalies", mvtec / "test" / kind)
    ]
    command = ("fit lda", good_folder, "-o", tmp_path / "a", "--set normality=knn", FIT)
    status, out, _ = run(*command, *kinds)
    assert status == BROKEN_PICTURES
    assert "24 used, 1 broken" in out
    assert "000.png: is not a picture (looks like text)" in out
    assert "Defects learned from: 6; flat layout: 4 pictures" in out
    status, out, _ = run(*command, "--anomalies", mvtec, "--anomaly-type square")
    assert status == 0
    assert "Defects learned from: 4; MVTec layout" in out


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("knn", "--anomalies DEFECTS", "knn does not learn from labelled defects"),
        ("lda", "--anomaly-count 2", "name those too"),
        ("lda", "--anomalies DEFECTS --anomaly-count 5", "5 anomalies were asked for"),
        ("lda", "--anomalies DEFECTS --anomaly-type dent", "no defect is of type 'dent'"),
        ("lda", "--anomalies nowhere", "nowhere: no such file or folder"),
        (
            "lda",
            "--set normality=atacnet",
            "those that take labelled defects themselves are none of them",
        ),
        ("lda", "--set normality=pachcore", "did you mean 'patchcore'"),
    ],
)
def test_fit_says_which_defects_it_cannot_learn_from(
    method: str, options: str, said: str, run: Run, good_folder: Path, mvtec: Path, tmp_path: Path
) -> None:
    given = options.replace("DEFECTS", str(mvtec / "test" / "square"))
    status, out, err = run("fit", method, good_folder, "-o", tmp_path / "a", FIT, given)
    assert (status, out) == (ERROR, "")
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "a").exists()


def test_fit_of_the_published_method(
    run: Run, good_folder: Path, mvtec: Path, tmp_path: Path
) -> None:
    quick = [
        f"--set={setting}" for setting in ("epochs=1", "train_batch_size=4", "attention_dim=8")
    ]
    command = ("fit atacnet", good_folder, "-o", tmp_path / "a", "--recipe paper", FIT, *quick)
    made = document(run(*command, "--anomalies", mvtec, "--anomaly-count 3 --json"))
    assert (made["method"], made["recipe"], made["training"]["steps"]) == ("atacnet", "paper", 10)
    assert len(made["defects"]) == 3  # beside 19 good ones, 2 a step
    (shown,) = [
        line
        for line in run("inspect", tmp_path / "a")[1].splitlines()
        if line.lstrip().startswith("loss")
    ]
    assert shown.count(" by step ") == 10
    assert "by step 10" in shown
    assert not (tmp_path / "a.training").exists()
    status, _, err = run("fit lda", good_folder, "-o", tmp_path / "b", FIT, "--time-budget 1")
    assert status == ERROR
    assert "time_budget: lda is not trained step by step" in err


def test_predict_prints_the_highest_score_first(run: Run, part: Path, new: Path) -> None:
    status, out, _ = run("predict", part, new)
    lines = out.splitlines()
    assert status == 0
    assert lines[0].split() == ["score", "verdict", "path"]
    scores = [float(line.split()[0]) for line in lines[1:9]]
    assert scores == sorted(scores, reverse=True)
    assert {line.split()[2] for line in lines[1:5]} == {
        str(new / f"{at}.png") for at in ("a/1", "a/3", "b/1", "b/3")
    }
    assert all("alarm" in line for line in lines[1:5])
    assert "8 scored: 4 alarms, 4 normal" in lines[9]


def test_predict_of_many_pictures_prints_the_alarms(run: Run, part: Path, new: Path) -> None:
    for copy in range(7):
        shutil.copytree(new / "a", new / f"copy{copy}")
        shutil.copytree(new / "b", new / f"other{copy}")
    _, out, _ = run("predict", part, new, "--batch-size 16")
    assert out.count("alarm ") == 20
    assert "the highest 20 alarms of 64 pictures" in out


def test_predict_as_json_equals_python(run: Run, part: Path, new: Path) -> None:
    answer = run("predict", part, new / "*" / "[12].png", "--json --precision fp32")
    made = document(answer)
    detector = blemish.load(part, precision="fp32")
    assert [row["path"] for row in made["predictions"]] == [
        str(new / at) for at in ("a/1.png", "a/2.png", "b/1.png", "b/2.png")
    ]
    for row in made["predictions"]:
        assert row["score"] == pytest.approx(detector.predict(row["path"]).score, rel=1e-5)
    assert (made["scored"], made["alarms"], made["failed"], made["interrupted"]) == (4, 2, 0, False)


def test_predict_output(run: Run, part: Path, new: Path, tmp_path: Path) -> None:
    (new / "broken.png").write_bytes(b"not a picture")
    out, report = tmp_path / "out", tmp_path / "report.html"
    assert run("predict", part, new, "--output", out, "--report", report)[0] == 1
    rows = rows_of(out)
    assert len(rows) == 9
    assert [row["path"] for row in rows if "error" in row] == [str(new / "broken.png")]
    overlays = {row["overlay"] for row in rows if "overlay" in row}
    assert len(overlays) == 8  # though the same names occur in two folders
    for row in rows:
        if "overlay" in row:
            assert decode(out / row["overlay"]).size == (row["height"], row["width"])
            changed = (decode(out / row["overlay"]).pixels != decode(row["path"]).pixels).any()
            assert changed or row["label"] == 0
    with (out / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["path"] for line in table] == [row["path"] for row in rows]
    assert [float(line["score"] or "nan") for line in table] == pytest.approx(
        [row.get("score", float("nan")) for row in rows], nan_ok=True
    )
    page = report.read_text()
    assert page.count("data:image/jpeg") >= 16
    assert "broken.png" in page


def test_a_report_embeds_a_bounded_number_of_pictures(
    run: Run, part: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embedded(limit: int) -> int:
        monkeypatch.setattr(outputs, "EMBEDDED", limit)
        run("predict", part, new, "--report", tmp_path / "report.html")
        page = (tmp_path / "report.html").read_text()
        return len({piece.partition('"')[0] for piece in page.split("data:image/jpeg;base64,")[1:]})

    assert (embedded(2), embedded(8)) == (4, 16)


def test_an_output_folder_is_never_added_to_by_accident(
    run: Run, part: Path, new: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run("predict", part, new / "a", "--output", out)[0] == 0
    before = (out / "predictions.jsonl").read_bytes()
    status, _, err = run("predict", part, new, "--output", out)
    assert status == 2
    assert "holds predictions already" in err
    assert "--resume" in err
    assert (out / "predictions.jsonl").read_bytes() == before


def test_resume_goes_on_where_a_killed_run_stopped(
    run: Run, part: Path, new: Path, tmp_path: Path
) -> None:
    whole, out, report = tmp_path / "whole", tmp_path / "out", tmp_path / "report.html"
    (new / "a" / "2.png").write_bytes(b"")
    run("predict", part, new, "--output", whole)
    run("predict", part, new, "--output", out)
    lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(
        b"".join(lines[:4]) + lines[4][:30]
    )  # the last row was half written
    (out / "predictions.csv").unlink()
    status, _, err = run("predict", part, new, "--output", out, "--resume --report", report)
    assert status == 1
    assert "scoring: 1 of 4" in err
    same(out, whole)
    assert (
        len(set(report.read_text().split("data:image/jpeg;base64,")[1:])) >= 14
    )  # of the earlier run as well
    status, _, err = run("predict", part, new, "--output", out, "--resume")  # nothing is left to do
    assert (status, "scoring" in err) == (1, False)
    same(out, whole)


def same(one: Path, other: Path) -> None:
    """Two output folders hold the same; scores up to the arithmetic of batches of another size."""

    for first, second in zip(rows_of(one), rows_of(other), strict=True):
        assert first.get("score", 0) == pytest.approx(second.get("score", 0), rel=1e-4)
        assert {**first, "score": 0} == {**second, "score": 0}
    tables = [(folder / "predictions.csv").read_text().splitlines() for folder in (one, other)]
    assert [line.split(",")[0] for line in tables[0]] == [line.split(",")[0] for line in tables[1]]
    assert {path.name for path in (one / "overlays").iterdir()} == {
        path.name for path in (other / "overlays").iterdir()
    }


def test_resume_refuses_rows_that_were_made_otherwise(
    run: Run,
    part: Path,
    new: Path,
    tmp_path: Path,
    fitted: Callable[..., blemish.Detector],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    run("predict", part, new, "--output", out, "--precision fp32")
    other = fitted("padim").save(tmp_path / "other.blemish")
    status, _, err = run("predict", other, new, "--output", out, "--resume --precision fp32")
    assert (status, "made with another artifact;" in err) == (2, True)
    status, _, err = run("predict", part, new, "--output", out, "--resume --precision bf16")
    assert (status, "made with another precision;" in err) == (2, True)
    lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join([lines[0], b"{}\n", *lines[2:]]))
    status, _, err = run("predict", part, new, "--output", out, "--resume --precision fp32")
    assert (status, "line 2 is damaged" in err) == (2, True)
    (out / "run.json").write_text("[]")
    status, _, err = run("predict", part, new, "--output", out, "--resume --precision fp32")
    assert (status, "does not say what the rows were made with" in err) == (2, True)


def test_an_interrupted_predict_keeps_what_is_done(
    run: Run, part: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole, report = tmp_path / "out", tmp_path / "whole", tmp_path / "report.html"
    add = Journal.add

    def interrupted(journal: Journal, row: dict[str, Any]) -> None:
        if len(journal.rows) == 3:
            raise KeyboardInterrupt
        add(journal, row)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", interrupted)
        status, answer, err = run(
            "predict", part, new, "--output", out, "--report", report, "--json"
        )
    assert status == 130
    assert "after 3 of 8 pictures; the same command with --resume" in err
    made = json.loads(answer)
    assert (made["interrupted"], len(made["predictions"])) == (True, 3)
    assert len((out / "predictions.csv").read_text().splitlines()) == 4
    assert report.exists()
    assert run("predict", part, new, "--output", out, "--resume")[0] == 0
    run("predict", part, new, "--output", whole)
    same(out, whole)


def test_file_names_cannot_steer_the_terminal_or_escape_the_folder(
    run: Run, part: Path, new: Path, tmp_path: Path
) -> None:
    odd = new / "\x1b[2J ..,[red]\udcff.png"
    (new / "a" / "0.png").rename(odd)
    status, out, _ = run("predict", part, odd, "--output", tmp_path / "out")
    assert status == 0
    assert "\x1b" not in out
    assert "\\x1b[2J ..,[red]\\udcff.png" in out
    (overlay,) = (tmp_path / "out" / "overlays").iterdir()
    assert overlay.name.isascii()
    row = json.loads((tmp_path / "out" / "predictions.jsonl").read_text())
    assert row["path"] == str(odd)


def test_evaluate(
    run: Run,
    part: Path,
    mvtec: Path,
    tmp_path: Path,
    picture: Callable[..., np.ndarray],
    write: Any,
) -> None:
    write(mvtec / "test" / "good" / "known.png", picture(3))
    out, report = tmp_path / "out", tmp_path / "report.html"
    status, said, _ = run("evaluate", part, mvtec, "--output", out, "--report", report)
    assert status == 0
    assert "13 pictures: 6 good, 7 defective" in said
    assert "1 left out of every figure" in said
    rows = {
        line.split()[0]: line.split()[1:]
        for line in said.splitlines()
        if line[:4] in ("all ", "dark", "squa")
    }
    result = blemish.evaluate(blemish.load(part), mvtec)
    assert rows["all"][0] == "13"
    assert float(rows["all"][1]) == pytest.approx(100 * (result.image_auroc or 0), abs=0.01)
    assert float(rows["square"][4]) == pytest.approx(
        100 * float(result.by_defect["square"]["aupro"] or 0), abs=0.01
    )
    cells = [line.split() for line in said.splitlines() if line.startswith(("defective ", "good "))]
    confusion = result.confusion or {}
    assert cells[0] == [
        "defective",
        str(confusion["true_positive"]),
        str(confusion["false_negative"]),
    ]
    assert cells[1] == ["good", str(confusion["false_positive"]), str(confusion["true_negative"])]
    assert {path.name for path in out.iterdir()} == {
        "evaluation.json",
        "histogram.svg",
        "pr.svg",
        "roc.svg",
        "worst",
    }
    assert len(list((out / "worst").glob("defective-*.png"))) == 7
    lowest = min((row for row in result.rows if row["truth"] == 1), key=lambda row: row["score"])
    assert next((out / "worst").glob("defective-01-*")).name[13:16] == Path(lowest["path"]).stem
    assert json.loads((out / "evaluation.json").read_text())["counts"] == dict(result.counts)
    assert report.read_text().count("data:image/jpeg") >= 26
    status, _, err = run("evaluate", part, mvtec, "--output", out)
    assert (status, "holds an evaluation already" in err) == (2, True)


def test_evaluate_as_json(run: Run, part: Path, mvtec: Path) -> None:
    (mvtec / "test" / "good" / "empty.png").touch()
    answer = run("evaluate", part, mvtec, "--resolution original --json")
    made = document(answer)
    assert answer[0] == 1
    assert made["counts"]["failed"] == 1
    assert made["image_auroc"] == 1.0
    result = blemish.evaluate(blemish.load(part), mvtec, resolution=None)
    assert made["aupro"] == pytest.approx(result.aupro)


def test_masks_at_fault_end_an_evaluation_with_status_1(
    run: Run, part: Path, mvtec: Path, write: Any
) -> None:
    assert run("evaluate", part, mvtec, "--json")[0] == 0
    write(mvtec / "ground_truth" / "square" / "001_mask.png", np.zeros((64, 64), np.uint8))
    answer = run("evaluate", part, mvtec, "--json")
    assert answer[0] == 1
    assert [fault["error"] for fault in document(answer)["mask_faults"]] == [
        "is empty, but its picture is anomalous"
    ]
    assert run("data check", mvtec)[0] == 1


def test_calibrate(
    run: Run, part: Path, good_folder: Path, tmp_path: Path, picture: Any, write: Any
) -> None:
    for seed in range(20):
        write(tmp_path / "more" / f"{seed}.png", picture(700 + seed))
    shutil.copy(good_folder / "000.png", tmp_path / "more" / "known.png")
    (tmp_path / "more" / "empty.png").touch()
    artifact = tmp_path / "new.blemish"
    status, out, _ = run(
        "calibrate", part, tmp_path / "more", "-o", artifact, "--false-alarm-rate 0.1"
    )
    assert status == 1
    assert "20 used; 1 left out, the artifact was fitted on them; 1 broken" in out
    assert "probability at most 10 %" in out
    threshold = read(artifact)[1]["threshold"]
    assert (threshold["n"], threshold["rate"]) == (20, 0.1)
    answer = run(
        "calibrate", part, tmp_path / "more", "-o", artifact, "--false-alarm-rate 0.01 --json"
    )
    assert answer[0] == 2
    assert document(answer)["error"]["kind"] == "CalibrationError"


@pytest.fixture
def two(run: Run, good_folder: Path, tmp_path: Path, picture: Any, write: Any) -> Path:
    """An artifact of 24 parts ("part") and 6 of their negatives ("Negative")."""
    for seed in range(6):
        write(tmp_path / "Negative" / "train" / "good" / f"{seed}.png", 255 - picture(50 + seed))
    part = good_folder.rename(tmp_path / "part")
    artifact = tmp_path / "two.blemish"
    assert (
        run("fit knn", part, tmp_path / "Negative" / "train" / "good", "-o", artifact, FIT)[0] == 0
    )
    return artifact


def test_fit_of_several_folders(run: Run, two: Path, tmp_path: Path) -> None:
    again = (
        "fit knn",
        tmp_path / "part",
        tmp_path / "Negative" / "train" / "good",
        "-o",
        tmp_path / "b",
        FIT,
    )
    _, out, _ = run(*again)
    _, inspected, _ = run("inspect", two)
    for said in (
        "Negative, part",
        "of part: ",
        "from its 24 pictures",
        "of Negative: none of its own: ",
    ):
        assert said in out
        assert said in inspected
    made = document(run(*again, "--json"))
    manifest = read(two)[1]
    assert made["categories"] == manifest["categories"] == ["Negative", "part"]
    assert made["thresholds"] == manifest["thresholds"]


def test_predict_of_a_category(run: Run, two: Path, new: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out", tmp_path / "report.html"
    made = document(
        run("predict", two, new, "--category part --output", out, "--report", report, "--json")
    )
    threshold = read(two)[1]["thresholds"]["part"]
    assert (made["category"], made["threshold"]) == ("part", threshold)
    assert {(row["category"], row["threshold"]) for row in made["predictions"]} == {
        ("part", threshold["value"])
    }
    with (out / "predictions.csv").open(newline="") as file:
        assert {line["category"] for line in csv.DictReader(file)} == {"part"}
    assert threshold["guarantee"].split(",")[0] in report.read_text()
    told = document(run("predict", two, new, "--json"))
    assert {row["category"] for row in told["predictions"]} == {"part"}
    assert told["threshold"] == threshold
    status, _, err = run("predict", two, new, "--output", out, "--resume")
    assert (status, "made with another category;" in err) == (2, True)
    status, _, err = run("predict", two, new, "--category parts")
    assert (status, "did you mean 'part'?" in err) == (2, True)


def test_predict_of_categories_that_nobody_named(
    run: Run, two: Path, tmp_path: Path, picture: Any, write: Any
) -> None:
    for seed in range(3):
        write(tmp_path / "mixed" / f"p{seed}.png", picture(900 + seed))
    write(tmp_path / "mixed" / "n.png", 255 - picture(950))
    out, report = tmp_path / "out", tmp_path / "report.html"
    told = ("predict", two, tmp_path / "mixed", "--output", out, "--report", report)
    status, said, err = run(*told)
    assert status == 0
    warning = (
        "no category of the artifact was named for the pictures: judged 1 as Negative, 3 as part; "
        "each picture"
    )
    assert err.count(warning) == 1
    assert "--category NAME says it" in err
    assert re.search(r"score +verdict +category +path", said)
    assert re.search(r" Negative +\S*n\.png", said)
    assert warning[1:] in report.read_text().replace("&#39;", "'")
    made = document(run("predict", two, tmp_path / "mixed", "--category auto --json"))
    assert made["warning"].startswith(warning)
    limits = {name: values["value"] for name, values in read(two)[1]["thresholds"].items()}
    common = read(two)[1]["threshold"]["value"]
    for row in made["predictions"]:
        assert row["category"] == ("Negative" if "n.png" in row["path"] else "part")
        assert row["category_assigned"] is True
        assert row["threshold"] == (
            limits[row["category"]] if limits[row["category"]] is not None else common
        )
    with (out / "predictions.csv").open(newline="") as file:
        assert {line["category_assigned"] for line in csv.DictReader(file)} == {"True"}
    named = document(run("predict", two, tmp_path / "mixed", "--category part --json"))
    assert named["warning"] == ""
    assert "category_features" not in json.dumps(made)


def test_an_artifact_that_cannot_tell_its_categories_warns(
    run: Run, two: Path, new: Path, tmp_path: Path
) -> None:
    tensors, manifest = read(two)
    del manifest["category_features"]
    old = artifact.write(tmp_path / "old.blemish", tensors, manifest)
    status, out, err = run("predict", old, new, "--report", tmp_path / "report.html")
    assert status in (0, 1)
    assert err.count("by the common threshold: the common threshold") == 0
    assert (
        err.count("by the common threshold; the common threshold of all categories misses defects")
        == 1
    )
    assert "judged by the common threshold of all categories" in out
    assert "misses defects of those that score low" in (tmp_path / "report.html").read_text()
    status, _, err = run("predict", old, new, "--category auto")
    assert (status, "name one of Negative, part, or fit it again" in err) == (2, True)
    status, _, err = run("evaluate", two, tmp_path / "part", "--json")
    assert status == 2  # nothing that is labelled


def test_evaluate_warns_of_categories_that_nobody_named(
    run: Run, two: Path, mvtec: Path, tmp_path: Path
) -> None:
    shutil.copytree(mvtec / "test", tmp_path / "new" / "parts")
    status, out, err = run("evaluate", two, tmp_path / "new" / "parts", "--json")
    made = json.loads(out)
    assert status == 0
    assert "no category of the artifact was named" in made["warning"]
    assert made["warning"] in err
    assert {row["judged_as"] for row in made["rows"]} <= {"Negative", "part"}


def test_a_threshold_by_hand(run: Run, part: Path, new: Path, tmp_path: Path) -> None:
    own, report = tmp_path / "own.blemish", tmp_path / "report.html"
    status, out, _ = run("calibrate", part, "--threshold -2 -o", own)
    assert (status, "Threshold: -2. Set by hand: nothing is known" in out) == (0, True)
    assert read(own)[1]["threshold"] == {
        "value": -2.0,
        "rate": None,
        "n": 0,
        "method": "by hand",
        "guarantee": "Set by hand: nothing is known of how many normal pictures raise a false "
        "alarm.",
        "reason": "",
    }
    assert (
        document(run("calibrate", part, "--threshold -2 -o", own, "--json"))["threshold"]["method"]
        == "by hand"
    )
    assert "-2. Set by hand" in run("inspect", own)[1]
    _, out, _ = run("predict", own, new, "--report", report)
    assert "0 normal at a threshold of -2 set by hand" in out
    assert "Set by hand: nothing is known" in report.read_text()
    assert "by hand" in report.read_text()
    made = document(run("predict", part, new, "--threshold 1e9 --json"))
    assert (made["alarms"], made["threshold"]["value"], made["threshold"]["method"]) == (
        0,
        1e9,
        "by hand",
    )
    assert {row["threshold"] for row in made["predictions"] if "error" not in row} == {1e9}
    out_folder = tmp_path / "out"
    run("predict", part, new, "--output", out_folder, "--threshold 0.5")
    status, _, err = run("predict", part, new, "--output", out_folder, "--resume")
    assert (status, "made with another --threshold" in err) == (2, True)
    assert run("predict", part, new, "--output", out_folder, "--threshold 0.5 --resume")[0] in (
        0,
        1,
    )


@pytest.mark.parametrize(
    ("command", "more", "said"),
    [
        ("predict", "--threshold nan", "the threshold is nan; a finite number"),
        ("calibrate", "--threshold nan", "the threshold is nan; a finite number"),
        ("calibrate", "--threshold inf", "the threshold is inf; a finite number"),
        ("calibrate", "--threshold high", "Invalid value for '--threshold'"),
        ("calibrate", "", "needs pictures of good parts, or the threshold itself"),
        ("calibrate", "good --threshold 3", "needs pictures of good parts, or the threshold"),
        ("calibrate", "--threshold 3 --false-alarm-rate 0.1", "or the threshold itself"),
    ],
)
def test_what_is_no_threshold(
    run: Run, part: Path, new: Path, tmp_path: Path, command: str, more: str, said: str
) -> None:
    place = (new,) if command == "predict" else ("-o", tmp_path / "x.blemish")
    status, _, err = run(command, part, *place, *more.split())
    assert (status, said in err) == (2, True), err
    assert not (tmp_path / "x.blemish").exists()


@pytest.mark.parametrize(
    ("given", "longer"), [("", 1600), ("--overlay-size 100", 100), ("--overlay-size full", 2000)]
)
def test_overlays_have_a_bounded_size(
    run: Run, part: Path, tmp_path: Path, picture: Any, write: Any, given: str, longer: int
) -> None:
    write(tmp_path / "large" / "a.png", picture(1, height=500, width=2000))
    write(tmp_path / "large" / "b.png", picture(2, height=60, width=70))
    assert run("predict", part, tmp_path / "large", "--output", tmp_path / "out", given)[0] == 0
    sizes = {decode(file).size for file in (tmp_path / "out" / "overlays").iterdir()}
    assert sizes == {(longer // 4, longer), (60, 70)}


def test_no_overlays(run: Run, part: Path, new: Path, mvtec: Path, tmp_path: Path) -> None:
    run("predict", part, new, "--output", tmp_path / "out", "--overlay-size none")
    assert not (tmp_path / "out" / "overlays").exists()
    rows = rows_of(tmp_path / "out")
    assert rows
    assert not any("overlay" in row for row in rows)
    assert run("evaluate", part, mvtec, "--output", tmp_path / "e", "--overlay-size none")[0] == 0
    assert not (tmp_path / "e" / "worst").exists()
    for given, said in (("0", "longer side"), ("big", "longer side")):
        status, _, err = run(
            "predict", part, new, "--output", tmp_path / "x", "--overlay-size", given
        )
        assert (status, said in err) == (2, True)
    status, _, err = run("predict", part, new, "--overlay-size full")
    assert (status, "name it with --output DIR" in err) == (2, True)


@pytest.mark.parametrize("size", ["32x64", "32,64"])
def test_a_size_is_height_and_width(run: Run, good_folder: Path, tmp_path: Path, size: str) -> None:
    made = ("-o", tmp_path / "a", "--backbone test_vit --weights random --device cpu --json")
    fitted = document(run("fit knn", good_folder, "--image-size", size, *made))
    assert fitted["config"]["image_size"] == [32, 64]
    assert document(run("fit knn", good_folder, "--set", f"image_size={size}", *made))["config"][
        "image_size"
    ] == [32, 64]
    sheet = ("-o", tmp_path / f"s{len(size)}", "--simulator cutpaste --count 2 --image-size", size)
    assert run("simulate", good_folder, *sheet)[0] == 0
    for command in (
        ("fit", "knn", good_folder, *made[:2]),
        ("simulate", good_folder, "-o", tmp_path / "n"),
    ):
        status, _, err = run(*command, "--image-size 32x64x3")
        assert status == 2
        assert "224x448" in err


def test_what_was_done_to_pictures_is_told(run: Run, tmp_path: Path, write: Any) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        frame = rng.integers(0, 4096, (40, 40), dtype=np.uint16)
        frame[0, 0] = 4095
        write(tmp_path / "good" / f"{number}.png", frame)
    _, out, _ = run("fit knn", tmp_path / "good", "-o", tmp_path / "a", FIT)
    note = (
        "16-bit values no higher than 4095, read as 0 to 65535: "
        "for 12-bit data fit with --window 0,4095"
    )
    assert f"note on 3 of them: {note}" in out
    assert document(run("fit knn", tmp_path / "good", "-o", tmp_path / "a", FIT, "--json"))[
        "notes"
    ] == {note: 3}
    assert f"note on 3 of them: {note}" in run("predict", tmp_path / "a", tmp_path / "good")[1]
    _, out, _ = run("fit knn", tmp_path / "good", "-o", tmp_path / "a", FIT, "--window 0,4095")
    assert "note on" not in out
    assert "note on" not in run("predict", tmp_path / "a", tmp_path / "good")[1]


def test_calibrate_by_category(
    run: Run, two: Path, tmp_path: Path, picture: Any, write: Any
) -> None:
    for seed in range(20):
        write(tmp_path / "new" / "part" / f"{seed}.png", picture(700 + seed))
        write(tmp_path / "new" / "Negative" / f"{seed}.png", 255 - picture(800 + seed))
    status, out, _ = run(
        "calibrate", two, tmp_path / "new" / "part", tmp_path / "new" / "Negative", "-o", two
    )
    assert status == 0
    assert "Pictures: 40 used" in out
    assert "of Negative: " in out
    assert {values["n"] for values in read(two)[1]["thresholds"].values()} == {20}


def test_fit_of_few_shots(run: Run, good_folder: Path, tmp_path: Path) -> None:
    few = ("fit knn", good_folder, "-o", tmp_path / "a", FIT, "--shots 2 --seed 5")
    assert "Pictures: 2 used (2 shots by seed 5)" in run(*few)[1]
    made = document(run(*few, "--json"))
    assert (made["shots"], made["count"]) == (2, 2)
    assert (made["config"]["rotations"], made["config"]["flips"]) == (16, True)
    assert document(run(*few, "--set rotations=1 --json"))["config"]["rotations"] == 1
    assert "2 shots by seed 5" in run("inspect", tmp_path / "a")[1]
    status, _, err = run("fit knn", good_folder, "-o", tmp_path / "a", FIT, "--shots 0")
    assert (status, "at least 1" in err) == (2, True)


def test_evaluate_tells_the_mean_of_the_categories(
    run: Run, part: Path, mvtec: Path, tmp_path: Path
) -> None:
    shutil.copytree(mvtec, tmp_path / "set" / "nut")
    shutil.copytree(mvtec, tmp_path / "set" / "bolt")
    report = tmp_path / "report.html"
    _, said, _ = run("evaluate", part, tmp_path / "set", "--report", report)
    result = blemish.evaluate(blemish.load(part), tmp_path / "set")
    (line,) = [line for line in said.splitlines() if line.startswith("mean of categories")]
    assert line.split()[3:] == [
        f"{100 * float(value or 0):.2f}" for value in result.category_mean.values()
    ]
    assert "Each category by itself" in report.read_text()


def test_inspect(run: Run, part: Path) -> None:
    status, out, _ = run("inspect", part)
    assert status == 0
    for said in (
        "whole and unaltered",
        "knn",
        "test_vit",
        "random",
        "64×64",
        "24 fitted on",
        "bank_size=",
    ):
        assert said in out
    manifest = document(run("inspect", part, "--json"))["manifest"]
    assert manifest == read(part)[1]


def test_data_check(run: Run, mvtec: Path) -> None:
    status, out, _ = run("data check", mvtec)
    assert status == 0
    assert "MVTec layout: 24 train good, 13 test (6 good, 7 in 2 defect types)" in out
    assert "Nothing is wrong." in out
    shutil.copy(mvtec / "train" / "good" / "000.png", mvtec / "test" / "good" / "copy.png")
    (mvtec / "test" / "good" / "empty.png").touch()
    status, out, _ = run("data check", mvtec)
    assert status == 1
    assert "leak, same pixels in train and test" in out
    assert "empty.png: is empty" in out
    made = document(run("data check", mvtec, "--json"))
    assert (made["ok"], len(made["leaks"]), len(made["broken"])) == (False, 1, 1)


def test_data_layouts(run: Run) -> None:
    status, out, _ = run("data layouts")
    assert status == 0
    for said in (
        "MVTec AD (mvtec)",
        "CC BY-NC-SA 4.0",
        "split_csv/1cls.csv",
        "pcb3 905/101/100",
        "manifest  ",
    ):
        assert said in out
    rows = document(run("data layouts --json"))
    assert [row["name"] for row in rows] == list(OFFICIAL)
    assert rows[0]["categories"]["bottle"] == {
        "train": 209,
        "test_normal": 20,
        "test_anomalous": 63,
    }


def test_data_elpv(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("elpv_dataset")
    made = document(run("data elpv -o", tmp_path / "cells.csv", "--json"))
    assert "1131 train good" in made["description"]
    assert len((tmp_path / "cells.csv").read_text().splitlines()) == 1 + 1131 + 377 + 715
    status, out, _ = run("data elpv -o", tmp_path / "few.csv", "--cells 200")
    assert status == 0
    assert "manifest: 200 train good, 200 test (100 good, 100 in 1 defect type)" in out
    assert "200 of the 1,131 cells to learn from and 200 of the 1,092 to test on" in out
    assert "about 5.6 times as long" in out
    assert run("data elpv -o", tmp_path / "no.csv", "--cells 5000")[0] == 2


def test_backbones(run: Run) -> None:
    assert {row["name"] for row in document(run("backbones --json"))} == set(blemish.BACKBONES)
    assert "focus_vits14" in run("backbones")[1]


def test_methods_are_a_short_table(run: Run) -> None:
    made = document(run("methods --json"))
    assert [method["name"] for method in made] == list(METHODS)
    lines = run("methods")[1].splitlines()
    assert len(lines) == 2 + len(METHODS)
    for line, method in zip(lines[1:-1], made, strict=True):
        assert line.startswith(method["name"])
        assert method["summary"] in line
        assert method["source"] in line
    learns = {method["name"]: method["learns_from"] for method in made}
    assert (learns["knn"], learns["lda"]) == ("good pictures", "good pictures and defects")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_described_whole(run: Run, name: str) -> None:
    method = document(run("methods", name, "--json"))
    assert method in document(run("methods --json"))
    defaults = {setting["name"]: setting["default"] for setting in method["settings"]}
    assert defaults == config.to_dict(METHODS[name].Config())
    assert all(setting["about"] for setting in method["settings"])
    out = run("methods", name)[1]
    assert all(f"recipe {recipe['name']}: " in out for recipe in method["recipes"])
    assert all(setting["about"] in out for setting in method["settings"])


def test_an_unknown_method_is_not_described(run: Run) -> None:
    status, _, err = run("methods pachcore")
    assert status == 2
    assert "did you mean 'patchcore'" in err


def test_doctor(run: Run) -> None:
    status, out, _ = run("doctor")
    assert status == 0
    assert "blemish can work here." in out
    assert document(run("doctor --json"))["faults"] == []


def test_simulate(run: Run, good_folder: Path, tmp_path: Path) -> None:
    (good_folder / "broken.png").touch()
    tiny = ("--backbone test_vit --weights random --image-size 32,64 --guide-layers 2,4",)
    status, out, err = run("simulate", good_folder, "-o", tmp_path / "out", *tiny, "--count 25")
    assert status == 1  # done, but a picture was broken
    assert "24 pictures with an anomaly by guided, 1 broken" in out
    assert "broken.png: is empty" in out
    assert "log N" in out
    assert "warning: the attention is nearly flat" in out  # of an untrained backbone
    assert out.count(f"Written: {tmp_path / 'out' / 'contact-sheet'}") == 3
    assert "simulating: 1 of 25" in err
    assert run("simulate", good_folder, "-o", tmp_path / "out")[0] == 2


def test_simulate_as_json(run: Run, good_folder: Path, tmp_path: Path) -> None:
    options = "--simulator nsa --count 2 --image-size 32 --json"
    answer = run("simulate", good_folder, "-o", tmp_path / "out", options)
    made = document(answer)
    assert (answer[0], made["simulator"], made["entropy"], made["failures"]) == (0, "nsa", None, [])
    assert {Path(file) for file in made["files"]} == set((tmp_path / "out").iterdir())
    assert len(made["files"]) == 5


def test_simulators_are_listed(run: Run) -> None:
    assert [one["name"] for one in document(run("simulate --list --json"))] == list(SIMULATORS)
    assert "guided-poisson" in run("simulate --list")[1]


def test_bench_names_its_shifts(run: Run, mvtec: Path) -> None:
    help_text = " ".join(run("bench --help")[1].split())
    assert all(name in help_text for name in SHIFTS)
    asked = ("bench --methods knn --data", mvtec, "--dry-run --json")
    assert document(run(*asked, "--shifts all"))["runs"][0]["shifts"] == list(SHIFTS)
    assert document(run(*asked, "--shifts noise,blur"))["runs"][0]["shifts"] == ["blur", "noise"]
    assert "knn cannot adapt" in run(*asked, "--adapt online")[1]


def test_bench_with_known_defects(run: Run, mvtec: Path) -> None:
    bench = ("bench --methods knn,lda --data", mvtec, "--dry-run")
    asked = (*bench, "--anomaly-count 2")
    runs = document(run(*asked, "--json"))["runs"]
    told = [(one["method"], one["anomaly_count"], one["anomaly_type"]) for one in runs]
    assert told == [("knn", None, None), ("lda", 2, None)]
    assert "lda on part, seed 0 · 2 defects: no telling (" in run(*asked)[1]
    kind = run(*asked, "--anomaly-type square")[1]
    assert "lda on part, seed 0 · 2 defects of type square" in kind
    status, _, err = run(*bench, "--anomaly-type square")
    assert status == ERROR
    assert "say how many of that type" in err
    assert run(*bench, "--anomaly-count -1")[0] == ERROR


@pytest.mark.parametrize(
    ("given", "seeds"),
    [
        ("", [0]),
        ("--seeds 1", [0]),
        ("--seeds 3", [0, 1, 2]),
        ("--seeds 3,", [3]),
        ("--seeds 0,4", [0, 4]),
    ],
)
def test_bench_counts_or_lists_its_seeds(
    run: Run, mvtec: Path, given: str, seeds: list[int]
) -> None:
    asked = ("bench --methods knn --data", mvtec, "--dry-run --json", given)
    assert [one["seed"] for one in document(run(*asked))["runs"]] == seeds


@pytest.mark.parametrize(
    ("given", "budget"),
    [
        ("", None),
        ("--schedule full", None),
        ("--schedule reduced", 15),
        ("--schedule reduced --time-budget 4", 4),
        ("--time-budget 4", 4),
    ],
)
def test_bench_has_full_and_reduced_schedules(
    run: Run, mvtec: Path, given: str, budget: float | None
) -> None:
    asked = ("bench --methods agpnet,knn --data", mvtec, "--dry-run --json", given)
    assert [one["time_budget"] for one in document(run(*asked))["runs"]] == [budget, None]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--schedule full --time-budget 4", "leave one of them out"),
        ("--schedule reducd", "did you mean 'reduced'"),
        ("--seeds 0", "how many is needed, at least 1"),
        ("--seeds -2", "how many is needed, at least 1"),
        ("--seeds ,", "how many is needed"),
        ("--seeds two", "whole numbers are needed"),
        ("--jobs 0", "--jobs"),
    ],
)
def test_bench_says_what_contradicts(run: Run, mvtec: Path, given: str, said: str) -> None:
    status, out, err = run("bench --methods agpnet --data", mvtec, "--dry-run", given)
    assert (status, out) == (ERROR, "")
    assert said in err


def test_a_bench_is_told_its_suite_first_or_among_the_options(
    run: Run, mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mvtec, tmp_path / "root" / "mvtec" / "bottle")
    asked = ("--only noise --data", tmp_path / "root", "--dry-run")
    first = run("bench agpnet-ablations", *asked, "--json")
    assert first == run("bench --suite agpnet-ablations", *asked, "--json")
    assert first == run("bench", *asked, "--json agpnet-ablations")
    found = document(first)
    assert len(found["runs"]) == 11
    assert (found["made"], found["jobs"]) == (0, 1)
    assert (found["seconds"], {one["seconds"] for one in found["runs"]}) == (0, {None})
    assert "MVTec AD (cable, " in found["notes"][0]
    told = run("bench agpnet-ablations", *asked, "--jobs 2")[1].splitlines()
    assert told[-2] == found["notes"][-1] == "Rows are kept in agpnet-ablations.jsonl."
    assert told[-1].startswith("11 runs to make, 0 made already: about ")
    assert told[-1].endswith("; rough, without 11 of them")
    assert "[SUITE] [OPTIONS]" in run("bench --help")[1]
    assert "unknown suite 'agpnets'; did you mean 'agpnet'" in run("bench agpnets", *asked)[2]


def test_a_bug_is_called_one(run: Run, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("blemish.artifact.read", broken)
    status, out, err = run("inspect", part)
    assert (status, out) == (2, "")
    assert "this is a bug in blemish (ZeroDivisionError: division by zero)" in err
    assert "Traceback" not in err
    assert document(run("inspect", part, "--json"))["error"]["kind"] == "ZeroDivisionError"
    monkeypatch.setenv("BLEMISH_DEBUG", "1")
    assert "Traceback" in run("inspect", part)[2]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("OpenCV: error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
    ],
)
def test_running_out_of_memory_is_no_bug(
    run: Run, part: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def full(path: Path) -> None:
        raise error

    monkeypatch.setattr("blemish.artifact.read", full)
    status, _, err = run("inspect", part)
    assert status == 2
    assert "out of memory; choose a smaller --batch-size" in err


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_closed_pipe_is_no_error_to_talk_about() -> None:
    code = "import sys; from blemish.cli import main; sys.exit(main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.fixture
def teachable(tmp_path: Path, good_folder: Path, small: dict[str, Any]) -> Path:
    """An artifact of lda that knows 20 good parts and no defect; four more parts wait in
    `good_folder`.
    """
    known = sorted(good_folder.iterdir())[:20]
    return blemish.fit("lda", known, normality="knn", **small).save(tmp_path / "teachable.blemish")


def test_refine(run: Run, teachable: Path, good_folder: Path, mvtec: Path, tmp_path: Path) -> None:
    old, new = teachable.read_bytes(), tmp_path / "new.blemish"
    defects = [mvtec / "test" / kind for kind in ("square", "dark")]
    confirmed = ("--good", good_folder, "--anomalies", defects[0], "--anomalies", defects[1])
    status, out, err = run("refine", teachable, *confirmed, "-o", new)
    assert status == 0
    change = blemish.refine(blemish.load(teachable), good=good_folder, anomalies=defects)
    for said in (
        "Added: 4 good pictures, 7 defects, 20 known already; 0 broken",
        f"Threshold: {change.before:.4g} before, {change.after:.4g} now",
        f"Of the 20 good pictures it knew, {change.alarms_before} were above the threshold before",
        f"and {change.alarms_after} are now; their scores changed by {change.mean_change:+.4g} on",
        f"Of the added defects {change.found_before} were found before, {change.found_after} are",
        f"Written: {new}",
    ):
        assert said in out
    assert "learning the defects" in err
    assert teachable.read_bytes() == old
    data = read(new)[1]["data"]
    assert (len(data["fitted"]), len(data["defects"])) == (24, 7)


def test_refine_in_place(run: Run, teachable: Path, good_folder: Path, mvtec: Path) -> None:
    (good_folder / "022.png").write_text("not a picture")
    command = ("refine", teachable, "--false-alarm-rate 0.1")
    answer = run(*command, "--good", good_folder, "--json")
    made = document(answer)
    assert (answer[0], made["artifact"]) == (BROKEN_PICTURES, str(teachable))
    assert (made["good"], made["defects"], made["known"]) == (3, 0, 20)
    assert [Path(failure["path"]).name for failure in made["failures"]] == ["022.png"]
    assert (made["threshold"]["rate"], made["threshold"]["n"]) == (0.1, 23)
    assert (made["after"], made["found_after"]) == (made["threshold"]["value"], 0)
    status, out, _ = run(*command, "--anomalies", mvtec / "test" / "square")
    assert status == 0
    assert "Added: 0 good pictures, 4 defects; 0 broken" in out
    events = read(teachable)[1]["refined"]
    assert [(event["good"], event["defects"]) for event in events] == [(3, 0), (0, 4)]


def test_refine_leaves_what_it_cannot_change(
    run: Run, teachable: Path, good_folder: Path, tmp_path: Path
) -> None:
    old = teachable.read_bytes()
    (tmp_path / "file").touch()
    for more, said in (
        ((), "refine: name good pictures, defects or both"),
        (("--good", good_folder, "--false-alarm-rate 0.01"), "needs at least 99 normal pictures"),
        (("--good", good_folder, "-o", tmp_path / "file" / "x"), "cannot be written"),
    ):
        status, out, err = run("refine", teachable, *more)
        assert (status, out, said in err) == (ERROR, "", True)
    assert teachable.read_bytes() == old
