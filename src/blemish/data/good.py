"""The normal pictures that a user names: which they are, what each shows, and draws from them by a seed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blemish.data.folder import is_file, is_pattern, search
from blemish.data.layouts import recognition as layouts
from blemish.data.manifest import TABLES
from blemish.data.names import file_says_bad, meaning, says_bad
from blemish.data.phrases import counted, listed
from blemish.data.splits import few_shot, hold_out
from blemish.errors import DataError
from blemish.types import NORMAL, Sample

# Folders that say what the pictures in them are for, not what they show.
_PLAIN_NAMES = frozenset({"good", "split", "images"})


@dataclass(frozen=True)
class GoodPictures:
    """Normal pictures, the category of each ("" = none), how what named them was recognised, and the layout ("" where
    several have none in common)."""

    sources: list[Any]
    categories: list[str]
    note: str
    layout: str = ""

    @property
    def names(self) -> list[str]:
        """The categories, sorted."""
        return sorted(set(self.categories) - {""})

    def only(self, positions: Iterable[int]) -> GoodPictures:
        positions = list(positions)
        sources, categories = (
            [self.sources[i] for i in positions],
            [self.categories[i] for i in positions],
        )
        return dataclasses.replace(self, sources=sources, categories=categories)

    def of_one_or_several(self) -> GoodPictures:
        """The same; a single category is none."""
        return (
            self
            if len(self.names) > 1
            else dataclasses.replace(self, categories=[""] * len(self.sources))
        )


def good_pictures(good: Any) -> GoodPictures:
    """The normal training pictures that `good` names, as of `fit`.

    Pictures named one by one or by a pattern are good whatever their folders are called, except where some of these
    are called as defects are and others are not.

    Raises: DataError where there is none, or where names contradict each other.
    """
    if isinstance(good, np.ndarray) or not isinstance(good, (str, Path, Iterable)):
        raise DataError("good: a path, or a list of paths, PIL images or arrays is needed")
    sources: list[Any] = []
    categories: list[str] = []
    notes: list[str] = []
    layouts_found: set[str] = set()
    named: list[Path] = []
    for item in [good] if isinstance(good, (str, Path)) else good:
        if not isinstance(item, (str, Path)):
            # A file gives what it holds only once, and pictures are looked at more often.
            sources.append(
                item.path
                if isinstance(item, Sample)
                else item.read()
                if hasattr(item, "read")
                else item
            )
            categories.append(item.category if isinstance(item, Sample) else "")
            continue
        path = Path(item)
        if is_pattern(path) or (is_file(path) and path.suffix.lower() not in TABLES):
            hits = search(path)
            named += hits.pictures
            found = GoodPictures(
                list(hits.pictures), [""] * len(hits.pictures), "; ".join(hits.left_out), "flat"
            )
        else:
            found = _read_good(path)
        sources += found.sources
        categories += found.categories
        notes += [found.note] if found.note else []
        layouts_found.add(found.layout)
    if not sources:
        raise DataError("good: there is no picture in the list")
    if named:
        _refuse_contradictions(named)
        notes.insert(
            0,
            f"{counted(len(named), 'picture')} named one by one or by a pattern, all taken as good",
        )
    note = "; ".join(notes) or f"{len(sources)} pictures given one by one"
    return GoodPictures(
        sources, categories, note, layouts_found.pop() if len(layouts_found) == 1 else ""
    )


def _refuse_contradictions(pictures: Sequence[Path]) -> None:
    """Raises: DataError where some of the pictures, or the folders that they lie in, are called as defects are, and
    others are not."""
    folders = sorted({picture.parent for picture in pictures})
    called = {
        folder: next((name for name in reversed(folder.parts) if meaning(name) != "images"), "")
        for folder in folders
    }
    bad_folders = [f"{folder}/" for folder, name in called.items() if says_bad(name)]
    bad_files = [picture for picture in pictures if file_says_bad(picture.stem)]
    found: list[tuple[Sequence[object], int]] = [
        (bad_folders, len(folders)),
        (bad_files, len(pictures)),
    ]
    for bad, of in found:
        if 0 < len(bad) < of:
            raise DataError(
                f"{listed(bad)}: called as defects or masks are, and others that were named with it are not; "
                "leave it out, or rename it where it is good"
            )


def _read_good(path: Path) -> GoodPictures:
    dataset = layouts.read(path)
    normal = [sample for sample in dataset.train() or dataset.normals() if sample.label == NORMAL]
    if not normal:
        raise DataError(f"{path}: holds no picture that is known to be good; {dataset.description}")
    name = "" if dataset.categories else _category_of(dataset)
    categories = [s.category or name for s in normal]
    note = "; ".join([dataset.description, *dataset.left_out])
    return GoodPictures([s.path for s in normal], categories, note, dataset.layout)


def _category_of(dataset: layouts.Dataset) -> str:
    """What the name of a folder or table says that its pictures show; "" for a single picture."""
    place = dataset.root.resolve()
    if dataset.layout == "manifest":
        return place.stem
    if dataset.layout == "flat" and place.is_file():
        return ""
    names = [place.name, *(folder.name for folder in place.parents)]
    return next((name for name in names if name and meaning(name) not in _PLAIN_NAMES), place.name)


def hold_out_sources(
    sources: Sequence[Any], fraction: float, seed: int, *, categories: Sequence[str] | None = None
) -> tuple[list[int], list[int]]:
    """Positions kept and held out, of each category by itself: by path where it is one, by position otherwise."""
    if fraction == 0:
        return list(range(len(sources))), []
    kept: list[int] = []
    held: list[int] = []
    for stand_ins in _by_category(sources, categories):
        share = fraction if len(stand_ins) > 1 else 0.0
        for positions, drawn in zip((kept, held), hold_out(stand_ins, share, seed), strict=True):
            positions += [stand_ins[sample] for sample in drawn]
    return kept, held


def draw_shots(
    sources: Sequence[Any], shots: int, seed: int, categories: Sequence[str] | None = None
) -> list[int]:
    """Positions of the few pictures drawn of each category. Raises: as `blemish.data.splits.few_shot`."""
    drawn: list[int] = []
    for stand_ins in _by_category(sources, categories):
        try:
            drawn += [stand_ins[sample] for sample in few_shot(stand_ins, shots, seed)]
        except DataError as error:
            category = next(iter(stand_ins)).category
            raise DataError(f"{category}: {error}" if category else str(error)) from error
    return drawn


def _by_category(
    sources: Sequence[Any], categories: Sequence[str] | None
) -> list[dict[Sample, int]]:
    """For each category, sorted by name, samples that stand for the sources when drawing, with their positions."""
    names = [str(s) if isinstance(s, (str, Path)) else f"{i:09d}" for i, s in enumerate(sources)]
    of = [""] * len(sources) if categories is None else categories
    seen: Counter[str] = Counter()
    groups: dict[str, dict[Sample, int]] = {category: {} for category in sorted(set(of))}
    for position, (name, category) in enumerate(zip(names, of, strict=True)):
        again = seen[name]  # a path given twice is two sources
        seen[name] += 1
        sample = Sample(path=Path(f"{name} {again}" if again else name), category=category)
        groups[category][sample] = position
    return list(groups.values())
