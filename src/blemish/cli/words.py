"""What several commands print: failures, notes, thresholds, trainings, written files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blemish.text import counted, pluralize, printable

_FAILURES_SHOWN, _NOTES_SHOWN = 10, 5
AGREES = 0.9  # agreement of a student with its teacher (`methods.student`) below which it is told


def broken(failures: Sequence[Mapping[str, Any]], what: str = "broken") -> list[str]:
    """A line for each failure (path, error), the first few of many."""
    shown = failures[:_FAILURES_SHOWN]
    lines = [printable(f"  {what}: {failure['path']}: {failure['error']}") for failure in shown]
    more = len(failures) - len(shown)
    return [*lines, f"  … and {more} more, all of them listed by --json"] if more else lines


def notes(counts: Mapping[str, int]) -> list[str]:
    """A line for each note on pictures as they were read, the most frequent first."""
    most = sorted(counts.items(), key=lambda item: -item[1])
    lines = [f"  note on {count} of them: {note}" for note, count in most[:_NOTES_SHOWN]]
    more = len(most) - len(lines)
    return [*lines, f"  … and {more} other notes"] if more else lines


def notices(sentences: Iterable[str]) -> list[str]:
    """A line for each thing that a person should know of."""
    return [printable(f"  notice: {sentence}") for sentence in sentences]


def resized(preprocessing: Mapping[str, Any]) -> str:
    """The size of the input, and how pictures come into it; "" where they are stretched."""
    told = {
        "fit": "in the pictures' shape; others are padded",
        "pad": "pictures are padded, their aspect ratio kept",
        "crop": "pictures are cropped, their aspect ratio kept",
    }.get(preprocessing.get("resize", "stretch"))
    size = f"{preprocessing['height']}×{preprocessing['width']} (height×width)"
    return "" if told is None else f"{size}, {told}"


def tiles(manifest: Mapping[str, Any]) -> str:
    """How pictures are cut, and why, where that was chosen; "" where nobody asked for tiles."""
    tiling, why = manifest["preprocessing"].get("tiling"), manifest["data"].get("tiles", "")
    if not tiling:
        return f"none: {why}" if why else ""
    side, overlap = tiling["side"], 100 * tiling["overlap"]
    told = f"{side}×{side} pixels, which overlap by {overlap:.3g} % at least"
    return f"{told} ({why})" if why else told


def area(preprocessing: Mapping[str, Any]) -> str:
    """How much of a picture is looked at; "" where that is all of it."""
    runs = preprocessing["area"]["runs"] if preprocessing.get("area") else [0, 1]
    share = sum(runs[1::2]) / sum(runs)
    return "" if share == 1 else f"{100 * share:.3g} % of the picture (--roi, --ignore)"


def closer(config: Mapping[str, Any]) -> str:
    """How much of a picture gets a second look, and by which first one; "" where there is one."""
    if not config.get("coarse"):
        return ""
    share = 100 * config["close_share"]
    return f"{share:.3g} % of each picture, told by a first look at {config['coarse']} pixels"


def foreground(told: Mapping[str, Any] | None) -> str:
    """What is taken of a picture as the part, or why whole pictures are looked at; "" where nobody
    asked for a foreground."""
    if not told:
        return ""
    if told["abstains"]:
        return f"whole pictures are looked at, as {told['abstains']}"
    least, share, most = (100 * told[name] for name in ("least", "share", "most"))
    spread = f" ({least:.3g} to {most:.3g} %)" if most - least >= 1 else ""
    return f"the part alone, {share:.3g} % of a picture on average{spread}"


def compression(told: Mapping[str, Any] | None) -> str:
    """What of a memory bank is kept and searched, and how far that was measured to move scores; ""
    where nobody asked for that."""
    if not told:
        return ""
    kept = f"{told['entries']:,} of {told['whole']:,} features"
    if told["abstains"]:
        return f"{kept}, as {told['abstains']}"
    whole = told["dims"] == told["width"]
    searched = "all" if whole else f"{told['dims']} of {told['width']}"
    return (
        f"{kept} in {told['stored']}, searched in {searched} dimensions; that moves scores of "
        f"{pluralize(told['pictures'], 'good picture')} by {told['good']:.2g}, of generated "
        f"defects by {told['defects']:.2g}, maps by {told['maps']:.2g} deviations of good scores "
        f"({told['asked']:.2g} is allowed)"
    )


def in_parts(told: Mapping[str, Any] | None) -> str:
    """Of how many parts it was put together, and how far features lie from its bank; "" where it
    learned from all pictures at once."""
    if not told:
        return ""
    made = f"{pluralize(told['parts'], 'part')}, merged over {pluralize(told['levels'], 'level')}"
    if told["farthest"] is None:
        return made
    bound = "" if told["bound"] is None else f", by all selections {told['bound']:.3g} at most"
    return (
        f"{made}; features of {pluralize(told['measured'], 'picture')} lie up to "
        f"{told['farthest']:.3g} from the bank{bound}"
    )


def taught(told: Mapping[str, Any] | None) -> str:
    """How well labelled defects are told by each other; "" where that is not known."""
    if not told:
        return ""
    return (
        f"left out in turn, they score above {percent(told['auroc'])} % of the good pictures "
        f"({percent(told['normality_auroc'])} % without what the others teach)"
    )


def textures(config: Mapping[str, Any]) -> str:
    """What anomalies are made of in training; "" where of no textures."""
    if "textures" not in config:
        return ""
    if config["textures"]:
        return f"pictures of {config['textures']}"
    return (
        "generated, as no folder is named, which is no published setting; name one: "
        "--set textures=FOLDER"
    )


def student(manifest: Mapping[str, Any]) -> str:
    """Of what the encoder is a student, and how well it agrees with it; "" where it is none."""
    spec, made = manifest["backbone"]["spec"], manifest.get("pretraining")
    if not spec.get("blocks") or not made:
        return ""
    found, seconds = made["training"]["findings"], made["training"]["seconds"]
    blocks = ", ".join(map(str, spec["blocks"]))
    return (
        f"blocks {blocks} of {spec['name']} ({made['weights']['source']}), taught by it in "
        f"{counted(made['training']['steps'], 'step')}, {seconds:.0f} s; on good pictures that it "
        f"has not learned it agrees with its teacher by {found['agreement']:.3f}, on synthetic "
        f"anomalies in them by {found['agreement_on_anomalies']:.3f} (1 = the same)"
    )


def student_doubts(manifest: Mapping[str, Any]) -> list[str]:
    """What a person should know of a student: that it agrees little with its teacher, and that it
    knows the pictures that the threshold comes from."""
    found, threshold = manifest["pretraining"]["training"]["findings"], manifest["threshold"]
    told = []
    if min(found["agreement"], found["agreement_on_anomalies"]) < AGREES:
        told.append(
            f"the student agrees by less than {AGREES} with its teacher, and may miss defects that "
            "the backbone itself would find; more time (--time-budget) or good pictures may help"
        )
    if threshold and threshold["value"] is not None and threshold["method"] == "leave-one-out":
        told.append(
            "the student was distilled on the pictures that the threshold comes from, so there may "
            "be more false alarms than it says; --calibration-fraction 0.2 holds pictures out of "
            "both"
        )
    return told


def training(made: Mapping[str, Any]) -> list[str]:
    """How long a training was, and a notice where it ended before all pictures were seen.

    Args: made: as a manifest has it; see `training.records.Training`.
    """
    epochs = made["epochs"]
    steps = counted(made["steps"], "step")
    passes = "1 pass" if epochs == 1 else f"{epochs:.3g} passes"
    told = f"{steps}, {passes} over the pictures, loss {made['loss']:.4g}"
    if epochs >= 1:
        return [told]
    doubt = (
        "the training ended before it had seen every picture once, so it may have learned little; "
        "give it a larger budget or none, or more steps"
    )
    return [told, *notices([doubt])]


def thresholds(manifest: Mapping[str, Any], of: str = "pictures") -> tuple[str, list[str]]:
    """The common threshold of a manifest with what it promises, and those of its categories."""
    common = manifest["threshold"]
    if common is None or common["value"] is None:
        told = f"none{_promise(common, of)}"
    else:
        told = f"{common['value']:.6g}. {common['guarantee']}"
    others = [
        f"of {name}: none of its own: {own['reason']}"
        if own["value"] is None
        else f"of {name}: {own['value']:.6g}, from its {own['n']} {of}"
        for name, own in manifest.get("thresholds", {}).items()
    ]
    return told, others


def threshold_lines(manifest: Mapping[str, Any]) -> list[str]:
    """The thresholds of a manifest, a line each: of the image score and, below, of the regions and
    of parts of several views. What they promise is said in short, and once."""
    lines: list[str] = []
    said: set[str] = set()
    for heading, of, units in (
        ("Threshold", manifest, "pictures"),
        ("Regions above", manifest.get("regions"), "pictures"),
        ("Parts above", manifest.get("parts"), "parts"),
    ):
        if of:
            common, promise = of["threshold"], _promise(of["threshold"], units)
            number, again = "none", ", for the same reason"
            if common is not None and common["value"] is not None:
                number, again = f"{common['value']:.6g}", "; set by hand as well"
                if common["rate"] is not None:
                    again = "; the same rate of pictures that show any"
            nearly = "; nearly, as these are views of parts"
            views = units == "pictures" and manifest.get("parts") is not None
            told = again if promise in said else promise + nearly * views
            lines.append(f"{heading}: {number}{told}")
            lines += [f"  {other}" for other in thresholds(of, units)[1]]
            said.add(promise)
    return lines


def _promise(threshold: Mapping[str, Any] | None, units: str) -> str:
    """What follows the number: what it promises, in short where `blemish inspect` says more; what
    follows "none": why."""
    if threshold is None:
        return ", as no picture was to be held out for it"
    if threshold["value"] is None:
        return f": {threshold['reason']}"
    n, method = threshold["n"], threshold["method"]
    if method == "split conformal":
        most = f"at most {100 * threshold['rate']:.4g} % of new normal {units} are above it"
        return f"; {most}, on average ({method}, {n} held-out normal {units})"
    if method == "leave-one-out":
        some = f"about {100 * threshold['rate']:.4g} % of new normal {units} are above it"
        return f"; {some}, usually fewer ({method}, {n} training {units}: approximate)"
    return f". {threshold['guarantee']}"


def thresholds_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The thresholds of a manifest for the JSON document, without what they come from."""
    told = ("smallest", "threshold", "thresholds")
    regions, parts = manifest.get("regions"), manifest.get("parts") or {}
    sources = ("scores", "scores_by_category")
    return {
        "threshold": manifest["threshold"],
        "thresholds": manifest["thresholds"],
        "regions": None if regions is None else {key: regions[key] for key in told},
        "part_thresholds": {key: one for key, one in parts.items() if key not in sources} or None,
    }


