"""What is shown while a large picture is scored tile by tile."""

from __future__ import annotations

from pathlib import Path

import pytest
from parts import FIT, Run, Write, part, rows_of

from blemish.cli import console


def test_a_long_part_is_told_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.progress() as progress:
        progress("scoring", 1, 3)
        for second in range(1, 200):
            now = float(second)
            progress(f"scoring · tile {second} of 200 of x.tif", 1, 3)
        progress("scoring", 2, 3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "scoring: 1 of 3"
    assert [line.split(" · ")[1] for line in lines[1:4]] == [
        f"tile {second} of 200 of x.tif" for second in (61, 122, 183)
    ]
    assert lines[4].startswith("scoring: 2 of 3")


def test_a_training_has_no_more_lines_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.progress() as progress:
        for step in range(1001):
            now = 100.0 * step
            progress(f"training · loss {step}", step, 1000)
    assert len(capsys.readouterr().err.splitlines()) == 21


def test_interrupted_it_goes_on_to_the_same_scores(tmp_path: Path, run: Run, write: Write) -> None:
    """Pictures of many tiles are not scored again, and the others as they would have been."""
    for seed in range(4):
        write(tmp_path / "good" / f"{seed}.png", part(seed, height=150, width=200))
        write(tmp_path / "new" / f"{seed}.png", part(10 + seed, height=150, width=200))
    artifact = tmp_path / "a.blemish"
    run(f"fit knn {tmp_path / 'good'} -o {artifact} {FIT} --tile 64")
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    for folder in (whole, begun):
        run(f"predict {artifact} {tmp_path / 'new'} --output {folder} --save maps")
    rows = (begun / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (begun / "predictions.jsonl").write_bytes(b"".join(rows[:-2]))
    run(f"predict {artifact} {tmp_path / 'new'} --output {begun} --save maps --resume")
    expected = [(row["path"], row["score"]) for row in rows_of(whole)]
    assert [(row["path"], row["score"]) for row in rows_of(begun)] == expected
