"""What `predict --engine ray` does with many pictures, and with machines that fail.

    python benchmarks/scale.py throughput --count 100000 --results benchmarks/results/scale.jsonl
    python benchmarks/scale.py worker node driver hostile slow --count 2000

Pictures are made here. Each case is a row:

    throughput  two workers of one thread on a Ray of this machine, and `blemish predict` with two
                threads on the same pictures, in turns, each in a process of its own, and on a few
                pictures before. Rates are of what the others took longer than the few, so that no
                start counts; the whole times stand beside them. `processor_ratio` is the same by
                processor time, which other work on the machine hardly moves. `memory_mib`: of the
                process that was started, at each tenth of the pictures.
    worker      a process that scores is killed in the middle, and one that decodes
    node        a whole node of three is killed in the middle
    driver      the process that was started is killed in the middle, and started again
    hostile     one picture of a hundred is damaged
    slow        every file takes a while to be opened
    rows        a table of so many rows, which name a thousand pictures over and over: memory at
                each tenth, of the process that was started, and of all that it started as well

Of each: `missing`, `doubled` and `wrong` rows, by what `Detector.predict_many` says of the same
pictures. It ends with 1 where there are any.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fsspec.implementations.local import LocalFileSystem
from fuzzing.damage import scribbled

import blemish
from blemish.bench.conditions import checkout, hardware
from blemish.scale import predict as scale
from blemish.types import Failure

SIDE = 64
_TOLERANCE = 1e-6
DEADLY = "0000007.png"
_DELAY = 0.02  # seconds that a slow file takes to be opened


def made(folder: Path, count: int, *, damaged: float = 0.0, seed: int = 0) -> Path:
    """Pictures of noise and shapes, a thousand in a folder, some of them damaged."""
    random = np.random.default_rng(seed)
    for number in range(count):
        pixels = random.normal(128, 12, (SIDE, SIDE, 3))
        top, left = random.integers(0, SIDE * 3 // 4, 2)
        pixels[top : top + SIDE // 8, left : left + SIDE // 5] += random.uniform(-90, 90)
        content = cv2.imencode(".png", np.clip(pixels, 0, 255).astype(np.uint8))[1].tobytes()
        if random.random() < damaged:
            content = scribbled(content, random)
        path = folder / f"{number // 1000:04d}" / f"{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def fitted(folder: Path, method: str, backbone: str, side: int) -> Path:
    """An artifact of a detector of some pictures."""
    good = sorted(made(folder / "good", 40, seed=1).rglob("*.png"))
    weights = None if backbone in ("efficientnet_lite0", "focus_vits14") else "random"
    found = blemish.fit(method, good, backbone=backbone, weights=weights, image_size=side)
    return found.save(folder / "part.blemish")


Known = dict[str, Any]


def listed(folder: Path, count: int) -> Path:
    """A table of so many rows, each with an id of its own and one of the pictures."""
    paths = sorted(str(one.relative_to(folder.parent)) for one in folder.rglob("*.png"))
    ids = [f"{number:08d}" for number in range(count)]
    columns = {"id": ids, "path": [paths[number % len(paths)] for number in range(count)]}
    pq.write_table(pa.table(columns), folder.parent / "table.parquet")
    return folder.parent / "table.parquet"


@functools.cache
def known(artifact: Path, source: Path) -> Known:
    """What `predict_many` says of each picture: its score and digest, or why there is none."""
    if source.is_file():
        table = pq.read_table(source).to_pydict()
        told = known(artifact, source.parent)
        return {name: told[path] for name, path in zip(*table.values(), strict=True)}
    folder = source
    found = blemish.load(artifact, threads=1).predict_many([folder])
    return {
        str(Path(one.source).relative_to(folder)): one.reason
        if isinstance(one, Failure)
        else (one.score, one.digest)
        for one in found
    }


def compared(output: Path, expected: Known) -> dict[str, int]:
    """How many rows are missing, doubled or say something else."""
    table = pq.read_table(output, columns=["id", "score", "digest", "error"])
    rows = table.to_pylist()
    there = {row["id"]: row for row in rows}
    wrong = 0
    for row in rows:
        told = expected.get(row["id"])
        if isinstance(told, str):
            wrong += row["error"] != told
        elif told is None or row["error"] is not None:
            wrong += 1
        else:
            close = abs(row["score"] - told[0]) <= _TOLERANCE * max(1.0, abs(told[0]))
            wrong += not close or row["digest"] != told[1]
    return {
        "rows": len(rows),
        "missing": len(set(expected) - set(there)),
        "doubled": len(rows) - len(there),
        "wrong": wrong,
    }


class Slow(LocalFileSystem):  # type: ignore[misc]
    """This machine's files, of which each takes a while to be opened."""

    def _open(self, *arguments: Any, **options: Any) -> Any:
        time.sleep(_DELAY)
        return super()._open(*arguments, **options)


