"""Logging in with a token, and out."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from blemish.serve.pages.rendering import Visiting, environment, form
from blemish.serve.refusals import Refusal
from blemish.serve.service import Service

router = APIRouter()
FIRST = "/live"


@router.get("/")
async def begin() -> Response:
    """To the first page."""
    return RedirectResponse(FIRST, 303)


@router.get("/login")
async def shown(request: Request, next: str = FIRST) -> Response:
    """The login; who needs none goes on."""
    service: Service = request.app.state.service
    if not service.gate.has_tokens:
        return RedirectResponse(own_path(next), 303)
    return _page(own_path(next))


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Open a session for who has a token."""
    service: Service = request.app.state.service
    given = await form(request)
    target = own_path(given.get("next", FIRST))
    answer = RedirectResponse(target, 303)
    client = request.client.host if request.client else None
    try:
        token, secure = given.get("token", "").strip(), request.url.scheme == "https"
        session = service.gate.log_in(answer, token, secure=secure, client=client)
    except Refusal as refusal:
        service.log.note("login refused", client=client, status=refusal.status)
        if refusal.status == 429:
            return _page(target, "Too many attempts. Wait a minute, then try again.", 429)
        return _page(target, "Nobody has that token.", 401)
    request.state.user = session.user.name
    return answer


@router.get("/session")
async def session(visit: Visiting) -> Response:
    """What has to come with every change, for a page that was loaded in a session that is gone."""
    return visit.with_cookies(JSONResponse({"csrf": visit.session.csrf}))


@router.post("/logout")
async def log_out(visit: Visiting) -> Response:
    """Close the session."""
    answer = Response(headers={"HX-Redirect": "/login"})
    visit.service.gate.known(visit.request)  # no other site ends it
    visit.service.gate.log_out(visit.request, answer)
    return answer


def own_path(target: str) -> str:
    """Where to go after the login: a page of this service and of nobody else.

    Example:
        >>> own_path("/review?model=a"), own_path("//evil.example"), own_path("/\\\\evil.example")
        ('/review?model=a', '/live', '/live')
    """
    parts = urlsplit(target)
    is_own = not parts.scheme and not parts.netloc and target.startswith("/")
    plain = target.isprintable() and "\\" not in target and not target.startswith("//")
    return target if is_own and plain else FIRST


def _page(target: str, problem: str = "", status: int = 200) -> Response:
    values = {"next": target, "problem": problem}
    return HTMLResponse(environment().get_template("login.html").render(values), status)
