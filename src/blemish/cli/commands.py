"""The command line: parse, call, print.

Everything heavy is imported inside the commands, so that `blemish --help` is instant.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from blemish import interrupts
from blemish.cli import console, wording
from blemish.errors import BlemishError, CollapseError, ConfigError, OutputError, unknown_name
from blemish.files import check_writable, locked
from blemish.types import ANOMALOUS, silent

if TYPE_CHECKING:
    from blemish.bench.plan import Run
    from blemish.bench.suites import Suite
    from blemish.detector.predict import Detector
    from blemish.methods.adaptation import Mode

WELL, BROKEN_PICTURES, ERROR, BY_SIGNAL, CLOSED_PIPE = 0, 1, 2, 128, 141
EXIT_STATUS = (
    "Exit status: 0 all well; 1 done, but some pictures or masks could not be read or are at fault; "
    "2 error or wrong usage; 130 interrupted; 143 or 129 asked to end by SIGTERM or SIGHUP."
)

FULL, REDUCED = SCHEDULES = ("full", "reduced")  # of a bench
REDUCED_MINUTES = 15.0

_UsageError = typer.BadParameter.__mro__[
    1
]  # click's in older releases of typer, its own in newer ones

app = typer.Typer(
    name="blemish",
    help="Visual anomaly detection: learn from pictures of good parts, then score, judge and map new ones.",
    epilog=EXIT_STATUS,
    add_completion=False,
    rich_markup_mode=None,  # rich's help takes half a second longer to come
)
data_app = typer.Typer(
    help="Look at data sets, or write the demo set's table.", rich_markup_mode=None
)
app.add_typer(data_app, name="data")

Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")
]
Artifact = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="A file that `blemish fit` has written.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[
    str, typer.Option(help="auto (bf16 where the hardware computes in it), fp32, bf16 or fp16.")
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=1, help="Pictures at once; changes speed, memory and the last digit of scores only."
    ),
]
Window = Annotated[
    str | None,
    typer.Option(metavar="LO,HI", help="Range of the pixel values, for 16-bit and DICOM pictures."),
]
TimeBudget = Annotated[
    float | None,
    typer.Option(
        metavar="MINUTES", help="How long training may take; its schedules are shaped to end there."
    ),
]
Scales = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Sides of the squares that `guided` looks at a picture in, as in 224,320. The time grows with the sum of "
        "their areas: the six of the APMask paper cost 19 times 224 alone. [default: those of the artifact]",
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="448, or height x width as in 224x448: the height comes first."
    ),
]
OverlaySize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Pixels of the longer side of the overlays in --output; or full, as large as the pictures; or none. "
        "[default: 1600]",
    ),
]
Adapt = Annotated[
    str | None,
    typer.Option(
        metavar="MODE",
        help="Follow the pictures, where the method can (guided): online, on from batch to batch, or episodic, each "
        "batch by itself. The threshold then guarantees nothing.",
    ),
]
AnomalyCount = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="M", help="Learn from M of the labelled defects, drawn by the seed."
    ),
]
AnomalyType = Annotated[
    str | None, typer.Option(metavar="NAME", help="Learn from defects of this type only.")
]
Rate = Annotated[
    float | None,
    typer.Option(
        help="Share of good pictures that may raise an alarm. [default: 0.05, without a threshold where there are too "
        "few pictures for it]"
    ),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's) and give its exit status. Never raises, save for SystemExit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given[: given.index("--")] if "--" in given else "--json" in given
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # what stands in for a stream in a test or a notebook
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with interrupts.heard():
        try:
            with warnings.catch_warnings():
                if not _debugging():
                    warnings.simplefilter("ignore")
                status = _run(given or ["--help"])
        except BrokenPipeError:
            status = CLOSED_PIPE
        except (Exception, KeyboardInterrupt) as error:
            with interrupts.ignored():
                status = _report(error, as_json=as_json)
        return _flushed(status)


def _flushed(status: int) -> int:
    """The exit status, once what was printed has arrived. Python would print a traceback when it ends."""
    try:
        if sys.stdout is not None:  # it was closed before the start
            sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        return CLOSED_PIPE
    except (OSError, ValueError) as error:
        _forget_output()
        reason = getattr(error, "strerror", None) or error
        console.complain(
            f"blemish: standard output cannot be written ({reason}); the answer is lost"
        )
        return ERROR
    return status


@cache
def _command() -> Any:
    """The whole tree of commands, which takes a tenth of a second to build: once a process."""
    return typer.main.get_command(app)


def _run(arguments: list[str]) -> int:
    command = _command()
    try:
        with command.make_context("blemish", arguments) as context:
            status: int = command.invoke(context)
            return status
    except typer.Exit as end:  # --help, --version
        return end.exit_code


def _report(error: BaseException, *, as_json: bool) -> int:
    """Say what went wrong, in one message and without a traceback."""
    kind, message, status = _explained(error)
    if _debugging():
        traceback.print_exception(error)
    if as_json:
        with suppress(OSError):  # told when the output is flushed
            console.answer({"error": {"kind": kind, "message": message}}, [], as_json=True)
    else:
        console.complain(message)
    return status


def _explained(error: BaseException) -> tuple[str, str, int]:
    """(kind, message, exit status)."""
    kind = type(error).__name__
    if isinstance(error, _UsageError):
        context = getattr(error, "ctx", None)
        name = context.command_path if context else "blemish"
        what = error.format_message()  # type: ignore[attr-defined]
        return "UsageError", f"{name}: {what}\nTry '{name} --help'.", ERROR
    match error:
        case KeyboardInterrupt():
            what = str(error) or "no file was left half written"
            return (
                "Interrupted",
                f"blemish: interrupted; {what}",
                BY_SIGNAL + interrupts.number_of(error),
            )
        case BlemishError():
            return kind, f"blemish: {error}", ERROR
        case OSError(errno=errno.ENOSPC):
            place = f" ({error.filename})" if error.filename else ""
            return (
                OutputError.__name__,
                f"blemish: the disk is full{place}; make room or choose another place",
                ERROR,
            )
        case OSError():
            return (
                kind,
                f"blemish: {error.filename or 'the system'}: {error.strerror or error}",
                ERROR,
            )
    from blemish.images import ran_out

    if ran_out(error):
        smaller = "--batch-size, --image-size, bank_size or pictures_per_step"
        return "MemoryError", f"blemish: out of memory; choose a smaller {smaller}", ERROR
    message = f"blemish: this is a bug in blemish ({kind}: {error}); BLEMISH_DEBUG=1 shows where it comes from"
    return kind, message, ERROR


def _debugging() -> bool:
    return os.environ.get("BLEMISH_DEBUG", "") not in ("", "0")


def _forget_output() -> None:
    """Send what is still to come nowhere: the reader of our output has gone."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stdout.flush()


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"blemish {version('blemish')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and leave."
        ),
    ] = False,
) -> None:
    pass


