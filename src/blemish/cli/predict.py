"""predict: the command that judges new pictures, what it keeps of them and what it prints."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from blemish import interrupts
from blemish.cli import console, options, parts, predict_cluster, words
from blemish.cli.clusters import Address, GpusPerWorker, NumWorkers
from blemish.cli.console import table
from blemish.cli.options import (
    Adapt,
    Device,
    Json,
    OverlaySize,
    Precision,
    Scales,
    SmallestRegion,
)
from blemish.cli.parts import GroupBy
from blemish.cli.status import BROKEN_PICTURES, BY_SIGNAL, WELL
from blemish.cli.writing import Writing
from blemish.errors import ConfigError, OutputError, unknown_name
from blemish.files import check_writable
from blemish.text import pluralize
from blemish.types import ANOMALOUS, NORMAL

if TYPE_CHECKING:
    from rich.table import Table

    from blemish.data.folder import Found
    from blemish.detector.grouping import Grouping
    from blemish.detector.predict import Detector
    from blemish.detector.thresholds import Threshold
    from blemish.report.journal import Journal
    from blemish.report.predictions import Gallery

_SHOWN_WHOLE, _SHOWN_OF_MANY = 50, 20
_GO_ON = "the same command with --resume goes on from here"
_VERDICTS = {NORMAL: "normal", ANOMALOUS: "alarm", None: "–"}

AnyArtifact = Annotated[
    Path,  # or, with --engine ray, the text of a URI: `predict_cluster.place`
    Argument(
        metavar="ARTIFACT",
        parser=predict_cluster.place,
        help="A file that `blemish fit`, or `export`, has written.",
    ),
]
Paths = Annotated[
    list[Path],
    Argument(
        metavar="PATH", parser=predict_cluster.place, help="Pictures: files, folders, patterns."
    ),
]
PredictionsFolder = Annotated[
    Path | None,
    Option(
        metavar="DIR",
        parser=predict_cluster.place,
        help="Folder for predictions.jsonl, predictions.csv, what --save says, and with --group-by "
        "parts.jsonl.",
    ),
]
Saved = Annotated[
    str | None,
    Option(
        metavar="LIST",
        help="What is kept of each picture in --output: overlays, masks (PNG, 255 in a region, at "
        "the original size), maps (float32 in the unit of the score, as large as the method works, "
        ".npy) and tiff (the same maps as TIFF), as in masks,tiff. "
        "[default: overlays]",
    ),
]
Coco = Annotated[
    Path | None,
    Option(metavar="FILE", help="The regions of all pictures as COCO JSON, with their masks."),
]
RegionByHand = Annotated[
    float | None,
    Option(
        metavar="SCORE",
        callback=options.in_range(options.SCORE),
        help="A place of the map above it belongs to a region: set by hand, in place of the "
        "artifact's.",
    ),
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
ByHand = Annotated[
    float | None,
    Option(
        metavar="SCORE",
        callback=options.in_range(options.SCORE),
        help="Judge by this threshold, set by hand, in place of the artifact's.",
    ),
]
GoOn = Annotated[bool, Option("--resume", help="Go on in a folder that has rows already.")]
BatchSize = Annotated[
    int | None,
    Option(
        min=1,
        max=options.MOST_AT_ONCE,
        help="Pictures at once. [default: 8, or 32 with --adapt]",
    ),
]


def predict(
    artifact: AnyArtifact,
    paths: Paths,
    output: PredictionsFolder = None,
    save: Saved = None,
    coco: Coco = None,
    report: PredictionsReport = None,
    category: Category = "",
    scales: Scales = None,
    adapt: Adapt = None,
    threshold: ByHand = None,
    region_threshold: RegionByHand = None,
    smallest_region: SmallestRegion = None,
    group_by: GroupBy = None,
    roi: options.OnlyThere = None,
    ignore: options.NotThere = None,
    overlay_size: OverlaySize = None,
    resume: GoOn = False,
    device: Device = "auto",
    precision: Precision = "auto",
    engine: predict_cluster.Engine = "auto",
    address: Address = None,
    num_workers: NumWorkers = None,
    gpus_per_worker: GpusPerWorker = None,
    partition_by: predict_cluster.PartitionBy = None,
    threads: options.Threads = None,
    batch_size: BatchSize = None,
    json: Json = False,
) -> int:
    """Score new pictures: a verdict, a heatmap and the regions of defects for each."""
    if predict_cluster.is_meant(locals()):
        return predict_cluster.predict(locals())
    from blemish.data.folder import search
    from blemish.report import predictions as outputs
    from blemish.report.journal import Journal

    if resume and output is None:
        raise ConfigError("--resume goes on in a folder: name it with --output DIR")
    saved = ("overlays",) if save is None else saved_by(save, output, overlay_size)
    kept = {"saved": saved, "side": options.overlay_side(overlay_size, output)}
    for file in filter(None, (report, coco)):
        check_writable(file)
    found = search(paths)
    grouping = parts.check(group_by, found.pictures)
    detector = options.loaded(**options.taken_by(options.loaded, locals()))
    if adapt is not None:
        detector.engine.adapting(adapt)  # refuses before anything is written
    detector.threshold_for(category)  # so does this
    detector = by_hand(detector, threshold, region_threshold, smallest_region)
    detector, area = options.within(detector, roi, ignore)
    asked = _Asked(artifact, category, found, grouping, report, coco, json)
    wanted = ["--save masks"] * ("masks" in saved) + ["--coco"] * (coco is not None)
    check_regions(wanted, detector, artifact, category)
    ways, used = _ways(locals(), saved), detector.precision
    gallery = outputs.Gallery(outputs.EMBEDDED)
    _say_anew(output if resume else None)
    with Journal(output, artifact=artifact, precision=used, ways=ways, resume=resume) as journal:
        how = {"category": category, "batch_size": batch_size, "adapt": adapt}
        stopped = _scored(journal, detector, found.pictures, gallery, kept, **how)
        return _tell(asked, journal, detector, gallery, stopped, _completed(journal, stopped))


def _say_anew(folder: Path | None) -> None:
    """Say it where nothing is in a folder that could be gone on from."""
    from blemish.report.journal import holds_rows

    if folder is not None and not holds_rows(folder):
        console.complain(f"blemish: notice: nothing to resume: no rows in {folder}; it begins anew")


def _completed(journal: Journal, stopped: BaseException | None) -> Writing:
    """The table of all rows is written, unless a disk was full before; gives what could not be.
    `stopped`: as `_scored` gives it."""
    written = Writing()
    with written.tried(f"once there is room, {_GO_ON}"):
        if isinstance(stopped, OutputError | OSError):
            raise stopped
        journal.write_table()
    return written


def _ways(given: Mapping[str, Any], saved: Sequence[str]) -> dict[str, str]:
    """How pictures are judged, as of `Journal`. Args: given: as `predict` takes it."""
    names = ("category", "adapt", "scales", "threshold", "region_threshold", "smallest_region")
    told = {**{name: given[name] for name in names}, "save": ",".join(saved), "area": given["area"]}
    return {name: "" if value is None else str(value) for name, value in told.items()}


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a command was asked for, as far as its answer says it."""

    artifact: Path
    category: str
    found: Found
    group_by: Grouping | None
    report: Path | None
    coco: Path | None
    as_json: bool


