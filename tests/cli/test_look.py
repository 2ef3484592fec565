"""inspect, data, methods, backbones, doctor, simulate, and what a bench plans."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blemish
from blemish import config
from blemish.anomalies import SIMULATORS
from blemish.artifact import read
from blemish.cli.status import BROKEN_PICTURES
from blemish.data.layouts import OFFICIAL
from blemish.data.shifts import SHIFTS
from blemish.methods import METHODS

Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]
Answered = Callable[..., Any]


def test_inspect(run: Run, answered: Answered, part: Path) -> None:
    out = run("inspect", part)[1]
    for said in ("whole and unaltered", "knn", "test_vit", "random", "64×64", "24 fitted on"):
        assert said in out
    assert "bank_size=" in out
    assert answered("inspect", part)["manifest"] == read(part)[1]


def test_inspect_says_whence_both_encoders_are(
    run: Run, picture: Callable[..., Any], tmp_path: Path
) -> None:
    how = {"backbone": "test_vit", "weights": "random", "image_size": 64, "layers": (2,)}
    good = [picture(seed) for seed in range(4)]
    made = blemish.fit("knn", good, second="test_resnet", **how)
    out = run("inspect", made.save(tmp_path / "two.blemish"))[1]
    assert out.count("random, licence none") == 2
    assert "test_resnet (timm model test_resnet)" in " ".join(out.split())


def test_data_check(run: Run, answered: Answered, mvtec: Path) -> None:
    status, out, _ = run("data check", mvtec)
    assert status == 0
    assert "MVTec layout: 24 train good, 13 test (6 good, 7 in 2 defect types)" in out
    assert "Nothing is wrong." in out
    shutil.copy(mvtec / "train" / "good" / "000.png", mvtec / "test" / "good" / "copy.png")
    (mvtec / "test" / "good" / "empty.png").touch()
    status, out, _ = run("data check", mvtec)
    assert status == BROKEN_PICTURES
    assert "leak, same pixels in train and test" in out
    assert "empty.png: is empty" in out
    made = answered("data check", mvtec)
    assert (made["ok"], len(made["leaks"]), len(made["broken"])) == (False, 1, 1)


def test_data_layouts(run: Run, answered: Answered) -> None:
    out = run("data layouts")[1]
    for said in ("MVTec AD (mvtec)", "CC BY-NC-SA 4.0", "split_csv/1cls.csv", "manifest  "):
        assert said in out
    assert "pcb3 905/101/100" in out
    rows = answered("data layouts")
    assert [row["name"] for row in rows] == list(OFFICIAL)
    bottle = {"train": 209, "test_normal": 20, "test_anomalous": 63}
    assert rows[0]["categories"]["bottle"] == bottle


def test_data_elpv(run: Run, answered: Answered, refused: Refused, tmp_path: Path) -> None:
    pytest.importorskip("elpv_dataset")
    assert "1131 train good" in answered("data elpv -o", tmp_path / "cells.csv")["description"]
    assert len((tmp_path / "cells.csv").read_text().splitlines()) == 1 + 1131 + 377 + 715
    out = run("data elpv -o", tmp_path / "few.csv", "--cells 200")[1]
    assert "manifest: 200 train good, 200 test (100 good, 100 in 1 defect type)" in out
    assert "200 of the 1,131 cells to learn from and 200 of the 1,092 to test on" in out
    assert "about 5.6 times as long" in out
    assert refused("data elpv -o", tmp_path / "no.csv", "--cells 5000")


def test_backbones(run: Run, answered: Answered) -> None:
    assert {row["name"] for row in answered("backbones")} == set(blemish.BACKBONES)
    assert "focus_vits14" in run("backbones")[1]


def test_methods_are_a_short_table(run: Run, answered: Answered) -> None:
    made = answered("methods")
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
def test_a_method_is_described_whole(run: Run, answered: Answered, name: str) -> None:
    method = answered("methods", name)
    assert method in answered("methods")
    defaults = {setting["name"]: setting["default"] for setting in method["settings"]}
    assert defaults == config.to_dict(METHODS[name].Config.recipes()["best"]())
    assert all(setting["about"] for setting in method["settings"])
    out = run("methods", name)[1]
    assert all(f"recipe {recipe['name']}: " in out for recipe in method["recipes"])
    assert all(setting["about"] in out for setting in method["settings"])


def test_doctor(run: Run, answered: Answered) -> None:
    status, out, _ = run("doctor")
    assert status == 0
    assert "blemish can work here." in out
    assert answered("doctor")["faults"] == []


def test_simulate(run: Run, refused: Refused, good_folder: Path, tmp_path: Path) -> None:
    (good_folder / "broken.png").touch()
    simulate = ("simulate", good_folder, "-o", tmp_path / "out")
    tiny = "--backbone test_vit --weights random --image-size 32,64 --guide-layers 2,4 --count 25"
    status, out, err = run(*simulate, tiny)
    assert status == BROKEN_PICTURES
    assert "24 pictures with an anomaly by guided, 1 broken" in out
    assert "broken.png: is empty" in out
    assert "log N" in out
    assert "warning: the attention is nearly flat" in out  # of an untrained backbone
    assert out.count(f"Written: {tmp_path / 'out' / 'contact-sheet'}") == 3
    assert "simulating: 1 of 25" in err
    refused(*simulate)


def test_simulate_as_json(run: Run, answered: Answered, good_folder: Path, tmp_path: Path) -> None:
    options = "--simulator nsa --count 2 --image-size 32"
    made = answered("simulate", good_folder, "-o", tmp_path / "out", options)
    assert (made["simulator"], made["entropy"], made["failures"]) == ("nsa", None, [])
    assert {Path(file) for file in made["files"]} == set((tmp_path / "out").iterdir())
    assert len(made["files"]) == 5
    assert [one["name"] for one in answered("simulate --list")] == list(SIMULATORS)
    assert "guided-poisson" in run("simulate --list")[1]


@pytest.fixture
def planned(answered: Answered, mvtec: Path) -> Answered:
    """`planned("--methods knn")`: the runs that a bench of the toy set would make."""
    return lambda *more: answered("bench --data", mvtec, "--dry-run", *more)["runs"]


def test_bench_names_its_shifts(run: Run, planned: Answered, mvtec: Path) -> None:
    help_text = " ".join(run("bench --help")[1].split())
    assert all(name in help_text for name in SHIFTS)
    assert planned("--methods knn --shifts all")[0]["shifts"] == list(SHIFTS)
    assert planned("--methods knn --shifts noise,blur")[0]["shifts"] == ["blur", "noise"]


def test_bench_with_known_defects(run: Run, planned: Answered, mvtec: Path) -> None:
    asked = "--methods knn,lda --anomaly-count 2"
    told = [(one["method"], one["anomaly_count"], one["anomaly_type"]) for one in planned(asked)]
    assert told == [("knn", None, None), ("lda", 2, None)]
    out = run("bench --dry-run --data", mvtec, asked, "--anomaly-type square")[1]
    assert "lda on part, seed 0 · 2 defects of type square: no telling (" in out


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
def test_bench_counts_or_lists_its_seeds(planned: Answered, given: str, seeds: list[int]) -> None:
    assert [one["seed"] for one in planned("--methods knn", given)] == seeds


@pytest.mark.parametrize(
    ("given", "budget"),
    [
        ("--schedule full", None),
        ("--schedule reduced", 15),
        ("--schedule reduced --time-budget 4", 4),
        ("--time-budget 4", 4),
    ],
)
def test_bench_has_full_and_reduced_schedules(
    planned: Answered, given: str, budget: float | None
) -> None:
    runs = planned("--methods agpnet,knn", given)
    assert [one["time_budget"] for one in runs] == [budget, None]


def test_bench_has_budgets_of_arithmetic(planned: Answered) -> None:
    agpnet, knn = planned("--methods agpnet,knn", "--compute-budget 4")
    assert (agpnet["time_budget"], agpnet["compute_budget"]) == (None, 4)
    assert knn["compute_budget"] is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--schedule full --time-budget 4", "leave one of them out"),
        ("--schedule full --compute-budget 4", "leave one of them out"),
        ("--time-budget 4 --compute-budget 4", "--compute-budget 4: give one of them"),
        ("--schedule reducd", "did you mean 'reduced'"),
        ("--seeds 0", "how many is needed, at least 1"),
        ("--seeds -2", "how many is needed, at least 1"),
        ("--seeds ,", "how many is needed"),
        ("--seeds two", "whole numbers are needed"),
        ("--jobs 0", "--jobs"),
        ("--adapt online", "agpnet cannot adapt"),
        ("--anomaly-type square", "say how many of that type"),
        ("--anomaly-count -1", "--anomaly-count"),
    ],
)
def test_bench_says_what_contradicts(refused: Refused, mvtec: Path, given: str, said: str) -> None:
    assert said in refused("bench --methods agpnet,lda --data", mvtec, "--dry-run", given)


def test_a_bench_is_told_its_suite_first_or_among_the_options(
    run: Run, answered: Answered, mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mvtec, tmp_path / "root" / "mvtec" / "bottle")
    asked = ("--only noise --data", tmp_path / "root", "--dry-run")
    found = answered("bench agpnet-ablations", *asked)
    assert found == answered("bench --suite agpnet-ablations", *asked)
    assert found == answered("bench", *asked, "--json agpnet-ablations")
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
