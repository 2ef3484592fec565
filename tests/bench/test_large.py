"""benchmarks/large.py: what it makes is read as a data set, and its masks lie where pictures were
changed."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from scripts import script_of

from blemish.data import layouts
from blemish.images import decode, decode_mask
from blemish.types import ANOMALOUS, NORMAL

SIDE = 1024


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return script_of("large")


def asked(script: ModuleType, folder: Path, *arguments: str) -> Namespace:
    counts = ["--train", "2", "--good", "1", "--defects", "5", "--side", str(SIDE)]
    given: Namespace = script.parser().parse_args([str(folder), *counts, *arguments])
    return given


@pytest.mark.parametrize("ending", ["tif", "png", "jpg"])
def test_it_is_read_as_a_data_set(script: ModuleType, tmp_path: Path, ending: str) -> None:
    script.make(tmp_path, asked(script, tmp_path, "--format", ending))
    dataset = layouts.read(tmp_path)
    assert [sample.label for sample in dataset.train()] == [NORMAL] * 2
    test = dataset.test()
    assert sum(sample.label == NORMAL for sample in test) == 1
    bad = [sample for sample in test if sample.label == ANOMALOUS]
    assert sorted(sample.defect for sample in bad) == ["dot", "dot", "missing", "scratch", "stain"]
    for sample in bad:
        assert sample.mask is not None
        assert decode(sample.path).size == decode_mask(sample.mask).shape == (SIDE, SIDE)


def test_a_picture_depends_on_its_number_alone_and_is_not_made_again(
    script: ModuleType, tmp_path: Path
) -> None:
    options = asked(script, tmp_path)
    script.make(tmp_path, options)
    first = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    assert len(set(first.values())) == len(first) == 2 + 1 + 5 + 5
    (tmp_path / "train/good/001.tif").unlink()
    (tmp_path / "train/good/000.tif").write_bytes(b"mine")
    script.make(tmp_path, asked(script, tmp_path, "--defects", "6"))
    assert (tmp_path / "train/good/001.tif").read_bytes() == first[tmp_path / "train/good/001.tif"]
    assert (tmp_path / "train/good/000.tif").read_bytes() == b"mine"
    assert len(list(tmp_path.rglob("*.*"))) == len(first) + 2
    values, _ = script.picture(1, script.TRAIN, 1, SIDE)
    assert abs(values - script.picture(0, script.TRAIN, 1, SIDE)[0]).mean() > 0.02  # the seed


@pytest.mark.parametrize("kind", ["dot", "scratch", "missing", "stain"])
def test_defects_are_as_large_as_promised_and_lie_in_their_masks(
    script: ModuleType, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        values, mask = script.picture(0, script.BAD, number, SIDE, kind)
        _, _, facts, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
        longest = facts[1:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1)
        assert len(longest) == script.EACH
        assert all(script.LEAST <= each <= script.MOST for each in longest)
        with monkeypatch.context() as patch:  # the same picture, without its defects
            patch.setattr(script, "spoil", lambda *_: None)
            patch.setattr(script.Grid, "nearest", lambda *_: (-1e6, -1e6))
            whole, _ = script.picture(0, script.BAD, number, SIDE, kind)
        changed = abs(values - whole)
        near = cv2.dilate(mask.view(np.uint8), np.ones((15, 15))).astype(bool)
        assert changed[~near].max() == 0
        assert changed[mask].mean() > 0.08
        assert values.min() >= 0
        assert values.max() <= 1


def test_holes_lie_where_the_grid_says(script: ModuleType) -> None:
    grid = script.Grid(0.3, (11.0, 50.0))
    flat = np.full((SIDE, SIDE), 0.6, dtype=np.float32)
    values = script.drilled(flat, grid)
    x, y = grid.nearest(500, 480)
    assert np.hypot(x - 500, y - 480) <= script.PITCH / np.sqrt(2)
    assert values[round(y), round(x)] < 0.2
    closed = script.drilled(flat, grid, [(x, y)])
    assert (closed[round(y) - 20 : round(y) + 20, round(x) - 20 : round(x) + 20] == 0.6).all()
    assert (abs(closed - values) > 1e-3).sum() < 4 * (script.RADIUS + 5) ** 2
