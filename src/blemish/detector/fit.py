"""From good pictures to a detector: request, pictures, build, pre-train, learn, calibrate."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blemish import artifact
from blemish import config as configs
from blemish.backbones import Backbone
from blemish.backbones.cache import features_kept
from blemish.compute import precision_name
from blemish.data.cutting import cut
from blemish.data.geometry import Resize
from blemish.data.pictures import (
    NO_PICTURES,
    Pictures,
    draw_shots,
    good_pictures,
    hold_out_positions,
    labelled_defects,
)
from blemish.data.stream import Found, Passes, PictureStream, fingerprint, unreadable
from blemish.detector.built import Built, build_method
from blemish.detector.calibrate import Calibration, Plan
from blemish.detector.distil import check_pictures, distilled
from blemish.detector.evidence import Seen, calibrated, planned
from blemish.detector.learned import describe, detector_of, place
from blemish.detector.manifest import Learned, Manifest, Pretraining, broken
from blemish.detector.predict import BATCH_SIZE, Detector
from blemish.detector.pretrain import pretrained
from blemish.detector.request import Request, checkpoints, configure
from blemish.detector.scoring import in_use
from blemish.detector.telling import category_features
from blemish.detector.thresholds import calibrate
from blemish.detector.ways import HERE, Way, check_usable
from blemish.errors import DataError
from blemish.methods import Method, MethodConfig
from blemish.methods.capabilities import LearnsDefects, LeavesOneOut, Refines, Summarises
from blemish.methods.foreground import Foreground
from blemish.methods.selfsupervised import SelfSupervisedConfig
from blemish.methods.student import Distillation, StudentConfig
from blemish.methods.telling import PICTURES, foreground_of
from blemish.methods.trained import TrainedMethod
from blemish.training import Training, distributed, train
from blemish.training.budget import Budget
from blemish.training.checkpoint import check_free
from blemish.types import ANOMALOUS, NORMAL, Progress, silent

__all__ = ["checkpoints", "configure", "fit"]
_TWOFOLD = "is among the good pictures and among the defects: take it out of one of them"


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
    smallest_region: float | None = None,
    window: tuple[float, float] | None = None,
    roi: Any = None,
    ignore: Any = None,
    tile: int | str | None = None,
    overlap: float | None = None,
    resize: Resize = "stretch",
    foreground: str = "none",
    student: bool | StudentConfig = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = BATCH_SIZE,
    time_budget: float | None = None,
    compute_budget: float | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    log: str | Path | None = None,
    progress: Progress = silent,
    way: Way = HERE,
    **settings: Any,
) -> Detector:
    """A detector fitted on good pictures, of one kind of part or of several.

    The arguments are told of in `blemish.detector.request.Request`; `settings` are single settings
    of the method, as `backbone="focus_vits14"`, `image_size=224`. `way`: who goes through the
    pictures; `blemish.scale.learning.fit` gives it.

    Pictures that cannot be decoded are left out and named in `detector.record.data.failures`.
    Copies of a picture are learned from, but count once for the threshold (`data.copies`); how many
    look nearly the same as another is told as well (`data.nearly_same`).

    Raises: ConfigError, WeightsError; DataError when there is no usable picture, fewer than the
        method needs or than the shots; CalibrationError when a rate given by name is beyond what
        the pictures support; CollapseError by a pre-training, or for a student that does not see
        what its teacher sees.
    """
    request = Request(
        method=method, good=good, recipe=recipe, config=config, settings=settings, weights=weights,
        anomalies=anomalies, anomaly_count=anomaly_count, anomaly_type=anomaly_type,
        seed=seed, shots=shots, window=window, batch_size=batch_size,
        false_alarm_rate=false_alarm_rate, calibration_fraction=calibration_fraction,
        smallest_region=smallest_region or 0.0, roi=roi, ignore=ignore, resize=resize,
        tile=tile, overlap=overlap, foreground=foreground, student=student,
        device=device, precision=precision, time_budget=time_budget,
        compute_budget=compute_budget, checkpoint=checkpoint, resume=resume, log=log,
        progress=progress,
    )  # fmt: skip
    return _fitted(request, way)


def _fitted(request: Request, way: Way) -> Detector:
    """Pictures, build, pre-train, train, learn, calibrate: as `fit`."""
    started = time.perf_counter()
    good, defects = _pictures(request)
    built = build_method(request, good, defects)
    parts = _divided(request, built, good, defects)
    # Joined once for both trainings: the processes do not find each other again by the addresses
    # of a group that has parted.
    joined = built.method.config.pretraining_config is not None or request.distillation is not None
    with distributed.joined(built.device) if joined else nullcontext():
        built, pretraining = _pretrain(request, built, parts)
        place(built.method, built.device, built.precision)
        outcome = _train(request, built, parts)
    # What is not trained looks at the pictures more than once: each of them is encoded once.
    method = built.method
    again = parts.plan.method == "leave-one-out" or method.learner is not method
    with ExitStack() as keeping:
        if outcome is None and again and way.here:
            for encoder, layers in method.encoders:
                keeping.enter_context(features_kept(encoder, layers))
        outcome = _learn(request, built, parts, outcome, way)
        foreground = _foreground(request, method, parts.scored, outcome.good)
        learned = Seen(parts.scored, parts.kept.categories, outcome.good)
        held_out = Seen(parts.held_out, parts.held.categories, Found())
        calibration, held = calibrated(
            method,
            parts.plan,
            learned,
            held_out,
            request.progress,
            smallest_region=request.smallest_region,
            foreground=in_use(foreground),
            scoring=way.score,
        )
    if isinstance(method, LeavesOneOut):
        method.end_leaving_out()
    record = _record(request, built, parts, outcome, calibration, held)
    taught = method.taught() if isinstance(method, Refines) else None
    record = dataclasses.replace(record, foreground=foreground, in_parts=way.told(), taught=taught)
    seconds = round(time.perf_counter() - started, 3)
    return detector_of(
        method, dataclasses.replace(record, pretraining=pretraining, seconds=seconds)
    )


def _pictures(request: Request) -> tuple[Pictures, Pictures]:
    """The pictures that were named, or the shots drawn from them, and the labelled defects."""
    defects, seed = NO_PICTURES, request.chosen.seed
    if request.anomalies is not None:
        defects = labelled_defects(
            request.anomalies, count=request.anomaly_count, kind=request.anomaly_type, seed=seed
        )
    good = good_pictures(request.good).of_one_or_several()
    if request.shots is not None:
        good = good.only(draw_shots(good, request.shots, seed))
    return good, defects


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What each picture is for: `kept` are learned from, `held` are held out for the threshold.

    Attributes:
        learned: the kept ones as they are learned; scored: the same as they are scored.
        held_out: those held out, as they are scored.
        defects: as `shown` has them.
        shown: the labelled defects as a method that is trained takes them in its batches, or as
            they are scored where they are learned from afterwards.
    """

    plan: Plan
    kept: Pictures
    held: Pictures
    defects: Pictures
    learned: PictureStream
    scored: PictureStream
    held_out: PictureStream
    shown: PictureStream