@app.command(epilog=EXIT_STATUS)
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
        _alone(output if first else None),
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
            window=_interval("--window", window),
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
    places = _places(**more) if "pretraining" in manifest else {}
    document = {
        "artifact": str(output),
        **places,
        **{key: manifest[key] for key in told},
        **{key: manifest["data"][key] for key in told_of_data},
    }
    human = [
        *wording.fitted(manifest),
        *_written(places),
        f"Written: {output} in {manifest['seconds']:.1f} s",
    ]
    console.answer(document, human, as_json=json)
    return BROKEN_PICTURES if manifest["data"]["failures"] else WELL


@app.command(epilog=EXIT_STATUS)
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
        _alone(output if first else None),
        _goes_on_from(checkpoint),
        console.progress() if first else nullcontext(silent) as progress,
    ):
        encoder = pretraining.pretrain(
            good,
            recipe=recipe,
            weights=weights,
            window=_interval("--window", window),
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
    human = [*wording.pretrained(manifest), *(f"Written: {path}" for path in written)]
    console.answer(document, human, as_json=json)
    return BROKEN_PICTURES if manifest["data"]["failures"] else WELL


@app.command(epilog=EXIT_STATUS)
def predict(
    artifact: Artifact,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Pictures: files, folders, patterns.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for predictions.jsonl, predictions.csv and overlays/."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A report as one HTML file, with the highest scores' pictures."
        ),
    ] = None,
    category: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What the pictures show, for an artifact that knows several categories. auto = each is told by its "
            "features, which is also done where nothing is said and the artifact can.",
        ),
    ] = "",
    scales: Scales = None,
    adapt: Adapt = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            help="Judge by this threshold, set by hand, in place of the artifact's.",
        ),
    ] = None,
    overlay_size: OverlaySize = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in a folder that has rows already.")
    ] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures at once. [default: 8, or 32 with --adapt]")
    ] = None,
    json: Json = False,
) -> int:
    """Score new pictures: a verdict and a heatmap for each."""
    from blemish.data.folder import search
    from blemish.detector.predict import BATCH_SIZE, load
    from blemish.report import predictions as outputs
    from blemish.report.html import write_report

    if resume and output is None:
        raise ConfigError("--resume goes on in a folder: name it with --output DIR")
    side = _overlay_side(overlay_size, output)
    if report:
        check_writable(report)
    found = search(paths)
    pictures = found.pictures
    detector = _looking_at(scales, load(artifact, device=device, precision=precision))
    mode = _mode(adapt)
    if mode is not None:
        detector.method.adapter(mode)  # refuses before anything is written
    if threshold is not None:
        detector = detector.with_threshold(threshold)
    limit = detector.threshold_for(category)
    manifest = {**detector.manifest, "threshold": None if limit is None else limit.to_dict()}
    gallery = outputs.Gallery(outputs.EMBEDDED)
    interrupted: KeyboardInterrupt | None = None
    used = outputs.precision_of(detector)
    ways = {
        "category": category,
        "adapt": mode or "",
        "scales": scales or "",
        "threshold": "" if threshold is None else str(threshold),
    }
    with outputs.Journal(
        output, artifact=artifact, precision=used, ways=ways, resume=resume
    ) as journal:
        todo, again = journal.remaining(pictures, batch_size or BATCH_SIZE)
        if mode is not None:  # what it adapted to is gone
            todo, again = todo[again:], 0
        try:
            with console.progress() as progress:
                results = (
                    detector.predict_many(
                        todo, category=category, batch_size=batch_size, adapt=mode
                    )
                    if todo
                    else []
                )
                new = islice(results, again, None)
                for done, _ in enumerate(
                    outputs.record(journal, detector, new, gallery, side=side), start=1
                ):
                    progress("scoring", done, len(todo) - again)
        except KeyboardInterrupt as error:
            interrupted = error
        journal.write_table()
    warning = wording.categories_told(journal.scored, detector.categories)
    judged_as = {row["category"] for row in journal.scored}
    if len(judged_as) == 1:  # which nobody need have said
        limit = detector.threshold_for(*judged_as)
        manifest["threshold"] = None if limit is None else limit.to_dict()
    if report:
        write_report(
            report,
            title=f"{artifact.stem}: predictions",
            manifest=manifest,
            warning=warning,
            entries=outputs.prediction_entries(journal, detector, gallery),
            failures=journal.failures,
            scale=detector.map_scale,
        )
    places = _places(output=output, report=report)
    failures = [failure.to_dict() for failure in journal.failures]
    document = {
        "artifact": str(artifact),
        **places,
        "category": category,
        "warning": warning,
        "threshold": manifest["threshold"],
        "scored": len(journal.scored),
        "alarms": sum(row["label"] == ANOMALOUS for row in journal.scored),
        "failed": len(failures),
        "interrupted": interrupted is not None,
        "left_out": list(found.left_out),
        "predictions": journal.rows,
    }
    by_hand = threshold is not None or (limit is not None and limit.method == "by hand")
    human = [
        *wording.notices(found.left_out),
        *wording.predictions(journal.scored, failures, limited_by_hand=by_hand),
        *_written(places),
    ]
    console.answer(document, human, as_json=json)
    if warning:
        console.complain(f"blemish: warning: {warning}; --category NAME says it")
    if interrupted:
        how = (
            "the same command with --resume goes on from here"
            if output
            else "with --output DIR it could be resumed"
        )
        console.complain(
            f"blemish: interrupted after {len(journal.rows)} of {len(pictures)} pictures; {how}"
        )
        return BY_SIGNAL + interrupts.number_of(interrupted)
    return BROKEN_PICTURES if failures else WELL


