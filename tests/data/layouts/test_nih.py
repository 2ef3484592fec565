"""The NIH ChestX-ray14 layout, on generated trees of the shape of the official one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from trees import lay_out

from blemish.data.checking import check
from blemish.data.layouts import Dataset, differences, read
from blemish.data.layouts.nih import is_nih
from blemish.data.tables import write_table
from blemish.errors import DataError
from blemish.types import ANOMALOUS, NORMAL

LABELS = "Image Index,Finding Labels"
ENTRIES = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,{sex},View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
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


def table(path: Path, header: str, rows: Iterable[str]) -> Path:
    """As the official ones: lines end in CR LF, the last one too."""
    path.write_bytes("".join(f"{row}\r\n" for row in (header, *rows)).encode())
    return path


def chest(root: Path, findings: Mapping[str, str] = FINDINGS, boxed: Sequence[str] = BOXED) -> Path:
    """A tree of empty pictures with labels.csv and the boxes."""
    lay_out(root, *(f"images/{name}" for name in findings))
    table(root / "labels.csv", LABELS, map(",".join, findings.items()))
    table(root / "BBox_List_2017.csv", BOXES, boxed)
    return root


def problems(dataset: Dataset) -> tuple[str, ...]:
    """Those of the layout, without how few pictures there are."""
    return tuple(problem for problem in dataset.problems if problem not in differences(dataset))


def splits(dataset: Dataset, label: int) -> dict[str, set[str]]:
    return {
        split: {s.path.stem for s in dataset.samples if (s.label, s.split) == (label, split)}
        for split in ("train", "test", "")
    }


def test_a_part_of_the_set_with_a_table_of_its_own(tmp_path: Path) -> None:
    dataset = read(chest(tmp_path))
    assert dataset.layout == "nih"
    assert dataset.description == (
        "NIH ChestX-ray14 layout: 8 train good, 5 test (2 good, 3 in 3 defect types), "
        "1 picture (1 in 1 defect type), boxes; without the official lists train has the normals "
        "of the first patients, at most 80 % of all normals and none of a patient with a box; "
        "1 anomalous picture without boxes in neither"
    )
    assert problems(dataset) == ()
    assert dataset.problems[0] == "NIH ChestX-ray14: 8 of 50500 training pictures"
    assert [s.path for s in dataset.samples] == sorted(
        tmp_path / "images" / name for name in FINDINGS
    )
    assert {(s.category, s.group, s.mask) for s in dataset.samples} == {("", "", None)}
    assert {sample.path.stem: sample.defect for sample in dataset.anomalies()} == {
        "00000005_007": "Mass",
        "00000006_000": "Effusion+Infiltrate",
        "00000007_000": "Pneumonia",
        "00000008_000": "Hernia+Nodule",
    }
    assert {sample.defect for sample in dataset.normals()} == {"good"}
    assert splits(dataset, NORMAL) == {
        "train": {f"0000000{patient}_00{number}" for patient in range(1, 5) for number in range(2)},
        "test": {"00000005_000", "00000005_001"},
        "": set(),
    }
    boxed = {"00000005_007", "00000006_000", "00000007_000"}
    assert splits(dataset, ANOMALOUS) == {"train": set(), "test": boxed, "": {"00000008_000"}}
    # fractions of the 1024 pixels that they were drawn in
    boxes = {sample.path.stem: sample.boxes for sample in dataset.samples}
    assert boxes["00000006_000"] == ((0.5, 0.25, 0.125, 0.0625), (0, 0, 1, 1))
    assert boxes["00000005_007"] == ((1 / 1024, 2 / 1024, 3 / 1024, 4 / 1024),)


@pytest.mark.parametrize(("second", "third"), [(4, 1), (3, 2)])
def test_patients_are_taken_while_they_have_no_more_than_four_fifths(
    tmp_path: Path, second: int, third: int
) -> None:
    """Of 10 the second patient's would be the 9th, or the 8th; nobody is divided or passed over."""
    of = {1: 5, 2: second, 3: third}
    normal = {f"{patient}_{i}.png": NONE for patient, many in of.items() for i in range(many)}
    boxed = ["4_0.png,Mass,1,2,3,4"]
    dataset = read(chest(tmp_path, {**normal, "4_0.png": "Mass"}, boxed))
    train = {sample.path.name for sample in dataset.train()}
    assert train == {name for name in normal if name[0] == "1" or (name[0] == "2" and second == 3)}


