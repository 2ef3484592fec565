"""The API of version 1: pictures in, predictions out."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from blemish.serve import drawing, uploads
from blemish.serve.batching import Upload
from blemish.serve.refusals import Refusal, bad_request, too_late
from blemish.serve.security import User, needs
from blemish.serve.service import Answer, Place, Service

T = TypeVar("T")
R = TypeVar("R")
router = APIRouter()
Predicting = Annotated[User, Depends(needs("predict"))]
Drawn = Literal["png", "overlay"]
_PNG = "image/png"
_FIELDS = 8  # parts of a body that are no pictures


@router.post("/v1/models/{name}/predict", tags=["predictions"])
async def predict(
    request: Request,
    name: str,
    user: Predicting,
    version: Annotated[str | None, Query(description="not the live one")] = None,
    category: Annotated[str, Query(description="what the pictures show, where known")] = "",
    source: Annotated[str, Query(max_length=200, description="where they come from")] = "",
    heatmap: Annotated[Drawn | None, Query(description="a PNG with each, base64")] = None,
) -> Response:
    """Score pictures: multipart/form-data with one or many files, or the bytes of one."""
    service: Service = request.app.state.service
    wants_png = _PNG in request.headers.get("accept", "")

    async def read(place: Place) -> list[uploads.Part]:
        settings = service.settings
        found = await uploads.parts(
            request,
            limit=settings.largest_upload,
            most=settings.most_pictures + _FIELDS,
            hold=place.hold,
        )
        files = [one for one in found if one.name or one.field == "picture"]
        if not files:
            raise bad_request("the body holds no file; send a picture as a file")
        place.take(len(files))
        return files

    async def work(files: list[uploads.Part]) -> Response:
        served = await service.served(name, version)
        pictures = [
            Upload(
                content=one.content,
                name=uploads.shown_name(one.name, f"picture {index}"),
                source=source,
                category=category,
            )
            for index, one in enumerate(files)
        ]
        answers = await service.score_all(served, pictures)
        note(request, model=served.name, version=served.version, pictures=len(answers))
        if len(answers) == 1 and isinstance(answers[0], Refusal):
            raise answers[0]
        drawn = await _drawings(
            service, answers, pictures, heatmap or ("png" if wants_png else None)
        )
        if wants_png and len(answers) == 1 and isinstance(answers[0], Answer):
            return Response(drawn[0], media_type=_PNG, headers=_headers(answers[0]))
        told = {"model": served.name, "version": served.version}
        rows = [
            _row(answer, picture.name, png)
            for answer, picture, png in zip(answers, pictures, drawn, strict=True)
        ]
        return JSONResponse({**told, "predictions": rows})

    service.models.live(name)
    return await in_time(request, read, work)


async def in_time(
    request: Request,
    read: Callable[[Place], Awaitable[R]],
    work: Callable[[R], Coroutine[Any, Any, Response]],
) -> Response:
    """What is made of a body, within the time limit and while its client is there.

    Args: read: gives what is in the body, and takes room for its pictures; work: is given that.
    Raises: Refusal: 408 where the body came too slowly, 504 where the answer did.
    """
    service: Service = request.app.state.service
    limit = service.settings.time_limit_s
    is_read = False
    with service.place() as place:
        try:
            async with asyncio.timeout(limit):
                body = await read(place)
                is_read = True
                return await while_there(request, work(body))
        except TimeoutError:
            if is_read:
                raise too_late(limit) from None
            told = f"the body did not come within {limit:g} s, the time limit"
            raise Refusal(408, "TooSlow", told, {"Connection": "close"}) from None
        except ClientDisconnect:
            raise _gone() from None


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What is computed for a client, unless it goes before. Raises: Refusal where it has gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, leaving = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _gone()
        return task.result()
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()


def note(request: Request, **fields: Any) -> None:
    """Put something into the log's line of a request."""
    request.scope["state"].setdefault("told", {}).update(fields)


def _gone() -> Refusal:
    return Refusal(499, "Gone", "the client has gone")


async def _drawings(
    service: Service,
    answers: list[Answer | Refusal],
    pictures: list[Upload],
    kind: Drawn | None,
) -> list[bytes | None]:
    async def one(answer: Answer | Refusal, picture: Upload) -> bytes | None:
        if kind is None or isinstance(answer, Refusal):
            return None
        found: bytes = await service.in_pool(
            drawing.png, kind, answer.prediction, answer.served.detector, picture.content
        )
        return found

    pairs = zip(answers, pictures, strict=True)
    return await asyncio.gather(*(one(answer, picture) for answer, picture in pairs))


def _row(answer: Answer | Refusal, name: str, png: bytes | None) -> dict[str, Any]:
    if isinstance(answer, Refusal):
        return {"path": name, **answer.to_dict()}
    if png is None:
        return answer.row
    told = {"media_type": _PNG, "data": base64.b64encode(png).decode()}
    return {**answer.row, "heatmap": told}


def _headers(answer: Answer) -> dict[str, str]:
    row = answer.row
    told = {
        "Model": answer.served.name,
        "Version": answer.served.version,
        **{key.title(): row[key] for key in ("score", "threshold", "label", "p_value", "id")},
    }
    return {
        f"X-Blemish-{key.replace('_', '-')}": str(value)
        for key, value in told.items()
        if value is not None
    }
