"""How fast it scores."""

from __future__ import annotations

from collections.abc import Sequence

from blemish.bench.results import Sheet
from blemish.bench.results.overview import commits, device
from blemish.bench.results.sheets import NONE, figure
from questions.question import NOTHING, Measured, Question, Row, latest, sections, table

ABOVE = """\
Images/s: prepared batches through the engine alone. Of PyTorch: that divided by the speed of
PyTorch in fp32 in the same run. Of the encoder: divided by the speed of the bare encoder in the
same engine and precision, to the layers that the method reads. `predict`: from decoded pictures to
predictions, divided by PyTorch's in fp32. Ratios are of runs in turn; with one thread by processor
time. p50, p95: single prepared pictures. First: from the start of a fresh process to the first
prediction. Map moves by: at most, in standard deviations, beside PyTorch, as the file's proof says
(0.001 is allowed)."""
SIDE = {"Size": "size", "Precision": "precision"}
BACKBONE = {
    **SIDE,
    **{"To the last layer used": "images_per_second", "All layers": "images_per_second_all_layers"},
}
PREDICT = {**SIDE, "Images/s": "images_per_second"}
ON_GPU = {"Method": "method", "Backbone": "backbone", **SIDE}
SCORE = {
    **{**ON_GPU, "Batch": "batch", "Images/s": "images_per_second", "p50 (ms)": "latency_p50_ms"},
    **{"p95 (ms)": "latency_p95_ms", "Peak GPU (MiB)": "peak_gpu_memory_mib"},
}
CASE = ("method", "batch", "size", "precision")


def answer(measured: Measured) -> str:
    rows = [row for row in engines(measured) if row["device"]["type"] == "cpu"]
    told: list[str] = []
    for threads in sorted({row["threads"] for row in rows}):
        of = [row for row in rows if row["threads"] == threads]
        best = [
            fastest([row for row in of if (row["method"], row["image_size"]) == case])
            for case in sorted({(row["method"], row["image_size"]) for row in of})
        ]
        count = "one thread" if threads == 1 else f"{threads} threads"
        told.append(f"with {count} {', '.join(best)}")
    if not told:
        return NOTHING
    return f"The fastest engine, in times PyTorch's speed in fp32: {'; '.join(told)}."


def fastest(rows: Sequence[Row]) -> str:
    best = max(rows, key=lambda row: row["torch_ratio"])
    size = f"{best['image_size']}²"
    return f"{best['torch_ratio']:.2f} for `{best['method']}` at {size} ({best['engine']})"


def engines(measured: Measured) -> list[Row]:
    keys = ("method", "backbone", "image_size", "engine", "threads", "data", "batch")
    return latest(measured.having("torch_ratio", "encoder_ratio"), *keys)


def parts(measured: Measured) -> list[str]:
    keys = [*CASE, "view"]
    bare = latest(measured.of("backbone"), *keys)
    predicted = latest(measured.of("predict"), *keys)
    scored = latest(measured.of("score"), *keys)
    of_gpu = "Scoring on a GPU that does nothing else (`gpu.py`), decoding not included"
    whole = "`predict` with heatmaps at full size, images/s (`speed.py`)"
    return [
        *engine_table(measured),
        *table("The bare backbone, images/s (`speed.py`)", BACKBONE, bare),
        *table(whole, PREDICT, predicted),
        *table(of_gpu, SCORE, scored),
    ]


def engine_table(measured: Measured) -> list[str]:
    """Engines side by side (`engines.py`)."""
    order = ("method", "image_size", "threads", "date", "data")
    rows = sorted(engines(measured), key=lambda row: tuple(str(row.get(key)) for key in order))
    lines = [
        (
            *(row["method"], f"{row['image_size']}²", row["engine"], row.get("data") or "made"),
            figure([row["images_per_second"]], digits=1),
            *(figure([row[f"{of}_ratio"]], digits=2) for of in ("torch", "encoder", "predict")),
            *(figure([row[key]], digits=1) for key in ("p50_ms", "p95_ms", "first_seconds")),
            moved(row),
            *(figure([row.get(key)], 100, 2) for key in ("image_auroc", "aupro")),
            *(figure([row[key]], digits=0) for key in ("file_mib", "peak_memory_mib")),
            *(row["backbone"], commits([row]), device(row)),
        )
        for row in rows
    ]
    columns = (
        *("Method", "Size", "Engine", "Pictures", "Images/s", "Of PyTorch", "Of the encoder"),
        *("`predict`", "p50 (ms)", "p95 (ms)", "First (s)", "Map moves by", "I", "PRO"),
        *("File (MiB)", "Peak (MiB)", "Backbone", "Commit", "Device"),
    )
    title = "Engines side by side (`engines.py`)"
    sheet = Sheet(title=title, above=ABOVE, columns=columns, lines=tuple(lines))
    return sections(sheet) if lines else []


def moved(row: Row) -> str:
    return f"{row['proof']['map']:.1g}" if "proof" in row else NONE


SPEED = Question("speed", "How fast does it score, and in which engine?", answer, parts)
