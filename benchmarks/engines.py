"""How fast each engine scores, what it costs, and whether it says the same.

    python benchmarks/engines.py patchcore padim agpnet guided --sizes 224,448 \\
        --engines torch:fp32,torch:bf16,onnxruntime:fp32,openvino:fp32,openvino:int8 \\
        --data screw,elpv --results benchmarks/results/engines.jsonl

One row for each method, size, engine and precision. Without `--data` detectors learn from pictures
of shapes that are made here, which says nothing of accuracy and all of speed.

`images_per_second` is of prepared batches (`--batch`) through the engine alone; `encoder_ratio` is
that divided by the same of the bare encoder, to the layers that the method reads, in the same
engine and precision; `torch_ratio` by the speed of `--base` (torch in fp32), and `predict_ratio` by
that of `Detector.predict_many` there, from decoded pictures to predictions. `p50_ms` and `p95_ms`
are of single prepared pictures, `first_seconds` of a fresh process from its start to the first
prediction. With one thread on a CPU the clock is the processor's (`clock`), which other work on the
machine hardly moves. Every figure is of the best of `--repeats` rounds, in which all engines of a
method take turns, so that the ratios are of the same minutes. int8 and bf16 graphs have thresholds
of their own; their proof stands in the row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import blemish
from blemish.bench.conditions import checkout, hardware, peak_memory_mib
from blemish.bench.plan import data_sets
from blemish.cli.console import complain
from blemish.data import layouts
from blemish.detector.evaluate import evaluate
from blemish.detector.predict import Detector
from blemish.engines import packages
from blemish.engines.base import Engine
from blemish.errors import BlemishError
from blemish.export import exporting
from blemish.machine import cpu_flags
from blemish.types import NORMAL

Clock = Callable[[], float]
SINGLE = 20  # pictures, one by one
_SUFFIX = {"onnxruntime": ".onnx", "openvino": ".xml"}
_ISA = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


class Encoder(nn.Module):
    """The part of a method that every picture goes through: pictures B 3 H W to features B D."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.method = detector.method

    def forward(self, images: Tensor) -> Tensor:
        seen = self.method.see(images)
        return torch.stack([tokens.float().mean((1, 2)) for tokens in seen.tokens], dim=1)


def pictures(count: int, side: int, seed: int) -> list[np.ndarray]:
    """Shapes on grained ground."""
    made = []
    for number in range(count):
        random = np.random.default_rng([seed, number])
        y, x = np.mgrid[:side, :side] / side
        picture = random.normal(90, 6, (side, side, 3))
        picture[np.hypot(x - 0.5, y - 0.5) < 0.3] += random.uniform(40, 60, 3)
        made.append(np.clip(picture, 0, 255).astype(np.uint8))
    return made


def encoder_model(detector: Detector, path: Path) -> Path:
    """The bare encoder as ONNX."""
    side = detector.preprocessing
    example = torch.zeros(2, 3, side.height, side.width)
    made = torch.onnx.export(
        Encoder(detector).eval(),
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=20,
        verbose=False,
    )
    assert made is not None
    made.save(path)
    return path


def bare(path: Path, engine: str, precision: str, device: str, threads: int) -> Callable[..., Any]:
    """What runs the bare encoder in an engine."""
    if engine == "onnxruntime":
        runtime = packages.onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        session = runtime.InferenceSession(str(path), options, providers=[provider])
        return lambda images: session.run(["features"], {"images": images})
    hint = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}[precision]
    model = packages.core().compile_model(
        str(path), "CPU", {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    )
    return lambda images: model(images)


def torch_bare(detector: Detector) -> Callable[..., Any]:
    encoder, device = Encoder(detector).eval(), detector.method.backbone.device

    def run(images: np.ndarray) -> Any:
        with torch.inference_mode():
            return encoder(torch.from_numpy(images).to(device)).cpu()

    return run


def best(work: Sequence[Callable[[], Any]], repeats: int, clock: Clock) -> list[float]:
    """The shortest time of each, all of them in turn, after a first turn that does not count."""
    times: list[list[float]] = [[] for _ in work]
    for turn in range(repeats + 1):
        for each, own in zip(work, times, strict=True):
            began = clock()
            each()
            if turn:
                own.append(clock() - began)
    return [min(own) for own in times]


def latencies(engine: Engine, image: np.ndarray, clock: Clock) -> tuple[float, float]:
    taken = []
    for _ in range(SINGLE):
        began = clock()
        engine.run(image[None])
        taken.append(1000 * (clock() - began))
    middle, late = np.percentile(taken, [50, 95])
    return float(middle), float(late)


def first_seconds(path: Path, picture: Path, device: str) -> float:
    """Of a fresh process, from its start to the first prediction."""
    code = "import sys, blemish; blemish.load(sys.argv[1], device=sys.argv[3]).predict(sys.argv[2])"
    began = time.perf_counter()
    command = [sys.executable, "-c", code, str(path), str(picture), device]
    subprocess.run(command, check=True)
    return time.perf_counter() - began


def detectors(
    fitted: Path, wanted: Sequence[str], options: argparse.Namespace, good: Sequence[Any], held: Any
) -> Iterator[tuple[str, Detector, Path, dict[str, Any]]]:
    """Each engine that can run it, with its file and what its row says of that."""
    for name in wanted:
        engine, _, precision = name.partition(":")
        path = fitted if engine == "torch" else fitted.with_suffix(f".{precision}{_SUFFIX[engine]}")
        told: dict[str, Any] = {}
        try:
            if engine != "torch":
                made = exporting.export(fitted, path, precision=precision, good=held)
                told = {"proof": made.proof.to_dict()}
            how = {"precision": precision} if engine == "torch" else {"engine": engine}
            detector = blemish.load(path, device=options.device, threads=options.threads, **how)
        except (BlemishError, ImportError) as error:
            complain(f"{name}: {error}")
            continue
        beside = path.with_suffix(".bin")
        size = path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)
        yield name, detector, path, {**told, "file_mib": round(size / 2**20, 1)}