@app.command(epilog=EXIT_STATUS)
def evaluate(
    artifact: Artifact,
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Good and defective pictures: a folder or a table."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for evaluation.json, figures (SVG) and the worst cases' overlays.",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A report as one HTML file.")
    ] = None,
    resolution: Annotated[
        str,
        typer.Option(
            metavar="SIDE", help="Side of the square at which maps meet masks, or `original`."
        ),
    ] = "256",
    scales: Scales = None,
    adapt: Adapt = None,
    overlay_size: OverlaySize = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> int:
    """Measure how good an artifact is on labelled pictures."""
    from blemish.detector.evaluate import evaluate as measure
    from blemish.detector.predict import load
    from blemish.report import predictions as outputs
    from blemish.report.html import write_report

    side = None if resolution == "original" else _side(resolution)
    drawn = _overlay_side(overlay_size, output)
    if report:
        check_writable(report)
    if output:
        check_writable(output / "evaluation.json")
        if (output / "evaluation.json").exists():
            raise OutputError(f"{output}: holds an evaluation already; name another folder")
    detector = _looking_at(scales, load(artifact, device=device, precision=precision))
    mode = _mode(adapt)
    mistakes = outputs.Mistakes()
    with _alone(output / "evaluation.json" if output else None):
        with console.progress() as progress:
            result = measure(
                detector,
                data,
                resolution=side,
                adapt=mode,
                progress=progress,
                on_prediction=mistakes.add,
            )
        warning = wording.categories_told(result.rows, detector.categories)
        if output:
            outputs.write_evaluation(output, result, mistakes, detector, side=drawn)
    if report:
        write_report(
            report,
            title=f"{artifact.stem}: evaluation",
            manifest=detector.manifest,
            warning=warning,
            entries=mistakes.entries(result, detector),
            evaluation=result,
            scale=detector.map_scale,
        )
    places = _places(output=output, report=report)
    document = {
        "artifact": str(artifact),
        "data": str(data),
        **places,
        "warning": warning,
        **result.to_dict(),
    }
    console.answer(document, [*wording.evaluation(result), *_written(places)], as_json=json)
    if warning:
        console.complain(f"blemish: warning: {warning}")
    return BROKEN_PICTURES if result.failures or result.mask_faults else WELL


