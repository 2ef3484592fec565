"""fit, pretrain: the commands that learn from good pictures, and what they print."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from blemish import interrupts
from blemish.cli import clusters, console, options, words
from blemish.cli.clusters import Address, FitEngine, GpusPerWorker, NumWorkers, PartPictures
from blemish.cli.options import (
    AnomalyCount,
    AnomalyType,
    Backbone,
    ComputeBudget,
    Device,
    Ignore,
    ImageSize,
    Json,
    Overlap,
    Precision,
    Rate,
    Recipe,
    Resize,
    Resume,
    Roi,
    Scales,
    Seed,
    Settings,
    SmallestRegion,
    Tile,
    TimeBudget,
    Weights,
    Window,
)
from blemish.cli.status import BROKEN_PICTURES, WELL
from blemish.cli.writing import Writing
from blemish.errors import CollapseError, OutputError
from blemish.extras import require
from blemish.files import check_writable, locked, or_elsewhere
from blemish.types import silent

if TYPE_CHECKING:
    from blemish.detector.predict import Detector

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
        help="Pictures of known defects to learn from (lda, atacnet, dra, ahl): folders, data "
        "sets, files; repeatable. Evaluation leaves out those that were learned from.",
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
        min=1,
        metavar="K",
        help="Learn from K pictures of each category, drawn by the seed, each at 16 angles, plain "
        "and mirrored (unless --set rotations=… or flips=… says otherwise).",
    ),
]
CalibrationFraction = Annotated[
    float | None,
    Option(
        callback=options.in_range(options.SHARE),
        help="Share of the pictures held out for the threshold; 0 = no threshold. [default: none "
        "for memory banks, padim and spade, which leave out one picture at a time, and with "
        "--shots; else 0.2]",
    ),
]
Foreground = Annotated[
    str,
    Option(
        metavar="none|auto",
        help="auto: score and show the part alone, told from its background by the encoder; whole "
        "pictures where it cannot be told, which is said. A picture beside the artifact shows it.",
    ),
]
Student = Annotated[
    bool,
    Option(
        help="Distil a smaller, faster encoder from the backbone (a ViT) on these pictures first, "
        "and fit the method on it. For patchcore, knn, padim, spade, lda."
    ),
]
BatchSize = Annotated[
    int,
    Option(
        min=1,
        max=options.MOST_AT_ONCE,
        help="Pictures at once: speed, memory and the last digit of scores only.",
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
    smallest_region: SmallestRegion = None,
    window: Window = None,
    roi: Roi = None,
    ignore: Ignore = None,
    resize: Resize = "stretch",
    tile: Tile = None,
    overlap: Overlap = None,
    foreground: Foreground = "none",
    student: Student = False,
    time_budget: TimeBudget = None,
    compute_budget: ComputeBudget = None,
    resume: Resume = False,
    engine: FitEngine = "here",
    address: Address = None,
    num_workers: NumWorkers = None,
    gpus_per_worker: GpusPerWorker = None,
    part_pictures: PartPictures = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = 8,
    json: Json = False,
) -> int:
    """Learn from pictures of good parts and write an artifact."""
    options.one_budget(time_budget, compute_budget)
    require("torch", "timm", purpose="learn a detector")
    chosen, learn, kept = _to_learn(dict(locals()))
    log = _log(output) if chosen.logs_pretraining else None
    sheet = _to_draw(_sheet(output)) if foreground == "auto" else None
    learn = partial(learn, log=log)
    detector = _learned(output, learn, log=log, checkpoints=kept, resume=resume)
    if detector is None:
        return WELL
    written = Writing()
    with written.tried(f"{output} is whole, and the picture alone is missing"):
        sheet, wanted = None, sheet
        sheet = _drawn(wanted, output, detector, good)
    return _tell_fit(output, detector.manifest, log, sheet, written, as_json=json)


def _to_learn(given: dict[str, Any]) -> tuple[Any, Callable[..., Detector], Sequence[Path]]:
    """What is fitted, how, and the files that it can go on from. Args: given: as `fit` takes it."""
    from blemish import config as configs
    from blemish.detector import fit as fitting

    of_clusters = ("engine", "address", "num_workers", "gpus_per_worker", "part_pictures")
    asked = clusters.Asked(**{name: given[name] for name in of_clusters})
    named = {name: given[name] for name in ("backbone", "image_size", "layers", "scales", "seed")}
    chosen = fitting.configure(
        given["method"],
        recipe=given["recipe"],
        shots=given["shots"],
        values=configs.read_config_file(given["config"]) if given["config"] else {},
        assignments=options.assignments(given["settings"], **named),
    )
    settings = configs.to_dict(chosen, whole=True)
    request = {**options.taken_by(fitting.fit, given), "config": None, **settings}
    request["tile"] = options.tile(given["tile"])
    output = given["output"]
    if asked.in_parts:
        kept = _kept_parts(output)
        return chosen, asked.fit(request, kept), [kept]
    if chosen.learns_by_gradient or given["student"]:
        request["checkpoint"] = _checkpoint(output)
        return chosen, partial(fitting.fit, **request), fitting.checkpoints(_checkpoint(output))
    return chosen, partial(fitting.fit, **request), ()


def _tell_fit(
    output: Path,
    manifest: Mapping[str, Any],
    log: Path | None,
    sheet: Path | None,
    written: Writing,
    *,
    as_json: bool,
) -> int:
    """Answer with what was fitted; gives the exit status. `sheet`: the picture of the foreground,
    where there is one."""
    data = manifest["data"]
    places = _beside(log) if log is not None and "pretraining" in manifest else {}
    part = manifest.get("foreground")
    if part is not None:
        part = {key: value for key, value in part.items() if key != "direction"}
        places |= words.places(foreground_picture=sheet)
    told = ("method", "recipe", "config", "categories", "shots")
    made = [name for name in ("pretraining", "training") if name in manifest]
    told_of_data = ("layout", "count", "copies", "nearly_same", "defects", "defects_layout")
    document = {
        "artifact": str(output),
        **places,
        **{key: manifest[key] for key in (*told, "seconds", *made)},
        **words.thresholds_of(manifest),
        "foreground": part,
        "compression": manifest.get("compression"),
        "in_parts": manifest.get("in_parts"),
        "taught": manifest.get("taught"),
        **{key: data[key] for key in (*told_of_data, "failures", "notes")},
    }
    last = f"Written: {output} in {manifest['seconds']:.1f} s"
    human = [*fit_lines(manifest), *words.written(places), last]
    status = BROKEN_PICTURES if data["failures"] else WELL
    return written.answer(document, human, as_json=as_json, status=status)


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
    if taught := words.taught(manifest.get("taught")):
        yield f"  {taught}"
    if resized := words.resized(manifest["preprocessing"]):
        yield f"Input: {resized}"
    if tiles := words.tiles(manifest):
        yield f"Tiles: {tiles}"
    if area := words.area(manifest["preprocessing"]):
        yield f"Looks at: {area}"
    if closer := words.closer(manifest["config"]):
        yield f"Looks closely at: {closer}"
    if textures := words.textures(manifest["config"]):
        yield f"Textures: {textures}"
    if part := words.foreground(manifest.get("foreground")):
        yield f"Foreground: {part}"
    if bank := words.compression(manifest.get("compression")):
        yield f"Bank: {bank}"
    if parts := words.in_parts(manifest.get("in_parts")):
        yield f"Learned in parts: {parts}"
    yield from (f"  {line}" for line in words.alike(data))
    yield from words.broken(data["failures"])
    yield from words.notes(data.get("notes", {}))
    yield from words.threshold_lines(manifest)
    if "training" in manifest:
        told, *doubts = words.training(manifest["training"])
        yield f"Trained: {told}"
        yield from doubts
    if student := words.student(manifest):
        yield f"Student: {student}"
        yield from words.notices(words.student_doubts(manifest))
    elif "pretraining" in manifest:
        yield from _pretraining_lines(manifest["pretraining"])


def pretrain(
    good: Annotated[
        list[Path],
        Argument(metavar="GOOD", help="Pictures of good parts: folders, data sets, tables, files."),
    ],
    output: Annotated[
        Path,
        Option("--output", "-o", metavar="FILE", help="The encoder, as in encoder.safetensors."),
    ],
    backbone: Annotated[
        str | None, Option(help="A ViT of `blemish backbones`, or of timm.")
    ] = None,
    weights: Annotated[
        str | None,
        Option(metavar="FILE", help="Weights to start from, in place of its own source."),
    ] = None,
    objective: Annotated[
        str, Option(help="What it learns by: apmask, dino, ibot, msn or swav.")
    ] = "apmask",
    masking: Annotated[
        str | None,
        Option(
            help="Patches the student does not see, in apmask, dino and msn: attention, random, "
            "block or none."
        ),
    ] = None,
    recipe: Annotated[str, Option(help="A recipe of the objective: best, or paper.")] = "best",
    settings: Settings = None,
    seed: Seed = None,
    window: Window = None,
    time_budget: TimeBudget = None,
    compute_budget: ComputeBudget = None,
    resume: Resume = False,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> int:
    """Train an encoder further on pictures of good parts, for `blemish fit --weights`."""
    options.one_budget(time_budget, compute_budget)
    require("torch", "timm", purpose="train an encoder")
    from blemish.config import to_dict
    from blemish.detector import pretrain as pretraining

    named = options.assignments(settings, backbone=backbone, masking=masking, seed=seed)
    chosen = pretraining.configure(objective=objective, recipe=recipe, assignments=named)
    checkpoint, log = _checkpoint(output), _log(output)
    request = {**options.taken_by(pretraining.pretrain, locals()), **to_dict(chosen)}
    learn = partial(pretraining.pretrain, **request)
    encoder = _learned(output, learn, log=log, checkpoints=[checkpoint], resume=resume)
    return WELL if encoder is None else _tell_pretrain(output, encoder.manifest, log, as_json=json)


def _tell_pretrain(output: Path, manifest: Mapping[str, Any], log: Path, *, as_json: bool) -> int:
    """Answer with what was pre-trained; gives the exit status."""
    data = manifest["data"]
    places = {"encoder": str(output), **_beside(log)}
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
    made, *doubts = words.training(training)
    yield f"Pre-trained: {made}"
    yield from doubts
    readings = (
        f"{name.replace('_', ' ')} {value:.3g}" for name, value in training["findings"].items()
    )
    yield f"Health: {', '.join(readings)}"


def _checkpoint(output: Path) -> Path:
    return output.with_name(f"{output.name}.training")


def _kept_parts(output: Path) -> Path:
    """Where what parts gave is kept until the artifact is."""
    return output.with_name(f"{output.name}.parts")


def _sheet(output: Path) -> Path:
    """part.foreground.png for part.blemish."""
    return output.with_name(f"{output.name.removesuffix('.blemish')}.foreground.png")


def _to_draw(sheet: Path) -> Path:
    """The same, if it can be written. Raises: OutputError."""
    check_writable(sheet, picture=True)
    return sheet


def _drawn(
    sheet: Path | None, output: Path, detector: Detector, good: Sequence[Path]
) -> Path | None:
    """The picture of the foreground, where there is one to show; that of an earlier fit goes."""
    from blemish.report.foregrounds import draw_foreground, remove_sheet

    made = None if sheet is None else draw_foreground(detector, good, sheet)
    if made is None and (stays := remove_sheet(_sheet(output))):
        _note(stays)
    return made


def _log(output: Path) -> Path:
    """part.log.jsonl for part.blemish, encoder.log.jsonl for encoder.safetensors."""
    stem = output.name.removesuffix(".safetensors").removesuffix(".blemish")
    return output.with_name(f"{stem}.log.jsonl")


def _beside(log: Path | None) -> dict[str, str | None]:
    """The files of a pre-training, for the JSON document."""
    from blemish.report.health import figure_of

    return words.places(log=log, figure=log and figure_of(log))


def _learned(
    output: Path,
    learn: Callable[..., Any],
    *,
    log: Path | None,
    checkpoints: Sequence[Path],
    resume: bool,
) -> Any:
    """What `learn` gives, saved as `output`, which no other process may write at the same time.

    Of the processes that torchrun has started, which all learn, the first alone shows the progress,
    writes and tells; the others get None, and end well: whatever else they said, torchrun would end
    the first for it. The checkpoints stay until the result is saved, so that an interrupted
    training can go on from them.
    """
    from blemish.engines.files import check_name
    from blemish.report import health
    from blemish.training.distributed import rank

    check_name(output, None)
    for path in (output, *((log, health.figure_of(log)) if log else ())):
        check_writable(path, picture=path not in (output, log))
    first = rank() == 0
    if first and resume and checkpoints and not any(each.exists() for each in checkpoints):
        _note(f"nothing to resume: {checkpoints[0]} is not there; it begins anew")
    with locked(output) if first else nullcontext():
        try:
            with (
                console.progress() if first else nullcontext(silent) as progress,
                health.illustrated(log if first else None, note=_note),
            ):
                learned = learn(progress=progress)
                if first:
                    _save(learned, output, checkpoints)
        except CollapseError:
            if not first:
                return None  # all see it at once, and the first explains it
            _forget(checkpoints)  # what goes on from them collapses again
            raise
        except OutputError as error:  # of the log, or of a checkpoint: the one before is whole
            what = "the same command with --resume goes on from here"
            if "--resume" in str(error) or not any(one.exists() for one in checkpoints):
                raise
            raise OutputError(f"{error}; or, once there is room, {what}") from error
        except KeyboardInterrupt as error:
            if not any(checkpoint.exists() for checkpoint in checkpoints):
                raise
            what = "the same command with --resume goes on from here"
            raise interrupts.Interrupted(what, interrupts.number_of(error)) from None
        if first:
            _forget(checkpoints)
    return learned if first else None


def _note(sentence: str) -> None:
    console.complain(f"blemish: notice: {sentence}")


def _save(learned: Any, output: Path, checkpoints: Sequence[Path]) -> None:
    """Raises: OutputError, which says where what was learned is kept instead."""
    try:
        or_elsewhere(output, learned.save, f"move it to {output}")
    except OutputError as error:
        if not any(checkpoint.exists() for checkpoint in checkpoints):
            raise
        raise OutputError(
            f"{error}; or the same command with --resume makes it again from its checkpoint"
        ) from error


def _forget(checkpoints: Sequence[Path]) -> None:
    from blemish.scale.kept import forget

    for checkpoint in checkpoints:
        if checkpoint.is_dir():
            forget(checkpoint)
        else:
            checkpoint.unlink(missing_ok=True)
