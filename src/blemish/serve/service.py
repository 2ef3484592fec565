"""The service: what comes over HTTP, pages and jobs all use, in one place."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from starlette.types import Scope

from blemish.detector.predict import Detector
from blemish.errors import BlemishError, ConfigError, NonFiniteError, StoreError
from blemish.serve import guard
from blemish.serve.batching import Pools, Upload
from blemish.serve.events import Events
from blemish.serve.files import ModelFile
from blemish.serve.following import Follower
from blemish.serve.jobs import Jobs
from blemish.serve.keeping import Keeper, Kept
from blemish.serve.logs import Log
from blemish.serve.metrics import Metrics
from blemish.serve.models import Registry, Served
from blemish.serve.refusals import Refusal, bad_request, busy, too_large, unusable
from blemish.serve.security import COOKIE, Gate, read_tokens
from blemish.serve.sessions import Sessions
from blemish.serve.settings import Settings
from blemish.serve.telemetry import Spans
from blemish.serve.together import Together
from blemish.store import Store
from blemish.types import Prediction

_WAIT = 5.0  # seconds for a store that is busy or gone


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is told of a picture.

    Attributes:
        served: the version that scored it. prediction: what it found.
        row: JSON-ready, `Prediction.to_dict()` with `id`.
        id: of its row in the store; None where there is no store, or it cannot be reached now.
    """

    served: Served
    prediction: Prediction
    row: dict[str, Any]
    id: int | None


