"""Runs of a bench that take no time, for the tests of what plans and makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from blemish.bench.plan import Run
from blemish.bench.results import Row

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
