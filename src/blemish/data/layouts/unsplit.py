"""Data sets of one category that come without a split: Head-CT, Brain-MRI, ELPV, KolektorSDD, magnetic tile.

All defects are for the test, and a share of the normal pictures, drawn by seed 0 from the sorted list: the protocol of
DevNet and DRA (Pang et al. 2021, Ding et al. 2022), and of PatchCore (Roth et al. 2022) for the magnetic tiles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from blemish.data.contents import Contents
from blemish.data.folder import is_file, is_folder, scan
from blemish.data.phrases import counted, listed
from blemish.data.splits import hold_out
from blemish.data.tables import first_line, read_rows, read_text, refuse
from blemish.errors import DataError
from blemish.images import decode_mask
from blemish.types import ANOMALOUS, GOOD, NORMAL, Sample

TEST_FRACTION = 0.25  # of the normal pictures
TILE_TEST_FRACTION = 0.2
SEED = 0
TABLE = "labels.csv"  # of Head-CT and of ELPV


def is_head_ct(folder: Path) -> bool:
    """Whether there is the table of Head-CT, or its first picture in a folder of that name."""
    if {"id", "hemorrhage"} <= set(re.findall(r"\w+", first_line(folder / TABLE))):
        return True
    return _is_called(folder, "headct", "headcthemorrhage") and 0 in _slices(folder)


def read_head_ct(folder: Path) -> Contents:
    """The slices of Head-CT, with a hemorrhage and without. Raises: DataError without its table, or for rows of it."""
    table = _needed(folder / TABLE, "Head-CT")
    rows = read_rows(table)
    columns = [cell.lower() for cell in next(rows, (1, []))[1]]
    if not {"id", "hemorrhage"} <= set(columns):
        raise DataError(
            f"{table}: the first line must name the columns id and hemorrhage; get the table again"
        )
    pictures = _slices(folder)
    samples: list[Sample] = []
    seen: set[int] = set()
    absent: list[str] = []
    faults: list[str] = []
    for line, cells in rows:
        row = dict(zip(columns, cells, strict=False))
        number, label = row.get("id", ""), row.get("hemorrhage")
        if not number.isdecimal() or label not in ("0", "1"):
            faults.append(f"line {line}: is not the number of a picture, and 0 or 1")
            continue
        if int(number) in seen:
            faults.append(f"line {line}: {int(number):03d}.png is there already")
        elif int(number) in pictures:
            samples.append(_sample(pictures[int(number)], "" if label == "0" else "hemorrhage"))
        else:
            absent.append(f"{int(number):03d}.png")
        seen.add(int(number))
    refuse(table, faults)
    return _divided(samples, TEST_FRACTION, _absent(table, absent))


def _slices(folder: Path) -> dict[int, Path]:
    """Number -> picture, in the first place that has some: other sets may lie in the same folder."""
    for place in (folder / "head_ct/head_ct", folder / "head_ct", folder):
        if found := {
            int(path.stem): path for path in sorted(place.glob("*.png")) if path.stem.isdecimal()
        }:
            return found
    return {}


def is_brain_mri(folder: Path) -> bool:
    """Whether there is a yes/ or a no/ in a folder of its name, or a yes/ with the set's first picture.

    Other people's yes/ may hold the good ones.
    """
    return bool(_yes_and_no(folder))


def read_brain_mri(folder: Path) -> Contents:
    """The slices of Brain-MRI, with a tumour (yes/) and without (no/). Raises: DataError where either is missing."""
    found = _yes_and_no(folder)
    for name in ("no", "yes"):
        if name not in found:
            raise DataError(
                f"{folder}: read as Brain-MRI (yes/ and no/), but there is no {name}/; copy it here"
            )
    places = ((found["no"], ""), (found["yes"], "tumour"))
    samples = [
        _sample(picture, defect) for place, defect in places for picture in scan(place).pictures
    ]
    return _divided(samples, TEST_FRACTION)


def _yes_and_no(folder: Path) -> dict[str, Path]:
    """The folders of these names that are there, of which the archive has a second copy below."""
    called = ("brainmri", "braintumordataset", "brainmriimagesforbraintumordetection")
    for place in (folder, folder / "brain_tumor_dataset"):
        found = {name: place / name for name in ("yes", "no") if is_folder(place / name)}
        if found and (_is_called(place, *called) or is_file(place / "yes/Y1.jpg")):
            return found
    return {}


def is_elpv(folder: Path) -> bool:
    """Whether there is the table of ELPV, or its pictures in a folder of that name."""
    place = _elpv_place(folder)
    words = first_line(place / TABLE).split()
    if len(words) == 3 and words[0].startswith("images/"):
        return True
    return _is_called(folder, "elpv", "elpvdataset") and is_folder(place / "images")


def read_elpv(folder: Path) -> Contents:
    """The certain cells of ELPV in a checkout of it. Raises: DataError without its table, or for a strange one."""
    place = _elpv_place(folder)
    cells = elpv_cells(_needed(place / TABLE, "ELPV").parent)
    absent = [cell.path.name for cell in cells if not is_file(cell.path)]
    here = [cell for cell in cells if is_file(cell.path)]
    return _divided(here, TEST_FRACTION, _absent(place / TABLE, absent))


def elpv_cells(folder: Path) -> list[Sample]:
    """The cells of ELPV of probability 0 (normal) and 1 (defective), without a split; none of those between.

    Raises: DataError when labels.csv (path, probability and kind of cell, between white space) is not as expected.
    """
    table = folder / TABLE
    cells: list[Sample] = []
    try:
        for line in read_text(table).splitlines():
            name, probability, _ = line.split()
            if (certain := float(probability)) in (0, 1):
                cells.append(
                    replace(
                        _sample(folder / name, "defective" if certain else ""), category="solar"
                    )
                )
    except (DataError, ValueError) as error:
        reason = f"cannot be read as ELPV's labels ({error})"
        raise DataError(
            f"{table}: {reason}; get the table again, or reinstall elpv-dataset"
        ) from error
    return cells


def _elpv_place(folder: Path) -> Path:
    """Where its table and its images/ lie: here, or deeper in later checkouts."""
    places = [
        folder,
        *(folder / inner for inner in ("data", "elpv_dataset/data", "src/elpv_dataset/data")),
    ]
    return next(
        (place for place in places if is_file(place / TABLE) or is_folder(place / "images")), folder
    )


def is_kolektor_sdd(folder: Path) -> bool:
    """Whether there are folders kos01, kos02, … with pictures Part0, Part1, …"""
    return any(any(item.glob("Part*")) for item in _items(folder))


def read_kolektor_sdd(folder: Path) -> Contents:
    """The surfaces of KolektorSDD: anomalous are those whose mask marks something, so that every mask is decoded.

    Raises: DataError for masks that are missing; ImageError for one that cannot be decoded.
    """
    pairs: list[tuple[Path, Path]] = []
    bare: list[Path] = []
    for item in _items(folder):
        pictures = scan(item).pictures
        masks = {
            path.stem.removesuffix("_label"): path
            for path in pictures
            if path.stem.endswith("_label")
        }
        for picture in pictures:
            if picture.stem in masks:
                pairs.append((picture, masks[picture.stem]))
            elif not picture.stem.endswith("_label"):
                bare.append(picture)
    if bare:
        missing = f"{counted(len(bare), 'picture')} without the mask <stem>_label.bmp beside it: {listed(bare)}"
        raise DataError(
            f"{folder}: read as KolektorSDD, but {missing}; copy the masks from that set"
        )
    with ThreadPoolExecutor(thread_name_prefix="kolektor") as pool:
        marked = list(pool.map(lambda pair: bool(decode_mask(pair[1]).any()), pairs))
    samples = [
        replace(_sample(picture, "defect"), mask=mask) if defective else _sample(picture, "")
        for (picture, mask), defective in zip(pairs, marked, strict=True)
    ]
    return _divided(samples, TEST_FRACTION)


def _items(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.glob("kos*"))
        if re.fullmatch(r"kos\d+", path.name) and is_folder(path)
    ]


def is_magnetic_tile(folder: Path) -> bool:
    """Whether there are folders MT_Free, MT_Break, … with an Imgs/ in them."""
    return is_folder(folder / "MT_Free") or any(folder.glob("MT_*/Imgs"))


def read_magnetic_tile(folder: Path) -> Contents:
    """The magnetic tiles: pictures in .jpg, each with its mask of the same name in .png beside it.

    Raises: DataError for a folder without pictures or, of defects, without masks.
    """
    samples: list[Sample] = []
    for place in dict.fromkeys(
        [folder / "MT_Free", *filter(is_folder, sorted(folder.glob("MT_*")))]
    ):
        defect = "" if place.name == "MT_Free" else place.name.removeprefix("MT_").lower()
        pictures = scan(place / "Imgs").pictures if is_folder(place / "Imgs") else ()
        held = [
            _sample(path, defect) for path in pictures if path.suffix.lower() in (".jpg", ".jpeg")
        ]
        masks = {path.stem: path for path in pictures if path.suffix.lower() == ".png"}
        if not held or (defect and not masks):
            what = "masks (.png)" if held else "pictures (.jpg)"
            raise DataError(
                f"{folder}: read as magnetic tiles, but {place.name}/Imgs/ has no {what}; copy them there"
            )
        samples += [replace(one, mask=masks.get(one.path.stem)) if defect else one for one in held]
    return _divided(samples, TILE_TEST_FRACTION)


def _sample(path: Path, defect: str) -> Sample:
    return Sample(path=path, label=ANOMALOUS if defect else NORMAL, defect=defect or GOOD)


def _divided(samples: Iterable[Sample], fraction: float, problems: Sequence[str] = ()) -> Contents:
    """The samples with their splits: of the normals `fraction`, the half rounded up, is for the test."""
    samples = list(samples)
    normals = [sample for sample in samples if sample.label == NORMAL]
    count = int(fraction * len(normals) + 0.5)
    train, _ = hold_out(normals, count / max(len(normals), 1), SEED)
    learned = set(train)
    divided = [
        replace(sample, split="train" if sample in learned else "test") for sample in samples
    ]
    return Contents(
        samples=tuple(sorted(divided, key=lambda sample: sample.path)),
        notes=(
            f"no official split: {100 * fraction:g} % of the good pictures, drawn by seed {SEED}, are for the test",
        ),
        problems=tuple(problems),
    )


def _needed(path: Path, title: str) -> Path:
    """The path itself. Raises: DataError when there is no such file."""
    if not is_file(path):
        raise DataError(
            f"{path.parent}: read as {title}, but there is no {path.name}; copy it here from that set"
        )
    return path


def _absent(table: Path, names: Sequence[str]) -> list[str]:
    return (
        [f"{counted(len(names), 'picture')} that {table.name} names not here: {listed(names)}"]
        if names
        else []
    )


def _is_called(folder: Path, *names: str) -> bool:
    return re.sub(r"[\W_]", "", folder.resolve().name.lower()) in names
