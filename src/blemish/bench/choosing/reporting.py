"""What a comparison leaves for people and for programs: `comparison.json`, `figure.svg` and
`report.html`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2

from blemish.bench.choosing import findings as told
from blemish.bench.choosing.comparing import Compared
from blemish.bench.choosing.findings import Findings, Standing
from blemish.data.ahead import load_picture
from blemish.errors import BlemishError
from blemish.files import write_whole
from blemish.images import Picture, decode_mask
from blemish.report.charts import Choice, tradeoff
from blemish.report.comparison import Example, Page, write_comparison
from blemish.report.heatmap import contours, encode_jpeg, thumbnail
from blemish.text import pluralize

EXAMPLES = 10
_SIDE = 200  # pixels of an example


def write(folder: Path, compared: Compared, found: Findings) -> dict[str, Path]:
    """Writes all three, each whole or not at all; gives where they are. Without a candidate that
    was measured there is no figure.

    Raises: OutputError.
    """
    document = told.document(compared, found)
    places = {"comparison": folder / "comparison.json", "report": folder / "report.html"}
    text = json.dumps(document, indent=2, allow_nan=False)
    write_whole(places["comparison"], text.encode("utf-8", "backslashreplace"))
    chart = _chart(found)
    if chart is not None:
        places["figure"] = write_whole(folder / "figure.svg", chart)
    page = Page(
        title="Which method, at which resolution",
        verdict=verdict(found),
        reasons=found.advice.reasons if found.advice else (),
        sure=found.advice.sure if found.advice else "",
        checked=list(checked(found)),
        notes=found.notes,
        facts=_facts(document),
        head=told.HEAD,
        lines=told.table(found),
        failed=[(one["label"], one["error"]) for one in document["failed"]]
        + [(label, "no time was left") for label in document["missing"]],
        chart=chart,
        examples=list(_examples(compared)),
        broken=[(one["path"], one["error"]) for one in document["failures"]],
        command=found.command,
    )
    write_comparison(places["report"], page)
    return places


def verdict(found: Findings) -> str:
    """What to take, in a sentence."""
    if not found.standings:
        return "Nothing can be said: no candidate was measured."
    if found.chosen is None or found.advice is None:
        return (
            "Nothing can be said: there is no defect, generated or labelled, and no good picture "
            "beside it, that all candidates have scored."
        )
    alike = found.advice.alike
    label = found.chosen.candidate.label
    if len(found.standings) == 1:
        return f"Only {label} was measured."
    if alike:
        return (
            f"Take {label}: these pictures show none that is better, and "
            f"{pluralize(len(alike), 'other')} that they do not tell from it."
        )
    if found.advice.by_places:
        return (
            f"Take {label}: these pictures show none that is better, and of those that find as "
            "many defects it shows best where they are."
        )
    some = " of those that were measured" if found.failed or found.missing else ""
    best = "probably the best" if found.advice.doubtful else "the best"
    return f"Take {label}: it is {best}{some}."


def checked(found: Findings) -> Iterable[str]:
    """What the chosen one does on pictures that have not chosen."""
    one: Standing | None = found.chosen
    if one is None:
        return
    if one.checking is not None:
        share = f", {told.percent(one.found)} % of these defects found" if one.found else ""
        yield (
            f"On labelled defects and good pictures that took no part in the choice: AUROC "
            f"{told.percent(one.checking)} %{share}."
        )
    if one.false_alarms is not None and one.row["rate"] is not None:
        yield (
            f"At a threshold for {100 * one.row['rate']:.3g} % of false alarms it raised them at "
            f"{told.percent(one.false_alarms)} % of the good pictures that were left out."
        )


def _chart(found: Findings) -> bytes | None:
    """By labelled defects where these chose, else by generated ones."""
    labelled = found.advice is not None and found.advice.by.count("labelled") > 0
    choices = []
    for one in found.standings:
        figure = one.labelled if labelled else one.generated
        if figure is not None:
            choices.append(
                Choice(
                    label=one.candidate.label,
                    cost=max(one.row["efficiency"]["flops"] / 1e9, 1e-3),
                    value=figure.value,
                    low=figure.low,
                    high=figure.high,
                    chosen=one is found.chosen,
                )
            )
    what = "labelled" if labelled else "generated"
    names = ("GFLOP a picture", f"AUROC by {what} defects")
    return tradeoff(choices, names=names) if choices else None


def _facts(document: dict[str, Any]) -> dict[str, str]:
    """What the pictures were for."""
    counts = document["counts"]
    facts = {
        "recognised": document["recognised"],
        "learned from": pluralize(counts["learned"], "good picture"),
        "left out, to choose": pluralize(counts["left_out"], "good picture"),
        "generated defects": f"{counts['generated']} in those that were left out",
    }
    if counts["labelled"]:
        facts["labelled defects"] = (
            f"{counts['labelled_choosing']} choose, {counts['checking_defects']} measure what was "
            f"chosen, beside {pluralize(counts['checking_good'], 'other good picture')}"
        )
    return facts


def _examples(compared: Compared) -> Iterable[Example]:
    """Some generated defects, evenly from all of them; one that cannot be read any more is left
    out."""
    made: Sequence[Any] = told.pictures(compared.plan)
    for at, one in enumerate(made[:: max(1, len(made) // EXAMPLES)][:EXAMPLES]):
        picture = load_picture(one["path"], at, None)
        if not isinstance(picture, Picture):
            continue
        small = thumbnail(picture.as_uint8(), 2 * _SIDE)
        try:
            mask = decode_mask(one["mask"])
        except BlemishError:
            continue
        size = (small.shape[1], small.shape[0])
        marked = cv2.resize(mask.astype("uint8"), size, interpolation=cv2.INTER_AREA) > 0
        drawn = contours(small, marked)
        yield Example(picture=encode_jpeg(drawn), caption=one["kind"])
