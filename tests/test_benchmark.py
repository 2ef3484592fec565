from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blemish import benchmark
from blemish.benchmark import METRICS, Row, Run, bench, data_sets, measure, read_rows, run, table
from blemish.errors import ConfigError, DataError, OutputError

TINY = {"backbone": "test_vit", "image_size": 32, "layers": [2, 4], "bank_size": 50}
HERE = {"device": "cpu", "precision": "fp32"}


def a_run(path: Path, **changes: Any) -> Run:
    one = Run(method="knn", data="part", path=path, settings=TINY, weights="random", label="tiny")
    return replace(one, **changes)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Workers work in this process, which is quicker; gives the list of the runs that they were given."""
    launched: list[Run] = []

    def launch(one: Run, device: str, precision: str, threads: int | None) -> Row:
        launched.append(one)
        order = {"run": one.to_dict(), "device": device, "precision": precision, "threads": threads}
        with redirect_stdout(io.StringIO()) as printed:
            benchmark._worker(["--run", json.dumps(order)])
        row: Row = json.loads(printed.getvalue())
        return row

    monkeypatch.setattr(benchmark, "_launch", launch)
    return launched


def a_row(**changes: Any) -> Row:
    row = {
        "schema": 1,
        "status": "ok",
        "key": "k0",
        "date": "2026-01-01T00:00:00+00:00",
        "commit": "0123456789abcdef",
        "dirty": False,
        "method": "knn",
        "recipe": "best",
        "label": "",
        "settings": {"backbone": "test_vit", "image_size": [32, 48], "seed": 0},
        "data": "widget",
        "seed": 0,
        "backbone": "test_vit",
        "weights": {"source": "pip:x 1", "sha256": "feedbeef00", "licence": "MIT"},
        "resolution": [32, 48],
        "schedule": "",
        "image_auroc": 0.9,
        "image_ap": 0.8,
        "best_f1": 0.7,
        "pixel_auroc": 0.95,
        "aupro": 0.5,
        "seconds_to_fit": 2.0,
        "images_per_second": 10.0,
        "peak_memory_mib": 512.4,
        "peak_gpu_memory_mib": None,
        "device": {"type": "cpu", "name": "CPU X", "cpu": "CPU X", "cores": 2, "threads": 2},
        "precision": "fp32",
    }
    return {**row, **changes}


def body(markdown: str) -> list[list[str]]:
    """The cells of the table's rows, without the header."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_a_run_in_its_own_process_leaves_a_whole_row(mvtec: Path, tmp_path: Path) -> None:
    results = tmp_path / "new" / "rows.jsonl"
    (row,) = run([a_run(mvtec)], results, **HERE, threads=1)
    assert read_rows(results) == [row]
    assert row["status"] == "ok", row
    assert row["split"] == {"train": 24, "test_normal": 6, "test_anomalous": 7}
    assert row["counts"]["fitted"] == 24
    assert row["counts"]["pictures"] == 13
    assert row["category"] == "part"
    assert row["resolution"] == [32, 32]
    assert row["settings"]["layers"] == [2, 4]
    assert row["backbone"] == "test_vit"
    assert row["weights"] == {"source": "random", "sha256": "", "licence": "none"}
    assert row["schedule"] == ""
    assert row["device"]["type"] == "cpu"
    assert row["device"]["threads"] == 1
    assert row["device"]["name"]
    assert row["precision"] == "fp32"
    assert all(0 <= row[name] <= 1 for name in METRICS)
    assert row["by_defect"].keys() == {"square", "dark"}
    assert row["seconds_to_fit"] > 0
    assert row["images_per_second"] > 0
    assert row["cores_used"] > 0
    assert 50 < row["peak_memory_mib"] < 20_000
    assert row["peak_gpu_memory_mib"] is None
    assert len(row["fingerprint"]) == 64
    assert {"blemish", "torch", "python", "date", "commit", "dirty", "schema"} <= row.keys()
    assert str(mvtec) not in json.dumps(row)


