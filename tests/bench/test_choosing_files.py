"""What a comparison keeps on disk, damaged or forged: refused in words, or of use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fuzzing.texts import hostile

from blemish.bench.choosing.candidates import Candidate
from blemish.bench.choosing.comparing import Compared, read_rows
from blemish.bench.choosing.findings import document, findings
from blemish.bench.choosing.pictures import Division
from blemish.bench.choosing.plan import Plan
from blemish.bench.choosing.reporting import write
from blemish.errors import DataError
from blemish.types import Sample

ONE = Candidate(method="knn", settings={"backbone": "test_vit", "image_size": [32]})


def a_plan() -> Plan:
    """Of three pictures to choose by, with a defect in each, and six labelled defects."""
    generated = [
        {"path": f"{at}.png", "of": at} | ({"kind": kind, "mask": f"{at}m.png"} if kind else {})
        for at in range(3)
        for kind in ("", "nsa")
    ]
    return Plan(
        fingerprint="f",
        division=Division(
            learned=(Sample(path=Path("l.png")),),
            good=tuple(Sample(path=Path(f"g{at}.png")) for at in range(3)),
            defects=tuple(Sample(path=Path(f"d{at}.png"), defect="dent") for at in range(6)),
        ),
        generated=tuple(generated),
        smallest=0.025,
        seconds={"32x32": 0.01},
        failures=({"path": "x.png", "error": "broken"},),
    )


def a_row(plan: Plan) -> dict[str, object]:
    return {
        **{"schema": 2, "status": "ok", "key": plan.key_of(ONE), "reason": "", "rate": 0.05},
        "scores": {one["id"]: 0.5 + at for at, one in enumerate(plan.judged)},
        **{"thresholds": {}, "threshold": 1.0, "aupro": 0.5, "seconds_to_fit": 3.0, "fitted": 9},
        **{"nearly_same": 0, "peak_memory_mib": 100.0, "failures": []},
        "places": {
            one["id"]: {"regions": 2, "overlap": 0.25} for one in plan.judged if "mask" in one
        },
        "efficiency": {"latency_p50_ms": 5.0, "artifact_mib": 2.0, "flops": 7},
    }


def test_what_is_right_is_read(tmp_path: Path) -> None:
    plan = a_plan()
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    rows = tmp_path / "rows.jsonl"
    failed = {"schema": 2, "status": "failed", "key": "other", "error": "no memory"}
    rows.write_text("".join(json.dumps(one) + "\n" for one in (a_row(plan), failed)))
    assert set(read_rows(rows)) == {plan.key_of(ONE), "other"}
    rows.write_text(rows.read_text() + '{"schema": 2, "sta')  # cut short by a kill
    assert set(read_rows(rows)) == {plan.key_of(ONE), "other"}


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    place = tmp_path / "x"
    place.write_text("{}")
    with pytest.raises(DataError, match=r"x: is not the plan of a comparison .* remove it"):
        Plan.load(place)
    place.write_text("{}\n{}\n")
    with pytest.raises(DataError, match="x, line 1: is no row of `blemish compare`"):
        read_rows(place)


def test_small_defects_ask_for_a_larger_size(tmp_path: Path) -> None:
    plan = a_plan()
    row = a_row(plan)
    low = {key: -value for key, value in row["scores"].items()}  # type: ignore[attr-defined]
    large = Candidate(method="knn", settings={"backbone": "test_vit", "image_size": [64]})

    def notes(*rows: tuple[Candidate, dict[str, object]]) -> str:
        alone = replace(plan, division=replace(plan.division, defects=()))
        return " ".join(findings(Compared(plan=alone, rows=rows, missing=[]), ["g"]).notes)

    assert "smaller than 2.5 %" in notes((ONE, row), (large, {**row, "scores": low}))
    assert "smaller than 2.5 %" not in notes((ONE, {**row, "scores": low}), (large, row))


@pytest.mark.parametrize("seed", range(60))
def test_hostile_plans(tmp_path: Path, seed: int) -> None:
    place = tmp_path / "plan.json"
    a_plan().save(place)
    content = hostile(place.read_bytes(), "json", np.random.default_rng(seed))
    place.write_bytes(content)
    try:
        plan = Plan.load(place)
    except DataError:
        return
    plan.evidence()
    plan.key_of(ONE)
    plan.within(1, [ONE]).save(tmp_path / "again.json")


@pytest.mark.parametrize("seed", range(60))
def test_hostile_rows(tmp_path: Path, seed: int) -> None:
    plan, place = a_plan(), tmp_path / "rows.jsonl"
    content = json.dumps(a_row(plan)) + "\n" + json.dumps(a_row(plan)) + "\n"
    place.write_bytes(hostile(content.encode(), "lines", np.random.default_rng(seed)))
    try:
        rows = read_rows(place)
    except DataError:
        return
    measured = [(ONE, row) for row in rows.values()]
    compared = Compared(plan=plan, rows=measured, missing=[], counts={"good": 9, "labelled": 6})
    found = findings(compared, ["good"])
    document(compared, found)
    write(tmp_path / "out", compared, found)
