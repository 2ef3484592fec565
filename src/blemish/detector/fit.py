"""From good pictures to a detector: configuration, which pictures, what is learned of them, thresholds, manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blemish import artifact
from blemish import config as configs
from blemish.backbones import build
from blemish.backbones.cache import features_kept
from blemish.compute import pick_device, pick_precision, precision_name
from blemish.data.defects import NONE, labelled_defects
from blemish.data.good import GoodPictures, draw_shots, good_pictures, hold_out_sources
from blemish.data.stream import PictureStream
from blemish.data.transforms import Preprocessing
from blemish.detector.calibrate import DEFAULT_RATE, calibration_scores, planned
from blemish.detector.categories import PICTURES_OF_EACH, NearestCategory, features
from blemish.detector.manifest import Broken, CategoryFeatures, Learned, Manifest, TrainingRecord
from blemish.detector.predict import BATCH_SIZE, Detector, describe, place
from blemish.detector.pretrain import pretrained
from blemish.detector.thresholds import calibrate, pictures_needed
from blemish.errors import ConfigError, DataError, unknown_name
from blemish.methods import Method, MethodConfig, method_class
from blemish.methods.trained import TrainedMethod
from blemish.training import distributed, train
from blemish.training.checkpoint import check_free
from blemish.types import ANOMALOUS, NORMAL, Progress, silent

FEW_SHOT_ROTATIONS = 16  # each of them also mirrored: 32 copies of every shot


def configure(
    method: str,
    *,
    recipe: str = "best",
    values: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
    shots: int | None = None,
) -> MethodConfig:
    """The config of a method: a recipe, then `values` (None entries are skipped), then key=value `assignments`.

    With `shots` the recipe is the one for few pictures: each learned at 16 angles, plain and mirrored.

    Raises: ConfigError for an unknown method, recipe or key (the nearest name is suggested) or a bad value.
    """
    kind = method_class(method)
    recipes = kind.Config.recipes()
    if recipe not in recipes:
        raise unknown_name(f"recipe of {method}", recipe, recipes)
    base = recipes[recipe]()
    if shots is not None:
        base = dataclasses.replace(base, rotations=FEW_SHOT_ROTATIONS, flips=True)
    given = {key: value for key, value in (values or {}).items() if value is not None}
    return configs.override(configs.from_dict(kind.Config, given, base=base), assignments)


def fit(
    method: str,
    good: Any,
    *,
    anomalies: Any = None,
    anomaly_count: int | None = None,
    anomaly_type: str | None = None,
    recipe: str = "best",
    config: MethodConfig | None = None,
    weights: str | Path | None = None,
    seed: int | None = None,
    shots: int | None = None,
    false_alarm_rate: float | None = None,
    calibration_fraction: float | None = None,
    window: tuple[float, float] | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = BATCH_SIZE,
    time_budget: float | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    log: str | Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Detector:
    """A detector fitted on good pictures, of one kind of part or of several.

    Args:
        method: a name of `blemish.METHODS`.
        good: a path (a flat folder, a data set of any known layout, of which the good training pictures are taken, a
            picture), or a list of paths, PIL images, arrays or `Sample`s. Two or more categories, as those of a data
            set that names them or as several folders (bottle/train/good is "bottle"), give one detector for all of
            them, with a threshold for each and a common one.
        anomalies: pictures of known defects, named as `good` is, for methods that learn from them: all pictures of a
            flat folder, the defective ones of a data set. Masks are used where they are known and the method can.
        anomaly_count: learn from so many of them, drawn by the seed; `evaluate` then leaves these out, and the others
            of the same folder test it. None = from all.
        anomaly_type: only from defects of this type.
        recipe, settings: the recipe and single settings of it, as `backbone="focus_vits14"`, `image_size=224`; or
            `config`, a whole config object.
        weights: a local weights file instead of the backbone's own source; "random" only where that is meant.
        seed: of everything random: shots, split, sampling, training.
        shots: learn from this many pictures of each category, drawn by the seed; none of them is held out unless
            `calibration_fraction` is given. Every one is learned at 16 angles, plain and mirrored, unless `rotations`
            or `flips` are given.
        false_alarm_rate: share of normal pictures that may raise an alarm; None = 0.05, without a threshold where the
            pictures are too few for it. A category with too few is judged by the common threshold.
        calibration_fraction: share of the pictures held out for the threshold, of each category. None = what the
            method does best: leave-one-out (nothing held out) for memory banks and padim, else 0.2. 0 = no threshold.
        window: (lo, hi) of the pixel values, for 16-bit and DICOM pictures; stored and used at prediction.
        device, precision: see `blemish.load`.
        time_budget: minutes that training may take; its schedules are shaped to end there. Where the backbone is
            pre-trained first (`pretraining` of `guided`) each of the two gets half of them. Trained methods only.
        checkpoint: file in which training is kept so that it can be gone on from, a pre-training in a second one beside
            it; None = nowhere. Trained methods only. Both stay when the training is done: whoever has saved the
            detector removes them, see `checkpoints`.
        resume: go on from there. A pre-training that had ended is not repeated.
        log: as of `blemish.pretrain`, of a pre-training where there is one.
        progress: called with (stage, done, total).
    Raises: ConfigError, WeightsError; DataError when there is no usable picture, fewer than the method needs or than
        the shots; CalibrationError when a rate given by name is beyond what the pictures support; CollapseError by a
        pre-training.

    Pictures that cannot be decoded are left out and named in `detector.manifest["data"]["failures"]`. Copies of a
    picture are learned from, but count once for the threshold (`data.copies`); how many look nearly the same as
    another is told as well (`data.nearly_same`).
    """
    started = time.perf_counter()
    if config is not None and (settings or recipe != "best"):
        raise ConfigError("give either a whole config, or a recipe and single settings, not both")
    chosen = (
        config
        if config is not None
        else configure(method, recipe=recipe, values=settings, shots=shots)
    )
    kind = method_class(method)
    if not isinstance(chosen, kind.Config):
        raise ConfigError(f"{method} takes a {kind.Config.__name__}, got a {type(chosen).__name__}")
    seed = chosen.seed if seed is None else seed
    if calibration_fraction is not None and not 0 <= calibration_fraction < 1:
        raise ConfigError(
            f"calibration_fraction: a fraction in [0, 1) is needed, got {calibration_fraction}"
        )
    if calibration_fraction == 0 and false_alarm_rate is not None:
        raise ConfigError(
            "a false-alarm rate needs calibration pictures, and calibration_fraction is 0"
        )
    rate = DEFAULT_RATE if false_alarm_rate is None else false_alarm_rate
    pictures_needed(rate)  # refuses a rate outside (0, 1) before any work
    if window is not None and not window[0] < window[1]:
        raise ConfigError(f"window: two numbers (lo, hi) with lo < hi are needed, got {window}")
    _check_training(kind, chosen, time_budget, checkpoint, resume)
    if not kind.takes_defects and any(
        given is not None for given in (anomalies, anomaly_count, anomaly_type)
    ):
        raise ConfigError(
            f"{method} does not learn from labelled defects; lda does, with any method to know what is normal "
            f"(--set normality={kind.name})"
        )
    if anomalies is None and (anomaly_count or anomaly_type):
        raise ConfigError(
            "anomaly_count and anomaly_type say which of the anomalies to learn from; name those too"
        )
    defects = NONE
    if anomalies is not None:
        defects = labelled_defects(anomalies, count=anomaly_count, kind=anomaly_type, seed=seed)
    pictures = good_pictures(good).of_one_or_several()
    if shots is not None:
        pictures = pictures.only(draw_shots(pictures.sources, shots, seed, pictures.categories))

    chosen = chosen.for_layout(pictures.layout)
    torch_device = distributed.own_device(pick_device(device))
    dtype = pick_precision(precision, torch_device)
    progress("loading the backbone", 0, 0)
    backbone = build(chosen.backbone, weights=weights, seed=seed)
    height, width = backbone.round_size(*chosen.height_width)
    layers = backbone.check_layers(chosen.layers or kind.usual_layers(backbone))
    chosen = dataclasses.replace(chosen, image_size=(height, width), layers=layers, seed=seed)
    fitted: Method = kind(chosen, backbone)  # refuses what it cannot work with, before any work
    preprocessing = Preprocessing(
        height=height, width=width, mean=backbone.mean, std=backbone.std, window=window
    )

    plan = planned(fitted, len(pictures.sources), calibration_fraction, shots)
    kept, held = map(
        pictures.only,
        hold_out_sources(pictures.sources, plan.fraction, seed, categories=pictures.categories),
    )
    if len(kept.sources) < fitted.minimum_images:
        raise DataError(
            f"{method} needs at least {fitted.minimum_images} training pictures, got {len(kept.sources)}"
            + (f" ({len(held.sources)} held out for the threshold)" if held.sources else "")
        )
    if plan.method is not None and false_alarm_rate is not None:  # said now, not after the work
        most = len(held.sources if plan.method == "split conformal" else kept.sources)
        calibrate(np.zeros(most), rate, method=plan.method, required=True)
    stream = PictureStream(
        kept.sources, preprocessing, batch_size, rotations=chosen.rotations, flips=chosen.flips
    )
    height, width = fitted.scoring_size
    scoring = dataclasses.replace(preprocessing, height=height, width=width)
    held_stream = PictureStream(held.sources, scoring, batch_size)
    place_kept, place_before = (None, None) if checkpoint is None else checkpoints(checkpoint)
    minutes, pretraining = time_budget, None
    before = chosen.pretraining_config
    for file in (place_kept, place_before):
        if file is not None and not resume:
            check_free(file)
    # Joined once for both: the processes do not find each other again by the addresses of a group that has parted.
    with nullcontext() if before is None else distributed.joined(torch_device):
        if before is not None:
            minutes = None if time_budget is None else time_budget / 2
            backbone, pretraining = pretrained(
                backbone.to(torch_device),
                stream,
                before,
                precision=dtype,
                minutes=minutes,
                checkpoint=place_before,
                resume=resume,
                log=None if log is None else Path(log),
                progress=lambda stage, done, total: progress(f"encoder: {stage}", done, total),
            )
            fitted = kind(chosen, backbone)
        place(fitted, torch_device, dtype)
        # Training takes them as it takes the good ones; what is taught by them afterwards, as they are scored.
        trained = isinstance(fitted, TrainedMethod)
        shown = PictureStream(defects.sources, preprocessing if trained else scoring, batch_size)
        training = None
        if isinstance(fitted.learner, TrainedMethod):
            training = _train(
                fitted.learner,
                stream,
                shown,
                minutes=minutes,
                checkpoint=place_kept,
                resume=resume,
                progress=progress,
            )
    # What is not trained may look at the pictures more than once: each of them is encoded once.
    again = training is None and (plan.method == "leave-one-out" or fitted.learner is not fitted)
    with features_kept(fitted.backbone) if again else nullcontext():
        if training is None:
            _learn(fitted, stream, progress)
        _summarise(fitted, stream, scoring, progress)
        if defects.sources and not trained:
            shown = dataclasses.replace(shown, marks=defects.samples)
            fitted.learn_defects(partial(shown.on, torch_device), shown.rows, progress)
        if defects.sources and not shown.digests:
            lines = [
                f"{failure.source}: {failure.reason}"
                for failure in list(shown.failures.values())[:5]
            ]
            raise DataError("\n  ".join(["none of the labelled defects can be read", *lines]))
        calibration = calibration_scores(
            fitted, plan, scoring, stream, held_stream, kept.categories, held.categories, progress
        )
    fitted.end_leaving_out()
    threshold, thresholds = calibration.thresholds(
        plan, rate, pictures.names, required=false_alarm_rate is not None
    )
    failures = [*stream.failures.values(), *held_stream.failures.values(), *shown.failures.values()]
    fitted_digests = [stream.digests[i] for i in sorted(stream.digests)]
    held_digests = [held_stream.digests[i] for i in sorted(held_stream.digests)]
    notes = {**stream.notes, **held_stream.notes, **shown.notes}.values()
    record = Manifest(
        **artifact.provenance(),
        **describe(fitted, scoring),
        recipe=recipe if config is None else None,
        categories=tuple(pictures.names),
        shots=shots,
        seed=seed,
        precision=precision_name(dtype),
        device=torch_device.type,
        seconds=round(time.perf_counter() - started, 3),
        pretraining=pretraining,
        training=training,
        map_scale=(calibration.scale[0], calibration.scale[1]),
        category_features=_category_features(fitted, kept, scoring, batch_size),
        threshold=threshold,
        thresholds=thresholds,
        calibration_scores=tuple(calibration.scores),
        calibration_scores_by_category=calibration.by_category(pictures.names),
        data=Learned(
            layout=pictures.note,
            count=len(fitted_digests) + len(held_digests),
            fingerprint=_fingerprint(sorted(fitted_digests + held_digests)),
            fitted=tuple(fitted_digests),
            calibrated=tuple(held_digests),
            defects=tuple(shown.digests[i] for i in sorted(shown.digests)),
            defects_layout=defects.note,
            copies=calibration.copies,
            nearly_same=calibration.nearly_same,
            failures=tuple(
                Broken(path=failure.source, error=failure.reason) for failure in failures
            ),
            notes=Counter(note for of_one in notes for note in of_one),
        ),
    )
    return Detector(fitted, record)


def checkpoints(path: str | Path) -> tuple[Path, Path]:
    """Where `fit` keeps a training whose `checkpoint` is `path`, and the pre-training before it.

    Example:
        >>> [place.name for place in checkpoints("part.blemish.training")]
        ['part.blemish.training', 'part.blemish.training.pretraining']
    """
    return Path(path), Path(f"{path}.pretraining")


def _check_training(
    kind: type[Method],
    config: MethodConfig,
    time_budget: float | None,
    checkpoint: str | Path | None,
    resume: bool,
) -> None:
    given = {
        "time_budget": time_budget is not None,
        "checkpoint": checkpoint is not None,
        "resume": resume,
    }
    if not config.learns_by_gradient and any(given.values()):
        names = " and ".join(name for name, is_given in given.items() if is_given)
        raise ConfigError(f"{names}: {kind.name} is not trained step by step; leave it out")
    if time_budget is not None and not 0 < time_budget < math.inf:
        raise ConfigError(f"time_budget: a positive number of minutes is needed, got {time_budget}")
    if resume and checkpoint is None:
        raise ConfigError("resume: name the checkpoint to go on from")


def _train(
    method: TrainedMethod,
    stream: PictureStream,
    defects: PictureStream,
    *,
    minutes: float | None,
    checkpoint: Path | None,
    resume: bool,
    progress: Progress,
) -> TrainingRecord:
    """Train the method on what the stream holds and, where it takes them, on the defects.

    Returns: what the training says of itself.
    """
    identity = {
        "method": method.name,
        "config": configs.to_dict(method.config),
        "preprocessing": configs.to_dict(stream.preprocessing),
        "weights": method.backbone.info.sha256,
        "precision": precision_name(method.precision),
        "defects": len(defects.sources) if method.takes_defects else 0,
    }
    both = stream
    if defects.sources and method.takes_defects:
        labels = [NORMAL] * len(stream.sources) + [ANOMALOUS] * len(defects.sources)
        sources = [*stream.sources, *defects.sources]
        both = dataclasses.replace(stream, sources=sources, labels=labels, failures={}, digests={})
    training = train(
        method,
        both,
        seed=method.config.seed,
        minutes=minutes,
        checkpoint=checkpoint,
        resume=resume,
        identity=identity,
        progress=progress,
    )
    if both is not stream:
        _share_out(both, stream, defects)
    _check_usable(method, stream)
    return configs.from_dict(TrainingRecord, training.to_dict())


def _learn(method: Method, stream: PictureStream, progress: Progress) -> None:
    """Teach a method that is not trained what the stream holds."""
    device = next(method.backbone.parameters()).device
    try:
        with torch.inference_mode():
            method.fit(partial(stream.on, device), stream.rows, progress)
    except ConfigError:
        _check_usable(
            method, stream
        )  # where too few can be read that is the reason, and it names them
        raise
    _check_usable(method, stream)


def _summarise(
    fitted: Method, stream: PictureStream, scoring: Preprocessing, progress: Progress
) -> None:
    """Show the method, and the one that it is made of, the training pictures as they will be scored."""
    device = next(fitted.backbone.parameters()).device
    for part in (fitted,) if fitted.learner is fitted else (fitted.learner, fitted):
        if (wanted := part.summarised) != 0:
            every = 1 if wanted is None else -(-stream.rows // wanted)
            sources = stream.sources[::every]
            scored = dataclasses.replace(
                stream, sources=sources, preprocessing=scoring, failures={}, digests={}
            )
            part.summarise(partial(scored.on, device), scored.rows, progress)


def _category_features(
    method: Method, pictures: GoodPictures, preprocessing: Preprocessing, batch_size: int
) -> CategoryFeatures | None:
    """How categories are told apart at prediction, from some pictures of each, evenly; None for one kind of part."""
    found: dict[str, torch.Tensor] = {}
    device = next(method.backbone.parameters()).device
    for name in pictures.names:
        own = [
            source
            for source, category in zip(pictures.sources, pictures.categories, strict=True)
            if category == name
        ]
        some = PictureStream(own[:: -(-len(own) // PICTURES_OF_EACH)], preprocessing, batch_size)
        with torch.inference_mode():
            seen = [
                features(method.backbone, method.config.layers, batch.images)
                for batch in some.on(device)
            ]
        if seen:
            found[name] = torch.cat(seen).cpu()
    if len(found) < max(len(pictures.names), 2):
        return None
    return configs.from_dict(CategoryFeatures, NearestCategory.learned(found).to_dict())


def _share_out(both: PictureStream, *parts: PictureStream) -> None:
    """Tell the streams that one was made of, in this order, what came to be known of their pictures."""
    first = 0
    for part in parts:
        last = first + len(part.sources)
        part.digests |= {
            index - first: each for index, each in both.digests.items() if first <= index < last
        }
        part.failures |= {
            index - first: each for index, each in both.failures.items() if first <= index < last
        }
        first = last


def _check_usable(method: Method, stream: PictureStream) -> None:
    """Raises: DataError where too few of the pictures could be decoded, or they are all the same."""
    usable, different = len(stream.digests), len(set(stream.digests.values()))
    if different < method.minimum_images:
        lines = [
            f"{method.name} needs at least {method.minimum_images} readable training pictures, got {usable}"
        ]
        if different < usable:
            lines[0] += ", all of the same content"
        lines += [
            f"{failure.source}: {failure.reason}" for failure in list(stream.failures.values())[:5]
        ]
        raise DataError("\n  ".join(lines))


def _fingerprint(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


__all__ = ["checkpoints", "configure", "fit"]
