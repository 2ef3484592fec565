"""Runs in processes of their own, several at once."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import HERE, TINY, a_row_of, a_run, in_this_process, launched_as

from blemish.bench import conditions
from blemish.bench import run as benchmark
from blemish.bench.conditions import shared_threads
from blemish.bench.plan import Run
from blemish.bench.results import Row, read_rows
from blemish.bench.run import METRICS, run
from blemish.machine import cores


def test_a_process_that_dies_leaves_a_failed_row(
    mvtec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies_by(code: str) -> str:
        row = launched_as(code, a_run(mvtec), monkeypatch)
        assert (row["status"], row["key"]) == ("failed", a_run(mvtec).key)
        return row["error"]

    assert "out of memory?" in dies_by("import os; os.kill(os.getpid(), 9)")
    last = "import os; os.write(2, b'noise\\nlast words\\n'); os._exit(3)"
    assert "status 3: last words" in dies_by(last)
    assert "said nothing" in dies_by("print(5)")
    monkeypatch.setattr(sys, "executable", str(mvtec / "nothing"))
    assert dies_by("") == "its process could not be started (No such file or directory)"


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
    expected: dict[str, Any] = {
        **{"status": "ok", "category": "part", "categories": ["part"], "multi_class": False},
        **{"resolution": [32, 32], "backbone": "test_vit", "changed": TINY, "precision": "fp32"},
        **{"schedule": "", "training": None, "shots": None, "time_budget": None, "differs": []},
        "split": {"train": 24, "test_normal": 6, "test_anomalous": 7},
        "weights": {"source": "random", "sha256": "", "licence": "none"},
        "peak_gpu_memory_mib": None,
    }
    assert {**row, **expected} == row
    assert (row["counts"]["fitted"], row["counts"]["pictures"]) == (24, 13)
    assert row["settings"]["layers"] == [2, 4]
    assert row["by_category"]["part"]["image_auroc"] == row["image_auroc"]
    assert (row["device"]["type"], row["device"]["threads"]) == ("cpu", max(1, cores() // 2))
    assert row["device"]["name"]
    assert all(0 <= row[name] <= 1 for name in METRICS)
    assert row["by_defect"].keys() == {"square", "dark"}
    assert min(row["seconds_to_fit"], row["images_per_second"], row["cores_used"] or 0) > 0
    assert 50 < (row["peak_memory_mib"] or 0) < 20_000
    costs = row["efficiency"] or {}
    assert costs["latency_p95_ms"] >= costs["latency_p50_ms"] > 0
    assert costs["learnable_parameters"] == 0
    assert len(row["fingerprint"]) == 64
    assert {"blemish", "torch", "python", "date", "commit", "dirty", "schema"} <= row.keys()
    assert str(data) not in json.dumps(row)


def test_jobs_are_at_work_at_once_and_rows_come_as_they_are_done(
    mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = threading.Event()
    at_work, most, slots = list[int](), list[int](), list[object]()

    def launch(order: benchmark.Order, gpu: str | None, _: object) -> Row:
        one = order.run
        at_work.append(one.seed)
        most.append(len(at_work))
        slots.append((order.threads, gpu))
        assert third.wait(20) if one.seed == 0 else True
        if one.seed == 2:
            third.set()
        at_work.remove(one.seed)
        return a_row_of(one, **({"status": "failed", "error": "x"} if one.seed == 1 else {}))

    monkeypatch.setattr(benchmark, "_launch", launch)
    monkeypatch.setattr(benchmark, "_gpus", lambda device: ["4", "7"])
    results = tmp_path / "rows.jsonl"
    rows = run([a_run(mvtec, seed=seed) for seed in range(4)], results, **HERE, jobs=2, threads=3)
    assert max(most) == 2
    assert [row["seed"] for row in rows] == [0, 1, 2, 3]
    assert [row["status"] for row in rows] == ["ok", "failed", "ok", "ok"]
    written = [row["seed"] for row in read_rows(results)]
    assert (written[0], sorted(written)) == (1, [0, 1, 2, 3])
    assert set(slots) == {(3, "4"), (3, "7")}


def test_what_interrupts_ends_the_processes(
    mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(benchmark, "_command", lambda order: sleep)

    def interrupt(what: str, done: int, total: int) -> None:
        if "seed 1" in what:
            raise KeyboardInterrupt

    began = time.monotonic()
    runs = [a_run(mvtec, seed=seed) for seed in range(3)]
    with pytest.raises(KeyboardInterrupt):
        run(runs, tmp_path / "rows", **HERE, jobs=2, progress=interrupt)
    assert time.monotonic() - began < 30
    assert read_rows(tmp_path / "rows") == []


def test_a_job_sees_its_own_gpu_only(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = "dict(schema=2, status='x', key=os.environ['CUDA_VISIBLE_DEVICES'])"
    code = f"import json, os; print(json.dumps({row}))"
    assert launched_as(code, a_run(mvtec), monkeypatch, gpu="5")["key"] == "5"


def test_several_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        benchmark, "pick_device", lambda name: torch.device("cuda" if name == "auto" else name)
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = [benchmark._gpus(name) for name in ("auto", "cuda", "cuda:1", "cpu")]
    assert found == [["0", "1"], ["0", "1"], [], []]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,6")
    assert benchmark._gpus("cuda") == ["3", "6"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert benchmark._gpus("cuda") == []


def test_cores_are_shared_among_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "cores", lambda: 8)
    assert [shared_threads(None, jobs) for jobs in (1, 2, 3, 20)] == [None, 4, 2, 1]
    assert shared_threads(5, 2) == 5
