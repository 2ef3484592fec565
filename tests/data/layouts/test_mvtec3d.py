"""The MVTec 3D-AD layout, on generated trees of the shape of the official one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from trees import lay_out

from blemish.data.layouts import read
from blemish.errors import DataError


def mvtec3d(root: Path, category: str) -> Path:
    """Two pictures of each kind, with point clouds and masks."""
    for kind in ("train/good", "validation/good", "test/good", "test/hole"):
        for number in range(2):
            lay_out(root / category / kind, f"rgb/{number:03d}.png", f"xyz/{number:03d}.tiff")
            if kind.startswith("test"):
                lay_out(root / category / kind, f"gt/{number:03d}.png")
    return lay_out(root / category, "calibration/camera_parameters.json")


def test_the_root(tmp_path: Path) -> None:
    for category in ("tire", "bagel"):
        mvtec3d(tmp_path, category)
    dataset = read(tmp_path)
    assert dataset.layout == "mvtec3d"
    assert dataset.description == (
        "MVTec 3D-AD (RGB only) layout: 4 train good, 8 test (4 good, 4 in 1 defect type), 4 good, "
        "masks; the 4 of validation/ in no split"
    )
    assert dataset.categories == ("bagel", "tire")
    assert {sample.path.parent.name for sample in dataset.samples} == {"rgb"}
    assert dataset.problems[:2] == (
        "MVTec 3D-AD (RGB only): 2 of 10 categories",
        "bagel: 2 of 244 training pictures",
    )


def test_a_category(tmp_path: Path) -> None:
    folder = mvtec3d(tmp_path, "bagel")
    dataset = read(folder)
    assert [s.path for s in dataset.train()] == sorted((folder / "train/good/rgb").iterdir())
    assert {(sample.defect, sample.split) for sample in dataset.samples} == {
        *(("good", split) for split in ("train", "", "test")),
        ("hole", "test"),
    }
    assert [s.mask for s in dataset.anomalies()] == sorted((folder / "test/hole/gt").iterdir())
    assert not any(sample.mask for sample in dataset.normals())
    missing = ("2 of 244 training", "2 of 22 good test", "2 of 88 anomalous test")
    assert dataset.problems == tuple(f"bagel: {each} pictures" for each in missing)


@pytest.mark.parametrize("missing", ["rgb", "gt"])
def test_a_missing_folder_is_named(tmp_path: Path, missing: str) -> None:
    folder = mvtec3d(tmp_path, "bagel")
    shutil.rmtree(folder / "test/hole" / missing)
    with pytest.raises(DataError, match=rf"bagel/test/hole: .*there is no {missing}/; copy"):
        read(tmp_path)


def test_a_part_without_validation_and_with_a_mask_gone(tmp_path: Path) -> None:
    folder = mvtec3d(tmp_path, "bagel")
    shutil.rmtree(folder / "validation")
    (folder / "test/hole/gt/000.png").unlink()
    dataset = read(folder)
    assert "validation" not in dataset.description
    bare = folder / "test/hole/rgb/000.png"
    assert dataset.problems[0] == f"1 anomalous picture without a mask: {bare}"
