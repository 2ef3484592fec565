"""Runs of a bench that take no time, for the tests of what plans and makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from blemish.bench.plan import Run

TINY = {"backbone": "test_vit", "image_size": 32, "layers": [2, 4], "bank_size": 50}
GUIDED = {
    "method": "guided",
    "settings": {
        "backbone": "test_vit",
        "image_size": [32],
        "epochs": 1,
        "min_steps": 12,
        "pictures_per_step": 8,
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
