"""evaluate, figures: the commands that hold artifacts against labelled pictures, and what they
print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from blemish.cli import console, options, words
from blemish.cli.clusters import Address, Asked, EvaluateEngine, GpusPerWorker, NumWorkers
from blemish.cli.console import table
from blemish.cli.options import Adapt, Artifact, Device, Json, OverlaySize, Precision, Scales
from blemish.cli.parts import GroupBy
from blemish.cli.status import BROKEN_PICTURES, WELL
from blemish.cli.writing import Writing
from blemish.errors import ConfigError, OutputError
from blemish.extras import require
from blemish.files import check_writable, locked
from blemish.text import pluralize

if TYPE_CHECKING:
    from rich.table import Table

    from blemish.detector.predict import Detector
    from blemish.report.predictions import Mistakes
    from blemish.types import Evaluation

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


EvaluationReport = Annotated[Path | None, Option(metavar="FILE", help="A report as one HTML file.")]


def evaluate(
    artifact: Artifact,
    data: Labelled,
    output: EvaluationFolder = None,
    report: EvaluationReport = None,
    resolution: Resolution = "256",
    scales: Scales = None,
    adapt: Adapt = None,
    group_by: GroupBy = None,
    roi: options.OnlyThere = None,
    ignore: options.NotThere = None,
    overlay_size: OverlaySize = None,
    device: Device = "auto",
    precision: Precision = "auto",
    engine: EvaluateEngine = "auto",
    address: Address = None,
    num_workers: NumWorkers = None,
    gpus_per_worker: GpusPerWorker = None,
    threads: options.Threads = None,
    json: Json = False,
) -> int:
    """Measure how good an artifact is on labelled pictures."""
    given = dict(locals())
    asked = Asked("ray" if engine == "ray" else "here", address, num_workers, gpus_per_worker, None)
    if asked.engine == "ray":
        return _on_ray(asked, given)
    from blemish.detector.evaluate import evaluate as measure
    from blemish.report import predictions as outputs

    side = None if resolution == "original" else _side(resolution)
    drawn = options.overlay_side(overlay_size, output)
    if report:
        check_writable(report)
    place = output / "evaluation.json" if output else None
    if place:
        check_writable(place)
        if place.exists():
            raise OutputError(f"{output}: holds an evaluation already; name another folder")
    detector = options.loaded(**options.taken_by(options.loaded, locals()))
    detector, _ = options.within(detector, roi, ignore)
    mistakes = outputs.Mistakes()
    with locked(place) if place else nullcontext():
        with console.progress() as progress:
            how = {"resolution": side, "adapt": adapt, "group_by": group_by, "progress": progress}
            result = measure(detector, data, on_prediction=mistakes.add, **how)
        warning = words.category_warning(result.rows, detector.categories)
        write = partial(
            outputs.write_evaluation,
            evaluation=result,
            mistakes=mistakes,
            detector=detector,
            side=drawn,
        )
        written = Writing()
        output = written.kept(output, write, folder=True)
    tell = partial(_report, artifact, detector, result, mistakes, warning)
    places = words.places(output=output, report=written.kept(report, tell))
    return _tell_evaluation(artifact, data, result, places, json, warning, written=written)


def _on_ray(asked: Asked, given: Mapping[str, Any]) -> int:
    """The same by workers of a cluster. Args: given: as `evaluate` takes it."""
    of_one = ("output", "report", "scales", "adapt", "roi", "ignore", "threads", "overlay_size")
    asked.refuse(**{name: given[name] for name in of_one})
    side = None if given["resolution"] == "original" else _side(given["resolution"])
    how = {name: given[name] for name in ("group_by", "device", "precision")}
    with console.progress() as progress:
        result = asked.evaluate(
            given["artifact"], given["data"], resolution=side, progress=progress, **how
        )
    return _tell_evaluation(given["artifact"], given["data"], result, {}, given["json"])


def _report(
    artifact: Path,
    detector: Detector,
    result: Evaluation,
    mistakes: Mistakes,
    warning: str,
    path: Path,
) -> None:
    from blemish.report.html import write_report

    write_report(
        path,
        title=f"{artifact.stem}: evaluation",
        manifest=detector.manifest,
        warning=warning,
        entries=mistakes.entries(result, detector),
        evaluation=result,
        parts=result.parts["rows"] if result.parts else (),
        scale=detector.map_scale,
    )


def _tell_evaluation(
    artifact: Path,
    data: Path,
    result: Evaluation,
    places: Mapping[str, str | None],
    as_json: bool,
    warning: str = "",
    *,
    written: Writing | None = None,
) -> int:
    """Answer with what was measured; gives the exit status."""
    said = {"artifact": str(artifact), "data": str(data), **places, "warning": warning}
    human = [*evaluate_lines(result), *words.written(places)]
    if warning:
        console.complain(f"blemish: warning: {warning}")
    status = BROKEN_PICTURES if result.failures or result.mask_faults else WELL
    document = {**said, **result.to_dict()}
    return (written or Writing()).answer(document, human, as_json=as_json, status=status)


def _side(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= options.LARGEST_SIDE:
        raise ConfigError(
            f"--resolution {text}: a side of 1 to {options.LARGEST_SIDE} pixels (256), or the word "
            "original, is needed"
        )
    return int(text)


def evaluate_lines(result: Evaluation) -> Iterable[str | Table]:
    """Metrics in per cent, of each kind of defect, category and group too, and the verdicts."""
    counts = result.counts
    number = pluralize(counts["pictures"], "picture")
    yield f"{number}: {counts['normal']} good, {counts['anomalous']} defective"
    if result.left_out:
        yield (
            f"{len(result.left_out)} left out of every figure: the artifact was fitted or "
            f"calibrated on {'it' if len(result.left_out) == 1 else 'them'}"
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
    if result.parts is not None:
        yield from _part_lines(result.parts)
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
    shown, good = of["normal_with_region"], pluralize(of["normal"], "good picture")
    normal = f"{shown} of {good} {'shows' if shown == 1 else 'show'} a region"
    if not of["defects"]:
        yield f"Regions: {normal}"
        return
    f1, iou = (words.percent(of[name]) for name in ("f1", "iou"))
    yield (
        f"Regions: {of['found']} of {pluralize(of['defects'], 'defect')} found, "
        f"{of['false_per_picture']:.2f} false regions a picture; {normal}; pixel F1 {f1} %, "
        f"IoU {iou} %"
    )
    at = [f"{words.percent(share)} % at {most}" for most, share in of["recall_at"].items()]
    yield f"Defects found at other levels, by false regions a picture: {', '.join(at)}"


def _part_lines(of: Mapping[str, Any]) -> Iterable[str]:
    """How well parts are judged, and which are in no figure."""
    some = []
    if of["defective"]:
        recall = words.percent(of["recall"])
        some.append(
            f"{of['found']} of {pluralize(of['defective'], 'defective one')} found ({recall} %)"
        )
    if of["good"]:
        share = words.percent(of["false_alarm_rate"])
        good = pluralize(of["good"], "good one")
        some.append(f"{pluralize(of['false_alarms'], 'false alarm')} of {good} ({share} %)")
    at = "" if of["rate"] is None or not some else f", at a rate of {100 * of['rate']:.4g} %"
    counts = {
        "without a verdict": of["without_verdict"],
        "left out, as not every view was scored": of["left_out"],
    }
    more = [f"{count} {what}" for what, count in counts.items() if count]
    if of["ungrouped"]:
        more.append(pluralize(of["ungrouped"], "picture") + " of no part")
    yield f"Parts: {'; '.join([', '.join(some) + at, *more] if some else more)}"


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
    require("torch", "timm", "sklearn", "matplotlib", purpose="draw how artifacts see pictures")
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