def saved_by(text: str, output: Path | None, overlay_size: str | None) -> tuple[str, ...]:
    """What --save names, in the order of `predictions.SAVED`.

    Raises: ConfigError for an unknown name, or for options that contradict each other.
    """
    from blemish.report.predictions import SAVED

    names = options.parts(text)
    for name in names:
        if name not in SAVED:
            raise unknown_name("part of --save", name, SAVED)
    if not names:
        raise ConfigError(f"--save: nothing is named; known are {', '.join(SAVED)}")
    if output is None:
        raise ConfigError("--save: files are kept in a folder; name it with --output DIR")
    if overlay_size is not None and ("overlays" in names) != (overlay_size != "none"):
        raise ConfigError(
            f"--save {text} and --overlay-size {overlay_size}: one asks for overlays and the other "
            "does not; leave --overlay-size out, or change the list"
        )
    return tuple(name for name in SAVED if name in names)


def by_hand(
    detector: Detector, threshold: float | None, of_regions: float | None, smallest: float | None
) -> Detector:
    """The detector with thresholds by hand, and for regions of another size. Raises: ConfigError,
    NonFiniteError."""
    from blemish import config

    if threshold is not None:
        detector = detector.with_threshold(threshold)
    if of_regions is not None:
        return detector.with_region_threshold(of_regions, smallest=smallest)
    if smallest is None:
        return detector
    known = detector.record.regions
    if known is None or smallest < known.smallest:
        why = "the artifact has no threshold of regions"
        if known is not None:
            why = f"the artifact's threshold of regions counts those from {known.smallest:g} on"
        raise ConfigError(
            f"--smallest-region {smallest:g}: {why}; set one for smaller ones with `blemish "
            "calibrate`, or by hand with --region-threshold SCORE"
        )
    # What promises that few normal pictures show a region does so of larger ones, too.
    regions = replace(known, smallest=smallest)
    config.check(regions)
    return detector.with_record(replace(detector.record, regions=regions))


