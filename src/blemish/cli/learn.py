"""fit, pretrain, calibrate, refine: the commands that make artifacts, and what they print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blemish import interrupts
from blemish.cli import console, options, words
from blemish.cli.options import (
    AnomalyCount,
    AnomalyType,
    Artifact,
    BatchSize,
    Device,
    ImageSize,
    Json,
    Precision,
    Rate,
    Scales,
    TimeBudget,
    Window,
)
from blemish.cli.status import BROKEN_PICTURES, WELL
from blemish.errors import CollapseError, ConfigError
from blemish.files import check_writable
from blemish.types import silent

if TYPE_CHECKING:
    from blemish.detector.refine import Refined


def fit(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A method of `blemish methods`.")],
    good: Annotated[
        list[Path],
        typer.Argument(
            metavar="GOOD",
            help="Pictures of good parts: folders, data sets, tables, files, patterns. Several folders are several "
            "categories.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The artifact to write, as in part.blemish.")
    ],
    anomalies: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DEFECTS",
            help="Pictures of known defects to learn from (lda, atacnet): folders, data sets, files; repeatable. Evaluation "
            "leaves out those that were learned from.",
        ),
    ] = None,
    anomaly_count: AnomalyCount = None,
    anomaly_type: AnomalyType = None,
    backbone: Annotated[
        str | None, typer.Option(help="One of `blemish backbones`, or any timm model.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Weights of the backbone, in place of its own source."),
    ] = None,
    image_size: ImageSize = None,
    layers: Annotated[
        str | None, typer.Option(metavar="LIST", help="Layers of the backbone, as in 4,8.")
    ] = None,
    scales: Scales = None,
    recipe: Annotated[
        str, typer.Option(help="A recipe of the method, to which other settings are applied.")
    ] = "best",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting; may be given more than once."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Settings as a JSON object. Recipe < file < options of their own < --set, the last wins.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random. [default: 0]")] = None,
    shots: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Learn from K pictures of each category, drawn by the seed, each at 16 angles, plain and mirrored "
            "(unless --set rotations=… or flips=… says otherwise).",
        ),
    ] = None,
    false_alarm_rate: Rate = None,
    calibration_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of the pictures held out for the threshold; 0 = no threshold. [default: none for memory banks "
            "and padim, which leave out one picture at a time, and with --shots; else 0.2]"
        ),
    ] = None,
    window: Window = None,
    time_budget: TimeBudget = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that was interrupted.")
    ] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = 8,
    json: Json = False,
) -> int:
    """Learn from pictures of good parts and write an artifact."""
    from blemish import config as configs
    from blemish.detector import fit as fitting
    from blemish.detector import pretrain as pretraining
    from blemish.training.distributed import rank

    named = {
        "backbone": backbone,
        "image_size": image_size,
        "layers": layers,
        "scales": scales,
        "seed": seed,
    }
    assignments = [f"{key}={value}" for key, value in named.items() if value is not None] + (
        settings or []
    )
    values = configs.read_config_file(config) if config else {}
    chosen = fitting.configure(
        method, recipe=recipe, values=values, assignments=assignments, shots=shots
    )
    checkpoint = output.with_name(f"{output.name}.training")
    trained = chosen.learns_by_gradient
    log = _beside(output, ".log.jsonl")  # of a pre-training
    more = {"log": log, "figure": pretraining.figure_of(log)} if chosen.pretraining_config else {}
    for path in (output, *more.values()):
        check_writable(path)
    first = rank() == 0  # of the processes that torchrun has started, all of which fit
    with (
        words.alone(output if first else None),
        _goes_on_from(*fitting.checkpoints(checkpoint) if trained else ()),
        console.progress() if first else nullcontext(silent) as progress,
    ):
        detector = fitting.fit(
            method,
            good,
            anomalies=anomalies,
            anomaly_count=anomaly_count,
            anomaly_type=anomaly_type,
            recipe=recipe,
            weights=weights,
            shots=shots,
            false_alarm_rate=false_alarm_rate,
            calibration_fraction=calibration_fraction,
            window=options.interval("--window", window),
            device=device,
            precision=precision,
            batch_size=batch_size,
            time_budget=time_budget,
            checkpoint=checkpoint if trained else None,
            resume=resume,
            log=more.get("log"),
            progress=progress,
            **configs.to_dict(chosen),
        )
        if first:
            detector.save(output)
    if not first:
        return WELL  # whatever else it says, torchrun would end the first process for it
    manifest = detector.manifest
    told = [
        "method",
        "recipe",
        "config",
        "categories",
        "shots",
        "threshold",
        "thresholds",
        "seconds",
    ]
    told += [name for name in ("pretraining", "training") if name in manifest]
    told_of_data = [
        "layout",
        "count",
        "copies",
        "nearly_same",
        "defects",
        "defects_layout",
        "failures",
        "notes",
    ]
    places = words.places(**more) if "pretraining" in manifest else {}
    document = {
        "artifact": str(output),
        **places,
        **{key: manifest[key] for key in told},
        **{key: manifest["data"][key] for key in told_of_data},
    }
    human = [
        *fit_lines(manifest),
        *words.written(places),
        f"Written: {output} in {manifest['seconds']:.1f} s",
    ]
    console.answer(document, human, as_json=json)
    return BROKEN_PICTURES if manifest["data"]["failures"] else WELL


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
    common, *others = words.thresholds(manifest)
    yield f"Threshold: {common}"
    yield from (f"  of {other}" for other in others)
    if "pretraining" in manifest:
        yield from words.pretraining(manifest["pretraining"])


def pretrain(
    good: Annotated[
        list[Path],
        typer.Argument(
            metavar="GOOD", help="Pictures of good parts: folders, data sets, tables, files."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The encoder to write, as in encoder.safetensors.",
        ),
    ],
    backbone: Annotated[
        str | None, typer.Option(help="A ViT of `blemish backbones`, or of timm.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Weights to start from, in place of the backbone's own source."
        ),
    ] = None,
    masking: Annotated[
        str | None,
        typer.Option(
            help="Which patches the student does not see: attention, random, block or none of them."
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="A recipe of apmask: best, or paper.")] = "best",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting; may be given more than once."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random. [default: 0]")] = None,
    window: Window = None,
    time_budget: TimeBudget = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that was interrupted.")
    ] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> int:
    """Train an encoder further on pictures of good parts (APMask), for `blemish fit --weights`."""
    from blemish import config as configs
    from blemish.detector import pretrain as pretraining
    from blemish.training.distributed import rank

    named = {"backbone": backbone, "masking": masking, "seed": seed}
    assignments = [f"{key}={value}" for key, value in named.items() if value is not None] + (
        settings or []
    )
    chosen = pretraining.configure(recipe=recipe, assignments=assignments)
    checkpoint, log = output.with_name(f"{output.name}.training"), _beside(output, ".log.jsonl")
    written = [output, log, pretraining.figure_of(log)]
    for path in written:
        check_writable(path)
    first = rank() == 0  # of the processes that torchrun has started
    with (
        words.alone(output if first else None),
        _goes_on_from(checkpoint),
        console.progress() if first else nullcontext(silent) as progress,
    ):
        encoder = pretraining.pretrain(
            good,
            recipe=recipe,
            weights=weights,
            window=options.interval("--window", window),
            device=device,
            precision=precision,
            time_budget=time_budget,
            checkpoint=checkpoint,
            resume=resume,
            log=log,
            progress=progress,
            **configs.to_dict(chosen),
        )
        if first:
            encoder.save(output)
    if not first:
        return WELL  # whatever else it says, torchrun would end the first process for it
    manifest = encoder.manifest
    document = {
        **dict(zip(("encoder", "log", "figure"), map(str, written), strict=True)),
        **{key: manifest[key] for key in ("recipe", "config", "backbone", "seconds", "training")},
        **{key: manifest["data"][key] for key in ("layout", "count", "failures")},
    }
    human = [*pretrain_lines(manifest), *(f"Written: {path}" for path in written)]
    console.answer(document, human, as_json=json)
    return BROKEN_PICTURES if manifest["data"]["failures"] else WELL


def pretrain_lines(manifest: Mapping[str, Any]) -> Iterable[str]:
    """What `blemish pretrain` has learned."""
    data, weights = manifest["data"], manifest["backbone"]["weights"]
    yield f"Recognised: {data['layout']}"
    yield f"Pictures: {data['count']} used, {len(data['failures'])} broken"
    yield from words.broken(data["failures"])
    yield f"Started from: {manifest['backbone']['spec']['name']}, {weights['source']}, licence {weights['licence']}"
    yield from words.pretraining(manifest)


def calibrate(
    artifact: Artifact,
    output: Annotated[Path, typer.Option("--output", "-o", help="The artifact to write.")],
    good: Annotated[
        list[Path] | None,
        typer.Argument(metavar="GOOD", help="Pictures of good parts that it was not fitted on."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            help="Set this threshold by hand, for every category, in place of one from pictures: it promises nothing.",
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

    if (threshold is None) == (not good) or (
        threshold is not None and false_alarm_rate is not None
    ):
        raise ConfigError(
            "calibrate needs pictures of good parts, or the threshold itself: --threshold SCORE"
        )
    check_writable(output)
    detector = options.looking_at(scales, load(artifact, device=device, precision=precision))
    if threshold is not None:
        detector = detector.with_threshold(threshold)
        detector.save(output)
        document = {
            "artifact": str(output),
            "threshold": detector.manifest["threshold"],
            "thresholds": {},
        }
        human = [
            f"Threshold: {words.threshold(detector.manifest['threshold'])}",
            f"Written: {output}",
        ]
        console.answer(document, human, as_json=json)
        return WELL
    with console.progress() as progress:
        calibrated, failures, left_out = recalibrate(
            detector, good, false_alarm_rate=false_alarm_rate, progress=progress
        )
    calibrated.save(output)
    manifest = calibrated.manifest
    broken = [failure.to_dict() for failure in failures]
    document = {
        "artifact": str(output),
        "threshold": manifest["threshold"],
        "thresholds": manifest["thresholds"],
        "left_out": left_out,
        "copies": manifest["data"]["copies"],
        "failures": broken,
    }
    common, *others = words.thresholds(manifest)
    known = f"{left_out} left out, the artifact was fitted on them; " if left_out else ""
    copies = manifest["data"]["copies"]
    twice = f"{copies} {'copy' if copies == 1 else 'copies'} of these; " if copies else ""
    human = [
        f"Pictures: {manifest['threshold']['n']} used; {known}{twice}{len(broken)} broken",
        *words.broken(broken),
        f"Threshold: {common}",
        *(f"  of {other}" for other in others),
        f"Written: {output}",
    ]
    console.answer(document, human, as_json=json)
    return BROKEN_PICTURES if failures else WELL


def refine(
    artifact: Artifact,
    good: Annotated[
        list[Path] | None,
        typer.Option(metavar="GOOD", help="Newly confirmed pictures of good parts; repeatable."),
    ] = None,
    anomalies: Annotated[
        list[Path] | None,
        typer.Option(metavar="DEFECTS", help="Newly confirmed pictures of defects; repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The artifact to write. [default: the same one]"),
    ] = None,
    false_alarm_rate: Rate = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> int:
    """Add newly confirmed good pictures and defects to an artifact of lda, and set its threshold anew."""
    from blemish.detector import refine as refining
    from blemish.detector.predict import load

    output = output or artifact
    check_writable(output)
    with words.alone(output):  # what another process adds to it meanwhile would be lost
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
    yield f"Added: {change.good} good pictures, {change.defects} defects{known}; {len(change.failures)} broken"
    yield from words.broken([failure.to_dict() for failure in change.failures])
    threshold = change.detector.threshold
    reason = f" ({threshold.reason})" if threshold is not None and threshold.value is None else ""
    yield f"Threshold: {_figure(change.before)} before, {_figure(change.after)} now{reason}"
    if change.alarms_before is not None and change.alarms_after is not None:
        yield (
            f"Of the {change.calibrated} good pictures it knew, {change.alarms_before} were above the threshold before "
            f"and {change.alarms_after} are now; their scores changed by {change.mean_change:+.4g} on average"
        )
    if change.found_before is not None and change.found_after is not None and change.defects:
        yield f"Of the added defects {change.found_before} were found before, {change.found_after} are now, learned"


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _beside(output: Path, ending: str) -> Path:
    """encoder.log.jsonl for encoder.safetensors, part.log.jsonl for part.blemish."""
    return output.with_name(
        output.name.removesuffix(".safetensors").removesuffix(".blemish") + ending
    )


@contextmanager
def _goes_on_from(*checkpoints: Path) -> Iterator[None]:
    """Around what is kept in checkpoints until its result is saved, and then no longer.

    In other processes than the first a collapse is passed over: all see it at once, and torchrun would end the first,
    which explains it, for their exit status.
    """
    from blemish.training.distributed import rank

    try:
        yield
    except CollapseError:
        if rank() != 0:
            return
        for checkpoint in checkpoints:
            checkpoint.unlink(missing_ok=True)  # what goes on from it collapses again
        raise
    except KeyboardInterrupt as error:
        if not any(checkpoint.exists() for checkpoint in checkpoints):
            raise
        what = "the same command with --resume goes on from here"
        raise interrupts.Interrupted(what, interrupts.number_of(error)) from None
    if rank() == 0:
        for checkpoint in checkpoints:
            checkpoint.unlink(missing_ok=True)
