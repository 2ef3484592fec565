"""What a public data set is to blemish, and what the readers of such sets share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from blemish.data.dataset import Found
from blemish.data.folder import is_file, is_folder
from blemish.data.splits import hold_out
from blemish.errors import DataError
from blemish.text import listed, pluralize
from blemish.types import ANOMALOUS, GOOD, NORMAL, Sample

QUARTER = (
    "No official one: a quarter of the good pictures, drawn by seed 0, and all defects are for "
    "the test."
)
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many pictures a category has: normal to train on, normal and anomalous to test on."""

    train: int
    test_normal: int
    test_anomalous: int


@dataclass(frozen=True, kw_only=True)
class Official:
    """A public data set as its authors hand it out.

    Attributes:
        name: its key in `OFFICIAL`; the layout's name too, where it has one of its own.
        title: as people call it.
        reference: authors and year.
        source: where to get it.
        licence: in short; what the source says stands.
        tree: the folders and files expected, one line each.
        folders: names under which `find` looks for it; case and the signs between letters make no
            difference.
        categories: category -> its pictures, in the official order; of a set of one category, its
            own name.
        split: one sentence: who made the split.
        masks: whether it has a mask for every defective picture.
        fits: whether a folder holds the set, told by what lies in it; None for a set in the
            folders of MVTec AD, which are read whatever they show.
        read: what is in a folder that fits; the pictures are listed, not decoded.
    """

    name: str
    title: str
    reference: str
    source: str
    licence: str
    tree: str
    folders: tuple[str, ...]
    categories: Mapping[str, Counts]
    split: str
    masks: bool = False
    fits: Callable[[Path], bool] | None = None
    read: Callable[[Path], Found] | None = None

    @property
    def total(self) -> Counts:
        """The pictures of all categories."""
        each = self.categories.values()
        return Counts(
            train=sum(counts.train for counts in each),
            test_normal=sum(counts.test_normal for counts in each),
            test_anomalous=sum(counts.test_anomalous for counts in each),
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready document, of all but the reader."""
        document = asdict(replace(self, fits=None, read=None))
        del document["fits"], document["read"]
        return document


def counted(text: str) -> dict[str, Counts]:
    """Counts by category, from lines of a name and three numbers."""
    rows = (line.split() for line in text.strip().splitlines())
    return {
        name: Counts(train=int(train), test_normal=int(normal), test_anomalous=int(anomalous))
        for name, train, normal, anomalous in rows
    }


def plain(name: str) -> str:
    """A name in lower case, letters and digits alone: for mvtec_ad, MVTec-AD, MVTecAD alike."""
    return re.sub(r"[\W_]", "", name.lower())


def is_called(folder: Path, names: Iterable[str]) -> bool:
    """Whether a folder has one of the names, as `plain` compares them."""
    return plain(folder.resolve().name) in map(plain, names)


def category_folders(folder: Path, signs: Sequence[str]) -> dict[str, Path]:
    """Name -> folder: of the category that it is, or of those that it holds.

    Args: signs: folders three deep, any of which a category has in it.
    """
    if any(is_folder(folder / sign) for sign in signs):
        return {folder.resolve().name: folder}
    places = {found.parents[2] for sign in signs for found in folder.glob(f"*/{sign}")}
    return {place.name: place for place in sorted(places)}


def sample_of(path: Path, defect: str, mask: Path | None = None) -> Sample:
    """A picture with this kind of defect; "" for a good one."""
    label = ANOMALOUS if defect else NORMAL
    return Sample(path=path, label=label, defect=defect or GOOD, mask=mask)


def divided(samples: Iterable[Sample], problems: Iterable[str] = (), share: float = 0.25) -> Found:
    """The samples of a set without an official split, divided.

    All defects are for the test, and a share of the normal pictures (half a picture counts as
    one), drawn by seed 0 from the sorted list: the protocol of DevNet and DRA (Pang et al. 2021,
    Ding et al. 2022), and of PatchCore (Roth et al. 2022) for the magnetic tiles.
    """
    samples = sorted(samples, key=lambda sample: sample.path)
    normals = [sample for sample in samples if sample.label == NORMAL]
    count = int(share * len(normals) + 0.5)
    learned = set(hold_out(normals, count / max(len(normals), 1), SEED)[0])
    return Found(
        samples=[replace(s, split="train" if s in learned else "test") for s in samples],
        notes=[
            f"no official split: {100 * share:g} % of the good pictures, drawn by seed {SEED}, "
            "are for the test"
        ],
        problems=list(problems),
    )


def need(folder: Path, name: str, title: str) -> Path:
    """The file or folder ("gt/") of this name. Raises: DataError when there is none."""
    path = folder / name
    if not (is_folder(path) if name.endswith("/") else is_file(path)):
        raise DataError(
            f"{folder}: read as {title}, but there is no {name}; copy it here from that set"
        )
    return path


def told(strays: Mapping[str, Iterable[object]], what: str = "picture") -> list[str]:
    """A problem for each way in which pictures and tables do not go together: how -> which."""
    found = {how: list(which) for how, which in strays.items()}
    return [
        f"{pluralize(len(which), what)} {how}: {listed(which)}"
        for how, which in found.items()
        if which
    ]
