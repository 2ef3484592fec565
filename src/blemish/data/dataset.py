"""A data set: pictures on disk, what is known of each, and one sentence on them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blemish.data.masks import MaskPlace
from blemish.errors import DataError
from blemish.text import listed, pluralize
from blemish.types import ANOMALOUS, NORMAL, Sample

SPLITS = ("train", "test", "")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Pictures and what is known about them.

    Attributes:
        root: the folder or file that was read.
        layout: one of those in `layouts.TREES`.
        description: one sentence for the user: what was recognised and how many of what there are.
        samples: in path order; those of a table in its order.
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


@dataclass(kw_only=True)
class Found:
    """What the reader of a layout finds, before it is described.

    Attributes:
        samples: in the order of the data set.
        notes: what the description should add: how the pictures were split, what is in no split.
        problems, left_out, mask_problems, mask_places: as of a `Dataset`, but each problem once.
    """

    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    mask_problems: list[str] = field(default_factory=list)
    mask_places: list[MaskPlace] = field(default_factory=list)

    def described(self, root: Path, layout: str, title: str) -> Dataset:
        """The data set, its pictures counted after the title; problems of any layout are added.

        Raises: DataError where there is no picture.
        """
        if not self.samples:
            raise DataError(
                f"{root}: read as {title}, but it names no picture where that layout has them "
                "(`blemish data layouts` shows each)"
            )
        boxed = any(sample.boxes for sample in self.samples)
        masked = any(sample.mask for sample in self.samples)
        bare = [s.path for s in self.samples if s.label == ANOMALOUS and not (s.mask or s.boxes)]
        if masked and bare:
            self.mask_problems.append(
                f"{pluralize(len(bare), 'anomalous picture')} without a mask: {listed(bare)}"
            )
        parts = [_counted([s for s in self.samples if s.split == split], split) for split in SPLITS]
        parts += ["masks"] * masked + ["boxes"] * boxed
        parts += ["no masks"] if bare and not masked and not boxed else []
        counts = f"{title}: {', '.join(filter(None, parts))}"
        return self.as_dataset(root, layout, "; ".join([counts, *self.notes]))

    def as_dataset(self, root: Path, layout: str, description: str) -> Dataset:
        """The same as a data set."""
        return Dataset(
            root=root,
            layout=layout,
            description=description,
            samples=tuple(self.samples),
            problems=(*self.problems, *self.left_out, *self.mask_problems),
            left_out=tuple(self.left_out),
            mask_problems=tuple(self.mask_problems),
            mask_places=tuple(self.mask_places),
        )


def _counted(samples: Sequence[Sample], split: str) -> str:
    """ "83 test (20 good, 63 in 3 defect types)"; "" where there is no sample."""
    labels = Counter(sample.label for sample in samples)
    if set(labels) == {NORMAL}:
        return " ".join(filter(None, [str(len(samples)), split, "good"]))
    kinds = {sample.defect for sample in samples if sample.label == ANOMALOUS} - {""}
    what = f"in {pluralize(len(kinds), 'defect type')}" if kinds else "anomalous"
    words = {NORMAL: "good", ANOMALOUS: what, None: "of unknown label"}
    each = ", ".join(f"{labels[label]} {word}" for label, word in words.items() if labels[label])
    total = f"{len(samples)} {split}" if split else pluralize(len(samples), "picture")
    return f"{total} ({each})" if samples else ""
