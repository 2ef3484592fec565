"""One candidate, fitted and held against the pictures that choose; in a process of its own
(`python -m blemish.bench.choosing.trial`, with its order on standard input), so that its memory is
its own and a crash ends only it.

Of methods that are not trained all that the backbone gives is kept in a folder (`FeatureFolder`),
for the next one that looks with the same backbone at pictures of the same size.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from blemish import config as configs
from blemish.backbones import Backbone, build
from blemish.backbones.cache import FeatureFolder, features_kept
from blemish.bench import costs
from blemish.bench.choosing.candidates import Candidate
from blemish.bench.choosing.defects import made_of
from blemish.bench.conditions import calibration, hardware, peak_memory_mib
from blemish.bench.processes import Told
from blemish.bench.results.rows import FAILED, OK
from blemish.compute import pick_device, pick_precision
from blemish.data.ahead import load_picture
from blemish.data.transforms import Preprocessing, prepare
from blemish.detector.evidence import Scored, scored_here
from blemish.detector.fit import fit
from blemish.detector.predict import Detector
from blemish.detector.ways import HERE, Way, learned_here
from blemish.errors import BlemishError, DataError
from blemish.images import Picture, decode_mask
from blemish.methods import Method
from blemish.metrics.regions import PixelMetrics
from blemish.types import NORMAL, RESOLUTION, Failure, Prediction, Progress, Sample

SCHEMA = 2  # 1: without `places`
GOOD, GENERATED, LABELLED = "good", "generated", "labelled"
CHECKING_GOOD, CHECKING = "checking good", "checking"
FEATURE_BYTES = 8 * 2**30  # that are kept between candidates, at most
_SPEED_PICTURES = 8  # of one batch, by which the backbone is timed
_REPEATS = 10


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the process of a candidate is told.

    Attributes:
        candidate: as `Candidate.to_dict` has it.
        learned: path and category of each picture to learn from.
        judged: `id`, `path`, `role` and `category` of each to be scored, of generated defects
            `kind` and `mask`, too.
        rate: of false alarms; None = the default, without a threshold where pictures are too few.
        minutes: that a training may take; of others nobody asks.
        features: a folder for them. seconds_of_picture: that encoding one takes.
    """

    candidate: Mapping[str, Any]
    learned: Sequence[Sequence[str]]
    judged: Sequence[Mapping[str, Any]]
    rate: float | None
    minutes: float
    features: str
    seconds_of_picture: float
    device: str = "auto"
    precision: str = "auto"
    weights: str | None = None


