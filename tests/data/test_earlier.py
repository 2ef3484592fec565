"""What blemish has written is not taken for pictures again, wherever a command has put it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blemish.data.folder import find_pictures, scan, search
from blemish.data.layouts import read
from blemish.detector.predict import Detector
from blemish.errors import DataError
from blemish.report.health import figure_of

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def part(tmp_path: Path, fitted: Callable[..., Detector]) -> Path:
    return fitted().save(tmp_path / "part.blemish")


@pytest.mark.parametrize("where", ["deeper/down", "."])
def test_predictions_inside_the_folder_of_the_pictures(
    run: Run, part: Path, good_folder: Path, where: str
) -> None:
    before = find_pictures(good_folder)
    command = ("predict", part, good_folder, "--output", good_folder / where)
    assert run(*command)[0] == 0
    assert find_pictures(good_folder) == before
    answer = json.loads(run(*command, "--resume", "--json")[1])
    assert (answer["scored"], len(answer["predictions"])) == (24, 24)
    (told,) = answer["left_out"]
    assert told.startswith("24 pictures of earlier results left out: ")
    assert told.endswith("overlays/")
    assert f"  notice: {told}" in run(*command, "--resume")[1]
    assert f"notice: {told}" in run("data", "check", good_folder)[1]


def test_overlays_named_by_patterns_and_shells(run: Run, part: Path, good_folder: Path) -> None:
    before = sorted(good_folder.iterdir())
    assert run("predict", part, good_folder, "--output", good_folder)[0] == 0
    overlays = good_folder / "overlays"
    for named in (good_folder / "**", good_folder / "**/*.png", [*before, overlays]):
        found = search(named)
        assert found.pictures == before
        assert found.left_out == (f"24 pictures of earlier results left out: {overlays}/",)
    with pytest.raises(DataError, match="24 pictures of earlier results left out"):
        search(good_folder / "o*/**")
    for named in (overlays, overlays / "*.png"):  # themselves
        assert len(find_pictures(named)) == 24


def test_masks_and_maps_are_results_but_not_those_of_a_data_set(
    run: Run, part: Path, good_folder: Path
) -> None:
    kept = ("--output", good_folder / "out", "--save masks,tiff,maps")
    assert run("predict", part, good_folder, *kept)[0] == 0
    assert len(scan(good_folder).pictures) == 24
    assert len(scan(good_folder).results) == 48
    (good_folder / "out" / "masks" / "mine.png").write_bytes(b"")
    assert len(scan(good_folder).results) == 24  # the maps


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
        ("figures", part, mvtec, "-o", mvtec),
        ("simulate", good, "-o", good / "made", "--simulator", "cutpaste", "--count", "2"),
    ]
    for command in commands:
        assert run(*command)[0] == 0, command
    dataset = read(mvtec)
    assert dataset.samples == before
    assert len(dataset.left_out) == 1
    assert len(scan(good).results) == len(find_pictures(good / "evaluation" / "worst")) + 5
    made = read(good / "made", unlabelled=1).samples  # known defects with masks
    assert [sample.mask is not None for sample in made] == [True, True]
    assert len(find_pictures(good / "made")) == 2  # the contact sheet is none


def test_the_figure_of_a_training_beside_its_log(tmp_path: Path) -> None:
    log = tmp_path / "part.log.jsonl"
    for path in (log, tmp_path / "0.png", figure_of(log)):
        path.touch()
    assert len(find_pictures(tmp_path)) == 1
    log.unlink()
    assert len(find_pictures(tmp_path)) == 2


def test_folders_of_these_names_without_the_files_of_a_run_are_read(
    tmp_path: Path, write: Any
) -> None:
    pictures = ["overlays/a", "worst/b", "gallery", "histogram", "contact-sheet", "x.health"]
    for name in pictures:
        write(tmp_path / f"{name}.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "run.json").write_text('{"camera": 3}')
    (tmp_path / "evaluation.json").write_text("no JSON")
    assert len(find_pictures(tmp_path)) == len(pictures)
    assert scan(tmp_path).left_out == ()