class Place:
    """What a request holds of the queue and of memory, until its end."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.pictures = self.held = 0

    def take(self, pictures: int) -> None:
        """Have room for so many pictures in all. Raises: Refusal where there is none."""
        settings, service = self._service.settings, self._service
        if pictures > min(settings.most_pictures, settings.queue):
            raise too_large(
                f"{pictures} pictures; at most {min(settings.most_pictures, settings.queue)} are "
                "taken at once: send fewer"
            )
        if service.queued - self.pictures + pictures > settings.queue:
            raise busy(service.seconds_left, "the queue is full; send it again later")
        service.queued += pictures - self.pictures
        self.pictures = pictures
        service.metrics.queue.set(service.queued)

    def hold(self, length: int) -> None:
        """Have room for so many bytes more. Raises: Refusal where there is none."""
        service = self._service
        if service.held + length > service.settings.held_bytes:
            raise busy(service.seconds_left, "too much waits in memory; send it again later")
        service.held += length
        self.held += length
        service.metrics.held.set(service.held)

    def leave(self) -> None:
        """Give all of it back."""
        service = self._service
        service.queued -= self.pictures
        service.held -= self.held
        self.pictures = self.held = 0
        service.metrics.queue.set(service.queued)
        service.metrics.held.set(service.held)


class Service:
    """Everything of a running service.

    Attributes:
        settings; models: the versions and which are live; events: what happens, to be listened to;
        metrics; log; gate: who may do what; pools: threads; loop: that it runs in.
        store: what was predicted and said; None where nothing is kept. jobs: what learns from it.
        together: this service among those that share the store.
        queued: pictures accepted and not answered. held: their bytes.
        ready: whether it takes requests: loaded, and not about to end.
    """

    def __init__(self, settings: Settings, log: Log | None = None) -> None:
        self.settings = settings
        self.log = log or Log(settings.log_format)
        tokens = None if settings.token_file is None else read_tokens(settings.token_file)
        self.gate = Gate(tokens, f"{COOKIE}_{settings.port}")
        self.metrics, self.events = Metrics(), Events()
        self.spans = Spans() if settings.telemetry else None
        self.store: Store | None = None
        self.keeper: Keeper | None = None
        self.jobs: Jobs | None = None
        self.follower: Follower | None = None
        self.together: Together | None = None
        self.queued = self.held = 0
        self.ready = False
        self.answered: Counter[int] = Counter()
        self._begun = False
        self._rate = 0.0  # pictures a second, lately
        self.loop: asyncio.AbstractEventLoop
        self.pools: Pools
        self.models: Registry

    async def start(self) -> None:
        """Load what is served, once. Raises: BlemishError."""
        if self.ready:
            return
        self.loop = asyncio.get_running_loop()
        self.events.open()
        self.pools, self._begun = Pools(), True
        settings = self.settings
        if settings.store_folder is not None:
            where = (settings.store_url, settings.store_folder)
            self.store = await self.in_pool(partial(Store.open, wait=_WAIT), *where)
            keeper = self.keeper = Keeper(self.store, settings, self.log)
            self.metrics.waiting.set_function(lambda: keeper.spool.waiting)
            sessions = self.gate.sessions = await self.in_pool(Sessions.kept, settings.store_folder)
            if sessions.fault:
                self.log.warn("a restart will end all sessions", reason=sessions.fault)
            self.together = Together(self, self.store)
            await self.together.open()
        self.models = Registry(settings, self.pools, self.store, self._batch_done)
        await self.models.open()
        for told in self.models.complaints:
            self.log.warn("a version is not served", reason=told)
        for name in self.models.names:
            self.note_live(name)
            await self._note_live_version(self.models.live(name))
        if self.store is not None and self.together is not None:
            self.jobs = Jobs(self, self.store, self.together.id)
            await self.together.follow()
            self.follower = Follower(self)
        self.ready = True

    def end(self) -> None:
        """Take no more requests; those that were accepted are done."""
        self.ready = False
        self.events.close()

    async def stop(self) -> None:
        """End what was accepted, and let go of everything."""
        self.end()
        if self._begun:
            self._begun = False
            if self.jobs is not None:
                await self.jobs.close()
            if hasattr(self, "models"):  # not where the store could not be opened
                await self.models.close()
            if self.keeper is not None:
                if self.follower is not None:
                    await self.follower.close()
                if self.together is not None:
                    await self.together.close()
                await self.keeper.close()
            if self.spans is not None:
                await self.in_pool(self.spans.close)
            self.pools.close()

    @contextmanager
    def place(self) -> Iterator[Place]:
        """A request's room, for one picture to begin with. Raises: Refusal where it is full."""
        if not self.ready:
            raise busy(5, "the service is starting or ending; send it again later")
        place = Place(self)
        try:
            place.take(1)
            yield place
        finally:
            place.leave()

    @property
    def seconds_left(self) -> float:
        """About how long what waits will take."""
        return self.queued / self._rate if self._rate else 1.0

    async def served(self, name: str, version: str | None = None) -> Served:
        """The live version of a model, or another, which is loaded. Raises: Refusal."""
        return self.models.live(name) if version is None else await self.models.load(name, version)

    async def score(self, served: Served, upload: Upload) -> Answer:
        """Score a picture, count it, keep it and tell of it.

        Raises: Refusal for a picture that cannot be scored, with nothing changed for others.
        """
        try:
            served.detector.threshold_for(upload.category)
        except ConfigError as error:
            raise bad_request(str(error)) from error
        if self.keeper is not None and upload.see is None:
            upload.see = self.keeper.see(upload)
        try:
            prediction = await served.predict(upload)
        except NonFiniteError as error:
            self.metrics.failures.labels(served.name, served.version).inc()
            reason = str(error).removeprefix(f"{upload.name}: ")
            raise unusable(f"cannot be scored: {reason}") from error
        except Refusal:
            self.metrics.failures.labels(served.name, served.version).inc()
            raise
        self.metrics.of_prediction(served.name, served.version, prediction)
        row = await self.in_pool(prediction.to_dict)  # its regions take a while
        kept = Kept(id=None)
        if self.keeper is not None:
            began = time.time_ns()
            kept = await self.keeper.keep(upload, prediction, served)
            upload.times["store"] = (began, time.time_ns())
        row |= {"id": kept.id, "notes": [*row["notes"], *kept.notes]}
        for stage, (began, ended) in upload.times.items():
            self.metrics.stages.labels(stage).observe((ended - began) / 1e9)
        if self.spans is not None:
            self.spans.of_picture(upload, model=served.name, version=served.version)
        self.events.publish("prediction", _told(upload, served, prediction, row))
        return Answer(served=served, prediction=prediction, row=row, id=kept.id)

    async def score_all(self, served: Served, uploads: Sequence[Upload]) -> list[Answer | Refusal]:
        """Score pictures, each for itself: a Refusal in the place of one that cannot be.

        Raises: what is the fault of none of them.
        """

        async def one(upload: Upload) -> Answer | Refusal:
            try:
                return await self.score(served, upload)
            except Refusal as refusal:
                return refusal

        try:
            async with asyncio.TaskGroup() as tasks:
                begun = [tasks.create_task(one(upload)) for upload in uploads]
        except ExceptionGroup as group:  # the others were ended with the first
            raise group.exceptions[0] from None
        return [task.result() for task in begun]

    async def promote(self, name: str, version: str, who: str, reason: str = "") -> Served:
        """Make a version live, and tell of it. Raises: Refusal."""
        before = self.models.live(name).version
        served = await self.models.promote(name, version, who, reason)
        await self._note_live_version(served)
        self.note_promotion(name, before, version, who)
        return served

    async def roll_back(self, name: str, who: str) -> Served:
        """Make the version before live again, and tell of it. Raises: Refusal."""
        before = self.models.live(name).version
        served = await self.models.roll_back(name, who)
        self.note_promotion(name, before, served.version, who)
        return served

    async def add(self, name: str, version: str, given: Sequence[Path]) -> ModelFile:
        """Take a new version in, as `Registry.add`, and have the store know it. Raises: Refusal."""
        read: list[Detector] = []

        async def joining(file: ModelFile, detector: Detector) -> None:
            read.append(detector)

        file = await self.models.add(name, version, given, joining)
        await self._note_version(file, read[0])
        return file

    async def _note_live_version(self, served: Served) -> None:
        await self._note_version(served.file, served.detector)

    async def _note_version(self, file: ModelFile, detector: Detector) -> None:
        """Have the store know what a version is; where it cannot be reached, that is no fault."""
        if self.keeper is None:
            return
        try:
            await self.keeper.note_version(file, detector)
        except StoreError as error:
            self.log.warn("a version is not written down", reason=str(error))

    async def in_pool(self, work: Callable[..., Any], *given: Any) -> Any:
        """What a function gives that takes a while, in one of the threads that decode."""
        return await asyncio.get_running_loop().run_in_executor(self.pools.decode, work, *given)

    def note_request(
        self, scope: Scope, status: int, seconds: float, problem: BaseException | None
    ) -> None:
        """Count and log a request that was answered."""
        fields = guard.told(scope)
        route = fields.pop("route") or "other"
        self.answered[status] += 1
        self.metrics.requests.labels(route, status).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        fields |= {"status": status, "seconds": round(seconds, 4)}
        if problem is not None:
            self.log.fail("request", problem, **fields)
        else:
            self.log.note("request", **fields)

    def _batch_done(self, name: str, version: str, pictures: int, seconds: float) -> None:
        self.metrics.of_batch(name, version, pictures, seconds)
        rate = pictures / max(seconds, 1e-6)
        self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate

    def note_promotion(self, name: str, before: str, after: str, who: str) -> None:
        """Tell everybody that another version is live."""
        self.note_live(name, before)
        self.log.note("promoted", model=name, version=after, before=before, user=who)
        self.events.publish(
            "promotion", {"model": name, "version": after, "before": before, "who": who}
        )

    def note_live(self, name: str, before: str | None = None) -> None:
        """Have the metrics say which version is live."""
        self.metrics.of_behind(name, None)
        if before is not None:
            self.metrics.live.labels(name, before).set(0)
        self.metrics.live.labels(name, self.models.live(name).version).set(1)


def _told(upload: Upload, served: Served, found: Prediction, row: dict[str, Any]) -> dict[str, Any]:
    """What listeners are told of a prediction: little, as there may be many a second."""
    same = ("id", "category", "score", "threshold", "label", "p_value")
    return {
        **{name: row[name] for name in same},
        "model": served.name,
        "version": served.version,
        "picture": found.digest,
        "source": upload.source,
        "name": upload.name,
        "regions": None if row["regions"] is None else len(row["regions"]),
        "time": datetime.fromtimestamp(upload.received, UTC).isoformat(),
    }


def public(error: BlemishError) -> Refusal:
    """What a client is told of an error that is not its own: nothing of this machine."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, StoreError) and error.retryable:
        return busy(5, f"{error}; ask again later")
    return Refusal(500, type(error).__name__, "the service failed at this; its log says why")
