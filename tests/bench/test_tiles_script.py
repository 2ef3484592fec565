"""benchmarks/tiles.py on a tiny set: its rows are what `evaluate` says, tiles are counted, and the
pictures that speeds are compared with are those tiles."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from runs import HERE
from scripts import script_of

import blemish
from blemish.data import layouts
from blemish.data.tiling import Tiling
from blemish.images import decode

FIT = {"weights": "random", "layers": [2, 4], "bank_size": 50, **HERE}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return script_of("tiles")


def asked(script: ModuleType, path: Path, *more: str) -> list[Any]:
    words = ["--method", "knn", "--backbone", "test_vit", "--whole", "32", "--tiled", "32"]
    words += ["--tile", "32", "--train", "12", "--rate", "0.1", "--repeats", "1", *more]
    return list(script.cases(script.parser().parse_args(words), "part", path))


def size(path: Path) -> tuple[int, int]:
    return decode(layouts.read(path).test()[0].path).size


def test_a_row_is_what_evaluate_says_and_counts_its_tiles(
    script: ModuleType, mvtec: Path, tmp_path: Path
) -> None:
    whole, tiled = asked(script, mvtec)
    assert (whole.tile, whole.overlap, tiled.tile, tiled.overlap) == (None, None, 32, 0.25)
    height, width = size(mvtec)
    each = len(tiling(tiled).starts(height)) * len(tiling(tiled).starts(width))
    assert each > 1
    for case, inputs in ((whole, 1), (tiled, each)):
        file = tmp_path / "a.blemish"
        assert script.learn(case, file, **FIT)["fitted"] == 12
        row = script.score(case, file, **HERE)
        found = blemish.evaluate(blemish.load(file, **HERE), mvtec, resolution=script.COMPARED_AT)
        assert row["image_auroc"] == found.image_auroc
        assert row["pixel_auroc"] == pytest.approx(found.pixel_auroc)
        assert found.regions is not None
        assert row["region_recall"] == found.regions["region_recall"]
        assert row["iou"] == found.regions["iou"]
        assert (row["pictures"], row["good"], row["failed"]) == (13, 6, 0)
        assert row["inputs"] == 13 * inputs
        assert row["megapixels_per_second"] == pytest.approx(
            13 * inputs * 32**2 / 1e6 / row["seconds"]
        )
        json.dumps(row)
        speed = script.compare(case, file, **HERE).get("speed")
        assert (speed is None) == (case is whole)
    assert speed["inputs"] % each == 0
    assert speed["inputs"] >= script.LEAST_INPUTS
    plain, tiles = (speed[f"{way}_megapixels_per_second"] for way in ("plain", "tiles"))
    assert speed["ratio"] == pytest.approx(tiles / plain)


def tiling(case: Any) -> Tiling:
    return Tiling(side=case.tile, overlap=case.overlap)


def test_plain_pictures_are_the_tiles(script: ModuleType, mvtec: Path, tmp_path: Path) -> None:
    _, case = asked(script, mvtec)
    sample = layouts.read(mvtec).test()[0]
    pixels = decode(sample.path).pixels
    files = script.written(case, sample, tmp_path, 5)
    assert files[0].name == "00005.tif"
    height, width = size(mvtec)
    corners = [(y, x) for y in tiling(case).starts(height) for x in tiling(case).starts(width)]
    assert len(files) == len(corners)
    for file, (y, x) in zip(files, corners, strict=True):
        assert np.array_equal(decode(file).pixels, pixels[y : y + 32, x : x + 32])


def test_pictures_are_spread_over_all_good_ones_first(script: ModuleType, mvtec: Path) -> None:
    assert script.spread(range(10), 4) == [0, 2, 5, 7]
    assert script.spread(range(3), 10) == [0, 1, 2]
    _, case = asked(script, mvtec, "--good", "2", "--bad", "4")
    assert [sample.label for sample in script.chosen(case, layouts.read(mvtec))] == [0] * 2 + [
        1
    ] * 4
