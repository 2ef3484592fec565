"""Big pictures looked at whole and in tiles: what is found, how fast, and with how much memory.

    python benchmarks/large.py plate
    python benchmarks/tiles.py plate screw --whole 448,1344 --tiled 224,448 \\
        --results benchmarks/results/tiles.jsonl

Of each data set a row for each size of the encoder's input: whole pictures resized to it, and the
tiles of `--tile` pixels resized to it. Detectors learn from `--train` pictures and are tested on
`--good` good and `--bad` defective ones, spread evenly over the files. Learning, scoring and the
comparison of speeds have a process each, so that peak memory is that of scoring alone.

Seconds are of one pass over the test pictures, decoding included and metrics excluded. The ratio
of speeds is that of tiles to pictures which are such tiles: the same pixels in files of their own
(uncompressed TIFF), scored by the same detector in the same batches. Both are measured
`--repeats` times in turn, and the best of each counts. The time of processors beside the method
(decoding, cutting, resizing, putting together) is measured with scores that are ready.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch

import blemish
from blemish.bench.conditions import calibration, checkout, hardware, peak_memory_mib
from blemish.bench.plan import data_sets
from blemish.cli.console import complain
from blemish.data import layouts
from blemish.data.tiles import TiledPicture
from blemish.data.tiling import OVERLAP, Tiling
from blemish.detector.evaluate import evaluate
from blemish.detector.predict import Detector
from blemish.engines.base import Engine, Input, Outputs
from blemish.engines.pytorch import TorchEngine
from blemish.types import ANOMALOUS, NORMAL, Prediction, Sample

T = TypeVar("T")
COMPARED_AT = 1024  # side at which maps and masks are compared: at 256 small defects are gone
LEAST_INPUTS = 32  # of the encoder, from which a speed is measured
ENOUGH = 10_000  # pictures: all of them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One row: a data set, and how its pictures are looked at.

    Attributes:
        image_size: side of the encoder's input. tile, overlap: as of `blemish.fit`; None = whole.
        train, good, bad: how many pictures to learn from, and to test on, at most.
        rate: of false alarms. repeats: of the comparison of speeds.
    """

    data: str
    path: str
    method: str
    backbone: str
    image_size: int
    tile: int | None
    overlap: float | None
    train: int
    good: int
    bad: int
    rate: float
    repeats: int
    threads: int


def cases(options: argparse.Namespace, name: str, path: Path) -> Iterator[Case]:
    """Those of a data set: whole pictures first."""
    kept = ("method", "backbone", "train", "good", "bad", "rate", "repeats", "threads")
    asked = {key: getattr(options, key) for key in kept} | {"data": name, "path": str(path)}
    for side in options.whole:
        yield Case(**asked, image_size=side, tile=None, overlap=None)
    for side in options.tiled:
        yield Case(**asked, image_size=side, tile=options.tile, overlap=options.overlap)


def learn(case: Case, artifact: Path, **more: Any) -> dict[str, Any]:
    """Fit the detector and save it. `more`: further arguments of `blemish.fit`."""
    tiled = {} if case.tile is None else {"tile": case.tile, "overlap": case.overlap}
    asked = {"image_size": case.image_size, "backbone": case.backbone, **tiled, **more}
    # Given as files: with `shots=` each picture would be learned from turned and mirrored as well.
    good = [sample.path for sample in layouts.read(case.path).train() if sample.label == NORMAL]
    detector = blemish.fit(
        case.method, spread(good, case.train), false_alarm_rate=case.rate, **asked
    )
    detector.save(artifact)
    return {
        "fit_seconds": detector.manifest["seconds"],
        "fit_peak_memory_mib": peak_memory_mib(),
        "fitted": len(detector.record.data.fitted),
    }


