"""Looks after what comes: pictures get their place in the review, and a change of them is told,
whether anybody looks at a page or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from blemish.errors import BlemishError, StoreError
from blemish.serve.appearance import Appearance
from blemish.serve.population import Judged
from blemish.serve.reviewing import CHANGES, Drift, Reviewing

if TYPE_CHECKING:
    from blemish.serve.service import Service

_PAUSE = 5.0  # seconds from one look to the next
_COMPLAINTS = 60.0  # seconds between two that say the same


class Follower:
    """Follows the store of a service, from its start to its end."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._told: set[tuple[str, str, str, str]] = set()
        self._complained = 0.0
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """End, and write down how far it has come."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            await self._run(_saved, self._service)
        except StoreError as error:
            self._service.log.warn("the state of the review is not kept", reason=str(error))

    async def look(self) -> None:
        """Look once, at all models. Raises: BlemishError where the store cannot be read."""
        service = self._service
        for name in service.models.names:
            version = service.models.live(name).version
            for one in await self._run(drift_of, service, name):
                if not one.source:
                    evidence = max(one.monitor.evidence().values())
                    service.metrics.drift.labels(name, version).set(evidence)
                for alarm in one.alarms:
                    key = (name, version, one.source, alarm.test)
                    if key not in self._told:
                        self._told.add(key)
                        self._tell(name, version, one.source, alarm.kind, alarm.advice)
            look = await self._run(appearance_of, service, name)
            service.metrics.note_appearance(name, version, look)
            key = (name, version, "", "looks")
            if not look.since:
                self._told.discard(key)
            elif key not in self._told:
                self._told.add(key)
                self._tell(name, version, "", "looks", look.advice())

    async def _follow(self) -> None:
        begun = False
        while True:
            await asyncio.sleep(_PAUSE)
            try:
                await self.look()
                if not begun:  # so that nobody waits for it who asks for the figures
                    for name in self._service.models.names:
                        await self._run(judged, self._service, name)
                    begun = True
            except BlemishError as error:
                if time.monotonic() - self._complained > _COMPLAINTS:
                    self._complained = time.monotonic()
                    self._service.log.warn("the review does not follow", reason=str(error))

    def _tell(self, model: str, version: str, source: str, kind: str, advice: str) -> None:
        told = {
            "model": model,
            "version": version,
            "source": source,
            "change": CHANGES[kind],
            "advice": advice,
        }
        self._service.log.warn("drift", **told)
        self._service.events.publish("drift", told)

    async def _run(self, work: Any, *given: Any) -> Any:
        pool = self._service.pools.pages
        return await asyncio.get_running_loop().run_in_executor(pool, work, *given)


def drift_of(service: Service, model: str) -> list[Drift]:
    """What is known of a change of a model's pictures under its live version: of all sources
    together first. Takes a while. Raises: BlemishError where the store cannot be read."""
    return _watching(service, model).drift()


def appearance_of(service: Service, model: str) -> Appearance:
    """How a model's pictures look beside the first ones of its live version. As `drift_of`."""
    return _watching(service, model).appearance()


def look_anew(service: Service, model: str) -> Appearance:
    """Compare how pictures look with those that come from now on. As `drift_of`."""
    reviewing = _watching(service, model)
    reviewing.look_anew()
    return reviewing.appearance()


def _watching(service: Service, model: str) -> Reviewing:
    served = service.models.live(model)
    record = served.detector.record
    threshold = None if record.threshold is None else record.threshold.value
    reviewing = Reviewing.of(service, model)
    space = served.detector.descriptor_space if served.detector.describes else None
    reviewing.watch(served.version, record.calibration_scores, threshold, space)
    return reviewing


def judged(service: Service, model: str, version: str | None = None) -> Judged:
    """What reviewed pictures say of a version, None = the live one, without those that it learned
    from or took its threshold from, as far as is known: they would flatter it.

    Takes a while the first time. Raises: BlemishError where the store cannot be read.
    """
    version = service.models.live(model).version if version is None else version
    served, store = service.models.loaded(model, version), service.store
    seen: Collection[str] = ()
    if served is not None:
        seen = {*served.detector.learned, *served.detector.record.data.calibrated}
    elif store is not None and (known := store.version(model, version)) is not None:
        seen = known.learned_from.get("pictures", ())
    return Reviewing.of(service, model).judged(version, seen)


def _saved(service: Service) -> None:
    for name in service.models.names:
        Reviewing.of(service, name).save()
