"""What `blemish predict` leaves behind of methods that crop and tell where they looked."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from parts import mask_of, rows_of

from blemish.backbones import Features
from blemish.detector.predict import Detector
from blemish.images import decode
from blemish.report.heatmap import contours, outline, overlay
from blemish.report.journal import Journal
from blemish.report.predictions import Gallery
from blemish.types import Prediction, Scores

Run = Callable[..., tuple[int, str, str]]
BOX = (0.25, 0.5, 0.5, 0.375)


@pytest.fixture
def looking(fitted: Callable[..., Detector], monkeypatch: pytest.MonkeyPatch) -> None:
    """The banks of `fitted` look at the right half of a picture, and again at `BOX`."""
    kind = type(fitted().method)
    judge = kind.judge

    def look(self: torch.nn.Module, seen: Features, images: torch.Tensor) -> Scores:
        scores = judge(self, seen, images)  # type: ignore[arg-type]
        saliency = torch.zeros(len(images), 4, 4)
        saliency[..., 2:] = 1.0
        return Scores(
            scores.image,
            scores.maps,
            saliency=saliency,
            boxes=torch.tensor(BOX).expand(len(images), 4),
        )

    monkeypatch.setattr(kind, "judge", look)


@pytest.fixture
def new(tmp_path: Path, picture: Callable[..., np.ndarray], write: Callable[..., Path]) -> Path:
    for seed in range(3):
        pixels = picture(500 + seed, defect=seed == 1, height=48 + seed)
        write(tmp_path / "new" / f"{seed}.png", pixels)
    (tmp_path / "new" / "broken.png").touch()
    return tmp_path / "new"


def test_crop_and_saliency_are_written(
    run: Run, fitted: Callable[..., Detector], new: Path, tmp_path: Path, looking: None
) -> None:
    artifact = fitted().save(tmp_path / "part.blemish")
    out, report = tmp_path / "out", tmp_path / "report.html"
    told = ("predict", artifact, new, "--precision fp32 --device cpu")
    status, said, _ = run(*told, "--output", out, "--report", report, "--json")
    assert status == 1
    rows = rows_of(out)
    assert rows == json.loads(said)["predictions"]
    scored = [row for row in rows if "error" not in row]
    assert [row["box"] for row in scored] == [list(BOX)] * 3
    files = {row[key] for row in scored for key in ("overlay", "saliency")}
    assert files == {f"overlays/{path.name}" for path in (out / "overlays").iterdir()}
    assert len(files) == 6
    for row in scored:
        assert row["saliency"] == row["overlay"].removesuffix(".png") + ".saliency.png"
        original, (height, width) = decode(row["path"]).pixels, (row["height"], row["width"])
        saliency = cv2.resize(np.tile(np.array([0, 0, 1, 1], np.float32), (4, 1)), (width, height))
        expected = outline(overlay(original, saliency, (0.0, 1.0)), BOX)
        assert np.array_equal(decode(out / row["saliency"]).pixels, expected)
        heatmap = fitted().predict(row["path"]).heatmap
        tint = contours(overlay(original, heatmap, fitted().map_scale), mask_of(row))
        expected = outline(tint, BOX)
        drawn = decode(out / row["overlay"]).pixels.astype(int)
        # up to the arithmetic of batches of another size
        assert np.abs(drawn - expected).max() <= 3
    with (out / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for line, row in zip(table, rows, strict=True):
        box = [line[name] for name in ("box_x", "box_y", "box_width", "box_height")]
        assert box == list(map(str, row.get("box") or [""] * 4))
        assert line["saliency"] == row.get("saliency", "")
    assert "The rectangle is the crop" in report.read_text()


def test_methods_without_them_leave_nothing_of_the_kind_as_rows_of_before_there_were_crops(
    run: Run, fitted: Callable[..., Detector], new: Path, tmp_path: Path
) -> None:
    artifact = fitted().save(tmp_path / "part.blemish")
    out, report = tmp_path / "out", tmp_path / "report.html"
    run("predict", artifact, new, "--output", out)
    rows = rows_of(out)
    assert {row.get("box") for row in rows} == {None}
    assert not any("saliency" in row for row in rows)
    assert not list((out / "overlays").glob("*.saliency.png"))
    old = [{key: value for key, value in row.items() if key != "box"} for row in rows[:3]]
    (out / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    again = run("predict", artifact, new, "--output", out, "--resume --report", report)
    assert again[0] == 1
    with (out / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 4
    assert {line[name] for line in table for name in ("box_x", "box_height", "saliency")} == {""}
    assert "The rectangle" not in report.read_text()


def test_a_gallery_keeps_no_batch_alive() -> None:
    batch = np.zeros((8, 4, 4), np.float32)
    gallery = Gallery(2)
    for score in range(3):
        unknown: dict[str, Any] = {"threshold": None, "label": None, "size": (8, 8)}
        maps = {"anomaly_map": batch[score], "saliency": None if score == 2 else batch[score]}
        gallery.add(Prediction(source=str(score), score=score, **unknown, **maps), rank=score)
    kept = list(gallery)
    assert [prediction.score for prediction in kept] == [2, 1]
    assert kept[0].saliency is None
    assert kept[1].saliency is not None
    assert kept[1].saliency.base is None
    assert kept[1].anomaly_map.base is None


def test_a_run_goes_on_within_its_batch_only_where_the_pictures_are_in_its_order() -> None:
    def remaining(*rows: str) -> tuple[list[str], int]:
        journal = Journal(None, artifact=Path(), precision="fp32", ways={}, resume=False)
        journal.rows += [{"path": row} for row in rows]
        todo, again = journal.remaining([Path("a"), Path("b"), Path("c")], 8)
        return [path.name for path in todo], again

    assert remaining() == (["a", "b", "c"], 0)
    assert remaining("a", "b") == (["a", "b", "c"], 2)
    assert remaining("b") == (["a", "c"], 0)
    assert remaining("a", "b", "c") == ([], 0)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupt_waits_until_a_row_is_in_memory_and_on_the_disk(
    fitted: Callable[..., Detector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, dumps = fitted().save(tmp_path / "part.blemish"), json.dumps

    def pressed(row: object, **options: Any) -> str:
        text = dumps(row, **options)
        os.kill(os.getpid(), signal.SIGINT)
        return text

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Journal(
            tmp_path / "out", artifact=artifact, precision="fp32", ways={}, resume=False
        ) as journal:
            monkeypatch.setattr(json, "dumps", pressed)
            with pytest.raises(KeyboardInterrupt):
                journal.add({"path": "a.png", "error": "gone"})
            monkeypatch.undo()
    finally:
        signal.signal(signal.SIGINT, before)
    assert journal.rows == rows_of(tmp_path / "out") == [{"path": "a.png", "error": "gone"}]
