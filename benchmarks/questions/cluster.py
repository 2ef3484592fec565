"""How far scoring and learning scale on Ray."""

from __future__ import annotations

from blemish.bench.results import Sheet
from blemish.bench.results.overview import commits, device
from blemish.bench.results.sheets import NONE
from questions.question import NOTHING, Measured, Question, latest, sections, table

CASES = """\
What is killed in each case, and when, stands in `scale.py`. Every row is compared with what
`predict` says of the same picture. Of `predict`: throughput divided by that of one process, where
it was measured, and the same by processor time. Memory: of the process that was started, at the
first tenth and at the end."""
SCALING = {
    **{"Method": "method", "Backbone": "backbone", "Size": "image_size", "Workers": "workers"},
    **{"Pictures/s": "pictures_per_second", "Without Ray's own time": "without_ray"},
    "Held up by": "holds_up",
}
IN_PARTS = {
    **{"Data": "data", "Method": "method", "Learned of": "way", "Order": "order"},
    **{"Size": "image_size", "Bank": "bank_size", "Pictures": "train"},
    **{"Image AUROC": "image_auroc", "Pixel AUROC": "pixel_auroc", "AUPRO": "aupro"},
    **{"Farthest feature": "farthest", "Bound": "bound", "Processor (s)": "seconds"},
}


def answer(measured: Measured) -> str:
    cases = measured.having("case", "missing")
    if not cases:
        return NOTHING
    rows, missing, doubled, wrong = (
        sum(row[key] for row in cases) for key in ("rows", "missing", "doubled", "wrong")
    )
    told = (
        f"Of {rows:,} rows, also of runs in which workers, machines and the command itself were "
        f"killed, {missing} were missing, {doubled} doubled and {wrong} wrong"
    )
    if simulated := scaling(measured):
        most = max(simulated, key=lambda row: row["workers"])
        kept = most["pictures_per_second"] / most["without_ray"]
        told += (
            f"; simulated, {most['workers']} workers score {most['pictures_per_second']:,.0f} "
            f"pictures/s, {kept:.2f} of what they would without Ray"
        )
    return f"{told}."


def scaling(measured: Measured) -> list[dict[str, object]]:
    return latest(measured.of("scaling"), "method", "backbone", "image_size", "workers")


def parts(measured: Measured) -> list[str]:
    keys = ("data", "method", "image_size", "bank_size", "way", "seed", "order")
    # Of those learned at once nothing is known of the selections on the way; at first there was
    # one order of the pictures.
    rows = [{"order": 0, **row} for row in measured.of("in_parts")]
    learned = [{**row, **(row["in_parts"] or {})} for row in latest(rows, *keys)]
    simulated = "Scoring on a cluster, simulated from measured times (`scaling.py`)"
    in_parts = "Learned in parts, and of all pictures at once (`in_parts.py`)"
    return [
        *scored(measured),
        *table(simulated, SCALING, scaling(measured)),
        *table(in_parts, IN_PARTS, learned),
    ]


def scored(measured: Measured) -> list[str]:
    """Scoring while something fails (`scale.py`, `spark.py`)."""
    cases = sorted(measured.having("case", "missing"), key=lambda row: row["date"])
    lines = [
        (
            *(row["case"], row["method"], row["backbone"], f"{row['image_size']}²"),
            *(f"{row[key]:,}" for key in ("pictures", "rows", "missing", "doubled", "wrong")),
            *(ratio(row.get(f"{of}_ratio")) for of in ("throughput", "processor")),
            memory(row.get("memory_mib")),
            f"{row['case_seconds']:,.0f}" if "case_seconds" in row else NONE,
            *(commits([row]), device(row)),
        )
        for row in cases
    ]
    columns = (
        *("Case", "Method", "Backbone", "Size", "Pictures", "Rows", "Missing", "Doubled", "Wrong"),
        *("Of `predict`", "By processor time", "Memory (MiB)", "Seconds", "Commit", "Device"),
    )
    title = "Scoring while something fails (`scale.py`, `spark.py`)"
    sheet = Sheet(title=title, above=CASES, columns=columns, lines=tuple(lines))
    return sections(sheet) if lines else []


def ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def memory(tenths: list[int] | None) -> str:
    return f"{tenths[0]:,} to {tenths[-1]:,}" if tenths else NONE


CLUSTER = Question("cluster", "How far does it scale on Ray, and what is lost?", answer, parts)
