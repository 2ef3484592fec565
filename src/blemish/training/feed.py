"""What the training steps are fed with: the frozen part's answers, kept in memory or computed anew
in every epoch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, tee

import torch
from torch import Tensor

from blemish.data.ahead import is_tile, map_ahead, name_of, picture_of
from blemish.data.stream import Found, PictureStream
from blemish.data.transforms import prepare
from blemish.images import within_memory
from blemish.methods.learner import Learner, TrainingBatch
from blemish.types import ANOMALOUS, NORMAL, Progress

READING = "reading the pictures"


def seed_of(*parts: object) -> int:
    """A seed for torch that differs wherever one of the parts does."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7])


@dataclass(frozen=True)
class Feed:
    """The rows of this process: every copy (angle, mirror image) of every picture that can be read.

    Attributes:
        found: what is known of the pictures of the stream.
        kept: row by row what a step needs, on a GPU where its memory has much room, else in main
            memory; None where it does not fit.

    Where some of the pictures are labelled defects, half of every batch is drawn from them, as
    often as that takes, unless the method wants another part, or them as often as the other
    pictures (`Schedule.defects_among`).
    """

    method: Learner
    stream: PictureStream
    found: Found
    kept: TrainingBatch | None

    @property
    def usable(self) -> list[int]:
        """Positions in the stream of the pictures that can be read."""
        return sorted(self.found.digests)

    @property
    def rows(self) -> int:
        return len(self.usable) * len(self.stream.copies)

    @property
    def class_counts(self) -> tuple[int, int]:
        """How many of the rows are normal, and how many are labelled defects."""
        labels = self.labels
        defects = 0 if labels is None else int(labels.sum())
        return self.rows - defects, defects

    def of_an_epoch(self, size: int) -> tuple[int, int]:
        """How many rows make an epoch, and how many of them come with every batch of `size` rows.

        Where defects have a part of every batch the normal rows make it, each drawn once; else all
        rows do.
        """
        rows, count = self._parts(size)[0]
        return len(rows), count

    def batches(self, size: int, *, seed: int, skip: int) -> Generator[TrainingBatch]:
        """Batches without end of `size` rows, from the one after the first `skip`, on the
        backbone's device.

        They are cut from one shuffled epoch after the other (of the normal pictures and of the
        defects, each), so every one of them is full.
        """
        chunks = self._chunks(size, seed, skip)
        if self.kept is None:
            return self._computed(chunks, size)
        return self._remembered(self.kept, chunks)

    def _chunks(self, size: int, seed: int, skip: int) -> Iterator[list[int]]:
        """The rows of batch after batch."""
        parts = self._parts(size)
        orders = [
            _endless(part, (seed, number) if number else seed, skip * count)
            for number, (part, count) in enumerate(parts)
        ]
        while True:
            yield [
                row
                for order, (_, count) in zip(orders, parts, strict=True)
                for row in islice(order, count)
            ]

    def _parts(self, size: int) -> list[tuple[Tensor, int]]:
        """What a batch of `size` rows is drawn from: rows, and how many of them."""
        labels, count = self.labels, self.method.config.defects_among(size)
        fed = torch.ones(self.rows, dtype=torch.bool)
        out = self.left_out
        fed[out] = len(out) == self.rows
        if labels is not None and count is not None and not labels.all():
            normal, defects = ((labels == label) & fed for label in (NORMAL, ANOMALOUS))
            return [(normal.nonzero()[:, 0], size - count), (defects.nonzero()[:, 0], count)]
        return [(fed.nonzero()[:, 0], size)]

    @property
    def left_out(self) -> list[int]:
        """The rows that no batch has, those of some normal pictures, evenly from all
        (`Schedule.left_out`); where there is but one picture that one, which is then learned from
        as well."""
        share, each = self.method.config.left_out, len(self.stream.copies)
        labels = self.labels
        normal = [at for at in range(self.rows // each) if labels is None or not labels[at * each]]
        count = max(1, round(share * len(normal))) if share and normal else 0
        chosen = [normal[number * len(normal) // count] for number in range(count)]
        return [at * each + copy for at in chosen for copy in range(each)]

    def left_out_batches(self, size: int) -> Generator[TrainingBatch]:
        """What no step is fed with, in their order, at most `size` rows at a time."""
        rows = self.left_out
        chunks = iter([rows[start : start + size] for start in range(0, len(rows), size)])
        if self.kept is None:
            return self._computed(chunks, size)
        return self._remembered(self.kept, chunks)

    @property
    def labels(self) -> Tensor | None:
        """int64, of each row; None where all are normal."""
        given = self.stream.labels
        own = [given[index] for index in self.usable] if given else []
        if not any(own):
            return None
        return torch.tensor(own).repeat_interleave(len(self.stream.copies))

    def _remembered(
        self, kept: TrainingBatch, chunks: Iterator[list[int]]
    ) -> Generator[TrainingBatch]:
        device = self.method.backbone.device
        # A GPU is not to wait for the gathering; what gathers where it trains has nothing to wait
        # for.
        away = any(part.device != device for part in _parts(kept))
        labels = None if self.labels is None else self.labels.to(_parts(kept)[0].device)
        gather = partial(_gathered, dataclasses.replace(kept, labels=labels), pinned=away)
        for batch in map_ahead(gather, chunks, ahead=2) if away else map(gather, chunks):
            yield _each(batch, lambda part: part.to(device, non_blocking=True))

    def _computed(self, chunks: Iterator[list[int]], size: int) -> Generator[TrainingBatch]:
        labels, (chunks, again) = self.labels, tee(chunks)
        pictures = map_ahead(self.picture, chain.from_iterable(chunks), ahead=2 * size)
        for rows in again:
            images = torch.stack(list(islice(pictures, size))).to(self.method.backbone.device)
            parts = [
                _encoded(self.method, part, self.stream.batch_size)
                for part in torch.split(images, self.stream.batch_size)
            ]
            features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            shown = images if self.method.needs_images else None
            yield TrainingBatch(
                shown, features, None if labels is None else labels[rows].to(images.device)
            )

    def picture(self, row: int) -> Tensor:
        """Row `row` as the stream would give it: 3 H W. Raises: ImageError where it has become
        unreadable.
        """
        stream = self.stream
        position, copy = divmod(row, len(stream.copies))
        index = self.usable[position]
        angle, flip = stream.copies[copy]
        source = stream.sources[index]
        with within_memory(name_of(source, index)):
            picture = picture_of(source, index, stream.preprocessing)
            part = source.window if is_tile(source) else None
            made = prepare(picture, stream.preprocessing, angle=angle, flip=flip, window=part)
            return torch.from_numpy(made)


def read(method: Learner, stream: PictureStream, *, limit: float, progress: Progress) -> Feed:
    """One pass over the stream, which keeps what the method's frozen part gives.

    Args: limit: the most bytes to keep; where all of it would be more, nothing is kept.
    """
    total, done = stream.rows, 0
    kept: TrainingBatch | None = None
    progress(READING, 0, total)
    reading = iter(stream)
    for batch in reading:
        count = len(batch.images)
        if done == 0 or kept is not None:
            features = _encoded(method, batch.images.to(method.backbone.device), stream.batch_size)
            rows = TrainingBatch(batch.images if method.needs_images else None, features)
            wanted = total * sum(part[0].nbytes for part in _parts(rows))
            if done == 0 and wanted <= limit:
                there = _keeper(method.backbone.device, wanted)
                kept = _each(rows, partial(_room, total, there))
            if kept is not None:
                for into, part in zip(_parts(kept), _parts(rows), strict=True):
                    into[done : done + count] = part
        done += count
        progress(READING, done, total)
    return Feed(method, stream, reading.found, kept)


def _keeper(device: torch.device, wanted: int) -> torch.device:
    """Where so many bytes are kept: a GPU that has four times the room leaves enough to train."""
    if device.type == "cuda" and 4 * wanted <= torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu")


def _room(rows: int, device: torch.device, part: Tensor) -> Tensor:
    """For so many rows like those of `part`."""
    return torch.empty((rows, *part.shape[1:]), dtype=part.dtype, device=device)


def _encoded(method: Learner, images: Tensor, rows: int) -> dict[str, Tensor]:
    """`method.encode` of at most `rows` images, always on as many.

    The kernels are chosen by shape: in equal shapes a picture gets the same features to the bit in
    any company.
    """
    count = len(images)
    if count < rows:
        images = torch.cat([images, images[-1:].expand(rows - count, -1, -1, -1)])
    with torch.no_grad():
        return {name: part[:count] for name, part in method.encode(images).items()}


def _endless(rows: Tensor, seed: object, position: int) -> Iterator[int]:
    """The rows of epoch after epoch, each epoch in an order of its own, from `position` in the
    whole sequence on.
    """
    count = len(rows)
    while True:
        epoch, offset = divmod(position, count)
        shuffle = torch.Generator().manual_seed(seed_of("epoch", seed, epoch))
        order = torch.randperm(count, generator=shuffle)
        yield from rows[order[offset:]].tolist()
        position += count - offset


def _parts(batch: TrainingBatch) -> list[Tensor]:
    return [
        *(part for part in (batch.images, batch.labels) if part is not None),
        *batch.features.values(),
    ]


def _each(batch: TrainingBatch, change: Callable[[Tensor], Tensor]) -> TrainingBatch:
    images, labels = (
        None if part is None else change(part) for part in (batch.images, batch.labels)
    )
    return TrainingBatch(
        images, {name: change(part) for name, part in batch.features.items()}, labels
    )


def _gathered(kept: TrainingBatch, rows: list[int], *, pinned: bool) -> TrainingBatch:
    wanted = torch.tensor(rows)

    def take(part: Tensor) -> Tensor:
        if not pinned:
            return part[wanted.to(part.device)]
        into = torch.empty((len(rows), *part.shape[1:]), dtype=part.dtype, pin_memory=True)
        return torch.index_select(part, 0, wanted, out=into)

    return _each(kept, take)
