"""fit, pretrain, calibrate, refine: the commands that make artifacts, and what they print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from blemish import interrupts
from blemish.cli import console, options, words
from blemish.cli.options import (
    AnomalyCount,
    AnomalyType,
    Artifact,
    Backbone,
    Device,
    ImageSize,
    Json,
    Precision,
    Rate,
    Recipe,
    Resume,
    Scales,
    Seed,
    Settings,
    TimeBudget,
    Weights,
    Window,
)
from blemish.cli.status import BROKEN_PICTURES, WELL
from blemish.errors import CollapseError, ConfigError
from blemish.files import check_writable, locked
from blemish.types import Progress, silent

if TYPE_CHECKING:
    from blemish.detector.refine import Refined
    from blemish.methods import MethodConfig
    from blemish.methods.apmask import APMaskConfig

Good = Annotated[
    list[Path],
    Argument(
        metavar="GOOD",
        help="Pictures of good parts: folders, data sets, tables, files, patterns. "
        "Several folders are several categories.",
    ),
]
Output = Annotated[
    Path, Option("--output", "-o", help="The artifact to write, as in part.blemish.")
]
Anomalies = Annotated[
    list[Path] | None,
    Option(
        metavar="DEFECTS",
        help="Pictures of known defects to learn from (lda, atacnet): folders, data sets, files; "
        "repeatable. Evaluation leaves out those that were learned from.",
    ),
]
Layers = Annotated[str | None, Option(metavar="LIST", help="Layers of the backbone, as in 4,8.")]
Config = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="Settings as a JSON object. Recipe < file < options of their own < --set, "
        "the last wins.",
    ),
]
Shots = Annotated[
    int | None,
    Option(
        metavar="K",
        help="Learn from K pictures of each category, drawn by the seed, each at 16 angles, plain "
        "and mirrored (unless --set rotations=… or flips=… says otherwise).",
    ),
]
CalibrationFraction = Annotated[
    float | None,
    Option(
        help="Share of the pictures held out for the threshold; 0 = no threshold. [default: none "
        "for memory banks and padim, which leave out one picture at a time, and with --shots; "
        "else 0.2]"
    ),
]
BatchSize = Annotated[
    int,
    Option(
        min=1, help="Pictures at once; changes speed, memory and the last digit of scores only."
    ),
]


def fit(
    method: Annotated[str, Argument(metavar="METHOD", help="A method of `blemish methods`.")],
    good: Good,
    output: Output,
    anomalies: Anomalies = None,
    anomaly_count: AnomalyCount = None,
    anomaly_type: AnomalyType = None,
    backbone: Backbone = None,
    weights: Weights = None,
    image_size: ImageSize = None,
    layers: Layers = None,
    scales: Scales = None,
    recipe: Recipe = "best",
    settings: Settings = None,
    config: Config = None,
    seed: Seed = None,
    shots: Shots = None,
    false_alarm_rate: Rate = None,
    calibration_fraction: CalibrationFraction = None,
    window: Window = None,
    time_budget: TimeBudget = None,
    resume: Resume = False,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = 8,
    json: Json = False,
) -> int:
    """Learn from pictures of good parts and write an artifact."""
    from blemish import config as configs
    from blemish.detector import fit as fitting

    named = {"backbone": backbone, "image_size": image_size, "layers": layers, "scales": scales}
    chosen = fitting.configure(
        method,
        recipe=recipe,
        values=configs.read_config_file(config) if config else {},
        assignments=options.assignments(settings, **named, seed=seed),
        shots=shots,
    )
    return _fit(
        output,
        chosen,
        as_json=json,
        method=method,
        good=good,
        anomalies=anomalies,
        anomaly_count=anomaly_count,
        anomaly_type=anomaly_type,
        recipe=recipe,
        weights=weights,
        shots=shots,
        false_alarm_rate=false_alarm_rate,
        calibration_fraction=calibration_fraction,
        window=window,
        time_budget=time_budget,
        resume=resume,
        device=device,
        precision=precision,
        batch_size=batch_size,
    )


def _fit(output: Path, config: MethodConfig, *, as_json: bool, **request: Any) -> int:
    """Fit as `request` says, the arguments of `blemish.fit`; write the artifact and tell of it."""
    from blemish.config import to_dict
    from blemish.detector import fit as fitting
    from blemish.report import health

    if config.learns_by_gradient:
        request["checkpoint"] = output.with_name(f"{output.name}.training")
    more: dict[str, Path] = {}
    if config.pretraining_config:
        log = request["log"] = _beside(output, ".log.jsonl")
        more = {"log": log, "figure": health.figure_of(log)}
    kept = fitting.checkpoints(request["checkpoint"]) if config.learns_by_gradient else ()
    with (
        _learning(output, *more.values(), checkpoints=kept) as progress,
        health.illustrated(more.get("log") if progress else None),
    ):
        detector = fitting.fit(**request, **to_dict(config), progress=progress or silent)
        if progress:
            detector.save(output)
    if progress is None:
        return WELL  # whatever else it says, torchrun would end the first process for it
    manifest = detector.manifest
    data = manifest["data"]
    places = words.places(**more) if "pretraining" in manifest else {}
    told = ("method", "recipe", "config", "categories", "shots", "threshold", "thresholds")
    made = [name for name in ("pretraining", "training") if name in manifest]
    told_of_data = ("layout", "count", "copies", "nearly_same", "defects", "defects_layout")
    document = {
        "artifact": str(output),
        **places,
        **{key: manifest[key] for key in (*told, "seconds", *made)},
        **{key: data[key] for key in (*told_of_data, "failures", "notes")},
    }
    written = f"Written: {output} in {manifest['seconds']:.1f} s"
    human = [*fit_lines(manifest), *words.written(places), written]
    console.answer(document, human, as_json=as_json)
    return BROKEN_PICTURES if data["failures"] else WELL


def fit_lines(manifest: Mapping[str, Any]) -> Iterable[str]:
    """What `blemish fit` has made."""
    data = manifest["data"]
    yield f"Recognised: {data['layout']}"
    if manifest["categories"]:
        yield f"Categories: {', '.join(manifest['categories'])}"
    drawn = f" ({words.shots(manifest)})" if manifest["shots"] else ""
    yield f"Pictures: {data['count']} used{drawn}, {len(data['failures'])} broken"
    if data["defects"]:
        yield f"Defects learned from: {len(data['defects'])}; {data['defects_layout']}"
    yield from (f"  {line}" for line in words.alike(data))
    yield from words.broken(data["failures"])
    yield from words.notes(data.get("notes", {}))
    yield from words.threshold_lines(manifest)
    if "pretraining" in manifest:
        yield from _pretraining_lines(manifest["pretraining"])


def pretrain(
    good: Annotated[
        list[Path],
        Argument(metavar="GOOD", help="Pictures of good parts: folders, data sets, tables, files."),
    ],
    output: Annotated[
        Path,
        Option(
            *("--output", "-o"),
            metavar="FILE",
            help="The encoder to write, as in encoder.safetensors.",
        ),
    ],
    backbone: Annotated[
        str | None, Option(help="A ViT of `blemish backbones`, or of timm.")
    ] = None,
    weights: Annotated[
        str | None,
        Option(
            metavar="FILE", help="Weights to start from, in place of the backbone's own source."
        ),
    ] = None,
    masking: Annotated[
        str | None,
        Option(
            help="Which patches the student does not see: attention, random, block or none of them."
        ),
    ] = None,
    recipe: Annotated[str, Option(help="A recipe of apmask: best, or paper.")] = "best",
    settings: Settings = None,
    seed: Seed = None,
    window: Window = None,
    time_budget: TimeBudget = None,
    resume: Resume = False,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> int:
    """Train an encoder further on pictures of good parts (APMask), for `blemish fit --weights`."""
    from blemish.detector.pretrain import configure

    named = options.assignments(settings, backbone=backbone, masking=masking, seed=seed)
    return _pretrain(
        output,
        configure(recipe=recipe, assignments=named),
        as_json=json,
        good=good,
        recipe=recipe,
        weights=weights,
        window=window,
        time_budget=time_budget,
        resume=resume,
        device=device,
        precision=precision,
    )


def _pretrain(output: Path, config: APMaskConfig, *, as_json: bool, **request: Any) -> int:
    """Pre-train as `request` says, the arguments of `pretrain.pretrain`; tell of the encoder."""
    from blemish.config import to_dict
    from blemish.detector import pretrain as pretraining
    from blemish.report import health

    checkpoint, log = output.with_name(f"{output.name}.training"), _beside(output, ".log.jsonl")
    figure = health.figure_of(log)
    with (
        _learning(output, log, figure, checkpoints=[checkpoint]) as progress,
        health.illustrated(log if progress else None),
    ):
        encoder = pretraining.pretrain(
            **request,
            **to_dict(config),
            checkpoint=checkpoint,
            log=log,
            progress=progress or silent,
        )
        if progress:
            encoder.save(output)
    if progress is None:
        return WELL  # whatever else it says, torchrun would end the first process for it
    manifest, data = encoder.manifest, encoder.manifest["data"]
    places = words.places(encoder=output, log=log, figure=figure)
    document = {
        **places,
        **{key: manifest[key] for key in ("recipe", "config", "backbone", "seconds", "training")},
        **{key: data[key] for key in ("layout", "count", "failures")},
    }
    started = manifest["backbone"]["weights"]
    human = [
        f"Recognised: {data['layout']}",
        f"Pictures: {data['count']} used, {len(data['failures'])} broken",
        *words.broken(data["failures"]),
        f"Started from: {manifest['backbone']['spec']['name']}, {started['source']}, "
        f"licence {started['licence']}",
        *_pretraining_lines(manifest),
        *words.written(places),
    ]
    console.answer(document, human, as_json=as_json)
    return BROKEN_PICTURES if data["failures"] else WELL


def _pretraining_lines(told: Mapping[str, Any]) -> Iterable[str]:
    training = told["training"]
    yield (
        f"Pre-trained: {training['steps']:,} steps, {training['epochs']:.3g} epochs, "
        f"loss {training['loss']:.4g}"
    )
    readings = (
        f"{name.replace('_', ' ')} {value:.3g}" for name, value in training["findings"].items()
    )
    yield f"Health: {', '.join(readings)}"


def calibrate(
    artifact: Artifact,
    output: Annotated[Path, Option("--output", "-o", help="The artifact to write.")],
    good: Annotated[
        list[Path] | None,
        Argument(metavar="GOOD", help="Pictures of good parts that it was not fitted on."),
    ] = None,
    threshold: Annotated[
        float | None,
        Option(
            metavar="SCORE",
            help="Set this threshold by hand, for every category, in place of one from pictures: "
            "it promises nothing.",
        ),
    ] = None,
    false_alarm_rate: Rate = None,
    scales: Scales = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> int:
    """Set a new threshold: from other pictures of good parts, or by hand."""
    from blemish.detector.calibrate import recalibrate
    from blemish.detector.predict import load

    by_hand = threshold is not None
    if by_hand == bool(good) or (by_hand and false_alarm_rate is not None):
        raise ConfigError(
            "calibrate needs pictures of good parts, or the threshold itself: --threshold SCORE"
        )
    check_writable(output)
    detector = options.with_scales(load(artifact, device=device, precision=precision), scales)
    counts: dict[str, Any] = {}
    if by_hand:
        detector = detector.with_threshold(threshold)
    else:
        with console.progress() as progress:
            detector, failures, left_out = recalibrate(
                detector, good, false_alarm_rate=false_alarm_rate, progress=progress
            )
        counts["left_out"], counts["copies"] = left_out, detector.manifest["data"]["copies"]
        counts["failures"] = [failure.to_dict() for failure in failures]
    detector.save(output)
    manifest = detector.manifest
    thresholds = {key: manifest[key] for key in ("threshold", "thresholds")}
    human = [
        *([] if by_hand else _calibration_lines(manifest["threshold"]["n"], **counts)),
        *words.threshold_lines(manifest),
        f"Written: {output}",
    ]
    console.answer({"artifact": str(output), **thresholds, **counts}, human, as_json=json)
    return BROKEN_PICTURES if counts.get("failures") else WELL


def _calibration_lines(
    used: int, *, left_out: int, copies: int, failures: Sequence[Mapping[str, Any]]
) -> Iterable[str]:
    """Which pictures a threshold comes from."""
    known = f"{left_out} left out, the artifact was fitted on them; " if left_out else ""
    twice = f"{copies} {'copy' if copies == 1 else 'copies'} of these; " if copies else ""
    yield f"Pictures: {used} used; {known}{twice}{len(failures)} broken"
    yield from words.broken(failures)


def refine(
    artifact: Artifact,
    good: Annotated[
        list[Path] | None,
        Option(metavar="GOOD", help="Newly confirmed pictures of good parts; repeatable."),
    ] = None,
    anomalies: Annotated[
        list[Path] | None,
        Option(metavar="DEFECTS", help="Newly confirmed pictures of defects; repeatable."),
    ] = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="The artifact to write. [default: the same one]")
    ] = None,
    false_alarm_rate: Rate = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> int:
    """Add newly confirmed good pictures and defects to an artifact of lda, and set its
    threshold anew."""
    from blemish.detector import refine as refining
    from blemish.detector.predict import load

    output = output or artifact
    check_writable(output)
    with locked(output):  # what another process adds to it meanwhile would be lost
        detector = load(artifact, device=device, precision=precision)
        with console.progress() as progress:
            refined = refining.refine(
                detector,
                good=good,
                anomalies=anomalies,
                false_alarm_rate=false_alarm_rate,
                progress=progress,
            )
        refined.detector.save(output)
    document = {
        "artifact": str(output),
        "threshold": refined.detector.manifest["threshold"],
        **refined.to_dict(),
    }
    console.answer(document, [*refine_lines(refined), f"Written: {output}"], as_json=json)
    return BROKEN_PICTURES if refined.failures else WELL


def refine_lines(change: Refined) -> Iterable[str]:
    """What `blemish refine` has changed."""
    known = f", {change.known} known already" if change.known else ""
    yield (
        f"Added: {change.good} good pictures, {change.defects} defects{known}; "
        f"{len(change.failures)} broken"
    )
    yield from words.broken([failure.to_dict() for failure in change.failures])
    threshold = change.detector.threshold
    reason = f" ({threshold.reason})" if threshold is not None and threshold.value is None else ""
    before, after = (
        "none" if value is None else f"{value:.4g}" for value in (change.before, change.after)
    )
    yield f"Threshold: {before} before, {after} now{reason}"
    if change.alarms_before is not None and change.alarms_after is not None:
        yield (
            f"Of the {change.calibrated} good pictures it knew, {change.alarms_before} were above "
            f"the threshold before and {change.alarms_after} are now; their scores changed by "
            f"{change.mean_change:+.4g} on average"
        )
    if change.found_before is not None and change.found_after is not None and change.defects:
        yield (
            f"Of the added defects {change.found_before} were found before, {change.found_after} "
            "are now, learned"
        )


def _beside(output: Path, ending: str) -> Path:
    """part.log.jsonl for part.blemish, encoder.log.jsonl for encoder.safetensors."""
    return output.with_name(
        output.name.removesuffix(".safetensors").removesuffix(".blemish") + ending
    )


@contextmanager
def _learning(
    output: Path, *beside: Path, checkpoints: Sequence[Path]
) -> Iterator[Progress | None]:
    """Around what is learned for `output`, which no other process may write at the same time.

    Gives the progress to show. Of the processes that torchrun has started, which all learn, the
    first alone shows it, writes and tells; the others get None. The checkpoints stay until the
    result is saved, so that an interrupted training can go on from them.
    """
    from blemish.training.distributed import rank

    for path in (output, *beside):
        check_writable(path)
    first = rank() == 0
    with locked(output) if first else nullcontext():
        try:
            with console.progress() if first else nullcontext() as progress:
                yield progress
        except CollapseError:
            if not first:
                return  # all see it at once; the first explains it, which torchrun must not end
            for checkpoint in checkpoints:
                checkpoint.unlink(missing_ok=True)  # what goes on from it collapses again
            raise
        except KeyboardInterrupt as error:
            if not any(checkpoint.exists() for checkpoint in checkpoints):
                raise
            what = "the same command with --resume goes on from here"
            raise interrupts.Interrupted(what, interrupts.number_of(error)) from None
        if first:
            for checkpoint in checkpoints:
                checkpoint.unlink(missing_ok=True)
