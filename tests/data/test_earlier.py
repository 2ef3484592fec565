"""What blemish has written is not taken for pictures again, wherever a command has put it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blemish
from blemish.data.folder import find_pictures, scan, search
from blemish.data.layouts import read
from blemish.report.health import figure_of

Run = Callable[..., tuple[int, str, str]]
FIT = ("--backbone", "test_vit", "--weights", "random", "--image-size", "64", "--layers", "2,4")


@pytest.fixture
def part(tmp_path: Path, fitted: Callable[..., blemish.Detector]) -> Path:
    return fitted().save(tmp_path / "part.blemish")


def stems(folder: Path) -> list[str]:
    return [path.stem for path in find_pictures(folder)]


@pytest.mark.parametrize("where", ["results", "deeper/down", "."])
def test_predictions_inside_the_folder_of_the_pictures(
    run: Run, part: Path, good_folder: Path, where: str
) -> None:
    before = stems(good_folder)
    command = ("predict", part, good_folder, "--output", good_folder / where)
    assert run(*command)[0] == 0
    assert len(list((good_folder / where / "overlays").iterdir())) == 24
    assert stems(good_folder) == before
    status, out, _ = run(*command, "--resume", "--json")
    assert status == 0
    answer = json.loads(out)
    assert (answer["scored"], len(answer["predictions"])) == (24, 24)
    (told,) = answer["left_out"]
    assert told.startswith("24 pictures of earlier results left out: ")
    assert told.endswith("overlays/")
    assert f"  notice: {told}" in run(*command, "--resume")[1]

    status, out, _ = run("fit", "knn", good_folder, "-o", good_folder / "a.blemish", *FIT)
    assert status == 0
    assert f"Recognised: flat layout: 24 pictures, all taken as good; {told}" in out
    assert f"notice: {told}" in run("data", "check", good_folder)[1]


def test_a_pattern_finds_no_earlier_results(run: Run, part: Path, good_folder: Path) -> None:
    assert run("predict", part, good_folder, "--output", good_folder / "results")[0] == 0
    for pattern in ("**", "**/*.png", "*", "*/*/*", "r*/**"):
        if pattern in ("*/*/*", "r*/**"):
            with pytest.raises(
                blemish.errors.DataError, match="24 pictures of earlier results left out"
            ):
                search(good_folder / pattern)
        else:
            found = search(good_folder / pattern)
            assert len(found.pictures) == 24
            assert len(found.left_out) == 1
    assert len(find_pictures(good_folder / "results" / "overlays")) == 24  # named itself
    assert len(find_pictures(good_folder / "results" / "overlays" / "*.png")) == 24


def test_a_shell_that_names_the_overlays_among_the_pictures(
    run: Run, part: Path, good_folder: Path
) -> None:
    before = sorted(good_folder.iterdir())
    assert run("predict", part, *before, "--output", good_folder)[0] == 0
    found = search([*before, good_folder / "overlays"])
    assert found.pictures == before
    assert found.left_out == (
        f"24 pictures of earlier results left out: {good_folder / 'overlays'}/",
    )


def test_overlays_are_known_by_their_names_alone(run: Run, part: Path, good_folder: Path) -> None:
    assert run("predict", part, good_folder, "--output", good_folder / "results")[0] == 0
    for name in ("run.json", "predictions.jsonl", "predictions.csv"):
        (good_folder / "results" / name).unlink()
    assert len(find_pictures(good_folder)) == 24
    own = good_folder / "results" / "overlays" / "mine.png"
    own.write_bytes(next(good_folder.glob("*.png")).read_bytes())
    assert len(find_pictures(good_folder)) == 49  # a folder of somebody's own pictures


def test_what_evaluate_figures_and_simulate_write(run: Run, part: Path, mvtec: Path) -> None:
    before = read(mvtec).samples
    good = mvtec / "train" / "good"
    commands: list[tuple[Any, ...]] = [
        ("evaluate", part, mvtec, "--output", good / "evaluation"),
        ("figures", part, mvtec, "-o", good / "figures"),
        ("figures", part, mvtec, "-o", mvtec),
        ("simulate", good, "-o", good / "anomalies", "--simulator", "cutpaste", "--count", "2"),
    ]
    for command in commands:
        assert run(*command)[0] == 0, command
    dataset = read(mvtec)
    assert dataset.samples == before
    assert len(dataset.left_out) == 1
    assert len(scan(good).results) == len(find_pictures(good / "evaluation" / "worst")) + 3 + 5
    assert len(find_pictures(good)) == 24


def test_the_figure_of_a_training_beside_its_log(
    good_folder: Path, picture: Any, write: Any
) -> None:
    log = good_folder / "part.log.jsonl"
    log.touch()
    write(figure_of(log), picture(0))
    assert len(find_pictures(good_folder)) == 24
    log.unlink()
    assert len(find_pictures(good_folder)) == 25


def test_synthetic_anomalies_are_known_defects_with_masks(
    run: Run, good_folder: Path, tmp_path: Path
) -> None:
    made = tmp_path / "anomalies"
    assert (
        run("simulate", good_folder, "-o", made, "--simulator", "cutpaste", "--count", "3")[0] == 0
    )
    dataset = read(made, unlabelled=1)
    assert len(dataset.samples) == 3
    assert all(sample.mask is not None for sample in dataset.samples)
    assert "contact-sheet" not in " ".join(path.name for path in find_pictures(made))


def test_folders_of_these_names_without_the_files_of_a_run_are_read(
    tmp_path: Path, write: Any
) -> None:
    for name in (
        "overlays/a.png",
        "worst/b.png",
        "gallery.png",
        "histogram.png",
        "contact-sheet.png",
        "x.health.png",
    ):
        write(tmp_path / name, np.zeros((8, 8), np.uint8))
    (tmp_path / "run.json").write_text('{"camera": 3}')
    (tmp_path / "evaluation.json").write_text("no JSON")
    assert len(find_pictures(tmp_path)) == 6
    assert scan(tmp_path).left_out == ()
