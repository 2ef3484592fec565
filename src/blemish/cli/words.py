"""What several commands print: failures, notes, thresholds, written files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from blemish.cli import console
from blemish.cli.console import one_line
from blemish.files import locked

_FAILURES_SHOWN, _NOTES_SHOWN = 10, 5


def broken(failures: Sequence[Mapping[str, Any]], what: str = "broken") -> list[str]:
    """A line for each failure (path, error), the first few of many."""
    shown = failures[:_FAILURES_SHOWN]
    lines = [one_line(f"  {what}: {failure['path']}: {failure['error']}") for failure in shown]
    more = len(failures) - _FAILURES_SHOWN
    return [*lines, f"  … and {more} more, all of them listed by --json"] if more > 0 else lines


def notes(counts: Mapping[str, int]) -> list[str]:
    """A line for each thing that was done to pictures when they were read, the most frequent first."""
    most = sorted(counts.items(), key=lambda item: -item[1])
    lines = [f"  note on {count} of them: {note}" for note, count in most[:_NOTES_SHOWN]]
    return (
        [*lines, f"  … and {len(most) - _NOTES_SHOWN} other notes"]
        if len(most) > _NOTES_SHOWN
        else lines
    )


def notices(sentences: Iterable[str]) -> list[str]:
    """A line for each thing that a person should know of."""
    return [one_line(f"  notice: {sentence}") for sentence in sentences]


def threshold(values: Mapping[str, Any] | None) -> str:
    """The threshold of a manifest and what it promises, or why there is none."""
    if values is None:
        return "none, as no picture was to be held out for it"
    if values["value"] is None:
        return f"none: {values['reason']}"
    return f"{values['value']:.6g}. {values['guarantee']}"


def thresholds(manifest: Mapping[str, Any]) -> list[str]:
    """The common threshold of a manifest, and those of its categories."""
    lines = [threshold(manifest["threshold"])]
    for name, values in manifest.get("thresholds", {}).items():
        own = values["value"]
        ground = (
            f"none of its own: {values['reason']}"
            if own is None
            else f"{own:.6g}, from its {values['n']} pictures"
        )
        lines.append(f"{name}: {ground}")
    return lines


def alike(data: Mapping[str, Any]) -> Iterable[str]:
    """What a manifest says of pictures that are, or may be, the same; older ones do not."""
    if copies := data.get("copies", 0):
        yield f"{copies} {'is a copy' if copies == 1 else 'are copies'} of others, which count once for the threshold"
    if near := data.get("nearly_same", 0):
        looks, show = ("looks", "it shows") if near == 1 else ("look", "they show")
        yield f"{near} {looks} nearly the same as another: if {show} the same part, the threshold is less sure"


def shots(manifest: Mapping[str, Any]) -> str:
    each = " of each category" if manifest["categories"] else ""
    shots = "1 shot" if manifest["shots"] == 1 else f"{manifest['shots']} shots"
    return f"{shots}{each} by seed {manifest['seed']}"


def assignments(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def pretraining(told: Mapping[str, Any]) -> Iterable[str]:
    training = told["training"]
    yield f"Pre-trained: {training['steps']:,} steps, {training['epochs']:.3g} epochs, loss {training['loss']:.4g}"
    readings = (
        f"{name.replace('_', ' ')} {value:.3g}" for name, value in training["findings"].items()
    )
    yield f"Health: {', '.join(readings)}"


def places(**paths: Path | None) -> dict[str, str | None]:
    return {name: None if path is None else str(path) for name, path in paths.items()}


def written(places: Mapping[str, str | None]) -> list[str]:
    return [f"Written: {console.one_line(place)}" for place in places.values() if place]


def alone(output: Path | None) -> AbstractContextManager[None]:
    """Around what no other process may write at the same time. Raises: OutputError."""
    return nullcontext() if output is None else locked(output)
