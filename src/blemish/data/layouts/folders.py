"""Folders of anybody's pictures: labels by the names of folders, and masks by theirs.

Three layouts (MVTec's, categories in it, good/ beside defects), and a flat folder of good ones.
`TREES` shows them, and those of the public sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from blemish.data.dataset import Dataset, Found
from blemish.data.folder import Tree, is_folder
from blemish.data.layouts.official import OFFICIAL
from blemish.data.masks import Divided, Entry, Names, divide, entries_below, folders_inside, pair
from blemish.data.names import (
    file_says_bad,
    is_binary,
    is_label,
    is_series,
    may_be_good,
    meaning,
    says_bad,
)
from blemish.errors import DataError
from blemish.text import listed, pluralize
from blemish.types import ANOMALOUS, GOOD, NORMAL, Sample


def _shape(name: str, tree: str) -> str:
    first, *others = tree.splitlines()
    return "\n".join([f"    {name:<19} {first}", *(f"{'':<24}{line}" for line in others)])


_PUBLIC = [_shape(each.name, each.tree) for each in OFFICIAL.values() if each.read is not None]
TREES = "\n".join(
    [
        _shape("mvtec", "FOLDER/train/good/**   FOLDER/test/good/**   FOLDER/test/<defect>/**"),
        _shape("mvtec-root", "FOLDER/<category>/ in the layout above, once or more"),
        _shape("good-and-defects", "FOLDER/good/**   FOLDER/<defect>/**"),
        _shape("flat", "FOLDER/**, all of them good, where no name of a folder says otherwise"),
        _shape(
            "manifest",
            "TABLE.csv with the columns path and, where known, label, mask, split, category, "
            "defect, group",
        ),
        *_PUBLIC,
        """
    ok/, normal/, pass/, healthy/ and the like stand for good/ too, in upper or lower case.
    Masks of the first three: FOLDER/ground_truth/<defect>/<stem>_mask.png (or <stem>.png, or
    several with a number behind). masks/, labels/, gt/ and the like stand for ground_truth/ too,
    and may lie in the folder of the defect; or <stem>_mask.png lies beside <stem>.png.""",
    ]
)

# (split, names from good/ or the defect's folder down) of a picture; None outside of the layout.
_Place = Callable[[Names], "tuple[str, Names] | None"]


def read_folder(root: Path, tree: Tree, unlabelled: int) -> Dataset:
    """The pictures of a folder, in the most specific of the layouts that fits.

    Raises: DataError where no layout tells which pictures are good.
    """
    entries = entries_below(root, tree.pictures)
    folders = [folder.relative_to(root).parts for folder in tree.folders]
    shown = [_shown(names) for names in folders]
    top = {names[0] for names in shown if names}
    if _is_mvtec(shown):
        category = root.resolve().name
        found = _read_labelled(root, entries, folders, _place_mvtec, category=category)
        return found.described(root, "mvtec", "MVTec layout")
    if splits := sorted(name for name in top if name.lower() in ("train", "test")):
        inside = sorted({names[1] for names in shown if len(names) > 1 and names[0] in splits})
        there = f"; there is {listed(f'{name}/' for name in inside)}" if inside else ""
        raise _unclear(root, f"train/ or test/ without a good/ in it{there}")
    if any(meaning(name) == "good" for name in top):
        found = _read_labelled(root, entries, folders, _place_beside)
        return found.described(root, "good-and-defects", "good/ beside defect folders")
    below: dict[str, list[Names]] = {}
    for name, *inner in folders:
        below.setdefault(name, []).extend([tuple(inner)] if inner else [])
    categories = {
        name: below[name] for name in sorted(below) if _is_mvtec(map(_shown, below[name]))
    }
    if categories:
        found = _read_categories(root, entries, categories)
        number = pluralize(len(categories), "category", "categories")
        return found.described(root, "mvtec-root", f"MVTec layout in {number}")
    divided = divide(root, entries)
    if reason := _contradiction(root, divided, unlabelled):
        raise _unclear(root, reason)
    return _flat(root, divided, unlabelled)


def read_picture(path: Path, unlabelled: int) -> Dataset:
    """One picture, as a flat folder of it would be read."""
    divided = Divided(pictures=[Entry((path.name,), path)], masks={}, problems=[])
    return _flat(path, divided, unlabelled)


def _shown(names: Names) -> Names:
    """Folders without those that say only that pictures are in them: good for good/images/."""
    return tuple(name for name in names if meaning(name) != "images")


def _is_mvtec(shown: Iterable[Names]) -> bool:
    """Whether there is train/good, or a test/good without any train/."""
    pairs = {(names[0].lower(), meaning(names[1])) for names in shown if len(names) == 2}
    splits = {split for split, said in pairs if said == "good"}
    return "train" in splits or ("test" in splits and all(split != "train" for split, _ in pairs))


def _contradiction(root: Path, divided: Divided, unlabelled: int) -> str:
    """Which name says that the pictures are not all of one kind; "" where none does."""
    named = _contradicting_name(divided, unlabelled)
    if named or unlabelled == ANOMALOUS:
        return named
    unsaid = [entry for entry in divided.pictures if not entry.is_good]
    if meaning(root.resolve().name) == "good":
        unsaid = []
    for _, held in sorted(folders_inside(entry.folder for entry in unsaid).items()):
        own = [name for name in sorted(held) if is_label(name) or not meaning(name)]
        if len(own) > 1 and (is_binary(own) or not is_series(own)):
            kinds = "good ones and others" if is_binary(own) else "kinds of defects"
            return (
                f"{listed(f'{name}/' for name in own)} beside each other may be {kinds}; where all "
                f"pictures are good, name them by a pattern, in quotes, as in "
                f'"{_pattern(root, unsaid)}", or move the folders into one called good/; where '
                "these are categories, name each folder; else call that of the good ones good/"
            )
    defective = [entry.path for entry in unsaid if file_says_bad(entry.path.stem)]
    if 0 < len(defective) < len(unsaid):
        number = pluralize(len(defective), "picture")
        return (
            f"{number} called as defects are beside others that are not: {listed(defective)}; "
            "put the good ones into a folder called good/"
        )
    if divided.masks:
        return (
            f"there are masks in {listed(divided.masks)}, so that some pictures show defects; put "
            "those, with their masks, into a folder beside good/"
        )
    return ""


def _contradicting_name(divided: Divided, unlabelled: int) -> str:
    """Which folder is called otherwise than the others, and what to do; "" where none is."""
    telling = {"split"} if unlabelled == ANOMALOUS else {"split", "unclear"}
    for place, held in sorted(folders_inside(entry.folder for entry in divided.pictures).items()):
        said = {name: "" if is_label(name) else meaning(name) for name in sorted(held)}
        apart = bool(set(said.values()) - {"good", "images"})
        for name, what in said.items():
            bad = unlabelled == NORMAL and not is_label(name) and says_bad(name)
            if not bad and what not in telling and not (what == "good" and apart):
                continue
            where = f"{'/'.join((*place, name))}/"
            if place and "good" in said.values():
                return (
                    f"{where} is beside others, but not at the top; name {'/'.join(place)}/ itself"
                )
            if what == "unclear":
                return f"{where} may be the good ones or the others; call them good/ and bad/"
            return (
                f"{where} says that not every picture is a good one; "
                "call the folder of the good ones good/"
            )
    return ""


def _pattern(root: Path, entries: Sequence[Entry]) -> Path:
    """A pattern for all of the pictures, as far as they lie equally deep and have one suffix."""
    depths = {len(names) for names, _ in entries}
    suffixes = {path.suffix for _, path in entries}
    folders = ["*"] * (depths.pop() - 1) if len(depths) == 1 else ["**"]
    return root.joinpath(*folders, f"*{suffixes.pop()}" if len(suffixes) == 1 else "*")


def _flat(root: Path, divided: Divided, unlabelled: int) -> Dataset:
    found = Found(problems=divided.problems)
    description = f"flat layout: {pluralize(len(divided.pictures), 'picture')}, all taken as "
    if unlabelled == NORMAL:
        found.samples = [Sample(path=p, label=NORMAL, defect=GOOD) for _, p in divided.pictures]
        called = root.resolve().name
        description += "good"
        if is_folder(root) and says_bad(called):
            description += f", although the folder is called {called}"
    else:
        above = root.resolve().parts if is_folder(root) else root.resolve().parent.parts
        placed = [
            (names, Sample(path=path, label=ANOMALOUS, defect=_kind((*above, *names[:-1]))))
            for names, path in divided.pictures
        ]
        _add_masked(found, divided, placed)
        masked = any(sample.mask for sample in found.samples)
        description += "defective, masks" if masked else "defective"
    return found.as_dataset(root, "flat", description)


def _kind(folders: Sequence[str]) -> str:
    """The name of a kind of defect: that of the folder, or of one above it that says one."""
    return next((name for name in reversed(folders) if meaning(name) != "images"), folders[-1])


def _place_mvtec(names: Names) -> tuple[str, Names] | None:
    split, *inside = (*_shown(names[:-1]), names[-1])
    split = split.lower()
    if len(inside) > 1 and (split == "test" or (split == "train" and meaning(inside[0]) == "good")):
        return split, tuple(inside)
    return None


def _place_beside(names: Names) -> tuple[str, Names] | None:
    shown = (*_shown(names[:-1]), names[-1])
    return ("", shown) if len(shown) > 1 else None


def _read_labelled(
    root: Path,
    entries: Sequence[Entry],
    folders: Iterable[Names],
    place: _Place,
    category: str = "",
) -> Found:
    """Samples with their labels by folder and their masks, and the problems met."""
    divided = divide(root, entries)
    found = Found(problems=divided.problems)
    filled = {names[:depth] for names, _ in entries for depth in range(1, len(names))}
    for names in folders:
        at = place((*names, "picture"))
        called = {meaning(name) for name in names}
        if at and len(at[1]) == 2 and not called & {"mask", "images"} and names not in filled:
            found.problems.append(f"{'/'.join(names)}/ holds no pictures")
    placed: list[tuple[Names, Sample]] = []
    strays: list[Path] = []
    for names, path in divided.pictures:
        at = place(names)
        if at is None:
            strays.append(path)
            continue
        split, inside = at
        if what := _unclear_place(inside):
            raise _unclear(root, f"{'/'.join(names[:-1])}/ {what}")
        good = meaning(inside[0]) == "good"
        sample = Sample(
            path=path,
            label=NORMAL if good else ANOMALOUS,
            split=split,
            category=category,
            defect=GOOD if good else inside[0],
        )
        placed.append((names, sample))
    loose = [path for path in strays if path.relative_to(root).parts[0].lower() == "train"]
    if loose and not any(sample.split == "train" for _, sample in placed):
        number = pluralize(len(loose), "picture")
        raise _unclear(
            root, f"train/ holds {number}, but no good/; where all are good, move them there"
        )
    _leave_out(found, strays, "the layout's")
    _add_masked(found, divided, placed)
    return found


def _unclear_place(inside: Names) -> str:
    """Why a picture is neither plainly good nor plainly defective; "" where it is.

    Args: inside: its names from good/ or the defect's folder down.
    """
    said = meaning(inside[0])
    if said == "split":
        return "is neither good nor a kind of defect; move it away"
    if said == "good" and any(says_bad(name) and not is_label(name) for name in inside[1:-1]):
        return "is called good and bad; move it away"
    if may_be_good(inside[0]):
        return "may hold good ones or a kind of defect; rename it to good/, or move it away"
    return ""


def _leave_out(found: Found, strays: Sequence[Path], whose: str) -> None:
    if strays:
        number = pluralize(len(strays), "picture")
        found.left_out.append(f"{number} outside of {whose} folders ignored: {listed(strays)}")


def _add_masked(found: Found, divided: Divided, placed: Sequence[tuple[Names, Sample]]) -> None:
    """Add the samples with their masks, and what there is to say of these."""
    masks, places = pair(divided.masks, placed)
    found.mask_places.extend(places)
    if unused := [path for place in places for path in place.unpaired]:
        found.mask_problems.append(
            f"{pluralize(len(unused), 'mask')} without a picture: {listed(unused)}"
        )
    for _, sample in placed:
        if own := masks.get(sample.path):
            sample = replace(sample, mask=own[0], more_masks=own[1:])
        found.samples.append(sample)


def _read_categories(
    root: Path, entries: Sequence[Entry], categories: dict[str, list[Names]]
) -> Found:
    """Args: categories: name -> the folders in it."""
    found = Found()
    for category, folders in categories.items():
        below = [Entry(names[1:], path) for names, path in entries if names[0] == category]
        more = _read_labelled(root / category, below, folders, _place_mvtec, category)
        found.samples += more.samples
        found.problems += [f"{category}: {problem}" for problem in more.problems]
        found.left_out += [f"{category}: {problem}" for problem in more.left_out]
        found.mask_problems += [f"{category}: {problem}" for problem in more.mask_problems]
        found.mask_places += [replace(p, place=f"{category}/{p.place}") for p in more.mask_places]
    _leave_out(found, [path for names, path in entries if names[0] not in categories], "the MVTec")
    return found


def _unclear(root: Path, reason: str) -> DataError:
    return DataError(
        f"{root}: no telling which pictures are good ({reason}). "
        f"Layouts that can be read:\n\n{TREES}"
    )
