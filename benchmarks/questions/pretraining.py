"""What pre-training buys."""

from __future__ import annotations

from collections.abc import Sequence

from blemish.bench.results import Sheet
from blemish.bench.results.overview import backbone, commits, size
from blemish.bench.results.sheets import figure
from questions.kinds import kind_of, rows_of
from questions.published import suite_section
from questions.question import NOTHING, Measured, Question, Row, latest, sections, table

PROBES = """\
What a frozen encoder knows of defects, in %. kNN: image AUROC of the distance to the nearest good
picture. Linear: AUROC of a logistic regression on test pictures, out of fold. Kinds: balanced
accuracy of one that tells the kinds of defect apart. The last two use test labels: they are no
detectors."""
DROPPING = {
    **{"View": "view", "Precision": "precision", "Masked": "mask_ratio", "Patches": "patches"},
    **{"Kept": "kept", "Time": "seconds_ratio", "Memory for the backward pass": "bytes_ratio"},
    "Cores used": "cores_used",
}


def answer(measured: Measured) -> str:
    """Of the pair of `pairs` with the most rows; of several, the first by name."""
    found = pairs(measured)
    if not found:
        return NOTHING
    plain, pretrained = found[min(found, key=lambda same: (-len(found[same][1]), same))]
    by_way: dict[str, list[Row]] = {}
    for row in pretrained:
        by_way.setdefault(way(row), []).append(row)
    minutes = pretrained[0]["time_budget"] - plain[0]["time_budget"]
    names = " or ".join(sorted({objective(row) for row in pretrained}))
    told = "; ".join(f"{one} {both(rows)}" for one, rows in sorted(by_way.items()))
    return (
        f"{minutes:g} minutes of {names} before `guided` gain no detection on "
        f"{plain[0]['data']} and cost AUPRO: image AUROC and AUPRO in % are {both(plain)} "
        f"without, and with it {told}."
        if gains_nothing(plain, pretrained)
        else f"Before `guided` on {plain[0]['data']} {minutes:g} minutes of {names} change image "
        f"AUROC and AUPRO, in %, from {both(plain)} to {told}."
    )


def objective(row: Row) -> str:
    """What it was pre-trained by, as one writes it."""
    name = row["settings"]["pretraining"]
    return "APMask" if name == "apmask" else f"`{name}`"


def way(row: Row) -> str:
    """How it was pre-trained."""
    masking = f"masking `{row['settings']['masking']}`"
    return masking if row["settings"]["pretraining"] == "apmask" else f"{objective(row)}, {masking}"


def pairs(measured: Measured) -> dict[tuple[str, ...], tuple[list[Row], list[Row]]]:
    """Rows without and with pre-training that differ in that alone, by what they have in common:
    data, encoder, resolution, shots, kind of device, and the minutes of the training that follows.

    Of a budget with a pre-training half is the training's (`blemish.fit`), so it is compared with
    rows of half the budget.
    """
    found: dict[tuple[str, ...], tuple[list[Row], list[Row]]] = {}
    for row in measured.good:
        known = row["settings"].get("pretraining")
        if known is None or row["time_budget"] is None or row.get("compute_budget") is not None:
            continue
        with_it = kind_of(row) == "pretraining"
        if with_it or known == "none":
            found.setdefault(companion(row, with_it=with_it), ([], []))[with_it].append(row)
    return {same: both for same, both in found.items() if all(both)}


def without(measured: Measured) -> list[Row]:
    """The same training without pre-training."""
    return [row for plain, _ in pairs(measured).values() for row in plain]


def companion(row: Row, *, with_it: bool) -> tuple[str, ...]:
    minutes = row["time_budget"] / 2 if with_it else row["time_budget"]
    told = (row["method"], row["data"], row["backbone"], row["weights"]["sha256"])
    more = (row["resolution"], row["shots"], row["device"]["type"], row["precision"])
    return *told, *map(str, more), f"{minutes:g}"


def gains_nothing(plain: Sequence[Row], pretrained: Sequence[Row]) -> bool:
    """Whether image AUROC is within the seeds' range, and AUPRO below its lowest mean."""

    def mean(rows: Sequence[Row], key: str) -> float:
        return sum(row[key] for row in rows) / len(rows)

    range_of = [row["image_auroc"] for row in plain]
    within = min(range_of) <= mean(pretrained, "image_auroc") <= max(range_of)
    return within and mean(pretrained, "aupro") < mean(plain, "aupro")


def both(rows: Sequence[Row]) -> str:
    return " and ".join(
        figure([row[name] for row in rows], 100) for name in ("image_auroc", "aupro")
    )


def parts(measured: Measured) -> list[str]:
    companions = {row["key"] for row in without(measured)}

    def which(row: Row) -> bool:
        return kind_of(row) == "pretraining" or row["key"] in companions

    ablations = suite_section(measured, "apmask-ablations")
    rows = rows_of(measured, which, "Rows, and those of the same training without it")
    return [*filter(None, [ablations, rows, *probed(measured), *dropped(measured)])]


def probed(measured: Measured) -> list[str]:
    """Probes of frozen encoders (`probe.py`)."""

    def spread(row: Row, name: str) -> str:
        deviation = row[f"{name}_std"]
        mean = figure([row[name]], 100)
        return mean if deviation is None else f"{mean} ± {100 * deviation:.1f}"

    newest = {(row["data"], backbone(row), size(row)): row for row in measured.of("probe")}
    lines = [
        (
            *(row["data"], backbone(row), row["weights"]["source"], size(row)),
            *(figure([row["knn"]], 100), spread(row, "linear"), spread(row, "linear_kind")),
            *(str(row["seeds"]), commits([row])),
        )
        for row in sorted(newest.values(), key=lambda row: row["date"])
    ]
    columns = (
        *("Data", "Backbone", "Weights", "Resolution", "kNN", "Linear", "Kinds", "Folds drawn"),
        "Commit",
    )
    title = "Probes (`probe.py`)"
    sheet = Sheet(title=title, above=PROBES, columns=columns, lines=tuple(lines))
    return sections(sheet) if lines else []


def dropped(measured: Measured) -> list[str]:
    title = "What dropping patches saves: APMask's student, forward and backward (`speed.py`)"
    above = "As a share of the same without dropping any."
    rows = latest(measured.of("dropping"), "view", "precision", "mask_ratio")
    return table(title, DROPPING, rows, above=above)


PRETRAINING = Question("pretraining", "What does pre-training buy?", answer, parts)
