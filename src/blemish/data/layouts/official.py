"""The table of public data sets, and what of them is on this disk.

A set without an official split is counted as `base.divided` divides it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from blemish.data.dataset import Dataset
from blemish.data.folder import is_folder
from blemish.data.layouts.base import Counts, Official, is_called, plain
from blemish.data.layouts.brain_mri import BRAIN_MRI
from blemish.data.layouts.elpv import ELPV
from blemish.data.layouts.head_ct import HEAD_CT
from blemish.data.layouts.kolektor_sdd import KOLEKTOR_SDD
from blemish.data.layouts.magnetic_tile import MAGNETIC_TILE
from blemish.data.layouts.mvtec import MVTEC
from blemish.data.layouts.mvtec3d import MVTEC3D
from blemish.data.layouts.nih import NIH
from blemish.data.layouts.visa import VISA
from blemish.types import NORMAL, Sample

# A folder is read as the first that fits; Brain-MRI is asked last, as its yes/ and no/ say least.
_SETS = (MVTEC, VISA, MVTEC3D, NIH, HEAD_CT, ELPV, KOLEKTOR_SDD, MAGNETIC_TILE, BRAIN_MRI)
OFFICIAL: Mapping[str, Official] = {official.name: official for official in _SETS}


def recognised(folder: Path) -> Official | None:
    """The set with a layout of its own that a folder holds: the first that fits."""
    fitting = (each for each in _SETS if each.fits is not None and each.fits(folder))
    return next(fitting, None)


def find(official: Official, root: Path) -> Path | None:
    """The folder of the data set: `root` itself, or one in it of one of its names; else None.

    What holds the set goes before what only has a name of it, whose reading says what is missing.
    """

    def holds(folder: Path) -> bool:
        """The set, or a part of it; of one category, so that it is read as that set."""
        if len(official.categories) > 1:
            return bool(category_paths(official, folder))
        return recognised(folder) is official

    names = _plain_names(official)
    called = [path for path in sorted(root.glob("*")) if plain(path.name) in names]
    below = [path for path in called if is_folder(path)]
    named = [root, *below] if is_folder(root) and is_called(root, names) else below
    return next(filter(holds, (root, *below)), next(iter(named), None))


def category_paths(official: Official, folder: Path) -> dict[str, Path]:
    """The categories that are in the folder of a set, in the official order -> paths to read.

    A set of one category is its folder, whatever is in it.
    """
    if len(official.categories) == 1:
        return dict.fromkeys(official.categories, folder)
    paths = {category: folder / category for category in official.categories}
    return {
        category: path
        for category, path in paths.items()
        if any(is_folder(path / inner) for inner in ("train", "test", "Data"))
    }


def differences(dataset: Dataset) -> tuple[str, ...]:
    """How a data set differs from the official counts, one sentence each; () for no public set.

    A folder in the layout of MVTec AD is taken for a public set when all its categories have names
    of that set.

    Example:
        >>> from blemish.data.dataset import Dataset
        >>> some = Sample(path=Path("0.png"), label=0, split="train", category="bottle")
        >>> part = Dataset(root=Path("bottle"), layout="mvtec", description="", samples=(some,))
        >>> differences(part)[0]
        'bottle: 1 of 209 training pictures'
    """
    official = _official(dataset)
    if official is None:
        return ()
    if len(official.categories) == 1:
        (counts,) = official.categories.values()
        return tuple(_compared(official, official.title, dataset.samples, counts))
    here = [category for category in official.categories if category in dataset.categories]
    found: list[str] = []
    # None is here: somebody's own pictures, in the folders of that set.
    if here and len(here) < len(official.categories) and here != [dataset.root.resolve().name]:
        found.append(f"{official.title}: {len(here)} of {len(official.categories)} categories")
    for category in here:
        samples = [sample for sample in dataset.samples if sample.category == category]
        found += _compared(official, category, samples, official.categories[category])
    return tuple(found)


def _official(dataset: Dataset) -> Official | None:
    if dataset.layout in OFFICIAL and dataset.layout != MVTEC.name:
        return OFFICIAL[dataset.layout]
    if dataset.layout not in ("mvtec", "mvtec-root"):
        return None
    here = set(dataset.categories)
    for official in OFFICIAL.values():
        if len(official.categories) > 1 and here <= official.categories.keys():
            return official
        if len(official.categories) == 1 and set(map(plain, here)) <= _plain_names(official):
            return official
    return None


def _plain_names(official: Official) -> set[str]:
    return set(map(plain, official.folders))


def _compared(
    official: Official, name: str, samples: Sequence[Sample], counts: Counts
) -> list[str]:
    numbers = Counter((sample.split, sample.label == NORMAL) for sample in samples)
    compared = {
        "training pictures": (numbers["train", True], counts.train),
        "good test pictures": (numbers["test", True], counts.test_normal),
        "anomalous test pictures": (numbers["test", False], counts.test_anomalous),
    }
    found: list[str] = []
    for what, (number, full) in compared.items():
        if number < full:
            found.append(f"{name}: {number} of {full} {what}")
        elif number > full:
            found.append(f"{name}: {number} {what} instead of {full}")
    if official.masks and numbers["test", False] and not any(sample.mask for sample in samples):
        found.append(f"{name}: no masks")
    return found
