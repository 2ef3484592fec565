"""The application: routes, errors as JSON, and the life of the service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response

from blemish.errors import BlemishError
from blemish.serve import api, inference, learning, managing, manual
from blemish.serve.guard import Guard
from blemish.serve.logs import Log
from blemish.serve.pages import add_pages
from blemish.serve.refusals import Refusal
from blemish.serve.service import Service, public
from blemish.serve.settings import Settings

ErrorPage = Callable[[Request, Refusal], Awaitable[Response]]


def create_app(settings: Settings, log: Log | None = None) -> FastAPI:
    """The application of a service; `app.state.service` is the service.

    `app.state.error_page`, where somebody sets it, answers in place of JSON who asks for HTML.

    Raises: ConfigError for tokens that cannot be read.
    """
    service = Service(settings, log)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await service.start()
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="blemish",
        summary="Visual anomaly detection as a service",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        middleware=[Middleware(Guard, hosts=settings.hosts, note=service.note_request)],
    )
    app.state.service = service
    app.state.error_page = None
    app.add_exception_handler(BlemishError, _failed)
    app.add_exception_handler(HTTPException, _by_framework)
    app.add_exception_handler(RequestValidationError, _invalid)
    for one in (api.router, inference.router, managing.router, learning.router, manual.router):
        app.include_router(one)
    add_pages(app)
    return app


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, BlemishError)
    service: Service = request.app.state.service
    refusal = public(error)
    service.metrics.refused.labels(refusal.kind).inc()
    if not isinstance(error, Refusal):
        service.log.fail("error", error, request=request.scope["state"].get("request"))
    return await _answered(request, refusal)


async def _by_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds = {404: "NotFound", 405: "NotAllowed"}
    told = {404: "there is nothing here", 405: "not by this method"}
    refusal = Refusal(
        error.status_code,
        kinds.get(error.status_code, "BadRequest"),
        told.get(error.status_code, "the request cannot be read"),
        error.headers,
    )
    return await _answered(request, refusal)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(one) for one in first["loc"][1:]) or "body"
    return await _answered(request, Refusal(400, "BadRequest", f"{where[:100]}: {first['msg']}"))


async def _answered(request: Request, refusal: Refusal) -> Response:
    page: ErrorPage | None = request.app.state.error_page
    if page is not None and "text/html" in request.headers.get("accept", ""):
        return await page(request, refusal)
    body: dict[str, Any] = refusal.to_dict()
    if request.url.path.startswith("/v2/"):  # whose protocol has a text there
        body = {"error": str(refusal)}
    return JSONResponse(body, refusal.status, headers=refusal.headers)
