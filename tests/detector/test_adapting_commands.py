"""Detectors that adapt and look at several sizes, on the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from parts import Fitted, Part, Run

import blemish
from blemish.artifact import read
from blemish.detector.predict import Detector

TOLD = "--device cpu --precision fp32"
of_either_kind = pytest.mark.parametrize("adaptation", ["features", "entropies"], indirect=True)


@pytest.fixture(scope="module")
def shifted(
    picture: Part, write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of ten dark pictures."""
    folder = tmp_path_factory.mktemp("dark")
    for index in range(10):
        write(folder / f"{index}.png", (picture(600 + index) * 0.7).astype(np.uint8))
    return folder


@of_either_kind
def test_predict_adapt(
    run: Run, adapting: Detector, adapting_artifact: Path, shifted: Path, tmp_path: Path
) -> None:
    out, command = (
        tmp_path / "out",
        ("predict", adapting_artifact, shifted, "--adapt online --json", TOLD),
    )
    status, answer, _ = run(*command, "--output", out)
    assert status == 0
    rows = json.loads(answer)["predictions"]
    expected = list(adapting.predict_many([shifted], adapt="online"))
    found = [(row["score"], row["adapted"], row["votes"]) for row in rows]
    assert found == [(result.score, True, result.votes) for result in expected]
    with (out / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {line["adapted"] for line in table} == {"True"}
    assert [float(line["votes"]) for line in table] == [result.votes for result in expected]
    rows = json.loads(run(*command, "--batch-size 4")[1])["predictions"]
    few = [[f"not adapted: {size} pictures at once, 8 are needed"] for size in (4, 2)]
    assert [row["notes"] for row in rows] == [few[0]] * 8 + [few[1]] * 2


def test_resume_refuses_another_way_of_looking(
    run: Run, adapting_artifact: Path, shifted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("predict", adapting_artifact, shifted, "--output", out, TOLD)
    assert run(*command, "--adapt online --scales 32")[0] == 0
    rows = (out / "predictions.jsonl").read_bytes()
    for others, says in [
        ("--adapt episodic --scales 32", "made with another --adapt;"),
        ("--adapt online", "made with other --scales;"),
        ("--batch-size 8", "made with another --adapt and other --scales;"),
    ]:
        status, _, err = run(*command, "--resume", others)
        assert (status, says in err) == (2, True)
    assert run(*command, "--resume --adapt online --scales 32")[0] == 0
    assert (out / "predictions.jsonl").read_bytes() == rows


def test_rows_of_before_there_was_adaptation_are_gone_on_from(
    run: Run, adapting_artifact: Path, shifted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["predict", adapting_artifact, shifted, "--output", out, TOLD]
    assert run(*command)[0] == 0
    told = json.loads((out / "run.json").read_text())
    assert (told.pop("adapt"), told.pop("scales")) == ("", "")
    (out / "run.json").write_text(json.dumps(told))
    assert run(*command, "--resume")[0] == 0
    assert run(*command, "--resume", "--adapt", "online")[0] == 2


@of_either_kind
def test_evaluate_adapt_and_scales(
    run: Run, adapting: Detector, adapting_artifact: Path, mvtec: Path
) -> None:
    how = f"--adapt episodic --scales 32 --json {TOLD}"
    status, answer, _ = run("evaluate", adapting_artifact, mvtec, how)
    assert status == 0
    expected = blemish.evaluate(adapting.with_scales((32,)), mvtec, adapt="episodic")
    found = [row["score"] for row in json.loads(answer)["rows"]]
    assert found == [row["score"] for row in expected.rows]


def test_calibrate_at_other_sizes(
    run: Run, adapting_artifact: Path, shifted: Path, tmp_path: Path
) -> None:
    made = tmp_path / "small.blemish"
    options = f"--scales 64 --false-alarm-rate 0.2 {TOLD}"
    assert run("calibrate", adapting_artifact, shifted, "-o", made, options)[0] == 0
    manifest = read(made)[1]
    scores, threshold = sorted(manifest["calibration_scores"]), manifest["threshold"]
    assert manifest["config"]["scales"] == [64]
    assert (threshold["n"], threshold["reason"]) == (10, "")
    assert threshold["value"] == scores[8]  # ceil(11 · 0.8) = 9th
    rows = json.loads(run("predict", made, shifted, "--json", TOLD)[1])["predictions"]
    assert sorted(row["score"] for row in rows) == scores
    status, _, err = run("predict", made, shifted, "--adapt online", TOLD)
    assert (status, "holds no statistics to adapt to" in err) == (2, True)
    assert "fit it on more, with these sizes as --scales" in err


def test_fit_with_sizes(run: Run, good_folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "part.blemish"
    sizes = "--scales 32,48 --backbone test_vit --weights random --image-size 32 --layers 2,4"
    brief = "--set=epochs=1 --set=min_steps=4 --set=train_batch_size=8"
    assert run("fit guided", good_folder, "-o", made, sizes, brief, TOLD)[0] == 0
    assert read(made)[1]["config"]["scales"] == [32, 48]
    status, _, err = run("fit knn", good_folder, "-o", made, sizes, TOLD)
    assert (status, "knn has no setting 'scales', which only" in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--adapt", "onlin"], "unknown mode of --adapt 'onlin'; did you mean 'online'?"),
        (["--scales", "0"], "--scales 0: sides in pixels are needed, as in 224,320"),
        (["--scales", "32,"], "--scales 32,: sides in pixels"),
        (["--scales", "32,a"], "--scales 32,a: sides in pixels"),
        (["--scales", "9000"], "--scales 9000: sides in pixels"),
        (["--scales", "64", "--adapt", "online"], "holds no statistics to adapt to"),
    ],
)
def test_values_that_make_no_sense(
    options: list[str], says: str, run: Run, adapting_artifact: Path, shifted: Path, mvtec: Path
) -> None:
    for command in (
        ["predict", adapting_artifact, shifted],
        ["evaluate", adapting_artifact, mvtec],
    ):
        status, _, err = run(*command, *options, TOLD)
        assert (status, says in err) == (2, True), err


def test_other_methods_do_neither(run: Run, fitted: Fitted, shifted: Path, tmp_path: Path) -> None:
    knn = fitted("knn").save(tmp_path / "knn.blemish")
    status, _, err = run("predict", knn, shifted, "--adapt online", TOLD)
    assert (status, "knn cannot adapt to the pictures that it scores; guided" in err) == (2, True)
    for command in (["predict"], ["evaluate"], ["calibrate", "-o", tmp_path / "x"]):
        status, _, err = run(*command, knn, shifted, "--scales 32", TOLD)
        assert (status, "knn cannot look at pictures in several sizes; g" in err) == (2, True)


@pytest.mark.parametrize("options", ["--adapt online --scales 64", "--adapt onlin"])
def test_what_cannot_be_adapted_begins_no_folder(
    options: str, run: Run, adapting_artifact: Path, shifted: Path, tmp_path: Path
) -> None:
    """Or the corrected command would be refused, as the folder holds predictions already."""
    out = tmp_path / "out"
    command = ("predict", adapting_artifact, shifted, "--output", out, TOLD)
    status, _, err = run(*command, options)
    assert (status, out.exists()) == (2, False), err