def test_a_process_that_dies_leaves_a_failed_row(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies_by(code: str) -> str:
        monkeypatch.setattr(benchmark, "_command", lambda order: [sys.executable, "-S", "-c", code])
        row = benchmark._launch(a_run(mvtec), "cpu", "fp32", None)
        assert row["status"] == "failed"
        assert row["key"] == a_run(mvtec).key
        return row["error"]

    assert "out of memory?" in dies_by("import os; os.kill(os.getpid(), 9)")
    assert "status 3: last words" in dies_by("import os; os.write(2, b'noise\\nlast words\\n'); os._exit(3)")
    assert "said nothing" in dies_by("print(5)")


def test_a_failed_run_does_not_stop_the_others_and_is_tried_again(mvtec: Path, tmp_path: Path, here: list[Run]) -> None:
    results = tmp_path / "rows.jsonl"
    bad, good = a_run(mvtec, settings={**TINY, "layers": [99]}), a_run(mvtec)
    steps: list[tuple[str, int, int]] = []
    first = run([bad, good], results, **HERE, progress=lambda *step: steps.append(step))
    assert [row["status"] for row in first] == ["failed", "ok"]
    assert "layer 99 does not exist" in first[0]["error"]
    assert steps == [("knn on part, seed 0", 0, 2), ("knn on part, seed 0", 1, 2), ("done", 2, 2)]
    second = run([bad, good], results, **HERE)
    assert here == [bad, good, bad]
    assert second[1] == first[1]
    assert read_rows(results) == [*first, second[0]]


def test_the_same_run_gives_the_same_metrics(mvtec: Path) -> None:
    first, second = (measure(a_run(mvtec), **HERE) for _ in range(2))
    for name in (*METRICS, "by_defect", "fingerprint", "key", "counts"):
        assert first[name] == second[name], name


def test_memory_and_time_are_those_of_scoring(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    peak, compared = benchmark.peak_memory_mib, benchmark.evaluate.__globals__["_compared"]
    monkeypatch.setattr(benchmark, "peak_memory_mib", lambda: events.append("peak") or peak())
    monkeypatch.setitem(benchmark.evaluate.__globals__, "_compared", lambda *a: events.append("metric") or compared(*a))
    measure(a_run(mvtec), **HERE)
    assert events == ["peak"] + ["metric"] * 13


def test_resume_skips_what_is_done_and_repeats_what_another_precision_needs(
    mvtec: Path, tmp_path: Path, here: list[Run]
) -> None:
    results = tmp_path / "rows.jsonl"
    one, two = a_run(mvtec), a_run(mvtec, seed=1)
    run([one, one], results, **HERE)
    assert here == [one]
    rows = run([one, two], results, **HERE)
    assert here == [one, two]
    assert [row["seed"] for row in rows] == [0, 1]
    assert rows == read_rows(results)
    run([one], results, device="cpu", precision="bf16")
    assert here == [one, two, one]
    assert len(body(table(read_rows(results)))) == 2


def test_a_last_line_cut_short_is_run_again(mvtec: Path, tmp_path: Path, here: list[Run]) -> None:
    results = tmp_path / "rows.jsonl"
    runs = [a_run(mvtec), a_run(mvtec, seed=1)]
    whole = run(runs, results, **HERE)
    text = results.read_bytes()
    results.write_bytes(text[:-40])
    assert read_rows(results) == whole[:1]
    rows = run(runs, results, **HERE)
    assert here == [*runs, runs[1]]
    assert read_rows(results) == rows
    results.write_bytes(results.read_bytes()[:-1])  # only the line's end is missing: the row counts
    run([*runs, a_run(mvtec, seed=2)], results, **HERE)
    assert [row["seed"] for row in read_rows(results)] == [0, 1, 2]


def test_ctrl_c_keeps_the_rows_so_far(mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(one: Run, *_: object) -> Row:
        if one.seed == 1:
            raise KeyboardInterrupt
        return a_row(key=one.key, seed=one.seed)

    monkeypatch.setattr(benchmark, "_launch", launch)
    results = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run([a_run(mvtec, seed=seed) for seed in range(3)], results, **HERE)
    assert [row["seed"] for row in read_rows(results)] == [0]


def test_the_key_is_what_is_measured(mvtec: Path, tmp_path: Path) -> None:
    one = a_run(mvtec)
    assert len(one.key) == 16
    same = [
        a_run(tmp_path, label="other"),
        Run.from_dict(json.loads(json.dumps(one.to_dict()))),
        a_run(mvtec, settings={**TINY, "image_size": [32]}),
    ]
    assert {other.key for other in same} == {one.key}
    first, second, third = (tmp_path / name for name in "abc")
    first.write_bytes(b"1")
    second.write_bytes(b"1")
    third.write_bytes(b"2")
    others = [
        a_run(mvtec, method="patchcore"),
        a_run(mvtec, data="gadget"),
        a_run(mvtec, seed=1),
        a_run(mvtec, settings={**TINY, "bank_size": 60}),
        a_run(mvtec, settings={**TINY, "backbone": "test_resnet"}),
        a_run(mvtec, weights=None),
        a_run(mvtec, weights=str(first)),
        a_run(mvtec, weights=str(third)),
    ]
    assert len({one.key, *(other.key for other in others)}) == 1 + len(others)
    assert a_run(mvtec, weights=str(first)).key == a_run(mvtec, weights=str(second)).key


def test_bench_is_the_product(mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_launch", lambda one, *_: a_row(key=one.key, label=one.label, seed=one.seed))
    rows = bench(
        ["knn", "patchcore"],
        [mvtec],
        [0, 1],
        tmp_path / "rows.jsonl",
        settings={"image_size": 64},
        assignments=["bank_size=7", "layers=2,3"],
        device="cpu",
    )
    assert len({row["key"] for row in rows}) == 4
    assert {row["label"] for row in rows} == {"layers=2,3 bank_size=7"}
    run_again = bench(["knn"], [mvtec], [1], tmp_path / "rows.jsonl", assignments=["layers=2,3", "bank_size=7"])
    assert run_again[0]["key"] not in {row["key"] for row in rows}  # another image size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["pachcore"]}, "did you mean 'patchcore'"),
        ({"assignments": ["bank_sise=3"]}, "bank_size"),
        ({"assignments": ["seed=3"]}, "--seeds"),
        ({"recipe": "bst"}, "best"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_wrong_arguments_are_said_before_any_run(
    mvtec: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    results = tmp_path / "rows.jsonl"
    with pytest.raises(ConfigError, match=message):
        bench(**{"methods": ["knn"], "data": [mvtec], "seeds": [0], "results": results, **arguments})
    assert not results.exists()


def test_data_sets_by_name_and_by_path(mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mvtec" / "bottle").mkdir(parents=True)
    other = tmp_path / "gadget.csv"
    other.touch()
    found = data_sets(["bottle", mvtec, other], root=tmp_path, scratch=tmp_path)
    assert found == {"bottle": tmp_path / "mvtec" / "bottle", "part": mvtec, "gadget": other}
    monkeypatch.setenv("BLEMISH_DATA", str(tmp_path))
    assert data_sets(["bottle"], root=None, scratch=tmp_path).keys() == {"bottle"}
    with pytest.raises(DataError, match=r"screw.*BLEMISH_DATA.*--data"):
        data_sets(["screw"], root=None, scratch=tmp_path)
    monkeypatch.delenv("BLEMISH_DATA")
    with pytest.raises(DataError, match="BLEMISH_DATA"):
        data_sets(["bottle"], root=None, scratch=tmp_path)
    with pytest.raises(DataError, match="magnetic_tile"):
        data_sets(["botle"], root=tmp_path, scratch=tmp_path)
    (tmp_path / "mvtec" / "part").mkdir()
    with pytest.raises(DataError, match="two data sets are called 'part'"):
        data_sets([mvtec, tmp_path / "mvtec" / "part"], root=None, scratch=tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("elpv_dataset") is None, reason="needs pip install 'blemish[demo]'")
def test_elpv_comes_from_its_package(tmp_path: Path) -> None:
    path = data_sets(["elpv"], root=None, scratch=tmp_path)["elpv"]
    dataset = benchmark.layouts.read(path)
    assert (len(dataset.train()), len(dataset.test())) == (1131, 377 + 715)


def test_a_set_without_splits_is_refused(mvtec: Path) -> None:
    with pytest.raises(DataError, match="a train and a test split"):
        measure(a_run(mvtec / "train" / "good"), **HERE)


def test_damaged_and_newer_rows_are_refused(tmp_path: Path) -> None:
    results = tmp_path / "rows.jsonl"
    whole = json.dumps(a_row())
    results.write_text(f"{whole}\nnot a row\n{whole}\n")
    with pytest.raises(DataError, match="line 2"):
        read_rows(results)
    results.write_text(json.dumps(a_row(schema=99)) + "\n")
    with pytest.raises(DataError, match="newer blemish"):
        read_rows(results)
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl")


def test_a_place_that_cannot_be_written_is_said_before_any_run(mvtec: Path, tmp_path: Path, here: list[Run]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        run([a_run(mvtec)], tmp_path / "file" / "rows.jsonl", **HERE)
    assert here == []


def test_a_row_with_odd_characters_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = a_row(status="failed", error="line\nseparator\u2028 next\x85 half \udcff")
    benchmark._append(path, row)
    benchmark._append(path, a_row())
    assert len(path.read_bytes().splitlines()) == 2
    assert read_rows(path)[1] == a_row()


def test_the_commit_is_of_the_checkout_that_blemish_runs_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit, dirty = benchmark.checkout()
    assert (commit is None) == (dirty is None)
    monkeypatch.setattr(benchmark, "__file__", str(tmp_path / "benchmark.py"))
    assert benchmark.checkout() == (None, None)
    monkeypatch.setenv("PATH", os.devnull)
    assert benchmark.checkout() == (None, None)


# The table


def test_the_table_has_means_and_deviations_over_seeds() -> None:
    rows = [
        a_row(key=f"k{seed}", seed=seed, settings={"seed": seed}, image_auroc=value, seconds_to_fit=seconds)
        for seed, value, seconds in [(0, 0.9, 1.0), (1, 0.92, 2.0), (2, 0.94, 3.0)]
    ]
    (line,) = body(table(rows))
    assert line == [
        *("knn", "best", "92.0 ± 2.0", "95.0 ± 0.0", "50.0 ± 0.0", "2.0 ± 1.0", "10.0 ± 0.0", "512 ± 0"),
        *("3", "32×48", "test_vit (feedbeef)", "fp32", "01234567", "CPU X, threads: 2"),
    ]
    (line,) = body(table(rows[:1]))
    assert line[2] == "90.0"


def test_the_table_counts_the_newest_good_row_once() -> None:
    old = a_row(image_auroc=0.1)
    new = a_row(image_auroc=0.8, date="2026-02-01T00:00:00+00:00", commit="fedcba9876", dirty=True)
    broken = {**a_row(date="2026-03-01T00:00:00+00:00"), "status": "failed", "error": "out of luck"}
    markdown = table([new, old, broken])
    (line,) = body(markdown)
    assert line[2] == "80.0"
    assert line[8] == "1"
    assert line[12] == "fedcba98+"
    assert "out of luck" not in markdown  # the run has a good row


def test_the_table_keeps_unlike_runs_apart_and_names_what_failed() -> None:
    other = {"type": "cuda", "name": "GPU Y", "cpu": "CPU X", "cores": 2, "threads": 2}
    rows = [
        a_row(),
        a_row(key="k1", device=other, peak_gpu_memory_mib=100.0),
        a_row(key="k2", settings={"bank_size": 7}, label="bank_size=7"),
        a_row(key="k3", recipe="paper", schedule="2 epochs"),
        a_row(key="k4", data="gadget", pixel_auroc=None, aupro=None, commit=None, dirty=None),
        {**a_row(key="k5", seed=4), "status": "failed", "error": "no\nluck"},
    ]
    markdown = table(rows)
    assert markdown.index("## gadget") < markdown.index("## widget")
    lines = body(markdown.split("## widget")[1])
    assert sorted(line[1] for line in lines) == ["bank_size=7", "best", "best", "paper · 2 epochs"]
    assert sorted((line[7], line[13]) for line in lines)[0] == ("100", "GPU Y")
    (gadget,) = body(markdown.split("## widget")[0])
    assert gadget[2:5] == ["90.0", "–", "–"]
    assert gadget[12] == "–"
    assert "- knn on widget, seed 4: no luck" in markdown


def test_published_figures_stand_beside_the_rows() -> None:
    markdown = table([a_row(label="a|b")], published={"widget": {"A paper": (0.981, None, 0.5)}, "other": {}})
    ours, theirs = body(markdown)
    assert ours[1] == "a\\|b"
    assert theirs[:5] == ["A paper", "published", "98.1", "–", "50.0"]
    assert len(ours) == len(theirs) == 14
    assert table([]) == "No rows.\n"
