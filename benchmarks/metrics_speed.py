"""Seconds and peak memory of exact pixel AUROC and AUPRO on synthetic maps; one JSON line per size.

    python benchmarks/metrics_speed.py
    python benchmarks/metrics_speed.py --case 272x256 --case 1000x512

Maps are smooth float32 fields with fine noise, masks cover 2 % of the pixels in blobs, and defects
score a little higher. Each size runs in a fresh process, so that its peak memory is its own; making
the pictures is not timed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time

import cv2
import numpy as np

from blemish.metrics.regions import PixelMetrics

DEFECTS = 0.02


def picture(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(map, mask) of side × side pixels."""

    def field(cells: int) -> np.ndarray:
        return cv2.resize(
            rng.standard_normal((cells, cells), dtype=np.float32),
            (side, side),
            interpolation=cv2.INTER_CUBIC,
        )

    blobs = field(12)
    mask = blobs > np.quantile(blobs, 1 - DEFECTS)
    return field(32) + 0.05 * rng.standard_normal((side, side), dtype=np.float32) + mask, mask


def measure(count: int, side: int) -> None:
    rng = np.random.default_rng(0)
    metrics = PixelMetrics()
    before, adding, busy = peak_mib(), 0.0, 0.0
    for _ in range(count):
        anomaly_map, mask = picture(rng, side)
        start, cpu = time.perf_counter(), time.process_time()
        metrics.add(anomaly_map, mask)
        adding, busy = adding + time.perf_counter() - start, busy + time.process_time() - cpu
    start, cpu = time.perf_counter(), time.process_time()
    result = metrics.compute()
    computing, busy = time.perf_counter() - start, busy + time.process_time() - cpu
    row = {
        "maps": count,
        "side": side,
        "seconds": round(adding + computing, 3),
        "seconds_add": round(adding, 3),
        "seconds_compute": round(computing, 3),
        "cpu_seconds": round(busy, 3),
        "peak_rss_mib": round(peak_mib()),
        "peak_rss_before_mib": round(before),
        "map_mib": round(count * side * side * 4 / 2**20),
        "pixel_auroc": result.pixel_auroc,
        "aupro": result.aupro,
    }
    print(json.dumps(row), flush=True)


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def case(text: str) -> tuple[int, int]:
    count, _, side = text.partition("x")
    return int(count), int(side)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--case",
        type=case,
        action="append",
        metavar="MAPSxSIDE",
        help="default: 272x256 and 1000x512",
    )
    for size in parser.parse_args().case or [(272, 256), (1000, 512)]:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=size)
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(1)