class Deadly(Slow):
    """One of the pictures ends the process that opens it."""

    def _open(self, path: str, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith(DEADLY):
            os._exit(1)
        return super()._open(path, *arguments, **options)


@contextmanager
def nodes(count: int, cpus: int = 2) -> Iterator[tuple[Any, list[Any]]]:
    """A cluster of a head and other nodes on this machine, none of which listens beyond it."""
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)  # where it notes its address
    had, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    how: dict[str, Any] = {"node_ip_address": "127.0.0.1", "include_dashboard": False}
    try:
        with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
            head = {**how, "num_cpus": 1, "temp_dir": folder}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            try:
                yield cluster, [cluster.add_node(num_cpus=cpus, **how) for _ in range(count)]
            finally:
                cluster.shutdown()
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = had


def at(share: float, act: Callable[[], None]) -> Callable[[str, int, int], None]:
    """Progress that does something once, when so many rows have come."""
    done = []

    def tell(stage: str, rows: int, total: int) -> None:
        if stage == "scoring" and rows >= share * total and not done:
            done.append(rows)
            act()

    return tell


def killed(*kinds: str) -> list[int]:
    """Kills a process of Ray below this one of each kind; gives their ids."""
    found = []
    for kind in kinds:
        for process in psutil.Process().children(recursive=True):
            name = ""
            with suppress(psutil.NoSuchProcess):
                name = " ".join(process.cmdline())
            if name.startswith(kind) and process.pid not in found:
                process.kill()
                found.append(process.pid)
                break
    return found


