"""A second look only where a first, coarse one asks for it: how fast, how good, and what is lost.

    python benchmarks/closer.py screw bottle --ways 448,168+448,224+448,672,224+672 \\
        --results benchmarks/results/closer.jsonl

A way is the side of the encoder's input, "448", or of the first and of the second look, "224+448".
Of each data set and way one row. Learning and scoring have a process each; then all detectors of a
data set are timed in one process, one after the other, `--repeats` times over the same pictures
from files to predictions: the best of each counts, and `speed` is its ratio to the first way. FLOPs
are those of scoring one picture, and depend on no machine.

`planted`: pieces of the part, jittered in colour and turned, are pasted into the background of good
test pictures, squares of these shares of the picture's side. A defect is raised where the map's
highest value at its place goes up by a standard deviation of the good pictures' scores at least,
against the same place without it; it was looked at where any of its places got the second look. It
is `lost` where the first way raises it, and this one neither looks at it nor raises it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import blemish
from blemish.anomalies.patch import jittered, lay, pixels_of, put, window
from blemish.backbones import build
from blemish.bench.conditions import calibration, checkout, hardware
from blemish.bench.costs import measure
from blemish.bench.plan import data_sets
from blemish.cli.console import complain
from blemish.data import layouts
from blemish.data.stream import Passes, PictureStream
from blemish.data.transforms import Preprocessing
from blemish.detector.evaluate import evaluate
from blemish.detector.predict import Detector
from blemish.images import decode
from blemish.methods.memory import Knn, KnnConfig
from blemish.methods.telling import foreground_of, seen_along
from blemish.types import ANOMALOUS, NORMAL, Prediction, Sample, silent

ENOUGH = 10_000  # pictures: all of them
SIDES = (0.02, 0.04, 0.08)  # of planted defects, as shares of the picture's
PLANTED = 8  # pictures, at most, in which defects are planted
TRIES = 20
FAINTEST = 0.04  # mean change of a planted defect's pixels, of 1, that counts as one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One row: a data set, and how its pictures are looked at."""

    data: str
    path: str
    method: str
    backbone: str
    way: str
    train: int
    good: int
    bad: int
    precision: str
    threads: int


def looks_of(way: str) -> dict[str, int]:
    """The settings of a way."""
    first, _, second = way.rpartition("+")
    return {"image_size": int(second)} | ({"coarse": int(first)} if first else {})


def learn(case: Case, artifact: Path) -> dict[str, Any]:
    """Fit the detector and save it."""
    good = [sample.path for sample in layouts.read(case.path).train() if sample.label == NORMAL]
    detector = blemish.fit(
        case.method,
        spread(good, case.train),
        backbone=case.backbone,
        precision=case.precision,
        device="cpu",
        **looks_of(case.way),
    )
    detector.save(artifact)
    return {"fit_seconds": detector.manifest["seconds"], "fitted": len(detector.record.data.fitted)}


def score(case: Case, artifact: Path) -> dict[str, Any]:
    """Score the test pictures, and those with planted defects."""
    detector = loaded(artifact)
    dataset = layouts.read(case.path)
    samples = chosen(case, dataset)
    results = list(detector.predict_many(samples))
    found = evaluate(
        detector,
        dataclasses.replace(dataset, samples=tuple(samples)),
        predict=lambda *_, **__: iter(results),
    )
    costs = measure(detector, decode(samples[0].path), repeats=5)
    config = detector.manifest["config"]
    return {
        **{"pictures": len(samples), "good": sum(one.label == NORMAL for one in samples)},
        **{"image_auroc": found.image_auroc, "pixel_auroc": found.pixel_auroc},
        **{"aupro": found.aupro, "confusion": found.confusion},
        "close_share": config.get("close_share"),
        **{key: costs[key] for key in ("flops", "latency_p50_ms", "artifact_mib")},
        "planted": planted(case, detector, results),
        "calibration": calibration(detector),
        "weights": detector.manifest["backbone"]["weights"],
        "precision": detector.manifest["precision"],
        "device": hardware(detector.method.backbone.device),
    }


