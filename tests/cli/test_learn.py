"""fit, calibrate, refine: artifacts that are made, and what is told of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import FIT

import blemish
from blemish.artifact import read
from blemish.cli.status import BROKEN_PICTURES
from blemish.images import decode
from blemish.methods import METHODS

Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]
Answered = Callable[..., Any]


def test_fit(run: Run, good_folder: Path, tmp_path: Path) -> None:
    (good_folder / "empty.png").touch()
    artifact = tmp_path / "made" / "part.blemish"
    status, out, err = run("fit knn", good_folder, "-o", artifact, FIT)
    assert status == BROKEN_PICTURES
    for said in (
        "flat layout: 25 pictures",
        "24 used, 1 broken",
        "empty.png: is empty",
        "about 5 % of new normal pictures are above it, usually fewer",
        f"Written: {artifact} in ",
    ):
        assert said in out
    assert "remembering: 8 of 25" in err
    assert "remembering: 24 of 24" in err
    assert blemish.load(artifact).predict(good_folder / "000.png").score > 0


def test_the_last_of_recipe_file_option_and_set_wins(
    answered: Answered, good_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "settings.json"
    values = {"bank_size": 40, "pooling": 5, "image_size": [32], "backbone": "test_resnet"}
    file.write_text(json.dumps({**values, "seed": 3}))
    options = "--image-size 32,64 --layers 2 --backbone test_vit --set layers=4 --seed 4"
    fit = ("fit knn", good_folder, "-o", tmp_path / "a", "--weights random --config", file)
    made = answered(*fit, options)
    expected = {"bank_size": 40, "pooling": 5, "image_size": [32, 64], "layers": [4]}
    expected |= {"backbone": "test_vit", "seed": 4}
    assert {key: made["config"][key] for key in expected} == expected
    assert made["config"]["top_fraction"] == METHODS["knn"].Config.best().top_fraction
    _, manifest = read(tmp_path / "a")
    assert (manifest["seed"], manifest["config"]) == (4, made["config"])
    assert (made["count"], made["failures"], made["recipe"]) == (24, [], "best")


def test_fit_takes_recipe_threshold_and_window(
    answered: Answered, refused: Refused, good_folder: Path, tmp_path: Path
) -> None:
    options = "--recipe paper --calibration-fraction 0.5 --false-alarm-rate 0.1 --window 10,200"
    fit = ("fit padim", good_folder, "-o", tmp_path / "a", FIT)
    made = answered(*fit, options)
    assert (made["recipe"], made["config"]["channels"]) == ("paper", 550)
    threshold = made["threshold"]
    assert (threshold["method"], threshold["n"], threshold["rate"]) == ("split conformal", 12, 0.1)
    _, manifest = read(tmp_path / "a")
    assert manifest["preprocessing"]["window"] == [10, 200]
    assert manifest["threshold"] == threshold
    for window in ("200,10", "200,200"):
        assert f"--window {window}: two numbers" in refused(*fit, "--window", window)


def test_fit_with_known_defects(
    run: Run, answered: Answered, good_folder: Path, mvtec: Path, tmp_path: Path
) -> None:
    defects = mvtec / "test" / "square"
    fit = ("fit lda", good_folder, "-o", tmp_path / "a", FIT, "--set normality=knn --anomalies")
    status, out, _ = run(*fit, defects, "--anomaly-count 2")
    assert status == 0
    assert "Defects learned from: 2; flat layout: 4 pictures" in out
    learned = read(tmp_path / "a")[1]["data"]["defects"]
    judged = answered("evaluate", tmp_path / "a", mvtec)
    left_out = [path for path in judged["left_out"] if "good" not in path]
    assert sorted(decode(path).digest for path in left_out) == sorted(learned)
    assert (len(learned), judged["counts"]["anomalous"]) == (2, 5)
    made = answered(*fit, defects, "--anomaly-count 2")
    assert (made["method"], made["config"]["normality"], made["count"]) == ("lda", "knn", 24)
    assert made["defects"] == learned
    (mvtec / "test" / "dark" / "000.png").write_text("not a picture")
    status, out, _ = run(*fit, defects, "--anomalies", mvtec / "test" / "dark")
    assert status == BROKEN_PICTURES
    assert "24 used, 1 broken" in out
    assert "000.png: is not a picture (looks like text)" in out
    assert "Defects learned from: 6; flat layout: 4 pictures" in out
    status, out, _ = run(*fit, mvtec, "--anomaly-type square")
    assert status == 0
    assert "Defects learned from: 4; MVTec layout" in out
    made = answered(*fit, mvtec, "--anomaly-type square")
    auroc, alone = (f"{100 * made['taught'][key]:.2f}" for key in ("auroc", "normality_auroc"))
    said = (
        f"left out in turn, they score above {auroc} % of the good pictures "
        f"({alone} % without what the others teach)"
    )
    assert said in out
    assert said in run("inspect", tmp_path / "a")[1]


def test_fit_of_the_published_method(
    run: Run, answered: Answered, refused: Refused, good_folder: Path, mvtec: Path, tmp_path: Path
) -> None:
    quick = "--set epochs=1 --set train_batch_size=4 --set attention_dim=8"
    fit = ("fit atacnet", good_folder, "-o", tmp_path / "a", "--recipe paper", FIT, quick)
    made = answered(*fit, "--anomalies", mvtec, "--anomaly-count 3")
    assert (made["method"], made["recipe"], made["training"]["steps"]) == ("atacnet", "paper", 10)
    assert len(made["defects"]) == 3  # beside 19 good ones, 2 a step
    lines = run("inspect", tmp_path / "a")[1].splitlines()
    (shown,) = [line for line in lines if line.lstrip().startswith("loss")]
    assert shown.count(" by step ") == 10
    assert "by step 10" in shown
    assert not (tmp_path / "a.training").exists()
    budget = refused("fit lda", good_folder, "-o", tmp_path / "b", FIT, "--time-budget 1")
    assert "--time-budget: lda is not trained step by step" in budget


def test_fit_of_few_shots(
    run: Run, answered: Answered, refused: Refused, good_folder: Path, tmp_path: Path
) -> None:
    fit = ("fit knn", good_folder, "-o", tmp_path / "a", FIT)
    few = (*fit, "--shots 2 --seed 5")
    assert "Pictures: 2 used (2 shots by seed 5)" in run(*few)[1]
    made = answered(*few)
    assert (made["shots"], made["count"]) == (2, 2)
    assert (made["config"]["rotations"], made["config"]["flips"]) == (16, True)
    assert answered(*few, "--set rotations=1")["config"]["rotations"] == 1
    assert "2 shots by seed 5" in run("inspect", tmp_path / "a")[1]
    assert "greater than or equal to 1" in refused(*fit, "--shots 0")


@pytest.mark.parametrize("size", ["32x64", "32,64"])
def test_a_size_is_height_and_width(
    run: Run, answered: Answered, refused: Refused, good_folder: Path, tmp_path: Path, size: str
) -> None:
    fit = ("fit knn", good_folder, "-o", tmp_path / "a", "--backbone test_vit --weights random")
    for option in (f"--image-size {size}", f"--set image_size={size}"):
        assert answered(*fit, option)["config"]["image_size"] == [32, 64]
    simulate = ("simulate", good_folder, "-o", tmp_path / "s", "--simulator cutpaste --count 2")
    assert run(*simulate, "--image-size", size)[0] == 0
    for command in (fit, simulate):
        assert "224x448" in refused(*command, "--image-size 32x64x3")


def test_what_was_done_to_pictures_is_told(
    run: Run, answered: Answered, tmp_path: Path, write: Any
) -> None:
    rng = np.random.default_rng(0)
    good, artifact = tmp_path / "good", tmp_path / "a"
    for number in range(3):
        frame = rng.integers(0, 4096, (40, 40), dtype=np.uint16)
        frame[0, 0] = 4095
        write(good / f"{number}.png", frame)
    note = (
        "16-bit values no higher than 4095, read as 0 to 65535: "
        "for 12-bit data fit with --window 0,4095"
    )
    fit = ("fit knn", good, "-o", artifact, FIT)
    assert f"note on 3 of them: {note}" in run(*fit)[1]
    assert answered(*fit)["notes"] == {note: 3}
    assert f"note on 3 of them: {note}" in run("predict", artifact, good)[1]
    assert "note on" not in run(*fit, "--window 0,4095")[1]
    assert "note on" not in run("predict", artifact, good)[1]


def test_calibrate(
    run: Run, answered: Answered, part: Path, good_folder: Path, tmp_path: Path,
    picture: Any, write: Any,
) -> None:  # fmt: skip
    more, artifact = tmp_path / "more", tmp_path / "new.blemish"
    for seed in range(20):
        write(more / f"{seed}.png", picture(700 + seed))
    shutil.copy(good_folder / "000.png", more / "known.png")
    (more / "empty.png").touch()
    calibrate = ("calibrate", part, more, "-o", artifact, "--false-alarm-rate")
    status, out, _ = run(*calibrate, "0.1")
    assert status == BROKEN_PICTURES
    assert "20 used; 1 left out, the artifact was fitted on it; 1 broken" in out
    assert "at most 10 % of new normal pictures are above it, on average" in out
    threshold = read(artifact)[1]["threshold"]
    assert (threshold["n"], threshold["rate"]) == (20, 0.1)
    assert answered(*calibrate, "0.01")["error"]["kind"] == "CalibrationError"


def test_a_threshold_by_hand(
    run: Run, answered: Answered, refused: Refused, part: Path, good_folder: Path, tmp_path: Path
) -> None:
    own, report, out = tmp_path / "own.blemish", tmp_path / "report.html", tmp_path / "out"
    by_hand = ("calibrate", part, "--threshold -2 -o", own)
    assert "Threshold: -2. Set by hand: nothing is known" in run(*by_hand)[1]
    threshold = read(own)[1]["threshold"]
    assert threshold == {
        **{"value": -2.0, "rate": None, "n": 0, "method": "by hand", "reason": ""},
        "guarantee": "Set by hand: nothing is known of how many normal pictures are above it.",
    }
    assert answered(*by_hand)["threshold"] == threshold
    assert "-2. Set by hand" in run("inspect", own)[1]
    said = run("predict", own, good_folder, "--report", report)[1]
    assert "0 normal at a threshold of -2 set by hand" in said
    assert "Set by hand: nothing is known" in report.read_text()
    made = answered("predict", part, good_folder, "--threshold 1e9")
    assert (made["alarms"], made["threshold"]["value"]) == (0, 1e9)
    assert {row["threshold"] for row in made["predictions"]} == {1e9}
    predict = ("predict", part, good_folder, "--output", out, "--overlay-size none")
    assert run(*predict, "--threshold 0.5")[0] == 0
    assert "made with another --threshold" in refused(*predict, "--resume")
    assert run(*predict, "--threshold 0.5 --resume")[0] == 0


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("predict PART PART --threshold nan", "--threshold nan: a finite number"),
        ("calibrate PART -o NEW --threshold inf", "--threshold inf: a finite number"),
        ("calibrate PART -o NEW --threshold high", "Invalid value for '--threshold'"),
        ("calibrate PART -o NEW", "needs pictures of good parts, labelled defects"),
        ("calibrate PART -o NEW good --threshold 3", "or the threshold itself"),
        ("calibrate PART -o NEW --threshold 3 --false-alarm-rate 0.1", "or the threshold itself"),
    ],
)
def test_what_is_no_threshold(
    refused: Refused, part: Path, tmp_path: Path, command: str, said: str
) -> None:
    new = tmp_path / "new"
    assert said in refused(command.replace("PART", str(part)).replace("NEW", str(new)))
    assert not new.exists()


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
        f"Above the threshold of 20 good pictures it knew: {change.alarms_before} before, "
        f"{change.alarms_after} now; scores changed by {change.mean_change:+.4g} on average",
        f"Found of the added defects: {change.found_before} before, {change.found_after} now",
        f"Written: {new}",
    ):
        assert said in out
    assert "learning the defects" in err
    assert teachable.read_bytes() == old
    data = read(new)[1]["data"]
    assert (len(data["fitted"]), len(data["defects"])) == (24, 7)


def test_refine_tells_what_it_does_not_take_back(
    run: Run, refused: Refused, teachable: Path, good_folder: Path, mvtec: Path
) -> None:
    learned = sorted(good_folder.iterdir())[0]
    assert f"the detector has learned, or as both good and defective ({learned})" in refused(
        "refine", teachable, "--anomalies", learned
    )
    command = ("refine", teachable, "--anomalies", learned, "--anomalies", mvtec / "test/square")
    status, out, _ = run(*command)
    assert status == 0
    assert "Added: 0 good pictures, 4 defects, 1 known already; 0 broken" in out
    assert "notice: 1 picture named as the opposite of what the detector has learned, or" in out


def test_refine_in_place(run: Run, teachable: Path, good_folder: Path, mvtec: Path) -> None:
    (good_folder / "022.png").write_text("not a picture")
    command = ("refine", teachable, "--false-alarm-rate 0.1")
    status, out, _ = run(*command, "--good", good_folder, "--json")
    made = json.loads(out)
    assert (status, made["artifact"]) == (BROKEN_PICTURES, str(teachable))
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
    refused: Refused, teachable: Path, good_folder: Path, tmp_path: Path
) -> None:
    old = teachable.read_bytes()
    (tmp_path / "file").touch()
    for more, said in (
        ((), "refine: name good pictures, defects or both"),
        (("--good", good_folder, "--false-alarm-rate 0.01"), "needs at least 99 normal pictures"),
        (("--good", good_folder, "-o", tmp_path / "file" / "x"), "cannot be written"),
    ):
        assert said in refused("refine", teachable, *more)
    assert teachable.read_bytes() == old


def test_how_much_is_looked_at_closely_is_told(run: Run, good_folder: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "a.blemish"
    status, out, _ = run("fit knn", good_folder, "-o", artifact, FIT, "--set coarse=32")
    assert status == 0
    told = "56 % of each picture, told by a first look at 32 pixels"
    assert f"Looks closely at: {told}" in out
    _, shown, _ = run("inspect", artifact)
    assert told in shown
    _, other, _ = run("fit knn", good_folder, "-o", artifact, FIT)
    assert "closely" not in other


def test_how_a_bank_was_compressed_is_told(run: Run, good_folder: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "a.blemish"
    line = (
        "fit patchcore",
        good_folder,
        "-o",
        artifact,
        FIT,
        "--set bank_loss=0.5",
        "--set neighbours=1",
    )
    status, out, _ = run(*line)
    assert status == 0
    told = re.search(r"Bank: (\d+ of \d+ features in fp16, searched in \d+ of 64 dim.*)", out)
    assert told is not None
    assert "deviations of good scores (0.5 is allowed)" in told[1]
    _, shown, _ = run("inspect", artifact)
    assert told[1] in shown
    _, document, _ = run(*line, "--json")
    assert json.loads(document)["compression"]["maps"] <= 0.5
    _, other, _ = run("fit patchcore", good_folder, "-o", artifact, FIT)
    assert "Bank" not in other
    line = (*line[:-2], "--set bank_loss=1e-9", "--set neighbours=1")
    _, kept, _ = run(*line)
    assert "features, as every smaller bank moves scores or maps further" in kept