def learned(
    options: argparse.Namespace, method: str, side: int, data: Path | None, folder: Path
) -> tuple[Detector, Path, Sequence[Any], Sequence[Any]]:
    """A detector of a method at a size, its file, the good pictures, and those of them that it did
    not learn from, which the graphs of other precisions are calibrated on."""
    good: Sequence[Any] = pictures(24, 300, 0)
    if data is not None:
        own = [one for one in layouts.read(data).train() if one.label == NORMAL]
        good = [one.path for one in own[:: max(1, len(own) // options.train)]]
    held = good[::4]
    kept = [one for one in good if not any(one is other for other in held)]
    pairs = (each.split("=", 1) for each in options.set)
    settings = {key: json.loads(value) for key, value in pairs}
    asked = {"backbone": options.backbone, "weights": options.weights, **settings}
    quick = {"epochs": 1} if method in ("agpnet", "guided") else {}
    scale = {"scales": (side,)} if method == "guided" else {}
    detector = blemish.fit(
        method, kept, image_size=side, precision="fp32", device=options.device,
        **{**quick, **scale, **asked},
    )  # fmt: skip
    return detector, detector.save(folder / f"{method}-{side}.blemish"), good, held


def rows(options: argparse.Namespace, method: str, side: int, data: Path | None, folder: Path):
    """The rows of a method at a size."""
    detector, fitted, good, held = learned(options, method, side, data, folder)
    side = detector.preprocessing.height  # rounded to what the backbone divides
    ready = np.random.default_rng(0).normal(size=(options.batch, 3, side, side)).astype(np.float32)
    cpu = blemish.load(fitted, device="cpu", precision="fp32")
    model = encoder_model(cpu, folder / f"{method}-{side}-encoder.onnx")
    found = list(detectors(fitted, options.engines, options, good, held))
    decoded = pictures(options.batch, side, 1)
    work: list[Callable[[], Any]] = []
    for name, each, _, _ in found:
        engine, _, precision = name.partition(":")
        run = (
            torch_bare(each)
            if engine == "torch"
            else bare(model, engine, precision, options.device, options.threads)
        )
        work += [
            lambda each=each: each.engine.run(ready),
            lambda run=run: run(ready),
            lambda each=each: list(each.predict_many(decoded, batch_size=options.batch)),
        ]
    by_processor = options.device == "cpu" and options.threads == 1
    clock = time.process_time if by_processor else time.perf_counter
    taken = best(work, options.repeats, clock)
    times = {name: taken[3 * at : 3 * at + 3] for at, (name, *_) in enumerate(found)}
    base = times.get(options.base)
    picture = folder / "one.png"
    if not picture.exists():
        from PIL import Image

        Image.fromarray(pictures(1, side, 2)[0]).save(picture)
    for name, each, path, told in found:
        whole, encoder, predicted = times[name]
        middle, late = latencies(each.engine, ready[0], clock)
        accuracy = {} if data is None else accuracy_of(each, data)
        yield {
            **{"method": method, "image_size": side, "engine": name, **told, **accuracy},
            **{"backbone": options.backbone, "batch": options.batch, "threads": options.threads},
            "clock": "processor" if by_processor else "wall",
            "images_per_second": options.batch / whole,
            "encoder_ratio": encoder / whole,
            "torch_ratio": None if base is None else base[0] / whole,
            "predict_ratio": None if base is None else base[2] / predicted,
            **{"p50_ms": middle, "p95_ms": late},
            "first_seconds": first_seconds(path, picture, options.device),
            "peak_memory_mib": peak_memory_mib(),
        }


def accuracy_of(detector: Detector, data: Path) -> dict[str, Any]:
    found = evaluate(detector, layouts.read(data))
    return {"data": data.name, **{
        name: getattr(found, name) for name in ("image_auroc", "pixel_auroc", "aupro")
    }, "confusion": found.confusion}  # fmt: skip


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("methods", nargs="+")
    parser.add_argument("--sizes", type=names, default=["224", "448"])
    parser.add_argument("--engines", type=names, default=["torch:fp32", "onnxruntime:fp32"])
    parser.add_argument("--data", type=names, default=[])
    parser.add_argument("--train", type=int, default=60)
    parser.add_argument("--base", default="torch:fp32")
    parser.add_argument("--backbone", default="focus_vits14")
    parser.add_argument("--weights", default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, required=True)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    commit, dirty = checkout()
    conditions = {
        **{"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit},
        **{"dirty": dirty, "device": hardware(torch.device(options.device))},
        "isa": [flag for flag in _ISA if flag in cpu_flags()],
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        known = data_sets(options.data, root=None, scratch=Path(scratch)) if options.data else {}
        for data in known.values() or [None]:
            for method in options.methods:
                for side in map(int, options.sizes):
                    for row in rows(options, method, side, data, Path(scratch)):
                        with options.results.open("a", encoding="utf-8") as file:
                            file.write(json.dumps({**conditions, **row}) + "\n")
                        told = f"{row['images_per_second']:.2f} images/s"
                        complain(f"{method} {side} {row['engine']}: {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