def planted(
    case: Case, detector: Detector, results: Sequence[Prediction | Any]
) -> dict[str, list[list[Any]]]:
    """Of each side what became of every defect: how much it was raised, in deviations of the good
    scores, whether it was looked at closely, and whether there was an alarm."""
    samples = chosen(case, layouts.read(case.path))
    pairs = zip(samples, results, strict=True)
    good = [(sample, one) for sample, one in pairs if sample.label == NORMAL]
    unit = float(np.std([one.score for _, one in good]))
    random = np.random.default_rng(0)
    made: dict[str, list[list[Any]]] = {}
    some = spread(good, PLANTED)
    parts = parts_of(case, [sample.path for sample, _ in some])
    for side in SIDES:
        rows = made[str(side)] = []
        for (sample, before), part in zip(some, parts, strict=True):
            pixels, mask = plant(decode(sample.path).pixels, part, side, random)
            after = detector.predict(pixels)
            places = cv2.resize(mask, after.anomaly_map.shape[::-1], interpolation=cv2.INTER_AREA)
            at = cv2.dilate(places, np.ones((3, 3))) > 0
            rise = float(after.anomaly_map[at].max() - before.anomaly_map[at].max()) / unit
            looked = after.saliency is None or bool(after.saliency[at].max() > 0.5)
            rows.append([round(rise, 3), looked, after.label == ANOMALOUS])
    return made


def parts_of(case: Case, pictures: Sequence[Path]) -> list[np.ndarray]:
    """Where the part is in pictures, each bool h w: told at 448², whatever the way."""
    backbone = build(case.backbone)
    config = KnnConfig(backbone=case.backbone, image_size=(448,), layers=backbone.check_layers(()))
    method = Knn(config, backbone).eval()
    preprocessing = Preprocessing(height=448, width=448, mean=backbone.mean, std=backbone.std)
    good = [one.path for one in layouts.read(case.path).train() if one.label == NORMAL]
    device = torch.device("cpu")
    passes = Passes(PictureStream(spread(good, PLANTED), preprocessing, 8), device)
    told = foreground_of(method, passes, passes.rows, silent)
    found: list[np.ndarray] = []
    with torch.inference_mode():
        for batch in PictureStream(pictures, preprocessing, 8).on(device):
            seen = seen_along(method, method.see(batch.images), told.direction)
            found += list(told.told(seen.numpy(), None))
    return found