def test_a_patient_with_a_box_trains_nothing(tmp_path: Path) -> None:
    boxed = ["00000008_000.png,Nodule,1,2,3,4", "00000001_001.png,Mass,1,2,3,4"]
    dataset = read(chest(tmp_path, boxed=boxed))
    assert {s.path.stem[:8] for s in dataset.train()} == {"00000002", "00000003", "00000004"}
    assert problems(dataset) == (
        '1 picture of "No Finding" with boxes taken as anomalous: 00000001_001.png',
    )
    contrary = next(sample for sample in dataset.samples if sample.path.stem == "00000001_001")
    assert (contrary.label, contrary.defect, contrary.split) == (ANOMALOUS, "Mass", "test")


@pytest.mark.parametrize(
    ("name", "sex"),
    [("Data_Entry_2017.csv", "Patient Gender"), ("Data_Entry_2017_v2020.csv", "Patient Sex")],
)
def test_the_official_tree(tmp_path: Path, name: str, sex: str) -> None:
    chest(tmp_path)
    (tmp_path / "labels.csv").unlink()
    rows = [
        f"{file},{found},0,1,58,{'MF'[int(file[7]) % 2]},PA,2682,2749,0.143,0.143,"
        for file, found in FINDINGS.items()
    ]
    rows.append("00000009_000.png,Mass,0,9,3,,PA,1,1,1,1,")
    table(tmp_path / name, ENTRIES.format(sex=sex), rows)
    lay_out(tmp_path, "images_012/images/00000009_000.png", "images_001/images/a", "images_002/a")
    for number, path in enumerate(sorted((tmp_path / "images").iterdir()), start=1):
        path.rename(tmp_path / f"images_{1 + number % 2:03d}" / path.name)
    (tmp_path / "train_val_list.txt").write_text(
        "00000002_000.png\n00000002_001.png\n00000006_000.png\n00000099_000.png"
    )
    (tmp_path / "test_list.txt").write_text("00000003_000.png\r\n00000008_000.png\r\n\r\n")
    dataset = read(tmp_path)
    normal, anomalous = splits(dataset, NORMAL), splits(dataset, ANOMALOUS)
    assert normal["train"] == {"00000002_000", "00000002_001"}
    assert normal["test"] == {"00000003_000"}
    assert anomalous["test"] == {"00000005_007", "00000006_000", "00000007_000"}
    assert anomalous[""] == {"00000008_000", "00000009_000"}
    assert dataset.description.endswith(
        "boxes; split by the official lists; 2 anomalous pictures without boxes in neither; "
        "8 female, 6 male"
    )
    assert dataset.problems[0].startswith("7 normal pictures in neither list, not used: ")
    groups = {sample.path.stem: sample.group for sample in dataset.samples}
    assert [groups[f"0000000{each}"] for each in ("3_000", "6_000", "9_000")] == [
        *("female", "male", "")
    ]


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
    lay_out(tmp_path, "images/stray.png", "images_001/00000002_000.png")
    table(tmp_path / "Data_Entry_2017.csv", LABELS, map(",".join, FINDINGS.items()))
    table(tmp_path / "BBox_List_2017.csv", BOXES, [*BOXED, "00000099_000.png,Mass,1,2,3,4"])
    dataset = read(tmp_path)
    assert len(dataset.samples) == 12
    assert problems(dataset) == (
        "not read beside Data_Entry_2017.csv: labels.csv",
        f"1 picture ignored, others have the name: {tmp_path / 'images_001' / '00000002_000.png'}",
        "2 pictures of Data_Entry_2017.csv not in the folders of pictures: 00000001_000.png, "
        "00000006_000.png",
        "1 picture that Data_Entry_2017.csv does not name ignored: stray.png",
        "1 picture with boxes that Data_Entry_2017.csv does not name: 00000099_000.png",
    )
    for name in ("00000005_007.png", "00000007_000.png"):
        (tmp_path / "images" / name).unlink()
    assert problems(read(tmp_path))[-1].startswith(
        "no picture with a box is here, so that the test"
    )


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            "labels.csv",
            r"no table of labels beside it \(Data_Entry_2017_v2020\.csv, .*labels\.csv\)",
        ),
        ("BBox_List_2017.csv", r"there is no BBox_List_2017\.csv"),
        ("test_list.txt", r"there is no test_list\.txt"),
        ("train_val_list.txt", r"there is no train_val_list\.txt"),
        ("images", r"there is no images/ or images_001/"),
        ("images/*", r"holds none of the 14 pictures that labels\.csv names"),
    ],
)
def test_a_missing_piece_is_named(tmp_path: Path, missing: str, message: str) -> None:
    lay_out(chest(tmp_path), "train_val_list.txt", "test_list.txt", "elsewhere/x")
    for path in list(tmp_path.glob(missing)):
        path.rename(tmp_path / "elsewhere" / path.name)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_rows_that_cannot_be_used_are_listed_together(tmp_path: Path) -> None:
    chest(tmp_path)
    rows = ["a.png,Mass", "a.png,No Finding", "b.png,|", "c.png,No Finding|Mass", ",Mass", "d.png"]
    table(tmp_path / "labels.csv", LABELS, rows)
    with pytest.raises(DataError, match=r"labels\.csv: 5 rows cannot be used:") as caught:
        read(tmp_path)
    words = ["3: a.png is there", "4: b.png has no", "5: c.png has", "6: names no", "7: d.png"]
    lines = str(caught.value).split("\n  ")[1:]
    assert all(line.startswith(f"line {word}") for word, line in zip(words, lines, strict=True))

    chest(tmp_path)
    sides = "1,2,3|1,2,3,x|1,2,0,4|1,2,3,-4|1024,2,3,4|1,-9,3,4|nan,2,3,4|1,2,inf,4|1,2,3,4"
    boxes = [f"00000007_000.png,Mass,{four}" for four in sides.split("|")]
    table(tmp_path / "BBox_List_2017.csv", BOXES, [*boxes, ",Mass,1,2,3,4"])
    with pytest.raises(DataError, match=r"BBox_List_2017\.csv: 9 rows cannot be used:") as caught:
        read(tmp_path)
    assert [line.split(":")[0] for line in str(caught.value).split("\n  ")[1:]] == [
        f"line {number}" for number in (2, 3, 4, 5, 6, 7, 8, 9, 11)
    ]


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        ("Data_Entry_2017.csv", "Image Index,Findings", "Finding Labels; it has image index, fin"),
        ("Data_Entry_2017.csv", "", "it has none"),
        ("BBox_List_2017.csv", "x,y,w,h", r"must be Image Index,Finding Label,Bbox"),
    ],
)
def test_tables_with_other_columns(tmp_path: Path, name: str, header: str, message: str) -> None:
    table(chest(tmp_path) / name, header, [])
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert name in str(caught.value)


def test_another_table_of_labels_makes_no_chest(tmp_path: Path) -> None:
    table(tmp_path / "labels.csv", "file,class", ["a.png,1"])
    assert not is_nih(tmp_path)
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00")
    assert not is_nih(tmp_path)
    lay_out(tmp_path, "images/a.png")
    assert read(tmp_path).layout == "flat"
    assert is_nih(chest(tmp_path))


def test_check_counts_boxes_and_groups_and_a_manifest_keeps_the_groups(tmp_path: Path) -> None:
    chest(tmp_path)
    rows = [f"{name},{each},{'M' if each == NONE else 'F'}" for name, each in FINDINGS.items()]
    table(tmp_path / "labels.csv", f"{LABELS},Patient Gender", rows)
    found = check(tmp_path)
    assert (found.to_dict()["boxes"], found.counts["group"]) == (4, {"female": 4, "male": 10})
    again = read(write_table(tmp_path / "set.csv", found.dataset.samples)).samples
    assert again == tuple(replace(sample, boxes=()) for sample in found.dataset.samples)
