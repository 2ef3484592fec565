"""COCO JSON against the form's own words, read without its library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blemish.errors import OutputError
from blemish.regions import find_regions
from blemish.report.coco import write_coco
from blemish.report.journal import row_of
from blemish.types import Failure, Prediction


def some(
    source: str, seed: int, size: tuple[int, int] = (37, 23), level: float = 0.9
) -> Prediction:
    values = np.random.default_rng(seed).random((9, 7), dtype=np.float32)
    unknown: dict[str, Any] = {"threshold": None, "label": None}
    maps: dict[str, Any] = {"anomaly_map": values, "region_threshold": level}
    return Prediction(source=source, score=1.0, size=size, **unknown, **maps)


def decoded(segmentation: dict[str, Any]) -> np.ndarray:
    """The mask of uncompressed run lengths: a pixel at a time, down the columns."""
    height, width = segmentation["size"]
    pixels = [
        run % 2 == 1 for run, length in enumerate(segmentation["counts"]) for _ in range(length)
    ]
    assert len(pixels) == height * width
    return np.array([[pixels[x * height + y] for x in range(width)] for y in range(height)])


def test_every_region_is_an_annotation_with_its_mask(tmp_path: Path) -> None:
    predictions = [some("a.png", 1), some("b.png", 2, (14, 64)), some("c.png", 3, level=2.0)]
    # A ring: what a polygon of its outer border would lose.
    ring = np.zeros((9, 7), np.float32)
    ring[2:7, 1:6], ring[4, 3] = 5, 0
    predictions.append(Prediction(**{**vars(some("ring.png", 0)), "anomaly_map": ring}))
    rows = [row_of(one) for one in predictions]
    broken = Failure(source="broken.png", reason="cut off").to_dict()
    unknown = {**rows[0], "path": "no threshold.png", "regions": None}
    place = write_coco(tmp_path / "regions.json", [broken, *rows, unknown])
    made = json.loads(place.read_text())
    assert [(one["id"], one["name"]) for one in made["categories"]] == [(1, "defect")]
    images = {image["id"]: image for image in made["images"]}
    assert [Path(image["file_name"]).name for image in images.values()] == [
        *("a.png", "b.png", "c.png", "ring.png")
    ]
    assert [(image["height"], image["width"]) for image in images.values()] == [
        one.size for one in predictions
    ]
    annotations = made["annotations"]
    assert [one["id"] for one in annotations] == list(range(1, len(annotations) + 1))
    for number, prediction in enumerate(predictions, start=1):
        own = [one for one in annotations if one["image_id"] == number]
        found = find_regions(
            prediction.anomaly_map,
            prediction.region_threshold or 0,
            prediction.size,
            background=0.0,
        )
        assert len(own) == len(found)
        for one, region in zip(own, found, strict=True):
            mask = decoded(one["segmentation"])
            assert np.array_equal(mask, region.mask)
            y, x = np.nonzero(mask)
            assert one["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            assert (one["area"], one["iscrowd"], one["category_id"]) == (mask.sum(), 0, 1)
            assert one["score"] == region.peak
    assert {one["image_id"] for one in annotations} == {1, 2, 4}  # none lies above 2
    (last,) = [one for one in annotations if one["image_id"] == 4]
    assert not decoded(last["segmentation"])[18, 11]


def test_pictures_are_named_from_the_folder_of_the_file_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "pics").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    for name in ("top.png", "pics/a b.png", "pics/\udcff.png", "real/up.png"):
        (tmp_path / name).touch()
    absolute = str(tmp_path / "pics" / "a b.png")
    monkeypatch.chdir(tmp_path)
    given = [
        "top.png",
        "pics/a b.png",
        "pics/../pics/a b.png",
        absolute,
        "pics/\udcff.png",
        "link/../up.png",
    ]
    for file in ("r.json", "out/r.json", "link/r.json"):
        write_coco(Path(file), [row_of(some(source, 0)) for source in given])
        names = [image["file_name"] for image in json.loads(Path(file).read_text())["images"]]
        assert names[3] == absolute
        for name, source in zip(names, given, strict=True):
            assert (Path(file).parent / name).samefile(source)
    assert [name for name in names if "\\" in name] == []
    assert json.loads(Path("out/r.json").read_text())["images"][1]["file_name"] == "../pics/a b.png"


def test_a_file_without_pictures_is_still_one(tmp_path: Path) -> None:
    made = json.loads(write_coco(tmp_path / "r.json", []).read_text())
    assert (made["images"], made["annotations"]) == ([], [])
    with pytest.raises(OutputError):
        write_coco(tmp_path, [])
