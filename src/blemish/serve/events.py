"""What happens, told to whoever listens: for pages that show it as it comes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

_WAITING = 256  # events of a listener that does not keep up; older ones are lost to it


@dataclass(frozen=True, slots=True)
class Event:
    """What happened. kind: "prediction", "promotion", "job", …; data: JSON-ready."""

    kind: str
    data: dict[str, Any]

    def encoded(self) -> bytes:
        """It as a server-sent event."""
        return f"event: {self.kind}\ndata: {json.dumps(self.data)}\n\n".encode()


class Events:
    """Hands events from any thread to those who listen; one who is slow loses the oldest."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: set[asyncio.Queue[Event | None]] = set()
        self._thread = 0
        self.closed = False

    def open(self) -> None:
        """From now on; called in the event loop."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()

    def publish(self, kind: str, data: dict[str, Any]) -> None:
        """Tell those who listen; from any thread."""
        event = Event(kind, data)
        if self._loop is None or self.closed:
            return
        if threading.get_ident() == self._thread:
            self._hand_out(event)
        else:
            self._loop.call_soon_threadsafe(self._hand_out, event)

    async def subscribe(self) -> AsyncIterator[Event]:
        """What happens from now on, until `close`."""
        waiting: asyncio.Queue[Event | None] = asyncio.Queue(_WAITING)
        self._listeners.add(waiting)
        try:
            while not self.closed and (event := await waiting.get()) is not None:
                yield event
        finally:
            self._listeners.discard(waiting)

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    def close(self) -> None:
        """End all that listen."""
        self.closed = True
        self._hand_out(None)

    def _hand_out(self, event: Event | None) -> None:
        for waiting in self._listeners:
            if waiting.full():
                waiting.get_nowait()
            waiting.put_nowait(event)
