"""Which files of a data set are masks, and which pictures they belong to.

A mask lies in a folder that is called as masks are (ground_truth/, masks/, NG_mask/, …), anywhere
in the tree, or beside its picture (000_mask.png beside 000.png, 000.png beside 000.jpg). Names
alone do not decide: except in ground_truth/, a few of the files are looked at, as a defect may be
called "label", too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from blemish.data.names import SURE_MASKS, compact, is_label, mask_owner, meaning
from blemish.errors import BlemishError, DataError
from blemish.images import decode
from blemish.text import listed
from blemish.types import ANOMALOUS, Sample

Names = tuple[str, ...]  # of folders, and last of the file, from the layout's root down
Look = Literal["mask", "picture", "either", "broken"]

_LOOKED_AT = 4  # files of each place
_MASK = "masks?|gts?|ground[ _-]?truths?|seg(?:mentation)?s?|anno(?:t|tation)?s?"
_NUMBER = r"(?:[ _.-]*\(?\d+\)?)?"  # of several masks of a picture
_SHOWN = "(?:image|img|rgb|photo|pic|picture|input|orig|original)s?"
_BY_WORD = {
    "mask": re.compile(
        rf"(?P<stem>.+?)[ _.-]+(?:{_MASK}){_NUMBER}|(?:{_MASK})[ _.-]+(?P<after>.+)"
    ),
    "label": re.compile(rf"(?P<stem>.+?)[ _.-]+labels?{_NUMBER}|labels?[ _.-]+(?P<after>.+)"),
}
_NUMBERED = re.compile(r"(?P<stem>.+?)[ _.-]+\(?\d+\)?")
_BARE = re.compile(rf"^{_SHOWN}[ _.-]+|[ _.-]+{_SHOWN}$")


class Entry(NamedTuple):
    """A picture: its names from the layout's root down, and its whole path."""

    names: Names
    path: Path

    @property
    def folder(self) -> Names:
        return self.names[:-1]

    @property
    def stem(self) -> str:
        return self.path.stem.lower()

    @property
    def is_good(self) -> bool:
        """Whether a folder that it lies in says so."""
        return any(meaning(name) == "good" for name in self.folder)


def entries_below(root: Path, pictures: Iterable[Path]) -> list[Entry]:
    """The pictures with their names from the root down."""
    return [Entry(path.relative_to(root).parts, path) for path in pictures]


