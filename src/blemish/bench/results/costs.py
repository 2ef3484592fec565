"""What methods cost: parameters, operations, times, memory and file, as Table 9 of AGPNet and more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from blemish.bench.results.pages import NONE, Page, Sheet, figure
from blemish.bench.results.rows import Row
from blemish.bench.results.tables import (
    asked,
    backbone,
    device,
    flags,
    likeness,
    newest,
    signs,
    size,
)
from blemish.bench.suites import Efficiency

_COLUMNS = (
    *("Method", "Settings", "Data", "Learnable (M)", "Parameters (M)", "FLOPs (G)", "Images/s"),
    *("Latency p50 (ms)", "Latency p95 (ms)", "Memory (MiB)", "Fit (s)", "Artifact (MiB)"),
    *("Seeds", "Resolution", "Backbone", "Precision", "Device"),
)
_LEGEND = """\
Mean ± standard deviation over the seeds. Learnable: what training changes. FLOPs: of scoring one picture, a
multiply-add counts as two. Images/s: scoring in batches, decoding included. Latency: one picture at a time, from pixels
to score. Memory: peak of the process (on a GPU: of the GPU's memory) up to the last prediction. Fit: loading the
backbone included. Runs of before these were measured have gaps."""
_NO_COSTS = len(_COLUMNS) - 7  # of a published system, after its images/s


def efficiency_page(rows: Iterable[Row], *, published: Efficiency | None = None) -> Page:
    """One table: a line for each method with its settings on a data set, and below it the published ones.

    Of rows with the same identity the newest good one counts; runs that have only failed are listed below.
    """
    latest, failed = newest(rows)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in latest:
        groups.setdefault((row["data"], likeness(row)), []).append(row)
    lines = sorted(_cells(members) for members in groups.values())
    notes: tuple[str, ...] = ()
    if published is not None:
        for cost in published.rows:
            figures = (
                f"{cost.learnable_parameters:g}",
                NONE,
                f"{cost.flops:g}",
                f"{cost.images_per_second:g}",
            )
            lines.append((cost.label, "published", NONE, *figures, *[NONE] * _NO_COSTS))
        notes = (f"Published: {published.source}. {published.note}".rstrip(),)
    if not lines:
        return Page(failed=failed)
    sheet = Sheet(title="Efficiency", columns=_COLUMNS, lines=tuple(lines), notes=notes)
    return Page(sheets=(sheet,), legend="\n".join([_LEGEND, *signs([sheet])]), failed=failed)


def _cells(rows: Sequence[Row]) -> tuple[str, ...]:
    last = rows[-1]
    on_gpu = last["peak_gpu_memory_mib"] is not None
    costs = [row.get("efficiency") or {} for row in rows]

    def of(name: str, scale: float = 1, digits: int = 1) -> str:
        return figure([cost.get(name) for cost in costs], scale, digits)

    def run(name: str, digits: int = 1) -> str:
        return figure([row[name] for row in rows], digits=digits)

    return (
        last["method"],
        " ".join([asked(last), *flags(rows)]),
        last["data"],
        of("learnable_parameters", 1e-6, 2),
        of("parameters", 1e-6, 2),
        of("flops", 1e-9, 2),
        run("images_per_second"),
        of("latency_p50_ms"),
        of("latency_p95_ms"),
        run("peak_gpu_memory_mib" if on_gpu else "peak_memory_mib", 0),
        run("seconds_to_fit"),
        of("artifact_mib"),
        str(len(rows)),
        size(last),
        backbone(last),
        last["precision"],
        device(last),
    )
