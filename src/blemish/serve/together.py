"""Several services on one store: each has an instance id, and says over and over that it is there.

What only one may do at a time belongs to the one that has a lease in the store (`store.leases`).
What one has changed, the others find there within seconds: a version that was promoted, one that
joined, a job whose service is gone. A service is gone when its lease has ended; where it was killed
on this machine, a lock in the store's folder says so at once.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blemish.errors import BlemishError, OutputError, StoreError
from blemish.files import locked
from blemish.store import Store

if TYPE_CHECKING:
    from blemish.serve.service import Service

FOLDER = "services"  # of the store
PAUSE = 2.0  # seconds from one look to the next
BEAT = 5.0  # seconds after which it says again that it is there
LEASE = 20.0  # seconds without a word after which it counts as gone
_COMPLAINTS = 60.0  # seconds between two that say the same
_SERVICE = "service "
_HOST = re.compile(r"[^A-Za-z0-9-]+")


class Together:
    """A service among those that share its store.

    Attributes:
        id: of this instance, new with each start.
        store: the one they share.
    """

    def __init__(self, service: Service, store: Store) -> None:
        self.id, self.store, self._service = secrets.token_hex(8), store, service
        self._host = _HOST.sub("-", socket.gethostname())[:40] or "host"
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="blemish-together")
        self._lock = ExitStack()
        self._has_lock = False
        self._beaten = self._complained = -math.inf
        self._tried: dict[str, tuple[str, ...]] = {}
        self._told: dict[str, tuple[str, str]] = {}
        self._following: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Say that this one is there. Raises: StoreError."""
        await self._in(self._take_lock)
        await self._in(self._beat)

    async def follow(self) -> None:
        """Look once, and again and again until the end. Raises: StoreError at the first time."""
        await self.look()
        self._following = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Give back what this one has."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        with suppress(StoreError):  # it ends by itself
            await self._in(self.store.release_all, self.id)
            await self._in(self.store.release, _SERVICE + self.id, self._host)
        await self._in(self._lock.close)
        self._pool.shutdown()

    async def look(self) -> None:
        """Take over what others have done. Raises: BlemishError."""
        service = self._service
        if time.monotonic() - self._beaten > BEAT:
            await self._in(self._beat)
            self._beaten = time.monotonic()
            if service.jobs is not None:
                await service.jobs.look_after(await self._in(self._alive))
        await self._find_versions()
        for name in service.models.names:
            await self._take_over(name)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(PAUSE)
            try:
                await self.look()
            except BlemishError as error:
                if time.monotonic() - self._complained > _COMPLAINTS:
                    self._complained = time.monotonic()
                    self._service.log.warn("other services are not heard", reason=str(error))
            except Exception as error:  # or else nothing would be taken over any more
                self._service.log.fail("other services are not heard", error)

    async def _find_versions(self) -> None:
        """Versions that have joined, and models that another service has taken in."""
        service = self._service
        for file in await service.models.look_again():
            if file.name in service.models.names:
                told = {"model": file.name, "version": file.version, "who": ""}
                service.events.publish("version", told)
        for name in service.models.unserved:
            rows = await self._in(self.store.versions, name)
            known = tuple(row.version for row in rows)
            if known and self._tried.get(name) != known:
                self._tried[name] = known
                if await service.models.begin(name):
                    service.log.note("a new model is served", model=name)
                    service.note_live(name)

    async def _take_over(self, name: str) -> None:
        """Have the version live that was promoted last, by whichever service."""
        models, service = self._service.models, self._service
        changed = await models.follow(name, self._digest_of)
        if changed is not None:
            before, last = changed
            service.note_promotion(name, before.version, models.live(name).version, last.who)
        behind = models.behind.get(name)
        known = None if behind is None else (behind.version, behind.reason)
        if known == self._told.get(name):
            return
        self._told.pop(name, None)
        service.metrics.of_behind(name, None if behind is None else behind.version)
        if behind is not None:
            self._told[name] = (behind.version, behind.reason)
            told = {"model": name, "version": behind.version, "live": models.live(name).version}
            service.log.warn("a promoted version is not live here", **told, reason=behind.reason)

    def _digest_of(self, name: str, version: str) -> str:
        row = self.store.version(name, version)
        return "" if row is None else str(row.sha256)

    def _beat(self) -> None:
        self.store.lease(_SERVICE + self.id, self._host, LEASE)
        self.store.forget_leases()

    def _alive(self) -> set[str]:
        """The services that are there. What those have who were killed here is given back."""
        for gone in self._killed():
            self.store.release_all(gone)
            self.store.release(_SERVICE + gone, self._host)
        return {name.removeprefix(_SERVICE) for name in self.store.leased(_SERVICE)} | {self.id}

    @property
    def _folder(self) -> Path:
        folder: Path = self.store.folder
        return folder / FOLDER

    def _take_lock(self) -> None:
        """Lock a file for as long as this process lives, where locks are to be had."""
        place = self._folder / f"{self._host}.{self.id}"
        with suppress(OutputError):
            self._lock.enter_context(locked(place))
            try:
                with locked(place):
                    pass  # what can be locked twice is not locked
            except OutputError:
                self._has_lock = os.name == "posix"

    def _killed(self) -> list[str]:
        """The services of this machine whose files nobody locks any more; these are deleted."""
        found = []
        for left in self._folder.glob(f".{self._host}.*.lock") if self._has_lock else ():
            name = left.name.removesuffix(".lock")[1:]
            id = name.removeprefix(f"{self._host}.")
            if id != self.id:
                with suppress(OutputError), locked(left.with_name(name)):
                    found.append(id)
        return found

    async def _in(self, work: Any, *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *given)
