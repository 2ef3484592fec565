"""Results in words: the human form of what every command answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blemish.cli.console import facts, one_line, table
from blemish.types import ANOMALOUS, NORMAL

if TYPE_CHECKING:
    from rich.table import Table

    from blemish.cli.doctor import Report
    from blemish.data.checking import Check
    from blemish.data.layouts.official import Official
    from blemish.detector.refine import Refined
    from blemish.report.simulation import Simulation
    from blemish.types import Evaluation

_SHOWN_WHOLE, _SHOWN_OF_MANY, _FAILURES_SHOWN, _NOTES_SHOWN = 50, 20, 10, 5
_VERDICTS = {NORMAL: "normal", ANOMALOUS: "alarm", None: "–"}


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


def fitted(manifest: Mapping[str, Any]) -> Iterable[str]:
    """What `blemish fit` has made."""
    data = manifest["data"]
    yield f"Recognised: {data['layout']}"
    if manifest["categories"]:
        yield f"Categories: {', '.join(manifest['categories'])}"
    drawn = f" ({_shots(manifest)})" if manifest["shots"] else ""
    yield f"Pictures: {data['count']} used{drawn}, {len(data['failures'])} broken"
    if data["defects"]:
        yield f"Defects learned from: {len(data['defects'])}; {data['defects_layout']}"
    yield from (f"  {line}" for line in _alike(data))
    yield from broken(data["failures"])
    yield from notes(data.get("notes", {}))
    common, *others = thresholds(manifest)
    yield f"Threshold: {common}"
    yield from (f"  of {other}" for other in others)
    if "pretraining" in manifest:
        yield from _pretraining(manifest["pretraining"])


def _alike(data: Mapping[str, Any]) -> Iterable[str]:
    """What a manifest says of pictures that are, or may be, the same; older ones do not."""
    if copies := data.get("copies", 0):
        yield f"{copies} {'is a copy' if copies == 1 else 'are copies'} of others, which count once for the threshold"
    if near := data.get("nearly_same", 0):
        looks, show = ("looks", "it shows") if near == 1 else ("look", "they show")
        yield f"{near} {looks} nearly the same as another: if {show} the same part, the threshold is less sure"


def refined(change: Refined) -> Iterable[str]:
    """What `blemish refine` has changed."""
    known = f", {change.known} known already" if change.known else ""
    yield f"Added: {change.good} good pictures, {change.defects} defects{known}; {len(change.failures)} broken"
    yield from broken([failure.to_dict() for failure in change.failures])
    threshold = change.detector.threshold
    reason = f" ({threshold.reason})" if threshold is not None and threshold.value is None else ""
    yield f"Threshold: {_figure(change.before)} before, {_figure(change.after)} now{reason}"
    if change.alarms_before is not None and change.alarms_after is not None:
        yield (
            f"Of the {change.calibrated} good pictures it knew, {change.alarms_before} were above the threshold before "
            f"and {change.alarms_after} are now; their scores changed by {change.mean_change:+.4g} on average"
        )
    if change.found_before is not None and change.found_after is not None and change.defects:
        yield f"Of the added defects {change.found_before} were found before, {change.found_after} are now, learned"


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def pretrained(manifest: Mapping[str, Any]) -> Iterable[str]:
    """What `blemish pretrain` has learned."""
    data, weights = manifest["data"], manifest["backbone"]["weights"]
    yield f"Recognised: {data['layout']}"
    yield f"Pictures: {data['count']} used, {len(data['failures'])} broken"
    yield from broken(data["failures"])
    yield f"Started from: {manifest['backbone']['spec']['name']}, {weights['source']}, licence {weights['licence']}"
    yield from _pretraining(manifest)


def categories_told(rows: Iterable[Mapping[str, Any]], categories: Sequence[str]) -> str:
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


def predictions(
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
    yield from broken(failures)
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
    yield from notes(Counter(note for row in scored for note in row.get("notes", ())))
    yield verdicts + (f"; {len(failures)} could not be read" if failures else "")


def _cell(row: Mapping[str, Any], column: str) -> str:
    if column == "score":
        return f"{row['score']:.4f}"
    return _VERDICTS[row["label"]] if column == "verdict" else str(row[column])


def evaluation(result: Evaluation) -> Iterable[str | Table]:
    """Metrics in per cent, per defect type, category and group, and the confusion."""
    counts = result.counts
    yield f"{counts['pictures']} pictures: {counts['normal']} good, {counts['anomalous']} defective"
    if result.left_out:
        yield f"{len(result.left_out)} left out of every figure: the artifact was fitted or calibrated on them"
    if counts["without_mask"]:
        yield f"{counts['without_mask']} defective without a usable mask or a box: not in the pixel figures"
    yield from notices(result.problems)
    yield from broken([failure.to_dict() for failure in result.failures])
    yield from broken([failure.to_dict() for failure in result.mask_faults], "mask at fault")
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
        (name, values["count"], *(_percent(values[key]) for key in columns))
        for name, values in groups
    ]
    head = ("%", "pictures", *columns.values())
    yield table(head, rows, right=head[1:])
    if result.pixel_auroc_anomalous is not None:
        each = [
            f"{name} {_percent(values['pixel_auroc_anomalous'])} %"
            for name, values in result.by_group.items()
        ]
        alone = f"{_percent(result.pixel_auroc_anomalous)} %" + (
            f" ({', '.join(each)})" if each else ""
        )
        yield f"Pixel AUROC over the defective pictures alone: {alone}"
    if result.votes is not None:
        ranked, right = (
            _percent(result.votes[name]) for name in ("image_auroc", "balanced_accuracy")
        )
        yield f"Majority vote of the sizes looked at: image AUROC {ranked} %, balanced accuracy {right} %"
    if result.best_f1 is not None:
        yield f"Best F1: {_percent(result.best_f1)} % at {result.best_f1_threshold:.6g} (found with the labels in hand)"
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


def manifest(values: Mapping[str, Any]) -> Table:
    """What an artifact says of itself."""
    data, weights = values["data"], values["backbone"]["weights"]
    spec, preprocessing = values["backbone"]["spec"], values["preprocessing"]
    common, *others = thresholds(values)
    size, window = f"{preprocessing['height']}×{preprocessing['width']}", preprocessing["window"]
    return facts(
        [
            ("method", f"{values['method']}, recipe {values['recipe'] or 'of its own'}"),
            ("settings", _assignments(values["config"])),
            ("backbone", f"{spec['name']} ({spec['about']})"),
            (
                "weights",
                f"{weights['source']}, licence {weights['licence']}, SHA-256 {weights['sha256'] or 'none'}",
            ),
            (
                "input",
                f"{size} (height×width)"
                + (f", pixel values {window[0]:g} to {window[1]:g}" if window else ""),
            ),
            *(
                [("categories", ", ".join(values["categories"]))]
                if values.get("categories")
                else []
            ),
            ("threshold", common),
            *(("", f"of {other}") for other in others),
            (
                "pictures",
                f"{len(data['fitted'])} fitted on, {len(data['calibrated'])} only calibrated on",
            ),
            *([("drawn", _shots(values))] if values.get("shots") else []),
            *(
                [("pre-training", _pretrained(values["pretraining"]))]
                if "pretraining" in values
                else []
            ),
            *(_training(values["training"]) if "training" in values else []),
            *(("", line) for line in _alike(data)),
            ("recognised", data["layout"]),
            ("broken", f"{len(data['failures'])} pictures left out"),
            ("fingerprint", data["fingerprint"]),
            *_origin(values),
        ]
    )


def encoder(values: Mapping[str, Any]) -> Table:
    """What the file of a pre-trained encoder says of itself."""
    data, spec, weights = values["data"], values["backbone"]["spec"], values["backbone"]["weights"]
    return facts(
        [
            (
                "encoder",
                f"pre-trained by {values['pretraining']}, recipe {values['recipe'] or 'of its own'}",
            ),
            ("settings", _assignments(values["config"])),
            ("backbone", f"{spec['name']} ({spec['about']})"),
            ("started from", f"{weights['source']}, SHA-256 {weights['sha256'] or 'none'}"),
            ("licence", weights["licence"]),
            (
                "pictures",
                f"{data['count']} learned from, {len(data['failures'])} broken ones left out",
            ),
            *_training(values["training"]),
            ("recognised", data["layout"]),
            ("fingerprint", data["fingerprint"]),
            *_origin(values),
        ]
    )


def checkpoint(values: Mapping[str, Any]) -> Table:
    """What the checkpoint of a training says of itself."""
    identity = values["identity"]
    return facts(
        [
            (
                "training",
                f"of {identity.get('method')}, {values['step']:,} of {values['steps']:,} steps made",
            ),
            ("settings", _assignments(identity.get("config", {}))),
            ("so far", f"{values['seconds']:.0f} s, loss {values['loss']:.4g}"),
            ("next", "the command that began it goes on from here with --resume"),
        ]
    )


def methods(described: Iterable[Mapping[str, Any]]) -> Iterable[str | Table]:
    """The methods of `blemish.cli.catalogue.describe_methods`."""
    for number, method in enumerate(described):
        if number:
            yield ""
        yield f"{method['name']}: {method['summary']} ({method['source']})"
        rows = [
            (f"  {it['name']}", json.dumps(it["default"]), it["about"]) for it in method["settings"]
        ]
        yield table(("  setting", "default", "meaning"), rows)
        for recipe in method["recipes"]:
            yield f"  recipe {recipe['name']}: {_assignments(recipe['changes']) or 'the defaults'}"


def machine(found: Report) -> Iterable[str | Table]:
    """What `blemish doctor` has found."""
    free, total, disk = map(_gib, (found.memory_free, found.memory_total, found.disk_free))
    yield facts(
        [
            ("blemish", f"{found.blemish}, Python {found.python}, {found.system}"),
            (
                "packages",
                ", ".join(
                    f"{package.name} {package.version}"
                    for package in found.packages
                    if package.version
                ),
            ),
            (
                "processor",
                f"{found.cpu}, {found.cores} cores, {' '.join(found.cpu_flags) or 'no AVX2'}",
            ),
            ("GPU", ", ".join(found.gpus) or "none"),
            (
                "computes",
                f"on {found.device} in {found.precision}" if found.device else "not at all",
            ),
            ("memory", f"{free} free of {total}"),
            ("disk", f"{disk} free in this folder"),
            (
                "hub cache",
                found.hub_cache + (" (the hub is switched off)" if found.offline else ""),
            ),
            (
                "variables",
                " ".join(f"{name}={value}" for name, value in found.variables.items()) or "none",
            ),
            (
                "weights here",
                ", ".join(weights.backbone for weights in found.weights if weights.here) or "none",
            ),
        ]
    )
    yield from (
        f"not here: weights of {it.backbone}: {it.remedy}" for it in found.weights if not it.here
    )
    yield from (f"advice: {advice}" for advice in found.advice)
    yield from (f"fault: {fault}" for fault in found.faults)
    yield (
        "blemish cannot work here until the faults are mended."
        if found.faults
        else "blemish can work here."
    )


def data_set(found: Check) -> Iterable[str]:
    """What `blemish data check` has found."""
    yield found.dataset.description
    sizes = [f"{number} of {height}×{width}" for (height, width), number in found.sizes.items()]
    yield f"Sizes (height×width): {', '.join(sizes[:5]) or 'none'}{', …' if len(sizes) > 5 else ''}"
    for place in found.dataset.mask_places:
        others = {" of good ones": place.of_good, " without a picture": len(place.unpaired)}
        more = "".join(f", {number}{what}" for what, number in others.items() if number)
        yield f"Masks in {place.place}: {place.paired} of defective pictures{more}"
    yield from notices(found.dataset.problems)
    yield from (f"  same pixels: {', '.join(group)}" for group in found.duplicates)
    yield from (
        f"  same pixels, called good and defective: {', '.join(group)}"
        for group in found.contradictions
    )
    yield from (
        f"  leak, same pixels in train and test: {', '.join(group)}" for group in found.leaks
    )
    yield from broken([failure.to_dict() for failure in found.broken])
    yield from broken([failure.to_dict() for failure in found.mask_faults], "mask at fault")
    yield "Nothing is wrong." if found.ok else "Something is wrong."


def public_sets(sets: Iterable[Official]) -> Iterable[str | Table]:
    """Where to get each public data set, what is in it, and the folders it is expected in."""
    for one in sets:
        yield f"{one.title} ({one.name})"
        each = [
            f"{category} {counts.train}/{counts.test_normal}/{counts.test_anomalous}"
            for category, counts in one.categories.items()
        ]
        all_of = one.total
        yield facts(
            [
                ("  by", one.reference),
                ("  from", one.source),
                ("  licence", one.licence),
                ("  split", one.split),
                (
                    "  pictures",
                    f"{all_of.train} train, test {all_of.test_normal} good and {all_of.test_anomalous} defective",
                ),
                *([("  categories", ", ".join(each))] if len(each) > 1 else []),
                ("  folders", one.tree),
                ("  found as", ", ".join(f"{folder}/" for folder in one.folders)),
            ]
        )


def simulation(made: Simulation) -> Iterable[str]:
    """What `blemish simulate` has made."""
    sheets = [str(file) for file in made.files if file.name.startswith("contact-sheet")]
    pictures = (len(made.files) - len(sheets)) // 2
    yield f"{pictures} pictures with an anomaly by {made.simulator}, {len(made.failures)} broken"
    yield from broken([failure.to_dict() for failure in made.failures])
    if made.entropy is not None:
        yield f"Entropy of the attention that guides: {made.entropy:.4f} log N (1 = it looks everywhere alike)"
    if made.guides_nothing:
        yield "warning: the attention is nearly flat and guides nothing; try other --guide-layers or another --backbone"
    yield from (f"Written: {sheet}" for sheet in sheets)


def _pretraining(told: Mapping[str, Any]) -> Iterable[str]:
    training = told["training"]
    yield f"Pre-trained: {training['steps']:,} steps, {training['epochs']:.3g} epochs, loss {training['loss']:.4g}"
    readings = (
        f"{name.replace('_', ' ')} {value:.3g}" for name, value in training["findings"].items()
    )
    yield f"Health: {', '.join(readings)}"


def _training(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a training was, and how its loss fell."""
    points = [f"{loss:.3g} by step {step:,}" for step, loss in made.get("curve", [])]
    return [("training", _without_curve(made)), *([("loss", ", ".join(points))] if points else [])]


def _without_curve(made: Mapping[str, Any]) -> str:
    return _assignments({name: value for name, value in made.items() if name != "curve"})


def _pretrained(told: Mapping[str, Any]) -> str:
    made = _without_curve({**told["config"], **told["training"]})
    return f"{told['method']} on {told['weights']['source']}: {made}"


def _origin(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    made_in = f"{values['seconds']:.1f} s on {values['device']} in {values['precision']}, seed {values['seed']}"
    return [
        ("made", f"{values['created']} by blemish {values['blemish']}, format {values['format']}"),
        ("in", made_in),
        ("versions", ", ".join(f"{name} {number}" for name, number in values["versions"].items())),
    ]


def _shots(manifest: Mapping[str, Any]) -> str:
    each = " of each category" if manifest["categories"] else ""
    shots = "1 shot" if manifest["shots"] == 1 else f"{manifest['shots']} shots"
    return f"{shots}{each} by seed {manifest['seed']}"


def _assignments(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _gib(value: float | None) -> str:
    return "an unknown amount" if value is None else f"{value:.1f} GiB"
