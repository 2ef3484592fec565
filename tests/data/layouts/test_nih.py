"""The NIH ChestX-ray14 layout, on generated trees of the shape of the official one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from blemish.data.checking import check
from blemish.data.layouts import Dataset, differences, read
from blemish.data.layouts.nih import is_nih
from blemish.data.tables import write_table
from blemish.errors import DataError
from blemish.types import ANOMALOUS, NORMAL

LABELS = "Image Index,Finding Labels"
ENTRIES = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,{sex},View Position,OriginalImage[Width,Height],"
    "OriginalImagePixelSpacing[x,y],"
)
BOXES = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
NONE = "No Finding"
# Ten normals of five patients, one of whom has a box too; three pictures with boxes; one with a
# finding and no box.
FINDINGS = {
    **{f"0000000{patient}_00{number}.png": NONE for patient in range(1, 6) for number in range(2)},
    "00000005_007.png": "Mass",
    "00000006_000.png": "Effusion|Infiltration",
    "00000007_000.png": "Pneumonia",
    "00000008_000.png": "Hernia|Nodule",
}
BOXED = [
    "00000006_000.png,Infiltrate,512,256,128,64",
    "00000006_000.png,Effusion,0,0,1024,1024",
    "00000007_000.png,Pneumonia,337.898305084746,509.559322033898,417.627118644068,403.525423728814",
    "00000005_007.png,Mass,1,2,3,4",
]


def table(path: Path, header: str, rows: Sequence[str]) -> Path:
    """As the official ones: lines end in CR LF, the last one too."""
    path.write_bytes("".join(f"{row}\r\n" for row in (header, *rows)).encode())
    return path


def chest(root: Path, findings: Mapping[str, str] = FINDINGS, boxed: Sequence[str] = BOXED) -> Path:
    """A tree of empty pictures with labels.csv and the boxes."""
    for name in findings:
        place(root / "images" / name)
    table(root / "labels.csv", LABELS, [f"{name},{finding}" for name, finding in findings.items()])
    table(root / "BBox_List_2017.csv", BOXES, boxed)
    return root


def place(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def problems(dataset: Dataset) -> tuple[str, ...]:
    """Those of the layout, without how few pictures there are."""
    return tuple(problem for problem in dataset.problems if problem not in differences(dataset))


def splits(dataset: Dataset, label: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"train": [], "test": [], "": []}
    for sample in dataset.samples:
        if sample.label == label:
            found[sample.split].append(sample.path.stem)
    return found


def test_a_part_of_the_set_with_a_table_of_its_own(tmp_path: Path) -> None:
    dataset = read(chest(tmp_path))
    assert dataset.layout == "nih"
    assert dataset.description == (
        "NIH ChestX-ray14 layout: 8 train good, 5 test (2 good, 3 in 3 defect types), 1 picture (1 in 1 defect type), "
        "boxes; without the official lists train has the normals of the first patients, at most 80 % of all normals "
        "and none of a patient with a box; 1 anomalous picture without boxes in neither"
    )
    assert problems(dataset) == ()
    assert dataset.problems[0] == "NIH ChestX-ray14: 8 of 50500 training pictures"
    assert [sample.path for sample in dataset.samples] == sorted(
        tmp_path / "images" / name for name in FINDINGS
    )
    assert {(sample.category, sample.group, sample.mask) for sample in dataset.samples} == {
        ("", "", None)
    }
    assert {sample.path.stem: sample.defect for sample in dataset.anomalies()} == {
        "00000005_007": "Mass",
        "00000006_000": "Effusion+Infiltrate",
        "00000007_000": "Pneumonia",
        "00000008_000": "Hernia+Nodule",
    }
    assert {sample.defect for sample in dataset.normals()} == {"good"}
    assert splits(dataset, ANOMALOUS) == {
        "train": [],
        "test": ["00000005_007", "00000006_000", "00000007_000"],
        "": ["00000008_000"],
    }


def test_boxes_are_fractions_of_the_1024_pixels_that_they_were_drawn_in(tmp_path: Path) -> None:
    boxes = {
        sample.path.stem: sample.boxes for sample in read(chest(tmp_path)).samples if sample.boxes
    }
    assert boxes["00000006_000"] == ((0.5, 0.25, 0.125, 0.0625), (0, 0, 1, 1))
    assert boxes["00000007_000"] == (
        (
            337.898305084746 / 1024,
            509.559322033898 / 1024,
            417.627118644068 / 1024,
            403.525423728814 / 1024,
        ),
    )


def test_patients_are_split_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    dataset = read(chest(tmp_path))
    assert splits(dataset, NORMAL) == {
        "train": [f"0000000{patient}_00{number}" for patient in range(1, 5) for number in range(2)],
        "test": ["00000005_000", "00000005_001"],
        "": [],
    }
    # 5 of 10 and then 4: the second patient's would be more than 80 %, and nobody is divided or
    # passed over.
    many = {f"1_{number}.png": NONE for number in range(5)} | {
        f"2_{number}.png": NONE for number in range(4)
    }
    dataset = read(
        chest(
            tmp_path / "many",
            {**many, "3_0.png": NONE, "4_0.png": "Mass"},
            ["4_0.png,Mass,1,2,3,4"],
        )
    )
    assert [sample.path.stem for sample in dataset.train()] == [
        f"1_{number}" for number in range(5)
    ]


def test_a_patient_with_a_box_trains_nothing(tmp_path: Path) -> None:
    dataset = read(
        chest(tmp_path, boxed=["00000008_000.png,Nodule,1,2,3,4", "00000001_001.png,Mass,1,2,3,4"])
    )
    assert {sample.path.stem[:8] for sample in dataset.train()} == {
        "00000002",
        "00000003",
        "00000004",
    }
    assert problems(dataset) == (
        '1 picture of "No Finding" with boxes taken as anomalous: 00000001_001.png',
    )
    contrary = next(sample for sample in dataset.samples if sample.path.stem == "00000001_001")
    assert (contrary.label, contrary.defect, contrary.split) == (ANOMALOUS, "Mass", "test")


@pytest.mark.parametrize("name", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"])
@pytest.mark.parametrize("sex", ["Patient Gender", "Patient Sex"])
def test_the_official_tree(tmp_path: Path, name: str, sex: str) -> None:
    chest(tmp_path)
    (tmp_path / "labels.csv").unlink()
    rows = [
        f"{file},{found},0,1,58,{'MF'[int(file[7]) % 2]},PA,2682,2749,0.143,0.143,"
        for file, found in FINDINGS.items()
    ]
    table(
        tmp_path / name,
        ENTRIES.format(sex=sex),
        [*rows, "00000009_000.png,Mass,0,9,3,,PA,1,1,1,1,"],
    )
    place(tmp_path / "images_012" / "images" / "00000009_000.png")
    for number, path in enumerate(sorted((tmp_path / "images").iterdir()), start=1):
        place(tmp_path / f"images_{1 + number % 2:03d}" / "images" / path.name)
        path.unlink()
    (tmp_path / "train_val_list.txt").write_text(
        "00000002_000.png\n00000002_001.png\n00000006_000.png\n00000099_000.png"
    )
    (tmp_path / "test_list.txt").write_text("00000003_000.png\r\n00000008_000.png\r\n\r\n")
    dataset = read(tmp_path)
    assert sorted(splits(dataset, NORMAL)["train"]) == ["00000002_000", "00000002_001"]
    assert splits(dataset, NORMAL)["test"] == ["00000003_000"]
    assert sorted(splits(dataset, ANOMALOUS)["test"]) == [
        "00000005_007",
        "00000006_000",
        "00000007_000",
    ]
    assert sorted(splits(dataset, ANOMALOUS)[""]) == ["00000008_000", "00000009_000"]
    assert dataset.description.endswith(
        "boxes; split by the official lists; 2 anomalous pictures without boxes in neither; 8 female, 6 male"
    )
    assert dataset.problems[0].startswith("7 normal pictures in neither list, not used: ")
    assert {sample.path.stem: sample.group for sample in dataset.test()} == {
        "00000003_000": "female",
        "00000005_007": "female",
        "00000006_000": "male",
        "00000007_000": "female",
    }
    assert (
        next(sample for sample in dataset.samples if sample.path.stem == "00000009_000").group == ""
    )


def test_official_lists_that_share_a_patient_or_a_picture(tmp_path: Path) -> None:
    chest(tmp_path)
    names = [name for name, finding in FINDINGS.items() if finding == NONE]
    (tmp_path / "train_val_list.txt").write_text("\n".join(names[1:]))
    (tmp_path / "test_list.txt").write_text(names[0])
    assert problems(read(tmp_path)) == (
        # the one by a normal, one by a box
        "2 patients with pictures in both train and test: 00000001, 00000005",
    )
    (tmp_path / "test_list.txt").write_text(names[1])
    with pytest.raises(DataError, match=r"share 1 picture: 00000001_001\.png"):
        read(tmp_path)
    (tmp_path / "train_val_list.txt").write_text("\n")
    assert "no normal picture here is for training" in read(tmp_path).problems


def test_a_part_of_the_official_set_is_read_with_what_is_missing_as_problems(
    tmp_path: Path,
) -> None:
    chest(tmp_path)
    for name in ("00000001_000.png", "00000006_000.png"):
        (tmp_path / "images" / name).unlink()
    place(tmp_path / "images" / "stray.png")
    place(tmp_path / "images_001" / "00000002_000.png")
    table(
        tmp_path / "Data_Entry_2017.csv",
        LABELS,
        [f"{name},{finding}" for name, finding in FINDINGS.items()],
    )
    table(tmp_path / "BBox_List_2017.csv", BOXES, [*BOXED, "00000099_000.png,Mass,1,2,3,4"])
    dataset = read(tmp_path)
    assert len(dataset.samples) == 12
    assert problems(dataset) == (
        "not read beside Data_Entry_2017.csv: labels.csv",
        f"1 picture ignored, others have the name: {tmp_path / 'images_001' / '00000002_000.png'}",
        "2 pictures of Data_Entry_2017.csv not in the folders of pictures: 00000001_000.png, 00000006_000.png",
        "1 picture that Data_Entry_2017.csv does not name ignored: stray.png",
        "1 picture with boxes that Data_Entry_2017.csv does not name: 00000099_000.png",
    )
    for name in ("00000005_007.png", "00000007_000.png"):
        (tmp_path / "images" / name).unlink()
    assert (
        problems(read(tmp_path))[-1]
        == "no picture with a box is here, so that the test has no anomalous one"
    )


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            ["labels.csv"],
            r"no table of labels beside it \(Data_Entry_2017_v2020\.csv, .*labels\.csv\)",
        ),
        (["BBox_List_2017.csv"], r"there is no BBox_List_2017\.csv"),
        (["test_list.txt"], r"there is no test_list\.txt"),
        (["train_val_list.txt"], r"there is no train_val_list\.txt"),
        (["images"], r"there is no images/ or images_001/"),
        (
            [f"images/{name}" for name in FINDINGS],
            r"holds none of the 14 pictures that labels\.csv names",
        ),
    ],
)
def test_a_missing_piece_is_named(tmp_path: Path, missing: list[str], message: str) -> None:
    chest(tmp_path)
    for name in ("train_val_list.txt", "test_list.txt"):
        (tmp_path / name).touch()
    for name in missing:
        path = tmp_path / name
        if path.is_dir():
            path.rename(tmp_path / "elsewhere")
        else:
            path.unlink()
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_rows_that_cannot_be_used_are_listed_together(tmp_path: Path) -> None:
    chest(tmp_path)
    rows = ["a.png,Mass", "a.png,No Finding", "b.png,|", "c.png,No Finding|Mass", ",Mass", "d.png"]
    table(tmp_path / "labels.csv", LABELS, rows)
    with pytest.raises(DataError, match=r"labels\.csv: 5 rows cannot be used:") as caught:
        read(tmp_path)
    words = [
        "line 3: a.png is there",
        "line 4: b.png has no",
        "line 5: c.png has",
        "line 6: names no",
        "line 7: d.png",
    ]
    assert all(
        word in line for word, line in zip(words, str(caught.value).split("\n  ")[1:], strict=True)
    )

    chest(tmp_path)
    sides = [
        "1,2,3",
        "1,2,3,x",
        "1,2,0,4",
        "1,2,3,-4",
        "1024,2,3,4",
        "1,-9,3,4",
        "nan,2,3,4",
        "1,2,inf,4",
        "1,2,3,4",
    ]
    table(
        tmp_path / "BBox_List_2017.csv",
        BOXES,
        [*(f"00000007_000.png,Mass,{four}" for four in sides), ",Mass,1,2,3,4"],
    )
    with pytest.raises(DataError, match=r"BBox_List_2017\.csv: 9 rows cannot be used:") as caught:
        read(tmp_path)
    assert [line.split(":")[0] for line in str(caught.value).split("\n  ")[1:]] == [
        f"line {number}" for number in (2, 3, 4, 5, 6, 7, 8, 9, 11)
    ]


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        (
            "Data_Entry_2017.csv",
            "Image Index,Findings",
            "Image Index, Finding Labels; it has image index, findings",
        ),
        ("Data_Entry_2017.csv", "", "it has none"),
        ("BBox_List_2017.csv", "x,y,w,h", r"must be Image Index,Finding Label,Bbox"),
    ],
)
def test_tables_with_other_columns(tmp_path: Path, name: str, header: str, message: str) -> None:
    chest(tmp_path)
    table(tmp_path / name, header, [])
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert name in str(caught.value)


def test_another_table_of_labels_makes_no_chest(tmp_path: Path) -> None:
    table(tmp_path / "labels.csv", "file,class", ["a.png,1"])
    assert not is_nih(tmp_path)
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00")
    assert not is_nih(tmp_path)
    place(tmp_path / "images" / "a.png")
    assert read(tmp_path).layout == "flat"
    assert is_nih(chest(tmp_path))


def test_check_counts_boxes_and_groups_and_a_manifest_keeps_the_groups(tmp_path: Path) -> None:
    chest(tmp_path)
    rows = [
        f"{name},{finding},{'M' if finding == NONE else 'F'}" for name, finding in FINDINGS.items()
    ]
    table(tmp_path / "labels.csv", f"{LABELS},Patient Gender", rows)
    found = check(tmp_path)
    assert (found.to_dict()["boxes"], found.counts["group"]) == (4, {"female": 4, "male": 10})
    samples = found.dataset.samples
    again = read(write_table(tmp_path / "set.csv", samples)).samples
    assert [(sample.path, sample.split, sample.group) for sample in again] == [
        (sample.path, sample.split, sample.group) for sample in samples
    ]
    assert not any(sample.boxes for sample in again)
