"""A data set with every picture and mask decoded: what it holds, and what is wrong with it."""

from __future__ import annotations

import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blemish.data.layouts import Dataset, read
from blemish.data.marks import fault_of, read_mask
from blemish.errors import ImageError, NonFiniteError
from blemish.images import decode, within_memory
from blemish.types import ANOMALOUS, NORMAL, Failure, Sample

LABEL_NAMES: Mapping[int | None, str] = {NORMAL: "normal", ANOMALOUS: "anomalous", None: "unknown"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a data set holds and what is wrong with it, with every picture and mask decoded.

    Attributes:
        dataset: as it was recognised.
        sizes: (H, W) in pixels -> number of pictures, the most frequent first; broken ones are in
            none.
        broken: pictures that cannot be decoded.
        mask_faults: masks that cannot be decoded, differ in size from their picture, are empty for
            an anomalous picture or mark something in a normal one.
        duplicates: groups of pictures with the same pixels, except:
        leaks: groups of pictures with the same pixels in both train and test: what was trained on
            would be tested on.
        contradictions: groups of pictures with the same pixels that are called normal and
            anomalous.
    """

    dataset: Dataset
    sizes: Mapping[tuple[int, int], int]
    broken: tuple[Failure, ...] = ()
    mask_faults: tuple[Failure, ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    leaks: tuple[tuple[str, ...], ...] = ()
    contradictions: tuple[tuple[str, ...], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is broken, faulty, leaked or contradictory; the rest is for notice."""
        return not (self.broken or self.mask_faults or self.leaks or self.contradictions)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Pictures by "split", "label", "defect", "category", "group"; "" is what is not said."""
        told = {"label": [LABEL_NAMES[sample.label] for sample in self.dataset.samples]}
        for field in ("split", "defect", "category", "group"):
            told[field] = [getattr(sample, field) for sample in self.dataset.samples]
        return {field: dict(sorted(Counter(names).items())) for field, names in told.items()}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready document."""
        dataset, sizes = self.dataset, self.sizes.items()
        return {
            "path": str(dataset.root),
            "layout": dataset.layout,
            "description": dataset.description,
            "ok": self.ok,
            "pictures": len(dataset.samples),
            "masks": sum(sample.mask is not None for sample in dataset.samples),
            "mask_places": [place.to_dict() for place in dataset.mask_places],
            "boxes": sum(len(sample.boxes) for sample in dataset.samples),
            "counts": self.counts,
            "height": _range([height for (height, _), number in sizes for _ in range(number)]),
            "width": _range([width for (_, width), number in sizes for _ in range(number)]),
            "sizes": [{"height": h, "width": w, "count": number} for (h, w), number in sizes],
            "broken": [failure.to_dict() for failure in self.broken],
            "mask_faults": [failure.to_dict() for failure in self.mask_faults],
            "duplicates": [list(group) for group in self.duplicates],
            "leaks": [list(group) for group in self.leaks],
            "contradictions": [list(group) for group in self.contradictions],
            "problems": list(dataset.problems),
        }


def check(path: str | Path, *, progress: Callable[[int, int], None] | None = None) -> Check:
    """The data set at `path` with every picture and mask decoded. `progress` is called with (done,
    of).

    Raises: DataError as `read`; MissingExtraError when a picture needs a decoder that is not
    installed.
    """
    dataset = read(path)
    sizes: Counter[tuple[int, int]] = Counter()
    broken: list[Failure] = []
    mask_faults: list[Failure] = []
    twins: dict[str, list[Sample]] = {}
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="check")
    try:
        for done, (sample, look) in enumerate(
            zip(dataset.samples, pool.map(_look, dataset.samples), strict=True), 1
        ):
            if look.fault:
                broken.append(Failure(source=str(sample.path), reason=look.fault))
            else:
                sizes[look.size] += 1
                twins.setdefault(look.digest, []).append(sample)
            if look.mask_fault:
                mask_faults.append(
                    Failure(source=look.mask or str(sample.mask), reason=look.mask_fault)
                )
            if progress:
                progress(done, len(dataset.samples))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C nothing more is decoded
    groups: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for group in twins.values():
        leaked = {"train", "test"} <= {sample.split for sample in group}
        contradictory = {NORMAL, ANOMALOUS} <= {sample.label for sample in group}
        kind = "contradictions" if contradictory else "leaks" if leaked else "duplicates"
        if len(group) > 1:
            groups[kind].append(tuple(str(sample.path) for sample in group))
    return Check(
        dataset=dataset,
        sizes=dict(sizes.most_common()),
        broken=tuple(broken),
        mask_faults=tuple(mask_faults),
        **{kind: tuple(found) for kind, found in groups.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What decoding one sample showed; without a fault there are a size and a digest.

    A broken mask is named in `mask`, as a picture may have several.
    """

    size: tuple[int, int] = (0, 0)
    digest: str = ""
    fault: str = ""
    mask_fault: str = ""
    mask: str = ""


def _look(sample: Sample) -> _Look:
    try:
        with within_memory(str(sample.path)):  # until it is let go
            picture = decode(sample.path)
            size, digest = picture.size, picture.digest
            del picture
    except ImageError as error:
        return _Look(fault=error.reason)
    except NonFiniteError as error:
        return _Look(fault=str(error).removeprefix(f"{sample.path}: "))
    mask_fault = mask = ""
    if sample.mask is not None:
        try:
            mask_fault = fault_of(read_mask(sample), sample.label, size)
        except ImageError as error:
            mask_fault, mask = error.reason, error.source
    return _Look(size=size, digest=digest, mask_fault=mask_fault, mask=mask)


def _range(lengths: list[int]) -> dict[str, float] | None:
    """Minimum, median and maximum; None where no picture could be decoded."""
    if not lengths:
        return None
    return {"min": min(lengths), "median": statistics.median(lengths), "max": max(lengths)}
