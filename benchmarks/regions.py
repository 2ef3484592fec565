"""How well marked regions fit the defects: blemish's, and what other ways to cut a map give on the
same maps.

    blemish bench --methods patchcore --data bottle,screw --false-alarm-rate 0.05 \\
        --results rows.jsonl --keep artifacts/
    python benchmarks/regions.py artifacts/ bottle screw --results benchmarks/results/regions.jsonl

The artifacts are those that `bench --keep` has written, told by their names (METHOD-DATA-KEY); the
data sets are named as for `bench --data`. Of each artifact a row for each cut:

- blemish: the regions of `Prediction.regions`;
- the threshold of the regions, and that of the picture's score, as plain cuts;
- quantiles of normal pixels: of the places of the maps that the thresholds come from, those of the
  training pictures each left out in turn, or of the pictures held out;
- the best F1 of the pixels on the test labels: an oracle, that is no way to set a threshold.

Plain cuts mark every pixel of the map at the picture's own size (bilinear) above one level, and
each connected part of them is a region.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch

import blemish
from blemish.bench.conditions import calibration, checkout, hardware
from blemish.bench.plan import data_sets
from blemish.cli.console import complain
from blemish.data import layouts
from blemish.data.marks import is_placed, marked
from blemish.data.pictures import good_pictures
from blemish.data.stream import PictureStream
from blemish.detector.predict import Detector
from blemish.methods.capabilities import LeavesOneOut
from blemish.metrics.cuts import BestCut, parts_above
from blemish.metrics.detections import DetectionMetrics
from blemish.types import ANOMALOUS, Prediction

OURS = "blemish's regions"
ORACLE = "best F1 on the test labels (oracle)"
QUANTILES = (0.999, 0.995)
Compared = list[tuple[Prediction, np.ndarray | None]]


@torch.inference_mode()
def normal_maps(detector: Detector, path: Path) -> list[np.ndarray]:
    """The maps that the thresholds come from: of each training picture as if it had not been
    learned from, or of those held out.

    Raises: SystemExit where these are not the maps that the detector was calibrated on.
    """
    pictures = good_pictures(path)
    known = detector.threshold
    if known is None or detector.record.regions is None:
        raise SystemExit(f"{path}: the artifact has no thresholds; bench with --false-alarm-rate")
    maps: dict[str, np.ndarray] = {}
    if known.method == "leave-one-out":
        assert isinstance(detector.method, LeavesOneOut)
        stream = PictureStream(pictures.sources, detector.preprocessing, 8)
        reading = stream.on(detector.method.backbone.device)
        for batch in reading:
            found = detector.method.score_left_out(batch).maps.float().cpu().numpy()
            for owner, one in zip(batch.owners.tolist(), found, strict=True):
                maps.setdefault(reading.found.digests[owner], one)
    else:
        held = set(detector.record.data.calibrated)
        for result in detector.predict_many(pictures.sources):
            if isinstance(result, Prediction) and result.digest in held:
                maps.setdefault(result.digest, result.anomaly_map)
    highest = np.sort([one.max() for one in maps.values()])
    levels = np.sort(detector.record.regions.levels)
    same = len(highest) == len(levels) and np.allclose(highest, levels, rtol=1e-3)
    if not same and not detector.smallest_region:
        raise SystemExit(f"{path}: the pictures there are not those that the artifact learned from")
    return list(maps.values())


def compared(detector: Detector, dataset: layouts.Dataset) -> Compared:
    """The test pictures whose defects are marked, and the normal ones, each with its mask at its
    own size."""
    samples = [
        sample
        for sample in dataset.test()
        if sample.label is not None and (sample.label != ANOMALOUS or is_placed(sample))
    ]
    found: Compared = []
    for sample, result in zip(samples, detector.predict_many(samples), strict=True):
        if isinstance(result, Prediction):
            found.append((result, marked(sample, *result.size)))
        else:
            complain(f"{result.source}: {result.reason}")
    return found


def levels(detector: Detector, maps: list[np.ndarray], pairs: Compared) -> dict[str, float]:
    """The plain cuts, by name."""
    places = np.concatenate([one.ravel() for one in maps])
    quantiles = dict(zip(QUANTILES, np.quantile(places, QUANTILES).tolist(), strict=True))
    tops = [result.anomaly_map for result, _ in pairs]
    best = BestCut(min(one.min() for one in tops), max(one.max() for one in tops))
    for result, mask in pairs:
        best.add(resized(result), mask)
    found = best.compute()
    regions, score = detector.region_threshold_for(), detector.threshold
    assert regions is not None
    assert score is not None
    cuts = {
        "threshold of the regions, plain": regions.value,
        "threshold of the picture's score": score.value,
        **{f"{100 * q:g} % of normal pixels": level for q, level in quantiles.items()},
        ORACLE: None if found is None else found[1],
    }
    return {name: level for name, level in cuts.items() if level is not None}


def resized(result: Prediction) -> np.ndarray:
    """As `Prediction.heatmap`, which would be kept."""
    height, width = result.size
    return cv2.resize(result.anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR)


def measured(pairs: Compared, level: float | None) -> dict[str, Any]:
    """What the regions of a cut are worth; None = blemish's own."""
    metrics = DetectionMetrics([])
    for result, mask in pairs:
        if level is None:
            parts = [region.mask for region in result.regions or ()]
        else:
            parts = parts_above(resized(result), level)
        metrics.add(result.anomaly_map, mask, parts)
    found = metrics.compute()
    values = asdict(found)
    del values["recall_at"]  # of the maps, whatever the cut
    shown = found.normal_with_region / found.normal if found.normal else None
    return {
        **values,
        "region_recall": found.region_recall,
        "false_per_picture": found.false_regions / found.pictures,
        "normal_with_region_share": shown,
    }


