"""predict, evaluate, figures: the commands that judge pictures, and what they print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from blemish import interrupts
from blemish.cli import console, options, words
from blemish.cli.console import table
from blemish.cli.options import Adapt, Artifact, Device, Json, OverlaySize, Precision, Scales
from blemish.cli.status import BROKEN_PICTURES, BY_SIGNAL, WELL
from blemish.errors import ConfigError, OutputError
from blemish.files import check_writable, locked
from blemish.types import ANOMALOUS, NORMAL

if TYPE_CHECKING:
    from rich.table import Table

    from blemish.data.folder import Found
    from blemish.detector.predict import Detector
    from blemish.report.journal import Journal
    from blemish.report.predictions import Gallery
    from blemish.types import Evaluation

_SHOWN_WHOLE, _SHOWN_OF_MANY = 50, 20
_VERDICTS = {NORMAL: "normal", ANOMALOUS: "alarm", None: "–"}

Paths = Annotated[list[Path], Argument(metavar="PATH", help="Pictures: files, folders, patterns.")]
PredictionsFolder = Annotated[
    Path | None,
    Option(metavar="DIR", help="Folder for predictions.jsonl, predictions.csv and overlays/."),
]
PredictionsReport = Annotated[
    Path | None,
    Option(metavar="FILE", help="A report as one HTML file, with the highest scores' pictures."),
]
Category = Annotated[
    str,
    Option(
        metavar="NAME",
        help="What the pictures show, for an artifact that knows several categories. auto = each "
        "is told by its features, which is also done where nothing is said and the artifact can.",
    ),
]
GoOn = Annotated[bool, Option("--resume", help="Go on in a folder that has rows already.")]
BatchSize = Annotated[
    int | None, Option(min=1, help="Pictures at once. [default: 8, or 32 with --adapt]")
]


def predict(
    artifact: Artifact,
    paths: Paths,
    output: PredictionsFolder = None,
    report: PredictionsReport = None,
    category: Category = "",
    scales: Scales = None,
    adapt: Adapt = None,
    threshold: options.ByHand = None,
    roi: options.OnlyThere = None,
    ignore: options.NotThere = None,
    overlay_size: OverlaySize = None,
    resume: GoOn = False,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = None,
    json: Json = False,
) -> int:
    """Score new pictures: a verdict and a heatmap for each."""
    from blemish.compute import precision_name
    from blemish.data.folder import search
    from blemish.methods import adapter_of
    from blemish.report import predictions as outputs
    from blemish.report.journal import Journal

    if resume and output is None:
        raise ConfigError("--resume goes on in a folder: name it with --output DIR")
    side = options.overlay_side(overlay_size, output)
    if report:
        check_writable(report)
    found = search(paths)
    detector = options.loaded(artifact, device=device, precision=precision, scales=scales)
    if adapt is not None:
        adapter_of(detector.method, adapt)  # refuses before anything is written
    if threshold is not None:
        detector = detector.with_threshold(threshold)
    detector.threshold_for(category)  # so does this
    detector, area = options.within(detector, roi, ignore)
    ways = {
        "category": category,
        "adapt": adapt or "",
        "scales": scales or "",
        "threshold": "" if threshold is None else str(threshold),
        "area": area,
    }
    used = precision_name(detector.method.precision)
    gallery = outputs.Gallery(outputs.EMBEDDED)
    with Journal(output, artifact=artifact, precision=used, ways=ways, resume=resume) as journal:
        how = {"category": category, "batch_size": batch_size, "adapt": adapt}
        interrupted = _scored(journal, detector, found.pictures, gallery, side=side, **how)
        journal.write_table()
    return _tell(
        journal,
        detector,
        gallery,
        artifact=artifact,
        report=report,
        category=category,
        found=found,
        interrupted=interrupted,
        as_json=json,
    )


def _scored(
    journal: Journal,
    detector: Detector,
    pictures: Sequence[Path],
    gallery: Gallery,
    *,
    side: int | None,
    **how: Any,
) -> KeyboardInterrupt | None:
    """Score what the journal lacks, as `Detector.predict_many` does; gives what interrupted it."""
    from blemish.detector.predict import BATCH_SIZE
    from blemish.report.predictions import record

    todo, again = journal.remaining(pictures, how["batch_size"] or BATCH_SIZE)
    if how["adapt"] is not None:  # what it adapted to is gone
        todo, again = todo[again:], 0
    try:
        with console.progress() as progress:
            results = detector.predict_many(todo, **how) if todo else []
            rows = record(journal, detector, islice(results, again, None), gallery, side=side)
            for done, _ in enumerate(rows, start=1):
                progress("scoring", done, len(todo) - again)
    except KeyboardInterrupt as error:
        return error
    return None


def _tell(
    journal: Journal,
    detector: Detector,
    gallery: Gallery,
    *,
    artifact: Path,
    report: Path | None,
    category: str,
    found: Found,
    interrupted: KeyboardInterrupt | None,
    as_json: bool,
) -> int:
    """Write the report of predictions and answer with them; gives the exit status."""
    from blemish.report.html import write_report
    from blemish.report.predictions import prediction_entries

    scored = journal.scored
    warning = words.category_warning(scored, detector.categories)
    judged = {row["category"] for row in scored}
    # Where all are of one category its threshold is shown, even if nobody named it.
    limit = detector.threshold_for(*judged if len(judged) == 1 else [category])
    threshold = None if limit is None else limit.to_dict()
    if report:
        write_report(
            report,
            title=f"{artifact.stem}: predictions",
            manifest={**detector.manifest, "threshold": threshold},
            warning=warning,
            entries=prediction_entries(journal, detector, gallery),
            failures=journal.failures,
            scale=detector.map_scale,
        )
    failures = [failure.to_dict() for failure in journal.failures]
    places = words.places(output=journal.folder, report=report)
    document = {
        "artifact": str(artifact),
        **places,
        "category": category,
        "warning": warning,
        "threshold": threshold,
        "scored": len(scored),
        "alarms": sum(row["label"] == ANOMALOUS for row in scored),
        "failed": len(failures),
        "interrupted": interrupted is not None,
        "left_out": list(found.left_out),
        "predictions": journal.rows,
    }
    by_hand = limit is not None and limit.method == "by hand"
    human = [
        *words.notices(found.left_out),
        *predict_lines(scored, failures, limited_by_hand=by_hand),
        *words.written(places),
    ]
    console.answer(document, human, as_json=as_json)
    if warning:
        console.complain(f"blemish: warning: {warning}; --category NAME says it")
    if interrupted is None:
        return BROKEN_PICTURES if failures else WELL
    return _say_interrupted(interrupted, journal, len(found.pictures))


def _say_interrupted(error: KeyboardInterrupt, journal: Journal, pictures: int) -> int:
    """How to go on; gives the exit status."""
    then = "the same command with --resume goes on from here"
    then = then if journal.folder else "with --output DIR it could be resumed"
    done = f"{len(journal.rows)} of {pictures} pictures"
    console.complain(f"blemish: interrupted after {done}; {then}")
    return BY_SIGNAL + interrupts.number_of(error)


def predict_lines(
    scored: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]],
    *,
    limited_by_hand: bool = False,
) -> Iterable[str | Table]:
    """Scores and verdicts, of many pictures the alarms, and the broken ones.

    Args: scored: rows of predictions, the highest score first.
    """
    alarms = [row for row in scored if row["label"] == ANOMALOUS]
    many = len(scored) > _SHOWN_WHOLE
    shown = (alarms or scored)[:_SHOWN_OF_MANY] if many else scored
    if shown:
        category = ["category"] if any(row["category"] for row in shown) else []
        named = (*category, "path")
        rows = [
            (f"{row['score']:.4f}", _VERDICTS[row["label"]], *(row[name] for name in named))
            for row in shown
        ]
        yield table(("score", "verdict", *named), rows, right=("score",))
    if many:
        yield f"… the highest {len(shown)}{' alarms' if alarms else ''} of {len(scored)} pictures"
    yield from words.broken(failures)
    yield from words.notes(Counter(note for row in scored for note in row.get("notes", ())))
    if not scored:
        verdicts = "no picture was scored"
    elif scored[0]["threshold"] is None:
        verdicts = f"{len(scored)} scored: no verdict, as the artifact has no threshold"
    else:
        limits = {row["threshold"] for row in scored}
        limit = "the thresholds of their categories"
        if len(limits) == 1:
            limit = f"a threshold of {limits.pop():.6g}"
        by_hand = " set by hand" if limited_by_hand else ""
        normal = len(scored) - len(alarms)
        verdicts = (
            f"{len(scored)} scored: {len(alarms)} alarms, {normal} normal at {limit}{by_hand}"
        )
    yield verdicts + (f"; {len(failures)} could not be read" if failures else "")


Labelled = Annotated[
    Path, Argument(metavar="DATA", help="Good and defective pictures: a folder or a table.")
]
EvaluationFolder = Annotated[
    Path | None,
    Option(
        metavar="DIR",
        help="Folder for evaluation.json, figures (SVG) and the worst cases' overlays.",
    ),
]
Resolution = Annotated[
    str, Option(metavar="SIDE", help="Side of the square at which maps meet masks, or `original`.")
]


def evaluate(
    artifact: Artifact,
    data: Labelled,
    output: EvaluationFolder = None,
    report: Annotated[
        Path | None, Option(metavar="FILE", help="A report as one HTML file.")
    ] = None,
    resolution: Resolution = "256",
    scales: Scales = None,
    adapt: Adapt = None,
    roi: options.OnlyThere = None,
    ignore: options.NotThere = None,
    overlay_size: OverlaySize = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> int:
    """Measure how good an artifact is on labelled pictures."""
    from blemish.detector.evaluate import evaluate as measure
    from blemish.report import predictions as outputs
    from blemish.report.html import write_report

    side = None if resolution == "original" else _side(resolution)
    drawn = options.overlay_side(overlay_size, output)
    if report:
        check_writable(report)
    place = output / "evaluation.json" if output else None
    if place:
        check_writable(place)
        if place.exists():
            raise OutputError(f"{output}: holds an evaluation already; name another folder")
    detector = options.loaded(artifact, device=device, precision=precision, scales=scales)
    detector, _ = options.within(detector, roi, ignore)
    mistakes = outputs.Mistakes()
    with locked(place) if place else nullcontext():
        with console.progress() as progress:
            how = {"resolution": side, "adapt": adapt, "progress": progress}
            result = measure(detector, data, on_prediction=mistakes.add, **how)
        if output:
            outputs.write_evaluation(output, result, mistakes, detector, side=drawn)
    warning = words.category_warning(result.rows, detector.categories)
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
    places = words.places(output=output, report=report)
    said = {"artifact": str(artifact), "data": str(data), **places, "warning": warning}
    human = [*evaluate_lines(result), *words.written(places)]
    console.answer({**said, **result.to_dict()}, human, as_json=json)
    if warning:
        console.complain(f"blemish: warning: {warning}")
    return BROKEN_PICTURES if result.failures or result.mask_faults else WELL


def _side(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= options.LARGEST_SIDE:
        raise ConfigError(
            f"--resolution {text}: a side in pixels (256), or the word original, is needed"
        )
    return int(text)


def evaluate_lines(result: Evaluation) -> Iterable[str | Table]:
    """Metrics in per cent, of each kind of defect, category and group too, and the verdicts."""
    counts = result.counts
    yield f"{counts['pictures']} pictures: {counts['normal']} good, {counts['anomalous']} defective"
    if result.left_out:
        yield (
            f"{len(result.left_out)} left out of every figure: the artifact was fitted or "
            "calibrated on them"
        )
    if counts["without_mask"]:
        yield (
            f"{counts['without_mask']} defective without a usable mask or a box: "
            "not in the pixel figures"
        )
    yield from words.notices(result.problems)
    yield from words.broken([failure.to_dict() for failure in result.failures])
    yield from words.broken([fault.to_dict() for fault in result.mask_faults], "mask at fault")
    yield _metrics_table(result)
    if result.pixel_auroc_anomalous is not None:
        each = [
            f"{name} {words.percent(values['pixel_auroc_anomalous'])} %"
            for name, values in result.by_group.items()
        ]
        groups = f" ({', '.join(each)})" if each else ""
        alone = words.percent(result.pixel_auroc_anomalous)
        yield f"Pixel AUROC over the defective pictures alone: {alone} %{groups}"
    if result.votes is not None:
        yield (
            "Majority vote of the sizes looked at: "
            f"image AUROC {words.percent(result.votes['image_auroc'])} %, "
            f"balanced accuracy {words.percent(result.votes['balanced_accuracy'])} %"
        )
    if result.regions is not None:
        yield from _region_lines(result.regions)
    if result.best_f1 is not None:
        yield (
            f"Best F1: {words.percent(result.best_f1)} % at {result.best_f1_threshold:.6g} "
            "(found with the labels in hand)"
        )
    cells = result.confusion
    if cells is None:
        yield "No verdicts: the artifact has no threshold."
        return
    common = len({row["threshold"] for row in result.rows}) == 1
    yield f"At the stored threshold{f' of {result.threshold:.6g}' if common else 's'}:"
    verdicts = [
        ("defective", cells["true_positive"], cells["false_negative"]),
        ("good", cells["false_positive"], cells["true_negative"]),
    ]
    yield table(("", "alarms", "normal"), verdicts, right=("alarms", "normal"))


def _region_lines(of: Mapping[str, Any]) -> Iterable[str]:
    """What the regions are worth, at the stored threshold of the regions."""
    normal = f"{of['normal_with_region']} of {of['normal']} good pictures show a region"
    if not of["defects"]:
        yield f"Regions: {normal}"
        return
    f1, iou = (words.percent(of[name]) for name in ("f1", "iou"))
    yield (
        f"Regions: {of['found']} of {of['defects']} defects found, {of['false_per_picture']:.2f} "
        f"false regions a picture; {normal}; pixel F1 {f1} %, IoU {iou} %"
    )
    at = [f"{words.percent(share)} % at {most}" for most, share in of["recall_at"].items()]
    yield f"Defects found at other levels, by false regions a picture: {', '.join(at)}"


def _metrics_table(result: Evaluation) -> Table:
    columns = ("image_auroc", "image_ap", "pixel_auroc", "aupro")
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("all", {**vars(result), "count": result.counts["pictures"]}),
        *result.by_defect.items(),
    ]
    if len(result.by_category) > 1:
        groups += [(f"category {name}", values) for name, values in result.by_category.items()]
        groups.append(("mean of categories", {**result.category_mean, "count": ""}))
    groups += [(f"group {name}", values) for name, values in result.by_group.items()]
    rows = [
        (name, values["count"], *(words.percent(values[key]) for key in columns))
        for name, values in groups
    ]
    head = ("%", "pictures", "image AUROC", "AP", "pixel AUROC", "AUPRO@0.3")
    return table(head, rows, right=head[1:])


Artifacts = Annotated[
    list[Path],
    Argument(
        metavar="ARTIFACT",
        help="Files that `blemish fit` has written; several are compared, on the same pictures.",
    ),
]
FiguresFolder = Annotated[
    Path,
    Option(
        *("--output", "-o"),
        metavar="DIR",
        help="Folder for histogram.png, embedding.png and gallery.png; of several artifacts for "
        "histograms.png, embeddings.png and comparison.png. Of several categories there is an "
        "embedding and a comparison of each.",
    ),
]
CountOfEach = Annotated[
    int | None,
    Option(
        min=1,
        max=50,
        help="Pictures of each kind: in the gallery defects with the highest and the lowest "
        "scores, good with the highest; in a comparison the same for each kind of defect and each "
        "category, by the scores of the first artifact. [default: 4, in a comparison 1]",
    ),
]


def figures(
    artifacts: Artifacts,
    data: Labelled,
    output: FiguresFolder,
    count: CountOfEach = None,
    scales: Scales = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> int:
    """Draw how artifacts see labelled pictures: scores, features (t-SNE), and where they look."""
    from blemish.report.galleries import illustrate

    if len(set(artifacts)) < len(artifacts):
        raise ConfigError("an artifact is named twice; a comparison is between different ones")
    names = [artifact.stem for artifact in artifacts]
    if len(set(names)) < len(names):
        names = [str(artifact) for artifact in artifacts]
    detectors = {
        name: options.loaded(artifact, device=device, precision=precision, scales=scales)
        for name, artifact in zip(names, artifacts, strict=True)
    }
    with console.progress() as progress:
        made = illustrate(detectors, data, output, count=count, progress=progress)
    document = made.to_dict()
    failures = document["failures"]
    known = ""
    if made.left_out:
        whose = "the artifact" if len(artifacts) == 1 else "an artifact"
        known = f"; {len(made.left_out)} left out, {whose} was fitted or calibrated on them"
    human = [
        f"Pictures: {made.normal} good, {made.anomalous} defective{known}; {len(failures)} broken",
        *words.broken(failures),
        *(f"Written: {file}" for file in made.files),
    ]
    said = {"artifacts": [str(artifact) for artifact in artifacts], "data": str(data)}
    console.answer({**said, **document}, human, as_json=json)
    return BROKEN_PICTURES if failures else WELL
