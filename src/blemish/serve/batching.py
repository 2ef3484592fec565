"""Pictures of many requests, decoded beside the computation and scored together.

A picture is decoded in a small pool while others are computed. Whenever the computation is free it
takes what is ready, at most a whole batch; it waits for more only while others are on their way,
and never longer than the longest wait. The batch goes through `Detector.predict_loaded`, the code
of `predict`, in the one thread that computes: two at once would only share the cores.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from blemish.data.ahead import WORKERS
from blemish.detector.predict import Detector
from blemish.detector.reading import Loaded
from blemish.images import Limits, Picture
from blemish.images.limits import BUDGET
from blemish.types import Failure, Frame, Prediction

Result = Prediction | Failure
See = Callable[[Picture], None]
Observe = Callable[[int, float], None]


@dataclass(eq=False)
class Upload:
    """A picture that somebody sent.

    Attributes:
        content: the bytes of a file, or pixels as `Detector.predict` takes them.
        name: what its sender calls it; shown and kept, never a path of ours.
        source: where it comes from ("camera 2"); category: as of `predict_many`.
        received: in seconds since 1970 (UTC).
        see: called in a thread with the decoded picture (not with one that is cut into tiles).
        thumbnail: a small JPEG of it, where somebody has made one.
        times: of what was done with it, each (start, end) in ns since 1970: decode, wait, compute.
    """

    content: Any
    name: str = "picture"
    source: str = ""
    category: str = ""
    received: float = field(default_factory=time.time)
    see: See | None = None
    thumbnail: bytes | None = field(default=None, repr=False)
    times: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def frame(self) -> Frame:
        """It as `predict_many` takes it."""
        return Frame(source=self.content, name=self.name, time=self.received)


class Pools:
    """The threads of a service: some that decode, one that computes, one that loads, and some for
    what the pages ask for."""

    def __init__(self, decoders: int = WORKERS) -> None:
        self.decoders = decoders
        self.decode = ThreadPoolExecutor(decoders, thread_name_prefix="blemish-decode")
        self.compute = ThreadPoolExecutor(1, thread_name_prefix="blemish-compute")
        self.load = ThreadPoolExecutor(1, thread_name_prefix="blemish-load")
        self.pages = ThreadPoolExecutor(4, thread_name_prefix="blemish-pages")
        self.computing = asyncio.Lock()

    def close(self) -> None:
        """Let the threads end, once they have done what they are at."""
        for pool in (self.decode, self.compute, self.load, self.pages):
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(eq=False)
class _Job:
    """An upload on its way; loaded: None = it is decoded with its tiles, as it is computed."""

    upload: Upload
    loaded: Loaded | None
    done: asyncio.Future[Result]
    ready: float = field(default_factory=time.monotonic)
    ready_ns: int = field(default_factory=time.time_ns)


class Batcher:
    """Scores the pictures of one detector, in batches.

    Args: longest_wait: in seconds. observe: called with the number of pictures of a batch and the
        seconds that it took.
    """

    def __init__(
        self,
        detector: Detector,
        pools: Pools,
        *,
        largest: int,
        longest_wait: float,
        limits: Limits,
        observe: Observe = lambda count, seconds: None,
    ) -> None:
        self._detector, self._pools, self._limits = detector, pools, limits
        self._largest, self._longest_wait, self._observe = largest, longest_wait, observe
        self._in_tiles = detector.preprocessing.tiling is not None
        # Decoded pictures that wait take memory: no more than two batches of them, one that is
        # computed, and what the decoders have in hand.
        self._room = asyncio.Semaphore(3 * largest + pools.decoders)
        self._ready: deque[_Job] = deque()
        self._coming = 0
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def score(self, upload: Upload) -> Result:
        """The prediction of a picture, or why it cannot be scored.

        Cancelled, it takes the picture out, if nothing has begun with it.

        Raises: ConfigError for an unknown category; NonFiniteError, EngineError of this picture.
        """
        reading = self._detector.reading(upload.category, self._limits)
        async with self._room:
            self._coming += 1
            try:
                loaded = None
                if not self._in_tiles:
                    found = await self._in_pool(_decoded, reading, upload)
                    if isinstance(found, Failure):
                        return found
                    loaded = found
            finally:
                self._coming -= 1
                self._changed.set()
            job = _Job(upload, loaded, asyncio.get_running_loop().create_future())
            self._ready.append(job)
            if self._running is None or self._running.done():
                self._running = asyncio.create_task(self._run())
            return await job.done

    async def close(self) -> None:
        """Once nothing is left to do."""
        if self._running is not None:
            await self._running

    async def _in_pool(self, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pools.decode, work, *given)

    async def _run(self) -> None:
        """Computes until nothing is ready."""
        loop = asyncio.get_running_loop()
        while self._ready:
            async with self._pools.computing:
                batch = await self._gathered()
                if not batch:
                    continue
                began = time.monotonic()
                computed = loop.run_in_executor(self._pools.compute, self._computed, batch)
                results = await asyncio.shield(computed)
            self._observe(len(batch), time.monotonic() - began)
            for job, result in zip(batch, results, strict=True):
                if job.done.done():  # its client has gone
                    continue
                if isinstance(result, Exception):
                    job.done.set_exception(result)
                else:
                    job.done.set_result(result)

    async def _gathered(self) -> list[_Job]:
        """What is to be computed next: what is ready, and what comes within the longest wait."""
        while True:
            self._ready = deque(job for job in self._ready if not job.done.done())
            left = 0.0
            if self._ready and self._coming and len(self._ready) < self._largest:
                left = self._ready[0].ready + self._longest_wait - time.monotonic()
            if left <= 0:
                count = 1 if self._in_tiles else self._largest
                return [self._ready.popleft() for _ in range(min(count, len(self._ready)))]
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _computed(self, batch: Sequence[_Job]) -> list[Result | Exception]:
        """In the thread that computes: what is found of each; an error where one has its own."""
        began = time.time_ns()
        try:
            found: list[Result | Exception] = [*self._predicted(batch)]
        except Exception as error:
            found = [error] if len(batch) == 1 else self._one_by_one(batch)
        ended = time.time_ns()
        for job in batch:
            job.upload.times |= {"wait": (job.ready_ns, began), "compute": (began, ended)}
        return found

    def _one_by_one(self, batch: Sequence[_Job]) -> list[Result | Exception]:
        """Each by itself: what is wrong with one of them is not to harm the others."""
        found: list[Result | Exception] = []
        for job in batch:
            try:
                found += self._predicted([job])
            except Exception as error:
                found.append(error)
        return found

    def _predicted(self, batch: Sequence[_Job]) -> list[Result]:
        if self._in_tiles:
            (job,) = batch
            upload = job.upload
            return list(
                self._detector.predict_many(
                    [upload.frame],
                    category=upload.category,
                    batch_size=min(8, self._largest),
                    limits=self._limits,
                )
            )
        return self._detector.predict_loaded([job.loaded for job in batch if job.loaded])


def _decoded(reading: Any, upload: Upload) -> Loaded | Failure:
    began = time.time_ns()
    with BUDGET.held():
        found: Loaded | Failure = reading.load(upload.frame, see=upload.see)
    upload.times["decode"] = (began, time.time_ns())
    return found
