"""Our exported detectors beside anomalib's own, on the same encoder weights and pictures.

    python benchmarks/rivals.py patchcore:224 anomaly_dino:252 --data bottle,screw \\
        --rival-python ../anomalib/bin/python --results benchmarks/results/rivals.jsonl

The other Python has anomalib with its `openvino` extra, safetensors, and nothing of blemish
(`rival_anomalib.py`, which runs in it, tells what it does otherwise than a user would). Its
PatchCore reads the layers that ours reads by default, and keeps a tenth of all patches, as is its
default; its AnomalyDINO is as it comes: the last layer, every patch kept. Ours are `patchcore` and
`knn`, each twice: `equal`, with the layers and the size of bank of the other, and `default`. Both
sides learn from nine good pictures of ten; from the tenth our bf16 graphs have their thresholds.

Fits, exports and accuracies go into `--keep` and are made once, on a machine that may be busy;
`--prepare` does no more than that. Then all engines take turns in one run, the rival's in its own
process, which waits meanwhile: `images_per_second` is of the fastest of `--repeats` passes of
`--batch` pictures of noise, of the working size, `p50_ms` and `p95_ms` are of single ones. The
rival's graph normalises them itself; ours are normalised already. `ratios` are the images/s divided
by those of each of the rival's engines. OpenVINO computes in the precision named, on both sides;
`openvino:bf16-unproved` is our fp32 graph told to compute in bf16, which no user gets: where the
export to bf16 is refused, because scores move, it shows what the rival's export does not ask.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import blemish
from blemish.backbones import build
from blemish.backbones.offline import load_focus
from blemish.bench.conditions import checkout, hardware
from blemish.bench.plan import data_sets
from blemish.cli.console import complain
from blemish.data import layouts
from blemish.detector.evaluate import evaluate, labelled
from blemish.detector.predict import Detector
from blemish.engines.files import read
from blemish.engines.openvino import OpenvinoEngine
from blemish.errors import BlemishError, ExportError
from blemish.export import exporting
from blemish.machine import cpu_flags
from blemish.methods.memory import MemoryBank
from blemish.metrics.ranking import auroc
from blemish.types import ANOMALOUS, NORMAL

WORKER = Path(__file__).resolve().with_name("rival_anomalib.py")
BACKBONE = "focus_vits14"
OURS = {"patchcore": "patchcore", "anomaly_dino": "knn"}
RIVALS = ("torch:fp32", "openvino:fp32", "openvino:bf16")
UNPROVED = "openvino:bf16-unproved"
ENGINES = (
    *("torch:fp32", "torch:bf16", "onnxruntime:fp32"),
    *("openvino:fp32", "openvino:bf16", UNPROVED),
)
HELD = 10  # every so many-th good picture is not learned from
SINGLES = 8  # pictures one by one, in each turn
_SUFFIX = {"onnxruntime": ".onnx", "openvino": ".xml"}
_ISA = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


class Unproved(OpenvinoEngine):
    """A graph in bf16, whatever its file says."""

    def _hint(self) -> str:
        return "bf16"


class Rival:
    """The process that runs anomalib."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log

    def ask(self, do: str, **what: Any) -> Any:
        """Raises: BlemishError with what went wrong there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        answer = {"error": "it ended"}
        with suppress(BrokenPipeError):
            print(json.dumps({"do": do, **what}), file=self.process.stdin, flush=True)
            if line := self.process.stdout.readline():
                answer = json.loads(line)
        if "error" in answer:
            raise BlemishError(f"the rival: {answer['error']}; its log: {self.log}")
        return answer["found"]


@contextmanager
def rival(python: str, threads: int, folder: Path) -> Iterator[Rival]:
    log = folder / "rival.log"
    command = [python, str(WORKER), str(threads)]
    # Nothing is fetched or sent: CI turns off OpenVINO's telemetry.
    offline = {"HF_HUB_OFFLINE": "1", "CI": "true"}
    environment = {**os.environ, **offline, "OMP_NUM_THREADS": str(threads)}
    environment.pop("PYTHONPATH", None)
    pipe = subprocess.PIPE
    with log.open("a", encoding="utf-8") as told:
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=told, text=True, cwd=folder, env=environment
        )
        try:
            yield Rival(process, log)
        finally:
            process.kill()
            with suppress(BrokenPipeError):  # of what it has not read
                process.communicate()


def once(path: Path, make: Callable[[], Any]) -> Any:
    """What a JSON file holds, made where there is none."""
    if not path.exists():
        path.write_text(json.dumps(make()), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def copied(pictures: Sequence[Path], folder: Path) -> Path:
    """The pictures that both learn from, alone in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in pictures:
        if not (folder / each.name).exists():
            shutil.copy(each, folder)
    return folder


