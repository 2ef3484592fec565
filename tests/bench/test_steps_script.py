"""benchmarks/steps.py: its row names a step's products, and two checkouts take turns."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scripts import FOLDER, script_of


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return script_of("steps")


def test_a_row_says_what_a_step_computes_and_how_near_it_is_to_that(
    script: ModuleType, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    words = ["--sizes", "28", "--precisions", "fp32", "--rounds", "3", "--weights", "random"]
    words += ["--beside", str(FOLDER.parent), "--output", str(rows)]
    script.main(words)
    (row,) = map(json.loads, rows.read_text(encoding="utf-8").splitlines())
    # Two pictures of four places with 384 channels; a decoder of width 256 and four layers; two
    # targets. The products with weights: forward, then the gradients of weights and of what they
    # are given, but of the decoder's input.
    places, channels, width = 2 * 4, 384, 256
    weights = channels * width + 4 * (4 + 8) * width**2 + width * 2 * channels
    dense = 2 * places * (3 * weights - channels * width)
    assert dense < row["flops"] < 1.05 * dense  # beside them those of attention
    assert row["size"] == "28×28"
    assert row["batch"] == 2
    assert 0 < row["share"] < 1
    assert row["share"] == pytest.approx(row["products_ms"] / row["processor_ms"], abs=0.01)
    assert row["gflops_per_second"] == pytest.approx(
        row["flops"] / row["processor_ms"] / 1e6, rel=0.05
    )
    # The same checkout: nothing but noise between them.
    assert 0.2 < row["ratio"] < 5
    assert row["beside_commit"] == row["commit"]
    assert row["device"]["threads"] == 1


def test_a_worker_that_fails_ends_the_script(script: ModuleType) -> None:
    words = ["--sizes", "32", "--precisions", "fp32", "--backbone", "no_such_backbone"]
    with pytest.raises(SystemExit, match="ended early"):
        script.main(words)


def test_products_are_noted_by_their_forms_and_counted(script: ModuleType) -> None:
    left, right = torch.ones(2, 3), torch.ones(4, 3)
    with script.recorder() as noted:
        left @ right.T
        left @ right.T
        torch.nn.functional.linear(left, right, torch.ones(4))
        left + left
    forms = {
        tuple(form[1] for form in forms): count for (_, forms), count in noted.products.items()
    }
    # Of `linear` the bias comes first; right.T strides over the rows of right.
    assert forms == {((3, 1), (1, 3)): 2, ((1,), (3, 1), (1, 3)): 1}
    assert 0 < script.alone(noted.products) < 1
