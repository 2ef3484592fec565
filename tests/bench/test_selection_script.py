"""benchmarks/selection.py on a tiny set: test pictures take no part in the choice, and what it
costs is the difference of what it says."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from runs import answering_here
from scripts import script_of

from blemish.bench.choosing import comparing

TINY = (
    *("--methods", "knn", "--backbone", "test_vit", "--weights", "random", "--image-size", "32"),
    *("--set", "bank_size=50", "--vary", "layers=2,4", "--vary", "layers=1", "--minutes", "5"),
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return script_of("selection")


def test_a_row_says_what_the_choice_costs(
    script: ModuleType, mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[dict[str, Any]] = []
    monkeypatch.setattr(comparing, "answer_of", answering_here(orders))
    results = tmp_path / "rows.jsonl"
    words = [str(mvtec), *TINY, "--results", str(results)]
    script.measured(script.parser().parse_args(words))
    (row,) = [json.loads(line) for line in results.read_text().splitlines()]
    test = {one["label"]: one["checking"]["value"] for one in row["candidates"]}
    assert len(test) == 2
    assert row["looked"]["test_auroc"] == max(test.values())
    assert row["chosen"]["test_auroc"] == test[row["chosen"]["label"]]
    assert row["cost"] == pytest.approx(
        100 * (max(test.values()) - test[row["chosen"]["label"]]), abs=0.01
    )
    ours = {one["label"]: one["generated"]["value"] for one in row["candidates"]}
    assert ours[row["highest"]["label"]] == max(ours.values())
    assert row["counts"]["checking_defects"] == 7
    order = next(one["order"] for one in orders if one["work"] == "measure")
    chose = {one["path"] for one in order["judged"] if not one["role"].startswith("checking")}
    assert not any("test" in Path(path).parts for path in chose)
    orders.clear()
    script.measured(script.parser().parse_args(words))
    assert orders == []