def rows(file: Path, name: str, path: Path) -> Iterator[dict[str, Any]]:
    """The rows of an artifact."""
    began = time.perf_counter()
    commit, dirty = checkout()
    # As it was calibrated: another precision gives other maps.
    precision = blemish.load(file).manifest["precision"]
    detector = blemish.load(file, precision=precision)
    pairs = compared(detector, layouts.read(path))
    maps = normal_maps(detector, path)
    cuts: dict[str, float | None] = {OURS: None, **levels(detector, maps, pairs)}
    regions, config = detector.region_threshold_for(), detector.manifest["config"]
    for cut, level in cuts.items():
        found = measured(pairs, level)
        yield {
            "what": "regions",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **{"commit": commit, "dirty": dirty, "data": name, "cut": cut},
            "level": regions.value if level is None and regions else level,
            **found,
            "method": detector.method.name,
            **{"backbone": config["backbone"], "seed": config["seed"]},
            "weights": detector.manifest["backbone"]["weights"],
            "resolution": [detector.preprocessing.height, detector.preprocessing.width],
            "false_alarm_rate": detector.threshold.rate if detector.threshold else None,
            "calibration": calibration(detector),
            "precision": detector.manifest["precision"],
            "device": hardware(detector.method.backbone.device),
            "seconds": round(time.perf_counter() - began, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "artifacts", type=Path, help="folder that `blemish bench --keep` has filled"
    )
    parser.add_argument("data", nargs="+", help="as of `blemish bench --data`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as scratch:
        for name, path in data_sets(options.data, root=None, scratch=Path(scratch)).items():
            files = sorted(options.artifacts.glob(f"*-{name}-????????.blemish"))
            if not files:
                raise SystemExit(f"{options.artifacts}: holds no artifact of {name}")
            for file in files:
                made = list(rows(file, name, path))
                with options.results.open("a", encoding="utf-8") as lines:
                    lines.writelines(json.dumps(row) + "\n" for row in made)
                for row in made:
                    shown = ("iou", "f1", "region_recall", "false_per_picture")
                    figures = "  ".join(f"{key} {row[key]:.3f}" for key in shown)
                    share = row["normal_with_region_share"]
                    complain(f"{name}, {row['cut']}: {figures}  good with a region {share:.3f}")


if __name__ == "__main__":
    main()
