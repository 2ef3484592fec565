"""The pictures that a user names to learn from: which they are, what is known of each, and draws.

Good ones (`good_pictures`) and labelled defects (`labelled_defects`) are named alike: by paths of
data sets and files, or as pictures in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from blemish.data.dataset import Dataset
from blemish.data.folder import is_file, is_pattern, search
from blemish.data.layouts import read
from blemish.data.names import file_says_bad, meaning, says_bad
from blemish.data.splits import draw_anomalies, few_shot, hold_out
from blemish.data.tables import TABLES
from blemish.errors import DataError
from blemish.text import listed, pluralize
from blemish.types import ANOMALOUS, NORMAL, Sample

# Folders that say what the pictures in them are for, not what they show.
_PLAIN_NAMES = frozenset({"good", "split", "images"})


@dataclass(frozen=True)
class Pictures:
    """Pictures, and what is known of each.

    Attributes:
        sources: what is decoded: paths, arrays, PIL images, the content of files.
        samples: one for each; the path of what is no file is its number in the list.
        note: how what named them was recognised.
        layout: of the data set; "" where several have none in common.
    """

    sources: list[Any] = field(default_factory=list)
    samples: Sequence[Sample] = field(default=(), repr=False)
    note: str = ""
    layout: str = ""

    @property
    def categories(self) -> list[str]:
        """The category of each; "" = none."""
        return [sample.category for sample in self.samples]

    @property
    def names(self) -> list[str]:
        """The categories, sorted."""
        return sorted(set(self.categories) - {""})

    def only(self, positions: Iterable[int]) -> Pictures:
        """Those at the positions, in that order."""
        positions = list(positions)
        sources = [self.sources[at] for at in positions]
        return replace(self, sources=sources, samples=[self.samples[at] for at in positions])

    def of_one_or_several(self) -> Pictures:
        """The same; a single category is none."""
        if len(self.names) > 1:
            return self
        return replace(self, samples=[replace(sample, category="") for sample in self.samples])


NO_PICTURES = Pictures()


def good_pictures(good: Any) -> Pictures:
    """The normal training pictures that `good` names, as of `fit`.

    Pictures named one by one or by a pattern are good whatever their folders are called, except
    where some of these are called as defects are and others are not.

    Raises: DataError where there is none, or where names contradict each other.
    """
    if isinstance(good, np.ndarray) or not isinstance(good, (str, Path, Iterable)):
        raise DataError("good: a path, or a list of paths, PIL images or arrays is needed")
    named: list[Path] = []

    def read_good(path: Path) -> Pictures:
        if is_pattern(path) or (is_file(path) and path.suffix.lower() not in TABLES):
            hits = search(path)
            named.extend(hits.pictures)
            samples = [Sample(path=hit, label=NORMAL) for hit in hits.pictures]
            return Pictures(hits.pictures, samples, "; ".join(hits.left_out), "flat")
        dataset = read(path)
        normal = [s for s in dataset.train() or dataset.normals() if s.label == NORMAL]
        if not dataset.categories:
            category = _category_of(dataset)
            normal = [replace(sample, category=category) for sample in normal]
        return _of_samples(path, normal, dataset, "good")

    found = _gathered([good] if isinstance(good, (str, Path)) else good, read_good)
    if not found.sources:
        raise DataError("good: there is no picture in the list")
    if named:
        _refuse_contradictions(named)
        number = pluralize(len(named), "picture")
        how = f"{number} named one by one or by a pattern, all taken as good"
        found = replace(found, note="; ".join(filter(None, [how, found.note])))
    return _noted(found)


def labelled_defects(
    given: Any, *, count: int | None = None, kind: str | None = None, seed: int = 0
) -> Pictures:
    """The pictures of defects that `given` names, or `count` of them drawn by the seed.

    Args:
        given: as of `blemish.fit`. Of a flat folder all pictures count, of a data set those
            labelled as defective.
        count: M; a smaller one draws a part of what a larger one draws. None = all.
        kind: only defects of this type.
    Raises: DataError where there is none, none of that type, or fewer than `count`; ConfigError
        for a negative count.
    """

    def read_defects(path: Path) -> Pictures:
        dataset = read(path, unlabelled=ANOMALOUS)
        return _of_samples(path, dataset.anomalies(), dataset, "defective")

    alone = isinstance(given, (str, Path, np.ndarray)) or not isinstance(given, Iterable)
    found = _gathered([given] if alone else given, read_defects)
    samples = [replace(sample, label=ANOMALOUS) for sample in found.samples]
    chosen = [i for i, sample in enumerate(samples) if kind in (None, sample.defect)]
    if kind is not None and not chosen:
        kinds = ", ".join(sorted({sample.defect for sample in samples} - {""})) or "not known"
        raise DataError(f"no defect is of type {kind!r}; the types here are {kinds}")
    if not chosen:
        raise DataError("anomalies: there is no picture of a defect")
    if count is not None:
        chosen, _ = draw_anomalies(chosen, count, seed, path=lambda i: samples[i].path)
    return _noted(replace(found, samples=samples)).only(chosen)


def _gathered(given: Iterable[Any], read_path: Callable[[Path], Pictures]) -> Pictures:
    """All that the items name: paths, samples, and pictures in memory, drawn by their number."""
    sources: list[Any] = []
    samples: list[Sample] = []
    notes: list[str] = []
    layouts: set[str] = set()
    for item in given:
        if isinstance(item, (str, Path)):
            found = read_path(Path(item))
            sources += found.sources
            samples += found.samples
            notes += [found.note] if found.note else []
            layouts.add(found.layout)
        elif isinstance(item, Sample):
            sources.append(item.path)
            samples.append(item)
        else:
            samples.append(Sample(path=Path(f"{len(sources):09d}")))
            # A file gives what it holds only once, and pictures are looked at more often.
            sources.append(item.read() if hasattr(item, "read") else item)
    layout = layouts.pop() if len(layouts) == 1 else ""
    return Pictures(sources, samples, "; ".join(notes), layout)


def _noted(found: Pictures) -> Pictures:
    note = found.note or f"{pluralize(len(found.sources), 'picture')} given one by one"
    return replace(found, note=note)


def _of_samples(path: Path, samples: Sequence[Sample], dataset: Dataset, what: str) -> Pictures:
    if not samples:
        raise DataError(
            f"{path}: holds no picture that is known to be {what}; {dataset.description}"
        )
    note = "; ".join([dataset.description, *dataset.left_out])
    return Pictures([sample.path for sample in samples], samples, note, dataset.layout)


def _refuse_contradictions(pictures: Sequence[Path]) -> None:
    """Raises: DataError where some of the pictures, or of their folders, are called as defects
    are, and others are not."""
    folders = sorted({picture.parent for picture in pictures})
    called = {
        folder: next((name for name in reversed(folder.parts) if meaning(name) != "images"), "")
        for folder in folders
    }
    bad_folders = [f"{folder}/" for folder, name in called.items() if says_bad(name)]
    bad_files = [str(picture) for picture in pictures if file_says_bad(picture.stem)]
    for bad, of in ((bad_folders, len(folders)), (bad_files, len(pictures))):
        if 0 < len(bad) < of:
            raise DataError(
                f"{listed(bad)}: called as defects or masks are, and others that were named with "
                "it are not; leave it out, or rename it where it is good"
            )


def _category_of(dataset: Dataset) -> str:
    """What the name of a folder or table says that its pictures show; "" for a single picture."""
    place = dataset.root.resolve()
    if dataset.layout == "manifest":
        return place.stem
    if dataset.layout == "flat" and place.is_file():
        return ""
    names = [place.name, *(folder.name for folder in place.parents)]
    return next((name for name in names if name and meaning(name) not in _PLAIN_NAMES), place.name)


def hold_out_positions(
    pictures: Pictures, fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Positions kept and held out, of each category by itself, in path order.

    Of a category of one picture nothing is held out.
    """
    if fraction == 0:
        return list(range(len(pictures.sources))), []
    kept: list[int] = []
    held: list[int] = []
    for positions in _by_category(pictures):
        share = fraction if len(positions) > 1 else 0.0
        more, out = hold_out(positions, share, seed, path=lambda i: pictures.samples[i].path)
        kept += more
        held += out
    return kept, held


def draw_shots(pictures: Pictures, shots: int, seed: int) -> list[int]:
    """Positions of the few drawn of each category. Raises: as `blemish.data.splits.few_shot`."""
    drawn: list[int] = []
    for positions in _by_category(pictures):
        try:
            drawn += few_shot(positions, shots, seed, path=lambda i: pictures.samples[i].path)
        except DataError as error:
            category = pictures.samples[positions[0]].category
            raise DataError(f"{category}: {error}" if category else str(error)) from error
    return drawn


def _by_category(pictures: Pictures) -> list[list[int]]:
    """The positions of each category, sorted by its name."""
    groups: dict[str, list[int]] = defaultdict(list)
    for position, category in enumerate(pictures.categories):
        groups[category].append(position)
    return [groups[category] for category in sorted(groups)]
