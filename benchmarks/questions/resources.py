"""What methods cost in time, memory and parameters."""

from __future__ import annotations

from blemish.bench import results, suites
from questions.question import NOTHING, Measured, Question, latest, section, table

SIDE = {"Size": "size", "Precision": "precision"}
FIT = {
    **{"Size": "size", "Leave-one-out calibration": "calibrate", "Pictures": "pictures"},
    **{"Bank": "bank", "Seconds": "seconds"},
}
MEMORY = {"Pictures": "count", "Seconds": "seconds", "Peak (MiB)": "peak_memory_mib"}
METRICS = {"Maps": "maps", "Side": "side", "Seconds": "seconds", "Peak (MiB)": "peak_rss_mib"}
TRAIN = {
    **{"Method": "method", "Backbone": "backbone", **SIDE, "Pictures a step": "batch"},
    "Pictures/s": "images_per_second",
}
STEPS = {
    **{**SIDE, "FLOPs": "flops", "Step (ms)": "processor_ms", "Products (ms)": "products_ms"},
    **{"Share": "share", "Step before (ms)": "beside_processor_ms"},
    **{"Share before": "beside_share", "Before / now": "ratio"},
}
# What `speed.py`, `gpu.py`, `steps.py` and `metrics_speed.py` measure -> title, columns.
TABLES = {
    "fit": ("Fit of PatchCore on bottle (`speed.py`)", FIT),
    "memory": ("Memory of a fit of PatchCore at 224², calibration included (`speed.py`)", MEMORY),
    "metrics": ("Pixel AUROC and AUPRO, exact (`metrics_speed.py`)", METRICS),
    "help": ("`blemish --help` (`speed.py`)", {"Seconds": "seconds"}),
    "train": ("Training on a GPU: 80 steps, the slow first ones included (`gpu.py`)", TRAIN),
    "steps": (
        "A step of AGPNet's training beside its products of matrices alone, in the processor's "
        "time (`steps.py`)",
        STEPS,
    ),
}
CASE = ("method", "batch", "size", "precision", "calibrate", "count", "maps", "side")


def answer(measured: Measured) -> str:
    latency: dict[str, float] = {}
    for row in measured.bench:
        alone = row["device"]["type"] == "cpu" and row["device"]["threads"] == 1
        if alone and row.get("efficiency") and (row["recipe"], row["data"]) == ("best", "bottle"):
            name = f"`{row['method']}` at {row['resolution'][0]}²"
            taken = row["efficiency"]["latency_p50_ms"]
            latency[name] = min(taken, latency.get(name, taken))
    if not latency:
        return NOTHING
    told = [f"{name} {ms:.0f} ms" for name, ms in sorted(latency.items(), key=lambda it: it[1])]
    return (
        "One bottle takes one thread, from pixels to score, by the quickest row of each method and "
        f"size, {', '.join(told)}."
    )


def parts(measured: Measured) -> list[str]:
    known = [row for row in measured.bench if row.get("efficiency")]
    texts: list[str] = []
    if known:
        theirs = suites.read("agpnet").efficiency
        texts = [section("Costs of methods", results.efficiency_page(known, published=theirs))]
    for what, (title, columns) in TABLES.items():
        texts += table(title, columns, latest(measured.of(what), *CASE))
    return texts


RESOURCES = Question(
    "resources", "What does a method cost in time, memory and parameters?", answer, parts
)