def score(case: Case, artifact: Path, **more: Any) -> dict[str, Any]:
    """Score the test pictures and compare. `more`: further arguments of `blemish.load`."""
    detector = loaded(artifact, **more)
    dataset = layouts.read(case.path)
    samples = chosen(case, dataset)
    began, worked = time.perf_counter(), time.process_time()
    results = list(detector.predict_many(samples))
    seconds, cores = time.perf_counter() - began, time.process_time() - worked
    peak = peak_memory_mib()  # before the metrics take theirs
    found = evaluate(
        detector,
        dataclasses.replace(dataset, samples=tuple(samples)),
        resolution=COMPARED_AT,
        predict=lambda *_, **__: iter(results),
    )
    done = [result for result in results if isinstance(result, Prediction)]
    inputs = len(samples) if case.tile is None else sum(len(tiles_of(case, one)) for one in samples)
    good = sum(sample.label == NORMAL for sample in samples)
    counted = {} if found.regions is None else found.regions
    kept = ("region_recall", "found", "defects", "false_per_picture", "iou", "f1")
    return {
        **{"pictures": len(samples), "good": good, "failed": len(results) - len(done)},
        "picture_size": list(done[0].size),
        **{"image_auroc": found.image_auroc, "pixel_auroc": found.pixel_auroc},
        "compared_at": COMPARED_AT,
        **{key: counted.get(key) for key in kept},
        "confusion": found.confusion,
        "inputs": inputs,
        "seconds": seconds,
        "seconds_per_picture": seconds / len(samples),
        "megapixels_per_second": inputs * case.image_size**2 / 1e6 / seconds,
        "cores_used": round(cores / seconds, 2),
        "peak_memory_mib": peak,
        "calibration": calibration(detector),
        "weights": detector.manifest["backbone"]["weights"],
        "precision": detector.manifest["precision"],
        "device": hardware(detector.method.backbone.device),
    }


def compare(case: Case, artifact: Path, **more: Any) -> dict[str, Any]:
    """The speed of tiles beside that of pictures which are such tiles. `more`: as of `score`."""
    if case.tile is None or not case.repeats:
        return {}
    detector = loaded(artifact, **more)
    plain = dataclasses.replace(detector.record.preprocessing, tiling=None)
    whole = detector.with_record(dataclasses.replace(detector.record, preprocessing=plain))
    pictures: list[Path] = []
    with tempfile.TemporaryDirectory(prefix="blemish-") as folder:
        crops: list[Path] = []
        for sample in chosen(case, layouts.read(case.path)):
            if len(crops) < LEAST_INPUTS:
                pictures.append(sample.path)
                crops += written(case, sample, Path(folder), len(crops))
        ways = {"plain": (whole, crops), "tiles": (detector, pictures)}
        quick = Unscored(detector)
        taken = [{key: timed(*way) for key, way in ways.items()} for _ in range(case.repeats)]
        around = [{key: timed(*way, quick) for key, way in ways.items()} for _ in range(3)]
    seconds, work = ({key: min(one[key][at] for one in taken) for key in ways} for at in (0, 1))
    beside = {key: min(one[key][1] for one in around) / len(crops) for key in ways}
    megapixels = len(crops) * case.image_size**2 / 1e6
    return {
        "speed": {
            "inputs": len(crops),
            "repeats": case.repeats,
            **{f"{key}_megapixels_per_second": megapixels / seconds[key] for key in ways},
            **{f"{key}_seconds_beside_method": beside[key] for key in ways},
            "ratio": seconds["plain"] / seconds["tiles"],
            "ratio_of_processor_time": work["plain"] / work["tiles"],
        }
    }


def loaded(artifact: Path, **more: Any) -> Detector:
    """The detector of an artifact, in the precision that it was calibrated in."""
    precision = blemish.load(artifact, **more).manifest["precision"]
    return blemish.load(artifact, **{"precision": precision, **more})


def chosen(case: Case, dataset: layouts.Dataset) -> list[Sample]:
    """The test pictures, good ones first."""
    good = [sample for sample in dataset.test() if sample.label == NORMAL]
    bad = [sample for sample in dataset.test() if sample.label == ANOMALOUS]
    return [*spread(good, case.good), *spread(bad, case.bad)]