@app.command(epilog=EXIT_STATUS)
def figures(
    artifacts: Annotated[
        list[Path],
        typer.Argument(
            metavar="ARTIFACT",
            help="Files that `blemish fit` has written; several are compared, on the same pictures.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Good and defective pictures: a folder or a table."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for histogram.png, embedding.png and gallery.png; of several artifacts for histograms.png, "
            "embeddings.png and comparison.png. Of several categories there is an embedding and a comparison of each.",
        ),
    ],
    count: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=50,
            help="Pictures of each kind: in the gallery defects with the highest and the lowest scores, good with the "
            "highest; in a comparison the same for each kind of defect and each category, by the scores of the first "
            "artifact. [default: 4, in a comparison 1]",
        ),
    ] = None,
    scales: Scales = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> int:
    """Draw how artifacts see labelled pictures: scores, features (t-SNE), and where they look."""
    from blemish.detector.predict import load
    from blemish.report.galleries import compare, illustrate

    names = _told_apart(artifacts)
    detectors = {
        name: _looking_at(scales, load(artifact, device=device, precision=precision))
        for name, artifact in zip(names, artifacts, strict=True)
    }
    with console.progress() as progress:
        if len(detectors) == 1:
            made = illustrate(
                detectors[names[0]], data, output, count=count or 4, progress=progress
            )
        else:
            made = compare(detectors, data, output, count=count or 1, progress=progress)
    document = {
        "artifacts": [str(artifact) for artifact in artifacts],
        "data": str(data),
        **made.to_dict(),
    }
    failures = document["failures"]
    whose = "the artifact" if len(artifacts) == 1 else "an artifact"
    known = (
        f"; {len(made.left_out)} left out, {whose} was fitted or calibrated on them"
        if made.left_out
        else ""
    )
    human = [
        f"Pictures: {made.normal} good, {made.anomalous} defective{known}; {len(failures)} broken",
        *wording.broken(failures),
        *(f"Written: {file}" for file in made.files),
    ]
    console.answer(document, human, as_json=json)
    return BROKEN_PICTURES if failures else WELL


@app.command(epilog=EXIT_STATUS)
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
    detector = _looking_at(scales, load(artifact, device=device, precision=precision))
    if threshold is not None:
        detector = detector.with_threshold(threshold)
        detector.save(output)
        document = {
            "artifact": str(output),
            "threshold": detector.manifest["threshold"],
            "thresholds": {},
        }
        human = [
            f"Threshold: {wording.threshold(detector.manifest['threshold'])}",
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
    common, *others = wording.thresholds(manifest)
    known = f"{left_out} left out, the artifact was fitted on them; " if left_out else ""
    copies = manifest["data"]["copies"]
    twice = f"{copies} {'copy' if copies == 1 else 'copies'} of these; " if copies else ""
    human = [
        f"Pictures: {manifest['threshold']['n']} used; {known}{twice}{len(broken)} broken",
        *wording.broken(broken),
        f"Threshold: {common}",
        *(f"  of {other}" for other in others),
        f"Written: {output}",
    ]
    console.answer(document, human, as_json=json)
    return BROKEN_PICTURES if failures else WELL


@app.command(epilog=EXIT_STATUS)
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
    with _alone(output):  # what another process adds to it meanwhile would be lost
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
    console.answer(document, [*wording.refined(refined), f"Written: {output}"], as_json=json)
    return BROKEN_PICTURES if refined.failures else WELL


@app.command(epilog=EXIT_STATUS)
def simulate(
    good: Annotated[
        list[Path] | None,
        typer.Argument(metavar="GOOD", help="Pictures of good parts, as `blemish fit` takes them."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder for what is made.")
    ] = None,
    simulator: Annotated[
        str, typer.Option(metavar="NAME", help="A simulator of --list.")
    ] = "guided",
    count: Annotated[int, typer.Option(min=1, help="Pictures to draw.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw and the anomalies.")] = 0,
    backbone: Annotated[
        str, typer.Option(help="Whose attention guides: a ViT of `blemish backbones`, or of timm.")
    ] = "dinov2_vits14",
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Weights of the backbone, in place of its own source."),
    ] = None,
    image_size: ImageSize = None,
    guide_layers: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Layers whose attention guides, as in 9,12. [default: the last]"
        ),
    ] = "",
    window: Window = None,
    device: Device = "auto",
    precision: Precision = "auto",
    list_simulators: Annotated[
        bool, typer.Option("--list", help="List the simulators, and leave.")
    ] = False,
    json: Json = False,
) -> int:
    """Make synthetic anomalies in pictures of good parts, to judge them by eye on a contact sheet."""
    if list_simulators:
        return _list_simulators(as_json=json)
    if not good or output is None:
        raise ConfigError(
            "simulate needs pictures of good parts, and --output DIR; --list lists the simulators"
        )
    from blemish.report import simulation

    with console.progress() as progress:
        made = simulation.simulate(
            good,
            output,
            name=simulator,
            count=count,
            seed=seed,
            backbone=backbone,
            weights=weights,
            image_size=_size(image_size or "448"),
            guide_layers=_integers("--guide-layers", guide_layers, "9,12"),
            window=_interval("--window", window),
            device=device,
            precision=precision,
            progress=progress,
        )
    console.answer(made.to_dict(), wording.simulation(made), as_json=json)
    return BROKEN_PICTURES if made.failures else WELL