def _divided(request: Request, built: Built, good: Pictures, defects: Pictures) -> _Parts:
    """The pictures, divided. Raises: DataError, CalibrationError where they are too few."""
    method, size = built.method, request.batch_size
    plan = planned(method, len(good.sources), request.calibration_fraction, request.shots)
    kept, held = map(good.only, hold_out_positions(good, plan.fraction, method.config.seed))
    if len(kept.sources) < method.minimum_images:
        raise DataError(
            f"{method.name} needs at least {method.minimum_images} training pictures, got "
            f"{len(kept.sources)}"
            + (f" ({len(held.sources)} held out for the threshold)" if held.sources else "")
        )
    if isinstance(request.distillation, StudentConfig):
        check_pictures(len(kept.sources))
    if plan.method is not None and request.false_alarm_rate is not None:
        # Said now, not after the work.
        most = len(held.sources if plan.method == "split conformal" else kept.sources)
        calibrate(np.zeros(most), request.rate, method=plan.method, required=True)
    kept, held = (cut(each, built.preprocessing, request.progress) for each in (kept, held))
    trained = isinstance(method, TrainedMethod)
    shown = built.preprocessing if trained else built.scoring
    defects = cut(defects, shown, request.progress, defects=True)
    learned = PictureStream(
        kept.sources,
        built.preprocessing,
        size,
        rotations=method.config.rotations,
        flips=method.config.flips,
    )
    return _Parts(
        plan=plan,
        kept=kept,
        held=held,
        defects=defects,
        learned=learned,
        scored=PictureStream(kept.sources, built.scoring, size),
        held_out=PictureStream(held.sources, built.scoring, size),
        shown=PictureStream(
            defects.sources,
            shown,
            size,
            marks=() if trained else defects.samples,
        ),
    )


