"""What stands before everything: which name a service is asked under, from where, and what every
answer says to a browser. It also ends what nobody has caught, and notes every request.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blemish.serve.refusals import Refusal

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SAFE = ("GET", "HEAD", "OPTIONS")
Note = Callable[[Scope, int, float, BaseException | None], None]


class Guard:
    """Checks where a request comes from, sets the headers of safety, notes what was answered.

    Args:
        hosts: names under which it may be asked, beside IP addresses and localhost: no name of
            somebody else's, which is made to lead here (DNS rebinding).
        note: called with each request's scope, the status, the seconds and what was not caught.
    """

    def __init__(self, app: ASGIApp, *, hosts: tuple[str, ...], note: Note) -> None:
        self._app, self._note = app, note
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        scope.setdefault("state", {})["request"] = secrets.token_hex(8)

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
                headers["X-Request-Id"] = scope["state"]["request"]
            await send(message)

        problem: BaseException | None = None
        try:
            self._check(scope)
            await self._app(scope, receive, sent)
        except Refusal as refusal:
            await _answer(refusal)(scope, receive, sent)
        except Exception as error:
            problem = error
            if not status:
                told = Refusal(
                    500, "Failed", "the service failed at this; its log says why, by X-Request-Id"
                )
                await _answer(told)(scope, receive, sent)
        finally:
            self._note(scope, status or 499, time.monotonic() - began, problem)

    def _check(self, scope: Scope) -> None:
        """Raises: Refusal."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise Refusal(
                421,
                "Misdirected",
                "this service is not asked under that name; start it with --host",
            )
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        is_safe = scope["method"] in _SAFE
        if site in ("cross-site", "same-site"):
            if not is_safe or headers.get("sec-fetch-mode") != "navigate":
                raise _elsewhere()
        elif site is None and origin is not None and urlsplit(origin).netloc != host:
            raise _elsewhere()

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name == "localhost" or name in self._hosts:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True


def _elsewhere() -> Refusal:
    return Refusal(403, "Forged", "a page of another site may not ask this")


def _answer(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.to_dict(), refusal.status, headers=refusal.headers)


def told(scope: Scope) -> dict[str, Any]:
    """What may be noted of a request: no query, which may hold what is nobody's business."""
    state, client = scope.get("state", {}), scope.get("client")
    route = scope.get("route")
    return {
        "request": state.get("request"),
        "method": scope["method"],
        "path": scope["path"][:500],
        "route": getattr(route, "path", None),
        "client": None if client is None else client[0],
        "user": state.get("user"),
        **state.get("told", {}),
    }
