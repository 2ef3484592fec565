"""Learning from M labelled defects (`lda`): draws of M by seed, all other defects tested, one row a
draw.

    python benchmarks/weak.py elpv brain_mri --image-size 224 --results weak.jsonl

With `--type`, once or several times, the defects are drawn from one type at a time, and those of
all others are tested: the hard setting. (`bench --anomaly-type` tests the rest of that type, too.)
`--type any` draws from all, as without it.

What does not depend on the draw is computed once: the normality detector is fitted once (seed 0) on
all good training pictures, and each test picture is looked at once. A draw then takes seconds, and
its row says what `blemish bench --methods lda --anomaly-count M` would say of it with the normality
part of seed 0.
Rows that the file holds already are not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor

import blemish
from blemish.backbones.base import Features
from blemish.bench.conditions import checkout, hardware
from blemish.bench.plan import data_sets
from blemish.bench.results.rows import words
from blemish.cli.console import complain
from blemish.data import layouts
from blemish.data.pictures import labelled_defects
from blemish.data.stream import Passes, PictureStream
from blemish.detector.evaluate import evaluate
from blemish.detector.learned import detector_of
from blemish.detector.predict import Detector
from blemish.engines.pytorch import TorchEngine
from blemish.methods.lda import Lda
from blemish.types import RESOLUTION, Scores, silent

METRICS = ("image_auroc", "image_ap", "best_f1", "pixel_auroc", "aupro")


class Remembering(TorchEngine):
    """Scores pictures as the method does; it looks at every one once, and finishes the scores of it
    as often as it is asked."""

    method: Lda

    def __init__(self, method: Lda, seen: dict[bytes, tuple[Scores, Features]]) -> None:
        super().__init__(method)
        self._seen = seen

    def _scores(self, images: Tensor) -> tuple[Scores, Features | None]:
        known = hashlib.sha256(images.cpu().numpy().tobytes()).digest()
        if known not in self._seen:
            features = self.method.see(images)
            self._seen[known] = self.method.normality.judge(features, images), features
        scores, features = self._seen[known]
        return self.method.finished(scores, features, images), features


def rows(
    name: str, path: Path, options: argparse.Namespace, done: set[str]
) -> Iterator[dict[str, Any]]:
    """The rows of a data set that `done` does not hold."""
    settings = {key: value for key, _, value in (each.partition("=") for each in options.set)}
    wanted = [
        (count, draw, kind)
        for kind in (None if kind == "any" else kind for kind in options.type or ["any"])
        for count in options.counts
        for draw in range(options.draws if count else 1)
    ]
    keys = {each: key_of(name, each, options, settings) for each in wanted}
    if all(key in done for key in keys.values()):
        return
    began = time.perf_counter()
    config = blemish.configure(
        "lda",
        values={"backbone": options.backbone, "image_size": options.image_size},
        assignments=options.set,
    )
    detector = blemish.fit("lda", path, config=config, calibration_fraction=0)
    method = cast(Lda, detector.method)
    fitted = time.perf_counter() - began
    complain(f"{name}: fitted in {fitted:.0f} s")
    dataset = layouts.read(path)
    seen: dict[bytes, tuple[Scores, Features]] = {}
    commit, dirty = checkout()
    for (count, draw, kind), key in keys.items():
        if key in done:
            continue
        began = time.perf_counter()
        method.forget_defects()
        drawn = labelled_defects(path, count=count, kind=kind, seed=draw)
        samples = (
            drawn.samples
            if options.masks
            else [dataclasses.replace(each, mask=None) for each in drawn.samples]
        )
        stream = PictureStream(drawn.sources, detector.preprocessing, 8, marks=samples)
        passes = Passes(stream, method.backbone.device)
        method.learn_defects(passes, passes.rows, silent)
        known = dataclasses.replace(
            detector.record.data, defects=tuple(sorted(passes.found.digests.values()))
        )
        taught = detector_of(method, dataclasses.replace(detector.record, data=known))
        tested = tuple(it for it in dataset.samples if kind is None or it.defect != kind)
        alone = partial(taught.predict_many, batch_size=1, engine=Remembering(method, seen))
        found = evaluate(taught, dataclasses.replace(dataset, samples=tested), predict=alone)
        yield {
            "key": key,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **{"commit": commit, "dirty": dirty, "data": name},
            **{"anomaly_count": count, "anomaly_type": kind, "draw": draw, "seed": draw},
            **asked(options, settings, kind),
            **of_detector(detector, options),
            **{"counts": dict(found.counts), "left_out": len(found.left_out)},
            **{metric: getattr(found, metric) for metric in (*METRICS, "pixel_auroc_anomalous")},
            "seconds_to_fit": round(fitted, 1),
            "seconds_of_draw": round(time.perf_counter() - began, 1),
        }


def asked(
    options: argparse.Namespace, settings: dict[str, str], kind: str | None
) -> dict[str, Any]:
    """What a row says of the settings, as rows of `blemish bench` do."""
    changed: dict[str, Any] = settings | ({"masks": True} if options.masks else {})
    changed |= {"anomaly_type": kind} if kind else {}
    return {
        **{"method": "lda", "recipe": "best", "changed": changed, "label": words(changed)},
        **{"shots": None, "time_budget": None, "shifts": [], "adapt": [], "masks": options.masks},
    }


def of_detector(detector: Detector, options: argparse.Namespace) -> dict[str, Any]:
    """What a row says of the detector, as rows of `blemish bench` do."""
    return {
        "settings": {**detector.manifest["config"], "masks": options.masks},
        "backbone": options.backbone,
        "resolution": [detector.preprocessing.height, detector.preprocessing.width],
        "weights": detector.manifest["backbone"]["weights"],
        "precision": detector.manifest["precision"],
        "device": hardware(detector.method.backbone.device),
        **{"schedule": "", "training": None, "multi_class": False, "differs": []},
        "compared_at": RESOLUTION,
    }


def key_of(
    name: str,
    each: tuple[int, int, str | None],
    options: argparse.Namespace,
    settings: dict[str, str],
) -> str:
    """What a row is recognised by."""
    *draw, kind = each
    given = [
        name,
        draw,
        options.backbone,
        options.image_size,
        sorted(settings.items()),
        kind,
        options.masks,
    ]
    return json.dumps(given)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", help="as of `blemish bench --data`")
    parser.add_argument(
        "--counts", type=lambda text: [int(each) for each in text.split(",")], default=[0, 1, 10]
    )
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument(
        "--type", action="append", help="learn from defects of this type only, and test the others"
    )
    parser.add_argument("--masks", action="store_true", help="use the masks of the drawn defects")
    parser.add_argument("--backbone", default="focus_vits14")
    parser.add_argument("--image-size", type=int, default=448)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    done = {json.loads(line)["key"] for line in lines}
    with TemporaryDirectory() as scratch:
        for name, path in data_sets(options.data, root=None, scratch=Path(scratch)).items():
            for row in rows(name, path, options, done):
                with options.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                figures = "  ".join(
                    f"{100 * row[each]:.1f}" for each in METRICS if row[each] is not None
                )
                kind = f" of {row['anomaly_type']}" if row["anomaly_type"] else ""
                complain(f"{name}: M = {row['anomaly_count']}{kind}, draw {row['draw']}: {figures}")


if __name__ == "__main__":
    main()
