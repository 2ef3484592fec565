"""From good pictures to a detector: configuration, features, memory, threshold, manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blemish import config as configs
from blemish.backbones import build
from blemish.compute import pick_device, pick_precision, precision_name
from blemish.data import layouts
from blemish.data.splits import hold_out
from blemish.data.stream import PictureStream
from blemish.data.transforms import Preprocessing
from blemish.errors import ConfigError, DataError, unknown_name
from blemish.methods import Method, MethodConfig, method_class
from blemish.predictor import BATCH_SIZE, Detector, describe, place
from blemish.thresholds import calibrate, pictures_needed
from blemish.types import NORMAL, Failure, Progress, Sample, silent

DEFAULT_RATE = 0.05
HELD_OUT = 0.2
_SCALE_PICTURES = 16  # how many training pictures set the heatmaps' scale where none is scored for the threshold


def configure(
    method: str,
    *,
    recipe: str = "best",
    values: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
) -> MethodConfig:
    """The config of a method: a recipe, then `values` (None entries are skipped), then key=value `assignments`.

    Raises: ConfigError for an unknown method, recipe or key (the nearest name is suggested) or a bad value.
    """
    kind = method_class(method)
    recipes = kind.Config.recipes()
    if recipe not in recipes:
        raise unknown_name(f"recipe of {method}", recipe, recipes)
    given = {key: value for key, value in (values or {}).items() if value is not None}
    return configs.override(configs.from_dict(kind.Config, given, base=recipes[recipe]()), assignments)


def fit(
    method: str,
    good: Any,
    *,
    recipe: str = "best",
    config: MethodConfig | None = None,
    weights: str | Path | None = None,
    seed: int | None = None,
    false_alarm_rate: float | None = None,
    calibration_fraction: float | None = None,
    window: tuple[float, float] | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
    **settings: Any,
) -> Detector:
    """A detector fitted on good pictures.

    Args:
        method: a name of `blemish.METHODS`.
        good: a path (a flat folder, a data set of any known layout, of which the good training pictures are taken, a
            picture), or a list of paths, PIL images or arrays.
        recipe, settings: the recipe and single settings of it, as `backbone="focus_vits14"`, `image_size=224`; or
            `config`, a whole config object.
        weights: a local weights file instead of the backbone's own source; "random" only where that is meant.
        seed: of everything random: split, sampling.
        false_alarm_rate: share of normal pictures that may raise an alarm; None = 0.05, without a threshold where the
            pictures are too few for it.
        calibration_fraction: share of the pictures held out for the threshold. None = what the method does best:
            leave-one-out (nothing held out) for memory banks, else 0.2. 0 = no threshold.
        window: (lo, hi) of the pixel values, for 16-bit and DICOM pictures; stored and used at prediction.
        device, precision: see `blemish.load`.
        progress: called with (stage, done, total).
    Raises: ConfigError, WeightsError; DataError when there is no usable picture or fewer than the method needs;
        CalibrationError when a rate given by name is beyond what the pictures support.

    Pictures that cannot be decoded are left out and named in `detector.manifest["data"]["failures"]`.
    """
    started = time.perf_counter()
    if config is not None and (settings or recipe != "best"):
        raise ConfigError("give either a whole config, or a recipe and single settings, not both")
    chosen = config if config is not None else configure(method, recipe=recipe, values=settings)
    kind = method_class(method)
    seed = chosen.seed if seed is None else seed
    if not isinstance(chosen, kind.Config):
        raise ConfigError(f"{method} takes a {kind.Config.__name__}, got a {type(chosen).__name__}")
    if calibration_fraction is not None and not 0 <= calibration_fraction < 1:
        raise ConfigError(f"calibration_fraction: a fraction in [0, 1) is needed, got {calibration_fraction}")
    if calibration_fraction == 0 and false_alarm_rate is not None:
        raise ConfigError("a false-alarm rate needs calibration pictures, and calibration_fraction is 0")
    rate = DEFAULT_RATE if false_alarm_rate is None else false_alarm_rate
    pictures_needed(rate)  # refuses a rate outside (0, 1) before any work
    if window is not None and not window[0] < window[1]:
        raise ConfigError(f"window: two numbers (lo, hi) with lo < hi are needed, got {window}")
    sources, layout = _good_sources(good)

    torch_device = pick_device(device)
    dtype = pick_precision(precision, torch_device)
    progress("loading the backbone", 0, 0)
    backbone = build(chosen.backbone, weights=weights, seed=seed)
    height, width = backbone.round_size(*chosen.height_width)
    chosen = dataclasses.replace(
        chosen, image_size=(height, width), layers=backbone.check_layers(chosen.layers), seed=seed
    )
    fitted: Method = kind(chosen, backbone)
    place(fitted, torch_device, dtype)
    preprocessing = Preprocessing(height=height, width=width, mean=backbone.mean, std=backbone.std, window=window)

    plan = _plan(kind, len(sources), calibration_fraction)
    kept, held = hold_out_sources(sources, plan.fraction, seed)
    if len(kept) < kind.minimum_images:
        raise DataError(
            f"{method} needs at least {kind.minimum_images} training pictures, got {len(kept)}"
            + (f" ({len(held)} held out for the threshold)" if held else "")
        )
    stream = PictureStream([sources[i] for i in kept], preprocessing, batch_size, rotations=chosen.rotations)
    held_stream = PictureStream([sources[i] for i in held], preprocessing, batch_size)
    try:
        with torch.inference_mode():
            fitted.fit(lambda: _on(stream, torch_device), stream.batches, progress)
    except ConfigError:
        if len(stream.sources) - len(stream.failures) >= kind.minimum_images:
            raise  # else the reason is that pictures are broken: said below, with their names
    usable = len(stream.sources) - len(stream.failures)
    if usable < kind.minimum_images:
        raise DataError(_too_few(method, kind, usable, stream.failures))

    with torch.inference_mode():
        calibration = _calibration_scores(fitted, plan, stream, held_stream, usable, progress)
    threshold = None
    if plan.method is not None:
        threshold = calibrate(calibration.scores, rate, method=plan.method, required=false_alarm_rate is not None)
    failures = [*stream.failures.values(), *held_stream.failures.values()]
    fitted_digests = [stream.digests[i] for i in sorted(stream.digests)]
    held_digests = [held_stream.digests[i] for i in sorted(held_stream.digests)]
    manifest = {
        "blemish": _version("blemish"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **describe(fitted, preprocessing),
        "recipe": recipe if config is None else None,
        "seed": seed,
        "precision": precision_name(dtype),
        "device": torch_device.type,
        "seconds": round(time.perf_counter() - started, 3),
        "map_scale": calibration.scale,
        "calibration_scores": calibration.scores,
        "data": {
            "layout": layout,
            "count": len(fitted_digests) + len(held_digests),
            "fingerprint": hashlib.sha256("".join(sorted(fitted_digests + held_digests)).encode()).hexdigest(),
            "fitted": fitted_digests,
            "calibrated": held_digests,
            "failures": [failure.to_dict() for failure in failures],
        },
        "versions": versions(),
    }
    return Detector(fitted, preprocessing, threshold, manifest)


def recalibrate(
    detector: Detector,
    good: Any,
    *,
    false_alarm_rate: float | None = None,
    progress: Progress = silent,
) -> tuple[Detector, list[Failure], int]:
    """The detector with a threshold from other normal pictures (split conformal).

    Pictures that it was fitted on are recognised by content and left out.

    Returns: the detector, the pictures that could not be decoded, and how many were left out.
    Raises: DataError when none is left; CalibrationError when they are too few for the rate.
    """
    sources, _ = _good_sources(good)
    known = set(detector.manifest["data"]["fitted"])
    scores: list[float] = []
    digests: list[str] = []
    failures: list[Failure] = []
    left_out = 0
    for done, result in enumerate(detector.predict_many(sources), start=1):
        progress("scoring", done, len(sources))
        if isinstance(result, Failure):
            failures.append(result)
        elif result.digest in known:
            left_out += 1
        else:
            scores.append(result.score)
            digests.append(result.digest)
    if not scores:
        raise DataError("no picture is left to calibrate on: all were used for fitting or could not be read")
    rate = DEFAULT_RATE if false_alarm_rate is None else false_alarm_rate
    threshold = calibrate(scores, rate, method="split conformal", required=True)
    data = {**detector.manifest["data"], "calibrated": digests}
    manifest = {**detector.manifest, "data": data, "calibration_scores": scores}
    return Detector(detector.method, detector.preprocessing, threshold, manifest), failures, left_out


@dataclass(frozen=True)
class _Plan:
    """How the threshold comes about: the share held out, and the method's name (None: no threshold)."""

    fraction: float
    method: Any