def _pretrain(request: Request, built: Built, parts: _Parts) -> tuple[Built, Pretraining | None]:
    """The method on a backbone that was trained further first, where its config asks for that."""
    files = (None, None) if request.checkpoint is None else checkpoints(request.checkpoint)
    for file in files:
        if file is not None and not request.resume:
            check_free(file)
    config = request.distillation or built.method.config.pretraining_config
    if isinstance(config, Distillation):
        backbone, record = _distilled(request, built, parts, config, files[1])
    elif config is None:
        return built, None
    else:
        backbone, record = _pretrained(request, built, parts, config, files[1])
    method = request.kind(built.method.config, backbone)
    method.set_area(built.preprocessing.area_of_input, framed=built.preprocessing.is_framed)
    return dataclasses.replace(built, method=method), record


def _pretrained(
    request: Request,
    built: Built,
    parts: _Parts,
    config: SelfSupervisedConfig,
    checkpoint: Path | None,
) -> tuple[Backbone, Pretraining]:
    """The backbone, pre-trained further, and how that went."""
    backbone, record, _ = pretrained(
        built.method.backbone.to(built.device),
        parts.kept.sources,
        config,
        window=request.window,
        area=request.area,
        resize=request.resize,
        precision=built.precision,
        budget=_share_of_budget(request, built),
        checkpoint=checkpoint,
        resume=request.resume,
        log=request.log,
        progress=_told_as("encoder", request.progress),
    )
    return backbone, record


def _distilled(
    request: Request, built: Built, parts: _Parts, config: Distillation, checkpoint: Path | None
) -> tuple[Backbone, Pretraining]:
    """A student in place of the backbone, and how that went."""
    method = built.method
    return distilled(
        method.backbone.to(built.device),
        method.layers,
        parts.kept.sources,
        config,
        preprocessing=built.preprocessing,
        precision=built.precision,
        batch_size=request.batch_size,
        budget=_share_of_budget(request, built),
        checkpoint=checkpoint,
        resume=request.resume,
        progress=_told_as("student", request.progress),
    )


def _share_of_budget(request: Request, built: Built) -> Budget:
    """That of a training: where the encoder learns and then the method, half of all each."""
    config = built.method.config
    twice = config.learns_by_gradient and config.pretraining_config is not None
    return request.budget.half() if twice else request.budget


