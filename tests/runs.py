"""Runs of a bench that take no time, and the rows and suites that its tests make tables of."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from blemish import config as configs
from blemish.bench import run as benchmark
from blemish.bench.choosing import trial
from blemish.bench.plan import Run
from blemish.bench.results import Row, markdown, page, suite_page
from blemish.bench.suites import Comparison, Entry, Figure, Published, Suite, Table
from blemish.detector.fit import configure
from blemish.types import Progress, silent

HERE = {"device": "cpu", "precision": "fp32"}
TINY = {"backbone": "test_vit", "image_size": [32], "layers": [2, 4], "bank_size": 50}
GUIDED = {
    "method": "guided",
    "settings": {
        "backbone": "test_vit",
        "image_size": [32],
        "epochs": 1,
        "min_steps": 12,
        "train_batch_size": 8,
    },
}
TAUGHT = {
    "method": "lda",
    "settings": {"backbone": "test_vit", "image_size": [32], "layers": [2, 4], "normality": "knn"},
}


def a_run(path: Path, **changes: Any) -> Run:
    """`knn` on the data at a path, changed as asked."""
    one = Run(method="knn", data="part", path=path, settings=TINY, weights="random", label="tiny")
    return replace(one, **changes)


def a_row(**changes: Any) -> Row:
    """A good row of `knn`, changed as asked."""
    row = {
        **{"schema": 2, "status": "ok", "key": "k0", "date": "2026-01-01T00:00:00+00:00"},
        **{"commit": "0123456789abcdef", "dirty": False, "blemish": "0.1.0"},
        **{"method": "knn", "recipe": "best", "label": "", "data": "widget", "seed": 0},
        "settings": {"backbone": "test_vit", "image_size": [32, 48], "seed": 0},
        **{"changed": {}, "shots": None, "anomaly_count": None, "anomaly_type": None},
        **{"time_budget": None, "shifts": [], "adapt": [], "compared_at": 256},
        **{"category": "widget", "categories": ["widget"], "multi_class": False},
        "split": {"train": 24, "test_normal": 6, "test_anomalous": 7},
        **{"counts": {"fitted": 24, "pictures": 13}, "differs": [], "fingerprint": "f"},
        **{"backbone": "test_vit", "resolution": [32, 48], "schedule": ""},
        "weights": {"source": "pip:x 1", "sha256": "feedbeef00", "licence": "MIT"},
        **dict.fromkeys(("training", "pretraining", "votes", "efficiency")),
        **{"image_auroc": 0.9, "image_ap": 0.8, "best_f1": 0.7, "pixel_auroc": 0.95},
        **{"aupro": 0.5, "pixel_auroc_anomalous": None},
        **{key: {} for key in ("by_defect", "by_category", "by_group", "shifted")},
        **{"seconds_to_fit": 2.0, "images_per_second": 10.0, "cores_used": 1.0},
        **{"peak_memory_mib": 512.4, "peak_gpu_memory_mib": None, "precision": "fp32"},
        "device": {"type": "cpu", "name": "CPU X", "cpu": "CPU X", "cores": 2, "threads": 2},
        **{"torch": "2", "python": "3.11"},
    }
    return cast(Row, {**row, **changes})


def a_row_of(one: Run, **changes: Any) -> Row:
    """What a run in another process would have answered."""
    return {**a_row(), **benchmark._heading(one), **changes}  # type: ignore[typeddict-item]


def launched_as(code: str, one: Run, patch: pytest.MonkeyPatch, gpu: str | None = None) -> Row:
    """The row of a run whose process runs some other code."""
    patch.setattr(benchmark, "_command", lambda order: [sys.executable, "-S", "-c", code])
    return benchmark._launch(benchmark.Order(one, "cpu", "fp32", None, None), gpu, set())


def in_this_process(launched: list[Run]) -> Callable[..., Row]:
    """What works as a run's own process does, here, which is quicker; notes the runs that it is
    given."""

    def launch(order: benchmark.Order, *_: object) -> Row:
        launched.append(order.run)
        told = {**dataclasses.asdict(order), "run": order.run.to_dict()}
        with redirect_stdout(io.StringIO()) as printed:
            benchmark._worker(["--run", json.dumps(told)])
        row: Row = json.loads(printed.getvalue())
        return row

    return launch


def answering_here(orders: list[dict[str, Any]]) -> Callable[..., Any]:
    """What works as the process of a comparison's candidate does, here; notes its orders."""

    def answer(
        module: str, order: dict[str, Any], *, seconds: float, progress: Progress = silent
    ) -> tuple[dict[str, Any] | None, str]:
        assert module == trial.__name__
        assert seconds > 0
        told = json.loads(json.dumps(order))
        orders.append(told)
        with redirect_stdout(io.StringIO()) as printed:
            trial.answer(told, progress)
        return json.loads(printed.getvalue()), ""

    return answer


def table(rows: Iterable[Row]) -> str:
    return markdown(page(rows))


def suite_table(rows: Iterable[Row], suite: Suite) -> str:
    return markdown(suite_page(rows, suite))


def body(markdown: str) -> list[list[str]]:
    """The cells of the table's rows, without the header."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def varied(key: str, *values: str, **changes: Any) -> Table:
    """A table that varies a setting of `knn`."""
    rows = tuple(Entry(method="knn", label=it, settings={key: it}) for it in values)
    return Table(**{"name": key, "title": key.capitalize(), "rows": rows, **changes})


def suite_with(*tables: Table | Comparison) -> Suite:
    return Suite(name="demo", title="Demo", tables=tables)


def published(mean: float, **figures: float | None) -> Published:
    given = {
        line: {} if it is None else {"image_auroc": Figure(it)} for line, it in figures.items()
    }
    return Published(source="Theirs", figures=given, mean={"image_auroc": Figure(mean)})


def suite_of(**changes: Any) -> Suite:
    values: dict[str, Any] = {
        **{"name": "main", "title": "Main table", "source": "Table 1", "note": "Noted."},
        **{"data": "mvtec", "lines": ("bottle", "cable", "screw"), "metrics": ("image_auroc",)},
        "published": (published(90.1, bottle=90.0, cable=80.0, screw=None),),
        "entries": (Entry(method="knn", label="ours"),),
    }
    return suite_with(Comparison(**{**values, **changes}))


def of(data: str, value: float | None, seed: int = 0, **changes: Any) -> Row:
    row = a_row(data=data, seed=seed, image_auroc=value, **{"changed": {}, **changes})
    recipe = configs.to_dict(configure(row["method"], recipe=row["recipe"], shots=row.get("shots")))
    settings = {**recipe, **row["settings"], **row["changed"], "seed": seed}
    return {**row, "settings": settings, "key": "-".join(map(str, [data, seed, *changes.values()]))}
