"""Speed and memory of blemish on this machine: one JSON line per measurement.

    python benchmarks/speed.py backbone predict fit memory help dropping --output speed.jsonl

`backbone`: images/s of the bare backbone up to the last layer that detectors use, and to its end.
`predict`: images/s of `Detector.predict_many` with heatmaps at the original size, decoding
included. `fit`: seconds for PatchCore on the 209 pictures of bottle. `memory`: peak memory of a
fit on 200 and on 2,000 pictures. `help`: seconds of `blemish --help`. `dropping`: what APMask's
student costs forward and backward, with patches dropped and without, for one view of 16 pictures;
on a GPU where there is one (the others run on the CPU). Every measurement runs in a process of its
own. Needs the offline extra, and BLEMISH_DATA (bottle) except for `backbone`, `help` and
`dropping`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BACKBONE = "focus_vits14"
SIZES = (224, 448)
PRECISIONS = ("fp32", "bf16")
MASK_RATIOS = (0.15, 0.3, 0.5)
# Of `dropping`: it goes on until it has as many, and has taken as long.
PAIRS, LEAST_SECONDS = 7, 10.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", choices=list(CASES))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(CASES[options.what[0]](**json.loads(options.case))))
        return
    for what in options.what:
        for case in cases(what):
            command = [sys.executable, __file__, what, "--case", json.dumps(case)]
            answer = subprocess.run(
                command, check=True, capture_output=True, text=True
            ).stdout.splitlines()[-1]
            row = {"what": what, **case, **json.loads(answer), **conditions(what)}
            print(json.dumps(row), flush=True)
            if options.output:
                options.output.parent.mkdir(parents=True, exist_ok=True)
                with options.output.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def cases(what: str) -> list[dict[str, Any]]:
    if what in ("backbone", "predict"):
        return [
            {"size": size, "precision": precision} for size in SIZES for precision in PRECISIONS
        ]
    if what == "fit":
        return [
            {"size": size, "calibrate": calibrate} for size in SIZES for calibrate in (False, True)
        ]
    if what == "memory":
        return [{"count": 200}, {"count": 2000}]
    if what == "dropping":
        return [
            {"view": view, "precision": precision, "mask_ratio": ratio}
            for view, precision, ratio in product(("global", "local"), PRECISIONS, MASK_RATIOS)
        ]
    return [{}]


def conditions(what: str) -> dict[str, Any]:
    from blemish.bench import conditions
    from blemish.compute import pick_device

    commit, dirty = conditions.checkout()
    device = pick_device("auto" if what == "dropping" else "cpu")
    return {"commit": commit, "dirty": dirty, "device": conditions.hardware(device)}


def bottle() -> list[Path]:
    root = Path(os.environ["BLEMISH_DATA"]) / "mvtec/bottle/train/good"
    return sorted(root.iterdir())


def backbone(size: int, precision: str) -> dict[str, Any]:
    import torch

    from blemish.backbones import build
    from blemish.compute import pick_precision

    network = build(BACKBONE).to(pick_precision(precision, torch.device("cpu")))
    images = torch.randn(8, 3, size, size)
    found = {}
    with torch.inference_mode():
        for name, layers in (
            ("images_per_second", ()),
            ("images_per_second_all_layers", (network.depth,)),
        ):
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
        "patchcore",
        paths[:40],
        backbone=BACKBONE,
        image_size=size,
        precision=precision,
        calibration_fraction=0,
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
    detector = blemish.fit(
        "patchcore", bottle(), backbone=BACKBONE, image_size=size, calibration_fraction=fraction
    )
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "pictures": detector.manifest["data"]["count"],
        "bank": len(detector.method.bank),
    }


def memory(count: int) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    import blemish
    from blemish.bench import conditions

    noise = np.random.default_rng(0)
    originals = bottle()
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):  # every picture is another one: a copy with noise
            with Image.open(originals[index % len(originals)]) as image:
                pixels = np.asarray(image.convert("RGB").resize((256, 256)), dtype=np.int16)
            pixels = np.clip(pixels + noise.integers(-12, 13, pixels.shape), 0, 255).astype(
                np.uint8
            )
            Image.fromarray(pixels).save(Path(folder) / f"{index:05d}.png", compress_level=1)
        start = time.perf_counter()
        blemish.fit("patchcore", folder, backbone=BACKBONE, image_size=224)
        return {
            "seconds": round(time.perf_counter() - start, 1),
            "peak_memory_mib": conditions.peak_memory_mib(),
        }


def help_() -> dict[str, Any]:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(
            [Path(sys.executable).with_name("blemish"), "--help"], check=True, capture_output=True
        )
        times.append(time.perf_counter() - start)
    return {"seconds": round(sorted(times)[2], 3)}


def dropping(view: str, precision: str, mask_ratio: float) -> dict[str, Any]:
    """The student's forward and backward pass, through the head to the loss, with patches dropped
    and with all.

    The local views of a picture go through together, as they do in pre-training; seconds and bytes
    are by view. The two kinds of pass alternate, and the ratios of time are medians over the pairs,
    so that a machine that slows down cancels out. `cores_used` below `threads` shows that it was
    shared: then `processor_ratio`, of the processor's time (on the CPU only), tells more than
    `seconds_ratio`, of the clock's. `bytes` is what a pass needs beyond the weights and the views:
    on CUDA its peak, elsewhere what is kept for the backward pass, which is what dropping saves.
    """
    passes = Passes(view, precision, mask_ratio)
    passes.seconds(None), passes.seconds(passes.drawn())  # warm-up
    unmasked: list[tuple[float, float]] = []
    masked: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(masked) < PAIRS or time.perf_counter() - started < LEAST_SECONDS:
        keep = passes.drawn()
        unmasked.append(passes.seconds(None))
        masked.append(passes.seconds(keep))
    whole, fewer = (
        statistics.median(clock for clock, _ in times) / passes.views
        for times in (unmasked, masked)
    )
    by_clock, by_processor = (
        statistics.median(
            after[which] / before[which] for before, after in zip(unmasked, masked, strict=True)
        )
        for which in (0, 1)
    )
    passed, worked = (sum(times) for times in zip(*unmasked, *masked, strict=True))
    all_bytes, fewer_bytes = (passes.needed(it) / passes.views for it in (None, keep))
    height, width = passes.images.shape[-2:]
    return {
        "pictures": len(passes.targets),
        "views": passes.views,
        "patches": height * width // passes.student.backbone.stride**2,
        "kept": keep.shape[1],
        "seconds_unmasked": round(whole, 5),
        "seconds": round(fewer, 5),
        "seconds_ratio": round(by_clock, 4),
        "processor_ratio": round(by_processor, 4) if passes.device.type == "cpu" else None,
        "bytes_unmasked": round(all_bytes),
        "bytes": round(fewer_bytes),
        "bytes_ratio": round(fewer_bytes / all_bytes, 4),
        "pairs": len(masked),
        "cores_used": round(worked / passed, 2),
    }


class Passes:
    """APMask's student and views of random pixels, to be passed through it."""

    def __init__(self, view: str, precision: str, mask_ratio: float) -> None:
        import torch

        from blemish.backbones import build
        from blemish.compute import pick_device, pick_precision
        from blemish.methods.apmask import APMask, APMaskConfig

        self.device = pick_device("auto")
        self.type = pick_precision(precision, self.device)
        self.config = APMaskConfig(backbone=BACKBONE, masking="random", mask_ratio=mask_ratio)
        self.student = APMask(self.config, build(BACKBONE)).to(self.device).train()
        self.student.backbone.requires_grad_(True)
        few = view == "global"
        self.views = 1 if few else self.config.local_views
        size = self.student.global_size if few else self.student.local_size
        pictures = self.config.train_batch_size
        self.images = torch.randn(self.views * pictures, 3, *size, device=self.device)
        drawn = torch.randn(pictures, self.config.prototypes, device=self.device)
        self.targets = drawn.softmax(1)

    def drawn(self) -> Tensor:
        """Which patches are kept."""
        keep = self.student.kept(self.images)
        assert keep is not None
        return keep

    def loss(self, keep: Tensor | None) -> Tensor:
        import torch

        from blemish.losses.clustering import multi_view
        from blemish.methods.selfsupervised import look

        student, kind = self.student, self.device.type
        half = self.type == torch.bfloat16
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=half):
            features = look(student.backbone, student.head, self.images, keep)[1]
            predictions = (student.head.scores(features) / self.config.temperature).log_softmax(1)
            return multi_view(self.targets, predictions.split(len(self.targets)))

    def seconds(self, keep: Tensor | None) -> tuple[float, float]:
        """By the clock, and of the processor."""
        import torch

        self.student.zero_grad(set_to_none=True)
        getattr(torch, self.device.type).synchronize()
        start, worked = time.perf_counter(), time.process_time()
        self.loss(keep).backward()
        getattr(torch, self.device.type).synchronize()
        return time.perf_counter() - start, time.process_time() - worked

    def needed(self, keep: Tensor | None) -> int:
        """Bytes."""
        import torch

        if self.device.type == "cuda":
            self.student.zero_grad(set_to_none=True)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.seconds(keep)
            return torch.cuda.max_memory_allocated() - before
        given = (self.images, self.targets, *self.student.parameters())
        there = {each.untyped_storage().data_ptr() for each in given}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            reached = self.loss(keep)  # holds what was noted, so that no address is used twice
        del reached
        return sum(size for address, size in kept.items() if address not in there)


CASES = {
    "backbone": backbone,
    "predict": predict,
    "fit": fit,
    "memory": memory,
    "help": help_,
    "dropping": dropping,
}

if __name__ == "__main__":
    main()
