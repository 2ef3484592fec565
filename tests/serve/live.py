"""A service that runs in a thread of the tests, asked over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2 as httpx

from blemish.serve.app import create_app
from blemish.serve.logs import Log
from blemish.serve.running import Server, _configured, listening, url_of
from blemish.serve.service import Service
from blemish.serve.settings import Settings

T = TypeVar("T")


class Live:
    """A running service. Attributes: url; service; log: what it has logged, as text."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log = io.StringIO()
        log = Log("json", self.log)
        self.app = create_app(settings, log)
        self.service: Service = self.app.state.service
        self._listener = listening(settings)
        self.url = url_of(self._listener)
        self.server = Server(_configured(self.app, settings, log), self.service)
        self.loop: asyncio.AbstractEventLoop
        self._begun, self._problem = threading.Event(), None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        try:
            await self.service.start()
            serving = asyncio.create_task(self.server.serve(sockets=[self._listener]))
            while not self.server.started and not serving.done():
                await asyncio.sleep(0.005)
            self._begun.set()
            await serving
        except Exception as error:
            self._problem = error
        finally:
            await self.service.stop()
            self._begun.set()

    def start(self) -> None:
        self._thread.start()
        assert self._begun.wait(60)
        if self._problem is not None:
            self._thread.join()
            self._listener.close()
            raise self._problem

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(60)
        self._listener.close()
        assert not self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What a coroutine gives, in the loop of the service."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def client(self, token: str = "", **more: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, verify=False, **more)


@contextmanager
def serving(*models: Path, **settings: Any) -> Iterator[Live]:
    """A service of these models, on a free port."""
    live = Live(Settings(**{"models": models, "port": 0, **settings}))
    live.start()
    try:
        yield live
    finally:
        live.stop()
