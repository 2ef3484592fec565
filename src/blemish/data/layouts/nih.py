"""The layout of NIH ChestX-ray14: X-rays with their findings in a table, and boxes around the findings of a few.

Wang et al. 2017, "ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks on Weakly-Supervised Classification
and Localization of Common Thorax Diseases" (CVPR). Normal pictures are those of "No Finding". The test localises: it
has the pictures with boxes and normal ones; other pictures with findings belong to no split.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blemish.data.contents import Contents
from blemish.data.folder import is_file, is_folder, scan
from blemish.data.phrases import counted, listed
from blemish.data.tables import first_line, read_rows, read_text, refuse
from blemish.errors import DataError
from blemish.types import ANOMALOUS, GOOD, NORMAL, Sample

OFFICIAL_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
OWN_TABLE = "labels.csv"  # of the same columns, for a part of the set
BOXES = "BBox_List_2017.csv"
TRAIN_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
SIDE = 1024  # of the pictures that the boxes were drawn in, in pixels; whatever the size of the pictures here
TRAIN_PERCENT = 80  # of the normals at most, where there are no official lists
_PICTURE, _FINDINGS, _FINDING = "image index", "finding labels", "finding label"
_SEX = ("patient gender", "patient sex")  # the one in 2017, the other in later copies
_GROUPS = {"M": "male", "F": "female"}
_NO_FINDING = "No Finding"

_Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class _Label:
    findings: tuple[str, ...]
    group: str


def is_nih(folder: Path) -> bool:
    """Whether the folder has one of the official tables, or a labels.csv with their columns."""
    if any(is_file(folder / name) for name in (*OFFICIAL_TABLES, BOXES)):
        return True
    header = first_line(folder / OWN_TABLE)
    return _PICTURE in header and _FINDINGS in header


def read_nih(root: Path) -> Contents:
    """The samples of a folder for which `is_nih` says so; its pictures are listed, not decoded.

    With train_val_list.txt and test_list.txt train has the normals of the one, and test those of the other and every
    picture with a box. Without them patients are taken in the order of their numbers (the file's name up to the "_") as
    long as they have no more than `TRAIN_PERCENT` % of the normals; train has theirs, test the other normals and every
    picture with a box. Patients who have a box anywhere are not taken, so that nobody is in both.

    Raises: DataError for a piece that is missing, or for rows of a table that cannot be used (listed together).
    """
    table, *unread = _tables(root)
    listed_splits = any(is_file(root / name) for name in (TRAIN_LIST, TEST_LIST))
    for name in (BOXES, TRAIN_LIST, TEST_LIST) if listed_splits else (BOXES,):
        if not is_file(root / name):
            raise DataError(
                f"{root}: read as NIH ChestX-ray14, but there is no {name}; copy it here from that set"
            )
    problems = (
        [f"not read beside {table.name}: {listed(path.name for path in unread)}"] if unread else []
    )
    labels = _read_labels(table)
    boxes = _read_boxes(root / BOXES)
    pictures, found = _pictures(root)
    problems += found

    present = labels.keys() & pictures.keys()
    if not present:
        where = (
            f"images/ or images_001/images/ … holds none of the {counted(len(labels), 'picture')}"
        )
        raise DataError(
            f"{root}: {where} that {table.name} names; put them there under those names"
        )
    problems += _mismatches(table, labels, boxes, pictures)

    samples = [_sample(pictures[name], labels[name], boxes.get(name, [])) for name in present]
    samples.sort(key=lambda sample: sample.path)
    if listed_splits:
        samples, found = _split_by_lists(root, samples)
        problems += found
        notes = ["split by the official lists"]
    else:
        samples = _split_by_patient(samples)
        notes = [
            f"without the official lists train has the normals of the first patients, at most {TRAIN_PERCENT} % of all "
            "normals and none of a patient with a box"
        ]
    if not any(sample.split == "train" for sample in samples):
        problems.append("no normal picture here is for training")
    if not any(sample.boxes for sample in samples):
        problems.append("no picture with a box is here, so that the test has no anomalous one")
    bare = sum(sample.label == ANOMALOUS and not sample.boxes for sample in samples)
    if bare:
        notes.append(f"{counted(bare, 'anomalous picture')} without boxes in neither")
    if groups := Counter(sample.group for sample in samples if sample.group):
        notes.append(", ".join(f"{number} {group}" for group, number in sorted(groups.items())))
    return Contents(samples=tuple(samples), notes=tuple(notes), problems=tuple(problems))


def _tables(root: Path) -> list[Path]:
    """The tables of labels that are here, the one to read first. Raises: DataError where there is none."""
    names = (*OFFICIAL_TABLES, OWN_TABLE)
    tables = [root / name for name in names if is_file(root / name)]
    if not tables:
        raise DataError(
            f"{root}: holds {BOXES}, but no table of labels beside it ({', '.join(names)})"
        )
    return tables


def _pictures(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The pictures by file name, and the problems met."""
    folders = [
        folder for folder in (root / "images", *sorted(root.glob("images_*"))) if is_folder(folder)
    ]
    if not folders:
        raise DataError(
            f"{root}: read as NIH ChestX-ray14, but there is no images/ or images_001/ with its pictures"
        )
    pictures: dict[str, Path] = {}
    again: list[Path] = []
    for path in (picture for folder in folders for picture in scan(folder).pictures):
        if pictures.setdefault(path.name, path) is not path:
            again.append(path)
    problems = (
        [f"{counted(len(again), 'picture')} ignored, others have the name: {listed(again)}"]
        if again
        else []
    )
    return pictures, problems


def _mismatches(
    table: Path, labels: Mapping[str, _Label], boxes: Collection[str], pictures: Collection[str]
) -> list[str]:
    """A problem for each way in which tables and pictures do not go together."""
    normal = {name for name, label in labels.items() if label.findings == (_NO_FINDING,)}
    strays = {
        f"of {table.name} not in the folders of pictures": labels.keys() - set(pictures),
        f"that {table.name} does not name ignored": set(pictures) - labels.keys(),
        f"with boxes that {table.name} does not name": set(boxes) - labels.keys(),
        f'of "{_NO_FINDING}" with boxes taken as anomalous': normal & set(boxes) & set(pictures),
    }
    return [
        f"{counted(len(names), 'picture')} {what}: {listed(sorted(names))}"
        for what, names in strays.items()
        if names
    ]


def _read_labels(table: Path) -> dict[str, _Label]:
    rows = read_rows(table)
    columns = [cell.lower() for cell in next(rows, (1, []))[1]]
    if _PICTURE not in columns or _FINDINGS not in columns:
        raise DataError(
            f"{table}: the first line must name the columns Image Index and Finding Labels; it has "
            f"{', '.join(filter(None, columns)) or 'none'}"
        )
    labels: dict[str, _Label] = {}
    faults: list[str] = []
    for line, cells in rows:
        row = dict(zip(columns, cells, strict=False))
        name = row.get(_PICTURE, "")
        findings = tuple(
            sorted({finding.strip() for finding in row.get(_FINDINGS, "").split("|")} - {""})
        )
        if not name:
            faults.append(f"line {line}: names no picture")
        elif name in labels:
            faults.append(f"line {line}: {name} is there already")
        elif not findings:
            faults.append(
                f'line {line}: {name} has no finding; that of a normal picture is "{_NO_FINDING}"'
            )
        elif _NO_FINDING in findings and len(findings) > 1:
            faults.append(f'line {line}: {name} has "{_NO_FINDING}" and a finding')
        else:
            sex = next((row[column] for column in _SEX if column in row), "")
            labels[name] = _Label(findings, _GROUPS.get(sex.upper(), ""))
    refuse(table, faults)
    return labels


def _read_boxes(table: Path) -> dict[str, list[tuple[str, _Box]]]:
    """File name -> (finding, box as fractions of the picture's sides), for each of its rows."""
    rows = read_rows(table)
    columns = [cell.lower() for cell in next(rows, (1, []))[1]]
    if columns[:2] != [_PICTURE, _FINDING]:
        raise DataError(f"{table}: the first line must be Image Index,Finding Label,Bbox [x,y,w,h]")
    boxes: dict[str, list[tuple[str, _Box]]] = {}
    faults: list[str] = []
    for line, cells in rows:
        try:
            name, finding, *sides = cells[:6]
            x, y, width, height = map(float, sides)
        except ValueError:
            faults.append(
                f"line {line}: is not a file name, a finding and the four numbers of a box"
            )
            continue
        meets = (
            width > 0 and height > 0 and x < SIDE and y < SIDE and x + width > 0 and y + height > 0
        )
        if not name or not finding:
            faults.append(f"line {line}: has no file name or no finding")
        elif not meets or not all(map(math.isfinite, (x, y, width, height))):
            faults.append(
                f"line {line}: the box {x:g}, {y:g}, {width:g}, {height:g} lies in no {SIDE}×{SIDE} picture"
            )
        else:
            boxes.setdefault(name, []).append(
                (finding, (x / SIDE, y / SIDE, width / SIDE, height / SIDE))
            )
    refuse(table, faults)
    return boxes


def _sample(path: Path, label: _Label, boxes: Sequence[tuple[str, _Box]]) -> Sample:
    if label.findings == (_NO_FINDING,) and not boxes:
        return Sample(path=path, label=NORMAL, defect=GOOD, group=label.group)
    findings = sorted({finding for finding, _ in boxes}) or label.findings
    return Sample(
        path=path,
        label=ANOMALOUS,
        defect="+".join(findings),
        group=label.group,
        boxes=tuple(box for _, box in boxes),
    )


def _split_by_patient(samples: Sequence[Sample]) -> list[Sample]:
    boxed = {_patient(sample) for sample in samples if sample.boxes}
    normals = Counter(_patient(sample) for sample in samples if sample.label == NORMAL)
    train: set[str] = set()
    taken = 0
    for patient in sorted(normals.keys() - boxed):
        taken += normals[patient]
        if 100 * taken > TRAIN_PERCENT * normals.total():
            break
        train.add(patient)
    return _split(samples, lambda sample: "train" if _patient(sample) in train else "test")


def _split_by_lists(root: Path, samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    train, test = (
        set(map(str.strip, read_text(root / name).splitlines())) - {""}
        for name in (TRAIN_LIST, TEST_LIST)
    )
    if both := sorted(train & test):
        raise DataError(
            f"{root}: {TRAIN_LIST} and {TEST_LIST} share {counted(len(both), 'picture')}: {listed(both)}"
        )
    named = {**dict.fromkeys(train, "train"), **dict.fromkeys(test, "test")}
    split = _split(samples, lambda sample: named.get(sample.path.name, ""))
    problems: list[str] = []
    if strays := [
        sample.path.name for sample in split if sample.label == NORMAL and not sample.split
    ]:
        problems.append(
            f"{counted(len(strays), 'normal picture')} in neither list, not used: {listed(strays)}"
        )
    learned, tested = (
        {_patient(sample) for sample in split if sample.split == side} for side in ("train", "test")
    )
    if leaks := sorted(learned & tested):
        problems.append(
            f"{counted(len(leaks), 'patient')} with pictures in both train and test: {listed(leaks)}"
        )
    return split, problems


def _split(samples: Sequence[Sample], of_normal: Callable[[Sample], str]) -> list[Sample]:
    """The samples with their splits: of a normal what is said of it, of an anomalous one test if it has boxes."""

    def side(sample: Sample) -> str:
        if sample.label == NORMAL:
            return of_normal(sample)
        return "test" if sample.boxes else ""

    return [replace(sample, split=side(sample)) for sample in samples]


def _patient(sample: Sample) -> str:
    return sample.path.name.partition("_")[0]