def of_whole_parts(parts: Mapping[str, Any] | None) -> Iterable[str]:
    """Which parts of several views the threshold of a manifest's `parts` comes from."""
    if not parts:
        return
    views = pluralize(parts["most"], "view")
    views = views if parts["fewest"] == parts["most"] else f"{parts['fewest']} to {views}"
    left_out = f"; {parts['left_out']} not whole, left out" if parts["left_out"] else ""
    copies = f"; {parts['copies']} with the same pictures as another" if parts["copies"] else ""
    alone = f"; {pluralize(parts['ungrouped'], 'picture')} of no part" if parts["ungrouped"] else ""
    yield f"Parts: {len(parts['scores'])} used, of {views}{left_out}{copies}{alone}"


def alike(data: Mapping[str, Any]) -> Iterable[str]:
    """What a manifest says of pictures that are, or may be, the same; older ones do not."""
    if copies := data.get("copies", 0):
        are = "is a copy" if copies == 1 else "are copies"
        yield f"{copies} {are} of others, which count once for the threshold"
    if near := data.get("nearly_same", 0):
        looks, show = ("looks", "it shows") if near == 1 else ("look", "they show")
        yield (
            f"{near} {looks} nearly the same as another: if {show} the same part, the threshold "
            "is less sure"
        )


