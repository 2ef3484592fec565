"""What needs a GPU: rows by the papers' own schedules, and how fast methods train and score.

    python benchmarks/gpu.py rows PICTURES OUT --seconds 480 [--only agpnet,atacnet] [--jobs 8]
    python benchmarks/gpu.py speed PICTURES OUT --seconds 60

PICTURES is the folder of the data sets (what BLEMISH_DATA names; ELPV comes from its package), OUT
gets `rows.jsonl` and `speed.jsonl`. Runs are made `--jobs` at a time, as one alone leaves most of a
GPU idle; their times are then no measure of one alone. What is not done after `--seconds` is lost;
a second call makes what the files do not hold. `gpu.sh` calls this, after the tests.

`speed` is of one method at a time, of pictures of noise: training from pictures that are decoded
already, and `score` alone, of pictures that lie on the GPU, to scores and maps in main memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import blemish
from blemish.bench import conditions
from blemish.bench import run as bench
from blemish.bench.plan import Run, data_sets, plan
from blemish.bench.suites import Entry
from blemish.compute import pick_device
from blemish.detector.fit import configure
from blemish.errors import BlemishError
from blemish.methods import method_class

FOCUS, LITE = ("backbone=focus_vits14",), ("backbone=efficientnet_lite0",)
FROZEN, LONG = (*LITE, "extractor_rate=0"), (*FOCUS, "epochs=100")
APMASK = ("pretraining=apmask", "pretraining_epochs=100")
RIVALS = ("dinomaly", "vitad", "rd4ad", "simplenet", "uniad", "efficientad", "draem")
ATAC, DEVNET, CLASSIFIER = "paper", "paper-devnet", "paper-classifier"
TILE, SCREW, BOTTLE, MEDICAL = "magnetic_tile", "screw", "bottle", ("brain_mri", "elpv")
ALL = ("bottle", "screw", "magnetic_tile", "brain_mri", "elpv", "nih_chest_xray")
SEEDS = (0, 1, 2)
SMALL = (*FOCUS, "image_size=224")
# Part -> what is measured, in order: method, recipe, settings, known defects, data sets, seeds.
Line = tuple[str, str, tuple[str, ...], int | None, tuple[str, ...], tuple[int, ...]]
PARTS: dict[str, tuple[Line, ...]] = {
    "agpnet": (
        ("agpnet", "paper", FOCUS, None, (BOTTLE, SCREW, TILE), (0,)),
        ("agpnet", "paper", (*FOCUS, "layers=2,4,6,8"), None, (SCREW, BOTTLE), (0,)),
    ),
    "guided": (("guided", "paper-bmvc", FOCUS, None, (SCREW, TILE), (0,)),),
    "best": (
        ("guided", "best", FOCUS, None, (TILE, SCREW), (0,)),
        ("guided", "best", LONG, None, (SCREW,), (0,)),
        ("agpnet", "best", FOCUS, None, (SCREW, BOTTLE), (0,)),
    ),
    "apmask": (("guided", "best", (*FOCUS, *APMASK), None, (TILE,), (0,)),),
    "atacnet": (
        *(("atacnet", recipe, LITE, 10, MEDICAL, (0,)) for recipe in (ATAC, DEVNET, CLASSIFIER)),
        ("atacnet", ATAC, LITE, 10, (SCREW, BOTTLE), (0,)),
        *(("atacnet", recipe, FROZEN, 10, MEDICAL, (0,)) for recipe in (ATAC, DEVNET)),
        *(("atacnet", recipe, LITE, 10, MEDICAL, (1, 2)) for recipe in (ATAC, DEVNET, CLASSIFIER)),
        ("atacnet", ATAC, FROZEN, 10, MEDICAL, (1, 2)),
    ),
    "memory": (("patchcore", "best", FOCUS, None, (TILE, SCREW, BOTTLE), (0,)),),
    "rivals": (
        *((name, "best", FOCUS, None, (SCREW, TILE, BOTTLE), (0,)) for name in RIVALS),
        ("dra", "best", FOCUS, 10, MEDICAL, (0,)),
        ("ahl", "best", FOCUS, 10, MEDICAL, (0,)),
    ),
    "equal": (  # rows for benchmarks/results/equal.jsonl
        ("guided", "best", FOCUS, None, ALL, SEEDS),
        *((name, "best", SMALL, None, ALL, SEEDS) for name in ("agpnet", *RIVALS)),
        *((name, "best", SMALL, None, ALL, SEEDS) for name in ("patchcore", "knn", "padim")),
        *((name, "best", SMALL, 10, ALL, SEEDS) for name in ("dra", "ahl", "lda")),
        ("atacnet", "best", FOCUS, 10, ALL, SEEDS),
    ),
}
BUDGETS = {"equal": 12.0}  # TFLOP of training
BATCHES = (1, 64)
Plain = argparse.RawDescriptionHelpFormatter
SPEED = (
    *(("agpnet", "paper", FOCUS), ("guided", "paper-bmvc", FOCUS), ("atacnet", ATAC, LITE)),
    *(("guided", "best", FOCUS), ("agpnet", "best", FOCUS), ("atacnet", DEVNET, LITE)),
    ("guided", "paper-aaai", (*FOCUS, "pretraining=none")),
    *((method, "best", FOCUS) for method in ("lda", "patchcore", "knn", "padim", "spade")),
    *((method, "best", FOCUS) for method in (*RIVALS, "dra", "ahl")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Plain)
    parser.add_argument("what", choices=["rows", "speed"])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--only", default=",".join(PARTS), help="parts of `rows`, in their order")
    parser.add_argument("--sets", help="only these data sets, with commas")
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--set", action="append", default=[], help="of all runs: to rehearse")
    parser.add_argument("--weights", help="random: to rehearse, or for the speed alone")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, options.seconds)
    try:
        {"rows": rows, "speed": speed}[options.what](options)
    except KeyboardInterrupt:
        print("stopped: the time is over", flush=True)


def rows(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        runs = list(planned(options, Path(scratch)))
        made = bench.run(runs, options.out / "rows.jsonl", jobs=options.jobs, progress=told)
    for row in made:
        if row["status"] != "ok":
            print(f"{row['method']} on {row['data']} failed: {row['error']}", flush=True)


def told(what: str, done: int, total: int) -> None:
    print(f"{time.strftime('%X')}, {done} of {total} done: {what}", flush=True)


def planned(options: argparse.Namespace, scratch: Path) -> Iterator[Run]:
    """The runs whose data set is there."""
    for part in options.only.split(","):
        for method, recipe, settings, count, names, seeds in PARTS[part]:
            for name in names:
                if options.sets and name not in options.sets.split(","):
                    continue
                place = options.pictures / name
                try:
                    data = data_sets(
                        [place if place.is_dir() else name], root=options.pictures, scratch=scratch
                    )
                except BlemishError as error:
                    print(f"{part}: left out: {error}", flush=True)
                    continue
                line = [Entry(method=method, recipe=recipe, anomaly_count=count)]
                changed = (*settings, *options.set)
                yield from plan(
                    line, data, seeds, assignments=changed, weights=options.weights,
                    compute_budget=BUDGETS.get(part),
                )  # fmt: skip


def speed(options: argparse.Namespace) -> None:
    """What `speed.jsonl` does not hold: of each method how fast it trains and scores."""
    file = options.out / "speed.jsonl"
    known = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    commit, dirty = conditions.checkout()
    here = {"commit": commit, "dirty": dirty, "device": conditions.hardware(pick_device("auto"))}
    for what, (method, recipe, settings) in product(("train", "score"), SPEED):
        about = {"what": what, "method": f"{method} ({recipe})"}
        if any(about.items() <= row.items() for row in known):
            continue
        try:
            rows = list(speeds(what, method, recipe, settings, options.weights))
        except (BlemishError, RuntimeError) as error:
            print(f"{about}: {error}", flush=True)
            continue
        with file.open("a") as lines:
            lines.writelines(json.dumps(about | row | here) + "\n" for row in rows)
        print(*(about | row for row in rows), sep="\n", flush=True)


def speeds(
    what: str, method: str, recipe: str, settings: tuple[str, ...], weights: str | None
) -> Iterator[dict[str, Any]]:
    noise = np.random.default_rng(0)
    good, bad = (list(noise.integers(0, top, (20, 256, 256, 3), np.uint8)) for top in (160, 255))
    config = configure(method, recipe=recipe, assignments=settings)
    if what == "train" and not config.learns_by_gradient:
        return
    if config.learns_by_gradient:
        config = dataclasses.replace(config, epochs=1, min_steps=80 if what == "train" else 2)
    taught = method_class(method).takes_defects
    detector = blemish.fit(
        method, good, config=config, anomalies=bad[:4] if taught else None,
        weights=weights, calibration_fraction=0,
    )  # fmt: skip
    size = f"{detector.preprocessing.height}×{detector.preprocessing.width}"
    about = {"backbone": config.backbone, "weights": weights or "", "size": size}
    if what == "train":
        made = detector.manifest
        about |= {"precision": made["precision"], "batch": config.train_batch_size}
        yield about | {"images_per_second": round(made["training"]["pictures_per_second"], 1)}
        return
    precisions = (
        ("bf16", "fp16", "fp32") if detector.method.backbone.device.type == "cuda" else ("fp32",)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = detector.save(Path(folder) / "part.blemish")
        for precision, batch in product(precisions, BATCHES):
            found = timed(blemish.load(path, precision=precision), batch)
            yield about | {"precision": precision, "batch": batch} | found


def timed(detector: blemish.Detector, batch: int) -> dict[str, float]:
    """Of `score` over at least 0.3 s; a GPU is waited for every time."""
    size = (detector.preprocessing.height, detector.preprocessing.width)
    images = torch.randn(batch, 3, *size, device=detector.device)
    seconds: list[float] = []
    gpu = detector.method.backbone.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        while len(seconds) < 13 or sum(seconds) < 0.3:
            started = time.perf_counter()
            scores = detector.method.score(images)
            scores.image.cpu(), scores.maps.cpu()
            seconds.append(time.perf_counter() - started)
    middle, late = map(float, np.percentile(seconds[3:], [50, 95]))
    peak = torch.cuda.max_memory_allocated() / 2**20 if gpu else 0.0
    latency = {"latency_p50_ms": round(1000 * middle, 2), "latency_p95_ms": round(1000 * late, 2)}
    rate = {"images_per_second": round(batch / middle, 1)}
    return rate | latency | {"peak_gpu_memory_mib": round(peak, 1)}


if __name__ == "__main__":
    main()
