"""benchmarks/weak.py on a tiny set: its rows are those of an ordinary fit with the same draw of
defects."""

from __future__ import annotations

import functools
import importlib.util
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import blemish

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "weak.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("weak", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "weak", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("normality", ["patchcore", "padim"])
def test_a_row_is_what_a_fit_with_that_draw_says(
    script: ModuleType, mvtec: Path, normality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = functools.partial(blemish.fit, weights="random", device="cpu", precision="fp32")
    monkeypatch.setattr(blemish, "fit", here)
    tiny: dict[str, Any] = {"backbone": "test_vit", "image_size": 64}
    changed = ["layers=2,4", f"normality={normality}"]
    options = Namespace(set=changed, type=None, counts=[0, 2], draws=1, masks=True, **tiny)
    config = blemish.configure("lda", values=tiny, assignments=changed)
    rows = list(script.rows("part", mvtec, options, set()))
    assert [row["anomaly_count"] for row in rows] == [0, 2]
    for row in rows:
        taught: dict[str, Any] = {"anomalies": mvtec, "anomaly_count": 2}
        defects = taught if row["anomaly_count"] else {}
        detector = blemish.fit("lda", mvtec, config=config, calibration_fraction=0, **defects)
        found = blemish.evaluate(detector, mvtec)
        told = {name: getattr(found, name) for name in script.METRICS}
        assert {name: row[name] for name in script.METRICS} == pytest.approx(told, abs=1e-6)
        assert row["left_out"] == len(found.left_out)
