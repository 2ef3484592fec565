"""Pictures decoded and prepared ahead of the computation, in order, the broken ones set aside."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from blemish.data.ahead import failing, is_tile, map_ahead, name_of, picture_of
from blemish.data.copies import thumbnail
from blemish.data.marks import marked
from blemish.data.transforms import Preprocessing, prepare
from blemish.errors import DataError
from blemish.images import within_memory
from blemish.types import Batch, Failure, Sample

R = TypeVar("R")


@dataclass(frozen=True)
class Found:
    """What a pass has found out about the pictures of a stream, by their position in its sources.

    Attributes:
        digests: content hashes of the pictures that could be decoded.
        failures: the others, and why.
        notes: what the decoder did that a person should know, where there is something.
        thumbnails: to tell pictures that are nearly alike; see `copies.thumbnail`.
    """

    digests: dict[int, str] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    notes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    thumbnails: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def originals(self) -> dict[int, int]:
        """For each picture the position of the first one of the same content, perhaps its own."""
        first: dict[str, int] = {}
        return {at: first.setdefault(self.digests[at], at) for at in sorted(self.digests)}

    def of_pictures(self, sources: Sequence[Any]) -> Found:
        """The same with each picture once, where `sources` has it as tiles: by the first."""
        seen: set[int] = set()
        first = []
        for at, each in enumerate(sources):
            if not is_tile(each):
                first.append(at)
            elif id(each.picture) not in seen:
                seen.add(id(each.picture))
                first.append(at)

        def kept(values: Mapping[int, R]) -> dict[int, R]:
            return {at: values[at] for at in first if at in values}

        return Found(
            kept(self.digests), kept(self.failures), kept(self.notes), kept(self.thumbnails)
        )

    def part(self, start: int, stop: int) -> Found:
        """The same about `sources[start:stop]`, by position in these."""

        def cut(values: Mapping[int, R]) -> dict[int, R]:
            return {at - start: each for at, each in values.items() if start <= at < stop}

        return Found(cut(self.digests), cut(self.failures), cut(self.notes), cut(self.thumbnails))


def fingerprint(digests: Iterable[str]) -> str:
    """SHA-256 over the content hashes of pictures, in whatever order they come."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def unreadable(heading: str, failures: Iterable[Failure]) -> DataError:
    """The error for a set of pictures too few of which can be read: it names the first five."""
    lines = [f"{failure.source}: {failure.reason}" for failure in failures]
    return DataError("\n  ".join([heading, *lines[:5]]))


@dataclass(frozen=True)
class PictureStream:
    """Batches over pictures, as often as they are asked for.

    Attributes:
        sources: paths, PIL images or arrays; tiles of them, where all tiles of a picture follow one
            another; a Failure in the place of one that is known to be broken.
        preprocessing: size and normalisation.
        batch_size: rows a batch.
        rotations: every picture comes at this many angles, evenly over 360°; the copies share its
            owner.
        flips: every picture, at each angle, comes also mirrored left to right: angle by angle, the
            plain one first.
        labels: 0 or 1 of each source; empty = all are normal.
        marks: of labelled defects, a sample each that may say where the defect is: batches then
            have masks. Not with rotations or flips.
        positions: which of the sources are looked at, in this order; None = all.
    """

    sources: Sequence[Any]
    preprocessing: Preprocessing
    batch_size: int
    rotations: int = 1
    flips: bool = False
    labels: Sequence[int] = ()
    marks: Sequence[Sample] = ()
    positions: Sequence[int] | None = None

    def __iter__(self) -> Pass:
        return Pass(self)

    def on(self, device: torch.device) -> Pass:
        """A pass over the pictures, the images on a device."""
        return Pass(self, device)

    def only(self, positions: Iterable[int]) -> PictureStream:
        """The pictures at some positions; owners and findings keep the numbers of all."""
        return replace(self, positions=tuple(positions))

    def only_whole(self, positions: Iterable[int]) -> PictureStream:
        """The same, with all tiles of the pictures at these positions."""
        chosen = set(positions)
        pictures = {
            id(one.picture) for one in map(self.sources.__getitem__, chosen) if is_tile(one)
        }
        return self.only(
            at
            for at, one in enumerate(self.sources)
            if at in chosen or (is_tile(one) and id(one.picture) in pictures)
        )

    @property
    def order(self) -> Sequence[int]:
        """The positions of the pictures that are looked at."""
        return range(len(self.sources)) if self.positions is None else self.positions

    @property
    def rows(self) -> int:
        """How many pictures, each copy counted, one pass has when none is broken."""
        return len(self.order) * len(self.copies)

    @property
    def copies(self) -> list[tuple[float, bool]]:
        """How every picture comes, in this order: (angle in degrees, whether mirrored)."""
        angles = [360.0 * turn / self.rotations for turn in range(self.rotations)]
        return list(product(angles, (False, True) if self.flips else (False,)))


