"""predict, evaluate: what is judged, written, gone on with and told."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import FIT, rows_of

import blemish
from blemish import artifact
from blemish.artifact import read
from blemish.cli.status import BROKEN_PICTURES
from blemish.images import decode
from blemish.report import predictions as outputs

Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]
Answered = Callable[..., Any]


@pytest.fixture
def new(tmp_path: Path, picture: Callable[..., np.ndarray], write: Callable[..., Path]) -> Path:
    """Eight new pictures, every second with a defect, in two folders that use the same names."""
    for seed in range(8):
        place = tmp_path / "new" / ("a" if seed < 4 else "b") / f"{seed % 4}.png"
        write(place, picture(500 + seed, defect=seed % 2 == 1, height=40 + seed))
    return tmp_path / "new"


def test_predict_prints_the_highest_score_first(
    run: Run, answered: Answered, part: Path, new: Path
) -> None:
    status, out, _ = run("predict", part, new, "--precision fp32")
    head, *lines = [line.split() for line in out.splitlines()]
    assert (status, head) == (0, ["score", "verdict", "path"])
    scores = [float(line[0]) for line in lines[:8]]
    assert scores == sorted(scores, reverse=True)
    assert {line[2] for line in lines[:4]} == {
        str(new / f"{at}.png") for at in ("a/1", "a/3", "b/1", "b/3")
    }
    assert [line[1] for line in lines[:8]] == ["alarm"] * 4 + ["normal"] * 4
    assert "8 scored: 4 alarms, 4 normal" in out
    made = answered("predict", part, new / "*" / "[12].png", "--precision fp32")
    detector = blemish.load(part, precision="fp32")
    asked = [str(new / at) for at in ("a/1.png", "a/2.png", "b/1.png", "b/2.png")]
    assert [row["path"] for row in made["predictions"]] == asked
    for row in made["predictions"]:
        assert row["score"] == pytest.approx(detector.predict(row["path"]).score, rel=1e-5)
    assert (made["scored"], made["alarms"], made["failed"], made["interrupted"]) == (4, 2, 0, False)


def test_predict_of_many_pictures_prints_the_alarms(
    run: Run, answered: Answered, part: Path, new: Path
) -> None:
    first, second, *_ = sorted(
        (row["score"] for row in answered("predict", part, new)["predictions"]), reverse=True
    )
    for copy in range(7):
        shutil.copytree(new / "a", new / f"copy{copy}")
        shutil.copytree(new / "b", new / f"other{copy}")
    for threshold, alarms, said in (
        ((), 20, "the highest 20 alarms of 64 pictures"),
        ((f"--threshold {(first + second) / 2}",), 8, "the highest 8 alarms of 64 pictures"),
        (("--threshold 1e9",), 0, "the highest 20 of 64 pictures"),
    ):
        out = run("predict", part, new, "--batch-size 16", *threshold)[1]
        assert out.count("alarm ") == alarms
        assert said in out


def test_predict_output(
    run: Run, part: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (new / "broken.png").write_bytes(b"not a picture")
    out, report = tmp_path / "out", tmp_path / "report.html"
    assert run("predict", part, new, "--output", out, "--report", report)[0] == BROKEN_PICTURES
    rows = rows_of(out)
    assert [row["path"] for row in rows if "error" in row] == [str(new / "broken.png")]
    drawn = [row for row in rows if "overlay" in row]
    assert len(drawn) == len(rows) - 1 == len({row["overlay"] for row in drawn}) == 8
    for row in drawn:  # though the same names occur in two folders
        overlay = decode(out / row["overlay"])
        assert overlay.size == (row["height"], row["width"])
        assert (overlay.pixels != decode(row["path"]).pixels).any() or row["label"] == 0
    with (out / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["path"] for line in table] == [row["path"] for row in rows]
    assert [float(line["score"] or 0) for line in table] == pytest.approx(
        [row.get("score", 0) for row in rows]
    )
    assert "broken.png" in report.read_text()

    def embedded(limit: int) -> int:
        monkeypatch.setattr(outputs, "EMBEDDED", limit)
        run("predict", part, new, "--report", report)
        pieces = report.read_text().split("data:image/jpeg;base64,")[1:]
        return len({piece.partition('"')[0] for piece in pieces})

    assert (embedded(2), embedded(8)) == (4, 16)


def test_resume_goes_on_where_a_killed_run_stopped(
    run: Run, refused: Refused, part: Path, new: Path, tmp_path: Path
) -> None:
    whole, out, report = tmp_path / "whole", tmp_path / "out", tmp_path / "report.html"
    (new / "a" / "2.png").write_bytes(b"")
    run("predict", part, new, "--output", whole)
    run("predict", part, new, "--output", out)
    assert "holds predictions already; go on from them with --resume" in refused(
        "predict", part, new, "--output", out
    )
    lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:30])  # half written
    (out / "predictions.csv").unlink()
    resume = ("predict", part, new, "--output", out, "--resume --report", report)
    for told in (True, False):  # then nothing is left to do
        status, _, err = run(*resume)
        assert (status, "scoring: 1 of 4" in err) == (BROKEN_PICTURES, told)
        assert len(set(report.read_text().split("data:image/jpeg;base64,")[1:])) >= 14
        assert rows_of(out) == rows_of(whole)
        assert (out / "predictions.csv").read_text() == (whole / "predictions.csv").read_text()
        drawn = [{path.name for path in (each / "overlays").iterdir()} for each in (out, whole)]
        assert drawn[0] == drawn[1]


def test_resume_refuses_rows_that_were_made_otherwise(
    run: Run,
    refused: Refused,
    part: Path,
    new: Path,
    tmp_path: Path,
    fitted: Callable[..., blemish.Detector],
) -> None:
    out, rows = tmp_path / "out", tmp_path / "out" / "predictions.jsonl"
    run("predict", part, new, "--output", out, "--precision fp32")
    other = fitted("padim").save(tmp_path / "other.blemish")
    resume = (new, "--output", out, "--resume --precision")
    assert "made with another artifact;" in refused("predict", other, *resume, "fp32")
    assert "made with another precision;" in refused("predict", part, *resume, "bf16")
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join([lines[0], b"{}\n", *lines[2:]]))
    assert "line 2 is damaged" in refused("predict", part, *resume, "fp32")
    (out / "run.json").write_text("[]")
    said = refused("predict", part, *resume, "fp32")
    assert "does not say what the rows were made with" in said


def test_file_names_cannot_steer_the_terminal_or_escape_the_folder(
    run: Run, part: Path, new: Path, tmp_path: Path
) -> None:
    odd = new / "\x1b[2J ..,[red]\udcff.png"
    (new / "a" / "0.png").rename(odd)
    out = run("predict", part, odd, "--output", tmp_path / "out")[1]
    assert "\x1b" not in out
    assert "\\x1b[2J ..,[red]\\udcff.png" in out
    (overlay,) = (tmp_path / "out" / "overlays").iterdir()
    assert overlay.name.isascii()
    assert [row["path"] for row in rows_of(tmp_path / "out")] == [str(odd)]


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


def test_no_overlays(
    run: Run, refused: Refused, part: Path, new: Path, mvtec: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("predict", part, new, "--output", out, "--overlay-size none")
    assert not (out / "overlays").exists()
    assert not any("overlay" in row for row in rows_of(out))
    assert run("evaluate", part, mvtec, "--output", tmp_path / "e", "--overlay-size none")[0] == 0
    assert not (tmp_path / "e" / "worst").exists()
    predict = ("predict", part, new, "--output", tmp_path / "x", "--overlay-size")
    for given in ("0", "big"):
        assert "longer side" in refused(*predict, given)
    assert "name it with --output DIR" in refused("predict", part, new, "--overlay-size full")


def test_evaluate(
    run: Run, refused: Refused, part: Path, mvtec: Path, tmp_path: Path, picture: Any, write: Any
) -> None:
    write(mvtec / "test" / "good" / "known.png", picture(3))
    out, report = tmp_path / "out", tmp_path / "report.html"
    status, said, _ = run("evaluate", part, mvtec, "--output", out, "--report", report)
    assert status == 0
    assert "13 pictures: 6 good, 7 defective" in said
    assert "1 left out of every figure" in said
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines()}
    result = blemish.evaluate(blemish.load(part), mvtec)
    assert rows["all"][0] == "13"
    assert float(rows["all"][1]) == pytest.approx(100 * (result.image_auroc or 0), abs=0.01)
    aupro = float(result.by_defect["square"]["aupro"] or 0)
    assert float(rows["square"][4]) == pytest.approx(100 * aupro, abs=0.01)
    cells = result.confusion or {}
    for name, right, wrong in (
        ("defective", "true_positive", "false_negative"),
        ("good", "false_positive", "true_negative"),
    ):
        assert rows[name] == [str(cells[right]), str(cells[wrong])]
    assert {path.name for path in out.iterdir()} == {
        *("evaluation.json", "histogram.svg", "pr.svg", "roc.svg", "worst")
    }
    assert len(list((out / "worst").glob("defective-*.png"))) == 7
    lowest = min((row for row in result.rows if row["truth"] == 1), key=lambda row: row["score"])
    assert next((out / "worst").glob("defective-01-*")).name[13:16] == Path(lowest["path"]).stem
    assert json.loads((out / "evaluation.json").read_text())["counts"] == dict(result.counts)
    assert report.read_text().count("data:image/jpeg") >= 26
    assert "holds an evaluation already" in refused("evaluate", part, mvtec, "--output", out)


def test_evaluate_as_json(run: Run, part: Path, mvtec: Path, write: Any) -> None:
    evaluate = ("evaluate", part, mvtec, "--resolution original --json")
    status, out, _ = run(*evaluate)
    made = json.loads(out)
    assert (status, made["image_auroc"]) == (0, 1.0)
    result = blemish.evaluate(blemish.load(part), mvtec, resolution=None)
    assert made["aupro"] == pytest.approx(result.aupro)
    mask = mvtec / "ground_truth" / "square" / "001_mask.png"
    write(mask, np.zeros((64, 64), np.uint8))
    status, out, _ = run(*evaluate)
    faults = [fault["error"] for fault in json.loads(out)["mask_faults"]]
    assert (status, faults) == (BROKEN_PICTURES, ["is empty, but its picture is anomalous"])
    mask.unlink()
    (mvtec / "test" / "good" / "empty.png").touch()
    status, out, _ = run(*evaluate)
    assert (status, json.loads(out)["counts"]["failed"]) == (BROKEN_PICTURES, 1)


def test_evaluate_tells_the_mean_of_the_categories(
    run: Run, part: Path, mvtec: Path, tmp_path: Path
) -> None:
    for category in ("nut", "bolt"):
        shutil.copytree(mvtec, tmp_path / "set" / category)
    report = tmp_path / "report.html"
    said = run("evaluate", part, tmp_path / "set", "--report", report)[1]
    mean = blemish.evaluate(blemish.load(part), tmp_path / "set").category_mean
    (line,) = [line for line in said.splitlines() if line.startswith("mean of categories")]
    assert line.split()[3:] == [f"{100 * (value or 0):.2f}" for value in mean.values()]
    assert "Each category by itself" in report.read_text()


@pytest.fixture
def two(run: Run, good_folder: Path, tmp_path: Path, picture: Any, write: Any) -> Path:
    """An artifact of 24 parts ("part") and 6 of their negatives ("Negative")."""
    negatives = tmp_path / "Negative" / "train" / "good"
    for seed in range(6):
        write(negatives / f"{seed}.png", 255 - picture(50 + seed))
    part = good_folder.rename(tmp_path / "part")
    assert run("fit knn", part, negatives, "-o", tmp_path / "two.blemish", FIT)[0] == 0
    return tmp_path / "two.blemish"


def test_fit_and_calibrate_of_several_folders(
    run: Run, answered: Answered, two: Path, tmp_path: Path, picture: Any, write: Any
) -> None:
    folders = (tmp_path / "part", tmp_path / "Negative" / "train" / "good")
    again = ("fit knn", *folders, "-o", tmp_path / "b", FIT)
    for told in (run(*again)[1], run("inspect", two)[1]):
        for said in ("Negative, part", "of part: ", "from its 24 pictures"):
            assert said in told
        assert "of Negative: none of its own: " in told
    made, manifest = answered(*again), read(two)[1]
    assert made["categories"] == manifest["categories"] == ["Negative", "part"]
    assert made["thresholds"] == manifest["thresholds"]
    for seed in range(20):
        write(tmp_path / "new" / "part" / f"{seed}.png", picture(700 + seed))
        write(tmp_path / "new" / "Negative" / f"{seed}.png", 255 - picture(800 + seed))
    folders = (tmp_path / "new" / "part", tmp_path / "new" / "Negative")
    said = run("calibrate", two, *folders, "-o", two)[1]
    assert "Pictures: 40 used" in said
    assert "of Negative: " in said
    assert {values["n"] for values in read(two)[1]["thresholds"].values()} == {20}


def test_predict_of_a_category(
    run: Run, answered: Answered, refused: Refused, two: Path, new: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    predict = ("predict", two, new, "--output", tmp_path / "out")
    made = answered(*predict, "--category part --report", report)
    threshold = read(two)[1]["thresholds"]["part"]
    assert (made["category"], made["threshold"]) == ("part", threshold)
    judged = {(row["category"], row["threshold"]) for row in made["predictions"]}
    assert judged == {("part", threshold["value"])}
    assert threshold["guarantee"].split(",")[0] in report.read_text()
    told = answered("predict", two, new)  # all are of one category, though nobody named it
    assert {row["category"] for row in told["predictions"]} == {"part"}
    assert told["threshold"] == threshold
    assert "made with another category;" in refused(*predict, "--resume")
    assert "did you mean 'part'?" in refused("predict", two, new, "--category parts")


def test_predict_of_categories_that_nobody_named(
    run: Run, answered: Answered, two: Path, tmp_path: Path, picture: Any, write: Any
) -> None:
    mixed, out, report = (tmp_path / name for name in ("mixed", "out", "report.html"))
    for seed in range(3):
        write(mixed / f"p{seed}.png", picture(900 + seed))
    write(mixed / "n.png", 255 - picture(950))
    status, said, err = run("predict", two, mixed, "--output", out, "--report", report)
    warning = (
        "no category of the artifact was named for the pictures: judged 1 as Negative, 3 as part; "
        "each picture"
    )
    assert (status, err.count(warning)) == (0, 1)
    assert "--category NAME says it" in err
    assert re.search(r"score +verdict +category +path", said)
    assert re.search(r" Negative +\S*n\.png", said)
    assert warning[1:] in report.read_text().replace("&#39;", "'")
    made = answered("predict", two, mixed, "--category auto")
    assert made["warning"].startswith(warning)
    manifest = read(two)[1]
    limits = {name: values["value"] for name, values in manifest["thresholds"].items()}
    for row in made["predictions"]:
        category = "Negative" if "n.png" in row["path"] else "part"
        limit = limits[category] or manifest["threshold"]["value"]
        told = (row["category"], row["category_assigned"], row["threshold"])
        assert told == (category, True, limit)
    with (out / "predictions.csv").open(newline="") as file:
        assert {line["category_assigned"] for line in csv.DictReader(file)} == {"True"}
    assert answered("predict", two, mixed, "--category part")["warning"] == ""


def test_an_artifact_that_cannot_tell_its_categories_warns(
    run: Run, refused: Refused, two: Path, new: Path, mvtec: Path, tmp_path: Path
) -> None:
    tensors, manifest = read(two)
    del manifest["category_features"]
    old = artifact.write(tmp_path / "old.blemish", tensors, manifest)
    _, out, err = run("predict", old, new, "--report", tmp_path / "report.html")
    said = "by the common threshold; the common threshold of all categories misses defects"
    assert err.count(said) == 1
    assert "judged by the common threshold of all categories" in out
    assert "misses defects of those that score low" in (tmp_path / "report.html").read_text()
    auto = refused("predict", old, new, "--category auto")
    assert "name one of Negative, part, or fit it again" in auto
    shutil.copytree(mvtec / "test", tmp_path / "labelled" / "parts")
    _, out, err = run("evaluate", two, tmp_path / "labelled" / "parts", "--json")
    made = json.loads(out)
    assert "no category of the artifact was named" in made["warning"]
    assert made["warning"] in err
    assert {row["judged_as"] for row in made["rows"]} <= {"Negative", "part"}
