"""Sentences that count, where there is one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parts import FIT

from blemish.cli import judge, predict_cluster, words
from blemish.report.watching import Tally
from blemish.scale.predict import Done
from blemish.text import counted, pluralize, there_are

Run = Callable[..., tuple[int, str, str]]
NOUNS = "pictures|alarms|defects|regions|views|parts|runs|steps|shots|files|rows|copies|ones"
WRONG = re.compile(rf"(?<![\d.,])1 ([a-z-]+ )?({NOUNS})\b|\bare 1\b|\b1 are\b")


@pytest.mark.parametrize("number", [0, 1, 2, 1200])
def test_one_or_several(number: int) -> None:
    noun = "picture" if number == 1 else "pictures"
    assert pluralize(number, "picture") == f"{number} {noun}"
    assert counted(number, "picture") == f"{number:,} {noun}"
    verb = "is" if number == 1 else "are"
    assert there_are(number, "picture") == f"there {verb} {number} {noun}"


def test_one_picture(
    run: Run, part: Path, tmp_path: Path, picture: Callable[..., Any], write: Callable[..., Path]
) -> None:
    write(tmp_path / "set" / "test" / "good" / "a.png", picture(500))
    bad = write(tmp_path / "set" / "test" / "bad" / "b1.png", picture(501, defect=True))
    write(tmp_path / "set" / "train" / "good" / "c.png", picture(502))
    by_hand, report = "--threshold 1 --region-threshold 1", tmp_path / "r.html"
    _, said, _ = run(
        *("predict", part, bad, by_hand, "--report", report, "--group-by", r"(b\d)\.png")
    )
    assert "1 scored: 1 alarm, 0 normal at a threshold of 1 set by hand" in said
    assert "1 part: 1 alarm, 0 normal" in said
    page = re.sub(r"<[^>]+>", "", report.read_text())
    assert "1 of 1 picture raised an alarm." in page
    told = [said, page.partition("Threshold and scores")[2]]
    _, said, _ = run("evaluate", part, tmp_path / "set", "--group-by", r"(b\d)\.png")
    assert "2 pictures: 1 good, 1 defective" in said
    told.append(said)
    _, said, _ = run("fit lda", tmp_path / "set", "-o", tmp_path / "x", FIT, "--anomalies", bad)
    told += [said, run("inspect", tmp_path / "x")[1]]
    _, said, _ = run("simulate", bad, "-o", tmp_path / "s", "--simulator cutpaste --count 1")
    assert "1 picture with an anomaly by cutpaste, 0 broken" in said
    for text in (*told, said):
        assert WRONG.search(text) is None, WRONG.search(text)


def test_one_row_and_one_step() -> None:
    done = Done(
        output="out", pictures=1, earlier=1, earlier_failed=0, scored=1, alarms=1, failed=0,
        files=1, workers=1, left_out=(),
    )  # fmt: skip
    lines = [*predict_cluster._lines(done), str(Tally(scored=1, alarms=1))]
    lines += words.training({"epochs": 1, "steps": 1, "loss": 0.5})
    lines += words.of_whole_parts(
        {"fewest": 1, "most": 1, "left_out": 0, "copies": 0, "ungrouped": 1, "scores": [1.0]}
    )
    assert "Parts: 1 used, of 1 view; 1 picture of no part" in lines
    of = {"normal_with_region": 1, "normal": 1, "defects": 0}
    assert [*judge._region_lines(of)] == ["Regions: 1 of 1 good picture shows a region"]
    assert all(WRONG.search(line) is None for line in lines), lines