def check_regions(wanted: Sequence[str], detector: Detector, artifact: Path, one: str) -> None:
    """Raises: ConfigError where options want regions, and there is no threshold of them for any
    picture of the category `one`."""
    several = detector.categories
    names = [one] if one in several else [one, *several]
    limits = [detector.region_threshold_for(name) for name in names]
    if not wanted or any(limit is not None and limit.value is not None for limit in limits):
        return
    reason = "" if limits[0] is None else f" ({limits[0].reason})"
    raise ConfigError(
        f"{wanted[0]}: {artifact} has no threshold of regions{reason}; set one with `blemish "
        "calibrate`, or by hand with --region-threshold SCORE"
    )


def _scored(
    journal: Journal,
    detector: Detector,
    pictures: Sequence[Path],
    gallery: Gallery,
    kept: Mapping[str, Any],
    **how: Any,
) -> KeyboardInterrupt | OutputError | OSError | None:
    """Score what the journal lacks, as `Detector.predict_many` does; gives what ended it early: an
    interrupt, or a row or file that could not be written.

    Args: kept: of each picture, as of `report.predictions.record`.
    """
    from blemish.detector.predict import BATCH_SIZE
    from blemish.report.predictions import record

    size = how["batch_size"] or BATCH_SIZE
    # Tiles are in batches with those of the same picture alone.
    size = size if detector.preprocessing.tiling is None else 1
    todo, again = journal.remaining(pictures, size)
    if how["adapt"] is not None:  # what it adapted to is gone
        todo, again = todo[again:], 0
    try:
        with console.progress() as progress:
            scored, wanted = 0, len(todo) - again

            def tell(stage: str, done: int, total: int) -> None:
                progress(f"scoring · tile {done} of {total} of {stage}", scored, wanted)

            results = detector.predict_many(todo, **how, progress=tell) if todo else []
            rows = record(journal, detector, islice(results, again, None), gallery, **kept)
            for scored, _ in enumerate(rows, start=1):
                progress("scoring", scored, wanted)
    except (KeyboardInterrupt, OutputError) as error:
        return error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return error
    return None


