"""NIH ChestX-ray14: X-rays with their findings in a table, and boxes around those of a few.

Wang et al. 2017, "ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks on
Weakly-Supervised Classification and Localization of Common Thorax Diseases" (CVPR). Normal
pictures are those of "No Finding". The test localises: it has the pictures with boxes and normal
ones; other pictures with findings belong to no split.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from blemish.data.dataset import Found
from blemish.data.folder import is_file, is_folder, scan
from blemish.data.layouts.base import Official, counted, need, told
from blemish.data.tables import first_line, parse_rows, read_records, read_rows, read_text
from blemish.errors import DataError
from blemish.text import listed, pluralize
from blemish.types import ANOMALOUS, GOOD, NORMAL, Sample

TITLE = "NIH ChestX-ray14"
OFFICIAL_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
OWN_TABLE = "labels.csv"  # of the same columns, for a part of the set
BOXES = "BBox_List_2017.csv"
TRAIN_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
SIDE = 1024  # in pixels, of the pictures that the boxes were drawn in, whatever the size of these
TRAIN_PERCENT = 80  # of the normals at most, where there are no official lists
_PICTURE, _FINDINGS, _FINDING = "Image Index", "Finding Labels", "Finding Label"
_SEX = ("patient gender", "patient sex")  # the one in 2017, the other in later copies
_GROUPS = {"M": "male", "F": "female"}
_NO_FINDING = "No Finding"

_Box = tuple[float, float, float, float]


def is_nih(folder: Path) -> bool:
    """Whether the folder has one of the official tables, or a labels.csv with their columns."""
    if any(is_file(folder / name) for name in (*OFFICIAL_TABLES, BOXES)):
        return True
    header = first_line(folder / OWN_TABLE)
    return _PICTURE.lower() in header and _FINDINGS.lower() in header


def read_nih(root: Path) -> Found:
    """The samples of a folder for which `is_nih` says so.

    With train_val_list.txt and test_list.txt train has the normals of the one, and test those of
    the other and every picture with a box. Without them patients are taken in the order of their
    numbers (the file's name up to the "_") as long as they have no more than `TRAIN_PERCENT` % of
    the normals; train has theirs, test the other normals and every picture with a box. Patients
    who have a box anywhere are not taken, so that nobody is in both.

    Raises: DataError for a piece that is missing, or for rows of a table that cannot be used.
    """
    tables = [path for name in (*OFFICIAL_TABLES, OWN_TABLE) if is_file(path := root / name)]
    if not tables:
        names = ", ".join((*OFFICIAL_TABLES, OWN_TABLE))
        raise DataError(f"{root}: holds {BOXES}, but no table of labels beside it ({names})")
    table, *unread = tables
    by_lists = any(is_file(root / name) for name in (TRAIN_LIST, TEST_LIST))
    for name in (BOXES, TRAIN_LIST, TEST_LIST) if by_lists else (BOXES,):
        need(root, name, TITLE)
    found = Found()
    if unread:
        found.problems.append(
            f"not read beside {table.name}: {listed(path.name for path in unread)}"
        )
    labels = _read_labels(table)
    boxes = _read_boxes(root / BOXES)
    pictures = _pictures(root, found)
    present = labels.keys() & pictures.keys()
    if not present:
        number = pluralize(len(labels), "picture")
        raise DataError(
            f"{root}: images/ or images_001/images/ … holds none of the {number} that "
            f"{table.name} names; put them there under those names"
        )
    normal = {name for name, sample in labels.items() if sample.label == NORMAL}
    strays = {
        f"of {table.name} not in the folders of pictures": labels.keys() - set(pictures),
        f"that {table.name} does not name ignored": set(pictures) - labels.keys(),
        f"with boxes that {table.name} does not name": set(boxes) - labels.keys(),
        f'of "{_NO_FINDING}" with boxes taken as anomalous': normal & set(boxes) & set(pictures),
    }
    found.problems += told({how: sorted(names) for how, names in strays.items()})
    samples = [
        _boxed(replace(labels[name], path=pictures[name]), boxes.get(name, ())) for name in present
    ]
    samples.sort(key=lambda sample: sample.path)
    found.samples = _divided(root if by_lists else None, samples, found)
    if not any(sample.split == "train" for sample in found.samples):
        found.problems.append("no normal picture here is for training")
    if not any(sample.boxes for sample in samples):
        found.problems.append(
            "no picture with a box is here, so that the test has no anomalous one"
        )
    if bare := sum(sample.label == ANOMALOUS and not sample.boxes for sample in samples):
        found.notes.append(f"{pluralize(bare, 'anomalous picture')} without boxes in neither")
    if groups := Counter(sample.group for sample in samples if sample.group):
        each = (f"{number} {group}" for group, number in sorted(groups.items()))
        found.notes.append(", ".join(each))
    return found


def _pictures(root: Path, found: Found) -> dict[str, Path]:
    """The pictures by file name."""
    folders = [
        path for path in (root / "images", *sorted(root.glob("images_*"))) if is_folder(path)
    ]
    if not folders:
        raise DataError(
            f"{root}: read as {TITLE}, but there is no images/ or images_001/ with its pictures"
        )
    paths = [picture for folder in folders for picture in scan(folder).pictures]
    pictures: dict[str, Path] = {}
    again = [path for path in paths if pictures.setdefault(path.name, path) is not path]
    found.problems += told({"ignored, others have the name": again})
    return pictures


def _read_labels(table: Path) -> dict[str, Sample]:
    """File name -> what the table says of it."""
    labels: dict[str, Sample] = {}

    def parse(_: int, row: dict[str, str]) -> None:
        name = row[_PICTURE.lower()]
        each = {finding.strip() for finding in row[_FINDINGS.lower()].split("|")} - {""}
        if not name:
            raise ValueError("names no picture")
        if name in labels:
            raise ValueError(f"{name} is there already")
        if not each:
            raise ValueError(f'{name} has no finding; that of a normal picture is "{_NO_FINDING}"')
        if _NO_FINDING in each and len(each) > 1:
            raise ValueError(f'{name} has "{_NO_FINDING}" and a finding')
        sex = next((row[column] for column in _SEX if column in row), "")
        good = each == {_NO_FINDING}
        labels[name] = Sample(
            path=Path(name),
            label=NORMAL if good else ANOMALOUS,
            defect=GOOD if good else "+".join(sorted(each)),
            group=_GROUPS.get(sex.upper(), ""),
        )

    parse_rows(table, read_records(table, (_PICTURE, _FINDINGS)), parse)
    return labels


def _read_boxes(table: Path) -> dict[str, list[tuple[str, _Box]]]:
    """File name -> (finding, box as fractions of the picture's sides), for each of its rows."""
    rows = read_rows(table)
    columns = [cell.lower() for cell in next(rows, (1, []))[1]]
    if columns[:2] != [_PICTURE.lower(), _FINDING.lower()]:
        raise DataError(f"{table}: the first line must be Image Index,Finding Label,Bbox [x,y,w,h]")
    boxes: dict[str, list[tuple[str, _Box]]] = defaultdict(list)

    def parse(_: int, cells: list[str]) -> None:
        try:
            name, finding, *sides = cells[:6]
            x, y, width, height = map(float, sides)
        except ValueError:
            raise ValueError(
                "is not a file name, a finding and the four numbers of a box"
            ) from None
        if not name or not finding:
            raise ValueError("has no file name or no finding")
        meets = width > 0 < height and x < SIDE and y < SIDE and x + width > 0 < y + height
        if not meets or not all(map(math.isfinite, (x, y, width, height))):
            raise ValueError(
                f"the box {x:g}, {y:g}, {width:g}, {height:g} lies in no {SIDE}×{SIDE} picture"
            )
        boxes[name].append((finding, (x / SIDE, y / SIDE, width / SIDE, height / SIDE)))

    parse_rows(table, rows, parse)
    return boxes


def _boxed(sample: Sample, boxes: Sequence[tuple[str, _Box]]) -> Sample:
    """The sample with its boxes, whose findings go before those of the table."""
    if not boxes:
        return sample
    findings = "+".join(sorted({finding for finding, _ in boxes}))
    return replace(sample, label=ANOMALOUS, defect=findings, boxes=tuple(box for _, box in boxes))


def _divided(root: Path | None, samples: Sequence[Sample], found: Found) -> list[Sample]:
    """The samples with their splits: by the lists in `root`, or by patient.

    Of those with a finding the test has the ones with boxes.
    """
    if root is not None:
        named = _read_lists(root)
        found.notes.append("split by the official lists")
    else:
        train = _first_patients(samples)
        named = {s.path.name: "train" if _patient(s) in train else "test" for s in samples}
        found.notes.append(
            f"without the official lists train has the normals of the first patients, at most "
            f"{TRAIN_PERCENT} % of all normals and none of a patient with a box"
        )
    split = [
        replace(
            sample,
            split=named.get(sample.path.name, "")
            if sample.label == NORMAL
            else "test" * bool(sample.boxes),
        )
        for sample in samples
    ]
    if root is not None:
        strays = [s.path.name for s in split if s.label == NORMAL and not s.split]
        learned, tested = (
            {_patient(s) for s in split if s.split == side} for side in ("train", "test")
        )
        found.problems += told({"in neither list, not used": strays}, "normal picture")
        both = {"with pictures in both train and test": sorted(learned & tested)}
        found.problems += told(both, "patient")
    return split


def _first_patients(samples: Sequence[Sample]) -> Collection[str]:
    """Those in the order of their numbers who have no more than so many % of the normals."""
    boxed = {_patient(sample) for sample in samples if sample.boxes}
    normals = Counter(_patient(sample) for sample in samples if sample.label == NORMAL)
    train: set[str] = set()
    taken = 0
    for patient in sorted(normals.keys() - boxed):
        taken += normals[patient]
        if 100 * taken > TRAIN_PERCENT * normals.total():
            break
        train.add(patient)
    return train


def _read_lists(root: Path) -> Mapping[str, str]:
    """File name -> split."""
    train, test = (
        set(map(str.strip, read_text(root / name).splitlines())) - {""}
        for name in (TRAIN_LIST, TEST_LIST)
    )
    if both := sorted(train & test):
        number = pluralize(len(both), "picture")
        raise DataError(f"{root}: {TRAIN_LIST} and {TEST_LIST} share {number}: {listed(both)}")
    return {**dict.fromkeys(train, "train"), **dict.fromkeys(test, "test")}


def _patient(sample: Sample) -> str:
    return sample.path.name.partition("_")[0]


NIH = Official(
    name="nih",
    title=TITLE,
    reference="Wang, Peng, Lu, Lu, Bagheri, Summers 2017",
    source="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    licence="free use; name the NIH Clinical Center, link to the source, cite the paper",
    tree="""\
FOLDER/images/*.png (or FOLDER/images_001/images/*.png and so on)
FOLDER/Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv)
FOLDER/BBox_List_2017.csv
FOLDER/train_val_list.txt
FOLDER/test_list.txt""",
    folders=("nih", "nih_chest_xray", "nih_chest_xrays", "chestxray14", "chestxray_nihcc"),
    # Of 60,361 pictures of "No Finding" 50,500 are in the one list and 9,861 in the other; 880 of
    # the test have boxes.
    categories=counted("nih 50500 9861 880"),
    split=(
        'The authors\', by lists: "No Finding" of the one trains, that of the other and all boxes '
        "are the test."
    ),
    fits=is_nih,
    read=read_nih,
)
