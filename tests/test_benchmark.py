from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import blemish
from blemish import benchmark
from blemish.benchmark import METRICS, SHIFTED_METRICS, Run, data_sets, measure, plan, run
from blemish.data.shifts import SHIFTS
from blemish.errors import ConfigError, DataError, OutputError
from blemish.images import decode
from blemish.methods import METHODS
from blemish.methods.trained import TrainedConfig, TrainedMethod
from blemish.predictor import Detector
from blemish.results import Row, read_rows, table
from blemish.suites import Entry
from blemish.types import Failure

TINY = {"backbone": "test_vit", "image_size": 32, "layers": [2, 4], "bank_size": 50}
HERE = {"device": "cpu", "precision": "fp32"}
GUIDED = {
    "method": "guided",
    "settings": {"backbone": "test_vit", "image_size": [32], "epochs": 1, "min_steps": 12, "pictures_per_step": 8},
}
TAUGHT = {
    "method": "atacnet",
    "settings": {"backbone": "test_vit", "image_size": [32], "layers": [2, 4], "normality": "knn"},
}
OLD_KEYS = {"patchcore": "e8d4b1c5e99916eb", "knn": "f1385710f3442134"}  # of rows in benchmarks/results


def a_run(path: Path, **changes: Any) -> Run:
    one = Run(method="knn", data="part", path=path, settings=TINY, weights="random", label="tiny")
    return replace(one, **changes)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method "trained" beside the others, known by its class only."""

    class Trained(TrainedMethod):
        name = "trained"
        Config = TrainedConfig

    monkeypatch.setitem(METHODS, "trained", Trained)


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


def a_row(one: Run) -> Row:
    """What a run in another process would have answered, without the measurements."""
    heading = benchmark._heading(one, "ok")
    return {**heading, "device": {"type": "cpu"}, "precision": "fp32"}


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
    assert (row["training"], row["shots"], row["time_budget"]) == (None, None, None)
    assert row["changed"] == TINY
    assert (row["categories"], row["multi_class"]) == (["part"], False)
    assert row["by_category"]["part"]["image_auroc"] == row["image_auroc"]
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


def test_a_trained_method_says_its_schedule(mvtec: Path, trained: None, monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"epochs": 30, "steps": 1234, "seconds": 738.0, "pictures_per_second": 9.5, "loss": 0.1}
    given: dict[str, Any] = {}

    def fit(method: str, good: Path, **arguments: Any) -> Detector:
        given.update(arguments)
        detector = blemish.fit("knn", good, **{**TINY, **HERE}, weights="random", calibration_fraction=0)
        detector.manifest["training"] = training
        return detector

    monkeypatch.setattr(benchmark, "fit", fit)
    row = measure(Run(method="trained", data="part", path=mvtec, shots=4, time_budget=15.0), **HERE)
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
        (count, kind, seed): measure(a_run(mvtec, **TAUGHT, anomaly_count=count, anomaly_type=kind, seed=seed), **HERE)
        for count, kind, seed in [(None, None, 0), (0, None, 0), (2, None, 0), (2, None, 1), (3, "square", 0)]
    }
    for (count, kind, _), row in rows.items():
        assert (row["status"], row["anomaly_count"], row["anomaly_type"]) == ("ok", count, kind)
        assert row["split"]["test_anomalous"] == 7
        assert (row["counts"]["left_out"], row["counts"]["anomalous"]) == (count or 0, 7 - (count or 0))
        assert row["counts"]["fitted"] == 24
    assert len({row["key"] for row in rows.values()}) == 5
    assert rows[None, None, 0]["image_auroc"] == rows[0, None, 0]["image_auroc"]
    assert rows[3, "square", 0]["by_defect"]["square"]["count"] == 1
    assert rows[3, "square", 0]["by_defect"]["dark"]["count"] == 3
    counts = [{name: one["count"] for name, one in row["by_defect"].items()} for row in rows.values()]
    assert counts[0] == counts[1] == {"square": 4, "dark": 3}


def test_rows_of_other_numbers_of_defects_are_apart_in_tables(mvtec: Path, tmp_path: Path, here: list[Run]) -> None:
    results = tmp_path / "rows.jsonl"
    runs = [a_run(mvtec, **TAUGHT, anomaly_count=count) for count in (None, 1, 2)]
    rows = run(runs, results, **HERE)
    assert [row["status"] for row in rows] == ["ok"] * 3
    lines = [line for line in table(rows).splitlines() if "atacnet" in line]
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
    assert row["categories"] == ["left", "right"]
    for name in ("image_auroc", "image_ap", "pixel_auroc", "aupro"):
        assert row[name] == pytest.approx(
            statistics.fmean(row["by_category"][side][name] for side in ("left", "right"))
        )


def test_shifted_pictures_are_judged_as_if_they_had_been_stored_so(mvtec: Path, write: Callable[..., Path]) -> None:
    row = measure(a_run(mvtec, shifts=["noise", "blur"]), **HERE)
    assert (row["shifts"], row["adapt"]) == (["blur", "noise"], [])
    assert list(row["shifted"]) == ["none", "blur", "noise"]
    assert row["shifted"]["none"] == {"none": {**{name: row[name] for name in SHIFTED_METRICS}, "adapted": 0.0}}
    for name in ("blur", "noise"):
        shutil.copytree(mvtec, mvtec.parent / name / "part")
        for path in (mvtec.parent / name / "part" / "test").rglob("*.png"):
            write(path, SHIFTS[name](decode(path).pixels))
        stored = measure(a_run(mvtec.parent / name / "part"), **HERE)
        assert row["shifted"][name]["none"] == {**{key: stored[key] for key in SHIFTED_METRICS}, "adapted": 0.0}
    assert row["shifted"]["noise"] != row["shifted"]["none"]
    assert "shifted" not in stored


def test_a_shifted_picture_is_known_by_its_original(fitted: Callable[..., Detector], picture: Any) -> None:
    plain = fitted("knn")
    shifted = benchmark._Shifted(plain, SHIFTS["brightness"])
    before, after, broken = (
        plain.predict(picture(900)),
        *shifted.predict_many([picture(900), np.zeros((0, 0, 3), np.uint8)]),
    )
    assert (before.digest, before.size) == (after.digest, after.size)
    assert before.score != after.score
    assert after.score == plain.predict(SHIFTS["brightness"](picture(900))).score
    assert isinstance(broken, Failure)


def test_every_shift_is_judged_in_every_mode(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str | None]] = []
    evaluate = benchmark.evaluate

    def recorded(detector: Detector, *arguments: Any, **named: Any) -> Any:
        calls.append((type(detector).__name__, named.get("adapt")))
        return evaluate(detector, *arguments, **named)

    monkeypatch.setattr(benchmark, "evaluate", recorded)
    row = measure(a_run(mvtec, **GUIDED, shifts=["contrast"], adapt=["episodic", "online"]), **HERE)
    modes = (None, "online", "episodic")
    assert calls[0] == ("_Stopwatch", None)
    assert calls[1:] == [(name, mode) for name in ("Detector", "_Shifted") for mode in modes]
    assert row["adapt"] == ["online", "episodic"]
    for by_mode in row["shifted"].values():
        assert list(by_mode) == ["none", "online", "episodic"]
        assert by_mode["none"]["adapted"] == 0
        assert all(0 <= metrics["adapted"] <= 1 for metrics in by_mode.values())
    assert row["shifted"]["none"]["none"]["image_auroc"] == row["image_auroc"]
    assert str(a_run(mvtec, **GUIDED, shifts=["contrast"], adapt=["online"])).endswith(
        "also shifted: contrast · also adapting: online"
    )


def test_the_share_of_adapted_pictures_and_the_means_of_categories_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(*_: object, on_prediction: Callable[..., None], **__: object) -> SimpleNamespace:
        for adapted in (True, False, False, True, True):
            on_prediction(None, SimpleNamespace(adapted=adapted))
        return SimpleNamespace(image_auroc=0.5, pixel_auroc=None, aupro=0.75, category_mean={"aupro": 0.25})

    monkeypatch.setattr(benchmark, "evaluate", evaluate)
    metrics = benchmark._shifted_metrics(None, None, "online")
    assert metrics == {"image_auroc": 0.5, "pixel_auroc": None, "aupro": 0.25, "adapted": 0.6}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shifts": ["blurr"]}, "did you mean 'blur'"),
        ({"adapt": ["onlin"]}, "unknown mode of adaptation 'onlin'; did you mean 'online'"),
        ({"adapt": ["online"]}, "knn cannot adapt"),
    ],
)
def test_a_wrong_shift_or_mode_is_said(mvtec: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan([Entry(method="knn")], {"a": mvtec}, [0], **changes)


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
    assert [row["precision"] for row in read_rows(results)] == ["fp32", "fp32", "bf16"]
    assert benchmark.missing([one, two], results, device="cpu", precision="bf16") == [two]
    assert benchmark.missing([one, two], results, **HERE) == []
    assert benchmark.missing([one], tmp_path / "none.jsonl", **HERE) == [one]


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
        return a_row(one)

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
        a_run(mvtec, shots=1),
        a_run(mvtec, shots=2),
        a_run(mvtec, time_budget=1.0),
        a_run(mvtec, time_budget=2.0),
        a_run(mvtec, shots=1, time_budget=1.0),
        a_run(mvtec, shifts=["blur"]),
        a_run(mvtec, shifts=["blur", "noise"]),
        a_run(mvtec, **GUIDED),
        a_run(mvtec, **GUIDED, adapt=["online"]),
        a_run(mvtec, **GUIDED, adapt=["online"], shifts=["blur"]),
        a_run(mvtec, **TAUGHT),
        *(a_run(mvtec, **TAUGHT, anomaly_count=count) for count in (0, 1, 2)),
        *(a_run(mvtec, **TAUGHT, anomaly_count=1, anomaly_type=kind) for kind in ("square", "dark")),
        a_run(mvtec, **TAUGHT, anomaly_count=1, shots=2),
    ]
    assert len({one.key, *(other.key for other in others)}) == 1 + len(others)
    assert a_run(mvtec, weights=str(first)).key == a_run(mvtec, weights=str(second)).key
    assert a_run(mvtec, time_budget=1).key == a_run(mvtec, time_budget=1.0).key
    assert a_run(mvtec, shifts=["noise", "blur", "noise"]).key == a_run(mvtec, shifts=["blur", "noise"]).key
    asked = a_run(mvtec, **GUIDED, adapt=["episodic", "online"], shifts=["noise", "blur"])
    assert Run.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked
    asked = a_run(mvtec, **TAUGHT, anomaly_count=2, anomaly_type="square")
    assert Run.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked


@pytest.mark.parametrize("method", OLD_KEYS)
def test_rows_measured_by_an_older_blemish_are_recognised(method: str, tmp_path: Path) -> None:
    one = Run(method=method, data="bottle", path=tmp_path, settings={"backbone": "focus_vits14"})
    assert one.key == OLD_KEYS[method]
    assert replace(one, settings={**one.settings, "flips": True}).key != one.key


def test_a_plan_is_the_product(mvtec: Path) -> None:
    entries = [Entry(method="knn", settings={"layers": [2, 3]}), Entry(method="patchcore", recipe="paper")]
    runs = plan(entries, {"a": mvtec, "b": mvtec}, [0, 1], assignments=["bank_size=7", "layers=4"], shots=2)
    found = [(one.data, one.method, one.recipe, one.seed, one.settings["layers"]) for one in runs]
    assert found == [
        (data, *entry, seed, layers)
        for data in "ab"
        for entry, layers in [(("knn", "best"), [2, 3]), (("patchcore", "paper"), [4])]
        for seed in (0, 1)
    ]
    assert {one.label for one in runs} == {"layers=2,3 bank_size=7", "layers=4 bank_size=7"}
    assert {one.shots for one in runs} == {2}
    assert plan(entries[:1] * 2, {"a": mvtec}, [0], assignments=["layers=2,3"], label="x")[0].label == "x"
    assert len(plan(entries[:1] * 2, {"a": mvtec}, [0])) == 1


def test_a_time_budget_is_for_what_is_trained(mvtec: Path, trained: None) -> None:
    runs = plan([Entry(method="knn"), Entry(method="trained")], {"a": mvtec}, [0], time_budget=3)
    assert [one.time_budget for one in runs] == [None, 3]
    assert str(runs[1]) == "trained on a, seed 0 · budget 3 min"


def test_defects_are_for_what_learns_from_them(mvtec: Path, trained: None) -> None:
    entries = [
        Entry(method="knn"),
        Entry(method="atacnet"),
        Entry(method="atacnet", recipe="paper"),
        Entry(method="atacnet-paper", recipe="paper-devnet"),
        Entry(method="trained"),
    ]
    runs = plan(entries, {"a": mvtec}, [0], anomaly_count=1, anomaly_type="square", time_budget=3)
    assert [(one.anomaly_count, one.anomaly_type) for one in runs] == [(None, None), *[(1, "square")] * 3, (None, None)]
    assert [one.time_budget for one in runs] == [None, None, 3, 3, 3]
    assert [str(one) for one in runs[:3]] == [
        "knn on a, seed 0",
        "atacnet on a, seed 0 · 1 defect of type square",
        "atacnet on a, seed 0 · paper · 1 defect of type square · budget 3 min",
    ]
    (learner,) = plan([Entry(method="atacnet", settings={"normality": "agpnet"})], {"a": mvtec}, [0], time_budget=3)
    assert learner.time_budget == 3
    with pytest.raises(ConfigError, match="say how many of that type"):
        plan(entries, {"a": mvtec}, [0], anomaly_type="square")


@pytest.mark.parametrize(
    ("entry", "assignments", "message"),
    [
        (Entry(method="pachcore"), [], "did you mean 'patchcore'"),
        (Entry(method="knn"), ["bank_sise=3"], "bank_size"),
        (Entry(method="knn", settings={"bank_sise": 3}), [], "bank_size"),
        (Entry(method="knn"), ["seed=3"], "--seeds"),
        (Entry(method="knn", recipe="bst"), [], "best"),
    ],
)
def test_a_wrong_plan_is_said(mvtec: Path, entry: Entry, assignments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan([entry], {"a": mvtec}, [0], assignments=assignments)


def test_a_wrong_device_or_config_is_said_before_any_run(mvtec: Path, tmp_path: Path, here: list[Run]) -> None:
    results = tmp_path / "rows.jsonl"
    with pytest.raises(ConfigError, match="abacus"):
        run([a_run(mvtec)], results, device="abacus")
    with pytest.raises(ConfigError, match="bank_size"):
        run([a_run(mvtec), a_run(mvtec, settings={"bank_sise": 1})], results, **HERE)
    assert not results.exists()
    assert here == []


def test_data_sets_by_name_and_by_path(mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mvtec" / "bottle").mkdir(parents=True)
    other = tmp_path / "gadget.csv"
    other.touch()
    found = data_sets(["bottle", mvtec, other], root=tmp_path, scratch=tmp_path)
    assert found == {"bottle": tmp_path / "mvtec" / "bottle", "part": mvtec, "gadget": other}
    monkeypatch.setenv("BLEMISH_DATA", str(tmp_path))
    assert data_sets(["bottle", "mvtec"], root=None, scratch=tmp_path)["mvtec"] == tmp_path / "mvtec"
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


def test_a_place_that_cannot_be_written_is_said_before_any_run(mvtec: Path, tmp_path: Path, here: list[Run]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        run([a_run(mvtec)], tmp_path / "file" / "rows.jsonl", **HERE)
    assert here == []


def test_the_commit_is_of_the_checkout_that_blemish_runs_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit, dirty = benchmark.checkout()
    assert (commit is None) == (dirty is None)
    monkeypatch.setattr(benchmark, "__file__", str(tmp_path / "benchmark.py"))
    assert benchmark.checkout() == (None, None)
    monkeypatch.setenv("PATH", os.devnull)
    assert benchmark.checkout() == (None, None)