def fitted(method: str, good: Path, side: int, settings: dict[str, Any], path: Path) -> Path:
    if not path.exists():
        blemish.fit(
            method, good, backbone=BACKBONE, image_size=side, precision="fp32", device="cpu",
            **settings,
        ).save(path)  # fmt: skip
    return path


def opened(artifact: Path, name: str, held: Path, threads: int) -> tuple[Detector, Path]:
    """One engine over an artifact, or over the file that it is exported to.

    Args: held: good pictures that a graph of another precision has its threshold from.
    Raises: as `export`."""
    engine, _, precision = name.partition(":")
    if engine == "torch":
        return blemish.load(artifact, device="cpu", precision=precision, threads=threads), artifact
    if name == UNPROVED:
        exported, path = opened(artifact, "openvino:fp32", held, threads)
        return Detector(Unproved(read(path), threads=threads), exported.record), path
    path = artifact.with_suffix(f".{precision}{_SUFFIX[engine]}")
    if not path.exists():
        anew = None if precision == "fp32" else held
        exporting.export(artifact, path, precision=precision, good=anew)
    return blemish.load(path, device="cpu", engine=engine, threads=threads), path


def size_mib(path: Path) -> float:
    beside = path.with_suffix(".bin")
    return (path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)) / 2**20


def rival_accuracy(other: Rival, engine: str, data: Path) -> float | None:
    _, samples = labelled(data)
    scores = other.ask("scores", engine=engine, pictures=[str(each.path) for each in samples])
    return auroc(scores, [each.label == ANOMALOUS for each in samples])


Side = tuple[dict[str, Any], Callable[[int], Any]]  # of a row, and what scores so many pictures


def sides(
    other: Rival, model: str, side: int, data: Path, options: argparse.Namespace
) -> Iterator[Side]:
    """Each engine of both, fitted, exported and evaluated."""
    keep = options.keep / f"{data.name}-{model}-{side}{'-few' if options.train else ''}"
    own = [each.path for each in layouts.read(data).train() if each.label == NORMAL]
    own = own[: options.train]
    good = copied([each for at, each in enumerate(own) if at % HELD], keep / "good")
    copied(own[::HELD], keep / "held")
    weights = options.keep / "weights.safetensors"
    if not weights.exists():
        state = {name: tensor.contiguous().clone() for name, tensor in load_focus()[0].items()}
        save_file(state, weights)
    layers = list(build(BACKBONE).check_layers(()))
    told = other.ask(
        "fit", model=model, size=side, layers=layers, weights=str(weights.resolve()),
        good=str(good.resolve()), folder=str((keep / "anomalib").resolve()),
    )  # fmt: skip
    for engine in RIVALS:
        row = {"by": "anomalib", "engine": engine, **told}
        path = keep / f"anomalib-{engine.replace(':', '-')}.json"
        if engine in options.accurate or path.exists():
            make = lambda engine=engine: rival_accuracy(other, engine, data)  # noqa: E731
            row["image_auroc"] = once(path, make)
        yield row, lambda count, engine=engine: other.ask("time", engine=engine, batch=count)
    equal = {"layers": [12] if model == "anomaly_dino" else layers, "bank_size": told["bank"][0]}
    for variant, settings in {"equal": equal, "default": {}}.items():
        artifact = fitted(OURS[model], good, side, settings, keep / f"{variant}.blemish")
        yield from our_sides(artifact, variant, side, data, options)


