"""The VisA layout, on generated trees of the shape of the official one."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from trees import lay_out

from blemish.data.checking import check
from blemish.data.layouts import read
from blemish.data.layouts.visa import is_visa
from blemish.errors import DataError
from blemish.types import ANOMALOUS, NORMAL

HEADER = "object,split,label,image,mask"


def rows_of(category: str) -> list[str]:
    images = f"{category}/Data/Images"
    return [
        f"{category},train,normal,{images}/Normal/0000.JPG,",
        f"{category},train,normal,{images}/Normal/0002.JPG,",
        f"{category},test,normal,{images}/Normal/0001.JPG,",
        f"{category},test,anomaly,{images}/Anomaly/000.JPG,{category}/Data/Masks/Anomaly/000.png",
        f"{category},test,anomaly,{images}/Anomaly/001.JPG,{category}/Data/Masks/Anomaly/001.png",
    ]


def write_table(root: Path, rows: list[str]) -> None:
    (root / "split_csv").mkdir(exist_ok=True)
    (root / "split_csv" / "1cls.csv").write_text("\n".join([HEADER, *rows]) + "\n")


def visa(root: Path, *categories: str) -> Path:
    for row in (row for category in categories for row in rows_of(category)):
        lay_out(root, *filter(None, row.split(",")[3:]))
    write_table(root, [*rows_of("candle"), *rows_of("pcb1")])
    return root


def test_the_root(tmp_path: Path) -> None:
    root = visa(tmp_path, "candle", "pcb1")
    dataset = read(root)
    assert dataset.layout == "visa"
    assert dataset.description == (
        "VisA layout: 4 train good, 6 test (2 good, 4 in 1 defect type), masks; "
        "split by split_csv/1cls.csv"
    )
    assert dataset.categories == ("candle", "pcb1")
    assert [sample.path for sample in dataset.samples] == sorted(root.glob("*/Data/Images/*/*"))
    assert {sample.path.name for sample in dataset.train()} == {"0000.JPG", "0002.JPG"}
    first = dataset.anomalies()[0]
    assert (first.label, first.defect, first.split) == (ANOMALOUS, "anomaly", "test")
    assert first.mask == root / "candle/Data/Masks/Anomaly/000.png"
    assert dataset.problems[0] == "VisA: 2 of 12 categories"
    assert "pcb1: 2 of 904 training pictures" in dataset.problems


def test_a_category_goes_by_the_table_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = visa(tmp_path, "candle", "pcb1")
    of_root = [sample for sample in read(root).samples if sample.category == "pcb1"]
    assert list(read(root / "pcb1").samples) == of_root
    missing = ("2 of 904 training", "1 of 100 good test", "2 of 100 anomalous test")
    assert read(root / "pcb1").problems == tuple(f"pcb1: {each} pictures" for each in missing)
    monkeypatch.chdir(root / "pcb1")
    assert read(".").categories == ("pcb1",)


def test_masks_of_class_numbers_mark_their_defects(tmp_path: Path) -> None:
    root = visa(tmp_path, "candle")
    for seed, path in enumerate(sorted(root.glob("candle/Data/Images/*/*"))):
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    for number, path in enumerate(sorted(root.glob("candle/Data/Masks/Anomaly/*")), start=1):
        mask = np.zeros((4, 4), np.uint8)
        mask[0, :2] = (1, 2 * number)
        assert cv2.imwrite(str(path), mask)
    assert check(root).ok


@pytest.mark.parametrize("place", [".", "candle"])
def test_without_the_table_the_error_names_it(tmp_path: Path, place: str) -> None:
    root = visa(tmp_path, "candle")
    (root / "split_csv" / "1cls.csv").unlink()
    assert is_visa(root / place)
    with pytest.raises(DataError, match=r"there is no .*split_csv/1cls\.csv; copy"):
        read(root / place)


def test_without_the_masks_the_error_names_them(tmp_path: Path) -> None:
    root = visa(tmp_path, "candle", "pcb1")
    (root / "pcb1/Data/Masks").rename(root / "masks")
    with pytest.raises(DataError, match="pcb1: read as VisA, but there is no Data/Masks/"):
        read(root)
    assert read(root / "candle").has_masks


def test_a_part_of_the_set_is_read_with_what_is_missing_as_problems(tmp_path: Path) -> None:
    root = visa(tmp_path, "candle")
    images = root / "candle/Data/Images"
    (images / "Normal/0001.JPG").unlink()
    (images / "Normal/9999.JPG").touch()
    (root / "candle/Data/Masks/Anomaly/001.png").unlink()
    dataset = read(root)
    assert dataset.problems[:3] == (
        f"1 picture that 1cls.csv names not here: {images / 'Normal/0001.JPG'}",
        f"1 picture that 1cls.csv does not name ignored: {images / 'Normal/9999.JPG'}",
        f"1 anomalous picture without a mask: {images / 'Anomaly/001.JPG'}",
    )
    assert {sample.label for sample in dataset.test()} == {ANOMALOUS}
    assert {sample.label for sample in dataset.train()} == {NORMAL}


NORMAL_OF = "candle,train,normal,candle/Data/Images/Normal/0000.JPG,"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (NORMAL_OF.replace("train", "validation"), "line 2: split 'validation'"),
        (NORMAL_OF.replace("normal", "odd"), "label 'odd'"),
        ("candle,train,normal,candle/../../secret.png,", r"/\.\./secret\.png' is not in candle/"),
        (NORMAL_OF.replace("candle/", "pcb1/"), "is not in candle/"),
        ("candle,test,anomaly,candle/Data/000.JPG,/etc/mask.png", "is not in candle/"),
        ("candle,train,normal,,", "'' is not in candle/"),
        (f"{NORMAL_OF}\n{NORMAL_OF}", r"line 3: .* is there already"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, row: str, message: str) -> None:
    root = visa(tmp_path, "candle")
    write_table(root, [row])
    with pytest.raises(DataError, match=message):
        read(root)


def test_a_table_with_other_columns(tmp_path: Path) -> None:
    root = visa(tmp_path, "candle")
    (root / "split_csv" / "1cls.csv").write_text("object,split,image\n")
    with pytest.raises(DataError, match="columns object, split, label, image, mask; it has object"):
        read(root)