def _plan(kind: type[Method], count: int, fraction: float | None) -> _Plan:
    if fraction == 0:
        return _Plan(0.0, None)
    if fraction is None and kind.leaves_one_out:
        return _Plan(0.0, "leave-one-out")
    share = HELD_OUT if fraction is None else fraction
    return _Plan(share if count > 1 else 0.0, "split conformal")


@dataclass(frozen=True)
class _Calibration:
    scores: list[float]
    scale: list[float]


def _calibration_scores(
    method: Method,
    plan: _Plan,
    stream: PictureStream,
    held: PictureStream,
    usable: int,
    progress: Progress,
) -> _Calibration:
    """Scores of the calibration pictures, and the scale of the heatmaps from their maps."""
    one_out = method.leaves_one_out and usable > 1
    scored = plan.method is not None
    if plan.method == "split conformal" and held.sources:
        pictures = held
        one_out = False
    else:
        count = len(stream.sources) if scored else min(_SCALE_PICTURES, len(stream.sources))
        pictures = dataclasses.replace(stream, sources=stream.sources[:count], rotations=1)
    device = next(method.backbone.parameters()).device
    scores: list[float] = []
    samples: list[np.ndarray] = []
    learned = set(stream.digests.values())
    for done, batch in enumerate(_on(pictures, device), start=1):
        result = method.score_left_out(batch) if one_out else method.score(batch.images)
        for owner, score in zip(batch.owners.tolist(), result.image.float().cpu().tolist(), strict=True):
            if pictures is not held or held.digests[owner] not in learned:  # a copy of a training picture tells nothing
                scores.append(score)
        samples.append(result.maps.float().cpu().numpy()[:, ::4, ::4].ravel())
        progress("calibrating", done, pictures.batches)
    if not samples:
        return _Calibration([], [0.0, 1.0])
    low, high = np.quantile(np.concatenate(samples), [0.5, 0.999])
    span = max(float(high - low), 1e-6)
    meaningful = pictures is held or (plan.method == "leave-one-out" and one_out)
    return _Calibration(scores if meaningful else [], [float(low), float(low) + 2 * span])


