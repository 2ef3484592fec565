"""The report: one HTML file that needs nothing else, not even a network.

Pictures and figures are embedded; a content security policy forbids the file to load anything or to
run any script but its own, so a hostile file name can neither call home nor run. Without JavaScript
everything can be read; with it, the table sorts and filters and pictures enlarge.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from blemish.errors import NonFiniteError
from blemish.files import write_whole
from blemish.report import charts
from blemish.report.heatmap import colour_bar, encode_png
from blemish.report.templates import environment
from blemish.types import ANOMALOUS, NORMAL, Evaluation, Failure

_CARDS = 8  # worst cases shown of each kind


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One scored picture in a report.

    Attributes:
        source: its path, or "array 3".
        score: raw, finite, higher = more anomalous.
        verdict: 0 normal, 1 anomalous; None without a threshold.
        truth: 0 normal, 1 anomalous; None where unknown.
        defect: the kind of defect, "good", or "" where unknown.
        category: what the picture shows; "" where there is one category only.
        notes: what the decoder did that a person should know.
        picture, overlay: JPEG files, the picture as it is and with its heatmap; None to keep the
            report small.
        box: x, y, width, height of the rectangle in the overlay, as fractions of the picture's
            width and height: the crop that was looked at again; None where none is drawn.
        regions: how many there are and the share of the picture in the largest (0 without any);
            None where that is unknown.
        foreground: whether the overlay shows what was taken as the part.
    """

    source: str
    score: float
    verdict: int | None
    truth: int | None = None
    defect: str = ""
    category: str = ""
    notes: tuple[str, ...] = ()
    picture: bytes | None = field(default=None, repr=False)
    overlay: bytes | None = field(default=None, repr=False)
    box: tuple[float, float, float, float] | None = None
    regions: tuple[int, float] | None = None
    foreground: bool = False


@dataclass(frozen=True)
class _Group:
    """Pictures of one kind, in the order in which to look at them."""

    title: str
    caption: str
    entries: Sequence[Entry]


# What a legend is to explain, where an entry has it.
_DRAWN: Mapping[str, Callable[[Entry], bool]] = {
    "box": lambda entry: entry.box is not None,
    "foreground": lambda entry: bool(entry.overlay and entry.foreground),
    "regions": lambda entry: bool(entry.overlay and entry.regions and entry.regions[0]),
}


def write_report(
    path: str | Path,
    *,
    title: str,
    manifest: Mapping[str, Any],
    entries: Sequence[Entry],
    failures: Sequence[Failure] = (),
    evaluation: Evaluation | None = None,
    parts: Sequence[Mapping[str, Any]] = (),
    warning: str = "",
    scale: tuple[float, float],
) -> Path:
    """Writes the report, whole or not at all, and gives back its path.

    Args:
        manifest: of the artifact; `threshold` and `thresholds` get a section of their own,
            everything else is listed as it is.
        entries: every scored picture, in any order. Those that carry pictures are shown with them.
        failures: pictures that could not be scored; those of the evaluation are added.
        evaluation: adds metrics, curves and tables.
        parts: those of several views, the worst first, each as `PartVerdict.to_dict` has it; with
            its `truth`, as of an `Entry`, where there is an evaluation.
        warning: what a reader is to know before anything else.
        scale: (low, high) that the overlays were drawn with; becomes the colour bar.

    Raises: NonFiniteError if a score is not finite; ConfigError if the scale is empty; OutputError
        if the file cannot be written.
    """
    _check_finite(entries)
    ranked = sorted(entries, key=lambda entry: -entry.score)
    broken = list(dict.fromkeys([*failures, *(evaluation.failures if evaluation else ())]))
    threshold = manifest.get("threshold") or {}
    sources = [entry.source for entry in ranked] + [failure.source for failure in broken]
    pairs = [(entry.truth, entry.score) for entry in ranked]
    if evaluation is not None:
        pairs = [(row["truth"], row["score"]) for row in evaluation.rows]
    page = _template().render(
        title=title,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        manifest=manifest,
        threshold=threshold,
        ranked=ranked,
        failures=broken,
        evaluation=evaluation,
        parts=parts,
        rank={entry.source: at for at, entry in enumerate(ranked, start=1)} if parts else {},
        warning=warning,
        alarms=sum(entry.verdict == ANOMALOUS for entry in ranked),
        judged=sum(entry.verdict is not None for entry in ranked),
        groups=_worst(ranked),
        cards=_CARDS,
        folder=_shared_folder(sources),
        figures=charts.of_scores(pairs, threshold.get("value"), evaluation),
        scale=scale,
        bar=encode_png(colour_bar(scale, height=1)),
        drawn=[name for name, is_there in _DRAWN.items() if any(map(is_there, ranked))],
    )
    # A name with bytes that are not UTF-8 holds lone surrogates, which no file can hold: they are
    # written out as \udcXX.
    return write_whole(path, page.encode("utf-8", "backslashreplace"))


def _check_finite(entries: Sequence[Entry]) -> None:
    """Raises: NonFiniteError."""
    for entry in entries:
        if not math.isfinite(entry.score):
            raise NonFiniteError(
                f"{entry.source}: the score {entry.score} is not finite; a report would hide that"
            )


def _worst(ranked: Sequence[Entry]) -> list[_Group]:
    """What to look at first: mistakes where the truth is known, else the highest scores."""
    defects = [entry for entry in reversed(ranked) if entry.truth == ANOMALOUS]
    good = [entry for entry in ranked if entry.truth == NORMAL]
    if not defects and not good:
        return [_Group("Highest scores", "Most unlike the good pictures.", ranked)]
    if all(entry.verdict is None for entry in ranked):
        where = "wherever a threshold is set."
        missed, false = f"The first to be missed, {where}", f"The first false alarms, {where}"
        return [
            _Group("Defects with the lowest scores", missed, defects),
            _Group("Good with the highest scores", false, good),
        ]
    missed_ones = [entry for entry in defects if entry.verdict == NORMAL]
    alarms = [entry for entry in good if entry.verdict == ANOMALOUS]
    missed = f"{len(missed_ones) or 'none'} of {len(defects)}."
    false = f"{len(alarms) or 'none'} of {len(good)}."
    low, high = "without an alarm, lowest score first", "with an alarm, highest score first"
    return [
        _Group("Missed defects", f"Defective {low}: {missed}", missed_ones),
        _Group("False alarms", f"Good {high}: {false}", alarms),
    ]


def _shared_folder(sources: Sequence[str]) -> str:
    """The folders that all sources start with, with the closing slash; "" where there are none."""
    # Unlike `commonpath` it takes any text; it is cut back to a whole folder here.
    prefix = os.path.commonprefix(list(sources))  # noqa: RUF071
    return prefix[: max(prefix.rfind("/"), prefix.rfind("\\")) + 1]


def _template() -> jinja2.Template:
    templates = environment()
    templates.filters.update(
        number=lambda value: f"{value:.6g}",
        score=lambda value: f"{value:#.6g}".rstrip("."),  # as many digits in every row of a table
        metric=lambda value: "–" if value is None else f"{value:.4f}",
        percent=lambda value: f"{100 * value:.3g} %",
        base64=lambda content: base64.b64encode(content).decode("ascii"),
        sha256=lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(
            "ascii"
        ),
        # Not the hundreds of numbers by which the encoder tells a part.
        short=lambda told: {key: value for key, value in told.items() if key != "direction"},
        words=lambda key: str(key).replace("_", " "),
    )
    templates.tests["table"] = lambda value: isinstance(value, Mapping)
    return templates.get_template("report.html.jinja")
