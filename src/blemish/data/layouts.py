"""A folder or a table -> labelled samples: which layout it is, what is in it, and what is wrong with it.

`TREES` shows the layouts. `read` lists the pictures and `check` also decodes them.
"""

from __future__ import annotations

import csv
import io
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blemish.data.folder import SUFFIXES, is_file, is_folder, scan
from blemish.data.official import OFFICIAL, READERS, differences, reader_of
from blemish.data.phrases import counted, listed
from blemish.data.tables import read_rows, refuse
from blemish.errors import DataError, ImageError
from blemish.files import write_whole
from blemish.images import decode, decode_mask
from blemish.types import ANOMALOUS, GOOD, NORMAL, Failure, Sample

TREES = """\
    mvtec               FOLDER/train/good/*   FOLDER/test/good/*   FOLDER/test/<defect>/*
                        masks: FOLDER/ground_truth/<defect>/<stem>_mask.png (or <stem>.png)
    mvtec-root          FOLDER/<category>/ in the layout above, once or more
    good-and-defects    FOLDER/good/**   FOLDER/<defect>/**   masks: FOLDER/ground_truth/<defect>/** as above
    nih                 FOLDER/images/* (or images_001/images/* …)   FOLDER/BBox_List_2017.csv
                        FOLDER/Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv, or labels.csv with those columns)
                        the splits: FOLDER/train_val_list.txt   FOLDER/test_list.txt (both or neither)
    visa                FOLDER/Data/Images/{Normal,Anomaly}/*   FOLDER/Data/Masks/Anomaly/*
                        the splits: FOLDER/../split_csv/1cls.csv   or all in FOLDER/<category>/ and FOLDER/split_csv/
    mvtec3d             FOLDER/train/good/rgb/*   FOLDER/test/good/rgb/*   FOLDER/test/<defect>/{rgb,gt}/*
                        or FOLDER/<category>/ of these
    head_ct             FOLDER/labels.csv with the columns id, hemorrhage   FOLDER/head_ct/head_ct/000.png …
    brain_mri           FOLDER/no/*   FOLDER/yes/*, where FOLDER is called brain_mri, or there is FOLDER/yes/Y1.jpg
    elpv                FOLDER/labels.csv   FOLDER/images/*
    kolektor_sdd        FOLDER/kos01/Part0.jpg   FOLDER/kos01/Part0_label.bmp …
    magnetic_tile       FOLDER/MT_Free/Imgs/*.jpg   FOLDER/MT_<Defect>/Imgs/*.jpg, masks beside them as .png
    flat                FOLDER/**, all of them good
    manifest            TABLE.csv with the columns path and, where known, label, mask, split, category, defect, group

    ok/ and normal/ stand for good/ too; upper or lower case makes no difference."""
GOOD_NAMES = frozenset({"good", "ok", "normal"})
MASKS = "ground_truth"
# A folder of this name says that what lies around it is not simply a heap of good pictures.
TELLING_NAMES = frozenset(
    {"train", "test", MASKS, "bad", "nok", "ng", "defect", "defects", "defective", "anomalous", "yes", "no"}
)
TABLES = frozenset({".csv", ".tsv"})
COLUMNS = ("path", "label", "mask", "split", "category", "defect", "group")
SPLITS = ("train", "test", "")
LABELS: Mapping[str, int | None] = {
    "": None,
    **dict.fromkeys(["0", "0.0", "normal", "good", "ok"], NORMAL),  # a table with gaps turns 0 and 1 into 0.0 and 1.0
    **dict.fromkeys(["1", "1.0", "anomalous", "bad", "defective", "nok"], ANOMALOUS),
}
LABEL_NAMES: Mapping[int | None, str] = {NORMAL: "normal", ANOMALOUS: "anomalous", None: "unknown"}

