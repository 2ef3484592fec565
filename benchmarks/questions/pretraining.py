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
    pretrained = [row for row in measured.good if kind_of(row) == "pretraining"]
    by_masking: dict[str, list[Row]] = {}
    for row in pretrained:
        by_masking.setdefault(f"masking `{row['settings']['masking']}`", []).append(row)
    plain = without(measured)
    if not by_masking or not plain:
        return NOTHING
    minutes = pretrained[0]["time_budget"] - plain[0]["time_budget"]
    told = "; ".join(f"{way} {both(rows)}" for way, rows in sorted(by_masking.items()))
    return (
        f"{minutes:g} minutes of APMask before `guided` gain no detection on "
        f"{plain[0]['data']} and cost AUPRO: image AUROC and AUPRO in % are {both(plain)} "
        f"without, and with it {told}."
        if gains_nothing(plain, pretrained)
        else f"Before `guided` on {plain[0]['data']} {minutes:g} minutes of APMask change image "
        f"AUROC and AUPRO, in %, from {both(plain)} to {told}."
    )


def without(measured: Measured) -> list[Row]:
    """The same training without pre-training: of rows of the same data, method and size those that
    were measured with as many seeds."""
    pretrained = [row for row in measured.good if kind_of(row) == "pretraining"]
    alike = {companion(row) for row in pretrained}
    return [
        row
        for row in measured.good
        if companion(row) in alike
        and row["settings"].get("pretraining") == "none"
        and row["time_budget"] is not None
    ]


def companion(row: Row) -> tuple[object, ...]:
    return row["method"], row["data"], tuple(row["settings"]["image_size"]), row["shots"]


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