def shots(manifest: Mapping[str, Any]) -> str:
    """How many pictures were drawn to learn from, and by which seed."""
    each = " of each category" if manifest["categories"] else ""
    number = pluralize(manifest["shots"], "shot")
    return f"{number}{each} by seed {manifest['seed']}"


def assignments(values: Mapping[str, Any]) -> str:
    """Settings as --set takes them; the curve of a training, if there is one, is left out."""
    shown = {key: value for key, value in values.items() if key != "curve"}
    return " ".join(f"{key}={json.dumps(value)}" for key, value in shown.items())


def proof(told: Mapping[str, Any]) -> str:
    """How far an exported graph was found to be from its detector."""
    try:
        ranks = told.get("rank_correlation")
        seen = pluralize(told["pictures"], f"{told['of']} picture")
        return (
            f"{seen} in {told['engine']}: scores differ by at most {told['score']:.2g}, "
            f"maps by {told['map']:.2g} deviations of good scores "
            f"({told['limit']:.2g} and {told['map_limit']:.2g} are allowed)"
            + ("" if ranks is None else f"; rank correlation {ranks:.4f}")
        )
    except (KeyError, TypeError, ValueError):  # of another version of blemish
        return printable(assignments(told))


def percent(value: float | None) -> str:
    """A share in per cent, without the sign; – where it is not defined."""
    return "–" if value is None else f"{100 * value:.2f}"


def places(**paths: Path | None) -> dict[str, str | None]:
    """The files that were written, by what they are, for the JSON document."""
    return {name: None if path is None else str(path) for name, path in paths.items()}


def written(places: Mapping[str, str | None]) -> list[str]:
    """A line for each of `places` that was written."""
    return [f"Written: {printable(place)}" for place in places.values() if place]


def category_warning(rows: Iterable[Mapping[str, Any]], categories: Sequence[str]) -> str:
    """A warning where an artifact of several categories judged pictures without being told theirs.

    Args: rows: scored ones, of predictions or of an evaluation.
    Returns: "" where there is nothing to warn of.
    """
    judged = [
        (row.get("judged_as", row["category"]), row.get("category_assigned", False)) for row in rows
    ]
    unsaid = Counter(name for name, assigned in judged if assigned or not name)
    if not categories or not unsaid:
        return ""
    told = [f"{unsaid[name]} as {name}" for name in categories if name in unsaid]
    reason = "each picture's category was assigned by its features"
    if "" in unsaid:
        told.append(f"{unsaid['']} by the common threshold")
        reason = "the common threshold of all categories misses defects of those that score low"
    total = unsaid.total()
    which = "the pictures" if total == len(judged) else f"{total} of the pictures"
    return f"no category of the artifact was named for {which}: judged {', '.join(told)}; {reason}"