def _told_as(who: str, progress: Progress) -> Progress:
    """Progress that says whose it is."""
    return lambda stage, done, total: progress(f"{who}: {stage}", done, total)


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What was found of the good pictures and of the defects, and how a training went."""

    good: Found
    defects: Found
    training: Training | None = None


def _train(request: Request, built: Built, parts: _Parts) -> _Outcome | None:
    """Train what learns by gradient, on the defects as well where it takes them; None where
    nothing of the method does."""
    method = built.method.learner
    if not isinstance(method, TrainedMethod):
        return None
    stream, shown = parts.learned, parts.shown
    good, of_defects = len(stream.sources), len(shown.sources) if method.takes_defects else 0
    if of_defects:
        stream = dataclasses.replace(
            stream,
            sources=[*stream.sources, *shown.sources],
            labels=[NORMAL] * good + [ANOMALOUS] * of_defects,
        )
    training, found = train(
        method,
        stream,
        seed=method.config.seed,
        budget=_share_of_budget(request, built),
        checkpoint=None if request.checkpoint is None else Path(request.checkpoint),
        resume=request.resume,
        identity={
            "method": method.name,
            "config": configs.to_dict(method.config),
            "preprocessing": configs.to_dict(stream.preprocessing),
            "weights": method.backbone.info.sha256,
            "precision": precision_name(method.precision),
            "defects": of_defects,
        },
        progress=request.progress,
    )
    of_good = found.part(0, good)
    check_usable(method, of_good)
    return _Outcome(
        good=of_good,
        defects=found.part(good, good + of_defects),
        training=training,
    )


def _learn(
    request: Request, built: Built, parts: _Parts, trained: _Outcome | None, way: Way
) -> _Outcome:
    """What is learned without gradients: from the good pictures where nothing was `trained`, then
    what the method keeps of them as they are scored, and last from the labelled defects."""
    method, progress = built.method, request.progress
    outcome = trained
    if outcome is None:
        with torch.inference_mode():
            found = way.learn(method, parts.learned, progress)
        outcome = _Outcome(good=found, defects=Found())
    scored = dataclasses.replace(parts.learned, preprocessing=built.scoring)
    for part in (method,) if method.learner is method else (method.learner, method):
        if isinstance(part, Summarises):
            wanted = part.summarised()
            every = 1 if wanted is None else -(-scored.rows // wanted)
            some = [at for at in scored.order[::every] if at in outcome.good.digests]
            passes = Passes(scored.only(some), built.device)
            part.summarise(passes, passes.rows, progress)
    if parts.defects.sources and isinstance(method, LearnsDefects):
        passes = Passes(parts.shown, built.device)
        method.learn_defects(passes, passes.rows, progress)
        outcome = dataclasses.replace(outcome, defects=passes.found)
    if parts.defects.sources and not outcome.defects.digests:
        heading = "none of the labelled defects can be read"
        raise unreadable(heading, outcome.defects.failures.values())
    return outcome


def _foreground(
    request: Request, method: Method, scored: PictureStream, good: Found
) -> Foreground | None:
    """How the part is told from its background, by some of the training pictures, evenly from all
    that differ; None where that is not asked for."""
    if request.foreground == "none":
        return None
    different = sorted(set(good.originals.values()))
    some = different[:: -(-len(different) // PICTURES)]
    passes = Passes(scored.only(some), method.backbone.device)
    return foreground_of(method, passes, passes.rows, request.progress)


def _record(
    request: Request,
    built: Built,
    parts: _Parts,
    outcome: _Outcome,
    calibration: Calibration,
    held: Found,
) -> Manifest:
    """What the artifact says of itself. Raises: CalibrationError as `fit`."""
    names = sorted({*parts.kept.names, *parts.held.names})
    required = request.false_alarm_rate is not None
    sources = (parts.kept.sources, parts.held.sources, parts.defects.sources)
    found = (outcome.good, held, outcome.defects)
    everything = [each.of_pictures(those) for each, those in zip(found, sources, strict=True)]
    digests = [tuple(each.digests.values()) for each in everything]
    twofold = {*digests[0], *digests[1]}.intersection(digests[2])
    failures = [failure for each in everything for failure in each.failures.values()]
    # Of a picture that comes twice they are told once.
    notes = {
        each.digests[at]: those for each in everything for at, those in each.notes.items()
    }.values()
    return Manifest(
        **artifact.provenance(),
        **describe(built.method, built.scoring),
        **calibration.fields(parts.plan, request.rate, names, required=required),
        recipe=request.recipe if request.config is None else None,
        categories=tuple(names),
        shots=request.shots,
        seed=built.method.config.seed,
        precision=precision_name(built.precision),
        device=built.device.type,
        seconds=0.0,
        training=outcome.training,
        compression=built.method.learner.compression,
        map_scale=calibration.scale,
        category_features=category_features(
            built.method.backbone, built.method.config.layers, parts.scored, parts.kept.categories
        ),
        data=Learned(
            layout=parts.kept.note,
            count=len(digests[0]) + len(digests[1]),
            fingerprint=fingerprint([*digests[0], *digests[1]]),
            fitted=digests[0],
            calibrated=digests[1],
            defects=digests[2],
            defects_layout=parts.defects.note,
            copies=calibration.copies,
            nearly_same=calibration.nearly_same,
            failures=broken(failures),
            tiles=built.why_tiles,
            notes=Counter(note for of_one in notes for note in of_one)
            + Counter({_TWOFOLD: len(twofold)}),
        ),
    )