@dataclass(frozen=True, kw_only=True)
class MaskPlace:
    """Where masks were found.

    Attributes:
        place: a folder ("MASK/"), or what they are called beside their pictures ("bad/*_mask").
        masks: how many there are.
        paired: how many of them belong to an anomalous picture.
        of_good: how many belong to a good picture, which needs none.
        unpaired: those that belong to no picture.
    """

    place: str
    masks: int
    paired: int
    of_good: int
    unpaired: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready document."""
        return {**vars(self), "unpaired": [str(path) for path in self.unpaired]}


@dataclass(frozen=True, kw_only=True)
class Divided:
    """What was found in a folder.

    Attributes:
        pictures: in path order.
        masks: by the place where they lie, as in `MaskPlace`.
        problems: what a person should look at, one sentence each.
    """

    pictures: list[Entry]
    masks: Mapping[str, list[Entry]]
    problems: list[str]


def divide(root: Path, entries: Iterable[Entry]) -> Divided:
    """Pictures and masks apart.

    Raises: DataError for a folder that is called as masks are and holds pictures, or where nothing
    tells which.
    """
    entries = list(entries)
    inside = folders_inside(entry.folder for entry in entries)
    in_folders: dict[Names, list[Entry]] = defaultdict(list)
    for entry in entries:
        in_folders[_mask_folder(entry.names, inside)].append(entry)
    pictures, masks = _beside(in_folders.pop((), []))
    homes = {entry.folder for entry in pictures}
    alone = [each for held in masks.values() for each in held if each.folder not in homes]
    problems: list[str] = []
    for names, held in sorted(in_folders.items()):
        place = f"{'/'.join(names)}/"
        look = "mask" if compact(names[-1]) in SURE_MASKS else look_of(held, pictures)
        called_label = is_label(names[-1])
        if called_label and look in ("picture", "broken"):
            problems.append(f"{place} holds pictures, not masks: taken for a kind of defect")
            pictures += held
        elif look == "picture" or (called_label and look == "either"):
            are = "pictures" if look == "picture" else "either masks or black and white pictures"
            raise DataError(
                f"{root / place}: its name says masks, but it holds {are} "
                f"(as {held[0].path.name}); where they are masks, save them with 0 and 255 in a "
                "folder called masks/; where they are pictures of a kind of defect, rename the "
                "folder; else move it away"
            )
        else:
            masks[place] = held
    for depth, place, held in _unnamed(pictures, alone):
        pictures = _without(pictures, held)
        masks = {where: left for where, each in masks.items() if (left := _without(each, held))}
        masks[place] = [
            Entry((*names[:depth], "masks", *names[depth + 1 :]), path) for names, path in held
        ]
        problems.append(
            f"{place} holds black and white pictures, called as the others are: taken for masks of "
            "these"
        )
    pictures.sort(key=lambda entry: entry.path)
    return Divided(pictures=pictures, masks=masks, problems=problems)


def masks_among(root: Path, pictures: Iterable[Path]) -> frozenset[Path]:
    """Those of the pictures that are masks of others; none where nothing tells."""
    try:
        divided = divide(root, entries_below(root, pictures))
    except DataError:
        return frozenset()
    return frozenset(entry.path for held in divided.masks.values() for entry in held)


def folders_inside(folders: Iterable[Names]) -> dict[Names, set[str]]:
    """By folder, the names of those in it, from the folders of pictures at any depth."""
    inside: dict[Names, set[str]] = defaultdict(set)
    for names in folders:
        for depth, name in enumerate(names):
            inside[names[:depth]].add(name)
    return inside


def look_of(entries: Sequence[Entry], pictures: Sequence[Entry]) -> Look:
    """What a few of the files look like; "either" where the others look like masks, too."""
    looks = {_look(path) for _, path in _some(entries)}
    if "picture" in looks:
        return "picture"
    if "mask" not in looks:
        return "broken"
    others = {_look(path) for _, path in _some(pictures)} - {"broken"}
    return "either" if others == {"mask"} else "mask"


def pair(
    masks: Mapping[str, list[Entry]], placed: Sequence[tuple[Names, Sample]]
) -> tuple[dict[Path, tuple[Path, ...]], list[MaskPlace]]:
    """The masks of each anomalous picture, by its path, and how many of each place found one.

    A mask is its picture's by stem, and by the folders above: theirs are the same ones, whatever
    says only that masks or images are in it left out; or else the mask's are some of the picture's
    (MASK/000.png of NG/000.png).

    Args:
        placed: the pictures with their names from the root down.
    Raises: DataError where a mask may belong to several anomalous pictures.
    """
    index: dict[str, list[tuple[Names, Sample]]] = defaultdict(list)
    for names, sample in placed:
        stem = Path(names[-1]).stem.lower()
        for key in {stem, _BARE.sub("", stem)}:
            index[key].append((_above(names[:-1]), sample))
    of: dict[Path, list[Path]] = defaultdict(list)
    places: list[MaskPlace] = []
    for place, found in masks.items():
        unpaired: list[Path] = []
        of_good = 0
        for mask in found:
            owners = _pictures_of(mask, index)
            defective = [sample.path for sample in owners if sample.label == ANOMALOUS]
            if len({picture.with_suffix("") for picture in defective}) > 1:
                raise DataError(
                    f"{mask.path}: may be the mask of {listed(defective)}; put the masks of each "
                    "kind of defect into a folder of its name, as in masks/scratch/"
                )
            for picture in defective:  # several are one in several formats
                of[picture].append(mask.path)
            if not defective and (owners or mask.is_good):
                of_good += 1
            elif not defective:
                unpaired.append(mask.path)
        places.append(
            MaskPlace(
                place=place,
                masks=len(found),
                paired=len(found) - of_good - len(unpaired),
                of_good=of_good,
                unpaired=tuple(unpaired),
            )
        )
    return {picture: tuple(sorted(paths)) for picture, paths in of.items()}, places


def _pictures_of(mask: Entry, index: Mapping[str, list[tuple[Names, Sample]]]) -> list[Sample]:
    """The pictures that a mask may belong to, of the likeliest kind."""
    above = _above(mask.folder)
    tries = [(stem, above) for stem in _stems(mask.stem)]
    if above:  # ground_truth/dent/000/001.png of test/dent/000.png
        tries.append((above[-1].lower(), above[:-1]))
    for stem, folders in tries:
        for agree in (_are_the_same, _are_alike, _are_part):
            if found := [sample for other, sample in index.get(stem, []) if agree(folders, other)]:
                return found
    return []


def _above(folders: Names) -> Names:
    """Those that say what their files show: NG for NG/masks/ and NG_mask/."""
    told = [name if (owner := mask_owner(name)) is None else owner for name in folders]
    return tuple(name for name in told if name and meaning(name) not in ("images", "split"))


def _are_the_same(folders: Names, others: Names) -> bool:
    return list(map(compact, folders)) == list(map(compact, others))


def _are_alike(folders: Names, others: Names) -> bool:
    """With one name for the good ones, and one for bad ones: masks/bad/0.png is of NG/0.png."""
    return _general(folders) == _general(others)


def _are_part(folders: Names, others: Names) -> bool:
    """Whether they are some of the others, in their order."""
    rest = iter(_general(others))
    return all(name in rest for name in _general(folders))


def _general(folders: Names) -> list[str]:
    return [
        said if (said := meaning(name)) in ("good", "bad") else compact(name) for name in folders
    ]


def _stems(stem: str) -> list[str]:
    """The stems that the picture of a mask may have, the likeliest first."""
    named = [_base(stem, word) for word in _BY_WORD]
    numbered = _NUMBERED.fullmatch(stem)
    return [each for each in (*named, stem, numbered and numbered["stem"]) if each]


def _base(stem: str, word: str) -> str:
    """000 for 000_mask, mask_000 and 000_mask_2; "" where a stem does not speak of masks."""
    found = _BY_WORD[word].fullmatch(stem)
    return (found["stem"] or found["after"]) if found else ""


def _mask_folder(names: Names, inside: Mapping[Names, set[str]]) -> Names:
    """The folder of masks that a file lies in; () where it does not.

    scratch_mask/ holds masks where there is a scratch/ beside it.
    """
    for depth, name in enumerate(names[:-1]):
        owner = mask_owner(name)
        if meaning(name) == "mask" or (owner and owner in map(compact, inside[names[:depth]])):
            return names[: depth + 1]
    return ()


def _unnamed(
    pictures: Sequence[Entry], alone: Sequence[Entry]
) -> list[tuple[int, str, list[Entry]]]:
    """Folders of masks that are called otherwise (defect_map/, binary_masks/), where good and
    defective pictures lie apart: the depth of each, its place and the masks in it.

    All of the files have the stems of others outside, and those that are looked at are black and
    white, as pictures of a camera are not; where the name of the folder, or of each file, speaks of
    masks, looking like masks is enough.

    Args: alone: files called as masks are, in folders without pictures.
    """
    if not any(entry.is_good for entry in pictures):
        return []
    folders: dict[Names, list[Entry]] = defaultdict(list)
    for entry in (*pictures, *alone):
        for depth, name in enumerate(() if entry.is_good else entry.folder, 1):
            if not meaning(name):
                folders[entry.names[:depth]].append(entry)
    found: list[tuple[int, str, list[Entry]]] = []
    taken: set[Entry] = set()
    for folder, held in sorted(folders.items(), key=lambda item: (len(item[0]), item[0])):
        rest = _without(pictures, [*held, *taken])
        stems = {entry.stem for entry in rest if not entry.is_good}
        if not taken.isdisjoint(held) or not all(stems & set(_stems(e.stem)) for e in held):
            continue
        named = mask_owner(folder[-1]) is not None or not _without(held, alone)
        if (named or _are_black_and_white(held)) and look_of(held, rest) == "mask":
            found.append((len(folder) - 1, f"{'/'.join(folder)}/", held))
            taken.update(held)
    return found


def _are_black_and_white(entries: Sequence[Entry]) -> bool:
    """Whether a few of the files have two colours at most, one black, and one file has both."""
    most = 0
    for _, path in _some(entries):
        try:
            pixels = decode(path).as_uint8()
        except BlemishError:
            return False
        colours: set[int] = set()
        for row in pixels:  # no longer than until there is a third colour
            colours.update(np.unique(_colours(row)).tolist())
            if len(colours) > 2:
                return False
        if 0 not in colours:
            return False
        most = max(most, len(colours))
    return most == 2


def _beside(entries: Iterable[Entry]) -> tuple[list[Entry], dict[str, list[Entry]]]:
    """The pictures, and the masks that lie beside them, by the place that they lie in."""
    by_folder: dict[Names, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_folder[entry.folder].append(entry)
    pictures: list[Entry] = []
    masks: dict[str, list[Entry]] = {}
    for folder, held in by_folder.items():
        suffixes = sorted({entry.path.suffix for entry in held})
        ways = {f"*_{word}": partial(_called_after, word=word) for word in _BY_WORD}
        ways |= {f"*{suffix}": partial(_of_the_same_stem, suffix=suffix) for suffix in suffixes}
        for how, find in ways.items():
            if found := find(held):
                masks["/".join((*folder, how))] = found
                held = _without(held, found)
        pictures += held
    return pictures, masks


def _called_after(held: list[Entry], *, word: str) -> list[Entry]:
    """The masks of a folder where these are called after their pictures, with the word."""
    called = [entry for entry in held if _base(entry.stem, word)]
    others = _without(held, called)
    stems = {key for entry in others for key in (entry.stem, _BARE.sub("", entry.stem))}
    owned = any(_base(entry.stem, word) in stems for entry in called)
    if not called or (word == "label" and not owned):
        return []
    look = look_of(called, others)
    # A broken file is a mask only by its name; what looks like one and belongs to no picture is
    # one, too.
    are_masks = look == "mask" or (word == "mask" and owned and look != "picture")
    return called if are_masks else []


def _of_the_same_stem(held: list[Entry], *, suffix: str) -> list[Entry]:
    """The masks of a folder where these differ from their pictures by the suffix alone."""
    others = [entry for entry in held if entry.path.suffix != suffix]
    stems = {entry.path.stem for entry in others}
    called = [e for e in held if e.path.suffix == suffix and e.path.stem in stems]
    stems = {entry.path.stem for entry in called}
    twins = [entry for entry in others if entry.path.stem in stems]
    return called if called and look_of(called, twins) == "mask" else []


def _without(entries: Iterable[Entry], others: Collection[Entry]) -> list[Entry]:
    taken = set(others)
    return [entry for entry in entries if entry not in taken]


def _some(entries: Sequence[Entry]) -> Sequence[Entry]:
    """A few of the files, evenly spread."""
    return entries[:: max(1, len(entries) // _LOOKED_AT)][:_LOOKED_AT]


def _look(path: Path) -> Look:
    """A mask has few values; one that was saved as JPEG has few that are frequent."""
    try:
        pixels = decode(path).as_uint8()
    except BlemishError:
        return "broken"
    height, width = pixels.shape[:2]
    some = _colours(pixels[:: max(1, height // 256), :: max(1, width // 256)])
    _, counts = np.unique(some, return_counts=True)
    few = len(counts) <= min(32, max(2, len(some) // 8))
    frequent = np.sort(counts)[::-1][:8].sum() >= 0.95 * len(some)
    return "mask" if few or (frequent and len(some) > 64) else "picture"


def _colours(pixels: np.ndarray) -> np.ndarray:
    """A number for each pixel of … 3, the same for the same colour."""
    return np.asarray(
        pixels.reshape(-1, 3).astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)
    )