def measured(order: Order, progress: Progress) -> dict[str, Any]:
    """The row of a candidate: what it costs, and what each picture scores.

    `seconds_to_fit` is what a fit takes that begins with nothing: where features were there
    already, with the time that encoding takes.

    Raises: whatever `fit` raises; DataError where no picture is left to judge by.
    """
    one = Candidate(**order.candidate)
    trained = one.learns_by_gradient
    store = None if trained else _Kept(Path(order.features))
    samples = [
        Sample(path=Path(path), label=NORMAL, category=category) for path, category in order.learned
    ]
    detector = fit(
        one.method,
        samples,
        config=one.config,
        weights=order.weights,
        false_alarm_rate=order.rate,
        time_budget=order.minutes if trained else None,
        device=order.device,
        precision=order.precision,
        progress=progress,
        way=HERE if store is None else store.way(),
    )
    saved = 0.0 if store is None else len(store.found) * order.seconds_of_picture
    scores, failures, pixels, places = _scored(detector, order.judged, store, progress)
    peak = peak_memory_mib()
    row = {
        **{"schema": SCHEMA, "status": OK, "scores": scores},
        "thresholds": {name: one.value for name, one in detector.record.thresholds.items()},
        "threshold": None if detector.threshold is None else detector.threshold.value,
        "reason": "" if detector.threshold is None else detector.threshold.reason,
        "rate": None if detector.threshold is None else detector.threshold.rate,
        "calibration": calibration(detector),
        "aupro": pixels,
        "places": places,
        "seconds_to_fit": round(detector.record.seconds + saved, 2),
        "fitted": len(detector.record.data.fitted),
        "nearly_same": detector.record.data.nearly_same,
        "minutes": order.minutes if trained else None,
        **{name: detector.manifest.get(name) for name in ("training", "pretraining")},
        "peak_memory_mib": peak,
        "failures": [*detector.manifest["data"]["failures"], *failures],
        "backbone": detector.manifest["config"]["backbone"],
        "weights": detector.manifest["backbone"]["weights"],
        "config": detector.manifest["config"],
        "precision": detector.manifest["precision"],
        "device": hardware(detector.method.backbone.device),
        "blemish": detector.manifest["blemish"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    progress("measuring what it costs", 0, 0)
    picture = _first_picture(order.judged)
    return {**row, "efficiency": dict(costs.measure(detector, picture, repeats=_REPEATS))}


def _first_picture(judged: Sequence[Mapping[str, Any]]) -> Picture:
    loads = (load_picture(row["path"], at, None) for at, row in enumerate(judged))
    picture = next((one for one in loads if isinstance(one, Picture)), None)
    if picture is None:
        raise DataError("none of the pictures to judge by can be read")
    return picture


def _scored(
    detector: Detector,
    judged: Sequence[Mapping[str, Any]],
    store: _Kept | None,
    progress: Progress,
) -> tuple[dict[str, float], list[dict[str, Any]], float | None, dict[str, dict[str, float]]]:
    """The scores by id, pictures that were learned from or that are broken left out; the broken
    ones; the AUPRO of the generated defects; and by id how many `regions` each of these has, and
    their mean `overlap` (`PixelMetrics.overlaps`)."""
    scores: dict[str, float] = {}
    failures: list[dict[str, Any]] = []
    pixels, known, masked = PixelMetrics(), detector.learned, list[str]()
    samples = [Sample(path=Path(row["path"]), category=row["category"]) for row in judged]
    with _encoding(detector.method, store):
        for done, (row, found) in enumerate(
            zip(judged, detector.predict_many(samples), strict=True), start=1
        ):
            progress("scoring", done, len(judged))
            if isinstance(found, Failure):
                failures.append(found.to_dict())
            elif found.digest not in known:
                scores[row["id"]] = found.score
                if row["role"] in (GOOD, GENERATED):
                    masked += [row["id"]] * _compare(pixels, found, row.get("mask"))
    places = {
        one: {"regions": regions, "overlap": overlap}
        for one, (regions, overlap) in zip(masked, pixels.overlaps(), strict=True)
    }
    return scores, failures, pixels.compute().aupro, places


def _compare(pixels: PixelMetrics, found: Prediction, mask: str | None) -> bool:
    """One picture's map beside the mask of its defect, at 256×256; whether it has a defect."""
    size = (RESOLUTION, RESOLUTION)
    seen = cv2.resize(found.anomaly_map, size, interpolation=cv2.INTER_LINEAR)
    if mask is None:
        pixels.add(seen, None)
        return False
    marked = decode_mask(mask).astype(np.uint8)
    small = cv2.resize(marked, size, interpolation=cv2.INTER_AREA) > 0
    pixels.add(seen, small)
    return bool(small.any())


class _Kept:
    """The folder of features, where one backbone in one precision has a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store: FeatureFolder | None = None

    @property
    def found(self) -> set[bytes]:
        """The pictures that an earlier process has encoded, of those asked for so far."""
        return set() if self._store is None else set(self._store.found)

    def of(self, backbone: Backbone) -> FeatureFolder:
        if self._store is None:
            told = backbone.info.sha256[:12] or "random"
            name = f"{backbone.spec.name}-{told}-{str(backbone.dtype).removeprefix('torch.')}"
            self._store = FeatureFolder(self._folder / name, FEATURE_BYTES)
        return self._store

    def way(self) -> Way:
        """Learning and scoring that keep what they see."""

        def learn(method: Method, *more: Any) -> Any:
            with _encoding(method, self):
                return learned_here(method, *more)

        def score(method: Method, *more: Any) -> Scored:
            with _encoding(method, self):
                return scored_here(method, *more)

        return Way(learn=learn, score=score, here=False)


@contextmanager
def _encoding(method: Method, store: _Kept | None) -> Iterator[None]:
    """While open, features come from the folder where they are there."""
    if store is None:
        yield
        return
    with features_kept(method.backbone, method.layers, store.of(method.backbone)):
        yield


def prepared(order: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """How long the backbone takes for a picture of each of the `sizes`, and where asked for, the
    generated defects as files.

    Args:
        order: `backbone`, `weights`, `device`, `precision`; `sizes`, each height and width; `good`,
            path and category of each picture to put defects into; `folder` for them; `seed`;
            `smallest`, as of `defects.spoilt`.
    """
    progress("loading the backbone", 0, 0)
    device = pick_device(order["device"])
    precision = pick_precision(order["precision"], device)
    backbone = build(order["backbone"], weights=order["weights"], seed=order["seed"])
    backbone = backbone.to(device, precision).eval()
    samples = [Sample(path=Path(path), category=category) for path, category in order["good"]]
    rows, failures = made_of(
        samples,
        Path(order["folder"]),
        backbone,
        seed=order["seed"],
        smallest=order["smallest"],
        progress=progress,
    )
    if not rows:
        why = f": {failures[0].source}: {failures[0].reason}" if failures else ""
        raise DataError(f"none of the good pictures that were left out can be read{why}")
    some = [load_picture(row["path"], at, None) for at, row in enumerate(rows[:_SPEED_PICTURES])]
    pictures = [one for one in some if isinstance(one, Picture)]
    seconds = {}
    for height, width in order["sizes"]:
        progress("timing the backbone", 0, 0)
        seconds[f"{height}x{width}"] = _seconds(backbone, height, width, pictures)
    return {
        "generated": rows,
        "failures": [one.to_dict() for one in failures],
        "seconds": seconds,
    }


@torch.inference_mode()
def _seconds(backbone: Backbone, height: int, width: int, pictures: Sequence[Picture]) -> float:
    """For one of a batch of pictures, decoding not included."""
    height, width = backbone.round_size(height, width)
    looks = Preprocessing(height=height, width=width, mean=backbone.mean, std=backbone.std)
    images = torch.stack([torch.from_numpy(prepare(one, looks)) for one in pictures])
    images = images.to(backbone.device)
    backbone(images[:1])  # the first time chooses kernels
    began = time.perf_counter()
    for layer in backbone(images).tokens:
        layer.sum().item()  # a GPU is waited for
    return (time.perf_counter() - began) / len(images)


def answer(order: Mapping[str, Any], progress: Progress) -> None:
    """Work, and print the answer as one line; one that failed says why."""
    try:
        if order["work"] == "prepare":
            made = prepared(order, progress)
        else:
            made = measured(Order(**order["order"]), progress)
        printed = json.dumps(made, allow_nan=False)
    except Exception as error:
        kind = type(error).__name__
        said = str(error) if isinstance(error, BlemishError) else f"{kind}: {error}"
        printed = json.dumps({"schema": SCHEMA, "status": FAILED, "kind": kind, "error": said})
    print(printed)


if __name__ == "__main__":
    answer(configs.parse_json(sys.stdin.read()), Told())
