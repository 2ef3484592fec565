"""A service in its process: it listens, and ends in order when it is asked to."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from ipaddress import IPv6Address, ip_address
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from blemish.errors import ConfigError
from blemish.serve.app import create_app
from blemish.serve.logs import Log
from blemish.serve.service import Service
from blemish.serve.settings import Settings

_IDLE = 75  # seconds for which a connection stays open without a request
_CONNECTIONS = 4096
_FILES = 3 * _CONNECTIONS  # that are open at once
_QUIET = 60.0  # seconds between two complaints about them


class Protocol(H11Protocol):
    """uvicorn's, which closes a connection that begins a request and does not end its head.

    Args: patience: seconds for that.
    """

    def __init__(self, *given: Any, patience: float, **more: Any) -> None:
        super().__init__(*given, **more)
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As of asyncio."""
        super().connection_made(transport)
        self._look()

    def data_received(self, data: bytes) -> None:
        """As of asyncio."""
        super().data_received(data)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """As of asyncio."""
        super().connection_lost(exc)
        self._stop()

    def _look(self) -> None:
        """Wait for a head, where one is under way, and no longer where it has come."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self._patience, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """uvicorn, which tells the service when the end begins. Attributes: number: of the signal."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self.number = 0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As of uvicorn, but the signal is not raised once more at the end."""

        def asked(number: int, frame: object) -> None:
            self.number = self.number or number
            self.handle_exit(number, None)

        before = {}
        with suppress(ValueError):  # outside the main thread
            for one in (signal.SIGINT, signal.SIGTERM):
                before[one] = signal.signal(one, asked)
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As of uvicorn; those who listen to events would never end by themselves."""
        self._service.end()
        await super().shutdown(sockets)


def run(settings: Settings, ready: Callable[[Service, str], None]) -> int:
    """Serve until a signal says to end; gives its number.

    Args: ready: called with the service and its URL, once it takes requests.
    Raises: BlemishError where it cannot begin.
    """
    _have_files()
    listener = listening(settings)
    try:
        return asyncio.run(_run(settings, listener, ready))
    finally:
        listener.close()


async def _run(
    settings: Settings, listener: socket.socket, ready: Callable[[Service, str], None]
) -> int:
    log = Log(settings.log_format)
    asyncio.get_running_loop().set_exception_handler(Unheard(log))
    app = create_app(settings, log)
    service: Service = app.state.service
    try:
        await service.start()
        server = Server(_configured(app, settings, log), service)
        ready(service, url_of(listener))
        await server.serve(sockets=[listener])
    finally:
        await service.stop()
    log.note("ended", signal=server.number, answered=dict(service.answered))
    return server.number


class Unheard:
    """Hears what went wrong in the event loop where nobody waited for it, and logs it.

    Where a process may open no more files, asyncio tells so for each connection that waits, over
    and over: that is told once a minute.
    """

    def __init__(self, log: Log) -> None:
        self._log, self._told = log, -_QUIET

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """As asyncio has it."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            if loop.time() - self._told >= _QUIET:
                self._told = loop.time()
                self._log.warn(
                    "connections wait",
                    reason="no more files may be opened: too many connections, or a limit that is "
                    "too small (ulimit -n)",
                )
        elif error is None:
            self._log.warn("event loop", reason=str(context.get("message", "")))
        else:
            self._log.fail("event loop", error, reason=str(context.get("message", "")))


def _have_files() -> None:
    """Be allowed as many open files as this process can be: each connection is one."""
    if os.name != "posix":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _configured(app: object, settings: Settings, log: Log) -> uvicorn.Config:
    told = logging.getLogger("uvicorn.error")
    told.handlers, told.propagate = [log.handler], False
    told.setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what is damaged is answered
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=list(settings.proxies),
        lifespan="off",
        ws="none",
        http=partial(Protocol, patience=settings.time_limit_s),  # type: ignore[arg-type]
        timeout_keep_alive=_IDLE,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=round(settings.grace_s),
    )


def listening(settings: Settings) -> socket.socket:
    """A socket at the address. Raises: ConfigError where that cannot be had."""
    address, port = settings.address, settings.port
    try:
        is_six = isinstance(ip_address(address), IPv6Address)
        family = socket.AF_INET6 if is_six else socket.AF_INET
    except ValueError:
        family = socket.AF_INET
    # Named TCP, asyncio sends small answers at once; else each waits 40 ms for the client's system.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--address {address} --port {port}: cannot be listened at "
            f"({error.strerror or error}); choose another"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where it is asked, as a browser takes it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
