"""Pictures decoded and prepared ahead of the computation, in order, with the broken ones set aside."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from blemish.data.copies import thumbnail
from blemish.data.marks import marked
from blemish.data.transforms import Preprocessing, prepare
from blemish.errors import InputError, MissingExtraError, NonFiniteError
from blemish.images import Picture, decode, within_memory
from blemish.images.limits import BUDGET
from blemish.types import Batch, Failure, Sample

T = TypeVar("T")
R = TypeVar("R")

# A setting that is wrong (ConfigError) is wrong for every picture, and not set aside.
_OF_ONE_PICTURE = (InputError, NonFiniteError, MissingExtraError)
WORKERS = min(8, max(2, os.cpu_count() or 1))


def map_ahead(function: Callable[[T], R], items: Iterable[T], *, ahead: int) -> Generator[R]:
    """`map` in a thread pool, in order, with at most `ahead` results computed in advance.

    No more items are taken than that and the one whose result is next. Where taking one raises, what came before is
    given first. The pictures that a call decodes count to the process's memory for pictures until it returns: it is to
    give back what is made of them, not them.
    """

    def held(item: T) -> R:
        with BUDGET.held():
            return function(item)

    pool = ThreadPoolExecutor(max_workers=WORKERS, thread_name_prefix="blemish-decode")
    waiting: deque[Future[R]] = deque()
    coming = iter(items)
    ended: Exception | None = None
    try:
        while ended is None or waiting:
            if ended is None:
                try:
                    waiting.append(pool.submit(held, next(coming)))
                except Exception as error:  # StopIteration, as a rule
                    ended = error
            if waiting and (ended or len(waiting) > ahead):
                yield waiting.popleft().result()
        if not isinstance(ended, StopIteration):
            raise ended
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class PictureStream:
    """A re-iterable stream of batches over pictures.

    Args:
        sources: paths, PIL images or arrays.
        preprocessing: size and normalisation.
        batch_size: rows a batch.
        rotations: every picture comes at this many angles, evenly over 360°; the copies share its owner.
        flips: every picture, at each angle, comes also mirrored left to right: angle by angle, the plain one first.
        labels: 0 or 1 of each source; empty = all are normal.
        marks: of labelled defects, a sample each that may say where the defect is: batches then have masks. Not with
            rotations or flips.
    Attributes:
        failures: pictures that could not be decoded, found so far, by position in `sources`.
        digests: content hash by position, of the pictures decoded so far.
        thumbnails: of the same, to tell pictures that are nearly alike; see `copies.thumbnail`.
        notes: by content hash what the decoder did that a person should know, of those where there is something.
    """

    sources: Sequence[Any]
    preprocessing: Preprocessing
    batch_size: int
    rotations: int = 1
    flips: bool = False
    labels: Sequence[int] = ()
    marks: Sequence[Sample] = ()
    failures: dict[int, Failure] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    thumbnails: dict[int, np.ndarray] = field(default_factory=dict, init=False)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Batch]:
        rows: list[torch.Tensor] = []
        owners: list[int] = []
        masks: list[torch.Tensor] = []
        first: dict[
            str, int
        ] = {}  # copies of a picture count as one, or it would be judged by its own twin
        for owner, tensors, mask in map_ahead(
            self._load, range(len(self.sources)), ahead=2 * self.batch_size
        ):
            for tensor in tensors:
                rows.append(tensor)
                owners.append(first.setdefault(self.digests[owner], owner))
                masks += [] if mask is None else [mask]
                if len(rows) == self.batch_size:
                    yield _batch(rows, owners, masks)
                    rows, owners, masks = [], [], []
        if rows:
            yield _batch(rows, owners, masks)

    def on(self, device: torch.device) -> Iterator[Batch]:
        """A pass over it, the images on a device."""
        for batch in self:
            yield replace(batch, images=batch.images.to(device))

    @property
    def rows(self) -> int:
        """How many pictures, each copy counted, one pass has when none is broken."""
        return len(self.sources) * len(self.copies)

    @property
    def originals(self) -> dict[int, int]:
        """Of each picture decoded so far the position of the first one of the same content, which may be itself."""
        first: dict[str, int] = {}
        return {
            index: first.setdefault(self.digests[index], index) for index in sorted(self.digests)
        }

    @property
    def copies(self) -> list[tuple[float, bool]]:
        """How every picture comes, in this order: (angle in degrees, whether mirrored)."""
        angles = [360.0 * turn / self.rotations for turn in range(self.rotations)]
        return list(product(angles, (False, True) if self.flips else (False,)))

    def _load(self, index: int) -> tuple[int, list[torch.Tensor], torch.Tensor | None]:
        if index in self.failures:
            return index, [], None
        source, window = self.sources[index], self.preprocessing.decode_window()
        name = name_of(source, index)
        try:
            with within_memory(name):
                picture = decode(source, window=window, name=name)
                digest, notes, small = picture.digest, picture.notes, thumbnail(picture.pixels)
                copies = [
                    prepare(picture, self.preprocessing, angle=angle, flip=flip)
                    for angle, flip in self.copies
                ]
                del picture  # before the mask is decoded
            mask = self._mask(self.marks[index]) if self.marks else None
        except _OF_ONE_PICTURE as error:
            reason = getattr(error, "reason", str(error))
            named = getattr(error, "source", name)  # a mask may be what is broken
            self.failures[index] = Failure(source=named, reason=reason)
            return index, [], None
        self.digests[index] = digest
        self.thumbnails[index] = small
        if notes:
            self.notes[digest] = notes
        return index, copies, mask

    def _mask(self, sample: Sample) -> torch.Tensor:
        """As in `Batch.masks`: h w."""
        height, width = self.preprocessing.height, self.preprocessing.width
        with within_memory(str(sample.mask or sample.path)):
            mask = marked(sample, height, width)
        if mask is None:
            return torch.full((height // 4, width // 4), torch.nan)
        share = torch.from_numpy(mask.astype(np.float32))[None]
        return F.adaptive_avg_pool2d(share, (height // 4, width // 4))[0]


def _batch(rows: list[torch.Tensor], owners: list[int], masks: list[torch.Tensor]) -> Batch:
    return Batch(torch.stack(rows), torch.tensor(owners), torch.stack(masks) if masks else None)


def name_of(source: Any, index: int) -> str:
    """The path as given (or the name of an open file); "array 3" for the fourth source of a call where it is an array,
    a tensor or a PIL image, "file 3" where it is a file without a name, or the bytes of one."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, bytes) or hasattr(source, "read"):
        name = getattr(source, "name", None)
        return name if isinstance(name, str) else f"file {index}"
    return f"array {index}"


def load_picture(source: Any, index: int, window: tuple[float, float] | None) -> Picture | Failure:
    """The decoded picture, or why it cannot be."""
    return of_picture(lambda picture: picture, source, index, window)


def of_picture(
    function: Callable[[Picture], R], source: Any, index: int, window: tuple[float, float] | None
) -> R | Failure:
    """What a function makes of a decoded picture; why not, where it cannot be decoded or memory runs out."""
    name = name_of(source, index)
    try:
        with within_memory(name):
            return function(decode(source, window=window, name=name))
    except _OF_ONE_PICTURE as error:
        return Failure(source=name, reason=getattr(error, "reason", str(error)))