# Small parts, and files that take a while: what is killed is killed in the middle.
@contextmanager
def in_small_parts(folder: str | Path) -> Iterator[None]:
    """At least a hundred of them, of 16 pictures or more each."""
    count = sum(1 for _ in Path(folder).rglob("*.png"))
    had = scale.LARGEST_UNIT
    scale.LARGEST_UNIT = min(had, max(16, count // 100))
    try:
        yield
    finally:
        scale.LARGEST_UNIT = had


def lost_worker(artifact: Path, folder: Path, output: Path) -> dict[str, Any]:
    """One that scores and one that decodes are killed."""
    gone: list[int] = []
    tell = at(0.3, lambda: gone.extend(killed("ray::MapWorker", "ray::MapBatches(Decoding)")))
    with nodes(2) as (cluster, _), in_small_parts(folder):
        how = {"address": cluster.address, "num_workers": 2, "filesystem": Slow()}
        scale.predict(artifact, folder, output, progress=tell, **how)
    return {"killed": len(gone)}


def lost_node(artifact: Path, folder: Path, output: Path) -> dict[str, Any]:
    """A machine of three is gone."""
    with nodes(3) as (cluster, others), in_small_parts(folder):
        tell = at(0.3, lambda: cluster.remove_node(others[-1], allow_graceful=False))
        how = {"address": cluster.address, "num_workers": 3, "filesystem": Slow()}
        scale.predict(artifact, folder, output, progress=tell, **how)
        return {"nodes_left": len(cluster.list_all_nodes())}


_DRIVER = """if True:
    import sys
    import scale as bench
    def tell(stage, rows, total):
        print(rows if stage == "scoring" else 0, flush=True)
    from blemish.scale import output
    output.SECONDS_PER_FILE = 0.0
    with bench.in_small_parts(sys.argv[2]):
        bench.scale.predict(
            *sys.argv[1:4], num_workers=2, resume=True, progress=tell, filesystem=bench.Slow()
        )
"""


def lost_driver(artifact: Path, folder: Path, output: Path) -> dict[str, Any]:
    """The process that was started is killed when a third of the rows have come."""
    command = [sys.executable, "-c", _DRIVER, str(artifact), str(folder), str(output)]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    how: dict[str, Any] = {"env": {**os.environ, "PYTHONPATH": os.pathsep.join(paths).rstrip(":")}}
    count = sum(1 for _ in folder.rglob("*.png"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **how) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if int(line) >= count / 3:
                break
        left = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
    first = len(pq.read_table(output, columns=["id"]))
    _, alive = psutil.wait_procs(left, timeout=30)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **how)
    return {"rows_when_killed": first, "processes_left_over": len(alive)}


def hostile(artifact: Path, folder: Path, output: Path) -> dict[str, Any]:
    """As it is: some of the pictures are damaged."""
    done = scale.predict(artifact, folder, output, num_workers=2)
    return {"failed": done.failed}


def slow(artifact: Path, folder: Path, output: Path) -> dict[str, Any]:
    """Files take a while to be opened: decoding waits for many at once."""
    began: list[float] = []

    def tell(stage: str, rows: int, total: int) -> None:
        if stage == "scoring":
            began.append(time.monotonic())

    how: dict[str, Any] = {"num_workers": 1, "filesystem": Slow()}
    done = scale.predict(artifact, folder, output, progress=tell, **how)
    seconds = max(began[-1] - began[0], 1e-9)
    waited = _DELAY * done.pictures
    return {"seconds_of_opening": waited, "seconds": seconds, "at_once": waited / seconds}


def rows(artifact: Path, table: Path, output: Path) -> dict[str, Any]:
    """As it is: how the memory grows with the rows."""
    told = _spent("ray", artifact, table, output)
    return {
        "images_per_second": told["rows"] / told["seconds"],
        "memory_mib": told["memory"],
        "memory_of_all_mib": told["all"],
    }


_MEASURED = """if True:
    import json, os, sys, time
    import psutil
    here, marks = psutil.Process(), []
    def of_all():
        found = 0
        for one in [here, *here.children(recursive=True)]:
            try:
                found += one.memory_full_info().pss  # what several share counts once
            except psutil.Error:
                pass
        return found / 2**20
    def spent():
        found = here.cpu_times()
        total = found.user + found.system
        for one in here.children(recursive=True):
            try:
                told = one.cpu_times()
                total += told.user + told.system
            except psutil.NoSuchProcess:
                pass
        return total
    def tell(stage, rows, total):
        tenth = rows * 10 // total if total else 0
        if stage == "scoring" and (not marks or tenth > marks[-1]["tenth"]):
            memory = here.memory_info().rss / 2**20
            now = time.monotonic()
            mark = dict(tenth=tenth, rows=rows, clock=now, cpu=spent(), memory=memory)
            marks.append({**mark, "all": of_all()})
    kind, artifact, folder, output = sys.argv[1:]
    began = time.monotonic()
    if kind == "ray":
        from blemish.scale import predict
        predict.predict(artifact, folder, output, num_workers=2, threads=1, progress=tell)
    else:
        import blemish
        from blemish.data.folder import search
        from blemish.report.journal import row_of
        os.makedirs(output)
        pictures = search([folder]).pictures
        found = blemish.load(artifact, threads=2)
        with open(f"{output}/rows.jsonl", "w") as file:
            for rows, one in enumerate(found.predict_many(pictures), start=1):
                file.write(json.dumps(row_of(one)) + "\\n")
                tell("scoring", rows, len(pictures))
    last = marks[-1]
    told = dict(rows=last["rows"], seconds=last["clock"] - began, cpu=last["cpu"])
    for kind in ("memory", "all"):
        told[kind] = [round(mark[kind]) for mark in marks]
    print(json.dumps(told))
"""


def _spent(kind: str, artifact: Path, folder: Path, output: Path) -> dict[str, Any]:
    """Rows, seconds, processor seconds and memory of one process and those that it started."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", _MEASURED, kind, str(artifact), str(folder), str(output)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def throughput(artifact: Path, folder: Path, output: Path, rounds: int = 2) -> dict[str, Any]:
    """Both in turns."""
    few = made(output.with_name("few"), 64, seed=2)
    rates: dict[str, list[float]] = {"ray": [], "plain": []}
    costs: dict[str, list[float]] = {"ray": [], "plain": []}
    whole: dict[str, list[float]] = {"ray": [], "plain": []}
    memory: list[float] = []
    for number in range(rounds):
        for kind in rates:
            place = output if (kind, number) == ("ray", 0) else Path(f"{output}-{kind}-{number}")
            start = _spent(kind, artifact, few, Path(f"{output}-few-{kind}-{number}"))
            told = _spent(kind, artifact, folder, place)
            rows = told["rows"] - start["rows"]
            rates[kind].append(rows / max(told["seconds"] - start["seconds"], 1e-9))
            costs[kind].append((told["cpu"] - start["cpu"]) / rows)
            whole[kind].append(told["seconds"])
            memory = told["memory"] if kind == "ray" else memory
    mean = {kind: float(np.mean(found)) for kind, found in rates.items()}
    cost = {kind: float(np.mean(found)) for kind, found in costs.items()}
    return {
        "images_per_second": mean["ray"],
        "predict_images_per_second": mean["plain"],
        "throughput_ratio": mean["ray"] / mean["plain"],
        "processor_seconds_per_image": cost["ray"],
        "predict_processor_seconds_per_image": cost["plain"],
        "processor_ratio": cost["plain"] / cost["ray"],
        "seconds": whole["ray"],
        "predict_seconds": whole["plain"],
        "memory_mib": memory,
    }


CASES: dict[str, Callable[[Path, Path, Path], dict[str, Any]]] = {
    "throughput": throughput,
    "worker": lost_worker,
    "node": lost_node,
    "driver": lost_driver,
    "hostile": hostile,
    "slow": slow,
    "rows": rows,
}


def measured(case: str, artifact: Path, folder: Path, output: Path) -> dict[str, Any]:
    """The row of a case."""
    expected = known(artifact, folder)
    began = time.monotonic()
    told = CASES[case](artifact, folder, output)
    seconds = time.monotonic() - began
    return {"case": case, "pictures": len(expected), "case_seconds": seconds, **told,
            **compared(output, expected)}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--artifact", type=Path, help="[default: one that is fitted here]")
    parser.add_argument("--method", default="padim")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    commit, dirty = checkout()
    failed, machine = False, hardware(torch.device("cpu"))
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        folder = Path(name)
        how = (options.method, options.backbone, options.side)
        artifact = options.artifact or fitted(folder, *how)
        whole = (
            folder / "whole" if options.cases == ["rows"] else made(folder / "whole", options.count)
        )
        for case in options.cases:
            pictures = whole
            if case == "rows":
                pictures = listed(made(folder / "table" / "few", 1000), options.count)
            if case == "hostile":
                pictures = made(folder / "damaged", options.count, damaged=0.01)
            row = measured(case, artifact, pictures, folder / case)
            conditions = {
                **{"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit},
                **{"dirty": dirty, "device": machine, "pyarrow": pa.__version__},
                **{"method": how[0], "backbone": how[1], "image_size": how[2]},
            }
            print(json.dumps(row, indent=2), flush=True)
            if options.results:
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**conditions, **row}) + "\n")
            failed |= any(row[what] for what in ("missing", "doubled", "wrong"))
    return 1 if failed else 0


if __name__ == "__main__":
    import scale as itself  # workers find `Slow` in a module by its name

    sys.exit(itself.main())
