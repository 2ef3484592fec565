from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from runs import GUIDED, TAUGHT, TINY, a_run
from runs import a_row as a_whole_row

import blemish
from blemish.bench import conditions
from blemish.bench import run as benchmark
from blemish.bench.conditions import checkout, shared_threads
from blemish.bench.plan import Run
from blemish.bench.results import Row, markdown, page, read_rows
from blemish.bench.run import METRICS, SHIFTED_METRICS, measure, run
from blemish.data.shifts import SHIFTS
from blemish.detector.predict import Detector
from blemish.errors import ConfigError, DataError, OutputError
from blemish.images import decode
from blemish.machine import cores
from blemish.types import Failure

HERE = {"device": "cpu", "precision": "fp32"}


def in_this_process(launched: list[Run]) -> Callable[..., Row]:
    """What works as a run's own process does, here, which is quicker; notes the runs that it is
    given."""

    def launch(order: benchmark.Order, *_: object) -> Row:
        launched.append(order.run)
        told = {**dataclasses.asdict(order), "run": order.run.to_dict()}
        with redirect_stdout(io.StringIO()) as printed:
            benchmark._worker(["--run", json.dumps(told)])
        row: Row = json.loads(printed.getvalue())
        return row

    return launch


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Workers work in this process; gives the list of the runs that they were given."""
    launched: list[Run] = []
    monkeypatch.setattr(benchmark, "_launch", in_this_process(launched))
    return launched


def a_row(one: Run, **changes: Any) -> Row:
    """What a run in another process would have answered."""
    return {**a_whole_row(), **benchmark._heading(one), **changes}  # type: ignore[typeddict-item]


def an_order(one: Run, **changes: Any) -> benchmark.Order:
    values = {"device": "cpu", "precision": "fp32", "threads": None, "keep": None, **changes}
    return benchmark.Order(run=one, **values)


def test_maps_are_compared_where_the_run_says(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    real = benchmark.evaluate

    def evaluate(*given: Any, resolution: int | None, **named: Any) -> Any:
        asked.append(resolution)
        return real(*given, resolution=resolution, **named)

    monkeypatch.setattr(benchmark, "evaluate", evaluate)
    rows = [
        measure(a_run(mvtec, compared_at=it, shifts=["contrast"]), **HERE) for it in (None, 256)
    ]
    assert asked == [None] * 3 + [256] * 3  # the shifted pictures, too
    assert [row["compared_at"] for row in rows] == ["original", 256]
    assert rows[0]["key"] != rows[1]["key"]
    assert rows[0]["aupro"] != rows[1]["aupro"]
    assert rows[0]["image_auroc"] == rows[1]["image_auroc"]


def test_a_process_that_dies_leaves_a_failed_row(
    mvtec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies_by(code: str) -> str:
        monkeypatch.setattr(benchmark, "_command", lambda order: [sys.executable, "-S", "-c", code])
        row = benchmark._launch(an_order(a_run(mvtec)), None, set())
        assert row["status"] == "failed"
        assert row["key"] == a_run(mvtec).key
        return row["error"]

    assert "out of memory?" in dies_by("import os; os.kill(os.getpid(), 9)")
    assert "status 3: last words" in dies_by(
        "import os; os.write(2, b'noise\\nlast words\\n'); os._exit(3)"
    )
    assert "said nothing" in dies_by("print(5)")
    monkeypatch.setattr(benchmark, "_command", lambda order: [str(mvtec / "nothing")])
    row = benchmark._launch(an_order(a_run(mvtec)), None, set())
    assert (row["status"], row["error"]) == (
        "failed",
        "its process could not be started (No such file or directory)",
    )


def test_a_failed_run_does_not_stop_the_others_and_is_tried_again(
    mvtec: Path, tmp_path: Path, here: list[Run]
) -> None:
    results = tmp_path / "rows.jsonl"
    bad, good = a_run(mvtec, settings={**TINY, "layers": [99]}), a_run(mvtec)
    steps: list[tuple[str, int, int]] = []
    first = run([bad, good], results, **HERE, progress=lambda *step: steps.append(step))
    assert [row["status"] for row in first] == ["failed", "ok"]
    assert "layer 99 does not exist" in first[0]["error"]
    what = "knn on part, seed 0 · tiny"
    assert steps == [(what, 0, 2), (what, 1, 2), ("done", 2, 2)]
    second = run([bad, good], results, **HERE)
    assert here == [bad, good, bad]
    assert second[1] == first[1]
    assert read_rows(results) == [*first, second[0]]


def test_the_same_run_gives_the_same_metrics(mvtec: Path) -> None:
    first, second = (measure(a_run(mvtec), **HERE) for _ in range(2))
    for name in (*METRICS, "by_defect", "fingerprint", "key", "counts"):
        assert first[name] == second[name], name


def test_a_trained_method_says_its_schedule(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = {
        "epochs": 30,
        "steps": 1234,
        "seconds": 738.0,
        "pictures_per_second": 9.5,
        "loss": 0.1,
    }
    given: dict[str, Any] = {}

    def fit(method: str, good: Path, **arguments: Any) -> Detector:
        given.update(arguments)
        detector = blemish.fit(
            "knn", good, **{**TINY, **HERE}, weights="random", calibration_fraction=0
        )
        detector.manifest["training"] = training
        return detector

    monkeypatch.setattr(benchmark, "fit", fit)
    row = measure(Run(method="agpnet", data="part", path=mvtec, shots=4, time_budget=15.0), **HERE)
    assert row["schedule"] == "30 epochs, 1,234 steps in 12.3 min"
    assert row["training"] == training
    assert (row["shots"], row["time_budget"]) == (4, 15.0)
    assert (given["shots"], given["time_budget"]) == (4, 15.0)


def test_few_shots_are_drawn_by_the_seed(mvtec: Path) -> None:
    rows = [measure(a_run(mvtec, shots=2, seed=seed), **HERE) for seed in (0, 0, 1)]
    assert [row["counts"]["fitted"] for row in rows] == [2, 2, 2]
    assert rows[0]["split"]["train"] == 24
    assert rows[0]["fingerprint"] == rows[1]["fingerprint"] != rows[2]["fingerprint"]


def test_the_defects_that_were_learned_from_do_not_test(mvtec: Path) -> None:
    rows = {
        (count, kind, seed): measure(
            a_run(mvtec, **TAUGHT, anomaly_count=count, anomaly_type=kind, seed=seed), **HERE
        )
        for count, kind, seed in [
            (None, None, 0),
            (0, None, 0),
            (2, None, 0),
            (2, None, 1),
            (3, "square", 0),
        ]
    }
    for (count, kind, _), row in rows.items():
        assert (row["status"], row["anomaly_count"], row["anomaly_type"]) == ("ok", count, kind)
        assert row["split"]["test_anomalous"] == 7
        assert (row["counts"]["left_out"], row["counts"]["anomalous"]) == (
            count or 0,
            7 - (count or 0),
        )
        assert row["counts"]["fitted"] == 24
    assert len({row["key"] for row in rows.values()}) == 5
    assert rows[None, None, 0]["image_auroc"] == rows[0, None, 0]["image_auroc"]
    assert rows[3, "square", 0]["by_defect"]["square"]["count"] == 1
    assert rows[3, "square", 0]["by_defect"]["dark"]["count"] == 3
    counts = [
        {name: one["count"] for name, one in row["by_defect"].items()} for row in rows.values()
    ]
    assert counts[0] == counts[1] == {"square": 4, "dark": 3}


def test_rows_of_other_numbers_of_defects_are_apart_in_tables(
    mvtec: Path, tmp_path: Path, here: list[Run]
) -> None:
    results = tmp_path / "rows.jsonl"
    runs = [a_run(mvtec, **TAUGHT, anomaly_count=count) for count in (None, 1, 2)]
    rows = run(runs, results, **HERE)
    assert [row["status"] for row in rows] == ["ok"] * 3
    lines = [line for line in markdown(page(rows)).splitlines() if "lda" in line]
    assert len(lines) == 3
    assert ["1 defect" in line for line in lines].count(True) == 1
    assert ["2 defects" in line for line in lines].count(True) == 1
    run(runs, results, **HERE)
    assert len(here) == 3  # known by their keys


def test_several_categories_are_measured_each_by_itself(mvtec: Path) -> None:
    shutil.copytree(mvtec, mvtec.parent / "parts" / "left")
    shutil.copytree(mvtec, mvtec.parent / "parts" / "right")
    shutil.rmtree(mvtec.parent / "parts" / "right" / "test" / "square")
    row = measure(a_run(mvtec.parent / "parts"), **HERE)
    assert row["multi_class"]
    assert row["categories"] == ("left", "right")
    for name in ("image_auroc", "image_ap", "pixel_auroc", "aupro"):
        assert row[name] == pytest.approx(
            statistics.fmean(row["by_category"][side][name] for side in ("left", "right"))
        )


def test_a_model_of_a_public_set_learns_nothing_else(mvtec: Path) -> None:
    for name in ("bottle", "own"):
        shutil.copytree(mvtec, mvtec.parent / "parts" / name)
    with pytest.raises(DataError, match="holds bottle of mvtec, but is read as bottle, own"):
        measure(a_run(mvtec.parent / "parts", data="mvtec"), **HERE)


def test_shifted_pictures_are_judged_as_if_they_had_been_stored_so(
    mvtec: Path, write: Callable[..., Path]
) -> None:
    row = measure(a_run(mvtec, shifts=["noise", "blur"]), **HERE)
    assert (row["shifts"], row["adapt"]) == (("blur", "noise"), ())
    assert list(row["shifted"]) == ["none", "blur", "noise"]
    told = (*SHIFTED_METRICS, "by_group")
    assert row["shifted"]["none"] == {
        "none": {**{name: row[name] for name in told}, "adapted": 0.0}
    }
    for name in ("blur", "noise"):
        shutil.copytree(mvtec, mvtec.parent / name / "part")
        for path in (mvtec.parent / name / "part" / "test").rglob("*.png"):
            write(path, SHIFTS[name](decode(path).pixels))
        stored = measure(a_run(mvtec.parent / name / "part"), **HERE)
        assert row["shifted"][name]["none"] == {
            **{key: stored[key] for key in told},
            "adapted": 0.0,
        }
    assert row["shifted"]["noise"] != row["shifted"]["none"]
    assert stored["shifted"] == {}


def test_a_shifted_picture_is_known_by_its_original(
    fitted: Callable[..., Detector], picture: Any
) -> None:
    plain = fitted("knn")
    shown = [picture(900), np.zeros((0, 0, 3), np.uint8)]
    after, broken = plain.predict_many(shown, alter=SHIFTS["brightness"])
    before = plain.predict(picture(900))
    assert (before.digest, before.size) == (after.digest, after.size)
    assert before.score != after.score
    assert after.score == plain.predict(SHIFTS["brightness"](picture(900))).score
    assert isinstance(broken, Failure)


def test_every_shift_is_judged_in_every_mode(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, str | None]] = []
    evaluate = benchmark.evaluate

    def recorded(*arguments: Any, predict: Any, **named: Any) -> Any:
        altered = getattr(predict, "keywords", {"alter": "stopwatch"})["alter"]
        calls.append((altered, named.get("adapt")))
        return evaluate(*arguments, predict=predict, **named)

    monkeypatch.setattr(benchmark, "evaluate", recorded)
    row = measure(a_run(mvtec, **GUIDED, shifts=["contrast"], adapt=["episodic", "online"]), **HERE)
    modes = (None, "online", "episodic")
    assert calls[0] == ("stopwatch", None)
    assert calls[1:] == [(alter, mode) for alter in (None, SHIFTS["contrast"]) for mode in modes]
    assert row["adapt"] == ("online", "episodic")
    for by_mode in row["shifted"].values():
        assert list(by_mode) == ["none", "online", "episodic"]
        assert by_mode["none"]["adapted"] == 0
        assert all(0 <= metrics["adapted"] <= 1 for metrics in by_mode.values())
    assert row["shifted"]["none"]["none"]["image_auroc"] == row["image_auroc"]
    assert str(a_run(mvtec, **GUIDED, shifts=["contrast"], adapt=["online"])).endswith(
        "also shifted: contrast · also adapting: online"
    )


def test_the_share_of_adapted_pictures_and_the_means_of_categories_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def evaluate(*_: object, on_prediction: Callable[..., None], **__: object) -> SimpleNamespace:
        for adapted in (True, False, False, True, True):
            on_prediction(None, SimpleNamespace(adapted=adapted))
        by_group = {"male": {"pixel_auroc_anomalous": 0.7}}
        return SimpleNamespace(
            image_auroc=0.5,
            pixel_auroc=None,
            aupro=0.75,
            category_mean={"aupro": 0.25},
            by_group=by_group,
        )

    monkeypatch.setattr(benchmark, "evaluate", evaluate)
    detector = SimpleNamespace(predict_many=print)
    metrics = benchmark._adapted(detector, None, None, "online", 256)
    means = {"image_auroc": 0.5, "pixel_auroc": None, "aupro": 0.25}
    assert metrics == {
        **means,
        "adapted": 0.6,
        "by_group": {"male": {"pixel_auroc_anomalous": 0.7}},
    }


def test_memory_and_time_are_those_of_scoring(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    peak, row = benchmark.peak_memory_mib, benchmark.evaluate.__globals__["_row"]
    monkeypatch.setattr(benchmark, "peak_memory_mib", lambda: events.append("peak") or peak())
    monkeypatch.setitem(
        benchmark.evaluate.__globals__, "_row", lambda *a: events.append("metric") or row(*a)
    )
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
    assert [row["precision"] for row in read_rows(results)] == ["fp32", "fp32", "bf16"]
    assert benchmark.missing([one, two], results, device="cpu", precision="bf16") == [two]
    assert benchmark.missing([one, two], results, **HERE) == []
    assert benchmark.missing([one], tmp_path / "none.jsonl", **HERE) == [one]


def test_artifacts_are_kept_where_they_are_asked_for(
    mvtec: Path, tmp_path: Path, here: list[Run]
) -> None:
    folder, one = tmp_path / "new" / "kept", a_run(mvtec)
    (row,) = run([one], tmp_path / "rows.jsonl", **HERE, keep=folder)
    (file,) = folder.iterdir()
    assert file.name == f"knn-part-{one.key[:8]}.blemish"
    assert blemish.load(file, device="cpu").manifest["data"]["fingerprint"] == row["fingerprint"]
    with pytest.raises(OutputError, match=r"rows\.jsonl: cannot be written"):
        run([a_run(mvtec, seed=1)], tmp_path / "rows.jsonl", **HERE, keep=tmp_path / "rows.jsonl")
    assert here == [one]  # told before the work


def test_one_model_of_a_part_of_a_set_does_not_stand_for_one_of_more_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(order: benchmark.Order, *_: object) -> Row:
        return a_row(order.run, categories=sorted(path.name for path in order.run.path.iterdir()))

    monkeypatch.setattr(benchmark, "_launch", launch)
    root, results = tmp_path / "mvtec", tmp_path / "rows.jsonl"
    one = a_run(root, data="mvtec")
    for category in ("bottle", "screw"):
        (root / category / "train" / "good").mkdir(parents=True)
        assert benchmark.missing([one], results, **HERE) == [one]
        run([one], results, **HERE)
        assert benchmark.missing([one], results, **HERE) == []
        run([one], results, **HERE)
    assert [row["categories"] for row in read_rows(results)] == [["bottle"], ["bottle", "screw"]]
    shutil.rmtree(root / "screw")
    assert benchmark.missing([one], results, **HERE) == []  # the older of the two rows


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError])
def test_costs_that_cannot_be_measured_lose_nothing_else(
    mvtec: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def measure_costs(*_: object) -> dict[str, float]:
        raise kind("out of memory")

    monkeypatch.setattr(benchmark.costs, "measure", measure_costs)
    row = measure(a_run(mvtec), **HERE)
    assert row["efficiency"] == {"error": f"{kind.__name__}: out of memory"}
    assert row["status"] == "ok"
    assert row["image_auroc"] is not None


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


def test_ctrl_c_keeps_the_rows_so_far(
    mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(order: benchmark.Order, *_: object) -> Row:
        if order.run.seed == 1:
            raise KeyboardInterrupt
        return a_row(order.run)

    monkeypatch.setattr(benchmark, "_launch", launch)
    results = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run([a_run(mvtec, seed=seed) for seed in range(3)], results, **HERE)
    assert [row["seed"] for row in read_rows(results)] == [0]


def test_a_wrong_device_or_config_is_said_before_any_run(
    mvtec: Path, tmp_path: Path, here: list[Run]
) -> None:
    results = tmp_path / "rows.jsonl"
    with pytest.raises(ConfigError, match="abacus"):
        run([a_run(mvtec)], results, device="abacus")
    with pytest.raises(ConfigError, match="bank_size"):
        run([a_run(mvtec), a_run(mvtec, settings={"bank_sise": 1})], results, **HERE)
    assert not results.exists()
    assert here == []


def test_another_file_than_one_of_results_stays_as_it_is(
    mvtec: Path, tmp_path: Path, here: list[Run]
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("to do\nbench")
    with pytest.raises(DataError, match="line 1: is not a row"):
        run([a_run(mvtec)], notes, **HERE)
    assert (notes.read_text(), here) == ("to do\nbench", [])


def test_a_set_without_splits_is_refused(mvtec: Path) -> None:
    with pytest.raises(DataError, match="a train and a test split"):
        measure(a_run(mvtec / "train" / "good"), **HERE)


def test_a_place_that_cannot_be_written_is_said_before_any_run(
    mvtec: Path, tmp_path: Path, here: list[Run]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        run([a_run(mvtec)], tmp_path / "file" / "rows.jsonl", **HERE)
    assert here == []


def test_the_commit_is_of_the_checkout_that_blemish_runs_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit, dirty = checkout()
    assert (commit is None) == (dirty is None)
    monkeypatch.setattr(conditions, "__file__", str(tmp_path / "machine.py"))
    assert checkout() == (None, None)
    monkeypatch.setenv("PATH", os.devnull)
    assert checkout() == (None, None)


def test_pictures_that_are_not_all_of_a_public_set_are_said(mvtec: Path) -> None:
    row = measure(a_run(mvtec.rename(mvtec.parent / "bottle")), **HERE)
    assert row["differs"] == (
        "bottle: 24 of 209 training pictures",
        "bottle: 6 of 20 good test pictures",
        "bottle: 7 of 63 anomalous test pictures",
    )


# Several at once


def test_runs_in_processes_of_their_own_leave_whole_rows_and_half_of_them_can_be_made_again(
    mvtec: Path, tmp_path: Path
) -> None:
    results = tmp_path / "new" / "rows.jsonl"
    runs = [a_run(mvtec, seed=seed) for seed in range(2)]
    begun: list[tuple[int, int]] = []
    together = run(runs, results, **HERE, jobs=2, progress=lambda _, *counts: begun.append(counts))
    assert begun == [(0, 2), (0, 2), (2, 2)]
    assert [row["seed"] for row in together] == [0, 1]
    written = read_rows(results)  # in the order in which they were done
    assert sorted(written, key=lambda row: row["seed"]) == together
    check_whole(together[0], mvtec)

    results.write_text("".join(json.dumps(row) + "\n" for row in written if row["seed"] == 1))
    launched: list[Run] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "_launch", in_this_process(launched))
        again = run(runs, results, **HERE)
    assert launched == runs[:1]
    assert again[1] == together[1]
    assert again[0] != together[0]  # measured anew
    for name in (*METRICS, "by_defect", "fingerprint", "key", "counts"):
        assert again[0][name] == together[0][name], name


def check_whole(row: Row, data: Path) -> None:
    """Everything that a row of `a_run(data)` has to say."""
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
    assert (row["training"], row["shots"], row["time_budget"]) == (None, None, None)
    assert row["changed"] == TINY
    assert (row["categories"], row["multi_class"]) == (["part"], False)
    assert row["by_category"]["part"]["image_auroc"] == row["image_auroc"]
    assert row["device"]["type"] == "cpu"
    assert row["device"]["threads"] == max(1, cores() // 2)
    assert row["device"]["name"]
    assert row["precision"] == "fp32"
    assert all(0 <= row[name] <= 1 for name in METRICS)
    assert row["by_defect"].keys() == {"square", "dark"}
    assert row["seconds_to_fit"] > 0
    assert row["images_per_second"] > 0
    assert row["cores_used"] > 0
    assert 50 < row["peak_memory_mib"] < 20_000
    assert row["efficiency"]["latency_p95_ms"] >= row["efficiency"]["latency_p50_ms"] > 0
    assert row["efficiency"]["learnable_parameters"] == 0
    assert row["differs"] == []
    assert row["peak_gpu_memory_mib"] is None
    assert len(row["fingerprint"]) == 64
    assert {"blemish", "torch", "python", "date", "commit", "dirty", "schema"} <= row.keys()
    assert str(data) not in json.dumps(row)


def test_jobs_are_at_work_at_once_and_rows_come_as_they_are_done(
    mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = threading.Event()
    at_work: list[int] = []
    most: list[int] = []
    slots: list[object] = []

    def launch(order: benchmark.Order, gpu: str | None, _: object) -> Row:
        one = order.run
        at_work.append(one.seed)
        most.append(len(at_work))
        slots.append((order.threads, gpu))
        assert third.wait(20) if one.seed == 0 else True
        if one.seed == 2:
            third.set()
        at_work.remove(one.seed)
        return a_row(one, **({"status": "failed", "error": "x"} if one.seed == 1 else {}))

    monkeypatch.setattr(benchmark, "_launch", launch)
    monkeypatch.setattr(benchmark, "_gpus", lambda device: ["4", "7"])
    results = tmp_path / "rows.jsonl"
    rows = run([a_run(mvtec, seed=seed) for seed in range(4)], results, **HERE, jobs=2, threads=3)
    assert max(most) == 2
    assert [row["seed"] for row in rows] == [0, 1, 2, 3]
    assert [row["status"] for row in rows] == ["ok", "failed", "ok", "ok"]
    written = [row["seed"] for row in read_rows(results)]
    assert written[0] == 1
    assert sorted(written) == [0, 1, 2, 3]
    assert set(slots) == {(3, "4"), (3, "7")}


def test_what_interrupts_ends_the_processes(
    mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        benchmark,
        "_command",
        lambda order: [sys.executable, "-S", "-c", "import time; time.sleep(60)"],
    )

    def interrupt(what: str, done: int, total: int) -> None:
        if "seed 1" in what:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(
            [a_run(mvtec, seed=seed) for seed in range(3)],
            tmp_path / "rows",
            **HERE,
            jobs=2,
            progress=interrupt,
        )
    assert time.monotonic() - began < 30
    assert read_rows(tmp_path / "rows") == []


def test_a_job_sees_its_own_gpu_only(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = "dict(schema=2, status='x', key=os.environ['CUDA_VISIBLE_DEVICES'])"
    code = f"import json, os; print(json.dumps({row}))"
    monkeypatch.setattr(benchmark, "_command", lambda order: [sys.executable, "-S", "-c", code])
    assert benchmark._launch(an_order(a_run(mvtec), device="cuda"), "5", set())["key"] == "5"


def test_several_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        benchmark, "pick_device", lambda name: torch.device("cuda" if name == "auto" else name)
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [benchmark._gpus(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        ["0", "1"],
        ["0", "1"],
        [],
        [],
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,6")
    assert benchmark._gpus("cuda") == ["3", "6"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert benchmark._gpus("cuda") == []


def test_no_jobs_are_refused(mvtec: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jobs: at least 1"):
        run([a_run(mvtec)], tmp_path / "rows.jsonl", **HERE, jobs=0)


def test_cores_are_shared_among_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "cores", lambda: 8)
    assert [shared_threads(None, jobs) for jobs in (1, 2, 3, 20)] == [None, 4, 2, 1]
    assert shared_threads(5, 2) == 5
