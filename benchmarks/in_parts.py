"""Detectors learned in parts beside those learned from all pictures at once: how good both are.

    BLEMISH_DATA=… python benchmarks/in_parts.py screw magnetic_tile --orders 0,1,2 \\
        --methods patchcore,knn,padim --results benchmarks/results/in_parts.jsonl

Two rows for each data set, method, seed and order of the training pictures, `way` "whole" and
"parts", with the same settings: `blemish.fit`, and `blemish.scale.learning.fit` in one process,
which makes what any number of workers make. Order 0 is that of the data set, the others are drawn:
a coreset that is made of a stream depends on it, whole or in parts. `seconds` are by the clock of
the processor.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import torch

import blemish
from blemish import config as configs
from blemish.bench.conditions import checkout, hardware
from blemish.bench.plan import data_sets
from blemish.cli.console import complain
from blemish.data import layouts
from blemish.detector.evaluate import evaluate
from blemish.detector.predict import Detector
from blemish.scale import learning
from blemish.types import NORMAL, Sample

SIDE = 224


def rows(options: argparse.Namespace, name: str, path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a data set."""
    ways: dict[str, Callable[..., Detector]] = {"whole": blemish.fit, "parts": learning.fit}
    for method in options.methods:
        for seed in options.seeds:
            settings: dict[str, Any] = {"seed": seed, "precision": "fp32", "image_size": SIDE}
            settings |= {"backbone": options.backbone}
            if method != "padim":
                settings["bank_size"] = options.bank_size
            for order, (way, fit) in product(options.orders, ways.items()):
                good = ordered(path, order)
                began = time.process_time()
                detector = fit(method, good, **settings)
                seconds = time.process_time() - began
                found = evaluate(detector, path)
                told, threshold = detector.record.in_parts, detector.threshold
                yield {
                    **{"data": name, "way": way, "method": method, "order": order, **settings},
                    **{"seconds": seconds, "train": detector.record.data.count},
                    "in_parts": None if told is None else configs.to_dict(told),
                    "threshold": None if threshold is None else threshold.value,
                    **{key: found.counts[key] for key in ("normal", "anomalous")},
                    **{key: getattr(found, key) for key in ("image_auroc", "pixel_auroc", "aupro")},
                    "confusion": found.confusion,
                }


def ordered(path: Path, order: int) -> list[Sample]:
    """The good training pictures of a data set."""
    good = [one for one in layouts.read(path).train() if one.label == NORMAL]
    if order:
        random.Random(order).shuffle(good)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", nargs="+")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=["patchcore"])
    parser.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))], default=[0])
    parser.add_argument("--orders", type=lambda text: [*map(int, text.split(","))], default=[0])
    parser.add_argument("--backbone", default="focus_vits14")
    parser.add_argument("--bank-size", type=int, default=4000)
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    commit, dirty = checkout()
    with tempfile.TemporaryDirectory(prefix="blemish-") as scratch:
        for name, path in data_sets(options.data, root=None, scratch=Path(scratch)).items():
            for row in rows(options, name, path):
                head = {
                    **{"what": "in_parts", "date": datetime.now(UTC).isoformat(timespec="seconds")},
                    **{"commit": commit, "dirty": dirty, "device": hardware(torch.device("cpu"))},
                }
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**head, **row}) + "\n")
                told = {key: row[key] for key in ("way", "method", "order", "image_auroc", "aupro")}
                complain(f"{name}: {told} in {row['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
