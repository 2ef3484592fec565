"""Pictures decoded ahead of the computation, in order, the broken ones set aside."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeGuard, TypeVar

from blemish.data.tiles import Tile
from blemish.data.transforms import Preprocessing
from blemish.errors import InputError, MissingExtraError, NonFiniteError
from blemish.images import LIMITS, Limits, Picture, decode, within_memory
from blemish.images.limits import BUDGET
from blemish.types import Failure, Frame

T = TypeVar("T")
R = TypeVar("R")

# A setting that is wrong (ConfigError) is wrong for every picture, and not set aside.
_OF_ONE_PICTURE = (InputError, NonFiniteError, MissingExtraError)
WORKERS = min(8, max(2, os.cpu_count() or 1))


def map_ahead(function: Callable[[T], R], items: Iterable[T], *, ahead: int) -> Generator[R]:
    """`map` in a thread pool, in order, with at most `ahead` results computed in advance.

    No more items are taken than that and the one whose result is next. Where taking one raises,
    what came before is given first. The pictures that a call decodes count to the process's memory
    for pictures until it returns: it is to give back what is made of them, not them.
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


def is_tile(source: Any) -> TypeGuard[Tile]:
    """Whether it is a tile of a picture."""
    return isinstance(source, Tile)


def picture_of(source: Any, index: int, preprocessing: Preprocessing) -> Picture:
    """The decoded picture, or tile. Raises: as `decode`."""
    if isinstance(source, Tile):
        return source.cut()
    return decode(source, window=preprocessing.decode_window(), name=name_of(source, index))


def name_of(source: Any, index: int) -> str:
    """The path as given, or the name of an open file; "array 3" for the fourth source of a call
    where it is an array, a tensor or a PIL image, "file 3" where it is the bytes of a file or a
    file without a name."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, Frame):
        return source.name
    if isinstance(source, Tile):
        return source.picture.name
    if isinstance(source, Failure):
        return source.source
    if isinstance(source, bytes) or hasattr(source, "read"):
        name = getattr(source, "name", None)
        return name if isinstance(name, str) else f"file {index}"
    return f"array {index}"


def load_picture(source: Any, index: int, window: tuple[float, float] | None) -> Picture | Failure:
    """The decoded picture, or why it cannot be."""
    return of_picture(lambda picture: picture, source, index, window)


def of_picture(
    function: Callable[[Picture], R],
    source: Any,
    index: int,
    window: tuple[float, float] | None,
    limits: Limits = LIMITS,
) -> R | Failure:
    """What a function makes of a decoded picture, or why it cannot be decoded."""
    name = name_of(source, index)
    return failing(lambda: function(decode(source, window=window, limits=limits, name=name)), name)


def failing(function: Callable[[], R], name: str) -> R | Failure:
    """What a function gives, or why a picture of this name, or its mask, cannot be used."""
    try:
        with within_memory(name):
            return function()
    except _OF_ONE_PICTURE as error:
        # A mask may be what is broken.
        reason = getattr(error, "reason", str(error))
        return Failure(source=getattr(error, "source", name), reason=reason)