def _tell(
    asked: _Asked,
    journal: Journal,
    detector: Detector,
    gallery: Gallery,
    stopped: BaseException | None,
    written: Writing,
) -> int:
    """Write the report of predictions and their regions and answer with them; gives the exit
    status. `stopped`: as `_scored` gives it."""
    from blemish.report.coco import write_coco

    scored = journal.scored
    warning = words.category_warning(scored, detector.categories)
    judged = {row["category"] for row in scored}
    # Where all are of one category its thresholds are shown, even if nobody named it.
    (category,) = judged if len(judged) == 1 else [asked.category]
    limit, of_regions = detector.threshold_for(category), detector.region_threshold_for(category)
    threshold = None if limit is None else limit.to_dict()
    of_parts = parts.told(asked.group_by, journal, detector, asked.found.pictures)
    with written.tried(f"once there is room, {_GO_ON}"):
        of_parts.write(journal.folder)
    how = {"warning": warning, "threshold": threshold, "parts": of_parts.worst_first}
    report = partial(_report, asked, journal, detector, gallery, how)
    places = words.places(
        output=journal.folder,
        report=written.kept(asked.report, report),
        coco=written.kept(asked.coco, partial(write_coco, rows=journal.rows)),
    )
    document = {
        "artifact": str(asked.artifact),
        **places,
        **{"category": asked.category, "warning": warning, "threshold": threshold},
        "region_threshold": None if of_regions is None else of_regions.to_dict(),
        **_counts(journal),
        "interrupted": stopped is not None,
        "left_out": list(asked.found.left_out),
        "predictions": journal.rows,
        **of_parts.document,
    }
    failures = [failure.to_dict() for failure in journal.failures]
    human = [
        *words.notices(asked.found.left_out),
        *predict_lines(scored, failures, limited_by_hand=_is_by_hand(limit)),
        *region_lines(scored, by_hand=_is_by_hand(of_regions)),
        *of_parts.human,
        *words.written(places),
    ]
    status = BROKEN_PICTURES if failures or of_parts.at_fault else WELL
    status = written.answer(document, human, as_json=asked.as_json, status=status)
    if warning:
        console.complain(f"blemish: warning: {warning}; --category NAME says it")
    if not isinstance(stopped, KeyboardInterrupt):
        return status
    return _say_interrupted(stopped, journal, len(asked.found.pictures))


def _report(
    asked: _Asked,
    journal: Journal,
    detector: Detector,
    gallery: Gallery,
    how: Mapping[str, Any],
    path: Path,
) -> None:
    """Write the report. Args: how: its warning, threshold and parts. Raises: OutputError."""
    from blemish.report.html import write_report
    from blemish.report.predictions import prediction_entries

    write_report(
        path,
        title=f"{asked.artifact.stem}: predictions",
        manifest={**detector.manifest, "threshold": how["threshold"]},
        warning=how["warning"],
        entries=prediction_entries(journal, detector, gallery),
        failures=journal.failures,
        parts=how["parts"],
        scale=detector.map_scale,
    )


def _counts(journal: Journal) -> dict[str, int]:
    scored = journal.scored
    return {
        "scored": len(scored),
        "alarms": sum(row["label"] == ANOMALOUS for row in scored),
        "with_regions": sum(bool(row.get("regions")) for row in scored),
        "failed": len(journal.failures),
    }


def _is_by_hand(limit: Threshold | None) -> bool:
    return limit is not None and limit.method == "by hand"


def _say_interrupted(error: KeyboardInterrupt, journal: Journal, pictures: int) -> int:
    """How to go on; gives the exit status."""
    then = _GO_ON if journal.folder else "with --output DIR it could be resumed"
    done = f"{len(journal.rows)} of {pluralize(pictures, 'picture')}"
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
            f"{len(scored)} scored: {pluralize(len(alarms), 'alarm')}, {normal} normal at "
            f"{limit}{by_hand}"
        )
    yield verdicts + (f"; {len(failures)} could not be read" if failures else "")


def region_lines(scored: Sequence[Mapping[str, Any]], *, by_hand: bool = False) -> Iterable[str]:
    """How many regions there are and in how many pictures; nothing without a threshold of them."""
    searched = [row for row in scored if row.get("regions") is not None]
    if not searched:
        return
    count = sum(len(row["regions"]) for row in searched)
    pictures = sum(bool(row["regions"]) for row in searched)
    limits = {row["region_threshold"] for row in searched}
    limit = f"above {limits.pop():.6g}" if len(limits) == 1 else "by their categories' thresholds"
    set_by = " set by hand" if by_hand else ""
    others = len(scored) - len(searched)
    more = f"; {others} more have no threshold of regions" if others else ""
    where = f"in {pictures} of {pluralize(len(searched), 'picture')}"
    yield f"{pluralize(count, 'region')} of defects {where}, {limit}{set_by}{more}"
