"""Big pictures, read in windows: what that takes in memory goes by what is read, not by the
picture.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BufferedReader
from pathlib import Path

import numpy as np

from blemish.errors import ConfigError
from blemish.images.blocks import Page, check_blocks
from blemish.images.decoder import Picture, decode
from blemish.images.limits import (
    BUDGET,
    LIMITS,
    Limits,
    Unusable,
    check_bytes,
    check_size,
    within_memory,
)
from blemish.images.pieces import Grid, unfit
from blemish.images.pixels import Array, Raw, row_blocks
from blemish.images.rendering import Extent, check_window, digest_of, is_unclear, notes_of, shown
from blemish.images.sources import Reading, Source, explained, label_of, opened, peak, sniff
from blemish.types import Frame

_KEPT = 2**28  # bytes of decoded pieces: 448 rows of a picture 65,536 wide, at 16 bits
_CHANGED = "has changed since it was opened: open it again"


class Windows(ABC):
    """A picture that is read in parts, upright; `open_windows` makes one.

    Safe to use from many threads. A file that is read in windows stays open until `close`, the end
    of a `with`, or the end of the object.

    Attributes:
        size: (H, W).
        source: path or description of where it came from.
        whole: whether the picture is in memory, decoded.
    """

    size: tuple[int, int]
    source: str
    whole: bool

    @property
    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """As of `Picture`."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """As of `Picture`."""

    def read(self, rows: slice, columns: slice) -> Array:
        """Exactly `decode(…).pixels[rows, columns]`, for slices without a step: (h, w, 3), uint8 in
        0..255 or float32 in [0, 1]. Treat it as read-only.

        Raises: ImageError where the file has changed, or cannot be read any more; ConfigError for a
            slice with a step.
        """
        down, across = rows.indices(self.size[0]), columns.indices(self.size[1])
        if down[2] != 1 or across[2] != 1:
            raise ConfigError(f"a window has no step, as {rows}, {columns}: read it and take every")
        return self._part(range(*down), range(*across))

    @abstractmethod
    def _part(self, down: range, across: range) -> Array: ...

    def close(self) -> None:  # noqa: B027 - where there is no file
        """Let go of the file; nothing can be read after it."""

    def __enter__(self) -> Windows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_windows(
    source: Source,
    *,
    window: tuple[float, float] | None = None,
    limits: Limits = LIMITS,
    name: str | None = None,
    in_memory: int = 64_000_000,
) -> Windows:
    """A picture to read parts of, which are those of `decode` to the pixel.

    A TIFF file of more than `in_memory` pixels is read in windows: its strips or tiles are decoded
    when they are needed, and those near the latest window are kept, up to 256 MiB. It is looked
    through once when it is opened, all of it, so that a damaged one is refused as `decode` refuses
    it. Everything else is decoded whole, within the limits for that: smaller pictures; those in
    memory; other formats; and a TIFF that is stored turned, with its bands apart, of floats with
    transparency, subsampled without JPEG, compressed in a rare way, or a row of whose strips or
    tiles takes over 512 MiB.

    Args: in_memory: the most pixels that are decoded whole where there is a choice; the others are
        those of `decode`.
    Raises: as `decode`.

    Example:
        >>> windows = open_windows(np.arange(12, dtype=np.uint8).reshape(3, 4))
        >>> windows.size, windows.read(slice(1, 3), slice(0, 2))[..., 0].tolist()
        ((3, 4), [[4, 5], [8, 9]])
    """
    check_window(window)
    label = name or label_of(source)
    stored = source.source if isinstance(source, Frame) else source
    if isinstance(stored, (str, os.PathLike)):
        path = Path(stored)
        found = explained(lambda reading: _page_of(path, limits, in_memory, reading), label)
        if found is not None:
            return _InPieces(*found, window, limits, label)
    return _Whole(decode(source, window=window, limits=limits, name=name))


class _Whole(Windows):
    whole = True

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self.size, self.source = picture.size, picture.source

    @property
    def notes(self) -> tuple[str, ...]:
        return self._picture.notes

    @property
    def digest(self) -> str:
        return self._picture.digest

    def _part(self, down: range, across: range) -> Array:
        return self._picture.pixels[down.start : down.stop, across.start : across.stop]


class _File:
    """The bytes of an open file, from the disk when they are asked for."""

    def __init__(self, file: BufferedReader) -> None:
        self._file, self._lock = file, threading.Lock()
        self._length = os.fstat(file.fileno()).st_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice, /) -> bytes:
        start, stop, _ = part.indices(self._length)
        length = max(stop - start, 0)
        try:
            with self._lock:
                self._file.seek(start)
                found = self._file.read(length)
        except OSError as error:
            raise Unusable(f"cannot be read ({error.strerror or error})") from None
        except ValueError:  # of a closed file
            raise Unusable("was closed: open it again") from None
        if len(found) != length:
            raise Unusable(_CHANGED)
        return found


def _page_of(
    path: Path, limits: Limits, in_memory: int, reading: Reading
) -> tuple[BufferedReader, Page] | None:
    """A TIFF to be read in windows, open; None for what is to be decoded whole."""
    file = opened(path)
    try:
        data = _File(file)
        page = None
        if sniff(data[:132]) == "tiff":
            reading.what = "TIFF"
            page = Page(data, limits, windows=True)
            check_bytes(len(data), limits, "max_bytes_in_windows")
            if page.width * page.height <= in_memory and len(data) <= limits.max_bytes:
                page = None
            elif reason := unfit(page):
                advice = f", as it cannot be read in windows: {reason}"
                check_bytes(len(data), limits, advice=advice)
                check_size(page.width, page.height, limits, advice=advice)
                page = None
    except BaseException:
        file.close()
        raise
    if page is None:
        file.close()
        return None
    return file, page


class _InPieces(Windows):
    """A TIFF, by its strips or tiles.

    What is read later is held against checksums of what was checked: a file that another program
    writes to gives an error, and not other pixels.
    """

    whole = False

    def __init__(
        self,
        file: BufferedReader,
        page: Page,
        window: tuple[float, float] | None,
        limits: Limits,
        label: str,
    ) -> None:
        self._close = weakref.finalize(self, file.close)
        self.size, self.source = (page.height, page.width), label
        self._data, self._window, self._limits = _File(file), window, limits
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Raw] = OrderedDict()  # the last used is last
        self._held = 0  # bytes of them
        try:
            with within_memory(label):
                explained(lambda reading: self._look_through(page, reading), label)
        except BaseException:
            self.close()
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes

    @property
    def digest(self) -> str:
        return self._digest

    def close(self) -> None:
        self._close()
        with self._lock:
            self._kept.clear()
            self._held = 0

    def _look_through(self, page: Page, reading: Reading) -> None:
        """Check and decode every piece once, for what is known of the whole picture only."""
        reading.what = "TIFF"
        if page.compression == 1:
            check_blocks(self._data, page, self._limits)
        self._grid = grid = Grid.of(page)
        self._sums = np.zeros((grid.rows, grid.columns), np.uint32)
        self._peak = peak("tiff", grid.across * grid.down, page.channels, page.bits)
        BUDGET.reserve(grid.row_bytes + self._peak, self._limits.memory)
        extent, digest = Extent(math.inf, -math.inf, False), None
        for row in range(grid.rows):
            pieces = {(row, column): self._checked(row, column) for column in range(grid.columns)}
            raw = pieces[row, 0]
            for each in pieces.values():
                extent = extent.with_other(Extent.of(each, self.source))
            if is_unclear(raw, self._window, extent):
                continue  # which is refused, once it is known how far its values go
            if digest is None:
                self._dtype = self._shown(_part_of(raw, 1, 1), extent).dtype
                digest = digest_of(self.size, self._dtype)
            first, height = row * grid.down, len(raw.values)
            for rows in row_blocks(height, self.size[1]):
                down = range(first + rows.start, first + rows.stop)
                band = self._assembled(down, range(self.size[1]), pieces.__getitem__, extent)
                digest.update(band.data)
        self._shown(_part_of(raw, 1, 1), extent)  # refuses what is unclear
        assert digest is not None
        self._extent, self._digest = extent, digest.hexdigest()
        self._notes = notes_of(raw, self._window, extent)

    def _shown(self, raw: Raw, extent: Extent) -> Array:
        return shown(raw, self._window, extent, self.source)

    def _checked(self, row: int, column: int) -> Raw:
        """A piece that is read for the first time."""
        coded = self._grid.coded(self._data, row, column)
        self._grid.check(coded, row, column, self._limits)
        self._sums[row, column] = _sum(coded)
        return self._decoded(coded, row, column)

    def _decoded(self, coded: list[bytes], row: int, column: int) -> Raw:
        raw = self._grid.decoded(coded, row, column)
        height, width = self.size
        return _part_of(raw, height - row * self._grid.down, width - column * self._grid.across)

    def _piece(self, place: tuple[int, int]) -> Raw:
        """A piece that was read before. Called by one thread at a time."""
        raw = self._kept.pop(place, None)
        if raw is None:
            coded = self._grid.coded(self._data, *place)
            if _sum(coded) != self._sums[place]:
                raise Unusable(_CHANGED)
            raw = self._decoded(coded, *place)
            self._held += raw.values.nbytes
        self._kept[place] = raw
        while self._held > _KEPT and len(self._kept) > 1:
            self._held -= self._kept.popitem(last=False)[1].values.nbytes
        return raw

    def _part(self, down: range, across: range) -> Array:
        with within_memory(self.source) as memory:
            size = 3 * len(down) * len(across) * self._dtype.itemsize
            # Before the lock: nobody waits for memory while others wait for the lock.
            explained(lambda _: BUDGET.reserve(size + self._peak, self._limits.memory), self.source)
            with self._lock:
                pixels = explained(lambda reading: self._read(down, across, reading), self.source)
            memory.kept = pixels.nbytes
        return pixels

    def _read(self, down: range, across: range, reading: Reading) -> Array:
        reading.what = "TIFF"
        self._leave_behind(down)
        return self._assembled(down, across, self._piece, self._extent)

    def _leave_behind(self, down: range) -> None:
        """Let go of pieces further above these rows than there are rows: a picture is read from its
        top to its bottom, as a rule. Called by one thread at a time."""
        first = (down.start - len(down)) // self._grid.down
        for place in [each for each in self._kept if each[0] < first]:
            self._held -= self._kept.pop(place).values.nbytes

    def _assembled(
        self, down: range, across: range, piece: Callable[[tuple[int, int]], Raw], extent: Extent
    ) -> Array:
        """These rows and columns of the picture."""
        pixels = np.empty((len(down), len(across), 3), self._dtype)
        for row, rows, own_rows in _overlaps(down, self._grid.down):
            for column, columns, own_columns in _overlaps(across, self._grid.across):
                raw = piece((row, column))
                part = replace(raw, values=raw.values[own_rows, own_columns])
                pixels[rows, columns] = self._shown(part, extent)
        return pixels


def _overlaps(span: range, step: int) -> Iterator[tuple[int, slice, slice]]:
    """The pieces of `step` pixels that a span meets: their number, where they come to lie in the
    span, and which pixels of each."""
    if not span:
        return
    for number in range(span.start // step, (span.stop - 1) // step + 1):
        begin, end = max(span.start, number * step), min(span.stop, (number + 1) * step)
        yield (
            number,
            slice(begin - span.start, end - span.start),
            slice(begin - number * step, end - number * step),
        )


def _part_of(raw: Raw, height: int, width: int) -> Raw:
    """The upper left of a picture, at most of that size, with memory of its own."""
    return replace(raw, values=np.ascontiguousarray(raw.values[:height, :width]))


def _sum(coded: list[bytes]) -> int:
    found = 0
    for each in coded:
        found = zlib.crc32(each, found)
    return found
