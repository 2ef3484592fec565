"""predict, evaluate, figures: the commands that judge pictures, and what they print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blemish import interrupts
from blemish.cli import console, options, words
from blemish.cli.console import table
from blemish.cli.options import (
    Adapt,
    Artifact,
    Device,
    Json,
    OverlaySize,
    Precision,
    Scales,
)
from blemish.cli.status import BROKEN_PICTURES, BY_SIGNAL, WELL
from blemish.errors import ConfigError, OutputError
from blemish.files import check_writable
from blemish.types import ANOMALOUS, NORMAL

if TYPE_CHECKING:
    from rich.table import Table

    from blemish.types import Evaluation

_SHOWN_WHOLE, _SHOWN_OF_MANY = 50, 20
_VERDICTS = {NORMAL: "normal", ANOMALOUS: "alarm", None: "–"}


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
    from blemish.methods import adapter_of
    from blemish.report import predictions as outputs
    from blemish.report.html import write_report

    if resume and output is None:
        raise ConfigError("--resume goes on in a folder: name it with --output DIR")
    side = options.overlay_side(overlay_size, output)
    if report:
        check_writable(report)
    found = search(paths)
    pictures = found.pictures
    detector = options.looking_at(scales, load(artifact, device=device, precision=precision))
    mode = options.mode(adapt)
    if mode is not None:
        adapter_of(detector.method, mode)  # refuses before anything is written
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
    warning = category_warning(journal.scored, detector.categories)
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
    places = words.places(output=output, report=report)
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
        *words.notices(found.left_out),
        *predict_lines(journal.scored, failures, limited_by_hand=by_hand),
        *words.written(places),
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


def predict_lines(
    scored: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]],
    *,
    limited_by_hand: bool = False,
) -> Iterable[str | Table]:
    """Scores and verdicts, of many pictures the alarms, and the broken ones. `scored`: the highest score first."""
    alarms = [row for row in scored if row["label"] == ANOMALOUS]
    many = len(scored) > _SHOWN_WHOLE
    shown = (alarms or scored)[:_SHOWN_OF_MANY] if many else scored
    if shown:
        head = (
            "score",
            "verdict",
            *(["category"] if any(row["category"] for row in shown) else []),
            "path",
        )
        rows = [[_cell(row, column) for column in head] for row in shown]
        yield table(head, rows, right=("score",))
    if many:
        yield f"… the highest {len(shown)}{' alarms' if alarms else ''} of {len(scored)} pictures"
    yield from words.broken(failures)
    if not scored:
        verdicts = "no picture was scored"
    elif scored[0]["threshold"] is None:
        verdicts = f"{len(scored)} scored: no verdict, as the artifact has no threshold"
    else:
        normal = len(scored) - len(alarms)
        limits = {row["threshold"] for row in scored}
        limit = (
            f"a threshold of {limits.pop():.6g}"
            if len(limits) == 1
            else "the thresholds of their categories"
        )
        by_hand = " set by hand" if limited_by_hand else ""
        verdicts = (
            f"{len(scored)} scored: {len(alarms)} alarms, {normal} normal at {limit}{by_hand}"
        )
    yield from words.notes(Counter(note for row in scored for note in row.get("notes", ())))
    yield verdicts + (f"; {len(failures)} could not be read" if failures else "")


def _cell(row: Mapping[str, Any], column: str) -> str:
    if column == "score":
        return f"{row['score']:.4f}"
    return _VERDICTS[row["label"]] if column == "verdict" else str(row[column])


def category_warning(rows: Iterable[Mapping[str, Any]], categories: Sequence[str]) -> str:
    """What to be warned of where an artifact of several categories judged pictures and none of them was named; "" where
    there is nothing. `rows`: scored ones, of predictions or of an evaluation."""
    judged = [
        (row.get("judged_as", row["category"]), row.get("category_assigned", False)) for row in rows
    ]
    unsaid = [name for name, assigned in judged if assigned or not name]
    if not categories or not unsaid:
        return ""
    counts = {name: unsaid.count(name) for name in [*categories, ""] if name in unsaid}
    told = [
        f"{count} as {name}" if name else f"{count} by the common threshold"
        for name, count in counts.items()
    ]
    reason = (
        "each picture's category was assigned by its features"
        if "" not in counts
        else "the common threshold of all categories misses defects of those that score low"
    )
    which = "the pictures" if len(unsaid) == len(judged) else f"{len(unsaid)} of the pictures"
    return f"no category of the artifact was named for {which}: judged {', '.join(told)}; {reason}"


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
    drawn = options.overlay_side(overlay_size, output)
    if report:
        check_writable(report)
    if output:
        check_writable(output / "evaluation.json")
        if (output / "evaluation.json").exists():
            raise OutputError(f"{output}: holds an evaluation already; name another folder")
    detector = options.looking_at(scales, load(artifact, device=device, precision=precision))
    mode = options.mode(adapt)
    mistakes = outputs.Mistakes()
    with words.alone(output / "evaluation.json" if output else None):
        with console.progress() as progress:
            result = measure(
                detector,
                data,
                resolution=side,
                adapt=mode,
                progress=progress,
                on_prediction=mistakes.add,
            )
        warning = category_warning(result.rows, detector.categories)
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
    places = words.places(output=output, report=report)
    document = {
        "artifact": str(artifact),
        "data": str(data),
        **places,
        "warning": warning,
        **result.to_dict(),
    }
    console.answer(document, [*evaluate_lines(result), *words.written(places)], as_json=json)
    if warning:
        console.complain(f"blemish: warning: {warning}")
    return BROKEN_PICTURES if result.failures or result.mask_faults else WELL


def evaluate_lines(result: Evaluation) -> Iterable[str | Table]:
    """Metrics in per cent, per defect type, category and group, and the confusion."""
    counts = result.counts
    yield f"{counts['pictures']} pictures: {counts['normal']} good, {counts['anomalous']} defective"
    if result.left_out:
        yield f"{len(result.left_out)} left out of every figure: the artifact was fitted or calibrated on them"
    if counts["without_mask"]:
        yield f"{counts['without_mask']} defective without a usable mask or a box: not in the pixel figures"
    yield from words.notices(result.problems)
    yield from words.broken([failure.to_dict() for failure in result.failures])
    yield from words.broken([failure.to_dict() for failure in result.mask_faults], "mask at fault")
    columns = {
        "image_auroc": "image AUROC",
        "image_ap": "AP",
        "pixel_auroc": "pixel AUROC",
        "aupro": "AUPRO@0.3",
    }
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("all", {**vars(result), "count": counts["pictures"]})
    ]
    groups += result.by_defect.items()
    if len(result.by_category) > 1:
        groups += [(f"category {name}", values) for name, values in result.by_category.items()]
        groups.append(("mean of categories", {**result.category_mean, "count": ""}))
    groups += [(f"group {name}", values) for name, values in result.by_group.items()]
    rows = [
        (name, values["count"], *(words.percent(values[key]) for key in columns))
        for name, values in groups
    ]
    head = ("%", "pictures", *columns.values())
    yield table(head, rows, right=head[1:])
    if result.pixel_auroc_anomalous is not None:
        each = [
            f"{name} {words.percent(values['pixel_auroc_anomalous'])} %"
            for name, values in result.by_group.items()
        ]
        alone = f"{words.percent(result.pixel_auroc_anomalous)} %" + (
            f" ({', '.join(each)})" if each else ""
        )
        yield f"Pixel AUROC over the defective pictures alone: {alone}"
    if result.votes is not None:
        ranked, right = (
            words.percent(result.votes[name]) for name in ("image_auroc", "balanced_accuracy")
        )
        yield f"Majority vote of the sizes looked at: image AUROC {ranked} %, balanced accuracy {right} %"
    if result.best_f1 is not None:
        yield f"Best F1: {words.percent(result.best_f1)} % at {result.best_f1_threshold:.6g} (found with the labels in hand)"
    if result.confusion is None:
        yield "No verdicts: the artifact has no threshold."
        return
    cells = result.confusion
    limits = {row["threshold"] for row in result.rows}
    yield (
        f"At the stored threshold of {result.threshold:.6g}:"
        if len(limits) == 1
        else "At the stored thresholds:"
    )
    verdicts = [
        ("defective", cells["true_positive"], cells["false_negative"]),
        ("good", cells["false_positive"], cells["true_negative"]),
    ]
    yield table(("", "alarms", "normal"), verdicts, right=("alarms", "normal"))


def _side(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 8192:
        raise ConfigError(
            f"--resolution {text}: a side in pixels (256), or the word original, is needed"
        )
    return int(text)


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
        name: options.looking_at(scales, load(artifact, device=device, precision=precision))
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
        *words.broken(failures),
        *(f"Written: {file}" for file in made.files),
    ]
    console.answer(document, human, as_json=json)
    return BROKEN_PICTURES if failures else WELL


def _told_apart(artifacts: Sequence[Path]) -> list[str]:
    """What figures call them: their names without folder and suffix or, where two have the same, their paths."""
    if len(set(artifacts)) < len(artifacts):
        raise ConfigError("an artifact is named twice; a comparison is between different ones")
    names = [artifact.stem for artifact in artifacts]
    return names if len(set(names)) == len(names) else [str(artifact) for artifact in artifacts]
