"""What is scored goes to the store: rows of many requests in one transaction, pictures beside them.

A prediction is durable when its client has the answer, where the store can be reached. Where it
cannot, scoring goes on: rows wait in the spool, a file beside the store, and answers have no id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from blemish.detector.predict import Detector
from blemish.errors import BlemishError
from blemish.images import Picture
from blemish.report.heatmap import encode_jpeg, thumbnail
from blemish.report.predictions import small
from blemish.serve.batching import Upload
from blemish.serve.drawing import THUMBNAIL, encoded
from blemish.serve.files import ModelFile
from blemish.serve.logs import Log
from blemish.serve.models import Served
from blemish.serve.settings import Settings
from blemish.store import Scored, Spool, Store, VersionRow
from blemish.types import Prediction

_PATIENCE = 2.0  # seconds that an answer waits for its row
_MOST = 512  # rows of a transaction
_MINUTE, _HOUR = 60.0, 3600.0


@dataclass(eq=False)
class _Waiting:
    """A row that is to be written."""

    row: Scored
    note: str = ""  # why it is not in the store, once the future is done
    id: asyncio.Future[int | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What became of a prediction.

    Attributes: id: in the store, None where that is not known. notes: what is not kept, or not yet.
    """

    id: int | None
    notes: tuple[str, ...] = ()


class Keeper:
    """Writes down what was scored.

    Attributes: store; spool: rows that wait for the store to be back.
    """

    def __init__(self, store: Store, settings: Settings, log: Log) -> None:
        self.store, self._settings, self._log = store, settings, log
        self.spool = Spool(store)
        self._rows: list[_Waiting] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="blemish-store")
        self._media = ThreadPoolExecutor(2, thread_name_prefix="blemish-media")
        self._writing: asyncio.Task[None] | None = None
        self._cleaning = asyncio.create_task(self._clean())
        self._told: dict[str, float] = {}

    async def keep(self, upload: Upload, found: Prediction, served: Served) -> Kept:
        """Write down a prediction, with its picture."""
        told = {"model": served.name, "version": served.version, "source": upload.source}
        told["space"] = served.detector.descriptor_space
        row = await self._in(self._media, partial(Scored.of, found, **told))  # off the loop
        waiting = _Waiting(row)
        self._rows.append(waiting)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        media = self._in(self._media, self._put, upload, found, served)
        is_gone = self.spool.waiting > 0  # no answer waits for a store that is gone
        try:
            async with asyncio.timeout(_PATIENCE):
                note = await media
                id = None if is_gone else await asyncio.shield(waiting.id)
        except TimeoutError:
            return Kept(id=None)
        fault = self.spool.fault
        waits = _waits(fault) if is_gone and fault is not None else waiting.note
        return Kept(id=id, notes=tuple(filter(None, (waits, note))))

    async def note_version(self, file: ModelFile, detector: Detector) -> None:
        """Write down what a version is, where it is not known yet. Raises: StoreError."""
        await self._in(self._writer, _noted, self.store, file, detector)

    async def close(self) -> None:
        """Write what is left."""
        self._cleaning.cancel()
        if self._writing is not None:
            await self._writing
        try:
            await self._in(self._writer, self.spool.close)
        except BlemishError as error:
            self._log.warn(
                "predictions were not written", reason=str(error), kind=type(error).__name__
            )
        self._writer.shutdown(wait=True)
        self._media.shutdown(wait=True)
        self.store.close()

    def see(self, upload: Upload) -> Callable[[Picture], None]:
        """Makes the thumbnail of a picture while it is decoded."""

        def seen(picture: Picture) -> None:
            upload.thumbnail = encode_jpeg(thumbnail(picture.as_uint8(), THUMBNAIL))

        return seen

    async def _write(self) -> None:
        """Writes rows, all that wait in one transaction, until none is left."""
        while self._rows:
            taken, self._rows = self._rows[:_MOST], self._rows[_MOST:]
            rows = [one.row for one in taken]
            ids: list[int] | None = None
            note = ""
            try:
                ids = await self._in(self._writer, self.spool.add, rows)
            except BlemishError as error:  # each time: nothing else remembers them
                note, why = f"not kept: {error}", type(error).__name__
                self._log.warn("predictions are lost", reason=str(error), kind=why, rows=len(rows))
            else:
                fault = self.spool.fault
                if fault is not None:
                    self._complain("predictions wait for the store", fault)
                    note = _waits(fault)
            known: Sequence[int | None] = ids or [None] * len(rows)
            for one, id in zip(taken, known, strict=True):
                one.note = "" if ids else note
                if not one.id.done():
                    one.id.set_result(id)

    def _put(self, upload: Upload, found: Prediction, served: Served) -> str:
        """In a thread: the files of a prediction. What cannot be written is left out, and told: in
        the log, and as what is returned."""
        store, settings = self.store, self._settings
        try:
            if upload.thumbnail is None:
                window = served.detector.preprocessing.decode_window()
                upload.thumbnail = encode_jpeg(small(upload.content, window, THUMBNAIL))
            store.put_thumbnail(found.digest, upload.thumbnail)
            if settings.keep_maps:
                store.put_map(found.digest, served.name, served.version, found.anomaly_map)
            if settings.keep_pictures:
                store.put_picture(found.digest, _file_of(upload.content))
        except BlemishError as error:
            self._complain("a picture is not kept", error)
            return str(error)
        return ""

    async def _clean(self) -> None:
        """Every hour what is old, or too much, goes."""
        days, gibibytes = self._settings.keep_days, self._settings.keep_gibibytes
        while days is not None or gibibytes is not None:
            try:
                told = await self._in(self._media, _retained, self.store, days, gibibytes)
                self._log.note("retained", **asdict(told))
            except BlemishError as error:
                self._complain("what is old is not deleted", error)
            await asyncio.sleep(_HOUR)

    def _complain(self, event: str, error: BlemishError, **fields: Any) -> None:
        """Of each event once a minute, not once a picture."""
        now = time.monotonic()
        if now - self._told.get(event, -_MINUTE) >= _MINUTE:
            self._told[event] = now
            self._log.warn(event, reason=str(error), kind=type(error).__name__, **fields)

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *given)


def _waits(fault: BlemishError) -> str:
    """What an answer says of a prediction that is not in the store yet."""
    return f"not in the store yet, it is written as soon as that can be: {fault}"


def _file_of(content: Any) -> bytes:
    """What was sent as a file; pixels as PNG."""
    if isinstance(content, bytes):
        return content
    return encoded(np.ascontiguousarray(content[..., ::-1]))


def _noted(store: Store, file: ModelFile, detector: Detector) -> None:
    known = store.version(file.name, file.version)
    if known is not None and known.sha256 == file.digest:
        return
    threshold = detector.threshold
    store.add_version(
        VersionRow(
            model=file.name,
            version=file.version,
            sha256=file.digest,
            method=detector.record.method,
            threshold=None if threshold is None else threshold.value,
            rate=None if threshold is None else threshold.rate,
        )
    )


def _retained(store: Store, days: float | None, gibibytes: float | None) -> Any:
    return store.retain(days=days, gibibytes=gibibytes)
