"""evaluate, and predict of several categories: what is judged, written and told."""

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
    assert ">Regions</th>" in report.read_text()
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


def test_a_category_without_a_threshold_of_regions_gets_no_mask(
    run: Run, refused: Refused, two: Path, tmp_path: Path, picture: Any, write: Any
) -> None:
    write(tmp_path / "new" / "p.png", picture(900))
    write(tmp_path / "new" / "n.png", 255 - picture(950))
    tensors, manifest = read(two)
    own = manifest["regions"]["thresholds"]["part"]
    few = {**own, "value": None, "guarantee": "", "reason": "too few of them"}
    manifest["regions"] = {**manifest["regions"], "threshold": few, "thresholds": {"part": own}}
    artifact.write(two, tensors, manifest)
    out, coco = tmp_path / "out", tmp_path / "coco.json"
    asked = ("--save masks --coco", coco)
    status, said, _ = run("predict", two, tmp_path / "new", "--output", out, *asked)
    assert status == 0
    assert re.search(r"in [01] of 1 picture,", said)
    assert "; 1 more have no threshold of regions" in said
    masks = {Path(row["path"]).name: row.get("mask", "") for row in rows_of(out)}
    assert (masks["n.png"], (out / masks["p.png"]).is_file()) == ("", True)
    (image,) = json.loads(coco.read_text())["images"]  # nothing is known of the other
    assert Path(image["file_name"]).name == "p.png"
    predict = ("predict", two, tmp_path / "new", "--output", tmp_path / "other")
    said = refused(*predict, "--save masks --category Negative")
    assert "has no threshold of regions (too few of them); set one" in said


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