def plant(
    pixels: np.ndarray, part: np.ndarray, side: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 H W 3 with a piece of the part in the background, and where it is, float32 H W."""
    picture = pixels.astype(np.float32) / 255
    size = (picture.shape[0], picture.shape[1])
    extent = (pixels_of(side, size[0]), pixels_of(side, size[1]))
    inner = cv2.erode(part.astype(np.uint8), np.ones((5, 5)))
    outer = cv2.erode(1 - part.astype(np.uint8), np.ones((3, 3)), borderValue=1)
    inner, outer = (
        cv2.resize(one, size[::-1], interpolation=cv2.INTER_NEAREST) for one in (inner, outer)
    )
    for _ in range(TRIES):
        piece = jittered(picture[window(drawn(inner, random), extent, size)], random, 0.15, 0.1)
        canvas, mask = picture.copy(), np.zeros(size, bool)
        angle = random.uniform(-45, 45)
        lay(canvas, mask, put(piece, drawn(outer, random), size, angle=angle, factor=1.0))
        if np.abs(canvas - picture)[mask].mean() > FAINTEST:
            break
    return (canvas * 255).round().astype(np.uint8), mask.astype(np.float32)


def drawn(places: np.ndarray, random: np.random.Generator) -> tuple[int, int]:
    rows, columns = np.nonzero(places)
    at = int(random.integers(len(rows)))
    return int(rows[at]), int(columns[at])


def compare(path: str, artifacts: dict[str, str], pictures: int, repeats: int) -> dict[str, float]:
    """Images/s of all ways over the same pictures, from files to predictions."""
    detectors = {way: loaded(Path(artifact)) for way, artifact in artifacts.items()}
    some = spread([sample.path for sample in layouts.read(path).test()], pictures)
    best: dict[str, float] = {}
    for _ in range(repeats):
        for way, detector in detectors.items():
            began = time.perf_counter()
            list(detector.predict_many(some))
            rate = len(some) / (time.perf_counter() - began)
            best[way] = max(best.get(way, 0.0), rate)
    return best


def loaded(artifact: Path) -> Detector:
    """The detector of an artifact, in the precision that it was calibrated in."""
    precision = blemish.load(artifact, device="cpu").manifest["precision"]
    return blemish.load(artifact, device="cpu", precision=precision)


def chosen(case: Case, dataset: layouts.Dataset) -> list[Sample]:
    """The test pictures, good ones first."""
    good = [sample for sample in dataset.test() if sample.label == NORMAL]
    bad = [sample for sample in dataset.test() if sample.label == ANOMALOUS]
    return [*spread(good, case.good), *spread(bad, case.bad)]


def spread(every: Sequence[Any], count: int) -> list[Any]:
    """So many of them at most, evenly from all."""
    some = min(count, len(every))
    return [every[number * len(every) // some] for number in range(some)]


def step(text: str) -> None:
    """What one of the processes does."""
    told = json.loads(text)
    torch.set_num_threads(told.get("threads", 1))
    name = told.pop("step")
    if name == "compare":
        del told["threads"]
        print(json.dumps(compare(**told)))
        return
    artifact = Path(told.pop("artifact"))
    print(json.dumps({"learn": learn, "score": score}[name](Case(**told), artifact)))


def ran(told: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own answers."""
    command = [sys.executable, __file__, "--step", json.dumps(told)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def rows_of(
    options: argparse.Namespace, name: str, path: Path, folder: Path
) -> list[dict[str, Any]]:
    """The rows of a data set, one for each way."""
    commit, dirty = checkout()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    kept = ("method", "backbone", "train", "good", "bad", "precision", "threads")
    asked = {key: getattr(options, key) for key in kept} | {"data": name, "path": str(path)}
    rows = []
    for way in options.ways:
        told = dataclasses.asdict(Case(**asked, way=way)) | {"artifact": str(folder / way)}
        row = {"what": "closer", "date": date, "commit": commit, "dirty": dirty}
        row |= {key: told[key] for key in ("data", "method", "backbone", "way")}
        for each in ("learn", "score"):
            row |= ran({**told, "step": each})
        rows.append(row)
        complain(f"{name} {way}: {row['image_auroc']:.4f} {row['flops'] / 1e9:.1f} GFLOP")
    artifacts = {way: str(folder / way) for way in options.ways}
    rates = ran({
        **{"step": "compare", "path": str(path), "artifacts": artifacts},
        **{"pictures": options.timed, "repeats": options.repeats, "threads": options.threads},
    })  # fmt: skip
    planted = rows[0]["planted"]
    for row in rows:
        row["images_per_second"] = rates[row["way"]]
        row["speed"] = rates[row["way"]] / rates[rows[0]["way"]]
        row["planted"] = {side: told_of(planted[side], own) for side, own in row["planted"].items()}
    return rows


def told_of(first: list[list[Any]], own: list[list[Any]]) -> dict[str, int]:
    """What became of planted defects, in numbers; `first`: of the first way."""
    pairs = list(zip(first, own, strict=True))
    return {
        "defects": len(own),
        "raised": sum(rise >= 1 for rise, _, _ in own),
        "looked_at": sum(looked for _, looked, _ in own),
        "alarms": sum(alarm for _, _, alarm in own),
        "dropped_not_raised": sum(rise < 1 and not looked for rise, looked, _ in own),
        "lost": sum(of_first[0] >= 1 > one[0] and not one[1] for of_first, one in pairs),
    }


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("data", nargs="*", help="as of `blemish bench --data`")
    found.add_argument("--method", default="patchcore")
    found.add_argument("--backbone", default="focus_vits14")
    found.add_argument("--ways", type=lambda text: text.split(","), default=["448", "224+448"])
    found.add_argument("--train", type=int, default=ENOUGH, help="pictures to learn from")
    found.add_argument("--good", type=int, default=ENOUGH, help="good pictures to test on")
    found.add_argument("--bad", type=int, default=ENOUGH, help="defective pictures to test on")
    found.add_argument("--timed", type=int, default=16, help="pictures that are timed")
    found.add_argument("--repeats", type=int, default=3, help="of timing")
    found.add_argument("--precision", default="auto")
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
    with tempfile.TemporaryDirectory(prefix="blemish-") as scratch:
        for name, path in data_sets(options.data, root=None, scratch=Path(scratch)).items():
            rows = rows_of(options, name, path, Path(scratch))
            with options.results.open("a", encoding="utf-8") as lines:
                lines.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
