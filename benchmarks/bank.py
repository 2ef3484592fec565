"""A memory bank compressed by measured loss: what it saves, and what it costs.

    python benchmarks/bank.py bottle screw --sizes 224,448 --losses 0,0.05 \\
        --results benchmarks/results/bank.jsonl

One row for each data set, size, `bank_loss` and engine. `--train` good pictures are learned from;
accuracy is that of PyTorch in fp32 on `--good` and `--bad` test pictures (exported files are
proven to say the same: `proof`). Times are of batches of prepared pictures through the engine
alone, all losses and engines of a data set and a size in turn in one process, the shortest of
`--repeats`; with one thread by the clock of the processor, which other work on the machine hardly
moves. `speed` is the ratio to the same engine with the first of the losses.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from closer import spread
from engines import best

import blemish
from blemish import config as configs
from blemish.bench.conditions import checkout, hardware
from blemish.bench.plan import data_sets
from blemish.cli.console import complain
from blemish.data import layouts
from blemish.detector.evaluate import evaluate
from blemish.detector.predict import Detector
from blemish.errors import BlemishError
from blemish.export import exporting
from blemish.machine import cpu_flags
from blemish.types import ANOMALOUS, NORMAL

_SUFFIX = {"onnxruntime": ".onnx", "openvino": ".xml"}
_ISA = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def rows(
    options: argparse.Namespace, name: str, path: Path, side: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """The rows of a data set at a size."""
    made: list[tuple[dict[str, Any], Detector]] = []
    for loss in options.losses:
        learned, fitted = learn(options, path, side, loss, folder / f"{name}-{side}-{loss}.blemish")
        for engine in options.engines:
            try:
                told, detector = opened(fitted, engine, options.threads)
            except BlemishError as error:
                complain(f"{name} {side} {loss} {engine}: {error}")
                continue
            row = {"data": name, "image_size": side, "bank_loss": loss, "engine": engine}
            made.append(({**row, **learned, **told}, detector))
    size = (options.batch, 3, made[0][1].preprocessing.height, made[0][1].preprocessing.width)
    ready = np.random.default_rng(0).normal(size=size).astype(np.float32)
    by_processor = options.threads == 1
    clock = time.process_time if by_processor else time.perf_counter
    work: list[Callable[[], Any]] = [partial(one.engine.run, ready) for _, one in made]
    taken = best(work, options.repeats, clock)
    first = {row["engine"]: each for (row, _), each in reversed([*zip(made, taken, strict=True)])}
    for (row, _), each in zip(made, taken, strict=True):
        yield {
            **row,
            **{"clock": "processor" if by_processor else "wall", "threads": options.threads},
            **{"batch": options.batch, "seconds_per_image": each / options.batch},
            "speed": first[row["engine"]] / each,
        }


def learn(
    options: argparse.Namespace, path: Path, side: int, loss: float, file: Path
) -> tuple[dict[str, Any], Path]:
    """A detector, and what its rows say of it."""
    dataset = layouts.read(path)
    good = [one.path for one in dataset.train() if one.label == NORMAL]
    began = time.process_time()
    detector = blemish.fit(
        options.method, spread(good, options.train), backbone=options.backbone, image_size=side,
        bank_loss=loss, neighbours=1, precision="fp32", device="cpu",
    )  # fmt: skip
    seconds = time.process_time() - began
    samples = [
        one
        for label, count in ((NORMAL, options.good), (ANOMALOUS, options.bad))
        for one in spread([each for each in dataset.test() if each.label == label], count)
    ]
    found = evaluate(detector, dataclasses.replace(dataset, samples=tuple(samples)))
    record = detector.record.compression
    return {
        **{"method": options.method, "backbone": options.backbone, "train": options.train},
        "fit_processor_seconds": seconds,
        "compression": None if record is None else configs.to_dict(record),
        "threshold": detector.threshold.value if detector.threshold else None,
        **{"good": options.good, "bad": options.bad, "confusion": found.confusion},
        **{key: getattr(found, key) for key in ("image_auroc", "pixel_auroc", "aupro")},
    }, detector.save(file)


def opened(fitted: Path, name: str, threads: int) -> tuple[dict[str, Any], Detector]:
    """A detector as an engine runs it, and what its row says of the file."""
    engine, _, precision = name.partition(":")
    told: dict[str, Any] = {"artifact_mib": fitted.stat().st_size / 2**20}
    if engine == "torch":
        return told, blemish.load(fitted, device="cpu", precision=precision)
    path = fitted.with_suffix(f".{precision}{_SUFFIX[engine]}")
    told["proof"] = exporting.export(fitted, path, precision=precision).proof.to_dict()
    files = [one for one in (path, path.with_suffix(".bin")) if one.exists()]
    told["export_mib"] = sum(one.stat().st_size for one in files) / 2**20
    return told, blemish.load(path, device="cpu", engine=engine, threads=threads)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(text: str) -> list[str]:
        return text.split(",")

    found.add_argument("data", nargs="+", help="as of `blemish bench --data`")
    found.add_argument("--method", default="patchcore")
    found.add_argument("--backbone", default="focus_vits14")
    found.add_argument("--sizes", type=names, default=["224", "448"])
    found.add_argument("--losses", type=lambda text: [*map(float, names(text))], default=[0, 0.05])
    every = ["torch:fp32", "torch:bf16", "onnxruntime:fp32", "openvino:fp32"]
    found.add_argument("--engines", type=names, default=every)
    found.add_argument("--train", type=int, default=40, help="pictures to learn from")
    found.add_argument("--good", type=int, default=20, help="good pictures to test on")
    found.add_argument("--bad", type=int, default=30, help="defective pictures to test on")
    found.add_argument("--batch", type=int, default=4)
    found.add_argument("--repeats", type=int, default=5)
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--results", type=Path, required=True)
    return found.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    commit, dirty = checkout()
    conditions = {
        "what": "bank",
        **{"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit},
        **{"dirty": dirty, "device": hardware(torch.device("cpu"))},
        "isa": [flag for flag in _ISA if flag in cpu_flags()],
    }
    with tempfile.TemporaryDirectory(prefix="blemish-") as scratch:
        for name, path in data_sets(options.data, root=None, scratch=Path(scratch)).items():
            for side in map(int, options.sizes):
                for row in rows(options, name, path, side, Path(scratch)):
                    with options.results.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps({**conditions, **row}) + "\n")
                    told = f"{row['bank_loss']:g} {row['engine']}: {row['speed']:.2f}"
                    complain(f"{name} {side} {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
