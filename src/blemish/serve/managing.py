"""What is served: the models and their versions, which is live, and what was measured."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse

from blemish.files import cannot_write
from blemish.serve import files, uploads
from blemish.serve.models import Served
from blemish.serve.refusals import Refusal, bad_request
from blemish.serve.security import User, needs
from blemish.serve.service import Service

router = APIRouter()
Predicting = Annotated[User, Depends(needs("predict"))]
Administrating = Annotated[User, Depends(needs("admin"))]
_KINDS = {"artifact": ".blemish", "onnx": ".onnx"}
_BEAT = 15.0  # seconds after which a stream of events says that it is still there


@router.get("/v1/models", tags=["models"])
async def models(request: Request, user: Predicting) -> dict[str, Any]:
    """The models and the version of each that is live."""
    service: Service = request.app.state.service
    return {"models": [_told(service.models.live(name)) for name in service.models.names]}


@router.get("/v1/models/{name}", tags=["models"])
async def model(request: Request, user: Predicting, name: str) -> dict[str, Any]:
    """A model: its live version, all versions, and the history of promotions."""
    service: Service = request.app.state.service
    live = service.models.live(name)
    history = await service.in_pool(service.models.promotions.promotions, name)
    behind = service.models.behind.get(name)
    return {
        **_told(live),
        # What was promoted, by any service of this store, and is not live here.
        "behind": behind and {"version": behind.version, "reason": behind.reason},
        "versions": [
            {
                "version": one.version,
                "live": one.version == live.version,
                "loaded": service.models.loaded(name, one.version) is not None,
                "digest": one.digest or None,
            }
            for one in service.models.versions(name)
        ],
        "promotions": [
            {
                "version": one.version,
                "who": one.who,
                "reason": one.reason,
                "kind": one.kind,
                "time": one.time.isoformat(),
            }
            for one in reversed(history)
        ],
    }


@router.post("/v1/models/{name}/promote", tags=["models"])
async def promote(
    request: Request,
    user: Administrating,
    name: str,
    version: Annotated[str, Body(max_length=64)],
    reason: Annotated[str, Body(max_length=1000)] = "",
) -> dict[str, Any]:
    """Make a version live: it is loaded and warm before a request comes to it; none is lost."""
    service: Service = request.app.state.service
    return _told(await service.promote(name, version, user.name, reason))


@router.post("/v1/models/{name}/roll-back", tags=["models"])
async def roll_back(request: Request, user: Administrating, name: str) -> dict[str, Any]:
    """Make the version live that was so before the latest promotion."""
    service: Service = request.app.state.service
    return _told(await service.roll_back(name, user.name))


@router.post("/v1/models/{name}/versions", tags=["models"], status_code=201)
async def add(
    request: Request,
    user: Administrating,
    name: str,
    version: Annotated[str, Query(description="what it is to be called")],
    kind: Annotated[str, Query(description="of a raw body: artifact or onnx")] = "artifact",
) -> dict[str, Any]:
    """Take in a new version: the file as the body, or as multipart (an .xml with its .bin). It is
    loaded first, and refused with the reason where it cannot be. It is not live until promoted."""
    service: Service = request.app.state.service
    files.check_name("version", version)
    folder = service.models.folder_of(name)
    given: list[Path] = []
    try:
        given = await _received(request, service, folder, kind)
        file = await service.add(name, version, given)
    except OSError as error:
        raise cannot_write("the folder of models", error) from error
    except ClientDisconnect:
        raise Refusal(499, "Gone", "the client has gone") from None
    finally:
        for path in given:
            path.unlink(missing_ok=True)
    service.log.note("version", model=name, version=version, digest=file.digest, user=user.name)
    service.events.publish("version", {"model": name, "version": version, "who": user.name})
    return {"model": name, "version": version, "digest": file.digest}


@router.get("/v1/events", tags=["service"])
async def events(request: Request, user: Annotated[User, Depends(needs("review"))]) -> Response:
    """What happens, as server-sent events: predictions, promotions, versions, jobs, labels."""
    service: Service = request.app.state.service
    unbuffered = {"X-Accel-Buffering": "no"}  # or else nginx keeps events for itself
    return StreamingResponse(_stream(service), media_type="text/event-stream", headers=unbuffered)


@router.get("/v1/me", tags=["service"])
async def me(user: Predicting) -> dict[str, str]:
    """Whose token it is, and what they may do."""
    return {"name": user.name, "role": user.role}


@router.get("/metrics", tags=["service"])
async def metrics(request: Request, user: Predicting) -> Response:
    """What was measured, for Prometheus."""
    service: Service = request.app.state.service
    found = service.metrics
    return Response(await service.in_pool(found.encoded), media_type=found.media_type)


async def _stream(service: Service) -> AsyncIterator[bytes]:
    """Events as they come, and a sign of life between them."""
    yield b": here\n\n"
    happened = aiter(service.events.subscribe())
    coming = asyncio.ensure_future(anext(happened))
    try:
        while True:
            done, _ = await asyncio.wait((coming,), timeout=_BEAT)
            if not done:
                yield b": here\n\n"
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            yield event.encoded()
            coming = asyncio.ensure_future(anext(happened))
    finally:
        coming.cancel()


def _told(served: Served) -> dict[str, Any]:
    """What a version is, JSON-ready."""
    detector = served.detector
    threshold = detector.threshold
    return {
        "name": served.name,
        "version": served.version,
        "digest": served.digest,
        "method": detector.record.method,
        "engine": detector.engine.name,
        "device": detector.device,
        "precision": detector.precision,
        "categories": list(detector.categories),
        "threshold": None if threshold is None else threshold.value,
        "false_alarm_rate": None if threshold is None else threshold.rate,
    }


async def _received(request: Request, service: Service, folder: Path, kind: str) -> list[Path]:
    """The files of a body in a folder, under names of ours. Raises: Refusal, OSError."""
    settings = service.settings
    stem = f"{files.COMING}{secrets.token_hex(8)}"
    folder.mkdir(parents=True, exist_ok=True)
    media = parse_options_header(request.headers.get("content-type", ""))[0]
    if media != b"multipart/form-data":
        if kind not in _KINDS:
            raise bad_request(f"kind: one of {', '.join(_KINDS)} is needed, or multipart/form-data")
        place = folder / f"{stem}{_KINDS[kind]}"
        try:
            with place.open("xb") as file:
                async for chunk in uploads.chunks(request, settings.largest_model, _freely):
                    await service.in_pool(file.write, chunk)
        except BaseException:
            place.unlink(missing_ok=True)
            raise
        return [place]
    with service.place() as held:
        found = await uploads.parts(request, limit=settings.largest_model, most=2, hold=held.hold)
        content = {Path(one.name).suffix.lower(): one.content for one in found}
        if set(content) not in ({".blemish"}, {".onnx"}, {".xml", ".bin"}):
            raise bad_request(
                "the files are to be one .blemish, one .onnx, or an .xml and its .bin"
            )
        made = []
        for suffix in sorted(content, reverse=True):
            made.append(folder / f"{stem}{suffix}")
            await service.in_pool(made[-1].write_bytes, content[suffix])
        return made


def _freely(length: int) -> None:
    """Hold nothing: it goes to the disk as it comes."""