def _list_simulators(*, as_json: bool) -> int:
    from blemish.anomalies import SIMULATORS

    rows = [(kind.name, kind.summary, kind.source) for kind in SIMULATORS.values()]
    head = ("name", "summary", "source")
    console.answer(
        [dict(zip(head, row, strict=True)) for row in rows],
        [console.table(head, rows)],
        as_json=as_json,
    )
    return WELL


@app.command()
def inspect(
    artifact: Artifact,
    json: Json = False,
) -> int:
    """Say what an artifact, a pre-trained encoder or an interrupted training is, and that it is whole."""
    from blemish.artifact import read
    from blemish.detector.manifest import read_any

    _, manifest = read(artifact)
    told = read_any(artifact, manifest).to_dict()
    size = artifact.stat().st_size
    document = {"artifact": str(artifact), "bytes": size, "whole": True, "manifest": manifest}
    heading = f"{artifact}: whole and unaltered, {size / 2**20:.1f} MiB"
    if "method" in manifest:
        described = wording.manifest(told)
    elif "pretraining" in manifest:
        described = wording.encoder(told)
    else:
        described = wording.checkpoint(told)
    console.answer(document, [heading, described], as_json=json)
    return WELL


@app.command()
def backbones(json: Json = False) -> int:
    """List the backbones; any other timm model works too."""
    from dataclasses import asdict

    from blemish.backbones import SPECS

    rows = [
        (
            spec.name,
            spec.about,
            ", ".join(map(str, spec.layers)) or "the middle",
            spec.source,
            spec.licence,
        )
        for spec in SPECS.values()
    ]
    head = ("name", "what it is", "layers", "weights from", "licence")
    console.answer(
        [asdict(spec) for spec in SPECS.values()], [console.table(head, rows)], as_json=json
    )
    return WELL


@app.command()
def methods(json: Json = False) -> int:
    """List the methods with their settings and recipes."""
    from blemish.cli.catalogue import describe_methods

    known = describe_methods()
    console.answer(known, wording.methods(known), as_json=json)
    return WELL


@app.command()
def doctor(json: Json = False) -> int:
    """Say what works on this machine, and what is missing."""
    from blemish.cli.doctor import examine

    found = examine()
    console.answer(found.to_dict(), wording.machine(found), as_json=json)
    return ERROR if found.faults else WELL


@data_app.command("check", epilog=EXIT_STATUS)
def data_check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder, a table or a picture.")],
    json: Json = False,
) -> int:
    """Say what a data set is recognised as, and decode every picture to find what is wrong."""
    from blemish.data.checking import check

    with console.progress() as progress:
        found = check(path, progress=lambda done, total: progress("decoding", done, total))
    console.answer(found.to_dict(), wording.data_set(found), as_json=json)
    return WELL if found.ok else BROKEN_PICTURES


@data_app.command("layouts")
def data_layouts(json: Json = False) -> int:
    """Say of each public data set where to get it, its licence, its split, and the folders it is expected in."""
    from dataclasses import asdict

    from blemish.data.layouts.official import OFFICIAL
    from blemish.data.layouts.recognition import TREES

    sets = list(OFFICIAL.values())
    described = [
        *wording.public_sets(sets),
        f"Every layout that is read, for pictures of your own too:\n\n{TREES}",
    ]
    console.answer([asdict(one) for one in sets], described, as_json=json)
    return WELL


