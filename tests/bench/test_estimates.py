from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import TINY, a_row, a_run

from blemish.bench.estimates import estimate, total
from blemish.bench.results import Row
from blemish.errors import ConfigError


def like(seconds: float, **changes: Any) -> Row:
    """A row like those of `a_run` that took so long, one second of it to score."""
    made = {"data": "part", "changed": TINY, "counts": {"fitted": 30, "pictures": 10}}
    return a_row(**{**made, "seconds_to_fit": seconds - 1, **changes})


def test_a_run_takes_the_median_of_the_rows_like_it(mvtec: Path) -> None:
    rows = [like(100), like(120), like(900), like(1, status="failed")]
    (found,) = estimate([a_run(mvtec)], rows, device="cpu")
    assert (found.seconds, found.basis) == (120, "3 earlier rows")
    assert found.to_dict() == {**a_run(mvtec).to_dict(), "seconds": 120, "basis": "3 earlier rows"}
    changed = like(50, recipe="best", changed={**TINY, "bank_size": 9}, settings={"bank_size": 9})
    assert estimate([a_run(mvtec)], [changed], device="cpu")[0].seconds == 50


@pytest.mark.parametrize(
    "other",
    [
        {"method": "patchcore"},
        {"recipe": "paper"},
        {"data": "other"},
        {"backbone": "test_resnet"},
        {"changed": {**TINY, "image_size": [64]}},
        {"device": {"type": "cuda"}},
    ],
)
def test_rows_of_another_kind_tell_nothing(mvtec: Path, other: dict[str, Any]) -> None:
    (found,) = estimate([a_run(mvtec)], [like(100, **other)], device="cpu")
    assert str(found) == ("knn on part, seed 0 · tiny: no telling (no earlier row is like it)")
    assert found.seconds is None


def test_all_of_them_together(mvtec: Path) -> None:
    runs = [a_run(mvtec), a_run(mvtec, seed=1), a_run(mvtec, data="none")]
    found = estimate(runs, [like(110)], device="cpu")
    assert total(found) == 220
    assert total(found, jobs=2) == 110
    assert str(found[0]) == "knn on part, seed 0 · tiny: about 2 min (1 earlier row)"
    with pytest.raises(ConfigError, match="abacus"):
        estimate(runs, device="abacus")
