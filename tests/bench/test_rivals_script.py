"""benchmarks/rivals.py beside a rival that is played: what rows say, what is made once, and what a
fault on the other side looks like. anomalib itself is in no environment of the tests."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from runs import HERE
from scripts import script_of

import blemish
from blemish.backbones import build
from blemish.errors import BlemishError
from blemish.metrics.ranking import auroc

PLAYED = """
import json, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    print(line, end="", file=sys.stderr)
    if asked["do"] == "fit":
        found = {"bank": [40, 8]} if asked["size"] == 32 else None
    elif asked["do"] == "time":
        found = asked["batch"] / (4 if asked["engine"] == "openvino:bf16" else 2)
    else:
        found = [float(len(path)) for path in asked["pictures"]]
    answer = {"error": "ValueError: no such size"} if found is None else {"found": found}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    script = script_of("rivals")
    worker = tmp_path / "played.py"
    worker.write_text(PLAYED, encoding="utf-8")
    network = build("test_vit", weights="random")
    for name, value in {
        "WORKER": worker,
        "BACKBONE": "test_vit",
        "ENGINES": ("torch:fp32",),
        "load_focus": lambda: (dict(network.state_dict()), worker),
        "build": lambda name: network,
    }.items():
        monkeypatch.setattr(script, name, value)
    fit = blemish.fit
    monkeypatch.setattr(
        script.blemish, "fit", lambda *words, **how: fit(*words, weights="random", **how)
    )
    return script


def options(script: ModuleType, folder: Path, case: str, *more: str) -> argparse.Namespace:
    words = [case, "--rival-python", sys.executable, "--keep", str(folder), "--results", "none"]
    return script.parsed([*words, "--batch", "2", "--repeats", "1", *more])


def test_rows_of_both_sides(
    script: ModuleType, mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = options(script, tmp_path / "keep", "patchcore:32")
    asked.keep.mkdir()
    rows = list(script.compared("patchcore:32", mvtec, asked))
    names = [(row["by"], row.get("variant"), row["engine"]) for row in rows]
    assert names == [("anomalib", None, engine) for engine in script.RIVALS] + [
        ("blemish", variant, "torch:fp32") for variant in ("equal", "default")
    ]
    theirs, ours = rows[:3], rows[3:]
    assert [row["images_per_second"] for row in theirs] == [2, 2, 4]
    assert theirs[0]["p50_ms"] == 500
    kept = asked.keep / "part-patchcore-32"
    for row in ours:
        speed = row["images_per_second"]
        assert row["ratios"] == {
            "torch:fp32": speed / 2, "openvino:fp32": speed / 2, "openvino:bf16": speed / 4,
        }  # fmt: skip
        detector = blemish.load(kept / f"{row['variant']}.blemish", **HERE)
        assert row["image_auroc"] == blemish.evaluate(detector, mvtec).image_auroc
    assert ours[0]["bank"][0] == 40 < ours[1]["bank"][0]
    learned = {each.name for each in (kept / "good").iterdir()}
    held = {each.name for each in (kept / "held").iterdir()}
    assert (len(learned), len(held), learned & held) == (21, 3, set())
    samples = blemish.data.layouts.read(mvtec).test()
    lengths = [len(str(each.path)) for each in samples]
    assert theirs[0]["image_auroc"] == auroc(lengths, [each.label for each in samples])
    requests = [json.loads(line) for line in (asked.keep / "rival.log").read_text().splitlines()]
    assert requests[0]["good"] == str(kept / "good")

    def refused(*words: object, **how: object) -> None:
        raise AssertionError("made twice")

    monkeypatch.setattr(script.blemish, "fit", refused)
    monkeypatch.setattr(script, "evaluate", refused)
    again = list(script.compared("patchcore:32", mvtec, asked))
    found = [row.get("image_auroc") for row in rows]
    assert [row.get("image_auroc") for row in again] == found
    assert found.count(None) == 2  # of the engines that `--accurate` does not name


def test_a_fault_of_the_rival_is_told(script: ModuleType, mvtec: Path, tmp_path: Path) -> None:
    asked = options(script, tmp_path, "patchcore:64")
    with pytest.raises(BlemishError, match=r"ValueError: no such size; its log: .*rival\.log"):
        list(script.compared("patchcore:64", mvtec, asked))


def test_a_rival_that_does_not_start_is_told(
    script: ModuleType, mvtec: Path, tmp_path: Path
) -> None:
    script.WORKER.write_text("raise SystemExit('no anomalib')", encoding="utf-8")
    asked = options(script, tmp_path, "patchcore:32")
    with pytest.raises(BlemishError, match="it ended"):
        list(script.compared("patchcore:32", mvtec, asked))