@data_app.command("elpv")
def data_elpv(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.csv", help="The table to write.")
    ],
    seed: Annotated[int, typer.Option(help="Of the draw of the cells.")] = 0,
    cells: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Only N cells to learn from and N to test on, half of them defective. [default: 1,131 and 1,092]",
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Write the table of the demo set: solar cells of ELPV, from the package elpv-dataset (CC BY-NC-SA 4.0)."""
    from blemish.data.layouts.recognition import read
    from blemish.data.layouts.solar import write_elpv_manifest

    written = write_elpv_manifest(output, seed, cells)
    description = read(written).description
    document = {"manifest": str(written), "description": description, "seed": seed, "cells": cells}
    human = [description]
    if cells is not None:
        times = (1131 + 1092) / (2 * cells)
        human.append(
            f"These are {cells} of the 1,131 cells to learn from and {cells} of the 1,092 to test on; with all of them "
            f"(leave --cells out) whatever follows takes about {times:.2g} times as long"
        )
    console.answer(document, [*human, f"Written: {written}"], as_json=json)
    return WELL


class _BenchGroup(TyperGroup):
    """What stands first, where it is no command, is the suite: `bench agpnet …` is `bench --suite agpnet …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, rest, _ = self.make_parser(ctx).parse_args(args=list(args))
        if rest and rest[0] not in self.commands:
            args = [*args[: len(args) - len(rest)], "--suite", *rest]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[SUITE] [OPTIONS]", "[COMMAND [ARGS]...]"]


bench_app = typer.Typer(
    cls=_BenchGroup,
    help="Measure methods on data sets, or show what was measured.",
    rich_markup_mode=None,
)
app.add_typer(bench_app, name="bench")


@bench_app.callback(invoke_without_command=True, epilog=EXIT_STATUS)
def bench(
    context: typer.Context,
    methods: Annotated[
        str, typer.Option(metavar="LIST", help="Methods, as in patchcore,knn.")
    ] = "",
    suite: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="In place of methods: the tables of a suite of --list, or of a TOML file. Its name may also stand "
            "first, as in `blemish bench agpnet`.",
        ),
    ] = "",
    only: Annotated[
        str, typer.Option(metavar="LIST", help="Tables of the suite. [default: all]")
    ] = "",
    data: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Data sets: names of `blemish data layouts` (mvtec: all categories at once; bottle: one of them), or "
            "paths. With a suite: the folder that holds the data sets of its tables, as --root, or others to measure "
            "in their place.",
        ),
    ] = "",
    seeds: Annotated[
        str,
        typer.Option(
            metavar="N", help="How many seeds: 3 = 0, 1 and 2. Or which, with a comma: 0,1,2."
        ),
    ] = "1",
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSONL file that gets a row a run; runs it holds are skipped. [default with a suite: SUITE.jsonl]",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting; may be given more than once. What a suite varies stays.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe of the methods, to which other settings are applied. [default: best, or the suite's]"
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="One of `blemish backbones`, or any timm model.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Weights of the backbone, in place of its own source."),
    ] = None,
    image_size: ImageSize = None,
    shots: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="K", help="Learn from K pictures a category, drawn by the seed."
        ),
    ] = None,
    anomaly_count: AnomalyCount = None,
    anomaly_type: AnomalyType = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="full, as the recipe has it; or reduced to --time-budget, else to 15 minutes. [default: full, without "
            "--time-budget]",
        ),
    ] = None,
    time_budget: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES", help="Of each training; methods that do not train ignore it."
        ),
    ] = None,
    shifts: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Judge the test pictures also shifted: any of brightness, brighter, contrast, blur, noise, jpeg, or "
            "all.",
        ),
    ] = "",
    adapt: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Judge them also while adapting to them, where the method can: online, episodic.",
        ),
    ] = "",
    label: Annotated[
        str | None, typer.Option(help="Name of this setting in the table. [default: the settings]")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the named data sets. [default: $BLEMISH_DATA]"),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of torch on the CPU, in each run. [default: torch's choice; cores by --jobs]",
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Runs at once; several GPUs are shared out among them."
        ),
    ] = 1,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep the artifacts of the runs made now, as for `blemish figures`."
        ),
    ] = None,
    list_suites: Annotated[
        bool, typer.Option("--list", help="List the suites and their tables, and leave.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="List the runs to be made and what time they may take, and leave."
        ),
    ] = False,
    json: Json = False,
) -> int:
    """Measure methods on data sets, each run in a process of its own; `bench table` shows what was measured."""
    if context.invoked_subcommand is not None:
        return WELL
    if list_suites:
        return _list_suites(as_json=json)
    if bool(methods) == bool(suite) or (
        methods and (not data or (results is None and not dry_run))
    ):
        raise ConfigError("a bench needs a suite, or --methods (one of them), --data and --results")
    time_budget = _budget(schedule, time_budget)
    from functools import partial
    from tempfile import TemporaryDirectory

    from blemish.bench import plan as planning
    from blemish.bench import results as measured
    from blemish.bench import run as benchmark
    from blemish.bench import suites
    from blemish.data.shifts import SHIFTS

    chosen = _suite(suite, only)
    named = {"backbone": backbone, "image_size": image_size}
    planned = partial(
        planning.plan,
        seeds=_seeds(seeds),
        assignments=[f"{key}={value}" for key, value in named.items() if value is not None]
        + (settings or []),
        weights=weights,
        shots=shots,
        anomaly_count=anomaly_count,
        anomaly_type=anomaly_type,
        time_budget=time_budget,
        shifts=list(SHIFTS) if shifts == "all" else _parts(shifts),
        adapt=_parts(adapt),
        label=label,
    )
    where = {"device": device, "precision": precision}
    with TemporaryDirectory(prefix="blemish-bench-") as scratch:
        notes: list[str] = []
        if chosen:
            parts, notes = planning.places(chosen, _parts(data), root=root, scratch=Path(scratch))
            if results is None:
                results = Path(f"{chosen.name}.jsonl")
                notes.append(f"Rows are kept in {results}.")
            runs = planning.once(
                one for part, sets in parts for one in planned(part.entries(recipe), sets)
            )
        else:
            entries = [
                suites.Entry(method=method, recipe=recipe or "best") for method in _parts(methods)
            ]
            runs = planned(
                entries, planning.data_sets(_parts(data), root=root, scratch=Path(scratch))
            )
        if dry_run or results is None:
            return _estimate(
                runs, results, notes, threads=threads, jobs=jobs, as_json=json, **where
            )
        for note in notes:
            console.complain(note)
        try:
            rows = benchmark.run(
                runs,
                results,
                threads=threads,
                jobs=jobs,
                keep=keep,
                progress=lambda what, done, total: console.complain(f"{done} of {total}: {what}"),
                **where,
            )
        except KeyboardInterrupt as error:
            console.complain(
                f"blemish: interrupted; the same command goes on from the rows in {results}"
            )
            return BY_SIGNAL + interrupts.number_of(error)
    text = measured.suite_table(rows, chosen) if chosen else measured.table(rows)
    console.answer(rows, [text], as_json=json)
    return ERROR if any(row["status"] != measured.OK for row in rows) else WELL


def _estimate(
    runs: Sequence[Run],
    results: Path | None,
    notes: Sequence[str],
    *,
    device: str,
    precision: str,
    threads: int | None,
    jobs: int,
    as_json: bool,
) -> int:
    """What is left to be measured, and how long it may take."""
    from blemish.bench import estimates
    from blemish.bench import run as benchmark
    from blemish.bench.results import read_rows

    rows = read_rows(results) if results and results.exists() else []
    left = (
        benchmark.missing(runs, results, device=device, precision=precision)
        if results
        else list(runs)
    )
    found = estimates.estimate(
        left, rows, device=device, precision=precision, threads=threads, jobs=jobs
    )
    seconds, made = estimates.total(found, jobs), len(runs) - len(left)
    document = {
        "runs": [each.to_dict() for each in found],
        "made": made,
        "jobs": jobs,
        "seconds": round(seconds, 1),
        "notes": list(notes),
    }
    untold = sum(each.seconds is None for each in found)
    told = f"about {estimates.duration(seconds)}; rough" + (
        f", without {untold} of them" if untold else ""
    )
    human = [*map(str, found), *notes, f"{len(left)} runs to make, {made} made already: {told}"]
    console.answer(document, human, as_json=as_json)
    return WELL


def _list_suites(*, as_json: bool) -> int:
    from dataclasses import asdict

    from blemish.bench import suites

    known = [suites.read(name) for name in suites.names()]
    rows = [
        (
            suite.name,
            table.name,
            table.title,
            table.source,
            table.data or "any",
            len(table.rows if isinstance(table, suites.Table) else table.lines),
        )
        for suite in known
        for table in suite.tables
    ]
    head = ("suite", "table", "what it compares", "published in", "data", "lines")
    console.answer(
        [asdict(suite) for suite in known],
        [console.table(head, rows, right=("lines",))],
        as_json=as_json,
    )
    return WELL


@bench_app.command("table")
def bench_table(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Results of `blemish bench`.")
    ],
    suite: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Show the tables of this suite, with their published figures."
        ),
    ] = "",
    only: Annotated[
        str, typer.Option(metavar="LIST", help="Tables of the suite. [default: all]")
    ] = "",
    efficiency: Annotated[
        bool,
        typer.Option(
            "--efficiency",
            help="Show what the methods cost instead: parameters, FLOPs, times, memory.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.md|FILE.html",
            help="Markdown or, by its suffix, HTML to write.",
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Show results as Markdown or HTML tables."""
    from blemish.bench import results
    from blemish.files import write_whole

    chosen = _suite(suite, only)
    rows = [row for file in files for row in results.read_rows(file)]
    if efficiency:
        page = results.efficiency_page(rows, published=chosen.efficiency if chosen else None)
    else:
        page = results.suite_page(rows, chosen) if chosen else results.page(rows)
    text = results.markdown(page)
    if output:
        title = chosen.title if chosen else "Results of blemish bench"
        as_html = output.suffix.lower() in {".html", ".htm"}
        write_whole(
            output,
            (results.html(page, title=title) if as_html else text).encode(
                "utf-8", "backslashreplace"
            ),
        )
    console.answer(rows, [f"Written: {output}" if output else text], as_json=json)
    return WELL


def _suite(name: str, only: str) -> Suite | None:
    """Raises: ConfigError for an unknown suite or table, or for tables without a suite."""
    from blemish.bench import suites

    if only and not name:
        raise ConfigError(f"--only {only}: names tables of a suite, and there is no --suite")
    chosen = suites.read(name) if name else None
    return chosen.only(_parts(only)) if chosen and only else chosen


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _integers(option: str, text: str, such_as: str) -> list[int]:
    try:
        return [int(part) for part in _parts(text)]
    except ValueError as error:
        raise ConfigError(f"{option} {text}: whole numbers are needed, as in {such_as}") from error


def _size(text: str) -> list[int]:
    from blemish.config import height_width

    return [
        *(
            height_width(text)
            or _integers("--image-size", text, "448, or height x width as in 224x448")
        )
    ]


def _seeds(text: str) -> list[int]:
    """3 = 0, 1 and 2; 3,4 and 3, are lists."""
    given = _integers("--seeds", text, "3, or 0,1,2")
    if "," in text and given:
        return given
    if len(given) != 1 or given[0] < 1:
        raise ConfigError(
            f"--seeds {text}: how many is needed, at least 1; which, with a comma, as in 0,1,2 or 4,"
        )
    return list(range(given[0]))


def _budget(schedule: str | None, minutes: float | None) -> float | None:
    """The time budget of a schedule by name. Raises: ConfigError for one that is unknown, or contradicts the budget."""
    if schedule is not None and schedule not in SCHEDULES:
        raise unknown_name("--schedule", schedule, SCHEDULES)
    if schedule == FULL and minutes is not None:
        raise ConfigError(
            f"--schedule full --time-budget {minutes:g}: a time budget reduces it; leave one of them out"
        )
    return REDUCED_MINUTES if schedule == REDUCED and minutes is None else minutes


def _told_apart(artifacts: Sequence[Path]) -> list[str]:
    """What figures call them: their names without folder and suffix or, where two have the same, their paths."""
    if len(set(artifacts)) < len(artifacts):
        raise ConfigError("an artifact is named twice; a comparison is between different ones")
    names = [artifact.stem for artifact in artifacts]
    return names if len(set(names)) == len(names) else [str(artifact) for artifact in artifacts]


def _looking_at(scales: str | None, detector: Detector) -> Detector:
    if scales is None:
        return detector
    sides = scales.split(",")
    if not all(side.strip().isdecimal() and 1 <= int(side) <= 8192 for side in sides):
        raise ConfigError(f"--scales {scales}: sides in pixels are needed, as in 224,320")
    return detector.with_scales([int(side) for side in sides])


def _mode(adapt: str | None) -> Mode | None:
    from blemish.methods.adaptation import MODES

    if adapt is None:
        return None
    if adapt not in MODES:
        raise unknown_name("mode of --adapt", adapt, MODES)
    return adapt


def _interval(option: str, text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise ConfigError(
            f"{option} {text}: two numbers lo,hi with lo < hi are needed, as in 0,4095"
        )
    return low, high


def _side(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 8192:
        raise ConfigError(
            f"--resolution {text}: a side in pixels (256), or the word original, is needed"
        )
    return int(text)


def _overlay_side(text: str | None, output: Path | None) -> int | None:
    """As `outputs.record` takes it. Raises: ConfigError for what is no size, or where nothing is to be drawn."""
    from blemish.report.predictions import OVERLAY_SIDE

    if text is None:
        return OVERLAY_SIDE
    if output is None:
        raise ConfigError(
            "--overlay-size: overlays are drawn into a folder; name it with --output DIR"
        )
    if text in ("full", "none"):
        return None if text == "full" else 0
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f"--overlay-size {text}: pixels of the longer side (1600), full or none is needed"
        )
    return int(text)


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


def _alone(output: Path | None) -> AbstractContextManager[None]:
    """Around what no other process may write at the same time. Raises: OutputError."""
    return nullcontext() if output is None else locked(output)


def _places(**paths: Path | None) -> dict[str, str | None]:
    return {name: None if path is None else str(path) for name, path in paths.items()}


def _written(places: Mapping[str, str | None]) -> list[str]:
    return [f"Written: {console.one_line(place)}" for place in places.values() if place]