Names = tuple[str, ...]  # of folders, and last of the file, from the layout's root down
Entry = tuple[Names, Path]  # a picture: its names, and the whole path


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Pictures and what is known about them.

    Attributes:
        root: the folder or file that was read.
        layout: one of those in `TREES`.
        description: one sentence for the user: what was recognised and how many of what there are.
        samples: in path order; those of a manifest in its order.
        problems: what a person should look at, one sentence each; nothing here keeps the data from being used.
    """

    root: Path
    layout: str
    description: str
    samples: tuple[Sample, ...] = field(repr=False)
    problems: tuple[str, ...] = ()

    def train(self) -> tuple[Sample, ...]:
        """The samples that the data set itself gives to training; none where it has no splits."""
        return tuple(sample for sample in self.samples if sample.split == "train")

    def test(self) -> tuple[Sample, ...]:
        """The samples that the data set itself gives to the test; none where it has no splits."""
        return tuple(sample for sample in self.samples if sample.split == "test")

    def normals(self) -> tuple[Sample, ...]:
        """The samples labelled normal, of every split."""
        return tuple(sample for sample in self.samples if sample.label == NORMAL)

    def anomalies(self) -> tuple[Sample, ...]:
        """The samples labelled anomalous, of every split."""
        return tuple(sample for sample in self.samples if sample.label == ANOMALOUS)

    @property
    def categories(self) -> tuple[str, ...]:
        """The names of the categories, sorted; empty where the data set names none."""
        return tuple(sorted({sample.category for sample in self.samples} - {""}))

    @property
    def has_masks(self) -> bool:
        """Whether any sample has a mask."""
        return any(sample.mask is not None for sample in self.samples)


def read(path: str | Path) -> Dataset:
    """The data set at `path`, its layout recognised: the most specific one that fits.

    `path` is a folder, a table (.csv or .tsv) or one picture. Pictures are listed, not decoded: see `check`. Where a
    public set is recognised, its problems say what differs from the official counts.

    Raises: DataError when there is nothing at `path`, no picture in it, no telling which are good, for a piece of a
        layout that is missing, or for rows of a table that cannot be used (listed together with their line numbers);
        ImageError for a mask that must be looked at (KolektorSDD) and cannot be decoded.
    """
    dataset = _read(Path(path))
    return replace(dataset, problems=(*dataset.problems, *differences(dataset)))


def _read(root: Path) -> Dataset:
    if is_file(root):
        return _read_manifest(root) if root.suffix.lower() in TABLES else _flat(root, [root])
    if not is_folder(root):
        raise DataError(f"{root}: no such file or folder")
    if name := reader_of(root):
        held = READERS[name].read(root)
        title = f"{OFFICIAL[name].title} layout"
        return _dataset(root, name, title, list(held.samples), list(held.problems), held.notes)
    tree = scan(root)
    if not tree.pictures:
        raise DataError(f"{root}: no pictures found; files with these suffixes are looked for: {SUFFIXES}")
    entries = [(picture.relative_to(root).parts, picture) for picture in tree.pictures]
    folders = [folder.relative_to(root).parts for folder in tree.folders]
    problems = _ignored(tree.others)
    top = {names[0].lower() for names in folders}

    if _is_mvtec(folders):
        samples, found = _read_labelled(entries, folders, _place_mvtec, category=root.resolve().name)
        return _dataset(root, "mvtec", "MVTec layout", samples, problems + found)
    if top & {"train", "test"}:
        raise _unclear(root, "train/ or test/ without a good/ in it")
    if top & GOOD_NAMES:
        samples, found = _read_labelled(entries, folders, _place_beside)
        return _dataset(root, "good-and-defects", "good/ beside defect folders", samples, problems + found)
    if categories := sorted(name for name in {names[0] for names in folders} if _is_mvtec(_below(name, folders))):
        samples, found = _read_categories(entries, folders, categories)
        title = f"MVTec layout in {counted(len(categories), 'category', 'categories')}"
        return _dataset(root, "mvtec-root", title, samples, problems + found)
    for names in folders:
        if names[-1].lower() in TELLING_NAMES or _has_siblings(names, folders):
            raise _unclear(root, f"{'/'.join(names)}/ says that not every picture is a good one")
    return _flat(root, tree.pictures, problems)


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a data set holds and what is wrong with it, with every picture and mask decoded.

    Attributes:
        dataset: as it was recognised.
        sizes: (H, W) in pixels -> number of pictures, the most frequent first; broken ones are in none.
        broken: pictures that cannot be decoded.
        mask_faults: masks that cannot be decoded, differ in size from their picture, are empty for an anomalous
            picture or mark something in a normal one.
        duplicates: groups of pictures with the same pixels, except:
        leaks: groups of pictures with the same pixels in both train and test: what was trained on would be tested on.
    """

    dataset: Dataset
    sizes: Mapping[tuple[int, int], int]
    broken: tuple[Failure, ...] = ()
    mask_faults: tuple[Failure, ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    leaks: tuple[tuple[str, ...], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is broken, faulty or leaked. Duplicates and the data set's problems are only for notice."""
        return not (self.broken or self.mask_faults or self.leaks)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Pictures by "split", "label", "defect", "category", "group"; "" is what the data set does not say."""
        samples = self.dataset.samples
        return {
            "split": _tally(sample.split for sample in samples),
            "label": _tally(LABEL_NAMES[sample.label] for sample in samples),
            "defect": _tally(sample.defect for sample in samples),
            "category": _tally(sample.category for sample in samples),
            "group": _tally(sample.group for sample in samples),
        }

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready document."""
        heights = [height for (height, _), number in self.sizes.items() for _ in range(number)]
        widths = [width for (_, width), number in self.sizes.items() for _ in range(number)]
        return {
            "path": str(self.dataset.root),
            "layout": self.dataset.layout,
            "description": self.dataset.description,
            "ok": self.ok,
            "pictures": len(self.dataset.samples),
            "masks": sum(sample.mask is not None for sample in self.dataset.samples),
            "boxes": sum(len(sample.boxes) for sample in self.dataset.samples),
            "counts": self.counts,
            "height": _range(heights),
            "width": _range(widths),
            "sizes": [{"height": h, "width": w, "count": number} for (h, w), number in self.sizes.items()],
            "broken": [failure.to_dict() for failure in self.broken],
            "mask_faults": [failure.to_dict() for failure in self.mask_faults],
            "duplicates": [list(group) for group in self.duplicates],
            "leaks": [list(group) for group in self.leaks],
            "problems": list(self.dataset.problems),
        }


def check(path: str | Path, *, progress: Callable[[int, int], None] | None = None) -> Check:
    """The data set at `path` with every picture and mask decoded. `progress` is called with (done, of).

    Raises: DataError as `read`; MissingExtraError when a picture needs a decoder that is not installed.
    """
    dataset = read(path)
    sizes: Counter[tuple[int, int]] = Counter()
    broken: list[Failure] = []
    mask_faults: list[Failure] = []
    twins: dict[str, list[Sample]] = {}
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="check")
    try:
        for done, (sample, look) in enumerate(zip(dataset.samples, pool.map(_look, dataset.samples), strict=True), 1):
            if look.fault:
                broken.append(Failure(source=str(sample.path), reason=look.fault))
            else:
                sizes[look.size] += 1
                twins.setdefault(look.digest, []).append(sample)
            if look.mask_fault:
                mask_faults.append(Failure(source=str(sample.mask), reason=look.mask_fault))
            if progress:
                progress(done, len(dataset.samples))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C nothing more is decoded
    duplicates: list[tuple[str, ...]] = []
    leaks: list[tuple[str, ...]] = []
    for group in twins.values():
        if len(group) > 1:
            leaked = {"train", "test"} <= {sample.split for sample in group}
            (leaks if leaked else duplicates).append(tuple(str(sample.path) for sample in group))
    return Check(
        dataset=dataset,
        sizes=dict(sizes.most_common()),
        broken=tuple(broken),
        mask_faults=tuple(mask_faults),
        duplicates=tuple(duplicates),
        leaks=tuple(leaks),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What decoding one sample showed; without a fault there are a size and a digest."""

    size: tuple[int, int] = (0, 0)
    digest: str = ""
    fault: str = ""
    mask_fault: str = ""


def _look(sample: Sample) -> _Look:
    try:
        picture = decode(sample.path)
    except ImageError as error:
        return _Look(fault=error.reason)
    mask_fault = "" if sample.mask is None else _mask_fault(sample.mask, sample.label, picture.size)
    return _Look(size=picture.size, digest=picture.digest, mask_fault=mask_fault)


def _mask_fault(path: Path, label: int | None, size: tuple[int, int]) -> str:
    try:
        mask = decode_mask(path)
    except ImageError as error:
        return error.reason
    height, width = mask.shape
    if (height, width) != size:
        return f"is {height}×{width} pixels, its picture {size[0]}×{size[1]}"
    if label == ANOMALOUS and not mask.any():
        return "is empty, but its picture is anomalous"
    if label == NORMAL and mask.any():
        return "marks something, but its picture is normal"
    return ""


def _tally(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _range(lengths: list[int]) -> dict[str, float] | None:
    """Minimum, median and maximum; None where no picture could be decoded."""
    if not lengths:
        return None
    return {"min": min(lengths), "median": statistics.median(lengths), "max": max(lengths)}


def write_manifest(path: str | Path, samples: Iterable[Sample]) -> Path:
    """A manifest table of the samples at `path`, in their order; an existing file is replaced at once or not at all.

    Paths are written as they are in the samples: relative ones are later read from the table's folder. Boxes are not
    written: a row has no place for any number of them.

    Raises: OutputError when it cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for sample in samples:
        label = "" if sample.label is None else sample.label
        known = [sample.split, sample.category, sample.defect, sample.group]
        table.writerow([sample.path, label, sample.mask or "", *known])
    return write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _is_mvtec(folders: Iterable[Names]) -> bool:
    """Whether there is train/good, or a test/good without any train/."""
    pairs = {(names[0].lower(), names[1].lower()) for names in folders if len(names) == 2}
    splits = {split for split, name in pairs if name in GOOD_NAMES}
    return "train" in splits or ("test" in splits and all(split != "train" for split, _ in pairs))


def _below(name: str, folders: Iterable[Names]) -> list[Names]:
    return [names[1:] for names in folders if names[0] == name and len(names) > 1]


def _has_siblings(names: Names, folders: Iterable[Names]) -> bool:
    """Whether this is a good/ with other folders beside it."""
    beside = (other[-1].lower() for other in folders if other[:-1] == names[:-1])
    return names[-1].lower() in GOOD_NAMES and any(name not in GOOD_NAMES for name in beside)


def _flat(root: Path, pictures: Iterable[Path], problems: Iterable[str] = ()) -> Dataset:
    samples = tuple(Sample(path=picture, label=NORMAL, defect=GOOD) for picture in pictures)
    description = f"flat layout: {counted(len(samples), 'picture')}, all taken as good"
    return Dataset(root=root, layout="flat", description=description, samples=samples, problems=tuple(problems))


def _place_mvtec(names: Names) -> tuple[str, Names] | None:
    """(split, names from good/ or the defect folder down) of a picture in the MVTec layout; None if it is outside."""
    match tuple(name.lower() for name in names):
        case ("test", _, _):
            return "test", names[1:]
        case ("train", good, _) if good in GOOD_NAMES:
            return "train", names[1:]
    return None


def _place_beside(names: Names) -> tuple[str, Names] | None:
    """The same for good/ beside defect folders, which have no splits and are read to any depth."""
    return ("", names) if len(names) > 1 else None


def _read_labelled(
    entries: Iterable[Entry],
    folders: Iterable[Names],
    place: Callable[[Names], tuple[str, Names] | None],
    category: str = "",
) -> tuple[list[Sample], list[str]]:
    """Samples with their labels by folder and their masks, and the problems met."""
    placed: list[tuple[Names, Sample]] = []
    masks: dict[Names, Path] = {}
    strays: list[Path] = []
    filled: set[Names] = set()
    for names, path in entries:
        filled.update(names[:depth] for depth in range(1, len(names)))
        if names[0].lower() == MASKS:
            masks[(*names[1:-1], path.stem)] = path
        elif (found := place(names)) is None:
            strays.append(path)
        else:
            split, inside = found
            good = inside[0].lower() in GOOD_NAMES
            label, defect = (NORMAL, GOOD) if good else (ANOMALOUS, inside[0])
            sample = Sample(path=path, label=label, split=split, category=category, defect=defect)
            placed.append(((*inside[:-1], path.stem), sample))

    problems: list[str] = []
    for names in folders:
        found = place((*names, "picture"))
        if found and len(found[1]) == 2 and names[0].lower() != MASKS and names not in filled:
            problems.append(f"{'/'.join(names)}/ holds no pictures")
    if strays:
        problems.append(f"{counted(len(strays), 'picture')} outside of the layout's folders ignored: {listed(strays)}")

    samples: list[Sample] = []
    for key, sample in placed:
        mask = None
        if sample.label == ANOMALOUS:  # a normal picture's mask is all zero and needs no file
            mask = masks.pop((*key[:-1], f"{key[-1]}_mask"), None) or masks.pop(key, None)
        samples.append(replace(sample, mask=mask))
    unused = [mask for key, mask in masks.items() if key[0].lower() not in GOOD_NAMES]
    if unused:
        problems.append(f"{counted(len(unused), 'mask')} without a picture: {listed(unused)}")
    return samples, problems


def _read_categories(
    entries: Iterable[Entry], folders: Iterable[Names], categories: Iterable[str]
) -> tuple[list[Sample], list[str]]:
    inside: dict[str, list[Entry]] = {category: [] for category in categories}
    strays: list[Path] = []
    for names, path in entries:
        if names[0] in inside:
            inside[names[0]].append((names[1:], path))
        else:
            strays.append(path)
    samples: list[Sample] = []
    problems: list[str] = []
    for category, below in inside.items():
        more, found = _read_labelled(below, _below(category, folders), _place_mvtec, category)
        samples += more
        problems += [f"{category}: {problem}" for problem in found]
    if strays:
        problems.append(f"{counted(len(strays), 'picture')} outside of the MVTec folders ignored: {listed(strays)}")
    return samples, problems


def _read_manifest(path: Path) -> Dataset:
    rows = read_rows(path)
    columns = [cell.lower() for cell in next(rows, (1, []))[1]]
    if "path" not in columns or len(set(columns)) < len(columns):
        named = ", ".join(columns) or "nothing"
        raise DataError(f"{path}: the first line must name a column path, and no column twice; it has {named}")
    samples: list[Sample] = []
    faults: list[str] = []
    lines: dict[Path, int] = {}  # picture -> the line that names it
    for line, cells in rows:
        try:
            sample = _read_row(columns, cells, path.parent)
            if sample.path in lines:
                raise ValueError(f"{sample.path} is listed already on line {lines[sample.path]}")
        except ValueError as error:
            faults.append(f"line {line}: {error}")
        else:
            lines[sample.path] = line
            samples.append(sample)
    refuse(path, faults)
    unknown = sorted(set(columns) - set(COLUMNS) - {""})
    problems = [f"columns not known and not read: {', '.join(unknown)}"] if unknown else []
    return _dataset(path, "manifest", "manifest", samples, problems)


def _read_row(columns: list[str], cells: list[str], folder: Path) -> Sample:
    """The sample of one row. Raises ValueError that says what is wrong with it."""
    if len(cells) > len(columns) and any(cells[len(columns) :]):
        raise ValueError(f"{len(cells)} cells under {len(columns)} columns")
    row = {**dict.fromkeys(COLUMNS, ""), **dict(zip(columns, cells, strict=False))}
    if not row["path"]:
        raise ValueError("the path is empty")
    picture = folder / row["path"]
    mask = folder / row["mask"] if row["mask"] else None
    if not is_file(picture):
        raise ValueError(f"there is no file {picture}")
    if mask and not is_file(mask):
        raise ValueError(f"there is no mask file {mask}")
    if row["label"].lower() not in LABELS:
        raise ValueError(f"label {row['label']!r} is none of {', '.join(filter(None, LABELS))} or empty")
    label = LABELS[row["label"].lower()]
    if row["split"].lower() not in SPLITS:
        raise ValueError(f"split {row['split']!r} is neither train nor test nor empty")
    defect = row["defect"]
    if defect.lower() in GOOD_NAMES or (label == NORMAL and not defect):
        defect = GOOD
    if label is not None and (label == NORMAL) != (defect == GOOD):
        raise ValueError(f"label {row['label']!r} and defect {row['defect']!r} contradict each other")
    return Sample(
        path=picture,
        label=label,
        mask=mask,
        split=row["split"].lower(),
        category=row["category"],
        defect=defect,
        group=row["group"],
    )


def _dataset(
    root: Path, layout: str, title: str, samples: list[Sample], problems: list[str], notes: Iterable[str] = ()
) -> Dataset:
    """The data set with its description; the problems that show in any layout are added."""
    if not samples:
        raise DataError(f"{root}: read as {title}, but it names no picture where that layout has them\n\n{TREES}")
    masked, boxed = any(sample.mask for sample in samples), any(sample.boxes for sample in samples)
    bare = [s.path for s in samples if s.label == ANOMALOUS and s.mask is None and not s.boxes]
    if masked and bare:
        problems = [*problems, f"{counted(len(bare), 'anomalous picture')} without a mask: {listed(bare)}"]
    parts = [_describe([sample for sample in samples if sample.split == split], split) for split in SPLITS]
    places = {"masks": masked, "boxes": boxed, "no masks": bare and not masked and not boxed}
    described = ", ".join([*filter(None, parts), *(name for name, there in places.items() if there)])
    return Dataset(
        root=root,
        layout=layout,
        description="; ".join([f"{title}: {described}", *notes]),
        samples=tuple(samples),
        problems=tuple(problems),
    )


def _describe(samples: list[Sample], split: str) -> str:
    """ "83 test (20 good, 63 in 3 defect types)"; "" where there is no sample."""
    if not samples:
        return ""
    labels = Counter(sample.label for sample in samples)
    kinds = {sample.defect for sample in samples if sample.label == ANOMALOUS} - {""}
    anomalous = (
        f"{labels[ANOMALOUS]} in {counted(len(kinds), 'defect type')}" if kinds else f"{labels[ANOMALOUS]} anomalous"
    )
    words = {NORMAL: f"{labels[NORMAL]} good", ANOMALOUS: anomalous, None: f"{labels[None]} of unknown label"}
    present = [words[label] for label in (NORMAL, ANOMALOUS, None) if labels[label]]
    if set(labels) == {NORMAL}:
        return " ".join(filter(None, [str(len(samples)), split, "good"]))
    total = f"{len(samples)} {split}" if split else counted(len(samples), "picture")
    return f"{total} ({', '.join(present)})"


def _ignored(others: Iterable[Path]) -> list[str]:
    others = list(others)
    problems = [f"{counted(len(others), 'file')} with other suffixes ignored: {listed(others)}"] if others else []
    tables = [path for path in others if path.suffix.lower() in TABLES]
    if tables:
        problems.append(f"a table is read as a manifest only when it is named itself: {listed(tables)}")
    return problems


def _unclear(root: Path, reason: str) -> DataError:
    return DataError(f"{root}: no telling which pictures are good ({reason}). Layouts that can be read:\n\n{TREES}")
