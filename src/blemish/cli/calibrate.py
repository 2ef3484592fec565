"""calibrate: new thresholds for an artifact, and what the command prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from blemish.cli import console, options, words
from blemish.cli.options import Artifact, Device, Json, Precision, Rate, Scales, SmallestRegion
from blemish.cli.parts import GroupGoodBy
from blemish.cli.status import BROKEN_PICTURES, WELL
from blemish.errors import ConfigError
from blemish.files import check_writable, or_elsewhere
from blemish.text import pluralize
from blemish.types import Failure

if TYPE_CHECKING:
    from blemish.detector.predict import Detector


MissRate = Annotated[
    float | None,
    Option(
        metavar="SHARE",
        callback=options.in_range(options.INNER_SHARE),
        help="The threshold that misses at most this share of defects like those of --anomalies, "
        "whatever it raises in false alarms; 0.05 for 5 %.",
    ),
]


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
            callback=options.in_range(options.SCORE),
            help="Set this threshold by hand, for every category: it promises nothing.",
        ),
    ] = None,
    region_threshold: Annotated[
        float | None,
        Option(
            metavar="SCORE",
            callback=options.in_range(options.SCORE),
            help="By hand, the score of the map above which regions of defects lie.",
        ),
    ] = None,
    false_alarm_rate: Rate = None,
    smallest_region: SmallestRegion = None,
    group_by: GroupGoodBy = None,
    anomalies: Annotated[
        list[Path] | None,
        Option(
            metavar="DEFECTS",
            help="Labelled defects that it has not learned from, for --miss-rate; repeatable.",
        ),
    ] = None,
    miss_rate: MissRate = None,
    scales: Scales = None,
    device: Device = "auto",
    precision: Precision = "auto",
    engine: options.Engine = "auto",
    threads: options.Threads = None,
    json: Json = False,
) -> int:
    """Set new thresholds: from other pictures of good parts, from labelled defects, or by hand."""
    if group_by is not None and not good:
        raise ConfigError("--group-by is of pictures of good parts: name them")
    _check_ways(good, anomalies, (threshold, region_threshold), (false_alarm_rate, miss_rate))
    check_writable(output)
    detector = options.loaded(**options.taken_by(options.loaded, locals()))
    detector.engine.check_name(output)
    if threshold is not None:
        detector = detector.with_threshold(threshold)
    if region_threshold is not None:
        detector = detector.with_region_threshold(region_threshold, smallest=smallest_region)
    detector, counts, human = _from_pictures(
        detector, good, false_alarm_rate, smallest_region, group_by, anomalies, miss_rate
    )
    or_elsewhere(output, detector.save, f"move it to {output}")
    human += [*words.threshold_lines(detector.manifest), f"Written: {output}"]
    document = {"artifact": str(output), **words.thresholds_of(detector.manifest), **counts}
    console.answer(document, human, as_json=json)
    return BROKEN_PICTURES if counts.get("failures") else WELL


def _check_ways(
    good: Sequence[Path] | None,
    anomalies: Sequence[Path] | None,
    by_hand: tuple[float | None, float | None],
    rates: tuple[float | None, float | None],
) -> None:
    """Raises: ConfigError for ways to set a threshold that do not go together."""
    given, (false_alarm_rate, miss_rate) = any(each is not None for each in by_hand), rates
    if (anomalies is None) != (miss_rate is None):
        raise ConfigError(
            "--miss-rate is of labelled defects: name them, --anomalies DEFECTS --miss-rate 0.05"
        )
    if given == bool(good or anomalies) or (not good and false_alarm_rate is not None):
        raise ConfigError(
            "calibrate needs pictures of good parts, labelled defects with --miss-rate, or the "
            "threshold itself: --threshold SCORE, --region-threshold SCORE"
        )


def _from_pictures(
    detector: Detector,
    good: Sequence[Path] | None,
    false_alarm_rate: float | None,
    smallest_region: float | None,
    group_by: str | None,
    anomalies: Sequence[Path] | None,
    miss_rate: float | None,
) -> tuple[Detector, dict[str, Any], list[str]]:
    """The detector with thresholds from pictures, and which these were: as JSON and as lines."""
    from blemish.detector import calibrate as calibration

    counts: dict[str, Any] = {}
    human: list[str] = []
    failures: list[Failure] = []
    if good:
        with console.progress() as progress:
            detector, failures, left_out = calibration.recalibrate(
                detector,
                good,
                false_alarm_rate=false_alarm_rate,
                smallest_region=smallest_region,
                group_by=group_by,
                progress=progress,
            )
        data, used = detector.manifest["data"], detector.manifest["threshold"]["n"]
        counts |= {"left_out": left_out, "copies": data["copies"]}
        told = [failure.to_dict() for failure in failures]
        human += _calibration_lines(used, **counts, failures=told)
        human += words.of_whole_parts(detector.manifest.get("parts"))
    if anomalies and miss_rate is not None:
        with console.progress() as progress:
            detector, more, left_out = calibration.recalibrate_on_defects(
                detector, anomalies, miss_rate=miss_rate, progress=progress
            )
        used = detector.manifest["threshold"]["n"]
        counts |= {"defects": used, "defects_left_out": left_out}
        them = "it" if left_out == 1 else "them"
        learned = f"; {left_out} left out, it has learned from {them}" if left_out else ""
        human += [f"Defects: {used} used{learned}; {len(more)} broken"]
        human += words.broken([failure.to_dict() for failure in more])
        failures = [*failures, *more]
    if good or anomalies:
        counts["failures"] = [failure.to_dict() for failure in failures]
    return detector, counts, human


def _calibration_lines(
    used: int, *, left_out: int, copies: int, failures: Sequence[Mapping[str, Any]]
) -> Iterable[str]:
    """Which pictures a threshold comes from."""
    them = "it" if left_out == 1 else "them"
    known = f"{left_out} left out, the artifact was fitted on {them}; " if left_out else ""
    twice = f"{pluralize(copies, 'copy', 'copies')} of these; " if copies else ""
    yield f"Pictures: {used} used; {known}{twice}{len(failures)} broken"
    yield from words.broken(failures)
