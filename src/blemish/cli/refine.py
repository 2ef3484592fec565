"""refine: the command that adds to what an artifact has learned, and what it prints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from blemish.cli import console, words
from blemish.cli.options import Artifact, Device, Json, Precision, Rate
from blemish.cli.status import BROKEN_PICTURES, WELL
from blemish.extras import require
from blemish.files import check_writable, locked, or_elsewhere
from blemish.text import pluralize

if TYPE_CHECKING:
    from blemish.detector.refine import Refined


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
    held: Annotated[
        list[Path] | None,
        Option(
            metavar="GOOD",
            help="Pictures of good parts that it does not learn from: with the new ones, evidence "
            "for the regions of defects, whose maps change; repeatable.",
        ),
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
    require("torch", "timm", purpose="refine a detector")
    from blemish.detector import refine as refining
    from blemish.detector.loading import load

    output = output or artifact
    check_writable(output)
    with locked(output):  # what another process adds to it meanwhile would be lost
        detector = load(artifact, device=device, precision=precision)
        _ = detector.method  # an exported file has none, which is the first thing to say of it
        detector.engine.check_name(output)
        with console.progress() as progress:
            refined = refining.refine(
                detector,
                good=good,
                anomalies=anomalies,
                held=held,
                false_alarm_rate=false_alarm_rate,
                progress=progress,
            )
        or_elsewhere(output, refined.detector.save, f"move it to {output}")
    document = {
        "artifact": str(output),
        "threshold": refined.detector.manifest["threshold"],
        **refined.to_dict(),
    }
    console.answer(document, [*refine_lines(refined), f"Written: {output}"], as_json=json)
    return BROKEN_PICTURES if refined.failures else WELL


def refine_lines(change: Refined) -> Iterable[str]:
    """What `blemish refine` has changed."""
    from blemish.detector.refine import contradicted

    known = f", {change.known} known already" if change.known else ""
    yield (
        f"Added: {pluralize(change.good, 'good picture')}, "
        f"{pluralize(change.defects, 'defect')}{known}; "
        f"{len(change.failures)} broken"
    )
    yield from words.broken([failure.to_dict() for failure in change.failures])
    yield from words.notices(contradicted(change.contradictions))
    threshold = change.detector.threshold
    reason = f" ({threshold.reason})" if threshold is not None and threshold.value is None else ""
    before, after = (
        "none" if value is None else f"{value:.4g}" for value in (change.before, change.after)
    )
    yield f"Threshold: {before} before, {after} now{reason}"
    if change.alarms_before is not None and change.alarms_after is not None:
        yield (
            f"Above the threshold of {pluralize(change.calibrated, 'good picture')} it knew: "
            f"{change.alarms_before} before, {change.alarms_after} now; scores changed by "
            f"{change.mean_change:+.4g} on average"
        )
    if change.found_before is not None and change.found_after is not None and change.defects:
        yield (
            f"Found of the added defects: {change.found_before} before, {change.found_after} now, "
            "learned"
        )
    if taught := words.taught(change.detector.manifest.get("taught")):
        yield f"Of all defects: {taught}"
    regions = change.detector.record.regions
    if regions is not None and regions.threshold is not None:
        told = regions.threshold
        value = "none" if told.value is None else f"{told.value:.4g}"
        yield f"Regions: {value}, from {pluralize(told.n, 'good picture')}" + (
            f" ({told.reason})" if told.value is None else ""
        )
