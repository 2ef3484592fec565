"""Speed and memory of blemish on this machine: one JSON line per measurement.

    python benchmarks/speed.py backbone predict fit memory help --output speed.jsonl

`backbone`: images/s of the bare backbone up to the last layer that detectors use, and to its end. `predict`: images/s
of `Detector.predict_many` with heatmaps at the original size, decoding included. `fit`: seconds for PatchCore on the
209 pictures of bottle. `memory`: peak memory of a fit on 200 and on 2,000 pictures. `help`: seconds of `blemish
--help`. Every measurement runs in a process of its own. Needs BLEMISH_DATA (bottle) and the offline extra.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BACKBONE = "focus_vits14"
SIZES = (224, 448)
PRECISIONS = ("fp32", "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["backbone", "predict", "fit", "memory", "help"])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(CASES[options.what[0]](**json.loads(options.case))))
        return
    for what in options.what:
        for case in cases(what):
            command = [sys.executable, __file__, what, "--case", json.dumps(case)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            row = {"what": what, **case, **json.loads(answer), **conditions()}
            print(json.dumps(row), flush=True)
            if options.output:
                options.output.parent.mkdir(parents=True, exist_ok=True)
                with options.output.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def cases(what: str) -> list[dict[str, Any]]:
    if what in ("backbone", "predict"):
        return [{"size": size, "precision": precision} for size in SIZES for precision in PRECISIONS]
    if what == "fit":
        return [{"size": size, "calibrate": calibrate} for size in SIZES for calibrate in (False, True)]
    if what == "memory":
        return [{"count": 200}, {"count": 2000}]
    return [{}]


def conditions() -> dict[str, Any]:
    import torch

    from blemish import benchmark

    commit, dirty = benchmark.checkout()
    return {"commit": commit, "dirty": dirty, "device": benchmark.hardware(torch.device("cpu"))}


def bottle() -> list[Path]:
    root = Path(os.environ["BLEMISH_DATA"]) / "mvtec/bottle/train/good"
    return sorted(root.iterdir())


def backbone(size: int, precision: str) -> dict[str, Any]:
    import torch

    from blemish.backbones import build
    from blemish.compute import PRECISIONS as TYPES

    network = build(BACKBONE).to(TYPES[precision])
    images = torch.randn(8, 3, size, size)
    found = {}
    with torch.inference_mode():
        for name, layers in (("images_per_second", ()), ("images_per_second_all_layers", (network.depth,))):
            network(images, layers)
            times = []
            for _ in range(5):
                start = time.perf_counter()
                network(images, layers)
                times.append(time.perf_counter() - start)
            found[name] = round(len(images) / sorted(times)[2], 2)
    return found


def predict(size: int, precision: str) -> dict[str, Any]:
    import blemish

    paths = bottle()
    detector = blemish.fit(
        "patchcore", paths[:40], backbone=BACKBONE, image_size=size, precision=precision, calibration_fraction=0
    )
    rest = paths[40:120]
    for result in detector.predict_many(rest[:8]):
        assert result.heatmap.shape == result.size
    start = time.perf_counter()
    for result in detector.predict_many(rest):
        assert result.heatmap.shape == result.size
    return {"images_per_second": round(len(rest) / (time.perf_counter() - start), 2)}


def fit(size: int, calibrate: bool) -> dict[str, Any]:
    import blemish

    start = time.perf_counter()
    fraction = None if calibrate else 0
    detector = blemish.fit("patchcore", bottle(), backbone=BACKBONE, image_size=size, calibration_fraction=fraction)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "pictures": detector.manifest["data"]["count"],
        "bank": len(detector.method.bank),
    }


def memory(count: int) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    import blemish
    from blemish import benchmark

    noise = np.random.default_rng(0)
    originals = bottle()
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):  # every picture is another one: a copy with noise
            with Image.open(originals[index % len(originals)]) as image:
                pixels = np.asarray(image.convert("RGB").resize((256, 256)), dtype=np.int16)
            pixels = np.clip(pixels + noise.integers(-12, 13, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(Path(folder) / f"{index:05d}.png", compress_level=1)
        start = time.perf_counter()
        blemish.fit("patchcore", folder, backbone=BACKBONE, image_size=224)
        return {"seconds": round(time.perf_counter() - start, 1), "peak_memory_mib": benchmark.peak_memory_mib()}


def help_() -> dict[str, Any]:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([Path(sys.executable).with_name("blemish"), "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return {"seconds": round(sorted(times)[2], 3)}


CASES = {"backbone": backbone, "predict": predict, "fit": fit, "memory": memory, "help": help_}

if __name__ == "__main__":
    main()