def our_sides(
    artifact: Path, variant: str, side: int, data: Path, options: argparse.Namespace
) -> Iterator[Side]:
    images = np.random.default_rng(0).normal(size=(options.batch, 3, side, side)).astype("f4")
    method = blemish.load(artifact, device="cpu").method
    assert isinstance(method, MemoryBank)
    shape = {"bank": list(method.bank.shape), "layers": list(method.layers)}
    for engine in ENGINES:
        kept = artifact.with_suffix(f".{engine.replace(':', '-')}.json")
        refused = kept.with_suffix(".refused")
        try:
            if refused.exists():
                raise ExportError(refused.read_text(encoding="utf-8"))
            detector, path = opened(artifact, engine, artifact.parent / "held", options.threads)
        except ExportError as error:
            refused.write_text(str(error), encoding="utf-8")
            complain(f"{artifact.parent.name} {variant} {engine}: {error}")
            continue
        row = {"by": "blemish", "variant": variant, "engine": engine, **shape}
        row["file_mib"] = round(size_mib(path), 1)
        if engine in options.accurate or kept.exists():
            make = lambda detector=detector: evaluate(detector, data).image_auroc  # noqa: E731
            row["image_auroc"] = once(kept, make)

        def run(count: int, detector: Detector = detector) -> float:
            began = time.perf_counter()
            detector.engine.run(images[:count])
            return time.perf_counter() - began

        yield row, run


def timed(found: Sequence[Side], batch: int, repeats: int) -> list[dict[str, Any]]:
    """What a row says of speed, all in turns, after a first turn that does not count."""
    whole: list[list[float]] = [[] for _ in found]
    single: list[list[float]] = [[] for _ in found]
    for turn in range(repeats + 1):
        for (_, run), many, one in zip(found, whole, single, strict=True):
            batches, singles = run(batch), [run(1) for _ in range(SINGLES if turn else 1)]
            if turn:
                many.append(batches)
                one.extend(singles)
    rows = []
    for many, one in zip(whole, single, strict=True):
        middle, late = 1000 * np.percentile(one, [50, 95])
        rows.append(
            {
                "images_per_second": batch / min(many),
                "single_images_per_second": 1 / min(one),
                **{"p50_ms": float(middle), "p95_ms": float(late)},
            }
        )
    return rows


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", help="MODEL:SIZE, of " + ", ".join(OURS))

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--data", type=names, default=["bottle"])
    parser.add_argument("--accurate", type=names, default=ENGINES, help="engines; none of '-'")
    parser.add_argument("--rival-python", required=True)
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--train", type=int, default=None, help="so many pictures; else all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--results", type=Path, required=True)
    return parser.parse_args(arguments)


def compared(case: str, data: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of a model at a size on a data set."""
    model, _, size = case.partition(":")
    side = int(size)
    with rival(options.rival_python, options.threads, options.keep) as other:
        found = list(sides(other, model, side, data, options))
        if options.prepare:
            return
        speeds, load = timed(found, options.batch, options.repeats), os.getloadavg()[0]
    theirs = {
        row["engine"]: speed["images_per_second"]
        for (row, _), speed in zip(found, speeds, strict=True)
        if row["by"] == "anomalib"
    }
    for (row, _), speed in zip(found, speeds, strict=True):
        ratios = {name: speed["images_per_second"] / each for name, each in theirs.items()}
        yield {
            **{"data": data.name, "model": model, "image_size": side, **row, **speed},
            **{"ratios": ratios, "load": load, "batch": options.batch, "threads": options.threads},
        }


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    commit, dirty = checkout()
    conditions = {
        **{"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit},
        **{"dirty": dirty, "device": hardware(torch.device("cpu"))},
        "isa": [flag for flag in _ISA if flag in cpu_flags()],
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        options.keep = (options.keep or Path(scratch)).resolve()
        options.keep.mkdir(parents=True, exist_ok=True)
        for data in data_sets(options.data, root=None, scratch=Path(scratch)).values():
            for case in options.cases:
                try:
                    for row in compared(case, data, options):
                        row = {**conditions, **row}
                        with options.results.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(row) + "\n")
                        told = f"{row['images_per_second']:.2f} images/s"
                        name = f"{row['by']} {row.get('variant', '')} {row['engine']}"
                        complain(f"{data.name} {case} {name}: {told}")
                except BlemishError as error:
                    complain(f"{data.name} {case}: {error}")
                    return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
