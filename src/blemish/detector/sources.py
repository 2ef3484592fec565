"""What `Detector.predict_many` is given: the pictures that sources stand for, batch by batch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from blemish.data.ahead import name_of
from blemish.data.folder import find_pictures
from blemish.errors import DataError
from blemish.types import Failure, Frame, Sample

T = TypeVar("T")


def several(sources: Any) -> Iterable[Any]:
    """What `predict_many` was given as what to go through: a single picture is a list of one."""
    shape = tuple(getattr(sources, "shape", ()))
    torch = sys.modules.get("torch")  # without it nobody has a tensor
    is_tensor = torch is not None and isinstance(sources, torch.Tensor)
    channels = (shape[:1] if is_tensor else ()) + shape[2:]
    kinds = (str, Path, bytes, Sample, Frame, Image.Image)
    one = isinstance(sources, kinds) or hasattr(sources, "read")
    if one or len(shape) == 2 or (len(shape) == 3 and not {1, 3, 4}.isdisjoint(channels)):
        return [sources]
    given: Iterable[Any] = sources
    return given


def expanded(sources: Iterable[Any]) -> Iterator[Any]:
    """What the sources stand for, as it is asked for; a Failure in the place of a path that leads
    nowhere."""
    for index, source in enumerate(sources):
        try:
            found = opened(source)
        except DataError as error:
            name = name_of(source.path if isinstance(source, Sample) else source, index)
            found = [Failure(source=name, reason=str(error).removeprefix(f"{name}: "))]
        yield from found


def opened(source: Any) -> Sequence[Any]:
    """The pictures that a source stands for: itself, where it is no path. Raises: DataError."""
    path = source.path if isinstance(source, Sample) else source
    if not isinstance(path, (str, Path)) or _is_no_picture(Path(path)):
        return [source]
    if isinstance(source, Sample):
        return [replace(source, path=found) for found in find_pictures(source.path)]
    return find_pictures(source)


def _is_no_picture(path: Path) -> bool:
    """Whether it is there and is neither a file nor a folder, as a link that leads nowhere or to a
    device: a broken picture among others."""
    return os.path.lexists(path) and not path.is_file() and not path.is_dir()


def _is_full(pictures: int, readable: int, size: int) -> bool:
    """Whether a batch of so many pictures, `readable` of them, takes no more."""
    return readable in (0, size) or pictures == 4 * size


def batch_begun(readable: Iterable[bool], size: int) -> int:
    """How many of the latest pictures are in a batch that is not full, by whether each was
    readable.

    Scores of other batches differ in the last digit, as sums are taken in another order: who goes
    on from here to the same scores begins so many pictures earlier.
    """
    pictures = good = 0
    for one in readable:
        pictures, good = pictures + 1, good + one
        if _is_full(pictures, good, size):
            pictures = good = 0
    return pictures


def chunks(
    loads: Iterable[T | Failure], size: int, is_end: Callable[[T], bool]
) -> Iterator[list[T | Failure]]:
    """In order, `size` readable pictures at a time with the broken ones among them; a broken one
    waits for no good one, and after one that `is_end` there is no wait."""
    chunk: list[T | Failure] = []
    readable = 0
    try:
        for one in loads:
            chunk.append(one)
            readable += not isinstance(one, Failure)
            ends = not isinstance(one, Failure) and is_end(one)
            if ends or _is_full(len(chunk), readable, size):
                yield chunk
                chunk, readable = [], 0
    except Exception:  # of the iterator that they come from: what it gave before is not lost
        yield chunk
        raise
    yield chunk