def _good_sources(good: Any) -> tuple[list[Any], str]:
    """The normal training pictures that `good` names, and how it was recognised."""
    if isinstance(good, (str, Path)):
        dataset = layouts.read(good)
        train = dataset.train() or dataset.normals()
        normal = [sample for sample in train if sample.label == NORMAL]
        if not normal:
            raise DataError(f"{good}: holds no picture that is known to be good; {dataset.description}")
        return [sample.path for sample in normal], dataset.description
    if isinstance(good, np.ndarray) or not isinstance(good, Iterable):
        raise DataError("good: a path, or a list of paths, PIL images or arrays is needed")
    sources: list[Any] = []
    notes: list[str] = []
    for item in good:
        if isinstance(item, (str, Path)):
            paths, note = _good_sources(item)
            sources += paths
            notes.append(note)
        else:
            sources.append(item.path if isinstance(item, Sample) else item)
    if not sources:
        raise DataError("good: there is no picture in the list")
    return sources, "; ".join(notes) or f"{len(sources)} pictures given one by one"


def hold_out_sources(sources: Sequence[Any], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions kept and held out: by path where all are paths, by position otherwise."""
    if fraction == 0:
        return list(range(len(sources))), []
    names = [str(s) if isinstance(s, (str, Path)) else f"{i:09d}" for i, s in enumerate(sources)]
    seen: Counter[str] = Counter()
    for i, name in enumerate(names):  # a path given twice is two sources
        names[i] = f"{name} {seen[name]}" if seen[name] else name
        seen[name] += 1
    stand_ins = [Sample(path=Path(name)) for name in names]
    position = {sample.path: i for i, sample in enumerate(stand_ins)}
    kept, held = hold_out(stand_ins, fraction, seed)
    return [position[s.path] for s in kept], [position[s.path] for s in held]


def _on(stream: PictureStream, device: torch.device) -> Iterable[Any]:
    for batch in stream:
        yield dataclasses.replace(batch, images=batch.images.to(device))


def _too_few(method: str, kind: type[Method], usable: int, failures: Mapping[int, Failure]) -> str:
    lines = [f"{method} needs at least {kind.minimum_images} readable training pictures, got {usable}"]
    lines += [f"{failure.source}: {failure.reason}" for failure in list(failures.values())[:5]]
    return "\n  ".join(lines)


def versions() -> dict[str, str]:
    """What the result was made with."""
    names = ("torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


__all__ = ["configure", "fit", "recalibrate", "versions"]
