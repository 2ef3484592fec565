"""benchmarks/regions.py on a tiny set: its own row is what `evaluate` says, its oracle is one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from runs import HERE, TINY
from scripts import script_of

import blemish


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return script_of("regions")


def artifact(mvtec: Path, folder: Path, **changes: Any) -> Path:
    asked: dict[str, Any] = {"false_alarm_rate": 0.1, "weights": "random", **HERE, **changes}
    made = blemish.fit("knn", mvtec, config=blemish.configure("knn", values=TINY), **asked)
    return made.save(folder / "knn-part-01234567.blemish")


@pytest.mark.parametrize("fraction", [None, 0.5], ids=["left out", "held out"])
def test_the_cuts_of_the_same_maps(
    script: ModuleType, mvtec: Path, tmp_path: Path, fraction: float | None
) -> None:
    file = artifact(mvtec, tmp_path, calibration_fraction=fraction)
    detector = blemish.load(file, **HERE)
    rows = {row["cut"]: row for row in script.rows(file, "part", mvtec)}
    ours, oracle = rows[script.OURS], rows[script.ORACLE]
    told = blemish.evaluate(detector, mvtec).regions
    assert told is not None
    keys = ("iou", "f1", "defects", "found", "regions", "false_regions", "normal_with_region")
    assert {key: ours[key] for key in keys} == {key: told[key] for key in keys}
    plain = [row for name, row in rows.items() if name not in (script.OURS, script.ORACLE)]
    assert len(plain) == 4
    # To the width of a bin of the oracle's search.
    assert all(row["f1"] <= oracle["f1"] + 1e-3 for row in plain)
    assert 0 < oracle["f1"] <= 1
    maps = script.normal_maps(detector, mvtec)
    assert len(maps) == (24 if fraction is None else 12)
    level = rows["99.9 % of normal pixels"]["level"]
    assert np.mean(np.stack(maps) > level) == pytest.approx(0.001, abs=0.001)
    assert rows["99.5 % of normal pixels"]["level"] <= level


def test_other_pictures_than_those_learned_from_are_refused(
    script: ModuleType, mvtec: Path, tmp_path: Path
) -> None:
    file = artifact(mvtec, tmp_path)
    with pytest.raises(SystemExit, match="not those that the artifact learned from"):
        script.normal_maps(blemish.load(file, **HERE), mvtec / "test" / "good")
    bare = artifact(mvtec, tmp_path, calibration_fraction=0, false_alarm_rate=None)
    with pytest.raises(SystemExit, match="has no thresholds"):
        script.normal_maps(blemish.load(bare), mvtec)