def spread(every: Sequence[T], count: int) -> list[T]:
    """So many of them at most, evenly from all."""
    some = min(count, len(every))
    return [every[number * len(every) // some] for number in range(some)]


def tiles_of(case: Case, sample: Sample) -> Sequence[Any]:
    """The tiles of a picture."""
    assert case.tile is not None
    assert case.overlap is not None
    tiling = Tiling(side=case.tile, overlap=case.overlap)
    return TiledPicture(sample.path, tiling, name=str(sample.path)).tiles


def written(case: Case, sample: Sample, folder: Path, first: int) -> list[Path]:
    """The tiles of a picture in files of their own, numbered from `first`."""
    files: list[Path] = []
    for number, tile in enumerate(tiles_of(case, sample), start=first):
        files.append(folder / f"{number:05}.tif")
        pixels = cv2.cvtColor(tile.cut().pixels, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(files[-1]), pixels, [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    return files


class Unscored(TorchEngine):
    """What gives the same scores to all inputs, and takes no time."""

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector.method, detector.foreground)
        height, width = detector.preprocessing.height, detector.preprocessing.width
        self._blank = super().run(np.zeros((1, 3, height, width), np.float32))

    def run(self, images: Input, *, category: bool = False) -> Outputs:
        count = len(images)
        found = {one.name: getattr(self._blank, one.name) for one in dataclasses.fields(Outputs)}
        shown = {
            name: np.broadcast_to(one, (count, *one.shape[1:]))
            for name, one in found.items()
            if isinstance(one, np.ndarray)
        }
        return dataclasses.replace(self._blank, **shown)


def timed(
    detector: Detector, pictures: Sequence[Path], engine: Engine | None = None
) -> tuple[float, float]:
    """Seconds on the clock, and of processors, for scoring all pictures. `engine`: as of
    `predict_many`."""
    began, worked = time.perf_counter(), time.process_time()
    for result in detector.predict_many(pictures, engine=engine):
        if not isinstance(result, Prediction):
            raise SystemExit(f"{result.source}: {result.reason}")
    return time.perf_counter() - began, time.process_time() - worked


STEPS = {"learn": learn, "score": score, "compare": compare}


def step(text: str) -> None:
    """What one of the processes does."""
    told = json.loads(text)
    work, artifact = STEPS[told.pop("step")], Path(told.pop("artifact"))
    case = Case(**told)
    torch.set_num_threads(case.threads)
    print(json.dumps(work(case, artifact)))


def measured(case: Case) -> dict[str, Any]:
    """The row of a case, from a process for each step."""
    commit, dirty = checkout()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    asked = dataclasses.asdict(case)
    row = {"what": "tiles", "date": date, "commit": commit, "dirty": dirty, **asked}
    for key in ("path", "threads", "repeats", "train", "good", "bad"):
        del row[key]
    with tempfile.TemporaryDirectory(prefix="blemish-") as folder:
        for name in STEPS:
            told = json.dumps({**asked, "step": name, "artifact": f"{folder}/a.blemish"})
            command = [sys.executable, __file__, "--step", told]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row |= json.loads(done.stdout.splitlines()[-1])
    return row


def sides(text: str) -> list[int]:
    """Sizes in pixels, as "448,896"; none where it is empty."""
    return [int(part) for part in text.split(",") if part]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("data", nargs="*", help="as of `blemish bench --data`")
    found.add_argument("--method", default="patchcore")
    found.add_argument("--backbone", default="focus_vits14")
    found.add_argument("--whole", type=sides, default=[448], help="sizes of whole pictures")
    found.add_argument("--tiled", type=sides, default=[448], help="sizes of tiles")
    found.add_argument("--tile", type=int, default=448, help="side of a tile in the picture")
    found.add_argument("--overlap", type=float, default=OVERLAP)
    found.add_argument("--train", type=int, default=ENOUGH, help="pictures to learn from")
    found.add_argument("--good", type=int, default=ENOUGH, help="good pictures to test on")
    found.add_argument("--bad", type=int, default=ENOUGH, help="defective pictures to test on")
    found.add_argument("--rate", type=float, default=0.05, help="of false alarms")
    found.add_argument("--repeats", type=int, default=3, help="0: no comparison of speeds")
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--results", type=Path)
    found.add_argument("--step", help=argparse.SUPPRESS)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.step:
        step(options.step)
        return
    if not options.data or options.results is None:
        parser().error("data and --results are needed")
    with tempfile.TemporaryDirectory() as scratch:
        for name, path in data_sets(options.data, root=None, scratch=Path(scratch)).items():
            for case in cases(options, name, path):
                row = measured(case)
                with options.results.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(row) + "\n")
                way = "whole" if case.tile is None else f"tiles of {case.tile}"
                keys = ("image_auroc", "region_recall", "seconds_per_picture", "peak_memory_mib")
                told = "  ".join(f"{key} {row[key]}" for key in keys)
                complain(f"{name}, {way} at {case.image_size}: {told}  {row.get('speed', '')}")


if __name__ == "__main__":
    main()
