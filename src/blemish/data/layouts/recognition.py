"""A folder or a table -> labelled samples: which layout it is, and what is in it.

`TREES` shows the layouts. `read` lists the pictures; `blemish.data.checking` also decodes them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from blemish.data.folder import Tree, is_file, is_folder, no_pictures, scan
from blemish.data.layouts.official import OFFICIAL, READERS, differences, reader_of
from blemish.data.manifest import SPLITS, TABLES, read_manifest
from blemish.data.masks import Divided, Entry, MaskPlace, Names, divide, pair
from blemish.data.names import (
    file_says_bad,
    is_binary,
    is_label,
    is_series,
    may_be_good,
    meaning,
    says_bad,
)
from blemish.data.phrases import counted, listed
from blemish.errors import DataError
from blemish.types import ANOMALOUS, GOOD, NORMAL, Sample

TREES = """\
    mvtec               FOLDER/train/good/**   FOLDER/test/good/**   FOLDER/test/<defect>/**
    mvtec-root          FOLDER/<category>/ in the layout above, once or more
    good-and-defects    FOLDER/good/**   FOLDER/<defect>/**
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
    flat                FOLDER/**, all of them good, where no name of a folder says otherwise
    manifest            TABLE.csv with the columns path and, where known, label, mask, split, category, defect, group

    ok/, normal/, pass/, healthy/ and the like stand for good/ too; upper or lower case makes no difference.
    Masks of the first three: FOLDER/ground_truth/<defect>/<stem>_mask.png (or <stem>.png, or several with a number
    behind). masks/, labels/, gt/ and the like stand for ground_truth/ too, and may lie in the folder of the defect;
    or <stem>_mask.png lies beside <stem>.png."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Pictures and what is known about them.

    Attributes:
        root: the folder or file that was read.
        layout: one of those in `TREES`.
        description: one sentence for the user: what was recognised and how many of what there are.
        samples: in path order; those of a manifest in its order.
        problems: what a person should look at, one sentence each; nothing here keeps the data from
            being used.
        left_out: those of the problems that name pictures, or what one could take for such, that
            are not in it.
        mask_problems: those of the problems that are about masks.
        mask_places: where masks were found, except in the layouts of public sets and tables.
    """

    root: Path
    layout: str
    description: str
    samples: tuple[Sample, ...] = field(repr=False)
    problems: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    mask_problems: tuple[str, ...] = ()
    mask_places: tuple[MaskPlace, ...] = ()

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


def read(path: str | Path, *, unlabelled: int = NORMAL) -> Dataset:
    """The data set at `path`, its layout recognised: the most specific one that fits.

    `path` is a folder, a table (.csv or .tsv) or one picture. Pictures are listed, not decoded
    (except a few of what may be masks): see `blemish.data.checking`. Where a public set is
    recognised, its problems say what differs from the official counts.

    Args:
        unlabelled: NORMAL, or ANOMALOUS where the caller knows it: what the pictures are where no
            name of a folder tells good ones from defective ones.
    Raises: DataError when there is nothing at `path`, no picture in it, no telling which are good,
        for a piece of a layout that is missing, for masks that cannot be told from pictures or from
        each other, or for rows of a table that cannot be used (listed together with their line
        numbers); ImageError for a mask that must be looked at (KolektorSDD) and cannot be decoded.
    """
    dataset = _read(Path(path), unlabelled)
    return replace(dataset, problems=(*dataset.problems, *differences(dataset)))


def _read(root: Path, unlabelled: int) -> Dataset:
    if is_file(root) and root.suffix.lower() in TABLES:
        table = read_manifest(root)
        return _dataset(
            root, "manifest", "manifest", _Found(list(table.samples), problems=list(table.problems))
        )
    if is_file(root):
        return _flat(
            root, Divided(pictures=[((root.name,), root)], masks={}, problems=[]), unlabelled
        )
    if not is_folder(root):
        raise DataError(f"{root}: no such file or folder")
    if name := reader_of(root):
        held = READERS[name].read(root)
        found = _Found(list(held.samples), problems=list(held.problems))
        return _dataset(root, name, f"{OFFICIAL[name].title} layout", found, held.notes)
    tree = scan(root)
    if not tree.pictures:
        raise DataError(no_pictures(root, tree.left_out))
    dataset = _read_tree(root, tree, unlabelled)
    problems = (*_ignored(tree), *tree.left_out, *dataset.problems)
    return replace(dataset, problems=problems, left_out=(*tree.left_out, *dataset.left_out))


def _read_tree(root: Path, tree: Tree, unlabelled: int) -> Dataset:
    entries = [(picture.relative_to(root).parts, picture) for picture in tree.pictures]
    folders = [folder.relative_to(root).parts for folder in tree.folders]
    shown = [_shown(names) for names in folders]
    top = {names[0] for names in shown if names}
    if _is_mvtec(shown):
        found = _read_labelled(root, entries, folders, _place_mvtec, category=root.resolve().name)
        return _dataset(root, "mvtec", "MVTec layout", found)
    if splits := sorted(name for name in top if name.lower() in ("train", "test")):
        inside = sorted({names[1] for names in shown if len(names) > 1 and names[0] in splits})
        there = f"; there is {listed(f'{name}/' for name in inside)}" if inside else ""
        raise _unclear(root, f"train/ or test/ without a good/ in it{there}")
    if any(meaning(name) == "good" for name in top):
        found = _read_labelled(root, entries, folders, _place_beside)
        return _dataset(root, "good-and-defects", "good/ beside defect folders", found)
    if categories := sorted(
        {names[0] for names in folders if _is_mvtec(_below(names[0], folders))}
    ):
        found = _read_categories(root, entries, folders, categories)
        title = f"MVTec layout in {counted(len(categories), 'category', 'categories')}"
        return _dataset(root, "mvtec-root", title, found)
    divided = divide(root, entries)
    if reason := _contradiction(root, divided, unlabelled):
        raise _unclear(root, reason)
    return _flat(root, divided, unlabelled)


@dataclass(frozen=True)
class _Found:
    """Samples, and what there is to say of them; see `Dataset`."""

    samples: list[Sample]
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    mask_problems: list[str] = field(default_factory=list)
    mask_places: list[MaskPlace] = field(default_factory=list)


def _shown(names: Names) -> Names:
    """Folders without those that say only that pictures are in them: good for good/images/."""
    return tuple(name for name in names if meaning(name) != "images")


def _is_mvtec(shown: Iterable[Names]) -> bool:
    """Whether there is train/good, or a test/good without any train/."""
    pairs = {(names[0].lower(), meaning(names[1])) for names in shown if len(names) == 2}
    splits = {split for split, said in pairs if said == "good"}
    return "train" in splits or ("test" in splits and all(split != "train" for split, _ in pairs))


def _below(name: str, folders: Iterable[Names]) -> list[Names]:
    return [_shown(names[1:]) for names in folders if names[0] == name and len(names) > 1]


def _contradiction(root: Path, divided: Divided, unlabelled: int) -> str:
    """Which name says that the pictures are not all of one kind; "" where none does."""
    above = [names[:-1] for names, _ in divided.pictures]
    telling = ["split"] if unlabelled == ANOMALOUS else ["split", "unclear"]
    for place, held in _beside(above):
        said = {name: "" if is_label(name) else meaning(name) for name in held}
        for name, what in said.items():
            bad = unlabelled == NORMAL and not is_label(name) and says_bad(name)
            if (
                bad
                or what in telling
                or (what == "good" and set(said.values()) - {"good", "images"})
            ):
                reason = "says that not every picture is a good one; call the folder of the good ones good/"
                if place and "good" in said.values():
                    reason = f"is beside others, but not at the top; name {'/'.join(place)}/ itself"
                elif what == "unclear":
                    reason = "may be the good ones or the others; call them good/ and bad/"
                return f"{'/'.join((*place, name))}/ {reason}"
    if unlabelled == ANOMALOUS:
        return ""
    called_good = meaning(root.resolve().name) == "good"
    unsaid = (
        []
        if called_good
        else [e for e in divided.pictures if not any(meaning(n) == "good" for n in e[0][:-1])]
    )
    for _, held in _beside(names[:-1] for names, _ in unsaid):
        own = [name for name in held if is_label(name) or not meaning(name)]
        if len(own) > 1 and (is_binary(own) or not is_series(own)):
            kinds = "good ones and others" if is_binary(own) else "kinds of defects"
            return (
                f"{listed(f'{name}/' for name in own)} beside each other may be {kinds}; where all pictures are good, "
                f'name them by a pattern, in quotes, as in "{_pattern(root, unsaid)}", or move the folders into one '
                "called good/; where these are categories, name each folder; else call that of the good ones good/"
            )
    defective = [path for names, path in unsaid if file_says_bad(Path(names[-1]).stem)]
    if 0 < len(defective) < len(unsaid):
        which = (
            f"{counted(len(defective), 'picture')} called as defects are beside others that are not"
        )
        return f"{which}: {listed(defective)}; put the good ones into a folder called good/"
    if divided.masks:
        return (
            f"there are masks in {listed(divided.masks)}, so that some pictures show defects; put those, with their "
            "masks, into a folder beside good/"
        )
    return ""


def _pattern(root: Path, entries: Sequence[Entry]) -> Path:
    """A pattern that stands for all of the pictures, as far as they lie equally deep and have one suffix."""
    depths = {len(names) for names, _ in entries}
    suffixes = {path.suffix for _, path in entries}
    folders = ["*"] * (depths.pop() - 1) if len(depths) == 1 else ["**"]
    return root.joinpath(*folders, f"*{suffixes.pop()}" if len(suffixes) == 1 else "*")


def _beside(folders: Iterable[Names]) -> list[tuple[Names, list[str]]]:
    """Each folder with the names of those in it that hold pictures, at any depth."""
    inside: dict[Names, set[str]] = defaultdict(set)
    for names in folders:
        for depth, name in enumerate(names):
            inside[names[:depth]].add(name)
    return [(place, sorted(held)) for place, held in sorted(inside.items())]


def _flat(root: Path, divided: Divided, unlabelled: int) -> Dataset:
    found = _Found([], problems=divided.problems)
    number = counted(len(divided.pictures), "picture")
    if unlabelled == NORMAL:
        samples = [Sample(path=path, label=NORMAL, defect=GOOD) for _, path in divided.pictures]
        called = root.resolve().name
        although = (
            f", although the folder is called {called}"
            if not is_file(root) and says_bad(called)
            else ""
        )
        description = f"flat layout: {number}, all taken as good{although}"
    else:
        above = root.resolve().parts if is_folder(root) else root.resolve().parent.parts
        placed = [
            (names, Sample(path=path, label=ANOMALOUS, defect=_kind((*above, *names[:-1]))))
            for names, path in divided.pictures
        ]
        samples = _with_masks(found, divided, placed)
        masks = ", masks" if any(sample.mask for sample in samples) else ""
        description = f"flat layout: {number}, all taken as defective{masks}"
    return Dataset(
        root=root,
        layout="flat",
        description=description,
        samples=tuple(samples),
        problems=(*found.problems, *found.mask_problems),
        mask_problems=tuple(found.mask_problems),
        mask_places=tuple(found.mask_places),
    )


def _kind(folders: Sequence[str]) -> str:
    """The name of a kind of defect: that of the folder, or of one above it where it says only that images are in it."""
    return next((name for name in reversed(folders) if meaning(name) != "images"), folders[-1])


def _place_mvtec(names: Names) -> tuple[str, Names] | None:
    """(split, names from good/ or the defect folder down) of a picture in the MVTec layout; None if it is outside."""
    shown = (*_shown(names[:-1]), names[-1])
    if len(shown) > 2 and shown[0].lower() in ("train", "test"):
        split = shown[0].lower()
        if split == "test" or meaning(shown[1]) == "good":
            return split, shown[1:]
    return None


def _place_beside(names: Names) -> tuple[str, Names] | None:
    """The same for good/ beside defect folders, which have no splits."""
    shown = (*_shown(names[:-1]), names[-1])
    return ("", shown) if len(shown) > 1 else None


def _read_labelled(
    root: Path,
    entries: Sequence[Entry],
    folders: Iterable[Names],
    place: Callable[[Names], tuple[str, Names] | None],
    category: str = "",
) -> _Found:
    """Samples with their labels by folder and their masks, and the problems met."""
    divided = divide(root, entries)
    found = _Found([], problems=divided.problems)
    filled = {names[:depth] for names, _ in entries for depth in range(1, len(names))}
    for names in folders:
        placed_at = place((*names, "picture"))
        called = {meaning(name) for name in names}
        if (
            placed_at
            and len(placed_at[1]) == 2
            and not called & {"mask", "images"}
            and names not in filled
        ):
            found.problems.append(f"{'/'.join(names)}/ holds no pictures")
    placed: list[tuple[Names, Sample]] = []
    strays: list[Path] = []
    for names, path in divided.pictures:
        at = place(names)
        if at is None:
            strays.append(path)
            continue
        split, inside = at
        said = meaning(inside[0])
        what = ""
        if said == "split":
            what = "is neither good nor a kind of defect; move it away"
        elif said == "good" and any(says_bad(name) and not is_label(name) for name in inside[1:-1]):
            what = "is called good and bad; move it away"
        elif may_be_good(inside[0]):
            what = "may hold good ones or a kind of defect; rename it to good/, or move it away"
        if what:
            raise _unclear(root, f"{'/'.join(names[:-1])}/ {what}")
        label, defect = (NORMAL, GOOD) if said == "good" else (ANOMALOUS, inside[0])
        placed.append(
            (names, Sample(path=path, label=label, split=split, category=category, defect=defect))
        )
    loose = [path for path in strays if path.relative_to(root).parts[0].lower() == "train"]
    if loose and not any(sample.split == "train" for _, sample in placed):
        raise _unclear(
            root,
            f"train/ holds {counted(len(loose), 'picture')}, but no good/; where all are good, move them there",
        )
    if strays:
        found.left_out.append(
            f"{counted(len(strays), 'picture')} outside of the layout's folders ignored: {listed(strays)}"
        )
    return replace(found, samples=_with_masks(found, divided, placed))


def _with_masks(
    found: _Found, divided: Divided, placed: Sequence[tuple[Names, Sample]]
) -> list[Sample]:
    """The samples with their masks; what there is to say of these goes into `found`."""
    masks, places = pair(divided.masks, placed)
    found.mask_places.extend(places)
    if unused := [path for place in places for path in place.unpaired]:
        found.mask_problems.append(
            f"{counted(len(unused), 'mask')} without a picture: {listed(unused)}"
        )
    return [
        replace(sample, mask=own[0], more_masks=own[1:])
        if (own := masks.get(sample.path))
        else sample
        for _, sample in placed
    ]


def _read_categories(
    root: Path, entries: Iterable[Entry], folders: Sequence[Names], categories: Iterable[str]
) -> _Found:
    inside: dict[str, list[Entry]] = {category: [] for category in categories}
    strays: list[Path] = []
    for names, path in entries:
        if names[0] in inside:
            inside[names[0]].append((names[1:], path))
        else:
            strays.append(path)
    found = _Found([])
    for category, below in inside.items():
        own = [names[1:] for names in folders if names[0] == category and len(names) > 1]
        more = _read_labelled(root / category, below, own, _place_mvtec, category)
        found.samples.extend(more.samples)
        for kind in ("problems", "left_out", "mask_problems"):
            getattr(found, kind).extend(f"{category}: {problem}" for problem in getattr(more, kind))
        found.mask_places.extend(
            replace(each, place=f"{category}/{each.place}") for each in more.mask_places
        )
    if strays:
        found.left_out.append(
            f"{counted(len(strays), 'picture')} outside of the MVTec folders ignored: {listed(strays)}"
        )
    return found


def _dataset(
    root: Path, layout: str, title: str, found: _Found, notes: Iterable[str] = ()
) -> Dataset:
    """The data set with its description; the problems that show in any layout are added."""
    samples = found.samples
    if not samples:
        raise DataError(
            f"{root}: read as {title}, but it names no picture where that layout has them\n\n{TREES}"
        )
    masked, boxed = any(sample.mask for sample in samples), any(sample.boxes for sample in samples)
    bare = [s.path for s in samples if s.label == ANOMALOUS and s.mask is None and not s.boxes]
    mask_problems = list(found.mask_problems)
    if masked and bare:
        mask_problems.append(
            f"{counted(len(bare), 'anomalous picture')} without a mask: {listed(bare)}"
        )
    parts = [
        _describe([sample for sample in samples if sample.split == split], split)
        for split in SPLITS
    ]
    places = {"masks": masked, "boxes": boxed, "no masks": bare and not masked and not boxed}
    described = ", ".join(
        [*filter(None, parts), *(name for name, there in places.items() if there)]
    )
    return Dataset(
        root=root,
        layout=layout,
        description="; ".join([f"{title}: {described}", *notes]),
        samples=tuple(samples),
        problems=(*found.problems, *found.left_out, *mask_problems),
        left_out=tuple(found.left_out),
        mask_problems=tuple(mask_problems),
        mask_places=tuple(found.mask_places),
    )


def _describe(samples: list[Sample], split: str) -> str:
    """ "83 test (20 good, 63 in 3 defect types)"; "" where there is no sample."""
    if not samples:
        return ""
    labels = Counter(sample.label for sample in samples)
    kinds = {sample.defect for sample in samples if sample.label == ANOMALOUS} - {""}
    anomalous = (
        f"{labels[ANOMALOUS]} in {counted(len(kinds), 'defect type')}"
        if kinds
        else f"{labels[ANOMALOUS]} anomalous"
    )
    words = {
        NORMAL: f"{labels[NORMAL]} good",
        ANOMALOUS: anomalous,
        None: f"{labels[None]} of unknown label",
    }
    present = [words[label] for label in (NORMAL, ANOMALOUS, None) if labels[label]]
    if set(labels) == {NORMAL}:
        return " ".join(filter(None, [str(len(samples)), split, "good"]))
    total = f"{len(samples)} {split}" if split else counted(len(samples), "picture")
    return f"{total} ({', '.join(present)})"


def _ignored(tree: Tree) -> list[str]:
    others = list(tree.others)
    problems = (
        [f"{counted(len(others), 'file')} with other suffixes ignored: {listed(others)}"]
        if others
        else []
    )
    tables = [path for path in others if path.suffix.lower() in TABLES]
    if tables:
        problems.append(
            f"a table is read as a manifest only when it is named itself: {listed(tables)}"
        )
    return problems


def _unclear(root: Path, reason: str) -> DataError:
    return DataError(
        f"{root}: no telling which pictures are good ({reason}). Layouts that can be read:\n\n{TREES}"
    )