class Pass(Iterator[Batch]):
    """One pass over a stream: its batches, and what it has `found` of the pictures so far."""

    def __init__(self, stream: PictureStream, device: torch.device | None = None) -> None:
        self.found = Found()
        self._batches = _batches(stream, device, self.found)

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """End the pass early."""
        self._batches.close()


class Passes:
    """A stream as methods take it: every call is a pass, and the later ones leave out what the
    first could not read.

    Attributes:
        found: what the first pass has found so far.
    """

    def __init__(
        self, stream: PictureStream, device: torch.device, *, first_owner: int = 0
    ) -> None:
        self.found = Found()
        self._stream, self._device, self._first_owner = stream, device, first_owner
        self._first = True

    def __call__(self) -> Iterator[Batch]:
        stream = self._stream if self._first else self._stream.only(self.found.digests)
        reading = stream.on(self._device)
        if self._first:
            self.found, self._first = reading.found, False
        for batch in reading:
            yield replace(batch, owners=batch.owners + self._first_owner)

    @property
    def rows(self) -> int:
        return self._stream.rows


def _batches(stream: PictureStream, device: torch.device | None, found: Found) -> Generator[Batch]:
    """The batches of a pass, which notes in `found` what it finds."""
    rows: list[torch.Tensor] = []
    owners: list[int] = []
    positions: list[int] = []
    masks: list[torch.Tensor] = []
    sizes: list[tuple[int, int]] = []
    # Copies of a picture count as one, or it would be judged by its own twin.
    first: dict[str, int] = {}

    def batch() -> Batch:
        images = torch.stack(rows)
        return Batch(
            images if device is None else images.to(device),
            torch.tensor(owners),
            torch.stack(masks) if masks else None,
            tuple(positions),
            tuple(sizes),
        )

    loads = map_ahead(partial(_load, stream), stream.order, ahead=2 * stream.batch_size)
    for position, one in zip(stream.order, loads, strict=True):
        if isinstance(one, Failure):
            found.failures[position] = one
            continue
        found.digests[position] = one.digest
        if one.thumbnail is not None:
            found.thumbnails[position] = one.thumbnail
        if one.notes:
            found.notes[position] = one.notes
        for tensor in one.copies:
            rows.append(tensor)
            owners.append(first.setdefault(one.digest, position))
            positions.append(position)
            masks += [] if one.mask is None else [one.mask]
            sizes.append(one.size)
            if len(rows) == stream.batch_size:
                yield batch()
                rows, owners, positions, masks, sizes = [], [], [], [], []
    if rows:
        yield batch()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What is kept of a decoded picture: every copy 3 H W, and the mask of its defect h w."""

    digest: str
    notes: tuple[str, ...]
    thumbnail: np.ndarray | None
    copies: list[torch.Tensor]
    mask: torch.Tensor | None
    size: tuple[int, int]


def _load(stream: PictureStream, position: int) -> _Loaded | Failure:
    source = stream.sources[position]
    if isinstance(source, Failure):
        return source
    return failing(lambda: _loaded(stream, source, position), name_of(source, position))


def _loaded(stream: PictureStream, source: Any, position: int) -> _Loaded:
    preprocessing = stream.preprocessing
    with within_memory(name_of(source, position)):
        picture = picture_of(source, position, preprocessing)
        size, window = picture.size, None
        if is_tile(source):
            digest, small, window = source.picture.digest, source.picture.thumbnail, source.window
        else:
            digest, small = picture.digest, thumbnail(picture.pixels)
        notes = preprocessing.notes(picture)
        copies = [
            torch.from_numpy(prepare(picture, preprocessing, angle=angle, flip=flip, window=window))
            for angle, flip in stream.copies
        ]
        del picture  # before the mask is decoded
    mask = None
    if stream.marks:
        known = is_tile(source) and source.marks is not None
        mask = source.marks if known else _mask(stream.marks[position], preprocessing, size)
    return _Loaded(digest, notes, small, copies, mask, size)


def _mask(sample: Sample, preprocessing: Preprocessing, size: tuple[int, int]) -> torch.Tensor:
    """As in `Batch.masks`: h w. `size`: of the picture."""
    height, width = preprocessing.height, preprocessing.width
    with within_memory(str(sample.mask or sample.path)):
        if preprocessing.is_framed:
            mask = marked(sample, *size)
            mask = None if mask is None else preprocessing.placement(size).mask_to_input(mask)
        else:
            mask = marked(sample, height, width)
    if mask is None:
        return torch.full((height // 4, width // 4), torch.nan)
    share = torch.from_numpy(mask.astype(np.float32))[None]
    return F.adaptive_avg_pool2d(share, (height // 4, width // 4))[0]
