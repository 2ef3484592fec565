"""Head-CT, Brain-MRI, ELPV, KolektorSDD and magnetic tile, on generated trees of the shapes of the
official ones.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from trees import lay_out

from blemish.data.layouts import Dataset, read
from blemish.data.layouts.base import divided, sample_of
from blemish.errors import DataError, ImageError
from blemish.types import ANOMALOUS, NORMAL

MASK = np.pad(np.full((2, 2), 255, np.uint8), 1)


def shares(dataset: Dataset) -> tuple[int, int, int]:
    """Normal pictures to train on, and normal and anomalous ones to test on."""
    normal = sum(sample.label == NORMAL for sample in dataset.test())
    assert {sample.label for sample in dataset.train()} <= {NORMAL}
    return len(dataset.train()), normal, len(dataset.test()) - normal


@pytest.mark.parametrize(
    ("normals", "fraction", "test"),
    [
        (98, 0.25, 25),
        (1508, 0.25, 377),
        (347, 0.25, 87),
        (952, 0.2, 190),
        (1, 0.25, 0),
        (0, 0.25, 0),
    ],
)
def test_the_split(normals: int, fraction: float, test: int) -> None:
    bad = sample_of(Path("x.png"), "hole")
    samples = [sample_of(Path(f"{number:04d}.png"), "") for number in range(normals)]
    held = divided([*samples, bad], share=fraction)
    assert held == divided([*samples[::-1], bad], share=fraction)
    tested = [sample.label for sample in held.samples if sample.split == "test"]
    assert (tested.count(NORMAL), tested.count(ANOMALOUS)) == (test, 1)
    assert len(held.samples) == normals + 1


def head_ct(root: Path, inner: str = "head_ct/head_ct/") -> Path:
    lay_out(root, *(f"{inner}{number:03d}.png" for number in range(8)))
    rows = "".join(f"{number},{int(number < 4)}\n" for number in range(8))
    (root / "labels.csv").write_text(f"id, hemorrhage\n{rows}")
    return root


@pytest.mark.parametrize("inner", ["", "head_ct/", "head_ct/head_ct/"])
def test_head_ct(tmp_path: Path, inner: str) -> None:
    dataset = read(head_ct(tmp_path, inner))
    assert dataset.layout == "head_ct"
    assert shares(dataset) == (3, 1, 4)
    assert {sample.path.stem for sample in dataset.anomalies()} == {"000", "001", "002", "003"}
    assert {sample.defect for sample in dataset.anomalies()} == {"hemorrhage"}
    assert dataset.description.endswith(
        "no official split: 25 % of the good pictures, drawn by seed 0, are for the test"
    )
    assert dataset.problems[0] == "Head-CT: 3 of 75 training pictures"


def test_head_ct_beside_other_sets_takes_its_own_pictures(tmp_path: Path) -> None:
    root = lay_out(head_ct(tmp_path), "000.png", "mvtec/bottle/train/good/003.png")
    assert {sample.path.parent for sample in read(root).samples} == {root / "head_ct/head_ct"}
    own = lay_out(tmp_path / "own", "000.png")
    (own / "labels.csv").write_text("image,hemorrhage\n000,1\n")
    assert read(own).layout == "flat"


def test_head_ct_with_pieces_missing(tmp_path: Path) -> None:
    root = head_ct(tmp_path / "Head-CT")
    (root / "head_ct/head_ct/007.png").unlink()
    assert read(root).problems[0] == "1 picture that labels.csv names not here: 007.png"
    unused = r"3 rows cannot be used:\n  line 2: .*\n  line 3: .*\n  line 5: 004\.png is "
    for text, words in (
        ("id, hemorrhage\n0,2\none,1\n4,0\n04,1\n", unused),
        ("number, hemorrhage\n0,1\n", "the columns id, hemorrhage"),
    ):
        (root / "labels.csv").write_text(text)
        with pytest.raises(DataError, match=words):
            read(root)
    (root / "labels.csv").unlink()
    with pytest.raises(DataError, match=r"read as Head-CT, but there is no labels\.csv; copy it"):
        read(root)


@pytest.mark.parametrize("inner", ["", "brain_tumor_dataset/"])
def test_brain_mri(tmp_path: Path, inner: str) -> None:
    names = [*(f"no/{number} no.jpeg" for number in range(4)), "yes/Y1.jpg", "yes/Y2.JPG"]
    root = lay_out(tmp_path / inner, *names)
    dataset = read(tmp_path)
    assert (dataset.layout, shares(dataset)) == ("brain_mri", (3, 1, 2))
    assert {sample.defect for sample in dataset.anomalies()} == {"tumour"}
    lay_out(root / "brain_tumor_dataset", *names)  # as in the archive: not read once more
    assert read(tmp_path).samples == dataset.samples


def test_the_yes_and_no_of_other_people_are_no_brain_mri(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no telling which pictures are good"):
        read(lay_out(tmp_path / "sharp", "yes/1.jpg", "no/1.jpg"))
    dataset = read(lay_out(tmp_path / "line", "ok/1.jpg", "no/1.jpg"))
    labels = {sample.path.parent.name: sample.label for sample in dataset.samples}
    assert labels == {"ok": NORMAL, "no": ANOMALOUS}
    assert read(lay_out(tmp_path / "Brain MRI", "yes/1.jpg", "no/1.jpg")).layout == "brain_mri"


@pytest.mark.parametrize(("there", "missing"), [("yes", "no"), ("no", "yes")])
def test_brain_mri_with_one_folder_only(tmp_path: Path, there: str, missing: str) -> None:
    with pytest.raises(DataError, match=f"there is no {missing}/; copy it here"):
        read(lay_out(tmp_path / "Brain-MRI", f"{there}/1.jpg"))


def elpv(folder: Path) -> None:
    probabilities = (0.0, 0.0, 0.0, 0.0, 0.3333333333333333, 0.6666666666666666, 1.0)
    names = [f"images/cell{number}.png" for number in range(len(probabilities))]
    lines = (f"{name}  {value}  mono\n" for name, value in zip(names, probabilities, strict=True))
    (lay_out(folder, *names) / "labels.csv").write_text("".join(lines))


@pytest.mark.parametrize("inner", ["", "data", "src/elpv_dataset/data"])
def test_elpv(tmp_path: Path, inner: str) -> None:
    elpv(tmp_path / inner)
    dataset = read(tmp_path)
    assert (dataset.layout, shares(dataset), dataset.categories) == ("elpv", (3, 1, 1), ("solar",))
    (tmp_path / inner / "images/cell6.png").unlink()
    assert read(tmp_path).problems[0] == "1 picture that labels.csv names not here: cell6.png"


def test_elpv_without_its_table_or_with_a_strange_one(tmp_path: Path) -> None:
    root = tmp_path / "elpv-dataset"
    elpv(root)
    (root / "labels.csv").write_text("images/cell0.png maybe mono\n")
    with pytest.raises(DataError, match="cannot be read as ELPV's labels"):
        read(root)
    (root / "labels.csv").unlink()
    with pytest.raises(DataError, match=r"read as ELPV, but there is no labels\.csv"):
        read(root)


def kolektor(root: Path) -> Path:
    """Two items of three surfaces, of which one each is defective."""
    for item in ("kos01", "kos02"):
        for part in range(3):
            lay_out(root, f"{item}/Part{part}.jpg")
            assert cv2.imwrite(
                str(root / item / f"Part{part}_label.bmp"), MASK if part == 1 else MASK * 0
            )
    return root


def test_kolektor_sdd_goes_by_what_the_masks_mark(tmp_path: Path) -> None:
    dataset = read(kolektor(tmp_path))
    assert (dataset.layout, shares(dataset)) == ("kolektor_sdd", (3, 1, 2))
    assert [sample.mask for sample in dataset.anomalies()] == sorted(
        tmp_path.glob("*/Part1_label.bmp")
    )
    assert [sample.path for sample in dataset.anomalies()] == sorted(tmp_path.glob("*/Part1.jpg"))
    assert not any(sample.mask for sample in dataset.normals())


def test_a_folder_that_is_only_called_as_those_of_kolektor_sdd(tmp_path: Path) -> None:
    assert read(lay_out(tmp_path, "kos01/monday.jpg")).layout == "flat"


def test_kolektor_sdd_without_a_mask_or_with_a_broken_one(tmp_path: Path) -> None:
    root = kolektor(tmp_path)
    mask = root / "kos02/Part2_label.bmp"
    mask.write_bytes(b"")
    with pytest.raises(ImageError, match=r"Part2_label\.bmp: is empty"):
        read(root)
    mask.unlink()
    with pytest.raises(DataError, match=r"the mask <stem>_label\.bmp beside it: .*Part2\.jpg"):
        read(root)


def tiles(root: Path) -> Path:
    names = [
        *(f"MT_Free/Imgs/{number}" for number in range(5)),
        "MT_Break/Imgs/0",
        "MT_Fray/Imgs/0",
    ]
    return lay_out(root, *(f"{name}.{suffix}" for name in names for suffix in ("jpg", "png")))


def test_magnetic_tile(tmp_path: Path) -> None:
    dataset = read(tiles(tmp_path))
    assert (dataset.layout, shares(dataset)) == ("magnetic_tile", (4, 1, 2))
    assert {sample.path.suffix for sample in dataset.samples} == {".jpg"}
    assert {sample.defect: sample.mask for sample in dataset.samples} == {
        "good": None,
        "break": tmp_path / "MT_Break/Imgs/0.png",
        "fray": tmp_path / "MT_Fray/Imgs/0.png",
    }
    assert dataset.problems[0] == "Magnetic tile defects: 4 of 762 training pictures"


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("MT_Free/Imgs", r"MT_Free/Imgs/ has no pictures \(\.jpg\)"),
        ("MT_Fray/Imgs", r"MT_Fray/Imgs/ has no pictures \(\.jpg\)"),
        ("MT_Fray/Imgs/0.png", r"MT_Fray/Imgs/ has no masks \(\.png\)"),
    ],
)
def test_magnetic_tile_with_a_piece_missing(tmp_path: Path, gone: str, message: str) -> None:
    root = tiles(tmp_path / "tiles")
    (root / gone).rename(tmp_path / "gone")
    with pytest.raises(DataError, match=message):
        read(root)
