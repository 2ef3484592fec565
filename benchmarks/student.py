"""A student in place of its teacher (`blemish fit --student`): how fast, how good, how alike.

    python benchmarks/student.py bottle screw elpv --train 50 --good 60 --bad 60 \\
        --results benchmarks/results/student.jsonl

Of each data set two rows, "teacher" and "student": the same method fitted on the same good
pictures at the same size, on the backbone and on the student that is distilled from it on these.
Both are timed in one process, in turn, `--repeats` times over the same pictures: processor time of
the whole, from files to predictions, and of the encoder alone; the best of each counts, and `speed`
and `encoder_speed` are ratios to the teacher of the same run. `alarms_on_good` are test pictures
without a defect above the threshold, which is set to the same rate by leave-one-out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from closer import spread

import blemish
from blemish.bench.conditions import calibration, checkout, hardware
from blemish.bench.costs import measure
from blemish.bench.plan import data_sets
from blemish.cli.console import complain
from blemish.data import layouts
from blemish.detector.evaluate import evaluate
from blemish.detector.predict import Detector
from blemish.images import decode
from blemish.methods.student import StudentConfig
from blemish.types import ANOMALOUS, NORMAL, Sample

TEACHER, STUDENT = "teacher", "student"


def learned(
    options: argparse.Namespace, good: Sequence[Any], which: str, artifact: Path
) -> Detector:
    """A detector, fitted on the backbone or on a student of it, and its file; as that has it, where
    an earlier run has made it, or from where that was interrupted."""
    if artifact.exists():
        return blemish.load(artifact, device="cpu", precision=options.precision)
    settings = {} if options.steps is None else {"min_steps": options.steps, "epochs": 1}
    usual = StudentConfig.for_input(options.size, options.size, seed=0)
    given = dataclasses.replace(usual, anomalies=options.anomalies, **settings)
    training = artifact.with_suffix(".training") if which == STUDENT else None
    detector = blemish.fit(
        options.method,
        good,
        backbone=options.backbone,
        image_size=options.size,
        precision=options.precision,
        device="cpu",
        student=given if which == STUDENT else False,
        checkpoint=training,
        resume=training is not None,
    )
    detector.save(artifact)
    return detector


def scored(detector: Detector, dataset: layouts.Dataset, samples: list[Sample]) -> dict[str, Any]:
    """How well it finds and places defects in the test pictures."""
    results = list(detector.predict_many(samples))
    found = evaluate(
        detector,
        dataclasses.replace(dataset, samples=tuple(samples)),
        predict=lambda *_, **__: iter(results),
    )
    pairs = list(zip(samples, results, strict=True))
    costs = measure(detector, decode(samples[0].path), repeats=3)
    made = detector.record.pretraining
    return {
        **{"pictures": len(samples), "good": sum(one.label == NORMAL for one in samples)},
        **{"image_auroc": found.image_auroc, "pixel_auroc": found.pixel_auroc},
        **{"aupro": found.aupro, "confusion": found.confusion},
        "alarms_on_good": sum(one.label == ANOMALOUS for it, one in pairs if it.label == NORMAL),
        **{key: costs[key] for key in ("flops", "artifact_mib")},
        "fit_seconds": detector.record.seconds,
        "distilling": None if made is None else made.training.to_dict(),
        "blocks": list(detector.record.backbone.spec.blocks),
        "calibration": calibration(detector),
        "weights": detector.manifest["backbone"]["weights"],
        "precision": detector.manifest["precision"],
        "device": hardware(detector.method.backbone.device),
    }


def seconds_of(work: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The least processor time of each, in turn."""
    least = dict.fromkeys(work, float("inf"))
    for _ in range(repeats):
        for name, do in work.items():
            began = time.process_time()
            do()
            least[name] = min(least[name], time.process_time() - began)
    return least


def timed(
    detectors: dict[str, Detector], samples: Sequence[Sample], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Processor time of a picture, of the whole and of the encoder alone, and ratios."""
    some = spread([sample.path for sample in samples], options.timed)

    def whole(detector: Detector) -> Callable[[], Any]:
        return lambda: list(detector.predict_many(some))

    def encoder(detector: Detector) -> Callable[[], Any]:
        height, width = detector.method.scoring_size
        images = torch.zeros(options.timed, 3, height, width)

        def do() -> None:
            with torch.inference_mode():
                detector.method.see(images)

        return do

    made: dict[str, dict[str, float]] = {name: {} for name in detectors}
    for key, work in (("", whole), ("encoder_", encoder)):
        least = seconds_of({name: work(it) for name, it in detectors.items()}, options.repeats)
        for name in detectors:
            made[name][f"{key}cpu_ms"] = round(1e3 * least[name] / options.timed, 2)
            made[name][f"{key}speed"] = least[TEACHER] / least[name]
    return made


def rows_of(
    options: argparse.Namespace, name: str, path: Path, folder: Path
) -> list[dict[str, Any]]:
    """The rows of a data set; its detectors are kept in a folder."""
    commit, dirty = checkout()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    dataset = layouts.read(path)
    good = [sample.path for sample in dataset.train() if sample.label == NORMAL]
    tests = [
        one
        for label, count in ((NORMAL, options.good), (ANOMALOUS, options.bad))
        for one in spread([sample for sample in dataset.test() if sample.label == label], count)
    ]
    learn_from = spread(good, options.train)
    detectors, rows = {}, []
    for encoder in (TEACHER, STUDENT):
        detector = detectors[encoder] = learned(
            options, learn_from, encoder, folder / f"{name}.{options.size}.{encoder}.blemish"
        )
        row = {"what": "student", "date": date, "commit": commit, "dirty": dirty, "data": name}
        row |= {key: getattr(options, key) for key in ("method", "backbone", "size")}
        row |= {"encoder": encoder, "train": len(learn_from), "bad": options.bad}
        row |= scored(detector, dataset, tests)
        rows.append(row)
        complain(f"{name} {encoder}: image AUROC {row['image_auroc']:.4f}")
    times = timed(detectors, tests, options)
    return [row | times[row["encoder"]] for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("data", nargs="+", help="as of `blemish bench --data`")
    found.add_argument("--method", default="patchcore")
    found.add_argument("--backbone", default="focus_vits14")
    found.add_argument("--size", type=int, default=224)
    found.add_argument("--train", type=int, default=50, help="pictures to learn from")
    found.add_argument("--good", type=int, default=60, help="good pictures to test on, at most")
    found.add_argument("--bad", type=int, default=60, help="defective pictures to test on, at most")
    found.add_argument("--steps", type=int, help="of the distillation, in place of its own number")
    found.add_argument("--anomalies", type=float, default=StudentConfig().anomalies)
    found.add_argument("--timed", type=int, default=16, help="pictures that are timed")
    found.add_argument("--repeats", type=int, default=4, help="of timing")
    found.add_argument("--precision", default="auto")
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--keep", type=Path, help="folder of detectors, to go on from when killed")
    found.add_argument("--results", type=Path, required=True)
    options = found.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="blemish-") as scratch:
        for name, path in data_sets(options.data, root=None, scratch=Path(scratch)).items():
            rows = rows_of(options, name, path, options.keep or Path(scratch))
            with options.results.open("a", encoding="utf-8") as lines:
                lines.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
