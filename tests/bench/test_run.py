from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from runs import GUIDED, HERE, TAUGHT, TINY, a_row_of, a_run, in_this_process

import blemish
from blemish.bench import conditions
from blemish.bench import run as benchmark
from blemish.bench.conditions import checkout
from blemish.bench.plan import Run
from blemish.bench.results import Row, markdown, page, read_rows
from blemish.bench.results.rows import likeness
from blemish.bench.run import SHIFTED_METRICS, measure, run
from blemish.data.shifts import SHIFTS
from blemish.detector.predict import Detector
from blemish.errors import ConfigError, DataError, OutputError
from blemish.images import decode
from blemish.types import Failure


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Workers work in this process; gives the list of the runs that they were given."""
    launched: list[Run] = []
    monkeypatch.setattr(benchmark, "_launch", in_this_process(launched))
    return launched


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


def test_a_second_encoder_is_named_with_its_weights(
    mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"source": "package", "sha256": "f" * 64, "licence": "MIT"}

    def fit(*given: Any, **arguments: Any) -> Detector:
        detector = blemish.fit(*given, **arguments)
        if "second" in detector.manifest:
            assert detector.manifest["second"]["weights"].keys() == known.keys()
            detector.manifest["second"]["weights"] = known
        return detector

    monkeypatch.setattr(benchmark, "fit", fit)
    two = a_run(mvtec, settings={**TINY, "second": "test_resnet"})
    plain, joined = (measure(one, **HERE) for one in (a_run(mvtec), two))
    assert (plain["second_weights"], joined["second_weights"]) == (None, known)
    assert plain["weights"] == joined["weights"]
    other = {**joined, "second_weights": {**known, "sha256": "0" * 64}}
    assert likeness(joined) != likeness(cast(Row, other))
    earlier = {key: value for key, value in plain.items() if key != "second_weights"}
    assert likeness(cast(Row, earlier)) == likeness(plain)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (earlier, joined)))
    assert [row.get("second_weights") for row in read_rows(file)] == [None, known]


def test_a_trained_method_says_its_schedule(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"epochs": 30, "steps": 1234, "seconds": 738.0}
    given: dict[str, Any] = {}

    def fit(method: str, good: Path, **arguments: Any) -> Detector:
        given.update(arguments)
        plain = {**TINY, **HERE, "weights": "random", "calibration_fraction": 0}
        detector = blemish.fit("knn", good, **plain)
        detector.manifest["training"] = training
        return detector

    monkeypatch.setattr(benchmark, "fit", fit)
    row = measure(Run(method="agpnet", data="part", path=mvtec, shots=4, time_budget=15.0), **HERE)
    assert row["schedule"] == "30 epochs, 1,234 steps in 12.3 min"
    assert row["training"] == training
    assert (row["shots"], row["time_budget"]) == (4, 15.0)
    assert (given["shots"], given["time_budget"]) == (4, 15.0)


def test_with_a_rate_of_false_alarms_a_row_has_verdicts_and_regions(mvtec: Path) -> None:
    plain, left_out = (measure(a_run(mvtec, false_alarm_rate=it), **HERE) for it in (None, 0.1))
    assert [plain[key] for key in ("calibration", "confusion", "regions")] == [None] * 3
    assert left_out["calibration"] == {"method": "leave-one-out", "pictures": 24, "held_out": 0}
    assert left_out["image_auroc"] == plain["image_auroc"]  # it has learned from the same pictures
    held_out = measure(a_run(mvtec, **GUIDED, false_alarm_rate=0.25), **HERE)
    assert held_out["calibration"] == {"method": "split conformal", "pictures": 5, "held_out": 5}
    assert held_out["counts"]["fitted"] == 19
    for row in (left_out, held_out):
        verdicts, regions, split = row["confusion"], row["regions"], row["split"]
        assert verdicts["true_positive"] + verdicts["false_negative"] == split["test_anomalous"]
        assert verdicts["true_negative"] + verdicts["false_positive"] == split["test_normal"]
        assert (regions["normal"], regions["pictures"]) == (split["test_normal"], 13)
        assert 0 <= regions["normal_with_region"] <= regions["normal"]
        assert regions["recall_at"].keys() == {"0.1", "0.5", "1"}


def test_few_shots_are_drawn_by_the_seed(mvtec: Path) -> None:
    rows = [measure(a_run(mvtec, shots=2, seed=seed), **HERE) for seed in (0, 0, 1)]
    assert [row["counts"]["fitted"] for row in rows] == [2, 2, 2]
    assert rows[0]["split"]["train"] == 24
    assert rows[0]["fingerprint"] == rows[1]["fingerprint"] != rows[2]["fingerprint"]


def test_the_defects_that_were_learned_from_do_not_test(mvtec: Path) -> None:
    asked = [(None, None, 0), (0, None, 0), (2, None, 1), (3, "square", 0)]
    rows = {
        (count, kind): measure(
            a_run(mvtec, **TAUGHT, anomaly_count=count, anomaly_type=kind, seed=seed), **HERE
        )
        for count, kind, seed in asked
    }
    for (count, kind), row in rows.items():
        assert (row["status"], row["anomaly_count"], row["anomaly_type"]) == ("ok", count, kind)
        assert row["split"]["test_anomalous"] == 7
        counts = [row["counts"][name] for name in ("fitted", "left_out", "anomalous")]
        assert counts == [24, count or 0, 7 - (count or 0)]
    assert rows[None, None]["image_auroc"] == rows[0, None]["image_auroc"]
    counts = {name: one["count"] for name, one in rows[3, "square"]["by_defect"].items()}
    assert counts == {"square": 1, "dark": 3}


def test_rows_of_other_numbers_of_defects_are_apart_in_tables(mvtec: Path) -> None:
    rows = [a_row_of(a_run(mvtec, **TAUGHT, anomaly_count=count)) for count in (None, 1, 2)]
    lines = [line for line in markdown(page(rows)).splitlines() if "lda" in line]
    assert len(lines) == 3
    assert ["1 defect" in line for line in lines].count(True) == 1
    assert ["2 defects" in line for line in lines].count(True) == 1


def test_several_categories_are_measured_each_by_itself(mvtec: Path) -> None:
    for name in ("left", "right"):
        shutil.copytree(mvtec, mvtec.parent / "parts" / name)
    shutil.rmtree(mvtec.parent / "parts" / "right" / "test" / "square")
    row = measure(a_run(mvtec.parent / "parts"), **HERE)
    assert row["multi_class"]
    assert row["categories"] == ("left", "right")
    for name in ("image_auroc", "image_ap", "pixel_auroc", "aupro"):
        each = [row["by_category"][side][name] for side in ("left", "right")]
        assert row[name] == pytest.approx(statistics.fmean(each))


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

    def of(whole: Row) -> dict[str, Any]:
        return {**{name: whole[name] for name in (*SHIFTED_METRICS, "by_group")}, "adapted": 0.0}

    assert row["shifted"]["none"] == {"none": of(row)}
    for name in ("blur", "noise"):
        shutil.copytree(mvtec, mvtec.parent / name / "part")
        for path in (mvtec.parent / name / "part" / "test").rglob("*.png"):
            write(path, SHIFTS[name](decode(path).pixels))
        stored = measure(a_run(mvtec.parent / name / "part"), **HERE)
        assert row["shifted"][name]["none"] == of(stored)
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


def test_the_share_of_adapted_pictures_and_the_means_of_categories_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = {"male": {"pixel_auroc_anomalous": 0.7}}

    def evaluate(*_: object, on_prediction: Callable[..., None], **__: object) -> SimpleNamespace:
        for adapted in (True, False, False, True, True):
            on_prediction(None, SimpleNamespace(adapted=adapted))
        of_all = {"image_auroc": 0.5, "pixel_auroc": None, "aupro": 0.75, "by_group": groups}
        return SimpleNamespace(**of_all, category_mean={"aupro": 0.25})

    monkeypatch.setattr(benchmark, "evaluate", evaluate)
    detector = SimpleNamespace(predict_many=print)
    metrics = benchmark._adapted(detector, None, None, "online", 256)
    means = {"image_auroc": 0.5, "pixel_auroc": None, "aupro": 0.25}
    assert metrics == {**means, "adapted": 0.6, "by_group": groups}


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
        return a_row_of(
            order.run, categories=sorted(path.name for path in order.run.path.iterdir())
        )

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


def test_costs_that_cannot_be_measured_lose_nothing_else(
    mvtec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure_costs(*_: object) -> dict[str, float]:
        raise AssertionError("out of memory")

    monkeypatch.setattr(benchmark.costs, "measure", measure_costs)
    row = measure(a_run(mvtec), **HERE)
    assert row["efficiency"] == {"error": "AssertionError: out of memory"}
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
        return a_row_of(order.run)

    monkeypatch.setattr(benchmark, "_launch", launch)
    results = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run([a_run(mvtec, seed=seed) for seed in range(3)], results, **HERE)
    assert [row["seed"] for row in read_rows(results)] == [0]


def test_what_cannot_be_made_is_said_before_any_run(
    mvtec: Path, tmp_path: Path, here: list[Run]
) -> None:
    results, wrong = tmp_path / "rows.jsonl", a_run(mvtec, settings={"bank_sise": 1})
    for runs, changes, said in [
        ([a_run(mvtec)], {"device": "abacus"}, "abacus"),
        ([a_run(mvtec), wrong], {}, "bank_size"),
        ([a_run(mvtec)], {"jobs": 0}, "jobs: at least 1"),
    ]:
        with pytest.raises(ConfigError, match=said):
            run(runs, results, **{**HERE, **changes})
    assert not results.exists()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        run([a_run(mvtec)], tmp_path / "file" / "rows.jsonl", **HERE)
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
    parts = ("24 of 209 training", "6 of 20 good test", "7 of 63 anomalous test")
    assert row["differs"] == tuple(f"bottle: {part} pictures" for part in parts)
