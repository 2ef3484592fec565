"""The pages of the service: server-rendered, with small scripts beside them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from blemish.serve.pages import (
    figures,
    live,
    login,
    media,
    models,
    pictures,
    refine,
    review,
)
from blemish.serve.pages.rendering import edition, error_page
from blemish.serve.refusals import not_found

_KEPT = "public, max-age=31536000, immutable"  # the address changes with the content


class _Static(StaticFiles):
    async def get_response(self, path: str, scope: Any) -> Response:
        """A file, named after the edition of all files, which browsers keep for good."""
        named, _, own = path.replace("\\", "/").partition("/")
        if named != edition():
            raise not_found("this file is of another version of the service; load the page anew")
        answer = await super().get_response(own, scope)
        answer.headers["Cache-Control"] = _KEPT
        return answer


def add_pages(app: FastAPI, *more: APIRouter) -> None:
    """Have an application of `create_app` answer with pages too.

    Args: more: routers of further pages, each with the prefix of its tab.
    """
    router = APIRouter(include_in_schema=False)
    for part in (login, live, pictures, review, figures, refine, models, media):
        router.include_router(part.router)
    for one in more:
        router.include_router(one)
    app.include_router(router)
    app.mount("/static", _Static(packages=[("blemish.serve", "static")]), name="static")
    own = ("/live", "/pictures", "/review", "/figures", "/refine", "/models")
    app.state.pages = {*own, *(one.prefix for one in more)}
    app.state.error_page = error_page
